//! A snapshot goes into a repository, records follow, and another one, which uploads what is new; then more
//! records. The server is killed and its database deleted. It is rebuilt from the snapshot on the disk and the
//! log.

use std::fs::remove_dir_all;
use std::ops::Range;
use std::time::Instant;

use esker_server::admin::snapshots::Created;

use super::{Cast, expect_records, io, missing, whole};
use super::{LOOK_EVERY, PARTITIONS, WAIT_TIMEOUT};
use crate::admin::Admin;
use crate::demo::appender::{self, STEADY};
use crate::demo::log_events::Told;
use crate::demo::records::Records;
use crate::failure::Failure;
use crate::remote::Remote;
use crate::term::{bytes, count, took};

/// Divisor of the number of records before the first snapshot: those after each are this many times fewer.
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
    let partition = put.partition.to_string();

    let more = total / SHARE;
    append_more(cast, more).await?;
    let admin = Admin::open(Remote::open(cast.server()?.address().clone())).await?;
    let path = ["partitions", partition.as_str(), "snapshots"];
    let created: Created = admin.post(&path, &serde_json::json!({})).await?;
    cast.covered = total + more;
    let written = written(&cast.records, total..total + more);
    cast.stage.figure(
        "then uploaded",
        bytes(created.bytes_uploaded),
        format_args!(
            "by the next one, of {}, for {} more records of {}: {:.2} for each byte written",
            bytes(created.bytes),
            count(more),
            bytes(written),
            created.bytes_uploaded as f64 / written as f64
        ),
    );
    let covers = created.lsn;

    append_more(cast, more).await?;
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
    let all = cast.records.count();
    let reading = expect_records(cast, all).await?;
    cast.stage.holds(format_args!(
        "{} records read back: in order, each once, byte for byte ({})",
        count(all),
        took(reading)
    ));
    Ok(())
}

/// Appends so many of the records again.
async fn append_more(cast: &mut Cast, more: u64) -> Result<(), Failure> {
    let present = cast.records.count();
    let records = cast.records.repeated(present + more);
    let connection = cast.connect().await?;
    let stream = connection.session(&cast.target);
    let numbers = present..present + more;
    let appended = appender::append(&stream, &records, numbers, STEADY, |_| Ok(true)).await?;
    whole(&connection, cast, &appended)?;
    cast.records = records.into();
    Ok(())
}

/// Bytes of the bodies of these records.
fn written(records: &Records, numbers: Range<u64>) -> u64 {
    let bodies = numbers.filter_map(|number| records.get(number));
    bodies.map(|body| body.len() as u64).sum()
}
