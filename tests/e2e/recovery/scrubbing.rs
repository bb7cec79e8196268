//! The scrub: one damaged or missing object that all retained snapshots share is found, and repaired in all of
//! them.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Duration;

use serde_json::Value;
use testkit::corruption::flip_middle;

use super::contents::stream;
use super::history::quiet;
use super::target::{Kind, Node, Root, files};
use crate::support::sdk;
use crate::support::{Server, Setup, eventually};

const BASIN: &str = "kept-basin";

fn incremental() -> Setup {
    quiet()
        .set("snapshots.snapshot-kind=incremental")
        .set("snapshots.scrub-interval=")
        .set("snapshots.orphan-min-age=0s")
        .partitions(1)
}

/// Files by name, with their content.
type Files = Vec<(String, Vec<u8>)>;

/// Three retained snapshots of the stream's partition, and what each of them restores to.
struct Three {
    node: Node,
    /// By snapshot, newest first: its LSN, and its files.
    restored: Vec<(u64, Files)>,
    /// An object that all three have.
    shared: String,
}

fn lsns(root: &Root) -> Vec<u64> {
    let listed = root.json["retained_snapshots"].as_array().unwrap().iter();
    listed
        .map(|one| one["min_applied_lsn"].as_u64().unwrap())
        .collect()
}

/// The keys of each retained snapshot's files, newest first.
fn keys(node: &Node) -> Vec<BTreeSet<String>> {
    let root = node.target.root(1).unwrap();
    let of = |dir: &String| {
        let metadata = node.target.get(&format!("{dir}/metadata.json"))?;
        let metadata: Value = serde_json::from_slice(&metadata).ok()?;
        let keys = metadata["file_keys"].as_object()?.values();
        Some(
            keys.map(|key| format!("1/{}", key.as_str().unwrap()))
                .collect(),
        )
    };
    // A repair may replace a description meanwhile.
    root.retained()
        .iter()
        .map(|dir| of(dir).unwrap_or_default())
        .collect()
}

/// An object that all retained snapshots have.
fn shared_by_all(node: &Node) -> Option<String> {
    let all = keys(node);
    let mut of_newest = all.first()?.iter();
    let shared = of_newest.find(|key| all.iter().all(|keys| keys.contains(*key)));
    shared.cloned()
}

async fn esker(arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_esker"));
    command.args(arguments);
    let done = tokio::task::spawn_blocking(move || command.output()).await;
    done.unwrap().unwrap()
}

fn repository(node: &Node) -> String {
    node.path("backups").display().to_string()
}

async fn restore(node: &Node, lsn: u64, to: &str) -> Files {
    let (to, repository) = (node.path(to), repository(node));
    let _ = std::fs::remove_dir_all(&to);
    let lsn = lsn.to_string();
    let arguments = [
        "snapshot",
        "restore",
        &lsn,
        "--partition",
        "1",
        "--repository",
        &repository,
    ];
    let done = esker(&[&arguments[..], &["--to", to.to_str().unwrap()]].concat()).await;
    assert!(done.status.success(), "LSN {lsn}: {done:?}");
    let read = |name: String| (name.clone(), std::fs::read(to.join(name)).unwrap());
    files(&to).into_iter().map(read).collect()
}

async fn put_snapshot(server: &Server) {
    let path = "/esker/v1/partitions/1/snapshots";
    server.http1().post(path).send().await.expect(200);
}

impl Three {
    async fn new() -> Three {
        let node = Node::new(Kind::Directory, incremental()).await;
        let mut server = node.setup.start(&node.data()).await;
        eventually("the first snapshot", async || {
            node.target.root(1).filter(|root| root.newest() > 0)
        })
        .await;
        let basin = sdk::basin(&server.sdk(), BASIN).await;
        sdk::stream(&basin, "orders").await;
        let orders = stream(&server.sdk(), "kept-basin/orders");
        for round in 0..3 {
            sdk::append(
                &orders,
                (0..20).map(|i| format!("{round} {i} {}", "x".repeat(200))),
            )
            .await;
            put_snapshot(&server).await;
        }
        server.kill();
        let root = node.target.root(1).unwrap();
        let mut restored = Vec::new();
        for lsn in lsns(&root) {
            restored.push((lsn, restore(&node, lsn, "before").await));
        }
        assert_eq!(restored.len(), 3);
        let shared = shared_by_all(&node).expect("an object that all share");
        Three {
            node,
            restored,
            shared,
        }
    }

