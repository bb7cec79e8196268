//! When a snapshot is due, and how it is taken while more records are applied.
//!
//! ```text
//! due ─▶ clone of the state at the cursor ─▶ a task of its own: encode, append or put ─▶ taken
//!                ▲                                                        │ others appended first
//!                └──────────── as soon as their records are applied ◀─────┘ (a few times, then anchored)
//! ```
//!
//! One is taken at a time; what becomes due meanwhile waits for it.

use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::Instant;

use super::{Parts, Snapshots};
use crate::endpoint::Identity;
use crate::error::Error;
use crate::fold::Fold;
use crate::in_stream::others::Guard;
use crate::in_stream::write::{self, NotTaken};
use crate::options::Triggers;
use crate::snapshot::meta::{FORMAT, now_ms};
use crate::snapshot::record::trim_record;
use crate::snapshot::{Meta, SnapshotInfo};
use crate::trim;

/// First pause after a failure; it doubles.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
/// Longest pause after a failure.
const MAX_PAUSE: Duration = Duration::from_secs(60);
/// Interval of snapshots on the way to the tail, where each is soon replaced.
const ON_THE_WAY: Duration = Duration::from_secs(30);
/// How long after it last reached the tail a follower counts as being there, because others keep
/// appending.
const NEAR: Duration = Duration::from_secs(1);

/// What was applied since a snapshot.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Since {
    pub records: u64,
    pub bytes: u64,
}

/// What a task that takes one ends with.
pub(super) enum Outcome {
    Taken(SnapshotInfo),
    Lost { tail: u64 },
    Failed(Error),
}

/// What is known of snapshots.
pub(super) struct SnapshotTask {
    tasks: JoinSet<Outcome>,
    newest: Option<SnapshotInfo>,
    /// What came since the newest one.
    since: Since,
    /// What came since the state was cloned for the one that is being taken.
    since_clone: Since,
    /// When the newest one was taken, or the follower began.
    at: Instant,
    /// Attempts of this one that lost a race.
    lost: u32,
    /// A race was lost: the next attempt begins at or behind this position.
    behind: Option<u64>,
    failures: u32,
    not_before: Option<Instant>,
    near_tail: Option<Instant>,
    opened: Instant,
}

impl SnapshotTask {
    pub fn new(newest: Option<SnapshotInfo>, since: Since) -> SnapshotTask {
        let now = Instant::now();
        SnapshotTask {
            tasks: JoinSet::new(),
            newest,
            since,
            since_clone: Since::default(),
            at: now,
            lost: 0,
            behind: None,
            failures: 0,
            not_before: None,
            near_tail: None,
            opened: now,
        }
    }

    /// The newest snapshot that was restored or taken.
    pub fn newest(&self) -> Option<&SnapshotInfo> {
        self.newest.as_ref()
    }

    pub fn since(&self) -> Since {
        self.since
    }

    pub fn is_under_way(&self) -> bool {
        !self.tasks.is_empty()
    }

    /// A record was applied.
    pub fn note(&mut self, bytes: u64) {
        for since in [&mut self.since, &mut self.since_clone] {
            since.records += 1;
            since.bytes += bytes;
        }
    }

    /// The tail was reached.
    pub fn note_tail(&mut self) {
        self.near_tail = Some(Instant::now());
    }

    /// Begins again after the state was restored.
    pub fn restart(&mut self, newest: Option<SnapshotInfo>) {
        self.tasks.abort_all();
        *self = SnapshotTask::new(newest, Since::default());
    }

