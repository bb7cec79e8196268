//! Messages that come over a connection of another node than they name, and what an admitted node can do with them.

use std::sync::Weak;
use std::sync::atomic::AtomicUsize;

use bytes::Bytes;
use raft::eraftpb::{Message, MessageType};

use super::members::{GROUP, Members};
use super::*;
use crate::ids::{ClusterId, Incarnation, Lineage, Term};
use crate::message::{Envelope, Identity, Payload, PeerMessage};
use crate::transport::grpc::{
    Admission, Admitted, CertificateDer, Claim, EarlierProcesses, Gatekeeper, GrpcConfig,
    GrpcTransport, Refusal,
};
use crate::transport::{Foreign, Inbox, ProvenSender, Transport};

/// Admits every node.
struct Open;

impl Gatekeeper for Open {
    fn admit(
        &self,
        _: &Claim,
        _: Admission,
        _: &str,
        _: Option<&CertificateDer<'_>>,
    ) -> Result<Box<dyn Admitted>, Refusal> {
        Ok(Box::new(()))
    }
}

fn transport(node: u64) -> Arc<GrpcTransport> {
    let claim = Claim {
        cluster: ClusterId::default(),
        node: NodeId(node),
        process: u128::from(node),
        earlier: EarlierProcesses::default(),
    };
    let config = GrpcConfig {
        claim: Some(claim),
        gatekeeper: Some(Arc::new(Open)),
        ..GrpcConfig::default()
    };
    let listen = "127.0.0.1:0".parse().unwrap();
    Arc::new(GrpcTransport::bind(listen, config).unwrap())
}

/// Counts how often it is reported that a node cannot be reached.
#[derive(Default)]
struct Breaks(AtomicUsize);

impl Inbox for Breaks {
    fn receive(&self, _: Bytes, _: Option<&mut ProvenSender>) -> Result<(), Foreign> {
        Ok(())
    }

    fn unreachable(&self, _: NodeId) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

const TERM: u64 = 1000;

/// A request for a vote in a far term, which would take the leadership from any leader.
fn vote(sender: u64, incarnation: u64, to: u64) -> Envelope {
    let mut message = Message {
        from: sender,
        to,
        term: TERM,
        index: TERM,
        log_term: TERM,
        ..Message::default()
    };
    message.set_msg_type(MessageType::MsgRequestVote);
    let identity = Identity {
        cluster: ClusterId::default(),
        group: GROUP,
        lineage: Lineage::default(),
        node: NodeId(sender),
        incarnation: Incarnation(incarnation),
    };
    identity.seal(NodeId(to), Payload::Raft(PeerMessage(message)))
}

#[test]
fn a_node_that_was_admitted_votes_and_campaigns_in_its_own_name_alone() {
    let dir = tempfile::tempdir().unwrap();
    let ours = transport(1);
    let config = NodeConfig {
        tick_interval: Duration::from_millis(20),
        ..NodeConfig::new(NodeId(1), dir.path())
    };
    let (node, _) = Node::start_among(config, ours.clone()).unwrap();
    let founders = [NodeId(1), NodeId(2), NodeId(3)];
    let options = GroupOptions::founded_by(GROUP, &founders);
    let group = node.open_member(options, Members::machine()).unwrap();

    let stranger = transport(2);
    let breaks = Arc::new(Breaks::default());
    let inbox: Weak<Breaks> = Arc::downgrade(&breaks);
    stranger.start(inbox).unwrap();
    stranger.set_peer(NodeId(1), ours.address().to_string());
    let broken = || breaks.0.load(Ordering::SeqCst);
    // In the name of another member, and of a node that is none; each time its stream ends.
    for (round, name) in [(1, 3), (2, 9), (3, 3)] {
        wait_for("it is refused", || {
            stranger.send(vote(name, 1, 1));
            std::thread::sleep(Duration::from_millis(5));
            node.unread().foreign >= round && broken() >= round as usize
        });
        assert!(group.status().term < Term(TERM));
    }
    // For another node, which it does not reach here.
    let before = (node.unread().foreign, broken());
    wait_for("it is refused", || {
        // The transport sends by the receiver, so that is what is changed.
        stranger.set_peer(NodeId(7), ours.address().to_string());
        stranger.send(vote(2, 1, 7));
        std::thread::sleep(Duration::from_millis(5));
        broken() > before.1
    });
    assert_eq!(node.unread().foreign, before.0, "it is not even sent");
    assert!(group.status().term < Term(TERM));
    // In its own name it is a member like any other.
    wait_for("its vote counts", || {
        stranger.send(vote(2, 1, 1));
        std::thread::sleep(Duration::from_millis(5));
        group.status().term >= Term(TERM)
    });
    stranger.stop();
    group.stop();
    node.stop();
}

#[test]
fn one_stream_is_of_one_start_of_its_sender_and_for_one_node() {
    let mut of_two = ProvenSender::new(ClusterId::default(), NodeId(2));
    let me = NodeId(1);
    let refused = |of: &mut ProvenSender, message| of.check(&message, me).unwrap_err().to_string();
    assert!(refused(&mut of_two, vote(3, 1, 1)).contains("of node 2"));
    of_two.check(&vote(2, 5, 1), me).unwrap();
    of_two.check(&vote(2, 5, 1), me).unwrap();
    for incarnation in [4, 6, u64::MAX] {
        let why = refused(&mut of_two, vote(2, incarnation, 1));
        assert!(why.contains("of one process"), "{why}");
    }
    assert!(refused(&mut of_two, vote(2, 5, 8)).contains("for node 8"));
    let mut elsewhere = ProvenSender::new(ClusterId([1; 16]), NodeId(2));
    assert!(refused(&mut elsewhere, vote(2, 5, 1)).contains("another cluster"));
}
