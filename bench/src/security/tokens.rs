//! What access tokens cost: appends with an issued token, beside appends to a server without tokens.
//!
//! The token has scopes, so that each request is looked up in the catalog by its hash, and its operation and names are
//! compared. A session is identified at its beginning; single appends are each by themselves.

use std::cell::Cell;
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use bench_harness::page::{Figure, Section};
use bench_harness::stats::median_or_zero as median;
use futures::future::try_join_all;
use serde_json::json;

use super::{Access, Bench, Found, SEED, SETTLE, TURNS, WARM_UP, appends, how, ratio, remove};
use crate::client::Batches;

/// The basin of the streams.
const BASIN: &str = "bench-basin";
/// The root token of the servers that ask for one.
const ROOT: &str = "esk_bench-bench-bench-bench-bench-bench-bench-benc";
/// Clients that send single appends at once, each with a connection and a stream of its own.
const CLIENTS: usize = 32;
/// Bytes in the body of the one record of such an append.
const SINGLE_BYTES: usize = 100;
/// What both kinds of appends may lose.
const TARGET: f64 = 0.95;

/// Writes a file that its owner alone may read.
fn write_secret(path: &Path, text: &str) -> anyhow::Result<()> {
    let mut options = std::fs::OpenOptions::new();
    options.write(true).create(true).truncate(true).mode(0o600);
    let written = options
        .open(path)
        .and_then(|mut file| writeln!(file, "{text}"));
    written.with_context(|| format!("cannot write {}", path.display()))
}

/// Has the holder of the root token issue one that permits what the load does, and nothing else.
async fn issue(url: &str) -> anyhow::Result<String> {
    let root = Access {
        token: Some(ROOT.to_owned()),
        ..Access::default()
    };
    let request = json!({
        "id": "bench",
        "scope": {
            "basins": {"exact": BASIN},
            "streams": {"prefix": "appends-"},
            "ops": ["create-stream", "append"],
        },
    });
    root.connect(url, BASIN).await?.issue_token(&request).await
}

/// Sends single appends to new streams of a basin for some time.
async fn single_appends(url: &str, access: &Access, time: Duration) -> anyhow::Result<Found> {
    let batches = Batches::new(1, SINGLE_BYTES, SEED)?;
    let streams = try_join_all((0..CLIENTS).map(async |client| {
        let connection = access.connect(url, BASIN).await?;
        let name = format!("appends-single-{client}");
        connection.create_stream(&name).await?;
        anyhow::Ok(connection.stream(&name))
    }))
    .await?;
    let from = Instant::now() + WARM_UP;
    let until = from + time;
    let (batches, counted, all) = (&batches, &Cell::new(0), &Cell::new(0));
    let clients = streams.iter().map(async |stream| {
        for number in 0.. {
            stream.append(batches.at(number)).await?;
            all.set(all.get() + 1);
            let now = Instant::now();
            if now > until {
                break;
            }
            if now >= from {
                counted.set(counted.get() + 1);
            }
        }
        anyhow::Ok(())
    });
    try_join_all(clients).await?;
    Ok(Found {
        rate: counted.get() as f64 / time.as_secs_f64(),
        records: all.get(),
    })
}

/// Rates, and processor time of the server for each record, of the servers without and with tokens.
#[derive(Default)]
struct Kind {
    rates: [Vec<f64>; 2],
    times: [Vec<f64>; 2],
}

impl Kind {
    fn add(&mut self, at: usize, found: &Found, seconds: f64) {
        self.rates[at].push(found.rate);
        self.times[at].push(seconds * 1e6 / found.records as f64);
    }

    fn figures(&self, what: &str, time_of: &str) -> [Figure; 2] {
        let ratio = ratio(&self.rates);
        let rate = |at: usize| format!("{:.0}/s", median(&self.rates[at]));
        let time = |at: usize| format!("{:.2} µs", median(&self.times[at]));
        [
            Figure::plain(format!("{what} with an issued token"), rate(1))
                .beside(format!("{} ({ratio:.2}x)", rate(0)))
                .target(format!("at least {TARGET}x"), ratio >= TARGET),
            Figure::plain(
                format!("processor time of the server for each {time_of}, with an issued token"),
                time(1),
            )
            .beside(time(0)),
        ]
    }
}

pub(super) async fn measure(bench: &Bench) -> anyhow::Result<Section> {
    let file = bench.run.scratch.join("root-token");
    write_secret(&file, ROOT)?;
    let file = file.to_str().context("a path that is not UTF-8")?;
    let with_tokens = ["--root-token-file", file];
    let (mut sessions, mut single) = (Kind::default(), Kind::default());
    for run in 0..bench.run.runs {
        for (turn, at) in TURNS.into_iter().enumerate() {
            let arguments: &[&str] = if at == 0 { &[] } else { &with_tokens };
            let name = format!("tokens-{run}-{turn}");
            let server = bench.serve(&name, arguments).await?;
            let url = server.url();
            let root = Access {
                token: Some(ROOT.to_owned()),
                ..Access::default()
            };
            root.connect(&url, BASIN).await?.create_basin().await?;
            let access = Access {
                token: match at {
                    0 => None,
                    _ => Some(issue(&url).await?),
                },
                ..Access::default()
            };
            let what = ["without tokens", "with an issued token"][at];
            server.settle(SETTLE).await;
            let before = server.processor_seconds()?;
            let found = appends(&url, BASIN, &access, bench.time()).await?;
            sessions.add(at, &found, server.processor_seconds()? - before);
            bench
                .run
                .note(format!("{what}: {:.0} records/s", found.rate));
            server.settle(SETTLE).await;
            let before = server.processor_seconds()?;
            let found = single_appends(&url, &access, bench.time()).await?;
            single.add(at, &found, server.processor_seconds()? - before);
            bench
                .run
                .note(format!("{what}: {:.0} appends/s", found.rate));
            server.kill();
            remove(&bench.run.scratch.join(&name))?;
        }
    }
    let how = format!(
        "{} Single appends are of {CLIENTS} clients, each with a connection and a stream of its own, of one record of \
         {SINGLE_BYTES} bytes, one after the other. The token permits `create-stream` and `append` on one basin and \
         one prefix of streams.",
        how(bench, "a server without tokens")
    );
    let figures = [
        sessions.figures("records appended by sessions", "record"),
        single.figures("single appends", "of these"),
    ];
    Ok(Section {
        title: "Access tokens".to_owned(),
        how,
        figures: figures.into_iter().flatten().collect(),
        ..Section::default()
    })
}
