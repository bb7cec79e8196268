//! What the threads of a group share: its engine under a lock, and what its actions need.

mod actions;
mod engine_lock;

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Weak};

use parking_lot::Mutex;
use tokio::sync::watch;

use super::counts::{self, Counts, Gauges, GroupCounters};
use super::error::ProposeError;
use super::log_fetcher::LogFetcher;
use super::mailbox::{Mailbox, NodeBytes};
use super::member::Member;
use super::proposals::{Proposal, Proposals};
use super::queue::ApplyQueue;
use super::reopening::Reopening;
use super::requests::Requests;
use super::snapshot_jobs::SnapshotJobs;
use super::snapshot_receiver::FetchHost;
use super::view::View;
use super::waiters::{Answer, Attached, Waiter, Waiters};
use crate::engine::{Action, Engine, Event, LogReader, Membership, RejectReason, Role, Ticket};
use crate::ids::{GroupId, Lsn, NodeId, Term};
use crate::log::{LogWriter, Persisted};
use crate::message::Envelope;

/// Delivers messages to peers. May drop them.
pub type SendToPeers = Box<dyn Fn(Vec<Envelope>) + Send + Sync>;

pub(super) struct Shared<O> {
    pub(super) id: GroupId,
    pub(super) node: NodeId,
    pub(super) election_ticks: usize,
    /// Metrics are published every so many ticks.
    publish_interval: u64,
    /// To be locked with [`Shared::lock`].
    engine: Mutex<Engine>,
    /// What is known without the engine's lock.
    pub(super) view: View,
    /// Events of threads that do not wait for the engine.
    mailbox: Mailbox,
    /// What old entries of the log are read with.
    reader: Arc<dyn LogReader>,
    log_fetcher: LogFetcher,
    /// Pushed to under the engine's lock.
    pub(super) waiters: Waiters<O>,
    /// Of a group with other members: proposals that wait for the log.
    proposals: Proposals<O>,
    max_waiting_proposals: usize,
    pub(super) apply: ApplyQueue,
    pub(super) snapshot_jobs: SnapshotJobs,
    pub(super) writer: LogWriter,
    send: SendToPeers,
    /// What a group with other members needs in addition.
    pub(super) member: Option<Member>,
    pub(super) requests: Requests,
    pub(super) counts: Counts,
    /// Ticks for which a proposal has waited here while another member led.
    waited_without_lead: AtomicU64,
    /// Last applied entry and its term. Tasks that wait for progress subscribe to it.
    pub(super) applied: watch::Sender<(Lsn, Term)>,
    pub(super) apply_stalled: AtomicBool,
    /// Why entries cannot be applied, as of the last failed attempt.
    pub(super) stall_cause: Mutex<Option<String>>,
    /// Why the group decides and applies nothing, if so.
    halted: Mutex<Option<Halted>>,
    /// Of a group that may be opened again.
    pub(super) reopening: Option<Reopening>,
    pub(super) stopping: AtomicBool,
    this: Weak<Shared<O>>,
}

/// Why a group decides and applies nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Halted {
    /// What made it halt.
    pub why: String,
    /// Whether the group is opened again by itself. If not, the cause does not pass.
    pub reopens: bool,
}

