//! Read sessions.
//!
//! A session first catches up from the database, on threads where blocking is fine, then follows: it is
//! woken when the tail moves and takes new records from memory. If it falls behind the records in memory, it
//! reads the database until it has caught up with them: each scan first checks whether memory has the next
//! records. While a client takes one batch, the next is read from the database ([`read_ahead`](crate::read_ahead)):
//! a session holds at most two (1000 records, 1 MiB each) at a time, and the rest of the appended batch in which
//! the last one ended.
//!
//! Sessions at the tail of a stream share what one of them has scanned ([`shared_records`](crate::shared_records)),
//! and those of a stream that many follow have turns ([`follower_turns`](crate::follower_turns)).
//!
//! What is scanned of a stream with a cipher is decrypted for each session, with the session's key.
//!
//! All sessions together are bounded by a [`ReadBudget`]. Memory is claimed before a batch is read; the next
//! batch is read early only where memory is plentiful. A session that waits for memory holds none: the rest
//! of an appended batch has been claimed already, and is returned first.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use esker_partition::encryption::{self, DecryptionError};
use esker_partition::reader::ScanEnd;
use esker_partition::{Cursor, ReadError, Reader, Scan, StoredRecords};
use s2_common::read_extent::{EvaluatedReadLimit, ReadLimit};
use s2_common::record::StreamPosition;
use s2_common::stream::{ReadEnd, ReadStart};
use tokio::time::{Instant, Sleep};
use tokio_util::sync::WaitForCancellationFutureOwned;

use crate::blocking::{MAX_INLINE, blocking};
use crate::error::{Error, read_error};
use crate::follower_turns::Wakeup;
use crate::read_ahead::{Run, Source};
use crate::read_budget::{Place, ReadBudget, ReadPermit};
use crate::read_records::{ReadContent, ReadRecords};
use crate::shared_records::SharedRecords;
use crate::streams::StreamHandle;

/// An output of a session.
#[derive(Debug)]
pub enum ReadOutput {
    /// Records; never empty. The permit has to be kept for as long as any of them is in memory, in whatever
    /// form.
    Batch(ReadRecords, ReadPermit),
    /// The session is at the tail, which is this.
    Heartbeat(StreamPosition),
    /// There are more records, and they cannot be read yet.
    Waiting(WaitsFor),
}

/// What a session waits for while there are more records.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WaitsFor {
    /// Memory: other sessions have to release some first.
    Memory,
    /// The disk, which has not answered.
    Disk,
}

/// Time between heartbeats while nothing is appended; clients disconnect after 20 seconds.
const HEARTBEAT_MS: std::ops::Range<u64> = 5_000..15_000;

/// A read under way.
pub struct ReadSession {
    handle: StreamHandle,
    wakeup: Wakeup,
    cursor: Cursor,
    limit: EvaluatedReadLimit,
    end: ReadEnd,
    deadline: Option<Instant>,
    heartbeat: Instant,
    /// Wakes the session for heartbeats. It is set again when it has elapsed, not with each delivery.
    timer: Pin<Box<Sleep>>,
    /// Completes when the node stops.
    stopped: Pin<Box<WaitForCancellationFutureOwned>>,
    /// Whether the reader was informed that it has reached the tail.
    at_tail: bool,
    /// What reads the database for the session.
    ahead: Option<Run>,
    /// The permit for the appended batch that the cursor keeps, and for its encoded form.
    rest: Option<ReadPermit>,
    /// The place in the queue for memory.
    claiming: Option<Place>,
}

/// What a session at the tail has waited for.
enum Waited {
    /// There may be more, or the read's wait has ended.
    ForMore,
    ForHeartbeat,
}

/// The outcome of an attempt to read.
enum Attempt {
    Scan(Scan, ReadPermit),
    /// Records up to the tail that another session has scanned.
    Shared(Arc<SharedRecords>, ReadPermit),
    /// There is nothing to read: the session is at the tail, which is this.
    AtTail(StreamPosition),
    /// It could not be read before a heartbeat was due.
    Waiting(WaitsFor),
}

