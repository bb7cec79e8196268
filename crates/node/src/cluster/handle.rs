//! What requests need of the cluster: who leads, when local state is current, and how to reach the leader.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use esker_partition::ClusterNode;
use esker_partition::command::NodeState;
use esker_raft::NodeId;
use esker_raft::engine::ReadFailure;
use esker_raft::transport::grpc::{
    CallError, ChannelError, PeerChannel, PeerRequests, TlsConfig, TlsError,
};

use super::directory::{Nodes, removed_as};
use super::kept_log::KeptFor;
use super::peers::Peers;
use super::transfers::Fetching;
use super::waiting::ChangeWait;
use super::wire::{CHANGE, ChangeCluster, Check, GROUPS, GroupOf, GroupsOf};
use crate::core::Inner;
use crate::error::Error;
use crate::node::Node;

/// How often a wait for a leader looks.
const LOOK_INTERVAL: Duration = Duration::from_millis(10);
/// How long a node may take to report on its groups.
const REPORT_TIMEOUT: Duration = Duration::from_secs(2);
/// How often it is tried to begin a comparison that no leader has taken.
const CHECK_RETRY_INTERVAL: Duration = Duration::from_millis(250);
/// How long a change of the cluster may take.
const CHANGE_TIMEOUT: Duration = Duration::from_secs(10);
/// Removed nodes that the status shows: the catalog remembers more, and a status is for people.
const MAX_SHOWN_REMOVED: usize = 64;

/// Who leads a partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Leader {
    /// This node, and it serves.
    Here,
    /// The node with this number.
    At(u64),
    /// There is none at the moment, or this node does not know it.
    Unknown,
}

/// The cluster of a node. Cheap to clone.
#[derive(Clone)]
pub struct Cluster {
    inner: Arc<Inner>,
    peers: Arc<Peers>,
}

/// Why a change of the cluster was not made.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ClusterError {
    /// It is not possible.
    #[error("{0}")]
    Refused(String),
    /// It is not possible now, or it is not known whether it was made.
    #[error("{0}")]
    TryLater(String),
}

impl From<CallError> for ClusterError {
    fn from(error: CallError) -> Self {
        match error {
            CallError::Refused(why) => ClusterError::Refused(why),
            CallError::Stranger(why) | CallError::Unavailable(why) => ClusterError::TryLater(why),
        }
    }
}

/// The cluster, as its nodes report it.
#[derive(Clone, Debug)]
pub struct ClusterStatus {
    /// The number of the node that reports.
    pub me: u64,
    /// Why the other nodes do not take it, if they do not.
    pub refused: Option<String>,
    /// The nodes, in order of their numbers; removed ones are not there.
    pub nodes: Vec<NodeStatusOf>,
    /// Those of the removed nodes that were removed last, the last one first: [`MAX_SHOWN_REMOVED`] at most.
    pub removed: Vec<ClusterNode>,
    /// How many removed nodes the catalog remembers.
    pub removed_count: usize,
    /// The partitions, the catalog first.
    pub partitions: Vec<ClusterPartition>,
}

/// A node of the cluster.
#[derive(Clone, Debug)]
pub struct NodeStatusOf {
    /// The node, as the catalog has it.
    pub node: ClusterNode,
    /// Why it could not be asked, if so.
    pub unreachable: Option<String>,
    /// The node that answers at its address, if that is another one, as this node has found.
    pub answers_as: Option<u64>,
    /// How many partitions it leads.
    pub leads: usize,
}

/// A partition, as its members report it.
#[derive(Clone, Debug)]
pub struct ClusterPartition {
    /// Its number.
    pub partition: u64,
    /// Who leads it, as far as that is known.
    pub leader: Option<u64>,
    /// What each node that could be asked has of it, by its number.
    pub replicas: BTreeMap<u64, Replica>,
    /// The last comparison of the replicas' digests, of those that the nodes know of.
    pub check: Option<Check>,
    /// Whether one is under way.
    pub checks: bool,
    /// Why the last one came to no end, if so.
    pub check_failed: Option<String>,
    /// Who belongs to it, as its leader reports; `None` if no leader has answered.
    pub members: Option<Members>,
}

