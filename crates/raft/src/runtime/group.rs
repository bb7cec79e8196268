//! A running group: its engine under a lock, its apply thread, and those who wait for answers.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::thread::JoinHandle;

use parking_lot::Mutex;
use tokio::sync::{oneshot, watch};

use super::queue::ApplyQueue;
use super::snapshots::{Attempts, Permits};
use super::state_machine::{SnapshotError, SnapshotSink, StateMachine, StoredSnapshot};
use crate::engine::{Action, Committed, Engine, Event, RejectReason, Role, Ticket};
use crate::ids::{GroupId, Lsn, NodeId, Term};
use crate::log::{LogWriter, Persisted};
use crate::message::Envelope;

/// What became of a proposal that was not applied.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProposeError {
    /// This member does not lead. Nothing happened.
    #[error("this node does not lead the partition")]
    NotLeader {
        /// Who does, if known.
        leader: Option<NodeId>,
    },
    /// Too many proposals are pending. Nothing happened; try again.
    #[error("too many proposals are pending")]
    Busy,
    /// The disk takes no writes at the moment, or what is in the log cannot be applied and has become
    /// too much. Nothing happened; try again when that has changed.
    #[error("the disk takes no writes, or the log is full: appends are refused until that changes")]
    LogFull,
    /// Consensus refused it. Nothing happened.
    #[error("refused: {0}")]
    Refused(String),
    /// Another entry was committed in its place. Nothing happened.
    #[error("superseded by another leader's entry")]
    Superseded,
    /// The group stopped while it was under way: it may have happened or not.
    #[error("the partition stopped before the outcome was known")]
    Unknown,
}

impl ProposeError {
    /// Whether it is certain that the command had no effect and never will.
    pub fn has_no_side_effects(&self) -> bool {
        !matches!(self, ProposeError::Unknown)
    }
}

/// Where a group stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GroupStatus {
    /// Role of this member.
    pub role: Role,
    /// Current term.
    pub term: Term,
    /// Last entry of the log.
    pub last: Lsn,
    /// Last committed entry.
    pub committed: Lsn,
    /// Last applied entry.
    pub applied: Lsn,
    /// Term of the last applied entry.
    pub applied_term: Term,
    /// Last entry that the newest snapshot covers.
    pub floor: Lsn,
    /// Entries at or below are gone from the log, or about to go. At most `floor`.
    pub log_start: Lsn,
    /// Entries above `log_start`.
    pub log_entries: u64,
    /// Their bytes, roughly, as far as they were handed out for applying since the start: those that
    /// the database had already are not counted, nor those that are not committed.
    pub log_bytes: u64,
    /// More entries than the guardrail allows are above the floor, and apply stands there.
    pub alarm: bool,
    /// Whether the disk refuses the log's or the database's writes.
    pub stalled: bool,
}

struct Waiter<O> {
    lsn: Lsn,
    term: Term,
    answer: oneshot::Sender<Result<O, ProposeError>>,
    _guard: Option<Guard>,
}

/// Kept while a proposal is under way and dropped when it is answered, whether or not anybody
/// looks at the answer: the place for what was admitted.
pub type Guard = Box<dyn Send + Sync>;

/// Delivers messages to peers. May drop them.
pub type SendToPeers = Box<dyn Fn(Vec<Envelope>) + Send + Sync>;

pub(super) struct Shared<O> {
    pub(super) id: GroupId,
    engine: Mutex<Engine>,
    /// In the order of their LSNs: pushed under the engine's lock.
    waiters: Mutex<VecDeque<Waiter<O>>>,
    pub(super) apply: ApplyQueue,
    pub(super) attempts: Attempts,
    writer: LogWriter,
    send: SendToPeers,
    /// Last applied entry and its term; whoever waits for progress watches it.
    applied: watch::Sender<(Lsn, Term)>,
    pub(super) apply_stalled: AtomicBool,
    pub(super) stopping: AtomicBool,
    this: Weak<Shared<O>>,
}

