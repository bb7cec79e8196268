//! The runbook: each of its situations is created, its instructions are followed, and status and health are
//! checked: they report nothing, or exactly the problem that the row names.

use std::fs;
use std::os::unix::fs::symlink;
use std::process::Command;
use std::time::Instant;

use futures::FutureExt as _;
use futures::future::LocalBoxFuture;
use serde_json::Value;
use testkit_s3::Fault;

use super::contents::{contents, stream};
use super::history::{History, caught_up, eager, kept, run_concurrently, start_and_read};
use super::losses::{Loss, RepositoryLoss, inflict, newest};
use super::target::{Kind, Node, Target, copy_dir};
use crate::support::{SOON, Server, Setup, eventually, sdk};

/// The sections of the runbook in `docs/operating/recovery.md`, in their order.
const ROWS: &[&str] = &[
    "Killed, or a power cut",
    "The database is lost or damaged",
    "The log is lost",
    // It needs the right to mount: `membership::mounts`.
    "The log is not mounted",
    // It needs a merge: `damage_that_a_merge_meets_is_repaired_by_the_server_and_other_partitions_go_on`.
    "A running server meets damage",
    "The log is damaged",
    "Something cannot be read",
    "Only local snapshots are left",
    "The data directory is lost",
    "Streams without their basin",
    // `access_tokens::restarts::a_restore_with_a_loss_suspends_tokens_until_they_are_confirmed`.
    "Access tokens are suspended",
    "The newest snapshot is damaged",
    // `scrubbing::an_object_that_three_snapshots_share_is_repaired_by_the_scrub_and_all_three_restore`.
    "A shared object is damaged",
    "All snapshots are damaged",
    "No copy of a partition is left",
    "The repository cannot be reached",
    "The repository was emptied, or a root removed",
    "The repository is not mounted, or was emptied",
    "A copy of the data directory",
    "The repository of another cluster",
    // It needs a small disk: `a_full_disk_refuses_appends_and_nothing_else_and_service_resumes_by_itself`.
    "Disk full",
    // It needs a file system that can be frozen:
    // `a_disk_that_hangs_makes_the_server_unhealthy_and_appends_go_on_when_it_answers`.
    "The disk hangs",
    "The log is larger than max-log-bytes",
    "A node that was restored elsewhere is started again",
];

#[test]
fn each_section_of_the_runbook_has_a_row_here() {
    let docs = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/operating/recovery.md");
    let docs = fs::read_to_string(docs).unwrap();
    let runbook = docs.split("\n# ").find(|part| part.starts_with("Runbook"));
    let lines = runbook.unwrap().lines();
    let headings: Vec<_> = lines.filter_map(|line| line.strip_prefix("## ")).collect();
    assert_eq!(headings, ROWS);
}

/// A row of the runbook.
fn row(name: &str) -> &str {
    assert!(ROWS.contains(&name), "{name}");
    name
}

/// Waits until the status names exactly these problems; then checks health and the last line of `esker
/// status`, which depend on whether the problems are advice. The advice that no snapshot was restored and
/// compared yet is always there.
pub async fn expect_problems(server: &Server, problems: &[&str], context: &str) {
    let deadline = Instant::now() + SOON;
    let found = loop {
        let status = server.http1().get("/esker/v1/status").send().await;
        let status = status.expect(200).json();
        let mut found = status["problems"].as_array().unwrap().clone();
        found.retain(|problem| problem["code"] != "unproven");
        let mut codes: Vec<_> = found
            .iter()
            .filter_map(|one| one["code"].as_str())
            .collect();
        codes.sort_unstable();
        codes.dedup();
        if codes == problems {
            break found;
        }
        assert!(
            Instant::now() < deadline,
            "{context}: {problems:?} are expected, and there are {found:#?}"
        );
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    };
    let health = server.http1().get("/health").send().await;
    assert_eq!(health.status, 200, "{context}: {}", health.text());
    let needs_action = found.iter().any(|problem| problem["advice"] == false);
    let shown = esker(&["status", "--server", server.url()]).await;
    assert_eq!(
        shown.status.success(),
        !needs_action,
        "{context}: {shown:?}"
    );
}

async fn esker(arguments: &[&str]) -> std::process::Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_esker"));
    command.args(arguments);
    let done = tokio::task::spawn_blocking(move || command.output()).await;
    done.unwrap().unwrap()
}

fn restore(node: &Node) -> Setup {
    node.setup.clone().bootstrap("restore")
}

