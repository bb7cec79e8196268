//! Foreign objects and bad input: what is not understood is never overwritten, and never read as empty.

use esker_repository::destination::Destination;
use esker_repository::prune::PruneOptions;
use esker_repository::{Cluster, Error, LineageId, Lsn, Options, Progress, Repository, Which};
use serde_json::json;

use crate::fixture::{LINEAGE, PARTITION, Place, cluster, options, some};
use crate::support::Destinations as _;

on_both!(
    a_root_that_is_not_understood_is_never_written_over,
    a_description_that_is_not_understood_is_never_written_over,
    a_missing_root_beside_snapshots_is_damage_and_never_nothing,
    an_empty_place_is_no_damage_and_no_snapshot,
    foreign_files_alone_do_not_stop_a_first_put,
    a_new_root_begins_above_every_generation_that_was_ever_used,
    another_clusters_repository_is_refused_by_every_operation,
    a_description_of_another_cluster_is_refused,
    another_lineage_is_refused,
    what_is_too_large_is_refused_unread,
    a_generation_without_a_next_is_refused,
);

/// The error of each operation. None of them may write.
async fn all_fail(place: &Place, repository: &Repository) -> Vec<(&'static str, Error)> {
    let before = place.objects();
    let mut checkpoint = place.checkpoint(99, &some(&[99]));
    checkpoint.lineage = Some(LINEAGE);
    let progress = Progress::new();
    let dir = "lsn_00000000000000000001-snap_1abc";
    let dir = esker_repository::SnapshotDir::parse(dir).unwrap();
    let to = place.target();
    let restored = repository.restore(&Which::Newest, &to, &progress).await;
    let prune = repository.plan_prune(&PruneOptions::default()).await;
    let fork = repository.fork(Some(LINEAGE), Lsn(0), LineageId(5)).await;
    let failed = vec![
        ("put", repository.put(&checkpoint, &progress).await.err()),
        ("sweep", repository.sweep().await.err()),
        ("root", repository.root().await.err()),
        ("verify", repository.verify(false, &progress).await.err()),
        ("why", repository.why("latest.json").await.err()),
        ("pin", repository.pin(&dir).await.err()),
        ("unpin", repository.unpin("abc").await.err()),
        ("restore", restored.err()),
        ("plan", prune.err()),
        ("fork", fork.err()),
    ];
    assert_eq!(place.objects(), before, "nothing is written or deleted");
    failed
        .into_iter()
        .map(|(what, error)| (what, error.unwrap_or_else(|| panic!("{what} succeeds"))))
        .collect()
}

async fn a_root_that_is_not_understood_is_never_written_over(place: Place) {
    place.put(1, &some(&[1])).await;
    let sound = place.json("latest.json");
    place.write("ssts/00.sst", "orphan");
    let text = sound.to_string();
    let edited = |change: &dyn Fn(&mut serde_json::Value)| {
        let mut root = sound.clone();
        change(&mut root);
        root.to_string()
    };
    let entry = sound["retained_snapshots"][0].clone();
    for bad in [
        String::new(),
        "garbage".to_owned(),
        "null".to_owned(),
        "[]".to_owned(),
        "{}".to_owned(),
        text[..text.len() / 2].to_owned(),
        text[..text.len() - 1].to_owned(),
        format!("{text}{text}"),
        "[".repeat(100_000),
        edited(&|root| root["version"] = json!("W3")),
        edited(&|root| root["version"] = json!(2)),
        edited(&|root| root["partition_id"] = json!(8)),
        edited(&|root| root["generation"] = json!("12")),
        edited(&|root| root["generation"] = json!(-1)),
        edited(&|root| root["path"] = json!(7)),
        edited(&|root| root["snapshot_id"] = json!("../..")),
        edited(&|root| root["retained_snapshots"] = json!([])),
        edited(&|root| root["retained_snapshots"][0]["path"] = json!("../x")),
        edited(&|root| {
            root["retained_snapshots"] = json!([entry, {
                "snapshot_id": "snap_1abc", "min_applied_lsn": 5, "created_at": entry["created_at"],
                "path": "lsn_00000000000000000005-snap_1abc",
            }])
        }),
        edited(&|root| {
            root["pins"] = json!([{
                "id": "x", "path": "../../etc", "expires_at": "2999-01-01T00:00:00Z",
            }])
        }),
    ] {
        place.write("latest.json", &bad);
        for (what, error) in all_fail(&place, &place.repository()).await {
            let shown: String = bad.chars().take(80).collect();
            assert!(
                matches!(error, Error::Damaged { .. }),
                "{what} of {shown}: {error:?}"
            );
            assert!(error.to_string().len() < 2000, "{what} quotes all of it");
        }
    }
    place.write("latest.json", &text);
    assert!(place.verify().await.is_sound());
    assert_eq!(place.repository().sweep().await.unwrap().deleted, 1);
}

