//! HTTP/1.1: requests with two lengths, headers within values, and other versions.

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::{assert_bounded, polite_client_is_served};
use crate::support::{Server, sdk, soon};

const APPEND: &str = "POST /v1/streams/orders/records HTTP/1.1\r\nhost: localhost\r\ns2-basin: test-basin\r\n\
                      content-type: application/json\r\n";
const BODY: &str = r#"{"records":[{"body":"x"}]}"#;
/// What an attacker hides in the body of another request.
const SMUGGLED: &str = "DELETE /v1/basins/test-basin HTTP/1.1\r\nhost: localhost\r\n\r\n";

/// All that the server answers to these bytes.
async fn answers(server: &Server, bytes: &[u8]) -> String {
    let mut connection = TcpStream::connect(server.address()).await.unwrap();
    // The server may close before it has read everything.
    let _ = connection.write_all(bytes).await;
    let mut answer = vec![0; 64 * 1024];
    let first = soon("an answer", connection.read(&mut answer)).await;
    answer.truncate(first.unwrap_or(0));
    // Not before: an end without an answer would be one of the client.
    let _ = connection.shutdown().await;
    let _ = soon("the end", connection.read_to_end(&mut answer)).await;
    String::from_utf8_lossy(&answer).into_owned()
}

/// The statuses of the answers.
fn statuses(answers: &str) -> Vec<&str> {
    let starts = answers.split("HTTP/1.1 ").skip(1);
    starts.filter_map(|rest| rest.get(..3)).collect()
}

#[tokio::test]
async fn a_request_with_two_lengths_is_refused_and_nothing_in_it_is_another_request() {
    let server = Server::fresh().await;
    let stream = sdk::stream(&sdk::basin(&server.sdk(), "test-basin").await, "orders").await;
    let length = BODY.len();
    let hex = format!("{length:x}");
    let chunked = format!("{hex}\r\n{BODY}\r\n0\r\n\r\n");
    let long = length + SMUGGLED.len();
    let mut appended = 0;
    for (head, body) in [
        (
            format!("content-length: {length}\r\ntransfer-encoding: chunked\r\n"),
            format!("{chunked}{SMUGGLED}"),
        ),
        (
            format!("transfer-encoding: chunked\r\ncontent-length: {long}\r\n"),
            format!("{chunked}{SMUGGLED}"),
        ),
        (
            format!("content-length: {length}\r\ncontent-length: {long}\r\n"),
            format!("{BODY}{SMUGGLED}"),
        ),
        (
            format!("content-length: {length}, {long}\r\n"),
            format!("{BODY}{SMUGGLED}"),
        ),
        (
            format!("content-length: +{length}\r\n"),
            format!("{BODY}{SMUGGLED}"),
        ),
        (
            format!("content-length: 0x{hex}\r\n"),
            format!("{BODY}{SMUGGLED}"),
        ),
        (
            format!("content-length : {length}\r\n"),
            format!("{BODY}{SMUGGLED}"),
        ),
        (
            format!("content-length:\r\n {length}\r\n"),
            format!("{BODY}{SMUGGLED}"),
        ),
        (
            format!("x: y\r\n content-length: {length}\r\n"),
            format!("{BODY}{SMUGGLED}"),
        ),
        (
            "transfer-encoding: chunked, identity\r\n".into(),
            format!("{chunked}{SMUGGLED}"),
        ),
        (
            "transfer-encoding: identity\r\n".into(),
            format!("{chunked}{SMUGGLED}"),
        ),
        (
            "transfer-encoding: xchunked\r\n".into(),
            format!("{chunked}{SMUGGLED}"),
        ),
        (
            "transfer-encoding: \x0bchunked\r\n".into(),
            format!("{chunked}{SMUGGLED}"),
        ),
        (
            "transfer-encoding: chunked\r\ntransfer-encoding: x\r\n".into(),
            format!("{chunked}{SMUGGLED}"),
        ),
        (
            "transfer-encoding:\r\n chunked\r\n".into(),
            format!("{chunked}{SMUGGLED}"),
        ),
        (
            "transfer-encoding : chunked\r\n".into(),
            format!("{chunked}{SMUGGLED}"),
        ),
        // Sizes of chunks that others may read in another way.
        (
            "transfer-encoding: chunked\r\n".into(),
            format!("0x{chunked}{SMUGGLED}"),
        ),
        (
            "transfer-encoding: chunked\r\n".into(),
            format!("-{chunked}{SMUGGLED}"),
        ),
        (
            "transfer-encoding: chunked\r\n".into(),
            format!("{hex}\n{BODY}\r\n0\r\n\r\n{SMUGGLED}"),
        ),
        (
            "transfer-encoding: chunked\r\n".into(),
            format!("{hex}\r\n{BODY}XX0\r\n\r\n{SMUGGLED}"),
        ),
        (
            "transfer-encoding: chunked\r\n".into(),
            format!("1{:0>16}\r\n{BODY}\r\n0\r\n\r\n{SMUGGLED}", "0"),
        ),
    ] {
        let sent = format!("{APPEND}{head}\r\n{body}");
        let answer = answers(&server, sent.as_bytes()).await;
        let statuses = statuses(&answer);
        let first = statuses.first().copied().unwrap_or("closed");
        // As RFC 9112 has it: of two kinds of length the chunks count, and the connection ends.
        let both = head.contains("content-length") && head.contains("transfer-encoding");
        appended += u64::from(both);
        let expected: &[_] = if both {
            &["200"]
        } else {
            &["400", "501", "closed"]
        };
        assert!(expected.contains(&first), "{head:?}: {answer}");
        // The answer to the hidden request would be a second one.
        assert!(statuses.len() <= 1, "{head:?}: {answer}");
    }
    // The basin is there, and has what was sent in chunks.
    assert_eq!(stream.check_tail().await.unwrap().seq_num, appended);
    polite_client_is_served(&server).await;
}

