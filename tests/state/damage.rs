//! Snapshots that are damaged, and a store that has to be rebuilt from them.

use std::fs;
use std::path::Path;
use std::process::Command;

use rust_rocksdb::{DBWithThreadMode, MultiThreaded, Options};
use testkit::corruption::{change_in_place, flip_middle};
use testkit_s3::objects::Objects;
use testkit_s3::{Fault, Matching, Operation, S3Server};

use crate::client::{Read, State, key};
use crate::support::{Server, Setup, eventually};

fn setup() -> Setup {
    Setup::default().set("state.snapshot-interval=0")
}

/// Removes the row of the database that holds the position of the store.
pub fn wreck(data: &Path) {
    let options = Options::default();
    let db = data.join("db");
    let names = DBWithThreadMode::<MultiThreaded>::list_cf(&options, &db).unwrap();
    let open = DBWithThreadMode::<MultiThreaded>::open_cf(&options, &db, &names).unwrap();
    let mut removed = 0;
    for name in &names {
        let cf = open.cf_handle(name).unwrap();
        if open.get_cf(&cf, [0x40]).unwrap().is_some() {
            open.delete_cf(&cf, [0x40]).unwrap();
            open.flush_cf(&cf).unwrap();
            removed += 1;
        }
    }
    assert_eq!(removed, 1, "one partition has the store");
}

/// A stopped server with snapshots of commits 3, 6 and 9, and two commits more.
async fn three_snapshots() -> Server {
    let state = State::of(setup().start_fresh().await);
    for n in 1..=11 {
        state.put(key("a"), &format!("{{\"n\":{n}}}")).await;
        if n % 3 == 0 {
            assert_eq!(state.snapshot().await, n);
        }
    }
    let mut server = state.server;
    server.stop().await;
    server
}

#[tokio::test]
async fn a_store_that_cannot_be_used_is_rebuilt_from_the_newest_valid_snapshot() {
    let mut server = three_snapshots().await;
    let snapshots = server.data_dir().join("snapshots");
    wreck(server.data_dir());
    // One is damaged, one is truncated; the one before them is intact.
    change_in_place(&snapshots.join("snapshot-9.json"), flip_middle);
    let six = snapshots.join("snapshot-6.json");
    let text = fs::read(&six).unwrap();
    fs::write(&six, &text[..text.len() / 2]).unwrap();
    server.restart(&setup()).await;
    let log = server.log().join("\n");
    let loading = log
        .lines()
        .find(|l| l.contains("Loading snapshot: snapshot-3.json"));
    let loading = loading.unwrap_or_else(|| panic!("{log}"));
    assert!(loading.contains("source=\"json\""), "{loading}");
    assert!(log.contains("Replaying 8 events since snapshot"), "{log}");
    assert!(log.contains("Recovery complete"), "{log}");
    for name in ["snapshot-9.json", "snapshot-6.json"] {
        let named = |l: &&str| l.contains("cannot be used") && l.contains(name);
        assert!(log.lines().any(|l| named(&l)), "{log}");
    }
    let state = State::of(server);
    assert_eq!(state.get(key("a")).await, Read::of("{\"n\":11}", 11, 11));
    assert_eq!(
        state.get_version(key("a"), 5).await,
        Read::of("{\"n\":5}", 5, 5)
    );
    assert_eq!(state.put(key("a"), "{}").await, 12);
    assert_eq!(state.get(key("a")).await.version, 12);
}

#[tokio::test]
async fn without_any_snapshot_the_store_is_rebuilt_from_the_stream_alone() {
    let mut server = three_snapshots().await;
    wreck(server.data_dir());
    fs::remove_dir_all(server.data_dir().join("snapshots")).unwrap();
    server.restart(&setup()).await;
    let state = State::of(server);
    assert_eq!(state.get(key("a")).await, Read::of("{\"n\":11}", 11, 11));
    assert_eq!(state.replay_all().await.len(), 11);
    assert_eq!(state.put(key("a"), "{}").await, 12);
}

#[tokio::test]
async fn a_damaged_snapshot_is_named_and_proves_nothing() {
    let server = three_snapshots().await;
    let data = server.data_dir().to_owned();
    let mut server = server;
    server.restart(&setup()).await;
    let state = State::of(server);
    change_in_place(&data.join("snapshots/snapshot-9.json"), flip_middle);
    let listed = state.snapshots().await;
    let problems: Vec<bool> = listed.iter().map(|s| s.problem.is_some()).collect();
    assert_eq!(problems, [true, false, false]);
    let proof = state.verify().await;
    assert_eq!(proof.snapshot_commit_ts, 6);
    assert_eq!(proof.passed_over.len(), 1, "{proof:?}");
    assert!(proof.differences.is_empty(), "{proof:?}");
}

