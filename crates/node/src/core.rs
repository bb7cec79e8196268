//! The parts of a running node that all modules share.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::AtomicU64;
use std::time::Instant;

use esker_partition::command::Outcome;
use esker_partition::state::STATE_STREAM;
use esker_partition::store::{PartitionDb, StoreError};
use esker_partition::{
    BasinId, CatalogReader, PartitionId, Reader, STATE_BASIN_ID, Store, Stream, partition_of,
};
use esker_raft::Group;
use parking_lot::Mutex;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use crate::admission::Gate;
use crate::change_turns::ChangeTurns;
use crate::cluster::{Peers, Replicas};
use crate::data_dir::{DataDir, Identity};
use crate::follower_turns::FollowerTurns;
use crate::latency_window::LatencyWindow;
use crate::lookups::Lookups;
use crate::options::NodeOptions;
use crate::read_budget::ReadBudget;
use crate::restarts::Restarts;
use crate::shared_records::SharedScans;
use crate::shared_ticks::SharedTicks;
use crate::snapshots::Snapshots;
use crate::space_account::Space;
use crate::state::Shared;
use crate::upkeep::Upkeep;

/// A stream partition of a running node.
#[derive(Clone)]
pub(crate) struct StreamGroup {
    pub group: Group<Outcome>,
    pub reader: Reader,
    /// What the partition may have in flight: the budget of the node is divided among all partitions, so
    /// stalled partitions take nothing from the others.
    pub gate: Gate,
}

pub(crate) struct Inner {
    pub options: NodeOptions,
    pub identity: Identity,
    pub raft: esker_raft::Node,
    /// The other nodes; `None` on a node that is not in a cluster.
    pub peers: Option<Arc<Peers>>,
    /// What is known of the replicas here beyond what their groups know.
    pub replicas: Replicas,
    pub store: Store,
    pub catalog: Group<Outcome>,
    pub catalog_reader: CatalogReader,
    /// Partition n is at index n − 1.
    pub partitions: Vec<StreamGroup>,
    /// The budget of bytes of appends in flight.
    pub admission: Arc<Semaphore>,
    /// Memory of read sessions.
    pub reads: ReadBudget,
    /// What read sessions at the tail of a stream share.
    pub shared_scans: SharedScans,
    pub turns: FollowerTurns,
    pub draining: AtomicBool,
    /// Cancelled when the node stops; this ends read sessions.
    pub stopping: CancellationToken,
    pub next_session: AtomicU64,
    /// How long callers wait for answers to appends and commits.
    pub latencies: LatencyWindow,
    /// The same, for [`Node::take_latencies`](crate::Node::take_latencies).
    pub sampled_latencies: LatencyWindow,
    /// When callers that wait for answers look for what holds them up.
    pub looks: SharedTicks,
    pub snapshots: Snapshots,
    pub state: Shared,
    pub started: Instant,
    /// Whether appends are refused until a snapshot is archived: see [`OnLogFull`](crate::OnLogFull).
    pub refuses_appends: AtomicBool,
    pub space: Space,
    /// Basins of streams that the catalog did not know when this start began to serve.
    pub unknown_basins: Mutex<Vec<UnknownBasin>>,
    pub upkeep: Upkeep,
    pub lookups: Lookups,
    /// Turns of reads that begin at a time.
    pub starts: Lookups,
    pub changes: ChangeTurns,
    pub restarts: Restarts,
    /// The data directory, with its lock.
    pub data_dir: DataDir,
}

/// A basin that has streams, and that the catalog does not know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct UnknownBasin {
    pub id: u64,
    /// The partitions that have streams of it.
    pub partitions: Vec<u64>,
    /// Number of its streams, up to the number that is counted in each partition.
    pub streams: usize,
    /// The name of one of its streams.
    pub example: String,
}

impl Inner {
    pub fn partition(&self, basin: BasinId, stream: &str) -> &StreamGroup {
        let id = partition_of(basin, stream, self.options.partitions);
        &self.partitions[(id.0 - 1) as usize]
    }

    /// The group of a partition, the catalog's for 0.
    ///
    /// # Panics
    ///
    /// If there is no such partition.
    pub fn group(&self, partition: u64) -> &Group<Outcome> {
        match partition.checked_sub(1) {
            None => &self.catalog,
            Some(at) => &self.partitions[at as usize].group,
        }
    }

    /// The database of a partition, the catalog's for 0.
    ///
    /// # Panics
    ///
    /// If there is no such partition.
    pub fn partition_db(&self, partition: u64) -> &PartitionDb {
        match partition.checked_sub(1) {
            None => self.catalog_reader.partition_db(),
            Some(at) => self.partitions[at as usize].reader.partition_db(),
        }
    }

    /// Whether this node does what only one node of a partition does: expiry, uploads, JSON snapshots. On a node
    /// that is not in a cluster that is always so.
    pub fn leads(&self, partition: u64) -> bool {
        self.peers.is_none() || self.group(partition).is_serving()
    }

    /// Why a partition takes no writes now.
    pub fn stall_cause(&self, partition: u64) -> String {
        let cause = self.group(partition).stall_cause();
        cause.unwrap_or_else(|| "the disk takes no writes".to_owned())
    }

    /// Why the next start must not use a partition's database, if it must not.
    pub fn damage(&self, partition: u64) -> Option<String> {
        self.store.damage(PartitionId(partition))
    }

    /// The first partition whose files are damaged.
    pub fn damaged_partition(&self) -> Option<u64> {
        if !self.store.is_damaged() {
            return None;
        }
        let mut partitions = 0..=u64::from(self.options.partitions);
        partitions.find(|partition| self.damage(*partition).is_some())
    }

    /// The group of the state store's partition.
    pub fn state_group(&self) -> &Group<Outcome> {
        self.group(self.state.partition.0)
    }

    /// The stream of the state store's commits, if there was one.
    pub fn state_stream(&self) -> Result<Option<Arc<Stream>>, StoreError> {
        let partition = &self.partitions[(self.state.partition.0 - 1) as usize];
        partition.reader.stream(STATE_BASIN_ID, STATE_STREAM)
    }

    pub fn parts(&self) -> impl Iterator<Item = &PartitionDb> {
        let streams = self.partitions.iter().map(|p| p.reader.partition_db());
        std::iter::once(self.catalog_reader.partition_db()).chain(streams)
    }

    pub fn groups(&self) -> impl Iterator<Item = &Group<Outcome>> {
        std::iter::once(&self.catalog).chain(self.partitions.iter().map(|p| &p.group))
    }
}
