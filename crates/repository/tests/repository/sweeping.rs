//! The sweep: it deletes what nothing refers to, and nothing else.

use std::time::Duration;

use esker_repository::sweep::Sweep;
use esker_repository::{Error, Options, Progress};
use serde_json::json;
use testkit_s3::{Fault, Matching, Operation};

use crate::fixture::{Clock, LINEAGE, Place, full, options, some};

on_both!(
    orphans_of_every_pattern_go,
    a_young_orphan_stays,
    a_live_intent_protects_what_it_uploads,
    an_intent_that_was_not_renewed_for_a_day_is_fenced,
    what_a_clock_registered_that_was_ahead_goes_a_day_later,
    what_others_registered_is_not_dated_back_after_a_jump_of_this_clock,
    without_a_least_age_an_orphan_from_the_future_goes,
    an_expired_pin_is_removed_and_a_live_one_counts,
    an_unreadable_description_stops_the_whole_sweep,
    foreign_files_anywhere_are_never_touched,
    a_sweep_of_what_is_clean_changes_nothing,
    more_than_one_page_is_swept,
);

async fn orphans_of_every_pattern_go(place: Place) {
    place.put(1, &some(&[1])).await;
    place.put_by(&place.with(full()), 2, &some(&[2])).await;
    let kept = place.keys();
    let dir = "lsn_00000000000000000009-snap_1abc";
    for key in [
        format!("ssts/{}{}.sst", "0".repeat(32), "0".repeat(16)),
        "ssts/00.sst".to_owned(),
        format!("{dir}/metadata.json"),
        format!("{dir}/000001.sst"),
        format!("{dir}/7.sst"),
    ] {
        place.write(&key, "orphan");
    }
    let sweep = place.repository().sweep().await.unwrap();
    assert_eq!((sweep.deleted, sweep.bytes), (5, 30), "{sweep:?}");
    assert_eq!(sweep.listed, kept.len() as u64 + 5);
    assert_eq!(place.keys(), kept);
    assert!(place.verify().await.is_sound());
}

async fn a_young_orphan_stays(place: Place) {
    place.put(1, &some(&[1])).await;
    place.write("ssts/00.sst", "orphan");
    let repository = place.with(Options {
        orphan_min_age: Duration::from_secs(86_400),
        ..options()
    });
    let sweep = repository.sweep().await.unwrap();
    assert_eq!((sweep.deleted, sweep.young, sweep.young_bytes), (0, 1, 6));
    let objects = place.objects();
    let stored = objects.values().map(|content| content.len() as u64);
    assert_eq!(sweep.listed_bytes, stored.sum::<u64>());
    place.clock.jump(2);
    let sweep = repository.sweep().await.unwrap();
    assert_eq!((sweep.deleted, sweep.young), (1, 0));
}

/// Registers an upload by hand. Returns the keys that it has uploaded and not committed.
fn half_done(place: &Place, renewed_at: &str) -> [String; 3] {
    let id = "snap_1UnderWay";
    place.edit("latest.json", |root| {
        root["intents"] = json!([{
            "snapshot_ids": ["snap_1Earlier", id], "generation": 4711, "node_name": "n2",
            "renewed_at": renewed_at,
        }]);
    });
    let dir = format!("lsn_{:020}-{id}", 9);
    let keys = [
        format!("ssts/{}{:016x}.sst", "a".repeat(32), 4711),
        format!("{dir}/000001.sst"),
        format!("{dir}/metadata.json"),
    ];
    for key in &keys {
        place.write(key, "half done");
    }
    keys
}

async fn a_live_intent_protects_what_it_uploads(place: Place) {
    place.put(1, &some(&[1])).await;
    let keys = half_done(&place, "2999-01-01T00:00:00Z");
    let sweep = place.repository().sweep().await.unwrap();
    assert_eq!((sweep.deleted, sweep.fenced), (0, 0), "{sweep:?}");
    assert!(keys.iter().all(|key| place.path(key).exists()));
}

