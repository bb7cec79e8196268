//! Which nodes there are, as this node knows: what the catalog says, and before it can be read, nothing.

use std::collections::BTreeMap;
use std::sync::Arc;

use esker_partition::ClusterNode;
use esker_partition::command::NodeState;
use parking_lot::RwLock;

/// The nodes of the cluster by their numbers.
pub(crate) type Nodes = BTreeMap<u64, ClusterNode>;

/// The nodes that this node knows of. The catalog's state decides; it is copied here by the task that follows it.
#[derive(Default)]
pub(crate) struct Directory {
    nodes: RwLock<Arc<Nodes>>,
}

impl Directory {
    /// All nodes, removed ones included.
    pub fn all(&self) -> Arc<Nodes> {
        self.nodes.read().clone()
    }

    /// Takes the nodes that the catalog has. Returns whether anything has changed.
    pub fn set(&self, nodes: Arc<Nodes>) -> bool {
        let mut known = self.nodes.write();
        if Arc::ptr_eq(&known, &nodes) || *known == nodes {
            return false;
        }
        *known = nodes;
        true
    }

    /// Whether the catalog has removed a node.
    pub fn is_removed(&self, node: u64) -> bool {
        let nodes = self.nodes.read();
        let found = nodes.get(&node);
        found.is_some_and(|node| node.state == NodeState::Removed)
    }
}
