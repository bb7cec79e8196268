//! Keeps this node registered, and the members of the groups that it leads as the catalog wants them.
//!
//! Four loops that wait for different things, and so not for each other: one follows what the catalog says and
//! waits for nothing, one registers with nodes that may not answer, one makes nodes active, one changes members.
//! Changes of different groups are made at the same time, up to a bound; each has a deadline.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use esker_partition::command::{Kind, NodeState, Outcome, SetNodeState};
use esker_raft::engine::PeerState;
use esker_raft::transport::grpc::{CallError, Claim, call_at};
use esker_raft::{Group, MembershipChange, NodeId};
use tokio::task::JoinSet;

use super::directory::Nodes;
use super::peers::{Peers, cluster_number};
use super::plan::{Seen, Step};
use super::wire::{JOIN, Joined};
use crate::blocking::blocking;
use crate::core::Inner;

/// How often nodes and members are looked at.
const INTERVAL: Duration = Duration::from_millis(250);
/// How long a node has led a partition before it gives the leadership to the preferred node: longer than a node
/// takes that restarts, so that leaders do not follow every restart at once.
const SETTLED: Duration = Duration::from_secs(10);
/// How long a partition stays where it is after it was offered to the preferred node, should that not take it or give
/// it back: its disk may hang, and no appends are taken while it is asked.
const OFFER_INTERVAL: Duration = Duration::from_secs(60);
/// How long a change of the members may take.
const CHANGE_TIMEOUT: Duration = Duration::from_secs(10);
/// Changes that a node makes at a time: a group that cannot change must not stop the others, and each new member
/// is sent a whole partition.
const MAX_CHANGES: usize = 4;
/// How long another node may take to answer a registration.
const CALL_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a registration may take in all, however many nodes do not answer.
const REGISTER_TIMEOUT: Duration = Duration::from_secs(20);
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
    tokio::join!(
        follow(&inner, &peers),
        keep_registered(&inner, &peers),
        activate_nodes(&inner),
        change_members(&inner, &peers),
    );
}

