//! Scrub and repair under every fault of the simulation, by seed: objects are damaged or lost while machines
//! put, sweep, pin and repair.
//!
//! The store checks every change, as in the other runs: no object that the root keeps is deleted, no key is
//! written again with other bytes, and only what was damaged or lost may be so. After the faults have stopped,
//! a repair leaves every retained snapshot whole, since a copy of every file is there.
//!
//! The controls are repairs that omit a rule; the simulation must show that they do harm.

use std::collections::BTreeSet;
use std::time::Duration;

use bytes::Bytes;
use esker_repository::marks::BadObject;
use esker_repository::repair::{FilesBySize, NoCopies};
use esker_repository::{Digest, Generation, LineageId, Progress, Repository, layout};
use futures::FutureExt as _;
use futures::future::BoxFuture;
use object_store::path::Path;
use object_store::{ObjectStore as _, ObjectStoreExt as _, PutMode, PutPayload, UpdateVersion};
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use serde_json::{Value, json};
use testkit::seeds;

use crate::clock::run;
use crate::store::SimStore;
use crate::{World, checkpoint, repository_is_fine};

/// What a repair omits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Without {
    Nothing,
    /// It writes the object again under its own key.
    NewKey,
    /// It registers no intent, and takes the next generation.
    Intent,
    /// Its swap removes the pins of the snapshots that it replaces, and it deletes what they have.
    Pins,
    /// Its swap restores entries that are not retained any more.
    RetainedAtSwap,
}

/// All keys that the repository finds damaged or missing.
async fn find_bad(repository: &Repository) -> Option<Vec<BadObject>> {
    let plan = repository.scrub_plan().await.ok()?;
    let mut bad = plan.bad;
    for object in &plan.objects {
        bad.extend(repository.scrub_object(object, None).await.ok()?);
    }
    Some(bad)
}

fn copies() -> FilesBySize {
    FilesBySize::of(&checkpoint(0, LineageId(1), &[0, 1, 2, 3, 4, 5, 6, 7]))
}

impl World {
    /// Damages or removes shared objects that the root keeps.
    fn damager(&mut self) -> BoxFuture<'static, ()> {
        let (clock, contents) = (self.clock.clone(), self.store.contents.clone());
        let mut dice = StdRng::seed_from_u64(self.dice.random());
        async move {
            for _ in 0..dice.random_range(1..6) {
                let wait = Duration::from_secs(dice.random_range(0..5000));
                clock.sleep(wait).await;
                contents.lock().unwrap().hurt_one(&mut dice);
            }
        }
        .boxed()
    }

    /// A machine that scrubs, and repairs what it finds; sometimes it has no copies.
    fn repairer(&mut self, without: Without) -> BoxFuture<'static, ()> {
        let repository = self.machine();
        let (clock, store) = (self.clock.clone(), self.store.clone());
        let mut dice = StdRng::seed_from_u64(self.dice.random());
        self.unreliable(async move {
            for _ in 0..dice.random_range(2..8) {
                let wait = Duration::from_secs(dice.random_range(0..3000));
                clock.sleep(wait).await;
                let Some(bad) = find_bad(&repository).await else {
                    continue;
                };
                if bad.is_empty() {
                    continue;
                }
                // Other machines change the root meanwhile.
                let wait = Duration::from_secs(dice.random_range(0..500));
                let has_copies = dice.random_range(0..4) > 0;
                match without {
                    Without::Nothing if has_copies => {
                        clock.sleep(wait).await;
                        let _ = repository.repair(&bad, &copies(), &Progress::new()).await;
                    }
                    Without::Nothing => {
                        let _ = repository.repair(&bad, &NoCopies, &Progress::new()).await;
                    }
                    _ => {
                        let bad: BTreeSet<String> = bad.into_iter().map(|b| b.key).collect();
                        let bits = dice.random();
                        let sleep = || clock.sleep(wait);
                        let work = repair_without(&store, without, &bad, bits, sleep);
                        // Some requests are never answered.
                        let limit = std::pin::pin!(clock.sleep(Duration::from_secs(9000)));
                        futures::future::select(std::pin::pin!(work), limit).await;
                    }
                }
            }
        })
    }
}

