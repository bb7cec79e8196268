//! Buckets as Restate 1.7 writes them: reading works, and nothing is ever written.

use esker_repository::prune::{PruneOptions, PrunePlan};
use esker_repository::restore::Checked;
use esker_repository::why::{Holder, Verdict};
use esker_repository::{
    Cluster, Digest, Error, Generation, Kind, Lsn, Options, Progress, Repository, SnapshotDir,
    Which,
};
use serde_json::{Value, json};

use crate::fixture::{Files, Place, bytes, options};

on_both!(
    its_second_version_is_read,
    its_first_version_is_read,
    it_is_never_written_to,
    a_newest_snapshot_that_is_broken_is_passed_over,
    its_shared_files_without_a_generation_are_read,
    a_flipped_byte_of_a_shared_file_is_found_by_its_key,
    a_snapshot_without_shared_files_is_a_full_one,
    what_contradicts_itself_is_named,
);

const OLD: &str = "lsn_00000000000000001200-snap_15dcJsZbaPbOQ3f2fAH7b3r";
const NEW: &str = "lsn_00000000000000001337-snap_1zzzSnapshotOfRestate";

fn metadata(dir: &str, files: &[(u32, usize)]) -> Value {
    let parsed = SnapshotDir::parse(dir).unwrap();
    let files: Vec<Value> = files
        .iter()
        .map(|(number, size)| {
            json!({
                "column_family_name": "data-unpartitioned-7",
                "name": format!("/{number:06}.sst"),
                "directory": "/restate-data/node-1/db-snapshots/7/x",
                "size": size,
                "level": 0,
                "start_key": "64650000000000000007",
                "end_key": "7374ffffffffffffffff",
                "smallest_seqno": 11,
                "largest_seqno": 12,
                "num_entries": 2,
                "num_deletions": 0,
            })
        })
        .collect();
    json!({
        "version": "V1",
        "cluster_name": "localcluster",
        "cluster_fingerprint": 15_204_371_287_492_011_019_u64,
        "partition_id": 7,
        "node_name": "node-1",
        "created_at": "2026-03-04T05:06:07.123456789Z",
        "snapshot_id": parsed.id.as_str(),
        "key_range": {"start": 0, "end": u64::MAX},
        "log_id": 7,
        "min_applied_lsn": parsed.lsn.0,
        "db_comparator_name": "leveldb.BytewiseComparator",
        "files": files,
    })
}

fn entry(dir: &str) -> Value {
    let parsed = SnapshotDir::parse(dir).unwrap();
    json!({
        "snapshot_id": parsed.id.as_str(),
        "min_applied_lsn": parsed.lsn.0,
        "created_at": "2026-03-04T05:06:07.123456789Z",
        "path": dir,
    })
}

fn root(version: &str, retained: &[&str]) -> Value {
    let mut root = entry(retained[0]);
    root["version"] = json!(version);
    root["partition_id"] = json!(7);
    root["log_id"] = json!(7);
    root["cluster_name"] = json!("localcluster");
    root["cluster_fingerprint"] = json!(15_204_371_287_492_011_019_u64);
    root["node_name"] = json!("node-1");
    if version == "V2" {
        let retained: Vec<_> = retained.iter().map(|dir| entry(dir)).collect();
        root["retained_snapshots"] = json!(retained);
    }
    root
}

fn files() -> Files {
    Files::from([
        ("000028.sst".to_owned(), bytes(28, 1000)),
        ("000030.sst".to_owned(), bytes(30, 1001)),
    ])
}

/// Two full snapshots; the older one shares a file's name with the newer one.
fn restates(place: &Place, version: &str) -> Repository {
    place.write("latest.json", root(version, &[NEW, OLD]).to_string());
    for (dir, sizes) in [(OLD, &[(28, 1000)][..]), (NEW, &[(28, 1000), (30, 1001)])] {
        place.write(
            &format!("{dir}/metadata.json"),
            metadata(dir, sizes).to_string(),
        );
        for (number, _) in sizes {
            let name = format!("{number:06}.sst");
            place.write(&format!("{dir}/{name}"), &files()[&name]);
        }
    }
    place.with(Options {
        cluster: Some(Cluster {
            name: "localcluster".to_owned(),
            fingerprint: Some(15_204_371_287_492_011_019),
            node_name: "reader".to_owned(),
        }),
        ..options()
    })
}

