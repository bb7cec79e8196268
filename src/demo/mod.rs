//! `esker demo`: an end-to-end demonstration on real records.
//!
//! A server runs as a child process and is killed in mid-append; everything that it acknowledged has to be
//! there afterwards. Then it loses its database, and then its whole data directory. At the end, a cluster of three
//! nodes loses the one that leads. Nothing is simulated: the client is the official SDK, and the server is this
//! program.
//!
//! | module | what it holds |
//! |---|---|
//! | [`acts`] | the steps, one file each, in order |
//! | [`stage`] | what is printed |
//! | [`server`], [`appender`], [`follower`] | the server's process, the writer and the reader |
//! | [`records`] | what is appended |
//! | [`log_events`] | events in a server's log: recovery and snapshots |

mod acts;
mod appender;
mod follower;
mod log_events;
mod records;
mod server;
mod stage;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use acts::{Act, Cast};
use records::Records;
use stage::Stage;
use tempfile::TempDir;

use crate::failure::Failure;
use crate::interrupts::Interrupts;
use crate::output::print;
use crate::stream_cmd::target;
use crate::term::took;

/// The stream of the demo.
const STREAM: &str = "esker-demo/flights";
/// Licence of the embedded flight records.
const LICENCE: &str = include_str!("../../examples/data/LICENSE-vega-datasets");

/// Show, on real records, what survives a kill and a lost database, disk or leader.
///
/// Runs a server in a scratch directory, appends 20,000 flight records, kills the server in the
/// middle of it, starts it again, appends the rest, and compares everything with what was sent. Then
/// deletes its database, then all that it has, and recovers it from snapshots; and measures a recovery
/// from zero beside one from a snapshot, of a server and of a service that follows a stream. At the end
/// it kills the leader of three nodes in mid-append, and measures for how long appends stand still. Takes
/// some thirty seconds, and fails if anything does not hold.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  esker demo
  esker demo --data events.jsonl --keep")]
pub struct Args {
    /// Append the lines of this file instead of the flights
    #[arg(long, value_name = "FILE")]
    data: Option<PathBuf>,

    /// Make the scratch directory in this one [default: the system's for temporary files]
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,

    /// Keep the scratch directory at the end
    #[arg(long)]
    keep: bool,

    /// Print the licence of the flight records, which are part of this program, and end
    #[arg(long)]
    data_licence: bool,
}

pub fn run(args: &Args) -> Result<(), Failure> {
    if args.data_licence {
        return print(LICENCE.trim_end());
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|e| Failure::wrong("io", format!("starting the runtime: {e}")))?;
    runtime.block_on(perform(args))
}

async fn perform(args: &Args) -> Result<(), Failure> {
    let records = match &args.data {
        Some(file) => Records::of_file(file)?,
        None => Records::flights(),
    };
    let scratch = scratch(args)?;
    // Held until the directory is removed: if a second signal ends the removal, the message names what is
    // left.
    let left = format!("the directory {} may be left", scratch.path().display());
    let mut interrupts = Interrupts::listen(&left)?;
    let mut cast = Cast {
        stage: Stage::new(),
        scratch: scratch.path().to_owned(),
        records: Arc::new(records),
        target: target::stream(STREAM).map_err(|e| Failure::wrong("demo", e))?,
        server: None,
        nodes: Vec::new(),
        follower: None,
        crash: None,
        covered: 0,
    };
    let result = uninterrupted(&mut interrupts, play(&mut cast)).await;

    cast.follower = None;
    let stopped = match (cast.server.take(), &result) {
        (None, _) => Ok(()),
        (Some(server), Ok(())) => server.stop().await,
        (Some(mut server), Err(_)) => match server.kill() {
            Ok(()) => server.gone().await,
            Err(failure) => Err(failure),
        },
    };
    let stopped = stopped.and(cast.end_nodes().await);
    let interrupted = matches!(&result, Err(failure) if failure.code == INTERRUPTED);
    let result = result.and(stopped);
    if args.keep || (result.is_err() && !interrupted) {
        let kept = scratch.keep();
        let data = kept.join("data");
        let stage = &cast.stage;
        stage.line("");
        stage.line(format_args!(
            "{} is kept. To look around in it:",
            kept.display()
        ));
        stage.line(format_args!("  esker server --data-dir {}", data.display()));
        stage.line(format_args!("  esker stream read {STREAM} --last 5"));
    } else {
        let path = scratch.path().to_owned();
        if let Err(error) = scratch.close() {
            let problem = format!("cannot remove {}: {error}", path.display());
            return Err(match result {
                Ok(()) => Failure::wrong("io", problem),
                Err(failure) => Failure {
                    message: format!("{}; {problem}", failure.message),
                    ..failure
                },
            });
        }
    }
    result
}

/// Code of a demo that was interrupted.
const INTERRUPTED: &str = "interrupted";

/// Runs the acts, one after the other.
async fn play(cast: &mut Cast) -> Result<(), Failure> {
    let began = Instant::now();
    cast.stage.title(
        "Esker demo: current again after a kill, a lost database, a lost disk, a lost leader",
    );
    for (index, act) in Act::ALL.into_iter().enumerate() {
        cast.stage.act(index + 1, act.title());
        act.play(cast).await?;
        cast.stage.end_act();
    }
    cast.stage.curtain(format_args!(
        "Killed, nothing acknowledged is lost; what a lost disk costs is named, and bounded. ({})",
        took(began.elapsed())
    ));
    Ok(())
}

fn scratch(args: &Args) -> Result<TempDir, Failure> {
    let parent = args.dir.clone().unwrap_or_else(std::env::temp_dir);
    if !parent.is_dir() {
        let problem = format!("there is no directory {}", parent.display());
        return Err(Failure::usage("io", problem));
    }
    tempfile::Builder::new()
        .prefix("esker-demo-")
        .tempdir_in(&parent)
        .map_err(|e| {
            Failure::wrong(
                "io",
                format!("cannot make a directory in {}: {e}", parent.display()),
            )
        })
}

/// Ends with a failure on Ctrl-C and SIGTERM, so that the server is stopped and the scratch directory
/// removed.
async fn uninterrupted(
    interrupts: &mut Interrupts,
    play: impl Future<Output = Result<(), Failure>>,
) -> Result<(), Failure> {
    tokio::select! {
        result = play => result,
        () = interrupts.next() => Err(Failure::wrong(INTERRUPTED, "interrupted")),
    }
}