    /// Whether one is to be taken now. `predicted` is the time to replay what came since.
    pub fn is_due(
        &self,
        triggers: &Triggers,
        identity: &Identity,
        snapshots: &Snapshots,
        asked: bool,
        next: u64,
        predicted: Option<Duration>,
    ) -> bool {
        let now = Instant::now();
        let waits_for_records = self.behind.is_some_and(|behind| next < behind);
        if self.is_under_way() || waits_for_records {
            return false;
        }
        if self.behind.is_some() {
            return true;
        }
        if asked {
            return true;
        }
        if !triggers.any() || self.not_before.is_some_and(|at| now < at) {
            return false;
        }
        let near = self.near_tail.is_some_and(|at| now - at <= NEAR);
        if !near && now - self.at.max(self.opened) < ON_THE_WAY {
            return false;
        }
        let reached = |limit: Option<u64>, value: u64| limit.is_some_and(|limit| value >= limit);
        let Since { records, bytes } = self.since;
        let by_time = triggers
            .interval
            .is_some_and(|every| now - self.at >= every);
        let by_budget = match (triggers.budget, predicted) {
            (Some(budget), Some(predicted)) => predicted > budget,
            _ => false,
        };
        let is_due = reached(triggers.records, records)
            || reached(triggers.bytes, bytes)
            || (records > 0 && (by_time || by_budget));
        is_due || self.would_expire(identity, snapshots)
    }

    /// Whether the stream's retention would soon remove what a recovery needs: the snapshot itself, if it
    /// is in the stream, or what follows it.
    fn would_expire(&self, identity: &Identity, snapshots: &Snapshots) -> bool {
        let Some(retention) = identity.retention else {
            return false;
        };
        let needs_it = match snapshots {
            Snapshots::InStream => self.newest.is_some() || self.since.records > 0,
            _ => self.since.records > 0,
        };
        let taken_at = self.newest.as_ref().and_then(|newest| newest.taken_at);
        let age = match taken_at {
            Some(at) => age(at, now_ms()),
            None => self.at.elapsed(),
        };
        needs_it && age >= retention / 2
    }

    /// Begins to take one.
    pub fn begin<F: Fold>(
        &mut self,
        parts: &Arc<Parts<F>>,
        guard: &Guard,
        identity: &Identity,
        fold: F,
        cursor: u64,
    ) {
        self.since_clone = Since::default();
        self.behind = None;
        let anchored = self.lost >= parts.writing.attempts;
        let meta = describe(parts, &fold, identity, cursor);
        let (parts, guard) = (parts.clone(), guard.clone());
        self.tasks.spawn(async move {
            match &parts.snapshots {
                Snapshots::None => {
                    Outcome::Failed(Error::Invalid("nothing says where snapshots go".to_owned()))
                }
                Snapshots::InStream => in_stream(&parts, &guard, fold, &meta, anchored).await,
                Snapshots::External(_) => external(&parts, &guard, fold, &meta).await,
            }
        });
    }

    /// Waits for the one that is being taken; never returns if there is none.
    pub async fn outcome(&mut self) -> Outcome {
        match self.tasks.join_next().await {
            Some(Ok(outcome)) => outcome,
            Some(Err(error)) => Outcome::Failed(Error::NotTaken(error.to_string())),
            None => std::future::pending().await,
        }
    }

    /// Notes the outcome.
    pub fn note_outcome(&mut self, outcome: &Outcome) {
        match outcome {
            Outcome::Taken(info) => {
                self.newest = Some(info.clone());
                self.since = self.since_clone;
                self.at = Instant::now();
                self.lost = 0;
                self.failures = 0;
                self.not_before = None;
            }
            Outcome::Lost { tail } => {
                self.lost += 1;
                self.behind = Some(*tail);
            }
            Outcome::Failed(_) => {
                self.lost = 0;
                let pause = FIRST_PAUSE * 2_u32.saturating_pow(self.failures.min(10));
                self.failures += 1;
                self.not_before = Some(Instant::now() + pause.min(MAX_PAUSE));
            }
        }
    }
}

/// The description of a snapshot at a cursor.
pub(super) fn describe<F: Fold>(
    parts: &Parts<F>,
    fold: &F,
    identity: &Identity,
    cursor: u64,
) -> Meta {
    Meta {
        format: FORMAT,
        fold: fold.name().to_owned(),
        fold_version: fold.version(),
        cursor,
        created_at: identity.created_at.clone(),
        lineage: identity.lineage.clone(),
        taken_at: now_ms(),
        encoding: parts.writing.encoding,
    }
}

