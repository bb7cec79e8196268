//! What may happen in the middle of a transfer.

mod breaks;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use esker_raft::NodeId;
use esker_raft::message::Payload;
use parking_lot::Mutex;

use crate::host::{Cluster, Wire, observe_repeatedly, wait_for};

const CHUNK: u64 = 4096;
const WINDOW: u64 = 16 * 1024;

/// A chunk's checkpoint, file and offset.
type Place = ([u8; 16], u32, u64);

/// Observes and limits the chunks on the network.
#[derive(Default)]
struct Watch {
    /// Chunks that may still pass; those after it are lost.
    let_through: AtomicUsize,
    passed: AtomicUsize,
    /// How often each was sent.
    sent: Mutex<BTreeMap<Place, usize>>,
    corrupt: AtomicUsize,
}

impl Watch {
    fn install(cluster: &Cluster, let_through: usize) -> Arc<Watch> {
        let watch = Arc::new(Watch::default());
        watch.let_through.store(let_through, Ordering::SeqCst);
        let seen = watch.clone();
        cluster.network.filter(Some(Box::new(move |envelope| {
            let Payload::Chunk(chunk) = &mut envelope.payload else {
                return true;
            };
            let one_less = |n: usize| n.checked_sub(1);
            let (a, b) = (Ordering::SeqCst, Ordering::SeqCst);
            if seen.let_through.fetch_update(a, b, one_less).is_err() {
                return false;
            }
            if seen.corrupt.fetch_update(a, b, one_less).is_ok() {
                let mut bytes = chunk.bytes.to_vec();
                bytes[0] ^= 1;
                chunk.bytes = bytes.into();
            }
            seen.passed.fetch_add(1, Ordering::SeqCst);
            let key = (chunk.checkpoint.0, chunk.file, chunk.offset);
            *seen.sent.lock().entry(key).or_default() += 1;
            true
        })));
        watch
    }

    fn wait_until_stuck(&self) {
        wait_for("part of it has come", || {
            self.let_through.load(Ordering::SeqCst) == 0
        });
    }

    fn go_on(&self) {
        self.let_through.store(usize::MAX, Ordering::SeqCst);
    }

    /// Only the chunks of one window were sent twice.
    fn assert_hardly_repeated(&self) {
        let sent = self.sent.lock();
        let again: usize = sent.values().map(|times| times - 1).sum();
        assert!(again as u64 <= WINDOW / CHUNK, "{again} chunks came twice");
        let checkpoints: std::collections::BTreeSet<_> = sent.keys().map(|k| k.0).collect();
        assert_eq!(checkpoints.len(), 1, "it was one transfer");
    }
}

/// Three members, of which one has fetched part of a snapshot and gets no more for now.
fn in_mid_transfer(by_files: bool) -> (Cluster, u64, Arc<Watch>) {
    let mut cluster = Cluster::empty(Wire::Memory, &[1, 2, 3]);
    cluster.by_files = by_files;
    [1, 2, 3].iter().for_each(|id| cluster.run(*id));
    cluster.write(10, 100);
    cluster.assert_agreed(&[1, 2, 3]);
    let behind = cluster.follower();
    cluster.leave_behind(behind, 300, 1000);
    let watch = Watch::install(&cluster, 30);
    cluster.run(behind);
    watch.wait_until_stuck();
    (cluster, behind, watch)
}

#[test]
fn a_receiver_that_restarts_in_mid_transfer_fetches_no_whole_chunk_again() {
    for by_files in [false, true] {
        let (mut cluster, behind, watch) = in_mid_transfer(by_files);
        cluster.kill(behind);
        watch.go_on();
        cluster.run(behind);
        cluster.assert_agreed(&[1, 2, 3]);
        watch.assert_hardly_repeated();
        let counters = cluster.group(behind).counters();
        assert_eq!(counters.fetches_resumed, 1, "{counters:?}");
        assert_eq!(counters.engine.snapshots_received, 1);
    }
}

#[test]
fn a_sender_that_restarts_in_mid_transfer_goes_on_with_it() {
    let (mut cluster, behind, watch) = in_mid_transfer(false);
    let source = cluster.leader();
    cluster.kill(source);
    cluster.run(source);
    watch.go_on();
    cluster.assert_agreed(&[1, 2, 3]);
    watch.assert_hardly_repeated();
    assert_eq!(
        cluster.group(behind).counters().engine.snapshots_received,
        1
    );
}