impl StreamHandle {
    /// Begins to read.
    ///
    /// # Errors
    ///
    /// [`Error::Unwritten`] if the read begins beyond the tail, or at it and may not follow;
    /// [`Error::EncryptionKey`] if the stream has a cipher and the handle no key; [`Error::TryLater`] if its first record
    /// is looked up by its time and the turn for that has not come within 10 s.
    pub async fn read(&self, start: ReadStart, end: ReadEnd) -> Result<ReadSession, Error> {
        self.encryption()?;
        // Following begins before the position is resolved, so that no record in between is missed.
        let inner = &self.node.inner;
        let wakeup = Wakeup::new(&self.stream, inner.turns.clone(), inner.stopping.clone());
        let limit = end.limit.remaining(0, 0);
        // A read of nothing is complete, wherever it begins.
        let cursor = if limit == EvaluatedReadLimit::Exhausted {
            Cursor::nowhere()
        } else {
            self.begin(start, end.may_follow()).await?
        };
        Ok(ReadSession {
            handle: self.clone(),
            wakeup,
            cursor,
            limit,
            end,
            deadline: None,
            heartbeat: next_heartbeat(),
            timer: Box::pin(tokio::time::sleep_until(next_heartbeat())),
            stopped: Box::pin(inner.stopping.clone().cancelled_owned()),
            at_tail: false,
            ahead: None,
            rest: None,
            claiming: None,
        })
    }

    /// Where a read begins. Only the first record of a time is looked up in the database, in turn.
    async fn begin(&self, start: ReadStart, may_follow: bool) -> Result<Cursor, Error> {
        let known = Reader::begin_in_memory(&self.stream, start, may_follow);
        if let Some(cursor) = known.map_err(|e| self.read_error(e))? {
            return Ok(cursor);
        }
        let handle = self.clone();
        let work = move || {
            let reader = &handle.partition.reader;
            let cursor = reader.begin(&handle.stream, start, may_follow);
            cursor.map_err(|e| handle.read_error(e))
        };
        let inner = &self.node.inner;
        inner.starts.run(self.client, &inner.stopping, work).await
    }

    fn read_error(&self, error: ReadError) -> Error {
        read_error(error, &self.basin.name, &self.stream.name)
    }

    /// Decrypts records that were scanned, if the stream has a cipher. The permit stays with them, even if
    /// the session has ended meanwhile.
    async fn decrypted(
        &self,
        records: StoredRecords,
        permit: ReadPermit,
    ) -> Result<(ReadContent, ReadPermit), Error> {
        let encryption = self.encryption()?.clone();
        if self.stream.cipher.is_none() {
            return Ok((ReadContent::Stored(records), permit));
        }
        let associated_data = self.associated_data();
        let is_large = records.metered_size() > MAX_INLINE;
        let decrypt = move || {
            let decrypted = match records.decode() {
                Ok(records) => Ok(encryption::decrypt(records, &encryption, &associated_data)),
                Err(malformed) => Err(malformed),
            };
            (decrypted, permit)
        };
        let (decrypted, permit) = match is_large {
            true => blocking(decrypt).await,
            false => decrypt(),
        };
        match decrypted {
            Ok(Ok(records)) => Ok((ReadContent::Decrypted(records), permit)),
            Ok(Err(error)) => Err(self.decryption_error(&error)),
            Err(malformed) => Err(Error::Storage(malformed.to_string())),
        }
    }

    fn decryption_error(&self, error: &DecryptionError) -> Error {
        let (basin, stream) = (&self.basin.name, &self.stream.name);
        match error.is_of_key() {
            true => Error::Decryption {
                basin: basin.clone(),
                stream: stream.clone(),
                seq_num: error.seq_num,
            },
            false => Error::Storage(format!("stream `{stream}` in basin `{basin}`: {error}")),
        }
    }
}

