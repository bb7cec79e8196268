//! Restoring: every byte checked, or an older snapshot and the reason.

use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use esker_repository::env::{Env, System};
use esker_repository::restore::Checked;
use esker_repository::{
    Error, LineageId, Lsn, Options, Progress, Repository, Retries, Root, Which,
};
use futures::future::BoxFuture;
use serde_json::json;
use testkit_s3::{Fault, Matching, Operation};
use time::OffsetDateTime;

use crate::fixture::{
    Files, LINEAGE, PARTITION, Place, bytes, full, options, read_dir, retries, some, until,
};

on_both!(
    what_was_put_comes_back_byte_for_byte,
    any_kept_snapshot_can_be_chosen,
    a_snapshot_is_found_by_id_directory_or_position,
    a_flipped_byte_is_found_and_the_next_older_snapshot_is_used,
    a_truncated_missing_or_undescribed_snapshot_is_passed_over,
    one_that_was_asked_for_is_not_replaced_by_another,
    when_none_is_usable_each_reason_is_given,
    a_target_that_holds_something_is_left_alone,
    a_partial_directory_that_no_restore_left_is_left_alone,
    a_partial_directory_is_gone_on_with,
    one_that_ends_anywhere_near_its_end_is_gone_on_with,
    a_partial_directory_of_another_snapshot_is_begun_anew,
    a_directory_that_exists_stays_and_is_restored_inside,
    one_that_ends_anywhere_inside_a_directory_is_gone_on_with,
    what_is_put_into_a_directory_during_a_restore_is_left_alone,
    a_pin_holds_while_it_reads_and_goes_afterwards,
    a_restore_that_fails_leaves_no_pin,
    names_that_lead_out_of_the_directory_are_refused,
    a_restore_of_an_abandoned_snapshot_works,
);

async fn what_was_put_comes_back_byte_for_byte(place: Place) {
    let mut files = some(&[1, 2, 3]);
    files.insert("000009.sst".to_owned(), bytes(9, 3 << 20));
    for (lsn, options) in [(1, options()), (2, full())] {
        let put = place.put_by(&place.with(options), lsn, &files).await;
        let (restored, there) = place.restore(Which::Newest).await;
        assert!(there == files, "and nothing else is in it");
        assert_eq!(restored.metadata().dir(), put.snapshot);
        assert_eq!(restored.checked(), Checked::Checksums);
        assert!(restored.passed_over().is_empty());
        assert!(restored.unpinned().is_none());
        assert_eq!(restored.resumed(), 0);
    }
}

async fn any_kept_snapshot_can_be_chosen(place: Place) {
    let mut puts = Vec::new();
    for lsn in 1..=3 {
        puts.push(place.put(lsn, &some(&[lsn])).await);
    }
    for (lsn, put) in (1..=3).zip(&puts) {
        let (_, files) = place.restore(Which::Exactly(put.snapshot.clone())).await;
        assert_eq!(files, some(&[lsn]));
    }
    place.put(4, &some(&[4])).await;
    let gone = Which::Exactly(puts[0].snapshot.clone());
    let target = place.target();
    let restored = place
        .repository()
        .restore(&gone, &target, &Progress::new())
        .await;
    assert!(
        matches!(restored, Err(Error::NoSnapshot(_))),
        "{restored:?}"
    );
}

async fn a_snapshot_is_found_by_id_directory_or_position(place: Place) {
    let put = place.put(17, &some(&[1])).await;
    let repository = place.repository();
    let root = repository.root().await.unwrap();
    for name in [
        put.snapshot.id.to_string(),
        put.snapshot.to_string(),
        "17".to_owned(),
    ] {
        assert_eq!(repository.find(&root, &name).unwrap(), put.snapshot);
    }
    for name in ["18", "", "snap_1abc", "latest.json"] {
        let found = repository.find(&root, name);
        assert!(matches!(found, Err(Error::NoSnapshot(_))), "{name}");
    }
}

