//! Records that are encrypted with the key of each request, by the cipher of their stream.

use std::path::Path;

use futures::StreamExt as _;
use http::Method;
use s2_sdk::S2Stream;
use s2_sdk::append_session::AppendSessionConfig;
use s2_sdk::error::{ErrorCode, ReadError};
use s2_sdk::types::{
    AppendInput, AppendRecord, AppendRecordBatch, BasinConfig, BasinReconfiguration, CommandRecord,
    DeleteStreamInput, EncryptionAlgorithm, EncryptionKey, Header, ReadFrom, ReadInput,
    ReadSessionConfig, ReadStart, ReconfigureBasinInput, SequencedRecord, StreamConfig,
};
use serde_json::{Value, json};

use crate::support::frames::{self, Output, Session};
use crate::support::http::TRANSPORTS;
use crate::support::{Http, Server, Setup, sdk};

const CIPHERS: [EncryptionAlgorithm; 2] = [
    EncryptionAlgorithm::Aegis256,
    EncryptionAlgorithm::Aes256Gcm,
];
const HEADER: &str = "s2-encryption-key";
const RECORDS: &str = "/v1/streams/orders/records";
const BASIN: &str = "test-basin";

fn key(byte: u8) -> EncryptionKey {
    EncryptionKey::new([byte; 32])
}

fn key_text(byte: u8) -> String {
    key(byte).to_header_value().to_str().unwrap().to_owned()
}

fn config(cipher: EncryptionAlgorithm) -> BasinConfig {
    BasinConfig::new().with_stream_cipher(cipher)
}

/// A stream of this cipher, without a key.
async fn orders(server: &Server, cipher: EncryptionAlgorithm) -> S2Stream {
    let basin = sdk::basin_with(&server.sdk(), BASIN, config(cipher)).await;
    sdk::stream(&basin, "orders").await
}

fn from_the_start() -> ReadInput {
    ReadInput::new().with_start(ReadStart::new().with_from(ReadFrom::SeqNum(0)))
}

async fn read(stream: &S2Stream) -> Result<Vec<String>, ReadError> {
    let batch = stream.read(sdk::from_seq(0, 1000)).await?;
    Ok(sdk::bodies(&batch.records))
}

#[track_caller]
fn assert_decryption_failed(result: Result<Vec<String>, ReadError>) {
    let error = result.unwrap_err();
    let server_error = error.request_error().and_then(|e| e.server_error());
    let server_error = server_error.expect("the server refused it");
    assert_eq!(
        server_error.known_code(),
        Some(ErrorCode::DecryptionFailed),
        "{error}"
    );
}

/// No request has made the server take anything for damaged, or restart.
async fn assert_undamaged(server: &Server) {
    let status = server.http1().get("/esker/v1/status").send().await;
    let problems = status.expect(200).json()["problems"].to_string();
    assert!(!problems.contains("damage"), "{problems}");
    assert_eq!(server.starts(), 1);
}

async fn cipher_of(http: &Http, stream: &str) -> Value {
    let listed = http.get("/v1/streams").basin(BASIN).send().await;
    let listed = listed.expect(200).json();
    let streams = listed["streams"].as_array().unwrap();
    let stream = streams.iter().find(|s| s["name"] == stream).unwrap();
    stream["cipher"].clone()
}

