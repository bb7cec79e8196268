//! The state store, compared with the one whose clients it serves: durable transactions, reads, snapshots
//! during commits, restarts, rebuilding, disk space.
//!
//! | module | what it holds |
//! |---|---|
//! | [`load`] | the operations of clients, the same for both servers |
//! | [`peer`] | `statehoused` |
//! | [`rates`] | transactions and reads, side by side |
//! | [`snapshots`] | commits and memory while a snapshot is written; rebuilding from one |
//! | [`histories`] | restarts by the length of the history, and disk |
//! | [`pages`] | pages of the console of a long history |

mod histories;
pub mod load;
mod pages;
mod peer;
mod rates;
mod snapshots;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::ValueEnum;

use bench_harness::machine::quiet;
use bench_harness::page::Page;
use bench_harness::{Figures, PartArgs, Run};

use crate::recovery::subject::{Setup, Subject};
use crate::streams::esker_program;

/// Where the page goes by default.
const PAGE: &str = "docs/benchmarks/state.md";

/// Arguments of `state`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The program `esker`. Default: the one beside this program.
    #[arg(long, value_name = "PATH")]
    esker: Option<PathBuf>,
    /// The program `statehoused`. Default: built once, and kept.
    #[arg(long, value_name = "PATH")]
    statehoused: Option<PathBuf>,
    /// Measure Esker alone; ratios are left out, and nothing is written.
    #[arg(long, conflicts_with_all = ["statehoused", "figures"])]
    alone: bool,
    #[command(flatten)]
    common: PartArgs<Part>,
}

/// What can be measured by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Part {
    /// Transactions and reads, side by side.
    Rates,
    /// Commits and memory while a snapshot is written; rebuilding from one.
    Snapshots,
    /// Restarts by the length of the history, pages of the console, and disk.
    Histories,
}

/// The context of the parts.
struct Bench {
    setup: Setup,
    /// `None` if Esker is measured alone.
    statehoused: Option<PathBuf>,
    run: Run,
}

impl Bench {
    /// The full size, or a small one.
    fn size(&self, full: u64) -> u64 {
        if self.run.quick { full / 100 } else { full }
    }

    /// The setup of a server with its own data directory.
    fn setup(&self, name: &str, settings: &[&str]) -> Setup {
        let mut setup = self.setup.with(settings.iter().copied());
        setup.data = self.run.scratch.join(name);
        setup
    }

    /// Starts a server with its own empty data directory.
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
    let bench = Bench {
        setup: Setup {
            program: esker_program(args.esker)?.path,
            data: PathBuf::new(),
            settings: Vec::new(),
        },
        statehoused: match args.alone {
            true => None,
            false => Some(peer::program(args.statehoused)?),
        },
        run: Run::begin(&args.common)?,
    };
    let mut figures = Figures::begin(&args.common)?;
    for part in args.common.parts() {
        let begun = bench.run.part(part, quiet().await?);
        let section = match part {
            Part::Rates => rates::measure(&bench).await,
            Part::Snapshots => snapshots::measure(&bench).await,
            Part::Histories => histories::measure(&bench).await,
        };
        figures.add(part, begun.end(section)?)?;
    }
    if !args.alone {
        let how = format!(
            "Server and clients share its cores and its one disk. Every client has a connection of its own; \
             a transaction is three calls: begin, write, commit. The peer is `statehouse-daemon` {}, set to \
             sync each commit.",
            peer::VERSION
        );
        let page = Page {
            title: "the state store",
            target: "bench-state",
            how: &how,
        };
        let out = args.common.out.unwrap_or_else(|| PAGE.into());
        figures.write(&bench.run, &page, &out)?;
    }
    Ok(figures.exit_code())
}
