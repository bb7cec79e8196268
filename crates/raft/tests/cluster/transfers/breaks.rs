//! Transfers that stop for long, or lose something, and go on.

use std::sync::atomic::Ordering;
use std::time::Duration;

use super::{CHUNK, Watch, in_mid_transfer};
use crate::host::{Cluster, Wire, wait_for};

#[test]
fn a_sender_that_restarts_with_a_newer_snapshot_goes_on_serving_the_one_under_way() {
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
    // 600 ticks without a fetch are a bit more than a second.
    cluster.adjust = Box::new(|c| {
        c.tick_interval = Duration::from_millis(2);
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
    std::thread::sleep(Duration::from_secs(4));
    faults.space_returned();
    cluster.assert_agreed(&[1, 2, 3]);
    watch.assert_hardly_repeated();
    let counters = cluster.group(behind).counters();
    assert_eq!(counters.engine.fetches_failed, 0, "{counters:?}");
}
