//! Append sessions: acks in order, an end at the first error, nothing appended after it.

use std::time::Duration;

use s2_api::v1::stream::proto::{AppendAck, AppendInput};
use s2_sdk::S2Stream;
use s2_sdk::append_session::AppendSessionConfig;
use s2_sdk::batching::BatchingConfig;
use s2_sdk::error::{
    AppendConditionFailed, AppendError, AppendSessionError, ErrorCode, ProducerError,
};
use s2_sdk::producer::ProducerConfig;
use s2_sdk::types::{AppendRecord, StreamConfig, TimestampingConfig, TimestampingMode};

use crate::support::frames::{self, Output};
use crate::support::http::TRANSPORTS;
use crate::support::sdk;
use crate::support::{Server, Setup, eventually, soon};

async fn orders(server: &Server) -> S2Stream {
    let basin = sdk::basin(&server.sdk(), "test-basin").await;
    sdk::stream(&basin, "orders").await
}

fn expecting(body: &str, seq_num: u64) -> AppendInput {
    AppendInput {
        match_seq_num: Some(seq_num),
        ..frames::input([body.to_owned()])
    }
}

/// All acks, then the end.
fn acks(outputs: Vec<Output<AppendAck>>) -> (Vec<AppendAck>, Output<AppendAck>) {
    let mut acks = Vec::new();
    for output in outputs {
        match output {
            Output::Message(ack) => acks.push(ack),
            end => return (acks, end),
        }
    }
    panic!("no end");
}

#[tokio::test]
async fn pipelined_appends_are_acknowledged_in_order_and_a_half_closed_session_ends_well() {
    let server = Server::fresh().await;
    let stream = orders(&server).await;
    let mut total = 0;
    for transport in TRANSPORTS {
        let http = server.http(transport);
        let mut session = frames::append_session(&http, "test-basin", "orders").await;
        // Everything is sent, and the request has ended, before the first ack is read.
        let mut bytes = Vec::new();
        for i in 0..2000u64 {
            let bodies = (0..=i % 3).map(|j| format!("{i} {j}"));
            bytes.extend_from_slice(&frames::frame(&frames::input(bodies)));
        }
        for piece in bytes.chunks(30_000) {
            assert!(session.send(piece.to_vec()).await);
        }
        session.finish();
        let (acks, end) = acks(session.rest().await);
        assert_eq!(end, Output::End);
        assert_eq!(acks.len(), 2000);
        for (i, ack) in acks.iter().enumerate() {
            assert_eq!(ack.start.unwrap().seq_num, total);
            total += i as u64 % 3 + 1;
            assert_eq!(ack.end.unwrap().seq_num, total);
            assert!(ack.tail.unwrap().seq_num >= total);
        }
    }
    let bodies = sdk::bodies(&sdk::read_all(&stream).await);
    let once: Vec<String> = (0..2000)
        .flat_map(|i| (0..=i % 3).map(move |j| format!("{i} {j}")))
        .collect();
    assert_eq!(bodies, [once.clone(), once].concat());
}

#[tokio::test]
async fn a_session_without_appends_ends_well() {
    let server = Server::fresh().await;
    orders(&server).await;
    for transport in TRANSPORTS {
        let http = server.http(transport);
        let mut session = frames::append_session(&http, "test-basin", "orders").await;
        session.finish();
        assert_eq!(session.rest().await, [Output::End]);
    }
}

#[tokio::test]
async fn a_session_may_rest() {
    let server = Server::fresh().await;
    orders(&server).await;
    let http = server.http2();
    let mut session = frames::append_session(&http, "test-basin", "orders").await;
    for i in 0..3 {
        session
            .send(frames::frame(&frames::input([format!("{i}")])))
            .await;
        let ack = session.next().await.message();
        assert_eq!(ack.start.unwrap().seq_num, i);
        tokio::time::sleep(Duration::from_millis(700)).await;
    }
}