impl<O: Send + 'static> Shared<O> {
    pub(super) fn new(setup: Setup) -> Arc<Shared<O>> {
        let applied = setup.engine.applied();
        Arc::new_cyclic(|this| Shared {
            id: setup.id,
            node: setup.node,
            election_ticks: setup.election_ticks,
            publish_interval: setup.publish_interval,
            view: View::new(&setup.engine),
            engine: Mutex::new(setup.engine),
            mailbox: Mailbox::new(setup.mailbox_bytes),
            reader: setup.reader,
            log_fetcher: setup.log_fetcher,
            waiters: Waiters::default(),
            proposals: Proposals::default(),
            max_waiting_proposals: setup.max_waiting_proposals,
            apply: ApplyQueue::default(),
            snapshot_jobs: setup.snapshot_jobs,
            writer: setup.writer,
            send: setup.send,
            member: setup.member,
            requests: Requests::default(),
            counts: Counts::default(),
            waited_without_lead: AtomicU64::new(0),
            applied: watch::Sender::new((applied, Term(0))),
            apply_stalled: AtomicBool::new(false),
            stall_cause: Mutex::default(),
            halted: Mutex::default(),
            reopening: setup.reopening,
            stopping: AtomicBool::new(false),
            this: this.clone(),
        })
    }

    /// Steps the engine and carries out its actions, in order.
    pub(super) fn step(&self, event: Event) {
        let mut engine = self.lock();
        if let Some(reopening) = &self.reopening {
            reopening.note(&event);
        }
        let actions = engine.step(event);
        self.carry_out(&mut engine, actions);
    }

    /// Steps the engine with an event that it accepts or rejects. `judge` gets the verdict and returns who
    /// waits for the entry. Once the group stops, the engine is not stepped and `judge` gets `None`.
    pub(super) fn with_verdict<E>(
        &self,
        event: Event,
        judge: impl FnOnce(Option<Action>) -> Result<(Lsn, Term, Answer<O>, Attached), E>,
    ) -> Result<(), E> {
        let mut engine = self.lock();
        // Read under the lock: `stop` sees every waiter that is added from here on.
        if self.stopping.load(Ordering::Relaxed) {
            return judge(None).map(|_| ());
        }
        let mut actions = engine.step(event);
        let verdict = actions
            .iter()
            .position(|a| matches!(a, Action::Accepted { .. } | Action::Rejected { .. }));
        let judged = judge(verdict.map(|at| actions.remove(at)));
        let outcome = judged.map(|(lsn, term, answer, attached)| {
            self.waiters.wait(Waiter {
                lsn,
                term,
                answer,
                observer: attached.observer,
                _guard: attached.guard,
            });
        });
        self.carry_out(&mut engine, actions);
        outcome
    }

    /// Whether the group has other members, so that proposals go through [`Shared::propose_together`].
    pub(super) fn has_others(&self) -> bool {
        self.member.is_some()
    }

    /// Queues a proposal. If no sync is under way, steps the engine with all queued proposals.
    pub(super) fn propose_together(&self, proposal: Proposal<O>) -> Result<(), ProposeError> {
        if !self.proposals.wait(proposal, self.max_waiting_proposals) {
            return Err(ProposeError::Busy);
        }
        if !self.proposals.log_is_busy() {
            self.mailbox.proposals();
            self.step_posted();
        }
        Ok(())
    }

    /// Steps the engine with all queued proposals. Rejected ones are answered here, the others when they
    /// are applied. A proposal is rejected if an earlier one of its sequence was: apart from a command that no engine
    /// accepts, which is found before the step, what makes an engine reject a proposal lasts to the end of the step.
    fn propose_waiting(&self, engine: &mut Engine) {
        let waiting = self.proposals.take();
        if waiting.is_empty() {
            return;
        }
        // Read under the lock: `stop` sees every waiter that is added from here on.
        let stopping = self.stopping.load(Ordering::Relaxed);
        if stopping {
            for proposal in waiting {
                proposal.refuse(ProposeError::stopping());
            }
            return;
        }
        let mut pending = Vec::with_capacity(waiting.len());
        let mut commands = Vec::with_capacity(waiting.len());
        for mut proposal in waiting {
            if let Err(refused) = proposal.check() {
                proposal.refuse(refused);
                continue;
            }
            let ticket = Ticket(pending.len() as u64);
            commands.push((ticket, std::mem::take(&mut proposal.command)));
            pending.push(Some(proposal));
        }
        let mut actions = engine.step(Event::ProposeBatch(commands));
        let mut take_pending = |ticket: Ticket| pending.get_mut(ticket.0 as usize)?.take();
        actions.retain(|action| match action {
            Action::Accepted { ticket, lsn, term } => {
                if let Some(proposal) = take_pending(*ticket) {
                    self.waiters.wait(Waiter {
                        lsn: *lsn,
                        term: *term,
                        answer: Answer::Command(proposal.answer),
                        observer: proposal.attached.observer,
                        _guard: proposal.attached.guard,
                    });
                }
                false
            }
            Action::Rejected { ticket, reason } => {
                if let Some(proposal) = take_pending(*ticket) {
                    proposal.refuse(ProposeError::from(reason.clone()));
                }
                false
            }
            _ => true,
        });
        for proposal in pending.into_iter().flatten() {
            // The engine gave no verdict: it has halted.
            proposal.refuse(self.no_verdict());
        }
        self.carry_out(engine, actions);
    }

    /// Answers all queued proposals: the group stops.
    pub(super) fn refuse_waiting(&self) {
        for proposal in self.proposals.take() {
            proposal.refuse(ProposeError::stopping());
        }
    }

    /// Steps the engine. Returns why it rejects the event of that ticket, if it does.
    pub(super) fn refusal_of(&self, event: Event, ticket: Ticket) -> Option<RejectReason> {
        let mut engine = self.lock();
        let mut actions = engine.step(event);
        let refused = |a: &Action| matches!(a, Action::Rejected { ticket: t, .. } if *t == ticket);
        let refusal = actions
            .iter()
            .position(refused)
            .map(|at| actions.remove(at));
        self.carry_out(&mut engine, actions);
        match refusal {
            Some(Action::Rejected { reason, .. }) => Some(reason),
            _ => None,
        }
    }

    /// Ends the waiting for entries that this member proposed as an earlier leader: another leader may
    /// commit or replace them, and this member may never know which.
    fn tend_waiters(&self) {
        let alone = self.member.is_none();
        if alone || self.waiters.is_empty() || self.view.position().role == Role::Leader {
            self.waited_without_lead.store(0, Ordering::Relaxed);
            return;
        }
        let waited = self.waited_without_lead.fetch_add(1, Ordering::Relaxed);
        if waited >= 3 * self.election_ticks as u64 {
            self.waiters.fail_all(&ProposeError::Unknown);
        }
    }

    /// Why the group decides and applies nothing, if so.
    pub(super) fn halted(&self) -> Option<Halted> {
        self.halted.lock().clone()
    }

    pub(super) fn halt(&self, why: String, reopens: bool) {
        *self.halted.lock() = Some(Halted { why, reopens });
    }

    /// Whether the group has halted for a cause that may pass, so that it is opened again.
    pub(super) fn may_reopen(&self) -> bool {
        self.halted.lock().as_ref().is_some_and(|h| h.reopens)
    }

    /// Replaces the engine that has halted. `first` are the first events for the new one.
    pub(super) fn replace_engine(&self, new: Engine, first: Vec<Event>) {
        let mut engine = self.lock();
        *engine = new;
        self.view.publish(&engine);
        self.proposals.restart();
        self.requests.reopen();
        self.mailbox.forget_persisted();
        *self.halted.lock() = None;
        for event in first {
            let actions = engine.step(event);
            self.carry_out(&mut engine, actions);
        }
    }

    /// Whether the group has stopped or halted: what is waited for does not come.
    pub(super) fn is_over(&self) -> bool {
        self.stopping.load(Ordering::Relaxed) || self.halted.lock().is_some()
    }

    /// Why the engine neither accepted nor rejected a proposal.
    pub(super) fn no_verdict(&self) -> ProposeError {
        match self.halted() {
            _ if self.stopping.load(Ordering::Relaxed) => ProposeError::stopping(),
            Some(Halted { why, reopens }) => ProposeError::Halted { why, reopens },
            None => ProposeError::stopping(),
        }
    }

    pub(super) fn membership(&self) -> Membership {
        Membership::clone(&self.view.membership())
    }

    pub(super) fn watch_applied(&self) -> watch::Receiver<(Lsn, Term)> {
        self.applied.subscribe()
    }

    pub(super) fn counters(&self) -> GroupCounters {
        self.counters_of(&self.lock())
    }

    fn counters_of(&self, engine: &Engine) -> GroupCounters {
        let reopened = self.reopening.as_ref();
        let reopened = reopened.map_or(0, |r| r.count.load(Ordering::Relaxed));
        self.counts.all(engine, reopened)
    }

    pub(super) fn tick(&self) {
        if self.stopping.load(Ordering::Relaxed) {
            return;
        }
        if self.view.position().needs_ticks {
            self.mailbox.tick();
            self.step_posted();
        }
        self.requests.tick();
        if let Some(member) = &self.member {
            member.fetches.tick();
            self.tend_waiters();
        }
        let unpublished = self.counts.unpublished.fetch_add(1, Ordering::Relaxed) + 1;
        if unpublished >= self.publish_interval && self.publish_metrics() {
            self.counts.unpublished.store(0, Ordering::Relaxed);
        }
    }

    /// False if the engine is busy: the ticker does not wait for it.
    fn publish_metrics(&self) -> bool {
        let Some(engine) = self.try_lock() else {
            return false;
        };
        self.view.refresh(&engine);
        let gauges = Gauges {
            role: engine.role(),
            term: engine.term().0,
            apply_lag: engine.committed().0.saturating_sub(engine.applied().0),
            floor: engine.floor().0,
            above_floor: engine.last().0.saturating_sub(engine.floor().0),
        };
        let counters = self.counters_of(&engine);
        drop(engine);
        self.counts.publish_refusals(&counters.engine.refused);
        counts::publish(self.id, &counters, &gauges);
        true
    }

    pub(super) fn note_applied(&self, lsn: Lsn, term: Term) {
        self.applied.send_replace((lsn, term));
    }
}

