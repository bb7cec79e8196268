//! The entries of the catalog that snapshots of partitions need.
//!
//! A stream is found by the id of its basin, and basins are in partition 0: a stream whose basin is in no
//! snapshot of the catalog is lost with the data directory, even if its own partition has put a snapshot. So
//! a checkpoint of a partition is made first, then the catalog is put if it has anything new, and then the
//! partition's snapshot. A basin is in the catalog before any stream of it is in a partition, so the
//! catalog's later snapshot has all basins that the checkpoint needs.

use std::sync::atomic::Ordering;

use crate::core::Inner;

impl Inner {
    /// Whether the catalog has entries that the repository does not have.
    pub fn is_catalog_ahead(&self) -> bool {
        let known = self.snapshots.known[0].lock();
        let covered = known.newest().map_or(0, |n| n.lsn) + known.empty_entries();
        drop(known);
        self.catalog.status().last.0 > covered
    }

    /// Whether a snapshot in the repository has streams that need more of the catalog than the
    /// repository has.
    pub fn is_catalog_needed(&self) -> bool {
        let known = self.snapshots.known.iter().zip(&self.snapshots.named);
        let mut others = known.skip(1);
        let is_unnamed = others.any(|(known, named)| {
            let newest = known.lock().newest().map_or(0, |n| n.lsn);
            newest > named.load(Ordering::Relaxed)
        });
        is_unnamed && self.is_catalog_ahead()
    }

    /// The last applied LSN of each partition. From now on, the catalog has the basin of every stream up to
    /// there.
    pub fn all_applied(&self) -> Vec<u64> {
        let groups = self.groups();
        groups.map(|group| group.status().applied.0).collect()
    }

    /// Notes the LSNs up to which the basins of each partition's streams are in the repository.
    pub fn note_named(&self, applied: &[u64]) {
        for (named, lsn) in self.snapshots.named.iter().zip(applied) {
            named.fetch_max(*lsn, Ordering::Relaxed);
        }
    }

    /// The last LSN up to which the repository alone can restore a partition that has a snapshot up to
    /// `newest`, and whether basins are missing from the catalog's snapshot for the rest of it.
    pub fn covered(&self, partition: u64, newest: u64) -> (u64, bool) {
        if partition == 0 || !self.is_catalog_ahead() {
            return (newest, false);
        }
        let named = self.snapshots.named[partition as usize].load(Ordering::Relaxed);
        (newest.min(named), named < newest)
    }
}
