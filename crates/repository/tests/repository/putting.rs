//! Put: the layout, the root and the description, and retention.

use std::collections::BTreeSet;
use std::os::unix::fs::MetadataExt as _;
use std::sync::Arc;

use bytes::Bytes;
use esker_repository::checkpoint::Source;
use esker_repository::metadata::{FileMetadata, KeyRange};
use esker_repository::{Checkpoint, Digest, Error, Kind, LineageId, Lsn, Options, Progress};
use serde_json::{Value, json};

use crate::fixture::{Files, LINEAGE, Place, bytes, full, options, some};

on_both!(
    a_full_snapshot_lies_beside_its_description,
    an_incremental_snapshot_is_named_by_content_and_upload,
    the_documents_have_the_fields_that_are_promised,
    what_rocksdb_says_of_a_file_goes_into_the_description_but_its_directory,
    unknown_fields_survive_swaps_at_every_level,
    a_snapshot_of_nothing_is_a_snapshot,
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
    // The upload was registered by the swap before the last one.
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
        "reused_in_a_row",
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

/// One file in memory, with metadata of RocksDB.
#[derive(Debug)]
pub struct One(pub Bytes);

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
        // One file is larger than what is written at once.
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
