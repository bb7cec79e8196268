//! The whole data directory is lost and restored from the repository. The loss is reported, and no sequence
//! number is given out twice.

use std::fs::remove_dir_all;
use std::ops::Range;

use futures::StreamExt as _;
use s2_sdk::types::{AppendInput, ReadFrom, ReadInput, ReadStart, ReadStop};

use super::{Cast, expect_records, io, missing};
use crate::demo::appender;
use crate::demo::follower::same_body;
use crate::demo::log_events::Told;
use crate::demo::records::BATCH;
use crate::failure::Failure;
use crate::term::{bytes, count, took};

/// What a restore with a loss adds to the next sequence number: 2^40.
const STEP: u64 = 1 << 40;
/// The code with which a server refuses to begin a new cluster beside the snapshots of another.
const REFUSAL: &str = "repository_holds_cluster";

pub async fn play(cast: &mut Cast) -> Result<(), Failure> {
    let mut server = cast.server.take().ok_or_else(|| missing("server"))?;
    server.kill()?;
    server.gone().await?;
    let data = cast.data_dir();
    remove_dir_all(&data).map_err(|e| io("removing", &data, &e))?;
    let appended = cast.records.count();
    let covered = cast.covered;
    cast.stage
        .say("SIGKILL, and `rm -r data`: database, local snapshots and log are gone.");

    let refused = cast
        .start_server("server-5.log", &cast.with_repository())
        .await;
    match refused {
        Err(refused) if refused.message.contains(REFUSAL) => {}
        Err(other) => return Err(other),
        Ok(_) => {
            return Err(Failure::wrong(
                "demo",
                "a new cluster was created beside the snapshots of the lost one",
            ));
        }
    }
    let stage = &cast.stage;
    stage.say(format_args!(
        "Started as before, the server refuses: `error [{REFUSAL}]`. An empty"
    ));
    stage.say(
        "directory beside snapshots may be a mistake. `--bootstrap restore` says that it is not:",
    );

    let mut arguments = cast.with_repository();
    arguments.extend(["--bootstrap".into(), "restore".into()]);
    cast.start_server("server-6.log", &arguments).await?;
    let server = cast.server()?;
    let told = server.told();
    let loaded = Told::longest(&told.loaded).ok_or_else(|| missing("snapshot that was loaded"))?;
    let connection = cast.connect().await?;
    let stream = connection.stream(&cast.target);
    let asked = connection.asked_stream(&cast.target);
    let tail = stream
        .check_tail()
        .await
        .map_err(|e| asked.read(&e))?
        .seq_num;
    expect_records(cast, covered).await?;
    if tail != covered + STEP {
        return Err(Failure::wrong(
            "demo",
            format!(
                "the restored stream continues with {tail} instead of {}",
                covered + STEP
            ),
        ));
    }
    let stage = &cast.stage;
    stage.figure(
        "first answer",
        took(server.served_after()),
        format_args!(
            "after exec; {} fetched, checked and imported, LSN {}",
            bytes(loaded.bytes),
            count(loaded.lsn)
        ),
    );
    stage.figure("restored", count(covered), "records, each compared");
    stage.figure(
        "lost",
        count(appended - covered),
        format_args!(
            "{} to {}: acknowledged after the newest snapshot",
            count(covered),
            count(appended - 1)
        ),
    );
    stage.say(format_args!(
        "The stream continues with {}, which is {} + 2^40: the numbers of lost records",
        count(tail),
        count(covered)
    ));
    stage.say("are never given out again. A new lineage has begun.");

    let batch = appender::batch(&cast.records, 0..BATCH)
        .map_err(appender::invalid)?
        .ok_or_else(|| missing("record"))?;
    let acked = stream
        .append(AppendInput::new(batch))
        .await
        .map_err(|e| asked.append(&e))?;
    let new = acked.start.seq_num..acked.end.seq_num;
    let first = read_first(cast, appended, &new).await?;
    cast.stage.holds(format_args!(
        "a reader that had seen all {} and asks for {} gets {}: a gap, nothing false",
        count(appended),
        count(appended),
        count(first)
    ));
    Ok(())
}

/// The sequence number of the first record that a reader with an old cursor gets. Fails unless the reader
/// gets the records of `new`, without a gap.
async fn read_first(cast: &Cast, cursor: u64, new: &Range<u64>) -> Result<u64, Failure> {
    let connection = cast.connect().await?;
    let asked = connection.asked_stream(&cast.target);
    let from = ReadInput::new()
        .with_start(ReadStart::new().with_from(ReadFrom::SeqNum(cursor)))
        .with_stop(ReadStop::new().with_wait(0));
    let mut session = connection
        .session(&cast.target)
        .read_session(from, Default::default())
        .await
        .map_err(|e| asked.read_session(&e))?;
    let mut first = None;
    let mut next = new.start;
    while let Some(batch) = session.next().await {
        for record in &batch.map_err(|e| asked.read_session(&e))?.records {
            first.get_or_insert(record.seq_num);
            if record.seq_num != next || !same_body(&cast.records, next - new.start, record) {
                return Err(Failure::wrong(
                    "demo",
                    format!(
                        "behind the gap, {} was read and {next} was to come",
                        record.seq_num
                    ),
                ));
            }
            next += 1;
        }
    }
    match first {
        Some(first) if next == new.end => Ok(first),
        _ => Err(Failure::wrong(
            "demo",
            format!("behind the gap, records {next} to {} are missing", new.end),
        )),
    }
}