#[tokio::test]
async fn a_basin_decides_the_cipher_of_streams_that_are_created_from_then_on() {
    let server = Server::fresh().await;
    let http = server.http2();
    let cipher_of_basin = async || {
        let config = http.get("/v1/basins/test-basin").send().await;
        config.expect(200).json()["stream_cipher"].clone()
    };
    let body = json!({"basin": BASIN, "config": {"stream_cipher": "aegis-256",
        "create_stream_on_append": true, "create_stream_on_read": true}});
    http.post("/v1/basins").json(&body).send().await.expect(201);
    assert_eq!(cipher_of_basin().await, "aegis-256");
    let create = async |name: &str| {
        let created = http.post("/v1/streams").basin(BASIN);
        let created = created.json(&json!({"stream": name})).send().await;
        created.expect(201).json()["cipher"].clone()
    };
    assert_eq!(create("first").await, "aegis-256");

    let changed = http.patch("/v1/basins/test-basin");
    let changed = changed.json(&json!({"stream_cipher": "aes-256-gcm"}));
    let changed = changed.send().await.expect(200).json();
    assert_eq!(changed["stream_cipher"], "aes-256-gcm");
    // Other changes keep it.
    let other = http.patch("/v1/basins/test-basin");
    let other = other.json(&json!({"create_stream_on_read": true}));
    other.send().await.expect(200);
    assert_eq!(cipher_of_basin().await, "aes-256-gcm");
    assert_eq!(create("second").await, "aes-256-gcm");

    // Created when they are first used, by an append, a read and a look at the tail.
    let append = http.post("/v1/streams/appended/records").basin(BASIN);
    let append = append.header(HEADER, &key_text(1));
    let append = append.json(&json!({"records": [{"body": "a"}]}));
    append.send().await.expect(200);
    let read = http.get("/v1/streams/read/records?seq_num=0").basin(BASIN);
    let read = read.header(HEADER, &key_text(1)).send().await;
    read.expect(416);
    let tail = http.get("/v1/streams/looked-at/records/tail").basin(BASIN);
    tail.send().await.expect(200);

    let ensured = http.put("/v1/basins/test-basin");
    let ensured = ensured.json(&json!({"config": {"stream_cipher": null}}));
    ensured.send().await.expect(200);
    assert_eq!(cipher_of_basin().await, Value::Null);
    assert_eq!(create("plain").await, Value::Null);

    // What exists keeps its cipher, also when it is ensured.
    for (name, cipher) in [
        ("first", json!("aegis-256")),
        ("second", json!("aes-256-gcm")),
        ("appended", json!("aes-256-gcm")),
        ("read", json!("aes-256-gcm")),
        ("looked-at", json!("aes-256-gcm")),
        ("plain", Value::Null),
    ] {
        let ensured = http.put(&format!("/v1/streams/{name}")).basin(BASIN);
        let ensured = ensured
            .json(&json!({"storage_class": "standard"}))
            .send()
            .await;
        assert_eq!(ensured.expect(200).json()["cipher"], cipher, "{name}");
        assert_eq!(cipher_of(&http, name).await, cipher, "{name}");
    }
    let unknown = http.patch("/v1/basins/test-basin");
    let unknown = unknown
        .json(&json!({"stream_cipher": "rot-13"}))
        .send()
        .await;
    assert!(unknown.status.is_client_error(), "{unknown:?}");
    // The stream of the state store is read by the server, which has no key.
    let reserved = http.patch("/v1/basins/esker-state");
    let reserved = reserved.json(&json!({"stream_cipher": "aegis-256"}));
    reserved.send().await.refused(403, "permission_denied");
}

#[tokio::test]
async fn the_official_client_sets_and_reads_ciphers() {
    let server = Server::fresh().await;
    let s2 = server.sdk();
    orders(&server, CIPHERS[0]).await;
    let name = sdk::basin_name(BASIN);
    let changed = BasinReconfiguration::new().with_stream_cipher(CIPHERS[1]);
    let changed = s2.reconfigure_basin(ReconfigureBasinInput::new(name.clone(), changed));
    assert_eq!(changed.await.unwrap().stream_cipher, Some(CIPHERS[1]));
    let config = s2.get_basin_config(name.clone()).await.unwrap();
    assert_eq!(config.stream_cipher, Some(CIPHERS[1]));
    let listed = s2.basin(name).list_streams(Default::default()).await;
    assert_eq!(listed.unwrap().values[0].cipher, Some(CIPHERS[0]));
}

fn record_of_every_kind() -> AppendRecordBatch {
    let with_header = AppendRecord::new("b")
        .unwrap()
        .with_headers([Header::new("name", "value")])
        .unwrap();
    let fence: AppendRecord = CommandRecord::fence("a-token".parse().unwrap()).into();
    AppendRecordBatch::try_from_iter([AppendRecord::new("a").unwrap(), with_header, fence]).unwrap()
}

