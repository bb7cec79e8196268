//! Two copies of the same node: one continues, and the other does not damage its snapshots.

use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use super::contents::{Contents, GAP, contents, stream};
use super::history::{
    BASIN, History, caught_up, eager, kept, lineages, run_concurrently, start_and_read,
    wait_for_new_lineage,
};
use super::losses::{Loss, RepositoryLoss, inflict};
use super::positions::{fork, position};
use super::target::{Kind, Node, PARTITIONS, Target, copy_dir};
use crate::support::{eventually, sdk};

async fn of_two_restores_at_once_at_most_one_serves(kind: Kind) {
    let history = History::new(kind, "incremental").await;
    for round in 0..5 {
        let node = history.copy().await;
        let restore = node.setup.clone().bootstrap("restore");
        let (one, other) = (node.path("one"), node.path("other"));
        let (one, other) = tokio::join!(restore.try_start(&one), restore.try_start(&other));
        let context = format!("{kind:?}, round {round}");
        let (server, log) = match (one, other) {
            (Ok(server), Err(log)) | (Err(log), Ok(server)) => (server, log),
            (Ok(one), Ok(other)) => {
                // One restore was complete, with a snapshot of its lineage, before the other read the root:
                // that one is then a restore of a live cluster, and the earlier lineage is stale.
                for root in node.target.roots().await {
                    let before = &root.json["parent"]["parent"]["lineage"];
                    assert!(before.is_string(), "{context}: both serve one line");
                }
                drop((one, other));
                continue;
            }
            (Err(one), Err(other)) => {
                // Both restores may have failed because of each other; the next one succeeds.
                for log in [one, other] {
                    let codes = ["error [other_lineage]", "error [lineage_begins]"];
                    assert!(codes.iter().any(|c| log.contains(c)), "{context}: {log}");
                }
                continue;
            }
        };
        let codes = ["error [other_lineage]", "error [lineage_begins]"];
        assert!(codes.iter().any(|c| log.contains(c)), "{context}: {log}");
        let after = contents(&server.sdk()).await;
        after.are(&history.phases[2].after_forks(1), &context);
    }
}

#[tokio::test]
async fn of_two_restores_from_a_directory_at_once_at_most_one_serves() {
    of_two_restores_at_once_at_most_one_serves(Kind::Directory).await;
}

#[tokio::test]
async fn of_two_restores_from_s3_at_once_at_most_one_serves() {
    of_two_restores_at_once_at_most_one_serves(Kind::S3).await;
}

#[tokio::test]
async fn a_directory_whose_cluster_was_restored_elsewhere_puts_no_snapshots_any_more() {
    run_concurrently([Kind::Directory, Kind::S3].map(async |kind| {
        let history = History::new(kind, "incremental").await;
        let node = history.node.copy(eager()).await;
        let old = node.path("old");
        copy_dir(&node.data(), &old);
        inflict(&node, Loss::Everything, RepositoryLoss::Nothing);
        let restore = node.setup.clone().bootstrap("restore");
        let (new, _) = start_and_read(&restore, &node).await;
        sdk::append(&stream(&new.sdk(), &kept(0)), ["new"]).await;
        caught_up(&new, &node.target).await;
        // Any later change is not the work of the new server.
        drop(new);
        let before = node.target.roots().await;
        let there = node.target.all();

        let dead = node.setup.start(&old).await;
        for i in 0..3 {
            sdk::append(&stream(&dead.sdk(), &kept(i)), ["dead"]).await;
        }
        dead.logged("stale lineage").await;
        tokio::time::sleep(Duration::from_millis(2500)).await;
        drop(dead);
        // Neither a stop nor `--bootstrap restore` changes that: the directory is no longer the cluster's.
        let told = node.setup.clone().set("snapshots.snapshot-on-stop=true");
        let mut dead = told.start(&old).await;
        sdk::append(&stream(&dead.sdk(), &kept(1)), ["dead"]).await;
        dead.stop().await;
        let roots = node.target.roots().await;
        assert_eq!(lineages(&roots), lineages(&before));
        let now = node.target.all();
        let new_keys: Vec<_> = now.keys().filter(|key| !there.contains_key(*key)).collect();
        assert!(new_keys.is_empty(), "{kind:?}: {new_keys:?}");
    }))
    .await;
}