/// A repair that is written without the rules.
async fn repair_without<S: Future<Output = ()>>(
    store: &SimStore,
    without: Without,
    bad: &BTreeSet<String>,
    bits: u128,
    sleep: impl Fn() -> S,
) -> object_store::Result<()> {
    let at = |key: &str| Path::from(format!("7/{key}"));
    let content = |key: &str| {
        let wanted = layout::digest_of_key(key);
        let all = (0..8).map(|c| Bytes::from(format!("content {c}")));
        all.into_iter()
            .find(|bytes| Some(Digest::of(bytes)) == wanted)
    };
    let read = |key: String| {
        let path = at(&key);
        async move {
            let got = store.get(&path).await?;
            let tag = got.meta.e_tag.clone();
            let value: Value = serde_json::from_slice(&got.bytes().await?).unwrap();
            Ok::<_, object_store::Error>((value, tag))
        }
    };
    if without == Without::NewKey {
        for key in bad {
            if let Some(bytes) = content(key) {
                store.put(&at(key), PutPayload::from_bytes(bytes)).await?;
            }
        }
        return Ok(());
    }
    let (mut root, mut tag) = read("latest.json".to_owned()).await?;
    let generation = root["generation"].as_u64().unwrap() + 1;
    // The new entries, by the path that each replaces.
    let mut ids = Vec::new();
    let mut targets = Vec::new();
    for (n, entry) in (0..).zip(root["retained_snapshots"].as_array().unwrap()) {
        let path = entry["path"].as_str().unwrap().to_owned();
        let (metadata, _) = read(format!("{path}/metadata.json")).await?;
        let keys = metadata["file_keys"].as_object();
        if keys.is_some_and(|keys| keys.values().any(|key| bad.contains(key.as_str().unwrap()))) {
            let id = esker_repository::SnapshotId::from_bits(bits ^ n);
            ids.push(id.as_str().to_owned());
            targets.push((path, entry.clone(), metadata, id));
        }
    }
    if targets.is_empty() {
        return Ok(());
    }
    if without != Without::Intent {
        let intent = json!({"snapshot_ids": ids, "generation": generation, "node_name": "n1",
            "renewed_at": "2100-01-01T00:00:00Z", "repair": true});
        let intents = root["intents"].as_array().cloned().unwrap_or_default();
        root["intents"] = intents.into_iter().chain([intent]).collect();
        swap(store, root, tag).await?;
    }
    let mut next = Vec::new();
    for (path, mut entry, mut metadata, id) in targets {
        for key in metadata["file_keys"].as_object_mut().unwrap().values_mut() {
            let old = key.as_str().unwrap().to_owned();
            if bad.contains(&old)
                && let Some(bytes) = content(&old)
            {
                let new = layout::shared_file(Digest::of(&bytes), Generation(generation));
                store.put(&at(&new), PutPayload::from_bytes(bytes)).await?;
                *key = new.into();
            }
        }
        metadata["snapshot_id"] = id.as_str().into();
        entry["snapshot_id"] = id.as_str().into();
        let dir = format!("{}-{id}", path.split_once('-').unwrap().0);
        entry["path"] = dir.clone().into();
        let bytes = PutPayload::from(metadata.to_string());
        store
            .put(&at(&format!("{dir}/metadata.json")), bytes)
            .await?;
        next.push((path, entry, metadata));
    }
    sleep().await;
    // The root that is replaced is read again, as the correct repair does.
    (root, tag) = read("latest.json".to_owned()).await?;
    if without != Without::Intent {
        let own = |intent: &Value| intent["generation"] == json!(generation);
        let intents = root["intents"].as_array().cloned().unwrap_or_default();
        if !intents.iter().any(own) {
            return Ok(());
        }
        root["intents"] = intents.into_iter().filter(|i| !own(i)).collect();
    }
    let mut replaced = Vec::new();
    for (path, entry, _) in &next {
        let retained = root["retained_snapshots"].as_array_mut().unwrap();
        match retained.iter_mut().find(|r| r["path"] == json!(path)) {
            Some(there) => {
                *there = entry.clone();
                replaced.push(path.clone());
            }
            None if without == Without::RetainedAtSwap => {
                retained.push(entry.clone());
                retained.sort_by_key(|r| std::cmp::Reverse(r["min_applied_lsn"].as_u64()));
            }
            None => {}
        }
    }
    if let Some(pins) = root.get_mut("pins").and_then(Value::as_array_mut)
        && without == Without::Pins
    {
        pins.retain(|pin| !replaced.iter().any(|path| pin["path"] == json!(path)));
    }
    let first = root["retained_snapshots"][0].clone();
    for field in ["snapshot_id", "path", "created_at", "min_applied_lsn"] {
        root[field] = first[field].clone();
    }
    swap(store, root, tag).await
}

