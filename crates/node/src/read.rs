//! Read sessions.
//!
//! A session first catches up from the database, on threads where blocking is fine, then follows: it is
//! woken when the tail moves and takes new records from memory. If it falls behind the records in memory, it
//! reads the database until it has caught up with them: each scan first checks whether memory has the next
//! records. While a client takes one batch, the next is read from the database ([`read_ahead`](crate::read_ahead)):
//! a session holds at most two (1000 records, 1 MiB each) at a time, and the rest of the appended batch in which
//! the last one ended.
//!
//! What is scanned of a stream with a cipher is decrypted for each session, with the session's key.
//!
//! All sessions together are bounded by a [`ReadBudget`]. Memory is claimed before a batch is read; the next
//! batch is read early only where memory is plentiful. A session that waits for memory holds none: the rest
//! of an appended batch has been claimed already, and is returned first.

use std::sync::Arc;
use std::time::Duration;

use esker_partition::encryption::{self, DecryptionError};
use esker_partition::reader::ScanEnd;
use esker_partition::stream::Follower;
use esker_partition::{Cursor, ReadError, Scan, StoredRecords};
use s2_common::read_extent::{EvaluatedReadLimit, ReadLimit};
use s2_common::record::StreamPosition;
use s2_common::stream::{ReadEnd, ReadStart};
use tokio::time::Instant;

use crate::blocking::{MAX_INLINE, blocking};
use crate::error::{Error, read_error};
use crate::read_ahead::{Run, Source};
use crate::read_budget::{Place, ReadBudget, ReadPermit};
use crate::read_records::{ReadContent, ReadRecords};
use crate::streams::StreamHandle;

/// An output of a session.
#[derive(Debug)]
pub enum ReadOutput {
    /// Records; never empty. The permit has to be kept for as long as any of them is in memory, in whatever
    /// form.
    Batch(ReadRecords, ReadPermit),
    /// The session is at the tail, which is this.
    Heartbeat(StreamPosition),
    /// There are more records, and no memory for them yet: other sessions have to release some first.
    Waiting,
}

/// Time between heartbeats while nothing is appended; clients disconnect after 20 seconds.
const HEARTBEAT_MS: std::ops::Range<u64> = 5_000..15_000;

/// From so many followers on, deliveries of a stream are paced.
const PACED_FOLLOWERS: u32 = 256;
/// About what a delivery to one follower costs: with a pace of so much for each, deliveries take no more than
/// a processor, however often something is appended.
const DELIVERY: Duration = Duration::from_micros(10);
/// Longest time that pacing delays a delivery.
const MAX_PACE: Duration = Duration::from_millis(100);
/// Followers of a stream that are paced have their turn in so many groups, one after the other: what all wait
/// for is not the last of all deliveries, and within a group all get the same.
const PACE_GROUPS: u32 = 16;

/// A read under way.
pub struct ReadSession {
    handle: StreamHandle,
    follower: Follower,
    cursor: Cursor,
    limit: EvaluatedReadLimit,
    end: ReadEnd,
    deadline: Option<Instant>,
    heartbeat: Instant,
    /// Whether the reader was informed that it has reached the tail.
    at_tail: bool,
    /// What reads the database for the session.
    ahead: Option<Run>,
    /// The permit for the appended batch that the cursor keeps, and for its encoded form.
    rest: Option<ReadPermit>,
    /// The place in the queue for memory.
    claiming: Option<Place>,
}

/// The outcome of an attempt to read.
enum Attempt {
    Scan(Scan, ReadPermit),
    /// There is nothing to read: the session is at the tail, which is this.
    AtTail(StreamPosition),
    /// There was no memory before a heartbeat was due.
    Waiting,
}

