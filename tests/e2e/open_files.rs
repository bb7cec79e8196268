//! A server that has too many open files for a while: what waits names the cause, and continues afterwards.

use std::collections::HashSet;
use std::fs;
use std::time::Duration;

use rustix::process::{Pid, Resource, Rlimit, prlimit};

use crate::small_disk::{Filled, append, append_at_last, complete, fill};
use crate::support::sdk;
use crate::support::{SOON, Server, Setup, eventually};

/// While this exists, a server can open no more files.
struct NoMoreFiles {
    pid: Pid,
    before: Rlimit,
}

impl NoMoreFiles {
    /// Leaves only `spare` files to be opened.
    fn but(spare: u64, server: &Server) -> NoMoreFiles {
        let open = fs::read_dir(format!("/proc/{}/fd", server.pid())).unwrap();
        let open: HashSet<u64> = open
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .map(|name| name.parse().unwrap())
            .collect();
        let mut free = (0..).filter(|fd| !open.contains(fd));
        let first_refused = free.nth(usize::try_from(spare).unwrap()).unwrap();
        let pid = Pid::from_raw(i32::try_from(server.pid()).unwrap()).unwrap();
        let limit = |limit| prlimit(Some(pid), Resource::Nofile, limit).unwrap();
        let limits = fs::read_to_string(format!("/proc/{}/limits", server.pid())).unwrap();
        let files = limits
            .lines()
            .find(|line| line.starts_with("Max open files"));
        let hard = files.unwrap().split_whitespace().nth(4).unwrap();
        let before = limit(Rlimit {
            current: Some(first_refused),
            maximum: hard.parse().ok(),
        });
        NoMoreFiles { pid, before }
    }
}

impl Drop for NoMoreFiles {
    fn drop(&mut self) {
        // A server that has ended needs no limit.
        let _ = prlimit(Some(self.pid), Resource::Nofile, self.before);
    }
}

