//! Restarts: what a start finds, what a stop waits for, and refusals.

mod refusals;
mod shutdown;
mod state;
mod torn_log;
mod unreadable;

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use s2_sdk::S2;
use s2_sdk::error::{AppendConditionFailed, AppendError, ReadError};
use s2_sdk::types::{
    AppendInput, FencingToken, ListBasinsInput, ListStreamsInput, ReadFrom, ReadInput, ReadLimits,
    ReadStart, ReadStop,
};

use crate::support::sdk;

/// Everything that a client can see of a server, as text: basins, streams, settings, records, tails and
/// fencing tokens.
async fn everything(s2: &S2) -> String {
    let mut seen = String::new();
    let basins = s2.list_basins(ListBasinsInput::new()).await.unwrap();
    assert!(!basins.has_more);
    for basin in basins.values {
        let config = s2.get_basin_config(basin.name.clone()).await.unwrap();
        writeln!(seen, "{basin:?} {config:?}").unwrap();
        let basin = s2.basin(basin.name);
        let streams = basin.list_streams(ListStreamsInput::new()).await.unwrap();
        assert!(!streams.has_more);
        for info in streams.values {
            let config = basin.get_stream_config(info.name.clone()).await.unwrap();
            writeln!(seen, "  {info:?} {config:?}").unwrap();
            let stream = basin.stream(info.name);
            let tail = stream.check_tail().await.unwrap();
            let token = token_in_force(&stream).await;
            writeln!(seen, "    tail {tail:?}, token {token:?}").unwrap();
            let mut next = 0;
            loop {
                let start = ReadStart::new().with_from(ReadFrom::SeqNum(next));
                let stop = ReadStop::new().with_limits(ReadLimits::new().with_count(1000));
                let input = ReadInput::new().with_start(start).with_stop(stop);
                match stream.read(input).await {
                    Ok(batch) => {
                        for record in &batch.records {
                            writeln!(seen, "    {record:?}").unwrap();
                        }
                        // An empty answer below the tail means that everything was trimmed.
                        let Some(last) = batch.records.last() else {
                            break;
                        };
                        next = last.seq_num + 1;
                    }
                    Err(ReadError::ReadUnwritten(at)) => {
                        assert_eq!(at, tail);
                        break;
                    }
                    Err(error) => panic!("{error}"),
                }
            }
        }
    }
    seen
}

/// The fencing token in force, which the refusal of an append with another one contains.
async fn token_in_force(stream: &s2_sdk::S2Stream) -> String {
    let other: FencingToken = "not-this-one".parse().unwrap();
    let input = AppendInput::new(sdk::batch(["never"])).with_fencing_token(other);
    match stream.append(input).await.unwrap_err() {
        AppendError::ConditionFailed(AppendConditionFailed::FencingTokenMismatch(actual)) => {
            actual.to_string()
        }
        error => panic!("{error}"),
    }
}

/// The newest file of the log.
fn last_log_file(data_dir: &Path) -> PathBuf {
    let mut files: Vec<PathBuf> = std::fs::read_dir(data_dir.join("log"))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|e| e == "raftlog"))
        .collect();
    files.sort();
    files.pop().expect("a log has files")
}

/// Copies a directory of files.
fn copy_dir(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy_dir(&entry.path(), &target);
        } else {
            std::fs::copy(entry.path(), target).unwrap();
        }
    }
}
