//! Small records in batches, by several concurrent append sessions: records per second.
//!
//! Each session has its own connection and stream, as if it belonged to a separate program, and keeps a
//! bounded number of batches unacknowledged.

use std::{cell::Cell, time::Instant};

use futures::future::try_join_all;

use super::{BASIN, Load, per_second};
use crate::{
    client::{Batches, Connection},
    targets::{Metric, Reading},
};

/// Records in each batch.
const BATCH_RECORDS: usize = 100;

/// Bytes in the body of each record.
const BODY_BYTES: usize = 256;

/// Unacknowledged batches of a session: 1.6 MiB, so that neither the round trip nor one sync of
/// the disk leaves the server without work, and well under the SDK's own default of 5 MiB.
const IN_FLIGHT: usize = 64;

/// Measures records acknowledged per second.
pub async fn measure(load: &Load<'_>) -> anyhow::Result<Vec<Reading>> {
    let url = load.server.url();
    let batches = Batches::new(BATCH_RECORDS, BODY_BYTES, load.seed)?;
    let names = (0..load.sizes.batch_sessions).map(|session| format!("batches-{session}"));
    let streams = try_join_all(names.map(|name| {
        let url = &url;
        async move {
            let connection = Connection::open(load.client, url, BASIN).await?;
            connection.create_stream(&name).await?;
            connection.stream(&name)
        }
    }))
    .await?;

    let from = Instant::now() + load.sizes.warm_up;
    let until = from + load.sizes.duration;
    let (batches, acknowledged) = (&batches, &Cell::new(0));
    let sessions = streams.iter().map(|stream| {
        stream.append_session(
            batches,
            IN_FLIGHT,
            move |_| Instant::now() < until,
            move |records| {
                let now = Instant::now();
                if now >= from && now <= until {
                    acknowledged.set(acknowledged.get() + records);
                }
            },
        )
    });
    try_join_all(sessions).await?;
    let rate = per_second(acknowledged.get() as f64, load.sizes.duration);
    Ok(vec![Reading::new(Metric::BatchRate, rate)])
}
