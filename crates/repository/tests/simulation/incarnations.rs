//! Copies of one data directory that put into one partition, by seed: of all histories that begin where a
//! directory was copied, the roots ever retain snapshots of one.
//!
//! A directory remembers the incarnations that its starts have drawn. It starts repeatedly, and each start
//! puts snapshots of its history until it ends or crashes, with requests that may take effect later. It is
//! copied between two starts, or while it runs. A start does what a node does: it checks that the newest
//! snapshot is of its own history, claims the root, checks again, and puts.
//!
//! The controls are nodes that omit one of these steps; the simulation must show that they mix histories.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use esker_repository::{
    Cluster, CurrentRoot, Destination, Error, Incarnation, IncarnationId, LineageId, Options,
    Progress, Repository,
};
use futures::FutureExt as _;
use futures::future::BoxFuture;
use object_store::path::Path;
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use testkit::seeds;

use crate::checkpoint;
use crate::clock::{Clock, Machine, Unreliable, run};
use crate::store::{PARTITION, Reading, SimStore, Trouble};

const LINEAGE: LineageId = LineageId(1);
/// Field of a snapshot's description that names its history.
const BRANCH: &str = "branch";

/// The check that a node omits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Without {
    Nothing,
    /// It never notices that another incarnation has claimed the root.
    Incarnation,
    /// It does not notice that at a commit, after it has claimed the root itself.
    IncarnationAtCommit,
    /// It does not check the history of the newest snapshot.
    History,
}

/// For each history, the one that it branched off from, and after which LSN.
#[derive(Default)]
struct Branches(Vec<(usize, u64)>);

impl Branches {
    /// Whether a position is part of the history that ends at `of`.
    fn contains(&self, mut of: (usize, u64), position: (usize, u64)) -> bool {
        while of.0 > position.0 {
            let (parent, lsn) = self.0[of.0];
            of = (parent, lsn.min(of.1));
        }
        of.0 == position.0 && position.1 <= of.1
    }
}

/// A data directory.
#[derive(Clone)]
struct Directory {
    drawn: Vec<IncarnationId>,
    branch: usize,
    lsn: u64,
}

#[derive(Clone)]
struct World {
    clock: Clock,
    store: SimStore,
    branches: Arc<Mutex<Branches>>,
    without: Without,
    dice: Arc<Mutex<StdRng>>,
}

impl World {
    fn draw(&self, range: std::ops::Range<u64>) -> u64 {
        self.dice.lock().unwrap().random_range(range)
    }

    fn repository(&self, incarnation: Incarnation, reading: Reading) -> Repository {
        let store = self.store.reading(reading);
        let store: Arc<dyn object_store::ObjectStore> = Arc::new(store);
        let destination = Destination::of_store(store, Path::default(), "sim://".to_owned());
        let options = Options {
            cluster: Some(Cluster {
                name: "sim".to_owned(),
                fingerprint: Some(42),
                node_name: "n1".to_owned(),
            }),
            incarnation: Some(incarnation),
            num_retained: std::num::NonZeroU32::new(2),
            ..Options::default()
        };
        let env = Machine::new(&self.clock, time::Duration::ZERO, self.draw(0..u64::MAX));
        Repository::with_env(&destination, PARTITION, options, env)
    }

    /// A copy of the current state; from here on both continue differently.
    fn copy(&self, original: &Mutex<Directory>) -> Arc<Mutex<Directory>> {
        let original = original.lock().unwrap();
        let mut branches = self.branches.lock().unwrap();
        branches.0.push((original.branch, original.lsn));
        Arc::new(Mutex::new(Directory {
            branch: branches.0.len() - 1,
            ..original.clone()
        }))
    }

