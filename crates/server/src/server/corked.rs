//! Writes of a connection, collected while it is polled.
//!
//! A frame of HTTP/2 carries 16 KiB unless the client accepts larger ones, and the library writes and
//! flushes each by itself: 64 system calls for a MiB, each of which wakes the client. Here, what is written
//! during one poll of the connection is collected, [`MAX_CORKED`] bytes at most, and written when that
//! is reached or the poll has ended. Nothing waits for more to come: a poll ends when there is nothing
//! left to do.
//!
//! The memory is taken when something is written, and released when the socket has taken it. A thread
//! keeps one buffer for the next poll. Beyond [`MAX_BUFFERS`] of connections whose sockets take nothing,
//! writes go to the socket one by one.

use std::cell::Cell;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Bytes that are collected: eight frames. More would not fit into a processor's cache beside them.
pub(super) const MAX_CORKED: usize = 128 * 1024;

/// Buffers of all connections together: 32 MiB.
const MAX_BUFFERS: usize = 256;

/// How many buffers there are, without the spare ones.
static BUFFERS: AtomicUsize = AtomicUsize::new(0);

thread_local! {
    /// The buffer of the connection that this thread has polled last.
    static SPARE: Cell<Vec<u8>> = const { Cell::new(Vec::new()) };
}

/// A buffer of [`MAX_CORKED`] bytes, one of [`MAX_BUFFERS`].
struct Buffer(Vec<u8>);

impl Buffer {
    /// `None` if there are too many.
    fn new() -> Option<Buffer> {
        if BUFFERS.fetch_add(1, Ordering::Relaxed) >= MAX_BUFFERS {
            BUFFERS.fetch_sub(1, Ordering::Relaxed);
            return None;
        }
        let mut buffer = SPARE.take();
        buffer.reserve_exact(MAX_CORKED);
        Some(Buffer(buffer))
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        BUFFERS.fetch_sub(1, Ordering::Relaxed);
        let mut buffer = std::mem::take(&mut self.0);
        buffer.clear();
        // A thread that ends has none.
        let _ = SPARE.try_with(|spare| spare.set(buffer));
    }
}

/// A stream whose writes are collected. Both this and its [`Cork`] are used by the task of the
/// connection alone.
pub(super) struct Corked<S>(Arc<Mutex<Collected<S>>>);

/// Writes what was collected.
pub(super) struct Cork<S>(Arc<Mutex<Collected<S>>>);

struct Collected<S> {
    stream: S,
    buffer: Option<Buffer>,
    /// How many bytes of the buffer are written.
    written: usize,
    /// Whether the stream has to be flushed.
    is_dirty: bool,
}

/// Collects the writes of a stream, until [`Cork::poll_write_out`].
pub(super) fn corked<S>(stream: S) -> (Corked<S>, Cork<S>) {
    let collected = Arc::new(Mutex::new(Collected {
        stream,
        buffer: None,
        written: 0,
        is_dirty: false,
    }));
    (Corked(collected.clone()), Cork(collected))
}

impl<S: AsyncWrite + Unpin> Cork<S> {
    /// Writes what was collected, and flushes it. Pending if the socket takes no more now; the task is woken
    /// when it does.
    ///
    /// # Errors
    ///
    /// Those of writing.
    pub(super) fn poll_write_out(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut collected = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        collected.poll_flush(cx)
    }
}

