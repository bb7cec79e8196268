//! The newest batches of a followed stream, in memory.
//!
//! They are contiguous and end at the tail. Each stream may keep so many bytes, and all streams of
//! a node together so many ([`RecentBudget`]): beyond that, each keeps what its newest append step
//! brought alone (2 MiB at most, or its newest batch), and readers that lag behind it read the database.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use s2_common::caps::RECORD_BATCH_MAX;
use s2_common::record::SeqNum;

use crate::batch::StoredBatch;

/// What the followed streams of a node may keep. Cheap to clone.
#[derive(Clone, Debug)]
pub struct RecentBudget {
    per_stream: usize,
    total: usize,
    used: Arc<AtomicUsize>,
}

impl RecentBudget {
    /// So many bytes for one stream, so many for all.
    pub fn new(per_stream: usize, total: usize) -> RecentBudget {
        RecentBudget {
            per_stream,
            total,
            used: Arc::new(AtomicUsize::new(0)),
        }
    }

    /// Bytes that are kept now.
    pub fn used(&self) -> usize {
        self.used.load(Ordering::Relaxed)
    }

    /// Bytes that one stream may keep now.
    fn allowance(&self) -> usize {
        if self.used() > self.total {
            0
        } else {
            self.per_stream
        }
    }
}

impl Default for RecentBudget {
    fn default() -> Self {
        RecentBudget::new(32 * 1024 * 1024, 64 * 1024 * 1024)
    }
}

/// Some of the newest batches of a stream.
#[derive(Debug)]
pub(crate) struct RecentBatches {
    /// In order, without others between them.
    pub batches: Vec<StoredBatch>,
    /// Whether the last of them ends at the tail.
    pub ends: bool,
}

/// The newest batches of one stream.
pub(crate) struct Recent {
    batches: VecDeque<StoredBatch>,
    bytes: usize,
    budget: RecentBudget,
}

impl Recent {
    pub fn new(budget: RecentBudget) -> Recent {
        Recent {
            batches: VecDeque::new(),
            bytes: 0,
            budget,
        }
    }

    /// Adds what a step appended. Batches that do not end at the tail are of no use to a follower: the
    /// tail may have passed over numbers.
    pub fn extend(&mut self, new: Vec<StoredBatch>, tail: SeqNum) {
        let newest = new.len().max(1);
        for batch in new {
            if self.end_seq().is_some_and(|end| end != batch.first_seq) {
                self.clear();
            }
            let bytes = batch.bytes();
            self.bytes += bytes;
            self.budget.used.fetch_add(bytes, Ordering::Relaxed);
            self.batches.push_back(batch);
        }
        if self.end_seq() != Some(tail) {
            self.clear();
        }
        // What the newest step appended stays whatever its size, and the newest batch.
        while self.batches.len() > newest && self.bytes > self.budget.allowance() {
            if let Some(oldest) = self.batches.pop_front() {
                self.forget(oldest.bytes());
            }
        }
    }

    pub fn clear(&mut self) {
        self.batches = VecDeque::new();
        self.forget(self.bytes);
    }

    /// Whether they go back to the record at `seq`.
    pub fn reaches(&self, seq: SeqNum) -> bool {
        self.batches.front().is_some_and(|b| b.first_seq <= seq)
    }

    /// Those with records at or after `seq`, if they go back that far: about as many as one answer takes.
    /// Memory may keep tens of thousands, and appends wait while they are handed out.
    pub fn from(&self, seq: SeqNum) -> Option<RecentBatches> {
        if !self.reaches(seq) {
            return None;
        }
        let start = self.batches.partition_point(|b| b.end_seq() <= seq);
        let most = seq.saturating_add(RECORD_BATCH_MAX.count as u64);
        let mut bytes = 0;
        let fits = |batch: &&StoredBatch| {
            let fits = bytes < RECORD_BATCH_MAX.bytes && batch.first_seq < most;
            bytes += batch.bytes();
            fits
        };
        let rest = self.batches.iter().skip(start);
        let batches: Vec<_> = rest.take_while(fits).cloned().collect();
        let ends = start + batches.len() == self.batches.len();
        Some(RecentBatches { batches, ends })
    }

    fn end_seq(&self) -> Option<SeqNum> {
        self.batches.back().map(StoredBatch::end_seq)
    }

    fn forget(&mut self, bytes: usize) {
        self.bytes -= bytes;
        self.budget.used.fetch_sub(bytes, Ordering::Relaxed);
    }
}

impl Drop for Recent {
    fn drop(&mut self) {
        self.clear();
    }
}
