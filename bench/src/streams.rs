//! The subcommand `streams`: every row against both servers, several times, medians.
//!
//! Within a run both servers run side by side, each on its own directory, which is new in each run. They take
//! turns row by row, and which one goes first changes from row to row and from run to run, so that a slow
//! minute of the machine affects both. Before a row, the bench waits until both are idle, so that compactions
//! of one do not affect the measurement of the other.
//!
//! Restarts come last: they need servers of their own, and a long load.

use std::{
    path::{Path, PathBuf},
    process::ExitCode,
    time::{Duration, Instant},
};

use anyhow::{Context, bail};

use crate::{
    client::{self, Kind},
    peer,
    process::{Contender, Program, Server},
    progress::Progress,
    report::{Failure, Report},
    rows::{BASIN, Load, Row, restart},
    sizes::Sizes,
    targets::Reading,
};
use bench_harness::{
    machine::{self, Machine},
    scratch::Scratch,
};

/// Time limit of the first start of a server.
const READY_AT_MOST: Duration = Duration::from_secs(60);

/// Time limit of one row against one server, preparation included. The longest prepares half a GiB.
const ROW_AT_MOST: Duration = Duration::from_secs(300);

/// Time limit of the restart row of one server: loading 20 million records dominates.
const RESTARTS_AT_MOST: Duration = Duration::from_secs(1800);

/// The seed of the contents of records.
const SEED: u64 = 0xe5_4e12;

/// Arguments of `streams`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The peer's program `s2`. Built in the cache directory if it is not there.
    #[arg(long, value_name = "PATH")]
    peer: Option<PathBuf>,
    /// The program `esker`. Default: the one beside this program.
    #[arg(long, value_name = "PATH")]
    esker: Option<PathBuf>,
    /// Small sizes and one run, to check the bench itself.
    #[arg(long)]
    quick: bool,
    /// Only these rows.
    #[arg(long, value_name = "ROW", value_delimiter = ',')]
    only: Vec<Row>,
    /// Only one of the servers.
    #[arg(long, value_name = "SERVER")]
    server: Option<Side>,
    /// This client for every row that can use either.
    #[arg(long, value_name = "CLIENT")]
    client: Option<Kind>,
    /// How many times each row is measured.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..100))]
    runs: Option<u16>,
    /// Measure restarts of the peer too.
    #[arg(long)]
    restart_peer: bool,
    /// Write the table to --output even if the measurement is quick or partial.
    #[arg(long, conflicts_with = "no_write")]
    write: bool,
    /// Do not write the table to --output.
    #[arg(long)]
    no_write: bool,
    /// Where the table is written to.
    #[arg(
        long,
        value_name = "PATH",
        default_value = "docs/benchmarks/streams.md"
    )]
    output: PathBuf,
    /// Where the servers' directories are made. Default: the cache directory.
    #[arg(long, value_name = "DIR")]
    scratch: Option<PathBuf>,
}

/// A server on the command line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Side {
    Peer,
    Esker,
}

impl Args {
    fn sizes(&self) -> Sizes {
        let mut sizes = if self.quick {
            Sizes::quick()
        } else {
            Sizes::full()
        };
        if let Some(runs) = self.runs {
            sizes.runs = runs.into();
        }
        sizes
    }

    fn rows(&self) -> Vec<Row> {
        let all = <Row as clap::ValueEnum>::value_variants();
        let wanted = |row: &Row| self.only.is_empty() || self.only.contains(row);
        all.iter().copied().filter(wanted).collect()
    }

    /// A table that replaces the published one must be complete.
    fn writes(&self) -> bool {
        let complete =
            !self.quick && self.only.is_empty() && self.server.is_none() && self.client.is_none();
        self.write || (complete && !self.no_write)
    }
}

/// Measures, prints the table and writes it.
///
/// # Errors
///
/// If a program is missing or there is no directory to measure in. A row that fails is part of
/// the table, and makes the exit code 1.
pub async fn run(args: Args) -> anyhow::Result<ExitCode> {
    if args.writes() {
        writable(&args.output)?;
    }
    let peer = peer::program(args.peer.clone()).await?;
    let mut programs = Vec::new();
    if args.server != Some(Side::Esker) {
        programs.push(peer.clone());
    }
    if args.server != Some(Side::Peer) {
        programs.push(esker_program(args.esker.clone())?);
    }
    let scratch = Scratch::new(args.scratch.as_deref())?;
    let mut report = Report::new(Machine::describe(scratch.path())?, args.sizes());
    for program in &programs {
        report.version(program.contender, program.version()?);
    }

    let mut bench = Bench {
        s2: peer.path,
        programs,
        scratch,
        rows: args.rows(),
        client: args.client,
        restart_peer: args.restart_peer,
        report,
    };
    bench.measure().await?;

    print!("{}", bench.report.table());
    if args.writes() {
        std::fs::write(&args.output, bench.report.page())
            .with_context(|| format!("cannot write {}", args.output.display()))?;
        eprintln!("written to {}", args.output.display());
    }
    Ok(ExitCode::from(u8::from(bench.report.has_failures())))
}

