//! Putting: the layout, the two documents, retention.

use std::collections::BTreeSet;
use std::num::NonZeroU32;
use std::os::unix::fs::MetadataExt as _;
use std::sync::Arc;

use bytes::Bytes;
use esker_repository::checkpoint::Source;
use esker_repository::metadata::{FileMetadata, KeyRange};
use esker_repository::{
    Checkpoint, Digest, Error, Kind, LineageId, Lsn, Options, Progress, SnapshotDir,
};
use serde_json::{Value, json};
use testkit_s3::Operation;

use crate::fixture::{Files, LINEAGE, Place, bytes, full, options, some};

on_both!(
    a_full_snapshot_lies_beside_its_description,
    an_incremental_snapshot_is_named_by_content_and_upload,
    the_documents_have_the_fields_that_are_promised,
    what_rocksdb_says_of_a_file_goes_into_the_description_but_its_directory,
    unknown_fields_survive_swaps_at_every_level,
    odd_names_are_names_of_incremental_files,
    a_full_snapshot_refuses_odd_names_and_says_what_to_do,
    a_name_that_could_not_be_restored_is_refused,
    a_snapshot_of_nothing_is_a_snapshot,
    of_equal_positions_the_later_put_is_the_newest,
    the_same_content_again_takes_the_place_of_the_former_and_pushes_nothing_out,
    a_put_that_its_own_commit_would_cut_off_is_refused,
    an_older_position_than_all_retained_is_refused,
    an_older_position_among_retained_ones_finds_its_place,
    a_cut_off_snapshot_is_deleted_at_once,
    without_a_number_only_the_newest_is_retained_and_the_rest_goes_by_the_sweep,
    kinds_live_side_by_side,
    a_repository_without_a_cluster_writes_nothing,
    every_swap_raises_the_generation_by_one,
    progress_ends_where_it_was_expected_to,
);

fn names(value: &Value) -> BTreeSet<&str> {
    let object = value.as_object().unwrap();
    object.keys().map(String::as_str).collect()
}

async fn a_full_snapshot_lies_beside_its_description(place: Place) {
    let files = some(&[1, 2]);
    let put = place.put_by(&place.with(full()), 42, &files).await;
    let dir = put.snapshot.to_string();
    let id = dir.strip_prefix("lsn_00000000000000000042-snap_1").unwrap();
    assert!(id.len() == 22 && id.bytes().all(|b| b.is_ascii_alphanumeric()));
    let objects = place.objects();
    assert_eq!(
        objects.keys().cloned().collect::<Vec<_>>(),
        [
            "latest.json".to_owned(),
            format!("{dir}/000001.sst"),
            format!("{dir}/000002.sst"),
            format!("{dir}/metadata.json"),
        ]
    );
    assert_eq!(objects[&format!("{dir}/000001.sst")], files["000001.sst"]);
    let metadata = place.json(&format!("{dir}/metadata.json"));
    assert_eq!(
        metadata.get("file_keys"),
        None,
        "a full snapshot has no keys"
    );
    let sum = Digest::of(&files["000002.sst"]).to_string();
    assert_eq!(metadata["checksums"]["/000002.sst"], sum);
}

async fn an_incremental_snapshot_is_named_by_content_and_upload(place: Place) {
    let files = some(&[1, 2]);
    let put = place.put(42, &files).await;
    let root = place.json("latest.json");
    // The swap that registered it was the one before the last.
    let generation = root["generation"].as_u64().unwrap() - 1;
    let metadata = place.json(&put.snapshot.metadata());
    for (name, content) in &files {
        let digest = Digest::of(content);
        let key = format!("ssts/{digest}{generation:016x}.sst");
        assert_eq!(metadata["file_keys"][format!("/{name}")], key);
        assert_eq!(
            metadata["checksums"][format!("/{name}")],
            digest.to_string()
        );
        assert_eq!(&place.objects()[&key], content);
    }
    assert_eq!(place.keys(), place.kept_keys(), "and there is nothing else");
}