async fn a_flipped_byte_is_found_and_the_next_older_snapshot_is_used(place: Place) {
    place.put(1, &some(&[1])).await;
    let newest = place.put(2, &some(&[2])).await;
    let key = place.files_of(&newest.snapshot)[0].clone();
    place.damage(&key, |content| content[300] ^= 4);
    let (restored, files) = place.restore(Which::Newest).await;
    assert_eq!(files, some(&[1]));
    let [(dir, error)] = restored.passed_over() else {
        panic!("{restored:?}");
    };
    assert_eq!(dir, &newest.snapshot);
    assert!(error.to_string().contains(&key), "{error}");
    assert!(matches!(error, Error::Damaged { .. }), "{error:?}");
}

async fn a_truncated_missing_or_undescribed_snapshot_is_passed_over(place: Place) {
    let four = Options {
        num_retained: std::num::NonZeroU32::new(5),
        ..options()
    };
    let mut puts = Vec::new();
    for lsn in 1..=5 {
        puts.push(
            place
                .put_by(&place.with(four.clone()), lsn, &some(&[lsn]))
                .await,
        );
    }
    let file = |i: usize| place.files_of(&puts[i].snapshot)[0].clone();
    place.damage(&file(4), |content| content.truncate(100));
    place.remove(&file(3));
    place.damage(&puts[2].snapshot.metadata(), |content| {
        content.truncate(100)
    });
    place.remove(&puts[1].snapshot.metadata());
    let (restored, files) = place.restore(Which::Newest).await;
    assert_eq!(files, some(&[1]));
    let passed: Vec<_> = restored.passed_over().iter().map(|(dir, _)| dir).collect();
    let newer: Vec<_> = puts[1..].iter().rev().map(|put| &put.snapshot).collect();
    assert_eq!(passed, newer, "newest first, and none is left out");
}

async fn one_that_was_asked_for_is_not_replaced_by_another(place: Place) {
    place.put(1, &some(&[1])).await;
    let newest = place.put(2, &some(&[2])).await;
    place.remove(&place.files_of(&newest.snapshot)[0]);
    let target = place.target();
    let which = Which::Exactly(newest.snapshot);
    let repository = place.repository();
    let restored = repository.restore(&which, &target, &Progress::new()).await;
    assert!(matches!(restored, Err(Error::Unusable(_))), "{restored:?}");
    assert!(!target.exists());
}

async fn when_none_is_usable_each_reason_is_given(place: Place) {
    let puts = [
        place.put(1, &some(&[1])).await,
        place.put(2, &some(&[2])).await,
    ];
    for put in &puts {
        place.remove(&place.files_of(&put.snapshot)[0]);
    }
    let target = place.target();
    let repository = place.repository();
    let restored = repository
        .restore(&Which::Newest, &target, &Progress::new())
        .await;
    let message = restored.unwrap_err().to_string();
    for put in &puts {
        let key = &place.files_of(&put.snapshot)[0];
        assert!(message.contains(&put.snapshot.to_string()), "{message}");
        assert!(message.contains(key), "{message}");
    }
    assert_eq!(place.json("latest.json").get("pins"), None);
}

async fn a_target_that_holds_something_is_left_alone(place: Place) {
    place.put(1, &some(&[1])).await;
    let repository = place.repository();
    let target = place.target();
    std::fs::create_dir(&target).unwrap();
    std::fs::write(target.join("mine"), "mine").unwrap();
    let restored = repository
        .restore(&Which::Newest, &target, &Progress::new())
        .await;
    let error = restored.unwrap_err();
    assert!(matches!(error, Error::Invalid(_)), "{error:?}");
    assert!(error.to_string().contains("not empty"), "{error}");
    assert_eq!(read_dir(&target).len(), 1);
    // A file is no directory.
    let file = target.join("mine");
    let restored = repository
        .restore(&Which::Newest, &file, &Progress::new())
        .await;
    assert!(restored.is_err());
    assert_eq!(std::fs::read(&file).unwrap(), b"mine");
    // An empty one is as good as none.
    std::fs::remove_file(&file).unwrap();
    repository
        .restore(&Which::Newest, &target, &Progress::new())
        .await
        .unwrap();
    assert_eq!(read_dir(&target), some(&[1]));
}

fn partial_of(target: &std::path::Path) -> PathBuf {
    target.with_file_name("restored.partial")
}

