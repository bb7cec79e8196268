//! Local snapshots that have more than what else there is: an older copy of log and database that is put back beside
//! them, and losses after which they cannot be used. Nothing that only they have is removed.

use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use testkit::corruption::{change_alone, flip_middle, truncate};

use super::contents::{Contents, GAP, contents, stream};
use super::history::{BASIN, kept, quiet, start_and_read};
use super::losses::newest;
use super::target::{Kind, Node, PARTITIONS, copy_dir, files};
use crate::support::{Server, eventually, sdk};

/// Records of the stream that has the newer local snapshot.
const RECORDS: usize = 40;
/// Entries after which a local snapshot is taken.
const ENTRIES: u64 = 25;
/// Records that it has at least: some entries have none.
const LEAST: usize = 20;

/// The newest local snapshot of each partition.
fn locals(node: &Node) -> Vec<(u64, PathBuf)> {
    let newest_of = |partition: u64| {
        let base = node.data().join(format!("checkpoints/{partition}"));
        let names = fs::read_dir(&base).into_iter().flatten().flatten();
        let all = names.filter_map(|entry| {
            let name = entry.file_name().into_string().ok()?;
            Some((name.strip_prefix("lsn_")?.parse().ok()?, entry.path()))
        });
        all.max().unwrap_or((0, base))
    };
    (0..=PARTITIONS).map(newest_of).collect()
}

/// Waits until no table of the database is written or removed: after a flush, files may be merged.
async fn files_are_at_rest(node: &Node) {
    let mut before = BTreeSet::new();
    eventually("the files of the database are at rest", async || {
        let mut now = files(&node.data().join("db"));
        now.retain(|name| name.ends_with(".sst"));
        if now == before {
            return Some(());
        }
        before = now;
        tokio::time::sleep(Duration::from_secs(1)).await;
        None
    })
    .await;
}

/// A node that was killed: its repository has the first record of each stream, `older` is a copy of its data
/// directory as of then, and since then one partition has got a local snapshot with more.
struct Killed {
    node: Node,
    /// The partition with the newer local snapshot, and what that covers.
    partition: u64,
    lsn: u64,
    snapshot: PathBuf,
    older: PathBuf,
    first: Contents,
}

impl Killed {
    async fn new() -> Killed {
        let setup = quiet().set(&format!("snapshots.local-snapshot-num-records={ENTRIES}"));
        let node = Node::new(Kind::Directory, setup).await;
        let saves = node.with(&["snapshots.snapshot-on-stop=true"]);
        let mut server = saves.start(&node.data()).await;
        let basin = sdk::basin(&server.sdk(), BASIN).await;
        for i in 0..4 {
            sdk::stream(&basin, &format!("orders-{i}")).await;
            sdk::append(&stream(&server.sdk(), &kept(i)), ["first"]).await;
        }
        let first = contents(&server.sdk()).await;
        node.target.roots().await;
        server.stop().await;
        let (older, before) = (node.path("older"), locals(&node));
        copy_dir(&node.data(), &older);

        let mut server = node.setup.start(&node.data()).await;
        append(&server, RECORDS).await;
        let (partition, lsn, snapshot) = eventually("a newer local snapshot", async || {
            let now = locals(&node);
            let mut pairs = (0..).zip(now.into_iter().zip(&before));
            let newer = pairs.find(|(_, (now, before))| now.0 >= before.0 + ENTRIES);
            newer.map(|(partition, ((lsn, dir), _))| (partition, lsn, dir))
        })
        .await;
        files_are_at_rest(&node).await;
        server.kill();
        Killed {
            node,
            partition,
            lsn,
            snapshot,
            older,
            first,
        }
    }

    /// Removes these directories.
    fn lose(&self, what: &[&str]) {
        for what in what {
            fs::remove_dir_all(self.node.data().join(what)).unwrap();
        }
    }

    /// The names in `damaged/`.
    fn aside(&self) -> Vec<String> {
        let names = fs::read_dir(self.node.data().join("damaged")).into_iter();
        let names = names.flatten().flatten();
        names
            .filter_map(|e| e.file_name().into_string().ok())
            .collect()
    }

    /// Whether the local snapshot was put aside.
    fn snapshot_is_aside(&self) -> bool {
        let prefix = format!("checkpoint-{}-", self.partition);
        let mut aside = self.aside().into_iter();
        aside.any(|name| {
            let path = self
                .node
                .data()
                .join(format!("damaged/{name}/checkpoint.json"));
            let described =
                || serde_json::from_slice::<serde_json::Value>(&fs::read(path).unwrap());
            name.starts_with(&prefix) && described().unwrap()["lsn"] == self.lsn
        })
    }
}

