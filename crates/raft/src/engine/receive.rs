//! Messages of peers, and which of them reach raft-rs: only those that it can process without a panic. A
//! member's message is not forged, but it may be old, or refer to entries that this member has lost.

use raft::eraftpb::{Message, MessageType, MessageType as Kind};
use raft::{ProgressState, StateRole};

use super::{Action, Engine, Role};
use crate::ids::NodeId;
use crate::message::{Envelope, Payload, Refusal};

impl Engine {
    pub(super) fn receive(&mut self, envelope: Envelope, actions: &mut Vec<Action>) {
        if self.gate.admit(&envelope).is_err() {
            return;
        }
        let from = envelope.sender.node;
        self.note_contact(from);
        if envelope.log_is_full {
            self.log_of_member_is_full(from);
        }
        match envelope.payload {
            Payload::Raft(message) => self.receive_raft(from, message.0, actions),
            Payload::Offer(offer) => self.offered(from, offer, actions),
            Payload::NewerOffer(newer) => self.offered_newer(from, newer, actions),
            Payload::Wanted => self.wanted_by(from),
            Payload::Progress(progress) => self.receive_progress(from, progress),
            Payload::Ended(ended) => self.receive_ended(from, ended),
            // These are for the transfers.
            Payload::Fetch(_) | Payload::Chunk(_) => {}
        }
    }

    fn receive_raft(&mut self, from: NodeId, message: Message, actions: &mut Vec<Action>) {
        if message.from != from.0 || message.to != self.config.id.0 {
            return self.gate.count(Refusal::Recipient);
        }
        let kind = message.get_msg_type();
        if !is_peer_message(kind) {
            return self.gate.count(Refusal::Contradiction);
        }
        if self.waits_to_join() {
            // Without a log it accepts no entries and gives no vote: an earlier member of this number may
            // have given one.
            if matches!(kind, Kind::MsgAppend | Kind::MsgHeartbeat) {
                self.request_snapshot(from, actions);
            }
            return;
        }
        if self.peers.installing() && matches!(kind, Kind::MsgAppend | Kind::MsgTimeoutNow) {
            // Entries must not overtake the install. The leader sends them again.
            return;
        }
        if kind == Kind::MsgTimeoutNow && !self.may_campaign() {
            return;
        }
        let current = message.term >= self.term().0;
        let last = self.last();
        match kind {
            Kind::MsgHeartbeat if current && message.commit > last.0 => {
                return self.raw.store().fail(format!(
                    "node {from} counts on entries up to LSN {} that this member has \
                     acknowledged, and its log ends at LSN {last}: the log was lost; remove this \
                     member, and let it join under a new number",
                    message.commit
                ));
            }
            Kind::MsgAppendResponse
                if self.role == Role::Leader
                    && message.term == self.term().0
                    && message.index.max(message.reject_hint) > last.0
                    && !message.reject =>
            {
                return self.gate.count(Refusal::Contradiction);
            }
            Kind::MsgReadIndex if !self.membership.contains(from) => {
                return self.gate.count(Refusal::NotAMember);
            }
            _ => {}
        }
        if let Err(raft::Error::StepPeerNotFound) = self.raw.step(message) {
            return self.gate.count(Refusal::NotAMember);
        }
        if kind == Kind::MsgHeartbeatResponse {
            self.replicate_again(from);
        }
    }

    /// Ends the probing of a peer that has answered and lacks nothing. raft-rs ends it when an acknowledgement
    /// has news, and a peer that lacks nothing never has: in a group to which nothing is appended, each peer
    /// that was once unreachable would be shown as one that is not replicated to, for ever.
    fn replicate_again(&mut self, from: NodeId) {
        let last = self.last().0;
        let raft = &mut self.raw.raft;
        if raft.state == StateRole::Leader
            && let Some(progress) = raft.mut_prs().get_mut(from.0)
            && progress.state == ProgressState::Probe
            && progress.matched == last
        {
            progress.become_replicate();
        }
    }
}

/// Whether a peer may send a message of this kind. Proposals and transfers of the leadership come only from
/// the leader's own host, and a snapshot never travels inside a message.
fn is_peer_message(kind: MessageType) -> bool {
    matches!(
        kind,
        MessageType::MsgAppend
            | MessageType::MsgAppendResponse
            | MessageType::MsgRequestVote
            | MessageType::MsgRequestVoteResponse
            | MessageType::MsgHeartbeat
            | MessageType::MsgHeartbeatResponse
            | MessageType::MsgTimeoutNow
            | MessageType::MsgReadIndex
            | MessageType::MsgReadIndexResp
            | MessageType::MsgRequestPreVote
            | MessageType::MsgRequestPreVoteResponse
    )
}