async fn a_partial_directory_that_no_restore_left_is_left_alone(place: Place) {
    place.put(1, &some(&[1])).await;
    let target = place.target();
    let partial = partial_of(&target);
    std::fs::create_dir(&partial).unwrap();
    std::fs::write(partial.join("mine"), "mine").unwrap();
    let repository = place.repository();
    let restored = repository
        .restore(&Which::Newest, &target, &Progress::new())
        .await;
    let error = restored.unwrap_err().to_string();
    assert!(error.contains("restored.partial"), "{error}");
    assert_eq!(read_dir(&partial).len(), 1);
    assert_eq!(place.json("latest.json").get("pins"), None);
}

/// Leaves a partial directory behind: the second file is missing when it is fetched.
async fn broken_off(place: &Place, target: &std::path::Path) -> (Files, Vec<String>) {
    let files = some(&[1, 2, 3, 4]);
    let put = place.put(1, &files).await;
    let keys = place.files_of(&put.snapshot);
    let missing = std::fs::read(place.path(&keys[1])).unwrap();
    place.remove(&keys[1]);
    let one_by_one = Options {
        parallel_files: 1,
        ..options()
    };
    let repository = place.with(one_by_one);
    let restored = repository
        .restore(&Which::Newest, target, &Progress::new())
        .await;
    assert!(restored.is_err());
    place.write(&keys[1], missing);
    assert!(partial_of(target).join("000001.sst").exists());
    (files, keys)
}

async fn a_partial_directory_is_gone_on_with(place: Place) {
    let target = place.target();
    let (files, keys) = broken_off(&place, &target).await;
    let partial = partial_of(&target);
    // Of the same size and not the same; and what does not belong there.
    std::fs::write(partial.join("000003.sst"), bytes(77, 503)).unwrap();
    std::fs::write(partial.join("leftover"), "x").unwrap();
    if place.is_s3() {
        place.server().forget();
    }
    let progress = Progress::new();
    let restored = place
        .repository()
        .restore(&Which::Newest, &target, &progress)
        .await
        .unwrap();
    assert_eq!(restored.resumed(), 1);
    assert_eq!(read_dir(&target), files);
    assert!(!partial.exists());
    assert_eq!((progress.files_done(), progress.bytes_done()), (4, 2010));
    if place.is_s3() {
        let fetched: Vec<_> = place
            .server()
            .log()
            .into_iter()
            .filter(|r| r.operation == Operation::Get && r.key.contains("/ssts/"))
            .map(|r| r.key)
            .collect();
        assert_eq!(fetched.len(), 3, "what was whole is not fetched again");
        assert!(!fetched.iter().any(|key| key.ends_with(&keys[0])));
    }
}

async fn one_that_ends_anywhere_near_its_end_is_gone_on_with(place: Place) {
    const MARKER: &str = ".esker-restore.json";
    let target = place.target();
    let partial = partial_of(&target);
    let (files, _) = broken_off(&place, &target).await;
    let marker = std::fs::read(partial.join(MARKER)).unwrap();
    let again = async || {
        let restore = place.repository();
        let progress = Progress::new();
        let restored = restore.restore(&Which::Newest, &target, &progress).await;
        let restored = restored.unwrap();
        assert_eq!(read_dir(&target), files);
        assert!(!partial.exists());
        restored.resumed()
    };
    again().await;
    // In its place, and the marker not yet removed.
    std::fs::write(target.join(MARKER), &marker).unwrap();
    assert_eq!(again().await, files.len() as u64);
    // Not yet in its place.
    std::fs::write(target.join(MARKER), &marker).unwrap();
    std::fs::rename(&target, &partial).unwrap();
    assert_eq!(again().await, files.len() as u64);
    // At its beginning, with the marker half written.
    std::fs::remove_dir_all(&target).unwrap();
    std::fs::create_dir(&partial).unwrap();
    std::fs::write(partial.join(".esker-restore.json.new"), "{").unwrap();
    assert_eq!(again().await, 0);
}

