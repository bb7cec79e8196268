//! `esker follow`: a state that is folded from a stream's records and kept current, with snapshots; built on
//! the library `esker-follow`.
//!
//! | module | what it holds |
//! |---|---|
//! | [`server`], [`snapshot_args`], [`fold`] | arguments: which server, where snapshots are, what the state is |
//! | [`following`] | the follower: opening, catching up, ending |
//! | [`once`], [`lines`], [`live`] | output: the state once; changes as lines; a screen |
//! | [`render`], [`report`] | how the state and the position are printed |
//! | [`inspect`] | the snapshots of a stream |
//! | [`progress`], [`stop`], [`failure`] | bars; Ctrl-C; translation of the library's errors |
//!
//! The state goes to standard output; remarks and progress go to standard error.

mod failure;
mod fold;
mod following;
mod inspect;
mod lines;
mod live;
mod once;
pub mod progress;
mod render;
mod report;
mod server;
mod snapshot_args;
mod stop;

use std::io::IsTerminal as _;
use std::time::Duration;

use fold::FoldArgs;
use following::Following;
use server::Server;
use snapshot_args::SnapshotArgs;
use stop::Stop;

use crate::encryption_key::KeyArgs;
use crate::failure::Failure;
use crate::remote::AccessArgs;
use crate::server_address::{SERVER_VARIABLE, ServerAddress};
use crate::stream_cmd::target::{self, StreamTarget};

/// How long the end waits for background work.
const PARTING: Duration = Duration::from_secs(1);

/// Keep a state that is made of a stream's records, and snapshots of it.
///
/// The newest snapshot is restored, then the records after it are applied, and then each new record.
/// The state is the last record of each key (--by), how many records each key has (--count-by), or a
/// document that all records patch (--merge); records are JSON. On a terminal it is shown as it
/// changes. Otherwise it is printed when it is current, and from then on a line for each key that
/// changes.
///
/// Snapshots keep the replay short: in the stream itself, which is trimmed to each, or as objects beside
/// it. Any server of the S2 API will do; the environment variables of the official command line count,
/// too: S2_ACCOUNT_ENDPOINT, S2_BASIN_ENDPOINT, S2_ACCESS_TOKEN. Hosted S2 is --server https://a.s2.dev.
///
/// --inspect lists the snapshots of a stream instead: whether each is whole, how far it is behind, and
/// how long a recovery from it would take.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  esker follow my-basin/orders --by /id
  esker follow my-basin/orders --by /id --snapshot in-stream --once
  esker follow my-basin/orders --count-by /customer --json | jq -c .changed
  esker follow my-basin/orders --by /id --snapshot external:s3://bucket/orders --budget 2s --trim
  esker follow my-basin/orders --inspect")]
pub struct Args {
    /// The stream
    #[arg(value_name = "BASIN/STREAM", value_parser = target::stream)]
    stream: StreamTarget,

    #[command(flatten)]
    fold: FoldArgs,

    /// Skip records that the fold cannot read, and count them
    #[arg(long, help_heading = "State")]
    skip_malformed: bool,

    /// Pass over snapshots of another fold, a newer version or another stream, and use an older one
    #[arg(long, help_heading = "State")]
    pass_over: bool,

    /// Follow although the server does not let this client know which stream it is: one that was deleted
    /// and created again is taken for the same
    #[arg(long, help_heading = "State")]
    trust_name: bool,

    /// Print the state as soon as it is current, and end; before that, take a snapshot if one is due
    #[arg(long)]
    once: bool,

    /// List the stream's snapshots instead, and those in --snapshot external:URL
    #[arg(long, conflicts_with_all = ["once", "skip_malformed", "pass_over"])]
    inspect: bool,

    /// Print JSON: one document with --once and --inspect, else an object a line
    #[arg(long)]
    json: bool,

    /// Address of the server [default: http://127.0.0.1:7070]
    #[arg(
        long,
        env = SERVER_VARIABLE,
        hide_env_values = true,
        value_name = "URL",
        help_heading = "Server"
    )]
    server: Option<ServerAddress>,

    #[command(flatten)]
    key: KeyArgs,

    #[command(flatten)]
    place: SnapshotArgs,
}

pub fn run(args: Args, access: &AccessArgs) -> Result<(), Failure> {
    let fold = args.fold.fold()?;
    if fold.is_none() && !args.inspect {
        return Err(Failure::usage(
            "fold",
            "what is the state? say --by /POINTER (the last record of each key), --count-by \
             /POINTER (how many records each key has) or --merge (one document); --inspect lists \
             snapshots without",
        ));
    }
    let server = Server::find(args.server, access)?.trusting_names(args.trust_name);
    let server = server.with_key(args.key.key()?);
    let place = args.place.open()?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|e| Failure::wrong("io", format!("starting the runtime: {e}")))?;
    let result = runtime.block_on(async {
        let mut stop = Stop::listen()?;
        let Some(fold) = fold.as_ref().filter(|_| !args.inspect) else {
            let asked = inspect::Asked {
                stream: &args.stream,
                fold: fold.as_ref(),
                json: args.json,
            };
            return inspect::run(&server, &place, &asked, &mut stop).await;
        };
        let options = following::Options {
            skip_malformed: args.skip_malformed,
            pass_over: args.pass_over,
        };
        let opened =
            Following::open(&server, &place, &args.stream, fold, &options, &mut stop).await?;
        match opened {
            None if args.once => Err(interrupted()),
            None => Ok(()),
            Some(following) if args.once => once::run(following, args.json, &mut stop).await,
            Some(following) if !args.json && is_screen() => live::run(following, &mut stop).await,
            Some(following) => lines::run(following, args.json, &mut stop).await,
        }
    });
    // Without a time limit, the end would wait for a fold that is being written.
    runtime.shutdown_timeout(PARTING);
    result
}

fn interrupted() -> Failure {
    Failure::wrong("interrupted", "interrupted before the state was current")
}

/// Whether standard output can be drawn on.
fn is_screen() -> bool {
    let is_dumb = std::env::var_os("TERM").is_some_and(|term| term == "dumb");
    std::io::stdout().is_terminal() && !is_dumb
}
