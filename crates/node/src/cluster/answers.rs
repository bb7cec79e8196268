//! The answers to what other nodes ask of this one.

use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use bytes::Bytes;
use esker_partition::command::{Kind, NodeRefusal, NodeState, Outcome, RegisterNode, SetNodeState};
use esker_partition::{MAX_NODES, MAX_REMEMBERED_NODES};
use esker_raft::transport::grpc::{CallAnswer, CallError, Calls, Claim};
use esker_raft::{Group, GroupId, NodeId};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::runtime::Handle;

use super::directory::Nodes;
use super::join_checks::{check, check_format, check_start, start_of};
use super::kept_log::KeptFor;
use super::peers::{Peers, cluster_number};
use super::wire::{
    CHANGE, CLOCK, ChangeCluster, Check, DIGEST, GROUPS, GroupOf, GroupsOf, JOIN, Join, Joined,
    Peer, READS_FORGETTING, REMOVAL, to_hex,
};
use crate::clock::now_ms;
use crate::core::Inner;
use crate::error::Error;

/// How long this node waits for another one that it passes a call on to.
const PASS_TIMEOUT: Duration = Duration::from_secs(4);
/// How often a call is passed on.
const MAX_HOPS: u32 = 1;
/// How long a node may take that is to lead a partition.
const TRANSFER_TIMEOUT: Duration = Duration::from_secs(5);

/// Answers calls for as long as the node lives.
pub(crate) struct Answers {
    inner: Weak<Inner>,
    runtime: Handle,
}

impl Answers {
    /// To be made within the runtime that answers.
    pub fn new(inner: &Arc<Inner>) -> Answers {
        Answers {
            inner: Arc::downgrade(inner),
            runtime: Handle::current(),
        }
    }
}

impl Calls for Answers {
    fn answer(&self, from: Claim, name: &str, body: Bytes) -> CallAnswer {
        let (inner, name) = (self.inner.clone(), name.to_owned());
        let answering = self.runtime.spawn(async move {
            let inner = inner.upgrade();
            let inner = inner.ok_or_else(|| CallError::Unavailable("the node stops".to_owned()))?;
            match name.as_str() {
                JOIN => answer(&inner.register(read(&body)?, from).await?),
                CHANGE => answer(&inner.change_cluster(read(&body)?).await?),
                GROUPS => answer(&inner.own_groups()),
                CLOCK => answer(&inner.own_clock()),
                DIGEST => answer(&inner.own_digest(read(&body)?)?),
                REMOVAL => answer(&inner.removal_of(from.node.0, read(&body)?).await),
                _ => Err(CallError::Refused(format!(
                    "there is no call {name}: a node of another release may have sent it"
                ))),
            }
        });
        Box::pin(async move {
            match answering.await {
                Ok(answered) => answered,
                Err(_) => Err(CallError::Unavailable(
                    "the call was not answered".to_owned(),
                )),
            }
        })
    }
}

fn read<T: DeserializeOwned>(body: &[u8]) -> Result<T, CallError> {
    serde_json::from_slice(body).map_err(|e| CallError::Refused(format!("malformed call: {e}")))
}

fn answer<T: Serialize>(answer: &T) -> Result<Bytes, CallError> {
    let bytes = serde_json::to_vec(answer);
    let bytes = bytes.map_err(|e| CallError::Unavailable(e.to_string()))?;
    Ok(bytes.into())
}

/// How the failure of a proposal is reported to another node.
fn failed(error: Error) -> CallError {
    match error {
        Error::Invalid(why) => CallError::Refused(why),
        other => CallError::Unavailable(other.to_string()),
    }
}

fn refused(refusal: NodeRefusal, nodes: &Nodes) -> CallError {
    let name = |id: u64| {
        nodes
            .get(&id)
            .map_or_else(|| id.to_string(), |node| node.name.clone())
    };
    CallError::Refused(match refusal {
        NodeRefusal::Removed => {
            "this node was removed from the cluster, and its number is never used again: move its data directory away, \
             and start it with an empty one and `cluster.join` to join again"
                .to_owned()
        }
        NodeRefusal::NameTaken(id) => format!(
            "the node {id} has this name already, at another address: set another `cluster.name`, or, if that node's \
             disk is lost, remove it with `esker cluster remove {}`",
            name(id)
        ),
        NodeRefusal::AddressTaken(id) => format!(
            "the node {} has this address already: set another `cluster.peer-advertise`, or remove that node with \
             `esker cluster remove {0}`",
            name(id)
        ),
        NodeRefusal::TooMany => format!("a cluster has at most {MAX_NODES} nodes: remove those that are gone"),
        NodeRefusal::TooManyRemembered => format!(
            "the cluster has had {MAX_REMEMBERED_NODES} nodes, and remembers all of them, because the number of one that \
             was removed is never used again: it takes no more"
        ),
        NodeRefusal::Unknown => "there is no such node".to_owned(),
        NodeRefusal::NotJoining => "the node has joined already".to_owned(),
    })
}

