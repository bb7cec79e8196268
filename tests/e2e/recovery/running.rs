//! Damage that a running server finds: the server recovers by itself, and the other partitions continue.

use std::os::unix::process::ExitStatusExt as _;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rustix::process::Signal;
use s2_sdk::types::{AppendInput, AppendRecord, AppendRecordBatch, CommandRecord};
use s2_sdk::{S2, S2Stream};
use tokio::net::UnixDatagram;

use super::contents::stream;
use super::damaged_blocks::{damage_alone, snapshot_all, tables};
use super::history::quiet;
use super::target::{Kind, Node, PARTITIONS};
use crate::small_disk::noise;
use crate::support::sdk;
use crate::support::{Server, Setup, eventually};

const BASIN: &str = "merged-basin";
const KIB: usize = 1024;
/// Batches of 900 KiB in the stream that stays.
const KEPT: usize = 6;
/// The same in the stream that is trimmed: files are rewritten once 8 MiB, and half of all, are deleted.
const TRIMMED: usize = 12;

fn setup() -> Setup {
    quiet().set("snapshots.num-retained=1")
}

/// A service manager that collects what the server reports.
struct ServiceManager {
    dir: tempfile::TempDir,
    reports: Arc<Mutex<Vec<String>>>,
}

impl ServiceManager {
    fn listen() -> ServiceManager {
        let dir = tempfile::tempdir().unwrap();
        let socket = UnixDatagram::bind(dir.path().join("notify")).unwrap();
        let reports: Arc<Mutex<Vec<String>>> = Arc::default();
        let collected = reports.clone();
        tokio::spawn(async move {
            let mut buffer = vec![0; 4096];
            while let Ok(length) = socket.recv(&mut buffer).await {
                let report = String::from_utf8_lossy(&buffer[..length]).into_owned();
                collected.lock().unwrap().push(report);
            }
        });
        ServiceManager { dir, reports }
    }

    fn socket(&self) -> PathBuf {
        self.dir.path().join("notify")
    }

    /// Waits until these reports have come, in this order, others between them: readiness, a reload that names the
    /// cause and has the time that systemd needs, and readiness again.
    async fn has_seen_a_restart(&self, cause: &str) {
        let wanted: [&[&str]; 5] = [
            &["STATUS=starting"],
            &["READY=1", "STATUS=serving at "],
            &[
                "RELOADING=1",
                "MONOTONIC_USEC=",
                "STATUS=restarting: ",
                cause,
            ],
            &["STATUS=starting"],
            &["READY=1", "STATUS=serving at "],
        ];
        eventually("the service manager has seen the restart", async || {
            let reports = self.reports.lock().unwrap().clone();
            let mut reports = reports.iter();
            let mut has = |texts: &[&str]| {
                reports.any(|report| texts.iter().all(|text| report.contains(text)))
            };
            wanted.iter().all(|texts| has(texts)).then_some(())
        })
        .await;
        let reports = self.reports.lock().unwrap();
        let stops = reports.iter().any(|report| report.contains("STOPPING=1"));
        assert!(
            !stops,
            "systemd would count the service as stopped: {reports:?}"
        );
    }
}

/// The streams of the test: two of one partition, and one of another.
struct Streams {
    partition: u64,
    kept: String,
    trimmed: String,
    other: String,
}

impl Streams {
    /// Creates streams until two are in one partition and one is in another.
    async fn make(server: &Server) -> Streams {
        let basin = sdk::basin(&server.sdk(), BASIN).await;
        let mut found: Vec<(u64, String)> = Vec::new();
        for number in 0..64 {
            let name = format!("stream-{number}");
            let before = lasts(server).await;
            let made = sdk::stream(&basin, &name).await;
            sdk::append(&made, ["first"]).await;
            let after = lasts(server).await;
            let grown = (1..=PARTITIONS).max_by_key(|p| after[*p as usize] - before[*p as usize]);
            found.push((grown.unwrap(), format!("{BASIN}/{name}")));
            let of = |p: u64| found.iter().filter(|(q, _)| *q == p).collect::<Vec<_>>();
            let Some(partition) = (1..=PARTITIONS).find(|p| of(*p).len() >= 2) else {
                continue;
            };
            if let Some((_, other)) = found.iter().find(|(p, _)| *p != partition) {
                let two = of(partition);
                return Streams {
                    partition,
                    kept: two[0].1.clone(),
                    trimmed: two[1].1.clone(),
                    other: other.clone(),
                };
            }
        }
        panic!("all streams are in one partition");
    }
}