async fn its_second_version_is_read(place: Place) {
    let named = restates(&place, "V2");
    let before = place.objects();
    let nameless = place.with(Options {
        cluster: None,
        ..options()
    });
    let (old, new) = (
        SnapshotDir::parse(OLD).unwrap(),
        SnapshotDir::parse(NEW).unwrap(),
    );
    for repository in [named, nameless] {
        let current = repository.root().await.unwrap();
        assert_eq!(current.kept(), [new.clone(), old.clone()]);
        assert_eq!(current.generation, None);
        let described = repository.describe(&new).await.unwrap();
        assert_eq!(described.kind(), Kind::Full);
        assert_eq!(described.checksums, None);
        let start = described.files[0].start_key.as_deref();
        assert_eq!(start, Some("64650000000000000007"));
        let report = repository.verify(true, &Progress::new()).await.unwrap();
        assert!(report.is_sound());
        assert_eq!(
            report.without_checksums,
            [NEW, OLD],
            "and it says what it could not check"
        );
        let target = place.target();
        let restored = repository
            .restore(&Which::Newest, &target, &Progress::new())
            .await
            .unwrap();
        assert_eq!(restored.checked(), Checked::SizesOnly);
        assert_eq!(restored.metadata().min_applied_lsn, Lsn(1337));
        assert_eq!(crate::fixture::read_dir(&target), files());
        let why = repository.why(&format!("{OLD}/000028.sst")).await.unwrap();
        assert_eq!(why.verdict, Verdict::Kept);
        assert!(matches!(&why.kept_by[..], [Holder::Retained { snapshot, .. }] if snapshot == OLD));
        let diff = repository.diff(&old, &new).await.unwrap();
        assert_eq!((diff.added.len(), diff.added_bytes), (1, 1001));
        assert_eq!(
            diff.changed.len(),
            1,
            "without checksums, one object is one content"
        );
    }
    assert_eq!(place.objects(), before);
}

async fn its_first_version_is_read(place: Place) {
    let repository = restates(&place, "V1");
    let current = repository.root().await.unwrap();
    assert_eq!(current.kept(), [SnapshotDir::parse(NEW).unwrap()]);
    let report = repository.verify(false, &Progress::new()).await.unwrap();
    assert!(report.is_sound());
    let target = place.target();
    let restored = repository
        .restore(&Which::Newest, &target, &Progress::new())
        .await
        .unwrap();
    assert!(
        restored.unpinned().is_some(),
        "it is never pinned, and says so"
    );
    assert_eq!(crate::fixture::read_dir(&target), files());
}

async fn it_is_never_written_to(place: Place) {
    for version in ["V1", "V2"] {
        let repository = restates(&place, version);
        place.write("ssts/00.sst", "an orphan, perhaps");
        let before = place.objects();
        if place.is_s3() {
            place.server().forget();
        }
        let mut checkpoint = place.checkpoint(5000, &files());
        checkpoint.lineage = None;
        let progress = Progress::new();
        let dir = SnapshotDir::parse(NEW).unwrap();
        let plan = PrunePlan {
            generation: Generation(0),
            retained: 0,
            released: vec![OLD.to_owned()],
            fenced: Vec::new(),
            unpinned: Vec::new(),
            objects: Vec::new(),
            bytes: 0,
            young: 0,
        };
        let lineage = esker_repository::LineageId(1);
        for (what, error) in [
            ("put", repository.put(&checkpoint, &progress).await.err()),
            ("sweep", repository.sweep().await.err()),
            ("pin", repository.pin(&dir).await.err()),
            ("renew", repository.renew_pin("x", &dir).await.err()),
            ("unpin", repository.unpin("x").await.err()),
            (
                "plan",
                repository.plan_prune(&PruneOptions::default()).await.err(),
            ),
            ("prune", repository.prune(&plan).await.err()),
            ("fork", repository.fork(None, Lsn(1), lineage).await.err()),
        ] {
            assert!(
                matches!(error, Some(Error::NotOurs { .. })),
                "{what}: {error:?}"
            );
        }
        assert_eq!(place.objects(), before);
        if place.is_s3() {
            use testkit_s3::Operation as O;
            let log = place.server().log();
            let writes = log
                .iter()
                .filter(|r| !matches!(r.operation, O::Get | O::List | O::Head));
            assert_eq!(writes.count(), 0, "not even a try: {log:#?}");
        }
    }
}

async fn a_newest_snapshot_that_is_broken_is_passed_over(place: Place) {
    let repository = restates(&place, "V2");
    place.remove(&format!("{NEW}/000030.sst"));
    let target = place.target();
    let restored = repository
        .restore(&Which::Newest, &target, &Progress::new())
        .await
        .unwrap();
    assert_eq!(restored.passed_over()[0].0.to_string(), NEW);
    assert_eq!(restored.metadata().dir().to_string(), OLD);
    let report = repository.verify(false, &Progress::new()).await.unwrap();
    let (key, _, hurts) = crate::fixture::only_damage(&report);
    assert_eq!(key, format!("{NEW}/000030.sst"));
    assert_eq!(hurts, [NEW]);
}

