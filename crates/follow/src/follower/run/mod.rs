//! The task of a follower: it owns the state, reads, applies and publishes.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt as _;
use futures::stream::BoxStream;
use s2_sdk::types::SequencedRecord;
use tokio::sync::{broadcast, mpsc, oneshot, watch};
use tokio::time::Instant;

mod reconnection;
mod snapshots;

use super::recover::{self, Recovered};
use super::snapshot_task::{self, Outcome, SnapshotTask};
use super::{Parts, Question, Snapshots, Status, Update, View};
use crate::backoff::Backoff;
use crate::endpoint::{EndpointError, Identity, Piece};
use crate::error::Error;
use crate::fold::{ApplyError, Fold};
use crate::in_stream::others::{Denied, Guard};
use crate::options::MalformedRecords;
use crate::snapshot::SnapshotInfo;
use crate::snapshot::record::{self, Seen};

/// Interval of the checks whether a snapshot is due by time.
const LOOK_EVERY: Duration = Duration::from_millis(250);
/// Interval at which the state is published on the way to the tail.
const SHOW_EVERY: Duration = Duration::from_millis(100);
/// Weight of a new measurement of how long a record takes.
const WEIGHT: f64 = 0.1;

/// What ends the task, or a connection.
enum Stop {
    /// The follower was closed.
    Closed,
    Error(Error),
    /// The connection was lost.
    Disconnected(EndpointError),
    /// Records were removed before they were read, or a history was cut off.
    Moved,
    /// The state is of a history or a stream that the present one does not continue.
    Left,
}

impl From<Error> for Stop {
    fn from(error: Error) -> Stop {
        Stop::Error(error)
    }
}

/// Records since the follower was opened.
#[derive(Clone, Copy, Debug, Default)]
struct Counted {
    applied: u64,
    bytes: u64,
    skipped: u64,
}

pub(super) struct Run<F> {
    parts: Arc<Parts<F>>,
    identity: Identity,
    fold: F,
    /// The position to be applied next.
    next: u64,
    /// Records that were read before the task began.
    met: Vec<SequencedRecord>,
    met_until: u64,
    /// Whether nothing was applied since a snapshot was restored.
    is_fresh: bool,
    /// Whether the present read is known to be of the stream that the identity names.
    is_identified: bool,
    /// Where sequence numbers jumped last, and the back-off for that jump.
    moved_at: Option<u64>,
    moving: Backoff,
    snapshot_task: SnapshotTask,
    /// Snapshots of other folds.
    guard: Guard,
    /// Whether the tail was reached, and no snapshot of another fold was in the way.
    is_checked: bool,
    counted: Counted,
    /// Callers that wait for a snapshot, each with the position that it has to reach.
    askers: Vec<(u64, oneshot::Sender<Result<SnapshotInfo, Error>>)>,
    closing: Option<oneshot::Sender<View<F>>>,
    questions: mpsc::Receiver<Question<F>>,
    status: watch::Sender<Status>,
    view: Arc<watch::Sender<View<F>>>,
    updates: broadcast::Sender<Update>,
    shown_at: Instant,
    /// When the previous piece arrived, unless the tail was reached since.
    piece_at: Option<Instant>,
    /// Seconds that a record takes on the way to the tail.
    per_record: Option<f64>,
}

impl<F: Fold> Run<F> {
    pub fn new(
        parts: Parts<F>,
        recovered: Recovered<F>,
        questions: mpsc::Receiver<Question<F>>,
        status: watch::Sender<Status>,
        view: Arc<watch::Sender<View<F>>>,
        updates: broadcast::Sender<Update>,
    ) -> Run<F> {
        let Recovered {
            fold,
            identity,
            snapshot,
            cursor,
            met,
            next,
            others,
            ..
        } = recovered;
        status.send_modify(|status| status.newest = snapshot.clone());
        Run {
            parts: Arc::new(parts),
            identity,
            fold,
            next: cursor,
            met,
            met_until: next,
            is_fresh: true,
            is_identified: false,
            moved_at: None,
            moving: Backoff::new(None),
            snapshot_task: SnapshotTask::new(snapshot, Default::default()),
            guard: Guard::new(others),
            is_checked: false,
            counted: Counted::default(),
            askers: Vec::new(),
            closing: None,
            questions,
            status,
            view,
            updates,
            shown_at: Instant::now(),
            piece_at: None,
            per_record: None,
        }
    }

