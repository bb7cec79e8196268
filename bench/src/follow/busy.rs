//! Snapshots of a stream to which others append.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::ensure;
use esker_follow::folds::Count;
use esker_follow::{Follower, S2Endpoint};
use s2_sdk::S2Stream;
use s2_sdk::types::{AppendInput, AppendRecord, AppendRecordBatch};

use super::{BASIN, Bench, Operation, Step, config, create, load, order, step};
use bench_harness::page::{Figure, Section};
use bench_harness::stats::{Latencies, median_or_zero as median};

/// Appends per second by others.
const RATE: u32 = 200;
/// Length of a phase.
const PHASE: Duration = Duration::from_secs(8);
/// Snapshots that are requested while eight writers append.
const SNAPSHOTS: usize = 50;

pub async fn measure(bench: &Bench) -> anyhow::Result<Section> {
    let server = bench.serve("busy").await?;
    let mut figures = Vec::new();

    // Others' appends while a large snapshot is written.
    let stream = create(&server, "orders").await?;
    load(&stream, 0..10_000, 100).await?;
    let bytes: u64 = if bench.run.quick { 8 << 20 } else { 256 << 20 };
    let (mut alone, mut beside) = (Vec::new(), Vec::new());
    let mut taken = 0;
    for _ in 0..bench.run.runs {
        // Compactions of earlier data are not measured.
        server.settle(Duration::from_secs(20)).await;
        alone.push(others(&stream, async |_| Ok(())).await?);
        let snapshots = others(&stream, async |until: Instant| {
            while Instant::now() < until {
                let one = Step {
                    bytes,
                    ..step(Operation::Snapshot, &server, "orders")
                };
                one.run().await?;
                taken += 1;
            }
            Ok(())
        });
        beside.push(snapshots.await?);
        bench
            .run
            .note(format!("p99 alone {alone:.1?}, beside {beside:.1?}"));
    }
    let (quiet, busy) = (median(&alone), median(&beside));
    figures.push(
        Figure::plain(
            "other writers' append p99 meanwhile",
            format!("{busy:.2} ms, {:.2}x", busy / quiet),
        )
        .beside(format!(
            "without: {quiet:.2} ms; {taken} snapshots of {} MiB",
            bytes >> 20
        ))
        .target("≤ 2x", busy <= 2.0 * quiet),
    );

    // A follower that takes snapshots, against writers at full speed.
    let stream = create(&server, "busy").await?;
    load(&stream, 0..10_000, 100).await?;
    let endpoint = S2Endpoint::new(config(&server.url())?, BASIN.parse()?, "busy".parse()?)?;
    let follower = Follower::builder(endpoint.clone(), Count::by("/id")?).in_stream();
    let follower = follower.open().await?;
    follower.caught_up().await?;
    let stop = Arc::new(AtomicBool::new(false));
    let count = Arc::new(AtomicU64::new(10_000));
    let writers: Vec<_> = (0..8)
        .map(|_| {
            let (stream, stop, count) = (stream.clone(), stop.clone(), count.clone());
            tokio::spawn(async move {
                while !stop.load(Ordering::Relaxed) {
                    let n = count.fetch_add(1, Ordering::Relaxed);
                    append(&stream, &order(n, 100)).await?;
                }
                anyhow::Ok(())
            })
        })
        .collect();
    let (mut slowest, mut anchored) = (Duration::ZERO, 0);
    let begun = Instant::now();
    for _ in 0..SNAPSHOTS {
        let asked = Instant::now();
        let taken = follower.snapshot().await?;
        slowest = slowest.max(asked.elapsed());
        anchored += usize::from(taken.anchored);
    }
    let took = begun.elapsed().as_secs_f64();
    stop.store(true, Ordering::Relaxed);
    for writer in writers {
        writer.await??;
    }
    let appended = count.load(Ordering::Relaxed);
    drop(follower);
    let follower = Follower::builder(endpoint, Count::by("/id")?)
        .in_stream()
        .open()
        .await?;
    follower.caught_up().await?;
    let counted: u64 = follower
        .view()
        .await?
        .state
        .iter()
        .map(|(_, count)| count)
        .sum();
    ensure!(
        counted == appended,
        "{counted} records were counted of {appended}"
    );
    let slowest = slowest.as_secs_f64();
    figures.push(
        Figure::plain(
            format!("{SNAPSHOTS} snapshots against 8 writers at full speed: the slowest"),
            format!("{slowest:.3} s"),
        )
        .beside(format!(
            "{anchored} of them anchored; {:.0} appends in a second meanwhile",
            (appended - 10_000) as f64 / took
        ))
        .target("≤ 2 s, always", slowest <= 2.0),
    );
    Ok(Section {
        title: "Snapshots of a busy stream".to_owned(),
        how: format!(
            "First: {RATE} unary appends a second of one record of 100 bytes to a stream, sent whether or not \
             those before have been answered, in phases of {} s, with and without framed snapshots into the \
             same stream, one after the other; medians of the phases' p99. Second: 8 writers that append one \
             record after the other, and a follower that is asked for a snapshot again and again; afterwards \
             what it restored and counted is compared with what was appended.",
            PHASE.as_secs()
        ),
        figures,
        ..Section::default()
    })
}

async fn append(stream: &S2Stream, body: &str) -> anyhow::Result<()> {
    let batch = AppendRecordBatch::try_from_iter([AppendRecord::new(body.to_owned())?])?;
    stream.append(AppendInput::new(batch)).await?;
    Ok(())
}

/// The p99 of appends at a steady rate, in milliseconds, during other work.
async fn others(
    stream: &S2Stream,
    mut meanwhile: impl AsyncFnMut(Instant) -> anyhow::Result<()>,
) -> anyhow::Result<f64> {
    let until = Instant::now() + PHASE;
    let appends = async {
        let mut ticks = tokio::time::interval(Duration::from_secs(1) / RATE);
        let mut running = tokio::task::JoinSet::new();
        let mut n = 0;
        while Instant::now() < until {
            let due = ticks.tick().await;
            n += 1;
            let stream = stream.clone();
            running.spawn(async move {
                append(&stream, &order(n, 100)).await?;
                anyhow::Ok(due.elapsed())
            });
        }
        let mut latencies = Latencies::default();
        while let Some(took) = running.join_next().await {
            latencies.push(took??);
        }
        anyhow::Ok(latencies)
    };
    let (latencies, done) = tokio::join!(appends, meanwhile(until));
    done?;
    let sorted = latencies?
        .sorted()
        .ok_or_else(|| anyhow::anyhow!("no append"))?;
    Ok(sorted.percentile_ms(99.0))
}