#[tokio::test]
async fn nothing_of_a_session_lands_after_its_first_refused_append() {
    let server = Server::fresh().await;
    let stream = orders(&server).await;
    for transport in TRANSPORTS {
        let http = server.http(transport);
        let base = stream.check_tail().await.unwrap().seq_num;
        let mut session = frames::append_session(&http, "test-basin", "orders").await;
        // Conditions that hold, one that does not, and then some that would.
        let mut bytes = Vec::new();
        for input in [
            expecting("a", base),
            expecting("b", base + 1),
            expecting("refused", base),
            frames::input(["without a condition"]),
            expecting("c", base + 2),
            frames::input(["without a condition"]),
        ] {
            bytes.extend_from_slice(&frames::frame(&input));
        }
        session.send(bytes).await;
        let (acks, end) = acks(session.rest().await);
        assert_eq!(acks.len(), 2);
        let body = serde_json::json!({"seq_num_mismatch": base + 2});
        assert_eq!(end, Output::Error(412, body));
        // Nor is it appended later.
        tokio::time::sleep(Duration::from_millis(100)).await;
        let ack = sdk::append(&stream, ["next"]).await;
        assert_eq!(ack.start.seq_num, base + 2);
    }
    let expected = ["a", "b", "next"].repeat(2);
    assert_eq!(sdk::bodies(&sdk::read_all(&stream).await), expected);
}

#[tokio::test]
async fn a_session_that_loses_a_race_leaves_only_what_came_before_it() {
    let server = Server::fresh().await;
    let stream = orders(&server).await;
    let http = server.http2();
    let mut lost = 0;
    for round in 0..60u64 {
        // The outcome of a race is random, except where the session waits for its rival.
        let waits = round % 6 == 5;
        let base = stream.check_tail().await.unwrap().seq_num;
        let mut session = frames::append_session(&http, "test-basin", "orders").await;
        // Conditional appends, followed by unconditional ones, which would land anywhere.
        let mut bytes = Vec::new();
        for i in 0..40 {
            let body = format!("s{round} {i}");
            bytes.extend_from_slice(&frames::frame(&expecting(&body, base + i)));
        }
        for i in 40..60 {
            let body = format!("s{round} {i}");
            bytes.extend_from_slice(&frames::frame(&frames::input([body])));
        }
        // The rival starts when a part of the session was sent.
        let pieces = bytes.chunks(300).count() as u64;
        let (begin, begun) = tokio::sync::oneshot::channel();
        let (end, ended) = tokio::sync::oneshot::channel();
        let (mut begin, mut ended) = (Some(begin), Some(ended));
        let race = async {
            begun.await.unwrap();
            let ack = sdk::append(&stream, [format!("w{round}")]).await;
            let _ = end.send(());
            ack
        };
        let ours = async {
            let at = if waits { 1 } else { round % pieces };
            for (i, piece) in bytes.chunks(300).enumerate() {
                if i as u64 == at {
                    begin.take().unwrap().send(()).unwrap();
                    if waits {
                        ended.take().unwrap().await.unwrap();
                    }
                }
                if !session.send(piece.to_vec()).await {
                    break;
                }
                tokio::task::yield_now().await;
            }
            session.finish();
            session.rest().await
        };
        let (rival, outputs) = tokio::join!(race, ours);
        let (acks, end) = acks(outputs);
        let records = stream
            .read(sdk::from_seq(base, 1000))
            .await
            .unwrap()
            .records;
        let bodies = sdk::bodies(&records);
        let of_session: Vec<&String> = bodies.iter().filter(|b| b.starts_with('s')).collect();
        let expected: Vec<String> = (0..of_session.len())
            .map(|i| format!("s{round} {i}"))
            .collect();
        assert_eq!(of_session, expected.iter().collect::<Vec<_>>());
        assert_eq!(
            of_session.len(),
            acks.len(),
            "acknowledged, no more, no less"
        );
        for (i, ack) in acks.iter().enumerate() {
            let at = usize::try_from(ack.start.unwrap().seq_num - base).unwrap();
            assert_eq!(bodies[at], format!("s{round} {i}"));
        }
        let rival_at = rival.start.seq_num - base;
        if rival_at < 40 {
            // The rival's append came between conditional ones, so the session ended there.
            assert_eq!(acks.len() as u64, rival_at);
            let Output::Error(412, body) = end else {
                panic!("{end:?}");
            };
            assert_eq!(body["seq_num_mismatch"], base + rival_at + 1);
            lost += 1;
        } else {
            assert_eq!(end, Output::End);
            assert_eq!(acks.len(), 60);
        }
    }
    // One piece holds only a part of the conditional appends.
    assert!(lost >= 10, "{lost} races were lost");
}

