//! From raft-rs's `Ready` to actions, with asynchronous persistence.
//!
//! Every `Ready` gets a number. One that must be synced becomes a [`Persist`]; messages that may only be
//! sent once it is durable wait in an [`Outstanding`]. A `Ready` that need not be synced counts as durable
//! as soon as everything before it is.

use std::sync::Arc;

use raft::eraftpb::{Entry, EntryType, MessageType};

use super::peers::floor_of;
use super::{Action, Committed, Engine, Persist, entry_checksum};
use crate::ids::{Lsn, NodeId, Term};
use crate::message::{Envelope, Payload, PeerMessage};

/// A `Ready` that is not known to be durable.
pub(super) struct Outstanding {
    number: u64,
    must_sync: bool,
    /// It has a new term or a new vote.
    promises: bool,
    messages: Vec<Envelope>,
}

impl Engine {
    /// Turns everything that raft-rs has ready into actions.
    pub(super) fn drain_ready(&mut self, actions: &mut Vec<Action>) {
        while !self.raw.store().has_failed() && self.raw.has_ready() && !self.only_more_to_apply() {
            // With no room left the storage returns no entries, and everything else that is ready is still
            // handed out.
            let room = match self.peers.installing() {
                true => 0,
                false => (self.config.max_apply_backlog_bytes).saturating_sub(self.backlog_bytes),
            };
            (self.raw.raft)
                .set_max_committed_size_per_ready(room.min(super::MAX_COMMITTED_PER_READY));
            let mut ready = self.raw.ready();
            let number = ready.number();
            if let Some(ss) = ready.ss() {
                let (leader, role) = (ss.leader_id, ss.raft_state);
                self.note_soft_state(leader, role, actions);
            }
            let restart = match ready.snapshot().is_empty() {
                true => None,
                false => Some(floor_of(ready.snapshot().get_metadata())),
            };
            if let Some(at) = restart {
                self.raw.mut_store().restart(at);
            }
            let read = ready.take_read_states();
            let must_sync = ready.must_sync();
            let entries = ready.take_entries();
            let mut promises = false;
            if let Some(hs) = ready.hs() {
                let (hs, before) = (hs.clone(), self.raw.store().hard_state());
                promises = (hs.term, hs.vote) != (before.term, before.vote);
                self.raw.mut_store().set_hard_state(hs);
            }
            self.raw.mut_store().append(&entries);
            let mut now = self.to_peers(ready.take_messages());
            let mut after = self.to_peers(ready.take_persisted_messages());
            if promises || self.outstanding.iter().any(|o| o.promises && o.must_sync) {
                // A leader's messages need not wait for its entries, but they must wait for its term. A
                // sole voter leads at once; after a crash it would lead in the same term again, and could
                // send its learners other entries.
                after.splice(0..0, now.drain(..));
            }
            let committed = ready.take_committed_entries();
            // Those who are no members any more may be gone for good after a change. A member that does not find after a
            // restart that the change is committed would need them for a majority.
            let must_sync = must_sync || self.raw.store().lacks_commit_of_change(&committed);
            self.raw.advance_append_async(ready);

            if !now.is_empty() {
                actions.push(Action::Send(now));
            }
            if must_sync {
                actions.push(Action::Persist(Persist {
                    number,
                    restart,
                    entries,
                    hard_state: self.raw.mut_store().written_hard_state(),
                }));
            }
            self.outstanding.push_back(Outstanding {
                number,
                must_sync,
                promises,
                messages: after,
            });
            self.settle(actions);
            self.hand_out(committed, actions);
            if !read.is_empty() {
                self.reads_answered(read, actions);
            }
        }
    }

    /// Everything up to `number` is durable.
    pub(super) fn persisted(&mut self, number: u64, actions: &mut Vec<Action>) {
        for o in &mut self.outstanding {
            if o.number <= number {
                o.must_sync = false;
            }
        }
        self.settle(actions);
        self.evict();
    }

    /// Reports durability to raft-rs and sends the messages that waited for it, up to the first `Ready`
    /// that must still be synced.
    fn settle(&mut self, actions: &mut Vec<Action>) {
        let mut reached = None;
        let mut messages = Vec::new();
        while let Some(front) = self.outstanding.front_mut()
            && !front.must_sync
        {
            reached = Some(front.number);
            messages.append(&mut front.messages);
            self.outstanding.pop_front();
        }
        if let Some(number) = reached {
            self.raw.on_persist_ready(number);
            self.advance_to_installed();
        }
        if !messages.is_empty() {
            actions.push(Action::Send(without_covered(messages)));
        }
    }