impl<O: Send + 'static> Shared<O> {
    /// Steps the engine and carries out what it says, in order.
    pub(super) fn step(&self, event: Event) {
        let mut engine = self.engine.lock();
        let actions = engine.step(event);
        self.carry_out(actions);
    }

    /// The caller holds the engine's lock, which keeps actions in order.
    fn carry_out(&self, actions: Vec<Action>) {
        for action in actions {
            match action {
                Action::Persist(persist) => {
                    if let Some(this) = self.this.upgrade() {
                        self.writer.persist(self.id, persist, this);
                    }
                }
                Action::Apply(committed) => {
                    self.apply.push(committed);
                }
                Action::Send(messages) => (self.send)(messages),
                Action::SnapshotHint {
                    last_included_index,
                } => {
                    tracing::debug!(group = %self.id, applied = %last_included_index, "snapshot hint");
                    self.attempts.want();
                    self.apply.nudge();
                }
                Action::LogAlarm { entries } => {
                    tracing::error!(
                        group = %self.id,
                        entries,
                        "the log grows and nothing of it is applied: a snapshot cannot help"
                    );
                }
                Action::Compact { floor } => self.writer.compact(self.id, floor),
                Action::Became { role, leader, term } => {
                    tracing::debug!(group = %self.id, ?role, ?leader, %term, "role changed");
                }
                Action::Halt { what } => {
                    tracing::error!(group = %self.id, what, "the group stops: its log is damaged");
                    self.fail_waiters(&ProposeError::Unknown);
                }
                Action::OfferSnapshot { .. }
                | Action::FetchSnapshot { .. }
                | Action::AbandonFetch { .. }
                | Action::InstallSnapshot { .. }
                | Action::ReadReady { .. }
                | Action::ReadFailed { .. } => {
                    // This runtime serves groups of one member, which never need these.
                    tracing::error!(group = %self.id, "a group of one has no peers");
                }
                Action::Accepted { .. } | Action::Rejected { .. } => {
                    unreachable!("proposals are stepped by propose")
                }
            }
        }
    }

    /// Answers those whose entries were applied, in order; entries of other terms at their places
    /// mean that theirs never will be.
    pub(super) fn answer(&self, entries: &[Committed], outputs: &mut Vec<O>) {
        let commands = entries.iter().filter(|e| e.command.is_some()).count();
        assert_eq!(
            outputs.len(),
            commands,
            "group {}: a state machine answers every command once",
            self.id
        );
        let mut ready = Vec::with_capacity(outputs.len());
        {
            let mut waiters = self.waiters.lock();
            let mut outputs = outputs.drain(..);
            for entry in entries {
                let mut output = entry.command.as_ref().and_then(|_| outputs.next());
                while let Some(front) = waiters.front()
                    && front.lsn <= entry.lsn
                {
                    let Some(waiter) = waiters.pop_front() else {
                        break;
                    };
                    let answer = if waiter.lsn == entry.lsn && waiter.term == entry.term {
                        output.take().ok_or(ProposeError::Superseded)
                    } else {
                        Err(ProposeError::Superseded)
                    };
                    ready.push((waiter.answer, answer));
                }
            }
        }
        for (to, answer) in ready {
            // Whoever asked may have gone.
            let _ = to.send(answer);
        }
    }

    pub(super) fn note_applied(&self, lsn: Lsn, term: Term) {
        self.applied.send_replace((lsn, term));
    }

    fn fail_waiters(&self, error: &ProposeError) {
        for waiter in self.waiters.lock().drain(..) {
            let _ = waiter.answer.send(Err(error.clone()));
        }
    }
}

impl<O: Send + 'static> Persisted for Shared<O> {
    fn persisted(&self, number: u64) {
        self.step(Event::Persisted { number });
    }
}