async fn swap(store: &SimStore, mut root: Value, tag: Option<String>) -> object_store::Result<()> {
    root["generation"] = json!(root["generation"].as_u64().unwrap() + 1);
    let version = UpdateVersion {
        e_tag: tag,
        version: None,
    };
    let bytes = PutPayload::from(root.to_string());
    let path = Path::from("7/latest.json");
    let mode = PutMode::Update(version).into();
    store.put_opts(&path, bytes, mode).await.map(|_| ())
}

/// Runs a seed. Returns how many objects were hurt, and the first violation.
fn simulate(seed: u64, without: Without) -> (usize, Option<String>) {
    let mut world = World::new(seed);
    // Only shared objects are repaired, and pins are what one control removes.
    world.draw.kinds = 2;
    let mut tasks = vec![world.writer(), world.writer(), world.sweeper()];
    tasks.push(world.restorer());
    tasks.push(world.damager());
    tasks.push(world.repairer(without));
    if world.dice.random_range(0..2) == 0 {
        tasks.push(world.repairer(without));
    }
    let clock = world.clock.clone();
    run(&clock, tasks);
    let broken = |world: &World| world.store.contents.lock().unwrap().broken.clone();
    let hurt = world.store.contents.lock().unwrap().hurt.len();
    if without != Without::Nothing || broken(&world).is_some() {
        return (hurt, broken(&world));
    }
    world.store.calm();
    let repository = world.machine();
    let (store, lsn) = (
        world.store.clone(),
        world.lsn.load(std::sync::atomic::Ordering::Relaxed),
    );
    let calm = async move {
        if !matches!(
            repository.root().await,
            Err(esker_repository::Error::NoRoot { .. })
        ) {
            let bad = find_bad(&repository).await.unwrap();
            let repair = repository.repair(&bad, &copies(), &Progress::new()).await;
            let (repair, root) = repair.unwrap_or_else(|error| panic!("seed {seed}: {error}"));
            assert!(repair.marked.is_empty(), "seed {seed}: {:?}", repair.marked);
            assert!(
                find_bad(&repository).await.unwrap().is_empty(),
                "seed {seed}"
            );
            let hurts = store.contents.lock().unwrap().hurts();
            assert!(hurts.is_empty(), "seed {seed}: {hurts:?} are needed");
            assert!(root.retained_snapshots.iter().all(|r| r.damaged.is_empty()));
        }
        repository_is_fine(repository, store, clock, lsn + 100, seed).await;
    };
    run(&world.clock, vec![calm.boxed()]);
    (hurt, broken(&world))
}

#[test]
fn damage_under_any_faults_is_repaired_and_a_repair_does_no_harm() {
    let range = seeds::range(0..600);
    let seeds = range.end - range.start;
    let mut hurt = 0;
    for seed in range {
        let again = seeds::again(seed, "-p esker-repository --test simulation damage_under");
        let Ok((one, broken)) = std::panic::catch_unwind(|| simulate(seed, Without::Nothing))
        else {
            panic!("seed {seed} fails; {again}");
        };
        assert_eq!(broken, None, "seed {seed} fails; {again}");
        hurt += one as u64;
    }
    assert!(hurt > seeds, "only {hurt} objects were hurt");
    println!("{seeds} seeds: {hurt} objects damaged or lost");
}

fn is_caught(without: Without, seeds: u64, how: &str) {
    let caught = (0..seeds).find_map(|seed| {
        let broken = simulate(seed, without).1?;
        broken.contains(how).then_some((seed, broken))
    });
    let Some((seed, broken)) = caught else {
        panic!("a repair without {without:?} did no harm in {seeds} seeds");
    };
    println!("without {without:?}, seed {seed}: {broken}");
}

#[test]
fn a_repair_that_writes_an_object_again_is_caught() {
    is_caught(Without::NewKey, 300, "was replaced by something else");
}

#[test]
fn a_repair_without_an_intent_is_caught() {
    is_caught(Without::Intent, 1500, "");
}

#[test]
fn a_repair_that_removes_pins_is_caught() {
    is_caught(Without::Pins, 1500, "removed a pin");
}

#[test]
fn a_repair_that_brings_back_what_is_not_retained_is_caught() {
    is_caught(Without::RetainedAtSwap, 3000, "is kept and");
}