async fn its_shared_files_without_a_generation_are_read(place: Place) {
    let repository = restates(&place, "V2");
    let key = format!("ssts/{}.sst", Digest::of(&files()["000028.sst"]));
    place.write(&key, &files()["000028.sst"]);
    place.edit(&format!("{NEW}/metadata.json"), |metadata| {
        metadata["file_keys"] = json!({"/000028.sst": key});
        metadata["files"].as_array_mut().unwrap().truncate(1);
    });
    let target = place.target();
    repository
        .restore(&Which::Newest, &target, &Progress::new())
        .await
        .unwrap();
    assert_eq!(crate::fixture::read_dir(&target).len(), 1);
    let why = repository.why(&key).await.unwrap();
    assert_eq!(why.verdict, Verdict::Kept);
}

/// Changes Restate's newest snapshot into one with a single, shared file. Returns the file's key as well.
fn shared(place: &Place) -> (Repository, String) {
    let repository = restates(place, "V2");
    let key = format!("ssts/{}.sst", Digest::of(&files()["000028.sst"]));
    place.write(&key, &files()["000028.sst"]);
    place.edit(&format!("{NEW}/metadata.json"), |metadata| {
        metadata["file_keys"] = json!({"/000028.sst": key});
        metadata["files"].as_array_mut().unwrap().truncate(1);
    });
    (repository, key)
}

async fn a_flipped_byte_of_a_shared_file_is_found_by_its_key(place: Place) {
    let (repository, key) = shared(&place);
    let report = repository.verify(true, &Progress::new()).await.unwrap();
    assert!(report.is_sound(), "{report:?}");
    assert_eq!(report.without_checksums, [OLD], "the key is the checksum");
    place.damage(&key, |bytes| bytes[500] ^= 1);
    let report = repository.verify(true, &Progress::new()).await.unwrap();
    let (damaged, why, hurts) = crate::fixture::only_damage(&report);
    assert_eq!((damaged, hurts), (key.as_str(), &[NEW.to_owned()][..]));
    assert!(why.contains("not what was written"), "{why}");
    let target = place.target();
    let restored = repository
        .restore(&Which::Newest, &target, &Progress::new())
        .await
        .unwrap();
    assert_eq!(restored.passed_over()[0].0.to_string(), NEW);
}

async fn a_snapshot_without_shared_files_is_a_full_one(place: Place) {
    let repository = restates(&place, "V2");
    place.edit(&format!("{NEW}/metadata.json"), |metadata| {
        metadata["file_keys"] = json!({});
    });
    let dir = SnapshotDir::parse(NEW).unwrap();
    assert_eq!(repository.describe(&dir).await.unwrap().kind(), Kind::Full);
    let report = repository.verify(true, &Progress::new()).await.unwrap();
    assert!(report.is_sound(), "{report:?}");
    let target = place.target();
    repository
        .restore(&Which::Exactly(dir), &target, &Progress::new())
        .await
        .unwrap();
    assert_eq!(crate::fixture::read_dir(&target), files());
}

async fn what_contradicts_itself_is_named(place: Place) {
    restates(&place, "V2");
    let reader = || {
        place.with(Options {
            cluster: None,
            ..options()
        })
    };
    let sound = place.json("latest.json");
    place.edit("latest.json", |root| {
        let old = entry(OLD);
        for field in ["snapshot_id", "min_applied_lsn", "path"] {
            root[field] = old[field].clone();
        }
    });
    let report = reader().verify(false, &Progress::new()).await.unwrap();
    let (key, why, _) = crate::fixture::only_damage(&report);
    assert_eq!(key, "latest.json");
    assert!(why.contains(OLD) && why.contains(NEW), "{why}");
    place.write("latest.json", sound.to_string());
    for (field, value) in [
        ("cluster_name", json!("another")),
        ("cluster_fingerprint", json!(5)),
    ] {
        let key = format!("{OLD}/metadata.json");
        let sound = place.json(&key);
        place.edit(&key, |metadata| metadata[field] = value);
        let report = reader().verify(false, &Progress::new()).await.unwrap();
        let (damaged, why, hurts) = crate::fixture::only_damage(&report);
        assert_eq!((damaged, hurts), (key.as_str(), &[OLD.to_owned()][..]));
        assert!(why.contains("cluster"), "{why}");
        place.write(&key, sound.to_string());
    }
}
