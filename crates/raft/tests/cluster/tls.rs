//! Members with certificates of one authority, and strangers without.

use std::sync::Weak;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, LazyLock};

use esker_raft::message::{Identity, Payload};
use esker_raft::transport::grpc::{GrpcConfig, GrpcTransport, TlsConfig};
use esker_raft::transport::{Foreign, Inbox, ProvenSender};
use esker_raft::{ClusterId, Incarnation, Lineage, NodeId, Role, Transport};

use crate::host::{Cluster, GROUP, Wire, observe_repeatedly, wait_for};

/// An authority that signs certificates.
#[derive(Clone)]
pub struct Authority(Arc<(rcgen::Issuer<'static, rcgen::KeyPair>, String)>);

impl Authority {
    /// Created once: most clusters do not need it.
    pub fn new() -> Authority {
        static ONE: LazyLock<Authority> = LazyLock::new(Authority::another);
        ONE.clone()
    }

    pub fn another() -> Authority {
        let mut params = rcgen::CertificateParams::default();
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let key = rcgen::KeyPair::generate().unwrap();
        let pem = params.self_signed(&key).unwrap().pem();
        Authority(Arc::new((rcgen::Issuer::new(params, key), pem)))
    }

    pub fn node(&self, name: &str) -> TlsConfig {
        let key = rcgen::KeyPair::generate().unwrap();
        let params = rcgen::CertificateParams::new([name.to_owned()]).unwrap();
        let certificate = params.signed_by(&key, &self.0.0).unwrap();
        TlsConfig {
            ca: self.0.1.clone().into(),
            certificate: certificate.pem().into(),
            key: key.serialize_pem().into(),
            server_name: None,
        }
    }
}

#[test]
fn members_with_certificates_elect_replicate_restart_and_catch_up() {
    let mut cluster = Cluster::start(Wire::Tls, &[1, 2, 3]);
    cluster.write(50, 100);
    cluster.assert_agreed(&[1, 2, 3]);
    let leader = cluster.leader();
    cluster.kill(leader);
    cluster.write(20, 100);
    cluster.run(leader);
    cluster.assert_agreed(&[1, 2, 3]);

    let behind = cluster.follower();
    cluster.leave_behind(behind, 300, 1000);
    cluster.run(behind);
    cluster.assert_agreed(&[1, 2, 3]);
    let counters = cluster.group(behind).counters();
    assert_eq!(counters.engine.snapshots_received, 1, "{counters:?}");
}

/// Counts the messages that it gets.
#[derive(Default)]
struct Stranger {
    heard: AtomicUsize,
    unreachable: AtomicUsize,
}

impl Inbox for Stranger {
    fn receive(&self, _: bytes::Bytes, _: Option<&mut ProvenSender>) -> Result<(), Foreign> {
        self.heard.fetch_add(1, Ordering::SeqCst);
        Ok(())
    }

    fn unreachable(&self, _: NodeId) {
        self.unreachable.fetch_add(1, Ordering::SeqCst);
    }
}

#[test]
fn strangers_are_refused_and_the_cluster_goes_on() {
    let mut cluster = Cluster::start(Wire::Tls, &[1, 2, 3]);
    cluster.write(10, 100);
    observe_repeatedly("the cluster goes on", || observe_strangers(&mut cluster));
    cluster.assert_agreed(&[1, 2, 3]);
}

fn observe_strangers(cluster: &mut Cluster) -> Result<(), String> {
    let (leader, secret) = (cluster.leader(), Some("open sesame".to_owned()));
    let term = cluster.group(leader).status().term;
    // One knows the secret alone; one has a certificate, of an authority of its own, and trusts the
    // cluster's.
    let mut foreign = Authority::another().node("127.0.0.1");
    foreign.ca.extend(cluster.authority.node("127.0.0.1").ca);
    for tls in [None, Some(foreign)] {
        let config = GrpcConfig {
            peers: cluster.addresses.clone(),
            secret: secret.clone(),
            tls,
            ..GrpcConfig::default()
        };
        let transport = GrpcTransport::bind("127.0.0.1:0".parse().unwrap(), config).unwrap();
        let stranger = Arc::new(Stranger::default());
        let inbox: Weak<Stranger> = Arc::downgrade(&stranger);
        transport.start(inbox).unwrap();
        // As a later start of a real member: if it were accepted, the real one would be refused.
        let follower = cluster.follower();
        let identity = Identity {
            cluster: ClusterId::default(),
            group: GROUP,
            lineage: Lineage::default(),
            node: NodeId(follower),
            incarnation: Incarnation(1000),
        };
        wait_for("it is refused, again and again", || {
            transport.send(identity.seal(NodeId(leader), Payload::Wanted));
            std::thread::sleep(std::time::Duration::from_millis(5));
            stranger.unreachable.load(Ordering::SeqCst) >= 4
        });
        cluster.write(10, 100);
        assert_eq!(stranger.heard.load(Ordering::SeqCst), 0);
        transport.stop();
    }
    let refused = cluster.group(leader).counters().engine.refused;
    assert!(refused.is_empty(), "none of it came so far: {refused:?}");
    let status = cluster.group(leader).status();
    match (status.role, status.term) == (Role::Leader, term) {
        true => Ok(()),
        false => Err(format!("{term} became {}", status.term)),
    }
}
