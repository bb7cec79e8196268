//! What this node knows of its replicas beyond what their groups know.

use std::collections::BTreeMap;
use std::time::Instant;

use esker_partition::digest::{Compared, ReplicaDigests};
use parking_lot::{Mutex, RwLock};
use tokio::sync::Notify;

use super::departure::Departure;
use super::divergence::Diverged;
use super::transfers::Transfers;
use super::waiting::Waiting;

/// What this node knows of its replicas.
pub(crate) struct Replicas {
    /// The digests that the logs ask for.
    pub digests: ReplicaDigests,
    /// Those that must not take part.
    pub diverged: Diverged,
    /// Whether the cluster has removed this node, and what becomes of them then.
    pub departure: Departure,
    /// What they fetch.
    pub transfers: Transfers,
    /// Which of those that this node leads wait for a change of their members.
    pub waiting: Waiting,
    /// The checks of digests that this node is to make where it leads.
    pub checks: Checks,
    /// Who leads the partitions whose replicas here have halted, as other nodes say.
    elsewhere: RwLock<BTreeMap<u64, u64>>,
}

impl Replicas {
    pub fn new(digests: ReplicaDigests, diverged: Diverged, departure: Departure) -> Replicas {
        Replicas {
            digests,
            diverged,
            departure,
            transfers: Transfers::default(),
            waiting: Waiting::default(),
            checks: Checks::default(),
            elsewhere: RwLock::default(),
        }
    }

    /// The LSN as of which the log has last recorded that a replica of a partition has diverged; 0 if it has not.
    pub fn diverged_at(&self, partition: u64) -> u64 {
        let compared = self.digests.compared(partition);
        compared.map_or(0, |compared| compared.diverged_at)
    }

    /// The last comparison of a partition's replicas, if they differ, or have differed, and it is not known which is
    /// right.
    pub fn open_check(&self, partition: u64) -> Option<Compared> {
        let compared = self.digests.compared(partition);
        compared.filter(Compared::is_open)
    }

    /// How many partitions up to `last_partition` have a replica here that may be the right one of some that differ, or
    /// that whoever looks for a cause needs, and why one of them is kept. A removed node deletes none of its replicas
    /// then.
    pub fn doubts(&self, last_partition: u64) -> Option<(usize, String)> {
        let diverged = self.diverged.partitions();
        let doubt = |partition: u64| {
            let has_diverged =
                diverged.contains(&partition) || self.digests.divergence(partition).is_some();
            if has_diverged {
                return Some("it differs from the others', and is kept as it is");
            }
            self.open_check(partition).map(|_| {
                "replicas differ, and it was not known yet which of them is right when this node was removed: it is kept \
                 as it is"
            })
        };
        let mut doubts =
            (0..=last_partition).filter_map(|partition| Some((partition, doubt(partition)?)));
        let (partition, why) = doubts.next()?;
        Some((1 + doubts.count(), format!("partition {partition}: {why}")))
    }

    /// Who leads a partition whose replica here has halted and learns of no leader, if another node has told.
    pub fn leader_elsewhere(&self, partition: u64) -> Option<u64> {
        self.elsewhere.read().get(&partition).copied()
    }

    pub fn set_leaders_elsewhere(&self, leaders: BTreeMap<u64, u64>) {
        *self.elsewhere.write() = leaders;
    }
}

/// The checks of digests that this node is to make where it leads: one at a time.
#[derive(Default)]
pub(crate) struct Checks {
    /// Partitions whose check an operator wants, and since when.
    wanted: Mutex<BTreeMap<u64, Instant>>,
    /// The partition that is being checked.
    pub under_way: Mutex<Option<u64>>,
    /// Why the last check of a partition came to no end, if so.
    pub failed: Mutex<BTreeMap<u64, String>>,
    pub wake: Notify,
}

impl Checks {
    /// Wants a check as soon as none is under way.
    pub fn want(&self, partition: u64) {
        self.failed.lock().remove(&partition);
        self.wanted.lock().insert(partition, Instant::now());
        self.wake.notify_one();
    }

    /// Since when a check is wanted, if it is.
    pub fn wanted_since(&self, partition: u64) -> Option<Instant> {
        self.wanted.lock().get(&partition).copied()
    }

    /// A check begins, or cannot. Returns whether it was wanted.
    pub fn take(&self, partition: u64) -> bool {
        self.wanted.lock().remove(&partition).is_some()
    }
}

#[cfg(test)]
mod tests {
    use esker_partition::command::{Kind, MemberDigest, NoteDigests};
    use esker_partition::digest::Divergence;
    use esker_partition::{Catalog, ClusterInit, Store, StoreOptions};
    use esker_raft::{Committed, Lsn, StateMachine as _, Term};

    use super::*;

    /// The node whose replicas these are.
    const ME: u64 = 3;

    /// Node 3 of three, with a catalog whose log records comparisons.
    struct Fixture {
        catalog: Catalog,
        store: Store,
        replicas: Replicas,
        /// The LSN of the last entry.
        last: u64,
        dir: tempfile::TempDir,
    }

