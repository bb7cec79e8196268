//! Damaged blocks of the database, found by an open, a scan, a replay or a read.
//!
//! The database's largest file has settings, names and records of thousands of streams. Which of its blocks a
//! start reads depends on the offset of the damage, so several are tried.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;

use futures::StreamExt as _;
use s2_sdk::S2;
use s2_sdk::types::{ListStreamsInput, ReadFrom, ReadInput, ReadLimits, ReadStart, ReadStop};

use super::contents::stream;
use super::history::quiet;
use super::target::{Kind, Node, PARTITIONS, files};
use crate::support::sdk;
use crate::support::{Server, Setup, eventually};

const BASIN: &str = "many-streams";
const STREAMS: usize = 3_000;
/// Requests at a time.
const AT_A_TIME: usize = 32;
/// Each stream whose number is a multiple of this gets another record after the snapshot, so that replay
/// reads many blocks.
const LATE: usize = 4;
/// Each stream whose number is a multiple of this is read from a timestamp on, too: reads by sequence number do not touch
/// the index by time, of which a block has more streams than this.
const BY_TIME: usize = 8;
/// Bytes that are flipped.
const FLIPPED: usize = 64;
/// Per mille of a file's length. The last is in its footer, which is read when it is opened.
const OFFSETS: &[usize] = &[50, 300, 600, 920, 999];

/// Servers whose log begins after the one retained snapshot, so that the log alone is not enough for a
/// recovery.
fn setup() -> Setup {
    quiet().set("snapshots.num-retained=1")
}

fn name(number: usize) -> String {
    format!("{BASIN}/stream-{number:04}")
}

fn body(number: usize) -> String {
    format!("{number} {}", "x".repeat(number % 300))
}

fn late(number: usize) -> String {
    format!("late {number}")
}

async fn for_each(numbers: impl Iterator<Item = usize>, run: impl AsyncFn(usize)) {
    let run = &run;
    futures::stream::iter(numbers.map(|number| run(number)))
        .buffer_unordered(AT_A_TIME)
        .collect::<()>()
        .await;
}

/// Streams with a record each, a snapshot of every partition, and more records.
async fn fill(server: &Server) {
    let s2 = server.sdk();
    let basin = sdk::basin(&s2, BASIN).await;
    for_each(0..STREAMS, async |number| {
        let made = sdk::stream(&basin, name(number).split_once('/').unwrap().1).await;
        sdk::append(&made, [body(number)]).await;
    })
    .await;
    snapshot_all(server).await;
    for_each((0..STREAMS).step_by(LATE), async |number| {
        sdk::append(&stream(&s2, &name(number)), [late(number)]).await;
    })
    .await;
}

/// A server with [`fill`], killed. Tests that run at the same time share one, and work on copies of it.
async fn killed_with_many_streams() -> Arc<Node> {
    static SHARED: tokio::sync::Mutex<Weak<Node>> = tokio::sync::Mutex::const_new(Weak::new());
    let mut shared = SHARED.lock().await;
    if let Some(node) = shared.upgrade() {
        return node;
    }
    let node = Node::new(Kind::Directory, setup()).await;
    let mut server = node.setup.start(&node.data()).await;
    fill(&server).await;
    server.kill();
    let node = Arc::new(node);
    *shared = Arc::downgrade(&node);
    node
}

pub(super) async fn snapshot_all(server: &Server) {
    for partition in 0..=PARTITIONS {
        let path = format!("/esker/v1/partitions/{partition}/snapshots");
        server.http1().post(&path).send().await.expect(200);
    }
}

/// A read of everything from the first timestamp on.
fn from_the_first_time() -> ReadInput {
    let limits = ReadLimits::new().with_count(1000);
    ReadInput::new()
        .with_start(ReadStart::new().with_from(ReadFrom::Timestamp(0)))
        .with_stop(ReadStop::new().with_limits(limits))
}

