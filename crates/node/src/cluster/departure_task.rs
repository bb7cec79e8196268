//! A removed node: it learns that it was removed, keeps its replicas as long as they may be needed, and ends.
//!
//! ```text
//! its catalog has it, or the others refuse it
//!   └▶ it asks all nodes (`REMOVAL`) ─▶ noted in `removed.json`: status, log, the next start
//!        └▶ the leaders of all partitions answer within one round that its replica may go
//!             └▶ noted ─▶ a minute later they are asked once more, and answer the same
//!                  └▶ the host ends the process ─▶ the replicas are deleted
//! ```
//!
//! A process that is stopped or killed before its own end deletes nothing, and the next start asks again: what the
//! others have may have become less since, and what is here may be the last copy then.
//!
//! What has to be true for the second note is in [`farewell`](super::farewell); the deletion, and what a crash leaves,
//! in [`data_dir`](crate::data_dir). Replicas that have diverged are kept for whoever looks for the cause, and so are those
//! that may be the right ones of some that differ. A node that drains keeps its replicas, whether it belongs to their groups or not: it may be added to them again under its number,
//! and what it has voted for is in its log.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use esker_partition::command::NodeState;
use esker_raft::NodeId;
use esker_raft::transport::grpc::{Claim, EarlierProcesses, call_at};

use super::departure::{Told, decide, merge};
use super::peers::{Peers, cluster_number};
use super::replicas::Replicas;
use super::wire::{AskRemoval, KeptReplica, REMOVAL, RemovalOf};
use crate::blocking::blocking;
use crate::core::Inner;
use crate::data_dir::{Stage, Without, noted_now};
use crate::error::StartError;

/// How often it is looked whether this node was removed.
const INTERVAL: Duration = Duration::from_secs(2);
/// How long a removed node waits at most before it asks again: twice as long each time, because what it waits for may
/// take days, or never come.
const MAX_INTERVAL: Duration = Duration::from_secs(60);
/// How long another node may take to answer: it confirms with a majority who leads.
const ASK_TIMEOUT: Duration = Duration::from_secs(3);
/// How often it is logged that the removal cannot be noted.
const WARN_INTERVAL: Duration = Duration::from_secs(600);
/// How long the process stays after its replicas may go, so that whoever has removed the node finds the reason in its
/// status, and can still stop it and keep them.
const LINGER: Duration = Duration::from_secs(60);

/// Runs until the node stops, or has left.
pub(crate) async fn run(inner: Arc<Inner>) {
    let Some(peers) = inner.peers.clone() else {
        return;
    };
    let departure = &inner.replicas.departure;
    let mut wait = INTERVAL;
    let mut warned_at: Option<Instant> = None;
    // Whether the round before has shown that the replicas may go.
    let mut has_lingered = false;
    while tokio::time::timeout(wait, inner.stopping.cancelled())
        .await
        .is_err()
    {
        if !inner.may_be_removed(&peers) {
            publish(0);
            wait = INTERVAL;
            continue;
        }
        let asked = inner.kept_replicas().await;
        let answers = ask_all(&inner, &peers, &asked).await;
        let told = merge(&answers, &inner.identity.cluster_id);
        let is_removed = told.is_some() || departure.known().is_some();
        let may_go = match told {
            Some(told) => inner.take_removal(told).await.unwrap_or_else(|error| {
                if warned_at.is_none_or(|at| at.elapsed() >= WARN_INTERVAL) {
                    warned_at = Some(Instant::now());
                    tracing::warn!(
                        %error,
                        "that this node was removed cannot be noted now; it is tried again"
                    );
                }
                departure.keep("that cannot be noted now".to_owned());
                false
            }),
            None => {
                departure.keep("no other node has said that they may go".to_owned());
                false
            }
        };
        if may_go && has_lingered {
            departure.end();
            return;
        }
        wait = match (may_go, has_lingered) {
            (true, _) => LINGER,
            (false, true) => INTERVAL,
            (false, false) => next_wait(wait, is_removed),
        };
        has_lingered = may_go;
    }
}

/// How long it is waited after a round that deletes nothing.
fn next_wait(before: Duration, is_removed: bool) -> Duration {
    match is_removed {
        true => (before * 2).min(MAX_INTERVAL),
        false => INTERVAL,
    }
}

fn publish(needed: usize) {
    metrics::gauge!("esker_cluster_removed_replicas").set(needed as f64);
}

impl Inner {
    /// Why the other nodes do not take this one, if they do not.
    pub(crate) fn refused_by_cluster(&self) -> Option<String> {
        let removed = self.replicas.departure.describe();
        removed.or_else(|| self.peers.as_ref()?.refusal())
    }

    /// Whether there is a sign that this node was removed.
    fn may_be_removed(&self, peers: &Peers) -> bool {
        let nodes = self.catalog_reader.nodes();
        let in_catalog = nodes
            .get(&peers.me())
            .is_some_and(|me| me.state == NodeState::Removed);
        in_catalog || self.replicas.departure.known().is_some() || peers.refusal().is_some()
    }

    /// What this node has of each partition. One that cannot be read now is not asked for, and stays.
    async fn kept_replicas(self: &Arc<Inner>) -> Vec<KeptReplica> {
        let inner = self.clone();
        blocking(move || {
            let kept = |partition| {
                let lineage = inner.partition_db(partition).lineage().ok()?;
                Some(KeptReplica {
                    partition,
                    lineage: format!("{:032x}", lineage.id().0),
                    last: inner.group(partition).details().last.0,
                })
            };
            (0..=u64::from(inner.options.partitions))
                .filter_map(kept)
                .collect()
        })
        .await
    }

