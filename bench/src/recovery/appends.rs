//! Appends at a fixed rate, with and without continuous snapshots and uploads.

use std::{sync::Arc, time::Duration};

use bench_harness::page::{Figure, Section};
use bench_harness::stats::median_or_zero as median;
use testkit_s3::{S3Server, objects::Objects};

use super::{Bench, load::Streams, subject::Setup};
use crate::client::Batches;

const STREAMS: usize = 100;
/// Appends per second: a moderate part of the capacity of two cores.
const RATE: usize = 400;

const COUNT: &str = "esker_partition_store_snapshots_upload_total";
const BYTES: &str = "esker_partition_store_snapshots_upload_bytes_total";

/// The kind of snapshots of a phase.
#[derive(Clone, Copy, PartialEq)]
enum Snapshots {
    None,
    Incremental,
    Full,
}

pub async fn measure(bench: &Bench) -> anyhow::Result<Section> {
    let mib = if bench.run.quick { 64 } else { 1024 };
    let phase = Duration::from_secs(if bench.run.quick { 3 } else { 15 });
    let large = Batches::new(64, 1024, 21)?;
    let small = Arc::new(Batches::new(1, 256, 22)?);
    // Incremental snapshots share nothing with full ones, so each kind has a partition and a store of its own.
    let (incremental, _store) = place(bench, "incremental", &large, mib).await?;
    let (full, _other_store) = place(bench, "full", &large, mib).await?;

    let kinds = [Snapshots::None, Snapshots::Incremental, Snapshots::Full];
    let mut p50 = [vec![], vec![], vec![]];
    let mut p99 = [vec![], vec![], vec![]];
    let mut made = [0.0; 3];
    let mut uploaded = [0.0; 3];
    for round in 0..bench.run.runs {
        for turn in 0..kinds.len() {
            let which = (turn + round) % kinds.len();
            let setup = match kinds[which] {
                Snapshots::None => incremental.clone(),
                Snapshots::Incremental => incremental.with(["snapshots.snapshot-interval=100ms"]),
                Snapshots::Full => full.with(["snapshots.snapshot-interval=100ms"]),
            };
            let (server, _) = setup.start(&[]).await?;
            let streams = Streams::open(&server.url(), STREAMS).await?;
            // Warms up, and waits for the snapshot that the phases before made due.
            streams
                .at_a_rate(&small, RATE, Duration::from_secs(5))
                .await?;
            let before = (server.metric(COUNT).await?, server.metric(BYTES).await?);
            let taken = streams.at_a_rate(&small, RATE, phase).await?;
            made[which] += server.metric(COUNT).await? - before.0;
            uploaded[which] += server.metric(BYTES).await? - before.1;
            let samples = taken.len();
            if let Some(taken) = taken.sorted() {
                p50[which].push(taken.percentile_ms(50.0));
                p99[which].push(taken.percentile_ms(99.0));
                bench.run.note(format!(
                    "phase {which}: {samples} appends, p50 {:.2} ms, p99 {:.2} ms, max {:.1} ms",
                    taken.percentile_ms(50.0),
                    taken.percentile_ms(99.0),
                    taken.percentile_ms(100.0)
                ));
            }
            server.kill();
        }
    }
    let off = median(&p99[0]);
    let seconds = phase.as_secs_f64() * bench.run.runs as f64;
    let rate = |which: usize| {
        format!(
            "{:.1} snapshots and {:.0} MiB uploaded in a second",
            made[which] / seconds,
            uploaded[which] / seconds / 1024.0 / 1024.0
        )
    };
    let ms = |value: f64| format!("{value:.2} ms");
    let figures = vec![
        Figure::plain("without snapshots: p50", ms(median(&p50[0]))),
        Figure::plain("without snapshots: p99", ms(off)),
        Figure::plain(
            "incremental ones, one after the other: p50",
            ms(median(&p50[1])),
        )
        .beside(rate(1)),
        Figure::plain(
            "incremental ones: p99",
            format!("{}, {:.2}x", ms(median(&p99[1])), median(&p99[1]) / off),
        )
        .target("≤ 1.5x", median(&p99[1]) / off <= 1.5),
        Figure::plain("full ones, one after the other: p50", ms(median(&p50[2]))).beside(rate(2)),
        Figure::plain(
            "full ones: p99",
            format!("{}, {:.2}x", ms(median(&p99[2])), median(&p99[2]) / off),
        )
        .target("≤ 2x", median(&p99[2]) / off <= 2.0),
    ];
    Ok(Section {
        title: "Appends while snapshots are made and uploaded".to_owned(),
        how: format!(
            "A partition of {mib} MiB for each kind of snapshots; {RATE} unary appends of one record of 256 bytes a second, \
             sent whether or not those before have been answered, over four connections to \
             {STREAMS} streams. Phases of {} s take turns, {} of each; medians of the phases' \
             percentiles. In phases with snapshots the interval is 100 ms, so that they follow each \
             other: with incremental ones nearly all of the time is checkpoints, with full ones the \
             upload of the whole partition. The store, which takes what is uploaded, uses the same \
             two cores and the same disk, with a lower priority than the server. What an upload has \
             sent counts once its snapshot is complete.",
            phase.as_secs(),
            bench.run.runs
        ),
        figures,
        ..Section::default()
    })
}

/// A partition of so many MiB, which is in a store of its own.
async fn place(
    bench: &Bench,
    kind: &str,
    large: &Batches,
    mib: usize,
) -> anyhow::Result<(Setup, S3Server<Objects>)> {
    let name = format!("appends-{kind}");
    let (setup, store) = bench.place_with_yielding_store(&name).await?;
    let setup = setup.with([
        "partitions=1",
        "snapshots.num-retained=3",
        "snapshots.recovery-budget=",
        "snapshots.snapshot-interval=1h",
        &format!("snapshots.snapshot-kind={kind}"),
    ]);
    let loading = setup.with(["snapshots.snapshot-interval=5s"]);
    let (server, _) = loading.start(&[]).await?;
    let streams = Streams::create(&server.url(), STREAMS).await?;
    streams.append(large, 0..mib * 16).await?;
    // Otherwise the first phase with incremental snapshots would upload the whole partition.
    let loaded = (mib << 20) as f64;
    server
        .wait(BYTES, Duration::from_secs(300), |bytes| bytes >= loaded)
        .await?;
    server.settle(Duration::from_secs(30)).await;
    server.kill();
    Ok((setup, store))
}
