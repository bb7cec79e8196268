//! `esker snapshot`: partition snapshots, through a running server or directly on a repository.
//!
//! | module | what it holds |
//! |---|---|
//! | [`target`], [`s3`] | arguments: server or repository, partition, cluster, credentials |
//! | [`online`] | the commands that ask a server |
//! | [`failure`] | translation of the library's errors |
//! | [`list`], [`show`], [`diff`], [`verify`], [`why`], [`restore`] | commands that read |
//! | [`create`], [`put`], [`prune`] | commands that write |
//! | [`watch`] | long work: a bar, and Ctrl-C |
//! | [`render`] | keys, sizes and tables as they are printed |
//!
//! The result of a command goes to standard output; remarks and progress go to standard error. With `--json`,
//! standard output is one JSON document, whatever was found.

mod create;
mod diff;
mod failure;
mod list;
mod online;
mod prune;
mod put;
pub mod render;
mod restore;
pub mod s3;
mod show;
mod target;
mod verify;
mod watch;
mod why;

use std::time::Duration;

use clap::Subcommand;
use online::Online;
use target::{Needs, TargetArgs, Where};

use crate::failure::Failure;
use crate::interrupts;
use crate::remote::{AccessArgs, Remote};

/// Name of the environment variable for `--repository`.
pub const REPOSITORY_VARIABLE: &str = "ESKER_REPOSITORY";

/// How long the end waits for background work, such as the hash of a large file: an interrupted command ends
/// promptly.
const PARTING: Duration = Duration::from_secs(1);

/// Create, list, check and restore partition snapshots.
///
/// A snapshot holds immutable files and the position in a partition's log that they cover (its LSN). It
/// is kept in a repository: an S3 bucket or a directory. Either a running server is asked (--server), by
/// default the one on this machine, or the repository itself (--repository), which needs no server.
///
/// Only `create`, `put` and `prune` change what is kept; `restore` pins what it reads, meanwhile;
/// everything else only reads. A repository that Restate wrote can be read; nothing is written to it.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  esker snapshot create
  esker snapshot verify --restore
  esker snapshot put checkpoint/ --lsn 4200 --repository s3://bucket/prefix
  export ESKER_REPOSITORY=s3://bucket/prefix
  esker snapshot list
  esker snapshot verify --data
  esker snapshot restore --to restored/")]
pub struct Args {
    #[command(flatten)]
    place: TargetArgs,

    /// Print one JSON document
    #[arg(long, global = true)]
    json: bool,

    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Create(create::Args),
    List(list::Args),
    Show(show::Args),
    Diff(diff::Args),
    Verify(verify::Args),
    Why(why::Args),
    Restore(restore::Args),
    Put(put::Args),
    Prune(prune::Args),
}

impl Command {
    /// What an interruption leaves behind, outside of long work, which has its own text.
    fn left(&self, found: &Where) -> &'static str {
        match (found, self) {
            (Where::Server(..), Command::Create(_)) => {
                "the server may go on with the snapshot: `esker snapshot list` shows what is there"
            }
            (Where::Server(..), Command::Verify(args)) if args.repair => {
                "the server may go on with the repair: run it again to see what is damaged"
            }
            (Where::Server(..), Command::Prune(args)) if !args.dry_run => {
                "the server may go on with it: `esker snapshot list` shows what is kept"
            }
            _ => "nothing was changed",
        }
    }

    fn needs(&self) -> Needs {
        match self {
            Command::Create(_) => {
                Needs::Server("`create` has a server put a snapshot of what it holds")
            }
            Command::Verify(args) if args.restore => {
                Needs::Server("`verify --restore` compares with the live partitions of a server")
            }
            Command::Verify(args) if args.files.is_some() => Needs::Repository(
                "`verify --repair --files` repairs a repository, named with --repository; a server \
                 repairs from its own files",
            ),
            Command::Restore(_) => Needs::Repository(
                "a server does not hand out files: `restore` takes them from the repository, \
                 named with --repository; `esker server --bootstrap restore` restores a whole node",
            ),
            Command::Put(_) => Needs::Repository(
                "`put` puts a directory into a repository, named with --repository; `esker snapshot \
                 create` has a server put a snapshot of what it holds",
            ),
            Command::Prune(args) if !args.dry_run => {
                Needs::Named("`prune` deletes, so it has no default")
            }
            _ => Needs::Either,
        }
    }
}

pub fn run(args: Args, access: &AccessArgs) -> Result<(), Failure> {
    let needs = args.command.needs();
    let found = args.place.find(needs)?;
    let json = args.json;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|e| Failure::wrong("io", format!("starting the runtime: {e}")))?;
    let left = args.command.left(&found);
    interrupts::run_and_part(runtime, left, PARTING, async {
        let place = match found {
            Where::Server(address, partition) => {
                let remote = Remote::new(address, access)?;
                let online = Online::open(remote, partition, json, left).await;
                let online = online.map_err(|failure| advised(failure, needs))?;
                return match args.command {
                    Command::Create(_) => create::run(&online).await,
                    Command::List(_) => online.list().await,
                    Command::Show(args) => online.show(&args).await,
                    Command::Diff(args) => online.diff(&args).await,
                    Command::Verify(args) if args.restore => online.prove(&args).await,
                    Command::Verify(args) => online.verify(&args).await,
                    Command::Why(args) => online.why(&args).await,
                    Command::Prune(args) => online.prune(&args).await,
                    // These commands need a repository.
                    Command::Restore(_) | Command::Put(_) => Ok(()),
                };
            }
            Where::Repository(place) => place,
        };
        match args.command {
            Command::List(args) => list::run(&place, &args, json).await,
            Command::Show(args) => show::run(&place, &args, json).await,
            Command::Diff(args) => diff::run(&place, &args, json).await,
            Command::Verify(args) => verify::run(&place, &args, json).await,
            Command::Why(args) => why::run(&place, &args, json).await,
            Command::Restore(args) => restore::run(&place, &args, json).await,
            Command::Put(args) => put::run(&place, &args, json).await,
            Command::Prune(args) => prune::run(&place, &args, json).await,
            // This command needs a server.
            Command::Create(_) => Ok(()),
        }
    })
}

/// Adds the advice to name a repository where no server answers.
fn advised(failure: Failure, needs: Needs) -> Failure {
    match (failure.code, needs) {
        ("unreachable", Needs::Either) => failure.advise(
            "is a server running? start one with `esker server`, or name another with --server, or a \
             repository with --repository (s3://BUCKET/PREFIX, file:///DIR or a directory), which needs \
             no server",
        ),
        _ => failure,
    }
}