async fn the_documents_have_the_fields_that_are_promised(place: Place) {
    let mut checkpoint = place.checkpoint(9, &some(&[1]));
    checkpoint.term = Some(3);
    checkpoint.membership = Some(json!({"voters": [1, 2, 3]}));
    checkpoint.partitions = Some(24);
    checkpoint.log_id = Some(12);
    checkpoint.key_range = KeyRange {
        start: 5,
        end: u64::MAX,
    };
    let extra = json!({"applied_by": "somebody"});
    checkpoint.extra = extra.as_object().unwrap().clone();
    let put = place
        .repository()
        .put(&checkpoint, &Progress::new())
        .await
        .unwrap();
    let metadata = place.json(&put.snapshot.metadata());
    let expected = BTreeSet::from([
        "applied_by",
        "checksums",
        "cluster_fingerprint",
        "cluster_name",
        "created_at",
        "db_comparator_name",
        "file_keys",
        "files",
        "key_range",
        "lineage",
        "log_id",
        "membership",
        "min_applied_lsn",
        "node_name",
        "partition_id",
        "partitions",
        "snapshot_id",
        "term",
        "version",
    ]);
    assert_eq!(names(&metadata), expected);
    assert_eq!(metadata["version"], "V1");
    assert_eq!(metadata["cluster_name"], "ours");
    assert_eq!(metadata["cluster_fingerprint"], u64::MAX - 4);
    assert_eq!(metadata["partition_id"], 7);
    assert_eq!(metadata["node_name"], "n1");
    assert_eq!(
        metadata["key_range"],
        json!({"start": 5, "end": u64::MAX}),
        "whole, whatever its size"
    );
    assert_eq!(metadata["min_applied_lsn"], 9);
    assert_eq!(metadata["lineage"], LINEAGE.to_string());
    assert_eq!(metadata["term"], 3);
    assert_eq!(metadata["partitions"], 24);
    assert_eq!(metadata["snapshot_id"], put.snapshot.id.as_str());
    let file = &metadata["files"][0];
    let expected = BTreeSet::from([
        "column_family_name",
        "directory",
        "end_key",
        "largest_seqno",
        "level",
        "name",
        "num_deletions",
        "num_entries",
        "size",
        "smallest_seqno",
        "start_key",
    ]);
    assert_eq!(names(file), expected);
    assert_eq!(file["name"], "/000001.sst");
    assert_eq!(file["directory"], "");
    assert_eq!(file["size"], 501);

    let root = place.json("latest.json");
    let expected = BTreeSet::from([
        "cluster_fingerprint",
        "cluster_name",
        "created_at",
        "generation",
        "lineage",
        "log_id",
        "min_applied_lsn",
        "node_name",
        "partition_id",
        "path",
        "retained_snapshots",
        "snapshot_id",
        "version",
    ]);
    assert_eq!(
        names(&root),
        expected,
        "and no intent, pin or stale lineage is left in it"
    );
    assert_eq!(root["version"], "V2");
    assert_eq!(root["log_id"], 12);
    let retained = &root["retained_snapshots"][0];
    let repeated = ["created_at", "min_applied_lsn", "path", "snapshot_id"];
    assert_eq!(names(retained), BTreeSet::from(repeated));
    for field in repeated {
        assert_eq!(root[field], retained[field], "{field} is repeated");
    }
    let created = root["created_at"].as_str().unwrap();
    assert!(
        created.starts_with("20") && created.ends_with('Z'),
        "{created} is RFC 3339"
    );
}

/// One file in memory, of which RocksDB says something.
#[derive(Debug)]
struct One(Bytes);

#[async_trait::async_trait]
impl Source for One {
    async fn read_at(&self, _: &str, offset: u64, len: usize) -> std::io::Result<Bytes> {
        let offset = usize::try_from(offset).unwrap();
        Ok(self.0.slice(offset..offset + len))
    }
}

