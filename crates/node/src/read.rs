//! Read sessions.
//!
//! A session first catches up from the database, on threads where blocking is fine, then follows:
//! it is woken when the tail moves and takes what is new from memory. If it falls behind what
//! memory keeps, it reads the database until it is within that again: each scan looks first whether
//! memory has what comes next. While a client takes one batch, the next is read from the database: a
//! session holds at most two (1000 records, 1 MiB each) at a time, and what is left of the appended
//! batch that the last one ended in.

use std::sync::Arc;
use std::time::Duration;

use esker_partition::reader::ScanEnd;
use esker_partition::stream::Follower;
use esker_partition::{Cursor, ReadError, Scan};
use s2_common::read_extent::{EvaluatedReadLimit, ReadLimit};
use s2_common::record::{Metered, MeteredSize as _, StreamPosition};
use s2_common::stream::{ReadBatch, ReadEnd, ReadStart};
use tokio::task::JoinHandle;
use tokio::time::Instant;

use crate::error::{Error, read_error};
use crate::streams::StreamHandle;

/// What a session yields.
#[derive(Debug)]
pub enum ReadOutput {
    /// Records; never empty.
    Batch(ReadBatch),
    /// The reader is at the tail, which is this.
    Heartbeat(StreamPosition),
}

/// Between heartbeats while nothing is appended; clients give up after 20 seconds.
const HEARTBEAT_MS: std::ops::Range<u64> = 5_000..15_000;

/// A read under way.
pub struct ReadSession {
    handle: StreamHandle,
    follower: Follower,
    cursor: Cursor,
    limit: EvaluatedReadLimit,
    end: ReadEnd,
    deadline: Option<Instant>,
    heartbeat: Instant,
    /// Whether the reader knows that it has reached the tail.
    at_tail: bool,
    /// What comes after the batch that was yielded last, on its way from the database.
    ahead: Option<JoinHandle<Result<Scan, ReadError>>>,
}

impl StreamHandle {
    /// Begins to read.
    ///
    /// # Errors
    ///
    /// [`Error::Unwritten`] if the read begins beyond the tail, or at it and may not follow.
    pub async fn read(&self, start: ReadStart, end: ReadEnd) -> Result<ReadSession, Error> {
        // Following begins before the position is resolved, so that nothing is missed between.
        let follower = self.stream.follow();
        let limit = end.limit.remaining(0, 0);
        // A read of nothing is done, wherever it begins.
        let cursor = if limit == EvaluatedReadLimit::Exhausted {
            Cursor::nowhere()
        } else {
            let handle = self.clone();
            let may_follow = end.may_follow();
            blocking(move || {
                handle
                    .partition
                    .reader
                    .begin(&handle.stream, start, may_follow)
            })
            .await
            .map_err(|e| self.read_error(e))?
        };
        Ok(ReadSession {
            handle: self.clone(),
            follower,
            cursor,
            limit,
            end,
            deadline: None,
            heartbeat: next_heartbeat(),
            at_tail: false,
            ahead: None,
        })
    }

    fn read_error(&self, error: ReadError) -> Error {
        read_error(error, &self.basin.name, &self.stream.name)
    }
}

impl ReadSession {
    /// The next output; `None` when the read is done. Not to be called again after an error.
    pub async fn next(&mut self) -> Result<Option<ReadOutput>, Error> {
        loop {
            let EvaluatedReadLimit::Remaining(limit) = self.limit else {
                return Ok(None);
            };
            let mut scan = self.scan(limit).await?;
            let (end, read_database) = (scan.end, scan.read_database);
            let tail = match end {
                ScanEnd::Tail(tail) => Some(tail),
                ScanEnd::More | ScanEnd::Limit => None,
            };
            let records = std::mem::replace(&mut scan.records, Metered::with_capacity(0));
            self.cursor = scan.into_cursor();
            if !records.is_empty() {
                let (count, bytes) = (records.len(), records.metered_size());
                self.limit = limit.remaining(count, bytes);
                // What memory has costs no wait, and is taken when it is asked for.
                if let EvaluatedReadLimit::Remaining(limit) = &self.limit
                    && end == ScanEnd::More
                    && !self.handle.stream.has_recent(self.cursor.resumes_at())
                {
                    self.ahead = Some(self.scan_database(*limit));
                }
                // Only records that were delivered put the deadline off.
                self.deadline = self.end.wait.map(|wait| Instant::now() + wait);
                self.heartbeat = next_heartbeat();
                metrics::counter!("esker_read_records_total").increment(count as u64);
                if read_database {
                    metrics::counter!("esker_read_database_records_total").increment(count as u64);
                }
                return Ok(Some(ReadOutput::Batch(ReadBatch { records, tail })));
            }
            let Some(tail) = tail else {
                return Ok(None);
            };
            if !self.end.may_follow() {
                return Ok(None);
            }
            if self.deadline.is_none() {
                self.deadline = self.end.wait.map(|wait| Instant::now() + wait);
            }
            if self.deadline.is_some_and(|at| at <= Instant::now()) {
                return Ok(None);
            }
            if !self.at_tail {
                self.at_tail = true;
                self.heartbeat = next_heartbeat();
                return Ok(Some(ReadOutput::Heartbeat(tail)));
            }
            let stopping = self.handle.node.inner.stopping.clone();
            tokio::select! {
                biased;
                () = self.follower.beyond(self.cursor.next()) => {}
                () = stopping.cancelled() => return Err(Error::Stopping),
                () = tokio::time::sleep_until(self.heartbeat) => {
                    self.heartbeat = next_heartbeat();
                    return Ok(Some(ReadOutput::Heartbeat(tail)));
                }
                () = sleep_until(self.deadline) => return Ok(None),
            }
        }
    }

    async fn scan(&mut self, limit: ReadLimit) -> Result<Scan, Error> {
        let handle = &self.handle;
        let resumes_at = self.cursor.resumes_at();
        let reading = match self.ahead.take() {
            Some(ahead) => Some(ahead),
            None if resumes_at < handle.stream.tail().seq_num
                && !handle.stream.has_recent(resumes_at) =>
            {
                Some(self.scan_database(limit))
            }
            None => None,
        };
        let result = match reading {
            Some(reading) => join(reading).await,
            None => {
                let reader = &handle.partition.reader;
                reader.scan(&handle.stream, self.cursor.clone(), limit, self.end.until)
            }
        };
        result.map_err(|e| handle.read_error(e))
    }

    /// Begins to read where the session is, on a thread where blocking is fine.
    fn scan_database(&self, limit: ReadLimit) -> JoinHandle<Result<Scan, ReadError>> {
        let (from, until) = (self.cursor.clone(), self.end.until);
        let reader = self.handle.partition.reader.clone();
        let stream = Arc::clone(&self.handle.stream);
        tokio::task::spawn_blocking(move || reader.scan(&stream, from, limit, until))
    }
}

/// Runs what may wait for a disk.
async fn blocking<T: Send + 'static>(f: impl FnOnce() -> T + Send + 'static) -> T {
    join(tokio::task::spawn_blocking(f)).await
}

async fn join<T>(task: JoinHandle<T>) -> T {
    match task.await {
        Ok(done) => done,
        Err(panic) => std::panic::resume_unwind(panic.into_panic()),
    }
}

fn next_heartbeat() -> Instant {
    Instant::now() + Duration::from_millis(rand::random_range(HEARTBEAT_MS))
}

async fn sleep_until(deadline: Option<Instant>) {
    match deadline {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}
