//! This node among the others: what it is called, where it is reached, and its connections.

use std::collections::BTreeSet;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use esker_partition::command::NodeState;
use esker_raft::transport::grpc::{
    CallError, Claim, EarlierProcesses, GrpcConfig, GrpcTransport, MAX_EARLIER,
};
use esker_raft::{ClusterId, NodeId};
use parking_lot::Mutex;

use super::agreed_time::Clocks;
use super::directory::{Directory, Nodes};
use super::gatekeeper::Gate;
use super::options::ClusterOptions;
use super::registration::Registration;
use super::wire::{Join, Peer, READS_FORMAT};
use crate::clock::now_ms;
use crate::data_dir::Identity;
use crate::error::StartError;
use crate::starts::Start;

/// This node among the others.
pub(crate) struct Peers {
    options: ClusterOptions,
    /// The secrets of now: the one that this node presents, and others that it accepts.
    secrets: Mutex<(Option<String>, Vec<String>)>,
    cluster_name: String,
    claim: Claim,
    /// The process in the claim, and the incarnation as which this node puts snapshots.
    start: Start,
    pub transport: Arc<GrpcTransport>,
    pub directory: Arc<Directory>,
    pub clocks: Clocks,
    registration: Mutex<Registration>,
}

/// What a node presents to others: the secret, its certificate, and its claim.
pub(crate) fn credentials(options: &ClusterOptions, claim: Claim) -> GrpcConfig {
    GrpcConfig {
        secret: options.secret.clone(),
        other_secrets: options.other_secrets.clone(),
        advertise: options.peer_address.clone(),
        tls: options.tls.clone(),
        claim: Some(claim),
        ..GrpcConfig::default()
    }
}

/// The number of a cluster between nodes: the 16 bytes of its id.
pub(crate) fn cluster_number(cluster_id: &str) -> ClusterId {
    let parsed = uuid::Uuid::parse_str(cluster_id);
    // An id that is no UUID was made by hand: its hash stands for it.
    let hash = || xxhash_rust::xxh3::xxh3_128(cluster_id.as_bytes()).to_be_bytes();
    ClusterId(parsed.map_or_else(|_| hash(), uuid::Uuid::into_bytes))
}

impl Peers {
    /// Listens to other nodes. They are heard once the log is open.
    ///
    /// # Errors
    ///
    /// The address cannot be listened on, or a certificate cannot be used.
    pub fn bind(
        options: &ClusterOptions,
        listen: SocketAddr,
        identity: &Identity,
        start: Start,
    ) -> Result<Peers, StartError> {
        let claim = Claim {
            cluster: cluster_number(&identity.cluster_id),
            node: NodeId(identity.node_id),
            process: start.id,
            earlier: EarlierProcesses::new(start.earlier.iter().copied()),
        };
        let directory = Arc::new(Directory::default());
        let config = GrpcConfig {
            gatekeeper: Some(Arc::new(Gate::new(claim, directory.clone()))),
            ..credentials(options, claim)
        };
        let transport =
            GrpcTransport::bind(listen, config).map_err(|source| match source.kind() {
                io::ErrorKind::InvalidInput => StartError::PeerCertificate(source.to_string()),
                _ => StartError::PeerListen {
                    address: listen,
                    source,
                },
            })?;
        Ok(Peers {
            options: options.clone(),
            secrets: Mutex::new((options.secret.clone(), options.other_secrets.clone())),
            cluster_name: identity.cluster_name.clone(),
            claim,
            start,
            transport: Arc::new(transport),
            directory,
            clocks: Clocks::default(),
            registration: Mutex::default(),
        })
    }

    /// Why the cluster does not take this node, if the last answer was that.
    pub fn refusal(&self) -> Option<String> {
        self.registration.lock().refusal().cloned()
    }

    /// Notes what the cluster has answered to the last registration.
    pub fn note_answer(&self, answer: &Result<(), CallError>, is_known: bool) {
        let mut registration = self.registration.lock();
        registration.note_answer(answer, is_known);
    }

    /// Notes whether this node is registered, and logs if it has not been for long.
    pub fn note_registered(&self, is_registered: bool) {
        let mut registration = self.registration.lock();
        if let Some(why) = registration.note_registered(Instant::now(), is_registered) {
            tracing::warn!(
                why,
                "this node is not registered with the cluster, and puts no snapshots until it is"
            );
        }
    }

