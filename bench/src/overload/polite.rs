//! One polite client, which appends a small record and waits for the answer, alone and while others flood.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use bench_harness::stats::{Latencies, SortedLatencies};
use tokio::task::JoinSet;

use super::{Outcome, connect, serve};
use crate::client::{Batches, Stream};
use crate::recovery::subject::Setup;

/// Clients that flood, each with a connection of its own.
const FLOODERS: usize = 64;
/// Appends that each has under way.
const UNDER_WAY: usize = 8;
/// Records of an append of a flooder: 64 of 1 KiB.
const FLOOD_RECORDS: usize = 64;
/// The target: p99 during the flood over p99 alone.
const MAX_RATIO: f64 = 5.0;
/// Time of the flood before the polite client begins.
const WARM_UP: Duration = Duration::from_secs(3);

pub(super) async fn measure(setup: &Setup, seconds: u64) -> anyhow::Result<Vec<Outcome>> {
    let server = serve(setup).await?;
    let duration = Duration::from_secs(seconds);
    let connection = connect(&server).await?;
    connection.create_stream("polite").await?;
    connection.create_stream("flood").await?;
    let polite = connection.stream("polite")?;
    let small = Batches::new(1, 100, 1)?;
    append_for(&polite, &small, WARM_UP).await?;
    let alone = append_for(&polite, &small, duration).await?;

    let ends = Arc::new(AtomicBool::new(false));
    let bytes = Arc::new(AtomicU64::new(0));
    let batches = Arc::new(Batches::new(FLOOD_RECORDS, 1000, 2)?);
    let mut flood = JoinSet::new();
    for _ in 0..FLOODERS {
        let stream = Arc::new(connect(&server).await?.stream("flood")?);
        for turn in 0..UNDER_WAY {
            let (stream, batches) = (stream.clone(), batches.clone());
            let (ends, bytes) = (ends.clone(), bytes.clone());
            flood.spawn(async move {
                while !ends.load(Ordering::Relaxed) {
                    // One that is refused comes again, as a flooder's does.
                    if stream.append(batches.at(turn)).await.is_ok() {
                        bytes.fetch_add((FLOOD_RECORDS * 1000) as u64, Ordering::Relaxed);
                    }
                }
            });
        }
    }
    tokio::time::sleep(WARM_UP).await;
    let before = bytes.load(Ordering::Relaxed);
    let begun = Instant::now();
    let during = append_for(&polite, &small, duration).await?;
    let flooded = bytes.load(Ordering::Relaxed) - before;
    let rate = flooded as f64 / begun.elapsed().as_secs_f64() / f64::from(1 << 20);
    ends.store(true, Ordering::Relaxed);
    while flood.join_next().await.is_some() {}

    let p99 = |latencies: &SortedLatencies| latencies.percentile_ms(99.0);
    let ratio = p99(&during) / p99(&alone);
    Ok(vec![
        Outcome::plain(format!(
            "polite client alone: p50 {:.1} ms, p99 {:.1} ms",
            alone.percentile_ms(50.0),
            p99(&alone)
        )),
        Outcome::plain(format!(
            "while {FLOODERS} others flood at {rate:.0} MiB/s: p50 {:.1} ms, p99 {:.1} ms",
            during.percentile_ms(50.0),
            p99(&during)
        )),
        Outcome {
            what: format!("p99 during the flood over p99 alone: {ratio:.2}"),
            target: format!("at most {MAX_RATIO}"),
            met: ratio <= MAX_RATIO,
        },
    ])
}

/// Appends one after the other for some time.
async fn append_for(
    stream: &Stream,
    batches: &Batches,
    duration: Duration,
) -> anyhow::Result<SortedLatencies> {
    let mut latencies = Latencies::default();
    let deadline = Instant::now() + duration;
    while Instant::now() < deadline {
        let before = Instant::now();
        stream.append(batches.at(latencies.len())).await?;
        latencies.push(before.elapsed());
    }
    latencies.sorted().context("no append was made")
}
