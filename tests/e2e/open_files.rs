//! A server that has too many open files for a while: what waits names the cause, and continues afterwards.

use std::collections::HashSet;
use std::fs;

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
        let before = rustix::process::getrlimit(Resource::Nofile);
        let before = limit(Rlimit {
            current: Some(first_refused),
            maximum: before.maximum,
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
