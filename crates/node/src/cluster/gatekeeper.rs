//! Who may connect to this node: nodes of its cluster that were not removed, each as one process.
//!
//! Two processes with one number are a data directory that was copied. The one that is connected stays; the other
//! is refused for as long as that is so.

use std::collections::HashMap;
use std::sync::{Arc, Weak};

use esker_raft::transport::grpc::is_for_host;
use esker_raft::transport::grpc::{Admission, CertificateDer, Claim, Gatekeeper, Refusal};
use esker_raft::{ClusterId, NodeId};
use parking_lot::Mutex;

use super::directory::Directory;
use super::wire::{JOIN, REMOVAL, is_call, path_of};
use crate::clock::rfc3339_of;

/// See the [module's head](self).
pub(crate) struct Gate {
    cluster: ClusterId,
    me: NodeId,
    process: u128,
    directory: Arc<Directory>,
    /// The process of each node that has streams of messages here, and how many.
    connected: Arc<Mutex<HashMap<NodeId, Connected>>>,
}

struct Connected {
    process: u128,
    streams: usize,
}

/// One stream of messages of a node.
struct Stream {
    node: NodeId,
    connected: Weak<Mutex<HashMap<NodeId, Connected>>>,
}

impl Drop for Stream {
    fn drop(&mut self) {
        let Some(connected) = self.connected.upgrade() else {
            return;
        };
        let mut connected = connected.lock();
        if let Some(of_node) = connected.get_mut(&self.node) {
            of_node.streams -= 1;
            if of_node.streams == 0 {
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
                "the certificate is not for {host}, which is the host of node {} in the catalog",
                node.id
            ))),
        }
    }

    /// Whether no other process has streams of messages under the node's number.
    fn is_one_process(&self, claim: &Claim) -> Result<(), Refusal> {
        let connected = self.connected.lock();
        match connected.get(&claim.node) {
            Some(other) if other.process != claim.process => Err(another(claim.node)),
            _ => Ok(()),
        }
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
        let of_node = connected.entry(claim.node).or_insert(Connected {
            process: claim.process,
            streams: 0,
        });
        if of_node.process != claim.process {
            return Err(another(claim.node));
        }
        of_node.streams += 1;
        Ok(Stream {
            node: claim.node,
            connected: Arc::downgrade(&self.connected),
        })
    }
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
    ) -> Result<Box<dyn Send + Sync>, Refusal> {
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
                self.is_one_process(claim)?;
                Ok(Box::new(()))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use esker_partition::ClusterNode;
    use esker_partition::command::NodeState;

    use super::*;

    fn claim(node: u64, process: u128) -> Claim {
        Claim {
            cluster: ClusterId([1; 16]),
            node: NodeId(node),
            process,
        }
    }

    fn gate(nodes: &[(u64, NodeState)]) -> Gate {
        let directory = Arc::new(Directory::default());
        let node = |(id, state): &(u64, NodeState)| {
            let node = ClusterNode {
                id: *id,
                name: format!("n{id}"),
                peer_address: format!("host-{id}:1"),
                client_address: String::new(),
                zone: String::new(),
                state: *state,
                registered_at_ms: 0,
                reads_format: 1,
                incarnations: Vec::new(),
                removed_at_ms: None,
                given_up: false,
            };
            (*id, node)
        };
        directory.set(Arc::new(nodes.iter().map(node).collect::<BTreeMap<_, _>>()));
        Gate::new(claim(1, 10), directory)
    }

    fn messages(gate: &Gate, claim: Claim) -> Result<Box<dyn Send + Sync>, String> {
        let admitted = gate.admit(&claim, Admission::Messages, "", None);
        admitted.map_err(|refusal| refusal.0)
    }

    #[track_caller]
    fn refused(admitted: Result<Box<dyn Send + Sync>, String>, why: &str) {
        match admitted {
            Ok(_) => panic!("admitted, and should be refused: {why}"),
            Err(said) => assert!(said.contains(why), "{said}"),
        }
    }

    #[test]
    fn nodes_of_another_cluster_are_refused() {
        let gate = gate(&[]);
        let other = Claim {
            cluster: ClusterId([2; 16]),
            ..claim(2, 20)
        };
        refused(messages(&gate, other), "belongs to the cluster");
        messages(&gate, claim(2, 20)).unwrap();
    }

    #[test]
    fn a_node_without_a_cluster_may_ask_to_join_and_nothing_else() {
        let gate = gate(&[]);
        let stranger = Claim {
            cluster: ClusterId::default(),
            ..claim(2, 20)
        };
        let ask = |what, path: &str| {
            let admitted = gate.admit(&stranger, what, path, None);
            admitted.map_err(|refusal| refusal.0)
        };
        ask(Admission::Request, &path_of(JOIN)).unwrap();
        refused(
            ask(Admission::Request, "/v1/basins"),
            "belongs to the cluster",
        );
        refused(ask(Admission::Messages, ""), "belongs to the cluster");
    }

    #[test]
    fn requests_of_clients_come_from_nodes_of_the_cluster_alone() {
        let gate = gate(&[(2, NodeState::Active), (3, NodeState::Joining)]);
        let ask = |node, path: &str| {
            let admitted = gate.admit(&claim(node, 20), Admission::Request, path, None);
            admitted.map_err(|refusal| refusal.0)
        };
        for node in [2, 3] {
            ask(node, "/v1/basins").unwrap();
        }
        refused(ask(4, "/v1/basins"), "is not registered");
        // It may not know of itself yet.
        ask(4, &path_of(JOIN)).unwrap();
    }

    #[test]
    fn removed_nodes_are_refused() {
        let gate = gate(&[(2, NodeState::Removed), (3, NodeState::Draining)]);
        refused(messages(&gate, claim(2, 20)), "was removed");
        messages(&gate, claim(3, 20)).unwrap();
    }

    #[test]
    fn a_removed_node_is_told_who_has_taken_its_place_and_what_to_do() {
        let gate = gate(&[(2, NodeState::Removed), (3, NodeState::Active)]);
        let mut nodes = (*gate.directory.all()).clone();
        let why = |gate: &Gate| match messages(gate, claim(2, 20)) {
            Ok(_) => panic!("it is admitted"),
            Err(why) => why,
        };
        let alone = why(&gate);
        assert!(alone.contains("node n2 (2) was removed"), "{alone}");
        assert!(alone.contains("an empty one and `cluster.join`"), "{alone}");
        assert!(!alone.contains("taken its place"), "{alone}");
        nodes.get_mut(&3).unwrap().name = "n2".to_owned();
        nodes.get_mut(&2).unwrap().removed_at_ms = Some(1_500_000_000_123);
        gate.directory.set(Arc::new(nodes));
        let replaced = why(&gate);
        assert!(
            replaced.contains("was removed from the cluster at 2017-07-14T02:40:00Z, and node 3"),
            "{replaced}"
        );
        assert!(
            replaced.contains("node 3 has taken its place"),
            "{replaced}"
        );
    }

    #[test]
    fn a_removed_node_may_ask_what_becomes_of_its_replicas_and_nothing_else() {
        let gate = gate(&[(2, NodeState::Removed)]);
        let ask = |of: Claim, path: &str| {
            let admitted = gate.admit(&of, Admission::Request, path, None);
            admitted.map_err(|refusal| refusal.0)
        };
        ask(claim(2, 20), &path_of(REMOVAL)).unwrap();
        refused(ask(claim(2, 20), &path_of(JOIN)), "was removed");
        refused(ask(claim(2, 20), "/v1/basins"), "was removed");
        let other = Claim {
            cluster: ClusterId([2; 16]),
            ..claim(2, 20)
        };
        refused(ask(other, &path_of(REMOVAL)), "belongs to the cluster");
    }

    #[test]
    fn a_removed_node_is_admitted_until_it_has_left_the_groups() {
        let gate = gate(&[(2, NodeState::Removed)]);
        gate.directory.set_members([1, 2].into());
        messages(&gate, claim(2, 20)).unwrap();
        gate.directory.set_members([1].into());
        refused(messages(&gate, claim(2, 20)), "was removed");
    }

    #[test]
    fn of_two_processes_with_one_number_the_one_that_is_connected_stays() {
        let gate = gate(&[(2, NodeState::Active)]);
        let first = messages(&gate, claim(2, 20)).unwrap();
        let second = messages(&gate, claim(2, 20)).unwrap();
        refused(messages(&gate, claim(2, 21)), "another process");
        let request = gate.admit(&claim(2, 21), Admission::Request, "/", None);
        refused(request.map_err(|refusal| refusal.0), "another process");
        drop(first);
        refused(messages(&gate, claim(2, 21)), "another process");
        drop(second);
        messages(&gate, claim(2, 21)).unwrap();
        assert!(gate.connected.lock().is_empty());
        refused(messages(&gate, claim(1, 11)), "another process");
    }

    #[test]
    fn the_host_of_an_address_is_found() {
        for (address, host) in [
            ("a.example:1", "a.example"),
            ("https://a.example:1", "a.example"),
            ("127.0.0.1:1", "127.0.0.1"),
            ("[::1]:1", "::1"),
            ("a", "a"),
        ] {
            assert_eq!(host_of(address), host);
        }
    }
}