/// Waits for the next round. Returns whether there is one.
async fn next_round(inner: &Inner) -> bool {
    let stopped = tokio::time::timeout(INTERVAL, inner.stopping.cancelled());
    stopped.await.is_err()
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
        let is_due = !inner.is_registered() || had_leader.elapsed() >= LEADERLESS;
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
        if let Err(CallError::Unavailable(why)) = &registered {
            tracing::debug!(why, "this node is not registered with the cluster yet");
        }
        peers.note_answer(&registered);
        register_at = Instant::now() + RETRY_INTERVAL;
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
        let incarnation = self.snapshots.archive.incarnation().0;
        peers.is_registered(&self.catalog_reader.nodes(), incarnation)
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
        peer.state == PeerState::Replicate && peer.heard_ticks_ago.is_some_and(|ago| ago < 10)
    });
    let has_caught_up = has_caught_up.map(|peer| peer.id.0).chain([details.id.0]);
    for node in has_caught_up.filter(is_joining) {
        let command = Kind::SetNodeState(SetNodeState {
            id: node,
            state: NodeState::Active.into(),
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

/// Since when this node leads a group, and when it last offered it to another one.
#[derive(Default)]
struct Lead {
    since: Option<Instant>,
    offered: Option<Instant>,
}

impl Lead {
    /// Whether it is time to offer the group to the preferred node.
    fn is_settled(&self, now: Instant) -> bool {
        let since = |at: Option<Instant>| at.map(|at| now.saturating_duration_since(at));
        since(self.since).is_some_and(|ago| ago >= SETTLED)
            && since(self.offered).is_none_or(|ago| ago >= OFFER_INTERVAL)
    }
}

/// Changes the members of the groups that this node leads. Of each group one change at a time is under way.
async fn change_members(inner: &Arc<Inner>, peers: &Peers) {
    let mut leads: HashMap<u64, Lead> = HashMap::new();
    let mut under_way = HashSet::new();
    let mut changes = JoinSet::new();
    // The group that is looked at first: with more to change than at a time, all have a turn.
    let mut first = 0;
    while next_round(inner).await {
        while let Some(done) = changes.try_join_next() {
            match done {
                Ok(partition) => under_way.remove(&partition),
                // A panic has ended the process, and nothing is cancelled before the end.
                Err(_) => return,
            };
        }
        let nodes = inner.catalog_reader.nodes();
        if note_peers(inner, peers, &nodes, under_way.is_empty())
            .await
            .is_err()
        {
            continue;
        }
        let count = u64::from(inner.options.partitions) + 1;
        let from = first;
        for partition in (0..count).map(|at| (from + at) % count) {
            let group = inner.group(partition);
            let lead = leads.entry(partition).or_default();
            if !group.is_serving() {
                lead.since = None;
                continue;
            }
            let now = Instant::now();
            lead.since.get_or_insert(now);
            if under_way.len() >= MAX_CHANGES || under_way.contains(&partition) {
                continue;
            }
            let details = group.details();
            let seen = Seen {
                partition,
                me: NodeId(peers.me()),
                membership: &details.membership,
                peers: &details.peers,
                last: details.last.0,
                is_settled: lead.is_settled(now),
            };
            let Some(step) = seen.next(&nodes) else {
                continue;
            };
            if matches!(step, Step::Change(MembershipChange::AddLearner(_)))
                && note(inner, true).await.is_err()
            {
                continue;
            }
            if let Step::Transfer(_) = step {
                lead.offered = Some(now);
            }
            first = partition + 1;
            under_way.insert(partition);
            let group = group.clone();
            changes.spawn(async move {
                change(&group, step).await;
                partition
            });
        }
    }
}

/// Keeps the note in the data directory of whether other nodes may have replicas. It is made before the first one
/// is added, and withdrawn once all have been removed.
async fn note_peers(inner: &Inner, peers: &Peers, nodes: &Nodes, is_quiet: bool) -> Result<(), ()> {
    let me = NodeId(peers.me());
    let has_others = inner.groups().any(|group| {
        let membership = group.membership();
        membership.members().any(|node| node != me)
    });
    if has_others {
        return note(inner, true).await;
    }
    let are_removed = nodes
        .values()
        .all(|node| (node.id == me.0) != (node.state == NodeState::Removed));
    let leads_alone =
        |group: &Group<Outcome>| group.is_serving() && group.membership().voters == [me];
    if is_quiet && are_removed && nodes.contains_key(&me.0) && inner.groups().all(leads_alone) {
        return note(inner, false).await;
    }
    Ok(())
}

async fn note(inner: &Inner, has_peers: bool) -> Result<(), ()> {
    if inner.data_dir.has_peers() == has_peers {
        return Ok(());
    }
    let data_dir = inner.data_dir.clone();
    let noted = blocking(move || data_dir.note_peers(has_peers)).await;
    noted.map_err(|error| {
        tracing::warn!(%error, "the members of partitions do not change until node.json can be written");
    })
}

/// Makes a change of a group that this node leads.
async fn change(group: &Group<Outcome>, step: Step) {
    let partition = group.id().0;
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_partition_that_the_preferred_node_does_not_keep_is_offered_again_after_a_while() {
        let begun = Instant::now();
        let mut lead = Lead::default();
        assert!(!lead.is_settled(begun), "it is not led here");
        lead.since = Some(begun);
        assert!(!lead.is_settled(begun + SETTLED / 2));
        assert!(lead.is_settled(begun + SETTLED));
        // It comes back at once.
        lead.offered = Some(begun + SETTLED);
        lead.since = Some(begun + SETTLED);
        assert!(!lead.is_settled(begun + 3 * SETTLED));
        assert!(lead.is_settled(begun + SETTLED + OFFER_INTERVAL));
    }
}
