//! A service that folds a stream into its own state: it counts the flights of each airport.
//!
//! Its snapshot goes into the stream itself. Then the server is killed, more flights are appended, and the
//! service starts again: from the snapshot and the flights after it.

use std::collections::BTreeMap;
use std::num::NonZeroU32;
use std::time::{Duration, Instant};

use esker_follow::folds::Count;
use esker_follow::{Error, Follower, S2Endpoint};
use s2_sdk::types::{AppendInput, CreateBasinInput, CreateStreamInput, S2Config, S2Endpoints};

use super::{Cast, missing, whole};
use crate::demo::appender::{self, Load};
use crate::demo::records::Records;
use crate::demo::server::ServerProcess;
use crate::failure::Failure;
use crate::term::{bytes, count, rate, took};

/// Flights before the snapshot.
const BEFORE: u64 = 200_000;
/// Flights after it.
const AFTER: u64 = 2_000;
/// Appends under way at a time.
const WINDOW: NonZeroU32 = NonZeroU32::new(8).unwrap();
/// Records of each append.
const BATCH: u64 = 500;
/// JSON pointer to the key that flights are counted by.
const BY: &str = "/origin";

pub async fn play(cast: &mut Cast) -> Result<(), Failure> {
    let data = cast.scratch.join("followed");
    let arguments = ["--set".to_owned(), "partitions=1".to_owned()];
    let log = cast.scratch.join("followed.log");
    let server = ServerProcess::start(&data, log.clone(), &arguments).await?;
    cast.server = Some(server);
    cast.records = Records::flights().repeated(BEFORE + AFTER).into();
    create(cast).await?;
    append(cast, 0..BEFORE).await?;
    let stage = &cast.stage;
    stage.say(
        "A service counts the flights of each airport. It follows a stream, from the beginning:",
    );

    let (follower, zero) = follow(cast).await?;
    let applied = follower.status().applied;
    let stage = &cast.stage;
    stage.figure(
        "from zero",
        took(zero),
        format_args!(
            "{} records counted ({})",
            count(applied),
            rate(applied, zero)
        ),
    );
    let taken = follower.snapshot().await.map_err(|e| failure(&e))?;
    stage.figure(
        "a snapshot",
        bytes(taken.bytes),
        "as a record of the stream, with the trim of all that it covers",
    );
    drop(follower);

    let mut server = cast.server.take().ok_or_else(|| missing("server"))?;
    server.kill()?;
    server.gone().await?;
    cast.server = Some(ServerProcess::start(&data, log, &arguments).await?);
    append_more(cast, BEFORE..BEFORE + AFTER).await?;
    cast.stage.say(format_args!(
        "SIGKILL to the server; {} flights more; the service begins again:",
        count(AFTER)
    ));
    let (follower, bounded) = follow(cast).await?;
    let stage = &cast.stage;
    let restored = follower
        .restored()
        .ok_or_else(|| missing("snapshot"))?
        .cursor;
    stage.figure(
        "snapshot plus tail",
        took(bounded),
        format_args!(
            "{} records counted, on a snapshot that covers {}",
            count(follower.status().applied),
            count(restored)
        ),
    );
    let view = follower.close().await.map_err(|e| failure(&e))?;
    let expected = expected(&cast.records)?;
    let found: BTreeMap<String, u64> = view
        .state
        .iter()
        .map(|(key, count)| (key.to_owned(), count))
        .collect();
    if found != expected {
        return Err(Failure::wrong(
            "demo",
            "the counts differ from those of the records",
        ));
    }
    cast.stage.holds(format_args!(
        "all {} airports have as many flights as were appended",
        expected.len()
    ));
    let mut server = cast.server.take().ok_or_else(|| missing("server"))?;
    server.kill()?;
    server.gone().await?;
    // If this fails, the directory is removed with the scratch directory.
    let _ = std::fs::remove_dir_all(&data);
    Ok(())
}

async fn create(cast: &Cast) -> Result<(), Failure> {
    let connection = cast.connect().await?;
    let asked = connection.asked_stream(&cast.target);
    let basin = CreateBasinInput::new(cast.target.basin.clone());
    let made = connection.account().create_basin(basin).await;
    made.map_err(|e| asked.request(&e))?;
    let stream = CreateStreamInput::new(cast.target.stream.clone());
    let made = connection
        .basin(&cast.target.basin)
        .create_stream(stream)
        .await;
    made.map_err(|e| asked.request(&e))?;
    Ok(())
}

async fn append(cast: &Cast, numbers: std::ops::Range<u64>) -> Result<(), Failure> {
    let connection = cast.connect().await?;
    let load = Load {
        batch: BATCH,
        window: WINDOW,
    };
    let bar = cast.stage.bar("appended", numbers.end);
    let stream = connection.session(&cast.target);
    let appended = appender::append(&stream, &cast.records, numbers, load, |acknowledged| {
        bar.set_position(acknowledged);
        Ok(true)
    })
    .await;
    bar.finish_and_clear();
    whole(&connection, cast, &appended?)
}

/// Appends records whose numbers differ from their sequence numbers, because the snapshot has taken some of
/// those.
async fn append_more(cast: &Cast, numbers: std::ops::Range<u64>) -> Result<(), Failure> {
    let connection = cast.connect().await?;
    let asked = connection.asked_stream(&cast.target);
    let stream = connection.session(&cast.target);
    let mut next = numbers.start;
    while next < numbers.end {
        let some = next..numbers.end.min(next + BATCH);
        let batch = appender::batch(&cast.records, some).map_err(appender::invalid)?;
        let batch = batch.ok_or_else(|| missing("record"))?;
        next += batch.len() as u64;
        let appended = stream.append(AppendInput::new(batch)).await;
        appended.map_err(|e| asked.append(&e))?;
    }
    Ok(())
}

/// Follows the stream until it is caught up. Returns the follower, and how long that took.
async fn follow(cast: &Cast) -> Result<(Follower<Count>, Duration), Failure> {
    let invalid = |e: &dyn std::fmt::Display| Failure::wrong("demo", e);
    let url = cast.server()?.address().to_string();
    let endpoints = S2Endpoints::for_endpoint(&url).map_err(|e| invalid(&e))?;
    let config = S2Config::new("none").with_endpoints(endpoints);
    let (basin, stream) = (cast.target.basin.clone(), cast.target.stream.clone());
    let endpoint = S2Endpoint::new(config, basin, stream).map_err(|e| failure(&e))?;
    let began = Instant::now();
    let fold = Count::by(BY).map_err(|e| failure(&e))?;
    let follower = Follower::builder(endpoint, fold).in_stream().open().await;
    let follower = follower.map_err(|e| failure(&e))?;
    follower.caught_up().await.map_err(|e| failure(&e))?;
    Ok((follower, began.elapsed()))
}

fn failure(error: &Error) -> Failure {
    Failure::wrong("demo", error)
}

/// The state computed from the records themselves.
fn expected(records: &Records) -> Result<BTreeMap<String, u64>, Failure> {
    let mut counts = BTreeMap::new();
    for number in 0..records.count() {
        let record = records.get(number).ok_or_else(|| missing("record"))?;
        let value: serde_json::Value =
            serde_json::from_slice(record).map_err(|e| Failure::wrong("demo", e))?;
        let origin = value.pointer(BY).and_then(|origin| origin.as_str());
        *counts
            .entry(origin.unwrap_or_default().to_owned())
            .or_insert(0) += 1;
    }
    Ok(counts)
}
