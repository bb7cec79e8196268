//! `/cluster`: the nodes of the cluster, who leads what, and changes of both.

use std::collections::BTreeMap;

use axum::Json;
use axum::extract::State;
use esker_node::cluster::ClusterPartition;
use esker_node::{Cluster, ClusterError, ClusterNode, ClusterStatus, Node, NodeState};
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use utoipa::ToSchema;

use super::error::Failures;
pub use super::replicas::{
    CheckOutcome, GroupMembers, KeptForAbsent, MembersWait, ReplicaCheck, ReplicaDigest,
    ReplicaFetch,
};
use super::request::{Body, InPath, ReadNode, WriteNode};
use super::{Admin, AdminError};
use crate::auth::Access;
use crate::timestamp::timestamp;

/// The cluster, as its nodes report it.
#[derive(Clone, Debug, Deserialize, Serialize, ToSchema)]
pub struct ClusterView {
    /// The number of the node that answers.
    pub node: u64,
    /// Why the other nodes do not take the node that answers; absent if they do. What it shows is then as of when it
    /// last belonged to the cluster.
    #[serde(default)]
    pub refused: Option<String>,
    /// The nodes, in order of their numbers.
    pub nodes: Vec<ClusterMember>,
    /// The nodes that were removed last, the last one first: 64 at most.
    #[serde(default)]
    pub removed: Vec<RemovedMember>,
    /// How many removed nodes are remembered.
    #[serde(default)]
    pub removed_count: u64,
    /// The partitions, the catalog first.
    pub partitions: Vec<ClusterGroup>,
}

/// A node that belongs to the cluster no more. Its number is never used again.
#[derive(Clone, Debug, Deserialize, Serialize, ToSchema)]
pub struct RemovedMember {
    /// Its number.
    pub node: u64,
    /// Its name at that time.
    pub name: String,
    /// When it was removed, by the clock of the node that led the catalog; absent if that was not recorded: an
    /// earlier version has removed it, or `given_up` is true.
    #[serde(default, with = "time::serde::rfc3339::option")]
    #[schema(required = false)]
    pub removed_at: Option<OffsetDateTime>,
    /// Whether nobody has removed it, and it was given up by `esker cluster recover` on another node.
    pub given_up: bool,
}

/// A node of the cluster.
#[derive(Clone, Debug, Deserialize, Serialize, ToSchema)]
pub struct ClusterMember {
    /// Its number.
    pub node: u64,
    /// Its name.
    pub name: String,
    /// Whether it takes part.
    pub state: MemberState,
    /// Where other nodes reach it.
    pub peer_address: String,
    /// Where clients reach it.
    pub client_address: String,
    /// What fails together with it; absent if that is not configured.
    pub zone: Option<String>,
    /// Why it has not answered; absent if it has.
    pub unreachable: Option<String>,
    /// The number of another node that answers at `peer_address`, as the answering node has found; absent if there
    /// is none. Nothing is sent to it. The node itself is looked for where it was found last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address_answers_as: Option<u64>,
    /// How many partitions it leads, as it reports itself.
    pub leads: u64,
}

/// Whether a node takes part.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum MemberState {
    /// It is registered, and has not caught up for the first time.
    Joining,
    /// It has replicas.
    Active,
    /// Its leaderships and its votes move to other nodes.
    Draining,
    /// It belongs to the cluster no more.
    Removed,
}

/// A partition of the cluster.
#[derive(Clone, Debug, Deserialize, Serialize, ToSchema)]
pub struct ClusterGroup {
    /// Its number.
    pub partition: u64,
    /// The number of the node that leads it, as the answering node knows; absent if it knows none.
    pub leader: Option<u64>,
    /// The name of that node.
    pub leader_name: Option<String>,
    /// What each node that has answered has of it, in order of the nodes' numbers.
    pub replicas: Vec<ClusterReplica>,
    /// Who belongs to it; absent if its leader has not answered.
    #[serde(default)]
    pub members: Option<GroupMembers>,
    /// The last comparison of the replicas; absent if there was none yet.
    pub check: Option<ReplicaCheck>,
    /// Whether one is under way.
    pub checking: bool,
    /// Why the last one came to no end, if so.
    pub check_failed: Option<String>,
}

