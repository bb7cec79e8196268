//! Checks that a stream agrees with the server's answers.
//!
//! The caller only collects events. Appenders record each append in a [`History`] before they send it
//! ([`History::begin`]) and its outcome afterwards ([`History::settle`]); an append whose answer was lost
//! stays [`Outcome::Unknown`]. Followers record what they read ([`History::saw`]). When the server is back
//! after a kill, the whole stream is read, and [`History::check`] compares:
//!
//! - every acknowledged record is at the sequence number that was acknowledged, exactly once;
//! - an append with a lost answer is there as a whole, once, or not at all, and what it turned out
//!   to be stays so for good;
//! - a refused append is not there;
//! - the records of one writer are in the order in which it sent them, and of one append session
//!   none is there whose predecessor is missing;
//! - sequence numbers have no holes, timestamps do not decrease, the tail is where the records
//!   end and never behind a tail that was answered before;
//! - followers saw these records and no others, without holes;
//! - nothing is there that nobody sent.
//!
//! This module uses no network and no clock. Its tests show that it finds each of these faults.

use std::collections::HashMap;

use super::record_id::RecordId;
use super::violation::Violation;

/// Most violations that one check reports: the first ones show the fault, and a lost stream must not print a
/// line for each of its records.
const REPORTED_AT_MOST: usize = 8;

/// One append of one or more consecutive records of one writer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Attempt {
    /// Its first record.
    pub first: RecordId,
    /// How many records.
    pub count: u64,
    /// The append session that it belongs to, if it does; unique within the stream.
    pub session: Option<u32>,
}

/// What the server answered to an [`Attempt`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// Acknowledged, the first record at this sequence number.
    Acked(u64),
    /// Refused, or never sent.
    Refused,
    /// No answer came.
    Unknown,
}

/// Identifies an attempt of a [`History`].
#[derive(Debug, Clone, Copy)]
pub struct AttemptId(usize);

/// Identifies one follower in a [`History`].
#[derive(Debug, Clone, Copy)]
pub struct FollowerId(usize);

/// A record as it was read. `id` is `None` if no writer sent its body to this stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Seen {
    /// Its sequence number.
    pub seq_num: u64,
    /// Its timestamp.
    pub timestamp: u64,
    /// Which record it is.
    pub id: Option<RecordId>,
}

/// The result of a check.
#[derive(Debug, Default)]
pub struct Verdict {
    /// The first broken promises; empty if none is.
    pub violations: Vec<Violation>,
    /// How many there are in all.
    pub violation_count: usize,
    /// Records that were checked.
    pub records: u64,
    /// Appends with a lost answer that turned out to be there.
    pub landed: u64,
    /// Appends with a lost answer that turned out not to be there.
    pub vanished: u64,
}

impl Verdict {
    fn add(&mut self, violation: Violation) {
        self.violation_count += 1;
        if self.violations.len() < REPORTED_AT_MOST {
            self.violations.push(violation);
        }
    }
}

/// Everything that clients know about one stream.
///
/// Grows with the appends; the soak takes a new stream, and with it a new history, every few
/// rounds.
#[derive(Debug, Default)]
pub struct History {
    attempts: Vec<(Attempt, Outcome)>,
    followers: Vec<Vec<Seen>>,
    /// The highest tail that any answer implied.
    tail: u64,
}

impl History {
    /// Records an append that is about to be sent. Its outcome is unknown until it is settled.
    pub fn begin(&mut self, attempt: Attempt) -> AttemptId {
        self.attempts.push((attempt, Outcome::Unknown));
        AttemptId(self.attempts.len() - 1)
    }

    /// Records the server's answer.
    pub fn settle(&mut self, id: AttemptId, outcome: Outcome) {
        let (attempt, known) = &mut self.attempts[id.0];
        *known = outcome;
        if let Outcome::Acked(start) = outcome {
            self.tail = self.tail.max(start + attempt.count);
        }
    }

    /// Records that a follower begins to read.
    pub fn follower(&mut self) -> FollowerId {
        self.followers.push(Vec::new());
        FollowerId(self.followers.len() - 1)
    }

    /// Records what a follower read.
    pub fn saw(&mut self, follower: FollowerId, record: Seen) {
        self.tail = self.tail.max(record.seq_num + 1);
        self.followers[follower.0].push(record);
    }

    /// Number of records acknowledged so far.
    pub fn acked_records(&self) -> u64 {
        let acked = |(attempt, outcome): &(Attempt, Outcome)| match outcome {
            Outcome::Acked(_) => attempt.count,
            _ => 0,
        };
        self.attempts.iter().map(acked).sum()
    }