async fn what_rocksdb_says_of_a_file_goes_into_the_description_but_its_directory(place: Place) {
    let file = FileMetadata {
        column_family_name: "data".to_owned(),
        name: "/000028.sst".to_owned(),
        directory: "/home/somebody/secret".to_owned(),
        size: 5,
        level: 6,
        start_key: Some("00ff".to_owned()),
        end_key: Some("ff".to_owned()),
        smallest_seqno: 1,
        largest_seqno: u64::MAX,
        num_entries: 10,
        num_deletions: 2,
        ..FileMetadata::default()
    };
    let source = Arc::new(One(Bytes::from_static(b"hello")));
    let mut checkpoint = Checkpoint::new(source, vec![file], Lsn(1));
    checkpoint.lineage = Some(LINEAGE);
    let put = place.repository().put(&checkpoint, &Progress::new()).await;
    let text = std::fs::read_to_string(place.path(&put.unwrap().snapshot.metadata())).unwrap();
    assert!(!text.contains("secret"), "a path leaks: {text}");
    let metadata: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(
        metadata["files"][0],
        json!({
            "column_family_name": "data", "name": "/000028.sst", "directory": "", "size": 5,
            "level": 6, "start_key": "00ff", "end_key": "ff", "smallest_seqno": 1,
            "largest_seqno": u64::MAX, "num_entries": 10, "num_deletions": 2,
        })
    );
}

async fn unknown_fields_survive_swaps_at_every_level(place: Place) {
    let repository = place.repository();
    let first = place.put(1, &some(&[1])).await;
    let second = place.put(2, &some(&[2])).await;
    let branch = LineageId(0xbeef);
    repository
        .fork(Some(LINEAGE), Lsn(1), branch)
        .await
        .unwrap();
    repository.pin(&first.snapshot).await.unwrap();
    place.edit("latest.json", |root| {
        root["novel"] = json!({"deep": [1, 2]});
        root["retained_snapshots"][0]["novel"] = json!("r");
        root["abandoned"][0]["novel"] = json!("a");
        root["pins"][0]["novel"] = json!("p");
        root["parent"]["novel"] = json!("x");
        root["intents"] = json!([{
            "snapshot_ids": ["snap_1abc"], "generation": 1, "node_name": "n9",
            "renewed_at": "2999-01-01T00:00:00Z", "novel": "i",
        }]);
    });
    let pin = repository.pin(&second.snapshot).await.unwrap();
    repository.unpin(&pin).await.unwrap();
    repository.sweep().await.unwrap();
    let mut checkpoint = place.checkpoint(3, &some(&[3]));
    checkpoint.lineage = Some(branch);
    let put = repository.put(&checkpoint, &Progress::new()).await.unwrap();
    let root = place.json("latest.json");
    assert_eq!(root["snapshot_id"], put.snapshot.id.as_str());
    assert_eq!(root["novel"], json!({"deep": [1, 2]}));
    assert_eq!(root["retained_snapshots"][1]["novel"], "r");
    assert_eq!(root["abandoned"][0]["novel"], "a");
    assert_eq!(root["pins"][0]["novel"], "p");
    assert_eq!(root["intents"][0]["novel"], "i");
    assert_eq!(root["parent"]["novel"], "x");
}

async fn odd_names_are_names_of_incremental_files(place: Place) {
    let files: Files = [
        "sub/dir/file",
        "with space and %41%2F and ?#",
        "ümlaut-日本",
        "-rf",
        "metadata.json",
        "latest.json",
        "..dots..",
        "a'\"b",
        "MANIFEST-000004",
        ".hidden",
    ]
    .iter()
    .enumerate()
    .map(|(i, name)| ((*name).to_owned(), bytes(i as u64 + 1, 64)))
    .collect();
    place.put(1, &files).await;
    let (_, restored) = place.restore(esker_repository::Which::Newest).await;
    assert_eq!(restored, files);
    assert!(place.verify().await.is_sound());
}

