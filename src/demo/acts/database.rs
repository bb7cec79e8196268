//! A snapshot goes into a repository, more records follow; then the server is killed and its database
//! deleted. It is rebuilt from the snapshot on the disk and the log.

use std::fs::remove_dir_all;
use std::time::Instant;

use super::{Cast, expect_records, io, missing, whole};
use super::{LOOK_EVERY, PARTITIONS, WAIT_TIMEOUT};
use crate::demo::appender::{self, STEADY};
use crate::demo::log_events::Told;
use crate::failure::Failure;
use crate::term::{bytes, count, took};

/// Divisor of the number of records before the snapshot: the records after it are this many times fewer.
const SHARE: u64 = 10;

pub async fn play(cast: &mut Cast) -> Result<(), Failure> {
    let server = cast.server.take().ok_or_else(|| missing("server"))?;
    server.stop().await?;
    let total = cast.records.count();
    cast.covered = total;

    let began = Instant::now();
    cast.start_server("server-3.log", &cast.with_repository())
        .await?;
    cast.wait_for_snapshots(&cast.repository(), PARTITIONS)
        .await?;
    let waited = began.elapsed();
    // The server logs it a moment later.
    let mut told = cast.server()?.told();
    while told.put.is_empty() && began.elapsed() < WAIT_TIMEOUT {
        tokio::time::sleep(LOOK_EVERY).await;
        told = cast.server()?.told();
    }
    let put = Told::longest(&told.put).ok_or_else(|| missing("snapshot in the server's log"))?;
    let stage = &cast.stage;
    stage.say("The server is started with a repository that is not in its data directory:");
    stage.say(format_args!(
        "`--set snapshots.destination={}`.",
        cast.repository().display()
    ));
    stage.say("It is empty, so a snapshot of each partition is put there at once.");
    stage.figure(
        "snapshot",
        bytes(put.bytes),
        format_args!(
            "partition {}, LSN {}: records 0 to {}; there after {}",
            put.partition,
            count(put.lsn),
            count(total - 1),
            took(waited)
        ),
    );
    let covers = put.lsn;

    let more = total / SHARE;
    let records = cast.records.repeated(total + more);
    let connection = cast.connect().await?;
    let stream = connection.session(&cast.target);
    let appended =
        appender::append(&stream, &records, total..total + more, STEADY, |_| Ok(true)).await?;
    whole(&connection, cast, &appended)?;
    cast.records = records.into();
    let mut server = cast.server.take().ok_or_else(|| missing("server"))?;
    server.kill()?;
    server.gone().await?;
    let database = cast.data_dir().join("db");
    remove_dir_all(&database).map_err(|e| io("removing", &database, &e))?;
    let stage = &cast.stage;
    stage.figure("after it", count(more), "more records, acknowledged");
    stage.say("Then SIGKILL, and `rm -r data/db`: the database is gone. The same program again:");

    cast.start_server("server-4.log", &cast.with_repository())
        .await?;
    let server = cast.server()?;
    let told = server.told();
    let loaded = Told::longest(&told.loaded).ok_or_else(|| missing("snapshot that was loaded"))?;
    let stage = &cast.stage;
    stage.figure("first answer", took(server.served_after()), "after exec");
    stage.figure(
        "loaded",
        bytes(loaded.bytes),
        format_args!(
            "local snapshot, LSN {}{}: checked and imported in {}",
            count(loaded.lsn),
            if loaded.lsn == covers {
                ", the same"
            } else {
                ""
            },
            took(told.restore.unwrap_or_default())
        ),
    );
    stage.figure(
        "replayed",
        count(told.replayed.unwrap_or_default()),
        "log entries after it",
    );
    let reading = expect_records(cast, total + more).await?;
    cast.stage.holds(format_args!(
        "{} records read back: in order, each once, byte for byte ({})",
        count(total + more),
        took(reading)
    ));
    Ok(())
}
