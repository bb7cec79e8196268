//! How a stream partition treats memory and space.

use std::time::Duration;

use crate::digest::ReplicaDigests;
use crate::recent::RecentBudget;

/// How a stream partition treats memory and space.
#[derive(Clone, Debug)]
pub struct StreamOptions {
    /// Budget for the newest batches of followed streams; shared by all partitions.
    pub recent: RecentBudget,
    /// Most streams that are open in memory; beyond it, idle ones are closed. They are opened again when
    /// they are used.
    pub open_streams: usize,
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
            compact_garbage: 64 * 1024 * 1024,
            reclaim_after: Duration::from_secs(1),
            digests: ReplicaDigests::default(),
        }
    }
}