async fn a_full_snapshot_refuses_odd_names_and_says_what_to_do(place: Place) {
    for odd in ["CURRENT", "12a.sst", "sub/000001.sst", "000001.sst.tmp"] {
        let files = Files::from([(odd.to_owned(), vec![1])]);
        let checkpoint = place.checkpoint(1, &files);
        let put = place.with(full()).put(&checkpoint, &Progress::new()).await;
        let error = put.expect_err(odd).to_string();
        assert!(error.contains(odd), "it names the file: {error}");
        assert!(error.contains("incremental"), "and a way out: {error}");
    }
    assert_eq!(place.objects(), Files::new(), "and writes nothing");
}

async fn a_name_that_could_not_be_restored_is_refused(place: Place) {
    let long = format!("/{}", "x".repeat(2000));
    for names in [
        &["/../x"][..],
        &["x"],
        &["/a//b"],
        &["/a/./b"],
        &["/nul\0"],
        &["/back\\slash"],
        &["/"],
        &[""],
        &[&long],
        &["/twice", "/twice"],
        &["/a", "/a/b"],
        &["/.esker-restore.json"],
    ] {
        let files = names
            .iter()
            .map(|n| FileMetadata::plain((*n).to_owned(), 1));
        let source = Arc::new(One(Bytes::from_static(b"h")));
        let mut checkpoint = Checkpoint::new(source, files.collect(), Lsn(1));
        checkpoint.lineage = Some(LINEAGE);
        let put = place.repository().put(&checkpoint, &Progress::new()).await;
        assert!(matches!(put, Err(Error::Invalid(_))), "{names:?}: {put:?}");
    }
    assert_eq!(place.objects(), Files::new(), "and nothing is written");
}

async fn a_snapshot_of_nothing_is_a_snapshot(place: Place) {
    for options in [options(), full()] {
        let put = place
            .put_by(&place.with(options), 1, &Files::from([]))
            .await;
        assert_eq!((put.files, put.bytes, put.bytes_uploaded), (0, 0, 0));
    }
    let empty = Files::from([("000001.sst".to_owned(), Vec::new())]);
    place.put(2, &empty).await;
    let (_, restored) = place.restore(esker_repository::Which::Newest).await;
    assert_eq!(restored, empty, "a file of no bytes is a file");
    assert!(place.verify().await.is_sound());
}

/// A checkpoint of which nobody says what history it is of.
async fn put_without_lineage(place: &Place, lsn: u64, files: &Files) -> esker_repository::Put {
    let mut checkpoint = place.checkpoint(lsn, files);
    checkpoint.lineage = None;
    let put = place.repository().put(&checkpoint, &Progress::new()).await;
    put.unwrap()
}

async fn the_same_content_again_takes_the_place_of_the_former_and_pushes_nothing_out(place: Place) {
    let retained = || {
        let root = place.json("latest.json");
        let retained = root["retained_snapshots"].as_array().unwrap().clone();
        retained
            .iter()
            .map(|r| r["path"].as_str().unwrap().to_owned())
            .collect::<Vec<_>>()
    };
    let first = put_without_lineage(&place, 1, &some(&[1])).await;
    for _ in 0..4 {
        let again = put_without_lineage(&place, 2, &some(&[2])).await;
        assert_eq!(
            retained(),
            [again.snapshot.to_string(), first.snapshot.to_string()]
        );
        place.assert_only_kept();
    }
    // Another content of the same position is another snapshot.
    let other = put_without_lineage(&place, 2, &some(&[2, 3])).await;
    assert_eq!(retained().len(), 3);
    assert_eq!(retained()[0], other.snapshot.to_string());
    let inventory = place.repository().inventory().await.unwrap();
    let listed: Vec<_> = inventory.snapshots.iter().map(|s| &s.snapshot).collect();
    assert_eq!(
        listed,
        retained().iter().collect::<Vec<_>>(),
        "newest first"
    );

    // Of one history, a position says what is in it.
    let place = Place::in_a_directory();
    let first = place.put(1, &some(&[1])).await;
    place.put(2, &some(&[2])).await;
    let compacted = place.put(2, &some(&[7, 8])).await;
    let root = place.json("latest.json");
    assert_eq!(root["retained_snapshots"].as_array().unwrap().len(), 2);
    assert_eq!(root["path"], compacted.snapshot.to_string());
    assert_eq!(
        root["retained_snapshots"][1]["path"],
        first.snapshot.to_string()
    );
    place.assert_only_kept();
}

