//! Measures `esker-raft` alone: the speed and memory of a snapshot transfer, stalls during a capture, whether
//! a slow follower catches up with a continuous writer, and commits beside etcd's.
//!
//! | module | what it holds |
//! |---|---|
//! | [`host`] | the state machine of all parts |
//! | [`member`] | one member, in its own process, and the connections to it |
//! | [`wire`] | the protocol between clients and members |
//! | [`load`] | proposers |
//! | [`cluster`] | three members as processes |
//! | [`link`] | transports that record heartbeats, or are slow |
//! | [`transfer`], [`stalls`], [`writer`], [`commits`] | the parts |
//!
//! Tables and the description of the machine are those of the other benches.

mod cluster;
mod commits;
mod host;
mod link;
mod load;
mod member;
mod stalls;
mod transfer;
mod wire;
mod writer;

use std::process::ExitCode;
use std::time::{Duration, Instant};

use bench_harness::machine::used_now;
use bench_harness::page::Page;
use bench_harness::{Figures, PartArgs, Run};
use clap::{Parser, Subcommand, ValueEnum};

/// Where the page goes by default.
const PAGE: &str = "docs/benchmarks/raft.md";

/// Measures `esker-raft`.
#[derive(Debug, Parser)]
struct Args {
    #[command(subcommand)]
    role: Option<Role>,
    #[command(flatten)]
    common: PartArgs<Part>,
}

/// What this program is when the bench starts it.
#[derive(Debug, Subcommand)]
enum Role {
    /// One member of a group.
    #[command(hide = true)]
    Member(member::Args),
    /// The receiving end of a plain copy.
    #[command(hide = true)]
    Take(transfer::TakeArgs),
}

/// What can be measured by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Part {
    /// A large snapshot to an empty follower, beside a plain copy.
    Transfer,
    /// Heartbeats and applies while a snapshot is written.
    Stalls,
    /// A slow follower, and a writer that never stops.
    Writer,
    /// Commits a second beside etcd's.
    Commits,
}

/// Bytes of the snapshot that is transferred.
fn payload(run: &Run) -> u64 {
    match run.quick {
        true => 64 << 20,
        false => 2 << 30,
    }
}

fn main() -> anyhow::Result<ExitCode> {
    let args = Args::parse();
    match args.role {
        Some(Role::Member(args)) => member::run(args).map(|()| ExitCode::SUCCESS),
        Some(Role::Take(args)) => transfer::take(args).map(|()| ExitCode::SUCCESS),
        None => measure(args),
    }
}

fn measure(args: Args) -> anyhow::Result<ExitCode> {
    let mut run = Run::begin(&args.common)?;
    if run.quick {
        run.runs = 1;
    }
    let mut figures = Figures::begin(&args.common)?;
    for part in args.common.parts() {
        let begun = run.part(part, used_now()?);
        let section = match part {
            Part::Transfer => transfer::measure(&run),
            Part::Stalls => stalls::measure(&run),
            Part::Writer => writer::measure(&run),
            Part::Commits => commits::measure(&run),
        };
        figures.add(part, begun.end(section)?)?;
    }
    let page = Page {
        title: "replication and snapshots",
        target: "bench-raft",
        how: "All members and clients share its cores and its one disk: with three members on it, each \
              write is written three times, and each sync waits for those of the others. Members are \
              processes of their own unless said otherwise, and speak gRPC on loopback.",
    };
    let out = args.common.out.unwrap_or_else(|| PAGE.into());
    figures.write(&run, &page, &out)?;
    Ok(figures.exit_code())
}

/// Waits until `so` returns a value.
fn wait_for<T>(
    what: &str,
    timeout: Duration,
    mut so: impl FnMut() -> anyhow::Result<Option<T>>,
) -> anyhow::Result<T> {
    let deadline = Instant::now() + timeout;
    loop {
        if let Some(found) = so()? {
            return Ok(found);
        }
        anyhow::ensure!(Instant::now() < deadline, "in vain: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}
