//! The options of a node that belongs to a cluster.

use std::net::SocketAddr;
use std::time::Duration;

use esker_raft::transport::grpc::TlsConfig;

/// The options of a node that belongs to a cluster.
#[derive(Clone, Default)]
pub struct ClusterOptions {
    /// Its name; `None` for `node-` and its number.
    pub name: Option<String>,
    /// Where it listens to other nodes.
    pub listen: Option<SocketAddr>,
    /// Where other nodes reach it: `host:port`; `None` for the address on which it listens.
    pub peer_address: Option<String>,
    /// Where clients reach it: `host:port`, or a URL.
    pub client_address: String,
    /// What fails together with it; empty for a zone of its own.
    pub zone: String,
    /// Where nodes of the cluster to join listen to other nodes.
    pub join: Vec<String>,
    /// The secret that all nodes of the cluster have.
    pub secret: Option<String>,
    /// Secrets that are accepted as well, while one replaces another.
    pub other_secrets: Vec<String>,
    /// Certificates.
    pub tls: Option<TlsConfig>,
    /// Time after which the digests of a partition's replicas are compared again; `None` for on request alone.
    pub check_interval: Option<Duration>,
    /// Bytes in a second that all digests of this node together read; 0 for no limit.
    pub check_rate: u64,
    /// Bytes in a second that this node sends of snapshots to other nodes; 0 for no limit.
    pub transfer_rate: u64,
}

impl std::fmt::Debug for ClusterOptions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ClusterOptions")
            .field("name", &self.name)
            .field("listen", &self.listen)
            .field("peer_address", &self.peer_address)
            .field("client_address", &self.client_address)
            .field("zone", &self.zone)
            .field("join", &self.join)
            .field("secret", &self.secret.as_ref().map(|_| "(hidden)"))
            .field("other_secrets", &self.other_secrets.len())
            .field("tls", &self.tls.is_some())
            .field("check_interval", &self.check_interval)
            .field("check_rate", &self.check_rate)
            .field("transfer_rate", &self.transfer_rate)
            .finish()
    }
}