#[tokio::test]
async fn what_came_before_a_frame_that_is_none_is_acknowledged_and_the_rest_is_not_taken() {
    let server = Server::fresh().await;
    let stream = orders(&server).await;
    for transport in TRANSPORTS {
        let http = server.http(transport);
        let base = stream.check_tail().await.unwrap().seq_num;
        let mut session = frames::append_session(&http, "test-basin", "orders").await;
        let mut bytes = Vec::new();
        for i in 0..5 {
            bytes.extend_from_slice(&frames::frame(&frames::input([format!("{i}")])));
        }
        bytes.extend_from_slice(&frames::raw_frame(0, b"\xff\xff not a message"));
        bytes.extend_from_slice(&frames::frame(&frames::input(["behind"])));
        session.send(bytes).await;
        let (acks, end) = acks(session.rest().await);
        assert_eq!(acks.len(), 5);
        let Output::Error(400, body) = end else {
            panic!("{end:?}");
        };
        assert_eq!(body["code"], "bad_frame");
        assert_eq!(stream.check_tail().await.unwrap().seq_num, base + 5);
    }
}

#[tokio::test]
async fn a_missing_timestamp_ends_the_session_of_a_stream_that_requires_one() {
    let server = Server::fresh().await;
    let basin = sdk::basin(&server.sdk(), "test-basin").await;
    let timestamping = TimestampingConfig::new().with_mode(TimestampingMode::ClientRequire);
    let config = StreamConfig::new().with_timestamping(timestamping);
    let stream = sdk::stream_with(&basin, "orders", config).await;
    let http = server.http2();
    let mut session = frames::append_session(&http, "test-basin", "orders").await;
    let mut timed = frames::input(["timed"]);
    timed.records[0].timestamp = Some(1);
    for input in [timed.clone(), frames::input(["untimed"]), timed] {
        session.send(frames::frame(&input)).await;
    }
    let (acks, end) = acks(session.rest().await);
    assert_eq!(acks.len(), 1);
    let Output::Error(422, body) = end else {
        panic!("{end:?}");
    };
    assert_eq!(body["code"], "invalid");
    assert_eq!(sdk::bodies(&sdk::read_all(&stream).await), ["timed"]);
}

#[tokio::test]
async fn sessions_side_by_side_each_keep_their_order() {
    let server = Setup::default().partitions(1).start_fresh().await;
    let stream = orders(&server).await;
    let http = server.http2();
    let http = &http;
    let sessions = (0..6).map(|s| async move {
        let mut session = frames::append_session(http, "test-basin", "orders").await;
        for i in 0..300 {
            let input = frames::input([format!("{s} {i}")]);
            assert!(session.send(frames::frame(&input)).await);
        }
        session.finish();
        let (acks, end) = acks(session.rest().await);
        assert_eq!((acks.len(), end), (300, Output::End));
        acks.iter().map(|a| a.start.unwrap().seq_num).collect()
    });
    let acked: Vec<Vec<u64>> = futures::future::join_all(sessions).await;
    let bodies = sdk::bodies(&sdk::read_all(&stream).await);
    assert_eq!(bodies.len(), 1800);
    for (s, starts) in acked.iter().enumerate() {
        assert!(starts.is_sorted());
        for (i, start) in starts.iter().enumerate() {
            let at = usize::try_from(*start).unwrap();
            assert_eq!(bodies[at], format!("{s} {i}"));
        }
    }
}

