//! A cluster of three nodes: beside one node, beside etcd, while leaders are killed, and while a node is filled.
//!
//! | module | what it holds |
//! |---|---|
//! | [`nodes`] | the nodes: their processes, who leads, their processor time |
//! | [`etcd`] | three members of etcd, and puts |
//! | [`load`] | the operations of clients |
//! | [`appends`] | appends to three nodes beside one, and forwarded ones beside direct ones |
//! | [`commits`] | commits beside etcd's |
//! | [`kills`] | for how long appends stand still when a leader is killed |
//! | [`filling`] | appends while another node gets all data |
//!
//! Nodes have one partition of streams, so that it is known who leads it.

mod appends;
mod commits;
mod etcd;
mod filling;
mod kills;
mod load;
mod nodes;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use bench_harness::machine::quiet;
use bench_harness::page::Page;
use bench_harness::{Figures, PartArgs, Run};
use clap::ValueEnum;

use crate::streams::esker_program;

/// Where the page goes by default.
const PAGE: &str = "docs/benchmarks/cluster.md";
/// The basin of all streams.
const BASIN: &str = "bench-cluster";

/// Arguments of `cluster`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The program `esker`. Default: the one beside this program.
    #[arg(long, value_name = "PATH")]
    esker: Option<PathBuf>,
    /// The program `etcd`; without it, nothing is beside the commits.
    #[arg(long, value_name = "PATH", default_value = "etcd")]
    etcd: PathBuf,
    /// How often a leader is killed.
    #[arg(long, value_name = "N", default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    kills: u32,
    /// User bytes that a new node is filled with, in MiB.
    #[arg(long, value_name = "MIB", default_value_t = 4096, value_parser = clap::value_parser!(u64).range(16..=1_000_000))]
    fill_mib: u64,
    /// How long each measurement takes, in seconds.
    #[arg(long, value_name = "S", default_value_t = 8, value_parser = clap::value_parser!(u64).range(1..=3600))]
    seconds: u64,
    #[command(flatten)]
    common: PartArgs<Part>,
}

/// What can be measured by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Part {
    /// Appends to three nodes beside one, and forwarded ones beside direct ones.
    Appends,
    /// Commits beside etcd's.
    Commits,
    /// The time without appends after a leader is killed.
    Kills,
    /// Appends while another node gets all data.
    Filling,
}

/// The context of the parts.
struct Bench {
    esker: PathBuf,
    etcd: PathBuf,
    kills: u32,
    fill_mib: u64,
    seconds: u64,
    run: Run,
}

impl Bench {
    /// How long a measurement takes.
    fn time(&self) -> Duration {
        Duration::from_secs(if self.run.quick { 1 } else { self.seconds })
    }
}

/// Measures, prints, and writes the page.
///
/// # Errors
///
/// If anything cannot be measured.
pub async fn run(args: Args) -> anyhow::Result<ExitCode> {
    let run = Run::begin(&args.common)?;
    let bench = Bench {
        esker: esker_program(args.esker)?.path,
        etcd: args.etcd,
        kills: if run.quick { 2 } else { args.kills },
        fill_mib: if run.quick { 16 } else { args.fill_mib },
        seconds: args.seconds,
        run,
    };
    let mut figures = Figures::begin(&args.common)?;
    for part in args.common.parts() {
        let begun = bench.run.part(part, quiet().await?);
        let section = match part {
            Part::Appends => appends::measure(&bench).await,
            Part::Commits => commits::measure(&bench).await,
            Part::Kills => kills::measure(&bench).await,
            Part::Filling => filling::measure(&bench).await,
        };
        figures.add(part, begun.end(section)?)?;
    }
    let page = Page {
        title: "the cluster",
        target: "bench-cluster",
        how: "Three nodes, the clients and the disk of all of them share two cores: what a node takes of a \
              processor, the others do not have. The processor time of the nodes is beside each rate: 1.00 cores \
              are all of one.",
    };
    let out = args.common.out.unwrap_or_else(|| PAGE.into());
    figures.write(&bench.run, &page, &out)?;
    Ok(figures.exit_code())
}