/// Reads everything that was acknowledged, in each way in which it can be found: no block of the database that has anything
/// of it is left out. The error is that of a read.
///
/// # Panics
///
/// If anything but the acknowledged records is read.
async fn read_all(s2: &S2, context: &str) -> Result<(), String> {
    let failure = Mutex::new(None);
    for_each(0..STREAMS, async |number| {
        let mut wanted = vec![body(number)];
        wanted.extend((number % LATE == 0).then(|| late(number)));
        let stream = stream(s2, &name(number));
        let mut reads = vec![sdk::from_seq(0, 1000)];
        reads.extend((number % BY_TIME == 0).then(from_the_first_time));
        for input in reads {
            match stream.read(input).await {
                Ok(batch) => assert_eq!(sdk::bodies(&batch.records), wanted, "{context}: {number}"),
                Err(error) => *failure.lock().unwrap() = Some(error.to_string()),
            }
        }
    })
    .await;
    let mut listed = 0;
    let mut after = String::new();
    loop {
        let page = ListStreamsInput::new().with_start_after(after.parse().unwrap());
        match s2.basin(sdk::basin_name(BASIN)).list_streams(page).await {
            Ok(page) => {
                listed += page.values.len();
                match page.values.last() {
                    Some(last) if page.has_more => after = last.name.to_string(),
                    _ => break,
                }
            }
            Err(error) => return Err(error.to_string()),
        }
    }
    assert_eq!(listed, STREAMS, "{context}");
    failure.into_inner().unwrap().map_or(Ok(()), Err)
}

/// The tables of the database, the largest first. Those that a running server merges meanwhile are left out.
pub(super) fn tables(data: &Path) -> Vec<PathBuf> {
    let names = files(&data.join("db")).into_iter();
    let tables = names.filter(|name| name.ends_with(".sst"));
    let sized = |name: String| {
        let path = data.join("db").join(name);
        Some((fs::metadata(&path).ok()?.len(), path))
    };
    let mut tables: Vec<_> = tables.filter_map(sized).collect();
    tables.sort_by_key(|(length, _)| std::cmp::Reverse(*length));
    tables.into_iter().map(|(_, path)| path).collect()
}

fn flipped(content: &[u8], per_mille: usize) -> Vec<u8> {
    let mut content = content.to_vec();
    let at = (content.len() * per_mille / 1000).min(content.len() - FLIPPED);
    for byte in &mut content[at..at + FLIPPED] {
        *byte ^= 0xff;
    }
    content
}

/// Flips bytes of the database's file alone: checkpoints keep the original.
pub(super) fn damage_alone(path: &Path, per_mille: usize) {
    let content = flipped(&fs::read(path).unwrap(), per_mille);
    fs::remove_file(path).unwrap();
    fs::write(path, content).unwrap();
}

/// Flips bytes of the file itself, whatever other names it has.
fn damage_with_links(path: &Path, per_mille: usize) {
    let content = flipped(&fs::read(path).unwrap(), per_mille);
    fs::write(path, content).unwrap();
}

#[tokio::test]
async fn a_damaged_block_wherever_it_is_met_costs_nothing_and_needs_nobody() {
    let node = killed_with_many_streams().await;
    for per_mille in OFFSETS {
        for at in 0..=1 {
            let context = format!("{per_mille} per mille of table {at}");
            let node = node.copy(setup()).await;
            damage_alone(&tables(&node.data())[at], *per_mille);
            serves_all_in_the_end(&node, &node.setup, &context).await;
        }
    }
}

/// Checks that a server serves everything in the end: a start recovers from damage that it finds itself;
/// after damage that a read finds, the server restarts itself.
async fn serves_all_in_the_end(node: &Node, setup: &Setup, context: &str) {
    let server = setup.start(&node.data()).await;
    let starts = server.starts();
    let Err(error) = read_all(&server.sdk(), context).await else {
        return;
    };
    eventually("the server restarts itself", async || {
        (server.starts() > starts).then_some(())
    })
    .await;
    let again = read_all(&server.sdk(), context).await;
    assert_eq!(
        again,
        Ok(()),
        "{context}: not recovered, and before: {error}"
    );
    assert_eq!(server.starts(), starts + 1, "{context}");
}

