//! How the membership of a group changes.
//!
//! A change is an entry of the log, in force from where it is handed out for applying. A change of voters
//! takes two entries: the first makes the membership *joint*, so that both the old and the new voters have
//! to agree; the second, which the leader proposes by itself, ends that.
//!
//! The membership records which learners become voters once they have caught up. The entry that adds such a
//! learner marks it, and every later leader continues with the promotion. A version without this feature
//! leaves it a learner.
//!
//! A leader does not propose a change of voters after which the group might stop: a learner that is promoted
//! has caught up, and a majority of the voters after the change was heard from lately. Both are checked again
//! for each attempt, by what this leader observes.
//!
//! When a change is complete at the leader, those who voted before it may still be needed: see
//! `change_confirmation.rs`.
//!
//! A member that was handed a change writes at once that it is committed. After a restart its state may be as of before
//! the change, and without that it would ask those for a majority who may be gone since.
//!
//! A member that has state knows the membership from the snapshot of that state and the changes since,
//! never from the list of founders.

use raft::StateRole;
use raft::eraftpb::{ConfChangeSingle, ConfChangeTransition, ConfChangeType, ConfChangeV2};

use super::{Action, Engine, RejectReason, Role, Ticket};
use crate::ids::NodeId;
use crate::membership::{ChangeRefused, Membership, MembershipChange, VoterChange};

/// Most entries of the leader's log that a learner may lack when it is promoted: so many arrive over a
/// network in a moment. A voter that lags more would delay every commit that needs its acknowledgement.
pub const MAX_PROMOTION_LAG: u64 = 1000;

/// The context of a change that adds a learner which is to be promoted.
const TO_PROMOTE: &[u8] = b"promote";