/// An address without the scheme.
fn bare(address: &str) -> &str {
    address.split_once("://").map_or(address, |(_, rest)| rest)
}

impl Inner {
    /// Registers a node in the catalog, or passes that on to the node that leads it.
    pub(crate) async fn register(&self, join: Join, from: Claim) -> Result<Joined, CallError> {
        let Some(peers) = &self.peers else {
            return Err(CallError::Unavailable(
                "this node is not in a cluster".to_owned(),
            ));
        };
        check(&join, peers.cluster_name())?;
        let here = self.options.partitions;
        if let Some(there) = join.partitions.filter(|there| *there != here) {
            return Err(CallError::Refused(format!(
                "the cluster has {here} partitions, and `partitions` is {there} there: set it to {here}"
            )));
        }
        // A node registers for itself; another one may only pass it on.
        let is_passed_on = join.hops > 0 && from.cluster != esker_raft::ClusterId::default();
        if !is_passed_on && from.node != NodeId(join.id) {
            return Err(CallError::Refused(
                "a node registers for itself alone".to_owned(),
            ));
        }
        if !self.catalog.is_serving() {
            self.note_address(peers, &join, from);
            return self.pass_on(&join).await;
        }
        let nodes = self.catalog_reader.nodes();
        let is_new = !nodes.contains_key(&join.id);
        check_format(&join, &nodes)?;
        let start = start_of(&join)?;
        // Who leads the catalog is a member of it, whatever state its own directory was restored to.
        let is_other = peers.me() != join.id;
        if let Some(start) = start.as_ref().filter(|_| is_other) {
            check_start(join.id, start, &nodes)?;
        }
        if let Some(clock_ms) = join.clock_ms.filter(|_| is_new) {
            self.clock_of_joining(clock_ms)?;
        }
        self.remove_replaced(&join).await?;
        let state = match peers.me() == join.id {
            // The first one has everything.
            true => NodeState::Active,
            false => NodeState::Joining,
        };
        let incarnation = start.map(|start| start.id.to_be_bytes().to_vec());
        let command = RegisterNode {
            id: join.id,
            name: join.name,
            peer_address: join.peer_address,
            client_address: join.client_address,
            zone: join.zone,
            state: state.into(),
            at_ms: now_ms(),
            reads_format: join.reads_format,
            max_nodes: MAX_NODES as u64,
            incarnation: incarnation.unwrap_or_default(),
            // Only where it is needed, so that the log has no command of this version otherwise.
            may_forget: self.catalog_reader.nodes().len() >= MAX_REMEMBERED_NODES
                && self.member_not_reading(0, READS_FORGETTING).is_none(),
        };
        self.register_known(peers, command).await?;
        self.joined()
    }

    /// Registers a node. If it is a node of the cluster, and the catalog has its new address for another one, that one
    /// has moved as well, or has gone: nodes may exchange their addresses. Then the other one is registered where it
    /// was seen last. If it was not seen elsewhere, the node goes on and tries again: the others find it where it is.
    /// It is refused if the other one was seen at that address.
    async fn register_known(&self, peers: &Peers, command: RegisterNode) -> Result<(), CallError> {
        let nodes = self.catalog_reader.nodes();
        let known = nodes.get(&command.id);
        let is_known = known.is_some_and(|node| node.state != NodeState::Removed);
        let set = self.set_node(Kind::RegisterNode(command.clone())).await?;
        match set {
            Ok(()) => Ok(()),
            Err(NodeRefusal::AddressTaken(other)) if is_known => {
                if self.register_where_seen(peers, &nodes, other).await? {
                    return self.propose_node(Kind::RegisterNode(command)).await;
                }
                let there = nodes.get(&other).map(|node| bare(&node.peer_address));
                let seen = peers.transport.seen_at(NodeId(other));
                if seen.is_some() && seen.as_deref().map(bare) == there {
                    let taken = NodeRefusal::AddressTaken(other);
                    return Err(refused(taken, &self.catalog_reader.nodes()));
                }
                let name = nodes.get(&other).map(|node| node.name.as_str());
                let name = name.unwrap_or_default();
                Err(CallError::Unavailable(format!(
                    "the catalog has this address for node {name} ({other}), which was not seen elsewhere yet: if it \
                     has another address, start it there; if it is gone for good, remove it with \
                     `esker cluster remove {name}`"
                )))
            }
            Err(refusal) => Err(refused(refusal, &self.catalog_reader.nodes())),
        }
    }

