//! Large descriptions, which repositories share that are opened for one request each.

use std::num::NonZeroU32;
use std::sync::Arc;

use esker_repository::{DescriptionCache, Error, Options, Repository, SnapshotDir};
use serde_json::json;
use testkit_s3::{Fault, Matching, Operation};

use crate::fixture::{Place, options, some};

on_both!(
    a_shared_description_is_what_the_store_has,
    the_description_of_a_snapshot_that_was_pruned_is_missing,
);

/// Files that make a description large: more than a megabyte.
const MANY: usize = 4000;

/// What one request opens.
fn request(place: &Place, cache: &DescriptionCache) -> Repository {
    place.repository().with_descriptions(cache)
}

/// Gives the description of a snapshot so many files more.
fn enlarge(place: &Place, dir: &SnapshotDir, count: usize) {
    place.edit(&dir.metadata(), |metadata| {
        let named = |number: usize| format!("/{:07}.sst", 1_000_000 + number);
        for number in 0..count {
            let (name, digest) = (named(number), format!("{number:032x}"));
            let mut file = metadata["files"][0].clone();
            file["name"] = json!(name);
            file["start_key"] = json!("00".repeat(60));
            metadata["files"].as_array_mut().unwrap().push(file);
            metadata["checksums"][&name] = json!(digest);
            metadata["file_keys"][&name] = json!(format!("ssts/{digest}{:016x}.sst", 1));
        }
    });
    let bytes = std::fs::metadata(place.path(&dir.metadata()))
        .unwrap()
        .len();
    assert!(
        count < MANY || bytes > 1 << 20,
        "{bytes} bytes are not many"
    );
}

async fn count_files(repository: &Repository, dir: &SnapshotDir) -> Result<usize, Error> {
    Ok(repository.describe(dir).await?.files.len())
}

