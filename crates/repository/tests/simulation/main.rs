//! The protocol under every fault that a network, a clock and a crash can bring, by seed.
//!
//! Several machines put, sweep, prune, pin and fork in the same partition of a [`store::SimStore`]. They
//! pause for seconds or days at any await point, or for ever, and have clocks with errors of up to a week.
//! The store checks every change: nothing that the root keeps may be missing, at any time. After the faults
//! have stopped, the repository verifies, the next put succeeds, and a sweep leaves only what is kept.
//!
//! `incarnations` has several copies of one data directory, and nodes that omit a check.
//!
//! `repairs` damages objects, and repairs them.
//!
//! `pacing` tests uploads with a limited rate, which needs a clock and no faults.
//!
//! `ESKER_SEEDS=100000 ESKER_SEED=1` runs more seeds. A failure names its seed, and `ESKER_SEED` alone runs
//! that one.

#![allow(clippy::unwrap_used)]

mod clock;
mod incarnations;
mod naive;
mod pacing;
mod repairs;
mod store;

use std::num::NonZeroU32;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use esker_repository::checkpoint::Source;
use esker_repository::metadata::FileMetadata;
use esker_repository::prune::PruneOptions;
use esker_repository::{
    Checkpoint, Cluster, Destination, Error, Kind, LineageId, Lsn, Options, Progress, Repository,
};
use futures::FutureExt as _;
use futures::future::BoxFuture;
use object_store::path::Path;
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};

use clock::{Clock, Machine, Unreliable, run};
use store::{PARTITION, SimStore, Trouble};
use testkit::seeds;

/// Files in memory: file `/<n>.sst` of content `c` is the text `c`, a few times.
#[derive(Debug)]
struct Contents(Vec<(String, Bytes)>);

#[async_trait::async_trait]
impl Source for Contents {
    async fn read_at(&self, name: &str, offset: u64, len: usize) -> std::io::Result<Bytes> {
        let (_, bytes) = self.0.iter().find(|(n, _)| n == name).unwrap();
        Ok(bytes.slice(offset as usize..offset as usize + len))
    }
}

fn checkpoint(lsn: u64, lineage: LineageId, contents: &[u32]) -> Checkpoint {
    let files: Vec<(String, Bytes)> = contents
        .iter()
        .enumerate()
        .map(|(i, c)| (format!("/{i:06}.sst"), Bytes::from(format!("content {c}"))))
        .collect();
    let metadata = files
        .iter()
        .map(|(name, bytes)| FileMetadata::plain(name.clone(), bytes.len() as u64))
        .collect();
    let mut checkpoint = Checkpoint::new(Arc::new(Contents(files)), metadata, Lsn(lsn));
    checkpoint.lineage = Some(lineage);
    checkpoint
}

/// The parameters that a seed draws first.
struct Draw {
    writers: u64,
    retained: Option<NonZeroU32>,
    min_age: Duration,
    trouble: u32,
    pause_in: u32,
    crash_in: u32,
    contents: u32,
    kinds: u32,
}

impl Draw {
    fn new(dice: &mut StdRng) -> Draw {
        let or_never = |dice: &mut StdRng, from: u32, to: u32| match dice.random_range(0..4) {
            0 => 0,
            _ => dice.random_range(from..to),
        };
        Draw {
            writers: dice.random_range(2..5),
            retained: NonZeroU32::new(dice.random_range(0..4)),
            // Mostly zero, because safety must not depend on the age.
            min_age: match dice.random_range(0..4) {
                0 => Duration::from_secs(24 * 3600),
                _ => Duration::ZERO,
            },
            trouble: or_never(dice, 4, 60),
            pause_in: or_never(dice, 10, 200),
            crash_in: or_never(dice, 200, 2000),
            contents: dice.random_range(2..8),
            kinds: dice.random_range(0..4),
        }
    }
}

struct World {
    clock: Clock,
    store: SimStore,
    dice: StdRng,
    draw: Draw,
    lineage: Arc<Mutex<LineageId>>,
    lsn: Arc<AtomicU64>,
}

impl World {
    fn new(seed: u64) -> World {
        let mut dice = StdRng::seed_from_u64(seed);
        let draw = Draw::new(&mut dice);
        let clock = Clock::default();
        let trouble = Trouble {
            one_in: draw.trouble,
        };
        World {
            store: SimStore::new(&clock, seed ^ 0x5707e, trouble),
            clock,
            dice,
            draw,
            lineage: Arc::new(Mutex::new(LineageId(1))),
            lsn: Arc::new(AtomicU64::new(100)),
        }
    }