    /// Registers a node at the address where it was seen last, if that is not the one that the catalog has. Returns
    /// whether that was done.
    async fn register_where_seen(
        &self,
        peers: &Peers,
        nodes: &Nodes,
        other: u64,
    ) -> Result<bool, CallError> {
        let Some(node) = nodes.get(&other) else {
            return Ok(false);
        };
        // What this node has set for it may be newer than the catalog, which decides who has the address.
        let seen = peers.transport.seen_at(NodeId(other));
        let Some(seen) = seen.filter(|seen| bare(seen) != bare(&node.peer_address)) else {
            return Ok(false);
        };
        // As a URL, it is no other node's: the catalog may have that address for a third one, which has moved, too. The
        // node registers by itself, in the form of its configuration, once it may.
        let seen = bare(&seen);
        let command = Kind::RegisterNode(RegisterNode {
            id: other,
            name: node.name.clone(),
            peer_address: format!("{}://{seen}", peers.scheme()),
            client_address: node.client_address.clone(),
            zone: node.zone.clone(),
            state: node.state.into(),
            at_ms: now_ms(),
            reads_format: node.reads_format,
            max_nodes: MAX_NODES as u64,
            incarnation: Vec::new(),
            may_forget: false,
        });
        Ok(self.set_node(command).await?.is_ok())
    }

    /// What a node learns that has joined.
    fn joined(&self) -> Result<Joined, CallError> {
        let partitions = 0..=u64::from(self.options.partitions);
        let tag = |partition| {
            let tag = self.raft.log().tag(GroupId(partition));
            let tag = tag.map(|tag| to_hex(&tag));
            tag.ok_or_else(|| CallError::Unavailable("its log cannot be read".to_owned()))
        };
        let lineages: Result<Vec<String>, CallError> = partitions.map(tag).collect();
        let nodes = self.catalog_reader.nodes();
        let live = nodes
            .values()
            .filter(|node| node.state != NodeState::Removed);
        Ok(Joined {
            cluster_id: self.identity.cluster_id.clone(),
            partitions: self.options.partitions,
            lineages: lineages?,
            snapshots_after: (0..=u64::from(self.options.partitions))
                .map(|partition| self.replicas.diverged_at(partition))
                .collect(),
            nodes: live
                .map(|node| Peer {
                    id: node.id,
                    peer_address: node.peer_address.clone(),
                })
                .collect(),
        })
    }

    /// Takes the address of a node that registers for itself. The catalog has it only once there is a leader, and
    /// without this node's vote there may be none: it would go on answering to the address before.
    fn note_address(&self, peers: &Peers, join: &Join, from: Claim) {
        let is_its_own = from.node == NodeId(join.id)
            && from.cluster == cluster_number(&self.identity.cluster_id);
        let nodes = self.catalog_reader.nodes();
        let known = nodes.get(&join.id);
        if is_its_own && known.is_some_and(|node| node.state != NodeState::Removed) {
            peers.know(&[Peer {
                id: join.id,
                peer_address: join.peer_address.clone(),
            }]);
        }
    }

    /// Passes a registration on to the node that leads the catalog.
    async fn pass_on(&self, join: &Join) -> Result<Joined, CallError> {
        let later = |why: &str| CallError::Unavailable(why.to_owned());
        let peers = self
            .peers
            .as_ref()
            .ok_or_else(|| later("this node is alone"))?;
        if join.hops >= MAX_HOPS {
            return Err(later(
                "the node that leads the catalog has changed meanwhile",
            ));
        }
        let leader = self.catalog.leader();
        let leader = leader.filter(|leader| leader.0 != peers.me());
        let leader = leader.ok_or_else(|| later("the catalog has no leader at the moment"))?;
        let passed = Join {
            hops: join.hops + 1,
            ..join.clone()
        };
        let body = serde_json::to_vec(&passed).map_err(|e| later(&e.to_string()))?;
        let transport = &peers.transport;
        let answer = transport
            .call(leader, JOIN, body.into(), PASS_TIMEOUT)
            .await?;
        serde_json::from_slice(&answer).map_err(|e| later(&e.to_string()))
    }

