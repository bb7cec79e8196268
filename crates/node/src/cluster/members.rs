//! Keeps this node registered, and the members of the groups that it leads as the catalog wants them.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use esker_partition::command::{Kind, NodeState, Outcome, SetNodeState};
use esker_raft::engine::PeerState;
use esker_raft::transport::grpc::{CallError, Claim, call_at};
use esker_raft::{Group, NodeId};

use super::peers::{Peers, cluster_number};
use super::plan::{Seen, Step};
use super::wire::{JOIN, Joined};
use crate::core::Inner;

/// How often nodes and members are looked at.
const INTERVAL: Duration = Duration::from_millis(250);
/// How long a node has led a partition before it gives the leadership to the preferred node: longer than a node
/// takes that restarts, so that leaders do not follow every restart at once.
const SETTLED: Duration = Duration::from_secs(10);
/// How long a change of the members may take.
const CHANGE_TIMEOUT: Duration = Duration::from_secs(10);
/// How long another node may take to answer a registration.
const CALL_TIMEOUT: Duration = Duration::from_secs(5);
/// Wait after a registration that failed.
const RETRY_INTERVAL: Duration = Duration::from_secs(1);
/// Without a leader of the catalog for so long, this node registers again: the others may have removed it, and tell
/// that only when they are asked.
const LEADERLESS: Duration = Duration::from_secs(10);

/// Runs until the node stops.
pub(crate) async fn run(inner: Arc<Inner>) {
    let Some(peers) = inner.peers.clone() else {
        return;
    };
    let stopping = inner.stopping.clone();
    let mut led_since = HashMap::new();
    let mut register_at = Instant::now();
    let mut had_leader = Instant::now();
    while tokio::time::timeout(INTERVAL, stopping.cancelled())
        .await
        .is_err()
    {
        inner.follow_nodes();
        let nodes = peers.directory.all();
        let incarnations = nodes.values().flat_map(|node| node.incarnations.iter());
        inner
            .snapshots
            .archive
            .take_over_from(incarnations.copied());
        if inner.catalog.leader().is_some() {
            had_leader = Instant::now();
        }
        let is_due = !inner.is_registered() || had_leader.elapsed() >= LEADERLESS;
        if is_due && register_at <= Instant::now() {
            let registered = register(&inner, &peers).await;
            if let Err(CallError::Unavailable(why)) = &registered {
                tracing::debug!(why, "this node is not registered with the cluster yet");
            }
            peers.note_answer(&registered);
            register_at = Instant::now() + RETRY_INTERVAL;
        }
        activate_joined(&inner).await;
        for group in inner.groups() {
            reconcile(&inner, &peers, group, &mut led_since).await;
        }
    }
}

/// Registers this node: by itself if it leads the catalog, else with a node that it knows.
async fn register(inner: &Arc<Inner>, peers: &Peers) -> Result<(), CallError> {
    let mine = peers.registration(inner.snapshots.archive.incarnation().0);
    let claim = Claim {
        cluster: cluster_number(&inner.identity.cluster_id),
        node: NodeId(peers.me()),
        process: 0,
    };
    if inner.catalog.is_serving() {
        return inner.register(mine, claim).await.map(drop);
    }
    let body = serde_json::to_vec(&mine).map_err(|e| CallError::Refused(e.to_string()))?;
    let body = Bytes::from(body);
    let mut failed = CallError::Unavailable("no other node is known".to_owned());
    let nodes = peers.directory.all();
    for node in nodes.keys().filter(|node| **node != peers.me()) {
        let transport = &peers.transport;
        match transport
            .call(NodeId(*node), JOIN, body.clone(), CALL_TIMEOUT)
            .await
        {
            Ok(_) => return Ok(()),
            Err(error) => failed = error,
        }
    }
    for address in peers.configured() {
        let claim = peers.transport.claim().unwrap_or(claim);
        let config = peers.credentials(claim);
        match call_at(address, &config, JOIN, body.clone(), CALL_TIMEOUT).await {
            Ok(answer) => return registered(peers, &answer),
            Err(error) => failed = error,
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

    /// Whether the catalog has this node as it is, with the incarnation as which it puts snapshots. On a node that
    /// is not in a cluster nothing is registered.
    pub(crate) fn is_registered(&self) -> bool {
        let Some(peers) = &self.peers else {
            return true;
        };
        let incarnation = self.snapshots.archive.incarnation().0;
        peers.is_registered(&self.catalog_reader.nodes(), incarnation)
    }
}

/// Makes nodes active that have joined and caught up with the catalog. The catalog's leader alone does.
async fn activate_joined(inner: &Inner) {
    let nodes = inner.catalog_reader.nodes();
    let mut joining = nodes
        .values()
        .filter(|node| node.state == NodeState::Joining);
    let Some(first) = joining.next() else {
        return;
    };
    if !inner.catalog.is_serving() {
        return;
    }
    let details = inner.catalog.details();
    let has_caught_up = |node: u64| {
        node == details.id.0
            || details.peers.iter().any(|peer| {
                peer.id.0 == node
                    && peer.state == PeerState::Replicate
                    && peer.heard_ticks_ago.is_some_and(|ago| ago < 10)
            })
    };
    for node in std::iter::once(first).chain(joining) {
        if !has_caught_up(node.id) {
            continue;
        }
        let command = Kind::SetNodeState(SetNodeState {
            id: node.id,
            state: NodeState::Active.into(),
        });
        match inner.execute(&inner.catalog, command).await {
            Ok(Outcome::NodeSet(Ok(()))) => tracing::info!(
                node = node.id,
                name = node.name,
                "a node has joined the cluster and has caught up with the catalog"
            ),
            Ok(other) => tracing::warn!(node = node.id, ?other, "a node did not become active"),
            Err(error) => tracing::warn!(node = node.id, %error, "a node did not become active"),
        }
    }
}

/// Makes the next change of a group that this node leads.
async fn reconcile(
    inner: &Inner,
    peers: &Peers,
    group: &Group<Outcome>,
    led_since: &mut HashMap<u64, Instant>,
) {
    let partition = group.id().0;
    if !group.is_serving() {
        led_since.remove(&partition);
        return;
    }
    let since = *led_since.entry(partition).or_insert_with(Instant::now);
    let details = group.details();
    let seen = Seen {
        partition,
        me: NodeId(peers.me()),
        membership: &details.membership,
        peers: &details.peers,
        last: details.last.0,
        is_settled: since.elapsed() >= SETTLED,
    };
    let Some(step) = seen.next(&inner.catalog_reader.nodes()) else {
        return;
    };
    let change = async {
        match step {
            Step::Change(change) => group.change_membership(change).await,
            Step::Transfer(to) => group.transfer_leadership(to).await,
        }
    };
    match tokio::time::timeout(CHANGE_TIMEOUT, change).await {
        Ok(Ok(())) => tracing::info!(partition, ?step, "the members of a partition have changed"),
        Ok(Err(error)) => {
            tracing::debug!(partition, ?step, %error, "the members of a partition did not change");
        }
        Err(_) => tracing::warn!(
            partition,
            ?step,
            "a change of the members of a partition takes long"
        ),
    }
}
