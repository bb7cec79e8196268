//! Finding a batch by a sequence number that it holds.
//!
//! The files of a partition form sorted runs, and each run may hold a part of a stream. Moving an
//! iterator forward reads no block of a run that has nothing at the target, because the index of a file
//! has the first and last key of each block. Moving it backward reads a block of every run. So all of
//! these searches move forward only.

use std::ops::Range;

use s2_common::caps::RECORD_BATCH_MAX;
use s2_common::record::SeqNum;

use crate::batch::StoredBatch;
use crate::ids::StreamId;
use crate::keys;
use crate::store::RawIterator;

/// Most records of a batch. The batch that holds a sequence number begins less than this many numbers
/// before it.
const MAX_BATCH_RECORDS: u64 = RECORD_BATCH_MAX.count as u64;

/// Moves the iterator to the stream's batch that holds `seq` or, if there is none, to the first key after
/// it. If a move on the way fails, the iterator ends at the first key at or after `seq` too, and its
/// status has the error of the last move.
///
/// Every move is a forward seek. A seek reads the batch at its target, so the search needs few of them:
/// most reads begin where a batch begins, and the batches of a stream tend to have one size, so the first
/// step back is the size of the batch after `seq`.
pub(crate) fn seek_batch(it: &mut RawIterator<'_>, id: StreamId, seq: SeqNum) {
    let behind = seek_from(it, id, seq);
    if behind.as_ref().is_some_and(|batch| batch.start == seq) {
        return;
    }
    let lowest = seq.saturating_sub(MAX_BATCH_RECORDS - 1);
    let mut step = behind.map_or(1, |batch| batch.end - batch.start);
    // No batch begins in `high..=seq`; the batch that holds `seq` does not begin before `low`.
    let (mut low, mut high) = (lowest, seq);
    while low < high {
        let probe = high.saturating_sub(step).max(low);
        match seek_from(it, id, probe).filter(|batch| batch.start < high) {
            Some(batch) if batch.end > seq => return,
            Some(batch) => {
                low = batch.end;
                step = (high.saturating_sub(low) / 2).max(1);
            }
            None => {
                high = probe;
                step = step.saturating_mul(2);
            }
        }
    }
    it.seek(keys::data(id, seq));
}

/// Moves to the stream's first batch that begins at or after `seq`; returns its range of sequence
/// numbers, or `None` if there is no such batch.
fn seek_from(it: &mut RawIterator<'_>, id: StreamId, seq: SeqNum) -> Option<Range<SeqNum>> {
    it.seek(keys::data(id, seq));
    let start = keys::first_seq_in(id, it.key()?)?;
    let count = StoredBatch::count_in(it.value()?).unwrap_or(1);
    Some(start..start.saturating_add(count.max(1)))
}
