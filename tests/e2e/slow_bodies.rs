//! Bodies that arrive slowly or never end, and connections without requests.

use std::cell::Cell;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Empty;
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::support::frames;
use crate::support::http::Http;
use crate::support::{Setup, in_time, sdk, soon};

const MIB: u64 = 1024 * 1024;

#[tokio::test]
async fn connections_whose_bodies_do_not_come_are_closed_and_others_are_served_again() {
    const PATHS: [&str; 3] = [
        "/v1/basins",
        "/esker/v1/partitions/1/prune",
        "/esker.state.v1.StateService/Status",
    ];
    // Long enough for a client that is delayed between two lines.
    let server = Setup::default()
        .set("limits.connections=8")
        .set("limits.header-timeout=3s")
        .start_fresh()
        .await;
    let mut stuck = Vec::new();
    // All places are taken.
    for path in PATHS.into_iter().cycle().take(8) {
        let kind = match path.contains("StateService") {
            true => "application/grpc",
            false => "application/json",
        };
        let head = format!(
            "POST {path} HTTP/1.1\r\nhost: localhost\r\ncontent-type: {kind}\r\ncontent-length: 1000\r\n\r\n{{"
        );
        let mut connection = TcpStream::connect(server.address()).await.unwrap();
        connection.write_all(head.as_bytes()).await.unwrap();
        stuck.push((path, connection));
    }
    // Health can be requested meanwhile.
    let health = server.http1().get("/health").send().await;
    assert_eq!(health.text(), "OK");
    for (path, mut connection) in stuck {
        let mut answer = String::new();
        let read = soon(
            "the end of the connection",
            connection.read_to_string(&mut answer),
        );
        read.await.unwrap();
        let status = match path.contains("StateService") {
            true => "grpc-status: 4",
            false => "HTTP/1.1 408",
        };
        assert!(answer.contains(status), "{path}: {answer}");
    }
    // The places are free again.
    server.http1().get("/v1/basins").send().await.expect(200);
}