async fn a_put_that_its_own_commit_would_cut_off_is_refused(place: Place) {
    for lsn in [10, 20, 30] {
        place.put(lsn, &some(&[lsn])).await;
    }
    let fewer = place.with(Options {
        num_retained: NonZeroU32::new(2),
        ..options()
    });
    let before = place.objects();
    let checkpoint = place.checkpoint(15, &some(&[15]));
    let put = fewer.put(&checkpoint, &Progress::new()).await;
    let Err(Error::Superseded { lsn, oldest }) = put else {
        panic!("{put:?}");
    };
    assert_eq!((lsn, oldest), (Lsn(15), Lsn(20)));
    assert_eq!(place.objects(), before, "and nothing is written");
    // What stays is what fits.
    place.put_by(&fewer, 25, &some(&[25])).await;
    let root = place.json("latest.json");
    assert_eq!(root["retained_snapshots"].as_array().unwrap().len(), 2);
    assert_eq!(root["min_applied_lsn"], 30);
    place.assert_only_kept();
}

async fn of_equal_positions_the_later_put_is_the_newest(place: Place) {
    for number in 1..=4 {
        let put = put_without_lineage(&place, 5, &some(&[number])).await;
        let root = place.json("latest.json");
        assert_eq!(root["path"], put.snapshot.to_string());
        assert_eq!(
            root["retained_snapshots"][0]["path"],
            put.snapshot.to_string()
        );
    }
    let root = place.json("latest.json");
    assert_eq!(root["retained_snapshots"].as_array().unwrap().len(), 3);
    place.assert_only_kept();
}

async fn an_older_position_than_all_retained_is_refused(place: Place) {
    place.put(10, &some(&[1])).await;
    let before = place.objects();
    let checkpoint = place.checkpoint(9, &some(&[2]));
    let put = place.repository().put(&checkpoint, &Progress::new()).await;
    let Err(Error::Superseded { lsn, oldest }) = put else {
        panic!("{put:?}");
    };
    assert_eq!((lsn, oldest), (Lsn(9), Lsn(10)));
    assert_eq!(place.objects(), before, "and nothing is written");
}

async fn an_older_position_among_retained_ones_finds_its_place(place: Place) {
    for lsn in [10, 20, 30] {
        place.put(lsn, &some(&[lsn])).await;
    }
    let late = place.put(15, &some(&[15])).await;
    let root = place.json("latest.json");
    let lsns: Vec<_> = root["retained_snapshots"]
        .as_array()
        .unwrap()
        .iter()
        .map(|r| r["min_applied_lsn"].as_u64().unwrap())
        .collect();
    assert_eq!(lsns, [30, 20, 15]);
    assert_eq!(root["min_applied_lsn"], 30, "the top repeats the first");
    assert_eq!(late.retention.evicted.len(), 1, "{:?}", late.retention);
    place.assert_only_kept();
    assert!(place.verify().await.is_sound());
}

async fn a_cut_off_snapshot_is_deleted_at_once(place: Place) {
    for kind in [Kind::Incremental, Kind::Full] {
        let repository = place.with(Options {
            kind,
            num_retained: NonZeroU32::new(2),
            // Retention does not know an age.
            orphan_min_age: std::time::Duration::from_secs(86_400),
            ..options()
        });
        let base = if kind == Kind::Full { 100 } else { 0 };
        let first = place.put_by(&repository, base + 1, &some(&[1, 2])).await;
        place.put_by(&repository, base + 2, &some(&[1, 3])).await;
        let third = place.put_by(&repository, base + 3, &some(&[1, 4])).await;
        if kind == Kind::Incremental {
            let evicted = vec![first.snapshot.to_string()];
            assert_eq!(third.retention.evicted, evicted);
            assert_eq!(
                (third.retention.deleted, third.retention.failed),
                (2, 0),
                "its own file and its description; the shared one stays"
            );
        }
        place.assert_only_kept();
        assert!(place.verify().await.is_sound());
    }
}

