//! What transports promise: order between two nodes, bounds, and that no node waits for another.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use parking_lot::Mutex;

use super::memory::Network;
use super::*;
use crate::ids::{CheckpointId, ClusterId, GroupId, Incarnation, Lineage};
use crate::message::{Chunk, EndReason, Ended, Identity, Payload};
use crate::transfer::Checksum;

#[derive(Default)]
struct Heard {
    messages: Mutex<Vec<Envelope>>,
    unreachable: Mutex<Vec<NodeId>>,
    /// The names of the threads that have noted such nodes.
    noted_by: Mutex<Vec<Option<String>>>,
    /// Receiving waits while this is held.
    gate: Mutex<()>,
}

impl Inbox for Heard {
    fn receive(&self, message: Bytes, from: Option<&mut ProvenSender>) -> Result<(), Foreign> {
        drop(self.gate.lock());
        let message = Envelope::decode(message).unwrap();
        if let Some(from) = from {
            from.check(&message, message.to)?;
        }
        self.messages.lock().push(message);
        Ok(())
    }

    fn unreachable(&self, node: NodeId) {
        let thread = std::thread::current();
        (self.noted_by.lock()).push(thread.name().map(str::to_owned));
        self.unreachable.lock().push(node);
    }
}

fn started(transport: &dyn Transport) -> Arc<Heard> {
    let heard = Arc::new(Heard::default());
    let inbox: Weak<Heard> = Arc::downgrade(&heard);
    transport.start(inbox).unwrap();
    heard
}

fn from(node: u64) -> Identity {
    Identity {
        cluster: ClusterId([3; 16]),
        group: GroupId(1),
        lineage: Lineage::default(),
        node: NodeId(node),
        incarnation: Incarnation(1),
    }
}

/// A small message with a number.
fn numbered(to: u64, number: u8) -> Envelope {
    let ended = Ended {
        checkpoint: CheckpointId([number; 16]),
        reason: EndReason::Busy,
    };
    from(1).seal(NodeId(to), Payload::Ended(ended))
}

fn chunk(to: u64, bytes: usize) -> Envelope {
    let bytes = Bytes::from(vec![7; bytes]);
    let chunk = Chunk {
        checkpoint: CheckpointId([1; 16]),
        file: 0,
        offset: 0,
        checksum: Checksum::of(&bytes),
        bytes,
    };
    from(1).seal(NodeId(to), Payload::Chunk(chunk))
}

