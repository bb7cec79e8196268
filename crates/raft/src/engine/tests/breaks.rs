//! Promises that other libraries of this kind do not keep, each as a scenario.
//!
//! The rest of them are where the rest of their subject is:
//!
//! - `snapshots`: hints after failures, the trigger in bytes;
//! - `catching_up`: a newer snapshot cancels nothing, the log is kept behind a transfer;
//! - `membership`: successive snapshots, strangers;
//! - `versions`: snapshots say of which format they are;
//! - the tests of [`crate::transfer`]: no byte twice, checksums, no deadline on size, bounded memory;
//! - the tests of [`crate::log`] and [`crate::runtime`]: a disk that was full, once there is space;
//! - `tests/cluster/slow_disks.rs`: a disk that is busy with snapshots does not keep the log waiting.

use super::cluster::{Cluster, Fate};
use super::*;

fn installs(cluster: &Cluster, id: u64) -> usize {
    cluster.said(id, |a| matches!(a, Action::InstallSnapshot { .. }))
}

/// Three members, of which the third was away until the others let go of their logs.
fn one_behind(adjust: impl Fn(&mut Config)) -> Cluster {
    let mut cluster = Cluster::with(&[1, 2, 3], adjust);
    cluster.write(10);
    cluster.cut = vec![3];
    cluster.write(60);
    cluster.ticks(30);
    cluster.snapshot(1);
    cluster.snapshot(2);
    cluster.ticks(2);
    cluster.cut.clear();
    cluster
}

#[test]
fn the_second_snapshot_keeps_members_added_since_the_bootstrap() {
    let mut cluster = Cluster::new(&[1]);
    cluster.write(5);
    cluster.joiner(2);
    let add = MembershipChange::AddPeer(NodeId(2));
    cluster.change(add).unwrap();
    cluster.ticks(20);
    cluster.snapshot(1);
    // After the first snapshot the log has no entry with the membership.
    cluster.restart(1);
    cluster.ticks(40);
    cluster.write(5);
    let leader = cluster.leader();
    cluster.snapshot(leader);
    let peers = &cluster.host(leader).newest().manifest.peers;
    assert_eq!(*peers, members(&[1, 2]));
}

#[test]
fn the_sender_is_in_the_membership_it_sends() {
    let mut cluster = one_behind(|_| {});
    cluster.ticks(100);
    let installed = |a: &&Action| matches!(a, Action::InstallSnapshot { .. });
    let Some(Action::InstallSnapshot { offer }) = cluster.host(3).said.iter().find(installed)
    else {
        panic!("nothing was installed");
    };
    assert!(offer.peers.contains(offer.source));
    assert_eq!(*cluster.host(3).engine.membership(), members(&[1, 2, 3]));
    // So the member that caught up knows the voters.
    cluster.cut = vec![1];
    cluster.ticks(100);
    cluster.write(3);
    cluster.assert_agreed(&[2, 3]);
}

#[test]
fn a_follower_that_has_what_it_is_offered_and_does_not_know_it_is_committed_goes_on() {
    let mut cluster = Cluster::new(&[1, 2, 3]);
    cluster.write(10);
    // The last entry reaches 3; its answer, and everything after that, does not arrive.
    let mut seen = false;
    cluster.fate = Box::new(move |envelope| {
        if envelope.sender.node.0 != 3 && envelope.to.0 != 3 {
            return Fate::Arrives;
        }
        let entries = match &envelope.payload {
            Payload::Raft(message) => !message.0.entries.is_empty(),
            _ => false,
        };
        match entries && !std::mem::replace(&mut seen, true) {
            true => Fate::Arrives,
            false => Fate::Lost,
        }
    });
    cluster.write(1);
    let last = cluster.host(1).applied;
    let host = cluster.host(3);
    assert_eq!(
        (host.engine.last(), host.applied.lsn.next()),
        (last.lsn, last.lsn)
    );
    cluster.ticks(30);
    for id in [1, 2] {
        cluster.snapshot(id);
        assert_eq!(cluster.host(id).engine.log_start(), last.lsn);
    }
    // So the leader probes from what it knows.
    cluster.step(1, Event::Unreachable(NodeId(3)));
    cluster.fate = Box::new(|_| Fate::Arrives);
    cluster.ticks(100);
    cluster.assert_agreed(&[1, 2, 3]);
    assert_eq!(installs(&cluster, 3), 0, "it had everything");
}

