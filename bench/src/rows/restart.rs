//! Restart after SIGKILL with millions of records: from the start of the process to service.
//!
//! The server is killed right after its last acknowledgement, without warning, and started again on the same
//! directory. It serves when it is healthy, answers a request for a tail with everything that was
//! acknowledged, and delivers the last record. Between two restarts every stream gets some more records, so
//! that no restart finds a log that was just cleaned up by the one before. The figure is that of the slowest
//! restart. Afterwards, outside the measured time, the tails of all streams are compared with what was
//! acknowledged.
//!
//! The operating system's cache stays warm: the machine is not restarted, the process is.

use std::{
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Context, ensure};
use futures::{StreamExt, TryStreamExt, stream};

use super::{BASIN, load::Streams};
use crate::sizes::Sizes;
use crate::{
    client::{self, Batches, Connection, Kind},
    process::{Program, Server},
    progress::Progress,
    targets::{Metric, Reading},
};

/// Bytes in the body of each record.
const BODY_BYTES: usize = 100;

/// Records in a batch while loading: as many as the API allows.
const BATCH_RECORDS: usize = 1000;

/// Records that each stream gets between two restarts.
const RECORDS_BETWEEN: usize = 100;

/// Time limit of one start.
const READY_AT_MOST: Duration = Duration::from_secs(120);

/// Concurrent checks of tails.
const CHECKS: usize = 16;

/// Measures restarts of `program` in the new directory `data`.
///
/// # Errors
///
/// If a load fails, the server does not come back, or it has lost anything.
pub async fn measure(
    program: &Program,
    data: &Path,
    sizes: &Sizes,
    seed: u64,
    progress: &Progress,
) -> anyhow::Result<Vec<Reading>> {
    let mut server = program.start(data, testkit::ports::free_port()?)?;
    server.ready(READY_AT_MOST).await?;
    client::create_basin(&server.url(), BASIN).await?;
    streams(&server.url(), sizes).create().await?;

    let full = Batches::new(BATCH_RECORDS, BODY_BYTES, seed)?;
    let some = Batches::new(RECORDS_BETWEEN, BODY_BYTES, seed + 1)?;
    let rounds = sizes
        .restart_records
        .div_ceil(BATCH_RECORDS * sizes.restart_streams);
    let mut records_each = 0;
    let mut readings = Vec::new();
    for (part, metric) in [Metric::Restart, Metric::RestartTwice]
        .into_iter()
        .enumerate()
    {
        let before = Instant::now();
        for round in 0..rounds {
            let label = metric.label(sizes);
            progress.doing(format!("{label}: loading round {} of {rounds}", round + 1));
            let turn = part * rounds + round;
            streams(&server.url(), sizes)
                .append_round(&full, turn)
                .await?;
            records_each += BATCH_RECORDS;
        }
        progress.note(&format!(
            "loaded {} records in {:.1} s",
            rounds * BATCH_RECORDS * sizes.restart_streams,
            before.elapsed().as_secs_f64()
        ));
        let mut slowest = Duration::ZERO;
        for turn in 0..sizes.restarts {
            streams(&server.url(), sizes)
                .append_round(&some, turn)
                .await?;
            records_each += RECORDS_BETWEEN;
            server.kill();
            let took;
            (server, took) = restart(program, data, sizes, records_each as u64).await?;
            progress.note(&format!(
                "restart {} took {:.3} s",
                turn + 1,
                took.as_secs_f64()
            ));
            slowest = slowest.max(took);
            check_tails(&server, sizes, records_each as u64).await?;
        }
        readings.push(Reading::new(metric, slowest.as_secs_f64()));
    }
    Ok(readings)
}

fn streams<'a>(url: &'a str, sizes: &Sizes) -> Streams<'a> {
    Streams {
        url,
        prefix: "restart",
        count: sizes.restart_streams,
    }
}

/// Starts the server and waits until it serves what was acknowledged; returns how long that took.
async fn restart(
    program: &Program,
    data: &Path,
    sizes: &Sizes,
    records_each: u64,
) -> anyhow::Result<(Server, Duration)> {
    let mut server = program.start(data, testkit::ports::free_port()?)?;
    server.ready(READY_AT_MOST).await?;
    let url = server.url();
    let name = streams(&url, sizes).name(sizes.restart_streams / 2);
    let connection = Connection::open(Kind::Wire, &url, BASIN).await?;
    let stream = connection.stream(&name)?;
    let tail = stream.tail().await?;
    ensure!(
        tail == records_each,
        "after the restart the tail of {name} is {tail}, acknowledged was {records_each}"
    );
    let last = stream.read(tail - 1, 1).await?;
    ensure!(last.records == 1, "the last record of {name} is missing");
    let took = server.spawned().elapsed();
    Ok((server, took))
}

/// Compares the tails of all streams with what was acknowledged.
async fn check_tails(server: &Server, sizes: &Sizes, records_each: u64) -> anyhow::Result<()> {
    let url = server.url();
    let streams = &streams(&url, sizes);
    let connection = &Connection::open(Kind::Wire, &url, BASIN).await?;
    stream::iter(0..sizes.restart_streams)
        .map(|index| async move {
            let name = streams.name(index);
            let tail = connection.stream(&name)?.tail().await;
            let tail = tail.with_context(|| name.clone())?;
            ensure!(
                tail == records_each,
                "after the restart the tail of {name} is {tail}, acknowledged was {records_each}"
            );
            Ok(())
        })
        .buffer_unordered(CHECKS)
        .try_collect::<()>()
        .await
}