async fn without_a_number_only_the_newest_is_retained_and_the_rest_goes_by_the_sweep(place: Place) {
    let day = Options {
        num_retained: None,
        orphan_min_age: std::time::Duration::from_secs(86_400),
        ..options()
    };
    let repository = place.with(day);
    let first = place.put_by(&repository, 1, &some(&[1, 2])).await;
    let second = place.put_by(&repository, 2, &some(&[1, 3])).await;
    let root = place.json("latest.json");
    assert_eq!(root["retained_snapshots"].as_array().unwrap().len(), 1);
    assert_eq!(second.retention.deleted, 0);
    let sweep = repository.sweep().await.unwrap();
    assert_eq!((sweep.deleted, sweep.young), (0, 2), "{sweep:?}");
    assert!(place.path(&first.snapshot.metadata()).exists());
    place.clock.jump(2);
    let sweep = repository.sweep().await.unwrap();
    assert_eq!((sweep.deleted, sweep.young), (2, 0), "{sweep:?}");
    place.assert_only_kept();
}

async fn kinds_live_side_by_side(place: Place) {
    let a = place.put_by(&place.with(full()), 1, &some(&[1, 2])).await;
    let b = place.put(2, &some(&[1, 2])).await;
    assert_eq!(
        b.files_uploaded, 2,
        "files of a full snapshot go with it, and are not shared"
    );
    let c = place.put_by(&place.with(full()), 3, &some(&[1, 2])).await;
    let repository = place.repository();
    for (put, kind) in [(&a, Kind::Full), (&b, Kind::Incremental), (&c, Kind::Full)] {
        let metadata = repository.describe(&put.snapshot).await.unwrap();
        assert_eq!(metadata.kind(), kind);
    }
    let sweep = repository.sweep().await.unwrap();
    assert_eq!(sweep.deleted, 0);
    assert!(place.verify().await.is_sound());
}

async fn a_repository_without_a_cluster_writes_nothing(place: Place) {
    place.put(1, &some(&[1])).await;
    let before = place.objects();
    let repository = place.with(Options {
        cluster: None,
        ..options()
    });
    let checkpoint = place.checkpoint(2, &some(&[2]));
    let put = repository.put(&checkpoint, &Progress::new()).await;
    assert!(matches!(put, Err(Error::Invalid(_))), "{put:?}");
    assert!(matches!(repository.sweep().await, Err(Error::Invalid(_))));
    let fork = repository.fork(Some(LINEAGE), Lsn(0), LineageId(3)).await;
    assert!(matches!(fork, Err(Error::Invalid(_))), "{fork:?}");
    assert_eq!(place.objects(), before);
    assert!(
        repository
            .verify(true, &Progress::new())
            .await
            .unwrap()
            .is_sound()
    );
}

async fn every_swap_raises_the_generation_by_one(place: Place) {
    let repository = place.repository();
    let put = place.put(1, &some(&[1])).await;
    let start = repository.root().await.unwrap().generation.unwrap().0;
    assert!(
        start > 1 << 32,
        "a new root begins far above what there was"
    );
    let pin = repository.pin(&put.snapshot).await.unwrap();
    repository.unpin(&pin).await.unwrap();
    place.put(2, &some(&[2])).await;
    let end = repository.root().await.unwrap().generation.unwrap().0;
    assert_eq!(end, start + 4);
}

async fn progress_ends_where_it_was_expected_to(place: Place) {
    let progress = Progress::new();
    let checkpoint = place.checkpoint(1, &some(&[1, 2]));
    let repository = place.repository();
    repository.put(&checkpoint, &progress).await.unwrap();
    assert_eq!((progress.files(), progress.files_done()), (2, 2));
    assert_eq!((progress.bytes(), progress.bytes_done()), (1003, 1003));
}

