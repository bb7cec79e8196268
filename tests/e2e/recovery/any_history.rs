//! Random histories, snapshots and losses: the state afterwards has to agree with a model.
//!
//! The model has the state of each partition after each step. A plain start has to recover the last one; a
//! start that may lose something has to end at one of these moments, not before the newest copy that is left,
//! with every stream of the partition at the same moment.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};

use rand::rngs::StdRng;
use rand::seq::{IndexedRandom as _, IteratorRandom as _};
use rand::{Rng as _, SeedableRng as _};
use s2_sdk::types::{
    AppendInput, AppendRecord, AppendRecordBatch, CommandRecord, DeleteStreamInput,
};
use testkit::seeds;

use super::contents::{GAP, contents, stream};
use super::history::{log_ends, quiet, run_concurrently, wait_for_new_lineage};
use super::target::{Kind, Node, PARTITIONS};
use crate::support::sdk::{self, basin_name, stream_name};
use crate::support::{Server, eventually};

const BASIN: &str = "model-basin";
/// Histories of one run, which begin at a random seed; `make soak-recovery` runs as many as one likes.
const SEEDS: u64 = 3;

/// The content of a stream in the model.
#[derive(Clone, Debug, Default, PartialEq)]
struct Acknowledged {
    records: BTreeMap<u64, Vec<u8>>,
    tail: u64,
}

/// Streams of one partition, by name.
type Moment = BTreeMap<String, Acknowledged>;

/// The states of a partition after each step, in its present lineage.
#[derive(Debug)]
struct Line {
    moments: Vec<Moment>,
    /// Index in `moments` at which the lineage began: a log reaches back no further.
    begun: usize,
    /// Index in `moments` of each snapshot in the repository.
    snapshots: BTreeMap<String, usize>,
    /// Index in `moments` up to which the database's files go at least.
    durable: usize,
}

impl Line {
    fn last(&self) -> usize {
        self.moments.len() - 1
    }

    /// Index in `moments` of the newest snapshot that ends at or below an LSN.
    fn as_of(&self, lsn: &str) -> Option<usize> {
        let ends = |dir: &str| dir.split_once('-').map(|(lsn, _)| lsn.to_owned());
        let below = |(dir, _): &(&String, &usize)| ends(dir).is_some_and(|end| end.as_str() <= lsn);
        let below = self.snapshots.iter().filter(below);
        below.map(|(_, moment)| *moment).max()
    }

    /// Adds the moment that a change makes of the newest one.
    fn step(&mut self, change: impl FnOnce(&mut Moment)) {
        let mut next = self.moments[self.last()].clone();
        change(&mut next);
        self.moments.push(next);
    }
}

/// What is removed from the data directory.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Lost {
    log: bool,
    database: bool,
    local_snapshots: bool,
}

struct World {
    rng: StdRng,
    node: Node,
    server: Server,
    /// By partition; the catalog does not change after the beginning.
    lines: BTreeMap<u64, Line>,
    /// The partition of every stream that ever existed.
    partition_of: BTreeMap<String, u64>,
    /// All sequence numbers that were ever acknowledged.
    given: BTreeMap<String, BTreeSet<u64>>,
    /// Objects of the repository that were damaged.
    damaged: BTreeSet<String>,
    told: String,
    losses: usize,
}

impl World {
    async fn new(seed: u64) -> World {
        let setup = quiet().set("snapshots.snapshot-kind=incremental");
        let node = Node::new(Kind::Directory, setup).await;
        let server = node.setup.start(&node.data()).await;
        sdk::basin(&server.sdk(), BASIN).await;
        let line = |_| Line {
            moments: vec![Moment::new()],
            begun: 0,
            snapshots: BTreeMap::new(),
            durable: 0,
        };
        let mut world = World {
            rng: StdRng::seed_from_u64(seed),
            lines: (0..=PARTITIONS).map(|p| (p, line(p))).collect(),
            node,
            server,
            partition_of: BTreeMap::new(),
            given: BTreeMap::new(),
            damaged: BTreeSet::new(),
            told: format!("ESKER_SEED={seed}"),
            losses: 0,
        };
        world.node.target.roots().await;
        // The first snapshots may be older than the basin.
        for partition in 0..=PARTITIONS {
            world.put_snapshot(partition).await;
        }
        world.note_snapshots();
        world
    }