async fn refused(setup: &Setup, node: &Node, code: &str, context: &str) {
    let (exit, log) = setup.start_refused(&node.data()).await;
    assert_eq!(exit, 1, "{context}: {log}");
    assert!(log.contains(&format!("error [{code}]")), "{context}: {log}");
}

fn directory(node: &Node) -> &std::path::Path {
    match &node.target {
        Target::Directory(dir) => dir,
        Target::S3(_) => panic!("it is no directory"),
    }
}

async fn append(server: &Server) {
    sdk::append(&stream(&server.sdk(), &kept(0)), ["more"]).await;
}

async fn problem(server: &Server, code: &str) -> Value {
    let status = server.http1().get("/esker/v1/status").send().await.json();
    let problems = status["problems"].as_array().unwrap().clone();
    let found = problems.into_iter().find(|one| one["code"] == code);
    found.unwrap_or_else(|| panic!("{code}: {status}"))
}

/// Restarts the server, and checks that it has the same content and the same problems.
async fn and_again(mut server: Server, node: &Node, problems: &[&str], context: &str) {
    let before = contents(&server.sdk()).await;
    server.kill();
    let context = format!("{context}, started again");
    let (server, after) = start_and_read(&node.setup, node).await;
    after.are(&before, &context);
    expect_problems(&server, problems, &context).await;
}

async fn killed(history: &History) {
    let context = row("Killed, or a power cut");
    let node = history.copy().await;
    let (server, after) = start_and_read(&node.setup, &node).await;
    after.are(history.full(), context);
    expect_problems(&server, &[], context).await;
    and_again(server, &node, &[], context).await;
}

async fn database_lost(history: &History, loss: Loss) {
    let context = &format!("{}: {loss:?}", row("The database is lost or damaged"));
    let node = history.copy().await;
    inflict(&node, loss, RepositoryLoss::Nothing);
    let (server, after) = start_and_read(&node.setup, &node).await;
    after.are(history.full(), context);
    expect_problems(&server, &[], context).await;
    and_again(server, &node, &[], context).await;
}

/// The refused loss is accepted, and restored from the remaining copies.
async fn restored(history: &History, name: &str, loss: Loss, code: &str) {
    let context = row(name);
    let node = history.copy().await;
    inflict(&node, loss, RepositoryLoss::Nothing);
    refused(&node.setup, &node, code, context).await;
    let (server, after) = start_and_read(&restore(&node), &node).await;
    after.are_between(&history.phases[2], history.full(), context);
    expect_problems(&server, &[], context).await;
    and_again(server, &node, &[], context).await;
}

async fn unreadable(history: &History) {
    let context = row("Something cannot be read");
    let node = history.copy().await;
    let file = newest(&node.data().join("log"), |name| name.ends_with(".raftlog"));
    let aside = file.with_extension("aside");
    fs::rename(&file, &aside).unwrap();
    symlink(&file, &file).unwrap();
    refused(&node.setup, &node, "unreadable", context).await;
    refused(&restore(&node), &node, "unreadable", context).await;
    fs::rename(&aside, &file).unwrap();
    let (server, after) = start_and_read(&node.setup, &node).await;
    after.are(history.full(), context);
    expect_problems(&server, &[], context).await;
}

async fn local_snapshots_left(history: &History) {
    let context = row("Only local snapshots are left");
    let node = super::empty_directories::only_checkpoints_are_left(history).await;
    refused(&node.setup, &node, "data_dir_holds_copies", context).await;
    let (server, after) = start_and_read(&restore(&node), &node).await;
    after.are_between(&history.phases[2], history.full(), context);
    expect_problems(&server, &[], context).await;
    and_again(server, &node, &[], context).await;
}

async fn basin_unknown(history: &History) {
    let context = row("Streams without their basin");
    let node = history.copy().await;
    inflict(&node, Loss::Everything, RepositoryLoss::Nothing);
    node.target.damage(0, 0);
    let (server, _) = start_and_read(&restore(&node), &node).await;
    expect_problems(&server, &["abandoned_snapshots", "basin_unknown"], context).await;
    let what = problem(&server, "basin_unknown").await["what"].to_string();
    let id = what.split("basin ").nth(1).unwrap();
    let id = id.split(',').next().unwrap();
    let adopt = ["stream", "adopt", "basin-of-3", id, "--server"];
    let adopted = esker(&[&adopt[..], &[server.url()]].concat()).await;
    assert!(adopted.status.success(), "{context}: {adopted:?}");
    // The catalog's damaged snapshot waits to be pruned.
    expect_problems(&server, &["abandoned_snapshots"], context).await;
    and_again(server, &node, &["abandoned_snapshots"], context).await;
}