impl StreamHandle {
    /// Begins to read.
    ///
    /// # Errors
    ///
    /// [`Error::Unwritten`] if the read begins beyond the tail, or at it and may not follow;
    /// [`Error::EncryptionKey`] if the stream has a cipher and the handle no key.
    pub async fn read(&self, start: ReadStart, end: ReadEnd) -> Result<ReadSession, Error> {
        self.encryption()?;
        // Following begins before the position is resolved, so that no record in between is missed.
        let follower = self.stream.follow();
        let limit = end.limit.remaining(0, 0);
        // A read of nothing is complete, wherever it begins.
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
            rest: None,
            claiming: None,
        })
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
            let tail = match self.read_some(limit).await? {
                Attempt::Waiting => return Ok(Some(ReadOutput::Waiting)),
                Attempt::AtTail(tail) => tail,
                Attempt::Scan(mut scan, permit) => {
                    let (end, read_database) = (scan.end, scan.read_database);
                    let tail = match end {
                        ScanEnd::Tail(tail) => Some(tail),
                        ScanEnd::More | ScanEnd::Limit => None,
                    };
                    let records = std::mem::take(&mut scan.records);
                    let (content, permit) = self.handle.decrypted(records, permit).await?;
                    self.cursor = scan.into_cursor();
                    let records = ReadRecords { content, tail };
                    if !records.is_empty() {
                        let permit = self.keep_rest(permit);
                        let (count, bytes) = (records.len(), records.metered_size());
                        self.limit = limit.remaining(count, bytes);
                        // Reading from memory needs no wait, so nothing is read ahead from there.
                        if let EvaluatedReadLimit::Remaining(limit) = &self.limit
                            && end == ScanEnd::More
                            && self.ahead.is_none()
                            && !self.handle.stream.has_recent(self.cursor.resumes_at())
                            && let Some(ahead) = self.budget().try_claim_ahead()
                        {
                            self.ahead = Some(self.scan_database(*limit, ahead));
                        }
                        // Only delivered records extend the deadline.
                        self.deadline = self.end.wait.map(|wait| Instant::now() + wait);
                        self.heartbeat = next_heartbeat();
                        metrics::counter!("esker_read_records_total").increment(count as u64);
                        if read_database {
                            metrics::counter!("esker_read_database_records_total")
                                .increment(count as u64);
                        }
                        return Ok(Some(ReadOutput::Batch(records, permit)));
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
            if self.deadline.is_some_and(|at| at <= Instant::now()) {
                return Ok(None);
            }
            if !self.at_tail {
                self.at_tail = true;
                self.heartbeat = next_heartbeat();
                return Ok(Some(ReadOutput::Heartbeat(tail)));
            }
            let stopping = self.handle.node.inner.stopping.clone();
            let (turn, next) = (self.next_turn(), self.cursor.next());
            // What was appended before the end of the wait is delivered, even if the turn is later.
            let turn = turn.map(|turn| self.deadline.map_or(turn, |end| turn.min(end)));
            let delivery = async {
                if let Some(turn) = turn {
                    tokio::time::sleep_until(turn).await;
                }
                self.follower.beyond(next).await;
            };
            tokio::select! {
                biased;
                () = delivery => {}
                () = stopping.cancelled() => return Err(Error::Stopping),
                () = tokio::time::sleep_until(self.heartbeat) => {
                    self.heartbeat = next_heartbeat();
                    return Ok(Some(ReadOutput::Heartbeat(tail)));
                }
                () = sleep_until(self.deadline) => return Ok(None),
            }
        }
    }

    /// How many sessions follow the stream.
    fn followers(&self) -> usize {
        self.follower.followers()
    }

    /// Whether others may get the same records as this session, in the same form: others follow the stream, and
    /// its records are not encrypted.
    pub fn is_shared(&self) -> bool {
        self.followers() > 1 && self.handle.stream.cipher.is_none()
    }

    /// Identifies the stream among all of this node, while it runs.
    pub fn stream_key(&self) -> (u64, u64) {
        (self.handle.stream.partition.0, self.handle.stream.id.0)
    }

    /// Before when the session is delivered nothing more, if the stream has many followers: each then gets
    /// what was appended meanwhile at once.
    fn next_turn(&self) -> Option<Instant> {
        let pace = pace(self.followers())?;
        let begun = self.handle.node.inner.started;
        Some((begun + turn_after(begun.elapsed(), pace, self.follower.number())).into())
    }

    fn budget(&self) -> &ReadBudget {
        &self.handle.node.inner.reads
    }

    /// Reads the next records, if there is memory for them.
    async fn read_some(&mut self, limit: ReadLimit) -> Result<Attempt, Error> {
        loop {
            if let Some(ahead) = &mut self.ahead {
                if let Some(read) = ahead.next().await {
                    return self.scanned(read);
                }
                self.ahead = None;
            }
            let stream = &self.handle.stream;
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
                None => self.budget().try_claim(at_tail),
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
                        None => return Ok(Attempt::Waiting),
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
        loop {
            let place = (self.claiming).get_or_insert_with(|| budget.wait_in_line(at_tail));
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
            bytes => permit.split((2 * bytes).min(permit.bytes() / 2)),
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
        };
        Run::begin(source, self.cursor.clone(), limit, self.end.until, permit)
    }
}

/// Time between deliveries to each of so many followers of a stream; `None` if there are few.
fn pace(followers: usize) -> Option<Duration> {
    let followers = u32::try_from(followers).unwrap_or(u32::MAX);
    (followers >= PACED_FOLLOWERS).then(|| DELIVERY.saturating_mul(followers).min(MAX_PACE))
}

/// The first turn of this follower after `now`.
fn turn_after(now: Duration, pace: Duration, follower: usize) -> Duration {
    let group = (follower % PACE_GROUPS as usize) as u32;
    let offset = pace * group / PACE_GROUPS;
    let rounds = now.saturating_sub(offset).as_nanos() / pace.as_nanos() + 1;
    // Not as a product of a duration, which takes no more than 2^32 rounds: 127 days of the shortest pace.
    let until = rounds * pace.as_nanos();
    offset + Duration::from_nanos(u64::try_from(until).unwrap_or(u64::MAX))
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
mod tests {
    use super::*;

    #[test]
    fn turns_of_a_follower_are_a_pace_apart_and_those_of_all_are_spread_over_it() {
        let pace = Duration::from_millis(80);
        let begin = Duration::from_secs(1000);
        let mut turns: Vec<_> = (0..160)
            .map(|follower| {
                let turn = turn_after(begin, pace, follower);
                assert!(turn > begin && turn <= begin + pace, "{turn:?}");
                assert_eq!(turn_after(turn, pace, follower), turn + pace);
                turn
            })
            .collect();
        turns.sort();
        let groups: Vec<_> = turns.chunk_by(|a, b| a == b).collect();
        assert_eq!(groups.len(), PACE_GROUPS as usize);
        assert!(groups.iter().all(|group| group.len() == 10));
        let apart = pace / PACE_GROUPS;
        assert!(groups.windows(2).all(|two| two[1][0] - two[0][0] == apart));
    }

    #[test]
    fn a_node_that_has_run_for_years_still_paces_its_followers() {
        let pace = pace(PACED_FOLLOWERS as usize).unwrap();
        let now = Duration::from_secs(5 * 365 * 24 * 3600);
        let turn = turn_after(now, pace, 7);
        assert!(turn > now && turn <= now + pace, "{turn:?}");
    }

    #[test]
    fn deliveries_are_paced_for_many_followers_alone_and_never_for_long() {
        assert_eq!((pace(1), pace(255)), (None, None));
        assert_eq!(pace(1000), Some(DELIVERY * 1000));
        for many in [10_000, 1_000_000, usize::MAX] {
            assert_eq!(pace(many), Some(MAX_PACE));
        }
    }
}