    fn note(&mut self, what: &str) {
        self.told.push_str("; ");
        self.told.push_str(what);
    }

    fn line(&mut self, name: &str) -> &mut Line {
        let partition = self.partition_of[name];
        self.lines.get_mut(&partition).expect("a partition")
    }

    fn streams(&self) -> Vec<String> {
        let newest = self.lines.values().map(|line| &line.moments[line.last()]);
        newest.flat_map(|moment| moment.keys().cloned()).collect()
    }

    async fn step(&mut self) {
        let streams = self.streams();
        match self.rng.random_range(0..20) {
            _ if streams.len() < 3 => self.create().await,
            0..8 => self.append(&streams).await,
            8..10 => self.trim(&streams).await,
            10 => self.create().await,
            11 => self.delete(&streams).await,
            12..15 => {
                let partition = self.rng.random_range(1..=PARTITIONS);
                self.put_snapshot(partition).await;
            }
            15 => {
                self.note("kill");
                self.server.kill();
                self.server.restart(&self.node.setup).await;
                self.check_all().await;
            }
            _ => self.lose().await,
        }
    }

    async fn create(&mut self) {
        let name = format!("stream-{}", self.partition_of.len());
        self.note(&format!("create {name}"));
        let before = log_ends(&self.server).await;
        let basin = self.server.sdk().basin(basin_name(BASIN));
        sdk::stream(&basin, &name).await;
        // Nothing else happens, so the partition with one more entry is the stream's.
        let partition = eventually("a partition with one entry more", async || {
            let now = log_ends(&self.server).await;
            (1..=PARTITIONS).find(|p| now[*p as usize] > before[*p as usize])
        })
        .await;
        self.partition_of.insert(name.clone(), partition);
        self.line(&name).step(|moment| {
            moment.insert(name.clone(), Acknowledged::default());
        });
    }

    async fn append(&mut self, streams: &[String]) {
        let name = streams.choose(&mut self.rng).expect("a stream").clone();
        let count = self.rng.random_range(1..20);
        let size = self.rng.random_range(0..3000);
        let body = |i| format!("{i} {}", "x".repeat(size)).into_bytes();
        let bodies: Vec<Vec<u8>> = (0..count).map(body).collect();
        self.note(&format!("append {count} to {name}"));
        let records = bodies
            .iter()
            .cloned()
            .map(|b| AppendRecord::new(b).unwrap());
        self.append_all(&name, records.collect(), bodies).await;
    }

    async fn append_all(&mut self, name: &str, records: Vec<AppendRecord>, bodies: Vec<Vec<u8>>) {
        let at = stream(&self.server.sdk(), &format!("{BASIN}/{name}"));
        let batch = AppendRecordBatch::try_from_iter(records).unwrap();
        let ack = at.append(AppendInput::new(batch)).await.unwrap();
        let given = self.given.entry(name.to_owned()).or_default();
        for seq in ack.start.seq_num..ack.end.seq_num {
            assert!(given.insert(seq), "{}: {seq} again in {name}", self.told);
        }
        self.line(name).step(|moment| {
            let told = moment.get_mut(name).expect("a stream");
            assert_eq!(ack.start.seq_num, told.tail);
            told.records.extend((ack.start.seq_num..).zip(bodies));
            told.tail = ack.end.seq_num;
        });
    }

    async fn trim(&mut self, streams: &[String]) {
        let name = streams.choose(&mut self.rng).expect("a stream").clone();
        let line = self.line(&name);
        let told = line.moments[line.last()][&name].clone();
        let Some(seq) = told.records.keys().choose(&mut self.rng).copied() else {
            return;
        };
        self.note(&format!("trim {name} to {seq}"));
        let command = vec![CommandRecord::trim(seq).into()];
        let body = seq.to_be_bytes().to_vec();
        self.append_all(&name, command, vec![body]).await;
        let line = self.line(&name);
        let newest = line.last();
        let told = line.moments[newest].get_mut(&name).expect("a stream");
        told.records = told.records.split_off(&seq);
    }

