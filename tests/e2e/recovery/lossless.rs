//! Losses without loss of data: a copy is left, and the log continues from it.

use std::fs;

use testkit::corruption::{change_alone, flip_middle};

use super::contents::{contents, stream};
use super::history::{History, is_healthy, kept, lineages, run_concurrently, start_and_read};
use super::losses::{Loss, RepositoryLoss, inflict};
use super::target::{Kind, PARTITIONS};
use crate::support::{eventually, sdk};

/// A plain start recovers everything acknowledged after each of these.
const LOSSES: &[(Loss, RepositoryLoss, &str)] = &[
    (Loss::Nothing, RepositoryLoss::Gone, "local database"),
    (Loss::Nothing, RepositoryLoss::All, "local database"),
    (Loss::Nothing, RepositoryLoss::Emptied, "local database"),
    (Loss::Database, RepositoryLoss::Nothing, "local snapshot"),
    (Loss::Database, RepositoryLoss::Gone, "local snapshot"),
    (Loss::Database, RepositoryLoss::Emptied, "local snapshot"),
    (Loss::OldDatabase, RepositoryLoss::Nothing, "local database"),
    (
        Loss::ManifestFlipped,
        RepositoryLoss::Nothing,
        "local snapshot",
    ),
    (
        Loss::TableTruncated,
        RepositoryLoss::Nothing,
        "local snapshot",
    ),
    (
        Loss::TableMissing,
        RepositoryLoss::Nothing,
        "local snapshot",
    ),
    (
        Loss::DatabaseAndLocalSnapshots,
        RepositoryLoss::Nothing,
        "repository snapshot",
    ),
    (
        Loss::DatabaseAndLocalSnapshots,
        RepositoryLoss::NewestFlipped,
        "a snapshot is damaged: an older one is tried",
    ),
    (
        Loss::DatabaseAndLocalSnapshots,
        RepositoryLoss::NewestWithoutDescription,
        "a snapshot is damaged: an older one is tried",
    ),
    (
        Loss::DatabaseAndLocalSnapshots,
        RepositoryLoss::AllButOldest,
        "a snapshot is damaged: an older one is tried",
    ),
];

async fn each_costs_nothing(destination: Kind, kind: &str) {
    let history = History::new(destination, kind).await;
    let history = &history;
    let scenario = async |loss: Loss, harm: RepositoryLoss, says: &str| {
        let context = format!("{destination:?}, {kind}, {loss:?}, {harm:?}");
        let node = history.copy().await;
        inflict(&node, loss, harm);
        let (mut server, after) = start_and_read(&node.setup, &node).await;
        after.are(history.full(), &context);
        let log = server.log().join("\n");
        assert!(log.contains(says), "{context}: {says:?} is not in\n{log}");
        assert!(!node.data().join("restore.json").exists(), "{context}");
        assert!(!node.data().join("restore").exists(), "{context}");
        server.kill();

        if harm == RepositoryLoss::Gone {
            RepositoryLoss::restore_access(&node.target);
        }
        let (server, again) = start_and_read(&node.setup, &node).await;
        again.are(history.full(), &format!("{context}, again"));
        if matches!(harm, RepositoryLoss::Nothing | RepositoryLoss::Gone) {
            is_healthy(&server, &context).await;
        }
        // The lineage is the same: nothing was lost.
        let roots = node.target.roots().await;
        assert_eq!(lineages(&roots), lineages(&history.roots), "{context}");
        drop(server);
    };
    run_concurrently(
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
    let history = History::new(Kind::Directory, "incremental").await;
    let node = history.copy().await;
    for entry in fs::read_dir(node.data().join("db")).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|e| e == "sst") {
            change_alone(&path, flip_middle);
        }
    }
    // Some tables are read by the start itself, which then recovers from the damage; others are not.
    let mut server = node.setup.start(&node.data()).await;
    let at = kept(0);
    let stream = stream(&server.sdk(), &at);
    for _ in 0..3 {
        if let Ok(batch) = stream.read(sdk::from_seq(0, 1000)).await {
            let known = &history.full().0[&at].records;
            for (record, known) in batch.records.iter().zip(known) {
                assert_eq!(record.body, known.body, "a damaged record was served");
            }
        }
    }
    server.kill();
    // A start removes its report of partitions that it has rebuilt.
    let reported = || {
        let report = |partition| node.data().join(format!("damaged/partition-{partition}"));
        (0..=PARTITIONS).any(|partition| report(partition).exists())
    };
    // The remaining damage is found in the same way, one partition at a time.
    for round in 0.. {
        let mut server = node.setup.start(&node.data()).await;
        let starts = server.starts();
        let s2 = server.sdk();
        let reading = tokio::spawn(async move { contents(&s2).await });
        match reading.await {
            Ok(seen) => {
                seen.are(history.full(), "healed");
                break;
            }
            Err(error) => assert!(round < 5, "not healed: {error}"),
        }
        // The server restarts itself soon, and then the report is gone.
        eventually("the damage is written down", async || {
            (reported() || server.starts() > starts).then_some(())
        })
        .await;
        server.kill();
    }
}