impl<S: AsyncWrite + Unpin> Collected<S> {
    fn poll_write_out(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if let Some(Buffer(buffer)) = &self.buffer {
            while self.written < buffer.len() {
                let rest = &buffer[self.written..];
                match ready!(Pin::new(&mut self.stream).poll_write(cx, rest))? {
                    0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                    count => self.written += count,
                }
            }
        }
        self.buffer = None;
        self.written = 0;
        Poll::Ready(Ok(()))
    }

    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.is_dirty {
            ready!(self.poll_write_out(cx))?;
            ready!(Pin::new(&mut self.stream).poll_flush(cx))?;
            self.is_dirty = false;
        }
        Poll::Ready(Ok(()))
    }

    /// Collects as many bytes as there is space for.
    fn poll_collect(
        &mut self,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.is_dirty = true;
        if (self.buffer.as_ref()).is_some_and(|buffer| buffer.0.len() >= MAX_CORKED) {
            ready!(self.poll_write_out(cx))?;
        }
        if self.buffer.is_none() {
            self.buffer = Buffer::new();
        }
        let Some(Buffer(buffer)) = &mut self.buffer else {
            return Pin::new(&mut self.stream).poll_write_vectored(cx, slices);
        };
        let before = buffer.len();
        for slice in slices {
            let space = MAX_CORKED - buffer.len();
            buffer.extend_from_slice(&slice[..slice.len().min(space)]);
        }
        Poll::Ready(Ok(buffer.len() - before))
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Corked<S> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let mut collected = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        Pin::new(&mut collected.stream).poll_read(cx, buf)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Corked<S> {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(cx, &[IoSlice::new(bytes)])
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let mut collected = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        collected.poll_collect(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    /// What was collected is written when the poll of the connection has ended.
    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut collected = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        ready!(collected.poll_flush(cx))?;
        Pin::new(&mut collected.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt as _;
    use tokio::io::AsyncWriteExt as _;

    use super::*;

    /// Buffers are shared by the tests of the process.
    static BUFFERS_IN_USE: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());

    /// A socket that takes some bytes, and counts how often it is written to.
    #[derive(Default)]
    struct Socket {
        taken: Vec<u8>,
        writes: usize,
        flushes: usize,
        space: usize,
    }

    impl AsyncWrite for Socket {
        fn poll_write(
            mut self: Pin<&mut Self>,
            _: &mut Context<'_>,
            bytes: &[u8],
        ) -> Poll<io::Result<usize>> {
            let count = bytes.len().min(self.space);
            if count == 0 {
                return Poll::Pending;
            }
            self.writes += 1;
            self.space -= count;
            self.taken.extend_from_slice(&bytes[..count]);
            Poll::Ready(Ok(count))
        }

        fn poll_flush(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            self.flushes += 1;
            Poll::Ready(Ok(()))
        }

        fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
    }

    async fn write_out(cork: &Cork<Socket>) -> io::Result<()> {
        std::future::poll_fn(|cx| cork.poll_write_out(cx)).await
    }

    fn socket<T>(cork: &Cork<Socket>, at: impl FnOnce(&mut Socket) -> T) -> T {
        at(&mut cork.0.lock().unwrap().stream)
    }

    fn socket_with(space: usize) -> Socket {
        Socket {
            space,
            ..Socket::default()
        }
    }

    #[tokio::test]
    async fn frames_that_are_flushed_one_by_one_are_written_together() {
        let _one = BUFFERS_IN_USE.lock().await;
        let (mut writer, cork) = corked(socket_with(usize::MAX));
        for frame in 0..4u8 {
            let frame = [frame; 16 * 1024];
            writer.write_all(&frame).now_or_never().unwrap().unwrap();
            writer.flush().now_or_never().unwrap().unwrap();
        }
        assert_eq!(socket(&cork, |socket| socket.writes), 0);
        write_out(&cork).await.unwrap();
        write_out(&cork).await.unwrap();
        socket(&cork, |socket| {
            assert_eq!((socket.writes, socket.flushes), (1, 1));
            let expected: Vec<u8> = (0..4u8).flat_map(|frame| [frame; 16 * 1024]).collect();
            assert_eq!(socket.taken, expected);
        });
        // The memory is not the connection's any more.
        assert!(cork.0.lock().unwrap().buffer.is_none());
    }

    #[tokio::test]
    async fn without_a_buffer_each_write_goes_to_the_socket() {
        let _one = BUFFERS_IN_USE.lock().await;
        let buffers: Vec<_> = std::iter::from_fn(Buffer::new).collect();
        assert!(!buffers.is_empty() && buffers.len() <= MAX_BUFFERS);
        let (mut writer, cork) = corked(socket_with(usize::MAX));
        for _ in 0..4 {
            writer.write_all(&[7; 100]).now_or_never().unwrap().unwrap();
        }
        socket(&cork, |socket| {
            assert_eq!((socket.writes, socket.taken.len()), (4, 400))
        });
        drop(buffers);
        assert!(Buffer::new().is_some());
    }

    #[tokio::test]
    async fn no_more_than_the_limit_is_collected_for_a_socket_that_takes_little() {
        let _one = BUFFERS_IN_USE.lock().await;
        let (mut writer, cork) = corked(socket_with(10));
        let bytes: Vec<u8> = (0..3 * MAX_CORKED).map(|i| (i % 251) as u8).collect();
        let mut sent = 0;
        while let Some(count) = writer.write(&bytes[sent..]).now_or_never() {
            sent += count.unwrap();
        }
        assert_eq!(sent, MAX_CORKED);
        assert!(write_out(&cork).now_or_never().is_none());
        socket(&cork, |socket| socket.space = usize::MAX);
        writer
            .write_all(&bytes[sent..])
            .now_or_never()
            .unwrap()
            .unwrap();
        writer.shutdown().now_or_never().unwrap().unwrap();
        assert!(socket(&cork, |socket| socket.taken == bytes));
    }
}
