//! Members of different versions.

use std::sync::Weak;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use esker_raft::message::{ENVELOPE_FORMAT, EndReason, NewerOffer, Payload, Refusal};
use esker_raft::transfer::OFFER_FORMAT;
use esker_raft::transport::Inbox;
use esker_raft::{Config, Envelope, Node, NodeId, Transport};
use parking_lot::Mutex;
use std::sync::Arc;

use crate::host::{Cluster, GROUP, TICK, Wire, observe_repeatedly, wait_for};

#[test]
fn a_member_of_an_older_version_refuses_a_newer_snapshot_and_catches_up_once_it_is_upgraded() {
    let mut cluster = Cluster::start(Wire::Memory, &[1, 2, 3]);
    cluster.write(10, 100);
    cluster.assert_agreed(&[1, 2, 3]);
    let behind = cluster.follower();
    cluster.leave_behind(behind, 50, 100);
    let offers = Arc::new(AtomicUsize::new(0));
    let seen = offers.clone();
    cluster
        .network
        .filter(Some(Box::new(move |envelope: &mut Envelope| {
            if let Payload::Offer(offer) = &envelope.payload {
                seen.fetch_add(1, Ordering::SeqCst);
                envelope.payload = Payload::NewerOffer(NewerOffer {
                    checkpoint: offer.checkpoint,
                    format: OFFER_FORMAT + 1,
                });
            }
            true
        })));
    cluster.run(behind);
    let begun = Instant::now();
    // Of the present leader.
    let last_failure = |cluster: &Cluster| -> Option<EndReason> {
        let peers = cluster.group(cluster.leader()).details().peers;
        let peer = peers.into_iter().find(|p| p.id == NodeId(behind));
        peer.and_then(|p| p.last_failure)
    };
    wait_for("the leader knows why", || {
        last_failure(&cluster) == Some(EndReason::NewerFormat)
    });
    let refused = cluster.group(behind).counters().engine.refused;
    assert!(refused[&Refusal::NewerFormat] >= 1, "{refused:?}");
    observe_repeatedly("nobody stands for election", || {
        let leader = cluster.leader();
        let term = cluster.group(leader).status().term;
        cluster.write(50, 100);
        match cluster.group(leader).status().term {
            now if now == term => Ok(()),
            now => Err(format!("{term} became {now}")),
        }
    });
    assert_eq!(
        cluster.group(behind).counters().engine.snapshots_received,
        0
    );
    let tried = offers.load(Ordering::SeqCst) as u32;
    // After the first few, the pauses have more than a hundred ticks. Each heartbeat could bring another offer.
    let most = 10 + (begun.elapsed().as_millis() / (100 * TICK).as_millis()) as u32;
    assert!(
        tried < most,
        "{tried} offers: it tries again, and waits between"
    );

    cluster.network.filter(None);
    cluster.assert_agreed(&[1, 2, 3]);
    wait_for("the failure is over", || last_failure(&cluster).is_none());
}

/// Keeps the inbox of a node, so that a test can deliver messages to it.
#[derive(Default)]
struct Bare(Mutex<Option<Weak<dyn Inbox>>>);

impl Transport for Bare {
    fn start(&self, inbox: Weak<dyn Inbox>) -> std::io::Result<()> {
        *self.0.lock() = Some(inbox);
        Ok(())
    }

    fn send(&self, _: Envelope) {}

    fn send_bulk(&self, _: Envelope, _: Option<esker_raft::transport::Permit>) {}

    fn stop(&self) {}
}

#[test]
fn messages_of_a_newer_version_are_refused_and_counted_apart_from_damaged_ones() {
    let dir = tempfile::tempdir().unwrap();
    let bare = Arc::new(Bare::default());
    let (node, _) = Node::start_among(Config::new(NodeId(1), dir.path()), bare.clone()).unwrap();
    let inbox = bare.0.lock().clone().unwrap().upgrade().unwrap();
    let sender = esker_raft::message::Identity {
        cluster: esker_raft::ClusterId::default(),
        group: GROUP,
        lineage: esker_raft::Lineage::default(),
        node: NodeId(2),
        incarnation: esker_raft::Incarnation(1),
    };
    let mut bytes = sender.seal(NodeId(1), Payload::Wanted).encode();
    inbox.receive(bytes.clone().into(), None).unwrap();
    assert_eq!(node.unread(), Default::default());

    assert_eq!(u32::from(bytes[1]), ENVELOPE_FORMAT, "its first field");
    bytes[1] += 1;
    for _ in 0..3 {
        inbox.receive(bytes.clone().into(), None).unwrap();
    }
    let damaged = bytes::Bytes::from_static(b"\xff\xff");
    inbox.receive(damaged, None).unwrap();
    let unread = node.unread();
    assert_eq!((unread.newer_format, unread.malformed), (3, 1));
    drop(inbox);
    node.stop();
}
