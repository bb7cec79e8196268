//! Catch-up reads: MiB/s of record bodies, read from the first record to the last.
//!
//! Once from one long stream that was written without interruption, and once from streams that were written
//! interleaved with many others, where the layout of a store matters. Of the interleaved ones, some are read
//! completely, one after the other on one connection, so that the cost of the start of a read counts, too. They
//! are read once more when the server has been started again and the operating system's cache is empty.

use std::time::{Duration, Instant};

use bench_harness::machine;

use super::{
    BASIN, Load,
    load::{self, Streams},
    mib_per_second,
};
use crate::{
    client::{Batches, Connection, Kind},
    sizes::Sizes,
    targets::{Metric, Reading},
};

/// Bytes in the body of each record.
const BODY_BYTES: usize = 1024;

/// Records in a batch of the long stream: half a MiB.
const LONG_BATCH_RECORDS: usize = 500;

/// Records in a batch of an interleaved stream: small enough for the streams to be interleaved, with some 16
/// batches in each.
const INTERLEAVED_BATCH_RECORDS: usize = 16;

/// Measures the reads of a server that has just written the streams.
pub async fn measure(load: &Load<'_>) -> anyhow::Result<Vec<Reading>> {
    let [wire, sdk] = one(load).await?;
    Ok(vec![
        Reading::new(Metric::CatchUpOne, wire),
        Reading::new(Metric::CatchUpOneSdk, sdk),
        Reading::new(Metric::CatchUpInterleaved, interleaved(load).await?),
    ])
}

/// Measures the reads of a server that has just been started on these streams, with cold caches.
pub async fn measure_cold(load: &Load<'_>) -> anyhow::Result<Vec<Reading>> {
    load.server.settle(load.sizes.settle).await;
    if !machine::drop_caches() {
        // The operating system permits that to root alone.
        return Ok(Vec::new());
    }
    let rate = read_interleaved(load, &streams(load, &load.server.url())).await?;
    Ok(vec![Reading::new(Metric::CatchUpCold, rate)])
}

/// Reads one stream with the row's client, and with the SDK.
async fn one(load: &Load<'_>) -> anyhow::Result<[f64; 2]> {
    let url = load.server.url();
    let batches = Batches::new(LONG_BATCH_RECORDS, BODY_BYTES, load.seed)?;
    let count = load.sizes.catch_up_bytes / (LONG_BATCH_RECORDS * BODY_BYTES);
    load::one_stream(&url, "long", &batches, count).await?;
    load.server.settle(load.sizes.settle).await;

    let mut rates = [0.0; 2];
    for (rate, client) in rates.iter_mut().zip([load.client, Kind::Sdk]) {
        let connection = Connection::open(client, &url, BASIN).await?;
        let stream = connection.stream("long")?;
        // The SDK connects with its first request, which is not to be the measured one.
        stream.read(0, 1).await?;
        let before = Instant::now();
        let totals = stream.read(0, (count * LONG_BATCH_RECORDS) as u64).await?;
        *rate = mib_per_second(totals.body_bytes, before.elapsed());
    }
    Ok(rates)
}

async fn interleaved(load: &Load<'_>) -> anyhow::Result<f64> {
    let url = load.server.url();
    let batches = Batches::new(INTERLEAVED_BATCH_RECORDS, BODY_BYTES, load.seed)?;
    let streams = streams(load, &url);
    streams.create().await?;
    for round in 0..rounds(load.sizes) {
        streams.append_round(&batches, round).await?;
    }
    load.server.settle(load.sizes.settle).await;
    read_interleaved(load, &streams).await
}

fn streams<'a>(load: &Load<'_>, url: &'a str) -> Streams<'a> {
    Streams {
        url,
        prefix: "interleaved",
        count: load.sizes.catch_up_streams,
    }
}

/// Batches of each interleaved stream.
fn rounds(sizes: &Sizes) -> usize {
    let round_bytes = sizes.catch_up_streams * INTERLEAVED_BATCH_RECORDS * BODY_BYTES;
    sizes.catch_up_bytes.div_ceil(round_bytes)
}

async fn read_interleaved(load: &Load<'_>, streams: &Streams<'_>) -> anyhow::Result<f64> {
    let sizes = load.sizes;
    let connection = Connection::open(load.client, streams.url, BASIN).await?;
    let mut bytes = 0;
    let mut elapsed = Duration::ZERO;
    for read in 0..sizes.catch_up_reads {
        let index = read * sizes.catch_up_streams / sizes.catch_up_reads;
        let stream = connection.stream(&streams.name(index))?;
        if read == 0 {
            stream.read(0, 1).await?;
        }
        let before = Instant::now();
        let records = (rounds(sizes) * INTERLEAVED_BATCH_RECORDS) as u64;
        bytes += stream.read(0, records).await?.body_bytes;
        elapsed += before.elapsed();
    }
    Ok(mib_per_second(bytes, elapsed))
}
