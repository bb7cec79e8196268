//! Which nodes there are, as this node knows: what the catalog says, and before it can be read, nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use esker_partition::ClusterNode;
use esker_partition::command::NodeState;
use parking_lot::RwLock;

/// The nodes of the cluster by their numbers.
pub(crate) type Nodes = BTreeMap<u64, ClusterNode>;

/// The removed node of this number, or else the one of this name that was removed last; `None` if a node that belongs to
/// the cluster is named so. One that was given up after a loss is none: nobody has removed it.
pub(super) fn removed_as<'a>(nodes: &'a Nodes, said: &str) -> Option<&'a ClusterNode> {
    let is_number = |node: &&ClusterNode| node.id.to_string() == said;
    let named = nodes
        .values()
        .filter(|node| node.name == said || is_number(node));
    let (removed, others): (Vec<_>, Vec<_>) =
        named.partition(|node| node.state == NodeState::Removed);
    if !others.is_empty() {
        return None;
    }
    let removed = removed.into_iter().filter(|node| !node.given_up);
    removed.max_by_key(|node| (is_number(node), node.removed_at_ms, node.registered_at_ms))
}

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

    /// The start of a node that the catalog has taken last.
    pub fn last_start(&self, node: u64) -> Option<u128> {
        let nodes = self.nodes.read();
        nodes.get(&node)?.incarnations.last().copied()
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

#[cfg(test)]
mod tests {
    use super::*;

    fn node(id: u64, name: &str, state: NodeState, removed_at_ms: Option<u64>) -> ClusterNode {
        ClusterNode {
            id,
            name: name.to_owned(),
            peer_address: String::new(),
            client_address: String::new(),
            zone: String::new(),
            state,
            registered_at_ms: 0,
            reads_format: 1,
            incarnations: Vec::new(),
            removed_at_ms,
            given_up: false,
        }
    }

    #[test]
    fn a_removed_node_is_found_by_its_number_and_by_a_name_that_nobody_has_now() {
        let given_up = ClusterNode {
            given_up: true,
            ..node(5, "n5", NodeState::Removed, None)
        };
        let all = [
            node(1, "n1", NodeState::Active, None),
            node(2, "n2", NodeState::Removed, Some(20)),
            node(3, "n2", NodeState::Removed, Some(30)),
            node(4, "n1", NodeState::Removed, Some(40)),
            given_up,
            // Its name is the number of another one.
            node(6, "2", NodeState::Removed, Some(60)),
        ];
        let nodes: Nodes = all.into_iter().map(|node| (node.id, node)).collect();
        let found = |said| removed_as(&nodes, said).map(|node| node.id);
        assert_eq!(found("n2"), Some(3), "the last one");
        assert_eq!(found("2"), Some(2));
        assert_eq!(found("4"), Some(4));
        assert_eq!(found("n1"), None, "a node has this name now");
        assert_eq!(found("1"), None, "it was not removed");
        assert_eq!(found("n5"), None, "nobody has removed it");
        assert_eq!(found("n7"), None);
    }
}
