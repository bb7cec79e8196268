//! What a follower publishes.

use std::time::Duration;

use crate::error::Error;
use crate::snapshot::SnapshotInfo;

/// What happened.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Update {
    /// A snapshot was restored: at the beginning, because records were removed before they were read, or
    /// because a history was cut off. With `None`, the state was emptied, and is built from the whole
    /// stream again.
    Restored(Option<SnapshotInfo>),
    /// Records were applied.
    Applied {
        /// The first position that was not applied before.
        from: u64,
        /// The first position that is not applied now.
        to: u64,
    },
    /// Everything up to the tail is in the state. Sent again each time this becomes true again.
    CaughtUp {
        /// The next sequence number.
        tail: u64,
    },
    /// A snapshot was taken.
    SnapshotTaken(SnapshotInfo),
    /// No snapshot was taken, for this reason. It is tried again.
    SnapshotFailed(String),
    /// This many updates were missed, because the receiver was too slow.
    Missed(u64),
    /// The follower has ended: closed, or with an error.
    Ended(Option<Error>),
}

/// A state, and its cursor.
#[derive(Clone, Debug)]
pub struct View<F> {
    /// First position that is not in the state.
    pub cursor: u64,
    /// The state.
    pub state: F,
}

/// The status of a follower.
#[derive(Clone, Debug, Default)]
pub struct Status {
    /// First position that is not in the state.
    pub cursor: u64,
    /// The next sequence number of the stream, as last reported.
    pub tail: Option<u64>,
    /// Whether the state had everything when the tail was last reported.
    pub caught_up: bool,
    /// Records that the fold applied, since the follower was opened.
    pub applied: u64,
    /// Bytes of their bodies.
    pub bytes: u64,
    /// Malformed records that were skipped.
    pub skipped: u64,
    /// Records since the newest snapshot's cursor, or the beginning.
    pub since_snapshot: u64,
    /// The predicted time to replay them, once anything was measured.
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
    /// How often it reconnected.
    pub reconnects: u64,
    /// What it waits for and tries again, since the last answer: a server, a store, or an explanation of a
    /// jump of the sequence numbers.
    pub waits_for: Option<String>,
    /// Why it ended, if it has.
    pub ended: Option<Option<Error>>,
}