async fn what_a_clock_registered_that_was_ahead_goes_a_day_later(place: Place) {
    let put = place.put(1, &some(&[1])).await;
    let ahead = place.with_clock(options(), Clock::wrong_by(3650));
    ahead.pin(&put.snapshot).await.unwrap();
    let keys = half_done(&place, "2999-01-01T00:00:00Z");
    let repository = place.repository();
    let sweep = repository.sweep().await.unwrap();
    let went = |sweep: &Sweep| (sweep.deleted, sweep.fenced, sweep.unpinned);
    assert_eq!(went(&sweep), (0, 0, 0), "{sweep:?}");
    assert!(keys.iter().all(|key| place.path(key).exists()));
    place.clock.jump(2);
    let sweep = repository.sweep().await.unwrap();
    assert_eq!(went(&sweep), (3, 1, 1), "{sweep:?}");
    place.assert_only_kept();
}

async fn what_others_registered_is_not_dated_back_after_a_jump_of_this_clock(place: Place) {
    let put = place.put(1, &some(&[1])).await;
    let repository = place.repository();
    repository.pin(&put.snapshot).await.unwrap();
    half_done(&place, "2999-01-01T00:00:00Z");
    // This sweep gives the intent the present date.
    repository.sweep().await.unwrap();
    let root = place.json("latest.json");
    assert_ne!(root["intents"][0]["renewed_at"], "2999-01-01T00:00:00Z");
    place.clock.let_ages_be_behind(10);
    repository.sweep().await.unwrap();
    assert_eq!(place.json("latest.json"), root);
}

async fn without_a_least_age_an_orphan_from_the_future_goes(place: Place) {
    place.put(1, &some(&[1])).await;
    place.write("ssts/00.sst", "orphan");
    let behind = place.with_clock(options(), Clock::wrong_by(-100));
    assert_eq!(behind.sweep().await.unwrap().deleted, 1);
    place.assert_only_kept();
}

async fn an_intent_that_was_not_renewed_for_a_day_is_fenced(place: Place) {
    place.put(1, &some(&[1])).await;
    half_done(&place, "2020-01-01T00:00:00Z");
    let sweep = place.repository().sweep().await.unwrap();
    assert_eq!((sweep.deleted, sweep.fenced), (3, 1), "{sweep:?}");
    assert_eq!(place.json("latest.json").get("intents"), None);
    place.assert_only_kept();
}

async fn an_expired_pin_is_removed_and_a_live_one_counts(place: Place) {
    let one = place.with(Options {
        num_retained: std::num::NonZeroU32::new(1),
        ..options()
    });
    let put = place.put_by(&one, 1, &some(&[1])).await;
    one.pin(&put.snapshot).await.unwrap();
    place.put_by(&one, 2, &some(&[2])).await;
    let sweep = one.sweep().await.unwrap();
    assert_eq!((sweep.deleted, sweep.unpinned), (0, 0));
    place.clock.jump(1);
    let sweep = one.sweep().await.unwrap();
    assert_eq!((sweep.deleted, sweep.unpinned), (2, 1));
    place.assert_only_kept();
}

async fn an_unreadable_description_stops_the_whole_sweep(place: Place) {
    let put = place.put(1, &some(&[1])).await;
    place.put(2, &some(&[2])).await;
    place.write("ssts/00.sst", "orphan");
    let sound = std::fs::read(place.path(&put.snapshot.metadata())).unwrap();
    for bad in [&b""[..], b"{", b"{\"version\":\"V9\"}"] {
        place.write(&put.snapshot.metadata(), bad);
        let before = place.objects();
        let swept = place.repository().sweep().await;
        match bad.contains(&b'V') {
            true => assert!(matches!(swept, Err(Error::NewerFormat { .. })), "{swept:?}"),
            false => assert!(matches!(swept, Err(Error::Damaged { .. })), "{swept:?}"),
        }
        assert_eq!(place.objects(), before);
    }
    place.remove(&put.snapshot.metadata());
    let swept = place.repository().sweep().await;
    assert!(matches!(swept, Err(Error::Missing { .. })), "{swept:?}");
    assert!(place.path("ssts/00.sst").exists());
    place.write(&put.snapshot.metadata(), sound);
    assert_eq!(place.repository().sweep().await.unwrap().deleted, 1);
}

