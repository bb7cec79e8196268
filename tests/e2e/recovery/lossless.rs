//! Losses that cost nothing: a copy is left, and the log goes on where it ends.

use std::fs;

use testkit::corruption::{change_alone, flip_middle};

use super::contents::{contents, stream};
use super::losses::{Harm, Loss, befall};
use super::past::{Past, is_healthy, kept, lineages, play, seen};
use super::place::{Kind, PARTITIONS};
use crate::support::{eventually, sdk};

/// Each is recovered from by a plain start, to everything that was acknowledged.
const LOSSES: &[(Loss, Harm, &str)] = &[
    (Loss::Nothing, Harm::Gone, "local database"),
    (Loss::Nothing, Harm::All, "local database"),
    (Loss::Nothing, Harm::Emptied, "local database"),
    (Loss::Database, Harm::Nothing, "local snapshot"),
    (Loss::Database, Harm::Gone, "local snapshot"),
    (Loss::Database, Harm::Emptied, "local snapshot"),
    (Loss::OldDatabase, Harm::Nothing, "local database"),
    (Loss::ManifestFlipped, Harm::Nothing, "local snapshot"),
    (Loss::TableTruncated, Harm::Nothing, "local snapshot"),
    (Loss::TableMissing, Harm::Nothing, "local snapshot"),
    (
        Loss::DatabaseAndLocalSnapshots,
        Harm::Nothing,
        "repository snapshot",
    ),
    (
        Loss::DatabaseAndLocalSnapshots,
        Harm::NewestFlipped,
        "a snapshot is damaged: an older one is tried",
    ),
    (
        Loss::DatabaseAndLocalSnapshots,
        Harm::NewestWithoutDescription,
        "a snapshot is damaged: an older one is tried",
    ),
    (
        Loss::DatabaseAndLocalSnapshots,
        Harm::AllButOldest,
        "a snapshot is damaged: an older one is tried",
    ),
];

async fn each_costs_nothing(destination: Kind, kind: &str) {
    let past = Past::new(destination, kind).await;
    let past = &past;
    let scenario = async |loss: Loss, harm: Harm, says: &str| {
        let context = format!("{destination:?}, {kind}, {loss:?}, {harm:?}");
        let scene = past.copy().await;
        befall(&scene, loss, harm);
        let (mut server, after) = seen(&scene.setup, &scene).await;
        after.are(past.full(), &context);
        let log = server.log().join("\n");
        assert!(log.contains(says), "{context}: {says:?} is not in\n{log}");
        assert!(!scene.data().join("restore.json").exists(), "{context}");
        assert!(!scene.data().join("restore").exists(), "{context}");
        server.kill();

        if harm == Harm::Gone {
            Harm::come_back(&scene.place);
        }
        let (server, again) = seen(&scene.setup, &scene).await;
        again.are(past.full(), &format!("{context}, again"));
        if matches!(harm, Harm::Nothing | Harm::Gone) {
            is_healthy(&server, &context).await;
        }
        // The line goes on: nothing was lost.
        let roots = scene.place.roots().await;
        assert_eq!(lineages(&roots), lineages(&past.roots), "{context}");
        drop(server);
    };
    play(
        LOSSES
            .iter()
            .map(|(loss, harm, says)| scenario(*loss, *harm, says)),
    )
    .await;
}

#[tokio::test]
async fn whatever_the_log_connects_with_is_recovered_whole_from_a_directory() {
    each_costs_nothing(Kind::Directory, "incremental").await;
}

#[tokio::test]
async fn whatever_the_log_connects_with_is_recovered_whole_from_s3() {
    each_costs_nothing(Kind::S3, "full").await;
}

#[tokio::test]
async fn a_flipped_byte_in_a_table_is_found_by_a_read_and_healed_by_the_next_start() {
    let past = Past::new(Kind::Directory, "incremental").await;
    let scene = past.copy().await;
    for entry in fs::read_dir(scene.data().join("db")).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|e| e == "sst") {
            change_alone(&path, flip_middle);
        }
    }
    // Some tables are read by the start itself, which then recovers from the damage; others are not.
    let mut server = scene.setup.start(&scene.data()).await;
    let at = kept(0);
    let stream = stream(&server.sdk(), &at);
    for _ in 0..3 {
        if let Ok(batch) = stream.read(sdk::from_seq(0, 1000)).await {
            let known = &past.full().0[&at].records;
            for (record, known) in batch.records.iter().zip(known) {
                assert_eq!(record.body, known.body, "a damaged record was served");
            }
        }
    }
    server.kill();
    // A start removes what it says of partitions that it has rebuilt.
    let reported = || {
        let report = |partition| scene.data().join(format!("damaged/partition-{partition}"));
        (0..=PARTITIONS).any(|partition| report(partition).exists())
    };
    // The rest is found by the same token, one partition at a time.
    for round in 0.. {
        let mut server = scene.setup.start(&scene.data()).await;
        let s2 = server.sdk();
        let reading = tokio::spawn(async move { contents(&s2).await });
        match reading.await {
            Ok(seen) => {
                seen.are(past.full(), "healed");
                break;
            }
            Err(error) => assert!(round < 5, "not healed: {error}"),
        }
        eventually("the damage is written down", async || {
            reported().then_some(())
        })
        .await;
        server.kill();
    }
}
