//! The name of a record.

use std::fmt;

/// One record, wherever it ends up: the `index`-th that `writer` sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RecordId {
    /// Who sent it. Unique within a stream.
    pub writer: u32,
    /// Counts the writer's records, without gaps.
    pub index: u64,
}

impl fmt::Display for RecordId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "record {} of writer {}", self.index, self.writer)
    }
}
