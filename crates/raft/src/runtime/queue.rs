//! Committed entries on their way to an apply thread.
//!
//! It is a mutex and a condition variable, not a channel: channels spin before they sleep, which costs more
//! than it saves with one apply thread per group. Its size is bounded by the engine, which hands out at
//! most `max_apply_backlog_bytes` from the log, and by what producers may have in flight.

use std::collections::VecDeque;
use std::time::Duration;

use parking_lot::{Condvar, Mutex};

use crate::engine::Committed;
use crate::ids::Lsn;
use crate::transfer::Manifest;

/// Most bytes applied as one step: large enough to spread the cost of a database write over many
/// entries, small enough that answers do not wait for each other, nor other groups for the database.
const MAX_STEP_BYTES: usize = 512 * 1024;
/// Most entries applied as one step, for the same reason.
const MAX_STEP_ENTRIES: usize = 1024;

#[derive(Default)]
pub(super) struct ApplyQueue {
    waiting: Mutex<Waiting>,
    arrived: Condvar,
}

#[derive(Default)]
struct Waiting {
    committed: VecDeque<Vec<Committed>>,
    /// A fetched snapshot that replaces the state, before anything queued is applied.
    install: Option<Box<Manifest>>,
    /// The apply thread has something to do that is not in the queue.
    nudged: bool,
    closed: bool,
}

/// What the apply thread does next.
pub(super) enum Step {
    /// Apply these entries, in order. Empty if there are none to apply.
    Entries(Vec<Committed>),
    /// Replace the state by a fetched snapshot.
    Install(Box<Manifest>),
}

impl ApplyQueue {
    /// Has the state replaced before anything else is applied. Queued entries stay: if the state cannot be
    /// replaced, they have to be applied, and the engine does not hand them out again.
    pub fn install(&self, offer: Box<Manifest>) {
        self.waiting.lock().install = Some(offer);
        self.arrived.notify_one();
    }

    /// Drops entries up to `lsn`: the state was replaced by a snapshot that covers them.
    pub fn covered(&self, lsn: Lsn) {
        let mut waiting = self.waiting.lock();
        for entries in &mut waiting.committed {
            entries.retain(|entry| entry.lsn > lsn);
        }
        waiting.committed.retain(|entries| !entries.is_empty());
    }

    /// Drops all queued entries.
    pub fn forget(&self) {
        self.waiting.lock().committed.clear();
    }

    /// Adds entries. Once the queue is closed they are dropped.
    pub fn push(&self, entries: Vec<Committed>) {
        let mut waiting = self.waiting.lock();
        if waiting.closed {
            return;
        }
        waiting.committed.push_back(entries);
        let first = waiting.committed.len() == 1;
        drop(waiting);
        if first {
            self.arrived.notify_one();
        }
    }

    /// Makes the next step come at once, if necessary without entries.
    pub fn nudge(&self) {
        self.waiting.lock().nudged = true;
        self.arrived.notify_one();
    }

    /// Closes the queue. Queued entries are still handed out.
    pub fn close(&self) {
        self.waiting.lock().closed = true;
        self.arrived.notify_one();
    }

    /// Waits for the next step. It has no entries after `timeout` or a nudge. `None` once the queue is
    /// closed and empty.
    pub fn next_step(&self, timeout: Duration) -> Option<Step> {
        let mut waiting = self.waiting.lock();
        let idle = waiting.committed.is_empty() && waiting.install.is_none();
        if idle && !waiting.closed && !waiting.nudged {
            self.arrived.wait_for(&mut waiting, timeout);
        }
        waiting.nudged = false;
        if !waiting.closed
            && let Some(offer) = waiting.install.take()
        {
            return Some(Step::Install(offer));
        }
        let Some(mut step) = waiting.committed.pop_front() else {
            return (!waiting.closed).then(|| Step::Entries(Vec::new()));
        };
        let mut bytes: usize = step.iter().map(size).sum();
        while bytes < MAX_STEP_BYTES && step.len() < MAX_STEP_ENTRIES {
            let Some(more) = waiting.committed.pop_front() else {
                break;
            };
            bytes += more.iter().map(size).sum::<usize>();
            step.extend(more);
        }
        Some(Step::Entries(step))
    }
}

fn size(entry: &Committed) -> usize {
    entry.command.as_ref().map_or(0, |c| c.len()) + 32
}
