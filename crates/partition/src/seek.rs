//! Finding a batch by a sequence number that it holds.
//!
//! A partition's files come in runs, and any of them may hold a part of a stream. Moving an iterator
//! forward costs no block of a run that has nothing at the target: the index of a file says where each
//! block begins and ends. Moving it backward reads a block of every run. So all of these searches go
//! forward only.

use std::ops::Range;

use s2_common::caps::RECORD_BATCH_MAX;
use s2_common::record::SeqNum;

use crate::batch::StoredBatch;
use crate::ids::StreamId;
use crate::keys;
use crate::store::RawIterator;

/// A batch has at most so many records: the one that holds a sequence number begins fewer numbers
/// before it.
const MAX_BATCH_RECORDS: u64 = RECORD_BATCH_MAX.count as u64;

/// Moves the iterator to the stream's batch that holds `seq` if there is one, else to what comes after
/// it. Where a move in between fails, it ends at what comes after `seq` too, and the iterator's status
/// has the error of the last move.
///
/// It moves forward each time. An iterator reads the batch that it is moved to, so moves are few: most
/// reads begin where a batch does, and batches of a stream tend to be of one size.
pub(crate) fn seek_batch(it: &mut RawIterator<'_>, id: StreamId, seq: SeqNum) {
    let behind = seek_from(it, id, seq);
    if behind.as_ref().is_some_and(|batch| batch.start == seq) {
        return;
    }
    let lowest = seq.saturating_sub(MAX_BATCH_RECORDS - 1);
    let mut step = behind.map_or(1, |batch| batch.end - batch.start);
    // No batch begins from `high` to `seq`; what holds `seq` does not begin before `low`.
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

/// Moves to the stream's first batch that begins at or after `seq`; its sequence numbers.
fn seek_from(it: &mut RawIterator<'_>, id: StreamId, seq: SeqNum) -> Option<Range<SeqNum>> {
    it.seek(keys::data(id, seq));
    let start = keys::first_seq_in(id, it.key()?)?;
    let count = StoredBatch::count_in(it.value()?).unwrap_or(1);
    Some(start..start.saturating_add(count.max(1)))
}
