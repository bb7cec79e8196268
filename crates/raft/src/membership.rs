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
    /// While a change is under way: the voters before it, sorted. A majority of them has to agree too.
    pub voters_outgoing: Vec<NodeId>,
    /// While a change is under way: those who will be learners after it, sorted.
    pub learners_next: Vec<NodeId>,
    /// Learners that get a vote as soon as they have caught up, sorted. If a host does not keep this list
    /// with its state, they stay learners after a restart; nothing else is lost.
    pub to_promote: Vec<NodeId>,
}

impl Membership {
    /// All members; some occur twice while a change is under way.
    pub fn members(&self) -> impl Iterator<Item = NodeId> + '_ {
        let voters = self.voters.iter().chain(&self.voters_outgoing);
        let learners = self.learners.iter().chain(&self.learners_next);
        voters.chain(learners).copied()
    }

    /// Whether the node is a member, as a voter or a learner.
    pub fn contains(&self, node: NodeId) -> bool {
        self.members().any(|member| member == node)
    }

    /// Whether a change is under way.
    pub fn is_joint(&self) -> bool {
        !self.voters_outgoing.is_empty()
    }

    /// Whether the node is the only member, and a voter.
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
            // Joint memberships of this library always end by themselves.
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

    /// The membership with those of `nodes` to be promoted that are learners.
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
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MembershipChange {
    /// Adds a member that will vote. It begins as a learner, because a voter needs a log, and the leader
    /// promotes it as soon as it has caught up. If the leader changes before that, the next one does it.
    AddPeer(NodeId),
    /// Adds a member without a vote.
    AddLearner(NodeId),
    /// Gives a vote to a learner that has caught up.
    Promote(NodeId),
    /// Removes a member. Its number must not be used again.
    RemovePeer(NodeId),
    /// Promotes, demotes and removes several members as one change. The voters before it and those after it
    /// decide together until it is complete, and no set of voters in between decides alone: from one voter
    /// to three, for example, without a time in which two voters decide.
    ChangeVoters(VoterChange),
}

/// What [`MembershipChange::ChangeVoters`] changes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct VoterChange {
    /// Learners that have caught up, and get a vote.
    pub promote: Vec<NodeId>,
    /// Voters that become learners. They belong to the group at every moment of the change, and so never miss
    /// an entry.
    pub demote: Vec<NodeId>,
    /// Members that are removed, as by [`MembershipChange::RemovePeer`].
    pub remove: Vec<NodeId>,
}

impl VoterChange {
    /// The voters after this change of these ones, sorted.
    pub fn voters_after(&self, voters: &[NodeId]) -> Vec<NodeId> {
        let loses_vote = |node: &&NodeId| self.demote.contains(node) || self.remove.contains(node);
        let kept = voters.iter().filter(|node| !loses_vote(node));
        let mut after: Vec<_> = kept.chain(&self.promote).copied().collect();
        after.sort_unstable();
        after.dedup();
        after
    }

    /// Whether it changes nothing.
    pub fn is_empty(&self) -> bool {
        self.promote.is_empty() && self.demote.is_empty() && self.remove.is_empty()
    }
}

/// Why a change of the membership is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ChangeRefused {
    /// Another change is under way, or may be: a new leader only knows once it has applied the entries of
    /// its predecessors.
    #[error("another change of the membership is under way")]
    InProgress,
    /// The node is a member already.
    #[error("it is a member already")]
    AlreadyMember,
    /// The node is not a member.
    #[error("it is not a member")]
    NotAMember,
    /// The node is a learner, and only a voter can lead or be demoted.
    #[error("it does not vote")]
    NotAVoter,
    /// The node is not a learner.
    #[error("it is not a learner")]
    NotALearner,
    /// The learner lacks too many entries.
    #[error("it has not caught up: it lacks {lacks} entries, or is not in contact")]
    Lagging {
        /// Entries of the leader's log that it lacks.
        lacks: u64,
    },
    /// A leader neither removes nor demotes itself: transfer the leadership first.
    #[error("it leads the group: transfer the leadership first")]
    IsLeader,
    /// A majority of the voters after the change was not heard from within the last election timeout: with
    /// the change the group might stop.
    #[error(
        "of the {voters} voters after the change only {heard} are in contact, which is no majority"
    )]
    NoMajority {
        /// How many were heard from, the leader included.
        heard: usize,
        /// How many there are.
        voters: usize,
    },
    /// 0 is not the number of a node.
    #[error("0 is not the number of a node")]
    Nobody,
    /// The change names no node, or one node twice.
    #[error("the change names no node, or one node twice")]
    Malformed,
}
