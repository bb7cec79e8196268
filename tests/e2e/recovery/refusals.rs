//! Losses that a plain start refuses: it changes nothing, and does not serve less than was acknowledged.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use super::history::{History, quiet, run_concurrently, start_and_read};
use super::losses::{Loss, RepositoryLoss, inflict};
use super::target::{Kind, Node, Target, copy_dir, files};
use crate::support::{Setup, sdk};

const REFUSED: &[(Loss, RepositoryLoss, &str)] = &[
    (
        Loss::DatabaseAndLocalSnapshots,
        RepositoryLoss::All,
        "nothing_usable",
    ),
    (
        Loss::DatabaseAndLocalSnapshots,
        RepositoryLoss::Emptied,
        "nothing_usable",
    ),
    (
        Loss::DatabaseAndLocalSnapshots,
        RepositoryLoss::Gone,
        "repository_unreadable",
    ),
    (Loss::Log, RepositoryLoss::Nothing, "log_missing"),
    (Loss::Log, RepositoryLoss::Gone, "log_missing"),
    (Loss::LogAndDatabase, RepositoryLoss::Nothing, "log_missing"),
    (Loss::LogDamaged, RepositoryLoss::Nothing, "log"),
    (Loss::OldLog, RepositoryLoss::Nothing, "nothing_usable"),
    (
        Loss::Everything,
        RepositoryLoss::Nothing,
        "repository_holds_cluster",
    ),
    (
        Loss::Everything,
        RepositoryLoss::Gone,
        "repository_unreadable",
    ),
];

/// All files except the lock, which has the process's id in it; the fetched parts of snapshots, which the
/// next start reuses; and files that a database changes when it is opened for inspection.
fn content(dir: &Path) -> BTreeMap<String, Vec<u8>> {
    let names = files(dir).into_iter();
    let names = names.filter(|name| {
        let noted = name.starts_with("db/") && !name.ends_with(".sst");
        name != "LOCK" && !name.starts_with("restore/") && !noted
    });
    let read = |name: String| {
        let mut content = fs::read(dir.join(&name)).unwrap();
        if name.ends_with(".raftlog") {
            // Space that is reserved behind the written bytes varies.
            let written = content.iter().rposition(|byte| *byte != 0);
            content.truncate(written.map_or(0, |last| last + 1));
        }
        (name, content)
    };
    names.map(read).collect()
}

/// All objects; of roots, what they name, because pins change.
fn objects(target: &Target) -> BTreeMap<String, Vec<u8>> {
    let mut objects = target.all();
    for (key, content) in &mut objects {
        if key.ends_with("/latest.json") {
            let mut root: serde_json::Value = serde_json::from_slice(content).unwrap();
            let fields = root.as_object_mut().unwrap();
            fields.remove("generation");
            fields.remove("pins");
            *content = root.to_string().into_bytes();
        }
    }
    objects
}

/// Checks that a start is refused with this code, and nothing is changed. Returns its output.
async fn refused(setup: &Setup, node: &Node, code: &str, context: &str) -> String {
    let before = (content(&node.data()), objects(&node.target));
    let (exit, log) = setup.start_refused(&node.data()).await;
    assert_eq!(exit, 1, "{context}: {log}");
    assert!(log.contains(&format!("error [{code}]")), "{context}: {log}");
    let after = (content(&node.data()), objects(&node.target));
    for (what, before, after) in [
        ("data", before.0, after.0),
        ("repository", before.1, after.1),
    ] {
        let changed: Vec<_> = before
            .keys()
            .chain(after.keys())
            .filter(|name| before.get(*name) != after.get(*name))
            .collect();
        assert!(
            changed.is_empty(),
            "{context}: {what} was changed: {changed:?}"
        );
    }
    log
}

async fn each_changes_nothing(destination: Kind, kind: &str) {
    let history = History::new(destination, kind).await;
    let history = &history;
    let scenario = async |loss: Loss, harm: RepositoryLoss, code: &str| {
        let code = match (loss, harm, destination) {
            // The directory can be listed, so its content is known to exist.
            (Loss::Everything, RepositoryLoss::Gone, Kind::Directory) => "repository_holds_cluster",
            _ => code,
        };
        let context = format!("{destination:?}, {kind}, {loss:?}, {harm:?}");
        let node = history.copy().await;
        let aside = node.path("aside");
        copy_dir(&node.data(), &aside);
        inflict(&node, loss, harm);
        for round in ["once", "twice"] {
            refused(&node.setup, &node, code, &format!("{context}, {round}")).await;
        }
        // The missing part is brought back: everything is as before.
        if node.data().exists() {
            fs::remove_dir_all(node.data()).unwrap();
        }
        fs::rename(aside, node.data()).unwrap();
        if harm == RepositoryLoss::Gone {
            RepositoryLoss::restore_access(&node.target);
        }
        let (server, after) = start_and_read(&node.setup, &node).await;
        after.are(history.full(), &context);
        drop(server);
    };
    run_concurrently(
        REFUSED
            .iter()
            .map(|(loss, harm, code)| scenario(*loss, *harm, code)),
    )
    .await;
}

#[tokio::test]
async fn a_refused_start_beside_a_directory_changes_nothing() {
    each_changes_nothing(Kind::Directory, "full").await;
}

