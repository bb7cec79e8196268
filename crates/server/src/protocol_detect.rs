//! The first bytes of a connection.
//!
//! They distinguish HTTP/1.1 from HTTP/2 with prior knowledge, and both from TLS. hyper waits for them
//! without a limit, so a client that sends none would keep its place among the connections for ever. Here
//! they are awaited where the caller can set a limit, and are then passed on.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, ReadBuf};

/// What a client of HTTP/2 sends first.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// What a client of TLS sends first: a record of the handshake, of any version.
const CLIENT_HELLO: [u8; 2] = [22, 3];

/// What the first bytes of a connection show.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Protocol {
    /// HTTP/1.1, or nothing that is known.
    Http1,
    /// HTTP/2 with prior knowledge.
    Http2,
    /// TLS, within what should be HTTP.
    Tls,
}

/// A connection whose first bytes have arrived.
pub(crate) struct Opened<S> {
    first: Vec<u8>,
    /// How many of the first bytes were read again.
    passed: usize,
    stream: S,
}

/// Waits until the first bytes show which protocol the client uses.
///
/// # Errors
///
/// Those of reading.
pub(crate) async fn opened<S: AsyncRead + Unpin>(
    mut stream: S,
) -> io::Result<(Opened<S>, Protocol)> {
    let mut first = Vec::with_capacity(PREFACE.len());
    while first.len() < PREFACE.len() && PREFACE.starts_with(&first) {
        let missing = PREFACE.len() - first.len();
        let mut rest = (&mut stream).take(missing as u64);
        // At the end of the stream, hyper gets what was read, and reports what is missing.
        if rest.read_buf(&mut first).await? == 0 {
            break;
        }
    }
    let protocol = if first == PREFACE {
        Protocol::Http2
    } else if first.starts_with(&CLIENT_HELLO) {
        Protocol::Tls
    } else {
        Protocol::Http1
    };
    let opened = Opened {
        first,
        passed: 0,
        stream,
    };
    Ok((opened, protocol))
}

impl<S> Opened<S> {
    /// The connection, without the first bytes.
    pub(crate) fn into_inner(self) -> S {
        self.stream
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Opened<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        let rest = &this.first[this.passed..];
        if rest.is_empty() {
            return Pin::new(&mut this.stream).poll_read(cx, buf);
        }
        let count = rest.len().min(buf.remaining());
        buf.put_slice(&rest[..count]);
        this.passed += count;
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Opened<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, bytes)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
