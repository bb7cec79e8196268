//! What the store keeps without a request: archived snapshots, history by policy, and new snapshots after a
//! failure.

use std::fs;
use std::path::Path;
use std::process::Command;

use esker_proto::state::v1::ReplayRequest;
use tonic::Code;

use crate::client::{Clients, Read, State, assert_refused, key};
use crate::damage::wreck;
use crate::support::{Server, Setup, eventually};

/// The first commit that can be replayed.
async fn history_begins(clients: &Clients) -> u64 {
    let mut client = clients.esker.clone();
    let replayed = client.replay(ReplayRequest::default());
    // Only its beginning is checked: a replay during which history is cut may end with that.
    let mut events = replayed.await.unwrap().into_inner();
    events.message().await.unwrap().unwrap().commit_ts
}

#[tokio::test]
async fn the_store_is_rebuilt_from_an_archived_snapshot_where_the_disk_has_none() {
    let backups = tempfile::tempdir().unwrap();
    let destination = format!("snapshots.destination={}", backups.path().display());
    let setup = || {
        Setup::default()
            .set(&destination)
            .set("state.snapshot-interval=0")
    };
    let state = State::of(setup().start_fresh().await);
    for n in 1..=4 {
        state.put(key("a"), &format!("{{\"n\":{n}}}")).await;
    }
    assert_eq!(state.snapshot().await, 4);
    eventually("it is archived", async || {
        let listed = state.snapshots().await;
        listed[0].archived.then_some(())
    })
    .await;
    state.put(key("a"), "{\"n\":5}").await;
    let mut server = state.server;
    server.stop().await;
    wreck(server.data_dir());
    fs::remove_dir_all(server.data_dir().join("snapshots")).unwrap();
    server.restart(&setup()).await;
    let log = server.log().join("\n");
    assert!(log.contains("Loading snapshot: snapshot-4.json"), "{log}");
    assert!(log.contains("Replaying 1 events since snapshot"), "{log}");
    let state = State::of(server);
    assert_eq!(state.get(key("a")).await, Read::of("{\"n\":5}", 5, 5));
}

/// A store with four commits.
async fn four(setup: &Setup) -> State {
    let state = State::of(setup.start_fresh().await);
    for n in 1..=4 {
        state.put(key("a"), &format!("{{\"n\":{n}}}")).await;
    }
    state
}

#[tokio::test]
async fn an_archived_snapshot_of_another_store_is_neither_taken_for_this_ones_nor_replaced() {
    let backups = tempfile::tempdir().unwrap();
    let quiet = Setup::default().set("state.snapshot-interval=0");
    let other = four(&quiet).await;
    assert_eq!(other.snapshot().await, 4);
    let theirs = other.server.data_dir().join("snapshots");
    let setup = quiet.set(&format!(
        "snapshots.destination={}",
        backups.path().display()
    ));
    let state = four(&setup).await;
    let archive = backups.path().join("state/default");
    fs::create_dir_all(archive.join(".sums")).unwrap();
    for file in ["snapshot-4.json", ".sums/snapshot-4.json.xxh128"] {
        fs::copy(theirs.join(file), archive.join(file)).unwrap();
    }
    let text = fs::read(archive.join("snapshot-4.json")).unwrap();
    assert_eq!(state.snapshot().await, 4);
    let named = "an archived snapshot is not of this state store as it is now";
    let line = state.server.logged(named).await;
    assert!(line.contains("snapshot-4.json"), "{line}");
    assert_eq!(fs::read(archive.join("snapshot-4.json")).unwrap(), text);
    let listed = state.snapshots().await;
    assert_eq!((listed[0].local, listed[0].archived), (true, false));
    // The next snapshot is archived as usual.
    state.put(key("a"), "{}").await;
    assert_eq!(state.snapshot().await, 5);
    eventually("it is archived", async || {
        let listed = state.snapshots().await;
        listed[0].archived.then_some(())
    })
    .await;
    assert_eq!(fs::read(archive.join("snapshot-4.json")).unwrap(), text);
}

#[tokio::test]
async fn a_snapshot_that_fails_is_reported_and_tried_again_and_commits_go_on() {
    let state = State::with(&["state.snapshot-interval=3"]).await;
    let snapshots = state.server.data_dir().join("snapshots");
    fs::remove_dir_all(&snapshots).unwrap();
    // Nothing can be written: there is a file in the place of the directory.
    fs::write(&snapshots, "in the way").unwrap();
    for n in 1..=5 {
        assert_eq!(state.put(key("a"), "{}").await, n);
    }
    state
        .server
        .logged("no snapshot of the state store was written")
        .await;
    assert_eq!(state.put(key("a"), "{}").await, 6);
    fs::remove_file(&snapshots).unwrap();
    // An attempt that had begun before the last commit covers the one before it.
    let written = eventually("it is written after all", async || {
        let name = |commit_ts: u64| format!("snapshot-{commit_ts}.json");
        (5..=6).find(|commit_ts| snapshots.join(name(*commit_ts)).exists())
    })
    .await;
    assert_eq!(state.verify().await.snapshot_commit_ts, written);
}

