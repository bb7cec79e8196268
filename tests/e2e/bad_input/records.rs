//! Batches and records that break a rule, in every form of an append.

use bytes::Bytes;
use s2_api::v1::stream::proto::{AppendAck, AppendInput, AppendRecord, Header};
use serde_json::{Value, json};

use super::{RECORDS, orders, untouched};
use crate::support::frames::{self, Output};
use crate::support::http::TRANSPORTS;

fn record(headers: &[(&[u8], &[u8])], body: &[u8]) -> AppendRecord {
    AppendRecord {
        timestamp: None,
        headers: headers
            .iter()
            .map(|(name, value)| Header {
                name: Bytes::copy_from_slice(name),
                value: Bytes::copy_from_slice(value),
            })
            .collect(),
        body: Bytes::copy_from_slice(body),
    }
}

fn input(records: Vec<AppendRecord>) -> AppendInput {
    AppendInput {
        records,
        match_seq_num: None,
        fencing_token: None,
    }
}

#[tokio::test]
async fn batches_and_records_that_break_a_rule_are_refused_in_every_form() {
    let (server, stream) = orders().await;
    let mib = 1024 * 1024;
    let good = record(&[], b"good");
    let behind = |bad: AppendRecord| input(vec![good.clone(), bad]);
    let cases: Vec<(&str, AppendInput)> = vec![
        ("no records", input(vec![])),
        ("1001 records", input(vec![good.clone(); 1001])),
        (
            "a record over 1 MiB",
            input(vec![record(&[], &vec![b'x'; mib - 7])]),
        ),
        (
            "a batch over 1 MiB",
            input(vec![record(&[], &vec![b'x'; mib / 2 - 7]); 2]),
        ),
        (
            "a header over 1 MiB",
            input(vec![record(&[(b"n", &vec![b'x'; mib])], b"")]),
        ),
        (
            "an empty name among others",
            behind(record(&[(b"a", b"b"), (b"", b"fence")], b"x")),
        ),
        (
            "two empty names",
            behind(record(&[(b"", b"fence"), (b"", b"trim")], b"x")),
        ),
        (
            "an unknown command",
            behind(record(&[(b"", b"drop")], b"x")),
        ),
        (
            "a command without a name",
            behind(record(&[(b"", b"")], b"x")),
        ),
        (
            "a fence of 37 bytes",
            behind(record(&[(b"", b"fence")], &[b'x'; 37])),
        ),
        (
            "a fence that is no text",
            behind(record(&[(b"", b"fence")], &[0xff, 0xfe])),
        ),
        ("a trim of nothing", behind(record(&[(b"", b"trim")], b""))),
        (
            "a trim of 7 bytes",
            behind(record(&[(b"", b"trim")], &[0; 7])),
        ),
        (
            "a trim of 9 bytes",
            behind(record(&[(b"", b"trim")], &[0; 9])),
        ),
        ("a trim in digits", behind(record(&[(b"", b"trim")], b"5"))),
        (
            "a token of 37 bytes",
            AppendInput {
                fencing_token: Some("x".repeat(37)),
                ..input(vec![good.clone()])
            },
        ),
    ];
    for transport in TRANSPORTS {
        let http = server.http(transport);
        for (what, input) in &cases {
            let answer = http
                .post(RECORDS)
                .basin("test-basin")
                .proto(input)
                .send()
                .await;
            assert_eq!(
                (answer.status.as_u16(), &*answer.code()),
                (422, "invalid"),
                "{what}"
            );

            if *what != "a fence that is no text" {
                let answer = http
                    .post(RECORDS)
                    .basin("test-basin")
                    .json(&as_json(input))
                    .send()
                    .await;
                let code = answer.code();
                let expected = if what.starts_with("a token") {
                    (400, "bad_json")
                } else {
                    (422, "invalid")
                };
                assert_eq!((answer.status.as_u16(), &*code), expected, "{what}");
            }

            let mut session = frames::append_session(&http, "test-basin", "orders").await;
            session.send(frames::frame(input)).await;
            session
                .send(frames::frame(&frames::input(["behind"])))
                .await;
            let outputs: Vec<Output<AppendAck>> = session.rest().await;
            let [Output::Error(422, body)] = &outputs[..] else {
                panic!("{what}: {outputs:?}");
            };
            assert_eq!(body["code"], "invalid", "{what}");
        }
    }
    untouched(&server, &stream).await;
}

fn as_json(input: &AppendInput) -> Value {
    let text = |bytes: &Bytes| String::from_utf8_lossy(bytes).into_owned();
    let records: Vec<Value> = input
        .records
        .iter()
        .map(|record| {
            let headers: Vec<Value> = record
                .headers
                .iter()
                .map(|h| json!([text(&h.name), text(&h.value)]))
                .collect();
            json!({"headers": headers, "body": text(&record.body)})
        })
        .collect();
    json!({"records": records, "fencing_token": input.fencing_token})
}