    async fn delete(&mut self, streams: &[String]) {
        let name = streams.choose(&mut self.rng).expect("a stream").clone();
        self.note(&format!("delete {name}"));
        let basin = self.server.sdk().basin(basin_name(BASIN));
        let input = DeleteStreamInput::new(stream_name(&name));
        basin.delete_stream(input).await.unwrap();
        self.line(&name).step(|moment| {
            moment.remove(&name);
        });
    }

    async fn put_snapshot(&mut self, partition: u64) {
        self.note(&format!("snapshot of {partition}"));
        let path = format!("/esker/v1/partitions/{partition}/snapshots");
        let put = self.server.http1().post(&path).send().await.expect(200);
        let dir = put.json()["snapshot"].as_str().unwrap().to_owned();
        let line = self.lines.get_mut(&partition).expect("a partition");
        let newest = line.last();
        line.snapshots.insert(dir, newest);
        line.durable = newest;
    }

    /// Records the snapshots that were put without a request since the last step.
    fn note_snapshots(&mut self) {
        for (partition, line) in &mut self.lines {
            let newest = line.last();
            for dir in self.node.target.root(*partition).unwrap().retained() {
                let dir = dir.split_once('/').expect("partition/directory").1;
                line.snapshots.entry(dir.to_owned()).or_insert(newest);
            }
            line.durable = newest;
        }
    }

    /// The moments of the undamaged snapshots in the repository, newest first.
    fn whole(&self, partition: u64) -> Vec<usize> {
        let root = self.node.target.root(partition).expect("a root");
        let retained = root.retained().into_iter().enumerate();
        let whole = retained
            .filter(|(at, _)| self.node.target.is_whole(&root, *at, &self.damaged))
            .map(|(_, dir)| {
                let (_, dir) = dir.split_once('/').expect("partition/directory");
                let moment = self.lines[&partition].snapshots.get(dir);
                *moment.unwrap_or_else(|| panic!("{}: where is {dir} from?", self.told))
            });
        whole.collect()
    }

    /// The number of those of the present lineage: without one, a lineage that has just begun is taken for
    /// another cluster's.
    fn whole_of_line(&self, partition: u64) -> usize {
        let begun = self.lines[&partition].begun;
        let whole = self.whole(partition).into_iter();
        whole.filter(|moment| *moment >= begun).count()
    }

    /// Damages some of the newest snapshots, but leaves at least one of the lineage intact.
    fn damage(&mut self, partition: u64) {
        let left = self.whole_of_line(partition);
        for at in 0..self.rng.random_range(0..left) {
            let target = &self.node.target;
            let before = self.damaged.clone();
            match self.rng.random_bool(0.3) {
                true => target.forget(partition, at),
                false => self.damaged.extend(target.damage_or_forget(partition, at)),
            }
            if self.whole_of_line(partition) == 0 {
                // Older snapshots share a damaged file, which is repaired.
                for key in self.damaged.difference(&before) {
                    let mut content = target.get(key).unwrap();
                    let middle = content.len() / 2;
                    content[middle] = !content[middle];
                    target.replace(key, content);
                }
                self.damaged = before;
                return;
            }
        }
    }