async fn foreign_files_anywhere_are_never_touched(place: Place) {
    let put = place.put_by(&place.with(full()), 1, &some(&[1])).await;
    let dead = "lsn_00000000000000000009-snap_1abc";
    let foreign = [
        "readme.txt".to_owned(),
        "latest.json.bak".to_owned(),
        "ssts/readme".to_owned(),
        "ssts/00ff.sst.tmp".to_owned(),
        "ssts/ABC.sst".to_owned(),
        "ssts/sub/00ff.sst".to_owned(),
        "ssts/with space %2F.sst".to_owned(),
        format!("{}/notes.txt", put.snapshot),
        format!("{dead}/CURRENT"),
        format!("{dead}/sub/000001.sst"),
        format!("{dead}/metadata.json~"),
        "lsn_9-snap_1abc/metadata.json".to_owned(),
        "snapshots/metadata.json".to_owned(),
        "日本/000001.sst".to_owned(),
    ];
    for key in &foreign {
        place.write(key, "mine");
    }
    place.write(&format!("{dead}/metadata.json"), "orphan");
    place.write(&format!("{dead}/000001.sst"), "orphan");
    // Another partition, and objects beside the partitions.
    let outside = place.dir.parent().unwrap();
    std::fs::create_dir_all(outside.join("77/ssts")).unwrap();
    std::fs::write(outside.join("77/ssts/00.sst"), "of 77").unwrap();
    std::fs::write(outside.join("notes"), "mine").unwrap();
    let sweep = place.repository().sweep().await.unwrap();
    assert_eq!(sweep.deleted, 2, "{sweep:?}");
    assert_eq!(sweep.foreign, foreign.len() as u64);
    for lsn in 2..5 {
        place.put_by(&place.with(full()), lsn, &some(&[2])).await;
        place.repository().sweep().await.unwrap();
    }
    assert!(
        !place.path(&put.snapshot.metadata()).exists(),
        "it was evicted"
    );
    for key in &foreign {
        assert_eq!(place.objects()[key], b"mine", "{key}");
    }
    assert_eq!(
        std::fs::read(outside.join("77/ssts/00.sst")).unwrap(),
        b"of 77"
    );
    assert_eq!(std::fs::read(outside.join("notes")).unwrap(), b"mine");
}

async fn a_sweep_of_what_is_clean_changes_nothing(place: Place) {
    place.put(1, &some(&[1])).await;
    let before = place.objects();
    for _ in 0..2 {
        assert_eq!(place.repository().sweep().await.unwrap().deleted, 0);
    }
    assert_eq!(place.objects(), before, "not even the root is swapped");
}

