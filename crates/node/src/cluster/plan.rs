//! What the leader of a group changes next, so that its members are those that the catalog wants.
//!
//! Each node has a replica of each partition: three of them vote (five of the catalog's), the others are
//! learners. With two nodes one votes, because two voters lose the group with either of them. A group changes one
//! thing at a time.
//!
//! This module decides anew at each look, by what is replicated (the catalog and the group's membership) and by
//! what the leader observes (how far its peers are, and when they were heard from). Nothing that a former leader
//! began is needed, and no state of the transport counts: a peer has caught up if its log has what the leader's
//! has, whether or not entries are being sent to it.
//!
//! Votes move in one joint change: from one voter to three, and from a voter that leaves to the one that takes its
//! place. A voter that drains becomes a learner by that change, so a partition has at no moment fewer replicas than
//! before; one that was removed leaves. An even number of voters survives no more losses than one less, so a vote that would make their number
//! even is held back while another node is about to catch up ([`MAX_HOLD`]), and so is a removal. What keeps the
//! members from being those that the catalog wants is part of the answer, for the status and the log.

use std::time::Duration;

use esker_partition::command::NodeState;
use esker_raft::engine::{MAX_PROMOTION_LAG, PeerStatus, VoterChange};
use esker_raft::{Membership, MembershipChange, NodeId};

use super::contact::{GONE_TICKS, LATELY_TICKS, describe_silence, is_heard, silence};
use super::directory::Nodes;

/// Entries that a new leader may lack when it is asked to lead: what is sent within a fraction of a second.
const MAX_LACKING: u64 = 1000;
/// How long a change of voters is held back for a node that is in contact and catches up: what a snapshot of some
/// 20 GB takes at the default rate. After that the change is made with the nodes that are ready.
pub(super) const MAX_HOLD: Duration = Duration::from_secs(300);
/// How long it is held back for a node that is not in contact: it may have been added a moment ago, or restart.
pub(super) const MAX_HOLD_AWAY: Duration = Duration::from_secs(15);
/// How long the vote of a removed node is kept at least: the node that joins in its place is registered right
/// after the removal, and can take the vote over.
pub(super) const MIN_HOLD_REMOVED: Duration = Duration::from_secs(1);

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
    /// For how long this leader has held back a change of voters.
    pub held: Duration,
}

/// One change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// Of the members.
    Change(MembershipChange),
    /// Another voter is to lead.
    Transfer(NodeId),
}

/// What is to be done, and what keeps the members from being those that the catalog wants.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Plan {
    /// The next change; `None` if there is nothing to change, or nothing now.
    pub step: Option<Step>,
    /// Why the members are not those that the catalog wants, if a step does not mend that.
    pub waits: Option<Wait>,
    /// Whether a change is possible and held back for a better one.
    pub holds: bool,
}

/// Why the members of a group are not those that the catalog wants.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Wait {
    /// In words.
    pub why: String,
    /// Whether that is a problem, if it stays so. A node that drains and keeps its vote is none.
    pub is_problem: bool,
}

/// How many voters a partition has with so many active nodes.
pub(super) fn voters_with(active: usize, partition: u64) -> usize {
    match active {
        5.. if partition == 0 => 5,
        3.. => 3,
        _ => 1,
    }
}

/// A node that may get a vote later.
struct Coming {
    why: String,
    is_heard: bool,
}

