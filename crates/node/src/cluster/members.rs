//! Keeps this node registered, and the members of the groups that it leads as the catalog wants them.
//!
//! Four loops that wait for different things, and so not for each other: one follows what the catalog says and
//! waits for nothing, one registers with nodes that may not answer, one makes nodes active, one changes members
//! ([`changes`]).

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use esker_partition::command::{Kind, NodeState, Outcome, SetNodeState};
use esker_raft::NodeId;
use esker_raft::engine::MAX_PROMOTION_LAG;
use esker_raft::transport::grpc::{CallError, Claim, EarlierProcesses, call_at};

use super::changes;
use super::contact::{LATELY_TICKS, is_heard};
use super::peers::{Peers, cluster_number};
use super::registration::{is_due, weightier};
use super::rounds::next_round;
use super::wire::{JOIN, Joined};
use crate::core::Inner;

/// How long another node may take to answer a registration.
const CALL_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a registration may take in all, however many nodes do not answer.
const REGISTER_TIMEOUT: Duration = Duration::from_secs(20);
/// Wait after a registration that failed.
const RETRY_INTERVAL: Duration = Duration::from_secs(1);

/// Runs until the node stops.
pub(crate) async fn run(inner: Arc<Inner>) {
    let Some(peers) = inner.peers.clone() else {
        return;
    };
    tokio::join!(
        follow(&inner, &peers),
        keep_registered(&inner, &peers),
        activate_nodes(&inner),
        changes::run(&inner, &peers),
    );
}

/// Follows what the catalog says of the nodes.
async fn follow(inner: &Inner, peers: &Peers) {
    while next_round(inner).await {
        inner.follow_nodes();
        let nodes = peers.directory.all();
        let incarnations = nodes.values().flat_map(|node| node.incarnations.iter());
        inner
            .snapshots
            .archive
            .take_over_from(incarnations.copied());
    }
}

/// Registers this node whenever the catalog does not have it as it is.
async fn keep_registered(inner: &Arc<Inner>, peers: &Peers) {
    let mut register_at = Instant::now();
    let mut had_leader = Instant::now();
    while next_round(inner).await {
        if inner.catalog.leader().is_some() {
            had_leader = Instant::now();
        }
        let is_registered = inner.is_registered();
        peers.note_registered(is_registered);
        let is_refused = peers.refusal().is_some();
        let is_due = is_due(is_registered, is_refused, had_leader.elapsed());
        if !is_due || register_at > Instant::now() {
            continue;
        }
        let registered = tokio::select! {
            registered = tokio::time::timeout(REGISTER_TIMEOUT, register(inner, peers)) => registered,
            () = inner.stopping.cancelled() => return,
        };
        let registered = registered.unwrap_or_else(|_| {
            let why = "no node has answered in time".to_owned();
            Err(CallError::Unavailable(why))
        });
        if let Err(CallError::Unavailable(why) | CallError::Stranger(why)) = &registered {
            tracing::debug!(why, "a registration with the cluster had no effect");
        }
        peers.note_answer(&registered, peers.is_known(&inner.catalog_reader.nodes()));
        register_at = Instant::now() + RETRY_INTERVAL;
    }
}