#[tokio::test]
async fn a_session_takes_far_more_than_may_be_in_flight_at_once() {
    let server = Setup::default()
        .set("limits.append-session-inflight=2MiB")
        .set("limits.append-inflight=4MiB")
        .start_fresh()
        .await;
    let stream = orders(&server).await;
    for transport in TRANSPORTS {
        let http = server.http(transport);
        let session = frames::append_session(&http, "test-basin", "orders").await;
        let input = frames::frame(&frames::input([vec![b'x'; 1_000_000]]));
        let mut session = session;
        for _ in 0..24 {
            assert!(session.send(input.clone()).await);
        }
        session.finish();
        let (acks, end) = acks(session.rest().await);
        assert_eq!((acks.len(), end), (24, Output::End));
    }
    assert_eq!(stream.check_tail().await.unwrap().seq_num, 48);
}

#[tokio::test]
async fn a_session_that_is_torn_off_leaves_a_beginning_of_what_it_sent() {
    const SENT: usize = 50;
    let server = Server::fresh().await;
    let stream = orders(&server).await;
    let mut sessions = Vec::new();
    for round in 0..10 {
        for transport in TRANSPORTS {
            let name = format!("{round} {transport:?}");
            let http = server.http(transport);
            let session = frames::append_session(&http, "test-basin", "orders").await;
            for i in 0..SENT {
                let input = frames::input([format!("{name} {i}")]);
                session.send(frames::frame(&input)).await;
            }
            tokio::time::sleep(Duration::from_millis(round)).await;
            // The connection is closed with the client, in the middle of a frame.
            session.send(&b"\x00\x10\x00\x00half"[..]).await;
            sessions.push(name);
        }
    }
    eventually("something lands", async || {
        (stream.check_tail().await.unwrap().seq_num > 0).then_some(())
    })
    .await;
    // Appends of one session that still land may land among the records of the next ones, and during this
    // check: at any time, what is there has to be a prefix of the session.
    let bodies = sdk::bodies(&sdk::read_all(&stream).await);
    let mut landed = 0;
    for name in &sessions {
        let of_it = |body: &&String| body.rsplit_once(' ').is_some_and(|(of, _)| of == name);
        let left: Vec<_> = bodies.iter().filter(of_it).collect();
        assert!(left.len() <= SENT, "{name}: {left:?}");
        for (i, body) in left.iter().enumerate() {
            assert_eq!(**body, format!("{name} {i}"), "{left:?}");
        }
        landed += left.len();
    }
    assert_eq!(landed, bodies.len(), "records that nobody sent");
}

mod official {
    //! The same through the official client.

    use super::*;

    #[tokio::test]
    async fn closing_a_session_delivers_all_acks_and_a_dropped_ticket_harms_no_other() {
        let server = Server::fresh().await;
        let stream = orders(&server).await;
        let session = stream.append_session(AppendSessionConfig::new());
        let mut tickets = Vec::new();
        for i in 0..50 {
            let ticket = session.submit(sdk::input([format!("{i}")])).await.unwrap();
            if i % 3 != 0 {
                tickets.push((i, ticket));
            }
        }
        session.close().await.unwrap();
        for (i, ticket) in tickets {
            assert_eq!(ticket.await.unwrap().start.seq_num, i);
        }
        let expected: Vec<String> = (0..50).map(|i| i.to_string()).collect();
        assert_eq!(sdk::bodies(&sdk::read_all(&stream).await), expected);
    }

