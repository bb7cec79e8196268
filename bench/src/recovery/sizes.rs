//! Starts with a long log, and the restore of a large partition beside a copy of its files.

use std::{fs::File, path::Path, process::Command, time::Duration, time::Instant};

use anyhow::ensure;
use testkit_s3::{S3Server, objects::Objects};

use bench_harness::machine::drop_caches;
use bench_harness::page::{Figure, Section};
use bench_harness::stats::median_or_zero as median;

use super::{
    Bench,
    load::Streams,
    lose,
    subject::{Setup, Subject, bytes_below},
};
use crate::client::Batches;

const STREAMS: usize = 200;
const MIB: f64 = 1024.0 * 1024.0;

const AT_RISK: &str = "esker_entries_at_risk";
const PREDICTED: &str = "esker_predicted_restart_seconds";
const COUNT: &str = "esker_partition_store_snapshots_upload_total";

pub async fn measure(bench: &Bench) -> anyhow::Result<Section> {
    let (setup, store) = bench.place("sizes").await?;
    // The setup of a log that is kept for archived snapshots: nothing of it is deleted.
    let setup = setup.with([
        "partitions=1",
        "snapshots.snapshot-kind=incremental",
        "snapshots.num-retained=1",
        "snapshots.snapshot-interval=30days",
        "snapshots.recovery-budget=",
        "snapshots.max-log-bytes=64GiB",
        "log.purge-threshold=64GiB",
    ]);
    let batches = Batches::new(64, 1024, 51)?;
    let (mut server, _) = setup.start(&[]).await?;
    Streams::create(&server.url(), STREAMS).await?;
    let mut figures = Vec::new();
    let mut starts = Vec::new();
    let mut loaded = 0;
    for mib in [bench.size_mib / 64, bench.size_mib / 4, bench.size_mib] {
        let streams = Streams::open(&server.url(), STREAMS).await?;
        streams.append(&batches, loaded * 16..mib * 16).await?;
        loaded = mib;
        bench.run.note(format!("{mib} MiB appended"));
        server.settle(Duration::from_secs(60)).await;
        let resident = server.resident_mib()?.0;
        for cold in [false, true] {
            let (again, start) = restart(bench, &setup, server, cold).await?;
            server = again;
            let what = match cold {
                true => "cold",
                false => "warm",
            };
            let figure = Figure::plain(
                format!("start with a log of {:.2} GiB, {what}", start.log / 1024.0),
                format!("{:.2} s", start.seconds),
            );
            figures.push(figure.beside(format!(
                "predicted {:.2} s; {:.0} entries replayed; {}; resident {:.0} MiB before, {:.0} MiB after the start, {:.0} MiB at most",
                start.predicted, start.events, start.parts, resident, start.resident, start.highest
            )));
            starts.push(start);
        }
    }
    // Warm starts are at even indexes.
    for (offset, what) in [(0, "warm"), (1, "cold")] {
        let (small, large) = (&starts[offset], &starts[starts.len() - 2 + offset]);
        let rate = (large.log - small.log) / (large.seconds - small.seconds);
        figures.push(Figure::plain(
            format!("scan of the log, {what}: from the difference of the longest and the shortest"),
            format!("{rate:.0} MiB/s"),
        ));
    }
    server.kill();
    figures.extend(restores(bench, &setup, &store).await?);
    Ok(Section {
        title: "A long log, and the restore of a large partition".to_owned(),
        how: format!(
            "One partition, {STREAMS} streams, batches of 64 records of 1 KiB; no part of the log is \
             given up, as if it were kept for archived snapshots. *Cold*: the operating system's \
             cache was dropped. Then the partition is put to the store, the node is lost, and it is \
             restored with `--bootstrap restore`, beside `cp -r --reflink=never` of the restored \
             database and an fsync of each file; both cold, taking turns; medians of {} runs.",
            bench.run.runs
        ),
        figures,
        ..Section::default()
    })
}

