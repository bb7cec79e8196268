//! The nodes of the cluster, as the catalog has them.
//!
//! A node is registered when it joins, and again when one of its addresses changes. Its number is never used
//! again once it was removed, so removed nodes stay in the catalog: some 100 bytes each. Those that have never run are
//! forgotten where there is no space for another one: under their numbers nobody has voted.
//!
//! After a fork of the catalog, nodes that were registered before it count as removed: what they have may belong
//! to the history that was cut off. One that goes on from the fork, as the node does on which it happened,
//! registers again.

use std::collections::BTreeMap;
use std::sync::Arc;

use parking_lot::RwLock;
use prost::Message as _;

use super::CatalogReader;
use crate::command::{NodeRefusal, NodeState, RegisterNode, SetNodeState};
use crate::keys;
use crate::store::{PartitionBatch, PartitionDb, StoreError};

/// Most nodes of a cluster that are not removed.
pub const MAX_NODES: usize = 64;
/// Most nodes that the catalog remembers, removed ones included. At this number no new node is registered, unless one
/// of them has never run; it bounds memory and what a request for all nodes answers.
pub const MAX_REMEMBERED_NODES: usize = 1024;
/// Incarnations that are remembered of a node: its last starts.
pub const MAX_INCARNATIONS: usize = 64;

/// A node in the database; its number is in the key.
#[derive(Clone, PartialEq, Eq, prost::Message)]
struct NodeMeta {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(string, tag = "2")]
    peer_address: String,
    #[prost(string, tag = "3")]
    client_address: String,
    #[prost(string, tag = "4")]
    zone: String,
    #[prost(enumeration = "NodeState", tag = "5")]
    state: i32,
    #[prost(uint64, tag = "6")]
    registered_at_ms: u64,
    /// The newest format of commands and messages that it reads.
    #[prost(uint32, tag = "7")]
    reads_format: u32,
    /// Number of the catalog's forks when it was registered.
    #[prost(uint64, tag = "8")]
    forks: u64,
    /// See [`ClusterNode::incarnations`].
    #[prost(bytes = "vec", repeated, tag = "9")]
    incarnations: Vec<Vec<u8>>,
    /// When it was removed, in milliseconds since the epoch; 0 if it was not, or that was not recorded.
    #[prost(uint64, tag = "10")]
    removed_at_ms: u64,
}

/// A node of the cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClusterNode {
    /// Its number.
    pub id: u64,
    /// Its name: that of no other node that is not removed.
    pub name: String,
    /// Where other nodes reach it: `host:port`.
    pub peer_address: String,
    /// Where clients reach it: `host:port`, or a URL.
    pub client_address: String,
    /// What fails together with it; empty if that is not configured.
    pub zone: String,
    /// Where it stands.
    pub state: NodeState,
    /// When it was registered first, in milliseconds since the epoch.
    pub registered_at_ms: u64,
    /// The newest format of commands and messages that it reads.
    pub reads_format: u32,
    /// As which its last starts have put snapshots, the present one last. Whichever node leads a partition goes on
    /// from what any of them has put.
    pub incarnations: Vec<u128>,
    /// When it was removed, in milliseconds since the epoch. `None` if it was not, if an earlier release has removed
    /// it, or if it was given up.
    pub removed_at_ms: Option<u64>,
    /// Whether it counts as removed because the catalog has forked: nobody has removed it, and what it has may have
    /// been acknowledged and be nowhere else.
    pub given_up: bool,
}

/// The nodes of the catalog, in memory.
pub(super) struct Nodes {
    metas: BTreeMap<u64, NodeMeta>,
    shown: Arc<BTreeMap<u64, ClusterNode>>,
    forks: u64,
}

impl Nodes {
    /// Reads all of them.
    pub(super) fn read(part: &PartitionDb, forks: u64) -> Result<Nodes, StoreError> {
        let mut metas = BTreeMap::new();
        let (from, to) = keys::all_nodes();
        let mut it = part.iterate(&from, &to, false);
        it.seek_to_first();
        while let (Some(key), Some(value)) = (it.key(), it.value()) {
            let id = keys::id_of(key)
                .ok_or_else(|| part.malformed("the number of a node", &"it is too short"))?;
            let meta = NodeMeta::decode(value).map_err(|e| part.malformed("a node", &e))?;
            metas.insert(id, meta);
            it.next();
        }
        it.status().map_err(|e| part.error("reading nodes", e))?;
        let mut nodes = Nodes {
            metas,
            shown: Arc::default(),
            forks,
        };
        nodes.show();
        Ok(nodes)
    }

