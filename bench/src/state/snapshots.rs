//! Commits and memory while a snapshot is written, and rebuilding the store from one.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use esker_proto::state::v1::SnapshotRequest;
use esker_proto::state::v1::state_service_client::StateServiceClient;
use rust_rocksdb::{DBWithThreadMode, MultiThreaded, Options};

use super::Bench;
use super::load::{self, Deed};
use crate::recovery::subject::Subject;
use bench_harness::page::{Figure, Section};
use bench_harness::stats::median_or_zero as median;

/// Keys of the snapshot.
const KEYS: u64 = 1_000_000;
/// Clients that commit meanwhile.
const CLIENTS: u64 = 8;
/// Commits after the snapshot.
const AFTER: u64 = 1_000;

pub(super) async fn measure(bench: &Bench) -> anyhow::Result<Section> {
    let keys = bench.size(KEYS);
    // Snapshots are made only on request.
    let settings = ["state.snapshot-interval=0"];
    let server = bench.serve("snapshots", &settings).await?;
    load::fill(&server.url(), keys).await?;
    server.settle(Duration::from_secs(30)).await;
    let (mut without, mut with, mut more, mut took) = (vec![], vec![], vec![], vec![]);
    for _ in 0..bench.run.runs {
        let alone = commits(&server, Duration::from_secs(6)).await?;
        let (resident, _) = server.resident_mib()?;
        let url = server.url();
        let snapshot = tokio::spawn(async move { snapshot(&url).await });
        let mut beside = Vec::new();
        let mut most: f64 = resident;
        while !snapshot.is_finished() {
            let done = commits(&server, Duration::from_millis(1500)).await?;
            most = most.max(server.resident_mib()?.0);
            beside.push(done);
        }
        took.push(snapshot.await??.as_secs_f64());
        let p99s: Vec<f64> = beside.iter().map(|done| done.percentile_ms(99.0)).collect();
        bench.run.note(format!(
            "commit p99 {:.2} ms alone, {p99s:.2?} ms beside a snapshot of {:.1} s; {resident:.0} MiB, at most {most:.0}",
            alone.percentile_ms(99.0),
            took.last().unwrap_or(&0.0)
        ));
        without.push(alone.percentile_ms(99.0));
        with.push(median(&p99s));
        more.push(most - resident);
    }
    let ratio = median(&with) / median(&without);
    let memory = median(&more);
    let (rebuilt, said) = rebuild(bench, server, keys).await?;
    Ok(Section {
        title: format!("A snapshot of {keys} keys"),
        how: format!(
            "{CLIENTS} clients commit one operation at a time, without a snapshot being written and while one \
             is. Medians of {} runs. To rebuild, the row that says where the store stands is removed from the \
             database of a server that was stopped.",
            bench.run.runs
        ),
        figures: vec![
            Figure::plain("writing it takes", format!("{:.1} s", median(&took))),
            Figure::plain("commit p99 meanwhile", format!("{:.2} ms", median(&with)))
                .beside(format!("{:.2} ms without ({ratio:.1}x)", median(&without)))
                .target("at most 2x", ratio <= 2.0),
            Figure::plain("memory meanwhile", format!("+{memory:.0} MiB"))
                .target("at most +64 MiB", memory <= 64.0),
            Figure::plain(
                format!("rebuilt from it and {AFTER} commits, start to serving"),
                format!("{rebuilt:.1} s"),
            )
            .beside(said)
            .target("under 10 s", rebuilt < 10.0),
        ],
        ..Section::default()
    })
}

async fn commits(server: &Subject, time: Duration) -> anyhow::Result<load::Done> {
    load::clients(
        &server.url(),
        CLIENTS,
        Deed::Commit { keys: 100 },
        u64::MAX,
        time,
    )
    .await
}

async fn snapshot(url: &str) -> anyhow::Result<Duration> {
    let mut client = StateServiceClient::connect(url.to_owned()).await?;
    let begun = Instant::now();
    client.snapshot(SnapshotRequest {}).await?;
    Ok(begun.elapsed())
}

/// Measures a start that has to rebuild the store. Returns the seconds, and its log line.
async fn rebuild(bench: &Bench, server: Subject, keys: u64) -> anyhow::Result<(f64, String)> {
    snapshot(&server.url()).await?;
    load::clients(
        &server.url(),
        CLIENTS,
        Deed::Commit { keys: 100 },
        AFTER,
        Duration::from_secs(60),
    )
    .await?;
    let setup = bench.setup("snapshots", &["state.snapshot-interval=0"]);
    let stopped = Instant::now();
    server.stop(Duration::from_secs(60)).await?;
    bench
        .run
        .note(format!("stopped in {:.1?}", stopped.elapsed()));
    forget(&setup.data.join("db"))?;
    let (server, took) = setup.start(&[]).await?;
    let log = server.logged()?;
    let line = log
        .lines()
        .find(|line| line.contains("source=\"json\"") && line.contains("Recovery complete"));
    let line = line.with_context(|| format!("the store was not rebuilt: {log}"))?;
    let said = line.split("Recovery complete").nth(1).unwrap_or_default();
    let url = server.url();
    load::clients(&url, 8, Deed::Read { keys }, 1000, Duration::from_secs(9)).await?;
    Ok((took.as_secs_f64(), said.trim().to_owned()))
}

/// Removes the row of the database that holds the position of the store.
fn forget(db: &Path) -> anyhow::Result<()> {
    /// The key of that row.
    const STATE_META: [u8; 1] = [0x40];
    let options = Options::default();
    let names = DBWithThreadMode::<MultiThreaded>::list_cf(&options, db)?;
    let open = DBWithThreadMode::<MultiThreaded>::open_cf(&options, db, &names)?;
    let mut removed = 0;
    for name in &names {
        let cf = open.cf_handle(name).context("a column family")?;
        if open.get_cf(&cf, STATE_META)?.is_some() {
            open.delete_cf(&cf, STATE_META)?;
            open.flush_cf(&cf)?;
            removed += 1;
        }
    }
    anyhow::ensure!(removed == 1, "{removed} partitions have a state store");
    Ok(())
}
