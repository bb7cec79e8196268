//! Objects that a newer release has written: they are no damage, and nothing happens to them.

use std::num::NonZeroU32;

use esker_repository::prune::PruneOptions;
use esker_repository::repair::NoCopies;
use esker_repository::{Error, Options, Progress, Repository, Which};

use crate::fixture::{Place, options, some};

on_both!(
    a_snapshot_of_a_newer_release_is_neither_damaged_nor_deleted,
    a_snapshot_of_a_newer_release_is_not_restored_nor_passed_over,
    a_root_of_a_newer_release_is_no_damage,
);

fn retaining_one() -> Options {
    Options {
        num_retained: NonZeroU32::new(1),
        ..options()
    }
}

fn assert_newer<T>(result: Result<T, Error>) {
    match result {
        Err(error @ Error::NewerFormat { .. }) => {
            let shown = error.to_string();
            assert!(shown.contains("newer release"), "{shown}");
        }
        Err(error) => panic!("{error}"),
        Ok(_) => panic!("what is not known is not used"),
    }
}

/// A retained snapshot with an object of its own, whose description has a later version.
async fn newer_snapshot(place: &Place) -> String {
    let put = place
        .put_by(&place.with(retaining_one()), 1, &some(&[1]))
        .await;
    let metadata = put.snapshot.metadata();
    place.edit(&metadata, |json| json["version"] = "V3".into());
    put.snapshot.to_string()
}

async fn restored_newest(repository: &Repository, place: &Place) -> Result<(), Error> {
    let progress = Progress::new();
    let target = place.target();
    let restored = repository.restore(&Which::Newest, &target, &progress);
    restored.await.map(|_| ())
}

async fn a_snapshot_of_a_newer_release_is_neither_damaged_nor_deleted(place: Place) {
    let newer = newer_snapshot(&place).await;
    let before = place.keys();
    let repository = place.with(retaining_one());
    let plan = repository.scrub_plan().await.unwrap();
    assert_eq!((plan.bad, plan.objects.len()), (vec![], 0));
    let report = repository.verify(true, &Progress::new()).await.unwrap();
    assert!(report.damaged.is_empty(), "{:?}", report.damaged);
    assert_eq!(report.newer[0].snapshot, newer);
    assert!(!report.is_sound(), "it was not verified");
    let (bad, progress) = (report.bad_objects(), Progress::new());
    let repaired = repository.repair(&bad, &NoCopies, &progress);
    let (repair, root) = repaired.await.unwrap();
    assert!(repair.marked.is_empty() && repair.replaced.is_empty());
    assert_eq!(root.retained_snapshots[0].count_damaged(), 0);

    // Snapshots of this release come on top, one at a time, and reuse nothing of it.
    for lsn in 2..5 {
        let put = place.put_by(&repository, lsn, &some(&[1])).await;
        assert_eq!(put.files_uploaded, u64::from(lsn == 2));
        let retained = put.root.retained_snapshots.iter();
        let paths: Vec<_> = retained.map(|r| r.path.clone()).collect();
        assert_eq!(paths, [put.snapshot.to_string(), newer.clone()]);
        assert_newer(repository.sweep().await);
        assert!(place.keys().is_superset(&before));
    }
    // One of the same position does not replace it either.
    let again = some(&[1]);
    let put = repository
        .put(&place.checkpoint(1, &again), &Progress::new())
        .await;
    assert!(put.is_err() || place.keys().is_superset(&before));
    let prune = PruneOptions {
        keep: NonZeroU32::new(1),
        ..PruneOptions::default()
    };
    assert_newer(repository.plan_prune(&prune).await);

    // The release that knows the format goes on with it.
    let description = format!("{newer}/metadata.json");
    place.edit(&description, |json| json["version"] = "V1".into());
    let put = place
        .put_by(&place.with(retaining_one()), 9, &some(&[2]))
        .await;
    assert_eq!(put.root.retained_snapshots.len(), 1);
    place.with(retaining_one()).sweep().await.unwrap();
    place.assert_only_kept();
}

async fn a_snapshot_of_a_newer_release_is_not_restored_nor_passed_over(place: Place) {
    place.put(1, &some(&[1])).await;
    let put = place.put(2, &some(&[2])).await;
    let metadata = put.snapshot.metadata();
    place.edit(&metadata, |json| json["version"] = "V10".into());
    // The older one lacks what the newest has: nobody has decided to lose it.
    assert_newer(restored_newest(&place.repository(), &place).await);
    // A version that no release writes is damage.
    place.edit(&metadata, |json| json["version"] = "W3".into());
    restored_newest(&place.repository(), &place).await.unwrap();
}

async fn a_root_of_a_newer_release_is_no_damage(place: Place) {
    place.put(1, &some(&[1])).await;
    place.edit("latest.json", |json| json["version"] = "V3".into());
    let before = place.objects();
    let repository = place.repository();
    assert_newer(repository.root().await);
    assert_newer(repository.verify(false, &Progress::new()).await);
    assert_newer(repository.sweep().await);
    assert_newer(restored_newest(&repository, &place).await);
    let (checkpoint, progress) = (place.checkpoint(2, &some(&[2])), Progress::new());
    assert_newer(repository.put(&checkpoint, &progress).await);
    assert!(place.objects() == before, "nothing was written");
}