    impl Fixture {
        fn new() -> Fixture {
            let dir = tempfile::tempdir().unwrap();
            let init = ClusterInit {
                partitions: 1,
                voters: vec![1, 2, ME],
                cluster_id: "a cluster".to_owned(),
            };
            let db = dir.path().join("db");
            let store = Store::create(&db, &StoreOptions::default(), &init).unwrap();
            let digests = ReplicaDigests::new(ME, 0);
            Fixture {
                catalog: Catalog::open_with(&store, digests.clone()).unwrap(),
                replicas: replicas(&dir, digests),
                dir,
                store,
                last: 0,
            }
        }

        /// The log records these answers.
        fn compare(&mut self, answers: &[(u64, u128)]) {
            self.last += 1;
            let answer = |(node, digest): &(u64, u128)| MemberDigest {
                node: *node,
                digest: digest.to_be_bytes().to_vec(),
                origin: None,
            };
            let note = Kind::NoteDigests(NoteDigests {
                lsn: self.last - 1,
                at_ms: 0,
                answers: answers.iter().map(answer).collect(),
                has_origins: false,
            });
            let entry = Committed {
                lsn: Lsn(self.last),
                term: Term(1),
                command: Some(note.into_bytes().into()),
                membership: None,
                checksum: 0,
            };
            self.catalog.apply(&[entry], &mut Vec::new()).unwrap();
        }

        fn doubts(&self) -> Option<(usize, String)> {
            self.replicas.doubts(2)
        }

        /// What the next process knows.
        fn restart(self) -> (tempfile::TempDir, Replicas) {
            let digests = ReplicaDigests::new(ME, 0);
            drop(self.catalog);
            drop(Catalog::open_with(&self.store, digests.clone()).unwrap());
            self.store.close();
            let replicas = replicas(&self.dir, digests);
            (self.dir, replicas)
        }
    }

    fn replicas(dir: &tempfile::TempDir, digests: ReplicaDigests) -> Replicas {
        let diverged = Diverged::open(dir.path(), ME).unwrap();
        Replicas::new(digests, diverged, Departure::new(None))
    }

    fn said(doubts: Option<(usize, String)>, count: usize, part: &str) {
        let (doubted, why) = doubts.expect("a doubt");
        assert_eq!(doubted, count, "{why}");
        assert!(why.contains(part), "{why}");
    }

    const OPEN: &str =
        "partition 0: replicas differ, and it was not known yet which of them is right";
    const WRONG: &str = "partition 0: it differs from the others'";

    #[test]
    fn replicas_that_were_never_compared_or_are_equal_are_not_doubted() {
        let mut fixture = Fixture::new();
        assert_eq!(fixture.doubts(), None);
        fixture.compare(&[(1, 7), (2, 7), (ME, 7)]);
        assert_eq!(fixture.doubts(), None);
        // Another one is wrong.
        fixture.compare(&[(1, 8), (2, 7), (ME, 7)]);
        assert_eq!(fixture.doubts(), None);
    }

    #[test]
    fn a_replica_of_some_that_differ_is_doubted_until_it_is_known_which_is_right() {
        let mut fixture = Fixture::new();
        fixture.compare(&[(2, 8), (ME, 7)]);
        said(fixture.doubts(), 1, OPEN);
        // Those that answer now are equal, and the one that differs is away.
        fixture.compare(&[(2, 7)]);
        said(fixture.doubts(), 1, OPEN);
        fixture.compare(&[(1, 7), (2, 8), (ME, 7)]);
        assert_eq!(fixture.doubts(), None, "it is the right one");
    }

    #[test]
    fn a_replica_that_was_found_wrong_is_doubted_also_before_that_is_noted_in_a_file() {
        let mut fixture = Fixture::new();
        fixture.compare(&[(1, 7), (2, 7), (ME, 8)]);
        assert!(fixture.replicas.diverged.partitions().is_empty());
        said(fixture.doubts(), 1, WRONG);
        // Later comparisons are of the others.
        fixture.compare(&[(1, 7), (2, 7)]);
        said(fixture.doubts(), 1, WRONG);
    }

    #[test]
    fn doubts_outlive_the_process() {
        let mut fixture = Fixture::new();
        fixture.compare(&[(2, 8), (ME, 7)]);
        let (_dir, again) = fixture.restart();
        said(again.doubts(2), 1, OPEN);
    }

    #[test]
    fn all_partitions_with_a_doubt_count_and_those_beyond_the_last_one_do_not() {
        let mut fixture = Fixture::new();
        let found = Divergence {
            lsn: 5,
            own: 0xa,
            right: 0xb,
            others: vec![1, 2],
        };
        for partition in [2, 9] {
            fixture.replicas.diverged.note(partition, &found).unwrap();
        }
        said(fixture.doubts(), 1, "partition 2: it differs");
        fixture.compare(&[(2, 8), (ME, 7)]);
        said(fixture.doubts(), 2, OPEN);
        // What this node has differs, and that is the reason, also while a comparison is open.
        fixture.replicas.diverged.note(0, &found).unwrap();
        said(fixture.doubts(), 2, WRONG);
    }
}
