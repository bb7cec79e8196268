//! The name and the checksum of a snapshot.

use crate::state::document::Header;

/// A snapshot that was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Written {
    pub header: Header,
    pub keys: u64,
    pub bytes: u64,
    /// The checksum, in hexadecimal digits.
    pub sum: String,
}

impl Written {
    /// The content of its checksum's file.
    pub fn sum_line(&self) -> String {
        format!("{}  {}\n", self.sum, name_of(self.header.commit_ts))
    }
}

/// The file name of a commit's snapshot.
pub(crate) fn name_of(commit_ts: u64) -> String {
    format!("snapshot-{commit_ts}.json")
}

/// The commit of a snapshot's file name.
pub(crate) fn commit_of(name: &str) -> Option<u64> {
    let digits = name.strip_prefix("snapshot-")?.strip_suffix(".json")?;
    let commit_ts = digits.parse().ok()?;
    // This program does not write names such as `snapshot-007.json`.
    (name_of(commit_ts) == name).then_some(commit_ts)
}