#[tokio::test]
async fn history_goes_by_policy_and_never_beyond_the_oldest_snapshot_that_is_kept() {
    let settings = [
        "state.snapshot-interval=0",
        "state.snapshots-retained=2",
        "state.keep-history=2",
        "state.keep-versions=2",
    ];
    let state = State::with(&settings).await;
    for n in 1..=30u64 {
        state.put(key("a"), &format!("{{\"n\":{n}}}")).await;
        if n % 10 == 0 {
            assert_eq!(state.snapshot().await, n);
        }
    }
    // Snapshots 20 and 30 are kept.
    let begins = eventually("history is cut", async || {
        let begins = history_begins(&state).await;
        (begins > 11).then_some(begins)
    })
    .await;
    assert_eq!(begins, 21);
    let request = ReplayRequest {
        start_ts: Some(20),
        ..ReplayRequest::default()
    };
    assert_refused(
        state.esker.clone().replay(request).await,
        Code::OutOfRange,
        "history_begins",
    );
    // Commits after the older snapshot are kept, whatever the policies are.
    for n in 21..=30 {
        let read = state.get_at(key("a"), n).await.unwrap();
        assert_eq!(read, Read::of(&format!("{{\"n\":{n}}}"), n, n));
    }
    let mut client = state.esker.clone();
    let request = esker_proto::state::v1::VerifyRequest {
        commit_ts: Some(20),
    };
    let proof = client.verify(request).await.unwrap().into_inner();
    assert_eq!(proof.replayed, 10);
    assert!(proof.differences.is_empty(), "{proof:?}");
}

#[tokio::test]
async fn a_file_that_is_not_a_snapshot_of_this_store_is_named_and_never_counted_or_removed() {
    let theirs = State::with(&["state.snapshot-interval=0"]).await;
    for _ in 0..4 {
        theirs.put(key("theirs"), "{}").await;
    }
    assert_eq!(theirs.snapshot().await, 4);
    let setup = || {
        Setup::default()
            .set("state.snapshot-interval=2")
            .set("state.snapshots-retained=1")
    };
    let mut server = setup().start_fresh().await;
    let snapshots = server.data_dir().join("snapshots");
    server.stop().await;
    let foreign = theirs.server.data_dir().join("snapshots/snapshot-4.json");
    fs::copy(&foreign, snapshots.join("snapshot-4.json")).unwrap();
    fs::write(snapshots.join("snapshot-5000.json"), "").unwrap();
    server.restart(&setup()).await;
    let state = State::of(server);
    state
        .server
        .logged("is not a snapshot of this state store and does not count")
        .await;
    // Snapshots are still made, and belong to this store.
    for n in 1..=2 {
        assert_eq!(state.put(key("ours"), "{}").await, n);
    }
    eventually("a snapshot is made", async || {
        snapshots.join("snapshot-2.json").exists().then_some(())
    })
    .await;
    assert_eq!(state.put(key("ours"), "{}").await, 3);
    assert_eq!(state.snapshot().await, 3);
    // A snapshot that needs the name of another store's file renames that file.
    assert_eq!(state.put(key("ours"), "{}").await, 4);
    assert_eq!(state.snapshot().await, 4);
    let aside = snapshots.join("snapshot-4.json.1.aside");
    assert_eq!(fs::read(aside).unwrap(), fs::read(foreign).unwrap());
    assert!(snapshots.join("snapshot-5000.json").exists());
    assert!(!snapshots.join("snapshot-2.json").exists());
    let listed = state.snapshots().await;
    let problems = listed.iter().map(|s| (s.commit_ts, s.problem.is_some()));
    assert_eq!(problems.collect::<Vec<_>>(), [(5000, true), (4, false)]);
    assert_eq!(state.verify().await.snapshot_commit_ts, 4);
}

#[tokio::test]
async fn an_idle_store_reads_no_history_that_no_policy_can_cut() {
    let settings = ["state.snapshot-interval=0", "state.keep-history-age=1s"];
    let state = State::with(&settings).await;
    let text = "x".repeat(100_000);
    for _ in 0..100 {
        state.put(key("a"), &format!("{{\"v\":\"{text}\"}}")).await;
    }
    assert_eq!(state.snapshot().await, 100);
    for _ in 0..100 {
        state.put(key("a"), &format!("{{\"v\":\"{text}\"}}")).await;
    }
    eventually("history is cut up to the snapshot", async || {
        (history_begins(&state).await == 101).then_some(())
    })
    .await;
    let read = || {
        let io = fs::read_to_string(format!("/proc/{}/io", state.server.pid())).unwrap();
        let line = io.lines().find_map(|l| l.strip_prefix("rchar: ")).unwrap();
        line.parse::<u64>().unwrap()
    };
    // Several rounds of the evaluation of policies. Merges and a first snapshot may come before the server is
    // idle; history that is read is read in every round.
    let mut idle = Vec::new();
    for _ in 0..6 {
        let before = read();
        tokio::time::sleep(std::time::Duration::from_secs(4)).await;
        idle.push(read() - before);
        // The commits after the snapshot, 10 MB, are not read even once.
        if idle.last() < Some(&(100 * 100_000)) {
            return;
        }
    }
    panic!("bytes that were read: {idle:?}");
}

