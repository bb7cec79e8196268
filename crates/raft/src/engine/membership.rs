//! Who belongs to a group, and how that changes.
//!
//! A change is an entry of the log, in force for everybody from where it is handed out for applying.
//! One that concerns voters takes two: the first makes the membership *joint*, where both the old and
//! the new voters have to agree; the second, which the leader proposes by itself, ends that.
//!
//! That a learner is to become a voter once it has caught up is part of the membership: the entry that adds
//! it says so, and every leader goes on with it. A version that does not know of it leaves it a learner.
//!
//! A member knows the membership from the snapshot that its state comes from and the changes since;
//! never from the list that it was founded with, once it has state.

use raft::StateRole;
use raft::eraftpb::{
    ConfChangeSingle, ConfChangeTransition, ConfChangeType, ConfChangeV2, ConfState,
};

use super::{Action, Engine, RejectReason, Role, Ticket};
use crate::ids::NodeId;

/// Most entries that a learner may lack of the leader's log when it is promoted: what it takes over a
/// network in a moment. As a voter that lags it would hold up every commit that needs it.
pub const MAX_PROMOTION_LAG: u64 = 1000;

/// What the entry that adds a learner says in its change's context if the learner is to be promoted.
const TO_PROMOTE: &[u8] = b"promote";

/// Who belongs to a group.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Membership {
    /// Members with a vote, sorted.
    pub voters: Vec<NodeId>,
    /// Members without, sorted.
    pub learners: Vec<NodeId>,
    /// While a change is under way: those who had a vote before it, sorted. They have to agree too.
    pub voters_outgoing: Vec<NodeId>,
    /// While a change is under way: those who will be learners after it, sorted.
    pub learners_next: Vec<NodeId>,
    /// Those of the learners that get a vote as soon as they have caught up, sorted. A host that does not
    /// keep it with its state loses the intention at a restart, and no more: they stay learners.
    pub to_promote: Vec<NodeId>,
}

impl Membership {
    /// Everybody, some twice while a change is under way.
    pub fn members(&self) -> impl Iterator<Item = NodeId> + '_ {
        let voters = self.voters.iter().chain(&self.voters_outgoing);
        let learners = self.learners.iter().chain(&self.learners_next);
        voters.chain(learners).copied()
    }

    /// Whether it belongs to the group, in whatever way.
    pub fn contains(&self, node: NodeId) -> bool {
        self.members().any(|member| member == node)
    }

    /// Whether a change is under way.
    pub fn is_joint(&self) -> bool {
        !self.voters_outgoing.is_empty()
    }

    /// Whether this is all: one voter.
    pub(crate) fn is_only(&self, node: NodeId) -> bool {
        self.voters == [node] && self.members().count() == 1
    }

    pub(crate) fn to_conf_state(&self) -> ConfState {
        let numbers = |nodes: &[NodeId]| nodes.iter().map(|n| n.0).collect::<Vec<_>>();
        ConfState {
            voters: numbers(&self.voters),
            learners: numbers(&self.learners),
            voters_outgoing: numbers(&self.voters_outgoing),
            learners_next: numbers(&self.learners_next),
            // Ours always end by themselves.
            auto_leave: self.is_joint(),
            ..ConfState::default()
        }
    }

    pub(crate) fn from_conf_state(state: &ConfState) -> Membership {
        let nodes = |numbers: &[u64]| {
            let mut nodes: Vec<_> = numbers.iter().copied().map(NodeId).collect();
            nodes.sort_unstable();
            nodes
        };
        Membership {
            voters: nodes(&state.voters),
            learners: nodes(&state.learners),
            voters_outgoing: nodes(&state.voters_outgoing),
            learners_next: nodes(&state.learners_next),
            to_promote: Vec::new(),
        }
    }

    /// With these to be promoted, as far as they are learners.
    pub(crate) fn promoting(mut self, nodes: impl IntoIterator<Item = NodeId>) -> Membership {
        let learners = &self.learners;
        self.to_promote = nodes
            .into_iter()
            .filter(|node| learners.contains(node))
            .collect();
        self.to_promote.sort_unstable();
        self.to_promote.dedup();
        self
    }
}

