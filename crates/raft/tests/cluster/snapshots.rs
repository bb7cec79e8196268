//! Catching up by snapshots; captures that are slow or fail.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use crate::host::{Cluster, Knobs, TICK, Wire, observe_repeatedly, wait_for};
use crate::over_each_wire;

over_each_wire! {
    a_follower_far_behind_gets_a_snapshot_of_bytes
    a_follower_far_behind_gets_a_snapshot_of_files
    a_joiner_gets_a_snapshot_and_votes_in_the_end
}

fn a_follower_far_behind_gets_a_snapshot_of_bytes(wire: Wire) {
    far_behind(Cluster::start(wire, &[1, 2, 3]));
}

fn a_follower_far_behind_gets_a_snapshot_of_files(wire: Wire) {
    let mut cluster = Cluster::empty(wire, &[1, 2, 3]);
    cluster.by_files = true;
    [1, 2, 3].iter().for_each(|id| cluster.run(*id));
    far_behind(cluster);
}

fn far_behind(mut cluster: Cluster) {
    cluster.write(10, 100);
    cluster.assert_agreed(&[1, 2, 3]);
    let behind = cluster.follower();
    cluster.leave_behind(behind, 300, 1000);
    cluster.run(behind);
    cluster.assert_agreed(&[1, 2, 3]);
    let counters = cluster.group(behind).counters();
    assert_eq!(counters.engine.snapshots_received, 1, "{counters:?}");
    assert!(counters.bytes_fetched >= 300_000, "{counters:?}");
    // Whoever led meanwhile.
    wait_for("the leader heard of it", || {
        let nodes = cluster.nodes.values();
        let sent = nodes.map(|n| n.group.counters().engine.snapshots_sent);
        sent.sum::<u64>() == 1
    });
    let sent = cluster.nodes.values().map(|n| n.node.sent().bytes_sent);
    assert!(sent.sum::<u64>() >= 300_000);

    // A restart has the installed state.
    cluster.kill(behind);
    cluster.write(3, 10);
    cluster.run(behind);
    assert_eq!(cluster.knobs[&behind].restored.load(Ordering::SeqCst), 2);
    cluster.assert_agreed(&[1, 2, 3]);
    assert_eq!(
        cluster.group(behind).counters().engine.snapshots_received,
        0
    );
}

fn a_joiner_gets_a_snapshot_and_votes_in_the_end(wire: Wire) {
    let mut cluster = Cluster::start(wire, &[1, 2]);
    cluster.write(100, 1000);
    let leader = cluster.leader();
    cluster.snapshot(leader);
    cluster.write(10, 100);
    cluster.run(3);
    let three = esker_raft::NodeId(3);
    cluster.change("3 is added", async |_, group| group.add_peer(three).await);
    wait_for("it votes", || {
        cluster.group(leader).membership().voters.contains(&three)
    });
    cluster.assert_agreed(&[1, 2, 3]);
    // It can go on without one of the others.
    let goes = if leader == 1 { 2 } else { 1 };
    wait_for("the change is over everywhere", || {
        (cluster.nodes.values()).all(|n| n.group.membership().voters.len() == 3)
    });
    cluster.kill(goes);
    cluster.write(5, 10);
    cluster.assert_agreed(&[3]);
}

#[test]
fn hints_lead_to_snapshots_and_old_ones_are_removed() {
    let mut cluster = Cluster::empty(Wire::Memory, &[1, 2, 3]);
    cluster.adjust = Box::new(|c| c.snapshot_hint_threshold_entries = 40);
    [1, 2, 3].iter().for_each(|id| cluster.run(*id));
    // Twice: who applies many entries at once takes one snapshot of them.
    for _ in 0..2 {
        cluster.write(200, 20);
        cluster.assert_agreed(&[1, 2, 3]);
        for id in [1, 2, 3] {
            wait_for("the floor follows", || {
                let status = cluster.group(id).status();
                status.applied.0 - status.floor.0 < 40
            });
        }
    }
    for id in [1, 2, 3] {
        let group = cluster.group(id);
        let dir = cluster.data_dir(id).join("raft/group-4");
        wait_for("one snapshot is kept", || {
            let names = std::fs::read_dir(&dir).unwrap();
            names
                .filter(|n| n.as_ref().is_ok_and(|n| n.file_name() != "lock"))
                .count()
                == 1
        });
        assert!(group.counters().snapshots_taken > 1);
    }
}

/// Lets a failed test end: a group that stops waits for its capture.
struct MovesOn(Arc<Knobs>);

impl Drop for MovesOn {
    fn drop(&mut self) {
        self.0.captures_held.store(false, Ordering::SeqCst);
    }
}

#[test]
fn a_slow_capture_stalls_neither_applies_nor_heartbeats() {
    let mut cluster = Cluster::start(Wire::Memory, &[1, 2, 3]);
    cluster.write(20, 100);
    cluster.assert_agreed(&[1, 2, 3]);
    observe_repeatedly("a slow capture", || observe_a_slow_capture(&mut cluster));
}