    pub async fn run(mut self) {
        let error = self.follow().await;
        if let Some(error) = &error {
            tracing::error!(stream = self.parts.endpoint.shown(), %error, "the follower ends");
        }
        let failed = || Err(error.clone().unwrap_or(Error::Ended));
        for (_, asker) in self.askers.drain(..) {
            let _ = asker.send(failed());
        }
        // Later questions are answered with this error.
        let ended = Some(error.clone());
        self.status.send_modify(|status| status.ended = ended);
        self.notify(Update::Ended(error.clone()));
        if error.is_none()
            && let Some(closing) = self.closing.take()
        {
            let _ = closing.send(View {
                cursor: self.next,
                state: self.fold,
            });
        }
    }

    fn notify(&self, update: Update) {
        // There may be no receiver.
        let _ = self.updates.send(update);
    }

    async fn follow(&mut self) -> Option<Error> {
        if let Some(info) = self.snapshot_task.newest().cloned() {
            self.notify(Update::Restored(Some(info)));
        }
        // Once the state is there, the wait for a server has no limit.
        let mut backoff = Backoff::new(None);
        loop {
            let stop = self.connection(&mut backoff).await;
            let went_on = match stop {
                Stop::Closed => return None,
                Stop::Error(error) => return Some(error),
                Stop::Disconnected(EndpointError::BeyondTail { .. }) => self.reopen().await,
                Stop::Disconnected(why) => self.reconnect(why, &mut backoff).await,
                Stop::Moved => self.moved().await,
                Stop::Left => self.reopen().await,
            };
            match went_on {
                Ok(()) => {}
                Err(Stop::Closed) => return None,
                Err(Stop::Error(error)) => return Some(error),
                // These are retried.
                Err(Stop::Disconnected(_) | Stop::Moved | Stop::Left) => {}
            }
        }
    }