/// Who belongs to a partition.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Members {
    /// The nodes that vote.
    pub voters: Vec<u64>,
    /// While a change of the voters is under way: those before it, who have to agree as well.
    pub voters_before: Vec<u64>,
    /// Whether the leader does not know yet that the last change of the voters holds without those who voted before:
    /// they are needed until this is false.
    pub is_unconfirmed: bool,
    /// The nodes that have replicas and do not vote.
    pub learners: Vec<u64>,
    /// What of its log the leader keeps for those that are away.
    pub kept: Option<KeptFor>,
    /// Why these are not the members that the catalog wants, if they are not.
    pub waits: Option<ChangeWait>,
    /// The term of the leader that reports it.
    term: u64,
}

/// What a node has of a partition.
#[derive(Clone, Debug)]
pub struct Replica {
    /// `leader`, `follower`, `candidate`, `learner`, or `waiting`.
    pub role: String,
    /// Its term.
    pub term: u64,
    /// The last entry that it has applied.
    pub applied: u64,
    /// The last entry of its log.
    pub last: u64,
    /// Why it does not run, if it does not.
    pub halted: Option<String>,
    /// The snapshot that it fetches, if it does.
    pub fetching: Option<Fetching>,
}

/// The removed nodes that have run, those with the latest time first, and how many there are.
fn last_removed(nodes: &Nodes) -> (Vec<ClusterNode>, usize) {
    // A registration that was never of use says nothing to anybody.
    let has_run = |node: &&ClusterNode| !node.incarnations.is_empty();
    let removed = nodes.values().filter(|it| it.state == NodeState::Removed);
    let mut removed: Vec<ClusterNode> = removed.filter(has_run).cloned().collect();
    removed.sort_by_key(|node| std::cmp::Reverse((node.removed_at_ms, node.registered_at_ms)));
    let count = removed.len();
    removed.truncate(MAX_SHOWN_REMOVED);
    (removed, count)
}

impl Node {
    /// The cluster; `None` on a node that is not in one.
    pub fn cluster(&self) -> Option<Cluster> {
        let peers = self.inner.peers.clone()?;
        let inner = self.inner.clone();
        Some(Cluster { inner, peers })
    }
}

impl Cluster {
    /// This node's number.
    pub fn me(&self) -> u64 {
        self.peers.me()
    }

    /// Why the cluster does not take this node, if it does not.
    pub fn refusal(&self) -> Option<String> {
        self.inner.refused_by_cluster()
    }

    /// Whether the replica here follows a leader, so that it gets to know of what is committed.
    ///
    /// # Panics
    ///
    /// If there is no such partition.
    pub fn follows(&self, partition: u64) -> bool {
        let group = self.inner.group(partition);
        group.leader().is_some() && group.halted().is_none()
    }

    /// The nodes, in order of their numbers; removed ones are not there.
    pub fn nodes(&self) -> Vec<ClusterNode> {
        let nodes = self.inner.catalog_reader.nodes();
        let live = nodes
            .values()
            .filter(|node| node.state != NodeState::Removed);
        live.cloned().collect()
    }

    /// The removed node of this number, or else the one of this name that was removed last; `None` if there is none, or
    /// a node that belongs to the cluster is named so.
    pub fn removed(&self, said: &str) -> Option<ClusterNode> {
        removed_as(&self.inner.catalog_reader.nodes(), said).cloned()
    }

    /// Whether this node leads a partition and takes no proposals for a moment, because it is giving the leadership to
    /// another node.
    ///
    /// # Panics
    ///
    /// If there is no such partition.
    pub fn is_moving(&self, partition: u64) -> bool {
        self.inner.group(partition).is_transferring()
    }

    /// Who leads a partition, as this node knows now.
    ///
    /// # Panics
    ///
    /// If there is no such partition.
    pub fn leader(&self, partition: u64) -> Leader {
        if let Some(leader) = self.inner.replicas.leader_elsewhere(partition) {
            return Leader::At(leader);
        }
        let group = self.inner.group(partition);
        match group.leader() {
            Some(leader) if leader.0 != self.peers.me() => Leader::At(leader.0),
            Some(_) if group.is_serving() => Leader::Here,
            _ => Leader::Unknown,
        }
    }

    /// The same; waits for a leader for so long.
    pub async fn wait_for_leader(&self, partition: u64, longest: Duration) -> Leader {
        let started = Instant::now();
        loop {
            match self.leader(partition) {
                Leader::Unknown if started.elapsed() < longest => {
                    tokio::time::sleep(LOOK_INTERVAL).await;
                }
                leader => return leader,
            }
        }
    }