/// The last entry of each partition's log.
async fn lasts(server: &Server) -> Vec<u64> {
    let status = server.http1().get("/esker/v1/status").send().await;
    let status = status.expect(200).json();
    let partitions = status["partitions"].as_array().unwrap().iter();
    partitions.map(|p| p["last"].as_u64().unwrap()).collect()
}

fn body(stream: &str, number: usize) -> String {
    format!("{stream} {number} {}", noise(number as u64, 900 * KIB))
}

/// Fills both streams by turns: each file has batches of both, and is rewritten when one is trimmed.
async fn fill(s2: &S2, streams: &Streams) {
    for number in 0..TRIMMED {
        let trimmed = body(&streams.trimmed, number);
        sdk::append(&stream(s2, &streams.trimmed), [trimmed]).await;
        if number.is_multiple_of(TRIMMED / KEPT) {
            let kept = body(&streams.kept, number / (TRIMMED / KEPT));
            sdk::append(&stream(s2, &streams.kept), [kept]).await;
        }
    }
}

/// A stopped server whose database has a damaged block that no start reads: among the records of a stream.
/// There are undamaged copies, and one stream is about to be trimmed.
async fn stopped_with_damage() -> (Node, Streams) {
    let node = Node::new(Kind::Directory, setup()).await;
    let mut server = node.setup.start(&node.data()).await;
    let streams = Streams::make(&server).await;
    fill(&server.sdk(), &streams).await;
    snapshot_all(&server).await;
    let with_records: Vec<PathBuf> = tables(&node.data());
    sdk::append(
        &stream(&server.sdk(), &streams.kept),
        ["after the snapshots"],
    )
    .await;
    server.stop().await;
    // Small files may be merged while the server stops; those of records stay.
    let is_large = |table: &&PathBuf| {
        std::fs::metadata(table).is_ok_and(|table| table.len() > 800 * KIB as u64)
    };
    let large: Vec<&PathBuf> = with_records.iter().filter(is_large).collect();
    assert!(!large.is_empty(), "no file has the records alone");
    for table in large {
        // The stream that stays was created first, so its records come first.
        damage_alone(table, 50);
    }
    (node, streams)
}

/// Trims the stream, so that the files of the partition are rewritten, which finds the damage.
async fn trim(stream: &S2Stream) {
    let tail = TRIMMED as u64 + 1;
    let record: AppendRecord = CommandRecord::trim(tail).into();
    let batch = AppendRecordBatch::try_from_iter([record]).unwrap();
    stream.append(AppendInput::new(batch)).await.unwrap();
}

/// All records of the stream with the damage, if it can be read.
async fn read_kept(server: &Server, streams: &Streams) -> Option<Vec<String>> {
    let kept = stream(&server.sdk(), &streams.kept);
    let mut records = Vec::new();
    while records.len() < KEPT + 2 {
        let batch = kept.read(sdk::from_seq(records.len() as u64, 1000)).await;
        records.extend(sdk::bodies(&batch.ok()?.records));
    }
    Some(records)
}

fn is_whole(read: &[String], streams: &Streams) {
    let mut expected = vec!["first".to_owned()];
    expected.extend((0..KEPT).map(|number| body(&streams.kept, number)));
    expected.push("after the snapshots".to_owned());
    assert!(
        read == expected,
        "{} records of {}",
        read.len(),
        expected.len()
    );
}

async fn kept_is_whole(server: &Server, streams: &Streams) {
    let read = read_kept(server, streams).await;
    is_whole(&read.expect("it can be read"), streams);
}