#[tokio::test]
async fn json_that_is_not_an_append_is_refused_with_its_place() {
    let (server, stream) = orders().await;
    for transport in TRANSPORTS {
        let http = server.http(transport);
        for body in [
            r#"{}"#,
            r#"[]"#,
            r#"null"#,
            r#""records""#,
            r#"{"records": null}"#,
            r#"{"records": {}}"#,
            r#"{"records": [null]}"#,
            r#"{"records": ["x"]}"#,
            r#"{"records": [{"body": 1}]}"#,
            r#"{"records": [{"body": ["x"]}]}"#,
            r#"{"records": [{"body": "x", "headers": {"a": "b"}}]}"#,
            r#"{"records": [{"body": "x", "headers": [["a"]]}]}"#,
            r#"{"records": [{"body": "x", "headers": [["a", "b", "c"]]}]}"#,
            r#"{"records": [{"body": "x", "headers": [[1, 2]]}]}"#,
            r#"{"records": [{"body": "x", "timestamp": -1}]}"#,
            r#"{"records": [{"body": "x", "timestamp": 1.5}]}"#,
            r#"{"records": [{"body": "x", "timestamp": "1"}]}"#,
            r#"{"records": [{"body": "x", "timestamp": 18446744073709551616}]}"#,
            r#"{"records": [{"body": "x"}], "match_seq_num": -1}"#,
            r#"{"records": [{"body": "x"}], "match_seq_num": "0"}"#,
            r#"{"records": [{"body": "x"}], "match_seq_num": 1e3}"#,
            r#"{"records": [{"body": "x"}], "fencing_token": 7}"#,
            r#"{"records": [{"body": "\ud800"}]}"#,
            r#"{"records": [{"body": "x"}]"#,
            r#"{"records": [{"body": "x"}]}}"#,
            r#"{"records": [{"body": "x"}]} {"records": [{"body": "x"}]}"#,
            r#"{"records": [{"body": "x"},]}"#,
            r#"{'records': [{'body': 'x'}]}"#,
            "",
            " ",
            "\u{feff}{\"records\": [{\"body\": \"x\"}]}",
            "not json",
        ] {
            let answer = http
                .post(RECORDS)
                .basin("test-basin")
                .header("content-type", "application/json")
                .body(body)
                .send()
                .await;
            assert_eq!(answer.status, 400, "{body}: {}", answer.text());
            assert_eq!(answer.code(), "bad_json", "{body}");
        }
        // Bodies that are declared as base64 and are not.
        for body in ["x", "====", "AAA", "AA==\n", "not base64!", "__--"] {
            http.post(RECORDS)
                .basin("test-basin")
                .header("s2-format", "base64")
                .json(&json!({"records": [{"body": body}]}))
                .send()
                .await
                .refused(422, "invalid");
        }
    }
    untouched(&server, &stream).await;
}

#[tokio::test]
async fn settings_that_cannot_be_meant_are_refused() {
    let (server, stream) = orders().await;
    for transport in TRANSPORTS {
        let http = server.http(transport);
        for (config, status, code) in [
            (json!({"retention_policy": {"age": 0}}), 422, "invalid"),
            (json!({"retention_policy": {"age": -1}}), 400, "bad_json"),
            (
                json!({"retention_policy": {"forever": {}}}),
                400,
                "bad_json",
            ),
            (json!({"retention_policy": "infinite"}), 400, "bad_json"),
            (
                json!({"timestamping": {"mode": "whenever"}}),
                400,
                "bad_json",
            ),
            (
                json!({"timestamping": {"uncapped": "yes"}}),
                400,
                "bad_json",
            ),
            (
                json!({"delete_on_empty": {"min_age_secs": -1}}),
                400,
                "bad_json",
            ),
            (json!({"storage_class": 5}), 400, "bad_json"),
        ] {
            http.put("/v1/streams/other")
                .basin("test-basin")
                .json(&config)
                .send()
                .await
                .refused(status, code);
            http.post("/v1/streams")
                .basin("test-basin")
                .json(&json!({"stream": "other", "config": config}))
                .send()
                .await
                .refused(status, code);
            http.patch("/v1/streams/orders")
                .basin("test-basin")
                .json(&config)
                .send()
                .await
                .refused(status, code);
            http.patch("/v1/basins/test-basin")
                .json(&json!({"default_stream_config": config}))
                .send()
                .await
                .refused(status, code);
            http.put("/v1/basins/other-basin")
                .json(&json!({"config": {"default_stream_config": config}}))
                .send()
                .await
                .refused(status, code);
        }
        http.get("/v1/streams/other")
            .basin("test-basin")
            .send()
            .await
            .refused(404, "stream_not_found");
        http.get("/v1/basins/other-basin")
            .send()
            .await
            .refused(404, "basin_not_found");
        let config = http.get("/v1/basins/test-basin").send().await.expect(200);
        assert_eq!(config.json()["default_stream_config"], json!(null));
    }
    // Extremely large ages do no harm.
    for age in [u64::MAX, u64::MAX / 1000, 1 << 53] {
        let answer = server
            .http1()
            .put(&format!("/v1/streams/aged-{age}"))
            .basin("test-basin")
            .json(&json!({
                "retention_policy": {"age": age},
                "delete_on_empty": {"min_age_secs": age},
            }))
            .send()
            .await;
        assert_eq!(answer.status, 201, "{}", answer.text());
        server
            .http1()
            .post(&format!("/v1/streams/aged-{age}/records"))
            .basin("test-basin")
            .json(&json!({"records": [{"body": "x"}]}))
            .send()
            .await
            .expect(200);
    }
    tokio::time::sleep(std::time::Duration::from_millis(200)).await;
    for age in [u64::MAX, u64::MAX / 1000, 1 << 53] {
        let read = server
            .http1()
            .get(&format!("/v1/streams/aged-{age}/records?seq_num=0"))
            .basin("test-basin")
            .send()
            .await
            .expect(200);
        assert_eq!(read.json()["records"].as_array().unwrap().len(), 1);
    }
    untouched(&server, &stream).await;
}
