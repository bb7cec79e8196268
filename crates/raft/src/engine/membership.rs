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
//! A member that has state knows the membership from the snapshot of that state and the changes since,
//! never from the list of founders.

use raft::StateRole;
use raft::eraftpb::{ConfChangeSingle, ConfChangeTransition, ConfChangeType, ConfChangeV2};

use super::{Action, Engine, RejectReason, Role, Ticket};
use crate::ids::NodeId;
use crate::membership::{ChangeRefused, Membership, MembershipChange};

/// Most entries of the leader's log that a learner may lack when it is promoted: so many arrive over a
/// network in a moment. A voter that lags more would delay every commit that needs its acknowledgement.
pub const MAX_PROMOTION_LAG: u64 = 1000;

/// The context of a change that adds a learner which is to be promoted.
const TO_PROMOTE: &[u8] = b"promote";

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
            // The voters stay the same.
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
        self.set_membership(membership.promoting(to_promote));
        self.resign_without_a_vote();
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
        // One promotion at a time. A learner that has not caught up is refused, and tried again with the
        // next tick.
        for node in self.membership.to_promote.clone() {
            if self.try_change(MembershipChange::Promote(node)).is_ok() {
                return;
            }
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
            RejectReason::Membership(ChangeRefused::NotAMember)
        } else {
            return self.raw.transfer_leader(to.0);
        };
        actions.push(Action::Rejected { ticket, reason });
    }
}
