//! What the leader of a group changes next, so that its members are those that the catalog wants.
//!
//! Each node has a replica of each partition: three of them vote (five of the catalog's), the others are
//! learners. With two nodes one votes, because two voters lose the group with either of them. A group changes one
//! thing at a time, and this module decides by what it is given alone.

use esker_partition::command::NodeState;
use esker_raft::engine::{PeerState, PeerStatus};
use esker_raft::{Membership, MembershipChange, NodeId};

use super::directory::Nodes;

/// Ticks without a message after which a peer counts as gone: a few election timeouts.
const GONE_TICKS: u64 = 50;
/// Entries that a new leader may lack when it is asked to lead: what is sent within a fraction of a second.
const MAX_LACKING: u64 = 1000;

/// A group as its leader sees it.
pub(super) struct Seen<'a> {
    /// The group's number: that of its partition.
    pub partition: u64,
    /// This node, which leads it.
    pub me: NodeId,
    /// Who belongs to the group.
    pub membership: &'a Membership,
    /// The others, as far as they are known.
    pub peers: &'a [PeerStatus],
    /// The last entry of the log.
    pub last: u64,
    /// Whether this node has led for long enough to give the leadership to the preferred node.
    pub is_settled: bool,
}

/// One change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// Of the members.
    Change(MembershipChange),
    /// Another voter is to lead.
    Transfer(NodeId),
}

/// How many voters a partition has with so many active nodes.
pub(super) fn voters_with(active: usize, partition: u64) -> usize {
    match active {
        5.. if partition == 0 => 5,
        3.. => 3,
        _ => 1,
    }
}

