//! Bodies that are too large, of another type, or nested without end.

use std::time::{Duration, Instant};

use serde_json::json;

use super::{RECORDS, orders, untouched};
use crate::support::codec;
use crate::support::frames;
use crate::support::http::TRANSPORTS;
use crate::support::{in_time, within};

const MIB: usize = 1024 * 1024;

#[tokio::test]
async fn a_body_beyond_the_limit_is_refused_also_when_it_was_compressed() {
    let (server, stream) = orders().await;
    let json = json!({"records": [{"body": "x".repeat(5 * MIB)}]}).to_string();
    let message = prost::Message::encode_to_vec(&frames::input([vec![b'x'; 5 * MIB]]));
    // 300 MiB of spaces, 300 KiB compressed.
    let spaces = vec![b' '; 300 * MIB];
    let before = server.resident_bytes();
    let mut bombs = Vec::new();
    for coding in ["gzip", "zstd"] {
        bombs.push((coding, codec::encode(coding, &spaces).await));
    }
    drop(spaces);
    for transport in TRANSPORTS {
        let http = server.http(transport);
        let post = |kind: &str| {
            http.post(RECORDS)
                .basin("test-basin")
                .header("content-type", kind)
        };
        post("application/json")
            .body(json.clone())
            .send()
            .await
            .refused(400, "bad_json");
        post("application/protobuf")
            .body(message.clone())
            .send()
            .await
            .refused(400, "bad_proto");
        http.put("/v1/streams/other")
            .basin("test-basin")
            .header("content-type", "application/json")
            .body(json.clone())
            .send()
            .await
            .refused(400, "bad_json");
        for (coding, bomb) in &bombs {
            in_time("a bomb is refused", async |_| {
                let started = Instant::now();
                post("application/json")
                    .header("content-encoding", coding)
                    .body(bomb.clone())
                    .send()
                    .await
                    .refused(400, "bad_json");
                post("application/protobuf")
                    .header("content-encoding", coding)
                    .body(bomb.clone())
                    .send()
                    .await
                    .refused(400, "bad_proto");
                within(started.elapsed(), Duration::from_secs(5))
            })
            .await;
        }
    }
    let grown = server.resident_bytes().saturating_sub(before);
    assert!(grown < 100 * MIB as u64, "{} MiB", grown / MIB as u64);
    untouched(&server, &stream).await;
}

#[tokio::test]
async fn nesting_without_end_is_refused() {
    let (server, stream) = orders().await;
    let depth = 200_000;
    let nested = format!("{}{}", "[".repeat(depth), "]".repeat(depth));
    let objects = format!("{}1{}", r#"{"a":"#.repeat(depth), "}".repeat(depth));
    for transport in TRANSPORTS {
        let http = server.http(transport);
        for body in [
            nested.clone(),
            objects.clone(),
            format!(r#"{{"records":[{{"body":{nested}}}]}}"#),
            format!(r#"{{"records":[{{"body":"x","headers":{nested}}}]}}"#),
            "[".repeat(depth),
        ] {
            http.post(RECORDS)
                .basin("test-basin")
                .header("content-type", "application/json")
                .body(body.clone())
                .send()
                .await
                .refused(400, "bad_json");
        }
        for body in [&nested, &format!(r#"{{"timestamping":{nested}}}"#)] {
            http.patch("/v1/basins/test-basin")
                .header("content-type", "application/json")
                .body(format!(r#"{{"default_stream_config":{body}}}"#))
                .send()
                .await
                .refused(400, "bad_json");
        }
        // Unknown fields are skipped, however deep they are.
        for body in [&nested, &objects] {
            http.put("/v1/streams/other")
                .basin("test-basin")
                .header("content-type", "application/json")
                .body(format!(r#"{{"unheard-of":{body}}}"#))
                .send()
                .await;
            http.get("/health").send().await.expect(200);
        }
    }
    // A message whose length is beyond its end, or that nests where nothing nests.
    let http = server.http2();
    for body in [
        &[0x0a, 0xff, 0xff, 0xff, 0xff, 0x0f][..],
        &[0x0a, 0x05, 0x12],
        &[0xff; 64],
        &[0x0b; 100_000],
        &[0x08],
    ] {
        http.post(RECORDS)
            .basin("test-basin")
            .header("content-type", "application/protobuf")
            .body(body.to_vec())
            .send()
            .await
            .refused(400, "bad_proto");
    }
    untouched(&server, &stream).await;
}

#[tokio::test]
async fn a_body_of_another_kind_than_it_says_is_refused() {
    let (server, stream) = orders().await;
    let json = r#"{"records":[{"body":"x"}]}"#;
    let message = prost::Message::encode_to_vec(&frames::input(["x"]));
    for transport in TRANSPORTS {
        let http = server.http(transport);
        let post = |kind: &str| {
            http.post(RECORDS)
                .basin("test-basin")
                .header("content-type", kind)
        };
        post("application/protobuf")
            .body(json)
            .send()
            .await
            .refused(400, "bad_proto");
        post("application/json")
            .body(message.clone())
            .send()
            .await
            .refused(400, "bad_json");
        for kind in [
            "text/plain",
            "application/xml",
            "application/octet-stream",
            "multipart/form-data; boundary=x",
            "not a type",
        ] {
            post(kind)
                .body(message.clone())
                .send()
                .await
                .refused(415, "bad_header");
        }
        // Empty protobuf is a batch without records.
        post("application/protobuf")
            .send()
            .await
            .refused(422, "invalid");
    }
    untouched(&server, &stream).await;
}

#[tokio::test]
async fn a_kind_may_be_written_in_more_than_one_way() {
    let (server, stream) = orders().await;
    let message = prost::Message::encode_to_vec(&frames::input(["x"]));
    let json = r#"{"records":[{"body":"x"}]}"#;
    let mut total = 0;
    for transport in TRANSPORTS {
        let http = server.http(transport);
        for kind in [
            "application/json",
            "application/json; charset=utf-8",
            "APPLICATION/JSON",
            "application/problem+json",
        ] {
            http.post(RECORDS)
                .basin("test-basin")
                .header("content-type", kind)
                .body(json)
                .send()
                .await
                .expect(200);
            total += 1;
        }
        for kind in [
            "application/protobuf",
            "application/x-protobuf",
            "Application/Protobuf",
        ] {
            http.post(RECORDS)
                .basin("test-basin")
                .header("content-type", kind)
                .body(message.clone())
                .send()
                .await
                .expect(200);
            total += 1;
        }
    }
    assert_eq!(stream.check_tail().await.unwrap().seq_num, total);
}
