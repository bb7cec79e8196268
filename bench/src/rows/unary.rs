//! Unary appends of single 100-byte records: the cost of a request that waits for its answer.
//!
//! One client shows the latency of the whole path, from request to durable answer. Many clients, each with
//! its own connection and stream, show how well the server shares one sync among them.

use std::time::{Duration, Instant};

use anyhow::Context;
use futures::future::try_join_all;

use super::{BASIN, Load, per_second};
use crate::{
    client::{Batches, Connection, Stream},
    targets::{Metric, Reading},
};
use bench_harness::{disk, stats::Latencies};

/// Bytes in the body of each record.
const BODY_BYTES: usize = 100;

/// The longest that the disk probe takes on a slow disk.
const DISK_AT_MOST: Duration = Duration::from_secs(3);

/// One client, a fixed number of appends.
pub async fn one(load: &Load<'_>) -> anyhow::Result<Vec<Reading>> {
    let (directory, syncs) = (load.scratch.clone(), load.sizes.disk_syncs);
    let disk_ms = tokio::task::spawn_blocking(move || {
        disk::fdatasync_p50_ms(&directory, syncs, DISK_AT_MOST)
    })
    .await??;

    let batches = Batches::new(1, BODY_BYTES, load.seed)?;
    let stream = new_stream(load, "one").await?;
    let warm_until = Instant::now() + load.sizes.warm_up;
    append_until(&stream, &batches, usize::MAX, warm_until).await?;

    let deadline = Instant::now() + load.sizes.one_at_most;
    let latencies = append_until(&stream, &batches, load.sizes.one_appends, deadline).await?;
    let sorted = latencies.sorted().context("no append was made")?;
    Ok(vec![
        Reading::new(Metric::OneP50, sorted.percentile_ms(50.0)),
        Reading::new(Metric::OneP99, sorted.percentile_ms(99.0)),
        Reading::new(Metric::DiskSync, disk_ms),
    ])
}

/// Many clients, for a fixed time.
pub async fn many(load: &Load<'_>) -> anyhow::Result<Vec<Reading>> {
    let batches = Batches::new(1, BODY_BYTES, load.seed)?;
    let names = (0..load.sizes.many_clients).map(|client| format!("many-{client}"));
    let streams = try_join_all(names.map(|name| async move { new_stream(load, &name).await }));
    let streams = streams.await?;

    let warm_until = Instant::now() + load.sizes.warm_up;
    let deadline = warm_until + load.sizes.duration;
    let batches = &batches;
    let clients = streams.iter().map(|stream| async move {
        append_until(stream, batches, usize::MAX, warm_until).await?;
        append_until(stream, batches, usize::MAX, deadline).await
    });
    let mut all = Latencies::default();
    for latencies in try_join_all(clients).await? {
        all.merge(latencies);
    }
    let rate = per_second(all.len() as f64, load.sizes.duration);
    let sorted = all.sorted().context("no append was made")?;
    Ok(vec![
        Reading::new(Metric::ManyRate, rate),
        Reading::new(Metric::ManyP50, sorted.percentile_ms(50.0)),
    ])
}

async fn new_stream(load: &Load<'_>, name: &str) -> anyhow::Result<Stream> {
    let connection = Connection::open(load.client, &load.server.url(), BASIN).await?;
    connection.create_stream(name).await?;
    connection.stream(name)
}

/// Appends one batch after the other until `count` are done or `deadline` has passed. The append that is
/// under way at that time is awaited and not counted.
async fn append_until(
    stream: &Stream,
    batches: &Batches,
    count: usize,
    deadline: Instant,
) -> anyhow::Result<Latencies> {
    let mut latencies = Latencies::default();
    while latencies.len() < count {
        let before = Instant::now();
        stream.append(batches.at(latencies.len())).await?;
        let after = Instant::now();
        if after > deadline {
            break;
        }
        latencies.push(after - before);
    }
    Ok(latencies)
}
