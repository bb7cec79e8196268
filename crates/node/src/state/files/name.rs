//! A snapshot's name and checksum.

use crate::state::document::Header;

/// A snapshot that was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Written {
    pub header: Header,
    pub keys: u64,
    pub bytes: u64,
    /// In hexadecimal digits.
    pub sum: String,
}

impl Written {
    /// What its checksum's file says.
    pub fn sum_line(&self) -> String {
        format!("{}  {}\n", self.sum, name_of(self.header.commit_ts))
    }
}

/// Its name.
pub(crate) fn name_of(commit_ts: u64) -> String {
    format!("snapshot-{commit_ts}.json")
}

/// The commit of a snapshot's name.
pub(crate) fn commit_of(name: &str) -> Option<u64> {
    let digits = name.strip_prefix("snapshot-")?.strip_suffix(".json")?;
    let commit_ts = digits.parse().ok()?;
    // `snapshot-007.json` is not written by this program.
    (name_of(commit_ts) == name).then_some(commit_ts)
}