#[tokio::test]
async fn an_idle_connection_is_closed_and_one_with_an_open_session_is_not() {
    let server = Setup::default()
        // Long enough for a client that is delayed between its connection and its request.
        .set("limits.idle-timeout=2s")
        .start_fresh()
        .await;
    // The client reconnects where its connection was closed.
    let basin = sdk::basin(&sdk::client(server.url(), 5), "test-basin").await;
    let stream = sdk::stream(&basin, "orders").await;
    let busy = server.http2();
    let session = busy.get("/v1/streams/orders/records?seq_num=0");
    let session = session
        .basin("test-basin")
        .header("accept", "text/event-stream");
    let mut session = session.open().await;

    // The connection answers pings, as the client's library does by itself.
    let connection = TcpStream::connect(server.address()).await.unwrap();
    let builder = http2::Builder::new(TokioExecutor::new());
    let (sender, connection) = builder
        .handshake::<_, Empty<Bytes>>(TokioIo::new(connection))
        .await
        .unwrap();
    let closed = soon("the end of an idle connection", connection).await;
    closed.unwrap();
    drop(sender);

    sdk::append(&stream, ["still here"]).await;
    let mut text = String::new();
    while !text.contains("still here") {
        let next = session.chunk().await;
        text += &String::from_utf8_lossy(&next.expect("the session is open"));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn half_sent_bodies_hold_what_the_configuration_allows() {
    let server = Setup::default()
        .set("limits.request-bodies=64MiB")
        // Freed memory is returned to the system at once, so that only memory in use is measured.
        .variable("MALLOC_ARENA_MAX", "1")
        .start_fresh()
        .await;
    let basin = sdk::basin(&server.sdk(), "test-basin").await;
    let stream = sdk::stream(&basin, "orders").await;
    sdk::append(&stream, [vec![b'x'; 1_000_000]]).await;
    let before = server.resident_bytes();
    let http = Http::new(server.address(), crate::support::http::Transport::Http2);
    let mut half_sent = Vec::new();
    for _ in 0..100 {
        let request = http
            .post("/v1/streams/orders/records")
            .basin("test-basin")
            .header("content-type", "application/json")
            .body(vec![b' '; 3_900_000]);
        half_sent.push(Box::pin(request.open()));
    }
    // No body is complete, so none is answered. 390 MB are in transit.
    let sending = futures::future::join_all(half_sent);
    assert!(
        tokio::time::timeout(Duration::from_secs(3), sending)
            .await
            .is_err()
    );
    let grown = server.resident_bytes().saturating_sub(before);
    // The budget, the connection's window, and the allocator.
    assert!(grown < (64 + 8 + 48) * MIB, "{} MiB", grown / MIB);
    drop(http);
    // The memory is free again.
    let ack = soon("an append", sdk::append(&stream, ["goes on"])).await;
    assert_eq!(ack.start.seq_num, 1);
    let health = server.http1().get("/health").send().await;
    assert_eq!(health.text(), "OK");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bodies_that_come_at_the_same_time_are_all_answered() {
    const BODIES: usize = 40;
    let server = Setup::default()
        .set("limits.request-bodies=64MiB")
        .start_fresh()
        .await;
    let basin = sdk::basin(&server.sdk(), "test-basin").await;
    let stream = sdk::stream(&basin, "orders").await;
    // Together more than twice the budget.
    let mut body = br#"{"records":[{"body":"x"}]}"#.to_vec();
    body.resize(3_900_000, b' ');
    let heads = [
        format!("content-length: {}", body.len()),
        "transfer-encoding: chunked".to_owned(),
    ];
    let mut sent = 0;
    for head in &heads {
        let chunked = head.contains("chunked");
        let head = format!(
            "POST /v1/streams/orders/records HTTP/1.1\r\nhost: localhost\r\ns2-basin: test-basin\r\n\
             content-type: application/json\r\nconnection: close\r\n{head}\r\n\r\n"
        );
        let try_send = async |answer: &mut String| -> std::io::Result<()> {
            let mut connection = TcpStream::connect(server.address()).await?;
            connection.write_all(head.as_bytes()).await?;
            // The bodies are sent in turns, one piece of each.
            for piece in body.chunks(50_000) {
                let mut bytes = piece.to_vec();
                if chunked {
                    let length = format!("{:x}\r\n", piece.len());
                    bytes.splice(0..0, length.into_bytes());
                    bytes.extend_from_slice(b"\r\n");
                }
                connection.write_all(&bytes).await?;
                tokio::task::yield_now().await;
            }
            if chunked {
                connection.write_all(b"0\r\n\r\n").await?;
            }
            connection.read_to_string(answer).await.map(drop)
        };
        // A server that is so slow that a body waits for others for ten seconds refuses it, and it is sent again. If
        // bodies waited for each other, most would be refused in every round.
        let again = Cell::new(0);
        let send = async || {
            loop {
                let mut answer = String::new();
                let sent = try_send(&mut answer).await;
                if answer.starts_with("HTTP/1.1 200") {
                    break;
                }
                let is_refused =
                    answer.starts_with("HTTP/1.1 429") || (answer.is_empty() && sent.is_err());
                assert!(is_refused, "{sent:?}: {answer}");
                again.set(again.get() + 1);
            }
        };
        in_time("few bodies are refused", async |_| {
            again.set(0);
            let all = futures::future::join_all((0..BODIES).map(|_| send()));
            soon("answers to all bodies", all).await;
            sent += BODIES;
            match again.get() < BODIES / 4 {
                true => Ok(()),
                false => Err(format!("{} were sent again", again.get())),
            }
        })
        .await;
    }
    let tail = stream.check_tail().await.unwrap();
    assert_eq!(tail.seq_num as usize, sent);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn half_sent_frames_of_append_sessions_hold_what_the_configuration_allows() {
    const CONNECTIONS: usize = 6;
    let server = Setup::default()
        .set("limits.request-bodies=64MiB")
        // Freed memory is returned to the system at once, so that only memory in use is measured.
        .variable("MALLOC_ARENA_MAX", "1")
        .start_fresh()
        .await;
    let basin = sdk::basin(&server.sdk(), "test-basin").await;
    let stream = sdk::stream(&basin, "orders").await;
    sdk::append(&stream, [vec![b'x'; 1_000_000]]).await;
    let before = server.resident_bytes();
    let frame = frames::frame(&frames::input([vec![b'x'; 1_000_000]]));
    let half = frame.slice(..950_000);
    let mut connections = Vec::new();
    let mut sessions = Vec::new();
    for _ in 0..CONNECTIONS {
        let transport = crate::support::http::Transport::Http2;
        connections.push(Http::new(server.address(), transport));
    }
    for http in &connections {
        for _ in 0..50 {
            let session = frames::append_session(http, "test-basin", "orders").await;
            assert!(session.send(half.clone()).await);
            sessions.push(session);
        }
    }
    // 285 MB are in transit.
    tokio::time::sleep(Duration::from_secs(2)).await;
    let grown = server.resident_bytes().saturating_sub(before);
    // The budget, the windows, and the allocator.
    let bound = (64 + 8 * CONNECTIONS as u64 + 48) * MIB;
    assert!(grown < bound, "{} MiB of {}", grown / MIB, bound / MIB);
    // A session with small frames has separate memory.
    let http = server.http2();
    let mut small = frames::append_session(&http, "test-basin", "orders").await;
    assert!(small.send(frames::frame(&frames::input(["small"]))).await);
    assert_eq!(small.next().await.message().start.unwrap().seq_num, 1);
    drop((sessions, connections));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_sent_ahead_of_what_is_read_is_bounded_over_all_connections() {
    const CONNECTIONS: usize = 60;
    let server = Setup::default()
        .set("limits.request-bodies=64MiB")
        .set("limits.http2-windows=8MiB")
        // Freed memory is returned to the system at once, so that only memory in use is measured.
        .variable("MALLOC_ARENA_MAX", "1")
        .start_fresh()
        .await;
    let basin = sdk::basin(&server.sdk(), "test-basin").await;
    sdk::stream(&basin, "orders").await;
    let transport = crate::support::http::Transport::Http2;
    let connect = || Http::new(server.address(), transport);
    let frame = frames::frame(&frames::input([vec![b'x'; 1_000_000]]));
    // Incomplete frames hold all memory of frames.
    let half = frame.slice(..950_000);
    let mut half_sent = Vec::new();
    let first = connect();
    for _ in 0..70 {
        let session = frames::append_session(&first, "test-basin", "orders").await;
        let half = half.clone();
        half_sent.push(tokio::spawn(async move {
            session.send(half).await;
            std::future::pending::<()>().await;
            drop(session);
        }));
    }
    waiting(&server, 1).await;
    // The frames of all other sessions are not read.
    let before = server.resident_bytes();
    let mut ahead = Vec::new();
    for _ in 0..CONNECTIONS {
        let http = connect();
        let mut sessions = Vec::new();
        for _ in 0..2 {
            sessions.push(frames::append_session(&http, "test-basin", "orders").await);
        }
        let frame = frame.clone();
        ahead.push(tokio::spawn(async move {
            let sending = sessions.iter().map(|session| async {
                for _ in 0..8 {
                    session.send(frame.clone()).await;
                }
            });
            futures::future::join_all(sending).await;
            std::future::pending::<()>().await;
            drop(http);
        }));
    }
    waiting(&server, 2 * CONNECTIONS as u64).await;
    // 960 MB are in transit.
    tokio::time::sleep(Duration::from_secs(2)).await;
    let grown = server.resident_bytes().saturating_sub(before);
    // The windows, some 50 KiB a session, and the allocator.
    let windows = 8 * MIB + CONNECTIONS as u64 * 64 * 1024;
    let bound = windows + CONNECTIONS as u64 * 100 * 1024 + 32 * MIB;
    assert!(grown < bound, "{} MiB of {}", grown / MIB, bound / MIB);
    half_sent.iter().chain(&ahead).for_each(|it| it.abort());
}

/// Waits until this many bodies and frames wait for memory.
async fn waiting(server: &crate::support::Server, count: u64) {
    crate::support::eventually("frames wait for memory", async || {
        let metrics = server.http1().get("/metrics").send().await.text();
        let line = |line: &str| {
            line.strip_prefix("esker_request_bodies_waiting ")?
                .parse()
                .ok()
        };
        let waiting: u64 = metrics.lines().find_map(line).expect("it exists");
        (waiting >= count).then_some(())
    })
    .await;
}