    /// The catalog has forked: nodes that were registered before count as removed.
    pub(super) fn see_forks(&mut self, forks: u64) {
        self.forks = self.forks.max(forks);
        self.show();
    }

    fn show(&mut self) {
        let shown = |(id, meta): (&u64, &NodeMeta)| {
            let node = ClusterNode {
                id: *id,
                name: meta.name.clone(),
                peer_address: meta.peer_address.clone(),
                client_address: meta.client_address.clone(),
                zone: meta.zone.clone(),
                state: state_of(meta, self.forks),
                registered_at_ms: meta.registered_at_ms,
                reads_format: meta.reads_format,
                incarnations: (meta.incarnations.iter())
                    .filter_map(|bytes| {
                        Some(u128::from_be_bytes(bytes.as_slice().try_into().ok()?))
                    })
                    .collect(),
                removed_at_ms: Some(meta.removed_at_ms).filter(|at| *at != 0),
                given_up: meta.forks < self.forks && meta.state() != NodeState::Removed,
            };
            (*id, node)
        };
        self.shown = Arc::new(self.metas.iter().map(shown).collect());
    }
}

fn state_of(meta: &NodeMeta, forks: u64) -> NodeState {
    match meta.forks < forks {
        true => NodeState::Removed,
        false => meta.state(),
    }
}

impl CatalogReader {
    /// All nodes by their numbers, removed ones included. Cheap.
    pub fn nodes(&self) -> Arc<BTreeMap<u64, ClusterNode>> {
        self.nodes.read().shown.clone()
    }
}

/// One step of apply: commands change an overlay.
pub(super) struct NodeStep<'a> {
    nodes: &'a RwLock<Nodes>,
    /// `None` for one that is forgotten.
    changed: BTreeMap<u64, Option<NodeMeta>>,
}