/// A check that was begun.
#[derive(Clone, Debug, Deserialize, Serialize, ToSchema)]
pub struct CheckBegun {
    /// The partition.
    pub partition: u64,
}

/// What a node has of a partition.
#[derive(Clone, Debug, Deserialize, Serialize, ToSchema)]
pub struct ClusterReplica {
    /// The node's number.
    pub node: u64,
    /// Its name.
    pub name: String,
    /// `leader`, `follower`, `candidate`, `learner`, or `waiting` for its first snapshot or entry. Leaders,
    /// followers and candidates vote.
    pub role: String,
    /// Its term.
    pub term: u64,
    /// The last LSN that it has applied.
    pub applied: u64,
    /// The last entry of its log.
    pub last: u64,
    /// How many entries it has applied less than the log of the leader has; absent if the leader has not answered.
    pub lag: Option<u64>,
    /// Why it applies nothing, if so.
    pub halted: Option<String>,
    /// The snapshot that it fetches; absent if it fetches none.
    pub fetching: Option<ReplicaFetch>,
}

/// A change that was made.
#[derive(Clone, Debug, Deserialize, Serialize, ToSchema)]
pub struct ClusterChange {
    /// The node's number.
    pub node: u64,
    /// Its name.
    pub name: String,
}

/// Which node is to lead.
#[derive(Clone, Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct NewLeader {
    /// Its number or its name.
    to: NodeSaid,
}

/// Which replica is right of those that differ.
#[derive(Clone, Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct RightReplica {
    /// The number or the name of its node.
    node: NodeSaid,
}

/// The number of a node, or its name.
#[derive(Clone, Debug, Deserialize, ToSchema)]
#[serde(untagged)]
enum NodeSaid {
    /// A number.
    Number(u64),
    /// A name, or a number as text.
    Text(String),
}

impl NodeSaid {
    fn text(&self) -> String {
        match self {
            NodeSaid::Number(number) => number.to_string(),
            NodeSaid::Text(text) => text.clone(),
        }
    }
}

/// Shows the nodes of the cluster, and what each has of each partition.
///
/// Every node is asked, and one that does not answer within two seconds is shown with the reason.
#[utoipa::path(
    get,
    path = "/esker/v1/cluster",
    operation_id = "cluster",
    tag = "cluster",
    responses((status = 200, description = "Also if nodes do not answer", body = ClusterView), Failures)
)]
pub(super) async fn show(ReadNode(node): ReadNode) -> Result<Json<ClusterView>, AdminError> {
    let cluster = cluster(&node)?;
    Ok(Json(cluster.status().await.into()))
}

/// Removes a node from the cluster, for good.
///
/// It needs the root token, because it cannot be taken back: the node's number is never used again, and to bring the
/// machine back, it joins with an empty data directory. Refused where
/// a partition would lose its majority: all nodes are asked for that now, and more than half of the other voters of
/// each partition have to answer.
///
/// Answers as soon as that is recorded. The node's votes go after that: stop it once `members` of every partition in
/// `GET /cluster` is there, does not have it, and is not `unconfirmed`. Of a node that was removed already the answer is the same, and nothing
/// happens.
#[utoipa::path(
    post,
    path = "/esker/v1/cluster/nodes/{node}/remove",
    operation_id = "remove_node",
    tag = "cluster",
    params(("node" = String, Path, description = "The node's number, or its name")),
    responses((status = 200, description = "It is removed", body = ClusterChange), Failures)
)]
pub(super) async fn remove(
    access: Access,
    WriteNode(own): WriteNode,
    InPath(node): InPath<String>,
) -> Result<Json<ClusterChange>, AdminError> {
    access.root()?;
    let cluster = cluster(&own)?;
    let mut removed = cluster.removed(&node);
    if removed.as_ref().is_some_and(|of| of.id.to_string() != node) {
        // Another node may have joined by this name since, which the copy of the catalog here does not have yet.
        let current = cluster.read_index(0).await;
        current.map_err(|error| AdminError::listed("cluster_unavailable", error))?;
        removed = cluster.removed(&node);
    }
    if let Some(removed) = removed {
        return Ok(Json(ClusterChange {
            node: removed.id,
            name: removed.name,
        }));
    }
    let found = find(&cluster, &node)?;
    cluster.remove(found.node).await?;
    tracing::info!(node = found.node, name = found.name, "Node was removed");
    Ok(Json(found))
}

