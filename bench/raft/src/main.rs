//! Measures `esker-raft` by itself: how fast a snapshot travels and what it needs, what a capture holds
//! up, whether a slow follower catches up with an endless writer, and commits beside etcd's.
//!
//! | module | what it holds |
//! |---|---|
//! | [`host`] | the state machine of all parts |
//! | [`member`] | one member, in a process of its own, and the ways to it |
//! | [`wire`] | what clients and members say to each other |
//! | [`load`] | proposers |
//! | [`cluster`] | three members as processes |
//! | [`link`] | transports that watch, or are slow |
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

// The same source as the large bench's, which cannot be a dependency: it needs RocksDB.
#[allow(dead_code)]
#[path = "../../src/machine.rs"]
mod machine;
#[allow(dead_code)]
#[path = "../../src/scratch.rs"]
mod scratch;
#[allow(dead_code)]
#[path = "../../src/recovery/table.rs"]
mod table;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::Context;
use clap::{Parser, Subcommand, ValueEnum};

use machine::Machine;
use scratch::Scratch;
use table::Section;

/// Measures `esker-raft`.
#[derive(Debug, Parser)]
struct Args {
    #[command(subcommand)]
    role: Option<Role>,
    /// Only these parts; the page is not written then, unless `--out` says where.
    #[arg(long, value_name = "PART", value_delimiter = ',')]
    only: Vec<Part>,
    /// Runs of each measurement of the parts that are short; tables show medians.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..100))]
    runs: u16,
    /// Small sizes, to check the bench itself; nothing is written.
    #[arg(long)]
    quick: bool,
    /// Where to work; a disk, with room for 20 GiB.
    #[arg(long, value_name = "DIR")]
    scratch: Option<PathBuf>,
    /// Where the page goes. Default: docs/benchmarks/raft.md, if all parts run.
    #[arg(long, value_name = "PATH")]
    out: Option<PathBuf>,
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

/// What parts work with.
struct Bench {
    scratch: PathBuf,
    runs: usize,
    quick: bool,
    began: Instant,
}

impl Bench {
    fn note(&self, what: impl std::fmt::Display) {
        eprintln!("[{:>5.0} s] {what}", self.began.elapsed().as_secs_f64());
    }

    /// A new directory of a part.
    fn dir(&self, name: &str) -> anyhow::Result<PathBuf> {
        let dir = self.scratch.join(name);
        std::fs::create_dir_all(&dir)?;
        Ok(dir)
    }

    fn payload(&self) -> u64 {
        match self.quick {
            true => 64 << 20,
            false => 2 << 30,
        }
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
    let scratch = Scratch::new(args.scratch.as_deref())?;
    let machine = Machine::describe(scratch.path())?;
    let bench = Bench {
        scratch: scratch.path().to_owned(),
        runs: if args.quick { 1 } else { args.runs.into() },
        quick: args.quick,
        began: Instant::now(),
    };
    let mut sections: Vec<Section> = Vec::new();
    for part in Part::value_variants() {
        if !args.only.is_empty() && !args.only.contains(part) {
            continue;
        }
        let load = used_by_others()?;
        let date = table::now();
        bench.note(format!(
            "{part:?}; {:.0} % of the machine are in use",
            load * 100.0
        ));
        let section = match part {
            Part::Transfer => transfer::measure(&bench),
            Part::Stalls => stalls::measure(&bench),
            Part::Writer => writer::measure(&bench),
            Part::Commits => commits::measure(&bench),
        };
        let section = Section {
            date,
            load,
            ..section.with_context(|| format!("{part:?}"))?
        };
        println!("{}", section.table());
        sections.push(section);
    }
    let missed = { sections.iter().flat_map(|s| &s.figures) }.any(|f| f.met == Some(false));
    let whole = args
        .only
        .is_empty()
        .then(|| "docs/benchmarks/raft.md".into());
    if let Some(out) = args.out.or(whole).filter(|_| !args.quick) {
        let page = table::page(
            "replication and snapshots",
            "bench-raft",
            "All members and clients share its cores and its one disk: with three members on it, each \
             write is written three times, and each sync waits for those of the others. Members are \
             processes of their own unless said otherwise, and speak gRPC on loopback.",
            &machine,
            &sections,
        );
        std::fs::write(&out, page).with_context(|| format!("cannot write {}", out.display()))?;
        println!("Written to {}", out.display());
    }
    Ok(ExitCode::from(u8::from(missed)))
}

/// Fraction of the machine that is used now, by whomever.
fn used_by_others() -> anyhow::Result<f64> {
    let (busy, all) = machine::machine_ticks()?;
    std::thread::sleep(Duration::from_secs(2));
    let (busy_now, all_now) = machine::machine_ticks()?;
    Ok((busy_now - busy) as f64 / (all_now - all).max(1) as f64)
}

/// Waits until it is so.
fn wait_for<T>(
    what: &str,
    patience: Duration,
    mut so: impl FnMut() -> anyhow::Result<Option<T>>,
) -> anyhow::Result<T> {
    let deadline = Instant::now() + patience;
    loop {
        if let Some(found) = so()? {
            return Ok(found);
        }
        anyhow::ensure!(Instant::now() < deadline, "in vain: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn median(mut all: Vec<f64>) -> f64 {
    all.sort_by(f64::total_cmp);
    all[all.len() / 2]
}
