//! Restore: every byte is checked, or an older snapshot is restored and the reason reported.

use esker_repository::restore::Checked;
use esker_repository::{Error, LineageId, Lsn, Options, Progress, Which};
use serde_json::json;

use crate::fixture::{LINEAGE, Place, bytes, full, options, read_dir, some};

on_both!(
    what_was_put_comes_back_byte_for_byte,
    any_kept_snapshot_can_be_chosen,
    a_snapshot_is_found_by_id_directory_or_position,
    a_flipped_byte_is_found_and_the_next_older_snapshot_is_used,
    a_truncated_missing_or_undescribed_snapshot_is_passed_over,
    one_that_was_asked_for_is_not_replaced_by_another,
    when_none_is_usable_each_reason_is_given,
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
    // A file that is a directory of another one, and sizes whose sum overflows.
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
