//! What a batch of writes does to segments.

use bytes::Bytes;
use s2_common::record::SeqNum;

use crate::ids::StreamId;
use crate::row::Row;

/// A batch, to be written to the present segment.
#[derive(Debug)]
pub(crate) struct Written {
    pub first: SeqNum,
    pub end: SeqNum,
    pub value: Bytes,
}

/// What a write batch does to segments. Which segment is the present one is known when it is written.
#[derive(Debug)]
pub(super) enum Step {
    Append(StreamId, Written),
    /// Removes a row, whose key has this last sequence number.
    Remove(StreamId, u64, Row),
    /// Removes the batches of a row that begin before a sequence number.
    Trim(StreamId, u64, Row, SeqNum),
    /// Moves the first batches of a row; those before them are trimmed.
    Move(StreamId, u64, Row, Vec<Written>),
    /// Moves batches from where an earlier build wrote them.
    Convert(StreamId, Vec<Written>),
}

impl Step {
    /// The batches that it writes.
    pub(super) fn written(&self) -> &[Written] {
        match self {
            Step::Append(_, written) => std::slice::from_ref(written),
            Step::Move(_, _, _, moved) | Step::Convert(_, moved) => moved,
            Step::Remove(..) | Step::Trim(..) => &[],
        }
    }
}
