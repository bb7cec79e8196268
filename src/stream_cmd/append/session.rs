//! Batches on their way over append sessions.

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

/// Bytes of batches that are under way, which is also what this keeps in memory of them.
const UNACKNOWLEDGED_BYTES: u32 = 8 * 1024 * 1024;
/// How often others may append between this command's batches until these are sent without a condition on
/// their sequence numbers: each time, what was under way is sent again.
const MAX_MISMATCHES: u32 = 3;

/// Why it ended without failing.
pub enum End {
    /// The input ended, and everything is acknowledged.
    Input,
    /// Ctrl-C; what was under way is acknowledged.
    Interrupted,
}

/// Batches on their way.
pub struct Appending<'a> {
    connection: &'a Connection,
    args: &'a Args,
    bar: ProgressBar,
    /// The sequence number that the next batch has to get, if that matters.
    expected: Option<u64>,
    /// Where the stream ended before the first batch.
    tail: u64,
    /// The sequence number that the next batch gets if nobody else appends; none if that is not made a
    /// condition.
    next: Option<u64>,
    /// How often others have appended in between.
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
    /// Those that came.
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
    /// The server is away; what was under way is in doubt.
    Away(Failure),
    /// Others have appended, up to this sequence number; what was under way is not in the stream, or in
    /// doubt.
    Others(u64),
    /// There is no point in going on.
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
        // Nothing is repeated if nobody waits for a server that goes away.
        let repeats = !args.patience().is_zero() && args.match_seq_num.is_none();
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
                    if self.args.patience().is_zero()
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
                    // Without a line to append there is no need of a server.
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

    /// Whether the server took nothing of the first batch, and nobody has said how long it is waited for:
    /// whoever begins wants to know why. Who is in the middle waits.
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
        // It waits until what is under way leaves room for it.
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

    /// Only acknowledgements are waited for any more.
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

    /// What was not sent comes behind what was.
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

    /// A batch that is not sent yet, with the sequence number that it has to get.
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

    /// Waits for the next batch of the input; whether there is one.
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

    /// The session is over: looks at what else was under way.
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
        // A condition that nobody asked for.
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

    /// Waits for the server, and brings what was under way into the stream.
    async fn resume(&mut self) -> Result<(), Failure> {
        let resumption = Resumption {
            connection: self.connection,
            target: &self.args.stream,
            fencing_token: self.args.fencing_token.as_ref(),
            from: self.done.range.map_or(self.tail, |(_, end)| end),
            patience: self.args.patience(),
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

    /// Nothing more is tried: what is in doubt stays so.
    fn given_up(&mut self, failure: Failure) -> Failure {
        let unknown = self.doubtful.iter().filter(|batch| batch.may_be_there);
        self.done.unknown = unknown.map(|batch| batch.records.len() as u64).sum();
        failure
    }
}

/// Where the stream ends, if an append was refused because its records would not have got the sequence number
/// that was asked for.
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

/// The answer to the oldest batch under way. Safe to drop before it answers.
async fn next(under_way: &mut VecDeque<Under>) -> (Under, Result<AppendAck, AppendSessionError>) {
    let answer = match under_way.front_mut() {
        Some(under) => (&mut under.ticket).await,
        None => std::future::pending().await,
    };
    match under_way.pop_front() {
        Some(under) => (under, answer),
        // There was one a moment ago.
        None => std::future::pending().await,
    }
}
