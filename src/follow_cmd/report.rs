//! The position and the snapshots of a follower, as text and as JSON.

use std::time::Duration;

use esker_follow::{SnapshotInfo, Status, View};
use serde::Serialize;

use super::fold::Folded;
use super::render::Json;
use crate::stream_cmd::target::StreamTarget;
use crate::term::{ago, bytes, count, plain, records, took};

/// The state, and the follower's position.
#[derive(Serialize)]
pub struct Document<'a> {
    /// What happened, where many lines are printed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub event: Option<&'static str>,
    pub stream: &'a str,
    /// First sequence number that is not in the state.
    pub cursor: u64,
    /// The next sequence number, as last known.
    pub tail: u64,
    pub records_applied: u64,
    /// Malformed records that were skipped.
    pub skipped: u64,
    pub restored: Option<&'a SnapshotInfo>,
    pub taken: Option<&'a SnapshotInfo>,
    pub state: Json<'a>,
}

impl<'a> Document<'a> {
    pub fn new(
        stream: &'a str,
        status: &'a Status,
        restored: Option<&'a SnapshotInfo>,
        view: &'a View<Folded>,
    ) -> Document<'a> {
        Document {
            event: None,
            stream,
            cursor: view.cursor,
            tail: tail(status).max(view.cursor),
            records_applied: status.applied,
            skipped: status.skipped,
            restored,
            taken: taken(status),
            state: Json(&view.state.state),
        }
    }
}

/// A stream's name, as JSON has it.
pub fn name(stream: &StreamTarget) -> String {
    format!("{}/{}", &*stream.basin, &*stream.stream)
}

/// The next sequence number, as last known.
pub fn tail(status: &Status) -> u64 {
    status.tail.unwrap_or(status.cursor).max(status.cursor)
}

/// The newest snapshot, if this process took it.
pub fn taken(status: &Status) -> Option<&SnapshotInfo> {
    status.newest.as_ref().filter(|_| status.taken > 0)
}

/// `the single-record snapshot at 1000 (3.10 KiB)`.
pub fn snapshot(info: &SnapshotInfo) -> String {
    format!(
        "the {} snapshot at {} ({})",
        info.kind,
        info.cursor,
        bytes(info.bytes)
    )
}

/// `3 min ago`, `unknown`.
pub fn age(info: &SnapshotInfo) -> String {
    let Some(at) = info.taken_at else {
        return "unknown".to_owned();
    };
    match now_ms().checked_sub(at) {
        Some(age) => ago(Duration::from_millis(age)),
        None => "by a clock that is ahead of this one".to_owned(),
    }
}

fn now_ms() -> u64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    now.map_or(0, |now| u64::try_from(now.as_millis()).unwrap_or(u64::MAX))
}

/// `about 85 ms`, for a prediction.
pub fn about(time: Duration) -> String {
    // A prediction is never shown as zero.
    format!("about {}", took(time.max(Duration::from_micros(100))))
}

/// A remark on one line: where it began, what it did, and its position.
pub fn summary(
    stream: &StreamTarget,
    status: &Status,
    restored: Option<&SnapshotInfo>,
    state: &str,
    caught_up_in: Option<Duration>,
) -> String {
    let mut text = format!("{stream} at {}: {state}; ", status.cursor);
    text += &match restored {
        Some(info) => format!("{} restored, ", snapshot(info)),
        None => String::new(),
    };
    text += &format!("{} applied", records(status.applied));
    if let Some(caught_up_in) = caught_up_in {
        text += &format!(" in {}", took(caught_up_in));
    }
    if status.skipped > 0 {
        text += &format!(", {} malformed skipped", count(status.skipped));
    }
    if let Some(info) = taken(status) {
        text += &format!("; {} taken", snapshot(info));
    }
    if let Some(why) = &status.last_failure {
        text += &format!(
            "; the last attempt to take a snapshot failed: {}",
            plain(why)
        );
    }
    text
}