    /// Waits until this node has applied what was committed in a partition at the time of the call: what is read
    /// here from then on is linearizable.
    ///
    /// # Errors
    ///
    /// [`Error::TryLater`]: no leader has answered.
    pub async fn read_index(&self, partition: u64) -> Result<(), Error> {
        let read = self.inner.group(partition).read_index().await;
        read.map(|_| ()).map_err(|e| {
            Error::TryLater(match e {
                ReadFailure::Stopped => "the server is stopping".to_owned(),
                ReadFailure::NoLeader => {
                    format!("partition {partition} has no leader at the moment")
                }
                _ => format!("the leader of partition {partition} has not answered in time"),
            })
        })
    }

    /// A channel for requests to the listener of another node: HTTP/2, with this node's credentials.
    ///
    /// # Errors
    ///
    /// The node's address is not known, or cannot be used.
    pub fn channel(&self, node: u64) -> Result<PeerChannel, ChannelError> {
        self.peers.transport.channel(NodeId(node))
    }

    /// The same, over a connection that only requests of this lane use.
    ///
    /// # Errors
    ///
    /// As [`Cluster::channel`].
    pub fn channel_in_lane(&self, node: u64, lane: u32) -> Result<PeerChannel, ChannelError> {
        self.peers.transport.channel_in_lane(NodeId(node), lane)
    }

    /// What answers the requests of other nodes. Only the first call has an effect.
    pub fn serve_requests(&self, service: PeerRequests) {
        self.peers.transport.serve_requests(service);
    }

    /// Uses other certificates for new connections between nodes.
    ///
    /// # Errors
    ///
    /// What is wrong with them; nothing changes then.
    pub fn set_certificates(&self, tls: &TlsConfig) -> Result<(), TlsError> {
        self.peers.transport.set_tls(tls)
    }

    /// Presents another secret to other nodes from now on, and accepts these others as well. Streams of messages that
    /// are open stay. Returns false, and changes nothing, if this node was started without a secret.
    pub fn set_secrets(&self, secret: String, others: Vec<String>) -> bool {
        self.peers.set_secrets(secret, others)
    }

    /// Removes a node: its replicas go, and its number is never used again. Returns once that is recorded: the status
    /// shows when no partition has it as a member any more. Nothing happens if it was removed already.
    pub async fn remove(&self, node: u64) -> Result<(), ClusterError> {
        self.change(0, ChangeCluster::Remove { node }).await
    }

    /// Moves the leaderships and votes of a node to others. Returns once that is recorded.
    pub async fn drain(&self, node: u64) -> Result<(), ClusterError> {
        self.change(0, ChangeCluster::Drain { node }).await
    }

    /// Lets a node that was drained take part again.
    pub async fn activate(&self, node: u64) -> Result<(), ClusterError> {
        self.change(0, ChangeCluster::Activate { node }).await
    }

    /// Makes another node lead a partition.
    pub async fn transfer_leader(&self, partition: u64, to: u64) -> Result<(), ClusterError> {
        let change = ChangeCluster::TransferLeader { partition, to };
        self.change(partition, change).await
    }

    /// Compares the digests of a partition's replicas. Returns at once; the status shows when it is done. If the
    /// leadership moves meanwhile, the next leader does it.
    pub async fn check(&self, partition: u64) -> Result<(), ClusterError> {
        let until = Instant::now() + CHANGE_TIMEOUT;
        loop {
            let change = ChangeCluster::Check { partition };
            match self.change(partition, change).await {
                // It may be done twice, which changes nothing.
                Err(ClusterError::TryLater(_)) if Instant::now() < until => {
                    tokio::time::sleep(CHECK_RETRY_INTERVAL).await;
                }
                done => return done,
            }
        }
    }

    /// Takes a node's replica of a partition for the right one of those that differ, as was found by the comparison that
    /// the entry at `noted_at` recorded.
    pub async fn trust(
        &self,
        partition: u64,
        noted_at: u64,
        node: u64,
    ) -> Result<(), ClusterError> {
        let change = ChangeCluster::Trust {
            partition,
            noted_at,
            node,
        };
        self.change(partition, change).await
    }