#[tokio::test]
async fn no_header_of_an_answer_comes_from_a_request() {
    let server = Server::fresh().await;
    sdk::basin(&server.sdk(), "test-basin").await;
    let injected = "%0d%0aset-cookie:%20stolen=1%0d%0a%0d%0a<script>";
    for target in [
        format!("/v1/basins/{injected}"),
        format!("/v1/streams/{injected}/records"),
        format!("/{injected}"),
        format!("/esker/v1/partitions/{injected}"),
        format!("/v1/basins?prefix={injected}"),
        format!("/v1/streams/a?{injected}"),
    ] {
        for method in ["GET", "PUT", "DELETE"] {
            let request = format!(
                "{method} {target} HTTP/1.1\r\nhost: localhost\r\ns2-basin: test-basin\r\n\
                 content-type: application/json\r\ncontent-length: 0\r\n\r\n"
            );
            let answer = answers(&server, request.as_bytes()).await;
            let (head, _) = answer.split_once("\r\n\r\n").expect("an answer");
            assert!(!head.to_lowercase().contains("set-cookie"), "{answer}");
            assert!(!head.contains("text/html"), "{answer}");
            assert_eq!(statuses(&answer).len(), 1, "{answer}");
        }
    }
    // In headers, bytes that end a line or a text are refused before they mean anything.
    for byte in ["\r", "\n", "\0", "\x0b\r"] {
        let request = format!(
            "GET /v1/streams HTTP/1.1\r\nhost: localhost\r\ns2-basin: a{byte}set-cookie: b\r\n\r\n"
        );
        let answer = answers(&server, request.as_bytes()).await;
        assert!(!answer.starts_with("HTTP/1.1 200"), "{byte:?}: {answer}");
        assert!(
            !answer.to_lowercase().contains("\r\nset-cookie"),
            "{byte:?}: {answer}"
        );
    }
    polite_client_is_served(&server).await;
}

#[tokio::test]
async fn no_request_changes_the_protocol_of_its_connection() {
    let server = Server::fresh().await;
    let upgrade = "GET /health HTTP/1.1\r\nhost: localhost\r\nconnection: upgrade, http2-settings\r\n\
                   upgrade: h2c\r\nhttp2-settings: AAMAAABkAAQAAP__\r\n\r\n";
    let answer = answers(&server, upgrade.as_bytes()).await;
    assert_eq!(statuses(&answer), ["200"], "{answer}");
    let websocket = upgrade.replace("h2c", "websocket");
    assert_eq!(
        statuses(&answers(&server, websocket.as_bytes()).await),
        ["200"]
    );
    let connect = "CONNECT example.com:443 HTTP/1.1\r\nhost: localhost\r\n\r\n";
    let answer = answers(&server, connect.as_bytes()).await;
    assert!(!answer.starts_with("HTTP/1.1 2"), "{answer}");
    let trace = "TRACE /health HTTP/1.1\r\nhost: localhost\r\nauthorization: Bearer secret\r\n\r\n";
    let answer = answers(&server, trace.as_bytes()).await;
    assert!(!answer.starts_with("HTTP/1.1 2"), "{answer}");
    assert!(!answer.contains("secret"), "{answer}");
    polite_client_is_served(&server).await;
}

#[tokio::test]
async fn a_body_that_names_several_codings_is_refused() {
    let server = Server::fresh().await;
    let stream = sdk::stream(&sdk::basin(&server.sdk(), "test-basin").await, "orders").await;
    let before = server.resident_bytes();
    let zeros = vec![b' '; 8 << 20];
    let inner = crate::support::codec::encode("gzip", &zeros).await;
    let nested = crate::support::codec::encode("gzip", &inner).await;
    let http = server.http1();
    for codings in [
        &["gzip", "zstd"][..],
        &["gzip, gzip"],
        &["gzip", "gzip"],
        &["gzip, zstd"],
    ] {
        let mut request = http
            .post("/v1/streams/orders/records")
            .basin("test-basin")
            .header("content-type", "application/json")
            .body(nested.clone());
        for coding in codings {
            request = request.header("content-encoding", coding);
        }
        let answer = request.send().await;
        assert!(
            answer.status.is_client_error(),
            "{codings:?}: {}",
            answer.text()
        );
    }
    assert_bounded(&server, before);
    assert_eq!(stream.check_tail().await.unwrap().seq_num, 0);
    polite_client_is_served(&server).await;
}