/// A change of the membership.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MembershipChange {
    /// A new member that is to vote. It comes as a learner, and the leader promotes it as soon as it
    /// has caught up: nobody votes without a log. If this leader goes before that, the next one does it.
    AddPeer(NodeId),
    /// A new member without a vote.
    AddLearner(NodeId),
    /// A learner that has caught up gets a vote.
    Promote(NodeId),
    /// A member goes. Its number is not to be used again.
    RemovePeer(NodeId),
}

/// Why the membership is not changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ChangeRefused {
    /// Another change is under way, or may be: a new leader knows only once it has applied what it
    /// found.
    #[error("another change of the membership is under way")]
    InProgress,
    /// It belongs to the group already.
    #[error("it is a member already")]
    AlreadyMember,
    /// It does not belong to the group.
    #[error("it is not a member")]
    NotAMember,
    /// It is no learner.
    #[error("it is not a learner")]
    NotALearner,
    /// It lacks too much.
    #[error("it has not caught up: it lacks {lacks} entries, or has not been heard of")]
    Lagging {
        /// So many entries of the leader's log.
        lacks: u64,
    },
    /// A leader does not remove itself: leadership is to be transferred before.
    #[error("it leads the group: transfer the leadership first")]
    IsLeader,
    /// 0 is nobody.
    #[error("0 is not the number of a node")]
    Nobody,
}

impl Engine {
    pub(super) fn change_membership(
        &mut self,
        ticket: Ticket,
        change: MembershipChange,
        actions: &mut Vec<Action>,
    ) {
        actions.push(match self.try_change(change) {
            Ok(()) => Action::Accepted {
                ticket,
                lsn: self.last(),
                term: self.term(),
            },
            Err(reason) => Action::Rejected { ticket, reason },
        });
    }

    fn try_change(&mut self, change: MembershipChange) -> Result<(), RejectReason> {
        if self.role != Role::Leader {
            let leader = self.leader();
            return Err(RejectReason::NotLeader { leader });
        }
        if let Some(to) = self.raw.raft.lead_transferee {
            return Err(RejectReason::Transferring { to: NodeId(to) });
        }
        let single = self.check(change).map_err(RejectReason::Membership)?;
        let mut proposed = ConfChangeV2::default();
        proposed.set_transition(match single.get_change_type() {
            // Voters do not change.
            ConfChangeType::AddLearnerNode => ConfChangeTransition::Auto,
            _ => ConfChangeTransition::Implicit,
        });
        proposed.mut_changes().push(single);
        if matches!(change, MembershipChange::AddPeer(_)) {
            proposed.context = bytes::Bytes::from_static(TO_PROMOTE);
        }
        (self.raw.propose_conf_change(Vec::new(), proposed)).map_err(|error| match error {
            raft::Error::ProposalDropped => RejectReason::NotLeader { leader: None },
            other => RejectReason::Refused(other.to_string()),
        })
    }

