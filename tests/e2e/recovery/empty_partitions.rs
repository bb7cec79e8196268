//! Partitions without any copy: they begin empty if the operator names them, and the others are recovered.

use std::fs;
use std::time::Duration;

use serde_json::Value;
use testkit::corruption::{change_alone, flip_middle};

use super::contents::{Contents, contents};
use super::history::{History, caught_up, is_healthy, run_concurrently, start_and_read};
use super::losses::{Loss, RepositoryLoss, inflict};
use super::target::{Kind, Node, Target, files};
use crate::support::{Server, Setup, eventually, sdk};

fn restore(node: &Node) -> Setup {
    node.setup.clone().bootstrap("restore")
}

/// Removes everything of a partition from the repository.
fn forget_partition(target: &Target, partition: u64) {
    let below = format!("{partition}/");
    for key in target.keys() {
        if key.starts_with(&below) {
            target.remove(&key);
        }
    }
}

/// Checks that a start is refused with this code, and the repository is unchanged. Returns its output.
async fn refused(setup: &Setup, node: &Node, code: &str) -> String {
    let keys = node.target.keys();
    let (exit, log) = setup.start_refused(&node.data()).await;
    assert_eq!(exit, 1, "{log}");
    assert!(log.contains(&format!("error [{code}]")), "{code}: {log}");
    assert_eq!(node.target.keys(), keys, "{log}");
    log
}

async fn status(server: &Server) -> Value {
    let status = server.http1().get("/esker/v1/status").send().await;
    status.expect(200).json()
}

/// How the last start recovered a partition: its source, and the LSN after which something is lost.
async fn recovered(server: &Server, partition: usize) -> (String, Option<u64>) {
    let recovered = status(server).await["recovery"]["partitions"][partition].clone();
    let source = recovered["source"].as_str().unwrap().to_owned();
    (source, recovered["lost_after"].as_u64())
}

/// Checks that the streams of `wanted` that exist are exactly as in `wanted`. Returns the names of the
/// others.
fn some_of(found: &Contents, wanted: &Contents, context: &str) -> Vec<String> {
    let there = wanted.0.iter();
    let there = there.filter(|(name, _)| found.0.contains_key(*name));
    let there = Contents(there.map(|(n, s)| (n.clone(), s.clone())).collect());
    found.are(&there, context);
    let lost: Vec<String> = wanted.0.keys().cloned().collect();
    lost.into_iter()
        .filter(|name| !found.0.contains_key(name))
        .collect()
}

async fn one_partition_begins_empty(destination: Kind) {
    let history = History::new(destination, "incremental").await;
    let node = history.eager_copy().await;
    inflict(&node, Loss::Everything, RepositoryLoss::Nothing);
    forget_partition(&node.target, 2);
    // The plain restore names the partitions without a copy, and the option.
    for _ in 0..2 {
        let log = refused(&restore(&node), &node, "nothing_usable").await;
        assert!(log.contains("is left of partition 2"), "{log}");
        let way_out = "--bootstrap restore --empty-partitions 2:";
        assert!(log.contains(way_out), "{log}");
    }
    let named = restore(&node).empty_partitions("2");
    let (mut server, after) = start_and_read(&named, &node).await;
    let wanted = history.phases[2].after_forks(1);
    let lost = some_of(&after, &wanted, "without partition 2");
    assert!(!lost.is_empty() && lost.len() < wanted.0.len(), "{lost:?}");
    assert_eq!(recovered(&server, 2).await, ("empty".to_owned(), Some(0)));
    let (_, lost_after) = recovered(&server, 1).await;
    assert!(lost_after.is_some_and(|lsn| lsn > 0));
    server.logged("the partition begins empty").await;
    let shown = esker_status(&server).await;
    assert!(
        shown.contains("partition 2 began a new lineage, empty: all that was in it is lost"),
        "{shown}"
    );

    // A lost stream is like a deleted one: created again, it is another stream.
    let (basin, name) = lost[0].split_once('/').unwrap();
    let again = server.sdk().basin(sdk::basin_name(basin));
    let again = sdk::stream(&again, name).await;
    let ack = sdk::append(&again, ["of another stream"]).await;
    assert_eq!(ack.start.seq_num, 0);
    let appended = contents(&server.sdk()).await;
    let created = |of: &Contents| of.0[&lost[0]].created_at.clone();
    assert_ne!(created(&appended), created(&wanted));
    caught_up(&server, &node.target).await;
    is_healthy(&server, "after an empty partition").await;
    server.kill();

    // The option counted for one start only.
    let (mut server, again) = start_and_read(&named, &node).await;
    again.are(&appended, "started again");
    server.logged("--empty-partitions: it was said").await;
    is_healthy(&server, "started again").await;
    server.kill();

    // A partition that has begun empty has copies like the others, and does not begin empty again because it
    // was named once.
    inflict(&node, Loss::Everything, RepositoryLoss::Nothing);
    let log = refused(&named, &node, "empty_partitions").await;
    assert!(log.contains("there is a copy of it: repository"), "{log}");
    let (_server, twice) = start_and_read(&restore(&node), &node).await;
    twice.are(&appended.after_forks(1), "lost twice");
}