#[tokio::test]
async fn removing_all_but_the_newest_three_by_hand_leaves_three_that_can_be_used() {
    let state = State::with(&["state.snapshot-interval=0", "state.snapshots-retained=9"]).await;
    for n in 1..=6 {
        state.put(key("a"), "{}").await;
        assert_eq!(state.snapshot().await, n);
        // The server compares modification times of files.
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    let removed = Command::new("sh")
        .arg("-c")
        .arg("cd snapshots && ls -t . | tail -n +4 | xargs rm")
        .current_dir(state.server.data_dir())
        .status();
    assert!(removed.unwrap().success());
    let listed = state.snapshots().await;
    let commits: Vec<u64> = listed.iter().map(|s| s.commit_ts).collect();
    assert_eq!(commits, [6, 5, 4]);
    assert!(listed.iter().all(|s| s.problem.is_none()));
    let mut server = state.server;
    server.stop().await;
    wreck(server.data_dir());
    server.restart(&setup()).await;
    let log = server.log().join("\n");
    assert!(log.contains("Loading snapshot: snapshot-6.json"), "{log}");
}

/// A killed server whose partition's log does not go back to the beginning, with a snapshot of commit 8 and
/// three commits more.
async fn one_snapshot(setup: impl Fn() -> Setup) -> Server {
    // Each stop puts snapshots, so that the log need not be kept.
    let setup = || setup().partitions(1).set("snapshots.snapshot-on-stop=true");
    let mut state = State::of(setup().start_fresh().await);
    for n in 1..=5 {
        state.put(key("a"), &format!("{{\"n\":{n}}}")).await;
    }
    let mut server = state.server;
    for _ in 0..2 {
        server.stop().await;
        server.restart(&setup()).await;
    }
    state = State::of(server);
    for n in 6..=11 {
        state.put(key("a"), &format!("{{\"n\":{n}}}")).await;
        if n == 8 {
            assert_eq!(state.snapshot().await, 8);
        }
    }
    eventually("it is archived, if it is to be", async || {
        let listed = state.snapshots().await;
        let archives = state.server.data_dir().join("repository").exists();
        (listed[0].archived || archives).then_some(())
    })
    .await;
    let mut server = state.server;
    server.kill();
    server
}

fn forget_the_partition(data: &Path, repository: &Path) {
    fs::create_dir_all(data.join("damaged")).unwrap();
    fs::write(data.join("damaged/partition-1"), "a test").unwrap();
    fs::remove_dir_all(data.join("checkpoints/1")).unwrap();
    for entry in fs::read_dir(repository).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() && path.file_name().is_some_and(|name| name != "state") {
            fs::remove_dir_all(path).unwrap();
        }
    }
}

#[tokio::test]
async fn a_partition_of_which_no_copy_is_left_gets_its_state_back_from_a_snapshot_and_the_log() {
    let mut server = one_snapshot(setup).await;
    let setup = || setup().partitions(1);
    let data = server.data_dir().to_owned();
    forget_the_partition(&data, &data.join("repository"));
    let refused = server.try_restart(&setup()).await.unwrap_err();
    for what in [
        "cannot be recovered without a loss",
        "snapshot-8.json",
        "as of commit_ts 8",
        "--bootstrap restore",
    ] {
        assert!(refused.contains(what), "{what}: {refused}");
    }
    assert!(!refused.contains("no copy to go on from"), "{refused}");
    let lossy = setup().bootstrap("restore");
    server.restart(&lossy).await;
    let log = server.log().join("\n");
    assert!(log.contains("Loading snapshot: snapshot-8.json"), "{log}");
    assert!(log.contains("Replaying 3 events since snapshot"), "{log}");
    let state = State::of(server);
    let read = state.get(key("a")).await;
    assert_eq!(read, Read::of("{\"n\":11}", 11, 11));
    // A new lineage has begun: no number is assigned twice.
    assert!(state.put(key("a"), "{}").await > 1 << 40);
    assert!(state.get(key("a")).await.version > 1 << 40);
    let mut server = state.server;
    server.stop().await;
    server.restart(&setup()).await;
    let state = State::of(server);
    assert_eq!(
        state.get_version(key("a"), 11).await,
        Read::of("{\"n\":11}", 11, 11)
    );
}