#[tokio::test]
async fn a_damaged_block_is_recovered_from_whenever_the_recovery_is_killed() {
    let node = killed_with_many_streams().await;
    for per_mille in [50, 920, 999] {
        let node = node.copy(setup()).await;
        damage_alone(&tables(&node.data())[0], per_mille);
        for round in 0..6 {
            let moment = Duration::from_millis(20 + 35 * round);
            node.setup.start_and_kill(&node.data(), moment).await;
        }
        let context = format!("{per_mille} per mille, killed");
        serves_all_in_the_end(&node, &node.setup, &context).await;
    }
}

#[tokio::test]
async fn damage_of_a_file_that_local_snapshots_share_is_recovered_from_in_the_repository() {
    let node = killed_with_many_streams().await;
    for per_mille in OFFSETS {
        let context = format!("{per_mille} per mille, with its links");
        let node = node.copy(setup()).await;
        let table = &tables(&node.data())[0];
        assert!(
            fs::metadata(table).unwrap().nlink() > 1,
            "no local snapshot has it"
        );
        damage_with_links(table, *per_mille);
        serves_all_in_the_end(&node, &node.setup, &context).await;
    }
}

#[tokio::test]
async fn a_server_that_was_told_no_destination_recovers_from_its_own_copies() {
    let node = Node::new(Kind::Directory, setup()).await;
    let setup = setup();
    let mut server = setup.start(&node.data()).await;
    fill(&server).await;
    server.kill();
    damage_with_links(&tables(&node.data())[0], 920);
    serves_all_in_the_end(&node, &setup, "the default repository").await;
}

#[tokio::test]
async fn damage_of_every_copy_ends_a_start_with_what_was_tried_and_what_to_do() {
    let node = killed_with_many_streams().await;
    for per_mille in [50, 300, 600, 999] {
        // What a block has depends on the moments at which files were written, and no read needs some of them, such as
        // what was deleted: one that is needed is near.
        let mut is_met = false;
        for step in 0..5 {
            let node = node.copy(setup()).await;
            is_met = ends_a_start(&node, per_mille - 7 * step).await;
            if is_met {
                break;
            }
            eprintln!("{}: nothing needs this block", per_mille - 7 * step);
        }
        assert!(is_met, "{per_mille}: no damage");
    }
}

/// Damages every copy of a block, and checks that this ends a start. Returns whether anything needs the block.
async fn ends_a_start(node: &Node, per_mille: usize) -> bool {
    let table = tables(&node.data())[0].clone();
    let content = fs::read(&table).unwrap();
    damage_with_links(&table, per_mille);
    for key in node.target.keys() {
        if node.target.get(&key).unwrap() == content {
            node.target.replace(&key, flipped(&content, per_mille));
        }
    }
    // Damage in blocks that the start does not read is found by a read, and recorded.
    let mut refused = None;
    for round in 0..2 {
        match node.setup.try_start(&node.data()).await {
            Ok(mut server) => {
                if read_all(&server.sdk(), "before").await.is_ok() {
                    assert_eq!(round, 0, "{per_mille}: the damage is gone");
                    return false;
                }
                // A start would fail, so the undamaged partitions continue to be served.
                let held = server.problem("restart_held_back").await;
                assert!(held.contains("repository snapshot"), "{per_mille}: {held}");
                let health = server.http1().get("/health").send().await.expect(503);
                let health = health.text();
                assert!(health.contains("not made by itself"), "{health}");
                assert_eq!(server.starts(), 1, "{per_mille}");
                server.kill();
            }
            Err(log) => {
                refused = Some(log);
                break;
            }
        }
    }
    let log = refused.unwrap_or_else(|| panic!("{per_mille}: it serves"));
    assert!(log.contains("error [nothing_usable]"), "{per_mille}: {log}");
    for wanted in [
        "database: ",
        "local snapshot: ",
        "repository snapshot ",
        "--bootstrap restore",
    ] {
        assert!(log.contains(wanted), "{per_mille}: no {wanted:?} in {log}");
    }
    true
}

