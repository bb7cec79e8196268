//! Where nodes were found, beside the addresses that the host has set.
//!
//! An address is a claim: a node that was restarted may listen where another one was before. Before a message is
//! sent, the node at an address shows which one it is ([`hello`](super::hello)). If it is another one than expected,
//! nothing is sent to it, and both are noted: whom the address answers as, and where that node is. A node that
//! connects to this one also tells its own address. So nodes find each other whose addresses have all changed at the
//! same time, when the group that would record their new ones has no leader. What is noted here is tried and never
//! trusted: the node at such an address has to show which one it is as well.

use std::collections::BTreeMap;
use std::sync::Arc;

use parking_lot::Mutex;

use crate::ids::NodeId;

/// Most nodes that are noted. No cluster has as many; beyond it the lowest numbers, those of the oldest nodes, go
/// first.
const MAX_NODES: usize = 4096;
/// Longest address that is noted, in bytes: a name of 253 and a port, with some more.
const MAX_ADDRESS: usize = 300;

/// Clones share what is noted.
#[derive(Clone, Default)]
pub(super) struct Whereabouts {
    noted: Arc<Mutex<Noted>>,
}

#[derive(Default)]
struct Noted {
    /// Of a node: an address that was set for it, and the node that answers there.
    strangers: BTreeMap<NodeId, (String, NodeId)>,
    /// Where a node was found.
    found: BTreeMap<NodeId, String>,
    /// Where a node has shown last that it is there.
    seen: BTreeMap<NodeId, String>,
}

impl Whereabouts {
    /// Another node answers at an address of this one.
    pub fn note_stranger(&self, node: NodeId, address: &str, answers: NodeId) {
        let mut noted = self.noted.lock();
        insert(&mut noted.strangers, node, (address.to_owned(), answers));
        if noted.seen.get(&node).is_some_and(|seen| seen == address) {
            noted.seen.remove(&node);
        }
    }

    /// A node may be found at this address.
    pub fn note_found(&self, node: NodeId, address: &str) {
        if !address.is_empty() && address.len() <= MAX_ADDRESS {
            let mut noted = self.noted.lock();
            insert(&mut noted.found, node, address.to_owned());
        }
    }

    /// The node has shown at this address that it is the right one.
    pub fn note_right(&self, node: NodeId, address: &str) {
        let mut noted = self.noted.lock();
        if noted.strangers.get(&node).is_some_and(|it| it.0 == address) {
            noted.strangers.remove(&node);
        }
        insert(&mut noted.seen, node, address.to_owned());
    }

    /// Another address was set for a node: where it was seen may be outdated.
    pub fn note_set(&self, node: NodeId) {
        self.noted.lock().seen.remove(&node);
    }

    /// Where a node has shown last that it is there, since its address was set.
    pub fn seen_at(&self, node: NodeId) -> Option<String> {
        self.noted.lock().seen.get(&node).cloned()
    }

    /// An address that was set for a node, and the other one that answers there.
    pub fn stranger_at(&self, node: NodeId, address: &str) -> Option<NodeId> {
        let noted = self.noted.lock();
        let (at, answers) = noted.strangers.get(&node)?;
        (at == address).then_some(*answers)
    }

    /// Where a node may be found beside an address that was set for it.
    pub fn found_beside(&self, node: NodeId, address: &str) -> Option<String> {
        let noted = self.noted.lock();
        let found = noted.found.get(&node)?;
        (found != address).then(|| found.clone())
    }

    /// Forgets a node.
    pub fn forget(&self, node: NodeId) {
        let mut noted = self.noted.lock();
        noted.strangers.remove(&node);
        noted.found.remove(&node);
        noted.seen.remove(&node);
    }
}

fn insert<T>(all: &mut BTreeMap<NodeId, T>, node: NodeId, value: T) {
    all.insert(node, value);
    if all.len() > MAX_NODES {
        all.pop_first();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_noted_is_bounded_and_of_the_address_alone() {
        let whereabouts = Whereabouts::default();
        whereabouts.note_stranger(NodeId(2), "a:1", NodeId(3));
        assert_eq!(whereabouts.stranger_at(NodeId(2), "a:1"), Some(NodeId(3)));
        assert_eq!(whereabouts.stranger_at(NodeId(2), "b:1"), None);
        whereabouts.note_right(NodeId(2), "b:1");
        assert!(whereabouts.stranger_at(NodeId(2), "a:1").is_some());
        whereabouts.note_right(NodeId(2), "a:1");
        assert_eq!(whereabouts.stranger_at(NodeId(2), "a:1"), None);
        assert_eq!(whereabouts.seen_at(NodeId(2)).as_deref(), Some("a:1"));
        whereabouts.note_stranger(NodeId(2), "a:1", NodeId(3));
        assert_eq!(whereabouts.seen_at(NodeId(2)), None);
        whereabouts.note_right(NodeId(2), "a:1");
        whereabouts.note_set(NodeId(2));
        assert_eq!(whereabouts.seen_at(NodeId(2)), None);
        whereabouts.note_found(NodeId(2), "b:1");
        assert_eq!(whereabouts.found_beside(NodeId(2), "b:1"), None);
        assert_eq!(
            whereabouts.found_beside(NodeId(2), "a:1").as_deref(),
            Some("b:1")
        );
        whereabouts.note_found(NodeId(2), &"x".repeat(MAX_ADDRESS + 1));
        assert_eq!(
            whereabouts.found_beside(NodeId(2), "a:1").as_deref(),
            Some("b:1")
        );
        for node in 1..=2 * MAX_NODES as u64 {
            whereabouts.note_found(NodeId(node), "c:1");
        }
        assert_eq!(whereabouts.noted.lock().found.len(), MAX_NODES);
    }
}
