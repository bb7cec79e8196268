//! The meaning of an empty data directory, and options that do not fit one in use.

use testkit_s3::Fault;

use super::contents::contents;
use super::history::{History, eager, quiet, start_and_read, work};
use super::losses::{Loss, RepositoryLoss, inflict};
use super::target::{Kind, Node, files};
use crate::support::{Setup, eventually};

async fn refused(setup: &Setup, node: &Node, name: &str, code: &str) {
    let data = node.path(name);
    let (exit, log) = setup.start_refused(&data).await;
    assert_eq!(exit, 1, "{log}");
    assert!(log.contains(&format!("error [{code}]")), "{code}: {log}");
}

async fn refused_and_empty(setup: &Setup, node: &Node, code: &str) {
    let name = tempfile::tempdir_in(node.path("")).unwrap().keep();
    let name = name.file_name().unwrap().to_str().unwrap();
    refused(setup, node, name, code).await;
    let found = files(&node.path(name));
    assert!(found.is_empty(), "{code}: {found:?}");
}

/// Checks that a start is refused, and leaves nothing of a directory that did not exist. Returns its output.
async fn refused_and_gone(setup: &Setup, node: &Node, code: &str) -> String {
    let data = node.path("made/by-the-start");
    let (exit, log) = setup.start_refused(&data).await;
    assert_eq!(exit, 1, "{log}");
    assert!(log.contains(&format!("error [{code}]")), "{code}: {log}");
    assert!(!node.path("made").exists(), "{code}: {log}");
    log
}

#[tokio::test]
async fn a_restore_with_another_number_of_partitions_names_both_and_leaves_nothing_behind() {
    let history = History::new(Kind::Directory, "incremental").await;
    let node = &history.node;
    let three = node.setup.clone().bootstrap("restore").partitions(3);
    let log = refused_and_gone(&three, node, "partitions_changed").await;
    let found = "backups has snapshots of a cluster with 2 partitions, the configuration says 3";
    assert!(log.contains(found), "{log}");
    assert!(log.contains("`partitions = 2`"), "{log}");
    refused_and_gone(&node.setup, node, "repository_holds_cluster").await;

    // The same with the local snapshots that are left on the disk.
    let node = only_checkpoints_are_left(&history).await;
    node.target.empty();
    let before = what_is_there(&node);
    let three = node.setup.clone().bootstrap("restore").partitions(3);
    let (_, log) = three.start_refused(&node.data()).await;
    let found = "data has local snapshots of a cluster with 2 partitions, the configuration says 3";
    assert!(log.contains(found), "{log}");
    assert_eq!(what_is_there(&node), before);
    assert!(log.contains("error [partitions_changed]"), "{log}");
}

#[tokio::test]
async fn an_empty_directory_is_never_taken_for_a_new_cluster_beside_an_old_one() {
    let history = History::new(Kind::S3, "incremental").await;
    let node = &history.node;
    let there = node.target.all();
    let (plain, new) = (&node.setup, node.setup.clone().bootstrap("new"));
    let restore = node.setup.clone().bootstrap("restore");
    refused_and_empty(plain, node, "repository_holds_cluster").await;
    refused_and_empty(&new, node, "repository_holds_cluster").await;
    refused_and_empty(
        &node.setup.clone().bootstrap("join"),
        node,
        "join_unsupported",
    )
    .await;
    refused_and_empty(
        &restore.clone().set("cluster-name=another"),
        node,
        "nothing_to_restore",
    )
    .await;
    refused_and_empty(&restore.clone().partitions(3), node, "partitions_changed").await;

    node.target.s3().fail(Fault::Disconnect);
    tokio::join!(
        refused_and_empty(plain, node, "repository_unreadable"),
        refused_and_empty(&restore, node, "repository_unreadable"),
    );
    node.target.s3().heal();
    assert!(node.target.all() == there, "the repository was changed");

    // A directory in use is neither new nor another node's.
    refused(&new, node, "data", "data_dir_not_empty").await;
    let join = node.setup.clone().bootstrap("join");
    refused(&join, node, "data", "join_unsupported").await;
    let (_server, after) = start_and_read(plain, node).await;
    after.are(history.full(), "after all that");
}

#[tokio::test]
async fn a_repository_with_nothing_in_it_restores_nothing() {
    for kind in [Kind::Directory, Kind::S3] {
        let node = Node::new(kind, eager()).await;
        let restore = node.setup.clone().bootstrap("restore");
        refused_and_empty(&restore, &node, "nothing_to_restore").await;
        // Without an option, a new cluster begins there.
        let server = node.setup.start(&node.data()).await;
        node.target.roots().await;
        drop(server);
    }
}

