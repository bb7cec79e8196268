//! What all steps of an attempt to start use.

use std::sync::Arc;

use esker_partition::digest::ReplicaDigests;
use esker_partition::{ClusterInit, Lineage, StoreOptions};
use esker_raft::GroupId;
use esker_raft::engine::PersistedState;
use esker_raft::runtime::NodeError;

use super::acceptance::Accepted;
use super::activity::Activity;
use super::attempts::Attempts;
use crate::cluster::Peers;
use crate::core::Inner;
use crate::data_dir::DataDir;
use crate::error::StartError;
use crate::options::NodeOptions;
use crate::snapshots::Archive;

/// What all steps of an attempt use. Cheap to clone: steps that wait for a disk run on threads of their own
/// with a copy of it.
#[derive(Clone)]
pub(super) struct Context {
    pub options: Arc<NodeOptions>,
    pub data_dir: DataDir,
    pub archive: Archive,
    pub accepted: Accepted,
    /// The lineages with which the logs of the groups begin that the node joins in this start, the catalog's first;
    /// empty if it joins none.
    pub joined: Arc<[Lineage]>,
    /// By partition: up to which LSN snapshots of the repository may be wrong, as the cluster has told that the node
    /// joins.
    pub snapshots_after: Arc<[u64]>,
    /// Whether the other nodes of the cluster are given up.
    pub survives: bool,
    /// The partitions of which the replicas here differ from the others' that are given up.
    pub diverged: Arc<[u64]>,
    pub attempts: Arc<Attempts>,
    pub raft: esker_raft::Node,
    /// The other nodes; `None` on a node that is not in a cluster.
    pub peers: Option<Arc<Peers>>,
    /// What computes the digests that the log asks for.
    pub digests: ReplicaDigests,
    /// How the database is opened.
    pub store: StoreOptions,
    /// What a search does now.
    pub activity: Arc<Activity>,
}

impl Context {
    /// The context of a running node, for which no loss is accepted.
    pub fn of(inner: &Inner, activity: Arc<Activity>) -> Context {
        Context {
            activity,
            options: Arc::new(inner.options.clone()),
            data_dir: inner.data_dir.clone(),
            archive: inner.snapshots.archive.clone(),
            accepted: Accepted::default(),
            joined: Arc::default(),
            snapshots_after: Arc::default(),
            survives: false,
            diverged: Arc::default(),
            attempts: Arc::default(),
            raft: inner.raft.clone(),
            peers: inner.peers.clone(),
            digests: ReplicaDigests::default(),
            store: inner.options.store_in(&inner.data_dir),
        }
    }
}

/// Bytes of the log on disk.
pub(super) fn log_bytes(raft: &esker_raft::Node) -> Result<u64, StartError> {
    let bytes = raft.log().used_bytes();
    Ok(bytes.map_err(NodeError::from)?)
}

/// What the log has of a partition.
pub(super) fn log_state(
    raft: &esker_raft::Node,
    partition: u64,
) -> Result<PersistedState, StartError> {
    let state = raft.log().state(GroupId(partition));
    Ok(state.map_err(NodeError::from)?)
}

/// What a partition of this directory is created with.
pub(super) fn cluster_init(data_dir: &DataDir) -> ClusterInit {
    let identity = &data_dir.identity;
    ClusterInit {
        partitions: identity.partitions,
        // A node that joins waits to be added.
        voters: match data_dir.joins {
            true => Vec::new(),
            false => vec![identity.node_id],
        },
        cluster_id: identity.cluster_id.clone(),
    }
}
