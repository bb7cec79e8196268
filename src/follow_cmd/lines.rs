//! The state as lines, for a pipe: the whole state as soon as it is current, then the changes each time it is
//! current again.
//!
//! As text, a change is a line like those of the state, and everything else is a remark on standard error. As
//! JSON, each line is an object, and its `event` is one of `state`, `changed`, `snapshot_taken`,
//! `snapshot_failed`, `restored`.

use std::time::Duration;

use esker_follow::{SnapshotInfo, Update};
use futures::StreamExt as _;
use serde::Serialize;
use serde_json::json;
use tokio::time::Instant;

use super::following::{Following, Waiting, remark};
use super::render::{ChangedJson, Output};
use super::report::{self, Document};
use super::stop::Stop;
use crate::failure::Failure;
use crate::output::{self, Written};
use crate::term::plain;

/// Time for which changes are gathered, so that a thousand records that arrive together do not become a
/// thousand lines.
const GATHER: Duration = Duration::from_millis(100);

/// Interval of the looks whether the follower waits for something.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);

/// What changed.
#[derive(Serialize)]
struct Changed<'a> {
    event: &'static str,
    cursor: u64,
    tail: u64,
    records_applied: u64,
    skipped: u64,
    /// Keys and their current values; of a document, all of it.
    changed: ChangedJson<'a>,
}

pub async fn run(mut following: Following<'_>, json: bool, stop: &mut Stop) -> Result<(), Failure> {
    let caught_up = following.catch_up(stop, None).await?;
    if caught_up {
        follow(&following, json, stop).await?;
    }
    following.end(stop).await
}

/// Prints until it is interrupted or standard output has no reader any more.
async fn follow(following: &Following<'_>, json: bool, stop: &mut Stop) -> Result<(), Failure> {
    let mut lines = Lines {
        following,
        name: report::name(following.stream),
        json,
        out: Output::new(),
    };
    following.fold.remember();
    let mut updates = following.follower.updates();
    let mut waiting = Waiting::default();
    let mut looks = tokio::time::interval(LOOK_INTERVAL);
    if lines.state().await? == Written::NobodyReads {
        return Ok(());
    }
    let mut flush_at = None;
    let unread = output::unread();
    let mut unread = std::pin::pin!(unread);
    loop {
        let flush = async {
            match flush_at {
                Some(at) => tokio::time::sleep_until(at).await,
                None => std::future::pending().await,
            }
        };
        let written = tokio::select! {
            () = stop.asked() => return Ok(()),
            () = &mut unread => return Ok(()),
            _ = looks.tick() => {
                waiting.look(&following.follower.status());
                Written::Yes
            }
            () = flush => {
                flush_at = None;
                lines.changed().await?
            }
            update = updates.next() => match update {
                Some(Update::Applied { .. } | Update::Missed(_)) => {
                    flush_at.get_or_insert_with(|| Instant::now() + GATHER);
                    Written::Yes
                }
                Some(Update::SnapshotTaken(info)) => lines.taken(&info)?,
                Some(Update::SnapshotFailed(why)) => lines.failed(&why)?,
                Some(Update::Restored(info)) => lines.restored(info.as_ref()).await?,
                Some(Update::Ended(_)) | None => {
                    return Err(following.failure(&following.follower.ended().await));
                }
                Some(_) => Written::Yes,
            },
        };
        if written == Written::NobodyReads {
            return Ok(());
        }
    }
}

struct Lines<'a> {
    following: &'a Following<'a>,
    name: String,
    json: bool,
    out: Output,
}

impl Lines<'_> {
    /// Prints the whole state.
    async fn state(&mut self) -> Result<Written, Failure> {
        let following = self.following;
        // Reset before the state is printed: a change from here on is printed again, and none is left out.
        following.fold.changed();
        let view = following.follower.view().await;
        let view = view.map_err(|e| following.failure(&e))?;
        let status = following.follower.status();
        let restored = following.restored();
        if self.json {
            let mut document = Document::new(&self.name, &status, restored, &view);
            document.event = Some("state");
            return self.out.json(&document);
        }
        let written = self.out.print(|out| view.state.state.lines(out))?;
        let state = view.state.state.summary();
        let took = following.caught_up_in;
        let summary = report::summary(following.stream, &status, restored, &state, took);
        remark(&format!("{summary}; changes follow"));
        Ok(written)
    }

    /// Prints what changed since the last line.
    async fn changed(&mut self) -> Result<Written, Failure> {
        let following = self.following;
        let (any, keys) = following.fold.changed();
        if !any {
            return Ok(Written::Yes);
        }
        let view = following.follower.view().await;
        let view = view.map_err(|e| following.failure(&e))?;
        if !self.json {
            let state = &view.state.state;
            return self.out.print(|out| state.changed_lines(&keys, out));
        }
        let status = following.follower.status();
        self.out.json(&Changed {
            event: "changed",
            cursor: view.cursor,
            tail: report::tail(&status).max(view.cursor),
            records_applied: status.applied,
            skipped: status.skipped,
            changed: ChangedJson(&view.state.state, &keys),
        })
    }

    fn taken(&mut self, info: &SnapshotInfo) -> Result<Written, Failure> {
        if self.json {
            return self
                .out
                .json(&json!({ "event": "snapshot_taken", "snapshot": info }));
        }
        remark(&format!("{} taken", report::snapshot(info)));
        Ok(Written::Yes)
    }

    fn failed(&mut self, why: &str) -> Result<Written, Failure> {
        if self.json {
            return self
                .out
                .json(&json!({ "event": "snapshot_failed", "why": why }));
        }
        let why = plain(why);
        remark(&format!("no snapshot was taken, it is tried again: {why}"));
        Ok(Written::Yes)
    }

    /// Prints that the state was replaced, because a part of the history was cut off, or records were trimmed
    /// before they were read.
    async fn restored(&mut self, info: Option<&SnapshotInfo>) -> Result<Written, Failure> {
        if self.json {
            let event = json!({ "event": "restored", "snapshot": info });
            if self.out.json(&event)? == Written::NobodyReads {
                return Ok(Written::NobodyReads);
            }
        } else {
            remark(&match info.map(report::snapshot) {
                Some(snapshot) => format!("{snapshot} restored again; the state follows"),
                None => "started over with an empty state, which follows".to_owned(),
            });
        }
        self.state().await
    }
}