impl ReadSession {
    /// The next output; `None` when the read is complete. Must not be called again after an error.
    pub async fn next(&mut self) -> Result<Option<ReadOutput>, Error> {
        loop {
            let EvaluatedReadLimit::Remaining(limit) = self.limit else {
                return Ok(None);
            };
            if self.awaits_turn() {
                match self.wait().await? {
                    Waited::ForMore => {}
                    Waited::ForHeartbeat => {
                        // What is appended is delivered in the next turn, before any heartbeat.
                        if let Some(tail) = self.handle.stream.tail_at(self.cursor.next()) {
                            return Ok(Some(ReadOutput::Heartbeat(tail)));
                        }
                    }
                }
                continue;
            }
            let tail = match self.read_some(limit).await? {
                Attempt::Waiting(what) => return Ok(Some(ReadOutput::Waiting(what))),
                Attempt::AtTail(tail) => tail,
                Attempt::Shared(records, permit) => {
                    metrics::counter!("esker_read_shared_records_total")
                        .increment(records.records.len() as u64);
                    self.cursor = Cursor::after(records.tail.seq_num);
                    let tail = Some(records.tail);
                    let content = ReadContent::Shared(records);
                    return Ok(Some(self.delivered(
                        limit,
                        ReadRecords { content, tail },
                        permit,
                    )));
                }
                Attempt::Scan(mut scan, permit) => {
                    let (end, read_database) = (scan.end, scan.read_database);
                    let tail = match end {
                        ScanEnd::Tail(tail) => Some(tail),
                        ScanEnd::More | ScanEnd::Limit => None,
                    };
                    let records = std::mem::take(&mut scan.records);
                    let (content, permit) = self.handle.decrypted(records, permit).await?;
                    let content = match (content, tail) {
                        (ReadContent::Stored(records), Some(tail)) if !read_database => {
                            self.shared(records, tail)
                        }
                        (content, _) => content,
                    };
                    self.cursor = scan.into_cursor();
                    let records = ReadRecords { content, tail };
                    if !records.is_empty() {
                        let permit = self.keep_rest(permit);
                        let count = records.len();
                        let output = self.delivered(limit, records, permit);
                        // Reading from memory needs no wait, so nothing is read ahead from there.
                        if let EvaluatedReadLimit::Remaining(limit) = &self.limit
                            && end == ScanEnd::More
                            && self.ahead.is_none()
                            && !self.handle.stream.has_recent(self.cursor.resumes_at())
                            && let Some(ahead) = self.budget().try_claim_ahead(self.handle.client)
                        {
                            self.ahead = Some(self.scan_database(*limit, ahead));
                        }
                        if read_database {
                            metrics::counter!("esker_read_database_records_total")
                                .increment(count as u64);
                        }
                        return Ok(Some(output));
                    }
                    let Some(tail) = tail else {
                        return Ok(None);
                    };
                    tail
                }
            };
            if !self.end.may_follow() {
                return Ok(None);
            }
            if self.deadline.is_none() {
                self.deadline = self.end.wait.map(|wait| Instant::now() + wait);
            }
            if self.is_over() {
                return Ok(None);
            }
            if !self.at_tail {
                self.at_tail = true;
                self.heartbeat = next_heartbeat();
                return Ok(Some(ReadOutput::Heartbeat(tail)));
            }
            match self.wait().await? {
                Waited::ForMore => {}
                Waited::ForHeartbeat => return Ok(Some(ReadOutput::Heartbeat(tail))),
            }
        }
    }

    /// Notes that records are delivered.
    fn delivered(
        &mut self,
        limit: ReadLimit,
        records: ReadRecords,
        permit: ReadPermit,
    ) -> ReadOutput {
        let (count, bytes) = (records.len(), records.metered_size());
        self.limit = limit.remaining(count, bytes);
        // Only delivered records extend the deadline.
        self.deadline = self.end.wait.map(|wait| Instant::now() + wait);
        self.heartbeat = next_heartbeat();
        metrics::counter!("esker_read_records_total").increment(count as u64);
        ReadOutput::Batch(records, permit)
    }

    /// Whether the wait of the read has ended.
    fn is_over(&self) -> bool {
        self.deadline.is_some_and(|at| at <= Instant::now())
    }