fn contents(records: &[SequencedRecord]) -> Vec<(u64, Vec<Header>, Vec<u8>)> {
    let content = |r: &SequencedRecord| (r.seq_num, r.headers.clone(), r.body.to_vec());
    records.iter().map(content).collect()
}

#[tokio::test]
async fn records_come_back_with_the_key_of_their_appends_in_requests_and_sessions() {
    for cipher in CIPHERS {
        let server = Server::fresh().await;
        let stream = orders(&server, cipher).await.with_encryption_key(key(1));
        // A reader at the tail gets batches from memory.
        let mut follower = stream
            .read_session(from_the_start(), ReadSessionConfig::default())
            .await
            .unwrap();
        let input = AppendInput::new(record_of_every_kind());
        stream.append(input).await.unwrap();

        let session = stream.append_session(AppendSessionConfig::new());
        let mut tickets = Vec::new();
        for i in 0..20 {
            let text = format!("{i} {}", "x".repeat(7_000 * (i % 10)));
            tickets.push((
                text.clone(),
                session.submit(sdk::input([text])).await.unwrap(),
            ));
        }
        let mut texts = Vec::new();
        for (at, (text, ticket)) in tickets.into_iter().enumerate() {
            assert_eq!(ticket.await.unwrap().start.seq_num, 3 + at as u64);
            texts.push(text);
        }
        session.close().await.unwrap();

        let mut followed = Vec::new();
        while followed.len() < 23 {
            followed.extend(follower.next().await.unwrap().unwrap().records);
        }
        let all = sdk::read_all(&stream).await;
        assert_eq!(contents(&followed), contents(&all));
        assert_eq!(&all[0].body[..], b"a");
        assert_eq!(all[1].headers, [Header::new("name", "value")]);
        assert!(all[2].is_command_record());
        assert_eq!(sdk::bodies(&all[3..]), texts);
        // Limits are those of the plain text: 8 bytes for each record, its headers and its body.
        for transport in TRANSPORTS {
            let http = server.http(transport);
            let limited = http
                .get(&format!("{RECORDS}?seq_num=0&bytes=9"))
                .basin(BASIN);
            let limited = limited.header(HEADER, &key_text(1)).send().await;
            let limited = limited.expect(200).json();
            assert_eq!(limited["records"].as_array().unwrap().len(), 1);
            assert_eq!(limited["records"][0]["body"], "a");
        }
        assert_undamaged(&server).await;
    }
}

