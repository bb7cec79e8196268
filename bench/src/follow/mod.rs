//! Following streams with snapshots: what a recovery costs, how fast records are folded, what a large
//! snapshot in a stream costs those who write to it.
//!
//! | module | what it holds |
//! |---|---|
//! | [`step`] | one measured operation, in a process of its own |
//! | [`history`] | recoveries by the length of the history |
//! | [`rates`] | folding beside reading, framed snapshots beside plain records |
//! | [`busy`] | snapshots of a stream that others write to |

mod busy;
mod history;
mod rates;
pub mod step;

use std::num::NonZeroU32;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::Context;
use clap::ValueEnum;
use s2_sdk::types::{
    AppendInput, AppendRecord, AppendRecordBatch, CreateBasinInput, CreateStreamInput, RetryConfig,
    S2Config, S2Endpoints,
};
use s2_sdk::{S2, S2Stream};
use step::{Done, Operation, Step};

use crate::machine::Machine;
use crate::recovery::subject::{Setup, Subject};
use crate::recovery::table::{self, Section};
use crate::recovery::{median, quiet};
use crate::scratch::Scratch;

/// The basin of all streams.
const BASIN: &str = "bench-follow";

/// Arguments of `follow`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The program `esker`. Default: the one beside this program.
    #[arg(long, value_name = "PATH")]
    esker: Option<PathBuf>,
    /// Only these parts; the page is not written then.
    #[arg(long, value_name = "PART", value_delimiter = ',')]
    only: Vec<Part>,
    /// Runs of each measurement; tables show medians.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..100))]
    runs: u16,
    /// Small sizes, to check the bench itself; nothing is written.
    #[arg(long)]
    quick: bool,
    /// Where to work; a disk, with room for 20 GiB.
    #[arg(long, value_name = "DIR")]
    scratch: Option<PathBuf>,
    /// Where the page goes.
    #[arg(long, value_name = "PATH", default_value = "docs/benchmarks/follow.md")]
    out: PathBuf,
}

/// What can be measured by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Part {
    /// Recoveries by the length of the history.
    History,
    /// Folding beside reading, framed snapshots beside plain records.
    Rates,
    /// Snapshots of a stream that others write to.
    Busy,
}

/// What parts work with.
struct Bench {
    setup: Setup,
    scratch: PathBuf,
    runs: usize,
    quick: bool,
    began: Instant,
}

impl Bench {
    fn note(&self, what: impl std::fmt::Display) {
        eprintln!("[{:>5.0} s] {what}", self.began.elapsed().as_secs_f64());
    }

    /// A server with an empty data directory of its own, and the basin.
    async fn serve(&self, name: &str) -> anyhow::Result<Subject> {
        let setup = Setup {
            data: self.scratch.join(name),
            ..self.setup.clone()
        };
        let (server, _) = setup.start(&[]).await?;
        let s2 = S2::new(config(&server.url())?)?;
        s2.create_basin(CreateBasinInput::new(BASIN.parse()?))
            .await?;
        Ok(server)
    }

    /// A median over several runs of one operation, by time.
    async fn median(&self, step: &Step) -> anyhow::Result<Done> {
        let mut all = Vec::new();
        for _ in 0..self.runs {
            let done = step.run().await?;
            self.note(format!("{:?} of {}: {done:?}", step.operation, step.stream));
            all.push(done);
        }
        all.sort_by(|a, b| a.seconds.total_cmp(&b.seconds));
        all.into_iter().nth(self.runs / 2).context("a run")
    }
}

fn step(operation: Operation, server: &Subject, stream: &str) -> Step {
    Step {
        operation,
        url: server.url(),
        stream: stream.to_owned(),
        bytes: 0,
        external: None,
    }
}

/// How clients connect.
fn config(url: &str) -> anyhow::Result<S2Config> {
    Ok(S2Config::new("bench")
        .with_endpoints(S2Endpoints::for_endpoint(url)?)
        .with_request_timeout(Duration::from_secs(60))
        .with_retry(RetryConfig::new().with_max_attempts(NonZeroU32::MIN))
        .with_insecure_skip_cert_verification(true))
}

/// A new stream.
async fn create(server: &Subject, name: &str) -> anyhow::Result<S2Stream> {
    let s2 = S2::new(config(&server.url())?)?;
    let basin = s2.basin(BASIN.parse()?);
    basin
        .create_stream(CreateStreamInput::new(name.parse()?))
        .await?;
    Ok(basin.stream(name.parse()?))
}

/// A record of 100 bytes of JSON with one of `keys` ids.
fn order(n: u64, keys: u64) -> String {
    let mut body = format!(r#"{{"id":{},"n":{n},"note":""#, n % keys);
    while body.len() < 98 {
        body.push('x');
    }
    body.push_str("\"}");
    body
}

/// Appends such records, as fast as a session takes them.
async fn load(stream: &S2Stream, numbers: std::ops::Range<u64>, keys: u64) -> anyhow::Result<()> {
    use s2_sdk::append_session::AppendSessionConfig;
    let config = AppendSessionConfig::new().with_max_unacked_bytes(8 << 20)?;
    let session = stream.append_session(config);
    let mut next = numbers.start;
    while next < numbers.end {
        let end = (next + 1000).min(numbers.end);
        let records = (next..end).map(|n| AppendRecord::new(order(n, keys)));
        let records: Result<Vec<_>, _> = records.collect();
        let batch = AppendRecordBatch::try_from_iter(records?)?;
        session.submit(AppendInput::new(batch)).await?;
        next = end;
    }
    session.close().await?;
    Ok(())
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
            Part::History => history::measure(&bench).await,
            Part::Rates => rates::measure(&bench).await,
            Part::Busy => busy::measure(&bench).await,
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
        let page = table::page(
            "following streams with snapshots",
            "bench-follow",
            "Server and clients share its cores and its one disk. The measured follower is a process of \
             its own; its time is from its first request to the state being caught up.",
            &machine,
            &sections,
        );
        std::fs::write(&args.out, page)
            .with_context(|| format!("cannot write {}", args.out.display()))?;
        println!("Written to {}", args.out.display());
    }
    Ok(ExitCode::from(u8::from(missed)))
}