    /// Whether the session has been given everything of its last turn. What was appended before the end of its
    /// wait is delivered, even if the next turn is later.
    fn awaits_turn(&self) -> bool {
        let is_given = |next| self.wakeup.turn_end().is_some_and(|end| next >= end);
        self.at_tail
            && self.ahead.is_none()
            && self.claiming.is_none()
            && self.cursor.continues_at().is_some_and(is_given)
            && !self.is_over()
    }

    /// Waits for records beyond the cursor, or for the end of the read's wait.
    async fn wait(&mut self) -> Result<Waited, Error> {
        let next = self.cursor.next();
        loop {
            tokio::select! {
                biased;
                () = self.wakeup.beyond(next) => return Ok(Waited::ForMore),
                () = &mut self.stopped => return Err(Error::Stopping),
                () = &mut self.timer => {
                    let is_due = self.heartbeat <= Instant::now();
                    if is_due {
                        self.heartbeat = next_heartbeat();
                    }
                    self.timer.as_mut().reset(self.heartbeat);
                    if is_due {
                        return Ok(Waited::ForHeartbeat);
                    }
                }
                () = sleep_until(self.deadline) => return Ok(Waited::ForMore),
            }
        }
    }

    /// The records that were scanned up to the tail, for this session and for others that continue at the same
    /// record.
    fn shared(&self, records: StoredRecords, tail: StreamPosition) -> ReadContent {
        match self.cursor.continues_at() {
            Some(from) if self.has_company() && !records.is_empty() => {
                let shared = &self.handle.node.inner.shared_scans;
                ReadContent::Shared(shared.keep(self.stream_key(), from, records, tail))
            }
            _ => ReadContent::Stored(records),
        }
    }

    /// What another session has scanned from the cursor up to the tail, if that is within the limits of this one
    /// and there is memory for it.
    fn read_shared(&self, limit: ReadLimit) -> Option<Attempt> {
        let from = self.cursor.continues_at()?;
        if !self.has_company() || self.claiming.is_some() {
            return None;
        }
        let tail = self.handle.stream.recent_tail(from)?;
        // What was appended since the turn began is delivered in the next one.
        let turn_end = self.wakeup.turn_end().filter(|end| *end > from);
        let until = turn_end.unwrap_or(tail.seq_num);
        let shared = &self.handle.node.inner.shared_scans;
        let scan = shared.get(self.stream_key(), from, until)?;
        let (count, bytes) = (scan.records.len(), scan.records.metered_size());
        let last = scan.records.last_position()?;
        if limit.deny(count, bytes) || self.end.until.deny(last.timestamp) {
            return None;
        }
        let client = self.handle.client;
        let permit = (self.budget()).try_claim_bytes(client, self.at_tail, 2 * bytes)?;
        Some(Attempt::Shared(scan, permit))
    }

    /// Whether others may get the same records as this session: others follow the stream, and its records are not
    /// encrypted.
    fn has_company(&self) -> bool {
        self.wakeup.followers() > 1 && self.handle.stream.cipher.is_none()
    }

    /// Identifies the stream among all of this node, while it runs.
    fn stream_key(&self) -> (u64, u64) {
        (self.handle.stream.partition.0, self.handle.stream.id.0)
    }

    fn budget(&self) -> &ReadBudget {
        &self.handle.node.inner.reads
    }

