//! The negative control: a rule that looks right and is wrong. It reuses a file if a HEAD finds it, names
//! files by content only, and sweeps objects that nothing refers to and that are older than a day.
//!
//! If the simulation did not find the loss under this rule, it would show nothing about Esker's.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use esker_repository::Digest;
use futures::{FutureExt as _, StreamExt as _};
use object_store::path::Path;
use object_store::{ObjectStoreExt as _, PutPayload};
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};

use crate::clock::{Clock, Unreliable, epoch, run};
use crate::store::{SimStore, Trouble};

const DAY: Duration = Duration::from_secs(24 * 3600);

/// What the root names: files by content. It is this simple so that only the rule can be the cause of a
/// loss.
type NaiveRoot = Vec<Digest>;

fn key(digest: Digest) -> Path {
    Path::from(format!("7/ssts/{digest}.sst"))
}

async fn read_root(store: &SimStore) -> NaiveRoot {
    let Ok(got) = store.get(&Path::from("7/naive.json")).await else {
        return Vec::new();
    };
    serde_json::from_slice(&got.bytes().await.unwrap()).unwrap()
}

async fn put(store: &SimStore, contents: &[u32]) {
    let mut root = Vec::new();
    for content in contents {
        let bytes = Bytes::from(format!("content {content}"));
        let digest = Digest::of(&bytes);
        if store.head(&key(digest)).await.is_err() {
            store
                .put(&key(digest), PutPayload::from_bytes(bytes))
                .await
                .unwrap();
        }
        root.push(digest);
    }
    let bytes = Bytes::from(serde_json::to_vec(&root).unwrap());
    let path = Path::from("7/naive.json");
    store
        .put(&path, PutPayload::from_bytes(bytes))
        .await
        .unwrap();
}

async fn sweep(store: &SimStore, clock: &Clock) {
    let root = read_root(store).await;
    let listed: Vec<_> = store.list_all().await;
    for meta in listed {
        let now = epoch() + clock.now();
        let modified_ms = meta.last_modified.timestamp_millis();
        let age_ms = now.unix_timestamp_nanos() / 1_000_000 - i128::from(modified_ms);
        let is_file = meta.location.as_ref().starts_with("7/ssts/");
        let referenced = root.iter().any(|digest| key(*digest) == meta.location);
        if is_file && !referenced && age_ms > DAY.as_millis() as i128 {
            let _ = store.delete(&meta.location).await;
        }
    }
}

impl SimStore {
    async fn list_all(&self) -> Vec<object_store::ObjectMeta> {
        use object_store::ObjectStore as _;
        self.list(Some(&Path::from("7")))
            .map(Result::unwrap)
            .collect()
            .await
    }
}

/// Whether the naive rule lost an object that its root names.
fn loses(seed: u64) -> bool {
    let clock = Clock::default();
    let store = SimStore::new(&clock, seed, Trouble { one_in: 0 });
    let mut dice = StdRng::seed_from_u64(seed);
    let lost = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let writer = {
        let (store, clock, lost) = (store.clone(), clock.clone(), lost.clone());
        let mut dice = StdRng::seed_from_u64(dice.random());
        async move {
            for _ in 0..30 {
                clock
                    .sleep(Duration::from_secs(dice.random_range(0..40_000)))
                    .await;
                let contents: Vec<u32> = (0..4).filter(|_| dice.random_range(0..2) == 0).collect();
                put(&store, &contents).await;
                for digest in read_root(&store).await {
                    if store.head(&key(digest)).await.is_err() {
                        lost.store(true, std::sync::atomic::Ordering::Relaxed);
                    }
                }
            }
        }
    };
    let sweeper = {
        let (store, clock) = (store.clone(), clock.clone());
        let mut dice = StdRng::seed_from_u64(dice.random());
        async move {
            for _ in 0..60 {
                clock
                    .sleep(Duration::from_secs(dice.random_range(0..20_000)))
                    .await;
                sweep(&store, &clock).await;
            }
        }
    };
    let tasks = vec![
        Unreliable::new(writer.boxed(), &clock, dice.random(), 40, 0).boxed(),
        Unreliable::new(sweeper.boxed(), &clock, dice.random(), 40, 0).boxed(),
    ];
    run(&clock, tasks);
    lost.load(std::sync::atomic::Ordering::Relaxed)
}

#[test]
fn the_naive_rule_is_caught_losing_data() {
    let lost = (0..300).filter(|seed| loses(*seed)).count();
    assert!(lost > 0, "the naive rule lost nothing in 300 seeds");
    println!("the naive rule loses data in {lost} of 300 seeds");
}
