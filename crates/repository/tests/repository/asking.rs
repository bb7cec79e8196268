//! Queries: why an object is kept, and how two snapshots differ.

use std::num::NonZeroU32;
use std::time::Duration;

use esker_repository::inventory::ProblemKind;
use esker_repository::sweep::OrphanReason;
use esker_repository::why::{Holder, Verdict};
use esker_repository::{LineageId, Lsn, Options};
use serde_json::json;

use crate::fixture::{LINEAGE, Place, full, options, some};

on_both!(
    every_verdict_has_its_reason,
    every_holder_is_named,
    a_difference_is_told_file_by_file,
    files_come_page_by_page_with_who_shares_them,
    an_unusable_description_says_what_is_wrong_with_it,
);

async fn every_verdict_has_its_reason(place: Place) {
    let put = place.put(1, &some(&[1])).await;
    let key = place.files_of(&put.snapshot)[0].clone();
    place.write("readme", "mine");
    place.write("ssts/00.sst", "orphan");
    place.write("lsn_00000000000000000009-snap_1abc/metadata.json", "dead");
    let repository = place.repository();
    let verdict = async |key: &str| repository.why(key).await.unwrap().verdict;
    assert_eq!(verdict("latest.json").await, Verdict::Root);
    assert_eq!(verdict("readme").await, Verdict::Foreign);
    assert_eq!(verdict(&key).await, Verdict::Kept);
    assert_eq!(
        verdict(&repository.display_url(&key)).await,
        Verdict::Kept,
        "by its URL"
    );
    assert_eq!(verdict(&put.snapshot.metadata()).await, Verdict::Kept);
    assert_eq!(verdict("ssts/01.sst").await, Verdict::Absent);
    assert_eq!(verdict("").await, Verdict::Absent);
    let why = OrphanReason::UnreferencedFile;
    assert_eq!(verdict("ssts/00.sst").await, Verdict::Orphan { why });
    let why = OrphanReason::UnretainedSnapshot;
    let dead = "lsn_00000000000000000009-snap_1abc/metadata.json";
    assert_eq!(verdict(dead).await, Verdict::Orphan { why });
    let patient = place.with(Options {
        orphan_min_age: Duration::from_secs(1000),
        ..options()
    });
    let answer = patient.why("ssts/00.sst").await.unwrap();
    assert_eq!(answer.size, Some(6));
    assert!(
        matches!(
            answer.verdict,
            Verdict::TooYoung {
                seconds_left: 900..=1000,
                ..
            }
        ),
        "{answer:?}"
    );
    place.remove(&key);
    let answer = repository.why(&key).await.unwrap();
    assert_eq!((answer.size, answer.verdict), (None, Verdict::Lost));
    assert_eq!(answer.kept_by.len(), 1, "and it says who misses it");
}

async fn every_holder_is_named(place: Place) {
    let repository = place.with(Options {
        num_retained: NonZeroU32::new(2),
        ..options()
    });
    let pinned = place.put_by(&repository, 1, &some(&[1, 1])).await;
    let pin = repository.pin(&pinned.snapshot).await.unwrap();
    let retained = place.put_by(&repository, 2, &some(&[1])).await;
    let abandoned = place.put_by(&repository, 3, &some(&[1])).await;
    repository
        .fork(Some(LINEAGE), Lsn(2), LineageId(2))
        .await
        .unwrap();
    let key = place.files_of(&retained.snapshot)[0].clone();
    let answer = repository.why(&key).await.unwrap();
    let file = "/000001.sst".to_owned();
    assert_eq!(
        answer.kept_by,
        [
            Holder::Retained {
                snapshot: retained.snapshot.to_string(),
                files: vec![file.clone()],
            },
            Holder::Pinned {
                snapshot: pinned.snapshot.to_string(),
                pin,
                files: vec![file.clone(), "/000002.sst".to_owned()],
            },
            Holder::Abandoned {
                snapshot: abandoned.snapshot.to_string(),
                files: vec![file],
            },
        ]
    );
    place.edit("latest.json", |root| {
        root["intents"] = json!([{
            "snapshot_ids": ["snap_1abc"], "generation": 4711, "node_name": "n2",
            "renewed_at": "2999-01-01T00:00:00Z",
        }]);
    });
    let shared = format!("ssts/{}{:016x}.sst", "a".repeat(32), 4711);
    for key in [&*shared, "lsn_00000000000000000009-snap_1abc/000001.sst"] {
        place.write(key, "under way");
        let answer = repository.why(key).await.unwrap();
        assert_eq!(answer.verdict, Verdict::Kept);
        let [
            Holder::Intent {
                generation,
                node_name,
            },
        ] = &answer.kept_by[..]
        else {
            panic!("{answer:?}");
        };
        assert_eq!((generation.0, &**node_name), (4711, "n2"));
    }
}

