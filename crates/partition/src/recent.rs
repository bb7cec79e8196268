//! The newest batches of a followed stream, in memory.
//!
//! They are contiguous and end at the tail. [`RecentBudget`] limits the bytes of each stream, and those
//! of all streams of a node together. While the total is exceeded, a stream keeps only the batches of its
//! newest append step (2 MiB at most, or one batch); readers that lag behind these read the database.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use s2_common::caps::RECORD_BATCH_MAX;
use s2_common::record::SeqNum;

use crate::batch::StoredBatch;

/// Limits the memory that recent batches of the followed streams of a node take. Cheap to clone.
#[derive(Clone, Debug)]
pub struct RecentBudget {
    per_stream: usize,
    total: usize,
    used: Arc<AtomicUsize>,
}

impl RecentBudget {
    /// A budget of `per_stream` bytes for each stream and `total` bytes for all of them.
    pub fn new(per_stream: usize, total: usize) -> RecentBudget {
        RecentBudget {
            per_stream,
            total,
            used: Arc::new(AtomicUsize::new(0)),
        }
    }

    /// Bytes of the batches in memory.
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
    /// Contiguous, in the order of their sequence numbers.
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

    /// Adds the batches that a step appended. If they do not end at the tail, because it has passed over
    /// sequence numbers, no batch is kept: a follower could not use them.
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
        // The batches of the newest step are kept whatever their size; without any, the newest batch is.
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

    /// Whether the batches go back to the record at `seq`.
    pub fn reaches(&self, seq: SeqNum) -> bool {
        self.batches.front().is_some_and(|b| b.first_seq <= seq)
    }

    /// Batches with records at or after `seq`, if memory goes back that far: about as many as one answer
    /// takes. The number is limited because memory may have tens of thousands of them, and appends wait
    /// while they are cloned.
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
