//! Repeated kill -9 during concurrent work of every kind: appends, trims, snapshots, uploads, compaction,
//! recovery.

use std::collections::{BTreeMap, HashSet};
use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use s2_sdk::S2;
use s2_sdk::types::{AppendInput, AppendRecord, AppendRecordBatch, CommandRecord};
use testkit::seeds;

use super::contents::{records, stream};
use super::history::{History, caught_up, lineages, quiet, start_and_read, wait_for_new_lineage};
use super::losses::{Loss, RepositoryLoss, inflict};
use super::target::{Kind, Node};
use crate::support::{Setup, eventually, sdk};

/// What the one writer of a stream knows of it.
struct Acknowledged {
    at: String,
    /// By sequence number.
    acked: BTreeMap<u64, String>,
    /// Records that were sent and never answered.
    unknown: HashSet<String>,
    /// The highest trim point: records below it may be gone.
    trimmed: u64,
    count: u64,
}

impl Acknowledged {
    fn new(at: &str) -> Acknowledged {
        Acknowledged {
            at: at.to_owned(),
            acked: BTreeMap::new(),
            unknown: HashSet::new(),
            trimmed: 0,
            count: 0,
        }
    }

    /// Appends and sometimes trims until the server is gone; adds the acknowledged records to `total`.
    async fn write(mut self, s2: S2, seed: u64, total: Arc<AtomicU64>) -> Acknowledged {
        let mut rng = StdRng::seed_from_u64(seed);
        let stream = stream(&s2, &self.at);
        loop {
            if rng.random_ratio(1, 100) && self.acked.len() > 50 {
                let up_to = *self.acked.keys().rev().nth(40).unwrap();
                let trim: AppendRecord = CommandRecord::trim(up_to).into();
                let trim = AppendRecordBatch::try_from_iter([trim]).unwrap();
                self.trimmed = self.trimmed.max(up_to);
                if stream.append(AppendInput::new(trim)).await.is_err() {
                    return self;
                }
            }
            self.count += 1;
            let padding = "x".repeat(rng.random_range(0..4000));
            let body = format!("record {} {padding}", self.count);
            match stream.append(sdk::input([&body])).await {
                Ok(ack) => {
                    total.fetch_add(1, Ordering::Relaxed);
                    let before = self.acked.insert(ack.start.seq_num, body);
                    assert!(
                        before.is_none(),
                        "{} was given out twice",
                        ack.start.seq_num
                    );
                }
                Err(_) => {
                    self.unknown.insert(body);
                    return self;
                }
            }
        }
    }

    /// Checks that everything acknowledged is there, once, and nothing else but what is unknown; after a
    /// loss, up to some point.
    async fn check(&mut self, s2: &S2, lost: bool, context: &str) {
        let found = records(&stream(s2, &self.at)).await;
        let end = found.last().map_or(0, |r| r.seq + 1);
        let mut there = BTreeMap::new();
        for record in found {
            let text = String::from_utf8_lossy(&record.body).into_owned();
            if !text.starts_with("record ") {
                // A trim.
                continue;
            }
            match self.acked.get(&record.seq) {
                Some(body) => assert_eq!(*body, text, "{context}: {}", self.at),
                None => assert!(
                    self.unknown.remove(&text),
                    "{context}: {} has {text:.20} at {}, which nobody appended there",
                    self.at,
                    record.seq
                ),
            }
            there.insert(record.seq, text);
        }
        let promised = self.acked.range(self.trimmed..);
        for (seq, body) in promised.filter(|(seq, _)| !lost || **seq < end) {
            let kept = there.get(seq) == Some(body);
            assert!(kept, "{context}: {} lost {body:.20} at {seq}", self.at);
        }
        if lost {
            self.acked.retain(|seq, _| *seq < end);
        }
        self.acked.extend(there);
    }
}

fn busy() -> Setup {
    quiet()
        .set("snapshots.snapshot-interval=300ms")
        .set("snapshots.local-snapshot-num-records=200")
        .set("snapshots.local-snapshot-bytes=256KiB")
        .set("snapshots.max-log-bytes=4MiB")
        .set("snapshots.snapshot-kind=incremental")
        .set("snapshots.orphan-min-age=0s")
        .set("log.segment-size=1MiB")
        .set("log.purge-threshold=1MiB")
        .set("log.flush-after=128KiB")
}

