//! What leaders keep of their logs for nodes that are away, as other nodes and operators see it.

use esker_raft::engine::KeptLog;
use serde::{Deserialize, Serialize};

/// What of its log the leader of a partition keeps for members that are away, beside what snapshots need.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeptFor {
    /// How many entries.
    pub entries: u64,
    /// Their bytes, without those of entries that were applied before the leader's start.
    pub bytes: u64,
    /// The numbers of the nodes.
    pub nodes: Vec<u64>,
}

impl From<KeptLog> for KeptFor {
    fn from(kept: KeptLog) -> KeptFor {
        KeptFor {
            entries: kept.entries,
            bytes: kept.bytes,
            nodes: kept.members.into_iter().map(|node| node.0).collect(),
        }
    }
}
