//! A removed node: it learns that it was removed, keeps its replicas as long as they may be needed, and ends.
//!
//! ```text
//! its catalog has it, or the others refuse it
//!   └▶ it asks all nodes (`REMOVAL`) ─▶ noted in `removed.json`: status, log, the next start
//!        └▶ the leaders of all partitions answer within one round that its replica may go
//!             └▶ noted ─▶ after a while the host ends the process ─▶ the replicas are deleted
//! ```
//!
//! What has to be true for the second note is in [`farewell`](super::farewell); the deletion, and what a crash leaves,
//! in [`data_dir`](crate::data_dir). Replicas that have diverged are kept for whoever looks for the cause. A node that
//! drains keeps its replicas, whether it belongs to their groups or not: it may be added to them again under its number,
//! and what it has voted for is in its log.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use esker_partition::command::NodeState;
use esker_raft::NodeId;
use esker_raft::transport::grpc::{Claim, call_at};

use super::departure::{Told, decide, merge};
use super::peers::{Peers, cluster_number};
use super::wire::{AskRemoval, KeptReplica, REMOVAL, RemovalOf};
use crate::blocking::blocking;
use crate::core::Inner;
use crate::data_dir::{Stage, noted_now};
use crate::error::StartError;

/// How often it is looked whether this node was removed, and the others are asked.
const INTERVAL: Duration = Duration::from_secs(2);
/// How long another node may take to answer: it confirms with a majority who leads.
const ASK_TIMEOUT: Duration = Duration::from_secs(3);
/// How long the process stays after its replicas may go, so that whoever has removed the node finds the reason in its
/// status.
const LINGER: Duration = Duration::from_secs(60);

/// Runs until the node stops, or has left.
pub(crate) async fn run(inner: Arc<Inner>) {
    let Some(peers) = inner.peers.clone() else {
        return;
    };
    let departure = &inner.replicas.departure;
    let mut may_go_since: Option<Instant> = None;
    while tokio::time::timeout(INTERVAL, inner.stopping.cancelled())
        .await
        .is_err()
    {
        if let Some(since) = may_go_since {
            if since.elapsed() < LINGER {
                continue;
            }
            departure.end();
            return;
        }
        if !inner.may_be_removed(&peers) {
            publish(0);
            continue;
        }
        let asked = inner.kept_replicas().await;
        let answers = ask_all(&inner, &peers, &asked).await;
        if let Some(told) = merge(&answers, &inner.identity.cluster_id) {
            match inner.take_removal(told).await {
                Ok(true) => may_go_since = Some(Instant::now()),
                Ok(false) => {}
                Err(error) => tracing::warn!(
                    %error,
                    "that this node was removed cannot be noted now; it is tried again"
                ),
            }
        }
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
        let mut decided = decide(&told, last);
        let diverged = self.replicas.diverged.partitions();
        if let Some(partition) = diverged.first()
            && decided.is_ok()
        {
            let why =
                format!("partition {partition}: it differs from the others', and is kept as it is");
            decided = Err((diverged.len(), why));
        }
        let known = departure.known();
        let is_new = known.is_none();
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
                departure.wait_for(match needed {
                    1 => why,
                    needed => format!("{needed} partitions need them; {why}"),
                });
                false
            }
        };
        if !is_new && !may_go && !is_replaced {
            return Ok(false);
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