#[tokio::test]
async fn a_refused_start_beside_s3_changes_nothing() {
    each_changes_nothing(Kind::S3, "incremental").await;
}

#[tokio::test]
async fn snapshots_of_another_cluster_are_never_taken_for_ones_own() {
    let (ours, theirs) = tokio::join!(
        History::new(Kind::Directory, "full"),
        History::new(Kind::Directory, "full")
    );
    let node = ours.copy().await;
    node.target.empty();
    for (key, content) in theirs.node.target.all() {
        node.target.replace(&key, content);
    }
    // As long as nothing is needed from the repository, the server works, but nothing is written there.
    let there = node.target.all();
    let (mut server, after) = start_and_read(&node.setup, &node).await;
    after.are(ours.full(), "beside another cluster");
    server.logged("belongs to").await;
    server.kill();
    assert!(node.target.all() == there, "another cluster's was changed");

    inflict(
        &node,
        Loss::DatabaseAndLocalSnapshots,
        RepositoryLoss::Nothing,
    );
    let unsaid = quiet().set(&format!(
        "snapshots.destination={}",
        node.path("backups").display()
    ));
    for setup in [unsaid.clone(), unsaid.bootstrap("restore")] {
        let (_, log) = setup.start_refused(&node.data()).await;
        let known = ["error [repository_unreadable]", "error [nothing_usable]"];
        assert!(known.iter().any(|code| log.contains(code)), "{log}");
        assert!(log.contains("belongs to"), "{log}");
    }
    assert!(node.target.all() == there, "another cluster's was changed");
}

#[tokio::test]
async fn an_option_to_restore_that_is_left_in_the_environment_accepts_no_later_loss() {
    let history = History::new(Kind::Directory, "incremental").await;
    let node = history.copy().await;
    let lose = || std::fs::remove_dir_all(node.data().join("log")).unwrap();
    let left = node.setup.clone().variable("ESKER_BOOTSTRAP", "restore");
    let starts = async |counts: bool| {
        let (mut server, _) = start_and_read(&left, &node).await;
        let line = match counts {
            true => "--bootstrap restore was for this start alone",
            false => "--bootstrap restore does not count",
        };
        server.logged(line).await;
        server.kill();
    };
    lose();
    starts(true).await;
    starts(false).await;
    lose();
    for _ in 0..2 {
        let (_, log) = left.start_refused(&node.data()).await;
        assert!(log.contains("error [log_missing]"), "{log}");
        assert!(
            log.contains("ESKER_BOOTSTRAP left in the environment"),
            "{log}"
        );
    }
    // The option has to be given again as a confirmation.
    let (_, log) = node.setup.start_refused(&node.data()).await;
    assert!(log.contains("error [log_missing]"), "{log}");
    starts(true).await;
    // The same where the option had no effect.
    start_and_read(&node.setup, &node).await;
    starts(true).await;
    lose();
    let (_, log) = left.start_refused(&node.data()).await;
    assert!(log.contains("error [log_missing]"), "{log}");
}

#[tokio::test]
async fn a_restore_that_was_left_in_the_directory_accepts_no_later_loss() {
    let history = History::new(Kind::Directory, "incremental").await;
    let forks = "{\"2\": {\"lineage\": \"7\", \"parent\": \"8\", \"lsn\": 1}}";
    for left in [
        "{\"everything\": true}".to_owned(),
        "{\"everything\": false}".to_owned(),
        format!("{{\"everything\": true, \"forks\": {forks}}}"),
    ] {
        let node = history.copy().await;
        let plan = node.data().join("restore.json");
        fs::write(&plan, &left).unwrap();
        fs::remove_dir_all(node.data().join("log")).unwrap();
        let (_, log) = node.setup.start_refused(&node.data()).await;
        assert!(log.contains("error [log_missing]"), "{left}: {log}");
        assert!(!node.data().join("log").exists(), "{left}");
    }
}

#[tokio::test]
async fn an_older_copy_of_the_directory_over_a_newer_one_is_named_and_the_way_out_works() {
    let node = Node::new(Kind::Directory, quiet().set("log.segment-size=1MiB")).await;
    let append = async |setup: &Setup, streams: std::ops::Range<usize>| {
        let mut server = setup.start(&node.data()).await;
        let s2 = server.sdk();
        for number in streams {
            let basin = match number {
                0 => sdk::basin(&s2, "copied-over").await,
                _ => s2.basin(sdk::basin_name("copied-over")),
            };
            let stream = sdk::stream(&basin, &format!("stream-{number}")).await;
            for _ in 0..4 {
                sdk::append(&stream, ["x".repeat(200_000)]).await;
            }
        }
        server.kill();
    };
    append(&node.setup, 0..5).await;
    copy_dir(&node.data(), &node.path("older"));
    append(&node.setup, 5..10).await;
    copy_dir(&node.path("older"), &node.data());
    let (code, log) = node.setup.start_refused(&node.data()).await;
    assert_eq!(code, 1, "{log}");
    assert!(log.contains("error [log]"), "{log}");
    assert!(!log.contains("panicked"), "{log}");
    let restore = node.setup.clone().bootstrap("restore");
    let mut server = restore.start(&node.data()).await;
    let basin = sdk::basin(&server.sdk(), "made-after").await;
    sdk::append(&sdk::stream(&basin, "stream").await, ["served"]).await;
    server.kill();
}
