//! Two that believe to be the same: one goes on, and the other does not spoil it.

use std::time::Duration;

use super::contents::{contents, stream};
use super::losses::{Harm, Loss, befall};
use super::past::{Past, caught_up, eager, kept, lineages, new_line_is_kept, play, seen};
use super::place::{Kind, copy_dir};
use crate::support::sdk;

async fn of_two_restores_at_once_at_most_one_serves(kind: Kind) {
    let past = Past::new(kind, "incremental").await;
    for round in 0..5 {
        let scene = past.copy().await;
        let restore = scene.setup.clone().bootstrap("restore");
        let (one, other) = (scene.path("one"), scene.path("other"));
        let (one, other) = tokio::join!(restore.try_start(&one), restore.try_start(&other));
        let context = format!("{kind:?}, round {round}");
        let (server, log) = match (one, other) {
            (Ok(server), Err(log)) | (Err(log), Ok(server)) => (server, log),
            (Ok(_), Ok(_)) => panic!("{context}: both serve"),
            (Err(one), Err(other)) => {
                // They may have stopped each other; the next restore goes on.
                for log in [one, other] {
                    assert!(log.contains("error [other_lineage]"), "{context}: {log}");
                }
                continue;
            }
        };
        let codes = ["error [other_lineage]", "error [nothing_usable]"];
        assert!(codes.iter().any(|c| log.contains(c)), "{context}: {log}");
        let after = contents(&server.sdk()).await;
        after.are(&past.phases[2].after_forks(1), &context);
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
    play([Kind::Directory, Kind::S3].map(async |kind| {
        let past = Past::new(kind, "incremental").await;
        let scene = past.scene.copy(eager()).await;
        let old = scene.path("old");
        copy_dir(&scene.data(), &old);
        befall(&scene, Loss::Everything, Harm::Nothing);
        let restore = scene.setup.clone().bootstrap("restore");
        let (new, _) = seen(&restore, &scene).await;
        sdk::append(&stream(&new.sdk(), &kept(0)), ["new"]).await;
        caught_up(&new, &scene.place).await;
        let before = scene.place.roots().await;
        let there = scene.place.all();

        let dead = scene.setup.start(&old).await;
        for i in 0..3 {
            sdk::append(&stream(&dead.sdk(), &kept(i)), ["dead"]).await;
        }
        dead.logged("dead line").await;
        tokio::time::sleep(Duration::from_millis(2500)).await;
        drop(dead);
        // Nor with a stop, nor told to restore: it is not the cluster any more.
        let told = scene.setup.clone().set("snapshots.snapshot-on-stop=true");
        let mut dead = told.start(&old).await;
        sdk::append(&stream(&dead.sdk(), &kept(1)), ["dead"]).await;
        dead.stop().await;
        let roots = scene.place.roots().await;
        assert_eq!(lineages(&roots), lineages(&before));
        let now = scene.place.all();
        let new_keys: Vec<_> = now.keys().filter(|key| !there.contains_key(*key)).collect();
        assert!(new_keys.is_empty(), "{kind:?}: {new_keys:?}");
        drop(new);
    }))
    .await;
}

#[tokio::test]
async fn one_loss_after_the_other_is_recovered_from_however_long_the_interval_is() {
    play([Kind::Directory, Kind::S3].map(async |kind| {
        let past = Past::new(kind, "incremental").await;
        // Nobody waits an hour here: a new line puts its first snapshot at once.
        let scene = past.copy().await;
        let restore = scene.setup.clone().bootstrap("restore");
        let mut before = past.phases[2].clone();
        for loss in 1..=3 {
            befall(&scene, Loss::Everything, Harm::Nothing);
            let (mut server, after) = seen(&restore, &scene).await;
            after.are(&before.after_forks(1), &format!("{kind:?}, loss {loss}"));
            new_line_is_kept(&scene.place).await;
            before = after;
            sdk::append(&stream(&server.sdk(), &kept(0)), ["lost again"]).await;
            server.kill();
        }
    }))
    .await;
}