/// `ESKER_TEST_KILLS` and `ESKER_SEED` override the defaults.
fn rounds_and_seed() -> (u64, u64) {
    let rounds = seeds::number("ESKER_TEST_KILLS").unwrap_or(12);
    (rounds, seeds::one(1, "--test e2e recovery::kills"))
}

async fn killed_over_and_over(removes: bool) {
    let (rounds, seed) = rounds_and_seed();
    let mut rng = StdRng::seed_from_u64(seed);
    let node = Node::new(Kind::Directory, busy()).await;
    let mut server = node.setup.start(&node.data()).await;
    let basin = sdk::basin(&server.sdk(), "test-basin").await;
    let mut told = Vec::new();
    for i in 0..4 {
        sdk::stream(&basin, &format!("orders-{i}")).await;
        told.push(Acknowledged::new(&format!("test-basin/orders-{i}")));
    }
    if removes {
        caught_up(&server, &node.target).await;
    }
    let total = Arc::new(AtomicU64::new(0));
    for round in 0..rounds {
        let writers: Vec<_> = told
            .drain(..)
            .map(|one| tokio::spawn(one.write(server.sdk(), rng.random(), total.clone())))
            .collect();
        tokio::time::sleep(Duration::from_millis(rng.random_range(50..1500))).await;
        // Even on a slow machine, each round has some appends.
        eventually("some appends a round", async || {
            let enough = total.load(Ordering::Relaxed) >= 10 * (round + 1);
            let over = writers.iter().all(tokio::task::JoinHandle::is_finished);
            (enough || over).then_some(())
        })
        .await;
        server.kill();
        for writer in writers {
            told.push(writer.await.unwrap());
        }
        let (mut lost, mut what) = (false, "nothing");
        if removes {
            match rng.random_range(0..4) {
                0 => {
                    what = "the database";
                    fs::remove_dir_all(node.data().join("db")).unwrap();
                }
                1 => {
                    what = "the database and the local snapshots";
                    fs::remove_dir_all(node.data().join("db")).unwrap();
                    let _ = fs::remove_dir_all(node.data().join("checkpoints"));
                }
                2 => {
                    what = "everything";
                    lost = true;
                    fs::remove_dir_all(node.data()).unwrap();
                }
                _ => {}
            }
        }
        let context = format!("ESKER_SEED={seed}, round {round}, without {what}");
        println!("{context}");
        let setup = match lost {
            true => node.setup.clone().bootstrap("restore"),
            false => node.setup.clone(),
        };
        while rng.random_ratio(1, 3) {
            let moment = Duration::from_millis(rng.random_range(0..50));
            setup.start_and_kill(&node.data(), moment).await;
        }
        server.restart(&setup).await;
        if lost {
            // Until then, the repository has no snapshot of its present lineage.
            wait_for_new_lineage(&node.target).await;
        }
        for one in &mut told {
            one.check(&server.sdk(), lost, &context).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kills_amid_snapshots_and_compaction_cost_nothing() {
    killed_over_and_over(false).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kills_with_a_loss_cost_nothing_that_is_left_somewhere() {
    killed_over_and_over(true).await;
}

#[tokio::test]
async fn a_recovery_that_is_killed_again_and_again_ends_as_one_that_was_not() {
    let (rounds, seed) = rounds_and_seed();
    let mut rng = StdRng::seed_from_u64(seed);
    let history = History::new(Kind::Directory, "incremental").await;
    for (loss, forks) in [
        (Loss::Everything, 1),
        (Loss::LogAndDatabaseAndLocalSnapshots, 1),
        (Loss::DatabaseAndLocalSnapshots, 0),
        (Loss::Database, 0),
    ] {
        let context = format!("ESKER_SEED={seed}, {loss:?}");
        let node = history.copy().await;
        inflict(&node, loss, RepositoryLoss::Nothing);
        let setup = match forks {
            0 => node.setup.clone(),
            _ => node.setup.clone().bootstrap("restore"),
        };
        for _ in 0..rounds {
            let moment = Duration::from_millis(rng.random_range(5..50));
            setup.start_and_kill(&node.data(), moment).await;
        }
        let (server, after) = start_and_read(&setup, &node).await;
        match forks {
            0 => after.are(history.full(), &context),
            _ => after.are(&history.phases[2].after_forks(forks), &context),
        }
        let roots = node.target.roots().await;
        let same = lineages(&roots) == lineages(&history.roots);
        assert_eq!(same, forks == 0, "{context}");
        drop(server);
    }
}