#[tokio::test]
async fn raw_sessions_of_both_kinds_and_events_take_the_key_as_a_header() {
    for cipher in CIPHERS {
        let server = Server::fresh().await;
        orders(&server, cipher).await;
        for (round, transport) in TRANSPORTS.into_iter().enumerate() {
            let http = server.http(transport);
            let post = http.post(RECORDS).basin(BASIN).header(HEADER, &key_text(1));
            let mut appends = Session::<s2_api::v1::stream::proto::AppendAck>::open(post).await;
            appends
                .send(frames::frame(&frames::input(["a", "b"])))
                .await;
            let ack = appends.next().await.message();
            assert_eq!(ack.end.unwrap().seq_num, 2 * (round as u64 + 1));
            appends.finish();
            assert_eq!(appends.next().await, Output::End);

            for (byte, ends_well) in [(1, true), (2, false)] {
                let query = format!("{RECORDS}?seq_num=0&count=2");
                let get = http
                    .get(&query)
                    .basin(BASIN)
                    .header(HEADER, &key_text(byte));
                let mut reads = Session::<s2_api::v1::stream::proto::ReadBatch>::open(get).await;
                reads.finish();
                if ends_well {
                    assert_eq!(&reads.batch().await.records[1].body[..], b"b");
                    assert_eq!(reads.next().await, Output::End);
                } else {
                    let Output::Error(400, error) = reads.next().await else {
                        panic!("it ends with an error");
                    };
                    assert_eq!(error["code"], "decryption_failed");
                }
                let get = http
                    .get(&query)
                    .basin(BASIN)
                    .header(HEADER, &key_text(byte));
                let mut events = get.header("accept", "text/event-stream").open().await;
                events.finish();
                assert_eq!(events.status, 200);
                let events = events.rest().await.unwrap();
                let events = String::from_utf8(events.to_vec()).unwrap();
                assert_eq!(events.contains(r#""body":"b""#), ends_well, "{events}");
                assert_eq!(events.contains("[DONE]"), ends_well, "{events}");
                assert_eq!(events.contains("decryption_failed"), !ends_well, "{events}");
            }
        }
    }
}

#[tokio::test]
async fn a_key_that_is_missing_or_no_key_is_a_bad_header_and_appends_nothing() {
    for cipher in CIPHERS {
        let server = Server::fresh().await;
        let stream = orders(&server, cipher).await;
        let keyed = stream.clone().with_encryption_key(key(1));
        sdk::append(&keyed, ["a"]).await;
        let short = EncryptionKey::new([1; 31]).to_header_value();
        let long = EncryptionKey::new([1; 33]).to_header_value();
        for transport in TRANSPORTS {
            let http = server.http(transport);
            let no_key = [
                None,
                Some(""),
                Some("!!!!"),
                Some(short.to_str().unwrap()),
                Some(long.to_str().unwrap()),
                Some("AQIDBAUGBwgJCgsMDQ4PEBESExQVFhcYGRobHB0eHyAA"),
                Some("AQIDBAUGBwgJCgsMDQ4PEBESExQVFhcYGRobHB0eHyA"),
            ];
            for value in no_key {
                for (method, kind) in [
                    (Method::GET, "application/json"),
                    (Method::GET, "text/event-stream"),
                    (Method::GET, "s2s/proto"),
                    (Method::POST, "application/json"),
                    (Method::POST, "s2s/proto"),
                ] {
                    let mut request = http.request(method.clone(), RECORDS).basin(BASIN);
                    request = match method {
                        Method::GET => request.header("accept", kind),
                        _ => request.json(&json!({"records": [{"body": "b"}]})),
                    };
                    if kind == "s2s/proto" {
                        request = request.header("content-type", kind);
                    }
                    if let Some(value) = value {
                        request = request.header(HEADER, value);
                    }
                    let refused = request.send().await.refused(400, "bad_header");
                    if let Some(value) = value.filter(|value| !value.is_empty()) {
                        assert!(!refused.text().contains(value), "it shows the key");
                    }
                }
            }
        }
        assert_eq!(read(&keyed).await.unwrap(), ["a"]);
        assert_undamaged(&server).await;
    }
}

#[tokio::test]
async fn a_wrong_key_ends_its_own_request_alone_and_each_record_has_the_key_it_was_appended_with() {
    for cipher in CIPHERS {
        let server = Server::fresh().await;
        let stream = orders(&server, cipher).await;
        let (first, second) = (
            stream.clone().with_encryption_key(key(1)),
            stream.clone().with_encryption_key(key(2)),
        );
        sdk::append(&first, ["a"]).await;
        for _ in 0..3 {
            assert_decryption_failed(read(&second).await);
        }
        // The key of an append cannot be checked. Its record has that key.
        sdk::append(&second, ["b"]).await;
        assert_decryption_failed(read(&first).await);
        for (stream, at, body) in [(&first, 0, "a"), (&second, 1, "b")] {
            let batch = stream.read(sdk::from_seq(at, 1)).await.unwrap();
            assert_eq!(sdk::bodies(&batch.records), [body]);
        }
        // The error names the record.
        let get = server.http1();
        let get = get.get(&format!("{RECORDS}?seq_num=0")).basin(BASIN);
        let refused = get.header(HEADER, &key_text(1)).send().await;
        let refused = refused.refused(400, "decryption_failed");
        assert!(refused.text().contains("record 1 "), "{}", refused.text());
        assert_undamaged(&server).await;
    }
}

#[tokio::test]
async fn a_stream_without_a_cipher_takes_no_notice_of_a_key() {
    let server = Server::fresh().await;
    let basin = sdk::basin(&server.sdk(), BASIN).await;
    let stream = sdk::stream(&basin, "orders").await;
    let keyed = stream.clone().with_encryption_key(key(1));
    sdk::append(&keyed, ["a"]).await;
    assert_eq!(read(&stream).await.unwrap(), ["a"]);
    let other = stream.with_encryption_key(key(2));
    assert_eq!(read(&other).await.unwrap(), ["a"]);
    let http = server.http2();
    let get = http.get(&format!("{RECORDS}?seq_num=0")).basin(BASIN);
    get.header(HEADER, "no key").send().await.expect(200);
    // Nothing as long as this can be a key.
    let long = "A".repeat(45);
    let get = http.get(&format!("{RECORDS}?seq_num=0")).basin(BASIN);
    let refused = get.header(HEADER, &long).send().await;
    let refused = refused.refused(400, "bad_header");
    assert!(!refused.text().contains(&long));
}

#[tokio::test]
async fn conditions_fences_and_trims_are_those_of_any_stream() {
    for cipher in CIPHERS {
        let server = Server::fresh().await;
        let stream = orders(&server, cipher).await.with_encryption_key(key(1));
        sdk::append(&stream, ["a", "b", "c"]).await;
        let refused = stream.append(sdk::input(["d"]).with_match_seq_num(2)).await;
        assert!(refused.is_err());
        let taken = stream.append(sdk::input(["d"]).with_match_seq_num(3)).await;
        assert_eq!(taken.unwrap().start.seq_num, 3);
        let trim: AppendRecord = CommandRecord::trim(3).into();
        let trim = AppendRecordBatch::try_from_iter([trim]).unwrap();
        stream.append(AppendInput::new(trim)).await.unwrap();
        let fence: AppendRecord = CommandRecord::fence("mine".parse().unwrap()).into();
        let fence = AppendRecordBatch::try_from_iter([fence]).unwrap();
        stream.append(AppendInput::new(fence)).await.unwrap();
        let other = sdk::input(["e"]).with_fencing_token("theirs".parse().unwrap());
        assert!(stream.append(other).await.is_err());
        let left = sdk::read_all(&stream).await;
        assert_eq!(sdk::seq_nums(&left), [3, 4, 5]);
    }
}

#[tokio::test]
async fn a_stream_that_was_created_again_has_the_cipher_of_its_basin_by_then() {
    let server = Server::fresh().await;
    let s2 = server.sdk();
    let stream = orders(&server, CIPHERS[0])
        .await
        .with_encryption_key(key(1));
    let session = stream.append_session(AppendSessionConfig::new());
    let ticket = session.submit(sdk::input(["old"])).await.unwrap();
    ticket.await.unwrap();

    let name = sdk::basin_name(BASIN);
    let changed = BasinReconfiguration::new().with_stream_cipher(CIPHERS[1]);
    let changed = ReconfigureBasinInput::new(name.clone(), changed);
    s2.reconfigure_basin(changed).await.unwrap();
    let basin = s2.basin(name);
    let orders = sdk::stream_name("orders");
    let delete = DeleteStreamInput::new(orders);
    basin.delete_stream(delete).await.unwrap();
    let config = StreamConfig::new();
    let again = sdk::stream_with(&basin, "orders", config).await;
    assert_eq!(cipher_of(&server.http2(), "orders").await, "aes-256-gcm");

    // The session encrypts for the stream that is gone, so that its append is refused.
    if let Ok(ticket) = session.submit(sdk::input(["late"])).await {
        assert!(ticket.await.is_err());
    }
    let again = again.with_encryption_key(key(1));
    assert_eq!(again.check_tail().await.unwrap().seq_num, 0);
    sdk::append(&again, ["new"]).await;
    assert_eq!(read(&again).await.unwrap(), ["new"]);
    assert_undamaged(&server).await;
}

/// All files below a directory that contain one of the texts.
fn files_with(dir: &Path, texts: &[&[u8]]) -> (usize, Vec<String>) {
    let (mut looked_at, mut found) = (0, Vec::new());
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            let (files, with) = files_with(&path, texts);
            looked_at += files;
            found.extend(with);
        } else if let Ok(bytes) = std::fs::read(&path) {
            looked_at += 1;
            let has = |text: &[u8]| bytes.windows(text.len()).any(|window| window == text);
            if texts.iter().any(|text| has(text)) {
                found.push(path.display().to_string());
            }
        }
    }
    (looked_at, found)
}