/// Requests for the description of a snapshot.
fn requests_for(place: &Place, dir: &SnapshotDir, operation: Operation) -> usize {
    let log = place.server().log();
    let of = log.iter().filter(|it| it.operation == operation);
    of.filter(|it| it.key.ends_with(&dir.metadata())).count()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pages_of_a_large_snapshot_fetch_its_description_once() {
    let place = Place::on_s3().await;
    let large = place.put(1, &some(&[1])).await.snapshot;
    let small = place.put(2, &some(&[1])).await.snapshot;
    enlarge(&place, &large, MANY);
    let cache = DescriptionCache::default();
    place.server().forget();
    const PAGES: usize = 7;
    for page in 0..PAGES {
        let repository = request(&place, &cache);
        let root = repository.root().await.unwrap();
        let metadata = repository.describe(&large).await.unwrap();
        let files = repository.files(&root, &metadata, page * 100, 100).await;
        assert_eq!(files.unwrap().files.len(), 100);
        assert_eq!(repository.inventory().await.unwrap().snapshots.len(), 2);
    }
    assert_eq!(requests_for(&place, &large, Operation::Get), 1);
    assert_eq!(requests_for(&place, &large, Operation::Head), PAGES - 1);
    // A small one costs little, and is looked at anew each time.
    assert_eq!(requests_for(&place, &small, Operation::Get), PAGES);
    // Nobody looks any more.
    cache.forget_unused();
    cache.forget_unused();
    assert!(count_files(&request(&place, &cache), &large).await.is_ok());
    assert_eq!(requests_for(&place, &large, Operation::Get), 2);
}

async fn a_shared_description_is_what_the_store_has(place: Place) {
    let dir = place.put(1, &some(&[1])).await.snapshot;
    enlarge(&place, &dir, MANY);
    let cache = DescriptionCache::default();
    let count = async || count_files(&request(&place, &cache), &dir).await;
    assert_eq!(count().await.unwrap(), MANY + 1);
    assert_eq!(count().await.unwrap(), MANY + 1, "from memory");
    place.edit(&dir.metadata(), |metadata| {
        let files = metadata["files"].as_array_mut().unwrap();
        files.truncate(MANY);
    });
    assert_eq!(count().await.unwrap(), MANY, "what the store has now");
    place.damage(&dir.metadata(), |bytes| bytes.truncate(1 << 20));
    let damaged = count().await;
    assert!(matches!(damaged, Err(Error::Damaged { .. })), "{damaged:?}");
    place.remove(&dir.metadata());
    let missing = count().await;
    assert!(matches!(missing, Err(Error::Missing { .. })), "{missing:?}");
}

async fn the_description_of_a_snapshot_that_was_pruned_is_missing(place: Place) {
    let two = place.with(Options {
        num_retained: NonZeroU32::new(2),
        ..options()
    });
    let dir = place.put_by(&two, 1, &some(&[1])).await.snapshot;
    enlarge(&place, &dir, MANY);
    let cache = DescriptionCache::default();
    for _ in 0..2 {
        let count = count_files(&request(&place, &cache), &dir).await;
        assert_eq!(count.unwrap(), MANY + 1);
    }
    // The third one takes its place, and its description is deleted.
    place.put_by(&two, 2, &some(&[2])).await;
    place.put_by(&two, 3, &some(&[3])).await;
    let repository = request(&place, &cache);
    let missing = count_files(&repository, &dir).await;
    assert!(matches!(missing, Err(Error::Missing { .. })), "{missing:?}");
    let kept = repository.inventory().await.unwrap().snapshots;
    assert_eq!(kept.len(), 2, "{kept:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn while_the_store_does_not_answer_a_description_in_memory_is_neither_there_nor_missing() {
    let place = Place::on_s3().await;
    let dir = place.put(1, &some(&[1])).await.snapshot;
    enlarge(&place, &dir, MANY);
    let cache = DescriptionCache::default();
    let count = async || count_files(&request(&place, &cache), &dir).await;
    assert_eq!(count().await.unwrap(), MANY + 1);
    let faults = place.server().faults();
    faults.always(Matching::any(), Fault::Status(503));
    let unknown = count().await.unwrap_err();
    assert!(!unknown.is_damage(), "{unknown:?}");
    faults.clear();
    place.server().forget();
    assert_eq!(count().await.unwrap(), MANY + 1);
    assert_eq!(requests_for(&place, &dir, Operation::Get), 0);
}

/// Those who look at once each fetch it, and one parses it for all.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_who_look_at_once_share_one_description() {
    let place = Place::in_a_directory();
    let dir = place.put(1, &some(&[1])).await.snapshot;
    enlarge(&place, &dir, MANY);
    let cache = DescriptionCache::default();
    let looks = (0..16).map(|_| {
        let (repository, dir) = (request(&place, &cache), dir.clone());
        tokio::spawn(async move { repository.describe(&dir).await.unwrap() })
    });
    let looks: Vec<_> = looks.collect();
    let mut seen = Vec::new();
    for look in looks {
        seen.push(look.await.unwrap());
    }
    let first = request(&place, &cache).describe(&dir).await.unwrap();
    assert!(seen.iter().all(|it| Arc::ptr_eq(it, &first)));
}

/// The description of another cluster is refused from memory as from the store.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_description_in_memory_is_for_its_own_cluster_alone() {
    let place = Place::in_a_directory();
    let dir = place.put(1, &some(&[1])).await.snapshot;
    enlarge(&place, &dir, MANY);
    let cache = DescriptionCache::default();
    let reader = Options {
        cluster: None,
        ..options()
    };
    let reader = place.with(reader).with_descriptions(&cache);
    assert_eq!(count_files(&reader, &dir).await.unwrap(), MANY + 1);
    let mut theirs = options();
    theirs.cluster.as_mut().unwrap().name = "theirs".to_owned();
    let theirs = place.with(theirs).with_descriptions(&cache);
    let refused = count_files(&theirs, &dir).await;
    assert!(
        matches!(refused, Err(Error::OtherCluster { .. })),
        "{refused:?}"
    );
}
