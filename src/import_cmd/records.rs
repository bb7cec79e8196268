//! Reads and appends of one stream, of the source or of the copy.

use futures::StreamExt as _;
use s2_sdk::error::{AppendConditionFailed, AppendError, ErrorCode, ReadError};
use s2_sdk::types::{
    AppendInput, AppendRecord, AppendRecordBatch, ReadFrom, ReadInput, ReadLimits, ReadStart,
    ReadStop, SequencedRecord,
};

use crate::failure::Failure;
use crate::stream_cmd::connection::Connection;
use crate::stream_cmd::target::StreamTarget;
use crate::stream_cmd::trim::head;

/// A read of the records between two positions.
pub struct Session<'a> {
    connection: &'a Connection,
    target: &'a StreamTarget,
    inner: Option<s2_sdk::read_session::ReadSession>,
    to: u64,
    next: u64,
}

impl<'a> Session<'a> {
    /// Begins to read. Where both positions are the same, nothing is read.
    pub async fn open(
        connection: &'a Connection,
        target: &'a StreamTarget,
        from: u64,
        to: u64,
    ) -> Result<Session<'a>, Failure> {
        let mut session = Session {
            connection,
            target,
            inner: None,
            to,
            next: from,
        };
        if from < to {
            let count = usize::try_from(to - from).unwrap_or(usize::MAX);
            let input = ReadInput::new()
                .with_start(ReadStart::new().with_from(ReadFrom::SeqNum(from)))
                .with_stop(ReadStop::new().with_limits(ReadLimits::new().with_count(count)));
            let opened = connection
                .session(target)
                .read_session(input, Default::default())
                .await;
            session.inner =
                Some(opened.map_err(|e| connection.asked_stream(target).read_session(&e))?);
        }
        Ok(session)
    }

    /// The next records, at most a batch; `None` at the end.
    pub async fn next(&mut self) -> Result<Option<Vec<SequencedRecord>>, Failure> {
        let Some(inner) = self.inner.as_mut().filter(|_| self.next < self.to) else {
            return Ok(None);
        };
        match inner.next().await {
            None => Ok(None),
            Some(Err(error)) => Err(self
                .connection
                .asked_stream(self.target)
                .read_session(&error)),
            Some(Ok(batch)) => {
                let mut records = batch.records;
                records.retain(|record| record.seq_num < self.to);
                if let Some(last) = records.last() {
                    self.next = last.seq_num + 1;
                }
                Ok(Some(records))
            }
        }
    }
}

/// Where a stream begins and ends.
pub async fn range(connection: &Connection, target: &StreamTarget) -> Result<(u64, u64), Failure> {
    let (stream, asked) = (connection.stream(target), connection.asked_stream(target));
    let tail = stream
        .check_tail()
        .await
        .map_err(|e| asked.read(&e))?
        .seq_num;
    // A record that came meanwhile may be the first.
    let first = head(&stream, asked, tail).await?.min(tail);
    Ok((first, tail))
}

/// Where a stream ends; `None` if it does not exist.
pub async fn tail_of(
    connection: &Connection,
    target: &StreamTarget,
) -> Result<Option<u64>, Failure> {
    match connection.stream(target).check_tail().await {
        Ok(tail) => Ok(Some(tail.seq_num)),
        Err(ReadError::Request(error))
            if matches!(
                error.server_error().and_then(|error| error.known_code()),
                Some(ErrorCode::StreamNotFound | ErrorCode::BasinNotFound)
            ) =>
        {
            Ok(None)
        }
        Err(error) => Err(connection.asked_stream(target).read(&error)),
    }
}

/// The record at a position, if it is there.
pub async fn record_at(
    connection: &Connection,
    target: &StreamTarget,
    at: u64,
) -> Result<Option<SequencedRecord>, Failure> {
    let mut session = Session::open(connection, target, at, at + 1).await?;
    let records = session.next().await?.unwrap_or_default();
    Ok(records.into_iter().find(|record| record.seq_num == at))
}

/// Appends at a position.
pub async fn append(
    connection: &Connection,
    target: &StreamTarget,
    records: Vec<AppendRecord>,
    at: u64,
) -> Result<(), Failure> {
    let batch =
        AppendRecordBatch::try_from_iter(records).map_err(|e| Failure::wrong("client", e.0))?;
    let input = AppendInput::new(batch).with_match_seq_num(at);
    match connection.stream(target).append(input).await {
        Ok(_) => Ok(()),
        Err(AppendError::ConditionFailed(AppendConditionFailed::SeqNumMismatch(tail))) => {
            Err(conflict(
                target,
                &format!("it ends at {tail}, and not at {at}: another client appends to it"),
            ))
        }
        Err(error) => Err(connection.asked_stream(target).append(&error)),
    }
}

pub fn conflict(target: &StreamTarget, why: &str) -> Failure {
    Failure::wrong(
        "import_conflict",
        format!("{target} is not a copy of the source: {why}"),
    )
    .advise("if only an import has written to it, delete it here, and run the import again")
}

/// The failure for a record of the source that is gone before it was read.
pub fn trimmed(target: &StreamTarget, at: u64) -> Failure {
    Failure::wrong(
        "import_gap",
        format!("the source trimmed {target} beyond {at} while it was read"),
    )
    .advise("run it again")
}

/// A record with the same content and timestamp.
pub fn copy_of(record: SequencedRecord) -> Result<AppendRecord, Failure> {
    let copy = AppendRecord::new(record.body).and_then(|copy| copy.with_headers(record.headers));
    let copy = copy.map_err(|e| Failure::wrong("client", e.0))?;
    Ok(copy.with_timestamp(record.timestamp))
}

/// Whether two records have the same number, timestamp, headers and body.
pub fn are_equal(one: &SequencedRecord, other: &SequencedRecord) -> bool {
    one.seq_num == other.seq_num
        && one.timestamp == other.timestamp
        && one.headers == other.headers
        && one.body == other.body
}
