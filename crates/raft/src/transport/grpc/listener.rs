//! The listener: it accepts connections, takes them through the handshake of TLS, and closes those that do not show in
//! time that they are of a node.
//!
//! A connection is a stranger's until a request over it is admitted. Strangers have [`ADMISSION_TIMEOUT`], and
//! [`MAX_STRANGERS`] places: if all are taken, the oldest one is closed, of those that come
//! from the address with most of them. So whoever opens thousands of connections has few at a time, and a node, which
//! sends its first request at once, has the time for that.

use std::collections::BTreeMap;
use std::future::Future;
use std::io;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use futures::FutureExt as _;
use parking_lot::Mutex;
use rustls::pki_types::CertificateDer;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::transport::server::Connected;

use super::connector::Stream;
use super::tls::Tls;

/// How long a connection may take until a request over it is admitted.
const ADMISSION_TIMEOUT: Duration = Duration::from_secs(10);
/// Connections over which no request was admitted yet. Each takes a descriptor and some KiB.
pub(super) const MAX_STRANGERS: usize = 256;
/// Connections over which requests were admitted. A node has three to each other one, for a while twice as many.
pub(super) const MAX_ADMITTED: usize = 4096;
/// Requests of one connection that are refused before it is closed.
const MAX_REFUSED: u32 = 16;
/// Pause after accepting a connection failed, for lack of file descriptors for instance.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// How long a connection stays over which a message came that must not: the answer to it has to reach the other end.
const CLOSE_DELAY: Duration = Duration::from_millis(500);
/// Connections that wait for the task that serves them.
const MAX_WAITING: usize = 16;

/// Counts connections that were closed because they are a stranger's, or not what they were admitted as, by `reason`.
const CLOSED: &str = "esker_raft_strangers_closed_total";

/// Why a connection is closed.
#[derive(Clone, Copy)]
enum Reason {
    /// It has taken too long.
    Slow,
    /// Others need its place.
    Crowded,
    /// Its requests were refused.
    Refused,
    /// The handshake of TLS has failed.
    Handshake,
    /// A message over it was of another node than was admitted, or for another one than this.
    Foreign,
}

impl Reason {
    const ALL: [Reason; 5] = [
        Reason::Slow,
        Reason::Crowded,
        Reason::Refused,
        Reason::Handshake,
        Reason::Foreign,
    ];

    fn label(self) -> &'static str {
        match self {
            Reason::Slow => "slow",
            Reason::Crowded => "crowded",
            Reason::Refused => "refused",
            Reason::Handshake => "handshake",
            Reason::Foreign => "foreign",
        }
    }

    fn count(self, connections: u64) {
        metrics::counter!(CLOSED, "reason" => self.label()).increment(connections);
    }
}

/// All connections that were accepted and are open.
#[derive(Default)]
pub(super) struct OpenConnections {
    strangers: BTreeMap<u64, Stranger>,
    /// The number of the next connection.
    next: u64,
    admitted: usize,
    /// Most strangers that were there at one time, for tests.
    pub(super) most_strangers: usize,
}

struct Stranger {
    from: IpAddr,
    close: CancellationToken,
}

impl OpenConnections {
    /// Closes strangers while all places are taken: the oldest one of the address that has most.
    fn close_surplus(&mut self) {
        while self.strangers.len() >= MAX_STRANGERS {
            let mut of_address: BTreeMap<IpAddr, (usize, u64)> = BTreeMap::new();
            for (number, stranger) in &self.strangers {
                of_address.entry(stranger.from).or_insert((0, *number)).0 += 1;
            }
            let most = of_address.into_values().max_by_key(|(count, _)| *count);
            let Some(stranger) = most.and_then(|(_, oldest)| self.strangers.remove(&oldest)) else {
                return;
            };
            Reason::Crowded.count(1);
            stranger.close.cancel();
        }
    }
}

/// A connection that was accepted.
pub(super) struct AcceptedConnection {
    number: u64,
    connections: Arc<Mutex<OpenConnections>>,
    is_admitted: AtomicBool,
    refused: AtomicU32,
    close: CancellationToken,
}

