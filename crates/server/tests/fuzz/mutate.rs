//! What becomes of good input on its way.

use std::io;

use axum::body::Body;
use bytes::Bytes;
use futures::StreamExt as _;
use http_body_util::StreamBody;
use hyper::body::Frame;
use rand::Rng;
use rand::seq::IndexedRandom as _;

use crate::generate::{self, once_in};

/// Changes bytes here and there, so many times.
pub fn bytes(rng: &mut impl Rng, bytes: &mut Vec<u8>, times: usize) {
    for _ in 0..times {
        let at = rng.random_range(0..=bytes.len());
        let span = {
            let most = match once_in(rng, 4) {
                true => 4096,
                false => 8,
            };
            at..(at + rng.random_range(0..=most)).min(bytes.len())
        };
        match rng.random_range(0..9) {
            0 | 1 => {
                if let Some(byte) = bytes.get_mut(at) {
                    *byte ^= 1 << rng.random_range(0..8);
                }
            }
            2 => {
                if let Some(byte) = bytes.get_mut(at) {
                    *byte = *[0, 1, 0x7f, 0x80, 0xff, b'"', b'{', b'\\']
                        .choose(rng)
                        .unwrap();
                }
            }
            3 => bytes.truncate(at),
            4 => drop(bytes.drain(span)),
            5 => {
                let more = generate::bytes(rng, 16);
                bytes.splice(at..at, more);
            }
            // A piece of it again, somewhere else.
            6 | 7 => {
                let piece = bytes[span].to_vec();
                let to = rng.random_range(0..=bytes.len());
                bytes.splice(to..to, piece);
            }
            _ => bytes.extend(generate::bytes(rng, 64)),
        }
    }
}

/// Changes text here and there, so many times; it stays ASCII if it was.
pub fn text(rng: &mut impl Rng, text: &mut String, times: usize) {
    let mut bytes = std::mem::take(text).into_bytes();
    for _ in 0..times {
        let at = rng.random_range(0..=bytes.len());
        match rng.random_range(0..4) {
            0 => drop(bytes.drain(at..(at + 2).min(bytes.len()))),
            1 => bytes.insert(at, rng.random_range(0x21..0x7f)),
            2 => {
                const PIECES: &[&[u8]] = &[
                    b"&",
                    b"=",
                    b"%",
                    b"%00",
                    b"%ff",
                    b"+",
                    b"-1",
                    b"99999999999999999999",
                    b"[]",
                    b"null",
                    b"true",
                    b"seq_num=1",
                    b"&count=",
                    b"1e3",
                    b"0x1",
                    b";",
                ];
                bytes.splice(at..at, PIECES.choose(rng).unwrap().to_vec());
            }
            _ => {
                if let Some(byte) = bytes.get_mut(at) {
                    *byte = rng.random_range(0x21..0x7f);
                }
            }
        }
    }
    *text = String::from_utf8(bytes).unwrap();
}

/// How a body arrives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Arrival {
    /// To its end.
    Whole,
    /// The connection breaks behind the last byte.
    BrokenOff,
}

/// A body that arrives in pieces of any size, with pauses, and then ends or breaks.
pub fn body(rng: &mut impl Rng, bytes: &[u8], arrival: Arrival) -> Body {
    /// One byte at a time takes long.
    const SMALL: usize = 4096;
    let most = match rng.random_range(0..4) {
        0 if bytes.len() <= SMALL => 1,
        1 => bytes.len() / 8 + 1,
        2 => bytes.len() / 64 + 3,
        _ => bytes.len() + 1,
    };
    let mut pieces: Vec<io::Result<Frame<Bytes>>> = Vec::new();
    let mut rest = bytes;
    while !rest.is_empty() {
        let (piece, after) = rest.split_at(rng.random_range(1..=most).min(rest.len()));
        pieces.push(Ok(Frame::data(Bytes::copy_from_slice(piece))));
        rest = after;
        if once_in(rng, 50) {
            pieces.push(Ok(Frame::data(Bytes::new())));
        }
    }
    match arrival {
        Arrival::BrokenOff => pieces.push(Err(io::ErrorKind::ConnectionReset.into())),
        Arrival::Whole if once_in(rng, 20) => {
            pieces.push(Ok(Frame::trailers(http::HeaderMap::new())));
        }
        Arrival::Whole => {}
    }
    let pauses = once_in(rng, 3);
    let pieces = futures::stream::iter(pieces).then(move |piece| async move {
        if pauses {
            tokio::task::yield_now().await;
        }
        piece
    });
    Body::new(StreamBody::new(pieces))
}
