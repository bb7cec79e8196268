//! Committed entries on their way to an apply thread.
//!
//! A mutex and a condition variable rather than a channel: channels spin before they sleep, which
//! with an apply thread per group costs more than it saves. Bounded by the engine, which hands out
//! no more than `max_apply_backlog_bytes` from the log, and by what producers may have in flight.

use std::collections::VecDeque;
use std::time::Duration;

use parking_lot::{Condvar, Mutex};

use crate::engine::Committed;
use crate::ids::Lsn;
use crate::transfer::Manifest;

/// Most bytes applied as one step: large enough to spread the cost of a database write over many
/// entries, small enough that answers do not wait for each other.
const MAX_STEP_BYTES: usize = 2 * 1024 * 1024;
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
    /// The state is to be replaced; comes before everything that is queued.
    install: Option<Box<Manifest>>,
    /// There is something other than entries to look at.
    nudged: bool,
    closed: bool,
}

/// What the apply thread does next.
pub(super) enum Step {
    /// Apply these, in order; none if there is only something else to look at.
    Entries(Vec<Committed>),
    /// Replace the state by what was fetched.
    Install(Box<Manifest>),
}

impl ApplyQueue {
    /// The state is to be replaced, before anything else is applied. What is queued stays: if the state
    /// cannot be replaced, it has to be applied, and it does not come again.
    pub fn install(&self, offer: Box<Manifest>) {
        self.waiting.lock().install = Some(offer);
        self.arrived.notify_one();
    }

    /// The state has been replaced by one that has everything up to `lsn`.
    pub fn covered(&self, lsn: Lsn) {
        let mut waiting = self.waiting.lock();
        for entries in &mut waiting.committed {
            entries.retain(|entry| entry.lsn > lsn);
        }
        waiting.committed.retain(|entries| !entries.is_empty());
    }

    /// What is queued is not applied any more.
    pub fn forget(&self) {
        self.waiting.lock().committed.clear();
    }

    /// Adds entries; they go nowhere once the queue is closed.
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

    /// The next step comes at once, if need be without entries.
    pub fn nudge(&self) {
        self.waiting.lock().nudged = true;
        self.arrived.notify_one();
    }

    /// What is there already still comes out.
    pub fn close(&self) {
        self.waiting.lock().closed = true;
        self.arrived.notify_one();
    }

    /// The entries of the next step, in order; none after `timeout` or a nudge, `None` once the queue is
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