struct Start {
    /// MiB.
    log: f64,
    seconds: f64,
    events: f64,
    /// Predicted seconds, before the first restart.
    predicted: f64,
    /// The parts of the time of the last restart.
    parts: String,
    /// MiB.
    resident: f64,
    highest: f64,
}

/// The median of several restarts.
async fn restart(
    bench: &Bench,
    setup: &Setup,
    mut server: Subject,
    cold: bool,
) -> anyhow::Result<(Subject, Start)> {
    let (mut took, mut events, mut parts) = (Vec::new(), Vec::new(), String::new());
    tokio::time::sleep(Duration::from_secs(2)).await;
    let predicted = server.metric(PREDICTED).await?;
    for _ in 0..bench.run.runs {
        server.end();
        if cold {
            drop_caches();
        }
        let (again, time) = setup.start(&[]).await?;
        server = again;
        let said = server.said()?;
        bench.run.note(format!(
            "cold {cold}: {:.2} s, {said:?}",
            time.as_secs_f64()
        ));
        took.push(time.as_secs_f64());
        events.push(said.events as f64);
        parts = said.parts();
    }
    let (resident, highest) = server.resident_mib()?;
    let start = Start {
        log: bytes_below(&setup.data.join("log"))? as f64 / MIB,
        seconds: median(&took),
        events: median(&events),
        predicted,
        parts,
        resident,
        highest,
    };
    Ok((server, start))
}

async fn restores(
    bench: &Bench,
    setup: &Setup,
    store: &S3Server<Objects>,
) -> anyhow::Result<Vec<Figure>> {
    let eager = setup.with(["snapshots.snapshot-interval=1s"]);
    let (server, _) = eager.start(&[]).await?;
    let began = Instant::now();
    server
        .wait(COUNT, Duration::from_secs(240), |count| count > 0.0)
        .await?;
    server
        .wait(AT_RISK, Duration::from_secs(240), |at_risk| at_risk == 0.0)
        .await?;
    bench.run.note(format!(
        "uploaded in {:.1} s; the store has {:?}",
        began.elapsed().as_secs_f64(),
        store.size()
    ));
    server.kill();
    let copy = setup.data.with_file_name("copy");
    let (mut ours, mut theirs, mut highest) = (Vec::new(), Vec::new(), 0.0_f64);
    let mut restored = 0.0;
    let saved = store.saved();
    for _ in 0..bench.run.runs {
        lose(&setup.data)?;
        // Each of them is the first restore of this snapshot.
        store.back_to(&saved);
        drop_caches();
        let (server, time) = setup.start(&["--bootstrap", "restore"]).await?;
        ours.push(time.as_secs_f64());
        highest = highest.max(server.resident_mib()?.1);
        bench.run.note(format!(
            "restore: {:.2} s, {:?}",
            time.as_secs_f64(),
            server.said()?
        ));
        server.kill();
        let database = setup.data.join("db");
        restored = bytes_below(&database)? as f64 / MIB;
        drop_caches();
        let took = copied(&database, &copy)?;
        bench.run.note(format!("cp and fsync: {took:.2} s"));
        theirs.push(took);
        std::fs::remove_dir_all(&copy)?;
    }
    let (ours, theirs) = (median(&ours), median(&theirs));
    Ok(vec![
        Figure::plain(
            format!("restore of {:.2} GiB to serving, cold", restored / 1024.0),
            format!("{ours:.2} s, {:.2}x", ours / theirs),
        )
        .beside(format!("cp and fsync: {theirs:.2} s"))
        .target("≤ 2x", ours / theirs <= 2.0),
        Figure::plain("restore: most resident memory", format!("{highest:.0} MiB")),
    ])
}

fn copied(from: &Path, to: &Path) -> anyhow::Result<f64> {
    let began = Instant::now();
    let status = Command::new("cp")
        .args(["-r", "--reflink=never"])
        .arg(from)
        .arg(to)
        .status()?;
    ensure!(status.success(), "cp failed");
    for entry in std::fs::read_dir(to)? {
        File::open(entry?.path())?.sync_all()?;
    }
    Ok(began.elapsed().as_secs_f64())
}
