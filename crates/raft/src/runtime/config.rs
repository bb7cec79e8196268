//! The configuration of a node, and what makes it invalid.

use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::engine;
use crate::ids::{ClusterId, NodeId};
use crate::log::LogConfig;
use crate::message::MAX_CHUNK_BYTES;
use crate::transfer::{ReceiverConfig, SenderConfig};

/// The configuration of a node. [`NodeConfig::new`] has the defaults.
#[derive(Clone, Debug)]
pub struct NodeConfig {
    /// This node.
    pub id: NodeId,
    /// The log.
    pub log: LogConfig,
    /// Time between ticks of the engines; all values in ticks depend on it. 100 ms.
    pub tick_interval: Duration,
    /// Time between two purges of the log, which delete files that no group needs once the log is larger
    /// than [`LogConfig::purge_threshold`]. A group of [`Node::open_member`](super::Node::open_member)
    /// whose old entries keep files on disk then takes a snapshot, unless both thresholds for hints are 0.
    /// 10 s; zero for a host that calls [`SharedLog::purge`](crate::log::SharedLog::purge) itself.
    pub purge_interval: Duration,
    /// Most proposals of one group that are accepted and not applied yet. 16,384.
    pub max_pending_proposals: u64,
    /// Applied entries above the floor from which on a snapshot is taken; 0 for never. 10,000.
    pub snapshot_hint_threshold_entries: u64,
    /// The same in bytes, roughly; 0 for never. 64 MiB.
    pub snapshot_hint_threshold_bytes: u64,
    /// The guardrail: with more entries than this above the floor, applied or not, a snapshot is taken; if
    /// nothing above the floor is applied, so that a snapshot would not help, an error is logged instead,
    /// and at twice as many entries proposals are refused. 0, the default, for none.
    pub max_log_entries: u64,
    /// How many groups may write a snapshot at the same time; 0 counts as 1, the default.
    pub parallel_snapshots: usize,
    /// The cluster. Messages of nodes of another cluster are refused.
    pub cluster: ClusterId,
    /// Directory of the number of the node's starts and of the snapshots that it offers and fetches.
    /// Without it, the node can only have groups of one member.
    pub dir: Option<PathBuf>,
    /// Ticks without a message from a leader before an election; between this many and twice as many, at
    /// random. 10.
    pub election_ticks: usize,
    /// Ticks between heartbeats; `election_ticks` is at least twice as many. 2.
    pub heartbeat_ticks: usize,
    /// Bytes of a snapshot in one chunk. 1 MiB, at most 4 MiB.
    pub snapshot_chunk_size_bytes: u32,
    /// Most bytes of a snapshot that are requested and not yet written, which is what a receiver holds in
    /// memory. At least one chunk. 16 MiB.
    pub snapshot_window_bytes: u64,
    /// Most bytes of snapshots that are being read or sent, of all transfers together, which is what a
    /// sender holds in memory. 32 MiB.
    pub max_snapshot_bytes_in_flight: u64,
    /// Most bytes of snapshots that this node sends in a second, over all transfers; 0, the default, for no
    /// limit. It keeps bandwidth free for the log on a slow or shared network. The right value is a share
    /// of the link, which only the host knows; a lower limit makes the recovery of a member longer in
    /// proportion. Without a limit, messages of the log still have connections of their own and never wait
    /// for a chunk. The limit must let every transfer get a chunk in half the time after which a receiver
    /// ends a transfer without chunks, 600 ticks: 2 * `max_snapshot_transfers` *
    /// `snapshot_chunk_size_bytes` in that time, or 140 KB/s with the defaults.
    pub max_snapshot_bytes_per_second: u64,
    /// Transfers that this node serves at once. 4.
    pub max_snapshot_transfers: usize,
    /// Most bytes of log that are kept for peers although a snapshot covers them. 1 GiB.
    pub max_bytes_kept_for_peers: u64,
    /// Most of the log that a group's leader keeps for members that are away. Nothing.
    pub kept_for_absent: engine::KeptForAbsent,
    /// Ticks without a hint after a failed snapshot: the first time, and at most. 10 and 600.
    pub snapshot_backoff_ticks: (u64, u64),
}

