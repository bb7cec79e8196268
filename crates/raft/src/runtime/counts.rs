//! Counters of a group and of a node's messages, and their metrics. The engine counts what it does; here is
//! what only the runtime sees.

use std::sync::atomic::{AtomicU64, Ordering};

use metrics::{counter, gauge};
use parking_lot::Mutex;

use crate::drops::DropReason;
use crate::engine::{Counters, Engine, Role};
use crate::ids::GroupId;
use crate::message::{DecodeError, ENVELOPE_FORMAT, Refusals};
use crate::transport::Foreign;

/// What the runtime counts itself, since the group was opened.
#[derive(Debug, Default)]
pub(super) struct Counts {
    pub taken: AtomicU64,
    pub failed: AtomicU64,
    pub resumed: AtomicU64,
    pub bytes_fetched: AtomicU64,
    pub corrupt: AtomicU64,
    /// Ticks since the metrics were published.
    pub unpublished: AtomicU64,
    /// Messages that were refused, as far as they are in the metrics of the node.
    pub published_refusals: Mutex<Refusals>,
}

/// Counters of a group since it was opened.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GroupCounters {
    /// The engine's counters.
    pub engine: Counters,
    /// Snapshots of its own state.
    pub snapshots_taken: u64,
    /// Attempts that failed.
    pub snapshots_failed: u64,
    /// Fetches that began with some bytes already on disk.
    pub fetches_resumed: u64,
    /// Bytes of snapshots that arrived over the network with the right checksum.
    pub bytes_fetched: u64,
    /// Chunks and files that did not match their checksum.
    pub corrupt: u64,
    /// Times that the group was opened again after a halt.
    pub reopened: u64,
}

impl Counts {
    /// Adds the messages that the group has refused since the last call to those that the node has dropped. An
    /// engine that was opened again counts from 0.
    pub fn publish_refusals(&self, refused: &Refusals) {
        let mut published = self.published_refusals.lock();
        for (refusal, count) in refused {
            let before = published.insert(*refusal, *count).unwrap_or(0);
            let new = count.checked_sub(before).unwrap_or(*count);
            if new > 0 {
                DropReason::from(*refusal).count(new);
            }
        }
    }

    pub fn all(&self, engine: &Engine, reopened: u64) -> GroupCounters {
        let of = |count: &AtomicU64| count.load(Ordering::Relaxed);
        GroupCounters {
            engine: engine.counters(),
            snapshots_taken: of(&self.taken),
            snapshots_failed: of(&self.failed),
            fetches_resumed: of(&self.resumed),
            bytes_fetched: of(&self.bytes_fetched),
            corrupt: of(&self.corrupt),
            reopened,
        }
    }
}

/// Messages that a node has read nothing of, since its start.
#[derive(Debug, Default)]
pub(super) struct Unread {
    malformed: AtomicU64,
    newer_format: AtomicU64,
    foreign: AtomicU64,
}

/// Messages that a node has read nothing of, since its start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct UnreadCounts {
    /// Damaged messages, or of a kind that never travels.
    pub malformed: u64,
    /// Messages of a newer format of envelopes.
    pub newer_format: u64,
    /// Messages of or for another node than that of their connection.
    pub foreign: u64,
}

impl Unread {
    /// One more.
    pub fn note(&self, error: &DecodeError) {
        let DecodeError::NewerFormat(format) = error else {
            self.malformed.fetch_add(1, Ordering::Relaxed);
            counter!("esker_raft_messages_malformed_total").increment(1);
            DropReason::Malformed.count(1);
            return tracing::debug!(%error, "a message cannot be decoded");
        };
        let before = self.newer_format.fetch_add(1, Ordering::Relaxed);
        counter!("esker_raft_messages_newer_format_total").increment(1);
        DropReason::NewerFormat.count(1);
        // There may be many: the 1st, 2nd, 4th, 8th, … is logged.
        if (before + 1).is_power_of_two() {
            tracing::warn!(
                format,
                known = ENVELOPE_FORMAT,
                times = before + 1,
                "refusing messages of a newer format: upgrade this node: until then they are dropped"
            );
        }
    }

    /// One more that must not come over its connection.
    pub fn note_foreign(&self, foreign: &Foreign) {
        let before = self.foreign.fetch_add(1, Ordering::Relaxed);
        match foreign {
            Foreign::Recipient { .. } => DropReason::Recipient.count(1),
            Foreign::Sender { .. } | Foreign::Cluster(_) | Foreign::Incarnation { .. } => {
                DropReason::Sender.count(1);
            }
        }
        if (before + 1).is_power_of_two() {
            tracing::warn!(
                why = %foreign,
                times = before + 1,
                "a connection of another node is ended: what comes over it is not of its sender, or not for this node"
            );
        }
    }

    pub fn counts(&self) -> UnreadCounts {
        UnreadCounts {
            malformed: self.malformed.load(Ordering::Relaxed),
            newer_format: self.newer_format.load(Ordering::Relaxed),
            foreign: self.foreign.load(Ordering::Relaxed),
        }
    }
}

/// Values of a group's gauges.
pub(super) struct Gauges {
    pub role: Role,
    pub term: u64,
    pub apply_lag: u64,
    pub floor: u64,
    pub above_floor: u64,
}

/// Publishes metrics. Called about once a second for each group.
pub(super) fn publish(group: GroupId, counts: &GroupCounters, gauges: &Gauges) {
    let group = group.to_string();
    let engine = &counts.engine;
    let refused = engine.refused.values().sum();
    for (name, value) in [
        ("esker_raft_elections_total", engine.elections),
        ("esker_raft_elections_won_total", engine.elections_won),
        ("esker_raft_proposals_total", engine.proposals),
        ("esker_raft_commits_total", engine.commits),
        ("esker_raft_snapshots_taken_total", counts.snapshots_taken),
        ("esker_raft_snapshots_failed_total", counts.snapshots_failed),
        (
            "esker_raft_snapshots_offered_total",
            engine.snapshots_offered,
        ),
        ("esker_raft_snapshots_sent_total", engine.snapshots_sent),
        (
            "esker_raft_snapshots_received_total",
            engine.snapshots_received,
        ),
        ("esker_raft_snapshots_resumed_total", counts.fetches_resumed),
        (
            "esker_raft_snapshot_fetches_failed_total",
            engine.fetches_failed,
        ),
        (
            "esker_raft_snapshot_bytes_received_total",
            counts.bytes_fetched,
        ),
        ("esker_raft_snapshot_corrupt_total", counts.corrupt),
        ("esker_raft_messages_refused_total", refused),
        ("esker_raft_reopened_total", counts.reopened),
    ] {
        counter!(name, "group" => group.clone()).absolute(value);
    }
    for (name, value) in [
        ("esker_raft_leader", u64::from(gauges.role == Role::Leader)),
        ("esker_raft_term", gauges.term),
        ("esker_raft_apply_lag_entries", gauges.apply_lag),
        ("esker_raft_floor", gauges.floor),
        ("esker_raft_entries_above_floor", gauges.above_floor),
    ] {
        gauge!(name, "group" => group.clone()).set(value as f64);
    }
}