/// The word after `name=` in the last line of a log that has it.
fn field(log: &str, name: &str) -> String {
    let (_, rest) = log.rsplit_once(&format!("{name}=")).unwrap();
    let end = rest.find(|c: char| !c.is_ascii_alphanumeric() && c != '"');
    rest[..end.unwrap_or(rest.len())].replace('"', "")
}

#[tokio::test]
async fn a_crash_between_the_new_lineage_and_the_note_about_it_costs_no_commit() {
    let mut server = one_snapshot(setup).await;
    let setup = || setup().partitions(1);
    let data = server.data_dir().to_owned();
    forget_the_partition(&data, &data.join("repository"));
    server.restart(&setup().bootstrap("restore")).await;
    let log = server.log();
    let begun = log
        .iter()
        .rfind(|line| line.contains("a new lineage begins"));
    let begun = begun.unwrap().clone();
    server.kill();
    // The state right after the log of the lineage has begun.
    let plan = format!(
        r#"{{"forks": {{"1": {{"lineage": "{}", "parent": "{}", "lsn": {}}}}}}}"#,
        field(&begun, "lineage"),
        field(&begun, "parent"),
        field(&begun, "lsn"),
    );
    fs::write(data.join("restore.json"), plan).unwrap();
    let note = data.join("damaged/partition-1");
    fs::write(&note, "it is being made of a state snapshot").unwrap();
    fs::remove_file(data.join("bootstrap.json")).unwrap();
    server.restart(&setup()).await;
    assert!(!note.exists());
    let state = State::of(server);
    let read = state.get(key("a")).await;
    assert_eq!(read, Read::of("{\"n\":11}", 11, 11));
    state.put(key("a"), "{}").await;
}

#[tokio::test]
async fn an_archived_snapshot_that_is_newer_than_what_is_on_the_disk_is_the_last_resort() {
    let backups = tempfile::tempdir().unwrap();
    let destination = format!("snapshots.destination={}", backups.path().display());
    let setup = || setup().set(&destination);
    let mut server = one_snapshot(setup).await;
    let lossy = setup().partitions(1).bootstrap("restore");
    let data = server.data_dir().to_owned();
    forget_the_partition(&data, backups.path());
    // The local copies are damaged, and the log is gone: only the archive has the state.
    change_in_place(&data.join("snapshots/snapshot-8.json"), flip_middle);
    for file in fs::read_dir(data.join("log")).unwrap() {
        fs::remove_file(file.unwrap().path()).unwrap();
    }
    server.restart(&lossy).await;
    let log = server.log().join("\n");
    assert!(log.contains("Loading snapshot: snapshot-8.json"), "{log}");
    let state = State::of(server);
    let read = state.get(key("a")).await;
    assert_eq!(read, Read::of("{\"n\":8}", 8, 8));
    assert!(state.put(key("a"), "{}").await > 1 << 40);
    // It is listed with the others now, and is intact.
    let listed = state.snapshots().await;
    let eight = listed.iter().find(|one| one.commit_ts == 8).unwrap();
    assert_eq!(eight.problem, None);
}

/// Removes everything from a repository but the snapshots of the state store.
fn leave_the_state_alone(backups: &Path) {
    for entry in fs::read_dir(backups).unwrap() {
        let entry = entry.unwrap();
        if entry.file_name() != "state" {
            match entry.path().is_dir() {
                true => fs::remove_dir_all(entry.path()).unwrap(),
                false => fs::remove_file(entry.path()).unwrap(),
            }
        }
    }
}

#[tokio::test]
async fn where_only_archived_state_snapshots_are_left_a_start_fetches_the_newest_and_says_what_to_do()
 {
    let backups = tempfile::tempdir().unwrap();
    let destination = format!("snapshots.destination={}", backups.path().display());
    let setup = || setup().set(&destination);
    drop(one_snapshot(setup).await);
    let archived = fs::read(backups.path().join("state/default/snapshot-8.json")).unwrap();
    for (bootstrap, code) in [
        (None, "error [state_snapshots_there]"),
        (Some("restore"), "error [nothing_to_restore]"),
    ] {
        // The server of the round before may have put a snapshot of its partition.
        leave_the_state_alone(backups.path());
        let empty = tempfile::tempdir().unwrap();
        let setup = setup().partitions(1);
        let refused = match bootstrap {
            None => setup.clone(),
            Some(bootstrap) => setup.clone().bootstrap(bootstrap),
        };
        let (exit, log) = refused.start_refused(empty.path()).await;
        assert_eq!(exit, 1, "{log}");
        for what in [code, "snapshots/snapshot-8.json", "esker state import"] {
            assert!(log.contains(what), "{what}: {log}");
        }
        let file = empty.path().join("snapshots/snapshot-8.json");
        assert_eq!(fs::read(&file).unwrap(), archived);
        // The advice of the refusal is followed.
        let server = setup.bootstrap("new").start(empty.path()).await;
        let imported = Command::new(env!("CARGO_BIN_EXE_esker"))
            .args(["state", "import", "--server", server.url()])
            .arg(&file)
            .output()
            .unwrap();
        assert!(imported.status.success(), "{imported:?}");
        let state = State::of(server);
        let read = state.get(key("a")).await;
        assert_eq!(read, Read::of("{\"n\":8}", 8, 8));
    }
}

