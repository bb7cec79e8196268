//! A stop: requests in flight are finished, new ones are refused, sessions end with a reason.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use futures::StreamExt as _;
use rustix::process::Signal;
use s2_api::v1::stream::proto::ReadBatch;
use serde_json::json;

use crate::support::frames::{self, Output};
use crate::support::http::TRANSPORTS;
use crate::support::sdk::{self, basin_name, stream_name};
use crate::support::{Setup, Transport, eventually, in_time, within};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stop_answers_what_is_in_flight_and_refuses_what_is_new() {
    for transport in TRANSPORTS {
        let setup = Setup::default();
        let mut server = setup.start_fresh().await;
        let basin = sdk::basin(&server.sdk(), "test-basin").await;
        sdk::stream(&basin, "orders").await;
        // Many clients append as fast as possible during the stop.
        let count = Arc::new(AtomicU64::new(0));
        let clients: Vec<_> = (0..8)
            .map(|client| {
                let http = server.http(transport);
                let count = count.clone();
                tokio::spawn(async move {
                    let mut acked = Vec::new();
                    let mut refused = Vec::new();
                    for i in 0.. {
                        let body = format!("{client}-{i}");
                        let answer = http
                            .post("/v1/streams/orders/records")
                            .basin("test-basin")
                            .json(&json!({"records": [{"body": body}]}))
                            .try_send()
                            .await;
                        match answer {
                            Ok(answer) if answer.status == 200 => {
                                let seq = answer.json()["start"]["seq_num"].as_u64().unwrap();
                                acked.push((seq, body));
                                count.fetch_add(1, Ordering::Relaxed);
                            }
                            Ok(answer) => {
                                assert_eq!(answer.status, 503, "{}", answer.text());
                                assert_eq!(answer.code(), "server_draining");
                                refused.push(body);
                            }
                            // The connection was closed between two requests, or no new one can be opened.
                            Err(_) => break,
                        }
                        if refused.len() > 100 {
                            break;
                        }
                    }
                    (acked, refused)
                })
            })
            .collect();
        eventually("appends are under way", async || {
            (count.load(Ordering::Relaxed) >= 8 * 5).then_some(())
        })
        .await;
        server.stop().await;
        let mut acked = Vec::new();
        let mut refused = Vec::new();
        for client in clients {
            let (a, r) = client.await.unwrap();
            acked.extend(a);
            refused.extend(r);
        }
        server.restart(&setup).await;
        let stream = server
            .sdk()
            .basin(basin_name("test-basin"))
            .stream(stream_name("orders"));
        let bodies = sdk::bodies(&sdk::read_all(&stream).await);
        for (seq, body) in acked {
            assert_eq!(bodies[usize::try_from(seq).unwrap()], body);
        }
        for body in refused {
            assert!(!bodies.contains(&body), "{body} was refused and is there");
        }
    }
}

#[tokio::test]
async fn a_stop_ends_every_session_with_the_reason_after_the_acks_it_owes() {
    // The grace period neither ends a request in flight nor admits a new one.
    let setup = Setup::default().set("shutdown-grace=1h");
    let mut server = setup.start_fresh().await;
    let basin = sdk::basin(&server.sdk(), "test-basin").await;
    sdk::stream(&basin, "orders").await;
    let http = server.http2();
    let mut appender = frames::append_session(&http, "test-basin", "orders").await;
    let mut reader = frames::read_session(&http, "test-basin", "orders", "seq_num=0").await;
    let mut events = http
        .get("/v1/streams/orders/records?seq_num=0")
        .basin("test-basin")
        .header("accept", "text/event-stream")
        .open()
        .await;
    let http1 = server.http1();
    // Opens its connection before its request is made.
    http1.get("/health").send().await.expect(200);
    let waiting = http1
        .get("/v1/streams/orders/records?tail_offset=0&wait=60")
        .basin("test-basin");
    let appended = tokio::sync::Notify::new();
    let waiting = async {
        // The read begins to wait after the appends below.
        appended.notified().await;
        waiting.send().await
    };
    let rest = async {
        for i in 0..20 {
            let input = frames::input([format!("{i}")]);
            assert!(appender.send(frames::frame(&input)).await);
        }
        let mut seen = 0;
        while seen < 20 {
            seen += reader.next().await.message().records.len();
        }
        appended.notify_one();
        // Nothing shows that the read waits, so this sleeps.
        tokio::time::sleep(Duration::from_secs(2)).await;
        let started = Instant::now();
        server.signal(Signal::TERM);

        let outputs = appender.rest().await;
        let (end, acks) = outputs.split_last().unwrap();
        let Output::Error(503, body) = end else {
            panic!("{end:?}");
        };
        assert_eq!(body["code"], "server_draining");
        let ends: Vec<u64> = acks
            .iter()
            .map(|ack| ack.clone().message().end.unwrap().seq_num)
            .collect();
        assert_eq!(ends, (1..=20).collect::<Vec<_>>());

        let end: Output<ReadBatch> = reader.rest().await.pop().unwrap();
        let Output::Error(503, body) = end else {
            panic!("{end:?}");
        };
        assert_eq!(body["code"], "server_draining");

        let mut text = String::new();
        while let Some(chunk) = events.chunk().await {
            text.push_str(std::str::from_utf8(&chunk).unwrap());
        }
        assert!(text.contains("event: batch"), "{text}");
        let end = text.trim_end().rsplit("\n\n").next().unwrap();
        assert!(end.contains("event: error"), "{end}");
        assert!(end.contains("server_draining"), "{end}");
        started
    };
    let (waited, started) = tokio::join!(waiting, rest);
    waited.refused(503, "server_draining");
    let status = server.wait().await;
    assert!(status.success());
    let took = started.elapsed();
    // The read would have waited for a minute.
    assert!(took < Duration::from_secs(55), "{took:?}");
}

