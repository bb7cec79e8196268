//! What encryption of records, access tokens and TLS cost: appends with each, beside appends without.
//!
//! The load is that of the row `batches` of the streams: append sessions of small records in batches, each with
//! a connection and a stream of its own. With tokens it is also single appends, each of which is identified and
//! checked; a session is so once. What is compared takes turns within a run. Where that is two servers, each
//! is first and last, and second and third, so that neither has the better places; and the data of each is removed
//! before the next begins, which would otherwise share the disk with what is left to be written of it.

mod tokens;

use std::cell::Cell;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use bench_harness::machine::quiet;
use bench_harness::page::{Figure, Page, Section};
use bench_harness::stats::median_or_zero as median;
use bench_harness::{Figures, PartArgs, Run};
use clap::ValueEnum;
use futures::future::try_join_all;
use s2_sdk::types::{BasinConfig, BasinName, CreateBasinInput, EncryptionAlgorithm, EncryptionKey};

use testkit_server::tls::TlsFiles;

use crate::client::wire;
use crate::client::{Batches, sdk};
use crate::recovery::subject::{Setup, Subject};
use crate::streams::esker_program;

/// Where the page goes by default.
const PAGE: &str = "docs/benchmarks/security.md";
/// Append sessions at once.
const SESSIONS: usize = 8;
/// Records in each batch.
const BATCH_RECORDS: usize = 100;
/// Bytes in the body of each record.
const BODY_BYTES: usize = 256;
/// Unacknowledged batches of a session.
const IN_FLIGHT: usize = 64;
/// Load before the clock runs.
const WARM_UP: Duration = Duration::from_secs(1);
/// The longest that a server is given to become idle before a measurement.
const SETTLE: Duration = Duration::from_secs(10);
/// The seed of the contents of records.
const SEED: u64 = 0xe5_4e13;

/// Arguments of `security`.
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
    /// Appends to streams of each cipher.
    Encryption,
    /// Appends to a server that requires tokens.
    Tokens,
    /// Appends over TLS.
    Tls,
}

struct Bench {
    program: PathBuf,
    run: Run,
}

impl Bench {
    fn time(&self) -> Duration {
        Duration::from_secs(if self.run.quick { 1 } else { 8 })
    }

    async fn serve(&self, name: &str, arguments: &[&str]) -> anyhow::Result<Subject> {
        let setup = Setup {
            program: self.program.clone(),
            data: self.run.scratch.join(name),
            settings: Vec::new(),
        };
        Ok(setup.start(arguments).await?.0)
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
        run: Run::begin(&args.common)?,
    };
    let mut figures = Figures::begin(&args.common)?;
    for part in args.common.parts() {
        let begun = bench.run.part(part, quiet().await?);
        let section = match part {
            Part::Encryption => encryption(&bench).await,
            Part::Tokens => tokens::measure(&bench).await,
            Part::Tls => tls(&bench).await,
        };
        figures.add(part, begun.end(section)?)?;
    }
    let page = Page {
        title: "encryption, tokens and TLS",
        target: "bench-security",
        how: "Server and clients share its cores and its one disk. The clients send requests that were \
              encoded beforehand, so that the server alone does more with encryption than without.",
    };
    let out = args.common.out.unwrap_or_else(|| PAGE.into());
    figures.write(&bench.run, &page, &out)?;
    Ok(figures.exit_code())
}

/// How clients present themselves.
#[derive(Clone, Default)]
struct Access {
    token: Option<String>,
    key: Option<EncryptionKey>,
    /// The authority of the server's certificate, if it speaks TLS.
    ca: Option<PathBuf>,
}

impl Access {
    async fn connect(&self, url: &str, basin: &str) -> anyhow::Result<wire::Connection> {
        let mut connection = match &self.ca {
            None => wire::Connection::open(url, basin).await?,
            Some(ca) => wire::Connection::open_tls(url, basin, ca).await?,
        };
        if let Some(token) = &self.token {
            connection = connection.with_token(token);
        }
        if let Some(key) = &self.key {
            connection = connection.with_encryption_key(key);
        }
        Ok(connection)
    }
}

/// What one measurement found.
struct Found {
    /// Records acknowledged per second.
    rate: f64,
    /// All records of it, also those of the warm-up.
    records: usize,
}

/// Appends to new streams of a basin for some time.
async fn appends(url: &str, basin: &str, access: &Access, time: Duration) -> anyhow::Result<Found> {
    let batches = Batches::new(BATCH_RECORDS, BODY_BYTES, SEED)?;
    let streams = try_join_all((0..SESSIONS).map(async |session| {
        let connection = access.connect(url, basin).await?;
        let name = format!("appends-{session}");
        connection.create_stream(&name).await?;
        anyhow::Ok(connection.stream(&name))
    }))
    .await?;
    let from = Instant::now() + WARM_UP;
    let until = from + time;
    let (batches, counted, all) = (&batches, &Cell::new(0), &Cell::new(0));
    let sessions = streams.iter().map(|stream| {
        stream.session(
            batches,
            IN_FLIGHT,
            move |_| Instant::now() < until,
            move |records| {
                let now = Instant::now();
                all.set(all.get() + records);
                if now >= from && now <= until {
                    counted.set(counted.get() + records);
                }
            },
        )
    });
    try_join_all(sessions).await?;
    Ok(Found {
        rate: counted.get() as f64 / time.as_secs_f64(),
        records: all.get(),
    })
}

const CIPHERS: [Option<EncryptionAlgorithm>; 3] = [
    None,
    Some(EncryptionAlgorithm::Aegis256),
    Some(EncryptionAlgorithm::Aes256Gcm),
];

