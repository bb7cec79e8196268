//! Joining a cluster: an empty data directory asks a member of it for its identity.
//!
//! The node is registered in the catalog before anything is written here but its number. If the process ends in
//! between, the next start registers under the same number. Where that was lost as well, it registers under another
//! one, and replaces the registration that was never of use.

use std::time::{Duration, Instant};

use bytes::Bytes;
use esker_raft::transport::grpc::{CallError, Claim, call_at};
use esker_raft::{ClusterId, NodeId};

use super::options::ClusterOptions;
use super::peers::{credentials, registration};
use super::wire::{GROUPS, JOIN, Join, Joined};
use crate::data_dir::Identity;
use crate::error::StartError;

/// How long one member may take to answer: as long as the catalog takes to elect a leader, and some.
const CALL_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a join is tried at all. Members that are started together with this node are up by then.
const JOIN_TIMEOUT: Duration = Duration::from_secs(60);
/// Wait before all addresses are tried again.
const RETRY_INTERVAL: Duration = Duration::from_millis(500);

/// Joins the cluster that the options name, under the number of `made`. Returns this node's identity in the cluster,
/// and what that has told. `before` is the identity that the directory had before its log was lost: the cluster removes that node.
pub(crate) async fn join(
    options: &ClusterOptions,
    cluster_name: &str,
    made: Identity,
    before: Option<&Identity>,
) -> Result<(Identity, Joined), StartError> {
    // What belongs to the cluster comes with its answer.
    let partitions = made.partitions;
    let claim = Claim {
        cluster: ClusterId::default(),
        node: NodeId(made.node_id),
        process: rand::random(),
    };
    let listens = options.listen.map(|listen| listen.to_string());
    let listens = listens.unwrap_or_default();
    let mine = Join {
        partitions: Some(partitions),
        replaces: before.map(|before| before.node_id),
        of_cluster: before.map(|before| before.cluster_id.clone()),
        ..registration(options, cluster_name, made.node_id, &listens)
    };
    let config = credentials(options, claim);
    let started = Instant::now();
    loop {
        let mut tried = Vec::new();
        for address in &options.join {
            match call(address, &config, &mine).await {
                Ok(joined) if joined.partitions != partitions => {
                    return Err(StartError::JoinRefused {
                        address: address.clone(),
                        why: format!(
                            "the cluster has {} partitions, and `partitions` is {partitions} here: set it to {0}",
                            joined.partitions
                        ),
                    });
                }
                Ok(joined) => {
                    if let Err(why) = joined.lineages() {
                        return Err(StartError::JoinRefused {
                            address: address.clone(),
                            why: format!(
                                "its answer cannot be used, it may be of another release: {why}"
                            ),
                        });
                    }
                    let identity = Identity {
                        cluster_id: joined.cluster_id.clone(),
                        joined: true,
                        ..made
                    };
                    return Ok((identity, joined));
                }
                Err(CallError::Refused(why)) => {
                    return Err(StartError::JoinRefused {
                        address: address.clone(),
                        why,
                    });
                }
                Err(CallError::Unavailable(why)) => tried.push(format!("{address}: {why}")),
            }
        }
        if started.elapsed() >= JOIN_TIMEOUT {
            return Err(StartError::JoinUnreachable {
                tried: tried.join("; "),
            });
        }
        tracing::info!(
            tried = tried.join("; "),
            "no member of the cluster has answered yet"
        );
        tokio::time::sleep(RETRY_INTERVAL).await;
    }
}

/// The first of the nodes at these addresses that answers anything: then the cluster runs, or a part of it.
pub(crate) async fn running(
    options: &ClusterOptions,
    addresses: &[String],
    cluster_name: &str,
) -> Option<String> {
    let claim = Claim {
        cluster: ClusterId::default(),
        node: NodeId(Identity::new(cluster_name, 1).node_id),
        process: rand::random(),
    };
    let config = &credentials(options, claim);
    let asking = addresses.iter().map(|address| async move {
        // A stranger is refused, and that is an answer.
        let asked = call_at(address, config, GROUPS, Bytes::new(), CALL_TIMEOUT).await;
        (!matches!(asked, Err(CallError::Unavailable(_)))).then(|| address.clone())
    });
    let answers = futures::future::join_all(asking).await;
    answers.into_iter().flatten().next()
}

async fn call(
    address: &str,
    config: &esker_raft::transport::grpc::GrpcConfig,
    mine: &Join,
) -> Result<Joined, CallError> {
    let body = serde_json::to_vec(mine).map_err(|e| CallError::Refused(e.to_string()))?;
    let answer = call_at(address, config, JOIN, Bytes::from(body), CALL_TIMEOUT).await?;
    serde_json::from_slice(&answer).map_err(|e| {
        CallError::Refused(format!(
            "its answer cannot be read, it may be of a newer release: {e}"
        ))
    })
}
