//! Catch-up reads: MiB/s of record bodies, read from the first record to the last.
//!
//! Once from one long stream that was written without interruption, and once from streams that were written
//! interleaved with many others, where the layout of a store matters. Of the interleaved ones, some are read
//! completely, one after the other on one connection, so that the cost of the start of a read counts, too.

use std::time::{Duration, Instant};

use super::{
    BASIN, Load,
    load::{self, Streams},
    mib_per_second,
};
use crate::{
    client::{Batches, Connection},
    targets::{Metric, Reading},
};

/// Bytes in the body of each record.
const BODY_BYTES: usize = 1024;

/// Records in a batch of the long stream: half a MiB.
const LONG_BATCH_RECORDS: usize = 500;

/// Records in a batch of an interleaved stream: small enough for the streams to be interleaved, with some 16
/// batches in each.
const INTERLEAVED_BATCH_RECORDS: usize = 16;

/// Measures both kinds of reads.
pub async fn measure(load: &Load<'_>) -> anyhow::Result<Vec<Reading>> {
    Ok(vec![
        Reading::new(Metric::CatchUpOne, one(load).await?),
        Reading::new(Metric::CatchUpInterleaved, interleaved(load).await?),
    ])
}

async fn one(load: &Load<'_>) -> anyhow::Result<f64> {
    let url = load.server.url();
    let batches = Batches::new(LONG_BATCH_RECORDS, BODY_BYTES, load.seed)?;
    let count = load.sizes.catch_up_bytes / (LONG_BATCH_RECORDS * BODY_BYTES);
    load::one_stream(&url, "long", &batches, count).await?;
    load.server.settle(load.sizes.settle).await;

    let connection = Connection::open(load.client, &url, BASIN).await?;
    let stream = connection.stream("long")?;
    // The SDK connects with its first request, which is not to be the measured one.
    stream.read(0, 1).await?;
    let before = Instant::now();
    let totals = stream.read(0, (count * LONG_BATCH_RECORDS) as u64).await?;
    Ok(mib_per_second(totals.body_bytes, before.elapsed()))
}

async fn interleaved(load: &Load<'_>) -> anyhow::Result<f64> {
    let url = load.server.url();
    let sizes = load.sizes;
    let batches = Batches::new(INTERLEAVED_BATCH_RECORDS, BODY_BYTES, load.seed)?;
    let streams = Streams {
        url: &url,
        prefix: "interleaved",
        count: sizes.catch_up_streams,
    };
    streams.create().await?;
    let round_bytes = sizes.catch_up_streams * INTERLEAVED_BATCH_RECORDS * BODY_BYTES;
    let rounds = sizes.catch_up_bytes.div_ceil(round_bytes);
    for round in 0..rounds {
        streams.append_round(&batches, round).await?;
    }
    load.server.settle(sizes.settle).await;

    let connection = Connection::open(load.client, &url, BASIN).await?;
    let mut bytes = 0;
    let mut elapsed = Duration::ZERO;
    for read in 0..sizes.catch_up_reads {
        let index = read * sizes.catch_up_streams / sizes.catch_up_reads;
        let stream = connection.stream(&streams.name(index))?;
        if read == 0 {
            stream.read(0, 1).await?;
        }
        let before = Instant::now();
        let records = (rounds * INTERLEAVED_BATCH_RECORDS) as u64;
        bytes += stream.read(0, records).await?.body_bytes;
        elapsed += before.elapsed();
    }
    Ok(mib_per_second(bytes, elapsed))
}