async fn newest_damaged(history: &History) {
    let context = row("The newest snapshot is damaged");
    let node = history.copy().await;
    inflict(
        &node,
        Loss::DatabaseAndLocalSnapshots,
        RepositoryLoss::NewestFlipped,
    );
    let (server, after) = start_and_read(&node.setup, &node).await;
    after.are(history.full(), context);
    // The scrub has found the object, of which there is no copy, and a whole snapshot was put.
    expect_problems(&server, &["snapshot_damaged"], context).await;
    and_again(server, &node, &["snapshot_damaged"], context).await;
    // The damage is found by a verification: a new snapshot shares no object with the damaged one.
    let node = history.copy().await;
    let (server, _) = start_and_read(&node.setup, &node).await;
    expect_problems(&server, &[], context).await;
    RepositoryLoss::NewestFlipped.inflict(&node.target);
    let verify = ["snapshot", "verify", "--data", "--server", server.url()];
    for round in 0..4 {
        let verified = esker(&verify).await;
        // Until the damaged snapshot is no longer retained.
        assert_eq!(
            verified.status.success(),
            round == 3,
            "{context}: {verified:?}"
        );
        if round < 3 {
            let advice = String::from_utf8_lossy(&verified.stderr).into_owned();
            assert!(
                advice.contains("esker snapshot create"),
                "{context}: {advice}"
            );
            // Every partition gets something new.
            sdk::basin(&server.sdk(), &format!("made-in-round-{round}")).await;
            for i in 0..6 {
                sdk::append(&stream(&server.sdk(), &kept(i)), ["more"]).await;
            }
            let create = ["snapshot", "create", "--server", server.url()];
            let created = esker(&create).await;
            assert!(created.status.success(), "{context}: {created:?}");
        }
    }
    expect_problems(&server, &[], context).await;
    and_again(server, &node, &[], context).await;
    // If the data directory is lost as well, the damaged snapshot is abandoned.
    let node = history.copy().await;
    inflict(&node, Loss::Everything, RepositoryLoss::NewestFlipped);
    let (server, after) = start_and_read(&restore(&node), &node).await;
    after.are(&history.phases[1].after_forks(1), context);
    expect_problems(&server, &["abandoned_snapshots"], context).await;
    for partition in ["0", "1", "2"] {
        let prune = ["snapshot", "prune", "--partition", partition, "--abandoned"];
        let rest = ["--min-age", "0s", "--yes", "--server", server.url()];
        let pruned = esker(&[&prune[..], &rest[..]].concat()).await;
        assert!(pruned.status.success(), "{context}: {pruned:?}");
    }
    expect_problems(&server, &[], context).await;
    and_again(server, &node, &[], context).await;
}

async fn all_damaged(history: &History) {
    let context = row("All snapshots are damaged");
    let node = history.copy().await;
    let there = node.target.all();
    inflict(&node, Loss::DatabaseAndLocalSnapshots, RepositoryLoss::All);
    refused(&node.setup, &node, "nothing_usable", context).await;
    refused(&restore(&node), &node, "nothing_usable", context).await;
    for (key, content) in there {
        node.target.replace(&key, content);
    }
    let (server, after) = start_and_read(&node.setup, &node).await;
    after.are(history.full(), context);
    expect_problems(&server, &[], context).await;
    and_again(server, &node, &[], context).await;
}

async fn no_copy(history: &History) {
    let context = row("No copy of a partition is left");
    let node = history.copy().await;
    inflict(&node, Loss::Everything, RepositoryLoss::Nothing);
    for key in node.target.keys() {
        if key.starts_with("2/") {
            node.target.remove(&key);
        }
    }
    refused(&restore(&node), &node, "nothing_usable", context).await;
    let named = restore(&node).empty_partitions("2");
    let (server, _) = start_and_read(&named, &node).await;
    expect_problems(&server, &[], context).await;
    and_again(server, &node, &[], context).await;
}

async fn out_of_reach() {
    let context = row("The repository cannot be reached");
    let node = Node::new(Kind::S3, eager()).await;
    let server = node.setup.start(&node.data()).await;
    let basin = sdk::basin(&server.sdk(), "test-basin").await;
    let stream = sdk::stream(&basin, "orders").await;
    caught_up(&server, &node.target).await;
    expect_problems(&server, &[], context).await;
    node.target.s3().fail(Fault::Disconnect);
    sdk::append(&stream, ["meanwhile"]).await;
    expect_problems(&server, &["repository_failing"], context).await;
    node.target.s3().heal();
    caught_up(&server, &node.target).await;
    expect_problems(&server, &[], context).await;
}