/// Moves the leaderships and votes of a node to others.
///
/// Answers as soon as that is recorded; `GET /cluster` shows when the node leads nothing any more, and which votes it
/// keeps because no other node can take them. It stays a learner of its partitions.
#[utoipa::path(
    post,
    path = "/esker/v1/cluster/nodes/{node}/drain",
    operation_id = "drain_node",
    tag = "cluster",
    params(("node" = String, Path, description = "The node's number, or its name")),
    responses((status = 200, description = "It is being drained", body = ClusterChange), Failures)
)]
pub(super) async fn drain(
    WriteNode(own): WriteNode,
    InPath(node): InPath<String>,
) -> Result<Json<ClusterChange>, AdminError> {
    let (cluster, found) = named(&own, &node)?;
    cluster.drain(found.node).await?;
    tracing::info!(node = found.node, name = found.name, "Node is drained");
    Ok(Json(found))
}

/// Lets a node that was drained take part again.
#[utoipa::path(
    post,
    path = "/esker/v1/cluster/nodes/{node}/activate",
    operation_id = "activate_node",
    tag = "cluster",
    params(("node" = String, Path, description = "The node's number, or its name")),
    responses((status = 200, description = "It takes part", body = ClusterChange), Failures)
)]
pub(super) async fn activate(
    WriteNode(own): WriteNode,
    InPath(node): InPath<String>,
) -> Result<Json<ClusterChange>, AdminError> {
    let (cluster, found) = named(&own, &node)?;
    cluster.activate(found.node).await?;
    tracing::info!(
        node = found.node,
        name = found.name,
        "Node takes part again"
    );
    Ok(Json(found))
}

/// Makes another node lead a partition.
#[utoipa::path(
    post,
    path = "/esker/v1/cluster/partitions/{partition}/leader",
    operation_id = "transfer_leader",
    tag = "cluster",
    params(("partition" = u64, Path, description = "The partition")),
    request_body = NewLeader,
    responses((status = 200, description = "It leads", body = ClusterChange), Failures)
)]
pub(super) async fn transfer_leader(
    State(admin): State<Admin>,
    WriteNode(node): WriteNode,
    InPath(partition): InPath<u64>,
    Body(new): Body<NewLeader>,
) -> Result<Json<ClusterChange>, AdminError> {
    let cluster = cluster(&node)?;
    known_partition(&admin, partition)?;
    let found = find(&cluster, &new.to.text())?;
    cluster.transfer_leader(partition, found.node).await?;
    Ok(Json(found))
}

/// Compares the replicas of a partition.
///
/// Each computes a digest of what it has, as of the same entry of the log, and one that differs from the majority
/// stops. Answers as soon as that is to begin; `check` in `GET /cluster` shows the result once its `noted_at` has
/// grown.
#[utoipa::path(
    post,
    path = "/esker/v1/cluster/partitions/{partition}/check",
    operation_id = "check_replicas",
    tag = "cluster",
    params(("partition" = u64, Path, description = "The partition")),
    responses((status = 200, description = "It is to begin", body = CheckBegun), Failures)
)]
pub(super) async fn check(
    State(admin): State<Admin>,
    WriteNode(node): WriteNode,
    InPath(partition): InPath<u64>,
) -> Result<Json<CheckBegun>, AdminError> {
    let cluster = cluster(&node)?;
    known_partition(&admin, partition)?;
    cluster.check(partition).await?;
    Ok(Json(CheckBegun { partition }))
}