    fn check(&self, change: MembershipChange) -> Result<ConfChangeSingle, ChangeRefused> {
        let raft = &self.raw.raft;
        let (MembershipChange::AddPeer(node)
        | MembershipChange::AddLearner(node)
        | MembershipChange::Promote(node)
        | MembershipChange::RemovePeer(node)) = change;
        if node.0 == 0 {
            return Err(ChangeRefused::Nobody);
        }
        if self.membership.is_joint() || raft.has_pending_conf() {
            return Err(ChangeRefused::InProgress);
        }
        let kind = match change {
            MembershipChange::AddPeer(_) | MembershipChange::AddLearner(_) => {
                if self.membership.contains(node) {
                    return Err(ChangeRefused::AlreadyMember);
                }
                ConfChangeType::AddLearnerNode
            }
            MembershipChange::Promote(_) => {
                if !self.membership.contains(node) {
                    return Err(ChangeRefused::NotAMember);
                }
                if !self.membership.learners.contains(&node) {
                    return Err(ChangeRefused::NotALearner);
                }
                let progress = raft.prs().get(node.0);
                let matched = progress
                    .filter(|p| p.recent_active)
                    .map_or(0, |p| p.matched);
                let lacks = self.last().0 - matched.min(self.last().0);
                if matched == 0 || lacks > MAX_PROMOTION_LAG {
                    return Err(ChangeRefused::Lagging { lacks });
                }
                ConfChangeType::AddNode
            }
            MembershipChange::RemovePeer(_) => {
                if !self.membership.contains(node) {
                    return Err(ChangeRefused::NotAMember);
                }
                if node == self.config.id {
                    return Err(ChangeRefused::IsLeader);
                }
                ConfChangeType::RemoveNode
            }
        };
        let mut single = ConfChangeSingle::default();
        single.set_change_type(kind);
        single.node_id = node.0;
        Ok(single)
    }

    /// An entry that changes the membership is handed out.
    pub(super) fn apply_change(&mut self, data: &bytes::Bytes) -> Result<(), String> {
        let change = crate::message::conf_change(data).map_err(|e| e.to_string())?;
        let state = self.raw.apply_conf_change(&change);
        let state = state.map_err(|e| e.to_string())?;
        let membership = Membership::from_conf_state(&state);
        let mut to_promote = std::mem::take(&mut self.membership.to_promote);
        if change.context == TO_PROMOTE {
            to_promote.extend(change.changes.iter().map(|single| NodeId(single.node_id)));
        }
        self.set_membership(membership.promoting(to_promote));
        self.resign_without_a_vote();
        Ok(())
    }

    /// A leader does not remove itself, but one before it may have, and left the entry to it. raft-rs
    /// would lead on, take no proposals, and panic at the next write.
    fn resign_without_a_vote(&mut self) {
        let me = self.config.id;
        let votes = [&self.membership.voters, &self.membership.voters_outgoing];
        let raft = &mut self.raw.raft;
        if raft.state == StateRole::Leader && !votes.iter().any(|voters| voters.contains(&me)) {
            raft.become_follower(raft.term, 0);
        }
    }

    pub(super) fn set_membership(&mut self, membership: Membership) {
        self.alone = membership.is_only(self.config.id);
        self.peers.only(&membership);
        self.membership = membership;
    }

    /// What a leader does about the membership by itself.
    pub(super) fn tend_membership(&mut self) {
        if self.role != Role::Leader || self.raw.raft.state != StateRole::Leader {
            return;
        }
        let raft = &self.raw.raft;
        if self.membership.is_joint() && !raft.has_pending_conf() {
            // raft-rs ends a joint membership where it is applied, if it leads then. Should that
            // have been missed, so that nobody waits for ever. Dropped, it is tried again.
            let _ = self
                .raw
                .propose_conf_change(Vec::new(), ConfChangeV2::default());
            return;
        }
        // One at a time. Those that have not caught up are refused, and looked at again.
        for node in self.membership.to_promote.clone() {
            if self.try_change(MembershipChange::Promote(node)).is_ok() {
                return;
            }
        }
    }

    pub(super) fn transfer_leadership(
        &mut self,
        ticket: Ticket,
        to: NodeId,
        actions: &mut Vec<Action>,
    ) {
        let reason = if self.role != Role::Leader {
            let leader = self.leader();
            RejectReason::NotLeader { leader }
        } else if !self.membership.voters.contains(&to) {
            RejectReason::Membership(ChangeRefused::NotAMember)
        } else {
            return self.raw.transfer_leader(to.0);
        };
        actions.push(Action::Rejected { ticket, reason });
    }
}
