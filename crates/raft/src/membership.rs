//! Who belongs to a group: its members, and the changes that a leader may make to them.
//!
//! These types are shared by consensus, the messages between members and the descriptions of snapshots,
//! so this module uses nothing of the crate but the numbers of [`ids`](crate::ids). How a change takes
//! effect is the engine's: `engine/membership.rs`.

use raft::eraftpb::ConfState;

use crate::ids::NodeId;

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
