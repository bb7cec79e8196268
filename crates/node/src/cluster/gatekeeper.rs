//! Who may connect to this node: nodes of its cluster that were not removed, each as one process.
//!
//! Two processes with one number are a data directory that was copied, or one that was restored from a backup while the
//! other was still in use. Of them
//!
//! - one that is no start after the last one that the catalog has of the node ([`starts`](crate::starts)) is never
//!   admitted: it lacks what the node has acknowledged since, and votes that it gave. The catalog keeps that over all
//!   restarts of this node. Until a start is registered, the last one that was admitted here counts;
//! - the one that is connected stays. One that was refused for long beside it is its copy, and is not admitted in its
//!   place once it is away.

use std::collections::HashMap;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use esker_raft::transport::grpc::is_for_host;
use esker_raft::transport::grpc::{
    Admission, Admitted, CertificateDer, Claim, EarlierProcesses, Gatekeeper, Refusal,
};
use esker_raft::{ClusterId, NodeId};
use parking_lot::Mutex;

use super::directory::Directory;
use super::wire::{JOIN, REMOVAL, is_call, path_of};
use crate::clock::rfc3339_of;
use crate::starts;

/// A process that was refused for so long beside one that is connected is no restart of it: what has stopped is found to
/// be gone within two intervals of the connection's keep-alive, 10 s, and this is three times as long.
const TWIN_AFTER: Duration = Duration::from_secs(30);
/// Most copies of one node that are remembered. Each is a process that somebody has started.
const MAX_TWINS: usize = 8;

/// See the [module's head](self).
pub(crate) struct Gate {
    cluster: ClusterId,
    me: NodeId,
    process: u128,
    directory: Arc<Directory>,
    /// The process of each node that was admitted last, and how many streams of messages it has here.
    connected: Arc<Mutex<HashMap<NodeId, Connected>>>,
    /// [`TWIN_AFTER`].
    twin_after: Duration,
}

/// The process of a node that was admitted last.
struct Connected {
    process: u128,
    earlier: EarlierProcesses,
    streams: usize,
    /// When its last stream ended.
    ended: Option<Instant>,
    /// Other processes that were refused beside it, and since when. At most [`MAX_TWINS`].
    twins: Vec<(u128, Instant)>,
}

/// One stream of messages of a node.
struct Stream {
    node: NodeId,
    process: u128,
    earlier: EarlierProcesses,
    directory: Arc<Directory>,
    connected: Weak<Mutex<HashMap<NodeId, Connected>>>,
}

impl Admitted for Stream {
    fn is_over(&self) -> Option<Refusal> {
        // This node may have had no catalog yet when it admitted the stream.
        let last = self.directory.last_start(self.node.0)?;
        let stands = starts::follows(self.process, self.earlier.as_slice(), last);
        (!stands).then(|| outdated(self.node))
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        let Some(connected) = self.connected.upgrade() else {
            return;
        };
        let mut connected = connected.lock();
        let of_node = connected.get_mut(&self.node);
        if let Some(of_node) = of_node.filter(|it| it.process == self.process) {
            of_node.streams = of_node.streams.saturating_sub(1);
            of_node.ended = Some(Instant::now());
            // It is remembered for as long as the catalog has the node, so that they are no more than its nodes.
            if of_node.streams == 0 && !self.directory.all().contains_key(&self.node.0) {
                connected.remove(&self.node);
            }
        }
    }
}

impl Gate {
    pub fn new(claim: Claim, directory: Arc<Directory>) -> Gate {
        Gate {
            cluster: claim.cluster,
            me: claim.node,
            process: claim.process,
            directory,
            connected: Arc::default(),
            twin_after: TWIN_AFTER,
        }
    }

    /// Whether the certificate is that of the node, as far as is known: it has the host in the node's address.
    fn is_of(&self, node: NodeId, certificate: &CertificateDer<'_>) -> Result<(), Refusal> {
        let nodes = self.directory.all();
        let Some(node) = nodes.get(&node.0) else {
            // It is not registered yet.
            return Ok(());
        };
        let host = host_of(&node.peer_address);
        match is_for_host(certificate, host) {
            true => Ok(()),
            false => Err(Refusal(format!(
                "the certificate is not for {host}, which is the host of node {} in the catalog: to move a node to another \
                 host, give it a certificate for both hosts, and replace that once the catalog has the new address",
                node.id
            ))),
        }
    }

    /// Whether the process may be the node's, as far as is known of others under the node's number.
    fn is_one_process(
        &self,
        connected: &mut HashMap<NodeId, Connected>,
        claim: &Claim,
    ) -> Result<(), Refusal> {
        let follows = |known| starts::follows(claim.process, claim.earlier.as_slice(), known);
        let last = self.directory.last_start(claim.node.0);
        if !last.is_none_or(follows) {
            return Err(outdated(claim.node));
        }
        let other = connected.get_mut(&claim.node);
        let Some(other) = other.filter(|other| other.process != claim.process) else {
            return Ok(());
        };
        // Another one was registered meanwhile: the catalog decides, and ends its streams.
        let stands = |last| starts::follows(other.process, other.earlier.as_slice(), last);
        if !last.is_none_or(stands) {
            connected.remove(&claim.node);
            return Ok(());
        }
        if other.streams > 0 {
            other.note_twin(claim.process);
            return Err(another(claim.node));
        }
        if other.is_twin(claim.process, self.twin_after) || !follows(other.process) {
            return Err(outdated(claim.node));
        }
        Ok(())
    }

