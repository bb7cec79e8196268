//! Prune: a plan that can be read first, and that deletes nothing that is kept.

use std::num::NonZeroU32;

use esker_repository::prune::{PruneOptions, PrunePlan, PrunedObject};
use esker_repository::sweep::OrphanReason;
use esker_repository::{Error, LineageId, Lsn};

use crate::fixture::{LINEAGE, Place, some};

on_both!(
    a_plan_lists_what_goes_and_applying_it_does_just_that,
    a_plan_is_refused_after_any_swap,
    a_doctored_plan_deletes_nothing_that_is_kept_or_foreign,
    fewer_are_retained_if_that_is_asked_for,
    abandoned_snapshots_go_if_that_is_asked_for,
    a_plan_that_leaves_nothing_is_refused,
);

async fn a_plan_lists_what_goes_and_applying_it_does_just_that(place: Place) {
    place.put(1, &some(&[1])).await;
    let kept = place.keys();
    place.write("ssts/00.sst", "orphan");
    place.write("lsn_00000000000000000009-snap_1abc/metadata.json", "dead");
    place.write("readme", "mine");
    let repository = place.repository();
    let before = place.objects();
    let plan = repository
        .plan_prune(&PruneOptions::default())
        .await
        .unwrap();
    assert_eq!(place.objects(), before, "a plan changes nothing");
    let mut planned: Vec<_> = plan.objects.iter().map(|o| (&*o.key, o.why)).collect();
    planned.sort_by_key(|(key, _)| *key);
    assert_eq!(
        planned,
        [
            (
                "lsn_00000000000000000009-snap_1abc/metadata.json",
                OrphanReason::UnretainedSnapshot
            ),
            ("ssts/00.sst", OrphanReason::UnreferencedFile),
        ]
    );
    assert_eq!((plan.bytes, plan.young), (10, 0));
    // The plan is read back from JSON.
    let text = serde_json::to_string(&plan).unwrap();
    let plan: PrunePlan = serde_json::from_str(&text).unwrap();
    // An object that was written later is not in the plan.
    place.write("ssts/01.sst", "later");
    let pruned = repository.prune(&plan).await.unwrap();
    assert_eq!((pruned.deleted, pruned.bytes, pruned.failed), (2, 10, 0));
    let mut left = kept;
    left.extend(["readme".to_owned(), "ssts/01.sst".to_owned()]);
    assert_eq!(place.keys(), left);
}

async fn a_plan_is_refused_after_any_swap(place: Place) {
    let put = place.put(1, &some(&[1])).await;
    let repository = place.repository();
    for _ in 0..2 {
        place.write("ssts/00.sst", "orphan");
        let plan = repository
            .plan_prune(&PruneOptions::default())
            .await
            .unwrap();
        repository.pin(&put.snapshot).await.unwrap();
        let before = place.objects();
        let pruned = repository.prune(&plan).await;
        let Err(Error::RootMoved { planned, actual }) = pruned else {
            panic!("{pruned:?}");
        };
        assert_eq!(actual, planned + 1);
        assert_eq!(place.objects(), before);
    }
}

async fn a_doctored_plan_deletes_nothing_that_is_kept_or_foreign(place: Place) {
    place.put(1, &some(&[1, 2])).await;
    place.put(2, &some(&[1, 3])).await;
    place.write("readme", "mine");
    place.write("ssts/notes.txt", "mine");
    place.edit("latest.json", |root| {
        root["intents"] = serde_json::json!([{
            "snapshot_ids": ["snap_1abc"], "generation": 4711, "node_name": "n2",
            "renewed_at": "2999-01-01T00:00:00Z",
        }]);
    });
    let under_way = format!("ssts/{}{:016x}.sst", "a".repeat(32), 4711);
    place.write(&under_way, "under way");
    let repository = place.repository();
    let mut plan = repository
        .plan_prune(&PruneOptions::default())
        .await
        .unwrap();
    assert!(plan.objects.is_empty());
    let before = place.objects();
    let outside = [
        "../8/latest.json",
        "/etc/passwd",
        "",
        "ssts",
        "..",
        "ssts/../latest.json",
    ];
    for key in before.keys().map(String::as_str).chain(outside) {
        plan.objects.push(PrunedObject {
            key: key.to_owned(),
            size: 1,
            modified_ms: 0,
            why: OrphanReason::UnreferencedFile,
        });
    }
    let pruned = repository.prune(&plan).await.unwrap();
    assert_eq!((pruned.deleted, pruned.failed), (0, 0), "{pruned:?}");
    assert_eq!(place.objects(), before);
}

async fn fewer_are_retained_if_that_is_asked_for(place: Place) {
    let puts = [
        place.put(1, &some(&[1, 11])).await,
        place.put(2, &some(&[1, 12])).await,
        place.put(3, &some(&[1, 13])).await,
    ];
    let repository = place.repository();
    let one = PruneOptions {
        keep: NonZeroU32::new(1),
        ..PruneOptions::default()
    };
    let plan = repository.plan_prune(&one).await.unwrap();
    let released = vec![puts[1].snapshot.to_string(), puts[0].snapshot.to_string()];
    assert_eq!(plan.released, released);
    assert_eq!((plan.retained, plan.objects.len()), (1, 4));
    let pruned = repository.prune(&plan).await.unwrap();
    assert_eq!((pruned.released, pruned.deleted), (released, 4));
    place.assert_only_kept();
    assert!(place.verify().await.is_sound());
    // The second execution finds another root.
    let again = repository.prune(&plan).await;
    assert!(matches!(again, Err(Error::RootMoved { .. })), "{again:?}");
}

async fn abandoned_snapshots_go_if_that_is_asked_for(place: Place) {
    place.put(1, &some(&[1])).await;
    let above = place.put(2, &some(&[1, 2])).await;
    let repository = place.repository();
    repository
        .fork(Some(LINEAGE), Lsn(1), LineageId(2))
        .await
        .unwrap();
    let plan = repository
        .plan_prune(&PruneOptions::default())
        .await
        .unwrap();
    assert!(plan.objects.is_empty() && plan.released.is_empty());
    let options = PruneOptions {
        abandoned: true,
        ..PruneOptions::default()
    };
    let plan = repository.plan_prune(&options).await.unwrap();
    assert_eq!(plan.released, [above.snapshot.to_string()]);
    assert_eq!(repository.prune(&plan).await.unwrap().deleted, 2);
    place.assert_only_kept();
}

async fn a_plan_that_leaves_nothing_is_refused(place: Place) {
    let put = place.put(1, &some(&[1])).await;
    let repository = place.repository();
    let mut plan = repository
        .plan_prune(&PruneOptions::default())
        .await
        .unwrap();
    plan.released = vec![put.snapshot.to_string()];
    let before = place.objects();
    let pruned = repository.prune(&plan).await;
    assert!(matches!(pruned, Err(Error::Invalid(_))), "{pruned:?}");
    assert_eq!(place.objects(), before);
}
