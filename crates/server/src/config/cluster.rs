//! The cluster (`[cluster]`).
//!
//! The attributes of the fields are explained in [`values`](super::values).

use std::net::SocketAddr;
use std::path::PathBuf;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::units::{ByteCount, HumanDuration};

/// The cluster (`[cluster]`).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct ClusterConfig {
    /// Address on which other nodes of the cluster reach this one. Clients use `listen`. Port 0 takes any free
    /// port, which is of use for trying out only. An address that other machines can reach is refused unless
    /// `secret-file` or `certificate` is set, or `insecure-no-auth`. Unset, this node is a cluster of its own.
    #[schemars(extend("format" = "socket-address"))]
    pub peer_listen: Option<SocketAddr>,

    /// Name of this node, which no other node of the cluster has. Unset, `node-` and its number.
    #[schemars(extend("format" = "text"))]
    pub name: Option<String>,

    /// Host and port by which other nodes reach `peer-listen`, such as `esker-1.internal:7170`. It may be
    /// changed: the others learn it at the next start. Unset, `peer-listen` itself.
    #[schemars(extend("format" = "text"))]
    pub peer_advertise: Option<String>,

    /// Host and port by which clients reach `listen`, as this node shows it to others. Unset, `listen` itself.
    #[schemars(extend("format" = "text"))]
    pub advertise: Option<String>,

    /// Host and port of `peer-listen` of some nodes of a cluster, separated by commas. An empty data directory
    /// joins that cluster; one that belongs to a cluster already goes on in it, and uses this to find the others
    /// if all their addresses have changed. Unset, an empty data directory begins a cluster of its own.
    #[schemars(extend("format" = "text"))]
    pub join: Option<String>,

    /// What fails together with this node: the name of a rack or a datacenter. The console and the admin API show
    /// it; where replicas are placed does not depend on it, because every node has a replica of every partition.
    /// Unset, none is shown.
    #[schemars(extend("format" = "text"))]
    pub zone: Option<String>,

    /// File with the cluster's secret as its only line, or two while one replaces another (the first is presented, both are accepted): at least 32 visible ASCII characters, the same on all
    /// nodes. Other users of the machine must not be able to read it. It authenticates nodes and encrypts
    /// nothing: on a network that others can listen on, use `certificate`. Unset, nodes need no secret.
    #[schemars(extend("format" = "path"))]
    pub secret_file: Option<PathBuf>,

    /// File with this node's certificate, followed by the intermediate ones up to its authority, as PEM. It must
    /// be valid for a server and for a client, and for the host in `peer-advertise`. With it, all traffic between
    /// nodes is encrypted, and both ends of each connection have to present a certificate. Unset, it is not encrypted.
    #[schemars(extend("format" = "path"))]
    pub certificate: Option<PathBuf>,

    /// File with the certificate's key, as PEM: PKCS#8, PKCS#1 or SEC1, not encrypted. Unset, as `certificate`.
    #[schemars(extend("format" = "path"))]
    pub private_key: Option<PathBuf>,

    /// File with the certificate of the cluster's own authority, as PEM: every certificate that it has issued is
    /// accepted, so no public authority may be named here. Unset, as `certificate`.
    #[schemars(extend("format" = "path"))]
    pub ca: Option<PathBuf>,

    /// Time after which the replicas of each partition are compared again: each node computes a checksum of what it
    /// has, as of the same entry of the log, and one that differs from the majority stops and is reported. It reads
    /// every replica whole, at `check-rate`. What is deleted meanwhile stays on the disk until a comparison ends.
    /// Unset, replicas are compared only on request (`esker cluster check`).
    #[schemars(extend("x-minimum" = "1s", "x-maximum" = "365days"))]
    pub check_interval: Option<HumanDuration>,

    /// Bytes that this node reads in a second for these comparisons, one partition after the other. At the default,
    /// a day is enough for 1.3 TiB. 0: no limit.
    #[schemars(extend("x-minimum" = "0B", "x-maximum" = "1TiB"))]
    pub check_rate: ByteCount,

    /// Most bytes of snapshots that this node sends to other nodes in a second, to all of them together, so that
    /// they leave disk and network to appends. While sending makes appends wait, less is sent. To copy everything
    /// to a new node takes at least its bytes divided by this.
    #[schemars(extend("x-minimum" = "1MiB", "x-maximum" = "1TiB"))]
    pub transfer_rate: ByteCount,
}

impl Default for ClusterConfig {
    fn default() -> Self {
        ClusterConfig {
            peer_listen: None,
            name: None,
            peer_advertise: None,
            advertise: None,
            join: None,
            zone: None,
            secret_file: None,
            certificate: None,
            private_key: None,
            ca: None,
            check_interval: Some(HumanDuration::from_secs(24 * 3600)),
            check_rate: ByteCount::mib(16),
            transfer_rate: ByteCount::mib(64),
        }
    }
}