/// The program at `path`, or the one beside this one.
///
/// # Errors
///
/// If there is none.
pub fn esker_program(path: Option<PathBuf>) -> anyhow::Result<Program> {
    let path = match path {
        Some(path) => path,
        None => std::env::current_exe()?.with_file_name("esker"),
    };
    if !path.is_file() {
        bail!(
            "there is no program {}; build it with `cargo build --release`, or name it with --esker",
            path.display()
        );
    }
    Ok(Program {
        contender: Contender::Esker,
        path,
    })
}

/// Fails before the measurement rather than after it.
fn writable(output: &Path) -> anyhow::Result<()> {
    let parent = output
        .parent()
        .filter(|parent| !parent.as_os_str().is_empty());
    let Some(parent) = parent.filter(|parent| !parent.is_dir()) else {
        return Ok(());
    };
    // At the root of the repository, and nowhere else, `docs` may be made.
    if !Path::new("Cargo.toml").is_file() {
        bail!(
            "there is no directory {} to write the table to; run this at the root of the \
             repository, or say --output or --no-write",
            parent.display()
        );
    }
    std::fs::create_dir_all(parent).with_context(|| format!("cannot make {}", parent.display()))
}

struct Bench {
    s2: PathBuf,
    programs: Vec<Program>,
    scratch: Scratch,
    rows: Vec<Row>,
    client: Option<Kind>,
    restart_peer: bool,
    report: Report,
}

impl Bench {
    async fn measure(&mut self) -> anyhow::Result<()> {
        let sizes = self.report.sizes().clone();
        let (restarts, rows): (Vec<Row>, Vec<Row>) =
            self.rows.iter().partition(|row| **row == Row::Restart);
        let in_runs = sizes.runs * rows.len() * self.programs.len();
        let progress = Progress::new((in_runs + restarts.len()) as u64);
        if !rows.is_empty() {
            for run in 0..sizes.runs {
                self.one_run(run, &rows, &sizes, &progress).await?;
            }
        }
        if !restarts.is_empty() {
            self.restarts(&sizes, &progress).await?;
        }
        Ok(())
    }

    async fn one_run(
        &mut self,
        run: usize,
        rows: &[Row],
        sizes: &Sizes,
        progress: &Progress,
    ) -> anyhow::Result<()> {
        let directory = self.scratch.subdirectory(&format!("run-{run}"))?;
        let mut lanes = Vec::new();
        for program in &self.programs {
            let data = directory.join(format!("{:?}", program.contender).to_lowercase());
            lanes.push(Lane {
                program: program.clone(),
                data,
                starts: 0,
                server: None,
            });
        }
        for (turn, row) in rows.iter().enumerate() {
            // The server that goes first changes from row to row and from run to run.
            for offset in 0..lanes.len() {
                let number = (turn + run + offset) % lanes.len();
                let contender = lanes[number].program.contender;
                let what = format!(
                    "run {} of {}: {row:?}, {}",
                    run + 1,
                    sizes.runs,
                    contender.name()
                );
                progress.doing(what.clone());
                for lane in &lanes {
                    lane.settle(sizes.settle).await;
                }
                self.report.others_used(busy().await?);
                let client = row.client().map(|usual| self.client.unwrap_or(usual));
                let scratch = directory.join(format!("{row:?}-{number}").to_lowercase());
                let before = Instant::now();
                let outcome = lanes[number]
                    .measure(*row, client, sizes, &self.s2, scratch, run)
                    .await;
                let seconds = before.elapsed().as_secs_f64();
                match outcome {
                    Ok(readings) => {
                        progress.done(&format!("{what}: {} [{seconds:.1} s]", summary(&readings)));
                        self.report.add(contender, *row, client, readings);
                    }
                    Err(error) => {
                        progress.done(&format!("{what}: failed: {error:#}"));
                        self.report.fail(Failure::new(contender, *row, &error));
                    }
                }
            }
        }
        drop(lanes);
        std::fs::remove_dir_all(&directory)?;
        Ok(())
    }

