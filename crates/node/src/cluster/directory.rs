//! Which nodes there are, as this node knows: what the catalog says, and before it can be read, nothing.

use std::collections::{BTreeMap, BTreeSet};
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
    /// Members of the groups here. A removed one stays connected until it has left all of them: its vote may be
    /// needed for that.
    members: RwLock<BTreeSet<u64>>,
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

    /// Takes the members of the groups here. Returns whether anything has changed.
    pub fn set_members(&self, members: BTreeSet<u64>) -> bool {
        let mut known = self.members.write();
        let is_new = *known != members;
        *known = members;
        is_new
    }

    /// The node that has joined in the place of a removed one: it has its name.
    pub fn replacement_of(&self, removed: &ClusterNode) -> Option<u64> {
        let nodes = self.nodes.read();
        let in_its_place = |node: &&ClusterNode| {
            node.id != removed.id && node.name == removed.name && node.state != NodeState::Removed
        };
        nodes.values().find(in_its_place).map(|node| node.id)
    }

    /// Whether the catalog has removed a node, and it has left the groups here.
    pub fn is_removed(&self, node: u64) -> bool {
        if self.members.read().contains(&node) {
            return false;
        }
        let nodes = self.nodes.read();
        let found = nodes.get(&node);
        found.is_some_and(|node| node.state == NodeState::Removed)
    }
}
