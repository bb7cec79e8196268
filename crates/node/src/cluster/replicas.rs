//! What this node knows of its replicas beyond what their groups know.

use std::collections::BTreeMap;
use std::time::Instant;

use esker_partition::digest::{Compared, ReplicaDigests};
use parking_lot::{Mutex, RwLock};
use tokio::sync::Notify;

use super::departure::Departure;
use super::divergence::Diverged;
use super::transfers::Transfers;
use super::waiting::Waiting;

/// What this node knows of its replicas.
pub(crate) struct Replicas {
    /// The digests that the logs ask for.
    pub digests: ReplicaDigests,
    /// Those that must not take part.
    pub diverged: Diverged,
    /// Whether the cluster has removed this node, and what becomes of them then.
    pub departure: Departure,
    /// What they fetch.
    pub transfers: Transfers,
    /// Which of those that this node leads wait for a change of their members.
    pub waiting: Waiting,
    /// The checks of digests that this node is to make where it leads.
    pub checks: Checks,
    /// Who leads the partitions whose replicas here have halted, as other nodes say.
    elsewhere: RwLock<BTreeMap<u64, u64>>,
}

impl Replicas {
    pub fn new(digests: ReplicaDigests, diverged: Diverged, departure: Departure) -> Replicas {
        Replicas {
            digests,
            diverged,
            departure,
            transfers: Transfers::default(),
            waiting: Waiting::default(),
            checks: Checks::default(),
            elsewhere: RwLock::default(),
        }
    }

    /// The LSN as of which the log has last recorded that a replica of a partition has diverged; 0 if it has not.
    pub fn diverged_at(&self, partition: u64) -> u64 {
        let compared = self.digests.compared(partition);
        compared.map_or(0, |compared| compared.diverged_at)
    }

    /// The last comparison of a partition's replicas, if they differ, or have differed, and it is not known which is
    /// right.
    pub fn open_check(&self, partition: u64) -> Option<Compared> {
        let compared = self.digests.compared(partition);
        compared.filter(Compared::is_open)
    }

    /// Who leads a partition whose replica here has halted and learns of no leader, if another node has told.
    pub fn leader_elsewhere(&self, partition: u64) -> Option<u64> {
        self.elsewhere.read().get(&partition).copied()
    }

    pub fn set_leaders_elsewhere(&self, leaders: BTreeMap<u64, u64>) {
        *self.elsewhere.write() = leaders;
    }
}

/// The checks of digests that this node is to make where it leads: one at a time.
#[derive(Default)]
pub(crate) struct Checks {
    /// Partitions whose check an operator wants, and since when.
    wanted: Mutex<BTreeMap<u64, Instant>>,
    /// The partition that is being checked.
    pub under_way: Mutex<Option<u64>>,
    /// Why the last check of a partition came to no end, if so.
    pub failed: Mutex<BTreeMap<u64, String>>,
    pub wake: Notify,
}

impl Checks {
    /// Wants a check as soon as none is under way.
    pub fn want(&self, partition: u64) {
        self.failed.lock().remove(&partition);
        self.wanted.lock().insert(partition, Instant::now());
        self.wake.notify_one();
    }

    /// Since when a check is wanted, if it is.
    pub fn wanted_since(&self, partition: u64) -> Option<Instant> {
        self.wanted.lock().get(&partition).copied()
    }

    /// A check begins, or cannot. Returns whether it was wanted.
    pub fn take(&self, partition: u64) -> bool {
        self.wanted.lock().remove(&partition).is_some()
    }
}