/// The commits of the JSON snapshots in a repository.
fn archived(backups: &Path) -> Vec<u64> {
    let files = fs::read_dir(backups.join("state/default")).unwrap();
    let mut found: Vec<u64> = files
        .filter_map(|file| {
            let name = file.unwrap().file_name().into_string().unwrap();
            let digits = name.strip_prefix("snapshot-")?.strip_suffix(".json")?;
            digits.parse().ok()
        })
        .collect();
    found.sort_unstable();
    found
}

async fn archived_so_far(server: &Server) -> u64 {
    let text = server.http1().get("/metrics").send().await.text();
    let of = |line: &str| {
        Some(
            line.strip_prefix("esker_state_snapshots_archived_total ")?
                .parse(),
        )
    };
    text.lines().find_map(of).map_or(0, Result::unwrap)
}

#[tokio::test]
async fn after_a_lossy_restore_snapshots_of_the_stale_lineage_are_named_kept_and_take_no_place() {
    let backups = tempfile::tempdir().unwrap();
    let setup = Setup::default()
        .partitions(1)
        .set(&format!(
            "snapshots.destination={}",
            backups.path().display()
        ))
        .set("snapshots.snapshot-interval=1h")
        .set("snapshots.num-retained=3")
        .set("state.snapshot-interval=0")
        .set("state.snapshots-retained=2");
    let state = State::of(setup.start_fresh().await);
    let is_archived = async |state: &State, commit_ts: u64| {
        eventually("it is archived", async || {
            let listed = state.snapshots().await;
            let one = listed.iter().find(|one| one.commit_ts == commit_ts)?;
            one.archived.then_some(())
        })
        .await;
    };
    for n in 1..=4 {
        state.put(key("a"), &format!("{{\"n\":{n}}}")).await;
    }
    assert_eq!(state.snapshot().await, 4);
    is_archived(&state, 4).await;
    // The partition's snapshot has six commits, the newest of the store eight.
    for n in 5..=8 {
        state.put(key("a"), &format!("{{\"n\":{n}}}")).await;
        if n == 6 {
            let path = "/esker/v1/partitions/1/snapshots";
            let http = state.server.http1();
            let put = http.post(path).json(&serde_json::json!({}));
            put.send().await.expect(200);
        }
    }
    assert_eq!(state.snapshot().await, 8);
    is_archived(&state, 8).await;
    assert_eq!(archived(backups.path()), [4, 8]);
    let stale = fs::read(backups.path().join("state/default/snapshot-8.json")).unwrap();

    let mut server = state.server;
    server.kill();
    fs::remove_dir_all(server.data_dir()).unwrap();
    let restore = setup.clone().bootstrap("restore");
    server.restart(&restore).await;
    let named = "a snapshot of the state store is newer than what was restored";
    let line = server.logged(named).await;
    for what in [
        "snapshot-8.json",
        "commit_ts=8",
        "restored=6",
        "state import --replace",
    ] {
        assert!(line.contains(what), "{what}: {line}");
    }
    let status = server.http1().get("/esker/v1/status").send().await.json();
    let newer = status["recovery"]["newer_state"].as_str().unwrap();
    assert!(newer.contains("snapshot-8.json in "), "{newer}");
    let state = State::of(server);
    assert_eq!(state.get(key("a")).await, Read::of("{\"n\":6}", 6, 6));

    // Two snapshots of the new lineage displace the one that both lineages share, but not the one that was
    // left behind.
    let mut own = Vec::new();
    for _ in 0..3 {
        state.put(key("a"), "{}").await;
        let commit_ts = state.snapshot().await;
        assert!(commit_ts > 1 << 40, "{commit_ts}");
        is_archived(&state, commit_ts).await;
        own.push(commit_ts);
    }
    let kept = [8, own[1], own[2]];
    eventually("retention is over", async || {
        (archived(backups.path()) == kept).then_some(())
    })
    .await;
    assert_eq!(archived_so_far(&state.server).await, 3);
    // While the server is idle and after a restart, nothing is put again, and nothing is removed.
    let mut server = state.server;
    server.stop().await;
    server.restart(&setup).await;
    let named = "an archived snapshot is not of this state store as it is now";
    let line = server.logged(named).await;
    assert!(line.contains("snapshot-8.json"), "{line}");
    assert_eq!(archived(backups.path()), kept);
    assert_eq!(archived_so_far(&server).await, 0);
    let now = fs::read(backups.path().join("state/default/snapshot-8.json")).unwrap();
    assert_eq!(now, stale);
    // The lost commits can be imported from the snapshot.
    let imported = Command::new(env!("CARGO_BIN_EXE_esker"))
        .args(["state", "import", "--replace", "--server", server.url()])
        .arg(backups.path().join("state/default/snapshot-8.json"))
        .output()
        .unwrap();
    assert!(imported.status.success(), "{imported:?}");
    let read = State::of(server).get(key("a")).await;
    assert_eq!(read.value.as_deref(), Some("{\"n\":8}"), "{read:?}");
}
