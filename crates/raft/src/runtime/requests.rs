//! What hosts ask of a group beside proposals: reads, changes of the membership, another leader.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use parking_lot::Mutex;
use tokio::sync::oneshot;

use super::group::Group;
use super::waiters::Answer;
use crate::engine::{
    Action, ChangeRefused, Event, MembershipChange, ReadFailure, RejectReason, Role, Ticket,
};
use crate::ids::{Lsn, NodeId};

/// Why the membership, or the leader, is not changed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ChangeError {
    /// This member does not lead, or not any more. Nothing happened.
    #[error("this node does not lead the group")]
    NotLeader {
        /// Who does, if known.
        leader: Option<NodeId>,
    },
    /// It cannot be changed so, or not now. Nothing happened.
    #[error(transparent)]
    Refused(#[from] ChangeRefused),
    /// It did not come about in time. For another leader, that means that this one goes on.
    #[error("it did not come about in time")]
    TimedOut,
    /// Another entry was committed in its place. Nothing happened.
    #[error("superseded by another leader's entry")]
    Superseded,
    /// The group stopped, or lost its leader, while it was under way: it may have happened or not.
    #[error("the outcome is not known")]
    Unknown,
    /// Consensus refused it, or the group has stopped. Nothing happened.
    #[error("refused: {0}")]
    Other(String),
}

/// Pending asks. Reads are bounded by the engine; of transfers there is one.
#[derive(Default)]
pub(super) struct Requests {
    next: AtomicU64,
    /// Nobody is answered any more. Set before those who wait are answered, looked at after somebody
    /// has begun to wait.
    closed: AtomicBool,
    reads: Mutex<BTreeMap<u64, oneshot::Sender<Result<Lsn, ReadFailure>>>>,
    transfer: Mutex<Option<Transfer>>,
}

struct Transfer {
    to: NodeId,
    /// Ticks that are left.
    patience: usize,
    answer: oneshot::Sender<Result<(), ChangeError>>,
}

impl Requests {
    fn ticket(&self) -> u64 {
        // 0 is that of proposals.
        self.next.fetch_add(1, Ordering::Relaxed) + 1
    }

    pub fn read_answered(&self, ticket: Ticket, answer: Result<Lsn, ReadFailure>) {
        if let Some(asker) = self.reads.lock().remove(&ticket.0) {
            // Whoever asked may have gone.
            let _ = asker.send(answer);
        }
    }

    /// Somebody leads, perhaps the one that was to.
    pub fn leader_is(&self, leader: Option<NodeId>) {
        let mut transfer = self.transfer.lock();
        if let Some(done) = transfer.take_if(|t| Some(t.to) == leader) {
            let _ = done.answer.send(Ok(()));
        }
    }

    pub fn tick(&self) {
        let mut transfer = self.transfer.lock();
        if let Some(waiting) = transfer.as_mut() {
            waiting.patience = waiting.patience.saturating_sub(1);
        }
        if let Some(late) = transfer.take_if(|t| t.patience == 0) {
            let _ = late.answer.send(Err(ChangeError::TimedOut));
        }
    }

    /// Whether somebody who waits is not answered any more. To be asked after the wait has begun.
    fn is_closed(&self) -> bool {
        self.closed.load(Ordering::SeqCst)
    }

    /// Asks are answered again.
    pub fn reopen(&self) {
        self.closed.store(false, Ordering::SeqCst);
    }

    /// Nobody is answered any more.
    pub fn close(&self) {
        self.closed.store(true, Ordering::SeqCst);
        self.reads.lock().clear();
        *self.transfer.lock() = None;
    }
}