#[tokio::test]
async fn neither_files_nor_snapshots_nor_logs_have_the_text_or_the_key_and_a_restore_reads_with_it()
{
    const TEXT: &str = "a text that occurs in records alone";
    const VISIBLE: &str = "a-token-that-is-not-encrypted";
    for cipher in CIPHERS {
        let dir = tempfile::tempdir().unwrap();
        let (data, repository) = (dir.path().join("data"), dir.path().join("repository"));
        let setup = Setup::default()
            .partitions(1)
            .set("logs.level=trace")
            .set(&format!("snapshots.destination={}", repository.display()));
        let mut server = setup.start(&data).await;
        let stream = orders(&server, cipher).await.with_encryption_key(key(0x5a));
        let texts: Vec<String> = (0..50).map(|i| format!("{TEXT} {i}")).collect();
        sdk::append(&stream, &texts).await;
        let mut batch = vec![AppendRecord::from(CommandRecord::fence(
            VISIBLE.parse().unwrap(),
        ))];
        batch.push(
            AppendRecord::new("")
                .unwrap()
                .with_headers([Header::new(TEXT, TEXT)])
                .unwrap(),
        );
        let batch = AppendRecordBatch::try_from_iter(batch).unwrap();
        stream.append(AppendInput::new(batch)).await.unwrap();
        for byte in [0x5a, 0x5b] {
            let stream = stream.clone().with_encryption_key(key(byte));
            assert_eq!(read(&stream).await.is_ok(), byte == 0x5a);
        }
        // The database has them in files, not in memory alone.
        for partition in 0..2 {
            let put = format!("/esker/v1/partitions/{partition}/snapshots");
            let http = server.http1();
            let put = http.post(&put).json(&json!({})).send().await;
            put.expect(200);
        }
        let raw = [[0x5a_u8; 32], [0x5b; 32]];
        let keys = [key_text(0x5a), key_text(0x5b)];
        let secrets = [
            TEXT.as_bytes(),
            &raw[0],
            &raw[1],
            keys[0].as_bytes(),
            keys[1].as_bytes(),
        ];
        for place in [&data, &repository] {
            let (looked_at, found) = files_with(place, &secrets);
            assert!(looked_at > 3, "{} files", looked_at);
            assert_eq!(found, Vec::<String>::new());
            let (_, visible) = files_with(place, &[VISIBLE.as_bytes()]);
            assert!(!visible.is_empty(), "the search finds what is there");
        }
        let log = server.log().join("\n");
        assert!(log.contains("TRACE"), "the log has everything");
        let hidden = format!("{:?}", [0x5a_u8; 32]);
        for secret in [TEXT, &keys[0], &keys[1], &hidden] {
            assert!(!log.contains(secret), "the log has {secret}");
        }

        server.kill();
        std::fs::remove_dir_all(&data).unwrap();
        let restore = setup.bootstrap("restore").set("logs.level=info");
        let server = restore.start(&data).await;
        let basin = server.sdk().basin(sdk::basin_name(BASIN));
        let stream = basin.stream(sdk::stream_name("orders"));
        let restored = stream.clone().with_encryption_key(key(0x5a));
        // Sequence numbers behind these are passed over, because the restore may have lost something.
        let records = restored.read(sdk::from_seq(0, 1000)).await.unwrap().records;
        assert_eq!(sdk::bodies(&records[..50]), texts);
        assert_eq!(records[51].headers, [Header::new(TEXT, TEXT)]);
        assert_decryption_failed(read(&stream.with_encryption_key(key(0x5b))).await);
        assert_eq!(
            cipher_of(&server.http2(), "orders").await,
            cipher.to_string()
        );
        // Sequence numbers go on beyond the fork, and the stream takes more.
        let more = sdk::append(&restored, ["more"]).await;
        assert!(more.start.seq_num > u64::from(u32::MAX));
        assert_undamaged(&server).await;
    }
}
