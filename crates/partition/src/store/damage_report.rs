//! The report of damaged partitions of a database.

use std::collections::BTreeMap;
use std::sync::Arc;

use parking_lot::Mutex;

use crate::ids::PartitionId;

/// The damaged partitions of a database, and what was found first of each. Cheap to clone; all clones
/// share one report, which outlives the database.
#[derive(Clone, Debug, Default)]
pub struct DamageReport(Arc<Mutex<BTreeMap<PartitionId, String>>>);

impl DamageReport {
    /// What was found first in a partition.
    pub fn of(&self, partition: PartitionId) -> Option<String> {
        self.0.lock().get(&partition).cloned()
    }

    /// Whether nothing was found.
    pub fn is_empty(&self) -> bool {
        self.0.lock().is_empty()
    }

    /// Removes and returns everything that was found.
    pub fn take(&self) -> BTreeMap<PartitionId, String> {
        std::mem::take(&mut self.0.lock())
    }

    /// Removes a partition from the report, because its files were replaced.
    pub fn forget(&self, partition: PartitionId) {
        self.0.lock().remove(&partition);
    }

    pub(super) fn note(&self, partition: PartitionId, what: String) {
        self.0.lock().entry(partition).or_insert(what);
    }
}

/// The operation that returned an error of RocksDB.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Met {
    /// A read of a partition.
    Reading,
    /// A write: RocksDB returns from it errors of background work for any partition.
    Writing,
}