#[test]
fn a_failed_snapshot_stops_nothing_and_the_guardrail_hints_again() {
    let mut cluster = Cluster::with(&[1, 2, 3], |config| {
        config.max_log_entries = 20;
        config.snapshot_backoff_ticks = 2..=4;
    });
    cluster.host_mut(1).heeds_hints = false;
    let hints = |c: &Cluster| c.said(1, |a| matches!(a, Action::SnapshotHint { .. }));
    for failures in 1..=5 {
        cluster.write(25);
        cluster.ticks(5);
        assert_eq!(hints(&cluster), failures);
        cluster.step(1, Event::SnapshotFailed);
    }
    cluster.assert_agreed(&[1, 2, 3]);
    assert_eq!(cluster.host(1).lines.len(), 125);
}

#[test]
fn applies_go_on_while_a_snapshot_is_written() {
    let mut cluster = Cluster::new(&[1, 2, 3]);
    cluster.write(5);
    for id in 1..=3 {
        cluster.step(id, Event::SnapshotBegun);
    }
    cluster.write(50);
    assert_eq!(cluster.host(1).lines.len(), 55);
    cluster.assert_agreed(&[1, 2, 3]);
}

#[test]
fn chunks_do_not_wait_for_heartbeats() {
    let mut cluster = one_behind(|config| {
        config.heartbeat_ticks = 5;
        config.election_ticks = 10;
    });
    let mut chunks = 0;
    for _ in 0..200 {
        cluster.ticks(1);
        if installs(&cluster, 3) > 0 {
            break;
        }
        chunks += u64::from(cluster.host(3).fetching.is_some());
    }
    let fetched = cluster.host(3).fetched.unwrap().bytes_fetched;
    assert!(fetched > 30 * 16, "many chunks: {fetched} bytes");
    assert!(chunks <= 1, "{chunks} ticks for {fetched} bytes");
}

#[test]
fn the_index_of_one_snapshot_is_never_paired_with_the_bytes_of_another() {
    let mut cluster = one_behind(|_| {});
    let mut left = 12;
    cluster.fate = Box::new(move |envelope| match envelope.payload {
        Payload::Chunk(_) if left == 0 => Fate::Lost,
        Payload::Chunk(_) => {
            left -= 1;
            Fate::Arrives
        }
        _ => Fate::Arrives,
    });
    cluster.ticks(4);
    // What is on the disk of the one who fetches is of something else, of the same length.
    let fetching = cluster.host_mut(3).fetching.as_mut().unwrap();
    for file in &mut fetching.files {
        file.fill(b'x');
    }
    cluster.fate = Box::new(|_| Fate::Arrives);
    cluster.restart(3);
    cluster.ticks(200);
    cluster.assert_agreed(&[1, 2, 3]);
    assert!(
        cluster.host(3).fetched.unwrap().corrupt > 0,
        "it was noticed"
    );
}

#[test]
fn the_log_is_not_compacted_under_a_transfer_so_catching_up_does_not_cycle() {
    let mut cluster = one_behind(|config| config.snapshot_hint_threshold_entries = 5);
    // A slow network: two chunks in a tick; and an endless writer, with a snapshot at every turn.
    let left = std::sync::Arc::new(parking_lot::Mutex::new(0));
    let budget = left.clone();
    cluster.fate = Box::new(move |envelope| {
        let mut left = budget.lock();
        match envelope.payload {
            Payload::Chunk(_) if *left == 0 => Fate::Lost,
            Payload::Chunk(_) => {
                *left -= 1;
                Fate::Arrives
            }
            _ => Fate::Arrives,
        }
    });
    let mut turns = 0;
    while cluster.host(3).applied.lsn.next() < cluster.host(1).applied.lsn && turns < 3000 {
        *left.lock() = 2;
        cluster.write(2);
        turns += 1;
    }
    assert!(turns < 3000, "it never catches up");
    assert_eq!(installs(&cluster, 3), 1, "one snapshot was enough");
    let counts = cluster.host(3).fetched.unwrap();
    let offered = cluster.host(3).said.iter().find_map(|a| match a {
        Action::InstallSnapshot { offer } => Some(offer.total_bytes()),
        _ => None,
    });
    assert_eq!(Some(counts.bytes_fetched), offered, "no byte twice");
}

#[test]
fn a_snapshot_that_its_receivers_find_corrupt_is_not_offered_for_ever() {
    let mut cluster = one_behind(|_| {});
    for id in [1, 2] {
        let stored = cluster.host_mut(id).stored.last_mut().unwrap();
        stored.files[0][0] ^= 1;
    }
    cluster.ticks(300);
    cluster.assert_agreed(&[1, 2, 3]);
    let hints = cluster.said(1, |a| matches!(a, Action::SnapshotHint { .. }));
    assert_eq!(hints, 1, "another one is asked for, also of nothing new");
}
