//! Following streams with snapshots: the time of a recovery, the rate of folding records, and the cost of a
//! large snapshot in a stream for its writers.
//!
//! | module | what it holds |
//! |---|---|
//! | [`step`] | one measured operation, in its own process |
//! | [`history`] | recoveries by the length of the history |
//! | [`rates`] | folding beside reading, framed snapshots beside plain records |
//! | [`busy`] | snapshots of a stream to which others append |

mod busy;
mod history;
mod rates;
pub mod step;

use std::num::NonZeroU32;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use clap::ValueEnum;
use s2_sdk::types::{
    AppendInput, AppendRecord, AppendRecordBatch, CreateBasinInput, CreateStreamInput, RetryConfig,
    S2Config, S2Endpoints,
};
use s2_sdk::{S2, S2Stream};
use step::{Done, Operation, Step};

use bench_harness::machine::quiet;
use bench_harness::page::Page;
use bench_harness::{Figures, PartArgs, Run};

use crate::recovery::subject::{Setup, Subject};
use crate::streams::esker_program;

/// The basin of all streams.
const BASIN: &str = "bench-follow";

/// Where the page goes by default.
const PAGE: &str = "docs/benchmarks/follow.md";

/// Arguments of `follow`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The program `esker`. Default: the one beside this program.
    #[arg(long, value_name = "PATH")]
    esker: Option<PathBuf>,
    #[command(flatten)]
    common: PartArgs<Part>,
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

/// The context of the parts.
struct Bench {
    setup: Setup,
    run: Run,
}

impl Bench {
    /// Starts a server with its own empty data directory, and creates the basin.
    async fn serve(&self, name: &str) -> anyhow::Result<Subject> {
        let setup = Setup {
            data: self.run.scratch.join(name),
            ..self.setup.clone()
        };
        let (server, _) = setup.start(&[]).await?;
        let s2 = S2::new(config(&server.url())?)?;
        s2.create_basin(CreateBasinInput::new(BASIN.parse()?))
            .await?;
        Ok(server)
    }

    /// The run of one operation with the median time, of several.
    async fn median(&self, step: &Step) -> anyhow::Result<Done> {
        let mut all = Vec::new();
        for _ in 0..self.run.runs {
            let done = step.run().await?;
            self.run
                .note(format!("{:?} of {}: {done:?}", step.operation, step.stream));
            all.push(done);
        }
        all.sort_by(|a, b| a.seconds.total_cmp(&b.seconds));
        all.into_iter().nth(self.run.runs / 2).context("a run")
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
    let bench = Bench {
        setup: Setup {
            program: esker_program(args.esker)?.path,
            data: PathBuf::new(),
            settings: Vec::new(),
        },
        run: Run::begin(&args.common)?,
    };
    let mut figures = Figures::begin(&args.common)?;
    for part in args.common.parts() {
        let begun = bench.run.part(part, quiet().await?);
        let section = match part {
            Part::History => history::measure(&bench).await,
            Part::Rates => rates::measure(&bench).await,
            Part::Busy => busy::measure(&bench).await,
        };
        figures.add(part, begun.end(section)?)?;
    }
    let page = Page {
        title: "following streams with snapshots",
        target: "bench-follow",
        how: "Server and clients share its cores and its one disk. The measured follower is a process \
              of its own; its time is from its first request to the state being caught up.",
    };
    let out = args.common.out.unwrap_or_else(|| PAGE.into());
    figures.write(&bench.run, &page, &out)?;
    Ok(figures.exit_code())
}