#[tokio::test]
async fn one_loss_after_the_other_is_recovered_from_however_long_the_interval_is() {
    run_concurrently([Kind::Directory, Kind::S3].map(async |kind| {
        let history = History::new(kind, "incremental").await;
        // The interval of an hour does not apply: a new lineage puts its first snapshot at once.
        let node = history.copy().await;
        let restore = node.setup.clone().bootstrap("restore");
        let mut before = history.phases[2].clone();
        for loss in 1..=3 {
            inflict(&node, Loss::Everything, RepositoryLoss::Nothing);
            let (mut server, after) = start_and_read(&restore, &node).await;
            after.are(&before.after_forks(1), &format!("{kind:?}, loss {loss}"));
            wait_for_new_lineage(&node.target).await;
            before = after;
            sdk::append(&stream(&server.sdk(), &kept(0)), ["lost again"]).await;
            server.kill();
        }
    }))
    .await;
}

#[tokio::test]
async fn a_second_loss_before_the_new_line_has_a_snapshot_is_recovered_from() {
    let history = History::new(Kind::Directory, "incremental").await;
    let node = history.copy().await;
    let restore = node.setup.clone().bootstrap("restore");
    inflict(&node, Loss::Everything, RepositoryLoss::Nothing);
    let there = node.target.all();
    let (mut server, first) = start_and_read(&restore, &node).await;
    let lost = position(&server, BASIN, "orders-0").await;
    first.are(&history.phases[2].after_forks(1), "once");
    server.kill();
    // The state as if only the beginning of the new lineage had been put, some time ago.
    inflict(&node, Loss::Everything, RepositoryLoss::Nothing);
    let change = |key: &str, change: &dyn Fn(&mut serde_json::Value)| {
        let mut root = serde_json::from_slice(&node.target.get(key).unwrap()).unwrap();
        change(&mut root);
        node.target.replace(key, root.to_string().into_bytes());
    };
    let roots: Vec<_> = (0..3).map(|p| format!("{p}/latest.json")).collect();
    for key in &roots {
        let before: serde_json::Value = serde_json::from_slice(&there[key]).unwrap();
        change(key, &|root| {
            for field in ["created_at", "snapshot_id", "min_applied_lsn", "path"] {
                root[field] = before[field].clone();
            }
            root["retained_snapshots"] = before["retained_snapshots"].clone();
            root["intents"] = serde_json::json!([]);
        });
    }
    for (key, content) in &there {
        if !roots.contains(key) {
            node.target.replace(key, content.clone());
        }
    }
    // A start that comes too soon waits up to a minute, because the other copy may be alive.
    let now = Command::new("date")
        .args(["-u", "+%Y-%m-%dT%H:%M:%SZ"])
        .output();
    let now = String::from_utf8(now.unwrap().stdout).unwrap();
    for key in &roots {
        change(key, &|root| root["parent"]["begun_at"] = now.trim().into());
    }
    let log = restore.try_start(&node.data()).await.err().unwrap();
    assert!(log.contains("error [lineage_begins]"), "{log}");
    for key in &roots {
        change(key, &|root| {
            // Or in the future, by a clock that was ahead.
            let begun_at = match key.as_str() {
                "1/latest.json" => "2999-01-01T00:00:00Z",
                _ => "2026-01-01T00:00:00Z",
            };
            root["parent"]["begun_at"] = begun_at.into();
        });
    }
    std::fs::remove_dir_all(node.data()).unwrap();
    let (server, second) = start_and_read(&restore, &node).await;
    // Sequence numbers that the intermediate lineage may have assigned are not assigned again either.
    second.are(&history.phases[2].after_forks(2), "twice");
    // The position for a reader of that lineage shows where it was cut off.
    let now = position(&server, BASIN, "orders-0").await;
    let cut = history.phases[2].0[&kept(0)].tail;
    let lines = [&lost["forks"][0]["parent"], &lost["lineage"]];
    let mut forks = lines.map(|line| fork(line.as_str().unwrap(), cut, cut + 2 * GAP));
    forks[1]["parent_resumed_at"] = (cut + GAP).into();
    assert_eq!(now["forks"], serde_json::json!(forks));
}

