//! HTTP/2: requests that are malformed, and floods of frames.

use std::time::Duration;

use super::frames::{
    CONTINUATION, Connection, DATA, END_HEADERS, END_STREAM, HEADERS, Outcome, PING, RST_STREAM,
    SETTINGS, frame, get, header, headers,
};
use super::{assert_bounded, polite_client_is_served};
use crate::support::{Server, Setup, sdk};

/// How long a connection that floods may live: the bound of a slow machine, not of the server.
const IN_TIME: Duration = Duration::from_secs(30);

#[tokio::test]
async fn malformed_requests_are_refused_and_never_handled() {
    let server = Server::fresh().await;
    let stream = sdk::stream(&sdk::basin(&server.sdk(), "test-basin").await, "orders").await;
    let method = (":method", "POST");
    let scheme = (":scheme", "http");
    let authority = (":authority", "localhost");
    let path = (":path", "/v1/streams/orders/records");
    let basin = ("s2-basin", "test-basin");
    let kind = ("content-type", "application/json");
    let good = [method, scheme, authority, path, basin, kind];
    let with = |more: &[(&'static str, &'static str)]| headers(&[&good[..], more].concat());
    for (name, block) in [
        (
            "transfer-encoding",
            with(&[("transfer-encoding", "chunked")]),
        ),
        ("connection", with(&[("connection", "keep-alive")])),
        ("keep-alive", with(&[("keep-alive", "timeout=5")])),
        ("proxy-connection", with(&[("proxy-connection", "close")])),
        ("upgrade", with(&[("upgrade", "h2c")])),
        ("te", with(&[("te", "gzip")])),
        ("upper case", with(&[("X-Upper", "a")])),
        ("space in a name", with(&[("x y", "a")])),
        ("colon in a name", with(&[("x:y", "a")])),
        (
            "line end in a value",
            with(&[("x-a", "b\r\nset-cookie: c")]),
        ),
        ("nul in a value", with(&[("x-a", "b\0c")])),
        (
            "pseudo header last",
            headers(&[method, scheme, authority, basin, kind, path]),
        ),
        (
            "pseudo header twice",
            headers(&[method, method, scheme, authority, path, basin, kind]),
        ),
        (
            "two paths",
            headers(&[
                method,
                scheme,
                authority,
                path,
                (":path", "/health"),
                basin,
                kind,
            ]),
        ),
        (
            "unknown pseudo header",
            headers(&[
                method,
                scheme,
                authority,
                path,
                (":admin", "1"),
                basin,
                kind,
            ]),
        ),
        (
            "pseudo header of an answer",
            headers(&[
                method,
                scheme,
                authority,
                path,
                (":status", "200"),
                basin,
                kind,
            ]),
        ),
        (
            "no method",
            headers(&[scheme, authority, path, basin, kind]),
        ),
        (
            "no path",
            headers(&[method, scheme, authority, basin, kind]),
        ),
        (
            "empty path",
            headers(&[method, scheme, authority, (":path", ""), basin, kind]),
        ),
        (
            "path with a line end",
            headers(&[
                method,
                scheme,
                authority,
                (":path", "/a\r\nx: y"),
                basin,
                kind,
            ]),
        ),
        (
            "method with a line end",
            headers(&[
                (":method", "GET / HTTP/1.1\r\nx: y"),
                scheme,
                authority,
                path,
                basin,
                kind,
            ]),
        ),
        ("two hosts", with(&[("host", "127.0.0.1")])),
        ("foreign host", with(&[("host", "evil.example")])),
        (
            "foreign authority",
            headers(&[
                method,
                scheme,
                (":authority", "evil.example"),
                path,
                basin,
                kind,
            ]),
        ),
        (
            "user in the authority",
            headers(&[
                method,
                scheme,
                (":authority", "localhost@evil.example"),
                path,
                basin,
                kind,
            ]),
        ),
        (
            "two lengths",
            with(&[("content-length", "26"), ("content-length", "27")]),
        ),
        ("another length", with(&[("content-length", "5")])),
        ("length that is none", with(&[("content-length", "+26")])),
    ] {
        let mut connection = Connection::open(&server).await;
        let body = br#"{"records":[{"body":"x"}]}"#;
        connection
            .send(&frame(HEADERS, END_HEADERS, 1, &block))
            .await;
        connection.send(&frame(DATA, END_STREAM, 1, body)).await;
        let outcome = connection.outcome().await;
        assert!(
            !matches!(outcome, Outcome::Status(200..=399)),
            "{name}: {outcome:?}"
        );
    }
    assert_eq!(stream.check_tail().await.unwrap().seq_num, 0);
    // The same without a mistake, so that the mistakes are what was refused.
    let mut connection = Connection::open(&server).await;
    let body = br#"{"records":[{"body":"x"}]}"#;
    connection
        .send(&frame(HEADERS, END_HEADERS, 1, &with(&[])))
        .await;
    connection.send(&frame(DATA, END_STREAM, 1, body)).await;
    assert_eq!(connection.outcome().await, Outcome::Status(200));
    polite_client_is_served(&server).await;
}