#[tokio::test]
async fn a_lossy_restore_begins_no_lineage_with_a_damaged_block_of_the_database() {
    let node = killed_with_many_streams().await.copy(setup()).await;
    // Records after the snapshots are in the database and in the log, and then in the database alone.
    let mut server = node.setup.start(&node.data()).await;
    server.stop().await;
    fs::remove_dir_all(node.data().join("log")).unwrap();
    for per_mille in [50, 200, 350, 500, 650, 800, 920] {
        let context = format!("{per_mille} per mille");
        let node = node.copy(setup()).await;
        damage_alone(&tables(&node.data())[0], per_mille);
        let restoring = node.setup.clone().bootstrap("restore");
        let server = restoring.start(&node.data()).await;
        let s2 = server.sdk();
        for_each(0..STREAMS, async |number| {
            let it = stream(&s2, &name(number));
            let read = it.read(sdk::from_seq(0, 1000)).await;
            let read = read.unwrap_or_else(|e| panic!("{context}: {number}: {e}"));
            assert_eq!(sdk::bodies(&read.records)[0], body(number), "{context}");
        })
        .await;
        // The last acknowledged records may be in the damaged files alone.
        let aside = fs::read_dir(node.data().join("damaged")).unwrap();
        let aside = aside.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        assert!(
            aside
                .into_iter()
                .any(|name| name.starts_with("db-partition-")),
            "{context}"
        );
    }
}

#[tokio::test]
async fn a_local_snapshot_that_cannot_be_read_now_is_not_passed_over_for_an_older_copy() {
    let setup = setup().set("snapshots.local-snapshot-num-records=100");
    let node = Node::new(Kind::Directory, setup).await;
    let mut server = node.setup.start(&node.data()).await;
    fill(&server).await;
    let archived = node.target.keys();
    eventually(
        "every stream partition has a newer local snapshot",
        async || {
            let newer = |partition: u64| {
                let dir = node.data().join(format!("checkpoints/{partition}"));
                let mut there = fs::read_dir(dir).unwrap().flatten();
                there.any(|one| {
                    let name = one.file_name().into_string().unwrap();
                    let key = format!("{partition}/{name}");
                    name.starts_with("lsn_") && !archived.iter().any(|k| k.starts_with(&key))
                })
            };
            (1..=PARTITIONS).all(newer).then_some(())
        },
    )
    .await;
    server.kill();
    for lost in ["db", "log"] {
        fs::remove_dir_all(node.data().join(lost)).unwrap();
    }
    let restoring = node.setup.clone().bootstrap("restore");
    // The directory in which blocks of local copies are compared is unusable for a database.
    let checks = |partition| node.data().join(format!("restore/{partition}/check"));
    for partition in 0..=PARTITIONS {
        fs::create_dir_all(checks(partition).parent().unwrap()).unwrap();
        fs::write(checks(partition), "").unwrap();
    }
    let (code, log) = restoring.start_refused(&node.data()).await;
    assert_eq!(code, 1, "{log}");
    assert!(log.contains("error [unreadable]"), "{log}");
    for partition in 0..=PARTITIONS {
        fs::remove_file(checks(partition)).unwrap();
    }
    let server = restoring.start(&node.data()).await;
    let s2 = server.sdk();
    let kept = Mutex::new(0);
    for_each((0..STREAMS).step_by(LATE), async |number| {
        let read = stream(&s2, &name(number))
            .read(sdk::from_seq(0, 1000))
            .await;
        *kept.lock().unwrap() += read.unwrap().records.len() - 1;
    })
    .await;
    assert!(
        kept.into_inner().unwrap() > 0,
        "only older copies were used"
    );
}