#[tokio::test]
async fn damage_that_a_merge_meets_is_repaired_by_the_server_and_other_partitions_go_on() {
    let (node, streams) = stopped_with_damage().await;
    let manager = ServiceManager::listen();
    let setup = node.setup.clone();
    let setup = setup.variable("NOTIFY_SOCKET", manager.socket().to_str().unwrap());
    let mut server = setup.start(&node.data()).await;
    assert_eq!(server.starts(), 1);
    let pid = server.pid();
    let other = stream(&server.sdk(), &streams.other);
    trim(&stream(&server.sdk(), &streams.trimmed)).await;
    // Appends, one after the other, also while the damage is found and while the server restarts itself.
    let mut acknowledged = vec!["first".to_owned()];
    let mut refused = 0;
    eventually("the server restarts itself", async || {
        let number = acknowledged.len() + refused;
        let body = format!("other {number}");
        match other.append(sdk::input([&body])).await {
            Ok(_) => acknowledged.push(body),
            // Its outcome is unknown unless the error says otherwise.
            Err(error) => {
                let error = error.to_string();
                assert!(
                    !error.contains("checksum"),
                    "another partition's damage: {error}"
                );
                refused += 1;
            }
        }
        (server.starts() > 1).then_some(())
    })
    .await;
    let restarting = server.logged("restarting: ").await;
    let named = format!("files of partition {} are damaged", streams.partition);
    assert!(restarting.contains(&named), "{restarting}");
    assert_eq!(server.pid(), pid);
    sdk::append(&other, ["after the restart"]).await;
    acknowledged.push("after the restart".to_owned());
    let read = sdk::bodies(&sdk::read_all(&other).await);
    let missing: Vec<_> = acknowledged.iter().filter(|b| !read.contains(b)).collect();
    assert!(missing.is_empty(), "{missing:?}");
    kept_is_whole(&server, &streams).await;
    sdk::append(&stream(&server.sdk(), &streams.trimmed), ["goes on"]).await;

    manager.has_seen_a_restart(&named).await;
    let health = server.http1().get("/health").send().await;
    health.expect(200);
    assert!(server.problem("restarted").await.contains(&named));
    let metrics = server.http1().get("/metrics").send().await.text();
    assert!(metrics.contains("\nesker_restarts_total 1\n"), "{metrics}");
    let noted = node
        .data()
        .join(format!("damaged/partition-{}", streams.partition));
    assert!(!noted.exists(), "the partition has another database");

    // The restarted process can be stopped like any other.
    server.stop().await;
    let server = node.setup.start(&node.data()).await;
    kept_is_whole(&server, &streams).await;
    let metrics = server.http1().get("/metrics").send().await.text();
    assert!(metrics.contains("\nesker_restarts_total 1\n"), "{metrics}");
}

#[tokio::test]
async fn a_server_that_is_asked_to_stop_while_it_restarts_itself_stays_stopped() {
    let (node, streams) = stopped_with_damage().await;
    // In milliseconds from the beginning of the restart: while the node stops, around the replacement of the
    // process, in the start after it, and when it serves again.
    for moment in [0, 50, 150, 400, 1_000] {
        let node = node.copy(setup()).await;
        let mut server = node.setup.start(&node.data()).await;
        trim(&stream(&server.sdk(), &streams.trimmed)).await;
        server.logged("restarting: ").await;
        tokio::time::sleep(Duration::from_millis(moment)).await;
        server.signal(Signal::TERM);
        let status = server.wait().await;
        // The signal may end the new process before it listens for signals: nothing was acknowledged yet.
        let is_asked = status.success() || status.signal() == Some(Signal::TERM.as_raw());
        assert!(is_asked, "after {moment} ms: {status}");
        let server = node.setup.start(&node.data()).await;
        let read = eventually("everything can be read", async || {
            read_kept(&server, &streams).await
        });
        is_whole(&read.await, &streams);
    }
}

#[tokio::test]
async fn a_restart_by_itself_that_is_killed_at_any_moment_costs_nothing() {
    let (node, streams) = stopped_with_damage().await;
    // In milliseconds; `None` is the beginning of the restart, independent of the machine's speed.
    for moment in [Some(0), Some(300), None, Some(1_000), Some(1_400)] {
        let node = node.copy(setup()).await;
        let mut server = node.setup.start(&node.data()).await;
        trim(&stream(&server.sdk(), &streams.trimmed)).await;
        match moment {
            Some(moment) => tokio::time::sleep(Duration::from_millis(moment)).await,
            None => {
                server.logged("restarting: ").await;
            }
        }
        server.kill();
        let server = node.setup.start(&node.data()).await;
        // A start that does not read the block leaves the damage to the first read of it.
        let read = eventually("everything can be read", async || {
            read_kept(&server, &streams).await
        });
        is_whole(&read.await, &streams);
        // A merge may find the damage after the reads, and the server restarts itself then.
        eventually("the server is well", async || {
            let health = server.http1().get("/health").try_send().await.ok()?;
            (health.status == 200).then_some(())
        })
        .await;
    }
}
