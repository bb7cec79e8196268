//! What an empty data directory means, and what of one in use cannot be meant.

use testkit_s3::Fault;

use super::contents::contents;
use super::losses::{Harm, Loss, befall};
use super::past::{Past, eager, seen, work};
use super::place::{Kind, Scene, files};
use crate::support::{Setup, eventually};

async fn refused(setup: &Setup, scene: &Scene, name: &str, code: &str) {
    let data = scene.path(name);
    let (exit, log) = setup.start_refused(&data).await;
    assert_eq!(exit, 1, "{log}");
    assert!(log.contains(&format!("error [{code}]")), "{code}: {log}");
}

async fn refused_and_empty(setup: &Setup, scene: &Scene, code: &str) {
    let name = tempfile::tempdir_in(scene.path("")).unwrap().keep();
    let name = name.file_name().unwrap().to_str().unwrap();
    refused(setup, scene, name, code).await;
    let found = files(&scene.path(name));
    assert!(found.is_empty(), "{code}: {found:?}");
}

/// Refused, and nothing is left of a directory that was not there; what it said.
async fn refused_and_gone(setup: &Setup, scene: &Scene, code: &str) -> String {
    let data = scene.path("made/by-the-start");
    let (exit, log) = setup.start_refused(&data).await;
    assert_eq!(exit, 1, "{log}");
    assert!(log.contains(&format!("error [{code}]")), "{code}: {log}");
    assert!(!scene.path("made").exists(), "{code}: {log}");
    log
}

#[tokio::test]
async fn a_restore_with_another_number_of_partitions_names_both_and_leaves_nothing_behind() {
    let past = Past::new(Kind::Directory, "incremental").await;
    let scene = &past.scene;
    let three = scene.setup.clone().bootstrap("restore").partitions(3);
    let log = refused_and_gone(&three, scene, "partitions_changed").await;
    let found = "backups has snapshots of a cluster with 2 partitions, the configuration says 3";
    assert!(log.contains(found), "{log}");
    assert!(log.contains("`partitions = 2`"), "{log}");
    refused_and_gone(&scene.setup, scene, "repository_holds_cluster").await;

    // The same of what is left on the disk.
    let scene = only_checkpoints_are_left(&past).await;
    scene.place.empty();
    let before = what_is_there(&scene);
    let three = scene.setup.clone().bootstrap("restore").partitions(3);
    let (_, log) = three.start_refused(&scene.data()).await;
    let found = "data has local snapshots of a cluster with 2 partitions, the configuration says 3";
    assert!(log.contains(found), "{log}");
    assert_eq!(what_is_there(&scene), before);
    assert!(log.contains("error [partitions_changed]"), "{log}");
}

#[tokio::test]
async fn an_empty_directory_is_never_taken_for_a_new_cluster_beside_an_old_one() {
    let past = Past::new(Kind::S3, "incremental").await;
    let scene = &past.scene;
    let there = scene.place.all();
    let (plain, new) = (&scene.setup, scene.setup.clone().bootstrap("new"));
    let restore = scene.setup.clone().bootstrap("restore");
    refused_and_empty(plain, scene, "repository_holds_cluster").await;
    refused_and_empty(&new, scene, "repository_holds_cluster").await;
    refused_and_empty(
        &scene.setup.clone().bootstrap("join"),
        scene,
        "join_unsupported",
    )
    .await;
    refused_and_empty(
        &restore.clone().set("cluster-name=another"),
        scene,
        "nothing_to_restore",
    )
    .await;
    refused_and_empty(&restore.clone().partitions(3), scene, "partitions_changed").await;

    scene.place.s3().fail(Fault::Disconnect);
    tokio::join!(
        refused_and_empty(plain, scene, "repository_unreadable"),
        refused_and_empty(&restore, scene, "repository_unreadable"),
    );
    scene.place.s3().heal();
    assert!(scene.place.all() == there, "the repository was changed");

    // One in use is neither new nor anybody else's.
    refused(&new, scene, "data", "data_dir_not_empty").await;
    let join = scene.setup.clone().bootstrap("join");
    refused(&join, scene, "data", "join_unsupported").await;
    let (_server, after) = seen(plain, scene).await;
    after.are(past.full(), "after all that");
}

#[tokio::test]
async fn a_repository_with_nothing_in_it_restores_nothing() {
    for kind in [Kind::Directory, Kind::S3] {
        let scene = Scene::new(kind, eager()).await;
        let restore = scene.setup.clone().bootstrap("restore");
        refused_and_empty(&restore, &scene, "nothing_to_restore").await;
        // And without being told anything, a new cluster begins there.
        let server = scene.setup.start(&scene.data()).await;
        scene.place.roots().await;
        drop(server);
    }
}

