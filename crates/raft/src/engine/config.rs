//! The configuration of an engine, and why an engine cannot be opened.

use std::ops::RangeInclusive;

use crate::ids::{ClusterId, GroupId, Incarnation, Lineage, Lsn, NodeId};
use crate::message::Identity;

/// The configuration of an engine.
#[derive(Clone, Debug)]
pub struct Config {
    /// This member.
    pub id: NodeId,
    /// The cluster; messages of others are refused.
    pub cluster: ClusterId,
    /// The group; messages of others are refused.
    pub group: GroupId,
    /// The group's history; messages of others are refused.
    pub lineage: Lineage,
    /// This start of the process; peers refuse messages of older ones.
    pub incarnation: Incarnation,
    /// The group is being founded, so an empty log is expected. If false, a voter in a group with others
    /// whose log is empty has lost it, and is not opened.
    pub creates_cluster: bool,
    /// Most bytes of log that are kept although a snapshot covers them, because a peer lacks them or is
    /// fetching a snapshot before them. Beyond it they are removed, and the peer is offered a (newer)
    /// snapshot.
    pub max_bytes_kept_for_peers: u64,
    /// The same for members that are away. By default nothing: how much the logs of all groups may grow is
    /// known to the host alone.
    pub kept_for_absent: KeptForAbsent,
    /// Ticks until a peer that did not answer an offer, or whose fetch failed, gets another offer. Doubles
    /// after each failure in a row, up to 32 times this. At least 1.
    pub offer_retry_ticks: u64,
    /// Ticks without a report of a peer's fetch after which the log is not kept for it any more.
    pub transfer_idle_ticks: u64,
    /// Ticks without a message from a leader before an election; at least `2 * heartbeat_ticks`.
    pub election_ticks: usize,
    /// Ticks between heartbeats.
    pub heartbeat_ticks: usize,
    /// Most accepted proposals that are not applied yet. Beyond it proposals are rejected as
    /// [`RejectReason::Busy`](super::RejectReason::Busy).
    pub max_pending_proposals: u64,
    /// Bytes of committed entries that are handed out and not applied yet. Beyond it no more are read from
    /// the log, which bounds the memory of a long replay. One entry may exceed it.
    pub max_apply_backlog_bytes: u64,
    /// Most bytes of durable entries that stay in memory because they are not applied yet; at least 1.
    /// Beyond it the oldest leave memory and are read from the log when they are applied, so that a member
    /// with a stuck state machine does not hold everything that the group goes on writing. Entries that are
    /// not durable yet are not included; they are bounded by what producers may have in flight.
    pub max_log_bytes_in_memory: u64,
    /// Applied entries above the floor from which on a snapshot is hinted at; 0 for never.
    pub snapshot_hint_threshold_entries: u64,
    /// The same in bytes, roughly; 0 for never.
    pub snapshot_hint_threshold_bytes: u64,
    /// The guardrail: with more entries than this above the floor, applied or not, the engine hints at a
    /// snapshot, or emits [`Action::LogAlarm`](super::Action::LogAlarm) if a snapshot cannot help; 0 for
    /// none. If both are set, it must be larger than `snapshot_hint_threshold_entries`.
    pub max_log_entries: u64,
    /// Ticks without a hint after a failed attempt: the first and the largest value; they double after each
    /// failure in a row. At least 1.
    pub snapshot_backoff_ticks: RangeInclusive<u64>,
    /// Seed of the election timeouts.
    pub seed: u64,
}

/// How much of its log a leader keeps for members that are away, so that they come back by entries and need
/// no snapshot. It counts what is kept in addition: the entries that would be removed otherwise.
///
/// Whoever is away for longer than [`ticks`](KeptForAbsent::ticks) gets an eighth of the bytes and entries.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct KeptForAbsent {
    /// Most bytes of a group. The bytes of entries that were applied before the open are not known: they count as
    /// none for a member that has reported to this leader, and are not kept for any other.
    pub bytes: u64,
    /// Most entries of a group; 0 for none.
    pub entries: u64,
    /// Ticks without a message of the member, from the leader's first election since then.
    pub ticks: u64,
}

