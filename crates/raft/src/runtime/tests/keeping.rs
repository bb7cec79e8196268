//! Which snapshots of a member stay on its disk, and for how long.

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

const ME: Identity = Identity {
    cluster: ClusterId([0; 16]),
    group: GroupId(1),
    lineage: Lineage([0; 16]),
    node: NodeId(1),
    incarnation: Incarnation(1),
};
const IDLE: u64 = 10;

/// Keeps what it is to send.
#[derive(Default)]
pub struct Sent(pub Mutex<Vec<Payload>>);

impl Transport for Sent {
    fn start(&self, _: Weak<dyn Inbox>) -> std::io::Result<()> {
        Ok(())
    }

    fn send(&self, message: Envelope) {
        self.0.lock().push(message.payload);
    }

    fn send_bulk(&self, message: Envelope, permit: Option<Permit>) {
        self.send(message);
        drop(permit);
    }

    fn stop(&self) {}
}

/// A member's snapshots, and the node that sends them.
pub struct Member {
    dir: PathBuf,
    faults: DiskFaults,
    store: Arc<SnapshotStore>,
    sent: Arc<Sent>,
    pub(in crate::runtime) sender: Arc<SnapshotSender>,
}

impl Member {
    /// Opens the store, as a node does that starts.
    pub fn open(dir: &Path) -> Member {
        let (dir, faults) = (dir.join("group"), DiskFaults::default());
        let store = SnapshotStore::open(&dir, ME, faults.clone()).unwrap();
        let config = SenderConfig {
            max_transfers: 2,
            idle_ticks: IDLE,
            ..SenderConfig::default()
        };
        let sent = Arc::<Sent>::default();
        let member = Member {
            dir,
            faults,
            store: Arc::new(store),
            sender: SnapshotSender::start(config, 0, sent.clone()).unwrap(),
            sent,
        };
        member.sender.publish_found(ME, &member.store);
        member
    }

    /// Stores a snapshot, of bytes.
    pub fn snapshot(&self, lsn: u64) -> CheckpointId {
        let snapshot = StoredSnapshot {
            last_included_index: Lsn(lsn),
            term: Term(1),
            peers: Membership {
                voters: vec![NodeId(1), NodeId(2)],
                ..Membership::default()
            },
            data: vec![lsn as u8; 1000].into(),
        };
        let stored = self.store.store(&snapshot).unwrap();
        self.sender.publish(ME, &self.store, &stored);
        stored.manifest.checkpoint
    }

    /// The answer to a peer that requests part of it.
    pub fn fetch(&self, from: u64, checkpoint: CheckpointId) -> Payload {
        self.sent.0.lock().clear();
        let fetch = Fetch {
            checkpoint,
            file: 0,
            offset: 100,
            length: 50,
        };
        self.sender.fetch(ME, NodeId(from), fetch);
        wait_for("an answer", || !self.sent.0.lock().is_empty());
        self.sent.0.lock().remove(0)
    }

    fn ticks(&self, count: u64) {
        (0..count).for_each(|_| self.sender.tick());
    }

    /// What the snapshots on the disk cover.
    fn on_disk(&self) -> Vec<u64> {
        let names = std::fs::read_dir(&self.dir).unwrap();
        let names = names.map(|n| n.unwrap().file_name().into_string().unwrap());
        let lsn = |name: String| name.strip_prefix("snap-")?.split_once('-')?.0.parse().ok();
        let mut found: Vec<u64> = names.filter_map(lsn).collect();
        found.sort_unstable();
        found
    }

    #[track_caller]
    fn assert_stays(&self, lsns: &[u64]) {
        wait_for("the others are removed", || self.on_disk() == lsns);
        // Removals are another thread's: it is given time for one more.
        std::thread::sleep(Duration::from_millis(20));
        assert_eq!(self.on_disk(), lsns);
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        self.sender.stop();
    }
}

#[test]
fn a_transfer_of_an_older_snapshot_goes_on_after_its_source_has_restarted() {
    let dir = tempfile::tempdir().unwrap();
    let member = Member::open(dir.path());
    let older = member.snapshot(10);
    assert!(matches!(member.fetch(2, older), Payload::Chunk(_)));
    member.snapshot(20);
    member.assert_stays(&[10, 20]);
    drop(member);

    let member = Member::open(dir.path());
    member.assert_stays(&[10, 20]);
    // Before the receiver makes contact again, there is a newer one.
    member.snapshot(30);
    member.ticks(IDLE - 1);
    assert!(matches!(member.fetch(2, older), Payload::Chunk(_)));
    member.ticks(IDLE - 1);
    member.assert_stays(&[10, 30]);
    member.ticks(2);
    member.assert_stays(&[30]);
}