#[tokio::test]
async fn a_snapshot_of_another_store_hides_no_archived_one_of_its_name() {
    let backups = tempfile::tempdir().unwrap();
    let destination = format!("snapshots.destination={}", backups.path().display());
    let setup = || setup().set(&destination);
    let mut server = one_snapshot(setup).await;
    let other = State::with(&["state.snapshot-interval=0"]).await;
    for _ in 1..=8 {
        other.put(key("theirs"), "{}").await;
    }
    assert_eq!(other.snapshot().await, 8);
    let data = server.data_dir().to_owned();
    let theirs = other.server.data_dir().join("snapshots");
    for file in ["snapshot-8.json", ".sums/snapshot-8.json.xxh128"] {
        fs::copy(theirs.join(file), data.join("snapshots").join(file)).unwrap();
    }
    forget_the_partition(&data, backups.path());
    let lossy = setup().partitions(1).bootstrap("restore");
    server.restart(&lossy).await;
    let state = State::of(server);
    let read = state.get(key("a")).await;
    assert_eq!(read, Read::of("{\"n\":11}", 11, 11));
    assert_eq!(state.get(key("theirs")).await, Read::none());
    // The other store's snapshot is kept under another name.
    let aside = fs::read(data.join("snapshots/snapshot-8.json.1.aside")).unwrap();
    assert_eq!(aside, fs::read(theirs.join("snapshot-8.json")).unwrap());
}

#[tokio::test]
async fn an_empty_directory_with_a_state_snapshot_is_no_new_store_unless_that_is_said() {
    let server = three_snapshots().await;
    let other = tempfile::tempdir().unwrap();
    let snapshots = other.path().join("snapshots");
    fs::create_dir(&snapshots).unwrap();
    let file = snapshots.join("snapshot-9.json");
    fs::copy(server.data_dir().join("snapshots/snapshot-9.json"), &file).unwrap();
    let text = fs::read(&file).unwrap();
    let (exit, log) = setup().start_refused(other.path()).await;
    assert_eq!(exit, 1, "{log}");
    for what in [
        "error [state_snapshots_there]",
        "snapshot-9.json",
        "esker state import",
    ] {
        assert!(log.contains(what), "{what}: {log}");
    }
    let (_, log) = setup()
        .bootstrap("restore")
        .start_refused(other.path())
        .await;
    for what in [
        "error [nothing_to_restore]",
        "snapshot-9.json",
        "esker state import",
    ] {
        assert!(log.contains(what), "{what}: {log}");
    }
    let server = setup().bootstrap("new").start(other.path()).await;
    server.logged("is not a snapshot of this state store").await;
    assert_eq!(fs::read(&file).unwrap(), text);
}

/// Makes a snapshot's checksum unreadable for every user, root included: it becomes a link to itself.
fn make_unreadable(snapshots: &Path, name: &str) {
    let sum = snapshots.join(format!(".sums/{name}.xxh128"));
    fs::rename(&sum, snapshots.join("sum-aside")).unwrap();
    std::os::unix::fs::symlink(&sum, &sum).unwrap();
}

fn make_readable(snapshots: &Path, name: &str) {
    let sum = snapshots.join(format!(".sums/{name}.xxh128"));
    assert!(fs::symlink_metadata(&sum).unwrap().is_symlink());
    fs::rename(snapshots.join("sum-aside"), &sum).unwrap();
}

fn is_unreadable(log: &str, name: &str) {
    assert!(log.contains("error [unreadable]"), "{log}");
    assert!(log.contains(name), "{log}");
    assert!(!log.contains("put aside"), "{log}");
}