async fn esker_status(server: &Server) -> String {
    let mut status = std::process::Command::new(env!("CARGO_BIN_EXE_esker"));
    status.args(["status", "--server", server.url()]);
    let shown = tokio::task::spawn_blocking(move || status.output()).await;
    String::from_utf8(shown.unwrap().unwrap().stdout).unwrap()
}

#[tokio::test]
async fn a_partition_without_any_copy_in_a_directory_begins_empty_if_it_is_named() {
    one_partition_begins_empty(Kind::Directory).await;
}

#[tokio::test]
async fn a_partition_without_any_copy_in_s3_begins_empty_if_it_is_named() {
    one_partition_begins_empty(Kind::S3).await;
}

#[tokio::test]
async fn a_partition_of_which_all_copies_are_damaged_begins_empty_and_they_stay() {
    let history = History::new(Kind::Directory, "full").await;
    let node = history.copy().await;
    inflict(&node, Loss::Database, RepositoryLoss::Nothing);
    for at in 0..3 {
        node.target.damage(1, at);
    }
    let local = node.data().join("checkpoints/1");
    let tables = files(&local)
        .into_iter()
        .filter(|name| name.ends_with(".sst"));
    let tables: Vec<_> = tables.collect();
    assert!(!tables.is_empty());
    for table in &tables {
        change_alone(&local.join(table), flip_middle);
    }
    refused(&node.setup, &node, "nothing_usable").await;
    let log = refused(&restore(&node), &node, "nothing_usable").await;
    assert!(log.contains("--empty-partitions 1:"), "{log}");
    // All named partitions begin empty, or none does.
    let both = restore(&node).empty_partitions("1,2");
    let log = refused(&both, &node, "empty_partitions").await;
    assert!(log.contains("partition 2"), "{log}");
    let named = restore(&node).empty_partitions("1");
    let (server, after) = start_and_read(&named, &node).await;
    let aside = files(&node.data().join("damaged/checkpoints-1-1"));
    assert_eq!(
        aside.iter().filter(|name| name.ends_with(".sst")).count(),
        tables.len()
    );
    // The log brings the others up to date.
    let lost = some_of(&after, history.full(), "without partition 1");
    assert!(!lost.is_empty());
    assert_eq!(recovered(&server, 1).await.0, "empty");
    is_healthy(
        &server,
        "with damaged snapshots of a lineage that was given up",
    )
    .await;
    let abandoned = eventually("they are abandoned", async || {
        node.target
            .root(1)
            .filter(|root| root.abandoned().len() == 3)
    });
    let there = node.target.keys();
    for dir in abandoned.await.abandoned() {
        assert!(there.iter().any(|key| key.starts_with(&dir)), "{dir}");
    }
}

#[tokio::test]
async fn no_partition_begins_empty_of_which_a_copy_is_there_or_cannot_be_read_now() {
    let history = History::new(Kind::Directory, "incremental").await;
    // The same in an undamaged directory.
    let node = history.copy().await;
    let named = restore(&node).empty_partitions("2");
    let log = refused(&named, &node, "empty_partitions").await;
    assert!(log.contains("there is a copy of it: database"), "{log}");
    let unknown = restore(&node).empty_partitions("3");
    refused(&unknown, &node, "empty_partitions").await;
    let (exit, log) = node
        .setup
        .clone()
        .empty_partitions("2")
        .start_refused(&node.data())
        .await;
    assert_eq!(exit, 2, "{log}");
    drop(start_and_read(&node.setup, &node).await);
    let scenario = async |harm: &str, code: &str| {
        let node = history.copy().await;
        inflict(&node, Loss::Everything, RepositoryLoss::Nothing);
        let root = match &node.target {
            Target::Directory(dir) => dir.join("2/latest.json"),
            Target::S3(_) => unreachable!(),
        };
        let aside = root.with_extension("away");
        fs::rename(&root, &aside).unwrap();
        if harm == "unreadable" {
            fs::create_dir(&root).unwrap();
        }
        let named = restore(&node).empty_partitions("2");
        let log = refused(&named, &node, code).await;
        assert!(!log.contains("begins empty, and"), "{harm}: {log}");
        if harm == "unreadable" {
            fs::remove_dir(&root).unwrap();
        }
        fs::rename(&aside, &root).unwrap();
        refused(&named, &node, "empty_partitions").await;
        let (_server, after) = start_and_read(&restore(&node), &node).await;
        after.are(&history.phases[2].after_forks(1), harm);
    };
    run_concurrently([
        scenario("unreadable", "repository_unreadable"),
        // The snapshots exist: only the root was removed.
        scenario("without its root", "repository_unreadable"),
    ])
    .await;
}

