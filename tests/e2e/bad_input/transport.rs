//! Bytes that are not HTTP, and HTTP at its limits.

use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::{orders, untouched};
use crate::support::{Server, soon};

/// Sends bytes on a new connection, closes its sending side, and returns the answer.
async fn raw(server: &Server, bytes: &[u8]) -> String {
    let mut connection = TcpStream::connect(server.address()).await.unwrap();
    // The server may close before it has read everything.
    let _ = connection.write_all(bytes).await;
    let _ = connection.shutdown().await;
    let mut answer = Vec::new();
    let read = connection.read_to_end(&mut answer);
    let _ = tokio::time::timeout(Duration::from_secs(10), read)
        .await
        .expect("the connection is closed");
    String::from_utf8_lossy(&answer).into_owned()
}

fn append(head: &str, body: &str) -> Vec<u8> {
    format!(
        "POST /v1/streams/orders/records HTTP/1.1\r\nhost: localhost\r\ns2-basin: test-basin\r\n\
         content-type: application/json\r\n{head}\r\n{body}"
    )
    .into_bytes()
}

const BODY: &str = r#"{"records":[{"body":"x"}]}"#;

#[tokio::test]
async fn garbage_is_answered_or_cut_off_and_does_no_harm() {
    let (server, stream) = orders().await;
    let huge_header = format!("x-long: {}\r\n", "x".repeat(1_000_000));
    let many_headers: String = (0..5000).map(|i| format!("x-{i}: y\r\n")).collect();
    let chunk = |size: &str| {
        let body = format!("{size}\r\n{BODY}\r\n0\r\n\r\n");
        append("transfer-encoding: chunked\r\n", &body)
    };
    for bytes in [
        b"".to_vec(),
        b"\r\n\r\n\r\n".to_vec(),
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03".to_vec(),
        vec![0; 10_000],
        vec![0xff; 10_000],
        b"GET /health\r\n\r\n".to_vec(),
        b"GET /health HTTP/9.9\r\n\r\n".to_vec(),
        b"GET /health HTTP/1.1\nhost x\n\n".to_vec(),
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\xff\xff\xff\xff\xff\xff".to_vec(),
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\nGET / HTTP/1.1\r\n\r\n".to_vec(),
        b"PRI * HTTP/2.0\r\n\r\nXX\r\n\r\n".to_vec(),
        append(&huge_header, ""),
        append(&many_headers, ""),
        append("content-length: -1\r\n", BODY),
        append("content-length: 5\r\ncontent-length: 6\r\n", BODY),
        append("content-length: 99999999999999999999\r\n", BODY),
        append("content-length: 1000\r\n", BODY),
        append("content-length: 5\r\n", BODY),
        append("content-length: 5\r\ntransfer-encoding: chunked\r\n", BODY),
        append("transfer-encoding: gzip\r\n", BODY),
        chunk("ffffffffffffffffff"),
        chunk("-1"),
        chunk("zz"),
        chunk("1000"),
        append("transfer-encoding: chunked\r\n", "5\r\nabc"),
    ] {
        let answer = raw(&server, &bytes).await;
        let status: Option<u16> = answer
            .split_ascii_whitespace()
            .nth(1)
            .and_then(|status| status.parse().ok());
        // No answer, frames of HTTP/2, or an error; never a success.
        if let Some(status) = status.filter(|_| answer.starts_with("HTTP/1")) {
            let shown: String = answer.chars().take(300).collect();
            assert!((400..500).contains(&status), "{shown}");
        }
    }
    untouched(&server, &stream).await;
}

#[tokio::test]
async fn a_refusal_also_reaches_a_client_that_sends_everything_before_it_listens() {
    let (server, stream) = orders().await;
    let too_large = format!(r#"{{"records":[{{"body":"{}"}}]}}"#, "x".repeat(12 << 20));
    let bytes = append(
        &format!("content-length: {}\r\n", too_large.len()),
        &too_large,
    );
    for _ in 0..10 {
        let mut connection = TcpStream::connect(server.address()).await.unwrap();
        connection.write_all(&bytes).await.unwrap();
        let mut answer = vec![0; 4096];
        let read = soon("an answer", connection.read(&mut answer)).await;
        let answer = String::from_utf8_lossy(&answer[..read.unwrap()]).into_owned();
        assert!(answer.starts_with("HTTP/1.1 400"), "{answer}");
        assert!(answer.contains(r#""code":"bad_json""#), "{answer}");
        // The connection can still be used.
        connection
            .write_all(b"GET /health HTTP/1.1\r\nhost: localhost\r\n\r\n")
            .await
            .unwrap();
        let mut health = vec![0; 4096];
        let read = soon("an answer", connection.read(&mut health)).await;
        assert!(health[..read.unwrap()].starts_with(b"HTTP/1.1 200"));
    }
    untouched(&server, &stream).await;
}

#[tokio::test]
async fn a_client_that_asks_before_it_sends_is_told_to_go_on() {
    let (server, stream) = orders().await;
    let mut connection = TcpStream::connect(server.address()).await.unwrap();
    let head = append(
        &format!("expect: 100-continue\r\ncontent-length: {}\r\n", BODY.len()),
        "",
    );
    connection.write_all(&head).await.unwrap();
    let mut answer = vec![0; 4096];
    let read = soon("a word", connection.read(&mut answer)).await.unwrap();
    let word = String::from_utf8_lossy(&answer[..read]).into_owned();
    assert!(word.starts_with("HTTP/1.1 100"), "{word}");
    connection.write_all(BODY.as_bytes()).await.unwrap();
    let read = soon("an answer", connection.read(&mut answer)).await;
    assert!(answer[..read.unwrap()].starts_with(b"HTTP/1.1 200"));
    assert_eq!(stream.check_tail().await.unwrap().seq_num, 1);
}

#[tokio::test]
async fn a_request_that_breaks_off_appends_nothing() {
    let (server, stream) = orders().await;
    for length in [BODY.len() + 1, BODY.len() + 1_000_000] {
        for wait in [false, true] {
            let mut connection = TcpStream::connect(server.address()).await.unwrap();
            let bytes = append(&format!("content-length: {length}\r\n"), BODY);
            connection.write_all(&bytes).await.unwrap();
            if wait {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            drop(connection);
        }
    }
    tokio::time::sleep(Duration::from_millis(100)).await;
    untouched(&server, &stream).await;
}

#[tokio::test]
async fn requests_one_behind_the_other_on_one_connection_are_all_answered_in_order() {
    let (server, stream) = orders().await;
    let mut bytes = Vec::new();
    for _ in 0..50 {
        bytes.extend(append(&format!("content-length: {}\r\n", BODY.len()), BODY));
    }
    let mut connection = TcpStream::connect(server.address()).await.unwrap();
    connection.write_all(&bytes).await.unwrap();
    let mut answer = String::new();
    let mut starts: Vec<u64> = Vec::new();
    while starts.len() < 50 {
        let mut piece = vec![0; 10_000];
        let read = soon("more answers", connection.read(&mut piece)).await;
        answer.push_str(std::str::from_utf8(&piece[..read.unwrap()]).unwrap());
        assert_ne!(piece[0], 0, "the end came after {}", starts.len());
        starts = answer
            .split(r#"{"start":{"seq_num":"#)
            .skip(1)
            .filter_map(|rest| rest.split_once(','))
            .map(|(start, _)| start.parse().unwrap())
            .collect();
    }
    assert_eq!(starts, (0..50).collect::<Vec<_>>());
    assert_eq!(stream.check_tail().await.unwrap().seq_num, 50);
}
