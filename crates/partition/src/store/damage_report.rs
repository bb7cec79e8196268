//! Which partitions of a database were found damaged.

use std::collections::BTreeMap;
use std::sync::Arc;

use parking_lot::Mutex;

use crate::ids::PartitionId;

/// Which partitions of a database were found damaged, and how. Cheap to clone; all clones are one
/// report, which outlives the database.
#[derive(Clone, Debug, Default)]
pub struct DamageReport(Arc<Mutex<BTreeMap<PartitionId, String>>>);

impl DamageReport {
    /// What was found first of a partition.
    pub fn of(&self, partition: PartitionId) -> Option<String> {
        self.0.lock().get(&partition).cloned()
    }

    /// Whether nothing was found.
    pub fn is_empty(&self) -> bool {
        self.0.lock().is_empty()
    }

    /// Everything that was found, which is forgotten.
    pub fn take(&self) -> BTreeMap<PartitionId, String> {
        std::mem::take(&mut self.0.lock())
    }

    /// A partition has other files now.
    pub fn forget(&self, partition: PartitionId) {
        self.0.lock().remove(&partition);
    }

    pub(super) fn note(&self, partition: PartitionId, what: String) {
        self.0.lock().entry(partition).or_insert(what);
    }
}

/// What met an error of RocksDB.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Met {
    /// A read of a partition.
    Reading,
    /// A write: RocksDB returns from it what the background work for any partition met.
    Writing,
}