impl<O: Send + 'static> Group<O> {
    /// Waits until what is applied here is at least what was committed when this was called, and
    /// answers up to where that is: from then on a read of the local state is linearizable. Works on
    /// followers and learners too; they ask the leader.
    pub async fn read_index(&self) -> Result<Lsn, ReadFailure> {
        let (asker, answer) = oneshot::channel();
        let asks = &self.shared.asks;
        let ticket = asks.ticket();
        asks.reads.lock().insert(ticket, asker);
        if asks.is_closed() {
            asks.reads.lock().remove(&ticket);
            return Err(ReadFailure::Stopped);
        }
        let ticket = Ticket(ticket);
        self.shared.step(Event::ReadIndex { ticket });
        answer.await.unwrap_or(Err(ReadFailure::Stopped))
    }

    /// Changes the membership, and waits until the change is in force: until no other members have to
    /// agree any more. Of [`MembershipChange::AddPeer`], that the new one is a member, not that it
    /// votes: that comes by itself once it has caught up. Asked on the leader; one at a time.
    pub async fn change_membership(&self, change: MembershipChange) -> Result<(), ChangeError> {
        let ticket = Ticket(self.shared.asks.ticket());
        let (asker, answer) = oneshot::channel();
        self.shared
            .with_verdict(
                Event::ChangeMembership { ticket, change },
                |verdict| match verdict {
                    Some(Action::Accepted { lsn, term, .. }) => {
                        Ok((lsn, term, Answer::Change(asker), None))
                    }
                    Some(Action::Rejected { reason, .. }) => Err(refused(reason)),
                    _ => Err(ChangeError::Other("the group has stopped".to_owned())),
                },
            )?;
        answer.await.unwrap_or(Err(ChangeError::Unknown))?;
        let mut applied = self.shared.watch_applied();
        while self.shared.membership().is_joint() {
            if self.shared.is_over() {
                return Err(ChangeError::Unknown);
            }
            if applied.changed().await.is_err() {
                return Err(ChangeError::Unknown);
            }
        }
        Ok(())
    }

    /// A new member that is to vote; see [`MembershipChange::AddPeer`].
    pub async fn add_peer(&self, node: NodeId) -> Result<(), ChangeError> {
        self.change_membership(MembershipChange::AddPeer(node))
            .await
    }

    /// A new member without a vote.
    pub async fn add_learner(&self, node: NodeId) -> Result<(), ChangeError> {
        self.change_membership(MembershipChange::AddLearner(node))
            .await
    }

    /// A learner gets a vote.
    pub async fn promote(&self, node: NodeId) -> Result<(), ChangeError> {
        self.change_membership(MembershipChange::Promote(node))
            .await
    }

    /// A member goes. Its number is not to be used again.
    pub async fn remove_peer(&self, node: NodeId) -> Result<(), ChangeError> {
        self.change_membership(MembershipChange::RemovePeer(node))
            .await
    }

    /// Makes another voter the leader, and waits until it is, or two election timeouts have passed.
    pub async fn transfer_leadership(&self, to: NodeId) -> Result<(), ChangeError> {
        let shared = &self.shared;
        let (asker, answer) = oneshot::channel();
        let ticket = Ticket(shared.asks.ticket());
        if to == shared.node && self.status().role == Role::Leader {
            return Ok(());
        }
        *shared.asks.transfer.lock() = Some(Transfer {
            to,
            patience: 2 * shared.election_ticks,
            answer: asker,
        });
        if shared.asks.is_closed() {
            *shared.asks.transfer.lock() = None;
            return Err(ChangeError::Other("the group has stopped".to_owned()));
        }
        let refusal = shared.refusal_of(Event::TransferLeadership { ticket, to }, ticket);
        if let Some(reason) = refusal {
            *shared.asks.transfer.lock() = None;
            return Err(refused(reason));
        }
        answer.await.unwrap_or(Err(ChangeError::Unknown))
    }
}

fn refused(reason: RejectReason) -> ChangeError {
    match reason {
        RejectReason::NotLeader { leader } => ChangeError::NotLeader { leader },
        RejectReason::Transferring { to } => ChangeError::NotLeader { leader: Some(to) },
        RejectReason::Membership(why) => ChangeError::Refused(why),
        RejectReason::Busy => ChangeError::Other("too many proposals are pending".to_owned()),
        RejectReason::LogFull => ChangeError::Other("the log is full".to_owned()),
        RejectReason::Refused(why) => ChangeError::Other(why),
    }
}