#[tokio::test]
async fn requests_that_are_reset_at_once_end_the_connection() {
    let server = Server::fresh().await;
    let before = server.resident_bytes();
    for _ in 0..4 {
        let mut connection = Connection::open(&server).await;
        let mut sent = 0;
        // Twenty thousand requests, each taken back.
        'flood: for round in 0..200_u32 {
            let mut bytes = Vec::new();
            for number in 0..100 {
                let stream = 2 * (round * 100 + number) + 1;
                bytes.extend(frame(
                    HEADERS,
                    END_HEADERS | END_STREAM,
                    stream,
                    &get("/v1/basins"),
                ));
                bytes.extend(frame(RST_STREAM, 0, stream, &[0, 0, 0, 8]));
            }
            if !connection.send(&bytes).await {
                break 'flood;
            }
            sent += 100;
        }
        assert!(connection.ends(IN_TIME).await, "open after {sent} requests");
    }
    assert_bounded(&server, before);
    polite_client_is_served(&server).await;
}

#[tokio::test]
async fn a_list_of_headers_without_end_ends_the_connection() {
    let server = Server::fresh().await;
    let before = server.resident_bytes();
    // Many frames that continue, with headers, without any, and with one header that grows.
    let small = header("x-small", &"y".repeat(1000));
    for piece in [&small[..], &[]] {
        let mut connection = Connection::open(&server).await;
        connection
            .send(&frame(HEADERS, 0, 1, &get("/health")))
            .await;
        let many: Vec<u8> = (0..100)
            .flat_map(|_| frame(CONTINUATION, 0, 1, piece))
            .collect();
        for _ in 0..1000 {
            if !connection.send(&many).await {
                break;
            }
        }
        assert!(
            connection.ends(IN_TIME).await,
            "{} bytes a frame",
            piece.len()
        );
    }
    let mut connection = Connection::open(&server).await;
    connection
        .send(&frame(HEADERS, 0, 1, &get("/health")))
        .await;
    // A literal that claims to have 256 MiB.
    connection
        .send(&frame(
            CONTINUATION,
            0,
            1,
            &[0, 1, b'x', 127, 0x81, 0xff, 0xff, 0x7f],
        ))
        .await;
    for _ in 0..1000 {
        if !connection
            .send(&frame(CONTINUATION, 0, 1, &[b'y'; 16_384]))
            .await
        {
            break;
        }
    }
    assert!(connection.ends(IN_TIME).await);

    // A list that is whole, and larger than the server takes; and one that names a long header again and
    // again by its place in the table.
    let large = [get("/health"), header("x-large", &"y".repeat(64 * 1024))].concat();
    let mut bomb = get("/health");
    // With its place in the table, 62: a literal that is remembered.
    bomb.extend([0x40, 1, b'x', 127, 0xa1, 0x1e]);
    bomb.extend([b'y'; 4000]);
    bomb.extend([0xbe; 12_000]);
    for block in [large, bomb] {
        let outcome = outcome_of(&server, &block).await;
        assert!(
            !matches!(outcome, Outcome::Status(200..=399)),
            "{outcome:?}"
        );
    }
    assert_bounded(&server, before);
    polite_client_is_served(&server).await;
}