    pub(super) async fn propose_node(&self, command: Kind) -> Result<(), CallError> {
        let set = self.set_node(command).await?;
        set.map_err(|refusal| refused(refusal, &self.catalog_reader.nodes()))
    }

    async fn set_node(&self, command: Kind) -> Result<Result<(), NodeRefusal>, CallError> {
        match self.execute(&self.catalog, command).await.map_err(failed)? {
            Outcome::NodeSet(set) => Ok(set),
            other => Err(failed(crate::error::unexpected(&other))),
        }
    }

    /// Makes a change of the cluster. Node states are changed on the node that leads the catalog, leaders on the
    /// node that leads the partition.
    pub(crate) async fn change_cluster(&self, change: ChangeCluster) -> Result<(), CallError> {
        let set = |node, state: NodeState| {
            Kind::SetNodeState(SetNodeState {
                id: node,
                state: state.into(),
                at_ms: 0,
            })
        };
        let command = match change {
            ChangeCluster::Remove { node } => {
                if !self.catalog.is_serving() {
                    return Err(not_leader(&self.catalog));
                }
                let nodes = self.catalog_reader.nodes();
                if nodes.get(&node).map(|it| it.state) == Some(NodeState::Removed) {
                    return Ok(());
                }
                self.check_removal(node).await?;
                self.removing(node)
            }
            ChangeCluster::Drain { node } => set(node, NodeState::Draining),
            ChangeCluster::Activate { node } => set(node, NodeState::Active),
            ChangeCluster::TransferLeader { partition, to } => {
                return self.transfer_leader(partition, to).await;
            }
            ChangeCluster::Check { partition } => return self.want_check(partition),
            ChangeCluster::Trust {
                partition,
                noted_at,
                node,
            } => return self.trust(partition, noted_at, node).await,
        };
        if !self.catalog.is_serving() {
            return Err(not_leader(&self.catalog));
        }
        self.propose_node(command).await
    }

    async fn transfer_leader(&self, partition: u64, to: u64) -> Result<(), CallError> {
        if partition > u64::from(self.options.partitions) {
            return Err(CallError::Refused(format!(
                "there is no partition {partition}"
            )));
        }
        let group = self.group(partition);
        if !group.is_serving() {
            return Err(not_leader(group));
        }
        let transfer = group.transfer_leadership(NodeId(to));
        match tokio::time::timeout(TRANSFER_TIMEOUT, transfer).await {
            Ok(done) => done.map_err(|e| CallError::Refused(e.to_string())),
            Err(_) => Err(CallError::Unavailable(
                "the other node has not taken over in time".to_owned(),
            )),
        }
    }

    /// What this node knows of its groups.
    pub(crate) fn own_groups(&self) -> GroupsOf {
        let now = Instant::now();
        let numbers = |ids: &[NodeId]| ids.iter().map(|id| id.0).collect();
        let of = |group: &Group<Outcome>| {
            let (details, partition) = (group.details(), group.id().0);
            let members = &details.membership;
            // While a change is under way, the voters before it have to agree too: who is none of them does not
            // make up for another one yet.
            let votes = members.voters.contains(&details.id)
                && (!members.is_joint() || members.voters_outgoing.contains(&details.id));
            GroupOf {
                role: match details.waits_to_join {
                    true => "waiting".to_owned(),
                    false => match votes {
                        true => format!("{:?}", details.role).to_lowercase(),
                        false => "learner".to_owned(),
                    },
                },
                leader: details.leader.map(|leader| leader.0),
                term: details.term.0,
                applied: group.status().applied.0,
                committed: details.committed.0,
                last: details.last.0,
                halted: group.halted().map(|halted| halted.why),
                voters: numbers(&members.voters),
                voters_before: numbers(&members.voters_outgoing),
                is_unconfirmed: details.has_unconfirmed_change,
                learners: numbers(&members.learners),
                kept: self.log_kept_for_absent(partition).map(KeptFor::from),
                waits: self.replicas.waiting.of(partition, now),
                fetching: self.replicas.transfers.of(partition),
                check: self.replicas.digests.compared(partition).map(Check::from),
                checks: *self.replicas.checks.under_way.lock() == Some(partition),
                check_failed: self.replicas.checks.failed.lock().get(&partition).cloned(),
            }
        };
        GroupsOf {
            groups: self.groups().map(of).collect(),
        }
    }
}

/// The other node asks the leader instead.
fn not_leader(group: &Group<Outcome>) -> CallError {
    CallError::Unavailable(match group.leader() {
        Some(leader) => format!("node {leader} leads partition {}", group.id()),
        None => format!("partition {} has no leader at the moment", group.id()),
    })
}
