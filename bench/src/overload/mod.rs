//! Overload: what a polite client notices of a flood, what followers in great number and slow readers cost, and
//! whether memory stays flat under a mixed load.
//!
//! | module | what it holds |
//! |---|---|
//! | [`polite`] | one polite client among many that flood |
//! | [`flood`] | those that flood, in this process or in one of the lowest priority |
//! | [`followers`] | followers of one stream in great number |
//! | [`slow_readers`] | resident memory for each byte that is held for readers that hardly read |
//! | [`mixed`] | resident memory over a long mixed load: a part of `make soak` |
//!
//! Each part prints its figures, each target and whether it is met.

pub mod flood;
mod followers;
mod mixed;
mod polite;
mod slow_readers;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context as _;
use bench_harness::machine::{Machine, quiet};
use bench_harness::page::{self, Figure, Page, Section};
use bench_harness::scratch::Scratch;
use clap::ValueEnum;

use crate::client::{self, Connection, Kind};
use crate::recovery::subject::{Setup, Subject};
use crate::streams::esker_program;
use flood::Flooders;

/// The basin of all streams.
const BASIN: &str = "bench-overload";

/// Arguments of `overload`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// What is measured. Default: everything but the mixed load.
    #[arg(long = "part", value_enum)]
    parts: Vec<Part>,
    /// The program `esker`. Default: the one beside this program.
    #[arg(long, value_name = "PATH")]
    esker: Option<PathBuf>,
    /// Where those that flood run. Default: the polite client is measured beside each kind.
    #[arg(long = "flood", value_enum)]
    floods: Vec<Flooders>,
    /// Followers of one stream, each on a connection of its own.
    #[arg(long, value_name = "N", default_value_t = 10_000, value_parser = clap::value_parser!(u32).range(1..=16_000))]
    followers: u32,
    /// How long a measurement takes, in seconds.
    #[arg(long, value_name = "S", default_value_t = 20, value_parser = clap::value_parser!(u64).range(1..=3600))]
    seconds: u64,
    /// How long the mixed load takes, in seconds.
    #[arg(long, value_name = "S", env = "ESKER_SOAK_SECONDS", default_value_t = 3600, value_parser = clap::value_parser!(u64).range(40..=1_000_000))]
    mixed_seconds: u64,
    /// Where the server's directory is made. Default: the cache directory.
    #[arg(long, value_name = "DIR")]
    scratch: Option<PathBuf>,
    /// Where the page of what is measured goes. Default: no page is written.
    #[arg(long, value_name = "PATH")]
    out: Option<PathBuf>,
}

/// What can be measured by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Part {
    /// The p99 of a polite client alone, and while 64 others flood.
    Polite,
    /// Delivery to many followers of one stream, and what each takes of memory.
    Followers,
    /// Resident memory while readers hardly read.
    SlowReaders,
    /// Resident memory over a long mixed load.
    Mixed,
}

/// The page of the documentation.
const PAGE: Page<'_> = Page {
    title: "overload",
    target: "bench-overload ARGS=\"--out docs/benchmarks/overload.md\"",
    how: "Server and clients share its cores and its one disk: what a client takes of a processor, the server does \
          not have.",
};

impl Part {
    fn title(self) -> &'static str {
        match self {
            Part::Polite => "A polite client among 64 that flood",
            Part::Followers => "Followers of one stream",
            Part::SlowReaders => "Memory of readers that hardly read",
            Part::Mixed => "Memory over a long mixed load",
        }
    }

    fn how(self, args: &Args) -> String {
        let seconds = args.seconds;
        match self {
            Part::Polite => format!(
                "One client appends a record of 100 bytes and waits for the answer, alone for {seconds} s, and for as \
                 long while 64 connections append 8 batches of 64 KB each at all times, to another stream. Two \
                 more figures show what no order of appends can avoid: a request that waits for no disk, and a \
                 thread of the bench that wakes another one. An append passes four threads, and waits for a \
                 processor before each: the handler, the writer of the log, the thread that applies, and the \
                 handler again. All of it is measured once for each place where the 64 can run, each time with \
                 a new server. First they run beside the polite client, in its process and at its priority: they, \
                 the server and the copies that the system makes of what they write take both processors, \
                 so a p99 below that of a request that appends nothing is out of reach; admission is no part \
                 of it, because the polite client's turn comes at once. Then they run in a process of the \
                 lowest priority (nice 19), while the polite client and the server keep the normal one: clients \
                 across a network do not take the server's processors, and these have what the server leaves. \
                 What remains of the p99 then is what the server's own work for the flood costs the polite \
                 client."
            ),
            Part::Followers => format!(
                "Each follower reads server-sent events on a connection of HTTP/1.1 of its own, while 100 records \
                 a second of some 100 bytes are appended for {seconds} s. The time is that from the moment before an \
                 append is sent until a follower has read it, of every fiftieth follower."
            ),
            Part::SlowReaders => format!(
                "Readers of large batches take a little now and then, for {seconds} s: resident memory for each byte \
                 that the server holds for them."
            ),
            Part::Mixed => format!("A mixed load for {} s.", args.mixed_seconds),
        }
    }
}