    /// Compares the whole stream, read from its first record to `tail`, with the history.
    ///
    /// Afterwards no outcome is unknown: an append with a lost answer counts from now on as acknowledged
    /// where it was found, or as refused. What followers read is discarded.
    pub fn check(&mut self, contents: &[Seen], tail: u64) -> Verdict {
        let mut verdict = Verdict {
            records: contents.len() as u64,
            ..Verdict::default()
        };
        check_positions(contents, tail, &mut verdict);
        if tail < self.tail {
            let before = self.tail;
            verdict.add(Violation::TailWentBack { tail, before });
        }
        let stream = Contents::index(contents, &mut verdict);
        self.check_origins(contents, &mut verdict);
        self.check_attempts(&stream, &mut verdict);
        self.check_order(&stream, &mut verdict);
        self.check_followers(&stream, &mut verdict);

        self.resolve(&stream);
        self.followers.clear();
        self.tail = self.tail.max(tail);
        verdict
    }

    /// Checks that every record was sent, and not refused.
    fn check_origins(&self, contents: &[Seen], verdict: &mut Verdict) {
        let sent = self.by_writer();
        for record in contents {
            let attempt = record.id.and_then(|id| find(&sent, &self.attempts, id));
            let seq_num = record.seq_num;
            match (record.id, attempt) {
                (Some(id), Some((_, Outcome::Refused))) => {
                    verdict.add(Violation::Refused { id, seq_num });
                }
                (_, Some(_)) => {}
                (id, None) => verdict.add(Violation::Foreign { seq_num, id }),
            }
        }
    }

    /// Checks that acknowledged appends are at their positions, and each other append is there completely or
    /// not at all.
    fn check_attempts(&self, stream: &Contents, verdict: &mut Verdict) {
        for (attempt, outcome) in &self.attempts {
            match *outcome {
                Outcome::Acked(start) => {
                    for (offset, acked) in (0..).zip(attempt.ids()) {
                        stream.check_acked(start + offset, acked, verdict);
                    }
                }
                Outcome::Unknown => {
                    let present = attempt.ids().filter(|id| stream.position(*id).is_some());
                    let present = present.count() as u64;
                    let together = stream.start_of(attempt).is_some();
                    match (present, together) {
                        (0, _) => verdict.vanished += 1,
                        (_, true) => verdict.landed += 1,
                        _ => verdict.add(Violation::Torn {
                            first: attempt.first,
                            count: attempt.count,
                            present,
                        }),
                    }
                }
                // `check_origins` finds these.
                Outcome::Refused => {}
            }
        }
    }

    /// Checks that the records of a writer, and the appends of a session, are in the order of sending.
    fn check_order(&self, stream: &Contents, verdict: &mut Verdict) {
        let mut last_of_writer: HashMap<u32, u64> = HashMap::new();
        let mut missing_of_session: HashMap<u32, RecordId> = HashMap::new();
        // Attempts are in the order of sending, for each writer and each session.
        for (attempt, _) in &self.attempts {
            let mut present = false;
            for id in attempt.ids() {
                let Some(seq_num) = stream.position(id) else {
                    continue;
                };
                present = true;
                match last_of_writer.get(&id.writer) {
                    Some(&earlier_at) if seq_num < earlier_at => {
                        verdict.add(Violation::Reordered {
                            id,
                            seq_num,
                            earlier_at,
                        });
                    }
                    _ => {
                        last_of_writer.insert(id.writer, seq_num);
                    }
                }
            }
            let Some(session) = attempt.session else {
                continue;
            };
            match (present, missing_of_session.get(&session)) {
                (true, Some(&missing)) => verdict.add(Violation::SessionSkipped {
                    missing,
                    present: attempt.first,
                }),
                (true, None) => {}
                (false, _) => {
                    missing_of_session.entry(session).or_insert(attempt.first);
                }
            }
        }
    }

    /// Checks that followers read what the stream holds, in order and without holes.
    fn check_followers(&self, stream: &Contents, verdict: &mut Verdict) {
        for seen in &self.followers {
            let mut next = None;
            for record in seen {
                let seq_num = record.seq_num;
                if let Some(expected) = next.filter(|expected| *expected != seq_num) {
                    let found = seq_num;
                    verdict.add(Violation::FollowerHole { expected, found });
                }
                next = Some(seq_num + 1);
                let there = stream.at(seq_num);
                let same = there.is_some_and(|there| {
                    there.id == record.id && there.timestamp == record.timestamp
                });
                if !same {
                    verdict.add(Violation::FollowerSaw {
                        seq_num,
                        saw: record.id,
                        found: there.and_then(|there| there.id),
                    });
                }
            }
        }
    }

