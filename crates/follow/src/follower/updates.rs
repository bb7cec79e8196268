//! What a follower tells.

use std::time::Duration;

use crate::error::Error;
use crate::snapshot::SnapshotInfo;

/// What happened.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Update {
    /// A snapshot was restored: at the beginning, or because records went before they were read, or a
    /// history was cut off. With none, the state was emptied, and is made of the whole stream again.
    Restored(Option<SnapshotInfo>),
    /// Records were taken in.
    Applied {
        /// The first position that had not been.
        from: u64,
        /// The first that has not been now.
        to: u64,
    },
    /// Everything up to the tail is in the state. Comes again after each time that it was not.
    CaughtUp {
        /// The next sequence number.
        tail: u64,
    },
    /// A snapshot was taken.
    SnapshotTaken(SnapshotInfo),
    /// None was taken, and why. It is tried again.
    SnapshotFailed(String),
    /// So many updates were missed, because nobody took them.
    Missed(u64),
    /// The follower has ended: closed, or with an error.
    Ended(Option<Error>),
}

/// A state, and up to where it goes.
#[derive(Clone, Debug)]
pub struct View<F> {
    /// First position that is not in the state.
    pub cursor: u64,
    /// The state.
    pub state: F,
}

/// Where a follower stands.
#[derive(Clone, Debug, Default)]
pub struct Status {
    /// First position that is not in the state.
    pub cursor: u64,
    /// The next sequence number of the stream, as last heard.
    pub tail: Option<u64>,
    /// Whether the state had everything when the tail was last heard.
    pub caught_up: bool,
    /// Records that the fold took in, since the follower was opened.
    pub applied: u64,
    /// Bytes of their bodies.
    pub bytes: u64,
    /// Malformed records that were skipped.
    pub skipped: u64,
    /// Records since the newest snapshot's cursor, or the beginning.
    pub since_snapshot: u64,
    /// How long it is predicted to take to replay them, as soon as anything was measured.
    pub predicted_replay: Option<Duration>,
    /// The newest snapshot that this follower restored or took.
    pub newest: Option<SnapshotInfo>,
    /// Snapshots that it took.
    pub taken: u64,
    /// Attempts that failed; a race that was lost is none.
    pub failed: u64,
    /// Races that were lost to other writers.
    pub lost: u64,
    /// Why the last attempt failed, if it did.
    pub last_failure: Option<String>,
    /// How often it was connected anew.
    pub reconnects: u64,
    /// Why it ended, if it has.
    pub ended: Option<Option<Error>>,
}
