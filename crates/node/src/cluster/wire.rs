//! What nodes of a cluster ask of each other, apart from messages of groups: calls, as JSON.

use serde::{Deserialize, Serialize};

/// A node joins, or reports that an address of it has changed.
pub(crate) const JOIN: &str = "join";
/// A change of the cluster that an operator has asked another node for.
pub(crate) const CHANGE: &str = "change";
/// What a node knows of its groups.
pub(crate) const GROUPS: &str = "groups";

/// The newest format of commands and messages that this build reads. Raised with every addition that an earlier
/// build would not understand.
pub(crate) const READS_FORMAT: u32 = 1;

/// The path of a call.
pub(crate) fn path_of(call: &str) -> String {
    format!("/esker.raft.v1.Peers/Call/{call}")
}

/// A node that joins, or whose addresses have changed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Join {
    /// The name of the cluster that it wants to join.
    pub cluster_name: String,
    /// The number of stream partitions that it is configured for.
    #[serde(default)]
    pub partitions: Option<u32>,
    /// Its number.
    pub id: u64,
    /// Its name.
    pub name: String,
    /// Where other nodes reach it.
    pub peer_address: String,
    /// Where clients reach it.
    pub client_address: String,
    /// What fails together with it.
    #[serde(default)]
    pub zone: String,
    /// The newest format that it reads.
    pub reads_format: u32,
    /// The incarnation as which it puts snapshots: 32 hexadecimal digits. A node that has no directory yet has none.
    #[serde(default)]
    pub incarnation: Option<String>,
    /// How many nodes have passed the call on.
    #[serde(default)]
    pub hops: u32,
}

/// The cluster that a node has joined.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Joined {
    /// Its id.
    pub cluster_id: String,
    /// The number of its stream partitions.
    pub partitions: u32,
    /// The present lineage of each partition, the catalog first: its identity, 32 hexadecimal digits.
    pub lineages: Vec<String>,
    /// The addresses of its nodes.
    pub nodes: Vec<Peer>,
}

/// A node's number, and where other nodes reach it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Peer {
    /// Its number.
    pub id: u64,
    /// Where other nodes reach it.
    pub peer_address: String,
}

/// A change of the cluster.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "change", rename_all = "kebab-case")]
pub(crate) enum ChangeCluster {
    /// A node belongs to the cluster no more.
    Remove {
        /// Its number.
        node: u64,
    },
    /// A node's replicas and leaderships move to others.
    Drain {
        /// Its number.
        node: u64,
    },
    /// A drained node takes part again.
    Activate {
        /// Its number.
        node: u64,
    },
    /// Another node is to lead a partition.
    TransferLeader {
        /// The partition.
        partition: u64,
        /// The node.
        to: u64,
    },
}

/// What a node knows of its groups.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct GroupsOf {
    /// One for each partition, the catalog first.
    pub groups: Vec<GroupOf>,
}

/// What a node knows of one of its groups.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct GroupOf {
    /// `leader`, `follower`, `candidate`, `learner`, or `waiting`.
    pub role: String,
    /// The leader, if it is known.
    pub leader: Option<u64>,
    /// The term.
    pub term: u64,
    /// The last entry that is applied.
    pub applied: u64,
    /// The last entry that is committed.
    pub committed: u64,
    /// The last entry of the log.
    pub last: u64,
    /// Why it does not run, if it does not.
    pub halted: Option<String>,
}