    /// Settles unknown outcomes by the content of the stream.
    fn resolve(&mut self, stream: &Contents) {
        for (attempt, outcome) in &mut self.attempts {
            if *outcome == Outcome::Unknown {
                *outcome = match stream.start_of(attempt) {
                    Some(start) => Outcome::Acked(start),
                    None => Outcome::Refused,
                };
            }
        }
    }

    /// For each writer, the numbers of its attempts, in the order of their records.
    fn by_writer(&self) -> HashMap<u32, Vec<usize>> {
        let mut sent: HashMap<u32, Vec<usize>> = HashMap::new();
        for (number, (attempt, _)) in self.attempts.iter().enumerate() {
            sent.entry(attempt.first.writer).or_default().push(number);
        }
        for numbers in sent.values_mut() {
            numbers.sort_by_key(|number| self.attempts[*number].0.first.index);
        }
        sent
    }
}

impl Attempt {
    /// Its records, in order.
    fn ids(&self) -> impl Iterator<Item = RecordId> + use<> {
        let RecordId { writer, index } = self.first;
        (index..index + self.count).map(move |index| RecordId { writer, index })
    }
}

/// The attempt that sent `id`.
fn find<'a>(
    sent: &HashMap<u32, Vec<usize>>,
    attempts: &'a [(Attempt, Outcome)],
    id: RecordId,
) -> Option<&'a (Attempt, Outcome)> {
    let numbers = sent.get(&id.writer)?;
    let after = numbers.partition_point(|number| attempts[*number].0.first.index <= id.index);
    let found = &attempts[*numbers.get(after.checked_sub(1)?)?];
    (id.index < found.0.first.index + found.0.count).then_some(found)
}

/// Checks that sequence numbers begin at 0 and have no holes, the tail follows the last one, and timestamps
/// do not decrease.
fn check_positions(contents: &[Seen], tail: u64, verdict: &mut Verdict) {
    let mut expected = 0;
    let mut timestamp = 0;
    for record in contents {
        if record.seq_num != expected {
            let found = record.seq_num;
            verdict.add(Violation::Hole { expected, found });
        }
        if record.timestamp < timestamp {
            let seq_num = record.seq_num;
            verdict.add(Violation::TimeWentBack { seq_num });
        }
        expected = record.seq_num + 1;
        timestamp = record.timestamp;
    }
    if tail != expected {
        let end = expected;
        verdict.add(Violation::Tail { tail, end });
    }
}

/// A stream's records, indexed by position and by identity.
struct Contents {
    by_position: HashMap<u64, Seen>,
    by_id: HashMap<RecordId, u64>,
}

impl Contents {
    fn index(contents: &[Seen], verdict: &mut Verdict) -> Self {
        let mut by_id = HashMap::with_capacity(contents.len());
        for record in contents {
            let Some(id) = record.id else { continue };
            let second = record.seq_num;
            if let Some(&first) = by_id.get(&id) {
                verdict.add(Violation::Duplicate { id, first, second });
            } else {
                by_id.insert(id, second);
            }
        }
        let by_position = contents.iter().map(|record| (record.seq_num, *record));
        Self {
            by_position: by_position.collect(),
            by_id,
        }
    }

    fn at(&self, seq_num: u64) -> Option<&Seen> {
        self.by_position.get(&seq_num)
    }

    /// The first position of a record.
    fn position(&self, id: RecordId) -> Option<u64> {
        self.by_id.get(&id).copied()
    }

    /// The first position of an append, if all its records are consecutive and in order.
    fn start_of(&self, attempt: &Attempt) -> Option<u64> {
        let start = self.position(attempt.first)?;
        let together = (start..)
            .zip(attempt.ids())
            .all(|(seq_num, id)| self.position(id) == Some(seq_num));
        together.then_some(start)
    }

    fn check_acked(&self, seq_num: u64, acked: RecordId, verdict: &mut Verdict) {
        let there = self.at(seq_num);
        if there.is_some_and(|there| there.id == Some(acked)) {
            return;
        }
        if let Some(there) = there {
            let found = there.id;
            verdict.add(Violation::OtherData {
                seq_num,
                acked,
                found,
            });
        }
        if self.position(acked).is_none() {
            verdict.add(Violation::Lost { id: acked, seq_num });
        } else if there.is_none() {
            let found = None;
            verdict.add(Violation::OtherData {
                seq_num,
                acked,
                found,
            });
        }
    }
}

#[cfg(test)]
mod tests;