async fn root_removed(history: &History) {
    let context = row("The repository was emptied, or a root removed");
    let node = history.eager_copy().await;
    let (mut server, _) = start_and_read(&node.setup, &node).await;
    caught_up(&server, &node.target).await;
    let partition = partition_of_kept(&server).await;
    caught_up(&server, &node.target).await;
    // A root is missing, and is brought back.
    let key = format!("{partition}/latest.json");
    let root = node.target.get(&key).unwrap();
    node.target.remove(&key);
    append(&server).await;
    expect_problems(&server, &["repository_root_missing"], context).await;
    node.target.replace(&key, root);
    caught_up(&server, &node.target).await;
    expect_problems(&server, &[], context).await;
    // Or no copy of it exists, and the partition's directory is moved away.
    node.target.remove(&key);
    append(&server).await;
    expect_problems(&server, &["repository_root_missing"], context).await;
    let dir = directory(&node).join(partition.to_string());
    fs::rename(&dir, node.path("moved-away")).unwrap();
    caught_up(&server, &node.target).await;
    expect_problems(&server, &[], context).await;
    // The partition's directory is removed.
    fs::remove_dir_all(&dir).unwrap();
    server.kill();
    server.restart(&node.setup).await;
    eventually("the partition has a snapshot again", async || {
        node.target.root(partition)
    })
    .await;
    expect_problems(&server, &[], context).await;
    and_again(server, &node, &[], context).await;
}

/// The root is missing when the sweep after a snapshot reads it.
async fn root_removed_before_a_sweep() {
    let context = row("The repository was emptied, or a root removed");
    let setup = eager().set("snapshots.snapshot-interval=1h");
    let node = Node::new(Kind::S3, setup).await;
    let server = node.setup.start(&node.data()).await;
    node.target.roots().await;
    let key = "1/latest.json";
    let s3 = node.target.s3();
    s3.remove_at_list("esker/1/", &format!("esker/{key}"));
    let create = ["snapshot", "create", "--partition", "1", "--server"];
    let created = esker(&[&create[..], &[server.url()]].concat()).await;
    assert!(created.status.success(), "{context}: {created:?}");
    expect_problems(&server, &["repository_root_missing"], context).await;
    assert!(node.target.get(key).is_none(), "{context}");
    // After it is brought back, the next check finds it, although nothing is swept for an hour.
    let root = s3.removed().expect("it was removed");
    node.target.replace(key, root);
    expect_problems(&server, &[], context).await;
}

/// The partition that has the first stream.
async fn partition_of_kept(server: &Server) -> u64 {
    let before = super::history::log_ends(server).await;
    append(server).await;
    let after = super::history::log_ends(server).await;
    let mut ends = (0..).zip(before.iter().zip(&after)).skip(1);
    ends.find(|(_, (before, after))| before < after).unwrap().0
}

async fn not_mounted(history: &History) {
    let context = row("The repository is not mounted, or was emptied");
    let node = history.eager_copy().await;
    let (mut server, _) = start_and_read(&node.setup, &node).await;
    caught_up(&server, &node.target).await;
    let disk = node.path("disk");
    fs::rename(directory(&node), &disk).unwrap();
    fs::create_dir(directory(&node)).unwrap();
    append(&server).await;
    expect_problems(&server, &["repository_missing"], context).await;
    fs::remove_dir_all(directory(&node)).unwrap();
    fs::rename(&disk, directory(&node)).unwrap();
    caught_up(&server, &node.target).await;
    expect_problems(&server, &[], context).await;
    // The repository is emptied on purpose.
    node.target.empty();
    append(&server).await;
    expect_problems(&server, &["repository_missing"], context).await;
    server.stop().await;
    fs::remove_file(node.data().join("destination.json")).unwrap();
    server.restart(&node.setup).await;
    caught_up(&server, &node.target).await;
    expect_problems(&server, &[], context).await;
    and_again(server, &node, &[], context).await;
}

async fn copied(history: &History) {
    let context = row("A copy of the data directory");
    let node = history.eager_copy().await;
    let copied = node.path("copied");
    copy_dir(&node.data(), &copied);
    let (server, _) = start_and_read(&node.setup, &node).await;
    append(&server).await;
    caught_up(&server, &node.target).await;
    let mut copy = node.setup.start(&copied).await;
    append(&copy).await;
    expect_problems(&copy, &["repository_other_writer"], context).await;
    expect_problems(&server, &[], context).await;
    // A destination of its own is configured for the copy.
    copy.stop().await;
    let own = format!("snapshots.destination={}", node.path("own").display());
    let own = node.setup.clone().set(&own);
    copy.restart(&own).await;
    append(&copy).await;
    expect_problems(&copy, &[], context).await;
    append(&server).await;
    caught_up(&server, &node.target).await;
    expect_problems(&server, &[], context).await;
}