async fn append(server: &Server, records: usize) {
    let s2 = server.sdk();
    for record in 0..records {
        sdk::append(&stream(&s2, &kept(0)), [format!("record {record}")]).await;
    }
}

#[tokio::test]
async fn an_older_copy_of_log_and_database_beside_a_newer_local_snapshot_is_not_taken_for_the_present()
 {
    let killed = Killed::new().await;
    let node = &killed.node;
    killed.lose(&["log", "db"]);
    for what in ["log", "db"] {
        copy_dir(&killed.older.join(what), &node.data().join(what));
    }
    let (exit, log) = node.setup.start_refused(&node.data()).await;
    assert_eq!(exit, 1, "{log}");
    let (lsn, partition) = (killed.lsn, killed.partition);
    for part in [
        "error [nothing_usable]".to_owned(),
        format!("in partition {partition}, and the local snapshot has LSN {lsn}"),
        "--bootstrap restore".to_owned(),
    ] {
        assert!(log.contains(&part), "{part}: {log}");
    }
    assert!(killed.snapshot.exists(), "it is the only copy");

    let restore = node.setup.clone().bootstrap("restore");
    let (mut server, after) = start_and_read(&restore, node).await;
    let records = after.0[&kept(0)].records.len();
    assert!(records >= LEAST, "{records}");
    // The other partitions have lost what came after the copy, too: their numbers are not given out again.
    for i in 0..4 {
        let tail = after.0[&kept(i)].tail;
        assert!(tail >= GAP, "{}: {tail}", kept(i));
        assert!(after.0[&kept(i)].records.len() >= killed.first.0[&kept(i)].records.len());
    }
    server.stop().await;
    let (_server, again) = start_and_read(&node.setup, node).await;
    assert_eq!(again, after);
}

#[tokio::test]
async fn a_start_that_is_killed_goes_on_with_the_lineages_that_an_older_log_has_led_to() {
    let killed = Killed::new().await;
    let node = &killed.node;
    killed.lose(&["log", "db"]);
    for what in ["log", "db"] {
        copy_dir(&killed.older.join(what), &node.data().join(what));
    }
    let restore = node.setup.clone().bootstrap("restore");
    for milliseconds in [40, 80, 120, 160, 200, 250, 300, 350, 400] {
        let moment = Duration::from_millis(milliseconds);
        restore.start_and_kill(&node.data(), moment).await;
        if !node.data().join("restore.json").exists() {
            continue;
        }
        // Without the option, once it is decided.
        node.setup.start_and_kill(&node.data(), moment).await;
    }
    let (_server, after) = start_and_read(&restore, node).await;
    for i in 0..4 {
        let tail = after.0[&kept(i)].tail;
        assert!(tail >= GAP, "{}: {tail}", kept(i));
    }
    assert!(after.0[&kept(0)].records.len() >= LEAST);
}

#[tokio::test]
async fn a_local_snapshot_with_a_damaged_byte_is_put_aside_and_not_removed() {
    let killed = Killed::new().await;
    let node = &killed.node;
    killed.lose(&["log", "db"]);
    let table = newest(&killed.snapshot, |name| name.ends_with(".sst"));
    change_alone(&table, flip_middle);
    let there = files(&killed.snapshot);
    let restore = node.setup.clone().bootstrap("restore");
    let (_server, after) = start_and_read(&restore, node).await;
    after.are(&killed.first.after_forks(1), "what the repository has");
    assert!(!killed.snapshot.exists());
    assert!(killed.snapshot_is_aside(), "{:?}", killed.aside());
    let aside = files(&node.data().join("damaged"));
    for file in there {
        assert!(aside.iter().any(|aside| aside.ends_with(&file)), "{file}");
    }
}

#[tokio::test]
async fn damaged_files_of_a_database_are_put_aside_before_a_copy_with_less_takes_their_place() {
    let killed = Killed::new().await;
    let node = &killed.node;
    // The local snapshot has flushed the database.
    let table = newest(&node.data().join("db"), |name| name.ends_with(".sst"));
    let length = fs::metadata(&table).unwrap().len();
    killed.lose(&["log", "checkpoints"]);
    truncate(&table, length / 2);
    let restore = node.setup.clone().bootstrap("restore");
    let (_server, _) = start_and_read(&restore, node).await;
    let mut aside = killed.aside().into_iter();
    let name = aside.find(|name| name.starts_with("db-partition-"));
    let name = name.unwrap_or_else(|| panic!("{:?}", killed.aside()));
    let kept = files(&node.data().join("damaged").join(name));
    let damaged = table.file_name().unwrap().to_str().unwrap();
    assert!(kept.contains(damaged), "{kept:?}, without {damaged}");
}
