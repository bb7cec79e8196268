//! Batches under way over append sessions.

use std::collections::VecDeque;

use futures::FutureExt as _;
use indicatif::ProgressBar;
use s2_sdk::append_session::{AppendSessionConfig, BatchSubmitPermit, BatchSubmitTicket};
use s2_sdk::error::{AppendConditionFailed, AppendError, AppendSessionError};
use s2_sdk::types::{AppendAck, AppendInput, MeteredBytes as _};
use tokio::sync::mpsc;

use super::Args;
use super::summary::Done;
use crate::failure::Failure;
use crate::interrupts::Interrupts;
use crate::stream_cmd::connection::Connection;
use crate::stream_cmd::lines::{Batch, LineError};
use crate::stream_cmd::resumption::{self, Doubtful, Resumption, Settled};
use crate::term::{plain_lines, records};

/// Limit of the bytes of batches under way, and of the memory for them.
const UNACKNOWLEDGED_BYTES: u32 = 8 * 1024 * 1024;
/// How often other clients may append between this command's batches before these are sent without a
/// condition on their sequence numbers: each time, the batches under way are sent again.
const MAX_MISMATCHES: u32 = 3;

/// How an append ended that did not fail.
pub enum End {
    /// The input ended, and everything is acknowledged.
    Input,
    /// Ctrl-C; the batches under way are acknowledged.
    Interrupted,
}

/// An append: the batches under way, and those to be sent.
pub struct Appending<'a> {
    connection: &'a Connection,
    args: &'a Args,
    bar: ProgressBar,
    /// The sequence number that the next batch has to get, if `--match-seq-num` was given.
    expected: Option<u64>,
    /// Where the stream ended before the first batch.
    tail: u64,
    /// The sequence number that the next batch gets if no other client appends; `None` if batches are sent
    /// without this condition.
    next: Option<u64>,
    /// How often other clients have appended in between.
    mismatches: u32,
    /// Batches that are certainly not in the stream, and are sent before the next line is read.
    again: VecDeque<Doubtful>,
    under_way: VecDeque<Under>,
    /// Batches of a session that broke, in order.
    doubtful: VecDeque<Doubtful>,
    /// Whether there may be more input.
    open: bool,
    bad_line: Option<LineError>,
    signals: Interrupts,
    /// Signals that arrived.
    interrupts: u32,
    pub done: Done,
}

/// A batch under way.
struct Under {
    ticket: BatchSubmitTicket,
    batch: Doubtful,
}

/// Why a session ended before everything was acknowledged.
enum Broken {
    /// The server is unreachable or takes nothing; the batches under way are in doubt.
    Away(Failure),
    /// Other clients have appended, up to this sequence number; the batches under way are not in the stream,
    /// or in doubt.
    Others(u64),
    /// A retry would not help.
    Over(Failure),
}

impl<'a> Appending<'a> {
    pub fn new(
        connection: &'a Connection,
        args: &'a Args,
        bar: ProgressBar,
        tail: u64,
        signals: Interrupts,
    ) -> Self {
        // With a reconnect timeout of zero nothing is repeated, so no condition is needed.
        let repeats = !args.retry_timeout().is_zero() && args.match_seq_num.is_none();
        Appending {
            connection,
            args,
            bar,
            expected: args.match_seq_num,
            tail,
            next: repeats.then_some(tail),
            mismatches: 0,
            again: VecDeque::new(),
            under_way: VecDeque::new(),
            doubtful: VecDeque::new(),
            open: true,
            bad_line: None,
            signals,
            interrupts: 0,
            done: Done::new(),
        }
    }

    pub async fn run(
        &mut self,
        mut batches: mpsc::Receiver<Result<Batch, LineError>>,
    ) -> Result<End, Failure> {
        loop {
            match self.session(&mut batches).await {
                Ok(()) => break,
                Err(Broken::Over(failure)) => return Err(self.given_up(failure)),
                Err(Broken::Away(failure))
                    if self.args.retry_timeout().is_zero()
                        || self.interrupts > 0
                        || self.is_refused_at_once(&failure) =>
                {
                    return Err(self.given_up(failure));
                }
                Err(Broken::Others(tail)) => {
                    self.mismatches += 1;
                    self.next = (self.mismatches < MAX_MISMATCHES).then_some(tail);
                    if self.doubtful.iter().any(|batch| batch.may_be_there) {
                        if let Err(failure) = self.resume().await {
                            return Err(self.given_up(failure));
                        }
                    } else {
                        self.again = std::mem::take(&mut self.doubtful);
                    }
                }
                Err(Broken::Away(failure)) => {
                    let address = self.connection.address();
                    let why = plain_lines(&failure.message);
                    remark(&if resumption::is_refusal(&failure) {
                        format!("[{address} takes nothing: {why}; waiting until it does]")
                    } else if resumption::is_unknown(&failure) {
                        format!("[{address}: {why}; waiting until that is known]")
                    } else {
                        format!("[lost {address}; waiting for it]")
                    });
                    // Without a line to append, the server is not needed.
                    if self.doubtful.is_empty() && !self.next_batch(&mut batches).await {
                        break;
                    }
                    if let Err(failure) = self.resume().await {
                        return Err(self.given_up(failure));
                    }
                    remark("[connected again]");
                }
            }
        }
        match self.bad_line.take() {
            Some(error) => Err(Failure::wrong("input", error)),
            None if self.interrupts > 0 => Ok(End::Interrupted),
            None => Ok(End::Input),
        }
    }