    /// Has a change made by the node that leads the partition.
    async fn change(&self, partition: u64, change: ChangeCluster) -> Result<(), ClusterError> {
        if partition > u64::from(self.inner.options.partitions) {
            return Err(ClusterError::Refused(format!(
                "there is no partition {partition}"
            )));
        }
        match self.wait_for_leader(partition, REPORT_TIMEOUT).await {
            Leader::Here => Ok(self.inner.change_cluster(change).await?),
            Leader::At(node) => {
                let body = serde_json::to_vec(&change);
                let body = body.map_err(|e| ClusterError::Refused(e.to_string()))?;
                let transport = &self.peers.transport;
                let called = transport.call(NodeId(node), CHANGE, body.into(), CHANGE_TIMEOUT);
                called.await?;
                Ok(())
            }
            Leader::Unknown => Err(ClusterError::TryLater(format!(
                "partition {partition} has no leader at the moment"
            ))),
        }
    }

    /// Asks all nodes for what they have.
    pub async fn status(&self) -> ClusterStatus {
        let live = self.nodes();
        let asked = live.iter().map(|node| self.groups_of(node.id));
        let reports = futures::future::join_all(asked).await;
        let (removed, removed_count) = last_removed(&self.inner.catalog_reader.nodes());
        let mut status = ClusterStatus {
            me: self.peers.me(),
            refused: self.refusal(),
            nodes: Vec::new(),
            removed,
            removed_count,
            partitions: (0..=u64::from(self.inner.options.partitions))
                .map(|partition| ClusterPartition {
                    partition,
                    leader: match self.leader(partition) {
                        Leader::Here => Some(self.peers.me()),
                        Leader::At(node) => Some(node),
                        Leader::Unknown => None,
                    },
                    replicas: BTreeMap::new(),
                    check: None,
                    checks: false,
                    check_failed: None,
                    members: None,
                })
                .collect(),
        };
        for (node, report) in live.into_iter().zip(reports) {
            let (groups, unreachable) = match report {
                Ok(groups) => (groups, None),
                Err(why) => (Vec::new(), Some(why)),
            };
            let answers_as = self.peers.transport.answers_as(NodeId(node.id));
            let leads = groups.iter().filter(|group| group.role == "leader").count();
            for (of, group) in status.partitions.iter_mut().zip(groups) {
                // A leader of an earlier release does not say who belongs to it.
                let before = of.members.as_ref().map_or(0, |members| members.term);
                let is_leader = group.role == "leader";
                if is_leader && !group.voters.is_empty() && group.term >= before {
                    of.members = Some(Members {
                        voters: group.voters,
                        voters_before: group.voters_before,
                        is_unconfirmed: group.is_unconfirmed,
                        learners: group.learners,
                        kept: group.kept,
                        waits: group.waits,
                        term: group.term,
                    });
                }
                let replica = Replica {
                    role: group.role,
                    term: group.term,
                    applied: group.applied,
                    last: group.last,
                    halted: group.halted,
                    fetching: group.fetching,
                };
                let noted = |check: &Option<Check>| check.as_ref().map(|check| check.noted_at);
                if noted(&group.check) > noted(&of.check) {
                    of.check = group.check;
                }
                of.checks |= group.checks;
                // What an earlier leader failed at, the present one may be doing.
                if is_leader {
                    of.check_failed = group.check_failed;
                }
                of.replicas.insert(node.id, replica);
            }
            status.nodes.push(NodeStatusOf {
                node,
                unreachable,
                answers_as: answers_as.map(|answers| answers.0),
                leads,
            });
        }
        status
    }

    async fn groups_of(&self, node: u64) -> Result<Vec<GroupOf>, String> {
        if node == self.peers.me() {
            return Ok(self.inner.own_groups().groups);
        }
        let transport = &self.peers.transport;
        let asked = transport
            .call(NodeId(node), GROUPS, Bytes::new(), REPORT_TIMEOUT)
            .await;
        let answer = asked.map_err(|e| match transport.answers_as(NodeId(node)) {
            Some(answers) => format!("its address answers as node {answers}"),
            None => e.to_string(),
        })?;
        let groups: GroupsOf = serde_json::from_slice(&answer).map_err(|e| e.to_string())?;
        Ok(groups.groups)
    }
}
