//! How a stream partition treats memory and space.

use std::time::Duration;

use crate::recent::RecentBudget;

/// How a stream partition treats memory and space.
#[derive(Clone, Debug)]
pub struct StreamOptions {
    /// What may be kept of the newest batches of followed streams; shared by all partitions.
    pub recent: RecentBudget,
    /// Streams kept open in memory; beyond it idle ones are closed. They open again at a touch.
    pub open_streams: usize,
    /// A partition's files are rewritten once this many bytes are reclaimable, and at least half
    /// as many as there are in all.
    pub compact_garbage: u64,
    /// Space is reclaimed no sooner than this after it became reclaimable, so that a stream that is
    /// trimmed all the time is not visited all the time.
    pub reclaim_after: Duration,
}

impl Default for StreamOptions {
    fn default() -> Self {
        StreamOptions {
            recent: RecentBudget::default(),
            open_streams: 16 * 1024,
            compact_garbage: 64 * 1024 * 1024,
            reclaim_after: Duration::from_secs(1),
        }
    }
}
