//! Snapshots and recovery of the real server: their cost during work, and the time of a recovery.
//!
//! | module | what it holds |
//! |---|---|
//! | [`subject`] | the measured process, its metrics and its log |
//! | [`load`] | appends and trims |
//! | [`uploads`] | bytes uploaded for each one written, and disk for each one that is live |
//! | [`appends`] | appends while a snapshot is made |
//! | [`history`] | starts by the length of the history |
//! | [`predictions`] | predicted and achieved times |
//! | [`sizes`] | starts with a long log, and the restore of a large partition |

mod appends;
mod history;
mod load;
mod predictions;
mod sizes;
pub mod subject;
mod uploads;

use std::{
    fs,
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::Context as _;
use bench_harness::{Figures, PartArgs, Run, machine::quiet, page::Page};
use clap::ValueEnum;
use subject::Setup;
use testkit_s3::{S3Server, objects::Objects};

use crate::process::low_priority_runtime;
use crate::streams::esker_program;

/// Where the page goes by default.
const PAGE: &str = "docs/benchmarks/recovery.md";

/// Arguments of `recovery`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The program `esker`. Default: the one beside this program.
    #[arg(long, value_name = "PATH")]
    esker: Option<PathBuf>,
    /// MiB of the partition that is restored, and of the longest log.
    #[arg(long, default_value_t = 4096)]
    size_mib: usize,
    /// Of the uploads, only those with these kinds of retention.
    #[arg(long, value_name = "KIND", value_delimiter = ',')]
    retention: Vec<Retention>,
    #[command(flatten)]
    common: PartArgs<Part>,
}

/// What streams keep while their partition is uploaded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Retention {
    /// All streams keep as much.
    Steady,
    /// Nothing is trimmed.
    Growing,
    /// Half of the streams keep three times as much as the others.
    Unlike,
}

/// What can be measured by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Part {
    /// Bytes uploaded for each one written, and disk for each one that is live.
    Uploads,
    /// Appends while a snapshot is made.
    Appends,
    /// Starts by the length of the history.
    History,
    /// Predicted and achieved times.
    Predictions,
    /// Starts with a long log, and the restore of a large partition.
    Sizes,
}

/// The context of the parts.
struct Bench {
    program: PathBuf,
    size_mib: usize,
    retention: Vec<Retention>,
    run: Run,
}

impl Bench {
    /// A new data directory, and a store for it.
    async fn place(&self, name: &str) -> anyhow::Result<(Setup, S3Server<Objects>)> {
        let base = self.base(name)?;
        let store = S3Server::on_disk(base.join("store")).await?;
        Ok(self.with_store(&base, store))
    }

    /// The same with a store that gives way to the server: as a rule it is another machine, and takes no processor
    /// from those who append.
    async fn place_with_yielding_store(
        &self,
        name: &str,
    ) -> anyhow::Result<(Setup, S3Server<Objects>)> {
        let base = self.base(name)?;
        let serve = S3Server::on_disk(base.join("store"));
        let store = low_priority_runtime()?.spawn(serve).await??;
        Ok(self.with_store(&base, store))
    }

    fn base(&self, name: &str) -> anyhow::Result<PathBuf> {
        let base = self.run.scratch.join(name);
        fs::create_dir_all(base.join("store"))?;
        Ok(base)
    }

    fn with_store(&self, base: &Path, store: S3Server<Objects>) -> (Setup, S3Server<Objects>) {
        let setup = Setup {
            program: self.program.clone(),
            data: base.join("data"),
            settings: store.settings(),
        };
        (setup, store)
    }
}

/// Measures, prints, and writes the page.
///
/// # Errors
///
/// If anything cannot be measured.
pub async fn run(args: Args) -> anyhow::Result<ExitCode> {
    let bench = Bench {
        program: esker_program(args.esker)?.path,
        size_mib: if args.common.quick {
            256
        } else {
            args.size_mib
        },
        retention: args.retention,
        run: Run::begin(&args.common)?,
    };
    let mut figures = Figures::begin(&args.common)?;
    for part in args.common.parts() {
        let begun = bench.run.part(part, quiet().await?);
        let section = match part {
            Part::Uploads => uploads::measure(&bench).await,
            Part::Appends => appends::measure(&bench).await,
            Part::History => history::measure(&bench).await,
            Part::Predictions => predictions::measure(&bench).await,
            Part::Sizes => sizes::measure(&bench).await,
        };
        figures.add(part, begun.end(section)?)?;
    }
    let out = args.common.out.unwrap_or_else(|| PAGE.into());
    figures.write(&bench.run, &page(), &out)?;
    Ok(figures.exit_code())
}

fn page() -> Page<'static> {
    Page {
        title: "snapshots and recovery",
        target: "bench-recovery",
        how: "Server, clients and the S3 store share its cores and its one disk. The store is a small S3 \
              server within the bench, which writes to that disk and syncs what is put; hard links play no \
              part.\n- A start is timed from the start of the process to the first 200 of `/health`, after \
              SIGKILL. The operating system's cache is warm where nothing else is said.",
    }
}

fn largest(values: &[f64]) -> f64 {
    values.iter().copied().fold(0.0, f64::max)
}

/// Loses a node: deletes everything below its data directory.
fn lose(data: &Path) -> anyhow::Result<()> {
    fs::remove_dir_all(data).with_context(|| format!("cannot remove {}", data.display()))
}
