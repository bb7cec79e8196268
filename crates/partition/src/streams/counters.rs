//! The ids that a stream partition has given out: no id is given out twice.

use crate::lineage::GAP;

/// Counters of a stream partition.
#[derive(Clone, Copy, PartialEq, Eq, prost::Message)]
pub(crate) struct Counters {
    /// The next stream's id.
    #[prost(uint64, tag = "1")]
    pub next_stream: u64,
    /// Number of the partition's forks that the ids take into account.
    #[prost(uint64, tag = "2")]
    pub forks: u64,
}

impl Counters {
    /// Skips the ids that stale lineages may have given out.
    pub(super) fn see_forks(&mut self, forks: u64) {
        let missed = forks.saturating_sub(self.forks);
        self.next_stream = self.next_stream.saturating_add(missed.saturating_mul(GAP));
        self.forks = self.forks.max(forks);
    }
}