impl KeptForAbsent {
    /// What is left after [`KeptForAbsent::ticks`]: one part of so many.
    pub const LONG_ABSENCE_SHARE: u64 = 8;
}

impl Config {
    /// The defaults for a member: elections after 10 ticks, heartbeats every 2, a snapshot every
    /// 10,000 entries or 64 MiB, no guardrail.
    pub fn new(id: NodeId) -> Self {
        Config {
            id,
            cluster: ClusterId::default(),
            group: GroupId::default(),
            lineage: Lineage::default(),
            incarnation: Incarnation::default(),
            creates_cluster: false,
            max_bytes_kept_for_peers: 1024 * 1024 * 1024,
            kept_for_absent: KeptForAbsent::default(),
            offer_retry_ticks: 20,
            transfer_idle_ticks: 600,
            election_ticks: 10,
            heartbeat_ticks: 2,
            max_pending_proposals: 16 * 1024,
            max_apply_backlog_bytes: 8 * 1024 * 1024,
            // Four times the backlog: entries that a busy leader is still sending are applied without
            // reading the disk, and a hundred stuck groups need some gigabytes.
            max_log_bytes_in_memory: 32 * 1024 * 1024,
            snapshot_hint_threshold_entries: 10_000,
            snapshot_hint_threshold_bytes: 64 * 1024 * 1024,
            max_log_entries: 0,
            snapshot_backoff_ticks: 10..=600,
            seed: id.0,
        }
    }

    /// The identity of this member in messages.
    pub fn identity(&self) -> Identity {
        Identity {
            cluster: self.cluster,
            group: self.group,
            lineage: self.lineage,
            node: self.id,
            incarnation: self.incarnation,
        }
    }

    pub(super) fn validate(&self) -> Result<(), OpenError> {
        if self.id.0 == 0 || self.offer_retry_ticks == 0 || self.max_log_bytes_in_memory == 0 {
            return Err(OpenError::Config(
                "the node's number, offer_retry_ticks and max_log_bytes_in_memory must be at least 1"
                    .to_owned(),
            ));
        }
        let (entries, guardrail) = (self.snapshot_hint_threshold_entries, self.max_log_entries);
        if guardrail > 0 && guardrail <= entries {
            return Err(OpenError::Config(format!(
                "max_log_entries ({guardrail}) must be larger than \
                 snapshot_hint_threshold_entries ({entries})"
            )));
        }
        let (first, most) = (
            *self.snapshot_backoff_ticks.start(),
            *self.snapshot_backoff_ticks.end(),
        );
        if first == 0 || first > most {
            return Err(OpenError::Config(format!(
                "snapshot_backoff_ticks ({first} to {most}) must begin at 1 or more, and not end \
                 before it begins"
            )));
        }
        Ok(())
    }
}

/// Why an engine could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// A value of the configuration is out of range.
    #[error("invalid consensus configuration: {0}")]
    Config(String),
    /// The log does not reach the state that was applied from it.
    #[error(
        "the log ends at LSN {last} but the database has applied LSN {applied}: \
         the log was cut or replaced; restore this node from a snapshot"
    )]
    LogBehindDatabase {
        /// Last entry of the log.
        last: Lsn,
        /// Last entry that the database has.
        applied: Lsn,
    },
    /// The log starts after the state that it should continue.
    #[error(
        "the log starts at LSN {first} but the database ends at LSN {applied}: \
         the entries between are gone; restore this node from a snapshot"
    )]
    LogAheadOfDatabase {
        /// First entry of the log.
        first: Lsn,
        /// Last entry that the database has.
        applied: Lsn,
    },
    /// A voter has neither a log nor a vote, and does not found the group: it has lost them. It does not
    /// know its promises to other members any more, so it must not vote again under this number.
    #[error(
        "node {id} is a voter among {voters}, and its log is empty: it was lost; remove this member \
         from the group, and let it join under a new number"
    )]
    LogLost {
        /// This member.
        id: NodeId,
        /// How many voters there are.
        voters: usize,
    },
    /// The log could not be read now. The message names the LSN.
    #[error("{0}")]
    Unreadable(String),
    /// Entries of the log are missing or damaged. The message names the LSN.
    #[error("{0}")]
    Damaged(String),
}