/// Registers this node: by itself if it leads the catalog, else with a node that it knows. If no node takes it, a
/// refusal counts for more than nodes that cannot be reached: of a node that was removed, the others may be gone.
async fn register(inner: &Arc<Inner>, peers: &Peers) -> Result<(), CallError> {
    let mine = peers.registration();
    let claim = Claim {
        cluster: cluster_number(&inner.identity.cluster_id),
        node: NodeId(peers.me()),
        process: 0,
        earlier: EarlierProcesses::default(),
    };
    if inner.catalog.is_serving() {
        return inner.register(mine, claim).await.map(drop);
    }
    let body = serde_json::to_vec(&mine).map_err(|e| CallError::Refused(e.to_string()))?;
    let body = Bytes::from(body);
    let mut failed = CallError::Unavailable("no other node is known".to_owned());
    let nodes = peers.directory.all();
    let leader = inner.catalog.leader().map(|leader| leader.0);
    // The leader first: the others pass the call on to it.
    let others = nodes
        .values()
        .filter(|node| node.state != NodeState::Removed);
    let others = others
        .map(|node| node.id)
        .filter(|node| Some(*node) != leader);
    let all = leader.into_iter().chain(others);
    for node in all.filter(|node| *node != peers.me()) {
        let transport = &peers.transport;
        match transport
            .call(NodeId(node), JOIN, body.clone(), CALL_TIMEOUT)
            .await
        {
            Ok(_) => return Ok(()),
            Err(error) => failed = weightier(failed, error),
        }
    }
    for address in peers.configured() {
        let claim = peers.transport.claim().unwrap_or(claim);
        let config = peers.credentials(claim);
        match call_at(address, &config, JOIN, body.clone(), CALL_TIMEOUT).await {
            Ok(answer) => return registered(peers, &answer),
            Err(error) => failed = weightier(failed, error),
        }
    }
    Err(failed)
}

/// Takes the addresses that the cluster has told. Until this node has the catalog, it has no others.
fn registered(peers: &Peers, answer: &[u8]) -> Result<(), CallError> {
    let joined: Joined = serde_json::from_slice(answer)
        .map_err(|e| CallError::Refused(format!("the answer cannot be read: {e}")))?;
    peers.know(&joined.nodes);
    Ok(())
}

impl Inner {
    /// Takes the nodes that the catalog has, and the members of the groups here.
    pub(crate) fn follow_nodes(&self) {
        let Some(peers) = &self.peers else {
            return;
        };
        let mut members = BTreeSet::new();
        for group in self.groups() {
            members.extend(group.membership().members().map(|node| node.0));
        }
        peers.follow(self.catalog_reader.nodes(), members);
    }

    /// A member of a partition whose release does not read a format of commands, if there is one.
    pub(crate) fn member_not_reading(&self, partition: u64, format: u32) -> Option<u64> {
        let nodes = self.catalog_reader.nodes();
        let membership = self.group(partition).membership();
        let mut members = membership.members().map(|node| node.0);
        members.find(|node| {
            let known = nodes.get(node);
            known.is_none_or(|known| known.reads_format < format)
        })
    }

    /// Whether the catalog has this node as it is, with the incarnation as which it puts snapshots. On a node that
    /// is not in a cluster nothing is registered.
    pub(crate) fn is_registered(&self) -> bool {
        let Some(peers) = &self.peers else {
            return true;
        };
        peers.is_registered(&self.catalog_reader.nodes())
    }
}

/// Makes nodes active that have joined and caught up with the catalog. The catalog's leader alone does.
async fn activate_nodes(inner: &Inner) {
    while next_round(inner).await {
        if inner.catalog.is_serving() {
            activate_joined(inner).await;
        }
    }
}

async fn activate_joined(inner: &Inner) {
    let nodes = inner.catalog_reader.nodes();
    let is_joining = |node: &u64| nodes.get(node).map(|it| it.state) == Some(NodeState::Joining);
    let details = inner.catalog.details();
    let has_caught_up = details.peers.iter().filter(|peer| {
        let lacks = details.last.0.saturating_sub(peer.matched.0);
        peer.matched.0 > 0
            && lacks <= MAX_PROMOTION_LAG
            && is_heard(&details.peers, peer.id, LATELY_TICKS)
    });
    let has_caught_up = has_caught_up.map(|peer| peer.id.0).chain([details.id.0]);
    for node in has_caught_up.filter(is_joining) {
        let command = Kind::SetNodeState(SetNodeState {
            id: node,
            state: NodeState::Active.into(),
            at_ms: 0,
        });
        match inner.execute(&inner.catalog, command).await {
            Ok(Outcome::NodeSet(Ok(()))) => tracing::info!(
                node,
                name = nodes[&node].name,
                "a node has joined the cluster and has caught up with the catalog"
            ),
            Ok(other) => tracing::warn!(node, ?other, "a node did not become active"),
            Err(error) => tracing::warn!(node, %error, "a node did not become active"),
        }
    }
}