fn single(kind: ConfChangeType, node: NodeId) -> ConfChangeSingle {
    let mut single = ConfChangeSingle::default();
    single.set_change_type(kind);
    single.node_id = node.0;
    single
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
        let is_to_vote = matches!(change, MembershipChange::AddPeer(_));
        let adds = is_to_vote || matches!(change, MembershipChange::AddLearner(_));
        let changes = self.check(change).map_err(RejectReason::Membership)?;
        let mut proposed = ConfChangeV2::default();
        proposed.set_transition(match adds {
            // The voters stay the same.
            true => ConfChangeTransition::Auto,
            false => ConfChangeTransition::Implicit,
        });
        proposed.set_changes(changes.into());
        if is_to_vote {
            proposed.context = bytes::Bytes::from_static(TO_PROMOTE);
        }
        (self.raw.propose_conf_change(Vec::new(), proposed)).map_err(|error| match error {
            raft::Error::ProposalDropped => RejectReason::NotLeader { leader: None },
            other => RejectReason::Refused(other.to_string()),
        })
    }

    fn check(&self, change: MembershipChange) -> Result<Vec<ConfChangeSingle>, ChangeRefused> {
        let change = match change {
            MembershipChange::AddPeer(node) | MembershipChange::AddLearner(node) => {
                self.check_possible(&[node])?;
                if self.membership.contains(node) {
                    return Err(ChangeRefused::AlreadyMember);
                }
                return Ok(vec![single(ConfChangeType::AddLearnerNode, node)]);
            }
            MembershipChange::Promote(node) => VoterChange {
                promote: vec![node],
                ..VoterChange::default()
            },
            MembershipChange::RemovePeer(node) => VoterChange {
                remove: vec![node],
                ..VoterChange::default()
            },
            MembershipChange::ChangeVoters(change) => change,
        };
        let mut all = [&change.promote[..], &change.demote, &change.remove].concat();
        self.check_possible(&all)?;
        all.sort_unstable();
        if all.is_empty() || all.windows(2).any(|pair| pair[0] == pair[1]) {
            return Err(ChangeRefused::Malformed);
        }
        for node in &change.promote {
            self.check_promotion(*node)?;
        }
        for node in change.demote.iter().chain(&change.remove) {
            if !self.membership.contains(*node) {
                return Err(ChangeRefused::NotAMember);
            }
            if *node == self.config.id {
                return Err(ChangeRefused::IsLeader);
            }
        }
        let votes = |node: &NodeId| self.membership.voters.contains(node);
        if !change.demote.iter().all(votes) {
            return Err(ChangeRefused::NotAVoter);
        }
        self.check_majority(&change)?;
        let promote = change.promote.iter();
        let promote = promote.map(|node| single(ConfChangeType::AddNode, *node));
        let demote = change.demote.iter();
        let demote = demote.map(|node| single(ConfChangeType::AddLearnerNode, *node));
        let remove = change.remove.iter();
        let remove = remove.map(|node| single(ConfChangeType::RemoveNode, *node));
        Ok(promote.chain(demote).chain(remove).collect())
    }

    /// Whether a change of these nodes may be proposed at all.
    fn check_possible(&self, nodes: &[NodeId]) -> Result<(), ChangeRefused> {
        if nodes.contains(&NodeId(0)) {
            return Err(ChangeRefused::Nobody);
        }
        match self.membership.is_joint() || self.raw.raft.has_pending_conf() {
            true => Err(ChangeRefused::InProgress),
            false => Ok(()),
        }
    }

    /// Whether a learner may get a vote.
    fn check_promotion(&self, node: NodeId) -> Result<(), ChangeRefused> {
        if !self.membership.contains(node) {
            return Err(ChangeRefused::NotAMember);
        }
        if !self.membership.learners.contains(&node) {
            return Err(ChangeRefused::NotALearner);
        }
        let progress = self.raw.raft.prs().get(node.0);
        let matched = match self.is_in_contact(node) {
            true => progress.map_or(0, |p| p.matched),
            false => 0,
        };
        let lacks = self.last().0 - matched.min(self.last().0);
        match matched == 0 || lacks > MAX_PROMOTION_LAG {
            true => Err(ChangeRefused::Lagging { lacks }),
            false => Ok(()),
        }
    }

    /// Whether a majority of the voters after a change is in contact.
    fn check_majority(&self, change: &VoterChange) -> Result<(), ChangeRefused> {
        let after = change.voters_after(&self.membership.voters);
        if after == self.membership.voters {
            return Ok(());
        }
        let heard = after.iter().filter(|node| self.is_in_contact(**node));
        let (heard, voters) = (heard.count(), after.len());
        match 2 * heard > voters {
            true => Ok(()),
            false => Err(ChangeRefused::NoMajority { heard, voters }),
        }
    }

    /// Whether a member was heard from within the last election timeout.
    fn is_in_contact(&self, node: NodeId) -> bool {
        let election = self.config.election_ticks as u64;
        let heard = self.peers.last_contact(node);
        node == self.config.id || heard.is_some_and(|at| self.ticks - at <= election)
    }

    /// Applies an entry that changes the membership, when it is handed out.
    pub(super) fn apply_change(&mut self, data: &bytes::Bytes) -> Result<(), String> {
        let change = crate::message::conf_change(data).map_err(|e| e.to_string())?;
        let state = self.raw.apply_conf_change(&change);
        let state = state.map_err(|e| e.to_string())?;
        let membership = Membership::from_conf_state(&state);
        let mut to_promote = std::mem::take(&mut self.membership.to_promote);
        if change.context == TO_PROMOTE {
            to_promote.extend(change.changes.iter().map(|single| NodeId(single.node_id)));
        }
        let voters = |of: &Membership| (of.voters.clone(), of.voters_outgoing.clone());
        let before = voters(&self.membership);
        self.set_membership(membership.promoting(to_promote));
        self.resign_without_a_vote();
        if voters(&self.membership) != before {
            self.confirm_change();
        }
        Ok(())
    }

    /// A leader cannot propose its own removal, but an earlier leader may have, and left the entry to this
    /// one. raft-rs would then go on leading without taking proposals, and panic at the next write.
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

    /// Changes that a leader proposes by itself: the end of a joint membership, and promotions.
    pub(super) fn tend_membership(&mut self) {
        if self.role != Role::Leader || self.raw.raft.state != StateRole::Leader {
            return;
        }
        let raft = &self.raw.raft;
        if self.membership.is_joint() && !raft.has_pending_conf() {
            // raft-rs proposes the end of a joint membership when the change is applied on a leader. This
            // is for the case that it did not. A dropped proposal is repeated with the next tick.
            let _ = self
                .raw
                .propose_conf_change(Vec::new(), ConfChangeV2::default());
            return;
        }
        self.append_confirmation();
        // All that have caught up, as one change. Who has not is tried again with the next tick.
        let waiting = self.membership.to_promote.iter().copied();
        let promote: Vec<_> = waiting
            .filter(|node| self.check_promotion(*node).is_ok())
            .collect();
        if !promote.is_empty() {
            let change = VoterChange {
                promote,
                ..VoterChange::default()
            };
            let _ = self.try_change(MembershipChange::ChangeVoters(change));
        }
    }

    /// Whether this leader takes no proposals, because it is giving the leadership to another member.
    pub fn is_transferring(&self) -> bool {
        self.role == Role::Leader && self.raw.raft.lead_transferee.is_some()
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
            let refused = match self.membership.contains(to) {
                true => ChangeRefused::NotAVoter,
                false => ChangeRefused::NotAMember,
            };
            RejectReason::Membership(refused)
        } else {
            return self.raw.transfer_leader(to.0);
        };
        actions.push(Action::Rejected { ticket, reason });
    }
}