#[test]
fn a_change_of_the_leader_in_mid_transfer_does_not_end_it() {
    let (mut cluster, behind, watch) = in_mid_transfer(true);
    let source = cluster.leader();
    let other = *(cluster
        .nodes
        .keys()
        .find(|id| ![source, behind].contains(id)))
    .unwrap();
    cluster.change("the other one is asked to lead", async |_, group| {
        group.transfer_leadership(NodeId(other)).await
    });
    wait_for("it leads", || cluster.leader() == other);
    cluster.write(20, 100);
    watch.go_on();
    cluster.assert_agreed(&[1, 2, 3]);
    watch.assert_hardly_repeated();
    assert_eq!(
        cluster.nodes[&other].node.sent().bytes_sent,
        0,
        "the source served it"
    );
}

#[test]
fn a_newer_snapshot_and_more_entries_do_not_end_a_transfer() {
    let (mut cluster, behind, watch) = in_mid_transfer(true);
    let source = cluster.leader();
    for _ in 0..3 {
        cluster.write(20, 100);
        cluster.snapshot(source);
    }
    watch.go_on();
    cluster.assert_agreed(&[1, 2, 3]);
    watch.assert_hardly_repeated();
    assert_eq!(
        cluster.group(behind).counters().engine.snapshots_received,
        1
    );
    let dir = cluster.data_dir(source).join("raft/group-4");
    wait_for("the one that was fetched is removed after it", || {
        std::fs::read_dir(&dir).unwrap().count() == 1
    });
}

#[test]
fn a_transfer_ends_if_the_state_that_it_brings_is_withheld_and_another_one_begins_afterwards() {
    for by_files in [false, true] {
        let (cluster, behind, watch) = in_mid_transfer(by_files);
        let others: Vec<u64> = (1..=3).filter(|id| *id != behind).collect();
        let withhold = |withheld| {
            for id in &others {
                cluster.group(*id).withhold_snapshots(withheld);
            }
        };
        withhold(true);
        let passed = watch.passed.load(Ordering::SeqCst);
        watch.go_on();
        wait_for("the receiver has given it up", || {
            cluster.group(behind).counters().engine.fetches_failed > 0
        });
        let counters = cluster.group(behind).counters();
        assert_eq!(counters.engine.snapshots_received, 0, "{counters:?}");
        let more = watch.passed.load(Ordering::SeqCst) - passed;
        assert!(
            more as u64 <= WINDOW / CHUNK,
            "{more} chunks were sent since"
        );
        withhold(false);
        cluster.assert_agreed(&[1, 2, 3]);
    }
}

#[test]
fn a_full_disk_on_the_receiver_delays_the_fetch_and_not_the_log() {
    let mut cluster = Cluster::start(Wire::Memory, &[1, 2, 3]);
    cluster.write(10, 100);
    cluster.assert_agreed(&[1, 2, 3]);
    let behind = cluster.follower();
    cluster.leave_behind(behind, 300, 1000);
    let faults = cluster.faults[&behind].clone();
    faults.full_after(100_000);
    let watch = Watch::install(&cluster, usize::MAX);
    cluster.run(behind);
    wait_for("the disk is full", || faults.was_full());
    wait_for("the status shows it", || {
        let details = cluster.group(behind).details();
        details.transfers.iter().any(|it| it.waits_for_space)
    });
    observe_repeatedly("it still takes part", || {
        cluster.write(20, 100);
        let term = cluster.group(cluster.leader()).status().term;
        match cluster.group(behind).status().term {
            its if its == term => Ok(()),
            its => Err(format!("its term is {its}, the leader's {term}")),
        }
    });
    assert_eq!(
        cluster.group(behind).counters().engine.snapshots_received,
        0
    );
    faults.space_returned();
    cluster.assert_agreed(&[1, 2, 3]);
    watch.assert_hardly_repeated();
}