async fn a_description_that_is_not_understood_is_never_written_over(place: Place) {
    let put = place.put(1, &some(&[1])).await;
    let key = put.snapshot.metadata();
    let sound = place.json(&key);
    let text = sound.to_string();
    let edited = |change: &dyn Fn(&mut serde_json::Value)| {
        let mut metadata = sound.clone();
        change(&mut metadata);
        metadata.to_string()
    };
    for bad in [
        String::new(),
        "garbage".to_owned(),
        "{}".to_owned(),
        text[..text.len() / 2].to_owned(),
        edited(&|m| m["version"] = json!("W3")),
        edited(&|m| m["partition_id"] = json!(8)),
        edited(&|m| m["min_applied_lsn"] = json!(2)),
        edited(&|m| m["snapshot_id"] = json!("snap_1other")),
        edited(&|m| m["file_keys"] = json!({})),
        edited(&|m| m["checksums"] = json!({})),
        edited(&|m| m["file_keys"]["/000001.sst"] = json!("../../8/ssts/00.sst")),
        edited(&|m| m["file_keys"]["/000001.sst"] = json!("latest.json")),
        edited(&|m| m["files"][0]["size"] = json!(-1)),
    ] {
        place.write(&key, &bad);
        let repository = place.repository();
        let described = repository.describe(&put.snapshot).await;
        assert!(matches!(described, Err(Error::Damaged { .. })), "{bad}");
        assert!(repository.sweep().await.is_err(), "{bad}");
        let report = place.verify().await;
        assert_eq!(crate::fixture::only_damage(&report).0, key, "{bad}");
        assert_eq!(std::fs::read(place.path(&key)).unwrap(), bad.as_bytes());
    }
    // The next put does not need the object, and does not change it.
    place.put(2, &some(&[1])).await;
    assert!(place.path(&key).exists());
}

async fn a_missing_root_beside_snapshots_is_damage_and_never_nothing(place: Place) {
    let put = place.put(1, &some(&[1])).await;
    let objects = place.objects();
    let description = put.snapshot.metadata();
    for left in [&description, &place.files_of(&put.snapshot)[0]] {
        std::fs::remove_dir_all(&place.dir).unwrap();
        place.write(left, &objects[left]);
        for (what, error) in all_fail(&place, &place.repository()).await {
            let Error::NoRoot { others, .. } = error else {
                panic!("{what}: {error:?}");
            };
            assert!(others, "{what} with {left}");
        }
    }
    for (key, content) in &objects {
        place.write(key, content);
    }
    assert!(place.verify().await.is_sound(), "brought back, it goes on");
    place.put(2, &some(&[2])).await;
}

async fn an_empty_place_is_no_damage_and_no_snapshot(place: Place) {
    let repository = place.repository();
    for failed in [
        repository.root().await.err(),
        repository.sweep().await.err(),
        repository.verify(true, &Progress::new()).await.err(),
    ] {
        let Some(Error::NoRoot { others, root }) = failed else {
            panic!("{failed:?}");
        };
        assert!(!others && root.ends_with("/7/latest.json"), "{root}");
    }
    assert!(place.objects().is_empty(), "asking writes nothing");
}

async fn foreign_files_alone_do_not_stop_a_first_put(place: Place) {
    place.write("readme.txt", "mine");
    place.put(1, &some(&[1])).await;
    assert_eq!(place.objects()["readme.txt"], b"mine");
}

async fn a_new_root_begins_above_every_generation_that_was_ever_used(place: Place) {
    place.put(1, &some(&[1])).await;
    let first = place.json("latest.json")["generation"].as_u64().unwrap();
    assert!(first >= 1 << 32, "{first}");
    let again = Place::in_a_directory();
    again.put(1, &some(&[1])).await;
    let second = again.json("latest.json")["generation"].as_u64().unwrap();
    assert_ne!(first, second, "and no two alike");
}

async fn another_clusters_repository_is_refused_by_every_operation(place: Place) {
    place.put(1, &some(&[1])).await;
    for (name, fingerprint) in [("theirs", cluster().fingerprint), ("ours", Some(1))] {
        let stranger = place.with(Options {
            cluster: Some(Cluster {
                name: name.to_owned(),
                fingerprint,
                ..cluster()
            }),
            ..options()
        });
        for (what, error) in all_fail(&place, &stranger).await {
            let Error::OtherCluster { theirs, ours, .. } = &error else {
                panic!("{what}: {error:?}");
            };
            assert!(theirs.contains("ours") && ours.contains(name), "{error}");
        }
    }
    // Without a fingerprint, only the names are compared.
    let unmarked = place.with(Options {
        cluster: Some(Cluster {
            fingerprint: None,
            ..cluster()
        }),
        ..options()
    });
    place.put_by(&unmarked, 2, &some(&[2])).await;
    let root = place.json("latest.json");
    assert_eq!(root["cluster_fingerprint"], u64::MAX - 4, "it is kept");
}

