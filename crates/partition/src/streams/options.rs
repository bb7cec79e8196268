//! How a stream partition treats memory and space.

use std::time::Duration;

use crate::digest::ReplicaDigests;
use crate::recent::RecentBudget;
use crate::streams::name_cache::name_bytes_of;

/// How a stream partition treats memory and space.
#[derive(Clone, Debug)]
pub struct StreamOptions {
    /// Budget for the newest batches of followed streams; shared by all partitions.
    pub recent: RecentBudget,
    /// Most streams that are open in memory; beyond it, idle ones are closed. They are opened again when
    /// they are used.
    pub open_streams: usize,
    /// Bytes of names of streams that are kept in memory for lists; with more, lists read the database.
    pub name_bytes: usize,
    /// A partition's files are rewritten once at least half of their bytes are reclaimable, and at least
    /// this many; fewer are enough if none were added for a while.
    pub compact_garbage: u64,
    /// Space is reclaimed no sooner than this after it became reclaimable, so that a stream that is
    /// trimmed continually is not visited continually.
    pub reclaim_after: Duration,
    /// What computes the digests that the log asks for; by default nothing does.
    pub digests: ReplicaDigests,
}

impl Default for StreamOptions {
    fn default() -> Self {
        StreamOptions {
            recent: RecentBudget::default(),
            open_streams: 16 * 1024,
            name_bytes: name_bytes_of(1),
            compact_garbage: 64 * 1024 * 1024,
            reclaim_after: Duration::from_secs(1),
            digests: ReplicaDigests::default(),
        }
    }
}