#[test]
fn corrupt_chunks_are_requested_again() {
    let mut cluster = Cluster::start(Wire::Memory, &[1, 2, 3]);
    cluster.write(10, 100);
    cluster.assert_agreed(&[1, 2, 3]);
    let behind = cluster.follower();
    cluster.leave_behind(behind, 300, 1000);
    let watch = Watch::install(&cluster, usize::MAX);
    watch.corrupt.store(3, Ordering::SeqCst);
    cluster.run(behind);
    cluster.assert_agreed(&[1, 2, 3]);
    let counters = cluster.group(behind).counters();
    assert_eq!(counters.corrupt, 3, "{counters:?}");
    assert_eq!(counters.engine.snapshots_received, 1);
}

#[test]
fn a_snapshot_that_vanishes_under_the_sender_is_replaced_by_a_newer_one() {
    let (mut cluster, behind, watch) = in_mid_transfer(true);
    let source = cluster.leader();
    let dir = cluster.data_dir(source).join("raft/group-4");
    for snapshot in std::fs::read_dir(&dir).unwrap() {
        let path = snapshot.unwrap().path();
        std::fs::remove_dir_all(path.join("files")).unwrap();
    }
    cluster.write(20, 100);
    watch.go_on();
    cluster.assert_agreed(&[1, 2, 3]);
    let counters = cluster.group(behind).counters();
    assert_eq!(counters.engine.snapshots_received, 1, "{counters:?}");
    assert!(counters.engine.fetches_failed >= 1);
    // The bytes of the first fetch are not fetched again.
    let checkpoints: std::collections::BTreeSet<_> =
        watch.sent.lock().keys().map(|k| k.0).collect();
    assert_eq!(checkpoints.len(), 2);
}

#[test]
fn a_limited_transfer_takes_its_time_and_the_log_does_not_wait_for_it() {
    const LIMIT: u64 = 200_000;
    let mut cluster = Cluster::empty(Wire::Memory, &[1, 2, 3]);
    cluster.adjust = Box::new(|c| c.max_snapshot_bytes_per_second = LIMIT);
    [1, 2, 3].iter().for_each(|id| cluster.run(*id));
    cluster.write(10, 100);
    cluster.assert_agreed(&[1, 2, 3]);
    observe_repeatedly("the log does not wait for it", || {
        observe_a_limited_transfer(&mut cluster, LIMIT)
    });
}

fn observe_a_limited_transfer(cluster: &mut Cluster, limit: u64) -> Result<(), String> {
    let behind = cluster.follower();
    cluster.leave_behind(behind, 300, 1000);
    let leader = cluster.leader();
    let term = cluster.group(leader).status().term;
    // From any sender.
    let sent = |c: &Cluster| -> u64 {
        let nodes = c.nodes.values();
        nodes.map(|n| n.node.sent().bytes_sent).sum()
    };
    let before = sent(cluster);
    let begun = std::time::Instant::now();
    cluster.run(behind);
    wait_for("it has begun", || sent(cluster) > before);
    let received = |c: &Cluster| c.group(behind).counters().engine.snapshots_received;
    let mut written = 0;
    while received(cluster) == 0 {
        cluster.write(1, 100);
        written += 1;
    }
    let took = begun.elapsed();
    let sent = sent(cluster) - before;
    assert!(sent >= 300_000, "{sent}");
    // A chunk, and a tenth of a second's worth, may go ahead.
    let least = (sent - CHUNK) as f64 / limit as f64 - 0.1;
    assert!(took.as_secs_f64() >= least, "{sent} bytes in {took:?}");
    let now = cluster.group(leader).status().term;
    cluster.assert_agreed(&[1, 2, 3]);
    if written <= 5 || now != term {
        return Err(format!("{written} entries meanwhile, {term} became {now}"));
    }
    let counters = cluster.group(behind).counters();
    assert_eq!(counters.engine.fetches_failed, 0, "{counters:?}");
    Ok(())
}

#[test]
fn the_membership_may_change_in_mid_transfer() {
    let (mut cluster, behind, watch) = in_mid_transfer(false);
    cluster.run(4);
    cluster.change("4 is a learner", async |_, group| {
        group.add_learner(NodeId(4)).await
    });
    watch.go_on();
    cluster.write(5, 100);
    cluster.assert_agreed(&[1, 2, 3, 4]);
    assert!(cluster.group(behind).membership().contains(NodeId(4)));
}