async fn a_difference_is_told_file_by_file(place: Place) {
    let a = place.put(1, &some(&[1, 2, 3])).await;
    // The snapshot is of another kind; only contents are compared.
    let mut files = some(&[1, 9, 3]);
    files.remove("000003.sst");
    files.extend(some(&[0, 0, 0, 4]).split_off("000004.sst"));
    let b = place.put_by(&place.with(full()), 2, &files).await;
    let diff = place
        .repository()
        .diff(&a.snapshot, &b.snapshot)
        .await
        .unwrap();
    let names = |files: &[esker_repository::why::FileSize]| -> Vec<(String, u64)> {
        files.iter().map(|f| (f.name.clone(), f.size)).collect()
    };
    assert_eq!(names(&diff.added), [("/000004.sst".to_owned(), 504)]);
    assert_eq!(names(&diff.removed), [("/000003.sst".to_owned(), 503)]);
    assert_eq!(names(&diff.changed), [("/000002.sst".to_owned(), 509)]);
    assert_eq!((diff.same, diff.same_bytes), (1, 501));
    assert_eq!(
        (diff.added_bytes, diff.removed_bytes, diff.changed_bytes),
        (504, 503, 509)
    );
    assert_eq!((diff.old_lsn, diff.new_lsn), (Lsn(1), Lsn(2)));
}

async fn files_come_page_by_page_with_who_shares_them(place: Place) {
    let repository = place.with(Options {
        num_retained: NonZeroU32::new(9),
        ..options()
    });
    let first = place.put_by(&repository, 1, &some(&[1, 2, 2])).await;
    let second = place.put_by(&repository, 2, &some(&[1, 3])).await;
    let root = repository.root().await.unwrap();
    let metadata = repository.describe(&first.snapshot).await.unwrap();
    let all = repository.files(&root, &metadata, 0, 10).await.unwrap();
    assert_eq!((all.files.len(), all.next), (3, None));
    let shared: Vec<u64> = all.files.iter().map(|file| file.shared_by).collect();
    assert_eq!(shared, [1, 0, 0], "{all:?}");
    assert_eq!(all.files[0].sharers, [second.snapshot.to_string()]);
    assert_eq!(all.files[0].key, metadata.key_of(&metadata.files[0]));
    let page = repository.files(&root, &metadata, 1, 1).await.unwrap();
    assert_eq!((&page.files[..], page.next), (&all.files[1..2], Some(2)));
    let beyond = repository.files(&root, &metadata, 9, 1).await.unwrap();
    assert_eq!((beyond.files.len(), beyond.next), (0, None));
    // It is not known what one shares that cannot be described.
    place.write(&second.snapshot.metadata(), "{");
    let repository = place.repository();
    let page = repository.files(&root, &metadata, 0, 10).await.unwrap();
    assert_eq!(page.undescribed, [second.snapshot.to_string()]);
}

async fn an_unusable_description_says_what_is_wrong_with_it(place: Place) {
    let put = place.put(1, &some(&[1])).await;
    let kind = async || {
        let inventory = place.repository().inventory().await.unwrap();
        inventory.snapshots[0].problem_kind
    };
    assert_eq!(kind().await, None);
    place.write(&put.snapshot.metadata(), "{");
    assert_eq!(kind().await, Some(ProblemKind::Damaged));
    place.remove(&put.snapshot.metadata());
    assert_eq!(kind().await, Some(ProblemKind::Missing));
}