async fn more_than_one_page_is_swept(place: Place) {
    place.put(1, &some(&[1])).await;
    for number in 0..2300 {
        place.write(&format!("ssts/{number:05x}.sst"), "orphan");
    }
    let sweep = place.repository().sweep().await.unwrap();
    assert_eq!((sweep.deleted, sweep.failed), (2300, 0));
    place.assert_only_kept();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sweep_costs_its_pages_one_root_unknown_descriptions_and_bulk_deletes() {
    let place = Place::on_s3().await;
    place.put(1, &some(&[1])).await;
    place.put(2, &some(&[2])).await;
    for number in 0..2100 {
        place.write(&format!("ssts/{number:05x}.sst"), "orphan");
    }
    let repository = place.repository();
    let server = place.server();
    server.forget();
    repository.sweep().await.unwrap();
    assert_eq!(server.requests(Operation::List), 3, "pages of a thousand");
    assert_eq!(server.requests(Operation::Get), 1 + 2);
    assert_eq!(server.requests(Operation::BulkDelete), 3);
    assert_eq!(server.total(), 9);
    server.forget();
    repository.sweep().await.unwrap();
    assert_eq!(
        server.total(),
        2,
        "a list and the root; what was read is known"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_list_comes_before_the_root() {
    let place = Place::on_s3().await;
    place.put(1, &some(&[1])).await;
    place.server().forget();
    place.repository().sweep().await.unwrap();
    let order: Vec<_> = place.server().log().iter().map(|r| r.operation).collect();
    assert_eq!(order, [Operation::List, Operation::Get, Operation::Get]);
}

/// A whole batch is answered with one error; the keys of the next batch have answers of their own.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_could_not_be_deleted_is_counted_and_goes_the_next_time() {
    let place = Place::on_s3().await;
    place.put(1, &some(&[1])).await;
    for number in 0..1500 {
        place.write(&format!("ssts/{number:05x}.sst"), "orphan");
    }
    let faults = place.server().faults();
    let delete = Matching::operation(Operation::BulkDelete);
    faults.always(delete.clone(), Fault::Status(403));
    let sweep = place.repository().sweep().await.unwrap();
    assert_eq!((sweep.deleted, sweep.failed), (0, 1500), "{sweep:?}");
    assert_eq!(place.keys().len() - place.kept_keys().len(), 1500);
    faults.clear();
    faults.next(4, delete.clone(), Fault::Status(503));
    let sweep = place.repository().sweep().await.unwrap();
    let left = place.keys().len() - place.kept_keys().len();
    assert_eq!(
        sweep.failed as usize, left,
        "each key is counted as what it is"
    );
    assert_eq!(sweep.deleted as usize, 1500 - left);
    faults.clear();
    faults.next(2, delete, Fault::Status(503));
    let sweep = place.repository().sweep().await.unwrap();
    assert_eq!((sweep.deleted as usize, sweep.failed), (left, 0));
    place.assert_only_kept();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_description_outlives_files_that_could_not_be_deleted() {
    let place = Place::on_s3().await;
    place.put(1, &some(&[1])).await;
    let dead = "lsn_00000000000000000009-snap_1abc";
    for name in ["metadata.json", "000001.sst", "000002.sst"] {
        place.write(&format!("{dead}/{name}"), "orphan");
    }
    place.server().faults().keep("000002.sst");
    let sweep = place.repository().sweep().await.unwrap();
    assert_eq!((sweep.deleted, sweep.failed), (1, 1), "{sweep:?}");
    assert!(place.path(&format!("{dead}/metadata.json")).exists());
    place.server().faults().clear();
    assert_eq!(place.repository().sweep().await.unwrap().deleted, 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sweep_beside_an_upload_takes_nothing_from_it() {
    let place = Place::on_s3().await;
    place.put(1, &some(&[1])).await;
    let slow = Matching::operation(Operation::Put).key("metadata.json");
    let late = Fault::Late(Duration::from_millis(300));
    place.server().faults().next(1, slow, late);
    let mut checkpoint = place.checkpoint(2, &some(&[1, 2]));
    checkpoint.lineage = Some(LINEAGE);
    let repository = place.repository();
    let progress = Progress::new();
    let put = repository.put(&checkpoint, &progress);
    let sweep = async {
        tokio::time::sleep(Duration::from_millis(150)).await;
        place.repository().sweep().await.unwrap()
    };
    let (put, sweep) = futures::future::join(put, sweep).await;
    assert_eq!(put.unwrap().files_uploaded, 1);
    assert_eq!(sweep.deleted, 0);
    assert!(place.verify().await.is_sound());
}
