//! Clients that stop reading: they delay no other client, and memory stays bounded.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use futures::StreamExt as _;
use s2_sdk::types::{ReadFrom, ReadInput, ReadSessionConfig, ReadStart};

use crate::support::events::Events;
use crate::support::frames::{self, Output};
use crate::support::sdk;
use crate::support::{Http, Server, Setup, eventually, soon};

const MIB: u64 = 1024 * 1024;

/// Servers that do not disconnect a client that takes nothing: a client that such a one delays would wait for
/// an hour.
fn without_end() -> Setup {
    Setup::default().set("limits.stall-timeout=1h")
}

/// Checks that appends succeed, and their records can be read.
async fn others_go_on(server: &Server, stream: &s2_sdk::S2Stream) {
    for i in 0..20 {
        let body = format!("quick {i}");
        let ack = sdk::append(stream, [&body]).await;
        let read = stream
            .read(sdk::from_seq(ack.start.seq_num, 1))
            .await
            .unwrap();
        assert_eq!(sdk::bodies(&read.records), [body]);
    }
    let http = server.http1();
    assert_eq!(http.get("/health").send().await.text(), "OK");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn readers_that_stop_reading_cost_a_bounded_amount_of_memory() {
    let server = without_end()
        .set("limits.follower-buffer=1MiB")
        // More than all of them want together: they are clients of one address, which has a share of it.
        .set("limits.read-sessions=512MiB")
        // Freed memory is returned to the system at once, so that only memory in use is measured.
        .variable("MALLOC_MMAP_THRESHOLD_", "262144")
        .start_fresh()
        .await;
    let basin = sdk::basin(&server.sdk(), "test-basin").await;
    let stream = sdk::stream(&basin, "orders").await;
    // First appends and reads allocate what they need in any case, in caches and write buffers.
    for _ in 0..40 {
        sdk::append(&stream, [vec![b'x'; 1_000_000]]).await;
    }
    assert_eq!(sdk::read_all(&stream).await.len(), 40);
    for _ in 0..20 {
        sdk::append(&stream, [vec![b'x'; 1_000_000]]).await;
    }
    others_go_on(&server, &stream).await;
    let before = server.resident_bytes();
    let read = "esker_read_database_records_total ";
    let read_before = metric(&server, read).await;
    // Each client has requested 60 MB; kernel buffers and windows hold a part of it.
    let mut clients = Vec::new();
    let mut sessions = Vec::new();
    for _ in 0..30 {
        clients.push(Http::with_window(server.address(), 65_535));
    }
    for (i, http) in clients.iter().enumerate() {
        if i % 2 == 0 {
            let query = "seq_num=0";
            let session = frames::read_session(http, "test-basin", "orders", query).await;
            sessions.push((Some(session), None));
        } else {
            let events = Events::open(http, "test-basin", "orders", "seq_num=0", None).await;
            sessions.push((None, Some(events)));
        }
    }
    eventually(
        "each reader has been read a batch and the next one",
        async || (metric(&server, read).await >= read_before + 2 * 30).then_some(()),
    )
    .await;
    for _ in 0..20 {
        sdk::append(&stream, [vec![b'y'; 1_000_000]]).await;
    }
    others_go_on(&server, &stream).await;
    let grown = server.resident_bytes().saturating_sub(before);
    // Two batches for each reader, and their encoded form: not 60 MB each.
    assert!(grown < 30 * 5 * MIB, "{} MiB", grown / MIB);
    drop(sessions);
    drop(clients);
    others_go_on(&server, &stream).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_appender_that_never_reads_its_acks_is_stopped_and_holds_up_nobody() {
    // Acknowledgements that may wait for a client; beyond that, the server accepts only what fits into the
    // session's 2 MiB, the 8 MiB of the connection's window, and buffers of the client.
    const WAITING_ACKS: u64 = 64;
    const TOO_MANY: u64 = 300;
    let server = without_end()
        .set("limits.append-session-inflight=2MiB")
        .set("limits.append-inflight=64MiB")
        .start_fresh()
        .await;
    let basin = sdk::basin(&server.sdk(), "test-basin").await;
    let stream = sdk::stream(&basin, "orders").await;
    let flooded = sdk::stream(&basin, "flooded").await;
    let before = server.resident_bytes();
    let mut stuck = Vec::new();
    for _ in 0..8 {
        // A window that acks fill soon.
        let http = Http::with_window(server.address(), 100);
        let session = frames::append_session(&http, "test-basin", "flooded").await;
        let frame = frames::frame(&frames::input([vec![b'x'; 100_000]]));
        let taken = Arc::new(AtomicU64::new(0));
        let count = taken.clone();
        let sending = tokio::spawn(async move {
            while session.send(frame.clone()).await {
                if count.fetch_add(1, Ordering::Relaxed) + 1 == TOO_MANY {
                    break;
                }
            }
            drop(http);
        });
        stuck.push((sending, taken));
    }
    eventually("acknowledgements wait for all of them", async || {
        let taken = stuck.iter().map(|(_, taken)| taken.load(Ordering::Relaxed));
        (taken.min()? >= WAITING_ACKS).then_some(())
    })
    .await;
    others_go_on(&server, &stream).await;
    for (_, taken) in &stuck {
        let taken = taken.load(Ordering::Relaxed);
        assert!(
            taken < TOO_MANY,
            "{taken} were taken from one that reads no acks"
        );
    }
    let grown = server.resident_bytes().saturating_sub(before);
    assert!(grown < 200 * MIB, "{} MiB", grown / MIB);
    // Accepted appends are there completely, and none twice as far as positions show.
    let tail = flooded.check_tail().await.unwrap().seq_num;
    assert!(tail > 0);
    for (sending, _) in stuck {
        sending.abort();
    }
    others_go_on(&server, &stream).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn appenders_that_never_read_their_acks_keep_no_place_among_those_that_wait() {
    let server = without_end()
        .set("limits.append-session-inflight=2MiB")
        .set("limits.append-inflight=2MiB")
        .start_fresh()
        .await;
    let basin = sdk::basin(&server.sdk(), "test-basin").await;
    let stream = sdk::stream(&basin, "orders").await;
    sdk::stream(&basin, "flooded").await;
    let mut stuck = Vec::new();
    for _ in 0..30 {
        let http = Http::with_window(server.address(), 100);
        let session = frames::append_session(&http, "test-basin", "flooded").await;
        let frame = frames::frame(&frames::input([vec![b'x'; 200_000]]));
        let sending = tokio::spawn(async move {
            while session.send(frame.clone()).await {}
            drop(http);
        });
        stuck.push(sending);
    }
    // Together they wait for three times the budget in flight.
    tokio::time::sleep(Duration::from_secs(2)).await;
    others_go_on(&server, &stream).await;
    for sending in stuck {
        assert!(!sending.is_finished());
        sending.abort();
    }
}

#[tokio::test]
async fn connections_beyond_the_limit_wait_but_for_those_that_watch_the_server() {
    let server = Setup::default()
        .set("limits.connections=1")
        .set("state.listen=127.0.0.1:0")
        .start_fresh()
        .await;
    let open = server.http1();
    open.get("/v1/basins").send().await.expect(200);
    let waiting = server.http1();
    let listed = waiting.get("/v1/basins").send();
    tokio::pin!(listed);
    let early = tokio::time::timeout(Duration::from_millis(300), &mut listed).await;
    assert!(early.is_err(), "served beyond the limit");
    for path in ["/health", "/metrics", "/esker/v1/status"] {
        server.http1().get(path).send().await.expect(200);
    }
    drop(open);
    listed.await.expect(200);
}

/// Each has a connection from one of two other addresses and sends a request again and again that needs no token. They
/// have all places that they can get; a monitor gets one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_that_send_a_little_again_and_again_keep_nobody_from_watching_the_server() {
    let server = Setup::default()
        .set("limits.connections=4")
        .start_fresh()
        .await;
    let mut flood = tokio::task::JoinSet::new();
    let answered = Arc::new(AtomicU64::new(0));
    for number in 0..60 {
        let (address, answered) = (server.address().to_owned(), answered.clone());
        let from = ["127.0.0.2:0", "127.0.0.3:0"][number % 2];
        flood.spawn(async move {
            loop {
                // What is refused or closed comes again.
                let _ = ping_from_elsewhere(from, &address, &answered).await;
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        });
    }
    eventually("the flood has all places", async || {
        (answered.load(Ordering::Relaxed) > 40).then_some(())
    })
    .await;
    for path in ["/health/live", "/metrics", "/esker/v1/status"] {
        for _ in 0..5 {
            soon(path, server.http1().get(path).send())
                .await
                .expect(200);
        }
    }
    flood.abort_all();
}

/// Keeps a connection from another address of this machine, and sends a request every 200 ms until it ends.
async fn ping_from_elsewhere(
    from: &str,
    address: &str,
    answered: &AtomicU64,
) -> std::io::Result<()> {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    let socket = tokio::net::TcpSocket::new_v4()?;
    socket.bind(from.parse().unwrap())?;
    let mut connection = socket.connect(address.parse().unwrap()).await?;
    let request = format!("GET /ping HTTP/1.1\r\nhost: {address}\r\n\r\n");
    let mut answer = [0; 4096];
    loop {
        connection.write_all(request.as_bytes()).await?;
        if connection.read(&mut answer).await? == 0 {
            return Ok(());
        }
        answered.fetch_add(1, Ordering::Relaxed);
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

#[tokio::test]
async fn a_reader_that_takes_nothing_is_closed_and_one_that_waits_is_not() {
    let server = Setup::default()
        .set("limits.stall-timeout=500ms")
        .set("limits.connections=2")
        .start_fresh()
        .await;
    let basin = sdk::basin(&server.sdk(), "test-basin").await;
    let stream = sdk::stream(&basin, "orders").await;
    for _ in 0..20 {
        sdk::append(&stream, [vec![b'x'; 1_000_000]]).await;
    }
    drop((basin, stream));
    let http = Http::with_window(server.address(), 1024);
    let stuck = frames::read_session(&http, "test-basin", "orders", "seq_num=0").await;
    let at_tail = server.http2();
    let query = "seq_num=20";
    let mut at_tail = Events::open(&at_tail, "test-basin", "orders", query, None).await;
    // Both places are occupied until the stuck session is closed.
    let basin = server.sdk().basin("test-basin".parse().unwrap());
    let stream = basin.stream("orders".parse().unwrap());
    sdk::append(&stream, ["next"]).await;
    while at_tail.next().await.expect("it is open").event != "batch" {}
    drop(stuck);
}

/// The number of answers that were ended because their clients took nothing of them.
async fn stalled(server: &Server) -> u64 {
    metric(server, "esker_http_answers_stalled_total ").await
}

/// The number of open connections, including that of the request.
async fn connections(server: &Server) -> u64 {
    metric(server, "esker_http_connections ").await
}

/// The value of the metric whose line begins with `start`.
async fn metric(server: &Server, start: &str) -> u64 {
    let metrics = server.http1().get("/metrics").send().await.text();
    let line = metrics.lines().find_map(|line| line.strip_prefix(start));
    line.expect("it exists from the start").parse().unwrap()
}

/// Waits until this many answers have been ended.
async fn until_stalled(server: &Server, count: u64) {
    eventually("answers are ended", async || {
        (stalled(server).await >= count).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_paused_session_of_the_official_client_goes_on_without_loss() {
    let server = Setup::default()
        .set("limits.stall-timeout=500ms")
        .start_fresh()
        .await;
    let basin = sdk::basin(&server.sdk(), "test-basin").await;
    sdk::stream(&basin, "orders").await;
    sdk::stream(&basin, "quiet").await;
    let stream = basin.stream("orders".parse().unwrap());
    for number in 0..60 {
        sdk::append(&stream, [number.to_string().repeat(400_000)]).await;
    }
    drop((stream, basin));
    // A session at the tail of another stream shares the connection, or none does.
    for (shared, count) in [(true, 60), (false, 61)] {
        // The session continues over a new connection where the server closed the previous one: it closes
        // those on which nothing is taken. (The session at the tail takes nothing either, once its heartbeat
        // finds the window of the connection full.)
        let s2 = sdk::client(server.url(), 5);
        let basin = s2.basin("test-basin".parse().unwrap());
        let stream = basin.stream("orders".parse().unwrap());
        let quiet = basin.stream("quiet".parse().unwrap());
        let mut at_tail = None;
        if shared {
            let mut session = quiet
                .read_session(from_start(), ReadSessionConfig::new())
                .await
                .unwrap();
            at_tail = Some(tokio::spawn(async move {
                session.next().await.unwrap().unwrap()
            }));
        }
        let mut paused = stream
            .read_session(from_start(), ReadSessionConfig::new())
            .await
            .unwrap();
        let before = stalled(&server).await;
        let mut seen = Vec::new();
        let mut pauses = 0;
        while seen.len() < count {
            let batch = soon("a batch", paused.next()).await.unwrap().unwrap();
            for record in batch.records {
                let number = record.seq_num;
                assert!(record.body.starts_with(number.to_string().as_bytes()));
                seen.push(number as usize);
            }
            // The data after the first batches has not been sent yet, because it exceeds the windows.
            if pauses < 2 && seen.len() > pauses * 30 {
                pauses += 1;
                until_stalled(&server, before + pauses as u64).await;
                if !shared {
                    // The connection's place is free before the session continues.
                    eventually("the connection is closed", async || {
                        (connections(&server).await == 1).then_some(())
                    })
                    .await;
                }
            }
        }
        assert_eq!(seen, (0..count).collect::<Vec<_>>());
        // By a client that repeats nothing, and whose connection is new.
        let other = server.sdk().basin("test-basin".parse().unwrap());
        if let Some(at_tail) = at_tail {
            let quiet = other.stream("quiet".parse().unwrap());
            sdk::append(&quiet, ["still there"]).await;
            let batch = soon("the session at the tail", at_tail).await.unwrap();
            assert_eq!(sdk::bodies(&batch.records), ["still there"]);
        }
        // The same session follows.
        let next = other.stream("orders".parse().unwrap());
        sdk::append(&next, [format!("{count}, the next")]).await;
        let batch = soon("the next batch", paused.next())
            .await
            .unwrap()
            .unwrap();
        assert_eq!(sdk::seq_nums(&batch.records), [count as u64]);
    }
}

/// A read of everything from the start on.
fn from_start() -> ReadInput {
    let start = ReadStart::new().with_from(ReadFrom::SeqNum(0));
    ReadInput::new().with_start(start)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sessions_of_which_nothing_is_taken_end_with_an_error_after_what_was_sent() {
    let server = Setup::default()
        .set("limits.stall-timeout=500ms")
        .start_fresh()
        .await;
    let basin = sdk::basin(&server.sdk(), "test-basin").await;
    let stream = sdk::stream(&basin, "orders").await;
    for _ in 0..4 {
        sdk::append(&stream, [vec![b'x'; 1_000_000]]).await;
    }
    let busy = sdk::stream(&basin, "busy").await;
    let acked = sdk::stream(&basin, "acked").await;
    // One connection, on which a follower reads what it gets.
    let http = Http::with_window(server.address(), 500);
    let query = "tail_offset=0";
    let mut live = frames::read_session(&http, "test-basin", "busy", query).await;
    let query = "seq_num=0";
    let mut read = frames::read_session(&http, "test-basin", "orders", query).await;
    let mut events = Events::open(&http, "test-basin", "orders", query, None).await;
    let mut append = frames::append_session(&http, "test-basin", "acked").await;
    // Acknowledgements fill the window soon.
    let frame = frames::frame(&frames::input(["x"]));
    assert!(append.send(frame.repeat(2_000)).await);
    until_stalled(&server, 3).await;
    // Frames after the end of a session are not appended.
    append.send(frame.repeat(2_000)).await;

    let outputs = read.rest().await;
    let (end, batches) = outputs.split_last().unwrap();
    assert_drained(end);
    assert!(batches.len() < 4, "{}", batches.len());

    let found = events.rest().await;
    let (end, batches) = found.split_last().unwrap();
    assert_eq!((&*end.event, end.id.as_ref()), ("error", None));
    assert_eq!(end.json()["code"], "server_draining", "{end:?}");
    assert!(batches.len() < 4, "{}", batches.len());

    // All that was appended is acknowledged before the end.
    let outputs = append.rest().await;
    let (end, acks) = outputs.split_last().unwrap();
    assert_drained(end);
    let tail = acked.check_tail().await.unwrap().seq_num;
    assert_eq!(acks.len() as u64, tail);
    assert!(tail < 4_000, "{tail}");

    sdk::append(&busy, ["still there"]).await;
    while live.next().await.message().records.is_empty() {}
}

/// Checks for the end of a session after which a client reconnects.
#[track_caller]
fn assert_drained<M: std::fmt::Debug>(end: &Output<M>) {
    let Output::Error(status, body) = end else {
        panic!("{end:?}");
    };
    assert_eq!((*status, &body["code"]), (503, &"server_draining".into()));
}

#[tokio::test]
async fn an_answer_of_any_size_that_is_not_taken_leaves_its_place_to_others() {
    let server = Setup::default()
        .set("limits.stall-timeout=500ms")
        .set("limits.connections=2")
        .start_fresh()
        .await;
    sdk::basin(&server.sdk(), "test-basin").await;
    // Two connections that take nothing at all.
    let mut stuck = Vec::new();
    for _ in 0..2 {
        let http = Http::with_window(server.address(), 0);
        let list = http.get("/v1/basins").ask().await;
        assert_eq!(list.status, 200);
        stuck.push((http, list));
    }
    until_stalled(&server, 2).await;
    let listed = server.http1().get("/v1/basins").send().await.expect(200);
    assert_eq!(listed.json()["basins"].as_array().unwrap().len(), 1);
    drop(stuck);
}

/// An encoder of zstd takes some 0.85 MiB, so an answer that waits for its client must have none.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn compressed_answers_that_are_not_taken_cost_what_they_have_of_bytes() {
    const ANSWERS: u64 = 300;
    let server = without_end()
        .variable("MALLOC_MMAP_THRESHOLD_", "262144")
        .start_fresh()
        .await;
    let basin = sdk::basin(&server.sdk(), "test-basin").await;
    let stream = sdk::stream(&basin, "orders").await;
    sdk::append(&stream, [vec![b'x'; 12_000]]).await;
    let http = Http::with_window(server.address(), 0);
    let ask = async || {
        let path = "/v1/streams/orders/records?seq_num=0&count=1";
        let request = http.get(path).basin("test-basin");
        let answer = request.header("accept-encoding", "zstd").ask().await;
        assert_eq!(answer.status, 200);
        answer
    };
    let mut untaken = vec![ask().await];
    let before = server.resident_bytes();
    for _ in 0..ANSWERS {
        untaken.push(ask().await);
    }
    let grown = server.resident_bytes().saturating_sub(before);
    // Each takes some KiB: its head, its stream and its few bytes.
    assert!(grown < ANSWERS * 128 * 1024, "{} MiB", grown / MIB);
    others_go_on(&server, &stream).await;
    drop(untaken);
}

#[tokio::test]
async fn a_connection_that_sends_no_request_is_closed_in_time() {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    let server = Setup::default()
        .set("limits.header-timeout=300ms")
        .start_fresh()
        .await;
    for begin in [
        &b""[..],
        b"GET /health HTTP/1.1\r\nhost: localhost\r\n",
        b"PRI",
    ] {
        let mut connection = tokio::net::TcpStream::connect(server.address())
            .await
            .unwrap();
        connection.write_all(begin).await.unwrap();
        let mut answer = Vec::new();
        // The default is thirty seconds.
        let in_time = Duration::from_secs(15);
        let closed = tokio::time::timeout(in_time, connection.read_to_end(&mut answer)).await;
        assert!(
            closed.is_ok(),
            "still open after {:?}",
            String::from_utf8_lossy(begin)
        );
    }
}
