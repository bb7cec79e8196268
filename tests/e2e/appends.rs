//! Appends in every form, their answers, and what is read back.

use bytes::Bytes;
use s2_api::v1::stream::proto;
use s2_sdk::types::{AppendInput, AppendRecord, AppendRecordBatch, Header};
use serde_json::{Value, json};

use crate::support::frames::{self, Output};
use crate::support::http::TRANSPORTS;
use crate::support::sdk;
use crate::support::{Http, Server, now_ms};

const RECORDS: &str = "/v1/streams/orders/records";

async fn orders(server: &Server) -> s2_sdk::S2Stream {
    let basin = sdk::basin(&server.sdk(), "test-basin").await;
    sdk::stream(&basin, "orders").await
}

/// Reads the whole stream as protobuf, which preserves every byte.
async fn read(http: &Http) -> Vec<proto::SequencedRecord> {
    let answer = http
        .get(&format!("{RECORDS}?seq_num=0"))
        .basin("test-basin")
        .header("accept", "application/protobuf")
        .send()
        .await
        .expect(200);
    assert_eq!(answer.header("content-type"), Some("application/protobuf"));
    answer.proto::<proto::ReadBatch>().records
}

#[tokio::test]
async fn an_ack_says_where_the_records_are_and_where_the_tail_is() {
    let server = Server::fresh().await;
    let stream = orders(&server).await;
    assert_eq!(stream.check_tail().await.unwrap().seq_num, 0);
    assert_eq!(stream.check_tail().await.unwrap().timestamp, 0);
    let before = now_ms();
    let first = sdk::append(&stream, ["a", "b", "c"]).await;
    let second = sdk::append(&stream, ["d"]).await;
    let after = now_ms();
    assert_eq!((first.start.seq_num, first.end.seq_num), (0, 3));
    assert_eq!((second.start.seq_num, second.end.seq_num), (3, 4));
    assert_eq!(first.tail, first.end);
    assert_eq!(second.tail, second.end);
    for position in [first.start, first.end, second.start, second.end] {
        assert!((before..=after).contains(&position.timestamp));
    }
    assert!(first.end.timestamp <= second.start.timestamp);
    assert_eq!(stream.check_tail().await.unwrap(), second.tail);

    // The same in JSON and protobuf, over both transports.
    for transport in TRANSPORTS {
        let http = server.http(transport);
        let tail = http
            .get(&format!("{RECORDS}/tail"))
            .basin("test-basin")
            .send()
            .await
            .expect(200)
            .json();
        let next = tail["tail"]["seq_num"].as_u64().unwrap();
        let ack = http
            .post(RECORDS)
            .basin("test-basin")
            .json(&json!({"records": [{"body": "e"}, {"body": "f"}]}))
            .send()
            .await
            .expect(200)
            .json();
        assert_eq!(ack["start"]["seq_num"], next);
        assert_eq!(ack["end"]["seq_num"], next + 2);
        assert_eq!(ack["tail"]["seq_num"], next + 2);
        let ack: proto::AppendAck = http
            .post(RECORDS)
            .basin("test-basin")
            .proto(&frames::input(["g"]))
            .header("accept", "application/protobuf")
            .send()
            .await
            .expect(200)
            .proto();
        assert_eq!(ack.start.unwrap().seq_num, next + 2);
        assert_eq!(ack.end, ack.tail);
    }
}