impl<O: Send + 'static> Persisted for Shared<O> {
    fn persisted(&self, number: u64) {
        self.mailbox.persisted(number);
        self.step_posted();
    }
}

impl<O: Send + 'static> FetchHost for Shared<O> {
    fn step(&self, event: Event) {
        Shared::step(self, event);
    }

    fn counts(&self) -> &Counts {
        &self.counts
    }
}

/// A group as its node sees it, independent of the type of its answers.
pub(super) trait Addressed: Send + Sync {
    fn receive(&self, message: Envelope);
    fn unreachable(&self, node: NodeId);
    fn request_snapshot(&self);
    /// Takes a snapshot if that lets entries go that keep old files of the log on disk.
    fn release_log(&self);
}

impl<O: Send + 'static> Addressed for Shared<O> {
    fn receive(&self, message: Envelope) {
        if self.stopping.load(Ordering::Relaxed) {
            return;
        }
        let message = match &self.member {
            Some(member) => member.receive(message),
            None => Some(message),
        };
        if let Some(message) = message {
            self.mailbox.message(message);
            self.step_posted();
        }
    }

    fn unreachable(&self, node: NodeId) {
        // If the mailbox is full, it is noticed again.
        if !self.stopping.load(Ordering::Relaxed) && self.mailbox.event(Event::Unreachable(node)) {
            self.step_posted();
        }
    }

    fn request_snapshot(&self) {
        self.snapshot_jobs.want();
        self.apply.nudge();
    }

    fn release_log(&self) {
        let now = self.view.position();
        // If the log start is below the floor, a peer or the host keeps entries that a snapshot covers: another
        // snapshot would free nothing.
        let helps = now.log_start == now.floor && now.applied > now.floor;
        if helps && self.snapshot_jobs.is_idle() {
            self.request_snapshot();
        }
    }
}

/// What a group is started with.
pub(super) struct Setup {
    pub id: GroupId,
    pub node: NodeId,
    pub election_ticks: usize,
    /// Proposals that may wait for the log.
    pub max_waiting_proposals: usize,
    /// Ticks in about a second.
    pub publish_interval: u64,
    pub engine: Engine,
    /// Of the same log.
    pub reader: Arc<dyn LogReader>,
    pub log_fetcher: LogFetcher,
    /// Shared by all groups of the node.
    pub mailbox_bytes: NodeBytes,
    pub writer: LogWriter,
    pub send: SendToPeers,
    pub snapshot_jobs: SnapshotJobs,
    pub member: Option<Member>,
    /// Of a group that may be opened again after it has halted.
    pub reopening: Option<Reopening>,
}