/// What is wrong with a configuration.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{name} {why}")]
pub struct ConfigError {
    /// Which value.
    pub name: &'static str,
    /// The rule that it breaks.
    pub why: String,
}

impl NodeConfig {
    /// The defaults, for a node that keeps everything below one directory.
    pub fn new(id: NodeId, data_dir: &Path) -> NodeConfig {
        let (engine, receiver, sender) = (
            engine::Config::new(id),
            ReceiverConfig::default(),
            SenderConfig::default(),
        );
        NodeConfig {
            id,
            log: LogConfig {
                dir: data_dir.join("log"),
                segment_size: 64 * 1024 * 1024,
                purge_threshold: 256 * 1024 * 1024,
                max_group_size: 4 * 1024 * 1024,
                direct_writes: false,
            },
            tick_interval: Duration::from_millis(100),
            purge_interval: Duration::from_secs(10),
            max_pending_proposals: engine.max_pending_proposals,
            snapshot_hint_threshold_entries: engine.snapshot_hint_threshold_entries,
            snapshot_hint_threshold_bytes: engine.snapshot_hint_threshold_bytes,
            max_log_entries: engine.max_log_entries,
            parallel_snapshots: 1,
            cluster: ClusterId::default(),
            dir: Some(data_dir.join("raft")),
            election_ticks: engine.election_ticks,
            heartbeat_ticks: engine.heartbeat_ticks,
            snapshot_chunk_size_bytes: receiver.chunk_bytes,
            snapshot_window_bytes: receiver.window_bytes,
            max_snapshot_bytes_in_flight: sender.max_bytes_in_flight,
            max_snapshot_bytes_per_second: 0,
            max_snapshot_transfers: sender.max_transfers,
            max_bytes_kept_for_peers: engine.max_bytes_kept_for_peers,
            kept_for_absent: engine.kept_for_absent,
            snapshot_backoff_ticks: (10, 600),
        }
    }

    /// Checks the values, one by one and together.
    ///
    /// # Errors
    ///
    /// The first value that breaks a rule.
    pub fn validate(&self) -> Result<(), ConfigError> {
        let check = |good: bool, name, why: &str| match good {
            true => Ok(()),
            false => Err(ConfigError {
                name,
                why: why.to_owned(),
            }),
        };
        check(self.id.0 > 0, "id", "must be at least 1")?;
        check(
            !self.tick_interval.is_zero(),
            "tick_interval",
            "must be longer than nothing",
        )?;
        check(
            self.max_pending_proposals > 0,
            "max_pending_proposals",
            "must be at least 1",
        )?;
        check(
            self.max_log_entries == 0
                || self.max_log_entries > self.snapshot_hint_threshold_entries,
            "max_log_entries",
            "must be 0, or larger than snapshot_hint_threshold_entries",
        )?;
        check(
            self.heartbeat_ticks > 0,
            "heartbeat_ticks",
            "must be at least 1",
        )?;
        check(
            self.election_ticks >= 2 * self.heartbeat_ticks,
            "election_ticks",
            "must be at least twice heartbeat_ticks",
        )?;
        let chunk = self.snapshot_chunk_size_bytes;
        check(
            (1..=MAX_CHUNK_BYTES).contains(&chunk),
            "snapshot_chunk_size_bytes",
            "must be from 1 to 4 MiB",
        )?;
        check(
            self.snapshot_window_bytes >= u64::from(chunk),
            "snapshot_window_bytes",
            "must be at least snapshot_chunk_size_bytes",
        )?;
        check(
            self.max_snapshot_bytes_in_flight >= u64::from(chunk),
            "max_snapshot_bytes_in_flight",
            "must be at least snapshot_chunk_size_bytes",
        )?;
        check(
            self.max_snapshot_transfers > 0,
            "max_snapshot_transfers",
            "must be at least 1",
        )?;
        let (limit, least) = (
            self.max_snapshot_bytes_per_second,
            self.least_snapshot_bytes_per_second(),
        );
        check(
            limit == 0 || limit >= least,
            "max_snapshot_bytes_per_second",
            &format!(
                "must be 0, or at least {least}: with less, a chunk of \
                 snapshot_chunk_size_bytes for each of max_snapshot_transfers does not come in time"
            ),
        )?;
        let (first, most) = self.snapshot_backoff_ticks;
        check(
            first > 0 && first <= most,
            "snapshot_backoff_ticks",
            "must begin at 1 or more, and not end before it begins",
        )
    }