/// Names the right one of replicas that differ.
///
/// It needs the root token, because it cannot be taken back: replicas with another state stop for good. For a partition
/// of which it is not known which replica is right (`undecided` in `GET /cluster`). The replica is given the
/// leadership; other nodes can have its state again, and its snapshots are put into the repository. It is compared with
/// the others at once: once more than half of the voters have its state, those that have another one stop.
#[utoipa::path(
    post,
    path = "/esker/v1/cluster/partitions/{partition}/trust",
    operation_id = "trust_replica",
    tag = "cluster",
    params(("partition" = u64, Path, description = "The partition")),
    request_body = RightReplica,
    responses((status = 200, description = "It counts as the right one", body = ClusterChange), Failures)
)]
pub(super) async fn trust(
    access: Access,
    State(admin): State<Admin>,
    WriteNode(node): WriteNode,
    InPath(partition): InPath<u64>,
    Body(right): Body<RightReplica>,
) -> Result<Json<ClusterChange>, AdminError> {
    access.root()?;
    let cluster = cluster(&node)?;
    known_partition(&admin, partition)?;
    let found = find(&cluster, &right.node.text())?;
    let status = cluster.status().await;
    let of = status.partitions.into_iter().nth(partition as usize);
    let noted_at = of.and_then(|of| of.check).map_or(0, |check| check.noted_at);
    cluster.trust(partition, noted_at, found.node).await?;
    tracing::info!(
        partition,
        node = found.node,
        name = found.name,
        "Replica counts as the right one of those that differ"
    );
    Ok(Json(found))
}

/// Refuses the number of a partition that there is not.
fn known_partition(admin: &Admin, partition: u64) -> Result<(), AdminError> {
    let partitions = admin.long.partitions();
    match partition < partitions {
        true => Ok(()),
        false => Err(AdminError::listed(
            "partition_not_found",
            format!(
                "there is no partition {partition}: they are 0 to {}",
                partitions - 1
            ),
        )),
    }
}

/// The cluster of this node.
fn cluster(node: &Node) -> Result<Cluster, AdminError> {
    node.cluster().ok_or_else(|| {
        AdminError::listed(
            "not_in_cluster",
            "this node is not in a cluster: to begin one, set `cluster.peer-listen`; to join one, set `cluster.join` \
             as well, with an empty data directory",
        )
    })
}

/// The cluster of the node that answers, and the node of it that a request names.
fn named(own: &Node, said: &str) -> Result<(Cluster, ClusterChange), AdminError> {
    let cluster = cluster(own)?;
    let found = find(&cluster, said)?;
    Ok((cluster, found))
}

/// A node of the cluster by its number or its name.
fn find(cluster: &Cluster, said: &str) -> Result<ClusterChange, AdminError> {
    let nodes = cluster.nodes();
    let mut found = nodes
        .iter()
        .filter(|node| node.name == said || node.id.to_string() == said);
    match (found.next(), found.next()) {
        (Some(node), None) => Ok(ClusterChange {
            node: node.id,
            name: node.name.clone(),
        }),
        (Some(one), Some(other)) => Err(AdminError::invalid(format!(
            "{said} is the name of one node and the number of another: {} ({}) and {} ({})",
            one.name, one.id, other.name, other.id
        ))),
        (None, _) => {
            let names: Vec<_> = nodes
                .iter()
                .map(|node| format!("{} ({})", node.name, node.id))
                .collect();
            Err(AdminError::listed(
                "node_not_found",
                format!(
                    "the cluster has no node {said}: it has {}",
                    names.join(", ")
                ),
            ))
        }
    }
}

impl From<ClusterError> for AdminError {
    fn from(error: ClusterError) -> AdminError {
        match error {
            ClusterError::Refused(why) => AdminError::listed("cluster_refused", why),
            ClusterError::TryLater(why) => AdminError::listed("cluster_unavailable", why),
        }
    }
}

