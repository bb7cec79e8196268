//! A disk of snapshots that hangs does not delay the log.

use std::sync::Arc;

use esker_raft::store::DiskFaults;
use esker_raft::{Group, GroupId, GroupOptions, NodeId, Role};

use crate::host::{Cluster, Knobs, Lines, TICK, Wire, block, observe_repeatedly, wait_for};

/// Another group on two of the nodes: what it commits is in the logs of both.
struct Neighbours {
    groups: Vec<Group<usize>>,
    written: usize,
}

impl Neighbours {
    fn open(cluster: &Cluster, ids: [u64; 2]) -> Neighbours {
        let open = |id: &u64| {
            let options = GroupOptions::founded_by(GroupId(5), &ids.map(NodeId));
            let machine = Lines::new(Arc::<Knobs>::default());
            cluster.nodes[id]
                .node
                .open_member(options, machine)
                .unwrap()
        };
        Neighbours {
            groups: ids.iter().map(open).collect(),
            written: 0,
        }
    }

    fn leader(&self) -> &Group<usize> {
        let mut found = None;
        wait_for("somebody leads the neighbours", || {
            let leads = |g: &&Group<usize>| {
                let status = g.status();
                status.role == Role::Leader && status.applied_term == status.term
            };
            found = self.groups.iter().find(leads);
            found.is_some()
        });
        found.unwrap()
    }

    fn write(&mut self) {
        let command = format!("neighbour-{}", self.written).into_bytes();
        // The leader may change in between; repeating it is harmless.
        wait_for("the neighbours commit", || {
            block(self.leader().execute(command.clone())).is_ok()
        });
        self.written += 1;
    }

    fn stop(self) {
        self.groups.iter().for_each(Group::stop);
    }
}

/// With a disk that hangs for longer than an election takes, both groups commit, no member campaigns, and
/// all members answer.
#[track_caller]
fn assert_the_log_goes_on(what: &str, cluster: &mut Cluster, neighbours: &mut Neighbours) {
    observe_repeatedly(what, || look_whether_the_log_goes_on(cluster, neighbours));
}

fn look_whether_the_log_goes_on(
    cluster: &mut Cluster,
    neighbours: &mut Neighbours,
) -> Result<(), String> {
    let leader = cluster.leader();
    let terms = |cluster: &Cluster, neighbours: &Neighbours| {
        (
            cluster.group(leader).status().term,
            neighbours.leader().status().term,
        )
    };
    let before = terms(cluster, neighbours);
    let silent = |peers: Vec<esker_raft::engine::PeerStatus>| {
        let silent = peers.iter().map(|p| p.heard_ticks_ago.unwrap_or(0));
        silent.max().unwrap_or(0)
    };
    // Elections begin after 20 to 40 ticks without a message. First there are entries all the time, then
    // there are heartbeats alone.
    for (writes, ticks) in [(true, 60), (false, 80), (true, 5)] {
        let begun = std::time::Instant::now();
        while begun.elapsed() < ticks * TICK {
            match writes {
                true => {
                    cluster.write(1, 50);
                    neighbours.write();
                }
                false => std::thread::sleep(TICK),
            }
            for peers in [
                cluster.group(leader).details().peers,
                neighbours.leader().details().peers,
            ] {
                let silent = silent(peers);
                if silent >= 20 {
                    return Err(format!("{silent} ticks without a word"));
                }
            }
        }
    }
    match terms(cluster, neighbours) == before {
        true => Ok(()),
        false => Err("an election".to_owned()),
    }
}

/// Lets a failed test end: nodes wait for their threads, and these for the disk.
struct MovesOn([DiskFaults; 2]);

impl Drop for MovesOn {
    fn drop(&mut self) {
        self.0.iter().for_each(DiskFaults::move_on);
    }
}

#[test]
fn snapshot_io_does_not_starve_the_log_whichever_end_stands_still() {
    let mut cluster = Cluster::empty(Wire::Memory, &[1, 2, 3]);
    cluster.by_files = true;
    [1, 2, 3].iter().for_each(|id| cluster.run(*id));
    cluster.write(10, 100);
    cluster.assert_agreed(&[1, 2, 3]);
    let behind = cluster.follower();
    cluster.leave_behind(behind, 300, 1000);
    let source = cluster.leader();
    let (sending, receiving) = (
        cluster.faults[&source].clone(),
        cluster.faults[&behind].clone(),
    );
    let _at_the_end = MovesOn([sending.clone(), receiving.clone()]);
    let stands_still = |faults: &DiskFaults, what: &str| {
        wait_for(what, || faults.waiting() > 0);
    };

    // The source hangs in reads, the other one in writes and then in verifications.
    sending.stand_still("reading");
    cluster.run(behind);
    let mut neighbours = Neighbours::open(&cluster, [source, behind]);
    stands_still(&sending, "a chunk is to be read");
    assert_the_log_goes_on("reading", &mut cluster, &mut neighbours);

    receiving.stand_still("writing");
    sending.move_on();
    stands_still(&receiving, "a chunk is to be written");
    assert_the_log_goes_on("writing", &mut cluster, &mut neighbours);

    receiving.stand_still("syncing");
    stands_still(&receiving, "a file is to be verified");
    assert_the_log_goes_on("verifying", &mut cluster, &mut neighbours);
    assert_eq!(
        cluster.group(behind).counters().engine.snapshots_received,
        0,
        "it was in mid-transfer all the time"
    );
    receiving.move_on();
    cluster.assert_agreed(&[1, 2, 3]);
    let counters = cluster.group(behind).counters();
    assert_eq!(counters.engine.snapshots_received, 1, "{counters:?}");

    // The leader's own snapshot, while it is written.
    sending.stand_still("syncing");
    let mut taken = cluster.group(source).trigger_snapshot();
    stands_still(&sending, "a snapshot is being stored");
    assert_the_log_goes_on("storing", &mut cluster, &mut neighbours);
    assert!(taken.try_recv().is_err(), "it is under way");
    sending.move_on();
    assert!(block(taken).unwrap().is_ok());
    cluster.assert_agreed(&[1, 2, 3]);
    neighbours.stop();
}
