//! Names of basins and streams.

use serde_json::json;

use crate::support::Server;
use crate::support::http::TRANSPORTS;
use crate::support::sdk;

/// A name as a path segment: every reserved byte is percent-encoded.
fn encoded(name: &str) -> String {
    use std::fmt::Write as _;
    let mut path = String::new();
    for byte in name.bytes() {
        if byte.is_ascii_alphanumeric() || b"-_~".contains(&byte) {
            path.push(char::from(byte));
        } else {
            write!(path, "%{byte:02X}").unwrap();
        }
    }
    path
}

#[tokio::test]
async fn a_basin_has_8_to_48_lowercase_letters_digits_and_inner_hyphens() {
    let server = Server::fresh().await;
    let longest = "a".repeat(48);
    for good in ["8letters", "0-1-2-3-4", "a--------b", &longest] {
        server
            .http1()
            .put(&format!("/v1/basins/{good}"))
            .send()
            .await
            .expect(201);
    }
    let too_long = "a".repeat(49);
    for transport in TRANSPORTS {
        let http = server.http(transport);
        for bad in [
            "7letter",
            "a",
            too_long.as_str(),
            "Uppercase",
            "under_score",
            "with.dot.in",
            "-begins-so",
            "ends-so-x-",
            "with space",
            "slash/slash",
            "umlaut-\u{e4}\u{f6}\u{fc}",
            "\u{1F600}\u{1F600}\u{1F600}",
            "nul-\0-nul",
            "new\nline-x",
        ] {
            http.put(&format!("/v1/basins/{}", encoded(bad)))
                .send()
                .await
                .refused(400, "bad_path");
            http.get(&format!("/v1/basins/{}", encoded(bad)))
                .send()
                .await
                .refused(400, "bad_path");
            http.post("/v1/basins")
                .json(&json!({"basin": bad}))
                .send()
                .await
                .refused(400, "bad_json");
            if bad.bytes().all(|byte| (b' '..0x7f).contains(&byte)) {
                http.get("/v1/streams")
                    .basin(bad)
                    .send()
                    .await
                    .refused(400, "bad_header");
            }
        }
        http.get("/v1/streams")
            .basin("")
            .send()
            .await
            .refused(400, "bad_header");
        for query in [
            "prefix=UPPER",
            "prefix=-x",
            "start_after=under_score",
            "limit=-1",
            "limit=many",
            "limit=99999999999999999999",
        ] {
            http.get(&format!("/v1/basins?{query}"))
                .send()
                .await
                .refused(400, "bad_query");
        }
    }
    let basins = server.http1().get("/v1/basins").send().await.expect(200);
    assert_eq!(basins.json()["basins"].as_array().unwrap().len(), 4);
}

#[tokio::test]
async fn a_stream_has_1_to_512_bytes_of_anything_but_nul() {
    let server = Server::fresh().await;
    sdk::basin(&server.sdk(), "test-basin").await;
    let long = "\u{1F600}".repeat(128);
    let good = [
        "a",
        "...",
        ".hidden",
        "with space",
        "a/b/c",
        "/",
        "//",
        "a%2Fb",
        "%",
        "%00",
        "100%",
        "a+b&c=d?e#f",
        "records",
        "records/tail",
        "tab\tnewline\nreturn\r\u{1}",
        "\u{540d}\u{524d}",
        "e\u{301}",
        "\u{e9}",
        "\u{feff}",
        "Upper",
        "upper",
        long.as_str(),
    ];
    for (i, transport) in TRANSPORTS.into_iter().enumerate() {
        let http = server.http(transport);
        for name in good {
            let path = format!("/v1/streams/{}", encoded(name));
            let created = http.put(&path).basin("test-basin").send().await;
            let created = created.expect(if i == 0 { 201 } else { 200 });
            assert_eq!(created.json()["name"], *name);
            let ack = http
                .post(&format!("{path}/records"))
                .basin("test-basin")
                .json(&json!({"records": [{"body": name}]}))
                .send()
                .await
                .expect(200)
                .json();
            assert_eq!(ack["start"]["seq_num"], i, "{name:?} shares a stream");
            let read = http
                .get(&format!("{path}/records?seq_num={i}"))
                .basin("test-basin")
                .send()
                .await
                .expect(200)
                .json();
            assert_eq!(read["records"][0]["body"], *name);
        }
        let listed = http
            .get("/v1/streams")
            .basin("test-basin")
            .send()
            .await
            .expect(200)
            .json();
        let listed: Vec<&str> = listed["streams"]
            .as_array()
            .unwrap()
            .iter()
            .map(|s| s["name"].as_str().unwrap())
            .collect();
        let mut sorted = good.to_vec();
        sorted.sort_unstable();
        assert_eq!(listed, sorted);
    }

    let too_long = "x".repeat(513);
    for transport in TRANSPORTS {
        let http = server.http(transport);
        for bad in [too_long.as_str(), "a\0b", "\0", ".", ".."] {
            let path = encoded(bad);
            for request in [
                http.put(&format!("/v1/streams/{path}")),
                http.get(&format!("/v1/streams/{path}")),
                http.get(&format!("/v1/streams/{path}/records")),
                http.get(&format!("/v1/streams/{path}/records/tail")),
                http.post(&format!("/v1/streams/{path}/records"))
                    .json(&json!({"records": [{"body": "x"}]})),
            ] {
                request
                    .basin("test-basin")
                    .send()
                    .await
                    .refused(400, "bad_path");
            }
            http.post("/v1/streams")
                .basin("test-basin")
                .json(&json!({"stream": bad}))
                .send()
                .await
                .refused(400, "bad_json");
        }
        http.post("/v1/streams")
            .basin("test-basin")
            .json(&json!({"stream": ""}))
            .send()
            .await
            .refused(400, "bad_json");
        for path in ["%FF", "%C3%28", "a%ED%A0%80b"] {
            http.put(&format!("/v1/streams/{path}"))
                .basin("test-basin")
                .send()
                .await
                .refused(400, "bad_path");
        }
        for query in ["prefix=%00", "start_after=a%00b", "limit=x"] {
            http.get(&format!("/v1/streams?{query}"))
                .basin("test-basin")
                .send()
                .await
                .refused(400, "bad_query");
        }
    }
    let listed = server
        .http1()
        .get("/v1/streams")
        .basin("test-basin")
        .send()
        .await
        .expect(200)
        .json();
    let listed = listed["streams"].as_array().unwrap().len();
    assert_eq!(listed, good.len(), "a bad name made a stream");
}