#[test]
fn a_receiver_of_bytes_that_dies_between_any_two_operations_catches_up_after_its_restart() {
    die_between_any_two_operations(false);
}

#[test]
fn a_receiver_of_files_that_dies_between_any_two_operations_catches_up_after_its_restart() {
    die_between_any_two_operations(true);
}

/// With a state that is durable, and gets snapshots of files, or with one that is neither.
fn die_between_any_two_operations(durable: bool) {
    let mut cluster = Cluster::empty(Wire::Memory, &[1, 2, 3]);
    cluster.by_files = durable;
    for id in [1, 2, 3] {
        let knobs = cluster.knobs.entry(id).or_default();
        knobs.durable.store(durable, Ordering::SeqCst);
        cluster.run(id);
    }
    cluster.write(10, 100);
    cluster.assert_agreed(&[1, 2, 3]);
    let behind = cluster.follower();
    let faults = cluster.faults[&behind].clone();
    let mut through = false;
    for after in (0..200).step_by(8) {
        // Small, so that there are not more operations than steps.
        cluster.leave_behind(behind, 15, 20);
        cluster.run(behind);
        let before = faults.operations();
        faults.die_after(after);
        let group = cluster.group(behind).clone();
        let mut whole = false;
        wait_for("it has died, or is through", || {
            whole = group.status().applied == cluster.group(cluster.leader()).status().last;
            whole || faults.operations() - before > after
        });
        // A handle of a group keeps its log open.
        drop(group);
        cluster.kill(behind);
        faults.die_after(u64::MAX);
        cluster.run(behind);
        cluster.assert_agreed(&[1, 2, 3]);
        through |= whole;
        if through {
            assert!(after > 10, "there is something to die of");
            break;
        }
    }
    assert!(through, "in the end it is through before it dies");
}

#[test]
fn strangers_get_no_snapshot() {
    use esker_raft::message::{Envelope, Fetch, Identity};
    use esker_raft::transport::{Foreign, Inbox, ProvenSender};
    use esker_raft::{CheckpointId, ClusterId, Incarnation, Lineage, Transport};

    struct Deaf;
    impl Inbox for Deaf {
        fn receive(&self, _: bytes::Bytes, _: Option<&mut ProvenSender>) -> Result<(), Foreign> {
            Ok(())
        }
        fn unreachable(&self, _: NodeId) {}
    }

    let mut cluster = Cluster::start(Wire::Memory, &[1, 2, 3]);
    cluster.write(50, 1000);
    let leader = cluster.leader();
    cluster.snapshot(leader);
    let answers = Arc::new(Mutex::new(Vec::new()));
    let heard = answers.clone();
    cluster
        .network
        .filter(Some(Box::new(move |envelope: &mut Envelope| {
            if envelope.to == NodeId(9) {
                heard.lock().push(envelope.payload.clone());
            }
            true
        })));
    let stranger = cluster.network.transport(NodeId(9));
    let inbox = Arc::new(Deaf);
    let weak: std::sync::Weak<Deaf> = Arc::downgrade(&inbox);
    stranger.start(weak).unwrap();
    let identity = |cluster, incarnation| Identity {
        cluster: ClusterId([cluster; 16]),
        group: crate::host::GROUP,
        lineage: Lineage::default(),
        node: NodeId(9),
        incarnation: Incarnation(incarnation),
    };
    let fetch = Payload::Fetch(Fetch {
        checkpoint: CheckpointId([7; 16]),
        file: 0,
        offset: 0,
        length: 10,
    });
    let to = NodeId(leader);
    stranger.send_bulk(identity(8, 1).seal(to, fetch.clone()), None);
    stranger.send_bulk(identity(0, 5).seal(to, fetch.clone()), None);
    stranger.send_bulk(identity(0, 4).seal(to, fetch.clone()), None);
    stranger.send_bulk(identity(0, 5).seal(to, fetch), None);
    // From another cluster, or an earlier start: there is no answer.
    wait_for("two are answered", || answers.lock().len() >= 2);
    cluster.write(5, 10);
    let answers = answers.lock();
    assert_eq!(answers.len(), 2, "{answers:?}");
    assert!(answers.iter().all(|a| matches!(a, Payload::Ended(_))));
    assert_eq!(cluster.nodes[&leader].node.sent().bytes_sent, 0);
}