    /// Takes that this node was removed. Returns whether its replicas may go.
    async fn take_removal(self: &Arc<Inner>, told: Told) -> Result<bool, StartError> {
        let departure = &self.replicas.departure;
        let last = u64::from(self.options.partitions);
        let decided = decide_here(&told, last, &self.replicas);
        let known = departure.known();
        let stage_before = known.as_ref().map(|known| known.stage);
        let mut removed = known.unwrap_or_else(|| {
            let identity = &self.identity;
            noted_now(
                identity.node_id,
                &identity.cluster_id,
                &told.name,
                told.removed_at,
                told.replaced_by,
            )
        });
        // It may have joined since.
        let is_replaced = removed.replaced_by.is_none() && told.replaced_by.is_some();
        if is_replaced {
            removed.replaced_by = told.replaced_by;
        }
        publish(decided.as_ref().err().map_or(0, |(needed, _)| *needed));
        let may_go = match decided {
            Ok(without) => {
                removed.stage = Stage::MayGo;
                removed.without = without;
                true
            }
            Err((needed, why)) => {
                (removed.stage, removed.without) = (Stage::Noted, Vec::new());
                departure.wait_for(match needed {
                    1 => why,
                    needed => format!("{needed} partitions need them; {why}"),
                });
                false
            }
        };
        let has_changed = stage_before != Some(removed.stage) || is_replaced;
        if !has_changed {
            return Ok(may_go);
        }
        let (data_dir, note) = (self.data_dir.clone(), removed.clone());
        blocking(move || data_dir.note_removed(&note)).await?;
        departure.take(removed);
        if let Some(what) = departure.describe() {
            tracing::error!("{what}");
        }
        Ok(may_go)
    }
}

/// Why the replicas of all partitions may go; or how many partitions need or doubt theirs, and why one of them does.
/// What is known here counts, whatever the others have decided since: a removed node gets no entries any more.
fn decide_here(
    told: &Told,
    last_partition: u64,
    replicas: &Replicas,
) -> Result<Vec<Without>, (usize, String)> {
    let without = decide(told, last_partition)?;
    match replicas.doubts(last_partition) {
        None => Ok(without),
        Some(doubt) => Err(doubt),
    }
}

/// Asks all nodes that this one knows of, all at once: those of its catalog, which may be old, and those that the
/// configuration names.
async fn ask_all(inner: &Inner, peers: &Peers, asked: &[KeptReplica]) -> Vec<RemovalOf> {
    let body = serde_json::to_vec(&AskRemoval {
        replicas: asked.to_vec(),
    });
    let Ok(body) = body.map(Bytes::from) else {
        return Vec::new();
    };
    let nodes = peers.directory.all();
    let others = nodes
        .values()
        .filter(|node| node.id != peers.me() && node.state != NodeState::Removed);
    let transport = &peers.transport;
    let known =
        others.map(|node| transport.call(NodeId(node.id), REMOVAL, body.clone(), ASK_TIMEOUT));
    let claim = transport.claim().unwrap_or(Claim {
        cluster: cluster_number(&inner.identity.cluster_id),
        node: NodeId(peers.me()),
        process: 0,
        earlier: EarlierProcesses::default(),
    });
    let config = peers.credentials(claim);
    let named = peers.configured().iter();
    let named = named.map(|address| call_at(address, &config, REMOVAL, body.clone(), ASK_TIMEOUT));
    let (known, named) = futures::future::join(
        futures::future::join_all(known),
        futures::future::join_all(named),
    )
    .await;
    let answers = known.into_iter().chain(named).flatten();
    // One of an earlier release does not know the call, and refuses it.
    answers
        .filter_map(|answer| serde_json::from_slice(&answer).ok())
        .collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use esker_partition::digest::{Divergence, ReplicaDigests};

    use super::super::departure::Departure;
    use super::super::divergence::Diverged;
    use super::super::wire::Fate;
    use super::*;

    /// The others agree, and the node may have what they do not.
    #[test]
    fn what_is_doubted_here_keeps_the_replicas_although_all_others_let_them_go() {
        let dir = tempfile::tempdir().unwrap();
        let replicas = Replicas::new(
            ReplicaDigests::new(3, 0),
            Diverged::open(dir.path(), 3).unwrap(),
            Departure::new(None),
        );
        let goes = |partition| Fate {
            partition,
            as_of: 7,
            kept_by: vec![1, 2],
            needed: None,
        };
        let mut told = Told {
            name: "n3".to_owned(),
            removed_at: None,
            replaced_by: None,
            fates: BTreeMap::from([0, 1, 2].map(|partition| (partition, goes(partition)))),
        };
        assert_eq!(decide_here(&told, 2, &replicas).unwrap().len(), 3);
        let found = Divergence {
            lsn: 5,
            own: 0xa,
            right: 0xb,
            others: vec![1, 2],
        };
        replicas.diverged.note(1, &found).unwrap();
        let (doubted, why) = decide_here(&told, 2, &replicas).unwrap_err();
        assert_eq!(doubted, 1);
        assert!(why.starts_with("partition 1: it differs"), "{why}");
        // What the others need is the first reason.
        told.fates.remove(&2);
        let (_, why) = decide_here(&told, 2, &replicas).unwrap_err();
        assert_eq!(why, "partition 2: its leader has not answered");
    }

    #[test]
    fn a_removed_node_that_waits_asks_less_and_less_often() {
        let mut waits = vec![INTERVAL];
        for _ in 0..7 {
            waits.push(next_wait(waits[waits.len() - 1], true));
        }
        let seconds: Vec<u64> = waits.iter().map(Duration::as_secs).collect();
        assert_eq!(seconds, [2, 4, 8, 16, 32, 60, 60, 60]);
        assert_eq!(next_wait(MAX_INTERVAL, false), INTERVAL);
    }
}