#[tokio::test]
async fn a_directory_on_the_same_file_system_gets_links_and_no_copies() {
    for options in [options(), full()] {
        let place = Place::in_a_directory();
        let checkpoint = place.checkpoint(1, &some(&[1, 2]));
        let source = checkpoint.source.path("/000001.sst").unwrap();
        let repository = place.with(options);
        let put = repository.put(&checkpoint, &Progress::new()).await.unwrap();
        let object = place.path(&place.files_of(&put.snapshot)[0]);
        let (from, to) = (source.metadata().unwrap(), object.metadata().unwrap());
        assert_eq!(from.ino(), to.ino(), "the object is the very file");
        assert!(place.verify().await.is_sound());
    }
}

#[tokio::test]
async fn with_links_off_files_are_copied() {
    for options in [options(), full()] {
        let place = Place::linked(false);
        // One of them larger than what is written at once.
        let mut files = some(&[1]);
        files.insert("000002.sst".to_owned(), bytes(5, 20 << 20));
        let checkpoint = place.checkpoint(1, &files);
        let source = checkpoint.source.path("/000001.sst").unwrap();
        let repository = place.with(options);
        let put = repository.put(&checkpoint, &Progress::new()).await.unwrap();
        let object = place.path(&place.files_of(&put.snapshot)[0]);
        let (from, to) = (source.metadata().unwrap(), object.metadata().unwrap());
        assert_ne!(from.ino(), to.ino(), "the object is a file of its own");
        assert!(place.verify().await.is_sound());
        let (_, restored) = place.restore(esker_repository::Which::Newest).await;
        assert!(restored == files);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn retention_deletes_files_first_and_the_description_last() {
    let place = Place::on_s3().await;
    let repository = place.with(Options {
        num_retained: NonZeroU32::new(1),
        ..full()
    });
    let first = place.put_by(&repository, 1, &some(&[1, 2])).await;
    let server = place.server();
    server.forget();
    let file = format!("{}/000001.sst", first.snapshot);
    server.faults().keep(&file);
    let second = place.put_by(&repository, 2, &some(&[3])).await;
    assert_eq!(second.retention.evicted, [first.snapshot.to_string()]);
    assert_eq!(second.retention.failed, 1, "{:?}", second.retention);
    assert!(
        place.path(&first.snapshot.metadata()).exists(),
        "what is left still says what it was"
    );
    server.faults().clear();
    let sweep = repository.sweep().await.unwrap();
    assert_eq!((sweep.deleted, sweep.failed), (2, 0), "{sweep:?}");
    place.assert_only_kept();

    server.forget();
    place.put_by(&repository, 3, &some(&[4])).await;
    assert_eq!(
        server.requests(Operation::BulkDelete),
        2,
        "files in one request, the description in the next"
    );
    place.assert_only_kept();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn retention_deletes_nothing_while_something_that_stays_cannot_be_read() {
    let place = Place::on_s3().await;
    let two = Options {
        num_retained: NonZeroU32::new(2),
        ..full()
    };
    let dirs: Vec<SnapshotDir> = [
        place.put_by(&place.with(two.clone()), 1, &some(&[1])).await,
        place.put_by(&place.with(two.clone()), 2, &some(&[2])).await,
    ]
    .into_iter()
    .map(|put| put.snapshot)
    .collect();
    let sound = std::fs::read(place.path(&dirs[1].metadata())).unwrap();
    place.write(&dirs[1].metadata(), "garbage");
    let third = place.put_by(&place.with(two.clone()), 3, &some(&[3])).await;
    assert_eq!(third.retention.evicted, [dirs[0].to_string()]);
    assert_eq!(third.retention.deleted, 0);
    assert!(place.path(&dirs[0].file("/000001.sst")).exists());
    place.write(&dirs[1].metadata(), sound);
    place.with(two).sweep().await.unwrap();
    place.assert_only_kept();
}