impl AcceptedConnection {
    fn begin(connections: &Arc<Mutex<OpenConnections>>, from: IpAddr) -> Arc<AcceptedConnection> {
        let close = CancellationToken::new();
        let number = {
            let mut connections = connections.lock();
            connections.close_surplus();
            let number = connections.next;
            connections.next += 1;
            let stranger = Stranger {
                from,
                close: close.clone(),
            };
            connections.strangers.insert(number, stranger);
            connections.most_strangers =
                connections.most_strangers.max(connections.strangers.len());
            number
        };
        Arc::new(AcceptedConnection {
            number,
            connections: connections.clone(),
            is_admitted: AtomicBool::new(false),
            refused: AtomicU32::new(0),
            close,
        })
    }

    /// Notes that a request was admitted, and returns whether the connection may stay.
    pub fn admit(&self) -> bool {
        if self.is_admitted.load(Ordering::Acquire) {
            return true;
        }
        let mut connections = self.connections.lock();
        if self.is_admitted.load(Ordering::Acquire) {
            return true;
        }
        if connections.admitted >= MAX_ADMITTED || self.close.is_cancelled() {
            return false;
        }
        connections.admitted += 1;
        connections.strangers.remove(&self.number);
        self.is_admitted.store(true, Ordering::Release);
        true
    }

    /// Notes that a request was refused.
    pub fn refuse(&self) {
        if self.is_admitted.load(Ordering::Acquire) {
            return;
        }
        if self.refused.fetch_add(1, Ordering::Relaxed) + 1 == MAX_REFUSED {
            Reason::Refused.count(1);
            self.close.cancel();
        }
    }

    /// Closes the connection soon: what came over it must not come over it.
    pub fn close_soon(&self) {
        Reason::Foreign.count(1);
        let close = self.close.clone();
        tokio::spawn(async move {
            tokio::time::sleep(CLOSE_DELAY).await;
            close.cancel();
        });
    }
}

impl Drop for AcceptedConnection {
    fn drop(&mut self) {
        let mut connections = self.connections.lock();
        match self.is_admitted.load(Ordering::Acquire) {
            true => connections.admitted -= 1,
            false => drop(connections.strangers.remove(&self.number)),
        }
    }
}

/// What requests know of the connection that they come over.
#[derive(Clone)]
pub(super) struct ConnectionInfo {
    pub connection: Arc<AcceptedConnection>,
    /// The certificate of the other end.
    pub certificate: Option<CertificateDer<'static>>,
}

/// Accepts connections for as long as what it returns is read.
pub(super) fn incoming(
    listener: TcpListener,
    tls: Option<Arc<Tls>>,
    connections: Arc<Mutex<OpenConnections>>,
) -> ReceiverStream<io::Result<PeerStream>> {
    for reason in Reason::ALL {
        reason.count(0);
    }
    let (accepted, incoming) = mpsc::channel(MAX_WAITING);
    tokio::spawn(async move {
        loop {
            let next = tokio::select! {
                next = listener.accept() => next,
                () = accepted.closed() => return,
            };
            let (stream, from) = match next {
                Ok((stream, from)) => (stream, from.ip().to_canonical()),
                Err(error) => {
                    tracing::warn!(%error, "a connection of another node was not accepted");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            };
            let connection = AcceptedConnection::begin(&connections, from);
            let (tls, accepted) = (tls.clone(), accepted.clone());
            tokio::spawn(async move {
                let over = connection.close.clone();
                let opened = over
                    .run_until_cancelled(open(stream, tls, connection))
                    .await;
                match opened {
                    None => {}
                    // Whoever reads them has ended.
                    Some(Ok(stream)) => drop(accepted.send(Ok(stream)).await),
                    Some(Err(error)) => {
                        Reason::Handshake.count(1);
                        tracing::debug!(%from, %error, "a handshake with another node failed");
                    }
                }
            });
        }
    });
    ReceiverStream::new(incoming)
}

async fn open(
    stream: TcpStream,
    tls: Option<Arc<Tls>>,
    connection: Arc<AcceptedConnection>,
) -> io::Result<PeerStream> {
    // A deadline of the connection, with its handshake.
    let deadline = tokio::time::sleep(ADMISSION_TIMEOUT);
    stream.set_nodelay(true)?;
    let (stream, certificate) = match tls {
        None => (Stream::Plain(stream), None),
        Some(tls) => {
            let stream = tls.accept(stream).await?;
            let certificates = stream.get_ref().1.peer_certificates();
            let first = certificates.and_then(|all| all.first());
            let first = first.map(|certificate| certificate.clone().into_owned());
            (Stream::Tls(Box::new(stream)), first)
        }
    };
    let close = connection.close.clone();
    let closing = async move {
        tokio::select! {
            () = close.cancelled() => None,
            () = deadline => Some(Reason::Slow),
        }
    };
    Ok(PeerStream {
        stream,
        closing: Box::pin(closing),
        is_admitted: false,
        info: ConnectionInfo {
            connection,
            certificate,
        },
    })
}

/// A connection that was accepted.
pub(super) struct PeerStream {
    stream: Stream,
    /// Is done when the connection has to end.
    closing: Pin<Box<dyn Future<Output = Option<Reason>> + Send>>,
    /// Whether it is no stranger's any more, so that it has no deadline.
    is_admitted: bool,
    info: ConnectionInfo,
}

impl Connected for PeerStream {
    type ConnectInfo = ConnectionInfo;

    fn connect_info(&self) -> ConnectionInfo {
        self.info.clone()
    }
}

impl PeerStream {
    /// Ready if the connection has to end.
    fn poll_close(&mut self, cx: &mut Context<'_>) -> Poll<io::Error> {
        if !self.is_admitted && self.info.connection.is_admitted.load(Ordering::Acquire) {
            self.is_admitted = true;
            let closed = self.info.connection.close.clone().cancelled_owned();
            self.closing = Box::pin(closed.map(|()| None));
        }
        let Poll::Ready(reason) = self.closing.as_mut().poll(cx) else {
            return Poll::Pending;
        };
        if let Some(reason) = reason {
            reason.count(1);
        }
        let close = self.info.connection.close.clone();
        close.cancel();
        self.closing = Box::pin(async { None });
        Poll::Ready(io::Error::new(
            io::ErrorKind::TimedOut,
            "no request over this connection was admitted in time, or a message over it was refused",
        ))
    }
}

impl AsyncRead for PeerStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if let Poll::Ready(error) = self.poll_close(cx) {
            return Poll::Ready(Err(error));
        }
        Pin::new(&mut self.stream).poll_read(cx, buffer)
    }
}