#[tokio::test]
async fn a_state_snapshot_that_cannot_be_read_now_is_neither_damaged_nor_missing() {
    // The partition is lost, and the snapshot is the last copy.
    let mut server = one_snapshot(setup).await;
    let data = server.data_dir().to_owned();
    let snapshots = data.join("snapshots");
    forget_the_partition(&data, &data.join("repository"));
    make_unreadable(&snapshots, "snapshot-8.json");
    let plain = || setup().partitions(1);
    let lossy = || plain().bootstrap("restore");
    for refused in [plain(), lossy(), lossy().empty_partitions("1")] {
        let log = server.try_restart(&refused).await.unwrap_err();
        is_unreadable(&log, "snapshot-8.json");
    }
    make_readable(&snapshots, "snapshot-8.json");
    // The snapshot counts as a copy, so the partition does not begin empty.
    let named = lossy().empty_partitions("1");
    let log = server.try_restart(&named).await.unwrap_err();
    assert!(log.contains("error [empty_partitions]"), "{log}");
    assert!(log.contains("state snapshot of commit_ts 8"), "{log}");
    server.restart(&lossy()).await;
    let read = State::of(server).get(key("a")).await;
    assert_eq!(read, Read::of("{\"n\":11}", 11, 11));
}

#[tokio::test]
async fn a_store_is_not_given_up_for_a_snapshot_that_cannot_be_read_now() {
    // Nothing of the store itself can be used, and the stream does not go back to the beginning.
    let state = State::with(&["state.snapshot-interval=0", "state.keep-history=2"]).await;
    for n in 1..=9 {
        state.put(key("a"), &format!("{{\"n\":{n}}}")).await;
    }
    assert_eq!(state.snapshot().await, 9);
    eventually("history is cut", async || {
        let mut client = state.esker.clone();
        let replayed = client.replay(esker_proto::state::v1::ReplayRequest::default());
        let first = replayed.await.ok()?.into_inner().message().await.ok()??;
        (first.commit_ts > 1).then_some(())
    })
    .await;
    let mut server = state.server;
    server.stop().await;
    wreck(server.data_dir());
    let snapshots = server.data_dir().join("snapshots");
    make_unreadable(&snapshots, "snapshot-9.json");
    let log = server.try_restart(&setup()).await.unwrap_err();
    is_unreadable(&log, "snapshot-9.json");
    make_readable(&snapshots, "snapshot-9.json");
    server.restart(&setup()).await;
    let read = State::of(server).get(key("a")).await;
    assert_eq!(read, Read::of("{\"n\":9}", 9, 9));
}

/// Servers that put their snapshots into S3.
fn on_s3(s3: &S3Server<Objects>) -> Setup {
    setup().partitions(1).set_all(&s3.settings())
}

#[tokio::test]
async fn an_archived_state_snapshot_that_cannot_be_read_now_is_not_taken_for_absent() {
    let s3 = S3Server::in_memory().await;
    let setup = || on_s3(&s3);
    let mut server = one_snapshot(setup).await;
    let data = server.data_dir().to_owned();
    for key in s3.keys() {
        if !key.starts_with("esker/state/") {
            s3.remove(&key);
        }
    }
    // First in an empty directory.
    let empty = tempfile::tempdir().unwrap();
    let empty = empty.path().join("data");
    let archived = Matching::operation(Operation::Get).key("state/default/snapshot-8.json");
    s3.faults().always(archived, Fault::Status(403));
    for start in [setup(), setup().bootstrap("restore")] {
        let (exit, log) = start.start_refused(&empty).await;
        assert_eq!(exit, 1, "{log}");
        assert!(log.contains("error [repository_unreadable]"), "{log}");
        assert!(log.contains("snapshot-8.json"), "{log}");
        assert!(!empty.exists(), "{log}");
    }
    // Then in a directory whose partition is lost, and that has no snapshot itself.
    fs::create_dir_all(data.join("damaged")).unwrap();
    fs::write(data.join("damaged/partition-1"), "a test").unwrap();
    fs::remove_dir_all(data.join("checkpoints/1")).unwrap();
    fs::remove_dir_all(data.join("snapshots")).unwrap();
    fs::remove_file(data.join("destination.json")).unwrap();
    let lossy = setup().bootstrap("restore");
    let named = lossy.clone().empty_partitions("1");
    for start in [&setup(), &lossy, &named] {
        let log = server.try_restart(start).await.unwrap_err();
        is_unreadable(&log, "snapshot-8.json");
    }
    s3.heal();
    let (_, log) = setup().start_refused(&empty).await;
    assert!(log.contains("error [state_snapshots_there]"), "{log}");
    server.restart(&lossy).await;
    let read = State::of(server).get(key("a")).await;
    assert_eq!(read, Read::of("{\"n\":11}", 11, 11));
}