    fn machine(&mut self) -> Repository {
        let week = 7 * 24 * 3600;
        let skew = match self.dice.random_range(0..3) {
            0 => time::Duration::ZERO,
            _ => time::Duration::seconds(self.dice.random_range(-week..week)),
        };
        let env = Machine::new(&self.clock, skew, self.dice.random());
        let kind = match self.draw.kinds {
            0 => Kind::Full,
            1 if self.dice.random_range(0..2) == 0 => Kind::Full,
            _ => Kind::Incremental,
        };
        let store: Arc<dyn object_store::ObjectStore> = Arc::new(self.store.clone());
        let destination = Destination::of_store(store, Path::default(), "sim://".to_owned());
        let options = Options {
            cluster: Some(Cluster {
                name: "sim".to_owned(),
                fingerprint: Some(42),
                node_name: "n1".to_owned(),
            }),
            kind,
            num_retained: self.draw.retained,
            orphan_min_age: self.draw.min_age,
            parallel_files: self.dice.random_range(1..4),
            ..Options::default()
        };
        Repository::with_env(&destination, PARTITION, options, env)
    }

    fn unreliable(
        &mut self,
        task: impl Future<Output = ()> + Send + 'static,
    ) -> BoxFuture<'static, ()> {
        let (pause_in, crash_in) = (self.draw.pause_in, self.draw.crash_in);
        let seed = self.dice.random();
        Unreliable::new(task.boxed(), &self.clock, seed, pause_in, crash_in).boxed()
    }

    /// A node that puts snapshots, one after the other.
    fn writer(&mut self) -> BoxFuture<'static, ()> {
        let repository = self.machine();
        let (clock, lsn, lineage) = (self.clock.clone(), self.lsn.clone(), self.lineage.clone());
        let contents = self.store.contents.clone();
        let mut dice = StdRng::seed_from_u64(self.dice.random());
        let most = self.draw.contents;
        let puts = dice.random_range(1..7);
        self.unreliable(async move {
            for _ in 0..puts {
                clock
                    .sleep(Duration::from_secs(dice.random_range(0..4000)))
                    .await;
                let now = lsn.fetch_add(dice.random_range(0..5), Ordering::Relaxed);
                // Some snapshots are older than the newest one.
                let at = now.saturating_sub(dice.random_range(0..8));
                let wanted: Vec<u32> = (0..most).filter(|_| dice.random_range(0..2) == 0).collect();
                let line = *lineage.lock().unwrap();
                let checkpoint = checkpoint(at, line, &wanted);
                if let Ok(put) = repository.put(&checkpoint, &Progress::new()).await {
                    let contents = contents.lock().unwrap();
                    assert!(
                        contents.committed.contains(&put.snapshot.id),
                        "{} is said to be put and never was in the root",
                        put.snapshot
                    );
                }
            }
        })
    }

    /// A node that sweeps, and prunes by plan.
    fn sweeper(&mut self) -> BoxFuture<'static, ()> {
        let repository = self.machine();
        let clock = self.clock.clone();
        let mut dice = StdRng::seed_from_u64(self.dice.random());
        self.unreliable(async move {
            for _ in 0..dice.random_range(2..12) {
                clock
                    .sleep(Duration::from_secs(dice.random_range(0..3000)))
                    .await;
                if dice.random_range(0..3) > 0 {
                    let _ = repository.sweep().await;
                    continue;
                }
                let options = PruneOptions {
                    min_age: Some(Duration::ZERO),
                    keep: NonZeroU32::new(dice.random_range(0..3)),
                    abandoned: dice.random_range(0..3) == 0,
                };
                if let Ok(plan) = repository.plan_prune(&options).await {
                    clock
                        .sleep(Duration::from_secs(dice.random_range(0..200)))
                        .await;
                    let _ = repository.prune(&plan).await;
                }
            }
        })
    }

    /// A process that pins a kept snapshot, reads it for a while, and unpins it, or does not.
    fn restorer(&mut self) -> BoxFuture<'static, ()> {
        let repository = self.machine();
        let clock = self.clock.clone();
        let mut dice = StdRng::seed_from_u64(self.dice.random());
        self.unreliable(async move {
            for _ in 0..dice.random_range(1..6) {
                clock
                    .sleep(Duration::from_secs(dice.random_range(0..4000)))
                    .await;
                let Ok(root) = repository.root().await else {
                    continue;
                };
                let kept = root.kept();
                if kept.is_empty() {
                    continue;
                }
                let dir = &kept[dice.random_range(0..kept.len())];
                let Ok(pin) = repository.pin(dir).await else {
                    continue;
                };
                clock
                    .sleep(Duration::from_secs(dice.random_range(0..9000)))
                    .await;
                let _ = repository.renew_pin(&pin, dir).await;
                clock
                    .sleep(Duration::from_secs(dice.random_range(0..9000)))
                    .await;
                let _ = repository.unpin(&pin).await;
            }
        })
    }

    /// Two lossy restores at about the same time: at most one succeeds.
    fn forkers(&mut self) -> Vec<BoxFuture<'static, ()>> {
        let won = Arc::new(AtomicU64::new(0));
        (0..2)
            .map(|i| {
                let repository = self.machine();
                let (clock, lineage, lsn) =
                    (self.clock.clone(), self.lineage.clone(), self.lsn.clone());
                let wait = Duration::from_secs(self.dice.random_range(2000..9000));
                let back = self.dice.random_range(0..10);
                let won = won.clone();
                self.unreliable(async move {
                    clock.sleep(wait).await;
                    let (parent, next) = (LineageId(1), LineageId(2 + i));
                    let at = lsn.load(Ordering::Relaxed).saturating_sub(back);
                    if repository.fork(Some(parent), Lsn(at), next).await.is_ok() {
                        assert_eq!(won.fetch_add(1, Ordering::Relaxed), 0, "both won");
                        *lineage.lock().unwrap() = next;
                    }
                })
            })
            .collect()
    }

    fn check(&self, seed: u64) {
        let contents = self.store.contents.lock().unwrap();
        if let Some(broken) = &contents.broken {
            panic!("seed {seed}: {broken}");
        }
    }
}