async fn encryption(bench: &Bench) -> anyhow::Result<Section> {
    let mut rates = [const { Vec::new() }; CIPHERS.len()];
    let mut logged = [const { Vec::new() }; CIPHERS.len()];
    let access = Access {
        key: Some(EncryptionKey::new([7; 32])),
        ..Access::default()
    };
    for run in 0..bench.run.runs {
        let server = bench.serve(&format!("encryption-{run}"), &[]).await?;
        let s2 = sdk::client(&server.url(), sdk::REQUEST_TIMEOUT)?;
        for turn in 0..CIPHERS.len() {
            let at = (turn + run) % CIPHERS.len();
            let basin = format!("bench-basin-{at}");
            let mut config = BasinConfig::new();
            if let Some(cipher) = CIPHERS[at] {
                config = config.with_stream_cipher(cipher);
            }
            let create = CreateBasinInput::new(basin.parse::<BasinName>()?).with_config(config);
            let created = s2.create_basin(create).await;
            created.with_context(|| format!("cannot create the basin {basin}"))?;
            server.settle(SETTLE).await;
            let written = async || server.metric("esker_log_written_bytes_total").await;
            let before = written().await?;
            let found = appends(&server.url(), &basin, &access, bench.time()).await?;
            rates[at].push(found.rate);
            logged[at].push((written().await? - before) / found.records as f64);
        }
    }
    let name = |at: usize| CIPHERS[at].map_or("none".to_owned(), |cipher| cipher.to_string());
    let mut figures = Vec::new();
    for at in 0..CIPHERS.len() {
        let ratio = median(&rates[at]) / median(&rates[0]);
        let mut figure = Figure::plain(
            format!("records appended, cipher: {}", name(at)),
            format!("{:.0}/s", median(&rates[at])),
        );
        if CIPHERS[at].is_some() {
            figure = figure
                .beside(format!("{:.0}/s ({ratio:.2}x)", median(&rates[0])))
                .target("at least 0.8x", ratio >= 0.8);
        }
        figures.push(figure);
        figures.push(Figure::plain(
            format!("bytes written to the log for each, cipher: {}", name(at)),
            format!("{:.0} B", median(&logged[at])),
        ));
    }
    Ok(Section {
        title: "Encryption of records".to_owned(),
        how: how(bench, "the same without a cipher"),
        figures,
        ..Section::default()
    })
}

fn how(bench: &Bench, beside: &str) -> String {
    format!(
        "{SESSIONS} append sessions of {BODY_BYTES}-byte records in batches of {BATCH_RECORDS}. `beside` is \
         {beside}, in the same run, turn by turn. Medians of {} runs, {} s each time.",
        bench.run.runs,
        bench.time().as_secs()
    )
}

/// The turns of two servers within a run. The first one of a program is often the fastest.
const TURNS: [usize; 4] = [0, 1, 1, 0];

/// The ratio of the second server's rates to the first one's: the median over the runs, of the sums of each.
fn ratio(rates: &[Vec<f64>; 2]) -> f64 {
    let of = |rates: &Vec<f64>| -> Vec<f64> {
        let runs = rates.chunks(TURNS.len() / 2);
        runs.map(|run| run.iter().sum()).collect()
    };
    let (without, with) = (of(&rates[0]), of(&rates[1]));
    let ratios: Vec<f64> = with.iter().zip(without).map(|(a, b)| a / b).collect();
    median(&ratios)
}

/// Removes the data of a server that has ended.
fn remove(data: &Path) -> anyhow::Result<()> {
    std::fs::remove_dir_all(data).with_context(|| format!("cannot remove {}", data.display()))
}

/// Both servers are those of the test kit, because the other one is asked for its health without TLS.
async fn tls(bench: &Bench) -> anyhow::Result<Section> {
    let files = TlsFiles::new();
    // Without and with.
    let mut rates = [Vec::new(), Vec::new()];
    for run in 0..bench.run.runs {
        for (turn, at) in TURNS.into_iter().enumerate() {
            let (setup, ca) = match at {
                0 => (testkit_server::Setup::default(), None),
                _ => (testkit_server::Setup::with_tls(&files), Some(files.ca())),
            };
            let settings = [
                "store.block-cache=64MiB",
                "store.write-buffer=32MiB",
                "store.write-buffers-total=128MiB",
                "retention.interval=10s",
            ];
            let setup = settings
                .into_iter()
                .fold(setup.program(&bench.program), |setup, it| setup.set(it));
            let data = bench.run.scratch.join(format!("tls-{run}-{turn}"));
            let started = setup.try_start(&data).await;
            let server = started.map_err(|log| anyhow::anyhow!("the server ended:\n{log}"))?;
            let access = Access {
                ca,
                ..Access::default()
            };
            let connection = access.connect(server.url(), "bench-basin").await?;
            connection.create_basin().await?;
            tokio::time::sleep(Duration::from_secs(1)).await;
            let found = appends(server.url(), "bench-basin", &access, bench.time()).await?;
            rates[at].push(found.rate);
            drop(server);
            remove(&data)?;
        }
    }
    let ratio = ratio(&rates);
    let rate = |at: usize| format!("{:.0}/s", median(&rates[at]));
    Ok(Section {
        title: "TLS".to_owned(),
        how: how(bench, "a server without TLS"),
        figures: vec![
            Figure::plain("records appended over TLS", rate(1))
                .beside(format!("{} ({ratio:.2}x)", rate(0)))
                .target("at least 0.85x", ratio >= 0.85),
        ],
        ..Section::default()
    })
}