#[track_caller]
fn wait_for(what: &str, so: impl Fn() -> bool) {
    let started = Instant::now();
    while !so() {
        assert!(
            started.elapsed() < Duration::from_secs(60),
            "in vain: {what}"
        );
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Counts when it is dropped.
struct Counted(Arc<Mutex<usize>>);

impl Drop for Counted {
    fn drop(&mut self) {
        *self.0.lock() += 1;
    }
}

#[test]
fn messages_arrive_in_order_and_a_node_that_does_not_read_gets_no_more_than_fits() {
    let network = Network::new();
    let (one, two) = (network.transport(NodeId(1)), network.transport(NodeId(2)));
    started(&*one);
    let heard = started(&*two);
    let held = heard.gate.lock();
    for n in 0..(MAX_QUEUED_MESSAGES + 1000) {
        one.send(numbered(2, (n % 251) as u8));
    }
    drop(held);
    wait_for("what fits", || {
        heard.messages.lock().len() >= MAX_QUEUED_MESSAGES
    });
    one.stop();
    two.stop();
    let messages = heard.messages.lock();
    assert!(
        messages.len() <= MAX_QUEUED_MESSAGES + 1,
        "{}",
        messages.len()
    );
    // The one more is whichever came when the first had left the queue.
    let in_order = (0..MAX_QUEUED_MESSAGES).all(|n| messages[n] == numbered(2, (n % 251) as u8));
    assert!(in_order);
}

#[test]
fn a_permit_is_given_back_whether_its_chunk_arrives_or_not() {
    let network = Network::new();
    let (one, two) = (network.transport(NodeId(1)), network.transport(NodeId(2)));
    started(&*one);
    let heard = started(&*two);
    let back = Arc::new(Mutex::new(0));
    let permit = || Some(Box::new(Counted(back.clone())) as Permit);
    one.send_bulk(chunk(2, 10), permit());
    // To an unknown node.
    one.send_bulk(chunk(3, 10), permit());
    network.cut(&[NodeId(2)]);
    one.send_bulk(chunk(2, 10), permit());
    wait_for("all are back", || *back.lock() == 3);
    wait_for("one arrived", || heard.messages.lock().len() == 1);
}

#[cfg(feature = "grpc")]
mod calls;
#[cfg(feature = "grpc")]
mod identity;
#[cfg(feature = "grpc")]
mod strangers;
#[cfg(feature = "grpc")]
mod tls;

#[cfg(feature = "grpc")]
mod grpc {
    use super::super::grpc::{GrpcConfig, GrpcTransport};
    use super::*;

    pub const ANY: std::net::SocketAddr =
        std::net::SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 0);

    pub fn transport(secret: Option<&str>) -> GrpcTransport {
        let config = GrpcConfig {
            secret: secret.map(str::to_owned),
            ..GrpcConfig::default()
        };
        GrpcTransport::bind(ANY, config).unwrap()
    }

    /// Sends until something arrives: the first ones may be lost.
    pub fn send_until(to: &Heard, one: &GrpcTransport, node: u64) {
        wait_for("something arrives", || {
            one.send(numbered(node, 9));
            std::thread::sleep(Duration::from_millis(10));
            !to.messages.lock().is_empty()
        });
    }

    #[test]
    fn messages_and_large_chunks_arrive_and_permits_come_back() {
        let (one, two) = (transport(None), transport(None));
        started(&one);
        let heard = started(&two);
        one.set_peer(NodeId(2), two.address().to_string());
        let back = Arc::new(Mutex::new(0));
        for _ in 0..16 {
            let permit: Permit = Box::new(Counted(back.clone()));
            one.send_bulk(chunk(2, 4 * 1024 * 1024), Some(permit));
        }
        for n in 0..200 {
            one.send(numbered(2, n));
        }
        wait_for("all of it", || heard.messages.lock().len() == 216);
        wait_for("all permits", || *back.lock() == 16);
        let messages = heard.messages.lock();
        let small = messages
            .iter()
            .filter(|m| matches!(m.payload, Payload::Ended(_)));
        assert!(small.eq((0..200).map(|n| numbered(2, n)).collect::<Vec<_>>().iter()));
    }

    #[test]
    fn an_absent_peer_delays_no_other_and_gets_messages_once_it_is_there() {
        let (one, two) = (transport(None), transport(None));
        let three = transport(None);
        let heard_one = started(&one);
        let heard_two = started(&two);
        one.set_peer(NodeId(2), two.address().to_string());
        // Bound, so that the port is reserved, and does not answer.
        let silent = std::net::TcpListener::bind(ANY).unwrap();
        one.set_peer(NodeId(3), silent.local_addr().unwrap().to_string());
        let back = Arc::new(Mutex::new(0));
        let started_at = Instant::now();
        for n in 0..10_000u32 {
            one.send(numbered(3, n as u8));
            let permit: Permit = Box::new(Counted(back.clone()));
            one.send_bulk(chunk(3, 100), Some(permit));
        }
        assert!(
            started_at.elapsed() < Duration::from_secs(60),
            "sending never waits"
        );
        // Beside the queue there is what a stream has taken from it, if it is open already.
        assert!(
            *back.lock() >= 10_000 - MAX_QUEUED_CHUNKS - 8,
            "the queue is bounded"
        );
        send_until(&heard_two, &one, 2);
        wait_for("it is said that nothing gets through", || {
            heard_one.unreachable.lock().contains(&NodeId(3))
        });

        // It is somewhere else now.
        let heard_three = started(&three);
        one.set_peer(NodeId(3), three.address().to_string());
        send_until(&heard_three, &one, 3);
    }

    /// What it does there may take long, and messages to all other nodes would wait for it.
    #[test]
    fn the_thread_that_sends_messages_does_not_handle_an_absent_peer() {
        let one = transport(None);
        let heard = started(&one);
        // Nobody listens there any more. Whoever takes the port meanwhile is no node either.
        let gone = transport(None);
        one.set_peer(NodeId(3), gone.address().to_string());
        drop(gone);
        wait_for("it is noted that the peer is unreachable", || {
            one.send(numbered(3, 1));
            !heard.unreachable.lock().is_empty()
        });
        let threads = heard.noted_by.lock();
        let is_receiving = |thread: &Option<String>| thread.as_deref() == Some("raft-net");
        assert!(threads.iter().all(is_receiving), "{threads:?}");
    }

    #[test]
    fn a_stream_is_opened_again_after_the_peer_restarted() {
        // Another process may take the port while it is free, so the test has three attempts. A port that
        // is never released fails all of them.
        let restarted = (0..3).any(|_| speaks_to_a_peer_that_restarts());
        assert!(restarted, "the port is free again");
    }

    /// False if the port was not to be had again.
    fn speaks_to_a_peer_that_restarts() -> bool {
        let (one, two) = (transport(None), transport(None));
        let _hears = started(&one);
        let heard = started(&two);
        let address = two.address();
        one.set_peer(NodeId(2), address.to_string());
        send_until(&heard, &one, 2);
        two.stop();
        drop(two);
        let mut again = None;
        let tried = Instant::now();
        while again.is_none() && tried.elapsed() < Duration::from_secs(20) {
            again = GrpcTransport::bind(address, GrpcConfig::default()).ok();
        }
        let Some(again) = again else {
            return false;
        };
        let heard = started(&again);
        send_until(&heard, &one, 2);
        true
    }

    #[test]
    fn calls_without_the_secret_are_refused() {
        let (one, stranger) = (transport(Some("sesame")), transport(Some("simsim")));
        let two = transport(Some("sesame"));
        started(&one);
        started(&stranger);
        let heard = started(&two);
        one.set_peer(NodeId(2), two.address().to_string());
        stranger.set_peer(NodeId(2), two.address().to_string());
        for n in 0..50 {
            stranger.send(numbered(2, n));
        }
        send_until(&heard, &one, 2);
        let messages = heard.messages.lock();
        assert!(
            messages.iter().all(|m| *m == numbered(2, 9)),
            "{messages:?}"
        );
    }
}