/// Measures; the exit code is 1 if a target is missed.
///
/// # Errors
///
/// If the server cannot be started, or a request fails.
pub async fn run(args: Args) -> anyhow::Result<ExitCode> {
    let scratch = Scratch::new(args.scratch.as_deref())?;
    let program = esker_program(args.esker.clone())?;
    println!("{} ({})", program.version()?, program.path.display());
    let parts = match args.parts.as_slice() {
        [] => &[Part::Polite, Part::Followers, Part::SlowReaders][..],
        parts => parts,
    };
    let mut all_met = true;
    let mut sections = Vec::new();
    for part in parts {
        let (date, load) = (page::now(), quiet().await?);
        let setup = Setup {
            program: program.path.clone(),
            data: scratch
                .subdirectory(&format!("{part:?}").to_lowercase())?
                .join("data"),
            settings: Vec::new(),
        };
        let results = match part {
            Part::Polite => {
                let kinds = match args.floods.as_slice() {
                    [] => Flooders::value_variants(),
                    kinds => kinds,
                };
                polite::measure(&setup, kinds, args.seconds).await?
            }
            Part::Followers => followers::measure(&setup, args.followers, args.seconds).await?,
            Part::SlowReaders => slow_readers::measure(&setup, args.seconds).await?,
            Part::Mixed => mixed::measure(&setup, args.mixed_seconds).await?,
        };
        for Outcome { what, target, met } in &results {
            let verdict = match (target.is_empty(), met) {
                (true, _) => String::new(),
                (false, true) => format!("; target {target}: met"),
                (false, false) => format!("; target {target}: MISSED"),
            };
            println!("{what}{verdict}");
            all_met &= *met;
        }
        sections.push(Section {
            title: part.title().to_owned(),
            how: part.how(&args),
            figures: results.into_iter().map(Figure::from).collect(),
            date,
            load,
        });
    }
    if let Some(out) = &args.out {
        let text = PAGE.text(&Machine::describe(scratch.path())?, &sections);
        std::fs::write(out, text).with_context(|| format!("cannot write {}", out.display()))?;
        println!("Written to {}", out.display());
    }
    Ok(match all_met {
        true => ExitCode::SUCCESS,
        false => ExitCode::from(1),
    })
}

/// A figure, and whether it meets its target.
struct Outcome {
    what: String,
    /// Empty if it has none.
    target: String,
    met: bool,
}

impl From<Outcome> for Figure {
    fn from(Outcome { what, target, met }: Outcome) -> Figure {
        let (what, figure) = what.split_once(": ").unwrap_or((&what, ""));
        let plain = Figure::plain(what, figure);
        match target.is_empty() {
            true => plain,
            false => plain.target(target, met),
        }
    }
}

impl Outcome {
    fn plain(what: String) -> Outcome {
        Outcome {
            what,
            target: String::new(),
            met: true,
        }
    }
}

/// Starts a server with the basin.
async fn serve(setup: &Setup) -> anyhow::Result<Subject> {
    let (server, _) = setup.start(&[]).await?;
    client::create_basin(&server.url(), BASIN).await?;
    Ok(server)
}

/// A connection of its own.
async fn connect(server: &Subject) -> anyhow::Result<Connection> {
    Connection::open(Kind::Wire, &server.url(), BASIN).await
}
