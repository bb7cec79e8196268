//! Snapshots and recovery of the real server: what they cost while it works, and how long it takes
//! to come back.
//!
//! | module | what it holds |
//! |---|---|
//! | [`subject`] | the measured process, its metrics, what it logged |
//! | [`load`] | what is appended and trimmed |
//! | [`uploads`] | bytes uploaded for each one written |
//! | [`appends`] | appends while a snapshot is made |
//! | [`history`] | starts by the length of the history |
//! | [`predictions`] | predicted and achieved times |
//! | [`sizes`] | starts with a long log, and the restore of a large partition |
//! | [`table`] | figures, and the page |

mod appends;
mod history;
mod load;
mod predictions;
mod sizes;
pub mod subject;
pub mod table;
mod uploads;

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::ExitCode,
    time::{Duration, Instant},
};

use anyhow::Context;
use clap::ValueEnum;
use testkit_s3::{S3Server, objects::Objects};

use crate::{
    machine::{self, Machine},
    scratch::Scratch,
};
use subject::Setup;
use table::Section;

/// Longest wait for a quiet moment of the machine.
const QUIET_AT_MOST: Duration = Duration::from_secs(60);

/// Fraction of the machine in use that counts as quiet.
const QUIET: f64 = 0.15;

/// Arguments of `recovery`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The program `esker`. Default: the one beside this program.
    #[arg(long, value_name = "PATH")]
    esker: Option<PathBuf>,
    /// Only these parts.
    #[arg(long, value_name = "PART", value_delimiter = ',')]
    only: Vec<Part>,
    /// MiB of the partition that is restored, and of the longest log.
    #[arg(long, default_value_t = 4096)]
    size_mib: usize,
    /// Runs of each measurement; tables show medians.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..100))]
    runs: u16,
    /// Small sizes, to check the bench itself; nothing is written.
    #[arg(long)]
    quick: bool,
    /// Where to work; a disk, with room for six times the size.
    #[arg(long, value_name = "DIR")]
    scratch: Option<PathBuf>,
    /// Figures of earlier runs (JSON): parts that are not measured now are taken from there, and
    /// what is measured is kept there.
    #[arg(long, value_name = "PATH")]
    figures: Option<PathBuf>,
    /// Where the page goes.
    #[arg(
        long,
        value_name = "PATH",
        default_value = "docs/benchmarks/recovery.md"
    )]
    out: PathBuf,
}

/// What can be measured by itself.
#[derive(
    Clone,
    Copy,
    Debug,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    ValueEnum,
    serde::Serialize,
    serde::Deserialize,
)]
pub enum Part {
    /// Bytes uploaded for each one written.
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

/// What parts work with.
struct Bench {
    program: PathBuf,
    scratch: PathBuf,
    size_mib: usize,
    runs: usize,
    quick: bool,
    began: Instant,
}

impl Bench {
    /// A new data directory, and a store for it.
    async fn place(&self, name: &str) -> anyhow::Result<(Setup, S3Server<Objects>)> {
        let base = self.scratch.join(name);
        fs::create_dir_all(base.join("store"))?;
        let store = S3Server::on_disk(base.join("store")).await?;
        let setup = Setup {
            program: self.program.clone(),
            data: base.join("data"),
            settings: store.settings(),
        };
        Ok((setup, store))
    }

    fn note(&self, what: impl std::fmt::Display) {
        eprintln!("[{:>5.0} s] {what}", self.began.elapsed().as_secs_f64());
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
        program: args.esker.unwrap_or(beside),
        scratch: scratch.path().to_owned(),
        size_mib: if args.quick { 256 } else { args.size_mib },
        runs: args.runs.into(),
        quick: args.quick,
        began: Instant::now(),
    };
    let mut known: BTreeMap<Part, Section> = match &args.figures {
        Some(path) if path.exists() => serde_json::from_slice(&fs::read(path)?)
            .with_context(|| format!("{} has no figures", path.display()))?,
        _ => BTreeMap::new(),
    };
    let mut missed = false;
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
            Part::Uploads => uploads::measure(&bench).await,
            Part::Appends => appends::measure(&bench).await,
            Part::History => history::measure(&bench).await,
            Part::Predictions => predictions::measure(&bench).await,
            Part::Sizes => sizes::measure(&bench).await,
        };
        let section = section.with_context(|| format!("{part:?}"))?;
        let section = Section {
            date,
            load,
            ..section
        };
        println!("{}", section.table());
        missed |= section.figures.iter().any(|f| f.met == Some(false));
        known.insert(*part, section);
        if let Some(path) = &args.figures {
            fs::write(path, serde_json::to_vec_pretty(&known)?)?;
        }
    }
    if !args.quick && known.len() == Part::value_variants().len() {
        let sections: Vec<_> = known.into_values().collect();
        let page = table::page(
            "snapshots and recovery",
            "bench-recovery",
            "Server, clients and the S3 store share its cores and its one disk. The store is a small S3 \
             server within the bench, which writes to that disk and syncs what is put; hard links play no \
             part.\n- A start is timed from the start of the process to the first 200 of `/health`, after \
             SIGKILL. The operating system's cache is warm where nothing else is said.",
            &machine,
            &sections,
        );
        fs::write(&args.out, page)
            .with_context(|| format!("cannot write {}", args.out.display()))?;
        println!("Written to {}", args.out.display());
    }
    Ok(ExitCode::from(u8::from(missed)))
}

/// Waits for a quiet moment, not for ever; what fraction of the machine is in use then.
pub async fn quiet() -> anyhow::Result<f64> {
    let deadline = Instant::now() + QUIET_AT_MOST;
    loop {
        let before = machine::machine_ticks()?;
        tokio::time::sleep(Duration::from_secs(2)).await;
        let now = machine::machine_ticks()?;
        let all = (now.1 - before.1).max(1);
        let used = (now.0 - before.0) as f64 / all as f64;
        if used <= QUIET || Instant::now() > deadline {
            return Ok(used);
        }
    }
}

/// Makes the operating system forget what it has read, if it may be told to.
fn drop_caches() {
    rustix::fs::sync();
    let _ = fs::write("/proc/sys/vm/drop_caches", "3");
}

pub fn median(values: &[f64]) -> f64 {
    crate::stats::median(values).unwrap_or_default()
}

fn largest(values: &[f64]) -> f64 {
    values.iter().copied().fold(0.0, f64::max)
}

/// Loses a node: everything below its data directory.
fn lose(data: &Path) -> anyhow::Result<()> {
    fs::remove_dir_all(data).with_context(|| format!("cannot remove {}", data.display()))
}