    /// Whether the newest snapshot is of a directory's history, according to its log.
    async fn is_ours(
        &self,
        repository: &Repository,
        root: &CurrentRoot,
        dir: &Mutex<Directory>,
    ) -> bool {
        let Some(newest) = root.retained_snapshots.first() else {
            return true;
        };
        let Ok(metadata) = repository.describe(&newest.dir()).await else {
            return self.without == Without::History;
        };
        let branch = metadata.extra[BRANCH].as_u64().unwrap() as usize;
        let position = (branch, metadata.min_applied_lsn.0);
        let dir = dir.lock().unwrap();
        let branches = self.branches.lock().unwrap();
        self.without == Without::History || branches.contains((dir.branch, dir.lsn), position)
    }

    /// One start of a directory.
    async fn start(self, dir: Arc<Mutex<Directory>>, puts: u64) {
        let id = IncarnationId(u128::from(self.draw(1..u64::MAX)));
        let incarnation = {
            let mut dir = dir.lock().unwrap();
            let after = dir.drawn.clone();
            // The incarnation is stored before it is used.
            dir.drawn.push(id);
            Incarnation { id, after }
        };
        let reading = Reading::default();
        let blind = || *reading.0.lock().unwrap() = Some(id.to_string());
        if self.without == Without::Incarnation {
            blind();
        }
        let repository = self.repository(incarnation, reading.clone());
        let mut is_claimed = false;
        for _ in 0..puts {
            let pause = Duration::from_secs(self.draw(0..4000));
            self.clock.sleep(pause).await;
            let (branch, lsn) = {
                let mut dir = dir.lock().unwrap();
                dir.lsn += self.draw(1..4);
                (dir.branch, dir.lsn)
            };
            if !is_claimed {
                match repository.root().await {
                    Ok(root) if !self.is_ours(&repository, &root, &dir).await => continue,
                    Ok(root) if repository.check_writer(&root).is_err() => continue,
                    Err(Error::NoRoot { .. }) | Ok(_) => {}
                    Err(_) => continue,
                }
                match repository.claim(LINEAGE).await {
                    Ok(root) if !self.is_ours(&repository, &root, &dir).await => continue,
                    Ok(_) => is_claimed = true,
                    Err(_) => continue,
                }
                if self.without == Without::IncarnationAtCommit {
                    blind();
                }
            }
            self.put(&repository, branch, lsn).await;
        }
    }

    async fn put(&self, repository: &Repository, branch: usize, lsn: u64) -> bool {
        let mut made = checkpoint(lsn, LINEAGE, &[lsn as u32, branch as u32 + 1000]);
        made.extra.insert(BRANCH.to_owned(), branch.into());
        repository.put(&made, &Progress::new()).await.is_ok()
    }

    /// A directory that starts repeatedly, one start at a time.
    fn restarts(&self, dir: &Arc<Mutex<Directory>>, starts: u64) -> BoxFuture<'static, ()> {
        let (world, dir) = (self.clone(), dir.clone());
        async move {
            for _ in 0..starts {
                let start = world.clone().start(dir.clone(), world.draw(1..6)).boxed();
                let (seed, crash_in) = (world.draw(0..u64::MAX), world.draw(0..300) as u32);
                Unreliable::new(start, &world.clock, seed, 60, crash_in).await;
            }
        }
        .boxed()
    }
}

/// The outcome of a seed.
struct Outcome {
    commits: usize,
    /// Number of histories that had a snapshot.
    committed: usize,
    refused: bool,
    mixed: bool,
}