    /// Whether the server refused the first batch, and `--reconnect` was not given. Such a refusal ends the
    /// command, so that the user learns the reason; a later one is retried.
    fn is_refused_at_once(&self, failure: &Failure) -> bool {
        let is_first = self.done.records == 0 && self.args.reconnect.is_none();
        is_first && resumption::is_refusal(failure)
    }

    /// Appends until the input ends and everything is acknowledged.
    async fn session(
        &mut self,
        batches: &mut mpsc::Receiver<Result<Batch, LineError>>,
    ) -> Result<(), Broken> {
        let config = AppendSessionConfig::new()
            .with_max_unacked_bytes(UNACKNOWLEDGED_BYTES)
            .map_err(|e| Broken::Over(Failure::wrong("client", e)))?;
        let session = self
            .connection
            .session(&self.args.stream)
            .append_session(config);
        // A batch that waits until the batches under way leave room for it.
        let mut waiting: Option<Doubtful> = None;
        loop {
            waiting = waiting.or_else(|| self.again.pop_front());
            if !self.open && waiting.is_none() && self.under_way.is_empty() {
                break;
            }
            let bytes = waiting.as_ref().map_or(0, |b| b.records.metered_bytes());
            let bytes = u32::try_from(bytes).unwrap_or(u32::MAX);
            tokio::select! {
                biased;
                () = self.signals.next() => {
                    self.interrupts += 1;
                    if self.interrupts > 1 {
                        self.broken(&AppendSessionError::SessionDropped);
                        return Err(Broken::Over(interrupted()));
                    }
                    self.open = false;
                    waiting = None;
                    self.again.clear();
                    self.say_what_is_under_way();
                }
                answer = next(&mut self.under_way), if !self.under_way.is_empty() => {
                    let answered = self.answered(answer);
                    if answered.is_err() {
                        self.never_sent(waiting.take());
                    }
                    answered?;
                }
                permit = session.reserve(bytes), if waiting.is_some() => match permit {
                    Ok(permit) => self.submit(permit, waiting.take()),
                    Err(error) => {
                        let broken = self.broken(&error);
                        self.never_sent(waiting.take());
                        return Err(broken);
                    }
                },
                batch = batches.recv(), if self.open && waiting.is_none() => match batch {
                    Some(Ok(batch)) => waiting = Some(self.numbered(batch)),
                    Some(Err(error)) => {
                        self.bad_line = Some(error);
                        self.open = false;
                    }
                    None => self.open = false,
                },
            }
        }
        let closed = tokio::select! {
            closed = session.close() => closed,
            () = self.signals.next() => {
                self.interrupts += 1;
                // Everything is acknowledged.
                Ok(())
            }
        };
        let Err(error) = closed else {
            return Ok(());
        };
        let broken = self.broken(&error);
        match self.doubtful.is_empty() {
            // Everything is acknowledged, so nothing depends on how the session ends.
            true => Ok(()),
            false => Err(broken),
        }
    }

    /// Prints how many records the command still waits for.
    fn say_what_is_under_way(&self) {
        let under_way = self.under_way.iter().map(|under| under.batch.records.len());
        match under_way.sum::<usize>() as u64 {
            0 => {}
            n => remark(&format!(
                "Waiting until {} are acknowledged; once more ends at once.",
                records(n)
            )),
        }
    }

    /// Puts batches that were not sent behind those that were.
    fn never_sent(&mut self, batch: Option<Doubtful>) {
        self.doubtful.extend(batch);
        self.doubtful.append(&mut self.again);
    }

    fn submit(&mut self, permit: BatchSubmitPermit, batch: Option<Doubtful>) {
        let Some(batch) = batch else { return };
        let mut input = AppendInput::new(batch.records.clone());
        if let Some(condition) = batch.expected.or(self.next) {
            input = input.with_match_seq_num(condition);
        }
        if let Some(next) = &mut self.next {
            *next += batch.records.len() as u64;
        }
        if let Some(token) = &self.args.fencing_token {
            input = input.with_fencing_token(token.clone());
        }
        let ticket = permit.submit(input);
        let batch = Doubtful {
            may_be_there: true,
            ..batch
        };
        self.under_way.push_back(Under { ticket, batch });
    }

    /// A batch that was not sent yet, with the sequence number that it has to get.
    fn numbered(&mut self, batch: Batch) -> Doubtful {
        let expected = self.expected;
        if let Some(expected) = &mut self.expected {
            *expected += batch.records.len() as u64;
        }
        Doubtful {
            records: batch.records,
            read: batch.read,
            expected,
            may_be_there: false,
        }
    }