    #[tokio::test]
    async fn failed_conditions_reach_the_ticket() {
        let server = Server::fresh().await;
        let stream = orders(&server).await;
        let session = stream.append_session(AppendSessionConfig::new());
        let first = session
            .submit(sdk::input(["a"]).with_match_seq_num(0))
            .await
            .unwrap();
        let second = session
            .submit(sdk::input(["b"]).with_match_seq_num(9))
            .await
            .unwrap();
        assert_eq!(first.await.unwrap().end.seq_num, 1);
        assert!(matches!(
            second.await.unwrap_err(),
            AppendSessionError::Append(AppendError::ConditionFailed(
                AppendConditionFailed::SeqNumMismatch(1)
            ))
        ));
        let session = stream.append_session(AppendSessionConfig::new());
        let input = sdk::input(["c"]).with_fencing_token("nobody".parse().unwrap());
        let error = session.submit(input).await.unwrap().await.unwrap_err();
        assert!(matches!(
            error,
            AppendSessionError::Append(AppendError::ConditionFailed(
                AppendConditionFailed::FencingTokenMismatch(_)
            ))
        ));
    }

    #[tokio::test]
    async fn a_missing_stream_reaches_the_ticket() {
        let server = Server::fresh().await;
        let basin = sdk::basin(&server.sdk(), "test-basin").await;
        let stream = basin.stream(sdk::stream_name("missing"));
        let session = stream.append_session(AppendSessionConfig::new());
        let error = session
            .submit(sdk::input(["a"]))
            .await
            .unwrap()
            .await
            .unwrap_err();
        let code = error.request_error().unwrap().server_error().unwrap();
        assert_eq!(code.known_code(), Some(ErrorCode::StreamNotFound));
        let producer = stream.producer(ProducerConfig::new());
        let ticket = producer
            .submit(AppendRecord::new("a").unwrap())
            .await
            .unwrap();
        let error = ticket.await.unwrap_err();
        let code = error.request_error().unwrap().server_error().unwrap();
        assert_eq!(code.known_code(), Some(ErrorCode::StreamNotFound));
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_producer_delivers_many_records_in_order() {
        let server = Server::fresh().await;
        let stream = orders(&server).await;
        sdk::append(&stream, ["first"]).await;
        let producer = stream.producer(ProducerConfig::new().with_match_seq_num(1));
        let total = 30_000u64;
        let mut tickets = Vec::new();
        for i in 0..total {
            let record = AppendRecord::new(format!("{i}")).unwrap();
            tickets.push(producer.submit(record).await.unwrap());
            if i == total / 2 {
                soon("a flush", producer.flush()).await.unwrap();
            }
        }
        soon("a close", producer.close()).await.unwrap();
        for (i, ticket) in tickets.into_iter().enumerate() {
            assert_eq!(ticket.await.unwrap().seq_num, i as u64 + 1);
        }
        let records = sdk::read_all(&stream).await;
        assert_eq!(records.len() as u64, total + 1);
        for (i, record) in records[1..].iter().enumerate() {
            assert_eq!(record.body, i.to_string());
        }
    }

    #[tokio::test]
    async fn a_producer_hears_that_somebody_else_was_faster() {
        let server = Server::fresh().await;
        let stream = orders(&server).await;
        let batching = BatchingConfig::new().with_linger(Duration::ZERO);
        let config = ProducerConfig::new()
            .with_match_seq_num(0)
            .with_batching(batching);
        let producer = stream.producer(config);
        let record = || AppendRecord::new("mine").unwrap();
        let first = producer.submit(record()).await.unwrap();
        assert_eq!(first.await.unwrap().seq_num, 0);
        sdk::append(&stream, ["of somebody else"]).await;
        let second = producer.submit(record()).await.unwrap();
        assert!(matches!(
            second.await.unwrap_err(),
            ProducerError::Append(AppendSessionError::Append(AppendError::ConditionFailed(
                AppendConditionFailed::SeqNumMismatch(2)
            )))
        ));
        assert_eq!(stream.check_tail().await.unwrap().seq_num, 2);
    }
}