    /// Follows for as long as there is a connection.
    async fn connection(&mut self, backoff: &mut Backoff) -> Stop {
        let met = std::mem::take(&mut self.met);
        let until = self.met_until;
        if !met.is_empty() || until > self.next {
            if let Err(stop) = self.apply_all(&met, true) {
                return stop;
            }
            self.next = self.next.max(until);
            self.guard.update(|others| others.read_to(until));
        }
        self.pass_gap();
        self.is_identified = false;
        let mut pieces = self.parts.endpoint.read(self.next);
        let mut look = tokio::time::interval(LOOK_EVERY);
        look.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            match self.step(&mut pieces, &mut look).await {
                Ok(true) => backoff.reset(),
                Ok(false) => {}
                Err(stop) => return stop,
            }
            if self.closing.is_some() && !self.snapshot_task.is_under_way() {
                return Stop::Closed;
            }
            self.take_if_due();
        }
    }

    /// Waits for the next event; returns whether it was an answer of the server.
    async fn step(
        &mut self,
        pieces: &mut BoxStream<'static, Result<Piece, EndpointError>>,
        look: &mut tokio::time::Interval,
    ) -> Result<bool, Stop> {
        tokio::select! {
            piece = pieces.next() => match piece {
                Some(Ok(piece)) => self.piece(piece).await.map(|()| true),
                Some(Err(error)) => Err(Stop::Disconnected(error)),
                None => {
                    let why = "the read ended".to_owned();
                    Err(Stop::Disconnected(EndpointError::Unavailable(why)))
                }
            },
            question = self.questions.recv() => self.question(question).map(|()| false),
            outcome = self.snapshot_task.outcome() => {
                self.outcome(outcome);
                Ok(false)
            }
            _ = look.tick() => Ok(false),
        }
    }

    async fn piece(&mut self, piece: Piece) -> Result<(), Stop> {
        if !self.is_identified {
            self.identify().await?;
        }
        let from = self.next;
        let begun = Instant::now();
        self.apply_all(&piece.records, false)?;
        if piece.tail.is_some_and(|tail| tail == self.next) && !self.is_checked {
            self.check_others().await?;
        }
        if self.next > from {
            self.notify(Update::Applied {
                from,
                to: self.next,
            });
        }
        let at_tail = piece.tail.is_some();
        self.measure(self.next - from, begun, at_tail);
        if let Some(tail) = piece.tail {
            if tail != self.next {
                return Err(Stop::Moved);
            }
            self.snapshot_task.note_tail();
            let was = self.status.borrow().caught_up;
            if !was {
                self.notify(Update::CaughtUp { tail });
            }
        }
        self.show(piece.tail);
        Ok(())
    }

    /// Checks at the first tail for a snapshot of another fold in the stream: with one, none of this fold
    /// could be taken there.
    async fn check_others(&mut self) -> Result<(), Stop> {
        self.is_checked = true;
        if !matches!(self.parts.snapshots, Snapshots::InStream) {
            return Ok(());
        }
        let (parts, guard) = (self.parts.clone(), self.guard.clone());
        let meta = snapshot_task::describe(&parts, &self.fold, &self.identity, self.next);
        let allowed = guard.check(&*parts.endpoint, &meta, self.next, self.next);
        match self.meanwhile(allowed).await? {
            Ok(()) => Ok(()),
            Err(Denied::OtherFold(other)) => Err(Stop::Error(Error::OtherFold {
                stream: parts.endpoint.shown(),
                other: other.to_string(),
                ours: meta.fold,
            })),
            // Each trim checks this again.
            Err(Denied::Unknown(why)) => {
                tracing::warn!(
                    stream = parts.endpoint.shown(),
                    why,
                    "not checked at the start"
                );
                Ok(())
            }
        }
    }

    /// Measures how long records take, reading included, while they arrive as fast as they can.
    fn measure(&mut self, records: u64, begun: Instant, at_tail: bool) {
        let now = Instant::now();
        let since = self.piece_at.replace(now);
        if at_tail {
            self.piece_at = None;
        }
        let took = match since {
            Some(since) => now - since,
            None => now - begun,
        };
        if records == 0 {
            return;
        }
        let one = took.as_secs_f64() / records as f64;
        self.per_record = Some(match self.per_record {
            // At the tail, the time includes the wait for other writers.
            Some(before) if at_tail || since.is_none() => before,
            Some(before) => before + WEIGHT * (one - before),
            None => one,
        });
    }

    fn predicted(&self) -> Option<Duration> {
        let records = self.snapshot_task.since().records as f64;
        self.per_record
            .map(|one| Duration::try_from_secs_f64(one * records).unwrap_or(Duration::MAX))
    }

    /// Applies consecutive records. With `sparse`, those that are missing in between are not for the
    /// fold.
    fn apply_all(&mut self, records: &[SequencedRecord], sparse: bool) -> Result<(), Stop> {
        for record in records {
            let seen = match record.headers.is_empty() {
                true => Seen::Data,
                false => record::see(record),
            };
            if record.seq_num != self.next && !sparse && !self.is_behind_its_trim(record, &seen) {
                return Err(Stop::Moved);
            }
            if !matches!(seen, Seen::Data | Seen::Command) {
                let (ours, identity) = (self.fold.name(), &self.identity);
                self.guard
                    .update(|others| others.feed(ours, identity, record, &seen));
            }
            match seen {
                Seen::Data => self.apply(record)?,
                Seen::Malformed(why) => {
                    tracing::warn!(
                        stream = self.parts.endpoint.shown(),
                        position = record.seq_num,
                        why,
                        "a record says that it is of a snapshot, and makes no sense"
                    );
                }
                _ => {}
            }
            self.next = record.seq_num + 1;
            self.is_fresh = false;
        }
        let next = self.next;
        self.guard.update(|others| others.read_to(next));
        Ok(())
    }

    /// Whether this is a snapshot of exactly what was applied, directly after the trim command that came
    /// with it. The command is removed by its own trim, so it may never be read.
    fn is_behind_its_trim(&self, record: &SequencedRecord, seen: &Seen) -> bool {
        match seen {
            Seen::Single { meta, .. } => {
                let is_same = meta.of_stream(&self.identity).is_ok();
                is_same && meta.cursor == self.next && record.seq_num == self.next + 1
            }
            _ => false,
        }
    }

    fn apply(&mut self, record: &SequencedRecord) -> Result<(), Stop> {
        let fold = &mut self.fold;
        let applied = std::panic::catch_unwind(AssertUnwindSafe(|| fold.apply(record)));
        let (stream, seq_num) = (|| self.parts.endpoint.shown(), record.seq_num);
        match applied {
            Ok(Ok(())) => {
                let bytes = record.body.len() as u64;
                self.snapshot_task.note(bytes);
                self.counted.applied += 1;
                self.counted.bytes += bytes;
                Ok(())
            }
            Ok(Err(ApplyError::Malformed(why))) => match self.parts.reading.malformed {
                MalformedRecords::Stop => Err(Stop::Error(Error::Malformed {
                    stream: stream(),
                    seq_num,
                    why,
                })),
                MalformedRecords::Skip => {
                    tracing::debug!(position = seq_num, why, "a record is skipped");
                    self.counted.skipped += 1;
                    Ok(())
                }
            },
            Ok(Err(ApplyError::Failed(why))) => Err(Stop::Error(Error::FoldFailed {
                stream: stream(),
                seq_num,
                why,
            })),
            Err(panic) => Err(Stop::Error(Error::FoldFailed {
                stream: stream(),
                seq_num,
                why: format!("it panicked: {}", panic_message(&*panic)),
            })),
        }
    }

    /// Publishes the status and the state.
    fn show(&mut self, tail: Option<u64>) {
        let predicted = self.predicted();
        let since = self.snapshot_task.since().records;
        let cursor = self.next;
        let Counted {
            applied,
            bytes,
            skipped,
        } = self.counted;
        self.status.send_modify(|status| {
            status.cursor = cursor;
            status.applied = applied;
            status.bytes = bytes;
            status.skipped = skipped;
            status.caught_up = tail.is_some();
            status.waits_for = None;
            status.tail = tail.or(status.tail);
            status.since_snapshot = since;
            status.predicted_replay = predicted;
        });
        let is_time = tail.is_some() || self.shown_at.elapsed() >= SHOW_EVERY;
        if is_time && self.view.receiver_count() > 0 {
            self.publish();
        }
    }

    fn publish(&mut self) {
        self.shown_at = Instant::now();
        self.view.send_replace(View {
            cursor: self.next,
            state: self.fold.clone(),
        });
    }

    fn question(&mut self, question: Option<Question<F>>) -> Result<(), Stop> {
        match question {
            // The handle was dropped, and the task is about to be.
            None => return Err(Stop::Closed),
            Some(Question::View(answer)) => {
                let _ = answer.send(View {
                    cursor: self.next,
                    state: self.fold.clone(),
                });
            }
            Some(Question::Publish(answer)) => {
                self.publish();
                let _ = answer.send(());
            }
            Some(Question::Snapshot(answer)) => {
                let newest = self.snapshot_task.newest();
                match newest.filter(|_| self.snapshot_task.since().records == 0) {
                    Some(newest) => {
                        let _ = answer.send(Ok(newest.clone()));
                    }
                    None => self.askers.push((self.next, answer)),
                }
            }
            Some(Question::Close(answer)) => self.closing = Some(answer),
        }
        Ok(())
    }

    /// Answers questions while `doing` runs.
    async fn meanwhile<T>(&mut self, doing: impl Future<Output = T>) -> Result<T, Stop> {
        let mut doing = std::pin::pin!(doing);
        loop {
            tokio::select! {
                done = &mut doing => return Ok(done),
                question = self.questions.recv() => {
                    self.question(question)?;
                    if self.closing.is_some() && !self.snapshot_task.is_under_way() {
                        return Err(Stop::Closed);
                    }
                }
                outcome = self.snapshot_task.outcome() => self.outcome(outcome),
            }
        }
    }
}

fn panic_message(panic: &(dyn std::any::Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("without a message")
}
