//! The writers that append while the server is killed.
//!
//! Each appender is a writer with its own identity, new in each round. It records every append in the
//! stream's history before it sends it, and the answer afterwards, so that it may be ended at any moment: an
//! append without an answer is unknown. Requests are never repeated.
//!
//! Some answers are wrong whatever the stream holds, for instance the acceptance of an append whose condition
//! was false; these are recorded at once.

use std::{
    collections::VecDeque,
    num::NonZeroU32,
    ops::ControlFlow,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use rand::{Rng, SeedableRng, rngs::StdRng};
use s2_sdk::{
    S2Stream,
    append_session::AppendSessionConfig,
    error::{AppendConditionFailed, AppendError},
    types::{AppendAck, AppendInput, AppendRecord, AppendRecordBatch, CommandRecord},
};

use testkit_server::history::{
    checker::{Attempt, AttemptId, Outcome},
    record,
    record_id::RecordId,
};

use super::subject::Subject;

/// Most records in one append. With bodies of at most 32 KiB they stay below the API's limit of 1 MiB.
const BATCH_RECORDS: u64 = 10;

/// Unacknowledged appends of a session: the most that a kill leaves unknown.
const SESSION_IN_FLIGHT: u32 = 16;

/// Appends after which a session is closed and the next one opened.
const SESSION_APPENDS: usize = 200;

/// Pause after an error, so that a server that refuses everything is not overloaded.
const PAUSE_AFTER_ERROR: Duration = Duration::from_millis(10);

/// Set when the server has been killed and appenders should end.
pub type Stop = Arc<AtomicBool>;

/// A writer to one stream.
pub struct Appender {
    subject: Arc<Subject>,
    stream: S2Stream,
    next: RecordId,
    random: StdRng,
    stop: Stop,
}

/// The outcome of an append.
enum Answer {
    Acked(AppendAck),
    ConditionFailed(AppendConditionFailed),
    /// It had no effect, for another reason.
    Refused,
    /// It may have had an effect.
    Lost,
}

impl Appender {
    /// A new writer to `stream`, which is `subject`.
    pub fn new(subject: Arc<Subject>, stream: S2Stream, seed: u64, stop: Stop) -> Self {
        let next = subject.new_writer();
        Self {
            subject,
            stream,
            next,
            random: StdRng::seed_from_u64(seed),
            stop,
        }
    }

    /// Appends without conditions, one append after the other.
    pub async fn plain(mut self) -> anyhow::Result<()> {
        while !self.stopped() {
            let (attempt, input) = self.batch(None)?;
            match self.append(attempt, input).await {
                Answer::Acked(_) => self.pause().await,
                Answer::ConditionFailed(condition) => {
                    let wrong = format!("an append without condition was refused: {condition}");
                    self.subject.wrong_answer(wrong);
                }
                Answer::Refused | Answer::Lost => tokio::time::sleep(PAUSE_AFTER_ERROR).await,
            }
        }
        Ok(())
    }

    /// Appends in append sessions, several appends unacknowledged at any time.
    pub async fn sessions(mut self) -> anyhow::Result<()> {
        while !self.stopped() {
            if self.one_session().await?.is_break() {
                tokio::time::sleep(PAUSE_AFTER_ERROR).await;
            }
        }
        Ok(())
    }

    /// One session; breaks if it failed.
    async fn one_session(&mut self) -> anyhow::Result<ControlFlow<()>> {
        let limit = NonZeroU32::new(SESSION_IN_FLIGHT).unwrap_or(NonZeroU32::MIN);
        let config = AppendSessionConfig::new().with_max_unacked_batches(limit);
        let session = self.stream.append_session(config);
        let number = self.subject.new_number();
        let mut tickets = VecDeque::new();
        for _ in 0..SESSION_APPENDS {
            if self.stopped() {
                break;
            }
            let (attempt, input) = self.batch(Some(number))?;
            // Appends in flight at an error stay unknown: they may have arrived.
            let Ok(ticket) = session.submit(input).await else {
                return Ok(ControlFlow::Break(()));
            };
            tickets.push_back((attempt, ticket));
            if tickets.len() >= SESSION_IN_FLIGHT as usize
                && let Some((attempt, ticket)) = tickets.pop_front()
            {
                let Ok(ack) = ticket.await else {
                    return Ok(ControlFlow::Break(()));
                };
                self.settle_acked(attempt, &ack);
            }
            self.pause().await;
        }
        for (attempt, ticket) in tickets {
            let Ok(ack) = ticket.await else {
                return Ok(ControlFlow::Break(()));
            };
            self.settle_acked(attempt, &ack);
        }
        Ok(match session.close().await {
            Ok(()) => ControlFlow::Continue(()),
            Err(_) => ControlFlow::Break(()),
        })
    }

    /// Demands the next sequence number with each append, as the only writer of its stream.
    /// Sometimes it demands a wrong one, and must be refused.
    pub async fn conditional(mut self) -> anyhow::Result<()> {
        /// What the writer knows about the sequence number that comes next.
        enum Next {
            /// It is this one.
            Certain(u64),
            /// It was this one, but an append with a lost answer may still land.
            Doubtful(u64),
        }
        let mut next = match self.stream.check_tail().await {
            Ok(tail) => Next::Certain(tail.seq_num),
            Err(_) => return Ok(()),
        };
        while !self.stopped() {
            let (expected, certain) = match next {
                Next::Certain(expected) => (expected, true),
                Next::Doubtful(expected) => (expected, false),
            };
            let wrong = self.random.random_ratio(1, 8);
            let demanded = if wrong { expected + 1 } else { expected };
            let (attempt, input) = self.batch(None)?;
            match self
                .append(attempt, input.with_match_seq_num(demanded))
                .await
            {
                Answer::Acked(ack) => {
                    if wrong && certain || ack.start.seq_num != demanded {
                        self.subject.wrong_answer(format!(
                            "with the sequence number {demanded} demanded and {expected} due, an \
                             append was acknowledged at {}",
                            ack.start.seq_num
                        ));
                    }
                    next = Next::Certain(ack.end.seq_num);
                }
                Answer::ConditionFailed(AppendConditionFailed::SeqNumMismatch(actual)) => {
                    if certain && (!wrong || actual != expected) {
                        self.subject.wrong_answer(format!(
                            "with the sequence number {demanded} demanded and {expected} due, an \
                             append was refused because {actual} is due"
                        ));
                    }
                    next = if certain {
                        Next::Certain(actual)
                    } else {
                        Next::Doubtful(actual)
                    };
                }
                Answer::ConditionFailed(condition) => {
                    let wrong = format!("an append without token was refused: {condition}");
                    self.subject.wrong_answer(wrong);
                }
                Answer::Refused => tokio::time::sleep(PAUSE_AFTER_ERROR).await,
                Answer::Lost => {
                    next = Next::Doubtful(expected);
                    tokio::time::sleep(PAUSE_AFTER_ERROR).await;
                }
            }
            self.pause().await;
        }
        Ok(())
    }

    /// Takes the fencing token and appends with it. The token of the round before must still be
    /// in force until then.
    pub async fn fenced(mut self) -> anyhow::Result<()> {
        let before = self.subject.fence.lock().clone();
        if let Some(token) = before {
            self.append_with_token(&token).await?;
            self.append_with_wrong_token(Some(&token)).await?;
        }
        let token = self.take_fence().await?;
        let Some(token) = token else {
            return Ok(());
        };
        while !self.stopped() {
            if self.random.random_ratio(1, 8) {
                self.append_with_wrong_token(Some(&token)).await?;
            } else {
                self.append_with_token(&token).await?;
            }
            self.pause().await;
        }
        Ok(())
    }

    /// Appends with a token that is never in force, as long as one is.
    pub async fn rival(mut self) -> anyhow::Result<()> {
        while !self.stopped() {
            if self.subject.fence.lock().is_some() {
                self.append_with_wrong_token(None).await?;
            }
            tokio::time::sleep(PAUSE_AFTER_ERROR).await;
        }
        Ok(())
    }

    /// Sets a new fencing token; `None` if it is uncertain whether it is in force.
    async fn take_fence(&mut self) -> anyhow::Result<Option<String>> {
        let first = self.take_ids(1);
        let token = record::fencing_token(self.subject.tag, first);
        let fence = AppendRecord::from(CommandRecord::fence(token.parse()?));
        let input = AppendInput::new(AppendRecordBatch::try_from_iter([fence])?);
        let attempt = Attempt {
            first,
            count: 1,
            session: None,
        };
        let attempt = (self.subject.history.lock().begin(attempt), 1);
        *self.subject.fence.lock() = None;
        let Answer::Acked(_) = self.append(attempt, input).await else {
            return Ok(None);
        };
        *self.subject.fence.lock() = Some(token.clone());
        Ok(Some(token))
    }

    async fn append_with_token(&mut self, token: &str) -> anyhow::Result<()> {
        let (attempt, input) = self.batch(None)?;
        let input = input.with_fencing_token(token.parse()?);
        match self.append(attempt, input).await {
            Answer::ConditionFailed(condition) => self.subject.wrong_answer(format!(
                "an append with the token in force, {token}, was refused: {condition}"
            )),
            Answer::Acked(_) => {}
            Answer::Refused | Answer::Lost => tokio::time::sleep(PAUSE_AFTER_ERROR).await,
        }
        Ok(())
    }

    /// Appends with a wrong token; `in_force` is the right one, if that is certain.
    async fn append_with_wrong_token(&mut self, in_force: Option<&str>) -> anyhow::Result<()> {
        let (attempt, input) = self.batch(None)?;
        let input = input.with_fencing_token("rival".parse()?);
        match self.append(attempt, input).await {
            Answer::Acked(ack) => self.subject.wrong_answer(format!(
                "an append with a wrong token was acknowledged at {}",
                ack.start.seq_num
            )),
            Answer::ConditionFailed(AppendConditionFailed::FencingTokenMismatch(actual)) => {
                if in_force.is_some_and(|in_force| *actual != *in_force) {
                    self.subject.wrong_answer(format!(
                        "the token in force is {in_force:?}, the server says {actual}"
                    ));
                }
            }
            Answer::ConditionFailed(condition) => {
                let wrong = format!("a wrong token was refused with another reason: {condition}");
                self.subject.wrong_answer(wrong);
            }
            Answer::Refused | Answer::Lost => tokio::time::sleep(PAUSE_AFTER_ERROR).await,
        }
        Ok(())
    }

    /// Makes the next append and notes it.
    fn batch(&mut self, session: Option<u32>) -> anyhow::Result<((AttemptId, u64), AppendInput)> {
        let count = self.random.random_range(1..=BATCH_RECORDS);
        let first = self.take_ids(count);
        let records = (first.index..first.index + count)
            .map(|index| {
                let id = RecordId {
                    writer: first.writer,
                    index,
                };
                AppendRecord::new(record::body(self.subject.tag, id))
            })
            .collect::<Result<Vec<_>, _>>()?;
        let input = AppendInput::new(AppendRecordBatch::try_from_iter(records)?);
        let attempt = Attempt {
            first,
            count,
            session,
        };
        let attempt = self.subject.history.lock().begin(attempt);
        Ok(((attempt, count), input))
    }

    fn take_ids(&mut self, count: u64) -> RecordId {
        let first = self.next;
        self.next.index += count;
        first
    }

    /// Sends an append and notes the answer.
    async fn append(&self, attempt: (AttemptId, u64), input: AppendInput) -> Answer {
        let answer = match self.stream.append(input).await {
            Ok(ack) => Answer::Acked(ack),
            Err(AppendError::ConditionFailed(condition)) => Answer::ConditionFailed(condition),
            // This relies on the server's answer that nothing happened: if something did, the check finds a
            // refused append in the stream.
            Err(error) if error.has_no_side_effects() => Answer::Refused,
            Err(_) => Answer::Lost,
        };
        match &answer {
            Answer::Acked(ack) => self.settle_acked(attempt, ack),
            Answer::ConditionFailed(_) | Answer::Refused => {
                self.subject
                    .history
                    .lock()
                    .settle(attempt.0, Outcome::Refused);
            }
            Answer::Lost => {}
        }
        answer
    }

    fn settle_acked(&self, (attempt, count): (AttemptId, u64), ack: &AppendAck) {
        let (start, end, tail) = (ack.start.seq_num, ack.end.seq_num, ack.tail.seq_num);
        if end.checked_sub(start) != Some(count) || tail < end {
            let wrong = format!("{count} records were acknowledged as {start}..{end}, tail {tail}");
            self.subject.wrong_answer(wrong);
        }
        let acked = Outcome::Acked(start);
        self.subject.history.lock().settle(attempt, acked);
    }

    fn stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    /// Pauses up to 3 ms: a check reads everything that was written, so a higher rate is of no use.
    async fn pause(&mut self) {
        let micros = self.random.random_range(0..3000);
        tokio::time::sleep(Duration::from_micros(micros)).await;
    }
}
