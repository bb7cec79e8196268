//! Entries of a lineage that are applied after the next lineage has begun.
//!
//! Where a node goes on without the majority of its group, the last entries of its log may never have been
//! committed: others may have committed other entries in their place, and given the same numbers to other records. So
//! the new lineage begins after the last entry that is known to be committed, and those after it are applied behind
//! the gap of that fork.
//!
//! - They were proposed before the gap: the sequence numbers and versions that they expect are lower by it. An append
//!   or commit that was acknowledged must not be refused because of that.
//! - The ids of streams that they create are those that later entries name, and that records are encrypted for. So new
//!   ids do not take the fork into account yet; they do after the last of these entries.

use super::{StreamOptions, StreamPartition, read_counters};
use crate::ids::PartitionId;
use crate::lineage::GAP;
use crate::state::StateEntry;
use crate::store::{Store, StoreError};

/// What entries know less than the partition. The default is that of all entries of the present lineage: nothing.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct BehindFork {
    /// Number of forks of the partition.
    pub forks: u64,
    /// By how much numbers are higher than the entries expect.
    gap: u64,
}

impl BehindFork {
    /// The next sequence number of a stream as the entries know it. A stream that they have created has no gap.
    pub fn expected_seq(self, next: u64) -> u64 {
        next.checked_sub(self.gap).unwrap_or(next)
    }

    /// A key as the entries know it. `forks` is the number of forks that its version has seen if one of them has
    /// written it.
    pub fn expected_entry(self, entry: StateEntry, forks: u64) -> StateEntry {
        match entry.forks == forks {
            true => StateEntry {
                version: self.expected_seq(entry.version),
                ..entry
            },
            false => entry,
        }
    }
}

impl StreamPartition {
    /// Opens a partition whose lineage has just begun, to apply entries that were proposed in its parent: see this
    /// module's head. It must be opened anew for any others.
    ///
    /// # Errors
    ///
    /// As [`StreamPartition::open`].
    pub fn open_behind_fork(
        store: &Store,
        partition: PartitionId,
        options: StreamOptions,
    ) -> Result<StreamPartition, StoreError> {
        let mut opened = StreamPartition::open(store, partition, options)?;
        let forks = opened.part.forks()?;
        opened.counters = read_counters(&opened.part, forks.saturating_sub(1))?;
        opened.behind = BehindFork { forks, gap: GAP };
        Ok(opened)
    }
}
