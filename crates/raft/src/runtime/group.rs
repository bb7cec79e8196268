//! A running group, as its host sees it: proposals, reads, snapshots, changes of the membership, status.
//!
//! All handles of a group share its [`Shared`] state; the group ends with [`Group::stop`].

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::JoinHandle;

use parking_lot::Mutex;
use tokio::sync::oneshot;

use super::counts::GroupCounters;
use super::error::{ChangeError, ProposeError};
use super::proposals::Proposal;
use super::sequence::Place;
use super::shared::{Addressed, Halted, Setup, Shared};
use super::state_machine::{SnapshotError, StateMachine};
use super::waiters::{Answer, Attached};
use crate::engine::{
    Action, Event, KeptLog, Membership, MembershipChange, ReadFailure, Role, Status, Ticket,
};
use crate::ids::{GroupId, Lsn, NodeId, Term};
use crate::message::Envelope;
use crate::priority::shorten_time_slice;
use crate::store::StoredSnapshot;

/// Election timeouts within which a change of the membership comes about: it takes two commits, and one
/// election if the leader is lost meanwhile. Without a majority it never does.
pub const CHANGE_TIMEOUTS: usize = 10;

/// The position and the health of a group.
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
    /// Entries at or below are removed from the log, or about to be. At most `floor`.
    pub log_start: Lsn,
    /// Entries above `log_start`.
    pub log_entries: u64,
    /// Approximate bytes of the entries above `log_start` that were handed out for applying since the
    /// start. Entries that the state machine had before, and entries that are not committed, are not
    /// counted.
    pub log_bytes: u64,
    /// More entries than `max_log_entries` are above the floor, and none of them is applied.
    pub alarm: bool,
    /// Whether the disk refuses the log's or the database's writes.
    pub stalled: bool,
    /// Whether the group has halted: [`Group::halted`] has the cause.
    pub halted: bool,
}

