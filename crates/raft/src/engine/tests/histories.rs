//! Whole histories of groups that take snapshots, catch up by them, change their members, and are
//! restarted at bad moments; from a seed.

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use testkit::seeds::{self, PrintOnPanic};

use super::cluster::{Cluster, Fate};
use super::*;

/// Seeds that are run at least. More follow until they have reached enough; `make soak-raft` runs others.
const LEAST_SEEDS: u64 = 50;

/// What the seeds came across, together.
#[derive(Debug, Default)]
struct Reached {
    installs: u64,
    resumed: u64,
    dead_while_installing: u64,
    joint: u64,
}

impl Reached {
    fn enough(&self) -> bool {
        self.installs > 20 && self.resumed > 0 && self.dead_while_installing > 5 && self.joint > 5
    }
}

fn run(seed: u64, reached: &mut Reached) {
    let mut rng = StdRng::seed_from_u64(seed);
    let mut cluster = Cluster::with(&[1, 2, 3], |config| {
        config.snapshot_hint_threshold_entries = 25;
        config.max_bytes_kept_for_peers = 1500;
        config.seed = seed ^ config.id.0;
    });
    cluster.joiner(4);
    let mut faults = StdRng::seed_from_u64(!seed);
    cluster.fate = Box::new(move |_| match faults.random_range(0..30) {
        0 => Fate::Lost,
        1 => Fate::Twice,
        2 => Fate::Last,
        _ => Fate::Arrives,
    });
    for _ in 0..400 {
        let id = rng.random_range(1..=4);
        match rng.random_range(0..40) {
            0..20 => cluster.ticks(1),
            20..30 => cluster.try_write(id),
            30 => cluster.cut = vec![id],
            31 | 32 => cluster.cut.clear(),
            33 => cluster.restart(id),
            34 => cluster.host_mut(id).dies_installing = true,
            35 if cluster.host(id).up && cluster.host(id).applied.lsn.0 > 0 => cluster.snapshot(id),
            36 => {
                let ticket = Ticket(u64::MAX);
                let to = NodeId(rng.random_range(1..=4));
                cluster.step(id, Event::TransferLeadership { ticket, to });
            }
            37 => {
                let change = match rng.random_range(0..3) {
                    0 => MembershipChange::AddPeer(NodeId(4)),
                    1 => MembershipChange::AddLearner(NodeId(4)),
                    _ => MembershipChange::Promote(NodeId(4)),
                };
                let ticket = Ticket(u64::MAX);
                cluster.step(id, Event::ChangeMembership { ticket, change });
            }
            _ => cluster.pump(),
        }
        for id in 1..=4 {
            let host = cluster.host(id);
            reached.joint += u64::from(host.membership.is_joint());
            if !host.up {
                reached.dead_while_installing += 1;
                cluster.restart(id);
            }
        }
    }
    cluster.fate = Box::new(|_| Fate::Arrives);
    cluster.cut.clear();
    for id in 1..=4 {
        cluster.host_mut(id).dies_installing = false;
    }
    cluster.ticks(300);
    cluster.write(5);
    cluster.ticks(300);
    let members: Vec<_> = cluster
        .host(cluster.leader())
        .membership
        .members()
        .collect();
    let members: Vec<_> = members.into_iter().map(|n| n.0).collect();
    cluster.assert_agreed(&members);
    for id in members {
        let counters = cluster.host(id).engine.counters();
        reached.installs += counters.snapshots_received;
        reached.resumed += counters.fetches_resumed;
    }
}

#[test]
fn members_agree_whatever_becomes_of_their_snapshots_and_catch_up_once_it_stops() {
    let mut reached = Reached::default();
    for seed in seeds::range(0..150) {
        let _printed = PrintOnPanic::new(seed, "-p esker-raft engine::tests::histories");
        run(seed, &mut reached);
        if !seeds::are_chosen() && seed + 1 >= LEAST_SEEDS && reached.enough() {
            break;
        }
    }
    assert!(
        seeds::are_chosen() || reached.enough(),
        "the seeds reach too little: {reached:?}"
    );
}