/// Runs a seed. Returns the number of committed snapshots and of deleted objects.
fn simulate(seed: u64) -> (usize, u64) {
    let mut world = World::new(seed);
    let mut tasks = Vec::new();
    for _ in 0..world.draw.writers {
        tasks.push(world.writer());
    }
    tasks.push(world.sweeper());
    if world.dice.random_range(0..2) == 0 {
        tasks.push(world.sweeper());
    }
    tasks.push(world.restorer());
    if world.dice.random_range(0..3) == 0 {
        tasks.extend(world.forkers());
    }
    let clock = world.clock.clone();
    run(&clock, tasks);
    world.check(seed);
    world.store.calm();

    // The faults have stopped, and a month has passed, because clocks may be wrong by a week.
    let repository = world.machine();
    let store = world.store.clone();
    let lsn = world.lsn.load(Ordering::Relaxed) + 100;
    let calm = async move {
        repository_is_fine(repository, store, clock, lsn, seed).await;
    };
    run(&world.clock, vec![calm.boxed()]);
    world.check(seed);
    let contents = world.store.contents.lock().unwrap();
    (contents.committed.len(), contents.deleted)
}

async fn repository_is_fine(
    repository: Repository,
    store: SimStore,
    clock: Clock,
    lsn: u64,
    seed: u64,
) {
    clock.sleep(Duration::from_secs(30 * 24 * 3600)).await;
    let root = repository.root().await;
    let lineage = match &root {
        Ok(root) => root.lineage.unwrap_or(LineageId(1)),
        // No machine has created a root.
        Err(Error::NoRoot { others: false, .. }) => LineageId(1),
        Err(error) => panic!("seed {seed}: {error}"),
    };
    let checkpoint = checkpoint(lsn, lineage, &[1, 3, 5]);
    let put = repository.put(&checkpoint, &Progress::new()).await;
    let put = put.unwrap_or_else(|error| panic!("seed {seed}: {error}"));
    let newest = store.contents.lock().unwrap().root().unwrap();
    assert_eq!(
        newest.newest.unwrap().snapshot_id,
        put.snapshot.id,
        "seed {seed}"
    );
    // Objects that were written late are still young, so another month passes.
    clock.sleep(Duration::from_secs(30 * 24 * 3600)).await;
    repository.sweep().await.unwrap();
    let verified = repository.verify(true, &Progress::new()).await.unwrap();
    assert!(verified.is_sound(), "seed {seed}: {:?}", verified.damaged);
    let garbage = store.contents.lock().unwrap().garbage();
    assert!(garbage.is_empty(), "seed {seed}: {garbage:?} stays");
}

#[test]
fn nothing_that_is_needed_is_ever_deleted() {
    let range = seeds::range(0..3000);
    let seeds = range.end - range.start;
    let (mut committed, mut deleted) = (0, 0);
    for seed in range {
        let result = std::panic::catch_unwind(|| simulate(seed));
        let Ok((c, d)) = result else {
            let again = seeds::again(seed, "-p esker-repository --test simulation nothing_that");
            panic!("seed {seed} fails; {again}");
        };
        committed += c;
        deleted += d;
    }
    // If hardly anything happened, the runs have shown nothing.
    assert!(committed as u64 > 2 * seeds, "{committed}");
    assert!(deleted > 2 * seeds, "{deleted}");
    println!("{seeds} seeds: {committed} snapshots, {deleted} deletions");
}

#[test]
fn a_seed_repeats_a_run() {
    for seed in 0..20 {
        assert_eq!(simulate(seed), simulate(seed));
    }
}
