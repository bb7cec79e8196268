//! Joining a cluster: an empty data directory asks a member of it for its identity.
//!
//! The node is registered in the catalog before anything is written here but its number. If the process ends in
//! between, the next start registers under the same number. Where that was lost as well, it registers under another
//! one, and replaces the registration that was never of use.

use std::time::{Duration, Instant};

use bytes::Bytes;
use esker_raft::transport::grpc::{
    Answering, CallError, Claim, EarlierProcesses, call_at, identify,
};
use esker_raft::{ClusterId, NodeId};

use super::options::ClusterOptions;
use super::peers::{credentials, registration};
use super::wire::{JOIN, Join, Joined};
use crate::data_dir::Identity;
use crate::error::StartError;

/// How long one member may take to answer: as long as the catalog takes to elect a leader, and some.
const CALL_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a join is tried at all. Members that are started together with this node are up by then.
const JOIN_TIMEOUT: Duration = Duration::from_secs(60);
/// Wait before all addresses are tried again.
const RETRY_INTERVAL: Duration = Duration::from_millis(500);

/// Joins the cluster that the options name, under the number of `made`. Returns this node's identity in the cluster,
/// and what that has told. `before` is the identity that the directory had before its log was lost: the cluster removes
/// that node.
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
        earlier: EarlierProcesses::default(),
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
        let mut strangers = Vec::new();
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
                // The next one may be a member.
                Err(CallError::Stranger(why)) => {
                    tried.push(format!("{address}: {why}"));
                    strangers.push((address, why));
                }
                Err(CallError::Unavailable(why)) => tried.push(format!("{address}: {why}")),
            }
        }
        if strangers.len() == options.join.len()
            && let Some((address, why)) = strangers.pop()
        {
            return Err(StartError::JoinRefused {
                address: address.clone(),
                why,
            });
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

/// What answers at the address of another node, and shows that the cluster runs, or may run.
pub(crate) struct Running {
    /// Where it answers.
    pub address: String,
    /// Whether it refuses this node's secret, so that its cluster is not known.
    pub has_other_secret: bool,
}

/// The first of these addresses at which a node of a cluster answers, or, if `of` names a cluster, one of that: then the
/// cluster runs, or a part of it. A node with another secret counts as well: this cluster's secret may have been
/// changed. This process does not count, which `own` is what it claims to be: it may have the address of another node.
/// Whoever else answers is logged: it may be there because an address was used again.
pub(crate) async fn running(
    options: &ClusterOptions,
    addresses: &[String],
    cluster_name: &str,
    of: Option<ClusterId>,
    own: Option<Claim>,
) -> Option<Running> {
    let claim = Claim {
        // Whoever answers refuses that, and shows who it is.
        cluster: ClusterId::default(),
        node: NodeId(Identity::new(cluster_name, 1).node_id),
        process: rand::random(),
        earlier: EarlierProcesses::default(),
    };
    let config = &credentials(options, claim);
    let asking = addresses.iter().map(|address| async move {
        let answering = identify(address, config).await;
        if is_own(&answering, own) {
            return None;
        }
        if let Some(why) = is_other(&answering, of) {
            tracing::warn!(
                address,
                why,
                "what answers at the address of another node is not of this cluster, and does not count"
            );
        }
        runs(&answering, of).then(|| Running {
            address: address.clone(),
            has_other_secret: matches!(answering, Answering::OtherSecret(_)),
        })
    });
    let answers = futures::future::join_all(asking).await;
    // One of which more is known is named first.
    let answers = answers.into_iter().flatten();
    answers.min_by_key(|it| it.has_other_secret)
}

/// Whether this process has answered itself. Another process under the same number is a copy of its data directory.
fn is_own(answering: &Answering, own: Option<Claim>) -> bool {
    matches!((answering, own), (Answering::Node(claim), Some(own)) if **claim == own)
}

/// Whether an answer shows that the cluster runs. Where the cluster is not known, any answer does.
fn runs(answering: &Answering, of: Option<ClusterId>) -> bool {
    match (answering, of) {
        (Answering::Nobody(_), _) => false,
        (Answering::Node(claim), Some(of)) => claim.cluster == of,
        // It does not show its cluster to whoever has another secret. That may be this one.
        (Answering::OtherSecret(_), _) => true,
        (Answering::Stranger(_), Some(_)) => false,
        (Answering::Node(_) | Answering::Stranger(_), None) => true,
    }
}

/// Who has answered instead of a node of the cluster, if somebody has.
fn is_other(answering: &Answering, of: Option<ClusterId>) -> Option<String> {
    of?;
    match answering {
        Answering::Node(_) if runs(answering, of) => None,
        Answering::Node(claim) => Some(format!(
            "it is node {} of the cluster {}",
            claim.node, claim.cluster
        )),
        Answering::Stranger(why) => Some(format!("it is no node: {why}")),
        Answering::OtherSecret(_) | Answering::Nobody(_) => None,
    }
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

#[cfg(test)]
mod tests {
    use esker_raft::transport::grpc::EarlierProcesses;

    use super::*;

    #[test]
    fn a_process_at_the_address_of_another_node_does_not_take_itself_for_that() {
        let own = Claim {
            cluster: ClusterId([1; 16]),
            node: NodeId(7),
            process: 1,
            earlier: EarlierProcesses::default(),
        };
        assert!(is_own(&Answering::Node(Box::new(own)), Some(own)));
        let copied = Claim { process: 2, ..own };
        let other = Claim {
            node: NodeId(8),
            ..own
        };
        for claim in [copied, other] {
            assert!(
                !is_own(&Answering::Node(Box::new(claim)), Some(own)),
                "{claim:?}"
            );
        }
        assert!(!is_own(&Answering::Node(Box::new(own)), None));
        assert!(!is_own(&Answering::OtherSecret(String::new()), Some(own)));
    }

    #[test]
    fn only_a_node_of_the_cluster_shows_that_it_runs_once_the_cluster_is_known() {
        let node = |cluster| {
            Answering::Node(Box::new(Claim {
                cluster: ClusterId([cluster; 16]),
                node: NodeId(7),
                process: 1,
                earlier: EarlierProcesses::default(),
            }))
        };
        let own = Some(ClusterId([1; 16]));
        let stranger = Answering::Stranger("404 Not Found".to_owned());
        let nobody = Answering::Nobody("refused".to_owned());
        assert!(runs(&node(1), own) && is_other(&node(1), own).is_none());
        for (other, says) in [
            (node(2), "node 7 of the cluster"),
            (stranger.clone(), "404"),
        ] {
            assert!(!runs(&other, own), "{other:?}");
            let why = is_other(&other, own).unwrap();
            assert!(why.contains(says), "{why}");
        }
        assert!(!runs(&nobody, own) && is_other(&nobody, own).is_none());
        // Its secret may have been changed while this node was down.
        let hidden = Answering::OtherSecret("the secret is wrong".to_owned());
        assert!(runs(&hidden, own) && runs(&hidden, None) && is_other(&hidden, own).is_none());
        // A restore knows no cluster yet.
        assert!(runs(&node(2), None) && runs(&stranger, None) && !runs(&nobody, None));
        assert!(is_other(&node(2), None).is_none());
    }
}
