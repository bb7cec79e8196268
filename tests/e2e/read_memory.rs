//! Memory of all read sessions together: it is bounded, also when clients do not take what was read.

use std::time::Duration;

use crate::support::events::Events;
use crate::support::frames;
use crate::support::{Http, Server, Setup, eventually, sdk, soon};

const MIB: u64 = 1024 * 1024;
/// Bytes that a client's window accepts of a session that it does not read.
const WINDOW: u32 = 300;

/// The value of a gauge.
async fn gauge(server: &Server, name: &str) -> u64 {
    let metrics = server.http1().get("/metrics").send().await.text();
    let start = format!("{name} ");
    let line = metrics.lines().find_map(|line| line.strip_prefix(&start));
    line.expect("it exists").parse().unwrap()
}

/// Opens connections with this many sessions on each, which read a stream from its start, and take nothing of
/// the answers.
async fn stuck(server: &Server, connections: usize, sessions: usize) -> Vec<Box<dyn Send>> {
    let mut stuck: Vec<Box<dyn Send>> = Vec::new();
    for _ in 0..connections {
        let http = Http::with_window(server.address(), WINDOW);
        for number in 0..sessions {
            let query = "seq_num=0";
            stuck.push(match number % 2 {
                0 => Box::new(frames::read_session(&http, "test-basin", "orders", query).await),
                _ => Box::new(Events::open(&http, "test-basin", "orders", query, None).await),
            });
        }
        stuck.push(Box::new(http));
    }
    stuck
}

async fn start(settings: &[&str]) -> (Server, s2_sdk::S2Stream, s2_sdk::S2Stream) {
    let setup = Setup::default()
        .set("limits.read-sessions=32MiB")
        .set("limits.follower-buffer=1MiB")
        // Freed memory is returned to the system at once, so that only memory in use is measured.
        .variable("MALLOC_ARENA_MAX", "1")
        .variable("MALLOC_MMAP_THRESHOLD_", "65536");
    let setup = settings.iter().fold(setup, |setup, it| setup.set(it));
    let server = setup.start_fresh().await;
    let basin = sdk::basin(&server.sdk(), "test-basin").await;
    let orders = sdk::stream(&basin, "orders").await;
    let busy = sdk::stream(&basin, "busy").await;
    for _ in 0..40 {
        sdk::append(&orders, [vec![b'x'; 1_000_000]]).await;
    }
    // A first read allocates what reads need in any case, such as caches.
    assert_eq!(sdk::read_all(&orders).await.len(), 40);
    (server, orders, busy)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn unread_sessions_hold_together_what_the_configuration_allows_and_followers_go_on() {
    // However long the rest of this test takes, the sessions stay.
    let (server, orders, busy) = start(&["limits.stall-timeout=1h"]).await;
    let http = server.http2();
    let query = "tail_offset=0";
    let mut live = frames::read_session(&http, "test-basin", "busy", query).await;
    let before = server.resident_bytes();
    let stuck = stuck(&server, 4, 60).await;
    eventually("sessions wait for memory", async || {
        (gauge(&server, "esker_read_sessions_waiting").await >= 100).then_some(())
    })
    .await;
    let held = gauge(&server, "esker_read_sessions_bytes").await;
    assert!(held <= 32 * MIB, "{held}");
    let grown = server.resident_bytes().saturating_sub(before);
    // The budget, some 100 KiB a session beside it, and the allocator: not two batches for each.
    let bound = (32 + 240 / 10 + 32) * MIB;
    assert!(grown < bound, "{} MiB of {}", grown / MIB, bound / MIB);
    // A reader of another stream gets new records.
    for number in 0..20 {
        sdk::append(&busy, [format!("{number}").repeat(1000)]).await;
        let next = async {
            loop {
                let batch = live.next().await.message();
                if let Some(record) = batch.records.first() {
                    return record.seq_num;
                }
            }
        };
        assert_eq!(soon("what was appended", next).await, number);
    }
    assert!(gauge(&server, "esker_read_sessions_waiting").await >= 100);
    // Freed memory goes to the sessions that wait.
    drop(stuck);
    let all = soon("everything", sdk::read_all(&orders)).await;
    assert_eq!(all.len(), 40);
    eventually("nothing is held", async || {
        let waiting = gauge(&server, "esker_read_sessions_waiting").await;
        let held = gauge(&server, "esker_read_sessions_bytes").await;
        (waiting == 0 && held == 0).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_that_hold_memory_of_sessions_that_have_stalled_are_closed_where_others_need_it()
 {
    // Long enough for a connection to get all its sessions before it is closed.
    let (server, orders, _busy) = start(&["limits.stall-timeout=3s"]).await;
    // A live session keeps each connection open.
    let mut alive = Vec::new();
    let (mut all, mut connections) = (Vec::new(), Vec::new());
    for _ in 0..3 {
        let http = Http::with_window(server.address(), WINDOW);
        let query = "tail_offset=0";
        alive.push(frames::read_session(&http, "test-basin", "busy", query).await);
        for _ in 0..200 {
            let query = "seq_num=0";
            all.push(frames::read_session(&http, "test-basin", "orders", query).await);
        }
        connections.push(http);
    }
    // 600 stalled sessions hold more in their connections than the budget for all.
    let read = tokio::time::timeout(Duration::from_secs(120), sdk::read_all(&orders));
    assert_eq!(read.await.expect("others read").len(), 40);
    eventually("nothing is held", async || {
        let waiting = gauge(&server, "esker_read_sessions_waiting").await;
        (waiting == 0).then_some(())
    })
    .await;
    drop((alive, all, connections));
}
