//! The same history recovered twice: once from its beginning, once from a snapshot and the tail.
//!
//! A separate server takes many small appends, and makes local snapshots meanwhile. It is killed, and its
//! data directory is copied twice: once without the database and without local snapshots, so that only the
//! snapshot of the empty partition is left, which was put into the repository at the beginning; and once
//! without the database alone.

use std::fs;
use std::num::NonZeroU32;
use std::path::Path;
use std::time::{Duration, Instant};

use s2_sdk::types::{CreateBasinInput, CreateStreamInput};

use super::{Cast, expect_records, io, missing, whole};
use crate::demo::appender::{self, Load};
use crate::demo::log_events::Told;
use crate::demo::records::Records;
use crate::demo::server::ServerProcess;
use crate::failure::Failure;
use crate::term::{count, rate, took};

/// Appends of the history, one record each, so that each is an entry of the log...
const APPENDS: u64 = 200_000;
/// ...but no more than a machine appends in this time.
const MAX_DURATION: Duration = Duration::from_secs(10);
/// Appends under way at a time.
const WINDOW: NonZeroU32 = NonZeroU32::new(2_000).unwrap();
/// Entries between two local snapshots.
const LOCAL_EVERY: u64 = 25_000;

pub async fn play(cast: &mut Cast) -> Result<(), Failure> {
    if let Some(mut server) = cast.server.take() {
        server.kill()?;
        server.gone().await?;
    }
    let history = cast.scratch.join("history");
    let arguments = vec![
        "--set".to_owned(),
        "partitions=1".to_owned(),
        "--set".to_owned(),
        format!(
            "snapshots.destination={}",
            cast.scratch.join("history-repository").display()
        ),
        "--set".to_owned(),
        format!("snapshots.local-snapshot-num-records={LOCAL_EVERY}"),
    ];
    let log = |name: &str| cast.scratch.join(name);

    let server = ServerProcess::start(&history, log("history.log"), &arguments).await?;
    cast.server = Some(server);
    // The lines of a file are not used here, because they may be large.
    cast.records = Records::flights().repeated(APPENDS).into();
    let appended = append(cast).await?;
    let length = appended.acknowledged;
    cast.records = cast.records.repeated(length).into();
    let mut server = cast.server.take().ok_or_else(|| missing("server"))?;
    server.kill()?;
    server.gone().await?;
    let stage = &cast.stage;
    stage.say(format_args!(
        "Another server takes {} appends of a record each ({}), and takes a snapshot",
        count(length),
        rate(length, appended.took)
    ));
    stage.say(format_args!(
        "on its own disk every {} of them. SIGKILL. Two copies of its data directory, both",
        count(LOCAL_EVERY)
    ));
    stage.say("without the database, one also without local snapshots, are served again:");

    let zero = recover(cast, "from-zero", &["db", "checkpoints"], &arguments).await?;
    let bounded = recover(cast, "from-snapshot", &["db"], &arguments).await?;
    let stage = &cast.stage;
    stage.figure(
        "from zero",
        took(zero.took),
        format_args!(
            "{} entries replayed in {}: no snapshot but that of the beginning",
            count(zero.replayed),
            took(zero.replay)
        ),
    );
    stage.figure(
        "snapshot plus tail",
        took(bounded.took),
        format_args!(
            "{} entries replayed in {}, on the local snapshot, LSN {}",
            count(bounded.replayed),
            took(bounded.replay),
            count(bounded.lsn)
        ),
    );
    stage.holds(format_args!(
        "both read back: the same {} records, each compared",
        count(length)
    ));
    stage.say(
        "The first grows with the history, the second does not: a tail is as long as you let it",
    );
    stage.say("become. The rest is the start of a process, and the check of every byte loaded.");
    for name in ["history", "history-repository"] {
        // If this fails, the directory is removed with the scratch directory.
        let _ = fs::remove_dir_all(cast.scratch.join(name));
    }
    Ok(())
}

async fn append(cast: &Cast) -> Result<appender::Appended, Failure> {
    let connection = cast.connect().await?;
    let asked = connection.asked_stream(&cast.target);
    connection
        .account()
        .create_basin(CreateBasinInput::new(cast.target.basin.clone()))
        .await
        .map_err(|e| asked.request(&e))?;
    connection
        .basin(&cast.target.basin)
        .create_stream(CreateStreamInput::new(cast.target.stream.clone()))
        .await
        .map_err(|e| asked.request(&e))?;
    // Appends before the first snapshot might be in that snapshot.
    let repository = cast.scratch.join("history-repository");
    cast.wait_for_snapshots(&repository, 1).await?;
    let load = Load {
        batch: 1,
        window: WINDOW,
    };
    let bar = cast.stage.bar("appended", APPENDS);
    let began = Instant::now();
    let stream = connection.session(&cast.target);
    let appended = appender::append(&stream, &cast.records, 0..APPENDS, load, |acknowledged| {
        bar.set_position(acknowledged);
        Ok(began.elapsed() < MAX_DURATION)
    })
    .await;
    bar.finish_and_clear();
    let appended = appended?;
    whole(&connection, cast, &appended)?;
    Ok(appended)
}

/// How a recovery went.
struct Recovered {
    /// From exec to the first answer.
    took: Duration,
    /// The LSN of the snapshot that it started from.
    lsn: u64,
    replayed: u64,
    replay: Duration,
}

/// Starts a server on a copy of the data directory without some of its subdirectories, and compares what it
/// recovers.
async fn recover(
    cast: &mut Cast,
    name: &str,
    without: &[&str],
    arguments: &[String],
) -> Result<Recovered, Failure> {
    let data = cast.scratch.join(name);
    let history = cast.scratch.join("history");
    copy(&history, &data, without).map_err(|e| io("copying to", &data, &e))?;
    let log = cast.scratch.join(format!("{name}.log"));
    let server = ServerProcess::start(&data, log, arguments).await?;
    let took = server.served_after();
    let told = server.told();
    cast.server = Some(server);
    expect_records(cast, cast.records.count()).await?;
    let recovered = Recovered {
        took,
        lsn: Told::longest(&told.loaded).map_or(0, |copy| copy.lsn),
        replayed: told.replayed.unwrap_or_default(),
        replay: told.replay.unwrap_or_default(),
    };
    let mut server = cast.server.take().ok_or_else(|| missing("server"))?;
    server.kill()?;
    server.gone().await?;
    let _ = fs::remove_dir_all(&data);
    Ok(recovered)
}

fn copy(from: &Path, to: &Path, without: &[&str]) -> std::io::Result<()> {
    fs::create_dir(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let name = entry.file_name();
        if without.iter().any(|other| name == *other) {
            continue;
        }
        if entry.file_type()?.is_dir() {
            copy(&entry.path(), &to.join(name), &[])?;
        } else {
            fs::copy(entry.path(), to.join(name))?;
        }
    }
    Ok(())
}
