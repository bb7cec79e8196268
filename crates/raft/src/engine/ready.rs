//! From raft-rs's `Ready` to actions, with asynchronous persistence.
//!
//! Every `Ready` gets a number. One that must be synced becomes a [`Persist`]; what may only be
//! sent once it is durable waits in an [`Outstanding`]. One that need not be synced counts as
//! durable as soon as everything before it is.

use raft::eraftpb::{Entry, EntryType};

use super::{Action, Committed, Engine, PeerMessage, Persist};
use crate::ids::{Lsn, NodeId, Term};

/// A `Ready` that is not known to be durable.
pub(super) struct Outstanding {
    number: u64,
    must_sync: bool,
    messages: Vec<PeerMessage>,
}

impl Engine {
    /// Takes out everything that raft-rs has ready.
    pub(super) fn drain_ready(&mut self, actions: &mut Vec<Action>) {
        while !self.raw.store().has_failed() && self.raw.has_ready() && !self.only_more_to_apply() {
            // With no room at all the storage answers no entries: what is ready beside them goes out.
            let room = (self.config.max_apply_backlog_bytes).saturating_sub(self.backlog_bytes);
            (self.raw.raft)
                .set_max_committed_size_per_ready(room.min(super::MAX_COMMITTED_PER_READY));
            let mut ready = self.raw.ready();
            let number = ready.number();
            if let Some(ss) = ready.ss() {
                let (leader, role) = (ss.leader_id, ss.raft_state);
                self.note_soft_state(leader, role, actions);
            }
            if !ready.snapshot().is_empty() {
                self.raw
                    .mut_store()
                    .fail("a peer offered a snapshot inside a message".to_owned());
                return;
            }
            let must_sync = ready.must_sync();
            let entries = ready.take_entries();
            if let Some(hs) = ready.hs() {
                let hs = hs.clone();
                self.raw.mut_store().set_hard_state(hs);
            }
            self.raw.mut_store().append(&entries);
            let now = to_peers(ready.take_messages());
            let after = to_peers(ready.take_persisted_messages());
            let committed = ready.take_committed_entries();
            self.raw.advance_append_async(ready);

            if !now.is_empty() {
                actions.push(Action::Send(now));
            }
            if must_sync {
                actions.push(Action::Persist(Persist {
                    number,
                    entries,
                    hard_state: self.raw.store().hard_state().clone(),
                }));
            }
            self.outstanding.push_back(Outstanding {
                number,
                must_sync,
                messages: after,
            });
            self.settle(actions);
            self.hand_out(committed, actions);
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

    /// Reports to raft-rs, and sends what waited for it, up to the first that must still be synced.
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
        }
        if !messages.is_empty() {
            actions.push(Action::Send(messages));
        }
    }

    /// Whether the one thing that raft-rs has ready are committed entries, while the host still
    /// has enough to apply.
    fn only_more_to_apply(&self) -> bool {
        if self.backlog_bytes < self.config.max_apply_backlog_bytes {
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
            if entry.get_entry_type() != EntryType::EntryNormal {
                self.raw.mut_store().fail(format!(
                    "the entry at LSN {} changes the membership, which this version cannot do",
                    entry.index
                ));
                return;
            }
            bytes += entry.data.len() as u64 + 32;
            committed.push(Committed {
                lsn: Lsn(entry.index),
                term: Term(entry.term),
                command: (!entry.data.is_empty()).then_some(entry.data),
            });
        }
        if let Some(last) = committed.last() {
            self.backlog.push_back((last.lsn, bytes));
            self.backlog_bytes += bytes;
        }
        actions.push(Action::Apply(committed));
    }
}

fn to_peers(messages: Vec<raft::eraftpb::Message>) -> Vec<PeerMessage> {
    messages.into_iter().map(PeerMessage).collect()
}
