//! Linearizable reads: they see everything that was committed when they began.
//!
//! The leader has a majority confirm that it still leads. The read is ready when everything that was
//! committed then is applied here. A follower sends the read to the leader. Messages may be lost, so an
//! unanswered read is sent again every half election timeout, and fails after three. A read that is
//! answered fails after three more if the entries are not applied here by then.

use std::collections::BTreeMap;

use raft::ReadState;

use super::{Action, Engine, ReadFailure, Ticket};
use crate::ids::{Incarnation, Lsn, NodeId};

/// Most reads that may be pending.
const MAX_PENDING: usize = 4096;

#[derive(Default)]
pub(super) struct Reads {
    next: u64,
    /// Unanswered reads by number: the ticket, and the tick at which the read began.
    unanswered: BTreeMap<u64, (Ticket, u64)>,
    /// Answered reads that wait for applies: the ticket, and the tick of the answer.
    waiting: BTreeMap<(Lsn, u64), (Ticket, u64)>,
}

impl Reads {
    pub fn pending(&self) -> bool {
        !self.unanswered.is_empty() || !self.waiting.is_empty()
    }
}

impl Engine {
    pub(super) fn read_index(&mut self, ticket: Ticket, actions: &mut Vec<Action>) {
        let reason = if self.leader().is_none() {
            ReadFailure::NoLeader
        } else if self.reads.unanswered.len() + self.reads.waiting.len() >= MAX_PENDING {
            ReadFailure::Busy
        } else {
            let number = self.reads.next;
            self.reads.next += 1;
            self.reads.unanswered.insert(number, (ticket, self.ticks));
            let context = self.context(number);
            return self.raw.read_index(context);
        };
        actions.push(Action::ReadFailed { ticket, reason });
    }

    /// The leader keeps the reads of all members in one table. The context distinguishes this member's
    /// reads from those of others and from those before a restart.
    fn context(&self, number: u64) -> Vec<u8> {
        let (NodeId(node), Incarnation(incarnation)) = (self.config.id, self.config.incarnation);
        [node, incarnation, number].map(u64::to_be_bytes).concat()
    }

    pub(super) fn reads_answered(&mut self, states: Vec<ReadState>, actions: &mut Vec<Action>) {
        for state in states {
            let Some((ours, number)) = state.request_ctx.split_last_chunk::<8>() else {
                continue;
            };
            let number = u64::from_be_bytes(*number);
            if self.context(number)[..16] != *ours {
                continue;
            }
            if let Some((ticket, _)) = self.reads.unanswered.remove(&number) {
                let place = (Lsn(state.index), number);
                self.reads.waiting.insert(place, (ticket, self.ticks));
            }
        }
        self.reads_applied(actions);
    }

    pub(super) fn reads_applied(&mut self, actions: &mut Vec<Action>) {
        while let Some(entry) = self.reads.waiting.first_entry()
            && entry.key().0 <= self.applied
        {
            let (lsn, _) = *entry.key();
            let (ticket, _) = entry.remove();
            actions.push(Action::ReadReady { ticket, lsn });
        }
    }

    pub(super) fn tick_reads(&mut self, actions: &mut Vec<Action>) {
        if !self.reads.pending() {
            return;
        }
        let timeout = self.config.election_ticks as u64;
        let mut again = Vec::new();
        self.reads.waiting.retain(|_, (ticket, answered_at)| {
            let late = self.ticks - *answered_at >= 3 * timeout;
            if late {
                actions.push(Action::ReadFailed {
                    ticket: *ticket,
                    reason: ReadFailure::TimedOut,
                });
            }
            !late
        });
        self.reads.unanswered.retain(|number, (ticket, begun_at)| {
            let age = self.ticks - *begun_at;
            if age >= 3 * timeout {
                actions.push(Action::ReadFailed {
                    ticket: *ticket,
                    reason: ReadFailure::TimedOut,
                });
                return false;
            }
            if age > 0 && age.is_multiple_of(timeout.div_ceil(2)) {
                again.push(*number);
            }
            true
        });
        for number in again {
            let context = self.context(number);
            self.raw.read_index(context);
        }
    }
}
