//! Floods: appends, tiny requests, connections, followers. A polite client beside them is served, and so is
//! the node's own work.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpSocket, TcpStream};
use tokio::task::JoinSet;

use crate::support::http::Answer;
use crate::support::{
    Http, SOON, Server, Setup, Transport, eventually, in_time, sdk, soon, within,
};

const RECORDS: &str = "/v1/streams/orders/records";

fn body(bytes: usize) -> Bytes {
    let text = "x".repeat(bytes);
    Bytes::from(json!({"records": [{"body": text}]}).to_string())
}

async fn append(http: &Http, body: &Bytes) -> Answer {
    let request = http.post(RECORDS).basin("test-basin");
    let request = request.header("content-type", "application/json");
    request.body(body.clone()).send().await
}

async fn server(setup: Setup) -> Server {
    let server = setup.start_fresh().await;
    let basin = sdk::basin(&server.sdk(), "test-basin").await;
    sdk::stream(&basin, "orders").await;
    server
}

/// A metric, summed over its labels.
async fn metric(http: &Http, name: &str) -> f64 {
    let metrics = http.get("/metrics").send().await.text();
    let of_name = metrics.lines().filter_map(|line| {
        let (series, value) = line.rsplit_once(' ')?;
        let is_it = series.split('{').next() == Some(name);
        is_it.then(|| value.parse::<f64>().unwrap())
    });
    of_name.sum()
}

/// Clients that append without a pause, each with many requests under way.
struct Flood {
    ends: Arc<AtomicBool>,
    /// Bytes that were acknowledged.
    acknowledged: Arc<AtomicU64>,
    clients: JoinSet<()>,
}

impl Flood {
    async fn begin(server: &Server, connections: usize, requests: usize, bytes: usize) -> Flood {
        let mut flood = Flood {
            ends: Arc::default(),
            acknowledged: Arc::default(),
            clients: JoinSet::new(),
        };
        let body = body(bytes);
        for _ in 0..connections {
            let http = Arc::new(Http::new(server.address(), Transport::Http2));
            for _ in 0..requests {
                let (http, body) = (http.clone(), body.clone());
                let (ends, acknowledged) = (flood.ends.clone(), flood.acknowledged.clone());
                flood.clients.spawn(async move {
                    while !ends.load(Ordering::Relaxed) {
                        let request = http.post(RECORDS).basin("test-basin");
                        let request = request.header("content-type", "application/json");
                        match request.body(body.clone()).try_send().await {
                            Ok(answer) if answer.status == 200 => {
                                acknowledged.fetch_add(bytes as u64, Ordering::Relaxed);
                            }
                            Ok(answer) => assert_eq!(answer.status, 429, "{}", answer.text()),
                            // The test is over, and the server with it.
                            Err(_) => return,
                        }
                    }
                });
            }
        }
        let acknowledged = flood.acknowledged.clone();
        eventually("the flood is under way", async || {
            let enough = (connections * bytes) as u64;
            (acknowledged.load(Ordering::Relaxed) >= enough).then_some(())
        })
        .await;
        flood
    }

    async fn end(mut self) {
        self.ends.store(true, Ordering::Relaxed);
        while let Some(ended) = self.clients.join_next().await {
            ended.unwrap();
        }
    }
}