#[tokio::test]
async fn the_official_client_follows_over_a_restart() {
    // The same port, so that the client reconnects.
    let setup = Setup::default().on_a_port();
    let mut server = setup.start_fresh().await;
    let s2 = sdk::client(server.url(), 50);
    let basin = sdk::basin(&s2, "test-basin").await;
    let stream = sdk::stream(&basin, "orders").await;
    sdk::append(&stream, ["0"]).await;
    let input = s2_sdk::types::ReadInput::new()
        .with_start(s2_sdk::types::ReadStart::new().with_from(s2_sdk::types::ReadFrom::SeqNum(0)));
    let mut session = stream
        .read_session(input, s2_sdk::types::ReadSessionConfig::new())
        .await
        .unwrap();
    let mut seen = Vec::new();
    let follow = async {
        while seen.len() < 21 {
            let batch = session.next().await.unwrap().unwrap();
            seen.extend(sdk::bodies(&batch.records));
        }
    };
    let append = async {
        for round in 0..4 {
            for i in 0..5 {
                sdk::append(&stream, [format!("{}", 1 + round * 5 + i)]).await;
            }
            if round % 2 == 0 {
                server.stop().await;
            } else {
                server.kill();
            }
            server.restart(&setup).await;
        }
    };
    crate::support::soon("all records over restarts", async {
        tokio::join!(follow, append)
    })
    .await;
    let expected: Vec<String> = (0..21).map(|i| i.to_string()).collect();
    assert_eq!(seen, expected);
}

#[tokio::test]
async fn idle_connections_do_not_hold_up_a_stop() {
    let setup = Setup::default()
        .set("shutdown-grace=1h")
        .set("limits.header-timeout=1h");
    let mut server = setup.start_fresh().await;
    let clients: Vec<_> = (0..10)
        .map(|i| {
            server.http(if i % 2 == 0 {
                Transport::Http1
            } else {
                Transport::Http2
            })
        })
        .collect();
    for http in &clients {
        http.get("/health").send().await.expect(200);
    }
    // One connection that never sends anything, and one in the middle of a head.
    let _silent = tokio::net::TcpStream::connect(server.address())
        .await
        .unwrap();
    // The server waits an hour for a head.
    server.stop().await;
}

#[tokio::test]
async fn a_client_that_does_not_read_holds_up_a_stop_no_longer_than_the_grace_period() {
    let setup = Setup::default()
        .set("shutdown-grace=1s")
        .set("limits.stall-timeout=1h");
    let mut server = setup.start_fresh().await;
    let basin = sdk::basin(&server.sdk(), "test-basin").await;
    let stream = sdk::stream(&basin, "orders").await;
    for _ in 0..8 {
        sdk::append(&stream, [vec![7; 1_000_000]]).await;
    }
    in_time("a stop", async |number| {
        if number > 0 {
            server.restart(&setup).await;
        }
        let http = crate::support::Http::with_window(server.address(), 65_535);
        let _stuck = frames::read_session(&http, "test-basin", "orders", "seq_num=0").await;
        let started = Instant::now();
        server.stop().await;
        let took = started.elapsed();
        if took < Duration::from_secs(1) {
            return Err(format!("{took:?}: the session had nothing to send yet"));
        }
        // The default is ten seconds.
        within(took, Duration::from_secs(9))
    })
    .await;
    // Nothing was lost.
    server.restart(&setup).await;
    let stream = server
        .sdk()
        .basin(basin_name("test-basin"))
        .stream(stream_name("orders"));
    assert_eq!(stream.check_tail().await.unwrap().seq_num, 8);
}