async fn in_stream<F: Fold>(
    parts: &Parts<F>,
    guard: &Guard,
    fold: F,
    meta: &Meta,
    anchored: bool,
) -> Outcome {
    match write::take(&*parts.endpoint, guard, fold, meta, anchored).await {
        Ok(info) => Outcome::Taken(info),
        Err(NotTaken::Lost { tail }) => Outcome::Lost { tail },
        Err(NotTaken::OtherFold(other)) => Outcome::Failed(Error::OtherFold {
            stream: parts.endpoint.shown(),
            other: other.to_string(),
            ours: meta.fold.clone(),
        }),
        Err(NotTaken::Failed(why)) => Outcome::Failed(Error::NotTaken(why)),
    }
}

async fn external<F: Fold>(parts: &Parts<F>, guard: &Guard, fold: F, meta: &Meta) -> Outcome {
    let Snapshots::External(external) = &parts.snapshots else {
        return Outcome::Failed(Error::Invalid("there is no place for it".to_owned()));
    };
    let info = match external.put(fold, meta).await {
        Ok(info) => info,
        Err(error) => return Outcome::Failed(error),
    };
    // The snapshot is there. If what follows fails, it is done again after the next one. Of another
    // history, neither snapshots nor records are removed: it is asked for after the list, for which a store
    // may take so long that a history is cut off meanwhile.
    let listed = match external.list_to_retain().await {
        Ok(listed) => listed,
        Err(error) => {
            tracing::warn!(%error, "older snapshots are not deleted now");
            return Outcome::Taken(info);
        }
    };
    let identity = match trim::check(&*parts.endpoint, meta).await {
        Ok(identity) => identity,
        Err(error) => {
            tracing::warn!(stream = parts.endpoint.shown(), %error, "older snapshots are not deleted now");
            return Outcome::Taken(info);
        }
    };
    match external.retain(listed, meta, &info.place, &identity).await {
        Ok(Some(to)) => {
            // A server refuses a position within a gap, where an earlier lineage may have begun.
            let to = identity.behind_gap(to);
            let to = harmless(parts, guard, meta, to).await;
            let trim = vec![trim_record(to)];
            let trimmed = trim::append(&*parts.endpoint, guard, meta, to, trim).await;
            if let Err(error) = trimmed {
                tracing::warn!(stream = parts.endpoint.shown(), to, %error, "the stream is not trimmed now");
            }
        }
        Ok(None) => {}
        Err(error) => tracing::warn!(%error, "older snapshots are not deleted now"),
    }
    Outcome::Taken(info)
}

/// A position up to which a trim destroys no snapshot of another fold in the stream.
async fn harmless<F: Fold>(parts: &Parts<F>, guard: &Guard, meta: &Meta, to: u64) -> u64 {
    match guard.first(&*parts.endpoint, meta, meta.cursor).await {
        Ok(Some(other)) if other.trimmable < to => {
            tracing::warn!(
                stream = parts.endpoint.shown(),
                to = other.trimmable,
                instead_of = to,
                %other,
                "the stream is trimmed less far, because another fold needs the rest"
            );
            other.trimmable
        }
        _ => to,
    }
}

/// How far a time may be ahead of this machine's clock, milliseconds, if both clocks are right.
const CLOCK_TOLERANCE: u64 = 60_000;

/// The age of a snapshot. One from the future, by a clock that was ahead, has the largest age: its time
/// does not show how long the next one can wait.
fn age(taken_at: u64, now: u64) -> Duration {
    match taken_at > now.saturating_add(CLOCK_TOLERANCE) {
        true => Duration::MAX,
        false => Duration::from_millis(now.saturating_sub(taken_at)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_snapshot_from_the_future_is_not_waited_for() {
        let now = 1_000_000;
        assert_eq!(age(now - 5, now), Duration::from_millis(5));
        assert_eq!(age(now + CLOCK_TOLERANCE, now), Duration::ZERO);
        assert_eq!(age(now + CLOCK_TOLERANCE + 1, now), Duration::MAX);
    }
}
