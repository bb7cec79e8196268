//! A node that sends snapshots no faster than its limit.

use std::sync::Weak;

use parking_lot::Mutex;

use super::super::snapshot_sender::SnapshotSender;
use super::*;
use crate::engine::Membership;
use crate::ids::{CheckpointId, ClusterId, Incarnation, Lineage, Term};
use crate::message::{EndReason, Ended, Envelope, Fetch, Identity, Payload};
use crate::store::StoredSnapshot;
use crate::store::{DiskFaults, SnapshotStore};
use crate::transfer::SenderConfig;
use crate::transport::{Inbox, Permit, Transport};

/// Keeps what it is to send.
#[derive(Default)]
struct Sent(Mutex<Vec<(Envelope, Instant)>>);

impl Transport for Sent {
    fn start(&self, _: Weak<dyn Inbox>) -> std::io::Result<()> {
        Ok(())
    }

    fn send(&self, message: Envelope) {
        self.0.lock().push((message, Instant::now()));
    }

    fn send_bulk(&self, message: Envelope, permit: Option<Permit>) {
        self.send(message);
        drop(permit);
    }

    fn stop(&self) {}
}

const CHUNK: u32 = 1000;
const ME: Identity = Identity {
    cluster: ClusterId([0; 16]),
    group: GroupId(1),
    lineage: Lineage([0; 16]),
    node: NodeId(1),
    incarnation: Incarnation(1),
};

struct Fixture {
    _dir: tempfile::TempDir,
    sent: Arc<Sent>,
    sender: Arc<SnapshotSender>,
    checkpoint: CheckpointId,
}

/// A node that sends a snapshot of 100 chunks.
fn sender(bytes_per_second: u64) -> Fixture {
    let dir = tempfile::tempdir().unwrap();
    let store = SnapshotStore::open(&dir.path().join("group"), ME, DiskFaults::default());
    let store = Arc::new(store.unwrap());
    let snapshot = StoredSnapshot {
        last_included_index: Lsn(7),
        term: Term(1),
        peers: Membership {
            voters: vec![NodeId(1), NodeId(2)],
            ..Membership::default()
        },
        data: vec![5; 100 * CHUNK as usize].into(),
    };
    let stored = store.store(&snapshot).unwrap();
    let sent = Arc::new(Sent::default());
    let sender =
        SnapshotSender::start(SenderConfig::default(), bytes_per_second, sent.clone()).unwrap();
    sender.publish(ME, &store, &stored);
    Fixture {
        _dir: dir,
        sent,
        sender,
        checkpoint: stored.manifest.checkpoint,
    }
}

impl Fixture {
    fn fetch(&self, from: u64, chunk: u64) {
        let fetch = Fetch {
            checkpoint: self.checkpoint,
            file: 0,
            offset: chunk * u64::from(CHUNK),
            length: CHUNK,
        };
        self.sender.fetch(ME, NodeId(from), fetch);
    }

    /// Chunks sent to that node, and when.
    fn chunks(&self, to: u64) -> Vec<Instant> {
        let sent = self.sent.0.lock();
        let chunks = sent.iter().filter(|(envelope, _)| {
            matches!(envelope.payload, Payload::Chunk(_)) && envelope.to == NodeId(to)
        });
        chunks.map(|(_, at)| *at).collect()
    }

    fn end(&self, from: u64) {
        let ended = Ended {
            checkpoint: self.checkpoint,
            reason: EndReason::NotNeeded,
        };
        self.sender.ended(NodeId(from), ended);
    }
}

#[test]
fn all_receivers_together_get_no_more_bytes_a_second_than_the_limit() {
    let limit = 50 * u64::from(CHUNK);
    let node = sender(limit);
    let begun = Instant::now();
    for chunk in 0..20 {
        node.fetch(2, chunk);
        node.fetch(3, chunk);
    }
    wait_for("all of it", || {
        node.chunks(2).len() == 20 && node.chunks(3).len() == 20
    });
    // The first one, and a tenth of a second's worth, may go ahead.
    let took = begun.elapsed();
    assert!(took >= Duration::from_millis(680), "40 at 50/s: {took:?}");
    // How much of that was waiting depends on how long it takes by itself.
    assert!(node.sender.throttled() > Duration::ZERO);
    // Both got chunks all the time, and not one after the other.
    let (two, three) = (node.chunks(2), node.chunks(3));
    assert!(two[0] < three[19] && three[0] < two[19]);
    node.sender.stop();
}

#[test]
fn what_waits_for_the_limit_ends_with_the_node() {
    // The next chunk would be due in a thousand seconds.
    let node = sender(1);
    node.fetch(2, 0);
    node.fetch(2, 1);
    wait_for("the first one", || node.chunks(2).len() == 1);
    let (sender, (done, ended)) = (node.sender.clone(), std::sync::mpsc::channel());
    std::thread::spawn(move || {
        sender.stop();
        done.send(()).unwrap();
    });
    ended.recv_timeout(WAIT_TIMEOUT).expect("it does not wait");
    assert_eq!(node.chunks(2).len(), 1);
}

#[test]
fn a_transfer_that_is_over_uses_up_nothing_of_the_limit() {
    let node = sender(2 * u64::from(CHUNK));
    for chunk in 0..100 {
        node.fetch(2, chunk);
    }
    wait_for("one has come", || !node.chunks(2).is_empty());
    node.end(2);
    // Were those read that are left, this one would come after 49 seconds.
    let asked = Instant::now();
    node.fetch(3, 0);
    wait_for("the other one gets its", || node.chunks(3).len() == 1);
    assert!(node.chunks(2).len() < 10, "{:?}", asked.elapsed());
    node.sender.stop();
}

#[test]
fn without_a_limit_nothing_waits() {
    let node = sender(0);
    for chunk in 0..100 {
        node.fetch(2, chunk);
    }
    wait_for("all of it", || node.chunks(2).len() == 100);
    assert_eq!(node.sender.throttled(), Duration::ZERO);
    node.sender.stop();
}