    /// The same elsewhere.
    async fn copy(&self) -> Three {
        Three {
            node: self.node.copy(incremental()).await,
            restored: self.restored.clone(),
            shared: self.shared.clone(),
        }
    }

    fn damage(&self, how: &str) {
        match how {
            "missing" => self.node.target.remove(&self.shared),
            _ => {
                let mut content = self.node.target.get(&self.shared).unwrap();
                flip_middle(&mut content);
                self.node.target.replace(&self.shared, content);
            }
        }
    }

    /// Waits until no retained snapshot has the object.
    async fn until_repaired(&self) {
        eventually("the object is replaced", async || {
            let all = keys(&self.node);
            all.iter()
                .all(|keys| !keys.is_empty() && !keys.contains(&self.shared))
                .then_some(())
        })
        .await;
    }

    async fn assert_all_restore(&self) {
        assert_eq!(lsns(&self.node.target.root(1).unwrap()).len(), 3);
        for (lsn, files) in &self.restored {
            let after = restore(&self.node, *lsn, "after").await;
            assert!(after == *files, "LSN {lsn} is not what it was");
        }
    }

    /// Whether the destination has what the root keeps, and nothing else.
    async fn until_only_kept_is_left(&self) {
        eventually("only what is kept is left", async || {
            let root = self.node.target.root(1)?;
            let mut kept: BTreeSet<String> = keys(&self.node).into_iter().flatten().collect();
            kept.extend(
                root.retained()
                    .iter()
                    .map(|dir| format!("{dir}/metadata.json")),
            );
            kept.insert("1/latest.json".to_owned());
            let there = self.node.target.keys();
            let there: BTreeSet<String> = there
                .into_iter()
                .filter(|key| key.starts_with("1/"))
                .collect();
            (there == kept).then_some(())
        })
        .await;
    }
}

fn scrubbing(node: &Node) -> Setup {
    node.with(&["snapshots.scrub-interval=1s", "snapshots.scrub-rate=0"])
}

#[tokio::test]
async fn an_object_that_three_snapshots_share_is_repaired_by_the_scrub_and_all_three_restore() {
    for how in ["flipped", "missing"] {
        let three = Three::new().await;
        three.damage(how);
        let mut server = scrubbing(&three.node).start(&three.node.data()).await;
        three.until_repaired().await;
        three.assert_all_restore().await;
        three.until_only_kept_is_left().await;
        eventually("a complete pass without damage is noted", async || {
            let status = server.http1().get("/esker/v1/status").send().await.json();
            let one = &status["partitions"][1];
            (one["damaged"] == 0 && one["scrubbed_at"].is_string()).then_some(())
        })
        .await;
        server.stop().await;
    }
}

#[tokio::test]
async fn a_server_repairs_on_request_and_reports_what_it_did() {
    let three = Three::new().await;
    three.damage("flipped");
    let server = three.node.setup.start(&three.node.data()).await;
    let verify = [
        "snapshot",
        "verify",
        "--data",
        "--json",
        "--partition",
        "1",
        "--server",
        server.url(),
    ];
    let found = esker(&verify).await;
    assert_eq!(found.status.code(), Some(1), "{found:?}");
    let repaired = esker(&[&verify[..], &["--repair"]].concat()).await;
    assert_eq!(repaired.status.code(), Some(0), "{repaired:?}");
    let report: Value = serde_json::from_slice(&repaired.stdout).unwrap();
    assert_eq!(
        format!(
            "1/{}",
            report["repair"]["repaired"][0]["key"].as_str().unwrap()
        ),
        three.shared
    );
    assert_eq!(
        report["repair"]["replaced"].as_array().unwrap().len(),
        3,
        "{report:#}"
    );
    let again = esker(&verify).await;
    assert_eq!(again.status.code(), Some(0), "{again:?}");
    three.assert_all_restore().await;
    // The next snapshot reuses what was repaired.
    sdk::append(&stream(&server.sdk(), "kept-basin/orders"), ["more"]).await;
    put_snapshot(&server).await;
    let newest = keys(&three.node).remove(0);
    assert!(!newest.contains(&three.shared));
}