/// Appends to a stream, and waits until its partition has a newer snapshot.
async fn append_and_wait_for_snapshot(
    server: &crate::support::Server,
    target: &Target,
    name: &str,
) {
    let newest = || {
        let roots = (0..=PARTITIONS).map(|partition| target.root(partition));
        roots
            .map(|root| root.map_or(0, |root| root.newest()))
            .collect::<Vec<_>>()
    };
    let before = newest();
    sdk::append(&stream(&server.sdk(), name), ["more"]).await;
    eventually("a snapshot of what was appended", async || {
        (newest() != before).then_some(())
    })
    .await;
}

/// The code of a problem that the status of a server names.
async fn problem(server: &crate::support::Server, code: &str) -> serde_json::Value {
    let what = format!("the problem {code}");
    eventually(&what, async || {
        let status = server.http1().get("/esker/v1/status").send().await.json();
        let problems = status["problems"].as_array()?.clone();
        problems.into_iter().find(|problem| problem["code"] == code)
    })
    .await
}

#[tokio::test]
async fn of_two_copies_of_a_data_directory_the_second_puts_no_snapshots() {
    run_concurrently([Kind::Directory, Kind::S3].map(async |kind| {
        let history = History::new(kind, "incremental").await;
        let node = history.node.copy(eager()).await;
        let copied = node.path("copied");
        copy_dir(&node.data(), &copied);
        let (mut original, _) = start_and_read(&node.setup, &node).await;
        append_and_wait_for_snapshot(&original, &node.target, &kept(0)).await;
        // A regular stop: its snapshots of other partitions are complete, and none of its requests is in
        // transit.
        original.stop().await;
        let mut there = node.target.all();

        let copy = node.setup.start(&copied).await;
        for i in 0..3 {
            sdk::append(&stream(&copy.sdk(), &kept(i)), ["of the copy"]).await;
        }
        let refused = problem(&copy, "repository_other_writer").await;
        let what = refused["what"].as_str().unwrap();
        assert_eq!(what.matches("incarnation").count(), 2, "{what}");
        drop(copy);
        let mut now = node.target.all();
        for objects in [&mut now, &mut there] {
            objects.retain(|key, _| !key.starts_with(".tmp/"));
        }
        assert!(now == there, "{kind:?}: nothing is put by the copy");
        // After a restart, the original is still the one that puts.
        let (original, _) = start_and_read(&node.setup, &node).await;
        append_and_wait_for_snapshot(&original, &node.target, &kept(1)).await;
    }))
    .await;
}

/// A data directory and its copy, which have diverged: the copy put the newest snapshots, the original was
/// refused.
struct Twins {
    node: Node,
    copied: PathBuf,
    /// What the original acknowledged.
    original: Contents,
    /// What the copy acknowledged.
    copy: Contents,
}

impl Twins {
    async fn of(history: &History) -> Twins {
        let node = history.copy().await;
        let copied = node.path("copied");
        copy_dir(&node.data(), &copied);
        let saves = node.with(&["snapshots.snapshot-on-stop=true"]);
        let mut copy = saves.start(&copied).await;
        for i in 0..3 {
            sdk::append(&stream(&copy.sdk(), &kept(i)), ["of the copy"]).await;
        }
        let of_copy = contents(&copy.sdk()).await;
        copy.stop().await;

        let (mut server, _) = start_and_read(&node.setup, &node).await;
        for round in 0..5 {
            for i in 0..3 {
                let record = [format!("of the original, {round}")];
                sdk::append(&stream(&server.sdk(), &kept(i)), record).await;
            }
        }
        problem(&server, "repository_other_writer").await;
        let original = contents(&server.sdk()).await;
        server.kill();
        Twins {
            node,
            copied,
            original,
            copy: of_copy,
        }
    }
}

#[tokio::test]
async fn of_two_copies_of_a_data_directory_none_is_recovered_from_snapshots_of_the_other() {
    run_concurrently([Kind::Directory, Kind::S3].map(async |kind| {
        let history = History::new(kind, "incremental").await;
        let twins = Twins::of(&history).await;
        let node = &twins.node;
        let newest: Vec<_> = node
            .target
            .roots()
            .await
            .iter()
            .map(|r| r.newest())
            .collect();
        inflict(
            node,
            Loss::DatabaseAndLocalSnapshots,
            RepositoryLoss::Nothing,
        );
        let (mut server, after) = start_and_read(&node.setup, node).await;
        after.are(&twins.original, &format!("{kind:?}"));
        let log = server.log().join("\n");
        assert!(log.contains("the log contradicts it"), "{log}");
        server.stop().await;
        let now: Vec<_> = node
            .target
            .roots()
            .await
            .iter()
            .map(|r| r.newest())
            .collect();
        assert_eq!(now, newest, "they stay where they are");
    }))
    .await;
}