impl<'a> NodeStep<'a> {
    pub(super) fn new(nodes: &'a RwLock<Nodes>) -> NodeStep<'a> {
        NodeStep {
            nodes,
            changed: BTreeMap::new(),
        }
    }

    fn get(&self, id: u64) -> Option<NodeMeta> {
        match self.changed.get(&id) {
            Some(changed) => changed.clone(),
            None => self.nodes.read().metas.get(&id).cloned(),
        }
    }

    /// All nodes with the changes of this step.
    fn all(&self) -> BTreeMap<u64, NodeMeta> {
        let mut all = self.nodes.read().metas.clone();
        apply(self.changed.clone(), &mut all);
        all
    }

    /// Registers a node, or changes its addresses.
    pub(super) fn register(&mut self, command: RegisterNode) -> Result<(), NodeRefusal> {
        let forks = self.nodes.read().forks;
        let known = self.get(command.id);
        if (known.as_ref()).is_some_and(|meta| meta.state() == NodeState::Removed) {
            return Err(NodeRefusal::Removed);
        }
        // After a fork it is a new node with an old number.
        let known = known.filter(|meta| state_of(meta, forks) != NodeState::Removed);
        let all = self.all();
        let mut replaced = Vec::new();
        for (id, meta) in &all {
            let state = state_of(meta, forks);
            if *id == command.id || state == NodeState::Removed {
                continue;
            }
            let is_same_place = meta.peer_address == command.peer_address;
            if meta.name != command.name && !is_same_place {
                continue;
            }
            // A join that did not complete has left a node that was never active: a second attempt of the same
            // node replaces it. Without a name of its own it has another name each time; that it never ran is
            // seen by that it has no incarnation.
            let never_ran = meta.incarnations.is_empty() || meta.name == command.name;
            if state == NodeState::Joining && is_same_place && never_ran {
                replaced.push(*id);
                continue;
            }
            return Err(match meta.name == command.name {
                true => NodeRefusal::NameTaken(*id),
                false => NodeRefusal::AddressTaken(*id),
            });
        }
        if known.is_none() {
            let live = all.iter().filter(|(id, meta)| {
                state_of(meta, forks) != NodeState::Removed && !replaced.contains(id)
            });
            if live.count() as u64 >= command.max_nodes {
                return Err(NodeRefusal::TooMany);
            }
            if all.len() >= MAX_REMEMBERED_NODES && !command.may_forget {
                return Err(NodeRefusal::TooManyRemembered);
            }
            if all.len() >= MAX_REMEMBERED_NODES {
                // The oldest has left all groups by now.
                let never_ran = all.iter().filter(|(_, meta)| {
                    meta.incarnations.is_empty() && state_of(meta, forks) == NodeState::Removed
                });
                let oldest = never_ran.min_by_key(|(_, meta)| meta.registered_at_ms);
                let (forgotten, _) = oldest.ok_or(NodeRefusal::TooManyRemembered)?;
                self.changed.insert(*forgotten, None);
            }
        }
        for id in replaced {
            if let Some(meta) = all.get(&id) {
                let meta = NodeMeta {
                    state: NodeState::Removed.into(),
                    ..meta.clone()
                };
                self.changed.insert(id, Some(meta));
            }
        }
        let mut incarnations = known
            .as_ref()
            .map_or_else(Vec::new, |meta| meta.incarnations.clone());
        if !command.incarnation.is_empty() && incarnations.last() != Some(&command.incarnation) {
            incarnations.push(command.incarnation);
            let surplus = incarnations.len().saturating_sub(MAX_INCARNATIONS);
            incarnations.drain(..surplus);
        }
        let meta = NodeMeta {
            name: command.name,
            peer_address: command.peer_address,
            client_address: command.client_address,
            zone: command.zone,
            state: known.as_ref().map_or(command.state, |meta| meta.state),
            registered_at_ms: known.map_or(command.at_ms, |meta| meta.registered_at_ms),
            reads_format: command.reads_format,
            forks,
            incarnations,
            removed_at_ms: 0,
        };
        self.changed.insert(command.id, Some(meta));
        Ok(())
    }

    /// Changes where a node stands. What was removed stays removed.
    pub(super) fn set_state(&mut self, command: &SetNodeState) -> Result<(), NodeRefusal> {
        let forks = self.nodes.read().forks;
        let Some(meta) = self.get(command.id) else {
            return Err(NodeRefusal::Unknown);
        };
        let before = state_of(&meta, forks);
        match (before, command.state()) {
            (before, after) if before == after => return Ok(()),
            (NodeState::Removed, _) => return Err(NodeRefusal::Removed),
            // It had replicas already.
            (_, NodeState::Joining) => return Err(NodeRefusal::NotJoining),
            _ => {}
        }
        let removed_at_ms = match command.state() {
            NodeState::Removed => command.at_ms,
            _ => 0,
        };
        let meta = NodeMeta {
            state: command.state,
            removed_at_ms,
            ..meta
        };
        self.changed.insert(command.id, Some(meta));
        Ok(())
    }

    pub(super) fn into_changes(self) -> NodeChanges {
        NodeChanges {
            changed: self.changed,
        }
    }
}

/// Makes the changes of a step.
fn apply(changed: BTreeMap<u64, Option<NodeMeta>>, metas: &mut BTreeMap<u64, NodeMeta>) {
    for (id, meta) in changed {
        match meta {
            Some(meta) => metas.insert(id, meta),
            None => metas.remove(&id),
        };
    }
}

/// What a step has changed.
pub(super) struct NodeChanges {
    changed: BTreeMap<u64, Option<NodeMeta>>,
}

impl NodeChanges {
    pub(super) fn add_to(&self, batch: &mut PartitionBatch) {
        for (id, meta) in &self.changed {
            match meta {
                Some(meta) => batch.put(keys::node(*id), meta.encode_to_vec()),
                None => batch.delete(keys::node(*id)),
            }
        }
    }

    pub(super) fn apply_to(self, nodes: &RwLock<Nodes>) {
        if self.changed.is_empty() {
            return;
        }
        let mut nodes = nodes.write();
        apply(self.changed, &mut nodes.metas);
        nodes.show();
    }
}
