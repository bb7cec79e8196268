//! Invalid frames of append sessions.

use bytes::Bytes;
use s2_api::v1::stream::proto::AppendAck;
use s2_api::v1::stream::s2s::CompressionAlgorithm;

use super::{orders, untouched};
use crate::support::codec;
use crate::support::frames::{self, Output};
use crate::support::http::TRANSPORTS;

const GZIP: u8 = 2 << 5;
const ZSTD: u8 = 1 << 5;
const TERMINAL: u8 = 0x80;

#[tokio::test]
async fn a_frame_that_is_none_ends_the_session_and_says_so() {
    let (server, stream) = orders().await;
    let good = prost::Message::encode_to_vec(&frames::input(["x"]));
    let mib = 1024 * 1024;
    let gzip_bomb = codec::encode("gzip", &vec![0; 64 * mib]).await;
    let zstd_bomb = codec::encode("zstd", &vec![0; 64 * mib]).await;
    let gzip = codec::encode("gzip", &good).await;
    let zstd = codec::encode("zstd", &good).await;
    let cases: Vec<(&str, Bytes)> = vec![
        ("no flags", Bytes::from_static(&[0, 0, 0])),
        (
            "longer than frames are",
            Bytes::from_static(&[0xff, 0xff, 0xff, 0]),
        ),
        (
            "one byte longer than frames are",
            Bytes::from_static(&[0x20, 0, 1, 0]),
        ),
        ("unknown compression", frames::raw_frame(0x60, &good)),
        ("terminal", frames::raw_frame(TERMINAL, b"\x01\xf4{}")),
        (
            "terminal without a status",
            frames::raw_frame(TERMINAL, b""),
        ),
        (
            "terminal, no text",
            frames::raw_frame(TERMINAL, b"\x00\xc8\xff\xff"),
        ),
        ("no message", frames::raw_frame(0, b"\xff\xff\xff")),
        (
            "half a message",
            frames::raw_frame(0, &good[..good.len() - 1]),
        ),
        ("gzip that is none", frames::raw_frame(GZIP, &good)),
        ("zstd that is none", frames::raw_frame(ZSTD, &good)),
        ("zstd called gzip", frames::raw_frame(GZIP, &zstd)),
        (
            "half a gzip",
            frames::raw_frame(GZIP, &gzip[..gzip.len() / 2]),
        ),
        (
            "half a zstd",
            frames::raw_frame(ZSTD, &zstd[..zstd.len() - 3]),
        ),
        ("gzip beyond the limit", frames::raw_frame(GZIP, &gzip_bomb)),
        ("zstd beyond the limit", frames::raw_frame(ZSTD, &zstd_bomb)),
        ("random bytes", Bytes::from(vec![0x11; 70_000])),
    ];
    for transport in TRANSPORTS {
        let http = server.http(transport);
        for (what, bytes) in &cases {
            let mut session = frames::append_session(&http, "test-basin", "orders").await;
            session.send(bytes.clone()).await;
            session
                .send(frames::frame(&frames::input(["behind"])))
                .await;
            session.finish();
            let outputs: Vec<Output<AppendAck>> = session.rest().await;
            let [Output::Error(400, body)] = &outputs[..] else {
                panic!("{what}: {outputs:?}");
            };
            assert_eq!(body["code"], "bad_frame", "{what}");
            assert!(
                body["message"].as_str().is_some_and(|m| m.len() > 5),
                "{what}"
            );
        }
    }
    assert!(server.resident_bytes() < 300 * mib as u64);
    untouched(&server, &stream).await;
}

#[tokio::test]
async fn a_session_that_ends_within_a_frame_ends_with_an_error() {
    let (server, stream) = orders().await;
    let frame = frames::frame(&frames::input(["x".repeat(100)]));
    for transport in TRANSPORTS {
        let http = server.http(transport);
        for cut in [1, 2, 3, 4, 50, frame.len() - 1] {
            let mut session = frames::append_session(&http, "test-basin", "orders").await;
            session.send(frame.slice(..cut)).await;
            session.finish();
            let outputs: Vec<Output<AppendAck>> = session.rest().await;
            let [Output::Error(400, body)] = &outputs[..] else {
                panic!("{cut}: {outputs:?}");
            };
            assert_eq!(body["code"], "bad_frame");
        }
    }
    untouched(&server, &stream).await;
}

#[tokio::test]
async fn the_largest_frames_are_taken() {
    let (server, stream) = orders().await;
    // 1 MiB of metered bytes whose encoding is larger: 1000 records with many short headers.
    let mut input = frames::input(vec![Bytes::new(); 1000]);
    for record in &mut input.records {
        let header = s2_api::v1::stream::proto::Header {
            name: Bytes::from_static(b"n"),
            value: Bytes::new(),
        };
        record.headers = vec![header; (1024 * 1024 / 1000 - 8) / 3];
    }
    let encoded = prost::Message::encoded_len(&input);
    assert!(encoded > 1_500_000, "{encoded}");
    let http = server.http2();
    let mut session = frames::append_session(&http, "test-basin", "orders").await;
    let mut sent = 0;
    for algorithm in [
        CompressionAlgorithm::None,
        CompressionAlgorithm::Gzip,
        CompressionAlgorithm::Zstd,
    ] {
        session.send(frames::compressed(algorithm, &input)).await;
        let ack = session.next().await.message();
        sent += 1000;
        assert_eq!(ack.end.unwrap().seq_num, sent);
    }
    let read = stream.read(crate::support::sdk::from_seq(0, 1000)).await;
    assert_eq!(read.unwrap().records.len(), 1000);
}