    /// The rate at which every transfer gets a chunk in half the time after which its receiver would end
    /// it.
    fn least_snapshot_bytes_per_second(&self) -> u64 {
        let ticks = self.for_receiver().progress_deadline_ticks;
        let deadline = self.tick_interval.as_nanos() * u128::from(ticks);
        let round =
            self.max_snapshot_transfers as u128 * u128::from(self.snapshot_chunk_size_bytes);
        let least = (2 * round * 1_000_000_000).div_ceil(deadline.max(1));
        u64::try_from(least).unwrap_or(u64::MAX)
    }

    /// Whether snapshots are taken because the log grows.
    pub(super) fn hints(&self) -> bool {
        self.snapshot_hint_threshold_entries > 0 || self.snapshot_hint_threshold_bytes > 0
    }

    pub(super) fn for_engine(&self) -> engine::Config {
        let mut config = engine::Config::new(self.id);
        config.cluster = self.cluster;
        config.max_pending_proposals = self.max_pending_proposals;
        config.snapshot_hint_threshold_entries = self.snapshot_hint_threshold_entries;
        config.snapshot_hint_threshold_bytes = self.snapshot_hint_threshold_bytes;
        config.max_log_entries = self.max_log_entries;
        config.election_ticks = self.election_ticks;
        config.heartbeat_ticks = self.heartbeat_ticks;
        config.max_bytes_kept_for_peers = self.max_bytes_kept_for_peers;
        config.kept_for_absent = self.kept_for_absent;
        config.snapshot_backoff_ticks =
            self.snapshot_backoff_ticks.0..=self.snapshot_backoff_ticks.1;
        config
    }

    pub(super) fn for_sender(&self) -> SenderConfig {
        SenderConfig {
            max_transfers: self.max_snapshot_transfers,
            // Reads are done in the order of their acceptance, not in turns between receivers. With a
            // limit, no more than a second's worth is accepted, so that a new receiver does not wait behind
            // all requests of the others.
            max_bytes_in_flight: match self.max_snapshot_bytes_per_second {
                0 => self.max_snapshot_bytes_in_flight,
                limit => self.max_snapshot_bytes_in_flight.min(limit),
            },
            ..SenderConfig::default()
        }
    }

    pub(super) fn for_receiver(&self) -> ReceiverConfig {
        ReceiverConfig {
            chunk_bytes: self.snapshot_chunk_size_bytes,
            window_bytes: self.snapshot_window_bytes,
            ..ReceiverConfig::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_defaults_are_valid_and_each_mistake_is_named() {
        let config = || NodeConfig::new(NodeId(1), Path::new("data"));
        assert_eq!(config().validate(), Ok(()));
        type Mistake = (&'static str, fn(&mut NodeConfig));
        let mistakes: [Mistake; 10] = [
            ("id", |c| c.id = NodeId(0)),
            ("tick_interval", |c| c.tick_interval = Duration::ZERO),
            ("max_pending_proposals", |c| c.max_pending_proposals = 0),
            ("max_log_entries", |c| c.max_log_entries = 10_000),
            ("election_ticks", |c| c.election_ticks = 3),
            ("snapshot_chunk_size_bytes", |c| {
                c.snapshot_chunk_size_bytes = 5 << 20
            }),
            ("snapshot_window_bytes", |c| c.snapshot_window_bytes = 1000),
            ("max_snapshot_bytes_per_second", |c| {
                c.max_snapshot_bytes_per_second = 139_000
            }),
            ("max_snapshot_transfers", |c| c.max_snapshot_transfers = 0),
            ("snapshot_backoff_ticks", |c| {
                c.snapshot_backoff_ticks = (5, 4)
            }),
        ];
        for (name, mistake) in mistakes {
            let mut wrong = config();
            mistake(&mut wrong);
            assert_eq!(wrong.validate().unwrap_err().name, name);
        }
    }
}