fn simulate(seed: u64, without: Without) -> Outcome {
    let mut dice = StdRng::seed_from_u64(seed);
    let clock = Clock::default();
    let trouble = match dice.random_range(0..4) {
        0 => 0,
        _ => dice.random_range(4..60),
    };
    let (hot, starts, others) = (
        dice.random_range(0..2) == 0,
        dice.random_range(1..3),
        dice.random_range(1..3),
    );
    let world = World {
        store: SimStore::new(&clock, seed ^ 0x1ca4, Trouble { one_in: 0 }),
        branches: Arc::new(Mutex::new(Branches(vec![(0, 0)]))),
        without,
        dice: Arc::new(Mutex::new(dice)),
        clock,
    };
    let original = Arc::new(Mutex::new(Directory {
        drawn: Vec::new(),
        branch: 0,
        lsn: 1,
    }));
    let (life, first) = (world.clone(), original.clone());
    let creation = async move {
        // The first snapshot, which all histories share.
        let id = IncarnationId(1);
        first.lock().unwrap().drawn.push(id);
        let after = Vec::new();
        let repository = life.repository(Incarnation { id, after }, Reading::default());
        while !life.put(&repository, 0, 1).await {}
    };
    run(&world.clock, vec![creation.boxed()]);
    world.store.is_to_fail(trouble);
    if !hot {
        run(&world.clock, vec![world.restarts(&original, starts)]);
    }
    let mut lives = vec![world.restarts(&original, starts + 1)];
    for _ in 0..others {
        let (world, original) = (world.clone(), original.clone());
        let wait = Duration::from_secs(world.draw(0..9000));
        // If `hot`, a running directory is copied, at any time.
        let copied = (!hot).then(|| world.copy(&original));
        lives.push(
            async move {
                world.clock.sleep(wait).await;
                let copied = copied.unwrap_or_else(|| world.copy(&original));
                world.restarts(&copied, starts).await;
            }
            .boxed(),
        );
    }
    run(&world.clock, lives);
    let contents = world.store.contents.lock().unwrap();
    if let Some(broken) = &contents.broken {
        panic!("seed {seed}, without {without:?}: {broken}");
    }
    let branches = world.branches.lock().unwrap();
    let history: Vec<(usize, u64)> = contents
        .history
        .iter()
        .map(|metadata| {
            let branch = metadata.extra[BRANCH].as_u64().unwrap();
            (branch as usize, metadata.min_applied_lsn.0)
        })
        .collect();
    let are_one = |(one, other)| branches.contains(one, other) || branches.contains(other, one);
    let mut pairs = history
        .iter()
        .flat_map(|one| history.iter().map(|other| (*one, *other)));
    let committed: std::collections::BTreeSet<usize> = history.iter().map(|(b, _)| *b).collect();
    Outcome {
        commits: history.len(),
        committed: committed.len(),
        refused: committed.len() < branches.0.len(),
        mixed: !pairs.all(are_one),
    }
}

#[test]
fn of_copies_of_one_data_directory_one_history_alone_gets_into_the_roots() {
    let range = seeds::range(0..500);
    let range = range.start..range.end.min(range.start + 10_000);
    let seeds = range.end - range.start;
    let (mut commits, mut taken_over, mut refused) = (0, 0, 0);
    for seed in range {
        let outcome = simulate(seed, Without::Nothing);
        assert!(
            !outcome.mixed,
            "seed {seed} mixes histories; {}",
            seeds::again(seed, "-p esker-repository --test simulation incarnations")
        );
        commits += outcome.commits as u64;
        taken_over += u64::from(outcome.committed > 1);
        refused += u64::from(outcome.refused);
    }
    // If hardly anything happened, the run has shown nothing.
    assert!(commits > 2 * seeds, "{commits}");
    assert!(
        taken_over > seeds / 20 && refused > seeds / 2,
        "{taken_over} {refused}"
    );
    println!("{seeds} seeds: {commits} snapshots, {taken_over} times a copy took over");
}

#[test]
fn nodes_that_leave_out_a_check_of_who_writes_are_caught_mixing_histories() {
    for without in [
        Without::Incarnation,
        Without::IncarnationAtCommit,
        Without::History,
    ] {
        let caught = (0..500).find(|seed| simulate(*seed, without).mixed);
        let caught =
            caught.unwrap_or_else(|| panic!("without {without:?}: not caught in 500 seeds"));
        println!("without {without:?}: caught by seed {caught}");
    }
}
