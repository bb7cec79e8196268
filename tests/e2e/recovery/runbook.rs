//! The runbook: each of its situations is made, what it documents is done, and status and health show what
//! is the case then: nothing, or exactly the problem that the row names.

use std::fs;
use std::os::unix::fs::symlink;
use std::process::Command;
use std::time::Instant;

use futures::FutureExt as _;
use futures::future::LocalBoxFuture;
use serde_json::Value;
use testkit_s3::Fault;

use super::contents::{contents, stream};
use super::losses::{Harm, Loss, befall, newest};
use super::past::{Past, caught_up, eager, kept, play, seen};
use super::place::{Kind, Place, Scene, copy_dir};
use crate::support::{SOON, Server, Setup, eventually, sdk};

/// The sections of the runbook in `docs/operating/recovery.md`, in their order.
const ROWS: &[&str] = &[
    "Killed, or a power cut",
    "The database is lost or damaged",
    "The log is lost",
    // It takes a merge: `damage_that_a_merge_meets_is_repaired_by_the_server_and_other_partitions_go_on`.
    "A running server meets damage",
    "The log is damaged",
    "Something cannot be read",
    "Only local snapshots are left",
    "The data directory is lost",
    "Streams without their basin",
    "The newest snapshot is damaged",
    "All snapshots are damaged",
    "No copy of a partition is left",
    "The repository cannot be reached",
    "The repository was emptied, or a root removed",
    "The repository is not mounted, or was emptied",
    "A copy of the data directory",
    "The repository of another cluster",
    // It takes a small disk: `a_full_disk_refuses_appends_and_nothing_else_and_service_resumes_by_itself`.
    "Disk full",
    // And this a file system that can be frozen:
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

/// Waits until the status names exactly these problems; then whether it is healthy, and what `esker status`
/// ends with, follow from whether they are advice. That no snapshot was restored and compared yet is always
/// advised.
pub async fn stands(server: &Server, problems: &[&str], context: &str) {
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

fn restore(scene: &Scene) -> Setup {
    scene.setup.clone().bootstrap("restore")
}

async fn refused(setup: &Setup, scene: &Scene, code: &str, context: &str) {
    let (exit, log) = setup.start_refused(&scene.data()).await;
    assert_eq!(exit, 1, "{context}: {log}");
    assert!(log.contains(&format!("error [{code}]")), "{context}: {log}");
}

fn directory(scene: &Scene) -> &std::path::Path {
    match &scene.place {
        Place::Directory(dir) => dir,
        Place::S3(_) => panic!("it is no directory"),
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

/// The same server, started again, has what it had, and the same problems.
async fn and_again(mut server: Server, scene: &Scene, problems: &[&str], context: &str) {
    let before = contents(&server.sdk()).await;
    server.kill();
    let context = format!("{context}, started again");
    let (server, after) = seen(&scene.setup, scene).await;
    after.are(&before, &context);
    stands(&server, problems, &context).await;
}

async fn killed(past: &Past) {
    let context = row("Killed, or a power cut");
    let scene = past.copy().await;
    let (server, after) = seen(&scene.setup, &scene).await;
    after.are(past.full(), context);
    stands(&server, &[], context).await;
    and_again(server, &scene, &[], context).await;
}

async fn database_lost(past: &Past, loss: Loss) {
    let context = &format!("{}: {loss:?}", row("The database is lost or damaged"));
    let scene = past.copy().await;
    befall(&scene, loss, Harm::Nothing);
    let (server, after) = seen(&scene.setup, &scene).await;
    after.are(past.full(), context);
    stands(&server, &[], context).await;
    and_again(server, &scene, &[], context).await;
}

/// What is refused is accepted, from the copies that are left.
async fn restored(past: &Past, name: &str, loss: Loss, code: &str) {
    let context = row(name);
    let scene = past.copy().await;
    befall(&scene, loss, Harm::Nothing);
    refused(&scene.setup, &scene, code, context).await;
    let (server, after) = seen(&restore(&scene), &scene).await;
    after.are_between(&past.phases[2], past.full(), context);
    stands(&server, &[], context).await;
    and_again(server, &scene, &[], context).await;
}

async fn unreadable(past: &Past) {
    let context = row("Something cannot be read");
    let scene = past.copy().await;
    let file = newest(&scene.data().join("log"), |name| name.ends_with(".raftlog"));
    let aside = file.with_extension("aside");
    fs::rename(&file, &aside).unwrap();
    symlink(&file, &file).unwrap();
    refused(&scene.setup, &scene, "unreadable", context).await;
    refused(&restore(&scene), &scene, "unreadable", context).await;
    fs::rename(&aside, &file).unwrap();
    let (server, after) = seen(&scene.setup, &scene).await;
    after.are(past.full(), context);
    stands(&server, &[], context).await;
}

async fn local_snapshots_left(past: &Past) {
    let context = row("Only local snapshots are left");
    let scene = super::empty_directories::only_checkpoints_are_left(past).await;
    refused(&scene.setup, &scene, "data_dir_holds_copies", context).await;
    let (server, after) = seen(&restore(&scene), &scene).await;
    after.are_between(&past.phases[2], past.full(), context);
    stands(&server, &[], context).await;
    and_again(server, &scene, &[], context).await;
}

async fn basin_unknown(past: &Past) {
    let context = row("Streams without their basin");
    let scene = past.copy().await;
    befall(&scene, Loss::Everything, Harm::Nothing);
    scene.place.damage(0, 0);
    let (server, _) = seen(&restore(&scene), &scene).await;
    stands(&server, &["abandoned_snapshots", "basin_unknown"], context).await;
    let what = problem(&server, "basin_unknown").await["what"].to_string();
    let id = what.split("basin ").nth(1).unwrap();
    let id = id.split(',').next().unwrap();
    let adopt = ["stream", "adopt", "basin-of-3", id, "--server"];
    let adopted = esker(&[&adopt[..], &[server.url()]].concat()).await;
    assert!(adopted.status.success(), "{context}: {adopted:?}");
    // The catalog's damaged snapshot waits to be pruned.
    stands(&server, &["abandoned_snapshots"], context).await;
    and_again(server, &scene, &["abandoned_snapshots"], context).await;
}

async fn newest_damaged(past: &Past) {
    let context = row("The newest snapshot is damaged");
    let scene = past.copy().await;
    befall(&scene, Loss::DatabaseAndLocalSnapshots, Harm::NewestFlipped);
    let (server, after) = seen(&scene.setup, &scene).await;
    after.are(past.full(), context);
    stands(&server, &[], context).await;
    and_again(server, &scene, &[], context).await;
    // Found because somebody looks: a new snapshot shares nothing with what is damaged.
    let scene = past.copy().await;
    let (server, _) = seen(&scene.setup, &scene).await;
    stands(&server, &[], context).await;
    Harm::NewestFlipped.befall(&scene.place);
    let verify = ["snapshot", "verify", "--data", "--server", server.url()];
    for round in 0..4 {
        let verified = esker(&verify).await;
        // Until the damaged one is not retained any more.
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
            // Something new in every partition.
            sdk::basin(&server.sdk(), &format!("made-in-round-{round}")).await;
            for i in 0..6 {
                sdk::append(&stream(&server.sdk(), &kept(i)), ["more"]).await;
            }
            let create = ["snapshot", "create", "--server", server.url()];
            let created = esker(&create).await;
            assert!(created.status.success(), "{context}: {created:?}");
        }
    }
    stands(&server, &[], context).await;
    and_again(server, &scene, &[], context).await;
    // With the data directory lost as well, what is damaged is abandoned.
    let scene = past.copy().await;
    befall(&scene, Loss::Everything, Harm::NewestFlipped);
    let (server, after) = seen(&restore(&scene), &scene).await;
    after.are(&past.phases[1].after_forks(1), context);
    stands(&server, &["abandoned_snapshots"], context).await;
    for partition in ["0", "1", "2"] {
        let prune = ["snapshot", "prune", "--partition", partition, "--abandoned"];
        let rest = ["--min-age", "0s", "--yes", "--server", server.url()];
        let pruned = esker(&[&prune[..], &rest[..]].concat()).await;
        assert!(pruned.status.success(), "{context}: {pruned:?}");
    }
    stands(&server, &[], context).await;
    and_again(server, &scene, &[], context).await;
}

async fn all_damaged(past: &Past) {
    let context = row("All snapshots are damaged");
    let scene = past.copy().await;
    let there = scene.place.all();
    befall(&scene, Loss::DatabaseAndLocalSnapshots, Harm::All);
    refused(&scene.setup, &scene, "nothing_usable", context).await;
    refused(&restore(&scene), &scene, "nothing_usable", context).await;
    for (key, content) in there {
        scene.place.replace(&key, content);
    }
    let (server, after) = seen(&scene.setup, &scene).await;
    after.are(past.full(), context);
    stands(&server, &[], context).await;
    and_again(server, &scene, &[], context).await;
}

async fn no_copy(past: &Past) {
    let context = row("No copy of a partition is left");
    let scene = past.copy().await;
    befall(&scene, Loss::Everything, Harm::Nothing);
    for key in scene.place.keys() {
        if key.starts_with("2/") {
            scene.place.remove(&key);
        }
    }
    refused(&restore(&scene), &scene, "nothing_usable", context).await;
    let named = restore(&scene).empty_partitions("2");
    let (server, _) = seen(&named, &scene).await;
    stands(&server, &[], context).await;
    and_again(server, &scene, &[], context).await;
}

async fn out_of_reach() {
    let context = row("The repository cannot be reached");
    let scene = Scene::new(Kind::S3, eager()).await;
    let server = scene.setup.start(&scene.data()).await;
    let basin = sdk::basin(&server.sdk(), "test-basin").await;
    let stream = sdk::stream(&basin, "orders").await;
    caught_up(&server, &scene.place).await;
    stands(&server, &[], context).await;
    scene.place.s3().fail(Fault::Disconnect);
    sdk::append(&stream, ["meanwhile"]).await;
    stands(&server, &["repository_failing"], context).await;
    scene.place.s3().heal();
    caught_up(&server, &scene.place).await;
    stands(&server, &[], context).await;
}

async fn root_removed(past: &Past) {
    let context = row("The repository was emptied, or a root removed");
    let scene = past.eager_copy().await;
    let (mut server, _) = seen(&scene.setup, &scene).await;
    caught_up(&server, &scene.place).await;
    let partition = partition_of_kept(&server).await;
    caught_up(&server, &scene.place).await;
    // A root: it is brought back.
    let key = format!("{partition}/latest.json");
    let root = scene.place.get(&key).unwrap();
    scene.place.remove(&key);
    append(&server).await;
    stands(&server, &["repository_root_missing"], context).await;
    scene.place.replace(&key, root);
    caught_up(&server, &scene.place).await;
    stands(&server, &[], context).await;
    // Or there is none, and the partition's directory is moved away.
    scene.place.remove(&key);
    append(&server).await;
    stands(&server, &["repository_root_missing"], context).await;
    let dir = directory(&scene).join(partition.to_string());
    fs::rename(&dir, scene.path("moved-away")).unwrap();
    caught_up(&server, &scene.place).await;
    stands(&server, &[], context).await;
    // Everything of it is gone.
    fs::remove_dir_all(&dir).unwrap();
    server.kill();
    server.restart(&scene.setup).await;
    eventually("the partition has a snapshot again", async || {
        scene.place.root(partition)
    })
    .await;
    stands(&server, &[], context).await;
    and_again(server, &scene, &[], context).await;
}

/// The partition that has the first stream.
async fn partition_of_kept(server: &Server) -> u64 {
    let before = super::past::log_ends(server).await;
    append(server).await;
    let after = super::past::log_ends(server).await;
    let mut ends = (0..).zip(before.iter().zip(&after)).skip(1);
    ends.find(|(_, (before, after))| before < after).unwrap().0
}

async fn not_mounted(past: &Past) {
    let context = row("The repository is not mounted, or was emptied");
    let scene = past.eager_copy().await;
    let (mut server, _) = seen(&scene.setup, &scene).await;
    caught_up(&server, &scene.place).await;
    let disk = scene.path("disk");
    fs::rename(directory(&scene), &disk).unwrap();
    fs::create_dir(directory(&scene)).unwrap();
    append(&server).await;
    stands(&server, &["repository_missing"], context).await;
    fs::remove_dir_all(directory(&scene)).unwrap();
    fs::rename(&disk, directory(&scene)).unwrap();
    caught_up(&server, &scene.place).await;
    stands(&server, &[], context).await;
    // Removed on purpose.
    scene.place.empty();
    append(&server).await;
    stands(&server, &["repository_missing"], context).await;
    server.stop().await;
    fs::remove_file(scene.data().join("destination.json")).unwrap();
    server.restart(&scene.setup).await;
    caught_up(&server, &scene.place).await;
    stands(&server, &[], context).await;
    and_again(server, &scene, &[], context).await;
}

async fn copied(past: &Past) {
    let context = row("A copy of the data directory");
    let scene = past.eager_copy().await;
    let copied = scene.path("copied");
    copy_dir(&scene.data(), &copied);
    let (server, _) = seen(&scene.setup, &scene).await;
    append(&server).await;
    caught_up(&server, &scene.place).await;
    let mut copy = scene.setup.start(&copied).await;
    append(&copy).await;
    stands(&copy, &["repository_other_writer"], context).await;
    stands(&server, &[], context).await;
    // A destination of its own.
    copy.stop().await;
    let own = format!("snapshots.destination={}", scene.path("own").display());
    let own = scene.setup.clone().set(&own);
    copy.restart(&own).await;
    append(&copy).await;
    stands(&copy, &[], context).await;
    append(&server).await;
    caught_up(&server, &scene.place).await;
    stands(&server, &[], context).await;
}

async fn of_others(past: &Past) {
    let context = row("The repository of another cluster");
    let scene = past.eager_copy().await;
    let theirs = format!("snapshots.destination={}", scene.path("theirs").display());
    let theirs = scene.setup.clone().set(&theirs);
    let other = theirs.start(&scene.path("other-data")).await;
    stands(&other, &[], context).await;
    let mut server = theirs.start(&scene.data()).await;
    append(&server).await;
    stands(&server, &["repository_of_others"], context).await;
    server.stop().await;
    server.restart(&scene.setup).await;
    append(&server).await;
    caught_up(&server, &scene.place).await;
    stands(&server, &[], context).await;
    stands(&other, &[], context).await;
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
    let scene = Scene::new(Kind::Directory, setup).await;
    let server = scene.setup.start(&scene.data()).await;
    scene.place.roots().await;
    let basin = sdk::basin(&server.sdk(), "test-basin").await;
    let stream = sdk::stream(&basin, "orders").await;
    for _ in 0..100 {
        sdk::append(&stream, ["x".repeat(100 * 1024)]).await;
    }
    stands(&server, &["log_trimmed"], context).await;
    // Snapshots more often: as many as are retained, each of something new, also in the catalog.
    for round in 0..3 {
        sdk::append(&stream, ["x".repeat(100)]).await;
        sdk::basin(&server.sdk(), &format!("made-in-round-{round}")).await;
        let created = esker(&["snapshot", "create", "--server", server.url()]).await;
        assert!(created.status.success(), "{context}: {created:?}");
    }
    stands(&server, &[], context).await;
    and_again(server, &scene, &[], context).await;
}

async fn restored_elsewhere(past: &Past) {
    let context = row("A node that was restored elsewhere is started again");
    let scene = past.eager_copy().await;
    let old = scene.path("old");
    copy_dir(&scene.data(), &old);
    befall(&scene, Loss::Everything, Harm::Nothing);
    let (server, _) = seen(&restore(&scene), &scene).await;
    append(&server).await;
    caught_up(&server, &scene.place).await;
    let mut stale = scene.setup.start(&old).await;
    append(&stale).await;
    stands(&stale, &["repository_other_lineage"], context).await;
    stale.stop().await;
    append(&server).await;
    caught_up(&server, &scene.place).await;
    stands(&server, &[], context).await;
    and_again(server, &scene, &[], context).await;
}

#[tokio::test]
async fn status_and_health_are_true_after_each_way_back_of_a_data_directory() {
    let past = Past::new(Kind::Directory, "incremental").await;
    let past = &past;
    let rows: Vec<LocalBoxFuture<'_, ()>> = vec![
        killed(past).boxed_local(),
        database_lost(past, Loss::Database).boxed_local(),
        database_lost(past, Loss::ManifestFlipped).boxed_local(),
        restored(past, "The log is lost", Loss::Log, "log_missing").boxed_local(),
        restored(past, "The log is damaged", Loss::LogDamaged, "log").boxed_local(),
        unreadable(past).boxed_local(),
        local_snapshots_left(past).boxed_local(),
        restored(
            past,
            "The data directory is lost",
            Loss::Everything,
            "repository_holds_cluster",
        )
        .boxed_local(),
        basin_unknown(past).boxed_local(),
        newest_damaged(past).boxed_local(),
        all_damaged(past).boxed_local(),
        no_copy(past).boxed_local(),
    ];
    play(rows).await;
}

#[tokio::test]
async fn status_and_health_are_true_after_each_trouble_with_a_repository() {
    let past = Past::new(Kind::Directory, "incremental").await;
    let past = &past;
    let rows: Vec<LocalBoxFuture<'_, ()>> = vec![
        out_of_reach().boxed_local(),
        root_removed(past).boxed_local(),
        not_mounted(past).boxed_local(),
        copied(past).boxed_local(),
        of_others(past).boxed_local(),
        log_too_large().boxed_local(),
        restored_elsewhere(past).boxed_local(),
    ];
    play(rows).await;
}