impl Seen<'_> {
    fn peer(&self, node: NodeId) -> Option<&PeerStatus> {
        self.peers.iter().find(|peer| peer.id == node)
    }

    fn is_heard_lately(&self, node: NodeId) -> bool {
        node == self.me || is_heard(self.peers, node, LATELY_TICKS)
    }

    /// Whether a learner may get a vote.
    fn has_caught_up(&self, node: NodeId) -> bool {
        let lacks = |peer: &PeerStatus| self.last.saturating_sub(peer.matched.0);
        let peer = self.peer(node);
        self.is_heard_lately(node)
            && peer.is_some_and(|it| it.matched.0 > 0 && lacks(it) <= MAX_PROMOTION_LAG)
    }

    /// Whether a voter could lead at once.
    fn could_lead(&self, node: NodeId) -> bool {
        let is_close = |peer: &PeerStatus| self.last.saturating_sub(peer.matched.0) <= MAX_LACKING;
        self.membership.voters.contains(&node)
            && self.is_heard_lately(node)
            && self.peer(node).is_some_and(is_close)
    }

    /// The voters after a change that are not in contact, if the others are no majority.
    fn missing_majority(&self, change: &VoterChange) -> Option<Vec<NodeId>> {
        let after = change.voters_after(&self.membership.voters);
        let (heard, silent): (Vec<NodeId>, Vec<NodeId>) = after
            .into_iter()
            .partition(|node| self.is_heard_lately(*node));
        (heard.len() <= silent.len()).then_some(silent)
    }

    /// What is to be done next.
    pub fn plan(&self, nodes: &Nodes) -> Plan {
        let state = |node: NodeId| nodes.get(&node.0).map(|node| node.state);
        let members = self.membership;
        if nodes.is_empty() {
            return Plan::default();
        }
        if members.is_joint() {
            return Plan::waiting(
                "a change of the voters is not complete: those before it and those after it decide together",
            );
        }
        // A leader does not remove itself. Where no other voter could lead, it goes on, so that one can.
        let leaves = state(self.me) != Some(NodeState::Active);
        let is_active = |node: &NodeId| state(*node) == Some(NodeState::Active);
        let mut others = members.voters.iter().copied();
        if leaves && let Some(to) = others.find(|node| is_active(node) && self.could_lead(*node)) {
            return Plan::step(Step::Transfer(to));
        }
        let removed = |node: &NodeId| state(*node) == Some(NodeState::Removed);
        if let Some(gone) = members.learners.iter().copied().find(removed) {
            return Plan::step(Step::Change(MembershipChange::RemovePeer(gone)));
        }
        // A node that drains stays a learner where it belongs to the group. It is added to the catalog alone: it serves
        // clients until it stops, and needs the catalog for that, such as for their tokens.
        let joins = |state| match state {
            NodeState::Joining | NodeState::Active => true,
            NodeState::Draining => self.partition == 0,
            NodeState::Removed => false,
        };
        let missing = nodes.values().find(|node| {
            joins(node.state) && node.id != self.me.0 && !members.contains(NodeId(node.id))
        });
        if let Some(node) = missing {
            return Plan::step(Step::Change(MembershipChange::AddLearner(NodeId(node.id))));
        }
        let plan = self.plan_voters(nodes);
        if plan.step.is_some() {
            return plan;
        }
        if leaves {
            let wait = || Wait {
                why: self.why_it_leads_on(nodes),
                is_problem: true,
            };
            // What holds the votes up is the reason.
            let silent = plan.waits.clone().filter(|wait| wait.is_problem);
            return Plan {
                waits: Some(silent.unwrap_or_else(wait)),
                ..plan
            };
        }
        Plan {
            step: self.preferred_leader(nodes).map(Step::Transfer),
            ..plan
        }
    }

    /// Which votes move next.
    fn plan_voters(&self, nodes: &Nodes) -> Plan {
        let state = |node: NodeId| nodes.get(&node.0).map(|node| node.state);
        let count = |of: &[NodeState]| nodes.values().filter(|it| of.contains(&it.state)).count();
        // A node that drains keeps its vote until another one has it: with two voters, the loss of either would stop
        // the group.
        let staying = count(&[NodeState::Active, NodeState::Draining]);
        let wanted = voters_with(staying, self.partition);
        let soon = voters_with(staying + count(&[NodeState::Joining]), self.partition);
        // Only what the catalog says to be leaving leaves: of a voter that it does not have, this node's copy of
        // the catalog may be too old.
        let voters = || self.membership.voters.iter().copied();
        let removed = voters().filter(|node| state(*node) == Some(NodeState::Removed));
        let draining = voters().filter(|node| state(*node) == Some(NodeState::Draining));
        let leaving: Vec<NodeId> = removed.clone().chain(draining).collect();
        let lasting = self.membership.voters.len() - leaving.len();
        let coming = self.coming(nodes);
        let longest = match coming.iter().any(|it| it.is_heard) {
            true => MAX_HOLD,
            false if !coming.is_empty() => MAX_HOLD_AWAY,
            false => Duration::ZERO,
        };
        let may_hold = self.held < longest;

        let mut promote: Vec<NodeId> = self.ready(nodes);
        promote.truncate(wanted.saturating_sub(lasting));
        let enough = if may_hold { soon } else { wanted };
        let keep = |promoted: usize| enough.saturating_sub(lasting + promoted).min(leaving.len());
        let total = lasting + promote.len() + keep(promote.len());
        let mut holds = false;
        if total.is_multiple_of(2) && total < enough && !promote.is_empty() && may_hold {
            promote.pop();
            // If one less is still more than before, that is done now.
            holds = promote.is_empty();
        }
        let kept = keep(promote.len());
        let mut remove = leaving[..leaving.len() - kept].to_vec();
        let kept_removed = removed.clone().count().saturating_sub(remove.len());
        let has_replacement = may_hold && lasting + promote.len() < soon;
        if kept_removed > 0 && has_replacement {
            holds = true;
        } else if kept_removed > 0 {
            // Nobody is about to take its place.
            remove = leaving[..remove.len() + kept_removed].to_vec();
        }
        let takes_votes = remove.len() > promote.len() && removed.count() > 0;
        if takes_votes && self.held < MIN_HOLD_REMOVED {
            remove.clear();
            holds = true;
        }
        remove.retain(|node| *node != self.me);
        let drains = |node: &NodeId| state(*node) == Some(NodeState::Draining);
        let (demote, remove) = remove.into_iter().partition(drains);
        let mut change = VoterChange {
            promote,
            demote,
            remove,
        };
        let mut silent = None;
        while !change.is_empty()
            && let Some(missing) = self.missing_majority(&change)
        {
            silent.get_or_insert(missing);
            let popped = change.demote.pop().or_else(|| change.remove.pop());
            if popped.is_none() {
                change.promote.clear();
            }
        }
        let waits = self.wait_for_voters(nodes, wanted, &leaving, &coming, silent);
        Plan {
            step: (!change.is_empty()).then(|| Step::Change(simplest(change))),
            waits,
            holds,
        }
    }

    /// Learners that may get a vote now, in order of their numbers.
    fn ready(&self, nodes: &Nodes) -> Vec<NodeId> {
        let is_active = |node: &NodeId| {
            let node = nodes.get(&node.0);
            node.is_some_and(|node| node.state == NodeState::Active)
        };
        let learners = self.membership.learners.iter().copied();
        // One that the group promotes by itself is not promoted twice.
        let waiting = learners.filter(|node| !self.membership.to_promote.contains(node));
        let ready = waiting.filter(|node| is_active(node) && self.has_caught_up(*node));
        ready.collect()
    }

    /// Learners that may get a vote later, and what they lack.
    fn coming(&self, nodes: &Nodes) -> Vec<Coming> {
        let learners = self.membership.learners.iter();
        let not_ready = learners.filter_map(|id| {
            let node = nodes.get(&id.0)?;
            let why = match node.state {
                NodeState::Joining => "has not caught up with the catalog".to_owned(),
                NodeState::Active if self.has_caught_up(*id) => return None,
                NodeState::Active => self.what_it_lacks(*id),
                NodeState::Draining | NodeState::Removed => return None,
            };
            Some(Coming {
                why: format!("{} {why}", node.name),
                is_heard: is_heard(self.peers, *id, GONE_TICKS),
            })
        });
        not_ready.collect()
    }

    fn what_it_lacks(&self, node: NodeId) -> String {
        if !self.is_heard_lately(node) {
            let silence = describe_silence(silence(self.peers, node));
            return format!("was {silence}");
        }
        match self.peer(node) {
            Some(peer) if peer.pending_snapshot.is_some() => "fetches a snapshot".to_owned(),
            Some(peer) => {
                let lacks = self.last.saturating_sub(peer.matched.0);
                format!("lacks {lacks} entries")
            }
            None => "is not replicated to".to_owned(),
        }
    }

    /// Why the voters are not those that the catalog wants, if they are not.
    fn wait_for_voters(
        &self,
        nodes: &Nodes,
        wanted: usize,
        leaving: &[NodeId],
        coming: &[Coming],
        silent: Option<Vec<NodeId>>,
    ) -> Option<Wait> {
        let name = |id: &NodeId| {
            nodes
                .get(&id.0)
                .map_or_else(|| id.to_string(), |it| it.name.clone())
        };
        let names = |ids: &[NodeId]| ids.iter().map(name).collect::<Vec<_>>().join(", ");
        if let Some(silent) = silent {
            let heard = |id: &NodeId| {
                format!(
                    "{} was {}",
                    name(id),
                    describe_silence(silence(self.peers, *id))
                )
            };
            let silent: Vec<String> = silent.iter().map(heard).collect();
            return Some(Wait {
                why: format!(
                    "a change of the voters waits, because no majority of those after it is in contact: {}",
                    silent.join(", ")
                ),
                is_problem: true,
            });
        }
        let lasting = self.membership.voters.len() - leaving.len();
        let is_removed = |id: &&NodeId| {
            nodes
                .get(&id.0)
                .is_some_and(|it| it.state == NodeState::Removed)
        };
        let mut parts = Vec::new();
        if !leaving.is_empty() {
            parts.push(format!("{} votes until another node does", names(leaving)));
        }
        if lasting < wanted {
            parts.extend(
                coming
                    .iter()
                    .map(|it| format!("{} and does not vote yet", it.why)),
            );
            if coming.is_empty() && leaving.is_empty() && self.ready(nodes).is_empty() {
                parts.push(format!(
                    "{lasting} of {wanted} nodes vote, and no other one can"
                ));
            }
        }
        (!parts.is_empty()).then(|| Wait {
            is_problem: lasting < wanted && !coming.is_empty()
                || leaving.iter().any(|id| is_removed(&id)),
            why: parts.join("; "),
        })
    }

    /// Why a node that is to leave leads on, and the way out.
    fn why_it_leads_on(&self, nodes: &Nodes) -> String {
        let name = |id: NodeId| {
            nodes
                .get(&id.0)
                .map_or_else(|| id.to_string(), |it| it.name.clone())
        };
        let stays = |node: &NodeId| {
            let state = nodes.get(&node.0).map(|it| it.state);
            matches!(state, Some(NodeState::Joining | NodeState::Active))
        };
        let me = name(self.me);
        let others = self.membership.members().filter(stays);
        let lacks = |node: NodeId| match nodes.get(&node.0).map(|it| it.state) {
            Some(NodeState::Joining) => "has not caught up with the catalog".to_owned(),
            _ => self.what_it_lacks(node),
        };
        let others: Vec<String> = others
            .map(|node| format!("{} {}", name(node), lacks(node)))
            .collect();
        match others.is_empty() {
            true => format!(
                "{me} leads and is to leave, and no other node has a replica: start another node with `cluster.join`; \
                 or let it stay with `esker cluster activate {me}`"
            ),
            false => format!(
                "{me} leads and is to leave, and nobody could lead in its place at once: {}",
                others.join(", ")
            ),
        }
    }

    /// The node that is to lead, if that is another one and it could.
    fn preferred_leader(&self, nodes: &Nodes) -> Option<NodeId> {
        let voters = self.membership.voters.iter().copied();
        let active: Vec<NodeId> = voters
            .filter(|node| {
                nodes
                    .get(&node.0)
                    .is_some_and(|it| it.state == NodeState::Active)
            })
            .collect();
        let preferred = *active.get(self.partition as usize % active.len().max(1))?;
        (preferred != self.me && self.is_settled && self.could_lead(preferred)).then_some(preferred)
    }
}

/// A change of one member by its own name, as earlier releases log it.
fn simplest(change: VoterChange) -> MembershipChange {
    match (&change.promote[..], &change.demote[..], &change.remove[..]) {
        ([node], [], []) => MembershipChange::Promote(*node),
        ([], [], [node]) => MembershipChange::RemovePeer(*node),
        _ => MembershipChange::ChangeVoters(change),
    }
}

impl Plan {
    fn step(step: Step) -> Plan {
        Plan {
            step: Some(step),
            ..Plan::default()
        }
    }

    fn waiting(why: &str) -> Plan {
        let why = why.to_owned();
        Plan {
            waits: Some(Wait {
                why,
                is_problem: true,
            }),
            ..Plan::default()
        }
    }
}

#[cfg(test)]
mod tests;