async fn are_refused_with_the_cause_and_taken_again(setup: &Setup, spare: u64) {
    let mut server = setup.start_fresh().await;
    let basin = sdk::basin(&server.sdk(), "test-basin").await;
    let stream = sdk::stream(&basin, "orders").await;
    let http = server.http2();
    append(&http, 100_000, 100, SOON).await.unwrap().expect(200);

    let no_more = NoMoreFiles::but(spare, &server);
    let Filled {
        mut acked,
        unknown,
        refusal,
        health,
        ..
    } = fill(&http).await;
    assert!(refusal.contains("oo many open files"), "{refusal}");
    assert!(health.contains("oo many open files"), "{health}");

    drop(no_more);
    eventually("health is back", async || {
        let health = http.get("/health").send().await;
        (health.status == 200).then_some(())
    })
    .await;
    let at = append_at_last(&http, 100_002).await;
    acked.extend([(100_000, 0), (100_002, at)]);
    complete(&stream, &acked, &unknown).await;
    // More than fits into memtables, so the database writes files.
    for number in 200_000..200_100 {
        let answer = append(&http, number, 100_000, SOON).await.unwrap();
        let at = answer.expect(200).json()["start"]["seq_num"].as_u64();
        acked.push((number, at.unwrap()));
    }
    server.kill();
    server.restart(setup).await;
    let stream = server.sdk().basin(sdk::basin_name("test-basin"));
    let stream = stream.stream(sdk::stream_name("orders"));
    complete(&stream, &acked, &unknown).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn appends_that_the_database_has_no_open_file_for_are_refused_with_the_cause_and_taken_again()
{
    // The log needs no new file.
    let setup = Setup::default()
        .partitions(1)
        .set("log.segment-size=256MiB")
        .set("log.purge-threshold=1GiB")
        .set("snapshots.max-log-bytes=4GiB")
        .set("log.flush-after=1MiB")
        .set("store.write-buffer=1MiB")
        .set("store.write-buffers-total=8MiB");
    are_refused_with_the_cause_and_taken_again(&setup, 0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn appends_that_the_log_has_no_open_file_for_are_refused_with_the_cause_and_taken_again() {
    let setup = Setup::default().partitions(1).set("log.segment-size=1MiB");
    // A new file of the log needs two descriptors: for itself, and for its directory during the sync.
    for spare in 0..3 {
        are_refused_with_the_cause_and_taken_again(&setup, spare).await;
    }
}

/// The problems that a server reports and that are no advice.
async fn urgent_problems(server: &Server) -> Vec<String> {
    let status = server.http1().get("/esker/v1/status").send().await;
    let status = status.expect(200).json();
    let problems = status["problems"].as_array().unwrap().iter();
    let urgent = problems.filter(|it| it["advice"] == false);
    urgent.map(ToString::to_string).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flood_of_connections_that_takes_the_last_open_file_is_an_overload_and_damages_nothing() {
    // Connections have less than the flood takes, and the database less than it has files.
    let setup = small_files().open_files(440);
    let mut server = setup.start_fresh().await;
    let basin = sdk::basin(&server.sdk(), "test-basin").await;
    let stream = sdk::stream(&basin, "orders").await;
    let http = server.http2();
    append(&http, 0, 100, SOON).await.unwrap().expect(200);
    let (mut acked, mut unknown) = (vec![(0, 0)], Vec::new());
    let mut flood = Vec::new();
    for spare in [u64::MAX, 3, 0] {
        // At last even the files of the log's and the database's share are gone.
        let no_more = (spare < u64::MAX).then(|| NoMoreFiles::but(spare, &server));
        for _ in 0..150 {
            let connected = tokio::net::TcpStream::connect(server.address());
            // Beyond the kernel's queue, a client waits.
            let connected = tokio::time::timeout(Duration::from_millis(20), connected);
            if let Ok(Ok(connection)) = connected.await {
                flood.push(connection);
            }
        }
        // While there are files, each append is taken, however long that takes.
        let limit = match no_more {
            None => SOON,
            Some(_) => Duration::from_secs(5),
        };
        for number in acked.len() + unknown.len()..acked.len() + unknown.len() + 40 {
            match append(&http, number, 100_000, limit).await {
                Some(answer) if answer.status == 200 => {
                    let at = answer.json()["start"]["seq_num"].as_u64().unwrap();
                    acked.push((number, at));
                }
                // It may still happen.
                Some(answer) if answer.status == 500 => unknown.push(number),
                Some(answer) => {
                    answer.refused(429, "rate_limited");
                    unknown.push(number);
                }
                None => unknown.push(number),
            }
        }
        drop(no_more);
    }
    assert!(acked.len() > 40, "while there are files, appends are taken");
    drop(flood);
    eventually("health is back", async || {
        let health = http.get("/health").send().await;
        (health.status == 200).then_some(())
    })
    .await;
    let next = acked.len() + unknown.len();
    acked.push((next, append_at_last(&http, next).await));
    eventually("no problem is left", async || {
        urgent_problems(&server).await.is_empty().then_some(())
    })
    .await;
    complete(&stream, &acked, &unknown).await;
    let damaged = server.data_dir().join("damaged");
    assert!(!damaged.exists(), "{damaged:?}");
    server.kill();
    server.restart(&setup).await;
    let stream = server.sdk().basin(sdk::basin_name("test-basin"));
    let stream = stream.stream(sdk::stream_name("orders"));
    complete(&stream, &acked, &unknown).await;
}

/// A server that opens and closes many files.
fn small_files() -> Setup {
    Setup::default()
        .partitions(1)
        .set("log.segment-size=1MiB")
        .set("log.purge-threshold=4MiB")
        .set("snapshots.max-log-bytes=16MiB")
        .set("log.flush-after=1MiB")
        .set("store.write-buffer=1MiB")
        .set("store.write-buffers-total=8MiB")
        .set("limits.header-timeout=1h")
}