/// A running group. Cheap to clone.
pub struct Group<O> {
    pub(super) shared: Arc<Shared<O>>,
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
    pub(super) fn start<S>(setup: Setup, machine: S) -> std::io::Result<Group<O>>
    where
        S: StateMachine<Output = O>,
    {
        let id = setup.id;
        let shared = Shared::new(setup);
        let thread = std::thread::Builder::new()
            .name(format!("apply-{id}"))
            .spawn({
                let shared = shared.clone();
                move || {
                    shorten_time_slice();
                    super::apply::run(machine, &shared.apply, &shared);
                }
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

    /// Proposes a command of 1 byte to 8 MiB. The receiver gets the output once the command is durable,
    /// committed and applied.
    ///
    /// # Errors
    ///
    /// At once, if the proposal is refused; on the receiver, if the outcome is known or lost later: see
    /// [`ProposeError`].
    pub fn propose(
        &self,
        command: Vec<u8>,
    ) -> Result<oneshot::Receiver<Result<O, ProposeError>>, ProposeError> {
        self.propose_with(command, Attached::default())
    }

    /// As [`Group::propose`], with a guard that is dropped together with the answer, an observer, and a sequence: of
    /// its proposals, which are to be made one after the other, none is accepted after one that was refused, at once
    /// or on its receiver.
    pub fn propose_with(
        &self,
        command: Vec<u8>,
        attached: Attached,
    ) -> Result<oneshot::Receiver<Result<O, ProposeError>>, ProposeError> {
        let Some(sequence) = &attached.sequence else {
            return self.propose_at(command, attached, None);
        };
        let place = Arc::new(sequence.next());
        let proposed = match place.check() {
            Ok(()) => self.propose_at(command, attached, Some(place.clone())),
            Err(refused) => Err(refused),
        };
        if proposed.is_err() {
            place.refused();
        }
        proposed
    }

    fn propose_at(
        &self,
        command: Vec<u8>,
        attached: Attached,
        place: Option<Arc<Place>>,
    ) -> Result<oneshot::Receiver<Result<O, ProposeError>>, ProposeError> {
        let shared = &self.shared;
        if shared.stopping.load(Ordering::Relaxed) {
            return Err(ProposeError::stopping());
        }
        if shared.writer.stalled() {
            let why = shared.writer.stall_cause();
            let why = why.unwrap_or_else(|| "a write has failed".to_owned());
            return Err(ProposeError::LogUnwritable { why });
        }
        if shared.apply_stalled.load(Ordering::Relaxed) {
            return Err(match shared.stall_cause.lock().clone() {
                Some(why) => ProposeError::Stalled { why },
                None => ProposeError::LogFull,
            });
        }
        let (tx, mut rx) = oneshot::channel();
        if shared.has_others() {
            shared.propose_together(Proposal {
                command,
                answer: tx,
                attached,
                place,
            })?;
            // A proposal that the engine refused is reported by this call.
            return match rx.try_recv() {
                Ok(Err(refused)) => Err(refused),
                Ok(Ok(output)) => {
                    let (tx, rx) = oneshot::channel();
                    // The receiver is in this function.
                    let _ = tx.send(Ok(output));
                    Ok(rx)
                }
                Err(_) => Ok(rx),
            };
        }
        let propose = Event::Propose {
            ticket: Ticket(0),
            command,
        };
        shared.with_verdict(propose, |verdict| match verdict {
            Some(Action::Accepted { lsn, term, .. }) => {
                Ok((lsn, term, Answer::Command(tx), attached))
            }
            Some(Action::Rejected { reason, .. }) => Err(reason.into()),
            _ => Err(shared.no_verdict()),
        })?;
        Ok(rx)
    }

    /// As [`Group::propose`], and waits for the answer.
    pub async fn execute(&self, command: Vec<u8>) -> Result<O, ProposeError> {
        self.propose(command)?
            .await
            .unwrap_or(Err(ProposeError::Unknown))
    }

    /// Requests a snapshot, also if nothing was applied since the newest one. It covers everything that was
    /// applied before this call: if an attempt is under way, the next attempt answers, and it is shared by
    /// all requests made meanwhile.
    pub fn snapshot(&self) -> oneshot::Receiver<Result<Arc<StoredSnapshot>, SnapshotError>> {
        let answer = self.shared.snapshot_jobs.request();
        self.shared.apply.nudge();
        answer
    }

    /// Reports a snapshot that the host had before the group was opened. It covers everything up to `lsn`,
    /// an entry of `term`. To be called soon after the open.
    pub fn snapshot_known(&self, lsn: Lsn, term: Term) {
        self.shared.step(Event::SnapshotTaken {
            last_included_index: lsn,
            term,
            peers: None,
        });
    }

    /// Makes the log keep the entries above `lsn`, also if a snapshot covers them. To be called at every
    /// open, before [`Group::snapshot_known`], which may compact the log.
    pub fn keep_from(&self, lsn: Lsn) {
        self.shared.step(Event::KeepFrom { lsn });
    }

    /// If this member leads, keeps nothing any more for the members that are away now: for a host whose log has become
    /// too long.
    pub fn give_up_absent(&self) {
        if self.shared.has_others() {
            self.shared.step(Event::GiveUpAbsent);
        }
    }

    /// If this member leads, and a member that is away needs entries at or below `lsn` which are kept for it
    /// ([`NodeConfig::kept_for_absent`](super::NodeConfig::kept_for_absent)): the last entry that it does not need. A
    /// host that has the other members compact their logs lets them go no further, because each of them may lead next.
    pub fn kept_for_absent(&self, lsn: Lsn) -> Option<Lsn> {
        self.shared.lock().kept_for_absent(lsn)
    }

    /// If this member leads: what is kept at or below `lsn` for members that are away, as [`Group::kept_for_absent`] has
    /// it. For people and metrics.
    pub fn log_kept_for_absent(&self, lsn: Lsn) -> Option<KeptLog> {
        self.shared.lock().log_kept_for_absent(lsn)
    }

    /// Lets no peer have this member's state from now on, or lets them again: it offers no snapshot, and a peer that
    /// needs one waits. A transfer that has begun ends, unless the peer has all of it already. Nothing of this is stored: the host calls it again after
    /// it has opened the group.
    pub fn withhold_snapshots(&self, withheld: bool) {
        if let Some(member) = &self.shared.member {
            member.withhold(withheld);
        }
        self.shared.step(Event::WithholdSnapshots { withheld });
    }

    /// The same as [`Group::snapshot`].
    pub fn trigger_snapshot(
        &self,
    ) -> oneshot::Receiver<Result<Arc<StoredSnapshot>, SnapshotError>> {
        self.snapshot()
    }

    /// One tick of the clock, if this member needs ticks.
    pub fn tick(&self) {
        self.shared.tick();
    }

    /// Campaigns now.
    pub fn campaign(&self) {
        self.shared.step(Event::Campaign);
    }

    /// Hands a peer's message to the group.
    pub fn receive(&self, message: Envelope) {
        Addressed::receive(&*self.shared, message);
    }

    /// The current term.
    pub fn term(&self) -> Term {
        self.shared.view.position().term
    }

    /// The leader, if known.
    pub fn leader(&self) -> Option<NodeId> {
        self.shared.view.position().leader
    }

    /// Who belongs to the group.
    pub fn membership(&self) -> Membership {
        self.shared.membership()
    }

    /// Members, their progress, transfers. Costs more than [`Group::status`]; meant for people. If the group is busy, as
    /// of about a second before.
    pub fn details(&self) -> Status {
        self.shared.details()
    }

    /// Counters since the group was opened. The metrics `esker_raft_*` have the same values, once a second.
    pub fn counters(&self) -> GroupCounters {
        self.shared.counters()
    }

    /// Waits until this member knows a leader, and returns it; `None` if the group stops or halts. Waits
    /// without a limit in time.
    pub async fn wait_for_leader(&self) -> Option<NodeId> {
        let mut applied = self.shared.watch_applied();
        loop {
            if let Some(leader) = self.leader() {
                return Some(leader);
            }
            if self.shared.is_over() || applied.changed().await.is_err() {
                return None;
            }
        }
    }

    /// The position and the health of the group.
    pub fn status(&self) -> GroupStatus {
        let (applied, applied_term) = *self.shared.applied.borrow();
        let now = self.shared.view.position();
        GroupStatus {
            role: now.role,
            term: now.term,
            last: now.last,
            committed: now.committed,
            applied,
            applied_term,
            floor: now.floor,
            log_start: now.log_start,
            log_entries: now.last.0 - now.log_start.0,
            log_bytes: now.log_bytes,
            alarm: now.alarm,
            stalled: self.shared.writer.stalled()
                || self.shared.apply_stalled.load(Ordering::Relaxed),
            halted: self.shared.halted().is_some(),
        }
    }

    /// Why the group has halted, if it has: its log could not be read, or entries are missing. Everything
    /// that was acknowledged is in the log. A group of one member is opened again by itself if the cause
    /// may pass.
    pub fn halted(&self) -> Option<Halted> {
        self.shared.halted()
    }

    /// Halts the group for good: the host has found that its state is not that of the log. From now on this
    /// member neither votes nor leads nor applies, takes no snapshot of a peer, and gives no peer one of its
    /// own. What it has acknowledged stays in its log. Nothing of this is stored: a host that opens the group
    /// again has to call it again.
    pub fn condemn(&self, why: String) {
        let shared = &self.shared;
        shared.step(Event::Condemned { what: why });
        if let Some(member) = &shared.member {
            member.fetches.close();
            member.snapshot_sender.withdraw(&member.store);
        }
    }

    /// Why entries cannot be written or applied at the moment, if that is so. The attempts are repeated
    /// without a limit.
    pub fn stall_cause(&self) -> Option<String> {
        if let Some(why) = self.shared.writer.stall_cause() {
            return Some(format!("the log cannot be written: {why}"));
        }
        match self.shared.apply_stalled.load(Ordering::Relaxed) {
            true => self.shared.stall_cause.lock().clone(),
            false => None,
        }
    }

    /// Whether this member leads and has applied everything from before its term. One that has halted does not
    /// lead any more, whatever it was.
    pub fn is_serving(&self) -> bool {
        self.serving_term().is_some() && self.shared.halted().is_none()
    }

    /// The term in which this member leads, if it has applied everything from before it. Like [`Group::leader`] and
    /// [`Group::is_serving`], it is as of the last change of the leader, and waits for no thread that works for the
    /// group: these three may be called for each request.
    pub fn serving_term(&self) -> Option<Term> {
        let term = self.shared.view.position().leading_term?;
        (self.shared.applied.borrow().1 == term).then_some(term)
    }

    /// Whether this member leads and takes no proposals for a moment, because it is giving the leadership to another
    /// member.
    pub fn is_transferring(&self) -> bool {
        self.shared.view.position().is_transferring
    }

    /// Waits until this member leads and has applied everything from before its term: from then on it may
    /// serve. Also returns if the group halts or stops. Waits without a limit in time.
    pub async fn wait_until_serving(&self) {
        let mut applied = self.shared.applied.subscribe();
        loop {
            if self.is_serving() || self.shared.is_over() {
                return;
            }
            if applied.changed().await.is_err() {
                return;
            }
        }
    }

    /// Waits until everything that was committed at the time of the call is applied here, and returns the
    /// LSN of that. From then on a read of the local state is linearizable. Also works on followers and
    /// learners, which ask the leader.
    ///
    /// # Errors
    ///
    /// See [`ReadFailure`]: it fails after three election timeouts at the latest, or six if the leader has
    /// answered.
    pub async fn read_index(&self) -> Result<Lsn, ReadFailure> {
        let Some((ticket, answer)) = self.shared.requests.begin_read() else {
            return Err(ReadFailure::Stopped);
        };
        self.shared.read_index(ticket);
        answer.await.unwrap_or(Err(ReadFailure::Stopped))
    }

    /// Changes the membership, and waits until the change is in force and the old voters need not agree any
    /// more, for [`CHANGE_TIMEOUTS`] election timeouts at most. After [`MembershipChange::AddPeer`] the node is a member without a vote; the leader promotes
    /// it once it has caught up. To be called on the leader; one change at a time.
    ///
    /// # Errors
    ///
    /// See [`ChangeError`].
    pub async fn change_membership(&self, change: MembershipChange) -> Result<(), ChangeError> {
        let ticket = self.shared.requests.ticket();
        let (asker, answer) = oneshot::channel();
        self.shared
            .with_verdict(
                Event::ChangeMembership { ticket, change },
                |verdict| match verdict {
                    Some(Action::Accepted { lsn, term, .. }) => {
                        Ok((lsn, term, Answer::Change(asker), Attached::default()))
                    }
                    Some(Action::Rejected { reason, .. }) => Err(reason.into()),
                    _ => Err(ChangeError::Other("the group has stopped".to_owned())),
                },
            )?;
        let mut applied = self.shared.watch_applied();
        let changed = async {
            answer.await.unwrap_or(Err(ChangeError::Unknown))?;
            while self.shared.membership().is_joint() {
                if self.shared.is_over() || applied.changed().await.is_err() {
                    return Err(ChangeError::Unknown);
                }
            }
            Ok(())
        };
        let ticks = CHANGE_TIMEOUTS * self.shared.election_ticks;
        let late = self.shared.requests.begin_timer(ticks);
        tokio::select! {
            biased;
            outcome = changed => outcome,
            _ = late => Err(match self.shared.is_over() {
                true => ChangeError::Unknown,
                false => ChangeError::TimedOut,
            }),
        }
    }

    /// Adds a member that will vote; see [`MembershipChange::AddPeer`].
    pub async fn add_peer(&self, node: NodeId) -> Result<(), ChangeError> {
        self.change_membership(MembershipChange::AddPeer(node))
            .await
    }

    /// Adds a member without a vote.
    pub async fn add_learner(&self, node: NodeId) -> Result<(), ChangeError> {
        self.change_membership(MembershipChange::AddLearner(node))
            .await
    }

    /// Gives a learner a vote.
    pub async fn promote(&self, node: NodeId) -> Result<(), ChangeError> {
        self.change_membership(MembershipChange::Promote(node))
            .await
    }

    /// Removes a member. Its number must not be used again.
    pub async fn remove_peer(&self, node: NodeId) -> Result<(), ChangeError> {
        self.change_membership(MembershipChange::RemovePeer(node))
            .await
    }

    /// Makes another voter the leader, and waits until it leads, for two election timeouts at most.
    pub async fn transfer_leadership(&self, to: NodeId) -> Result<(), ChangeError> {
        let shared = &self.shared;
        if to == shared.node && self.status().role == Role::Leader {
            return Ok(());
        }
        let Some(answer) = (shared.requests).begin_transfer(to, 2 * shared.election_ticks) else {
            return Err(ChangeError::Other("the group has stopped".to_owned()));
        };
        let ticket = shared.requests.ticket();
        let refusal = shared.refusal_of(Event::TransferLeadership { ticket, to }, ticket);
        if let Some(reason) = refusal {
            shared.requests.end_transfer();
            return Err(reason.into());
        }
        answer.await.unwrap_or(Err(ChangeError::Unknown))
    }

    /// Refuses proposals from now on, applies what is committed, ends the apply thread, and waits for a
    /// snapshot that is being written. Pending proposals get [`ProposeError::Unknown`]; requests for a
    /// snapshot get an error.
    pub fn stop(&self) {
        {
            // Under the engine's lock, so that no proposal is between its check and its registration.
            let _engine = self.shared.lock();
            self.shared.stopping.store(true, Ordering::Relaxed);
        }
        self.shared.snapshot_jobs.close();
        self.shared.apply.close();
        if let Some(member) = &self.shared.member {
            member.fetches.close();
            member.snapshot_sender.withdraw(&member.store);
        }
        let thread = self.thread.lock().take();
        if let Some(thread) = thread {
            // A panic of the apply thread has already been reported by the panic hook.
            let _ = thread.join();
        }
        self.shared.snapshot_jobs.finish();
        self.shared.refuse_waiting();
        self.shared.waiters.fail_all(&ProposeError::Unknown);
        self.shared.requests.close();
        self.shared.applied.send_modify(|_| {});
    }
}