/// A running group. Cheap to clone.
pub struct Group<O> {
    shared: Arc<Shared<O>>,
    thread: Arc<Mutex<Option<JoinHandle<()>>>>,
}

impl<O> Clone for Group<O> {
    fn clone(&self) -> Self {
        Group {
            shared: self.shared.clone(),
            thread: self.thread.clone(),
        }
    }
}

impl<O: Send + 'static> Group<O> {
    pub(super) fn start<S>(
        id: GroupId,
        engine: Engine,
        machine: S,
        writer: LogWriter,
        send: SendToPeers,
        (permits, sink): (Arc<Permits>, Arc<dyn SnapshotSink>),
    ) -> std::io::Result<Group<O>>
    where
        S: StateMachine<Output = O>,
    {
        let applied = engine.applied();
        let shared = Arc::new_cyclic(|this| Shared {
            id,
            engine: Mutex::new(engine),
            waiters: Mutex::new(VecDeque::new()),
            apply: ApplyQueue::default(),
            attempts: Attempts::new(permits, sink),
            writer,
            send,
            applied: watch::Sender::new((applied, Term(0))),
            apply_stalled: AtomicBool::new(false),
            stopping: AtomicBool::new(false),
            this: this.clone(),
        });
        let thread = std::thread::Builder::new()
            .name(format!("apply-{id}"))
            .spawn({
                let shared = shared.clone();
                move || super::apply::run(machine, &shared.apply, &shared)
            })?;
        Ok(Group {
            shared,
            thread: Arc::new(Mutex::new(Some(thread))),
        })
    }

    /// This group's number.
    pub fn id(&self) -> GroupId {
        self.shared.id
    }

    /// Proposes a command; the answer comes once it is durable, committed and applied.
    pub fn propose(
        &self,
        command: Vec<u8>,
    ) -> Result<oneshot::Receiver<Result<O, ProposeError>>, ProposeError> {
        self.propose_with(command, None)
    }

    /// As [`Group::propose`], with a guard that is dropped when the answer is there.
    pub fn propose_with(
        &self,
        command: Vec<u8>,
        guard: Option<Guard>,
    ) -> Result<oneshot::Receiver<Result<O, ProposeError>>, ProposeError> {
        let shared = &self.shared;
        if shared.stopping.load(Ordering::Relaxed) {
            return Err(stopping());
        }
        if shared.writer.stalled() || shared.apply_stalled.load(Ordering::Relaxed) {
            return Err(ProposeError::LogFull);
        }
        let (tx, rx) = oneshot::channel();
        let mut engine = shared.engine.lock();
        // Looked at again under the lock: whoever waits from here on is seen by `stop`.
        if shared.stopping.load(Ordering::Relaxed) {
            return Err(stopping());
        }
        let mut actions = engine.step(Event::Propose {
            ticket: Ticket(0),
            command,
        });
        let verdict = actions
            .iter()
            .position(|a| matches!(a, Action::Accepted { .. } | Action::Rejected { .. }));
        match verdict.map(|at| actions.remove(at)) {
            Some(Action::Accepted { lsn, term, .. }) => {
                shared.waiters.lock().push_back(Waiter {
                    lsn,
                    term,
                    answer: tx,
                    _guard: guard,
                });
                shared.carry_out(actions);
                Ok(rx)
            }
            Some(Action::Rejected { reason, .. }) => {
                shared.carry_out(actions);
                Err(match reason {
                    RejectReason::NotLeader { leader } => ProposeError::NotLeader { leader },
                    RejectReason::Busy => ProposeError::Busy,
                    RejectReason::LogFull => ProposeError::LogFull,
                    RejectReason::Transferring { to } => {
                        ProposeError::NotLeader { leader: Some(to) }
                    }
                    RejectReason::Membership(why) => ProposeError::Refused(why.to_string()),
                    RejectReason::Refused(why) => ProposeError::Refused(why),
                })
            }
            _ => {
                shared.carry_out(actions);
                Err(ProposeError::Refused(
                    "the partition has stopped, see the log".to_owned(),
                ))
            }
        }
    }

    /// As [`Group::propose`], waiting for the answer.
    pub async fn execute(&self, command: Vec<u8>) -> Result<O, ProposeError> {
        self.propose(command)?
            .await
            .unwrap_or(Err(ProposeError::Unknown))
    }

    /// Asks for a snapshot, also if nothing was applied since the newest. It covers everything that
    /// was applied before the ask: if an attempt is under way, the answer is that of the next one,
    /// which everybody shares who asks meanwhile.
    pub fn snapshot(&self) -> oneshot::Receiver<Result<Arc<StoredSnapshot>, SnapshotError>> {
        let answer = self.shared.attempts.ask();
        self.shared.apply.nudge();
        answer
    }

    /// The host has a snapshot from before the group was opened, of everything up to `lsn`, whose
    /// term is `term`. To be said soon after the open.
    pub fn snapshot_known(&self, lsn: Lsn, term: Term) {
        self.shared.step(Event::SnapshotTaken {
            last_included_index: lsn,
            term,
            peers: None,
        });
    }

    /// The log is to keep the entries above `lsn`, also if a snapshot covers them. To be said at
    /// every open, before [`Group::snapshot_known`], which may compact.
    pub fn keep_from(&self, lsn: Lsn) {
        self.shared.step(Event::KeepFrom { lsn });
    }

    /// One tick of the clock, if ticks mean anything to this member.
    pub fn tick(&self) {
        if self.shared.engine.lock().needs_ticks() {
            self.shared.step(Event::Tick);
        }
    }

    /// Stands for election now.
    pub fn campaign(&self) {
        self.shared.step(Event::Campaign);
    }

    /// A peer's message arrived.
    pub fn receive(&self, message: Envelope) {
        self.shared.step(Event::Receive(message));
    }

    /// Where the group stands.
    pub fn status(&self) -> GroupStatus {
        let (applied, applied_term) = *self.shared.applied.borrow();
        let engine = self.shared.engine.lock();
        GroupStatus {
            role: engine.role(),
            term: engine.term(),
            last: engine.last(),
            committed: engine.committed(),
            applied,
            applied_term,
            floor: engine.floor(),
            log_start: engine.log_start(),
            log_entries: engine.last().0 - engine.log_start().0,
            log_bytes: engine.log_bytes(),
            alarm: engine.alarm(),
            stalled: self.shared.writer.stalled()
                || self.shared.apply_stalled.load(Ordering::Relaxed),
        }
    }

    /// Waits until this member leads and has applied everything from before its term: from then
    /// on it may serve.
    pub async fn wait_until_serving(&self) {
        let mut applied = self.shared.applied.subscribe();
        loop {
            let status = self.status();
            if status.role == Role::Leader && status.applied_term == status.term {
                return;
            }
            if applied.changed().await.is_err() {
                return;
            }
        }
    }

    /// Refuses proposals from now on, applies what is committed, ends the apply thread, waits for a
    /// snapshot that is being written. Those who still wait are answered [`ProposeError::Unknown`],
    /// or that there is no snapshot.
    pub fn stop(&self) {
        {
            // Under the lock: no proposal is half-way in.
            let _engine = self.shared.engine.lock();
            self.shared.stopping.store(true, Ordering::Relaxed);
        }
        self.shared.attempts.close();
        self.shared.apply.close();
        let thread = self.thread.lock().take();
        if let Some(thread) = thread {
            // A panic of the apply thread has already been reported by the panic hook.
            let _ = thread.join();
        }
        self.shared.attempts.finish();
        self.shared.fail_waiters(&ProposeError::Unknown);
    }
}

fn stopping() -> ProposeError {
    ProposeError::Refused("the server is stopping".to_owned())
}