/// How much of a flood is acknowledged during an append of somebody else: the median of some.
async fn waits_for(flood: &Flood, http: &Http) -> u64 {
    let small = body(100);
    let mut waited = Vec::new();
    for _ in 0..31 {
        let before = flood.acknowledged.load(Ordering::Relaxed);
        append(http, &small).await.expect(200);
        waited.push(flood.acknowledged.load(Ordering::Relaxed) - before);
    }
    waited.sort_unstable();
    waited[waited.len() / 2]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_polite_client_waits_for_a_small_part_of_what_64_others_have_queued() {
    const REQUESTS: usize = 16;
    const BYTES: usize = 32 * 1024;
    let server = server(Setup::default().partitions(1)).await;
    let flood = Flood::begin(&server, 64, REQUESTS, BYTES).await;
    let queued = (64 * REQUESTS * BYTES) as u64;
    let waited = waits_for(&flood, &server.http2()).await;
    // In the order of arrival it would be all of it.
    assert!(waited <= queued / 2, "{waited} of {queued}");
    // The node's own work goes on: probes, syncs, ticks, snapshots.
    let http = server.http1();
    http.get("/health").send().await.expect(200);
    // Ticks publish the commits, once a second.
    for work in ["esker_log_write_groups_total", "esker_raft_commits_total"] {
        let before = metric(&http, work).await;
        eventually(work, async || {
            (metric(&http, work).await > before).then_some(())
        })
        .await;
    }
    let snapshot = http.post("/esker/v1/partitions/1/snapshots").send();
    soon("a snapshot", snapshot).await.expect(200);
    flood.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tiny_requests_of_one_connection_delay_no_other_connection() {
    const REQUESTS: usize = 1000;
    let server = server(Setup::default().partitions(1)).await;
    let flood = Flood::begin(&server, 1, REQUESTS, 1).await;
    let waited = waits_for(&flood, &server.http1()).await;
    assert!(waited <= REQUESTS as u64, "{waited} of {REQUESTS}");
    server.http1().get("/health").send().await.expect(200);
    flood.end().await;
}

/// A connection that comes from this address of the loopback network.
async fn connected_from(server: &Server, address: &str) -> TcpStream {
    let socket = TcpSocket::new_v4().unwrap();
    let from = SocketAddr::new(address.parse().unwrap(), 0);
    socket.bind(from).unwrap();
    let to = server.address().parse().unwrap();
    socket.connect(to).await.unwrap()
}

fn head(length: usize) -> String {
    format!(
        "POST {RECORDS} HTTP/1.1\r\nhost: localhost\r\ns2-basin: test-basin\r\ncontent-type: application/json\r\ncontent-length: {length}\r\n\r\n"
    )
}

/// Begins a connection of HTTP/2, and returns it with the window that one request on it has.
async fn window_from(server: &Server, address: &str) -> (TcpStream, u32) {
    const SETTINGS: u8 = 4;
    const INITIAL_WINDOW_SIZE: [u8; 2] = [0, 4];
    let mut connection = connected_from(server, address).await;
    let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00";
    connection.write_all(preface).await.unwrap();
    let mut head = [0; 9];
    let read = connection.read_exact(&mut head);
    soon("settings", read).await.unwrap();
    assert_eq!(head[3], SETTINGS, "{head:?}");
    let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
    let mut settings = vec![0; length as usize];
    let read = connection.read_exact(&mut settings);
    soon("settings", read).await.unwrap();
    let mut settings = settings.chunks_exact(6);
    let window = settings.find(|one| one[..2] == INITIAL_WINDOW_SIZE);
    let window = window.map(|one| u32::from_be_bytes([one[2], one[3], one[4], one[5]]));
    (connection, window.unwrap_or(65_535))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_of_one_address_leave_windows_to_those_of_another() {
    const LARGE: u32 = 512 * 1024;
    // After that, the first ones are ended, because they send no request.
    const KEPT: Duration = Duration::from_secs(10);
    let last = in_time("300 connections", async |_| {
        let server = server(Setup::default()).await;
        let began = Instant::now();
        let mut flood = Vec::new();
        for _ in 0..300 {
            flood.push(window_from(&server, "127.0.0.2").await);
        }
        let last = flood.last().map(|(_, window)| *window);
        let (_other, window) = window_from(&server, "127.0.0.3").await;
        assert!(window > LARGE, "{window}");
        within(began.elapsed(), KEPT).map(|()| last)
    });
    let last = last.await;
    assert!(last < Some(LARGE), "{last:?}: they share");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bodies_of_one_client_that_do_not_come_leave_memory_to_those_of_another() {
    const ANNOUNCED: usize = 4_000_000;
    let setup = Setup::default().set("limits.request-bodies=64MiB");
    let server = server(setup).await;
    let http = server.http1();
    let mut stuck = JoinSet::new();
    for _ in 0..32 {
        let mut connection = connected_from(&server, "127.0.0.2").await;
        stuck.spawn(async move {
            let text = head(ANNOUNCED) + "{\"" + &"x".repeat(ANNOUNCED / 8);
            // The server reads no more of it than it has memory for.
            connection.write_all(text.as_bytes()).await.unwrap();
            std::future::pending::<()>().await;
        });
    }
    let waiting = async || metric(&http, "esker_request_bodies_waiting").await;
    eventually("bodies wait for memory", async || {
        (waiting().await > 8.0).then_some(())
    })
    .await;
    // Larger than what small bodies have for themselves.
    let body = body(200 * 1024);
    let mut other = connected_from(&server, "127.0.0.3").await;
    other.write_all(head(body.len()).as_bytes()).await.unwrap();
    other.write_all(&body).await.unwrap();
    await_text(&mut other, "HTTP/1.1 200").await;
    let still = waiting().await;
    assert!(still > 8.0, "it waited until others were refused");
    drop(stuck);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn idle_and_half_open_connections_leave_places_for_others_when_their_time_is_over() {
    const PLACES: usize = 32;
    let setup = Setup::default().set(&format!("limits.connections={PLACES}"));
    let server = server(setup.set("limits.header-timeout=500ms")).await;
    let mut open = Vec::new();
    for number in 0..10 * PLACES {
        let mut connection = TcpStream::connect(server.address()).await.unwrap();
        if number % 2 == 0 {
            let part = b"POST /v1/streams/orders/records HTTP/1.1\r\nhost: loc";
            // The server may have closed it.
            let _ = connection.write_all(part).await;
        }
        open.push(connection);
    }
    let http = server.http2();
    let small = body(1);
    let answer = tokio::time::timeout(4 * SOON, append(&http, &small));
    answer.await.expect("a place becomes free").expect(200);
    server.http1().get("/health").send().await.expect(200);
    drop(open);
}

/// A reader of server-sent events on a connection of its own, at the tail of the stream.
async fn follower(server: &Server) -> TcpStream {
    let mut connection = TcpStream::connect(server.address()).await.unwrap();
    let head = format!(
        "GET {RECORDS}?tail_offset=0 HTTP/1.1\r\nhost: {}\r\ns2-basin: test-basin\r\naccept: text/event-stream\r\n\r\n",
        server.address()
    );
    connection.write_all(head.as_bytes()).await.unwrap();
    await_text(&mut connection, "event: ping").await;
    connection
}

/// Reads until the text has come.
async fn await_text(connection: &mut TcpStream, text: &str) {
    let mut read = Vec::new();
    let mut buffer = [0; 4096];
    while !String::from_utf8_lossy(&read).contains(text) {
        let got = soon("an event", connection.read(&mut buffer))
            .await
            .unwrap();
        assert!(
            got > 0,
            "the session ended: {}",
            String::from_utf8_lossy(&read)
        );
        read.extend_from_slice(&buffer[..got]);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_follower_takes_little_memory_and_each_of_many_gets_every_record() {
    const FOLLOWERS: usize = 1000;
    // What a follower may take, and a quarter more for the allocator.
    const MOST: u64 = 40 * 1024;
    let setup = Setup::default().partitions(1);
    let server = server(setup.variable("MALLOC_ARENA_MAX", "1")).await;
    let http = server.http2();
    // What followers need in any case.
    let first = follower(&server).await;
    append(&http, &body(100)).await.expect(200);
    let before = server.resident_bytes();
    let mut followers = Vec::new();
    for _ in 0..FOLLOWERS {
        followers.push(follower(&server).await);
    }
    for number in 0..50 {
        let text = format!("record-{number}-{}", "x".repeat(100));
        let body = Bytes::from(json!({"records": [{"body": text}]}).to_string());
        append(&http, &body).await.expect(200);
    }
    for follower in &mut followers {
        await_text(follower, "record-49-").await;
    }
    let each = server.resident_bytes().saturating_sub(before) / FOLLOWERS as u64;
    eprintln!("{each} bytes a follower");
    assert!(each <= MOST, "{each} bytes a follower");
    server.http1().get("/health").send().await.expect(200);
    drop((first, followers));
    eventually("all connections have ended", async || {
        let metrics = http.get("/metrics").send().await.text();
        metrics
            .contains("\nesker_http_connections 1\n")
            .then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn probes_are_answered_on_connections_of_their_own_and_tell_ready_from_live() {
    let server = server(Setup::default().set("limits.connections=1")).await;
    let _only = follower(&server).await;
    for (path, status) in [("/health/ready", "ready"), ("/health/live", "live")] {
        for transport in [Transport::Http1, Transport::Http2] {
            let answer = server.http(transport).get(path).send().await.expect(200);
            let expected = json!({"status": status, "reasons": []});
            assert_eq!(answer.json(), expected, "{path}");
        }
    }
    let http = server.http1();
    assert_eq!(http.get("/health").send().await.expect(200).text(), "OK");
    let json = http.get("/health").header("accept", "application/json");
    assert_eq!(json.send().await.expect(200).json()["status"], "ready");
}
