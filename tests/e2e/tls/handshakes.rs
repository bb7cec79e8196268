//! Clients that do not get through the handshake.

use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::{failed, get_health};
use crate::support::tls::{self, TlsFiles};
use crate::support::{Server, Setup, eventually, soon};

/// A record of TLS with this content.
fn record(kind: u8, version: [u8; 2], content: &[u8]) -> Vec<u8> {
    let length = u16::try_from(content.len()).unwrap().to_be_bytes();
    [&[kind], &version[..], &length, content].concat()
}

/// A `ClientHello` of an old version, with the cipher suites that clients of that time offered.
fn client_hello(version: [u8; 2], suites: &[[u8; 2]]) -> Vec<u8> {
    let mut body = version.to_vec();
    body.extend([7; 32]);
    body.push(0);
    body.extend(u16::try_from(suites.len() * 2).unwrap().to_be_bytes());
    body.extend(suites.concat());
    body.extend([1, 0]);
    // Signature algorithms and groups, so that the version is what does not fit.
    let extensions = [
        &[0, 13, 0, 8, 0, 6, 4, 3, 8, 4, 4, 1][..],
        &[0, 10, 0, 6, 0, 4, 0, 29, 0, 23],
        &[0, 11, 0, 2, 1, 0],
    ]
    .concat();
    body.extend(u16::try_from(extensions.len()).unwrap().to_be_bytes());
    body.extend(extensions);
    let length = u32::try_from(body.len()).unwrap().to_be_bytes();
    record(22, [3, 1], &[&[1], &length[1..], &body].concat())
}

/// All that the server answers to these bytes until it closes the connection.
async fn answer(server: &Server, bytes: &[u8]) -> Vec<u8> {
    let mut connection = TcpStream::connect(server.address()).await.unwrap();
    connection.write_all(bytes).await.unwrap();
    let mut answer = Vec::new();
    // A connection that is reset has ended, too.
    let _ = soon("the end", connection.read_to_end(&mut answer)).await;
    answer
}

async fn polite_client_is_served(server: &Server, files: &TlsFiles) {
    let config = tls::client(&files.ca(), None);
    let connection = tls::connect(server.address(), &config, &["http/1.1"]).await;
    let answer = get_health(connection.unwrap()).await;
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
}

#[tokio::test]
async fn versions_before_1_2_are_refused_with_an_alert() {
    let files = TlsFiles::new();
    let server = Setup::with_tls(&files).start_fresh().await;
    // ECDHE with AES as in TLS 1.0, RSA, and the mark of a client that has fallen back.
    let suites = [[0xc0, 0x09], [0xc0, 0x13], [0x00, 0x2f], [0x56, 0x00]];
    for version in [[3, 0], [3, 1], [3, 2]] {
        let answer = answer(&server, &client_hello(version, &suites)).await;
        // A fatal alert.
        assert_eq!(
            (answer.first(), answer.get(5)),
            (Some(&21), Some(&2)),
            "{answer:?}"
        );
    }
    // A suite without forward secrecy, and one of 1.2 with 3DES.
    for suites in [&[[0x00, 0x9c]][..], &[[0xc0, 0x12]]] {
        let answer = answer(&server, &client_hello([3, 3], suites)).await;
        assert_eq!(
            (answer.first(), answer.get(5)),
            (Some(&21), Some(&2)),
            "{answer:?}"
        );
    }
    assert_eq!(failed(&server, "incompatible").await, 5);
    let line = server.logged("reason=\"incompatible\"").await;
    assert!(line.contains("TLS 1.2 is the oldest version"), "{line}");
    polite_client_is_served(&server, &files).await;
}

#[tokio::test]
async fn bytes_that_are_not_tls_are_answered_or_cut_off() {
    let files = TlsFiles::new();
    let server = Setup::with_tls(&files).start_fresh().await;
    let http = b"GET /health HTTP/1.1\r\nhost: localhost\r\n\r\n";
    let plain = answer(&server, http).await;
    let text = String::from_utf8(plain).unwrap();
    assert!(text.starts_with("HTTP/1.1 400 Bad Request\r\n"), "{text}");
    assert!(
        text.ends_with("this port speaks TLS: use https://\n"),
        "{text}"
    );
    let large = [
        &http[..http.len() - 2],
        b"content-length: 100000\r\n\r\n",
        &[b'x'; 50_000],
    ]
    .concat();
    let text = String::from_utf8(answer(&server, &large).await).unwrap();
    assert!(text.ends_with("use https://\n"), "{text}");
    let http2 = answer(
        &server,
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0",
    )
    .await;
    let http2 = String::from_utf8_lossy(&http2).into_owned();
    assert!(http2.ends_with("use https://"), "{http2}");
    assert_eq!(failed(&server, "cleartext").await, 3);

    let hello = client_hello([3, 3], &[[0xc0, 0x2b]]);
    for garbage in [
        &[0; 1000][..],
        &[0xff; 1000],
        &record(22, [3, 3], &[1, 0xff, 0xff, 0xff])[..],
        // The largest length that a record may claim, and a larger one.
        &record(22, [3, 3], &vec![0; 16_384]),
        &record(22, [3, 3], &vec![0; 65_535]),
        &record(23, [3, 3], b"GET / HTTP/1.1"),
        &[&record(22, [3, 3], &[]), &record(22, [3, 3], &[])[..]].concat(),
        // A heartbeat that claims more than it has.
        &[&hello[..], &record(24, [3, 3], &[1, 0x40, 0])].concat(),
    ] {
        let answer = answer(&server, garbage).await;
        assert!(
            answer.is_empty() || answer[0] == 21 || answer[0] == 22,
            "{answer:?}"
        );
    }
    polite_client_is_served(&server, &files).await;
}