    /// The refusal of a removed node: why nobody takes it, and what to do.
    fn removed(&self, node: NodeId) -> Refusal {
        let nodes = self.directory.all();
        let known = nodes.get(&node.0);
        let name = known.map_or("", |known| known.name.as_str());
        let replacement = known.and_then(|known| self.directory.replacement_of(known));
        let replaced = replacement.map_or_else(String::new, |by| {
            format!(", and node {by} has taken its place and its name")
        });
        let at = known.and_then(|known| known.removed_at_ms);
        let at = at.map_or_else(String::new, |at| format!(" at {}", rfc3339_of(at)));
        Refusal(format!(
            "node {name} ({node}) was removed from the cluster{at}{replaced}: its number is never used again. Move its data \
             directory away, and start it with an empty one and `cluster.join` to join again"
        ))
    }

    fn connect(&self, claim: &Claim) -> Result<Stream, Refusal> {
        let mut connected = self.connected.lock();
        self.is_one_process(&mut connected, claim)?;
        let new = || Connected {
            process: claim.process,
            earlier: claim.earlier,
            streams: 0,
            ended: None,
            twins: Vec::new(),
        };
        let of_node = connected.entry(claim.node).or_insert_with(new);
        if of_node.process != claim.process {
            *of_node = new();
        }
        of_node.streams += 1;
        Ok(Stream {
            node: claim.node,
            process: claim.process,
            earlier: claim.earlier,
            directory: self.directory.clone(),
            connected: Arc::downgrade(&self.connected),
        })
    }
}

impl Connected {
    /// Notes that another process was refused beside this one. One that has stopped is no longer connected within
    /// [`TWIN_AFTER`], so whoever is refused for longer is no start after it.
    fn note_twin(&mut self, process: u128) {
        if self.twins.iter().any(|(twin, _)| *twin == process) {
            return;
        }
        if self.twins.len() == MAX_TWINS {
            self.twins.remove(0);
        }
        self.twins.push((process, Instant::now()));
    }

    /// Whether a process was refused beside this one for so long that it is that of a copy.
    fn is_twin(&self, process: u128, after: Duration) -> bool {
        let twin = self.twins.iter().find(|(twin, _)| *twin == process);
        let (Some((_, since)), Some(ended)) = (twin, self.ended) else {
            return false;
        };
        ended.saturating_duration_since(*since) >= after
    }
}

/// The refusal of a start that lacks what the node has done since.
pub(super) fn outdated(node: NodeId) -> Refusal {
    Refusal(format!(
        "this data directory is a copy, or an older state, of that of node {node}, which was started elsewhere since: it \
         may lack what the node has acknowledged. Use the other one. If that is lost, move this data directory away, and \
         start with an empty one and `cluster.join`: it takes the node's place"
    ))
}

fn another(node: NodeId) -> Refusal {
    Refusal(format!(
        "another process is connected as node {node}: a data directory must not be used twice, nor a copy of it"
    ))
}

/// The host in `host:port`, in `[address]:port`, or in a URL.
fn host_of(address: &str) -> &str {
    let address = address.split_once("://").map_or(address, |(_, rest)| rest);
    let host = address.rsplit_once(':').map_or(address, |(host, _)| host);
    host.trim_start_matches('[').trim_end_matches(']')
}

impl Gatekeeper for Gate {
    fn admit(
        &self,
        claim: &Claim,
        what: Admission,
        path: &str,
        certificate: Option<&CertificateDer<'_>>,
    ) -> Result<Box<dyn Admitted>, Refusal> {
        let joins = claim.cluster == ClusterId::default() && path == path_of(JOIN);
        if claim.cluster != self.cluster && !joins {
            return Err(Refusal(format!(
                "node {} belongs to the cluster {}, and this node to {}",
                claim.node, claim.cluster, self.cluster
            )));
        }
        if claim.node == self.me && claim.process != self.process {
            return Err(another(self.me));
        }
        // A removed node may ask what becomes of its replicas, and nothing else.
        let asks = what == Admission::Request && path == path_of(REMOVAL);
        if !asks && self.directory.is_removed(claim.node.0) {
            return Err(self.removed(claim.node));
        }
        if let Some(certificate) = certificate {
            self.is_of(claim.node, certificate)?;
        }
        match what {
            Admission::Messages => Ok(Box::new(self.connect(claim)?)),
            Admission::Request => {
                // What is not a call is a request of a client, in whose name the node speaks: it has to be a node
                // that the cluster has taken.
                if !is_call(path) && !self.directory.all().contains_key(&claim.node.0) {
                    return Err(Refusal(format!(
                        "node {} is not registered in the cluster, as far as this node knows",
                        claim.node
                    )));
                }
                self.is_one_process(&mut self.connected.lock(), claim)?;
                Ok(Box::new(()))
            }
        }
    }
}

#[cfg(test)]
mod tests;