#[tokio::test]
async fn kills_in_the_middle_of_repairs_lose_nothing_and_leave_only_what_a_sweep_removes() {
    let sound = Three::new().await;
    let mut three = sound.copy().await;
    let mut damaged = None;
    for moment in [0, 30, 60, 90, 130, 180, 250, 400] {
        // What was repaired before is damaged again. If a repair that was killed has replaced the object in some of the
        // snapshots, it is completed, and the next one is of another copy.
        let shared = match shared_by_all(&three.node) {
            Some(shared) => shared,
            None => {
                becomes_sound(&three).await;
                three = sound.copy().await;
                damaged = None;
                three.shared.clone()
            }
        };
        // A byte that is flipped back is no damage.
        if damaged.as_ref() != Some(&shared) {
            let mut content = three.node.target.get(&shared).unwrap();
            flip_middle(&mut content);
            three.node.target.replace(&shared, content);
        }
        damaged = Some(shared);
        let mut server = scrubbing(&three.node).start(&three.node.data()).await;
        tokio::time::sleep(Duration::from_millis(1850 + moment)).await;
        server.kill();
        let root = three.node.target.root(1).unwrap();
        assert_eq!(lsns(&root).len(), 3, "after {moment} ms");
    }
    becomes_sound(&three).await;
}

/// A server repairs everything, and all snapshots restore to what they were.
async fn becomes_sound(three: &Three) {
    let server = scrubbing(&three.node).start(&three.node.data()).await;
    let repository = repository(&three.node);
    let verify = [
        "snapshot",
        "verify",
        "--data",
        "--partition",
        "1",
        "--repository",
        &repository,
    ];
    eventually("everything is sound", async || {
        esker(&verify).await.status.success().then_some(())
    })
    .await;
    three.assert_all_restore().await;
    drop(server);
}

#[tokio::test]
async fn without_a_server_files_of_a_directory_repair_and_without_them_snapshots_are_marked() {
    let three = Three::new().await;
    let repository = repository(&three.node);
    let verify = [
        "snapshot",
        "verify",
        "--data",
        "--repair",
        "--partition",
        "1",
        "--repository",
        &repository,
    ];
    // An object that only the newest snapshot has.
    let all = keys(&three.node);
    let own = all[0]
        .iter()
        .find(|key| !all[1].contains(*key))
        .unwrap()
        .clone();
    let good = three.node.target.get(&own).unwrap();
    let mut content = good.clone();
    flip_middle(&mut content);
    three.node.target.replace(&own, content);
    let marked = esker(&verify).await;
    assert_eq!(marked.status.code(), Some(1), "{marked:?}");
    let text = String::from_utf8_lossy(&marked.stderr).into_owned();
    assert!(text.contains("--files DIR"), "{text}");
    let root = three.node.target.root(1).unwrap();
    let mark = &root.json["retained_snapshots"][0]["damaged"][0];
    assert_eq!(format!("1/{}", mark["key"].as_str().unwrap()), own);

    // A restore falls back.
    let to: PathBuf = three.node.path("fallback");
    let arguments = [
        "snapshot",
        "restore",
        "--partition",
        "1",
        "--repository",
        &repository,
    ];
    let fallback = esker(&[&arguments[..], &["--to", to.to_str().unwrap()]].concat()).await;
    assert!(fallback.status.success(), "{fallback:?}");
    let text = format!("{fallback:?}");
    assert!(text.contains("passed over"), "{text}");
    assert!(text.contains(&three.restored[1].0.to_string()), "{text}");

    // The next snapshot is whole, although the database has the same file as before.
    let server = three.node.setup.start(&three.node.data()).await;
    sdk::append(&stream(&server.sdk(), "kept-basin/orders"), ["more"]).await;
    put_snapshot(&server).await;
    assert!(!keys(&three.node)[0].contains(&own));
    let lsn = lsns(&three.node.target.root(1).unwrap())[0];
    restore(&three.node, lsn, "whole").await;
    drop(server);

    let three = Three::new().await;
    three.damage("missing");
    let repository = self::repository(&three.node);
    let files = three.node.data().join("checkpoints/1");
    assert!(Path::new(&files).is_dir());
    let verify = [
        "snapshot",
        "verify",
        "--data",
        "--repair",
        "--partition",
        "1",
        "--repository",
        &repository,
    ];
    let repaired = esker(&[&verify[..], &["--files", files.to_str().unwrap()]].concat()).await;
    assert_eq!(repaired.status.code(), Some(0), "{repaired:?}");
    three.assert_all_restore().await;
}