#[tokio::test]
async fn tls_to_a_port_without_it_is_refused_and_logged() {
    let server = Server::fresh().await;
    let refused = answer(&server, &client_hello([3, 3], &[[0xc0, 0x2b]])).await;
    assert!(refused.starts_with(b"HTTP/1.1 400"), "{refused:?}");
    server
        .logged("a client speaks TLS to a port without TLS")
        .await;
    for _ in 0..200 {
        answer(&server, &client_hello([3, 3], &[[0xc0, 0x2b]])).await;
    }
    let logged = |line: &&String| line.contains("a client speaks TLS");
    let lines = server.log().iter().filter(logged).count();
    assert!(lines <= 151, "{lines} lines for 201 connections");
    let metrics = server.http1().get("/metrics").send().await.text();
    assert!(
        metrics.contains("esker_http_refused_total{reason=\"tls\"} 201"),
        "{metrics}"
    );
}

#[tokio::test]
async fn handshakes_that_do_not_go_on_end_in_time_and_leave_their_places() {
    let files = TlsFiles::new();
    let server = Setup::with_tls(&files)
        // Long enough for the handshake of a client that is slow, and not silent.
        .set("limits.header-timeout=2s")
        .set("limits.connections=8")
        .start_fresh()
        .await;
    let hello = client_hello([3, 3], &[[0xc0, 0x2b]]);
    let mut open = Vec::new();
    for begin in [&b""[..], &hello[..1], &hello[..20], &hello] {
        for _ in 0..4 {
            let mut connection = TcpStream::connect(server.address()).await.unwrap();
            connection.write_all(begin).await.unwrap();
            open.push(connection);
        }
    }
    for connection in &mut open {
        let mut answer = Vec::new();
        // The default is thirty seconds.
        let in_time = Duration::from_secs(25);
        let ended = tokio::time::timeout(in_time, connection.read_to_end(&mut answer)).await;
        assert!(ended.is_ok(), "still open");
    }
    eventually("the failures are counted", async || {
        (failed(&server, "timeout").await == 16).then_some(())
    })
    .await;
    // After the handshake, the first request has the same limit.
    let config = tls::client(&files.ca(), None);
    let silent = tls::connect(server.address(), &config, &["h2"])
        .await
        .unwrap();
    let mut silent = silent;
    let mut end = Vec::new();
    let _ = soon("the end", silent.read_to_end(&mut end)).await;
    polite_client_is_served(&server, &files).await;
}

#[tokio::test]
async fn a_client_speaks_the_http_that_it_has_agreed_to() {
    let files = TlsFiles::new();
    let server = Setup::with_tls(&files).start_fresh().await;
    let config = tls::client(&files.ca(), None);
    for (protocol, bytes) in [
        (
            "h2",
            &b"GET /health HTTP/1.1\r\nhost: localhost\r\n\r\n"[..],
        ),
        (
            "http/1.1",
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0",
        ),
    ] {
        let mut connection = tls::connect(server.address(), &config, &[protocol])
            .await
            .unwrap();
        connection.write_all(bytes).await.unwrap();
        connection.flush().await.unwrap();
        let mut answer = Vec::new();
        let _ = soon("the end", connection.read_to_end(&mut answer)).await;
        assert_eq!(answer, b"", "{protocol}");
    }
    let other = tls::connect(server.address(), &config, &["spdy/1"]).await;
    assert!(other.is_err());
    polite_client_is_served(&server, &files).await;
}

#[tokio::test]
async fn a_port_that_is_only_looked_at_is_no_failed_handshake() {
    let files = TlsFiles::new();
    let server = Setup::with_tls(&files).start_fresh().await;
    for _ in 0..3 {
        drop(TcpStream::connect(server.address()).await.unwrap());
    }
    polite_client_is_served(&server, &files).await;
    assert_eq!(failed(&server, "closed").await, 0);
    let plain = Setup::default().start_fresh().await;
    let metrics = plain.http1().get("/metrics").send().await.text();
    assert!(
        metrics.contains("esker_tls_handshakes_total 0"),
        "{metrics}"
    );
}
