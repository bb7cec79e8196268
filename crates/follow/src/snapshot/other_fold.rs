//! A snapshot of another fold in the same stream.

use std::fmt;

/// The newest snapshot of another fold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OtherFold {
    /// Its fold.
    pub fold: String,
    /// The sequence number of its first record.
    pub position: u64,
    /// First sequence number that it does not cover.
    pub cursor: u64,
    /// The largest position to which the stream may be trimmed without it becoming unusable.
    pub trimmable: u64,
}

impl fmt::Display for OtherFold {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let OtherFold {
            fold,
            position,
            cursor,
            ..
        } = self;
        write!(
            f,
            "the snapshot of fold `{fold}` at {position}, which goes to {cursor}"
        )
    }
}
