//! The first bytes of a connection.
//!
//! They distinguish HTTP/1.1 from HTTP/2 with prior knowledge. hyper waits for them without a limit, so a
//! client that sends none would keep its place among the connections for ever. Here they are awaited
//! where the caller can set a limit, and are then passed on.

use std::io::Cursor;

use tokio::io::{AsyncReadExt as _, Chain, Join};
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};

/// What a client of HTTP/2 sends first.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// A connection whose first bytes have arrived.
pub(crate) type Opened = Join<Chain<Cursor<Vec<u8>>, OwnedReadHalf>, OwnedWriteHalf>;

/// Waits until the first bytes show which HTTP the client uses; returns whether it is HTTP/2.
///
/// # Errors
///
/// Those of reading.
pub(crate) async fn opened(mut stream: TcpStream) -> std::io::Result<(Opened, bool)> {
    let mut first = Vec::with_capacity(PREFACE.len());
    while first.len() < PREFACE.len() && PREFACE.starts_with(&first) {
        let missing = PREFACE.len() - first.len();
        let mut rest = (&mut stream).take(missing as u64);
        // At the end of the stream, hyper gets what was read, and reports what is missing.
        if rest.read_buf(&mut first).await? == 0 {
            break;
        }
    }
    let is_http2 = first == PREFACE;
    let (reader, writer) = stream.into_split();
    let opened = tokio::io::join(Cursor::new(first).chain(reader), writer);
    Ok((opened, is_http2))
}
