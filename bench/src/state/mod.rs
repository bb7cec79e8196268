//! The state store beside the one whose clients it serves: durable transactions, reads, snapshots that
//! are written meanwhile, restarts, rebuilding, disk.
//!
//! | module | what it holds |
//! |---|---|
//! | [`load`] | what clients do, the same for both servers |
//! | [`peer`] | `statehoused` |
//! | [`rates`] | transactions and reads, side by side |
//! | [`snapshots`] | commits and memory while a snapshot is written; rebuilding from one |
//! | [`histories`] | restarts by the length of the history, and disk |

mod histories;
mod load;
mod peer;
mod rates;
mod snapshots;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use anyhow::Context as _;
use clap::ValueEnum;

use crate::machine::Machine;
use crate::recovery::quiet;
use crate::recovery::subject::{Setup, Subject};
use crate::recovery::table::{self, Section};
use crate::scratch::Scratch;

/// Arguments of `state`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The program `esker`. Default: the one beside this program.
    #[arg(long, value_name = "PATH")]
    esker: Option<PathBuf>,
    /// The program `statehoused`. Default: built once, and kept.
    #[arg(long, value_name = "PATH")]
    statehoused: Option<PathBuf>,
    /// Only these parts; the page is not written then.
    #[arg(long, value_name = "PART", value_delimiter = ',')]
    only: Vec<Part>,
    /// Runs of each rate; tables show medians.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..100))]
    runs: u16,
    /// Small sizes, to check the bench itself; nothing is written.
    #[arg(long)]
    quick: bool,
    /// Where to work; a disk, with room for 10 GiB.
    #[arg(long, value_name = "DIR")]
    scratch: Option<PathBuf>,
    /// Where the page goes.
    #[arg(long, value_name = "PATH", default_value = "docs/benchmarks/state.md")]
    out: PathBuf,
}

/// What can be measured by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Part {
    /// Transactions and reads, side by side.
    Rates,
    /// Commits and memory while a snapshot is written; rebuilding from one.
    Snapshots,
    /// Restarts by the length of the history, and disk.
    Histories,
}

/// What parts work with.
struct Bench {
    setup: Setup,
    statehoused: PathBuf,
    scratch: PathBuf,
    runs: usize,
    quick: bool,
    began: Instant,
}

impl Bench {
    fn note(&self, what: impl std::fmt::Display) {
        eprintln!("[{:>5.0} s] {what}", self.began.elapsed().as_secs_f64());
    }

    /// The full size, or a small one.
    fn size(&self, full: u64) -> u64 {
        if self.quick { full / 100 } else { full }
    }

    /// How a server of its own is started.
    fn setup(&self, name: &str, settings: &[&str]) -> Setup {
        let mut setup = self.setup.with(settings.iter().copied());
        setup.data = self.scratch.join(name);
        setup
    }

    /// A server with an empty data directory of its own.
    async fn serve(&self, name: &str, settings: &[&str]) -> anyhow::Result<Subject> {
        Ok(self.setup(name, settings).start(&[]).await?.0)
    }
}

/// Measures, prints, and writes the page.
///
/// # Errors
///
/// If anything cannot be measured.
pub async fn run(args: Args) -> anyhow::Result<ExitCode> {
    let scratch = Scratch::new(args.scratch.as_deref())?;
    let machine = Machine::describe(scratch.path())?;
    let beside = std::env::current_exe()?.with_file_name("esker");
    let bench = Bench {
        setup: Setup {
            program: args.esker.unwrap_or(beside),
            data: PathBuf::new(),
            settings: Vec::new(),
        },
        statehoused: peer::program(args.statehoused)?,
        scratch: scratch.path().to_owned(),
        runs: args.runs.into(),
        quick: args.quick,
        began: Instant::now(),
    };
    let mut sections: Vec<Section> = Vec::new();
    for part in Part::value_variants() {
        if !args.only.is_empty() && !args.only.contains(part) {
            continue;
        }
        let load = quiet().await?;
        let date = table::now();
        bench.note(format!(
            "{part:?}; {:.0} % of the machine are in use",
            load * 100.0
        ));
        let section = match part {
            Part::Rates => rates::measure(&bench).await,
            Part::Snapshots => snapshots::measure(&bench).await,
            Part::Histories => histories::measure(&bench).await,
        };
        let section = Section {
            date,
            load,
            ..section.with_context(|| format!("{part:?}"))?
        };
        println!("{}", section.table());
        sections.push(section);
    }
    let missed = sections
        .iter()
        .flat_map(|s| &s.figures)
        .any(|f| f.met == Some(false));
    if !args.quick && args.only.is_empty() {
        let how = format!(
            "Server and clients share its cores and its one disk. Every client has a connection of its own; \
             a transaction is three calls: begin, write, commit. The peer is `statehouse-daemon` {}, set to \
             sync each commit.",
            peer::VERSION
        );
        let page = table::page("the state store", "bench-state", &how, &machine, &sections);
        std::fs::write(&args.out, page)
            .with_context(|| format!("cannot write {}", args.out.display()))?;
        println!("Written to {}", args.out.display());
    }
    Ok(ExitCode::from(u8::from(missed)))
}