#[tokio::test]
async fn where_only_snapshots_of_another_copy_are_left_a_start_names_them_and_uses_none() {
    let history = History::new(Kind::Directory, "full").await;
    let twins = Twins::of(&history).await;
    let node = &twins.node;
    inflict(
        node,
        Loss::DatabaseAndLocalSnapshots,
        RepositoryLoss::Nothing,
    );
    // No snapshot that both have in common.
    for partition in 1..=PARTITIONS {
        for at in [1, 2] {
            node.target.damage(partition, at);
        }
    }
    for bootstrap in [None, Some("restore")] {
        let setup = node.setup.clone();
        let setup = bootstrap.map_or(setup.clone(), |said| setup.bootstrap(said));
        let log = setup.try_start(&node.data()).await.err().unwrap();
        assert!(log.contains("error [nothing_usable]"), "{log}");
        assert!(
            log.contains("the log contradicts it: the entry at LSN"),
            "{log}"
        );
        assert!(log.contains("move its log/ away"), "{log}");
    }
    // In another directory, from the repository.
    let restore = node.setup.clone().bootstrap("restore");
    let server = restore.start(&node.path("empty")).await;
    let after = contents(&server.sdk()).await;
    after.are(&twins.copy.after_forks(1), "the history of the copy");
}

#[tokio::test]
async fn a_database_and_local_snapshots_that_the_log_contradicts_are_not_used_and_kept() {
    let history = History::new(Kind::Directory, "incremental").await;
    let twins = Twins::of(&history).await;
    let node = &twins.node;
    let data = node.data();
    for what in ["db", "checkpoints"] {
        std::fs::remove_dir_all(data.join(what)).unwrap();
        copy_dir(&twins.copied.join(what), &data.join(what));
    }
    let (mut server, after) = start_and_read(&node.setup, node).await;
    after.are(&twins.original, "by the original's log");
    let log = server.log().join("\n");
    assert!(log.contains("a local snapshot was put aside"), "{log}");
    server.stop().await;
    let aside = |partition| {
        let first = data.join(format!("damaged/checkpoint-{partition}-1"));
        let described = std::fs::read(first.join("checkpoint.json")).unwrap();
        let described: serde_json::Value = serde_json::from_slice(&described).unwrap();
        described["log_tail"].clone()
    };
    for partition in 1..=PARTITIONS {
        let tail = aside(partition);
        assert!(tail["entry"].is_string(), "{tail}");
    }
    // The restore is complete.
    let (server, after) = start_and_read(&node.setup, node).await;
    after.are(&twins.original, "again");
    let log = server.log().join("\n");
    assert!(!log.contains("contradicts"), "{log}");
}

#[tokio::test]
async fn a_repository_that_is_unmounted_while_serving_is_not_begun_again_on_the_disk_below() {
    let history = History::new(Kind::Directory, "incremental").await;
    let node = history.node.copy(eager()).await;
    let (mut server, _) = start_and_read(&node.setup, &node).await;
    append_and_wait_for_snapshot(&server, &node.target, &kept(0)).await;
    // No upload is under way.
    caught_up(&server, &node.target).await;
    let Target::Directory(dir) = &node.target else {
        unreachable!("it is one");
    };
    let disk = dir.with_extension("disk");
    std::fs::rename(dir, &disk).unwrap();
    std::fs::create_dir(dir).unwrap();
    sdk::append(&stream(&server.sdk(), &kept(0)), ["meanwhile"]).await;
    let missing = problem(&server, "repository_missing").await;
    let what = missing["what"].as_str().unwrap();
    assert!(what.contains("cluster.json"), "{what}");
    // The same holds after a restart.
    server.stop().await;
    let mut server = node.setup.start(&node.data()).await;
    sdk::append(&stream(&server.sdk(), &kept(0)), ["meanwhile"]).await;
    problem(&server, "repository_missing").await;
    assert_eq!(node.target.all().len(), 0, "nothing is put there");
    std::fs::remove_dir_all(dir).unwrap();
    std::fs::rename(&disk, dir).unwrap();
    append_and_wait_for_snapshot(&server, &node.target, &kept(0)).await;
    server.stop().await;
}