async fn a_partial_directory_of_another_snapshot_is_begun_anew(place: Place) {
    let target = place.target();
    broken_off(&place, &target).await;
    let newer = some(&[1, 7]);
    place.put(2, &newer).await;
    let restored = place
        .repository()
        .restore(&Which::Newest, &target, &Progress::new())
        .await
        .unwrap();
    assert_eq!(restored.resumed(), 0);
    assert_eq!(read_dir(&target), newer);
}

async fn a_directory_that_exists_stays_and_is_restored_inside(place: Place) {
    use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
    let mut files = some(&[1, 2]);
    files.insert("sub/dir/000009.sst".to_owned(), bytes(9, 3));
    place.put(1, &files).await;
    let target = place.target();
    std::fs::create_dir(&target).unwrap();
    std::fs::set_permissions(&target, std::fs::Permissions::from_mode(0o710)).unwrap();
    // What a new file system has at its top.
    std::fs::create_dir(target.join("lost+found")).unwrap();
    let identity = |path: &std::path::Path| {
        let found = std::fs::metadata(path).unwrap();
        (found.ino(), found.mode() & 0o7777)
    };
    let before = identity(&target);
    let link = target.with_file_name("link");
    std::os::unix::fs::symlink(&target, &link).unwrap();
    let restored = place
        .repository()
        .restore(&Which::Newest, &link, &Progress::new())
        .await
        .unwrap();
    assert_eq!(restored.dir(), link);
    assert_eq!(identity(&target), before);
    assert_eq!(read_dir(&target), files);
    assert!(!partial_of(&target).exists());
    assert!(!link.with_file_name("link.partial").exists());
    let nowhere = target.with_file_name("nowhere");
    std::os::unix::fs::symlink("not-there", &nowhere).unwrap();
    let refused = place
        .repository()
        .restore(&Which::Newest, &nowhere, &Progress::new())
        .await;
    let refused = refused.unwrap_err().to_string();
    assert!(refused.contains("leads nowhere"), "{refused}");
    assert!(refused.contains("/nowhere"), "{refused}");
}

async fn one_that_ends_anywhere_inside_a_directory_is_gone_on_with(place: Place) {
    let target = place.target();
    let partial = target.join(".esker-restore.partial");
    let mut files = some(&[1, 2, 3]);
    files.insert("sub/000009.sst".to_owned(), bytes(9, 3));
    let put = place.put(1, &files).await;
    let restore = async || {
        let repository = place.repository();
        let progress = Progress::new();
        let restored = repository.restore(&Which::Newest, &target, &progress).await;
        restored.map(|restored| restored.resumed())
    };
    // Its files are on the way.
    std::fs::create_dir(&target).unwrap();
    let key = &place.files_of(&put.snapshot)[1];
    let missing = std::fs::read(place.path(key)).unwrap();
    place.remove(key);
    assert!(restore().await.is_err());
    assert!(partial.exists());
    place.write(key, missing);
    let resumed = restore().await.unwrap();
    assert!(resumed < files.len() as u64);
    assert_eq!(read_dir(&target), files);
    // Names were given to some, to all, and to none.
    let marker = |placing: &str| format!("{{\"snapshot\":\"{}\"{placing}}}", put.snapshot);
    for in_place in 0..=4 {
        std::fs::create_dir(&partial).unwrap();
        std::fs::write(
            partial.join(".esker-restore.json"),
            marker(",\"placing\":true"),
        )
        .unwrap();
        let names = ["000001.sst", "000002.sst", "000003.sst", "sub"];
        for name in &names[in_place..] {
            std::fs::rename(target.join(name), partial.join(name)).unwrap();
        }
        assert_eq!(restore().await.unwrap(), 4, "{in_place} in place");
        assert_eq!(read_dir(&target), files, "{in_place} in place");
    }
    // Its marker is the last that goes.
    std::fs::create_dir(&partial).unwrap();
    assert!(restore().await.is_err(), "it is restored, and is not empty");
}

