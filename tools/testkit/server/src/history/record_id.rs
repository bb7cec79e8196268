//! The name of a record.

use std::fmt;

/// One record, independent of its position: the `index`-th that `writer` sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RecordId {
    /// The writer that sent it. Unique within a stream.
    pub writer: u32,
    /// Counts the writer's records, without gaps.
    pub index: u64,
}

impl fmt::Display for RecordId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "record {} of writer {}", self.index, self.writer)
    }
}