    /// Waits for the next batch of the input. Returns whether there is one.
    async fn next_batch(&mut self, batches: &mut mpsc::Receiver<Result<Batch, LineError>>) -> bool {
        let batch = match self.open {
            false => None,
            true => tokio::select! {
                batch = batches.recv() => batch,
                () = self.signals.next() => {
                    self.interrupts += 1;
                    None
                }
            },
        };
        match batch {
            Some(Ok(batch)) => {
                let batch = self.numbered(batch);
                self.doubtful.push_back(batch);
                return true;
            }
            Some(Err(error)) => self.bad_line = Some(error),
            None => {}
        }
        self.open = false;
        false
    }

    fn answered(
        &mut self,
        (under, answer): (Under, Result<AppendAck, AppendSessionError>),
    ) -> Result<(), Broken> {
        match answer {
            Ok(ack) => {
                self.acknowledged(ack.start.seq_num, &under.batch);
                Ok(())
            }
            Err(error) => {
                self.doubt(under.batch, &error);
                Err(self.broken(&error))
            }
        }
    }

    fn acknowledged(&mut self, first_seq_num: u64, batch: &Doubtful) {
        self.done.acknowledged(first_seq_num, &batch.records);
        self.bar.inc(batch.read);
    }

    fn doubt(&mut self, batch: Doubtful, error: &AppendSessionError) {
        self.doubtful.push_back(Doubtful {
            may_be_there: !error.has_no_side_effects(),
            ..batch
        });
    }

    /// Ends the session: sorts the other batches under way into acknowledged and in doubt.
    fn broken(&mut self, error: &AppendSessionError) -> Broken {
        for mut under in std::mem::take(&mut self.under_way) {
            match (&mut under.ticket).now_or_never() {
                Some(Ok(ack)) => self.acknowledged(ack.start.seq_num, &under.batch),
                Some(Err(error)) => self.doubt(under.batch, &error),
                None => self.doubtful.push_back(Doubtful {
                    may_be_there: true,
                    ..under.batch
                }),
            }
        }
        // The failed condition was this command's own, not the user's.
        if let (Some(tail), None) = (mismatch(error), self.args.match_seq_num) {
            return Broken::Others(tail);
        }
        let asked = self.connection.asked_stream(&self.args.stream);
        let failure = asked.append_session(error);
        match resumption::is_away(&failure) {
            true => Broken::Away(failure),
            false => Broken::Over(failure),
        }
    }

    /// Waits for the server, and ensures that the batches in doubt are in the stream.
    async fn resume(&mut self) -> Result<(), Failure> {
        let resumption = Resumption {
            connection: self.connection,
            target: &self.args.stream,
            fencing_token: self.args.fencing_token.as_ref(),
            from: self.done.range.map_or(self.tail, |(_, end)| end),
            retry_timeout: self.args.retry_timeout(),
        };
        let mut doubtful = std::mem::take(&mut self.doubtful);
        let mut settled = Vec::new();
        let result = tokio::select! {
            result = resumption.run(&mut doubtful, |one| settled.push(one)) => result,
            () = self.signals.next() => Err(interrupted()),
        };
        for Settled {
            batch,
            first_seq_num,
        } in &settled
        {
            self.acknowledged(*first_seq_num, batch);
        }
        self.doubtful = doubtful;
        let tail = result?;
        self.next = self.next.map(|_| tail);
        Ok(())
    }

    /// Gives up: counts the records that stay in doubt.
    fn given_up(&mut self, failure: Failure) -> Failure {
        let unknown = self.doubtful.iter().filter(|batch| batch.may_be_there);
        self.done.unknown = unknown.map(|batch| batch.records.len() as u64).sum();
        failure
    }
}

/// The tail of the stream, if an append was refused because its records would not have got the expected
/// sequence number.
fn mismatch(error: &AppendSessionError) -> Option<u64> {
    match error {
        AppendSessionError::Append(AppendError::ConditionFailed(
            AppendConditionFailed::SeqNumMismatch(tail),
        )) => Some(*tail),
        AppendSessionError::IndefiniteFailure {
            final_attempt_error,
        } => mismatch(final_attempt_error),
        _ => None,
    }
}

fn interrupted() -> Failure {
    Failure::wrong("interrupted", "interrupted")
}

fn remark(text: &str) {
    remark!("{text}");
}

/// The answer to the oldest batch under way. Cancel safe.
async fn next(under_way: &mut VecDeque<Under>) -> (Under, Result<AppendAck, AppendSessionError>) {
    let answer = match under_way.front_mut() {
        Some(under) => (&mut under.ticket).await,
        None => std::future::pending().await,
    };
    match under_way.pop_front() {
        Some(under) => (under, answer),
        // Unreachable: the batch was there before the wait.
        None => std::future::pending().await,
    }
}