#[tokio::test]
async fn a_catalog_without_any_copy_begins_empty_and_its_basins_are_adopted() {
    let history = History::new(Kind::Directory, "incremental").await;
    let node = history.copy().await;
    inflict(&node, Loss::Everything, RepositoryLoss::Nothing);
    forget_partition(&node.target, 0);
    let log = refused(&restore(&node), &node, "nothing_usable").await;
    assert!(log.contains("--empty-partitions 0:"), "{log}");
    let named = restore(&node).empty_partitions("0");
    let (server, after) = start_and_read(&named, &node).await;
    assert!(after.0.is_empty(), "{after:?}");
    let problems = status(&server).await["problems"].clone();
    let problems = problems.as_array().unwrap().iter();
    let unknown = problems.filter(|one| one["code"] == "basin_unknown");
    let lost = history.phases[2].after_forks(1);
    let mut back = 0;
    for problem in unknown {
        let what = problem["what"].as_str().unwrap();
        let id = what.split("basin ").nth(1).unwrap();
        let id = id.split(',').next().unwrap();
        let of_phase = !what.contains("orders") && !what.contains("made-in");
        let name = if of_phase { "basin-of-3" } else { "kept-basin" };
        let adopted = std::process::Command::new(env!("CARGO_BIN_EXE_esker"))
            .args(["stream", "adopt", name, id, "--server", server.url()])
            .output()
            .unwrap();
        assert!(adopted.status.success(), "{what}: {adopted:?}");
        back += 1;
    }
    assert_eq!(back, 2);
    contents(&server.sdk()).await.are(&lost, "adopted");
    // A basin that is created now has none of the remaining streams.
    let made = sdk::basin(&server.sdk(), "made-after-the-loss").await;
    sdk::append(&sdk::stream(&made, "first").await, ["mine"]).await;
    is_healthy(&server, "after an empty catalog").await;
}

#[tokio::test]
async fn kills_amid_the_beginning_of_an_empty_partition_change_nothing_of_what_comes_of_it() {
    let history = History::new(Kind::Directory, "incremental").await;
    let scenario = async |step: u64| {
        let node = history.copy().await;
        inflict(&node, Loss::Everything, RepositoryLoss::Nothing);
        forget_partition(&node.target, 2);
        let named = restore(&node).empty_partitions("2");
        let decided = async || {
            let plan = fs::read_to_string(node.data().join("restore.json"));
            plan.is_ok_and(|plan| plan.contains("\"empty\": true"))
        };
        for kill in 1..20 {
            let moment = Duration::from_millis(step * kill);
            named.start_and_kill(&node.data(), moment).await;
            if decided().await {
                break;
            }
        }
        // The decision is carried out by the next start, without the option.
        let setup = match decided().await {
            true => node.setup.clone(),
            false => named,
        };
        let (mut server, after) = start_and_read(&setup, &node).await;
        let lost = some_of(&after, &history.phases[2].after_forks(1), "after kills");
        assert!(!lost.is_empty());
        server.kill();
        let (_server, again) = start_and_read(&node.setup, &node).await;
        again.are(&after, "started again");
    };
    run_concurrently((1..=6).map(|step| scenario(7 * step))).await;
}

#[tokio::test]
async fn the_log_of_a_partition_that_began_empty_is_a_copy_of_it_like_any_other() {
    let history = History::new(Kind::Directory, "incremental").await;
    let node = history.copy().await;
    inflict(&node, Loss::Everything, RepositoryLoss::Nothing);
    forget_partition(&node.target, 2);
    let named = restore(&node).empty_partitions("2");
    let (mut server, after) = start_and_read(&named, &node).await;
    let lost = some_of(
        &after,
        &history.phases[2].after_forks(1),
        "without partition 2",
    );
    let (basin, name) = lost[0].split_once('/').unwrap();
    let again = server.sdk().basin(sdk::basin_name(basin));
    let again = sdk::stream(&again, name).await;
    sdk::append(&again, ["first", "second"]).await;
    let appended = contents(&server.sdk()).await;
    server.kill();
    // No snapshot of the partition was put, and the database is lost: the log goes back to its beginning.
    forget_partition(&node.target, 2);
    inflict(
        &node,
        Loss::DatabaseAndLocalSnapshots,
        RepositoryLoss::Nothing,
    );
    let (server, replayed) = start_and_read(&node.setup, &node).await;
    replayed.are(&appended, "from the log alone");
    assert_eq!(recovered(&server, 2).await, ("log".to_owned(), None));
}