fn observe_a_slow_capture(cluster: &mut Cluster) -> Result<(), String> {
    let leader = cluster.leader();
    let group = cluster.group(leader).clone();
    let term = group.status().term;
    let knobs = cluster.knobs[&leader].clone();
    knobs.captures_held.store(true, Ordering::SeqCst);
    let moves_on = MovesOn(knobs.clone());
    let mut taken = group.trigger_snapshot();
    wait_for("it is being written", || {
        knobs.writing.load(Ordering::SeqCst) == 1
    });
    *knobs.last_apply.lock() = None;
    *knobs.longest_gap.lock() = Duration::ZERO;
    let mut slowest = Duration::ZERO;
    let mut silent = 0;
    let mut rounds = 0;
    let begun = Instant::now();
    // Longer than any election takes.
    while rounds < 50 || begun.elapsed() < 150 * TICK {
        let started = Instant::now();
        cluster.write(1, 20);
        group.status();
        slowest = slowest.max(started.elapsed());
        let peers = group.details().peers;
        silent = silent.max(
            peers
                .iter()
                .filter_map(|p| p.heard_ticks_ago)
                .max()
                .unwrap_or(0),
        );
        rounds += 1;
    }
    // Anything that waits for the capture would still be waiting.
    assert_eq!(knobs.writing.load(Ordering::SeqCst), 1);
    assert!(taken.try_recv().is_err(), "it is under way");
    let gap = *knobs.longest_gap.lock();
    let now = group.status().term;
    drop(moves_on);
    assert!(crate::host::block(taken).unwrap().is_ok());
    // Far below three seconds; generous for a busy machine.
    let generous = Duration::from_secs(1);
    match slowest < generous && gap < generous && silent < 20 && now == term {
        true => Ok(()),
        false => Err(format!(
            "{slowest:?} for a write, {gap:?} without an apply, {silent} ticks of {TICK:?} without a \
             word, {term} became {now}"
        )),
    }
}

#[test]
fn a_failing_capture_is_tried_again_with_back_off_and_stops_nothing() {
    let mut cluster = Cluster::empty(Wire::Memory, &[1, 2, 3]);
    cluster.adjust = Box::new(|c| {
        c.snapshot_hint_threshold_entries = 10;
        c.snapshot_backoff_ticks = (2, 8);
    });
    [1, 2, 3].iter().for_each(|id| cluster.run(*id));
    let leader = cluster.leader();
    let knobs = cluster.knobs[&leader].clone();
    knobs.captures_fail.store(3, Ordering::SeqCst);
    cluster.write(50, 20);
    wait_for("it works in the end", || {
        cluster.group(leader).status().floor.0 > 10
    });
    let counters = cluster.group(leader).counters();
    assert_eq!(counters.snapshots_failed, 3, "{counters:?}");
    cluster.write(5, 20);
    cluster.assert_agreed(&[1, 2, 3]);
}

#[test]
fn a_capture_of_a_state_that_a_peers_snapshot_replaces_is_neither_stored_nor_offered() {
    let mut cluster = Cluster::start(Wire::Memory, &[1, 2, 3]);
    cluster.write(20, 100);
    cluster.assert_agreed(&[1, 2, 3]);
    let behind = cluster.follower();
    let group = cluster.group(behind).clone();
    let knobs = cluster.knobs[&behind].clone();
    knobs.captures_held.store(true, Ordering::SeqCst);
    let mut taken = group.trigger_snapshot();
    wait_for("it is being written", || {
        knobs.writing.load(Ordering::SeqCst) == 1
    });
    cluster.network.cut(&[esker_raft::NodeId(behind)]);
    let leader = cluster.leader();
    cluster.write(200, 100);
    let covered = cluster.snapshot(leader);
    wait_for("the log is compacted", || {
        cluster.group(leader).status().log_start == covered
    });
    // Also on the one that may lead later.
    for id in [1, 2, 3] {
        if ![leader, behind].contains(&id) {
            cluster.snapshot(id);
        }
    }
    cluster.network.cut(&[]);
    wait_for("a peer's snapshot is installed", || {
        group.counters().engine.snapshots_received == 1
    });
    assert!(taken.try_recv().is_err(), "the capture is still under way");
    let asked_meanwhile = group.trigger_snapshot();
    knobs.captures_held.store(false, Ordering::SeqCst);

    // The old attempt ends: its request is answered, and the engine does not get it.
    let old = crate::host::block(taken).unwrap().unwrap();
    assert!(old.last_included_index < covered);
    let next = crate::host::block(asked_meanwhile).unwrap().unwrap();
    assert!(next.last_included_index >= covered, "an attempt of its own");
    let status = group.status();
    assert!(status.floor >= next.last_included_index, "{status:?}");
    let dir = cluster.data_dir(behind).join("raft/group-4");
    wait_for("one snapshot is kept", || {
        let names = std::fs::read_dir(&dir).unwrap();
        names
            .filter(|n| n.as_ref().is_ok_and(|n| n.file_name() != "lock"))
            .count()
            == 1
    });
    cluster.write(5, 20);
    cluster.assert_agreed(&[1, 2, 3]);
    // It keeps the directory locked.
    drop(group);
    cluster.kill(behind);
    cluster.run(behind);
    cluster.assert_agreed(&[1, 2, 3]);
}