async fn what_is_put_into_a_directory_during_a_restore_is_left_alone(place: Place) {
    let files = some(&[1, 2]);
    let put = place.put(1, &files).await;
    let target = place.target();
    let partial = target.join(".esker-restore.partial");
    let repository = place.repository();
    let restore = async || {
        let progress = Progress::new();
        repository.restore(&Which::Newest, &target, &progress).await
    };
    for placing in ["", ",\"placing\":true"] {
        std::fs::create_dir_all(&partial).unwrap();
        let marker = format!("{{\"snapshot\":\"{}\"{placing}}}", put.snapshot);
        std::fs::write(partial.join(".esker-restore.json"), marker).unwrap();
        std::fs::write(target.join("mine"), "mine").unwrap();
        let error = restore().await.unwrap_err().to_string();
        assert!(error.contains("mine"), "{error}");
        assert_eq!(std::fs::read(target.join("mine")).unwrap(), b"mine");
        std::fs::remove_file(target.join("mine")).unwrap();
        // A file with a name of the snapshot is not taken for the snapshot's.
        if placing.is_empty() {
            std::fs::write(target.join("000001.sst"), "mine").unwrap();
            assert!(restore().await.is_err());
            assert_eq!(std::fs::read(target.join("000001.sst")).unwrap(), b"mine");
            std::fs::remove_file(target.join("000001.sst")).unwrap();
        }
        restore().await.unwrap();
        assert_eq!(read_dir(&target), files);
        std::fs::remove_dir_all(&target).unwrap();
    }
}

async fn a_pin_holds_while_it_reads_and_goes_afterwards(place: Place) {
    let one = Options {
        num_retained: std::num::NonZeroU32::new(1),
        ..options()
    };
    let repository = place.with(one);
    let put = place.put_by(&repository, 1, &some(&[1, 2])).await;
    let pin = repository.pin(&put.snapshot).await.unwrap();
    let shown = &place.json("latest.json")["pins"][0];
    assert_eq!(shown["id"], pin);
    assert_eq!(shown["path"], put.snapshot.to_string());
    // It is cut off, and nothing of it goes while it is pinned.
    place.put_by(&repository, 2, &some(&[3])).await;
    repository.sweep().await.unwrap();
    place.assert_only_kept();
    let (_, files) = place.restore(Which::Exactly(put.snapshot.clone())).await;
    assert_eq!(files, some(&[1, 2]));
    let pins = place.json("latest.json")["pins"].clone();
    assert_eq!(pins.as_array().unwrap().len(), 1, "only the first is left");
    repository.unpin(&pin).await.unwrap();
    let sweep = repository.sweep().await.unwrap();
    assert_eq!(sweep.deleted, 3, "then it goes");
    let again = repository.pin(&put.snapshot).await;
    assert!(matches!(again, Err(Error::NoSnapshot(_))), "{again:?}");
}

async fn a_restore_that_fails_leaves_no_pin(place: Place) {
    let target = place.target();
    broken_off(&place, &target).await;
    assert_eq!(place.json("latest.json").get("pins"), None);
}

async fn names_that_lead_out_of_the_directory_are_refused(place: Place) {
    let good = place.put(1, &some(&[1])).await;
    let bad = place.put(2, &some(&[2])).await;
    assert_ne!(good.snapshot, bad.snapshot);
    let sound = place.json(&bad.snapshot.metadata());
    for name in [
        "/../x",
        "/../../x",
        "/a/../../x",
        "x",
        "//etc/passwd",
        "/nul\0x",
        "/./x",
        "/a//x",
        "/a\\..\\x",
        "",
        "/",
        "/.esker-restore.json",
    ] {
        let mut metadata = sound.clone();
        metadata["files"][0]["name"] = json!(name);
        for map in ["file_keys", "checksums"] {
            let value = metadata[map]["/000001.sst"].clone();
            metadata[map] = json!({ name: value });
        }
        place.write(&bad.snapshot.metadata(), metadata.to_string());
        let before = read_dir(place.work.path());
        let (restored, files) = place.restore(Which::Newest).await;
        assert_eq!(files, some(&[1]), "{name:?}");
        assert_eq!(restored.passed_over().len(), 1, "{name:?}");
        let more = read_dir(place.work.path()).len() - before.len();
        assert_eq!(more, 1, "only the restored file is new, with {name:?}");
    }
    // A file that is a directory of another, and sizes beyond all counting.
    let mut metadata = sound.clone();
    let file = metadata["files"][0].clone();
    metadata["files"] = json!([file, file]);
    metadata["files"][1]["name"] = json!("/000001.sst/x");
    for map in ["file_keys", "checksums"] {
        metadata[map]["/000001.sst/x"] = metadata[map]["/000001.sst"].clone();
    }
    place.write(&bad.snapshot.metadata(), metadata.to_string());
    assert_eq!(place.restore(Which::Newest).await.0.passed_over().len(), 1);
    metadata["files"][1]["name"] = json!("/000002.sst");
    for map in ["file_keys", "checksums"] {
        metadata[map]["/000002.sst"] = metadata[map]["/000001.sst"].clone();
    }
    for i in 0..2 {
        metadata["files"][i]["size"] = json!(u64::MAX);
    }
    place.write(&bad.snapshot.metadata(), metadata.to_string());
    assert_eq!(place.restore(Which::Newest).await.0.passed_over().len(), 1);
}