impl Seen<'_> {
    fn peer(&self, node: NodeId) -> Option<&PeerStatus> {
        self.peers.iter().find(|peer| peer.id == node)
    }

    /// Whether a peer is in contact, and gets entries as they are appended.
    fn follows(&self, node: NodeId) -> bool {
        node == self.me
            || self.peer(node).is_some_and(|peer| {
                peer.state == PeerState::Replicate
                    && peer.heard_ticks_ago.is_some_and(|ago| ago < GONE_TICKS)
            })
    }

    /// Whether a peer could lead at once.
    fn could_lead(&self, node: NodeId) -> bool {
        let is_close = |peer: &PeerStatus| self.last.saturating_sub(peer.matched.0) <= MAX_LACKING;
        self.membership.voters.contains(&node)
            && self.follows(node)
            && self.peer(node).is_some_and(is_close)
    }

    /// Whether a majority of the voters is in contact if one of them is gone.
    fn lives_without(&self, gone: NodeId) -> bool {
        let left = self.membership.voters.iter().filter(|node| **node != gone);
        let left: Vec<NodeId> = left.copied().collect();
        let live = left.iter().filter(|node| self.follows(**node)).count();
        live > left.len() / 2
    }

    /// The next change; `None` if there is nothing to change, or nothing now.
    pub fn next(&self, nodes: &Nodes) -> Option<Step> {
        let state = |node: NodeId| nodes.get(&node.0).map(|node| node.state);
        let is_active = |node: NodeId| state(node) == Some(NodeState::Active);
        let members = self.membership;
        if members.is_joint() || nodes.is_empty() {
            return None;
        }
        if !is_active(self.me) {
            // A leader does not remove itself.
            let to = members.voters.iter().copied();
            let mut to = to.filter(|node| is_active(*node) && self.could_lead(*node));
            return to.next().map(Step::Transfer);
        }
        let all: Vec<NodeId> = members
            .voters
            .iter()
            .chain(&members.learners)
            .copied()
            .collect();
        let removed = |node: &NodeId| state(*node) == Some(NodeState::Removed);
        if let Some(gone) = all.iter().copied().find(removed)
            && (!members.voters.contains(&gone) || self.lives_without(gone))
        {
            return Some(Step::Change(MembershipChange::RemovePeer(gone)));
        }
        let joins = |state| matches!(state, NodeState::Joining | NodeState::Active);
        let missing = nodes.values().find(|node| {
            joins(node.state) && node.id != self.me.0 && !members.contains(NodeId(node.id))
        });
        if let Some(node) = missing {
            return Some(Step::Change(MembershipChange::AddLearner(NodeId(node.id))));
        }
        // A node that drains keeps its vote until another one has it: with two voters, the loss of either would stop
        // the group.
        let stays = |state| matches!(state, NodeState::Active | NodeState::Draining);
        let staying = nodes.values().filter(|node| stays(node.state));
        let wanted = voters_with(staying.count(), self.partition);
        let (lasting, leaving): (Vec<NodeId>, Vec<NodeId>) =
            members.voters.iter().partition(|node| is_active(**node));
        if lasting.len() < wanted {
            let mut learners = members.learners.iter().copied();
            let next = learners.find(|node| {
                is_active(*node) && self.follows(*node) && !members.to_promote.contains(node)
            });
            if let Some(next) = next {
                return Some(Step::Change(MembershipChange::Promote(next)));
            }
        } else if let Some(leaving) = leaving.into_iter().find(|node| self.lives_without(*node)) {
            // A draining node whose vote another one has by now.
            return Some(Step::Change(MembershipChange::RemovePeer(leaving)));
        }
        let preferred = lasting.get(self.partition as usize % lasting.len().max(1));
        match preferred {
            Some(to) if *to != self.me && self.is_settled && self.could_lead(*to) => {
                Some(Step::Transfer(*to))
            }
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use esker_partition::ClusterNode;
    use esker_raft::Lsn;

    use super::*;

    fn nodes(states: &[(u64, NodeState)]) -> Nodes {
        let node = |(id, state): &(u64, NodeState)| ClusterNode {
            id: *id,
            name: format!("n{id}"),
            peer_address: String::new(),
            client_address: String::new(),
            zone: String::new(),
            state: *state,
            registered_at_ms: 0,
            reads_format: 1,
            incarnations: Vec::new(),
        };
        states.iter().map(|one| (one.0, node(one))).collect()
    }

    fn ids(ids: &[u64]) -> Vec<NodeId> {
        ids.iter().copied().map(NodeId).collect()
    }

    fn members(voters: &[u64], learners: &[u64]) -> Membership {
        Membership {
            voters: ids(voters),
            learners: ids(learners),
            ..Membership::default()
        }
    }

    fn peer(id: u64, ago: Option<u64>) -> PeerStatus {
        PeerStatus {
            id: NodeId(id),
            matched: Lsn(100),
            state: PeerState::Replicate,
            pending_snapshot: None,
            last_failure: None,
            heard_ticks_ago: ago,
        }
    }

    fn next(partition: u64, membership: &Membership, gone: &[u64], nodes: &Nodes) -> Option<Step> {
        let others = membership.members().filter(|node| node.0 != 1);
        let peers: Vec<_> = others
            .map(|node| peer(node.0, (!gone.contains(&node.0)).then_some(0)))
            .collect();
        let seen = Seen {
            partition,
            me: NodeId(1),
            membership,
            peers: &peers,
            last: 100,
            is_settled: true,
        };
        seen.next(nodes)
    }

    use MembershipChange::{AddLearner, Promote, RemovePeer};
    use NodeState::{Active, Draining, Joining, Removed};

    #[test]
    fn a_node_that_joins_becomes_a_learner_and_votes_once_there_are_three() {
        let two = nodes(&[(1, Active), (2, Joining)]);
        let add = Some(Step::Change(AddLearner(NodeId(2))));
        assert_eq!(next(1, &members(&[1], &[]), &[], &two), add);
        assert_eq!(next(1, &members(&[1], &[2]), &[], &two), None);
        let two = nodes(&[(1, Active), (2, Active)]);
        assert_eq!(
            next(1, &members(&[1], &[2]), &[], &two),
            None,
            "two voters are worse than one"
        );
        let three = nodes(&[(1, Active), (2, Active), (3, Active)]);
        let promote = |node| Some(Step::Change(Promote(NodeId(node))));
        assert_eq!(next(1, &members(&[1], &[2, 3]), &[], &three), promote(2));
        assert_eq!(next(1, &members(&[1], &[2, 3]), &[2], &three), promote(3));
        assert_eq!(
            next(1, &members(&[1, 3], &[2]), &[2], &three),
            Some(Step::Transfer(NodeId(3)))
        );
        assert_eq!(next(0, &members(&[1, 2], &[3]), &[], &three), promote(3));
    }

    #[test]
    fn five_nodes_vote_in_the_catalog_and_three_elsewhere() {
        let five = nodes(&[
            (1, Active),
            (2, Active),
            (3, Active),
            (4, Active),
            (5, Active),
        ]);
        let three = members(&[1, 2, 3], &[4, 5]);
        let promote = Some(Step::Change(Promote(NodeId(4))));
        assert_eq!(next(0, &three, &[], &five), promote);
        assert_eq!(next(3, &three, &[], &five), None);
    }

    #[test]
    fn a_removed_node_leaves_unless_the_rest_would_lose_its_majority() {
        let nodes = nodes(&[(1, Active), (2, Active), (3, Removed)]);
        let three = members(&[1, 2, 3], &[]);
        let remove = Some(Step::Change(RemovePeer(NodeId(3))));
        assert_eq!(next(2, &three, &[3], &nodes), remove);
        assert_eq!(next(2, &three, &[2], &nodes), None);
        assert_eq!(
            next(2, &members(&[1], &[3]), &[2], &nodes),
            remove,
            "a learner has no vote"
        );
    }

    #[test]
    fn a_draining_node_gives_its_leaderships_away_and_its_vote_once_another_has_one() {
        let nodes = nodes(&[(1, Draining), (2, Active), (3, Active), (4, Active)]);
        let three = members(&[1, 2, 3], &[4]);
        assert_eq!(
            next(2, &three, &[2], &nodes),
            Some(Step::Transfer(NodeId(3)))
        );
        let nodes = super::tests::nodes(&[(1, Active), (2, Draining), (3, Active), (4, Active)]);
        let promote = Some(Step::Change(Promote(NodeId(4))));
        assert_eq!(next(2, &three, &[], &nodes), promote);
        let four = members(&[1, 2, 3, 4], &[]);
        let remove = Some(Step::Change(RemovePeer(NodeId(2))));
        assert_eq!(next(2, &four, &[], &nodes), remove);
    }

    #[test]
    fn a_draining_node_keeps_its_vote_where_no_other_one_can_take_it() {
        let nodes = nodes(&[(1, Active), (2, Active), (3, Draining)]);
        let three = members(&[1, 2, 3], &[]);
        assert_eq!(
            next(0, &three, &[], &nodes),
            None,
            "two voters would stop with the loss of either"
        );
        let two = super::tests::nodes(&[(1, Active), (2, Draining)]);
        let remove = Some(Step::Change(RemovePeer(NodeId(2))));
        assert_eq!(next(0, &members(&[1, 2], &[]), &[], &two), remove);
    }

    #[test]
    fn leaderships_are_spread_and_come_to_rest() {
        let nodes = nodes(&[(1, Active), (2, Active), (3, Active)]);
        let three = members(&[1, 2, 3], &[]);
        let to = |partition| next(partition, &three, &[], &nodes);
        assert_eq!(to(0), None);
        assert_eq!(to(1), Some(Step::Transfer(NodeId(2))));
        assert_eq!(to(2), Some(Step::Transfer(NodeId(3))));
        assert_eq!(to(3), None);
        assert_eq!(
            next(1, &three, &[2], &nodes),
            None,
            "a node that is gone does not lead"
        );
    }

    #[test]
    fn nothing_changes_while_a_change_is_under_way_or_the_catalog_is_not_known() {
        let three = nodes(&[(1, Active), (2, Active), (3, Active)]);
        let joint = Membership {
            voters_outgoing: ids(&[1]),
            ..members(&[1, 2], &[])
        };
        assert_eq!(next(1, &joint, &[], &three), None);
        assert_eq!(next(1, &members(&[1], &[]), &[], &Nodes::new()), None);
    }

    /// From any membership, following the steps ends with the wanted one, and no step loses a majority of nodes
    /// that are in contact.
    #[test]
    fn steps_lead_to_the_wanted_members_and_end() {
        for count in 1..=6_u64 {
            for partition in 0..4 {
                let states: Vec<_> = (1..=count).map(|id| (id, Active)).collect();
                let nodes = nodes(&states);
                let mut membership = members(&[1], &[]);
                let mut leader = 1;
                for step in 0.. {
                    assert!(
                        step < 40,
                        "{count} nodes, partition {partition}: {membership:?}"
                    );
                    let peers: Vec<_> = membership
                        .members()
                        .filter(|node| node.0 != leader)
                        .map(|node| peer(node.0, Some(0)))
                        .collect();
                    let seen = Seen {
                        partition,
                        me: NodeId(leader),
                        membership: &membership,
                        peers: &peers,
                        last: 100,
                        is_settled: true,
                    };
                    match seen.next(&nodes) {
                        None => break,
                        Some(Step::Transfer(to)) => leader = to.0,
                        Some(Step::Change(AddLearner(node))) => membership.learners.push(node),
                        Some(Step::Change(Promote(node))) => {
                            membership.learners.retain(|it| *it != node);
                            membership.voters.push(node);
                            membership.voters.sort_unstable();
                        }
                        Some(Step::Change(other)) => panic!("{other:?}"),
                    }
                }
                let wanted = voters_with(count as usize, partition);
                assert_eq!(membership.voters.len(), wanted);
                assert_eq!(membership.learners.len(), count as usize - wanted);
                assert_eq!(leader, membership.voters[partition as usize % wanted].0);
            }
        }
    }
}
