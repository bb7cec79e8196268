//! The options of a node.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::Duration;

use esker_partition::streams::{StreamOptions, name_bytes_of};
use esker_partition::{RecentBudget, StoreOptions};

use crate::cluster::ClusterOptions;
use crate::data_dir::DataDir;
use crate::problem::HostProblems;
use crate::snapshots::{Bootstrap, SnapshotOptions};
use crate::state::{StateOptions, ValueCheck};

/// The options of a node, fixed from its start on.
#[derive(Clone, Debug)]
pub struct NodeOptions {
    /// The data directory.
    pub data_dir: PathBuf,
    /// The cluster's name, for display; fixed when the directory is created.
    pub cluster_name: String,
    /// Number of stream partitions; fixed when the directory is created.
    pub partitions: u32,
    /// Size in bytes at which a log file is closed.
    pub log_segment_size: u64,
    /// Size of the log in bytes beyond which log files that are no longer needed are deleted.
    pub log_purge_threshold: u64,
    /// Most bytes that one sync makes durable.
    pub log_max_group_size: u64,
    /// A partition's database is flushed once its memtables have this many bytes.
    pub flush_after: u64,
    /// The options of the database.
    pub store: StoreOptions,
    /// Most bytes of appends in flight, over all callers.
    pub append_inflight: usize,
    /// Bytes of newest batches kept for each followed stream.
    pub follower_buffer: usize,
    /// The same over all followed streams.
    pub follower_buffers_total: usize,
    /// Most bytes that read sessions hold together.
    pub read_sessions: usize,
    /// Interval at which age retention, delete-on-empty and deleted basins are processed.
    pub retention_interval: Duration,
    /// Number of streams examined per partition and round.
    pub streams_per_round: usize,
    /// A partition's files are rewritten once this many of their bytes are reclaimable, and at least half of
    /// all.
    pub compact_garbage: u64,
    /// The options of snapshots and recovery.
    pub snapshots: SnapshotOptions,
    /// The options of the state store.
    pub state: StateOptions,
    /// Checks that clients can read a value of the state store.
    pub check_value: ValueCheck,
    /// Problems of the program around the node, which its status lists too.
    pub host_problems: HostProblems,
    /// The cluster that the node belongs to, if it has other nodes.
    pub cluster: Option<ClusterOptions>,
    /// What an empty data directory means, if the operator has set it.
    pub bootstrap: Option<Bootstrap>,
    /// Partitions that begin empty if a restore finds no copy of them. Without effect unless `bootstrap` is
    /// [`Bootstrap::Restore`].
    pub empty_partitions: BTreeSet<u64>,
    /// Whether this start follows a node that served from the data directory and restarts itself
    /// ([`Node::restart_wanted`](crate::Node::restart_wanted)). A directory that no node has served from is
    /// then refused, whatever `bootstrap` is.
    pub restarted: bool,
}

impl NodeOptions {
    /// Bytes of appends that one partition may have in flight: `append_inflight / partitions`. So whichever
    /// partitions stall, each other one has all of its own. An append that is larger than a share takes all of
    /// it, and its true size of what all partitions have together, so that memory stays bounded; with shares of
    /// less than 1 MiB, the largest append, stalled partitions can then hold part of what is others'.
    pub(crate) fn append_share(&self) -> usize {
        self.append_inflight / (self.partitions.max(1) as usize)
    }

    /// The default options for a data directory.
    pub fn new(data_dir: impl Into<PathBuf>) -> NodeOptions {
        const MIB: u64 = 1024 * 1024;
        NodeOptions {
            data_dir: data_dir.into(),
            cluster_name: "esker".to_owned(),
            partitions: 8,
            log_segment_size: 32 * MIB,
            log_purge_threshold: 256 * MIB,
            log_max_group_size: 4 * MIB,
            flush_after: 28 * MIB,
            store: StoreOptions::default(),
            append_inflight: 128 * MIB as usize,
            follower_buffer: 32 * MIB as usize,
            follower_buffers_total: 64 * MIB as usize,
            read_sessions: 256 * MIB as usize,
            retention_interval: Duration::from_secs(1),
            streams_per_round: 250,
            compact_garbage: 64 * MIB,
            snapshots: SnapshotOptions::default(),
            state: StateOptions::default(),
            check_value: ValueCheck::default(),
            host_problems: HostProblems::default(),
            cluster: None,
            bootstrap: None,
            empty_partitions: BTreeSet::new(),
            restarted: false,
        }
    }

    pub(crate) fn store_in(&self, data_dir: &DataDir) -> StoreOptions {
        StoreOptions {
            checkpoints: Some(data_dir.checkpoints()),
            ..self.store.clone()
        }
    }

    pub(crate) fn stream_options(&self) -> StreamOptions {
        StreamOptions {
            recent: RecentBudget::new(self.follower_buffer, self.follower_buffers_total),
            compact_garbage: self.compact_garbage,
            name_bytes: name_bytes_of(self.partitions),
            ..StreamOptions::default()
        }
    }
}