#[tokio::test]
async fn a_record_comes_back_as_it_went_in_whatever_form_either_way_took() {
    let server = Server::fresh().await;
    orders(&server).await;
    let all_bytes: Vec<u8> = (0..=255).collect();
    let records = [
        (
            vec![],
            Bytes::from_static(b"text \xc3\xa9 \xf0\x9f\x98\x80 \"quoted\" \\ \n"),
        ),
        (vec![], Bytes::new()),
        (
            vec![("name", "value"), ("name", "again"), ("empty", "")],
            Bytes::from_static(b"with headers"),
        ),
    ];
    let binary = proto::AppendRecord {
        timestamp: None,
        headers: vec![proto::Header {
            name: Bytes::from(all_bytes.clone()),
            value: Bytes::from(all_bytes.clone()),
        }],
        body: Bytes::from(all_bytes),
    };
    let messages: Vec<proto::AppendRecord> = records
        .iter()
        .map(|(headers, body)| proto::AppendRecord {
            timestamp: None,
            headers: headers
                .iter()
                .map(|(name, value)| proto::Header {
                    name: Bytes::from_static(name.as_bytes()),
                    value: Bytes::from_static(value.as_bytes()),
                })
                .collect(),
            body: body.clone(),
        })
        .collect();
    let with_binary: Vec<proto::AppendRecord> = messages.iter().cloned().chain([binary]).collect();
    let input = |records: &[proto::AppendRecord]| proto::AppendInput {
        records: records.to_vec(),
        match_seq_num: None,
        fencing_token: None,
    };
    let mut expected = Vec::new();
    for transport in TRANSPORTS {
        let http = server.http(transport);
        // JSON, raw: text only.
        let raw: Vec<Value> = messages.iter().map(|r| as_json(r, text)).collect();
        http.post(RECORDS)
            .basin("test-basin")
            .json(&json!({"records": raw}))
            .send()
            .await
            .expect(200);
        expected.extend(messages.clone());
        // JSON, base64.
        let encoded: Vec<Value> = with_binary.iter().map(|r| as_json(r, base64)).collect();
        http.post(RECORDS)
            .basin("test-basin")
            .header("s2-format", "base64")
            .json(&json!({"records": encoded}))
            .send()
            .await
            .expect(200);
        expected.extend(with_binary.clone());
        // Protobuf.
        http.post(RECORDS)
            .basin("test-basin")
            .proto(&input(&with_binary))
            .send()
            .await
            .expect(200);
        expected.extend(with_binary.clone());
        // A session, whose frames are sent in pieces with other boundaries.
        let mut session = frames::append_session(&http, "test-basin", "orders").await;
        let mut bytes = frames::frame(&input(&with_binary)).to_vec();
        bytes.extend_from_slice(&frames::frame(&input(&messages)));
        for piece in bytes.chunks(97) {
            assert!(session.send(piece.to_vec()).await);
        }
        session.finish();
        let outputs = session.rest().await;
        assert_eq!(outputs.len(), 3, "{outputs:?}");
        assert_eq!(outputs[2], Output::End);
        expected.extend(with_binary.clone());
        expected.extend(messages.clone());
    }
    for transport in TRANSPORTS {
        let http = server.http(transport);
        let got = read(&http).await;
        assert_eq!(got.len(), expected.len());
        for (i, (got, expected)) in got.iter().zip(&expected).enumerate() {
            assert_eq!(got.seq_num, i as u64);
            assert_eq!(got.body, expected.body);
            assert_eq!(got.headers, expected.headers);
        }
        for (format, encode) in [("raw", text as fn(&[u8]) -> String), ("base64", base64)] {
            let answer = http
                .get(&format!("{RECORDS}?seq_num=0"))
                .basin("test-basin")
                .header("s2-format", format)
                .send()
                .await
                .expect(200);
            assert_eq!(answer.header("content-type"), Some("application/json"));
            let json = answer.json();
            let records = json["records"].as_array().unwrap();
            for (got, expected) in records.iter().zip(&expected) {
                let mut expected = as_json(expected, encode);
                expected["seq_num"] = got["seq_num"].clone();
                expected["timestamp"] = got["timestamp"].clone();
                assert_eq!(*got, expected);
            }
        }
        let mut session =
            frames::read_session(&http, "test-basin", "orders", "seq_num=0&wait=0").await;
        let mut from_session = Vec::new();
        for output in session.rest().await {
            if let Output::Message(batch) = output {
                from_session.extend(batch.records);
            }
        }
        assert_eq!(from_session, got);
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Base64 written here: one use of it is not worth a dependency.
fn base64(bytes: &[u8]) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut encoded = String::new();
    for chunk in bytes.chunks(3) {
        let bits = chunk
            .iter()
            .fold(0u32, |bits, byte| bits << 8 | u32::from(*byte))
            << (8 * (3 - chunk.len()));
        for i in 0..4 {
            let sextet = (bits >> (18 - 6 * i)) & 63;
            encoded.push(if i <= chunk.len() {
                char::from(ALPHABET[sextet as usize])
            } else {
                '='
            });
        }
    }
    encoded
}

/// A record in JSON, without empty members.
fn as_json(record: &proto::AppendRecord, encode: fn(&[u8]) -> String) -> Value {
    let mut json = json!({});
    if !record.headers.is_empty() {
        let headers = record.headers.iter();
        json["headers"] = headers
            .map(|h| json!([encode(&h.name), encode(&h.value)]))
            .collect();
    }
    if !record.body.is_empty() {
        json["body"] = encode(&record.body).into();
    }
    json
}

#[tokio::test]
async fn the_largest_batches_are_taken_and_read_back_whole() {
    let server = Server::fresh().await;
    let stream = orders(&server).await;
    // 1000 records, and 1 MiB in one record: 8 metered bytes of overhead.
    sdk::append(&stream, (0..1000).map(|i| format!("{i}"))).await;
    let mib = 1024 * 1024;
    sdk::append(&stream, [vec![b'x'; mib - 8]]).await;
    // 1 MiB over 1000 records, with a header each.
    let records = (0..1000).map(|_| {
        AppendRecord::new(vec![b'y'; mib / 1000 - 8 - 2 - 4])
            .unwrap()
            .with_headers([Header::new("ab", "cd")])
            .unwrap()
    });
    let batch = AppendRecordBatch::try_from_iter(records).unwrap();
    stream.append(AppendInput::new(batch)).await.unwrap();
    // The same sizes as JSON, where base64 and quoting make them larger than 1 MiB.
    for transport in TRANSPORTS {
        let http = server.http(transport);
        let body = base64(&vec![b'z'; mib - 8]);
        http.post(RECORDS)
            .basin("test-basin")
            .header("s2-format", "base64")
            .json(&json!({"records": [{"body": body}]}))
            .send()
            .await
            .expect(200);
        http.post(RECORDS)
            .basin("test-basin")
            .proto(&frames::input([vec![b'z'; mib - 8]]))
            .send()
            .await
            .expect(200);
        let mut session = frames::append_session(&http, "test-basin", "orders").await;
        session
            .send(frames::frame(&frames::input([vec![b'z'; mib - 8]])))
            .await;
        session.next().await.message();
    }
    let records = sdk::read_all(&stream).await;
    assert_eq!(records.len(), 2001 + 6);
    assert_eq!(records[1000].body.len(), mib - 8);
    assert!(records[1001..2001].iter().all(|r| r.headers.len() == 1));
    assert!(
        records[2001..]
            .iter()
            .all(|r| r.body == vec![b'z'; mib - 8])
    );
}

#[tokio::test]
async fn concurrent_appends_get_positions_of_their_own_without_a_hole() {
    let server = Server::fresh().await;
    let stream = orders(&server).await;
    let stream = &stream;
    let appends = (0..200u64).map(|i| async move {
        let bodies = (0..=i % 5).map(move |j| format!("{i} {j}"));
        (i, sdk::append(stream, bodies).await)
    });
    let mut acks = futures::future::join_all(appends).await;
    acks.sort_by_key(|(_, ack)| ack.start.seq_num);
    let bodies = sdk::bodies(&sdk::read_all(stream).await);
    let mut next = 0;
    for (i, ack) in acks {
        assert_eq!(ack.start.seq_num, next);
        assert_eq!(ack.end.seq_num, next + i % 5 + 1);
        assert!(ack.tail.seq_num >= ack.end.seq_num);
        for j in 0..=i % 5 {
            let at = usize::try_from(next + j).unwrap();
            assert_eq!(bodies[at], format!("{i} {j}"));
        }
        next = ack.end.seq_num;
    }
    assert_eq!(bodies.len() as u64, next);
}

mod timestamps {
    use super::*;
    use s2_sdk::error::{AppendError, ErrorCode};
    use s2_sdk::types::{StreamConfig, TimestampingConfig, TimestampingMode};

    fn at(timestamp: Option<u64>) -> AppendRecord {
        let record = AppendRecord::new("x").unwrap();
        match timestamp {
            Some(timestamp) => record.with_timestamp(timestamp),
            None => record,
        }
    }

    async fn append(
        stream: &s2_sdk::S2Stream,
        timestamps: &[Option<u64>],
    ) -> Result<s2_sdk::types::AppendAck, AppendError> {
        let records = timestamps.iter().map(|t| at(*t));
        let batch = AppendRecordBatch::try_from_iter(records).unwrap();
        stream.append(AppendInput::new(batch)).await
    }

    async fn stream(server: &Server, config: TimestampingConfig) -> s2_sdk::S2Stream {
        let basin = sdk::basin(&server.sdk(), "test-basin").await;
        let config = StreamConfig::new().with_timestamping(config);
        sdk::stream_with(&basin, "orders", config).await
    }

    async fn kept(stream: &s2_sdk::S2Stream) -> Vec<u64> {
        let records = sdk::read_all(stream).await;
        records.iter().map(|r| r.timestamp).collect()
    }

    #[tokio::test]
    async fn the_clients_timestamp_is_preferred_capped_at_now_and_never_decreases() {
        let server = Server::fresh().await;
        let stream = stream(&server, TimestampingConfig::new()).await;
        let ack = append(&stream, &[Some(10), Some(30), Some(20), Some(0)])
            .await
            .unwrap();
        assert_eq!(kept(&stream).await, [10, 30, 30, 30]);
        assert_eq!((ack.start.timestamp, ack.end.timestamp), (10, 30));
        let before = now_ms();
        let ack = append(&stream, &[None, Some(before - 1000)]).await.unwrap();
        assert!((before..=now_ms()).contains(&ack.start.timestamp));
        assert_eq!(ack.end.timestamp, ack.start.timestamp);
        let ack = append(&stream, &[Some(now_ms() + 1_000_000), Some(u64::MAX)])
            .await
            .unwrap();
        assert!(ack.end.timestamp <= now_ms());
        assert!(kept(&stream).await.is_sorted());
    }

    #[tokio::test]
    async fn an_uncapped_timestamp_may_be_in_the_future() {
        let server = Server::fresh().await;
        let config = TimestampingConfig::new().with_uncapped(true);
        let stream = stream(&server, config).await;
        let future = now_ms() + 1_000_000;
        append(&stream, &[Some(future), None, Some(u64::MAX - 1), Some(5)])
            .await
            .unwrap();
        assert_eq!(
            kept(&stream).await,
            [future, future, u64::MAX - 1, u64::MAX - 1],
            "never decreasing"
        );
    }

    #[tokio::test]
    async fn a_required_timestamp_that_is_missing_refuses_the_whole_batch() {
        let server = Server::fresh().await;
        let config = TimestampingConfig::new().with_mode(TimestampingMode::ClientRequire);
        let stream = stream(&server, config).await;
        let error = append(&stream, &[Some(1), None]).await.unwrap_err();
        let code = error.request_error().unwrap().server_error().unwrap();
        assert_eq!(code.known_code(), Some(ErrorCode::Invalid));
        assert_eq!(stream.check_tail().await.unwrap().seq_num, 0);
        append(&stream, &[Some(1), Some(2)]).await.unwrap();
        assert_eq!(kept(&stream).await, [1, 2]);
    }

    #[tokio::test]
    async fn in_arrival_mode_the_clients_timestamp_does_not_count() {
        let server = Server::fresh().await;
        let config = TimestampingConfig::new()
            .with_mode(TimestampingMode::Arrival)
            .with_uncapped(true);
        let stream = stream(&server, config).await;
        let before = now_ms();
        append(&stream, &[Some(1), None, Some(u64::MAX)])
            .await
            .unwrap();
        let after = now_ms();
        for timestamp in kept(&stream).await {
            assert!((before..=after).contains(&timestamp));
        }
    }
}