    async fn lose(&mut self) {
        let mut lost = Lost {
            log: self.rng.random_bool(0.4),
            database: self.rng.random_bool(0.6),
            local_snapshots: self.rng.random_bool(0.5),
        };
        let everything = self.rng.random_bool(0.2);
        // Incremental snapshots inherit damage that was not noticed, so none may be intact.
        if (0..=PARTITIONS).any(|p| self.whole_of_line(p) == 0) {
            return;
        }
        if everything {
            lost = Lost {
                log: true,
                database: true,
                local_snapshots: true,
            };
        }
        self.losses += 1;
        self.server.kill();
        let data = self.node.data();
        let remove = |gone: bool, what: &str| {
            if gone && data.join(what).exists() {
                fs::remove_dir_all(data.join(what)).unwrap();
            }
        };
        remove(lost.log, "log");
        remove(lost.database, "db");
        remove(lost.local_snapshots, "checkpoints");
        remove(everything, "");
        for partition in 1..=PARTITIONS {
            self.damage(partition);
        }
        self.note(&format!("lose {lost:?}"));
        // The least that each partition has to have, and whether everything is promised.
        let mut least = BTreeMap::new();
        let mut all_kept = true;
        for partition in 0..=PARTITIONS {
            let whole = self.whole(partition)[0];
            let line = &self.lines[&partition];
            let local = names(&data.join(format!("checkpoints/{partition}")));
            let local = local.iter().filter_map(|lsn| line.as_of(lsn)).max();
            let copy = local.unwrap_or(whole);
            let database = line.durable;
            let here = match lost.database {
                true => copy,
                false => copy.max(database),
            };
            least.insert(partition, here.max(whole));
            all_kept &= !lost.log && (!lost.database || copy >= line.begun);
            if lost.database {
                self.lines.get_mut(&partition).expect("a line").durable = copy;
            }
        }
        let forked = match self.server.try_restart(&self.node.setup).await {
            Ok(()) => {
                self.note("a plain start");
                false
            }
            Err(log) => {
                assert!(!all_kept, "{}: refused:\n{log}", self.told);
                self.note("--bootstrap restore");
                let restore = self.node.setup.clone().bootstrap("restore");
                self.server.restart(&restore).await;
                true
            }
        };
        self.check(forked.then_some(&least)).await;
        if forked {
            wait_for_new_lineage(&self.node.target).await;
            self.note_snapshots();
        }
    }

    async fn check_all(&mut self) {
        self.check(None).await;
    }

    /// Checks that everything is there; or, if something may be lost, that each partition is as of one
    /// moment.
    async fn check(&mut self, least: Option<&BTreeMap<u64, usize>>) {
        let found = contents(&self.server.sdk()).await;
        let mut by_partition: BTreeMap<u64, Moment> = BTreeMap::new();
        for (at, stream) in found.0 {
            let (_, name) = at.split_once('/').expect("basin/stream");
            let records = stream.records.into_iter().map(|r| (r.seq, r.body));
            let told = Acknowledged {
                records: records.collect(),
                tail: stream.tail,
            };
            let partition = self.partition_of[name];
            by_partition
                .entry(partition)
                .or_default()
                .insert(name.to_owned(), told);
        }
        for (partition, line) in &mut self.lines {
            let found = by_partition.remove(partition).unwrap_or_default();
            let newest = line.last();
            let Some(least) = least else {
                let told = &line.moments[newest];
                assert!(
                    found == *told,
                    "{}: partition {partition} has {found:?}, not {told:?}",
                    self.told
                );
                continue;
            };
            let at = (least[partition]..=newest)
                .rev()
                .find(|at| same_but_for_gaps(&found, &line.moments[*at]));
            let at = at.unwrap_or_else(|| {
                panic!(
                    "{}: partition {partition} is as at no moment from {} to {newest}: {found:?}",
                    self.told, least[partition]
                )
            });
            line.moments.truncate(at + 1);
            line.snapshots.retain(|_, moment| *moment <= at);
            line.moments.push(found);
            line.begun = at + 1;
        }
    }
}

/// Names in a directory; none if it does not exist.
fn names(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir).into_iter().flatten();
    let names = entries.map(|entry| entry.unwrap().file_name());
    names
        .map(|name| name.to_string_lossy().into_owned())
        .collect()
}

/// Whether two moments have the same records, and tails that are the same or advanced by whole gaps.
fn same_but_for_gaps(found: &Moment, told: &Moment) -> bool {
    let same = |(a, b): (&Acknowledged, &Acknowledged)| {
        a.records == b.records && a.tail >= b.tail && (a.tail - b.tail).is_multiple_of(GAP)
    };
    found.keys().eq(told.keys()) && found.values().zip(told.values()).all(same)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn any_history_with_snapshots_and_losses_anywhere_ends_as_was_promised() {
    let seeds = seeds::range(1..1 + SEEDS);
    let losses = AtomicUsize::new(0);
    let counted = &losses;
    run_concurrently(seeds.map(async |seed| {
        let mut world = World::new(seed).await;
        println!("{}", seeds::again(seed, "--test e2e recovery::any_history"));
        for _ in 0..40 {
            world.step().await;
        }
        world.lose().await;
        counted.fetch_add(world.losses, Ordering::Relaxed);
    }))
    .await;
    assert!(losses.into_inner() > 0);
}