async fn a_description_of_another_cluster_is_refused(place: Place) {
    let put = place.put(1, &some(&[1])).await;
    place.edit(&put.snapshot.metadata(), |metadata| {
        metadata["cluster_name"] = json!("theirs");
    });
    let repository = place.repository();
    let described = repository.describe(&put.snapshot).await;
    assert!(
        matches!(described, Err(Error::OtherCluster { .. })),
        "{described:?}"
    );
    assert!(repository.sweep().await.is_err());
    assert!(!place.verify().await.is_sound());
    let to = place.target();
    let restored = repository
        .restore(&Which::Newest, &to, &Progress::new())
        .await;
    assert!(restored.is_err() && !to.exists());
}

async fn another_lineage_is_refused(place: Place) {
    place.put(1, &some(&[1])).await;
    let before = place.objects();
    for lineage in [None, Some(LineageId(1))] {
        let mut checkpoint = place.checkpoint(2, &some(&[2]));
        checkpoint.lineage = lineage;
        let put = place.repository().put(&checkpoint, &Progress::new()).await;
        let Err(Error::OtherLineage { theirs, ours }) = put else {
            panic!("{put:?}");
        };
        assert_eq!((theirs, ours), (Some(LINEAGE), lineage));
    }
    let fork = place
        .repository()
        .fork(Some(LineageId(1)), Lsn(1), LineageId(2))
        .await;
    assert!(matches!(fork, Err(Error::OtherLineage { .. })), "{fork:?}");
    assert_eq!(place.objects(), before);
}

async fn what_is_too_large_is_refused_unread(place: Place) {
    let put = place.put(1, &some(&[1])).await;
    let description = std::fs::read(place.path(&put.snapshot.metadata())).unwrap();
    // A sparse file: it has a size, and no block on the disk.
    let huge = |key: &str| {
        place.remove(key);
        let file = std::fs::File::create(place.path(key)).unwrap();
        file.set_len(1 << 40).unwrap();
    };
    huge(&put.snapshot.metadata());
    let described = place.repository().describe(&put.snapshot).await;
    let error = described.unwrap_err();
    assert!(matches!(error, Error::Damaged { .. }), "{error:?}");
    assert!(error.to_string().contains("1099511627776 bytes"), "{error}");
    place.write(&put.snapshot.metadata(), description);
    huge("latest.json");
    let root = place.repository().root().await;
    assert!(matches!(root, Err(Error::Damaged { .. })), "{root:?}");
    let checkpoint = place.checkpoint(2, &some(&[2]));
    let put = place.repository().put(&checkpoint, &Progress::new()).await;
    assert!(matches!(put, Err(Error::Damaged { .. })), "{put:?}");
    assert!(place.repository().sweep().await.is_err());
    let size = place.path("latest.json").metadata().unwrap().len();
    assert_eq!(size, 1 << 40);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bucket_that_is_missing_is_named_at_once() {
    let place = Place::on_s3().await;
    let settings = place.server().options("bucket");
    let nowhere = Destination::open("s3://nowhere/prefix", &settings).unwrap();
    let repository = Repository::new(&nowhere, PARTITION, options());
    place.server().forget();
    let checkpoint = place.checkpoint(1, &some(&[1]));
    let put = repository.put(&checkpoint, &Progress::new()).await;
    let root = repository.root().await;
    for said in [put.unwrap_err().to_string(), root.unwrap_err().to_string()] {
        assert!(said.contains("s3://nowhere/prefix"), "{said}");
        assert!(said.contains("NoSuchBucket"), "{said}");
        assert!(!said.contains('<'), "no document of the store: {said}");
    }
    // This server reports it for a list, and not for an object.
    assert_eq!(place.server().total(), 2 * 2, "nothing is asked again");
}

async fn a_generation_without_a_next_is_refused(place: Place) {
    place.put(1, &some(&[1])).await;
    place.edit("latest.json", |root| root["generation"] = json!(u64::MAX));
    let before = place.objects();
    let checkpoint = place.checkpoint(2, &some(&[2]));
    let put = place.repository().put(&checkpoint, &Progress::new()).await;
    assert!(matches!(put, Err(Error::Damaged { .. })), "{put:?}");
    assert_eq!(place.objects(), before);
    assert!(place.verify().await.is_sound(), "it can be read");
}