impl AsyncWrite for PeerStream {
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
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, slices)
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

#[cfg(test)]
mod tests {
    use super::*;

    fn address(last: u8) -> IpAddr {
        IpAddr::from([10, 0, 0, last])
    }

    #[test]
    fn the_address_with_most_strangers_makes_room_and_members_are_not_counted() {
        let connections = Arc::default();
        let member = AcceptedConnection::begin(&connections, address(1));
        assert!(member.admit());
        let quiet = AcceptedConnection::begin(&connections, address(2));
        let mut crowd: Vec<_> = (0..MAX_STRANGERS - 1)
            .map(|_| AcceptedConnection::begin(&connections, address(3)))
            .collect();
        assert_eq!(connections.lock().strangers.len(), MAX_STRANGERS);
        for round in 0..1000 {
            crowd.push(AcceptedConnection::begin(&connections, address(3)));
            assert_eq!(connections.lock().strangers.len(), MAX_STRANGERS);
            assert!(crowd[round].close.is_cancelled(), "the oldest is closed");
        }
        assert!(!quiet.close.is_cancelled() && !member.close.is_cancelled());
        assert!(quiet.admit());
        assert!(!crowd[0].admit(), "it is closed");
        drop((crowd, quiet, member));
        let connections = connections.lock();
        assert_eq!((connections.strangers.len(), connections.admitted), (0, 0));
    }

    #[tokio::test]
    async fn a_connection_over_which_a_foreign_message_came_is_closed_soon() {
        let connections = Arc::default();
        let member = AcceptedConnection::begin(&connections, address(1));
        assert!(member.admit());
        member.close_soon();
        assert!(!member.close.is_cancelled(), "it gets the reason");
        member.close.cancelled().await;
    }

    #[test]
    fn a_connection_whose_requests_are_refused_again_and_again_is_closed() {
        let connections = Arc::default();
        let connection = AcceptedConnection::begin(&connections, address(1));
        for _ in 1..MAX_REFUSED {
            connection.refuse();
        }
        assert!(!connection.close.is_cancelled());
        connection.refuse();
        assert!(connection.close.is_cancelled());
        let member = AcceptedConnection::begin(&connections, address(1));
        assert!(member.admit());
        for _ in 0..2 * MAX_REFUSED {
            member.refuse();
        }
        assert!(!member.close.is_cancelled());
    }
}
