//! The members of a partition's group, as they are stored: with the applied position, in a checkpoint's
//! description, and in a snapshot's metadata in the repository.
//!
//! The membership is part of the state: each applied entry that changes it replaces it in the same write
//! that moves the position. It is stored whole, even in the middle of a change, because a member that
//! restarts then still needs both majorities.

use esker_raft::{Membership, NodeId};
use serde::{Deserialize, Serialize};

/// The numbers of the members, by their role in the group. Each list is sorted.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Members {
    /// Members with a vote.
    pub voters: Vec<u64>,
    /// Members without a vote.
    pub learners: Vec<u64>,
    /// During a change: the members that had a vote before it. Their majority has to agree too.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub voters_outgoing: Vec<u64>,
    /// During a change: the members that become learners when it ends.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub learners_next: Vec<u64>,
    /// The learners that get a vote once they have caught up.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub to_promote: Vec<u64>,
}

impl From<&Membership> for Members {
    fn from(membership: &Membership) -> Members {
        let numbers = |nodes: &[NodeId]| nodes.iter().map(|node| node.0).collect();
        Members {
            voters: numbers(&membership.voters),
            learners: numbers(&membership.learners),
            voters_outgoing: numbers(&membership.voters_outgoing),
            learners_next: numbers(&membership.learners_next),
            to_promote: numbers(&membership.to_promote),
        }
    }
}

impl From<&Members> for Membership {
    fn from(members: &Members) -> Membership {
        let nodes = |numbers: &[u64]| numbers.iter().copied().map(NodeId).collect();
        Membership {
            voters: nodes(&members.voters),
            learners: nodes(&members.learners),
            voters_outgoing: nodes(&members.voters_outgoing),
            learners_next: nodes(&members.learners_next),
            to_promote: nodes(&members.to_promote),
        }
    }
}