#[test]
fn no_more_older_snapshots_are_kept_for_receivers_than_may_be_sent_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let store = |lsn: u64| {
        let store = SnapshotStore::open(&dir.path().join("group"), ME, DiskFaults::default());
        let snapshot = StoredSnapshot {
            last_included_index: Lsn(lsn),
            term: Term(1),
            peers: Membership {
                voters: vec![NodeId(1)],
                ..Membership::default()
            },
            data: vec![0; 10].into(),
        };
        store.unwrap().store(&snapshot).unwrap();
    };
    (1..=5).for_each(store);
    let member = Member::open(dir.path());
    member.assert_stays(&[3, 4, 5]);
    member.ticks(IDLE + 1);
    member.assert_stays(&[5]);
}

#[test]
fn what_is_left_of_a_snapshot_that_lost_a_file_goes_with_the_next_one() {
    let dir = tempfile::tempdir().unwrap();
    let member = Member::open(dir.path());
    let lost = member.snapshot(10);
    let name = std::fs::read_dir(&member.dir).unwrap().next().unwrap();
    std::fs::remove_file(name.unwrap().path().join("data")).unwrap();
    let Payload::Ended(ended) = member.fetch(2, lost) else {
        panic!("there is nothing to send");
    };
    assert_eq!(ended.reason, EndReason::Vanished);
    assert!(member.store.newest().is_none(), "it is not offered");
    member.snapshot(20);
    member.assert_stays(&[20]);
}

#[test]
fn a_read_that_fails_once_ends_one_transfer_and_no_other() {
    let dir = tempfile::tempdir().unwrap();
    let member = Member::open(dir.path());
    let it = member.snapshot(10);
    assert!(matches!(member.fetch(2, it), Payload::Chunk(_)));
    member.faults.fail_once_after(0);
    let Payload::Ended(ended) = member.fetch(3, it) else {
        panic!("it cannot be read");
    };
    assert_eq!(ended.reason, EndReason::Unreadable);
    assert!(matches!(member.fetch(2, it), Payload::Chunk(_)));
    member.snapshot(20);
    let reason = EndReason::Installed;
    let ended = Ended {
        checkpoint: it,
        reason,
    };
    member.sender.ended(NodeId(2), ended);
    member.assert_stays(&[20]);
}

#[test]
fn a_receiver_whose_disk_is_full_finds_its_snapshot_again() {
    let dir = tempfile::tempdir().unwrap();
    let member = Member::open(dir.path());
    let older = member.snapshot(10);
    assert!(matches!(member.fetch(2, older), Payload::Chunk(_)));
    member.snapshot(20);
    for _ in 0..5 {
        // It requests nothing, and reports its progress.
        member.ticks(IDLE - 1);
        member.sender.note_progress(NodeId(2), older);
    }
    member.assert_stays(&[10, 20]);
    assert!(matches!(member.fetch(2, older), Payload::Chunk(_)));
    let ended = Ended {
        checkpoint: older,
        reason: EndReason::Installed,
    };
    member.sender.ended(NodeId(2), ended);
    member.assert_stays(&[20]);
}

#[test]
fn a_file_that_arrived_corrupt_is_read_again_for_the_next_snapshot() {
    let dir = tempfile::tempdir().unwrap();
    let member = Member::open(dir.path());
    let export = dir.path().join("export");
    std::fs::create_dir(&export).unwrap();
    std::fs::write(export.join("a"), b"what was written").unwrap();
    let written_at = std::fs::metadata(export.join("a")).unwrap().modified();
    std::thread::sleep(Duration::from_millis(30));
    let snapshot = |lsn: u64| StoredSnapshot {
        last_included_index: Lsn(lsn),
        term: Term(1),
        peers: Membership {
            voters: vec![NodeId(1), NodeId(2)],
            ..Membership::default()
        },
        data: SnapshotData::Files(SnapshotDir {
            path: export.clone(),
        }),
    };
    let stored = member.store.store(&snapshot(10)).unwrap();
    member.sender.publish(ME, &member.store, &stored);

    std::fs::write(export.join("a"), b"what was wrltten").unwrap();
    let file = std::fs::File::options();
    let file = { file }.write(true).open(export.join("a")).unwrap();
    file.set_modified(written_at.unwrap()).unwrap();
    let ended = Ended {
        checkpoint: stored.manifest.checkpoint,
        reason: EndReason::Corrupt,
    };
    member.sender.ended(NodeId(2), ended);
    let refused = member.store.store(&snapshot(20)).unwrap_err();
    assert!(refused.to_string().contains("export/a"), "{refused}");
}