impl From<ClusterStatus> for ClusterView {
    fn from(status: ClusterStatus) -> ClusterView {
        let names: BTreeMap<u64, String> = status
            .nodes
            .iter()
            .map(|of| (of.node.id, of.node.name.clone()))
            .collect();
        let nodes = status.nodes.into_iter().map(|of| ClusterMember {
            node: of.node.id,
            name: of.node.name,
            state: match of.node.state {
                NodeState::Joining => MemberState::Joining,
                NodeState::Active => MemberState::Active,
                NodeState::Draining => MemberState::Draining,
                NodeState::Removed => MemberState::Removed,
            },
            peer_address: of.node.peer_address,
            client_address: of.node.client_address,
            zone: Some(of.node.zone).filter(|zone| !zone.is_empty()),
            unreachable: of.unreachable,
            address_answers_as: of.answers_as,
            leads: of.leads as u64,
        });
        let partitions = status.partitions.into_iter();
        ClusterView {
            node: status.me,
            refused: status.refused,
            nodes: nodes.collect(),
            removed: status.removed.iter().map(RemovedMember::from).collect(),
            removed_count: status.removed_count as u64,
            partitions: partitions.map(|of| group(of, &names)).collect(),
        }
    }
}

impl From<&ClusterNode> for RemovedMember {
    fn from(node: &ClusterNode) -> RemovedMember {
        RemovedMember {
            node: node.id,
            name: node.name.clone(),
            removed_at: node.removed_at_ms.and_then(|at| timestamp(at).ok()),
            given_up: node.given_up,
        }
    }
}

fn group(of: ClusterPartition, names: &BTreeMap<u64, String>) -> ClusterGroup {
    let name = |node: u64| {
        let name = names.get(&node).cloned();
        name.unwrap_or_else(|| format!("node {node}"))
    };
    let leader = of.leader.and_then(|leader| of.replicas.get(&leader));
    let end = leader
        .filter(|leader| leader.role == "leader")
        .map(|leader| leader.last);
    let replicas = of.replicas.iter().map(|(node, replica)| ClusterReplica {
        node: *node,
        name: name(*node),
        role: replica.role.clone(),
        term: replica.term,
        applied: replica.applied,
        last: replica.last,
        // The reports are not of one moment.
        lag: end.map(|end| end.saturating_sub(replica.applied)),
        halted: replica.halted.clone(),
        fetching: replica.fetching.as_ref().map(ReplicaFetch::from),
    });
    let replicas = replicas.collect();
    ClusterGroup {
        members: of.members.map(GroupMembers::from),
        check: of.check.map(ReplicaCheck::from),
        checking: of.checks,
        check_failed: of.check_failed,
        partition: of.partition,
        leader: of.leader,
        leader_name: of.leader.map(name),
        replicas,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_replica_lags_by_what_the_leader_has_and_it_has_not_applied() {
        let replica = |role: &str, applied, last| esker_node::cluster::Replica {
            role: role.to_owned(),
            term: 2,
            applied,
            last,
            halted: None,
            fetching: None,
        };
        let names = BTreeMap::from([(1, "n1".to_owned()), (2, "n2".to_owned())]);
        let mut of = ClusterPartition {
            partition: 3,
            leader: Some(1),
            replicas: BTreeMap::from([
                (1, replica("leader", 10, 12)),
                (2, replica("learner", 4, 5)),
                (3, replica("follower", 13, 13)),
            ]),
            check: None,
            checks: false,
            check_failed: None,
            members: None,
        };
        let shown = group(of.clone(), &names);
        assert_eq!(shown.leader_name.as_deref(), Some("n1"));
        let lags: Vec<_> = shown.replicas.iter().map(|it| it.lag).collect();
        assert_eq!(lags, [Some(2), Some(8), Some(0)]);
        assert_eq!(shown.replicas[2].name, "node 3");

        // The leader has not answered.
        of.replicas.remove(&1);
        let shown = group(of, &names);
        assert!(shown.replicas.iter().all(|it| it.lag.is_none()));
        assert_eq!(shown.leader, Some(1));
    }
}