    /// raft-rs accepts an applied position only once it is durable. That of an installed snapshot is
    /// durable when the log was restarted after it.
    fn advance_to_installed(&mut self) {
        let log = &self.raw.raft.raft_log;
        let reached = self.applied.0.min(log.committed).min(log.persisted);
        if reached > log.applied && reached == self.applied.0 {
            self.raw.advance_apply_to(reached);
        }
    }

    /// Whether raft-rs only has committed entries ready, while the host still has enough to apply or reads them.
    fn only_more_to_apply(&self) -> bool {
        let full = self.backlog_bytes >= self.config.max_apply_backlog_bytes
            || self.raw.store().reads().waits_to_apply();
        if !full && !self.peers.installing() {
            return false;
        }
        let raft = &self.raw.raft;
        let soft = raft.soft_state();
        super::role_of(soft.raft_state) == self.role
            && NodeId(soft.leader_id) == self.leader
            && raft.msgs.is_empty()
            && raft.read_states.is_empty()
            && raft.raft_log.unstable_entries().is_empty()
            && raft.raft_log.unstable_snapshot().is_none()
            && raft.hard_state().term == self.raw.store().hard_state().term
            && raft.hard_state().vote == self.raw.store().hard_state().vote
    }

    fn hand_out(&mut self, entries: Vec<Entry>, actions: &mut Vec<Action>) {
        if entries.is_empty() {
            return;
        }
        let mut bytes = 0;
        let mut committed = Vec::with_capacity(entries.len());
        for entry in entries {
            bytes += entry.data.len() as u64 + 32;
            let (lsn, term) = (Lsn(entry.index), Term(entry.term));
            let checksum = entry_checksum(&entry);
            let (command, membership) = match entry.get_entry_type() {
                EntryType::EntryNormal => ((!entry.data.is_empty()).then_some(entry.data), None),
                EntryType::EntryConfChangeV2 => {
                    if let Err(error) = self.apply_change(&entry.data) {
                        return self.raw.mut_store().fail(format!(
                            "the entry at LSN {lsn} changes the membership in a way that cannot \
                             be: {error}"
                        ));
                    }
                    (None, Some(Arc::new(self.membership.clone())))
                }
                EntryType::EntryConfChange => {
                    return self.raw.mut_store().fail(format!(
                        "the entry at LSN {lsn} changes the membership in a way that this version \
                         does not know"
                    ));
                }
            };
            committed.push(Committed {
                lsn,
                term,
                command,
                membership,
                checksum,
            });
        }
        self.counters.commits += committed.len() as u64;
        if let Some(last) = committed.last() {
            self.raw.store().reads().handed_out(last.lsn.0);
            self.backlog.push_back((last.lsn, bytes));
            self.backlog_bytes += bytes;
        }
        actions.push(Action::Apply(committed));
    }

    fn to_peers(&self, messages: Vec<raft::eraftpb::Message>) -> Vec<Envelope> {
        if messages.is_empty() {
            return Vec::new();
        }
        let identity = self.config.identity();
        let log_is_full = self.reports_full_log();
        let seal = |message: raft::eraftpb::Message| {
            let to = NodeId(message.to);
            Envelope {
                log_is_full,
                ..identity.seal(to, Payload::Raft(PeerMessage(message)))
            }
        };
        messages.into_iter().map(seal).collect()
    }
}

/// Without acknowledgements of entries that a later one to the same peer covers: several messages with entries that
/// one sync has made durable are acknowledged once. The order of the others stays.
fn without_covered(messages: Vec<Envelope>) -> Vec<Envelope> {
    if messages.len() < 2 {
        return messages;
    }
    let mut kept = Vec::with_capacity(messages.len());
    // Of those that come later: to whom, in which term, up to which entry.
    let mut acknowledged: Vec<(NodeId, u64, u64)> = Vec::new();
    for envelope in messages.into_iter().rev() {
        if let Some((term, index)) = acknowledgement(&envelope) {
            let to = envelope.to;
            let covers = |it: &(NodeId, u64, u64)| (it.0, it.1) == (to, term) && it.2 >= index;
            if acknowledged.iter().any(covers) {
                continue;
            }
            acknowledged.push((to, term, index));
        }
        kept.push(envelope);
    }
    kept.reverse();
    kept
}

/// Term and last entry of a message that acknowledges entries.
fn acknowledgement(envelope: &Envelope) -> Option<(u64, u64)> {
    let Payload::Raft(PeerMessage(message)) = &envelope.payload else {
        return None;
    };
    let accepts = message.get_msg_type() == MessageType::MsgAppendResponse && !message.reject;
    accepts.then_some((message.term, message.index))
}