#[tokio::test]
async fn a_new_cluster_beside_a_repository_out_of_reach_does_not_overwrite_what_is_there() {
    let history = History::new(Kind::S3, "full").await;
    let there = history.node.target.all();
    history.node.target.s3().fail(Fault::Disconnect);
    let new = history.node.setup.clone().bootstrap("new");
    let server = new.start(&history.node.path("empty")).await;
    work(&server.sdk(), 1).await;
    let before = contents(&server.sdk()).await;
    history.node.target.s3().heal();
    server.logged("belongs to").await;
    let now = history.node.target.all();
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
    let history = History::new(Kind::Directory, "full").await;
    let node = history.copy().await;
    let there = node.target.all();
    inflict(&node, Loss::Everything, RepositoryLoss::All);
    let restore = node.setup.clone().bootstrap("restore");
    for _ in 0..2 {
        refused(&restore, &node, "data", "nothing_usable").await;
    }
    for (key, content) in there {
        node.target.replace(&key, content);
    }
    let (server, after) = start_and_read(&restore, &node).await;
    after.are(&history.phases[2].after_forks(1), "mended");
    drop(server);
    eventually("a plain start is one", async || {
        let started = node.setup.try_start(&node.data()).await;
        started.is_ok().then_some(())
    })
    .await;
}

/// A copy of a node that has lost everything but its local snapshots.
pub async fn only_checkpoints_are_left(history: &History) -> Node {
    let node = history.copy().await;
    for what in [
        "node.json",
        "log",
        "db",
        "destination.json",
        "incarnations.json",
    ] {
        let path = node.data().join(what);
        let _ = std::fs::remove_file(&path);
        let _ = std::fs::remove_dir_all(&path);
    }
    node
}

fn what_is_there(node: &Node) -> (Vec<String>, usize) {
    let mut files: Vec<_> = files(&node.data()).into_iter().collect();
    files.retain(|file| file != "LOCK");
    (files, node.target.all().len())
}

#[tokio::test]
async fn local_snapshots_are_restored_by_the_name_of_their_cluster_and_by_no_other() {
    for kind in [Kind::Directory, Kind::S3] {
        let history = History::new(kind, "incremental").await;
        let node = only_checkpoints_are_left(&history).await;
        let before = what_is_there(&node);
        let restore = node.setup.clone().bootstrap("restore");
        let misnamed = restore.clone().set("cluster-name=wrong-name");
        let (code, log) = misnamed.start_refused(&node.data()).await;
        assert_eq!(code, 1, "{log}");
        assert!(log.contains("error [nothing_to_restore]"), "{log}");
        for name in ["wrong-name", "esker"] {
            assert!(log.contains(name), "{name} is not named: {log}");
        }
        assert_eq!(what_is_there(&node), before);
        let (server, _) = start_and_read(&restore, &node).await;
        drop(server);
        // The next start opens the directory.
        start_and_read(&node.setup, &node).await;
    }
}

#[tokio::test]
async fn local_snapshots_of_one_cluster_are_not_mixed_with_the_repository_of_another() {
    let [history, other] = [(); 2].map(|()| History::new(Kind::Directory, "incremental"));
    let (history, other) = (history.await, other.await);
    for is_catalog_there in [true, false] {
        let node = only_checkpoints_are_left(&history).await;
        node.target.empty();
        for (key, content) in other.node.target.all() {
            if is_catalog_there || !key.starts_with("0/") {
                node.target.replace(&key, content);
            }
        }
        let before = what_is_there(&node);
        let restore = node.setup.clone().bootstrap("restore");
        let (_, log) = restore.start_refused(&node.data()).await;
        assert!(log.contains("error [nothing_to_restore]"), "{log}");
        assert!(log.contains("local snapshots"), "{log}");
        assert_eq!(what_is_there(&node), before);
        // Without checkpoints, it is an ordinary restore.
        if is_catalog_there {
            std::fs::remove_dir_all(node.data()).unwrap();
            let (_server, after) = start_and_read(&restore, &node).await;
            after.are(&other.phases[2].after_forks(1), "restored");
        }
    }
}

#[tokio::test]
async fn directories_of_somebody_else_are_not_cleared_because_of_their_names() {
    let node = Node::new(Kind::Directory, quiet()).await;
    let data = node.data();
    for file in ["scratch/thesis.txt", "restore/backup.sql"] {
        let path = data.join(file);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, "precious").unwrap();
    }
    let before = files(&data);
    for setup in [node.setup.clone(), node.setup.clone().bootstrap("new")] {
        let (_, log) = setup.start_refused(&data).await;
        assert!(log.contains("error [data_dir_holds_others]"), "{log}");
        assert!(log.contains("scratch/"), "{log}");
        assert_eq!(files(&data), before);
    }
    for name in ["scratch", "restore"] {
        std::fs::rename(data.join(name), node.path(name)).unwrap();
    }
    node.setup.start(&data).await;
}