#[tokio::test]
async fn a_new_cluster_beside_a_repository_out_of_reach_does_not_overwrite_what_is_there() {
    let past = Past::new(Kind::S3, "full").await;
    let there = past.scene.place.all();
    past.scene.place.s3().fail(Fault::Disconnect);
    let new = past.scene.setup.clone().bootstrap("new");
    let server = new.start(&past.scene.path("empty")).await;
    work(&server.sdk(), 1).await;
    let before = contents(&server.sdk()).await;
    past.scene.place.s3().heal();
    server.logged("belongs to").await;
    let now = past.scene.place.all();
    let probes = |key: &&String| !key.starts_with(".esker-probe");
    let (now, there): (Vec<_>, Vec<_>) = (
        now.keys().filter(probes).collect(),
        there.keys().filter(probes).collect(),
    );
    assert_eq!(now, there);
    contents(&server.sdk()).await.are(&before, "all the same");
}

#[tokio::test]
async fn a_restore_that_found_everything_damaged_is_gone_on_with_once_that_is_mended() {
    let past = Past::new(Kind::Directory, "full").await;
    let scene = past.copy().await;
    let there = scene.place.all();
    befall(&scene, Loss::Everything, Harm::All);
    let restore = scene.setup.clone().bootstrap("restore");
    for _ in 0..2 {
        refused(&restore, &scene, "data", "nothing_usable").await;
    }
    for (key, content) in there {
        scene.place.replace(&key, content);
    }
    let (server, after) = seen(&restore, &scene).await;
    after.are(&past.phases[2].after_forks(1), "mended");
    drop(server);
    eventually("a plain start is one", async || {
        let started = scene.setup.try_start(&scene.data()).await;
        started.is_ok().then_some(())
    })
    .await;
}

/// Of a node that has lost everything but its local snapshots.
pub async fn only_checkpoints_are_left(past: &Past) -> Scene {
    let scene = past.copy().await;
    for what in [
        "node.json",
        "log",
        "db",
        "destination.json",
        "incarnations.json",
    ] {
        let path = scene.data().join(what);
        let _ = std::fs::remove_file(&path);
        let _ = std::fs::remove_dir_all(&path);
    }
    scene
}

fn what_is_there(scene: &Scene) -> (Vec<String>, usize) {
    let mut files: Vec<_> = files(&scene.data()).into_iter().collect();
    files.retain(|file| file != "LOCK");
    (files, scene.place.all().len())
}

#[tokio::test]
async fn local_snapshots_are_restored_by_the_name_of_their_cluster_and_by_no_other() {
    for kind in [Kind::Directory, Kind::S3] {
        let past = Past::new(kind, "incremental").await;
        let scene = only_checkpoints_are_left(&past).await;
        let before = what_is_there(&scene);
        let restore = scene.setup.clone().bootstrap("restore");
        let misnamed = restore.clone().set("cluster-name=wrong-name");
        let (code, log) = misnamed.start_refused(&scene.data()).await;
        assert_eq!(code, 1, "{log}");
        assert!(log.contains("error [nothing_to_restore]"), "{log}");
        for name in ["wrong-name", "esker"] {
            assert!(log.contains(name), "{name} is not named: {log}");
        }
        assert_eq!(what_is_there(&scene), before);
        let (server, _) = seen(&restore, &scene).await;
        drop(server);
        // And it is opened by it.
        seen(&scene.setup, &scene).await;
    }
}

#[tokio::test]
async fn local_snapshots_of_one_cluster_are_not_mixed_with_the_repository_of_another() {
    let [past, other] = [(); 2].map(|()| Past::new(Kind::Directory, "incremental"));
    let (past, other) = (past.await, other.await);
    for is_catalog_there in [true, false] {
        let scene = only_checkpoints_are_left(&past).await;
        scene.place.empty();
        for (key, content) in other.scene.place.all() {
            if is_catalog_there || !key.starts_with("0/") {
                scene.place.replace(&key, content);
            }
        }
        let before = what_is_there(&scene);
        let restore = scene.setup.clone().bootstrap("restore");
        let (_, log) = restore.start_refused(&scene.data()).await;
        assert!(log.contains("error [nothing_to_restore]"), "{log}");
        assert!(log.contains("local snapshots"), "{log}");
        assert_eq!(what_is_there(&scene), before);
        // Without them, it is an ordinary restore.
        if is_catalog_there {
            std::fs::remove_dir_all(scene.data()).unwrap();
            let (_server, after) = seen(&restore, &scene).await;
            after.are(&other.phases[2].after_forks(1), "restored");
        }
    }
}