    /// Reads the next records, if there is memory for them.
    async fn read_some(&mut self, limit: ReadLimit) -> Result<Attempt, Error> {
        loop {
            if let Some(ahead) = &mut self.ahead {
                let read = tokio::select! {
                    biased;
                    read = ahead.next() => read,
                    () = &mut self.timer => {
                        let is_due = self.heartbeat <= Instant::now();
                        if is_due {
                            self.heartbeat = next_heartbeat();
                        }
                        self.timer.as_mut().reset(self.heartbeat);
                        match is_due {
                            true => return Ok(Attempt::Waiting(WaitsFor::Disk)),
                            false => continue,
                        }
                    }
                };
                if let Some(read) = read {
                    return self.scanned(read);
                }
                self.ahead = None;
            }
            if let Some(attempt) = self.read_shared(limit) {
                return Ok(attempt);
            }
            let stream = &self.handle.stream;
            let at = self.cursor.continues_at();
            if let Some(tail) = at.and_then(|at| stream.tail_at(at)) {
                return Ok(Attempt::AtTail(tail));
            }
            let resumes_at = self.cursor.resumes_at();
            let is_recent = stream.has_recent(resumes_at);
            let tail = stream.tail();
            if self.cursor.next() >= tail.seq_num {
                let scan = self.scan_memory(limit)?;
                match scan.end {
                    ScanEnd::Tail(tail) if scan.records.is_empty() => {
                        self.cursor = scan.into_cursor();
                        return Ok(Attempt::AtTail(tail));
                    }
                    _ if scan.records.is_empty() => {}
                    // Records without a permit were appended meanwhile.
                    _ => continue,
                }
            }
            let at_tail = self.at_tail && is_recent;
            let free = match self.claiming {
                None => self.budget().try_claim(self.handle.client, at_tail),
                Some(_) => None,
            };
            let permit = match free {
                Some(permit) => permit,
                None => match self.rest.take() {
                    Some(permit) => {
                        let (from, until) = (self.cursor.clone(), self.end.until);
                        let reader = &self.handle.partition.reader;
                        return self.scanned((reader.scan_rest(from, limit, until), permit));
                    }
                    None => match self.claim(at_tail).await? {
                        Some(permit) => permit,
                        None => return Ok(Attempt::Waiting(WaitsFor::Memory)),
                    },
                },
            };
            if resumes_at < tail.seq_num && !is_recent {
                self.ahead = Some(self.scan_database(limit, permit));
                continue;
            }
            return Ok(Attempt::Scan(self.scan_memory(limit)?, permit));
        }
    }

    /// Waits for memory, until a heartbeat is due.
    async fn claim(&mut self, at_tail: bool) -> Result<Option<ReadPermit>, Error> {
        let budget = self.budget().clone();
        let stopping = self.handle.node.inner.stopping.clone();
        let client = self.handle.client;
        loop {
            let place = (self.claiming).get_or_insert_with(|| budget.wait_in_line(client, at_tail));
            tokio::select! {
                biased;
                permit = place.turn() => {
                    self.claiming = None;
                    if permit.is_some() {
                        return Ok(permit);
                    }
                }
                () = stopping.cancelled() => return Err(Error::Stopping),
                () = tokio::time::sleep_until(self.heartbeat) => {
                    self.heartbeat = next_heartbeat();
                    return Ok(None);
                }
            }
        }
    }

    /// Keeps memory for the appended batch that the cursor keeps, once for the batch and once for its
    /// encoded form; returns the permit without that.
    fn keep_rest(&mut self, mut permit: ReadPermit) -> ReadPermit {
        self.rest = match self.cursor.rest_bytes() {
            0 => None,
            bytes => Some(permit.split((2 * bytes).min(permit.bytes() / 2))),
        };
        permit
    }

    fn scanned(
        &self,
        (scan, permit): (Result<Scan, ReadError>, ReadPermit),
    ) -> Result<Attempt, Error> {
        let scan = scan.map_err(|e| self.handle.read_error(e))?;
        Ok(Attempt::Scan(scan, permit))
    }

    /// Reads at the session's position, without waiting for a disk.
    fn scan_memory(&self, limit: ReadLimit) -> Result<Scan, Error> {
        let handle = &self.handle;
        let (from, until) = (self.cursor.clone(), self.end.until);
        let scan = (handle.partition.reader).scan(&handle.stream, from, limit, until);
        scan.map_err(|e| handle.read_error(e))
    }

    /// Begins to read at the session's position, on a thread where blocking is fine.
    fn scan_database(&self, limit: ReadLimit, permit: ReadPermit) -> Run {
        let source = Source {
            reader: self.handle.partition.reader.clone(),
            stream: Arc::clone(&self.handle.stream),
            budget: self.budget().clone(),
            client: self.handle.client,
        };
        Run::begin(source, self.cursor.clone(), limit, self.end.until, permit)
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

#[cfg(test)]
mod tests;