async fn of_others(history: &History) {
    let context = row("The repository of another cluster");
    let node = history.eager_copy().await;
    let theirs = format!("snapshots.destination={}", node.path("theirs").display());
    let theirs = node.setup.clone().set(&theirs);
    let other = theirs.start(&node.path("other-data")).await;
    expect_problems(&other, &[], context).await;
    let mut server = theirs.start(&node.data()).await;
    append(&server).await;
    expect_problems(&server, &["repository_of_others"], context).await;
    server.stop().await;
    server.restart(&node.setup).await;
    append(&server).await;
    caught_up(&server, &node.target).await;
    expect_problems(&server, &[], context).await;
    expect_problems(&other, &[], context).await;
}

async fn log_too_large() {
    let context = row("The log is larger than max-log-bytes");
    let setup = eager()
        .set("snapshots.snapshot-interval=1h")
        .set("log.segment-size=1MiB")
        .set("log.purge-threshold=2MiB")
        .set("log.flush-after=1MiB")
        .set("snapshots.max-log-bytes=6MiB")
        .set("snapshots.local-snapshot-bytes=1MiB");
    let node = Node::new(Kind::Directory, setup).await;
    let server = node.setup.start(&node.data()).await;
    node.target.roots().await;
    let basin = sdk::basin(&server.sdk(), "test-basin").await;
    let stream = sdk::stream(&basin, "orders").await;
    for _ in 0..100 {
        sdk::append(&stream, ["x".repeat(100 * 1024)]).await;
    }
    expect_problems(&server, &["log_trimmed"], context).await;
    // As many snapshots as are retained, also of partitions without changes.
    for _ in 0..3 {
        let created = esker(&["snapshot", "create", "--server", server.url()]).await;
        assert!(created.status.success(), "{context}: {created:?}");
    }
    expect_problems(&server, &[], context).await;
    and_again(server, &node, &[], context).await;
}

async fn restored_elsewhere(history: &History) {
    let context = row("A node that was restored elsewhere is started again");
    let node = history.eager_copy().await;
    let old = node.path("old");
    copy_dir(&node.data(), &old);
    inflict(&node, Loss::Everything, RepositoryLoss::Nothing);
    let (server, _) = start_and_read(&restore(&node), &node).await;
    append(&server).await;
    caught_up(&server, &node.target).await;
    let mut stale = node.setup.start(&old).await;
    append(&stale).await;
    expect_problems(&stale, &["repository_other_lineage"], context).await;
    stale.stop().await;
    append(&server).await;
    caught_up(&server, &node.target).await;
    expect_problems(&server, &[], context).await;
    and_again(server, &node, &[], context).await;
}

#[tokio::test]
async fn status_and_health_are_true_after_each_way_back_of_a_data_directory() {
    let history = History::new(Kind::Directory, "incremental").await;
    let history = &history;
    let rows: Vec<LocalBoxFuture<'_, ()>> = vec![
        killed(history).boxed_local(),
        database_lost(history, Loss::Database).boxed_local(),
        database_lost(history, Loss::ManifestFlipped).boxed_local(),
        restored(history, "The log is lost", Loss::Log, "log_missing").boxed_local(),
        restored(history, "The log is damaged", Loss::LogDamaged, "log").boxed_local(),
        unreadable(history).boxed_local(),
        local_snapshots_left(history).boxed_local(),
        restored(
            history,
            "The data directory is lost",
            Loss::Everything,
            "repository_holds_cluster",
        )
        .boxed_local(),
        basin_unknown(history).boxed_local(),
        newest_damaged(history).boxed_local(),
        all_damaged(history).boxed_local(),
        no_copy(history).boxed_local(),
    ];
    run_concurrently(rows).await;
}

#[tokio::test]
async fn status_and_health_are_true_after_each_trouble_with_a_repository() {
    let history = History::new(Kind::Directory, "incremental").await;
    let history = &history;
    let rows: Vec<LocalBoxFuture<'_, ()>> = vec![
        out_of_reach().boxed_local(),
        root_removed_before_a_sweep().boxed_local(),
        root_removed(history).boxed_local(),
        not_mounted(history).boxed_local(),
        copied(history).boxed_local(),
        of_others(history).boxed_local(),
        log_too_large().boxed_local(),
        restored_elsewhere(history).boxed_local(),
    ];
    run_concurrently(rows).await;
}