    async fn restarts(&mut self, sizes: &Sizes, progress: &Progress) -> anyhow::Result<()> {
        for program in &self.programs {
            let contender = program.contender;
            // The target of a restart is absolute, so the peer's restart is optional; it is slow to load.
            if contender == Contender::Peer && !self.restart_peer {
                continue;
            }
            let directory = self
                .scratch
                .subdirectory(&format!("restart-{contender:?}"))?;
            let data = directory.join("data");
            let measured = restart::measure(program, &data, sizes, SEED, progress);
            let outcome = tokio::time::timeout(RESTARTS_AT_MOST, measured)
                .await
                .unwrap_or_else(|_| bail!("not done within {RESTARTS_AT_MOST:?}"));
            match outcome {
                Ok(readings) => {
                    progress.done(&format!(
                        "restart, {}: {}",
                        contender.name(),
                        summary(&readings)
                    ));
                    self.report.add(contender, Row::Restart, None, readings);
                }
                Err(error) => {
                    progress.done(&format!("restart, {}: failed: {error:#}", contender.name()));
                    self.report
                        .fail(Failure::new(contender, Row::Restart, &error));
                }
            }
            std::fs::remove_dir_all(&directory)?;
        }
        Ok(())
    }
}

/// What of a row's parameters stays when its server is started again.
struct Fixed<'a> {
    client: Kind,
    sizes: &'a Sizes,
    s2: &'a Path,
    scratch: &'a Path,
    seed: u64,
}

impl Fixed<'_> {
    fn on<'s>(&'s self, server: &'s Server) -> Load<'s> {
        Load {
            server,
            client: self.client,
            sizes: self.sizes,
            s2: self.s2.to_path_buf(),
            scratch: self.scratch.to_path_buf(),
            seed: self.seed,
        }
    }
}

/// One server in a run.
struct Lane {
    program: Program,
    data: PathBuf,
    starts: usize,
    server: Option<Server>,
}

impl Lane {
    async fn measure(
        &mut self,
        row: Row,
        client: Option<Kind>,
        sizes: &Sizes,
        s2: &Path,
        scratch: PathBuf,
        run: usize,
    ) -> anyhow::Result<Vec<Reading>> {
        std::fs::create_dir(&scratch)?;
        let result = async {
            let (client, seed) = (client.unwrap_or(Kind::Wire), SEED + run as u64);
            let load = Fixed {
                client,
                sizes,
                s2,
                scratch: &scratch,
                seed,
            };
            let measured = async {
                let server = self.running().await?;
                let mut readings = row.measure(&load.on(server)).await?;
                if row.starts_again() {
                    let server = self.restarted().await?;
                    readings.extend(row.measure_again(&load.on(server)).await?);
                }
                anyhow::Ok(readings)
            };
            tokio::time::timeout(ROW_AT_MOST, measured)
                .await
                .unwrap_or_else(|_| bail!("not done within {ROW_AT_MOST:?}"))
        }
        .await;
        std::fs::remove_dir_all(&scratch)?;
        if result.is_err() {
            // Work left over from the failed row must not affect the next one, which gets a new server.
            self.server = None;
        }
        result
    }

    /// The running server; a new one on a new directory if there is none.
    async fn running(&mut self) -> anyhow::Result<&Server> {
        if self.server.is_none() {
            self.starts += 1;
            let data = self.data.with_extension(self.starts.to_string());
            let mut server = self.program.start(&data, testkit::ports::free_port()?)?;
            server.ready(READY_AT_MOST).await?;
            client::create_basin(&server.url(), BASIN).await?;
            self.server = Some(server);
        }
        self.server.as_ref().context("it was just started")
    }

    /// The server, killed and started again on the same directory.
    async fn restarted(&mut self) -> anyhow::Result<&Server> {
        if let Some(mut server) = self.server.take() {
            server.kill();
        }
        let data = self.data.with_extension(self.starts.to_string());
        let mut server = self.program.start(&data, testkit::ports::free_port()?)?;
        server.ready(READY_AT_MOST).await?;
        Ok(self.server.insert(server))
    }

    async fn settle(&self, at_most: Duration) {
        if let Some(server) = &self.server {
            server.settle(at_most).await;
        }
    }
}

/// The fraction of the machine's processor time that other programs use now, while both servers are idle.
async fn busy() -> anyhow::Result<f64> {
    let (busy_before, all_before) = machine::machine_ticks()?;
    tokio::time::sleep(Duration::from_millis(250)).await;
    let (busy_after, all_after) = machine::machine_ticks()?;
    let all = (all_after - all_before).max(1);
    Ok((busy_after - busy_before) as f64 / all as f64)
}

fn summary(readings: &[Reading]) -> String {
    let texts: Vec<String> = readings
        .iter()
        .map(|reading| format!("{:.2} {}", reading.value, reading.metric.unit()))
        .collect();
    texts.join(", ")
}
