//! Resolves batches that were under way when the connection of an append was lost.
//!
//! They may or may not have been appended. Each is searched for in the stream by its records, after what was
//! acknowledged. A batch that is missing is appended on the condition that nothing was appended since the
//! search; if something was, the search is repeated. So each line is in the stream once, unless another
//! client appends the same lines in one batch meanwhile, which would be taken for ours. Batches are in the
//! stream in order or not at all, so if one is missing, those after it are missing, too.
//!
//! A batch may also arrive after it was searched for and repeated: a proxy of the lost connection, or a
//! server that did not stop, may still hold it. If it was sent on the condition of its sequence number, it is
//! refused then, because the repeated one has that number. Only a batch that was sent without a condition can
//! be in the stream twice; see [`append`](super::append) for when that happens.

use std::collections::VecDeque;
use std::time::Duration;

use futures::StreamExt as _;
use s2_sdk::error::{AppendConditionFailed, AppendError, ReadError, ReadSessionError};
use s2_sdk::types::{
    AppendAck, AppendInput, AppendRecordBatch, FencingToken, ReadFrom, ReadInput, ReadStart,
    ReadStop, SequencedRecord,
};
use tokio::time::Instant;

use super::connection::Connection;
use super::target::StreamTarget;
use crate::failure::Failure;

/// Pause between attempts to reach the server.
const PAUSE: Duration = Duration::from_millis(500);

/// A batch that may or may not have been appended.
pub struct Doubtful {
    pub records: AppendRecordBatch,
    /// Bytes of its lines.
    pub read: u64,
    /// The sequence number that it has to get, if one was given.
    pub expected: Option<u64>,
    /// Whether it may have been appended.
    pub may_be_there: bool,
}

/// A batch that is in the stream.
pub struct Settled {
    pub batch: Doubtful,
    pub first_seq_num: u64,
}

/// The parameters of a resumption.
pub struct Resumption<'a> {
    pub connection: &'a Connection,
    pub target: &'a StreamTarget,
    pub fencing_token: Option<&'a FencingToken>,
    /// Where the search starts: after everything that was acknowledged, or at the tail before the first
    /// batch.
    pub from: u64,
    /// How long to wait for the server.
    pub retry_timeout: Duration,
}

/// Why an attempt failed.
enum Attempt {
    /// A retry may succeed.
    Again(Failure),
    /// A retry cannot succeed.
    Over(Failure),
}