    /// Why this node has not been registered for long, if it has not.
    pub fn why_not_registered(&self) -> Option<String> {
        self.registration.lock().problem(Instant::now())
    }

    /// This node's number.
    pub fn me(&self) -> u64 {
        self.claim.node.0
    }

    /// What this process claims to be.
    pub fn claim(&self) -> Claim {
        self.claim
    }

    /// What URLs of peer addresses begin with.
    pub fn scheme(&self) -> &'static str {
        match self.options.tls {
            Some(_) => "https",
            None => "http",
        }
    }

    /// The name of the cluster.
    pub fn cluster_name(&self) -> &str {
        &self.cluster_name
    }

    /// Where the configuration says that nodes of the cluster are.
    pub fn configured(&self) -> &[String] {
        &self.options.join
    }

    /// What this node presents to a node of which only the address is known.
    pub fn credentials(&self, claim: Claim) -> GrpcConfig {
        let (secret, other_secrets) = self.secrets.lock().clone();
        GrpcConfig {
            secret,
            other_secrets,
            ..credentials(&self.options, claim)
        }
    }

    /// Presents another secret from now on, and accepts these others as well. Returns false, and changes nothing, if
    /// this node was started without a secret.
    pub fn set_secrets(&self, secret: String, others: Vec<String>) -> bool {
        let is_on = self.transport.set_secrets(secret.clone(), others.clone());
        if is_on {
            *self.secrets.lock() = (Some(secret), others);
        }
        is_on
    }

    /// How this node registers.
    pub fn registration(&self) -> Join {
        let listens = self.transport.address().to_string();
        let earlier = self.start.earlier.iter().take(MAX_EARLIER);
        Join {
            incarnation: Some(format!("{:032x}", self.start.id)),
            earlier_incarnations: earlier.map(|one| format!("{one:032x}")).collect(),
            ..registration(&self.options, &self.cluster_name, self.me(), &listens)
        }
    }

    /// Whether the catalog has this node as it is now, with the incarnation as which it puts snapshots.
    pub fn is_registered(&self, nodes: &Nodes) -> bool {
        let mine = self.registration();
        nodes.get(&self.me()).is_some_and(|node| {
            node.state != NodeState::Removed
                && node.peer_address == mine.peer_address
                && node.client_address == mine.client_address
                && node.name == mine.name
                && node.zone == mine.zone
                && node.reads_format == mine.reads_format
                && node.incarnations.last() == Some(&self.start.id)
        })
    }

    /// Whether the catalog has this node, as it is now or as it was before it started.
    pub fn is_known(&self, nodes: &Nodes) -> bool {
        nodes
            .get(&self.me())
            .is_some_and(|node| node.state != NodeState::Removed)
    }

    /// Takes the nodes that the catalog has: addresses are set, and removed nodes are disconnected once they are
    /// members of no group here.
    pub fn follow(&self, nodes: Arc<Nodes>, members: BTreeSet<u64>) {
        let (members_new, nodes_new) = (
            self.directory.set_members(members),
            self.directory.set(nodes.clone()),
        );
        if !members_new && !nodes_new {
            return;
        }
        for node in nodes.values().filter(|node| node.id != self.me()) {
            match self.directory.is_removed(node.id) {
                true => self.transport.remove_peer(NodeId(node.id)),
                false => (self.transport).set_peer(NodeId(node.id), node.peer_address.clone()),
            }
        }
    }

    /// The addresses of nodes that this node was given when it joined. The catalog's replace them.
    pub fn know(&self, peers: &[Peer]) {
        for peer in peers.iter().filter(|peer| peer.id != self.me()) {
            (self.transport).set_peer(NodeId(peer.id), peer.peer_address.clone());
        }
    }
}

/// How a node registers.
pub(crate) fn registration(
    options: &ClusterOptions,
    cluster_name: &str,
    id: u64,
    listens: &str,
) -> Join {
    let name = options.name.clone();
    let peer_address = options.peer_address.clone();
    Join {
        cluster_name: cluster_name.to_owned(),
        partitions: None,
        id,
        name: name.unwrap_or_else(|| format!("node-{id}")),
        peer_address: peer_address.unwrap_or_else(|| listens.to_owned()),
        client_address: options.client_address.clone(),
        zone: options.zone.clone(),
        reads_format: READS_FORMAT,
        incarnation: None,
        earlier_incarnations: Vec::new(),
        hops: 0,
        replaces: None,
        of_cluster: None,
        clock_ms: Some(now_ms()),
    }
}
