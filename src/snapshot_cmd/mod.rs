//! `esker snapshot`: partition snapshots, straight on a repository.
//!
//! | room | what it holds |
//! |---|---|
//! | [`place`] | arguments: which repository, which partition, who asks, with which keys |
//! | [`failure`] | what the library's errors mean to a person |
//! | [`list`], [`show`], [`diff`], [`verify`], [`why`], [`restore`] | commands that read |
//! | [`put`], [`prune`] | commands that write |
//! | [`watch`] | long work: a bar, and Ctrl-C |
//! | [`shown`] | keys, sizes and tables as they are printed |
//!
//! What a command found goes to standard output; remarks and progress go to standard error. With
//! `--json` standard output is one JSON document, whatever was found.

mod diff;
mod failure;
mod list;
mod place;
mod prune;
mod put;
mod restore;
mod show;
mod shown;
mod verify;
mod watch;
mod why;

use std::time::Duration;

use clap::Subcommand;
use place::{Place, PlaceArgs};

use crate::exit::Failure;

/// Name of the environment variable for `--repository`.
pub const REPOSITORY_VARIABLE: &str = "ESKER_REPOSITORY";

/// How long the end waits for what was begun in the background: a stop is to be prompt.
const PARTING: Duration = Duration::from_secs(1);

/// Put, list, check and restore partition snapshots in a repository.
///
/// A repository is an S3 bucket or a directory. A snapshot in it holds immutable files and the
/// position in a partition's log that they cover (its LSN). No server is needed.
///
/// Only `put` and `prune` change what is kept; `restore` pins what it reads, meanwhile; everything
/// else only reads. What Restate wrote can be read, and is never written to.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  esker snapshot put checkpoint/ --lsn 4200 --repository s3://bucket/prefix
  export ESKER_REPOSITORY=s3://bucket/prefix
  esker snapshot list
  esker snapshot verify --data
  esker snapshot restore --to restored/")]
pub struct Args {
    #[command(flatten)]
    place: PlaceArgs,

    /// Print one JSON document
    #[arg(long, global = true)]
    json: bool,

    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    List(list::Args),
    Show(show::Args),
    Diff(diff::Args),
    Verify(verify::Args),
    Why(why::Args),
    Restore(restore::Args),
    Put(put::Args),
    Prune(prune::Args),
}

pub fn run(args: Args) -> Result<(), Failure> {
    let place = Place::open(args.place)?;
    let json = args.json;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|e| Failure::wrong("io", format!("starting the runtime: {e}")))?;
    let result = runtime.block_on(async {
        match args.command {
            Command::List(args) => list::run(&place, &args, json).await,
            Command::Show(args) => show::run(&place, &args, json).await,
            Command::Diff(args) => diff::run(&place, &args, json).await,
            Command::Verify(args) => verify::run(&place, &args, json).await,
            Command::Why(args) => why::run(&place, &args, json).await,
            Command::Restore(args) => restore::run(&place, &args, json).await,
            Command::Put(args) => put::run(&place, &args, json).await,
            Command::Prune(args) => prune::run(&place, &args, json).await,
        }
    });
    // Left alone, it would wait until a file that is being hashed is read to its end.
    runtime.shutdown_timeout(PARTING);
    result
}