#[tokio::test]
async fn a_second_signal_ends_the_server_at_once() {
    let setup = Setup::default().set("shutdown-grace=1h");
    let mut server = setup.start_fresh().await;
    let basin = sdk::basin(&server.sdk(), "test-basin").await;
    let stream = sdk::stream(&basin, "orders").await;
    for _ in 0..8 {
        sdk::append(&stream, [vec![7; 1_000_000]]).await;
    }
    let http = crate::support::Http::with_window(server.address(), 65_535);
    let _stuck = frames::read_session(&http, "test-basin", "orders", "seq_num=0").await;
    server.signal(Signal::TERM);
    server.logged("stopping").await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    server.signal(Signal::INT);
    server.wait().await;
    server.restart(&setup).await;
    let stream = server
        .sdk()
        .basin(basin_name("test-basin"))
        .stream(stream_name("orders"));
    assert_eq!(sdk::read_all(&stream).await.len(), 8);
}

#[tokio::test]
async fn a_stop_in_the_middle_of_a_pipelined_session_loses_no_ack_and_acks_no_loss() {
    let setup = Setup::default();
    let mut server = setup.start_fresh().await;
    let basin = sdk::basin(&server.sdk(), "test-basin").await;
    sdk::stream(&basin, "orders").await;
    for round in 0..3 {
        let http = server.http2();
        let session = frames::append_session(&http, "test-basin", "orders").await;
        let (exchange, pid) = (session, server.pid());
        let (mut outputs, sent) = {
            let mut session = exchange;
            for i in 0..500 {
                let input = frames::input([format!("{round}-{i}")]);
                if !session.send(frames::frame(&input)).await {
                    break;
                }
                if i == 250 {
                    server.signal(Signal::TERM);
                }
            }
            (session.rest().await, 500)
        };
        assert_eq!(server.pid(), pid);
        server.wait().await;
        let end = outputs.pop().unwrap();
        assert!(
            matches!(end, Output::Error(503, _) | Output::End),
            "{end:?}"
        );
        let acked = outputs.len();
        assert!(acked <= sent);

        server.restart(&setup).await;
        let stream = server
            .sdk()
            .basin(basin_name("test-basin"))
            .stream(stream_name("orders"));
        let records = sdk::read_all(&stream).await;
        let bodies = sdk::bodies(&records);
        let mine: Vec<_> = bodies
            .iter()
            .filter(|b| b.starts_with(&format!("{round}-")))
            .collect();
        let expected: Vec<String> = (0..mine.len()).map(|i| format!("{round}-{i}")).collect();
        assert_eq!(mine, expected.iter().collect::<Vec<_>>());
        assert_eq!(mine.len(), acked, "acknowledged, and no more than that");
        for output in outputs {
            let ack = output.message();
            let seq = usize::try_from(ack.start.unwrap().seq_num).unwrap();
            assert!(bodies[seq].starts_with(&format!("{round}-")));
        }
    }
}

#[tokio::test]
async fn the_stream_of_a_follower_is_not_torn_by_a_stop() {
    let mut server = Setup::default().start_fresh().await;
    let basin = sdk::basin(&server.sdk(), "test-basin").await;
    let stream = sdk::stream(&basin, "orders").await;
    let session = stream
        .read_session(
            s2_sdk::types::ReadInput::new().with_start(
                s2_sdk::types::ReadStart::new().with_from(s2_sdk::types::ReadFrom::SeqNum(0)),
            ),
            s2_sdk::types::ReadSessionConfig::new(),
        )
        .await
        .unwrap();
    let follower = tokio::spawn(async move {
        let mut session = session;
        let mut seen = Vec::new();
        while let Some(Ok(batch)) = session.next().await {
            seen.extend(sdk::seq_nums(&batch.records));
        }
        seen
    });
    let acked = futures::stream::iter(0..200)
        .map(|i| {
            let stream = &stream;
            async move { sdk::append(stream, [format!("{i}")]).await }
        })
        .buffered(16)
        .count()
        .await;
    assert_eq!(acked, 200);
    server.stop().await;
    let seen = follower.await.unwrap();
    assert_eq!(seen, (0..seen.len() as u64).collect::<Vec<_>>());
}
