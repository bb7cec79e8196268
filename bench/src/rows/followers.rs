//! Followers of one stream that is written as fast as it is acknowledged: the age of records when they
//! arrive, with one follower and with several.
//!
//! One append session writes 8 KiB records, as `s2 bench` does; each follower has its own connection and read
//! session. The age of a record is the time from the submission of its batch to the arrival of the batch in
//! which it was read, so it includes the time of the append.

use std::{cell::RefCell, time::Duration, time::Instant};

use anyhow::Context;
use futures::future::try_join_all;

use super::{BASIN, Load, mib_per_second};
use crate::{
    client::{Batches, Connection},
    targets::{Metric, Reading},
};
use bench_harness::stats::Latencies;

/// Records in each batch: half a MiB.
const BATCH_RECORDS: usize = 64;

/// Bytes in the body of each record; metered, it has 8 KiB.
const BODY_BYTES: usize = 8 * 1024 - 8;

/// Unacknowledged batches: 5 MiB, the default of the SDK.
const IN_FLIGHT: usize = 10;

/// Time limit for followers to get all records after the last append is acknowledged.
const CATCH_UP_AT_MOST: Duration = Duration::from_secs(60);

/// Measures the ages with one follower, then with several.
pub async fn measure(load: &Load<'_>) -> anyhow::Result<Vec<Reading>> {
    let (p99, rate) = run(load, "follower", 1).await?;
    let (several_p99, several_rate) = run(load, "followers", load.sizes.followers).await?;
    Ok(vec![
        Reading::new(Metric::FollowerP99, p99),
        Reading::new(Metric::FollowerWrite, rate),
        Reading::new(Metric::FollowersP99, several_p99),
        Reading::new(Metric::FollowersWrite, several_rate),
    ])
}

/// The 99th percentile of all ages in milliseconds, and the MiB that were appended in a second.
async fn run(load: &Load<'_>, name: &str, followers: usize) -> anyhow::Result<(f64, f64)> {
    let url = load.server.url();
    let batches = Batches::new(BATCH_RECORDS, BODY_BYTES, load.seed)?;
    let open = || Connection::open(load.client, &url, BASIN);
    let appender = open().await?;
    appender.create_stream(name).await?;
    let appended = appender.stream(name)?;
    let readers = try_join_all((0..followers).map(|_| open())).await?;
    let followed = readers.iter().map(|reader| reader.stream(name));
    let followed = followed.collect::<anyhow::Result<Vec<_>>>()?;

    let until = Instant::now() + load.sizes.duration;
    // The time of submission of each batch, and the number of records once that is known.
    let submitted = RefCell::new(Vec::<Instant>::new());
    let total = RefCell::new(None);
    let ages = RefCell::new(Latencies::default());
    let append = async {
        let go_on = |_| {
            let now = Instant::now();
            if now < until {
                submitted.borrow_mut().push(now);
            }
            now < until
        };
        let began = Instant::now();
        appended
            .append_session(&batches, IN_FLIGHT, go_on, |_| ())
            .await?;
        let records = submitted.borrow().len() * BATCH_RECORDS;
        *total.borrow_mut() = Some(records as u64);
        anyhow::Ok(mib_per_second(
            (records * BODY_BYTES) as u64,
            began.elapsed(),
        ))
    };
    let follow = followed.iter().map(|stream| {
        let mut seen = 0;
        let (submitted, total, ages) = (&submitted, &total, &ages);
        stream.follow(move |records| {
            let now = Instant::now();
            for record in seen..records {
                let batch = record as usize / BATCH_RECORDS;
                ages.borrow_mut().push(now - submitted.borrow()[batch]);
            }
            seen = records;
            total.borrow().is_none_or(|total| records < total)
        })
    });
    let limit = load.sizes.duration + CATCH_UP_AT_MOST;
    let both = async { tokio::try_join!(append, try_join_all(follow)) };
    let (rate, _) = tokio::time::timeout(limit, both)
        .await
        .context("the followers did not catch up")??;
    let ages = ages.into_inner().sorted().context("nothing was followed")?;
    Ok((ages.percentile_ms(99.0), rate))
}