impl Resumption<'_> {
    /// Ensures that batches are in the stream, in order. Each that is there is removed from the front of
    /// `batches` and passed to `settled`; on failure, the rest stays. Returns the tail of the stream.
    ///
    /// # Errors
    ///
    /// The last reason for which it could not be done in time, or why it cannot be done.
    pub async fn run(
        mut self,
        batches: &mut VecDeque<Doubtful>,
        mut settled: impl FnMut(Settled),
    ) -> Result<u64, Failure> {
        let deadline = Instant::now() + self.retry_timeout;
        loop {
            let failure = match self.attempt(batches, deadline, &mut settled).await {
                Ok(tail) => return Ok(tail),
                Err(Attempt::Over(failure)) => return Err(failure),
                Err(Attempt::Again(failure)) => failure,
            };
            if Instant::now() + PAUSE >= deadline {
                return Err(failure);
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    async fn attempt(
        &mut self,
        batches: &mut VecDeque<Doubtful>,
        deadline: Instant,
        settled: &mut impl FnMut(Settled),
    ) -> Result<u64, Attempt> {
        // The server is contacted even without a batch, because the next session needs it.
        let mut tail = self.tail().await?;
        while let Some(batch) = batches.front() {
            if batch.may_be_there
                && let Some(first_seq_num) = self.find(&batch.records, tail).await?
            {
                self.settle(batches, first_seq_num, settled);
                continue;
            }
            // After a missing batch, none of ours is in the stream, except for what is appended here.
            if batch.expected.is_some_and(|expected| expected != tail) {
                let asked = self.connection.asked_stream(self.target);
                return Err(Attempt::Over(asked.seq_num_mismatch(tail)));
            }
            let mut input = AppendInput::new(batch.records.clone()).with_match_seq_num(tail);
            if let Some(token) = self.fencing_token {
                input = input.with_fencing_token(token.clone());
            }
            let was_there_maybe = batch.may_be_there;
            if let Some(batch) = batches.front_mut() {
                // Set before the request, for the case that it is interrupted before the answer.
                batch.may_be_there = true;
            }
            let stream = self.connection.stream(self.target);
            match stream.append(input).await {
                Ok(AppendAck { start, end, .. }) => {
                    tail = end.seq_num;
                    self.settle(batches, start.seq_num, settled);
                }
                Err(AppendError::ConditionFailed(AppendConditionFailed::SeqNumMismatch(now))) => {
                    // Something was appended since the search: by another client, or by an earlier attempt.
                    tail = now;
                    if let Some(batch) = batches.front_mut() {
                        batch.may_be_there = was_there_maybe;
                    }
                    if Instant::now() >= deadline {
                        let asked = self.connection.asked_stream(self.target);
                        return Err(Attempt::Over(asked.contended()));
                    }
                }
                Err(error) => {
                    let failure = self.connection.asked_stream(self.target).append(&error);
                    if let Some(batch) = batches.front_mut() {
                        batch.may_be_there = was_there_maybe || !error.has_no_side_effects();
                    }
                    return Err(later(failure));
                }
            }
        }
        Ok(tail)
    }

    fn settle(
        &mut self,
        batches: &mut VecDeque<Doubtful>,
        first_seq_num: u64,
        settled: &mut impl FnMut(Settled),
    ) {
        if let Some(batch) = batches.pop_front() {
            self.from = first_seq_num + batch.records.len() as u64;
            settled(Settled {
                batch,
                first_seq_num,
            });
        }
    }

    async fn tail(&self) -> Result<u64, Attempt> {
        let tail = self.connection.stream(self.target).check_tail().await;
        let asked = self.connection.asked_stream(self.target);
        tail.map(|tail| tail.seq_num)
            .map_err(|error| later(asked.read(&error)))
    }

    /// The position of a batch in the stream: its records, consecutive and before `tail`.
    async fn find(&self, batch: &AppendRecordBatch, tail: u64) -> Result<Option<u64>, Attempt> {
        if self.from >= tail {
            return Ok(None);
        }
        let start = ReadStart::new().with_from(ReadFrom::SeqNum(self.from));
        let input = ReadInput::new()
            .with_start(start)
            .with_stop(ReadStop::new().with_wait(0));
        let asked = self.connection.asked_stream(self.target);
        let lost = |error: &ReadSessionError| later(asked.read_session(error));
        let stream = self.connection.session(self.target);
        let mut session = match stream.read_session(input, Default::default()).await {
            Ok(session) => session,
            Err(ReadSessionError::Read(ReadError::ReadUnwritten(_))) => return Ok(None),
            Err(error) => return Err(lost(&error)),
        };
        let mut search = Search::new(batch);
        let mut next = self.from;
        while next < tail {
            let read = match session.next().await {
                Some(Ok(read)) => read,
                Some(Err(error)) => return Err(lost(&error)),
                None => break,
            };
            for record in &read.records {
                if record.seq_num != next {
                    return Err(Attempt::Over(asked.trimmed_in_doubt(next)));
                }
                next += 1;
                if record.seq_num < tail && search.feed(record) {
                    return Ok(Some(next - batch.len() as u64));
                }
            }
        }
        match next < tail {
            true => Err(Attempt::Over(asked.trimmed_in_doubt(next))),
            false => Ok(None),
        }
    }
}

/// Sorts a failure: a retry may succeed where [`is_away`] holds.
fn later(failure: Failure) -> Attempt {
    match is_away(&failure) {
        true => Attempt::Again(failure),
        false => Attempt::Over(failure),
    }
}

/// Whether a failure means that the server is unreachable, about to stop, takes nothing at the moment, or
/// does not know the outcome of a batch.
pub fn is_away(failure: &Failure) -> bool {
    is_refusal(failure)
        || is_unknown(failure)
        || matches!(failure.code, "unreachable" | "server_draining")
}

/// Whether a failure means that the server is reachable, and does not know yet whether a batch will be
/// written: its disk hangs or is full, for example.
pub fn is_unknown(failure: &Failure) -> bool {
    failure.code == "other"
}

/// Whether a failure means that the server is reachable, and takes nothing at the moment for a reason that it
/// names.
pub fn is_refusal(failure: &Failure) -> bool {
    matches!(failure.code, "rate_limited" | "hot_server")
}

/// Searches a stream for the records of a batch.
struct Search<'a> {
    batch: &'a AppendRecordBatch,
    /// For each position where the batch may begin, how many of its records have matched so far.
    begun: Vec<usize>,
}

impl<'a> Search<'a> {
    fn new(batch: &'a AppendRecordBatch) -> Search<'a> {
        Search {
            batch,
            begun: Vec::new(),
        }
    }

    /// Processes the next record. Returns whether it completes the batch.
    fn feed(&mut self, record: &SequencedRecord) -> bool {
        self.begun.push(0);
        let batch = self.batch;
        self.begun.retain_mut(|matched| {
            let ours = &batch[*matched];
            let is_next = record.headers == ours.headers() && ours.body() == &record.body[..];
            *matched += 1;
            is_next
        });
        self.begun.first() == Some(&batch.len())
    }
}

#[cfg(test)]
mod tests {
    use s2_sdk::types::{AppendRecord, Header};

    use super::*;

    /// The index after the batch, if the stream has it.
    fn find(batch: &[&str], stream: &[&str]) -> Option<usize> {
        let records = batch
            .iter()
            .map(|body| AppendRecord::new((*body).to_owned()).unwrap());
        let batch = AppendRecordBatch::try_from_iter(records).unwrap();
        let mut search = Search::new(&batch);
        let record = |body: &str| {
            let headers = match body {
                "command" => vec![Header::new("", "fence")],
                _ => Vec::new(),
            };
            SequencedRecord::from_parts(0, 0, headers, body.as_bytes().to_vec())
        };
        let at = stream.iter().position(|body| search.feed(&record(body)));
        at.map(|at| at + 1)
    }

    #[test]
    fn a_batch_is_found_only_if_its_records_are_there_one_behind_the_other() {
        assert_eq!(find(&["a", "b"], &["x", "a", "b", "a", "b"]), Some(3));
        assert_eq!(find(&["a", "a", "b"], &["a", "a", "a", "b"]), Some(4));
        assert_eq!(find(&["a", "b"], &["a", "x", "b"]), None);
        assert_eq!(find(&["a", "b"], &["a"]), None);
        assert_eq!(find(&["command"], &["command"]), None);
        assert_eq!(find(&["a"], &[]), None);
        let many = ["same"; 1000];
        assert_eq!(find(&many, &many[..999]), None);
        assert_eq!(find(&many, &many), Some(1000));
    }
}