async fn a_restore_of_an_abandoned_snapshot_works(place: Place) {
    place.put(1, &some(&[1])).await;
    let above = place.put(2, &some(&[2])).await;
    let repository = place.repository();
    repository
        .fork(Some(LINEAGE), Lsn(1), LineageId(2))
        .await
        .unwrap();
    let (_, files) = place.restore(Which::Newest).await;
    assert_eq!(files, some(&[1]), "the newest of the line that lives");
    let (_, files) = place.restore(Which::Exactly(above.snapshot)).await;
    assert_eq!(files, some(&[2]));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_repository_that_cannot_be_written_to_is_restored_unpinned_and_says_so() {
    let place = Place::on_s3().await;
    place.put(1, &some(&[1])).await;
    let before = place.objects();
    let denied = Matching::operation(Operation::Put);
    place.server().faults().always(denied, Fault::Status(403));
    let (restored, files) = place.restore(Which::Newest).await;
    assert_eq!(files, some(&[1]));
    let unpinned = restored.unpinned().expect("it says so").to_string();
    assert!(unpinned.contains("latest.json"), "{unpinned}");
    assert_eq!(place.objects(), before);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_root_shows_the_pin_of_a_restore_under_way() {
    let place = Place::on_s3().await;
    let put = place.put(1, &some(&[1])).await;
    let faults = place.server().faults();
    let file = Matching::operation(Operation::Get).key("/ssts/");
    faults.next(1, file, Fault::Held);
    let repository = place.repository();
    let target = place.target();
    let progress = Progress::new();
    let restore = repository.restore(&Which::Newest, &target, &progress);
    let look = async {
        until("a file is asked for", || faults.held() == 1).await;
        let pins = place.json("latest.json")["pins"].clone();
        faults.release();
        pins
    };
    let (restored, pins) = futures::future::join(restore, look).await;
    restored.unwrap();
    assert_eq!(pins[0]["path"], put.snapshot.to_string());
    assert_eq!(place.json("latest.json").get("pins"), None);
}

/// A clock that stands still: no stall of the machine moves it.
#[derive(Debug)]
struct StandsStill(OffsetDateTime);

impl Env for StandsStill {
    fn now(&self) -> OffsetDateTime {
        self.0
    }

    fn sleep(&self, duration: Duration) -> BoxFuture<'static, ()> {
        System.sleep(duration)
    }

    fn random(&self) -> u64 {
        System.random()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_long_restore_renews_its_pin() {
    const PIN_FOR: Duration = Duration::from_secs(6);
    let place = Place::on_s3().await;
    place.put(1, &some(&[1])).await;
    let faults = place.server().faults();
    let file = Matching::operation(Operation::Get).key("/ssts/");
    faults.next(1, file, Fault::Held);
    let repository = place.with(Options {
        pin_for: PIN_FOR,
        retries: Retries {
            silence: Duration::from_secs(60),
            ..retries()
        },
        ..options()
    });
    let target = place.target();
    let progress = Progress::new();
    let restore = repository.restore(&Which::Newest, &target, &progress);
    let expiry = || {
        // A look may come in the middle of a swap.
        let root = std::fs::read(place.path("latest.json")).ok()?;
        let root = Root::parse(&root, PARTITION).ok()?;
        root.pins.first().map(|pin| pin.expires_at)
    };
    let look = async {
        until("a file is asked for", || faults.held() == 1).await;
        let first = expiry().unwrap();
        let mut renewed = first;
        until("the pin is renewed", || {
            renewed = expiry().unwrap_or(first);
            renewed != first
        })
        .await;
        // As if the time that it was first pinned for were over.
        let later = Arc::new(StandsStill(first + Duration::from_millis(1)));
        let later = Repository::with_env(&place.destination, PARTITION, options(), later);
        let sweep = later.sweep().await.unwrap();
        faults.release();
        (first, renewed, sweep)
    };
    let (restored, (first, renewed, sweep)) = futures::future::join(restore, look).await;
    restored.unwrap();
    assert!(
        renewed < first + PIN_FOR,
        "it was renewed before it expired"
    );
    assert_eq!(sweep.unpinned, 0, "what was renewed holds");
    assert_eq!(place.json("latest.json").get("pins"), None);
}

/// A file system of a known size; goes with its owner.
struct SmallDisk {
    dir: tempfile::TempDir,
}

impl SmallDisk {
    /// `None` if that is not allowed here.
    fn mount(mib: u64) -> Option<SmallDisk> {
        let dir = tempfile::tempdir().unwrap();
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", &format!("size={mib}m"), "esker-test"])
            .arg(dir.path())
            .output();
        match mounted {
            Ok(output) if output.status.success() => Some(SmallDisk { dir }),
            other => {
                eprintln!("SKIPPED: a small tmpfs cannot be mounted here: {other:?}");
                None
            }
        }
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount")
            .arg("-l")
            .arg(self.dir.path())
            .output();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_disk_stops_a_restore_before_it_begins_or_cleanly_and_it_goes_on_later() {
    let Some(disk) = SmallDisk::mount(8) else {
        return;
    };
    let place = Place::on_s3().await;
    let files: Files = (0..4_u32)
        .map(|i| (format!("{i:06}.sst"), bytes(u64::from(i) + 1, 1 << 20)))
        .collect();
    place.put(1, &files).await;
    let repository = place.with(Options {
        parallel_files: 1,
        ..options()
    });
    let target = disk.dir.path().join("restored");
    let ballast = disk.dir.path().join("ballast");

    std::fs::write(&ballast, vec![1; 6 << 20]).unwrap();
    let restored = repository
        .restore(&Which::Newest, &target, &Progress::new())
        .await;
    let Err(Error::NoSpace { needed, free, .. }) = restored else {
        panic!("{restored:?}");
    };
    assert!(needed == 4 << 20 && free < needed, "{needed} {free}");
    assert_eq!(place.json("latest.json").get("pins"), None);

    // There is room when it begins, and then there is none.
    std::fs::write(&ballast, vec![1; 3 << 20]).unwrap();
    let faults = place.server().faults();
    let second = Matching::operation(Operation::Get).key("/ssts/");
    faults.after(1, 1, second, Fault::Held);
    let progress = Progress::new();
    let restore = repository.restore(&Which::Newest, &target, &progress);
    let fill = async {
        until("the second file is asked for", || faults.held() == 1).await;
        let first = std::fs::metadata(partial_of(&target).join("000000.sst")).unwrap();
        assert_eq!(first.len(), 1 << 20, "the first one is whole");
        let _ = std::fs::write(&ballast, vec![1; 7 << 20]);
        faults.release();
    };
    let (restored, ()) = futures::future::join(restore, fill).await;
    let Err(Error::Io { path, source, .. }) = restored else {
        panic!("{restored:?}");
    };
    assert_eq!(source.kind(), std::io::ErrorKind::StorageFull);
    assert!(path.starts_with(partial_of(&target)), "{path:?}");
    assert!(!target.exists() && partial_of(&target).exists());

    std::fs::remove_file(&ballast).unwrap();
    let restored = repository
        .restore(&Which::Newest, &target, &Progress::new())
        .await
        .unwrap();
    assert!(restored.resumed() >= 1, "what was whole is kept");
    assert!(read_dir(&target) == files);
}