/// What the server answers to a request with these headers, in as many frames as they need.
async fn outcome_of(server: &Server, block: &[u8]) -> Outcome {
    let mut connection = Connection::open(server).await;
    let mut pieces = block.chunks(16_000).peekable();
    let mut kind = HEADERS;
    while let Some(piece) = pieces.next() {
        let end = if pieces.peek().is_none() {
            END_HEADERS
        } else {
            0
        };
        let flags = if kind == HEADERS {
            end | END_STREAM
        } else {
            end
        };
        connection.send(&frame(kind, flags, 1, piece)).await;
        kind = CONTINUATION;
    }
    connection.outcome().await
}

#[tokio::test]
async fn a_head_may_be_as_long_as_the_page_of_limits_has_it() {
    let server = Server::fresh().await;
    // Each header counts for 32 bytes beside its name and value; one may be long, or there may be many.
    let long = |bytes: usize| [get("/health"), header("x-long", &"y".repeat(bytes))].concat();
    let many = |count: usize| {
        let one = |number| header(&format!("x-{number:03}"), "y");
        [get("/health"), (0..count).flat_map(one).collect()].concat()
    };
    for (block, expected) in [
        (long(15_900), Outcome::Status(200)),
        (many(400), Outcome::Status(200)),
        // 431.
        (long(16_400), Outcome::Status(4)),
        (many(450), Outcome::Status(4)),
    ] {
        let outcome = outcome_of(&server, &block).await;
        assert_eq!(outcome, expected, "{} bytes", block.len());
    }
    polite_client_is_served(&server).await;
}

#[tokio::test]
async fn floods_of_frames_that_ask_for_an_answer_take_no_memory() {
    let server = Setup::default()
        .set("limits.header-timeout=1s")
        .set("limits.idle-timeout=1s")
        .start_fresh()
        .await;
    let before = server.resident_bytes();
    for piece in [
        frame(PING, 0, 0, &[7; 8]),
        frame(SETTINGS, 0, 0, &[]),
        frame(SETTINGS, 0, 0, &[0, 4, 0, 1, 0, 0]),
        // Empty pieces of a body, and what is not known.
        frame(0xb0, 0, 0, &[0; 64]),
    ] {
        let many: Vec<u8> = piece.repeat(1000);
        let mut connection = Connection::open(&server).await;
        // The client reads none of the answers.
        for _ in 0..1000 {
            let sent =
                tokio::time::timeout(Duration::from_millis(500), connection.stream.writable());
            if sent.await.is_err() {
                break;
            }
            match connection.stream.try_write(&many) {
                Ok(_) => {}
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
                Err(_) => break,
            }
        }
        assert_bounded(&server, before);
        assert!(connection.ends(IN_TIME).await, "{piece:?}");
    }
    let mut connection = Connection::open(&server).await;
    let post = headers(&[
        (":method", "POST"),
        (":scheme", "http"),
        (":authority", "localhost"),
        (":path", "/v1/streams/orders/records"),
        ("s2-basin", "test-basin"),
        ("content-type", "application/json"),
    ]);
    connection
        .send(&frame(HEADERS, END_HEADERS, 1, &post))
        .await;
    let empty = frame(DATA, 0, 1, &[]).repeat(1000);
    for _ in 0..200 {
        if !connection.send(&empty).await {
            break;
        }
    }
    assert_bounded(&server, before);
    drop(connection);
    polite_client_is_served(&server).await;
}
