//! Transfers that stop for long, or lose something, and go on.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use esker_raft::message::Identity;
use esker_raft::store::{DiskFaults, SnapshotStore};
use esker_raft::transfer::{Checksum, Content, Manifest, OFFER_FORMAT};
use esker_raft::{CheckpointId, ClusterId, Incarnation, Lineage, Membership, NodeId};

use super::{CHUNK, Watch, in_mid_transfer};
use crate::host::{Cluster, GROUP, Wire, wait_for};

#[test]
fn a_sender_that_restarts_with_a_newer_snapshot_goes_on_with_the_one_under_way() {
    let (mut cluster, behind, watch) = in_mid_transfer(false);
    let source = cluster.leader();
    cluster.write(20, 100);
    cluster.snapshot(source);
    cluster.kill(source);
    cluster.run(source);
    watch.go_on();
    cluster.assert_agreed(&[1, 2, 3]);
    watch.assert_hardly_repeated();
    let counters = cluster.group(behind).counters();
    assert_eq!(counters.engine.fetches_failed, 0, "{counters:?}");
    assert_eq!(counters.engine.snapshots_received, 1);
}

#[test]
fn a_disk_that_is_full_for_long_costs_a_transfer_nothing() {
    let mut cluster = Cluster::empty(Wire::Memory, &[1, 2, 3]);
    // 600 ticks without a fetch are three seconds; an election begins after one second without a message.
    cluster.adjust = Box::new(|c| {
        c.tick_interval = Duration::from_millis(5);
        (c.election_ticks, c.heartbeat_ticks) = (200, 20);
    });
    [1, 2, 3].iter().for_each(|id| cluster.run(*id));
    cluster.write(10, 100);
    cluster.assert_agreed(&[1, 2, 3]);
    let behind = cluster.follower();
    cluster.leave_behind(behind, 300, 1000);
    let source = cluster.leader();
    let faults = cluster.faults[&behind].clone();
    faults.full_after(100_000);
    let watch = Watch::install(&cluster, usize::MAX);
    cluster.run(behind);
    wait_for("the disk is full", || faults.was_full());
    cluster.write(20, 100);
    cluster.snapshot(source);
    std::thread::sleep(Duration::from_secs(6));
    faults.space_returned();
    cluster.assert_agreed(&[1, 2, 3]);
    watch.assert_hardly_repeated();
    let counters = cluster.group(behind).counters();
    assert_eq!(counters.engine.fetches_failed, 0, "{counters:?}");
}

#[test]
fn a_fetch_goes_on_with_the_remaining_files_when_others_are_removed() {
    type Loss = fn(&std::path::Path);
    let losses: [(&str, Loss); 3] = [
        ("cut", |partial| {
            let file = std::fs::File::options();
            let file = { file }.write(true).open(partial.join("data"));
            file.unwrap().set_len(50_000).unwrap();
        }),
        ("removed", |partial| {
            std::fs::remove_file(partial.join("data")).unwrap();
        }),
        ("with its directory", |partial| {
            std::fs::remove_dir_all(partial).unwrap();
        }),
    ];
    for (what, lose) in losses {
        let (cluster, behind, watch) = in_mid_transfer(false);
        let dir = cluster.data_dir(behind).join("raft/group-4");
        let names = std::fs::read_dir(&dir).unwrap();
        let mut names = names.map(|n| n.unwrap().file_name().into_string().unwrap());
        let partial = names.find(|n| n.starts_with("fetch-")).unwrap();
        let file = dir.join(&partial).join("data");
        wait_for("what has come is written", || {
            std::fs::metadata(&file).is_ok_and(|f| f.len() == 30 * CHUNK)
        });
        lose(&dir.join(partial));
        watch.go_on();
        cluster.assert_agreed(&[1, 2, 3]);
        let counters = cluster.group(behind).counters();
        assert_eq!(counters.engine.fetches_failed, 0, "{what}: {counters:?}");
        assert_eq!(counters.engine.snapshots_received, 1, "{what}");
    }
}

#[test]
fn bytes_that_arrive_are_counted_as_they_arrive() {
    let (cluster, behind, watch) = in_mid_transfer(false);
    wait_for("those that have come are counted", || {
        cluster.group(behind).counters().bytes_fetched == 30 * CHUNK
    });
    std::thread::sleep(Duration::from_millis(100));
    let counters = cluster.group(behind).counters();
    assert_eq!(counters.engine.fetches_failed, 0, "it goes on");
    watch.go_on();
    cluster.assert_agreed(&[1, 2, 3]);
    let total = cluster.group(behind).counters().bytes_fetched;
    assert!(total > 300_000, "{total}");
}

#[test]
fn an_unfinished_fetch_of_what_came_as_entries_never_becomes_a_snapshot() {
    let mut cluster = Cluster::empty(Wire::Memory, &[1]);
    let knobs = cluster.knobs.entry(1).or_default();
    knobs.durable.store(true, Ordering::SeqCst);
    cluster.run(1);
    cluster.write(5, 100);
    cluster.assert_agreed(&[1]);
    let status = cluster.group(1).status();
    cluster.kill(1);

    // It was fetching a snapshot of exactly these entries, and has half of it.
    let identity = Identity {
        cluster: ClusterId::default(),
        group: GROUP,
        lineage: Lineage::default(),
        node: NodeId(1),
        incarnation: Incarnation(1),
    };
    let dir = cluster.data_dir(1).join("raft/group-4");
    let store = SnapshotStore::open(&dir, identity, DiskFaults::default());
    let offer = Manifest {
        format: OFFER_FORMAT,
        checkpoint: CheckpointId([5; 16]),
        source: NodeId(2),
        last_included_index: status.applied,
        term: status.applied_term,
        peers: Membership {
            voters: vec![NodeId(1)],
            ..Membership::default()
        },
        content: Content::Bytes {
            size: 1000,
            checksum: Checksum::of(&[7; 1000]),
        },
    };
    let partial = Arc::new(store.unwrap()).begin_fetch(&offer).unwrap();
    let half = Bytes::from_static(&[7; 500]);
    partial.write(0, 0, &[half]).unwrap();

    cluster.run(1);
    assert_eq!(std::fs::read_dir(&dir).unwrap().count(), 0);
    cluster.write(5, 100);
    assert_eq!(cluster.lines(1).len(), 10);
}
