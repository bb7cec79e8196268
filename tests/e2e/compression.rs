//! Compressed requests and answers.

use s2_api::v1::stream::proto;
use s2_api::v1::stream::s2s::CompressionAlgorithm;
use s2_sdk::types::{Compression, ReadFrom, ReadInput, ReadSessionConfig, ReadStart};
use serde_json::json;

use crate::support::frames::{self, Output};
use crate::support::http::TRANSPORTS;
use crate::support::sdk;
use crate::support::{Server, codec, soon};

const RECORDS: &str = "/v1/streams/orders/records";
const CODINGS: [&str; 2] = ["gzip", "zstd"];

async fn orders(server: &Server) -> s2_sdk::S2Stream {
    let basin = sdk::basin(&server.sdk(), "test-basin").await;
    sdk::stream(&basin, "orders").await
}

#[tokio::test]
async fn a_compressed_request_is_taken_as_if_it_were_not() {
    let server = Server::fresh().await;
    let stream = orders(&server).await;
    let mut expected = Vec::new();
    for transport in TRANSPORTS {
        let http = server.http(transport);
        for coding in CODINGS {
            let body = format!("{transport:?} {coding} {}", "x".repeat(10_000));
            let json = json!({"records": [{"body": body}]}).to_string();
            http.post(RECORDS)
                .basin("test-basin")
                .header("content-type", "application/json")
                .header("content-encoding", coding)
                .body(codec::encode(coding, json.as_bytes()).await)
                .send()
                .await
                .expect(200);
            let message = prost::Message::encode_to_vec(&frames::input([body.clone()]));
            http.post(RECORDS)
                .basin("test-basin")
                .header("content-type", "application/protobuf")
                .header("content-encoding", coding)
                .body(codec::encode(coding, &message).await)
                .send()
                .await
                .expect(200);
            expected.extend([body.clone(), body]);
            // Settings, too.
            http.put(&format!("/v1/streams/{transport:?}-{coding}"))
                .basin("test-basin")
                .header("content-type", "application/json")
                .header("content-encoding", coding)
                .body(codec::encode(coding, br#"{"storage_class":"standard"}"#).await)
                .send()
                .await
                .expect(201);
        }
        http.post(RECORDS)
            .basin("test-basin")
            .header("content-encoding", "identity")
            .json(&json!({"records": [{"body": "plain"}]}))
            .send()
            .await
            .expect(200);
        expected.push("plain".to_owned());
    }
    assert_eq!(sdk::bodies(&sdk::read_all(&stream).await), expected);
}

#[tokio::test]
async fn a_coding_that_is_not_known_is_refused_with_those_that_are() {
    let server = Server::fresh().await;
    let stream = orders(&server).await;
    for transport in TRANSPORTS {
        let http = server.http(transport);
        let post = || {
            let body = json!({"records": [{"body": "x"}]});
            http.post(RECORDS).basin("test-basin").json(&body)
        };
        for coding in ["br", "deflate", "gzip, br", "unheard-of"] {
            let answer = post().header("content-encoding", coding).send().await;
            assert_eq!(answer.header("accept-encoding"), Some("zstd,gzip"));
            answer.refused(415, "bad_header");
        }
        // The named coding is not the actual one, or the body is truncated.
        for coding in CODINGS {
            let answer = post().header("content-encoding", coding).send().await;
            answer.refused(400, "bad_json");
            let whole = codec::encode(coding, br#"{"records":[{"body":"x"}]}"#).await;
            http.post(RECORDS)
                .basin("test-basin")
                .header("content-type", "application/json")
                .header("content-encoding", coding)
                .body(whole[..whole.len() - 6].to_vec())
                .send()
                .await
                .refused(400, "bad_json");
        }
    }
    assert_eq!(stream.check_tail().await.unwrap().seq_num, 0);
}

/// A decoder would live as long as the session, with a window of up to 128 MiB.
#[tokio::test]
async fn a_session_has_no_coding_as_a_whole() {
    let server = Server::fresh().await;
    let stream = orders(&server).await;
    for coding in CODINGS {
        let answer = server
            .http(TRANSPORTS[0])
            .post(RECORDS)
            .basin("test-basin")
            .header("content-type", "s2s/proto")
            .header("content-encoding", coding)
            .body(codec::encode(coding, b"frames").await)
            .send()
            .await;
        assert!(
            answer.text().contains("each of its frames"),
            "{}",
            answer.text()
        );
        answer.refused(415, "bad_header");
    }
    assert_eq!(stream.check_tail().await.unwrap().seq_num, 0);
}

#[tokio::test]
async fn an_answer_is_compressed_if_that_was_asked_for_and_is_worth_it() {
    let server = Server::fresh().await;
    let stream = orders(&server).await;
    sdk::append(&stream, ["small".to_owned()]).await;
    sdk::append(&stream, ["x".repeat(20_000)]).await;
    for transport in TRANSPORTS {
        let http = server.http(transport);
        for accept in ["application/json", "application/protobuf"] {
            let read = async |seq: u64, coding: Option<&str>| {
                let path = format!("{RECORDS}?seq_num={seq}&count=1");
                let request = http.get(&path).basin("test-basin").header("accept", accept);
                let request = match coding {
                    Some(coding) => request.header("accept-encoding", coding),
                    None => request,
                };
                request.send().await.expect(200)
            };
            let plain = read(1, None).await;
            assert_eq!(plain.header("content-encoding"), None);
            for coding in CODINGS {
                let small = read(0, Some(coding)).await;
                assert_eq!(small.header("content-encoding"), None, "{accept} {coding}");
                let large = read(1, Some(coding)).await;
                assert_eq!(large.header("content-encoding"), Some(coding));
                assert!(large.body.len() < 2_000);
                assert_eq!(codec::decode(coding, &large.body).await, plain.body);
                // The official client checks this header.
                assert_eq!(large.header("content-type"), plain.header("content-type"));
            }
            let refused = read(1, Some("gzip;q=0, zstd;q=0")).await;
            assert_eq!(refused.header("content-encoding"), None);
        }
        // Lists, too.
        let basin = server.sdk().basin(sdk::basin_name("test-basin"));
        for i in 0..40 {
            sdk::stream(&basin, &format!("{transport:?}-{i:040}")).await;
        }
        let list = http
            .get("/v1/streams")
            .basin("test-basin")
            .header("accept-encoding", "zstd")
            .send()
            .await
            .expect(200);
        assert_eq!(list.header("content-encoding"), Some("zstd"));
    }
}

#[tokio::test]
async fn sessions_and_events_are_never_compressed_as_a_whole() {
    let server = Server::fresh().await;
    let stream = orders(&server).await;
    sdk::append(&stream, vec!["x".repeat(2_000); 10]).await;
    for transport in TRANSPORTS {
        let http = server.http(transport);
        for coding in CODINGS {
            for (name, value) in [
                ("accept", "text/event-stream"),
                ("content-type", "s2s/proto"),
            ] {
                let answer = http
                    .get(&format!("{RECORDS}?seq_num=0&wait=0"))
                    .basin("test-basin")
                    .header(name, value)
                    .header("accept-encoding", coding)
                    .send()
                    .await
                    .expect(200);
                assert_eq!(answer.header("content-encoding"), None);
                assert_eq!(
                    answer.header("cache-control"),
                    Some("no-cache, no-transform")
                );
                // A session's frames are compressed one by one.
                let compressed = answer.body.len() < 5_000;
                assert_eq!(compressed, name == "content-type", "{value}");
            }
            let mut session = frames::Session::<proto::ReadBatch>::open(
                http.get(&format!("{RECORDS}?seq_num=0&wait=0"))
                    .basin("test-basin")
                    .header("accept-encoding", coding),
            )
            .await;
            session.finish();
            let records = session.next().await.message().records;
            assert_eq!(records[9].body, "x".repeat(2_000));
            assert_eq!(session.next().await, Output::End);
        }
    }
}

#[tokio::test]
async fn frames_of_an_append_session_may_each_be_compressed_their_own_way() {
    let server = Server::fresh().await;
    let stream = orders(&server).await;
    for transport in TRANSPORTS {
        let http = server.http(transport);
        let mut session = frames::append_session(&http, "test-basin", "orders").await;
        for (i, algorithm) in [
            CompressionAlgorithm::Gzip,
            CompressionAlgorithm::None,
            CompressionAlgorithm::Zstd,
        ]
        .into_iter()
        .enumerate()
        {
            let input = frames::input([format!("{i} {}", "x".repeat(5_000))]);
            let frame = frames::compressed(algorithm, &input);
            assert_eq!(frame.len() < 1_000, i != 1);
            session.send(frame).await;
            session.next().await.message();
        }
        session.finish();
        assert_eq!(session.next().await, Output::End);
    }
    let records = sdk::read_all(&stream).await;
    assert_eq!(records.len(), 6);
    assert!(records.iter().all(|record| record.body.len() == 5_002));
}

#[tokio::test]
async fn the_official_client_may_compress_everything() {
    use futures::StreamExt as _;
    use s2_sdk::append_session::AppendSessionConfig;

    let server = Server::fresh().await;
    orders(&server).await;
    for compression in [Compression::None, Compression::Gzip, Compression::Zstd] {
        let config = sdk::config(server.url(), 1).with_compression(compression);
        let s2 = s2_sdk::S2::new(config).unwrap();
        let basin = s2.basin(sdk::basin_name("test-basin"));
        let stream = basin.stream(sdk::stream_name("orders"));
        let body = format!("{compression:?} {}", "x".repeat(30_000));
        let start = sdk::append(&stream, [&body]).await.start.seq_num;
        let session = stream.append_session(AppendSessionConfig::new());
        for _ in 0..3 {
            let ticket = session.submit(sdk::input([&body])).await.unwrap();
            ticket.await.unwrap();
        }
        session.close().await.unwrap();
        let read = stream.read(sdk::from_seq(start, 4)).await.unwrap();
        assert_eq!(sdk::bodies(&read.records), vec![body.clone(); 4]);
        let input =
            ReadInput::new().with_start(ReadStart::new().with_from(ReadFrom::SeqNum(start)));
        let mut session = stream
            .read_session(input, ReadSessionConfig::new())
            .await
            .unwrap();
        let batch = soon("a batch", session.next()).await.unwrap().unwrap();
        assert_eq!(sdk::bodies(&batch.records), vec![body; 4]);
    }
}
