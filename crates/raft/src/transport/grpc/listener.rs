//! The listener: it accepts connections, takes them through the handshake of TLS, and closes those that do not show in
//! time that they are of a node.
//!
//! A connection is a stranger's until a request over it is admitted. Strangers have [`ADMISSION_TIMEOUT`], and
//! [`MAX_STRANGERS`] places: if all are taken, the one that has been there longest has to leave, of those that come
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
const EXPULSION_DELAY: Duration = Duration::from_millis(500);
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
pub(super) struct Hall {
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

impl Hall {
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
pub(super) struct Visit {
    number: u64,
    hall: Arc<Mutex<Hall>>,
    is_admitted: AtomicBool,
    refused: AtomicU32,
    close: CancellationToken,
}

impl Visit {
    fn begin(hall: &Arc<Mutex<Hall>>, from: IpAddr) -> Arc<Visit> {
        let close = CancellationToken::new();
        let number = {
            let mut hall = hall.lock();
            hall.close_surplus();
            let number = hall.next;
            hall.next += 1;
            let stranger = Stranger {
                from,
                close: close.clone(),
            };
            hall.strangers.insert(number, stranger);
            hall.most_strangers = hall.most_strangers.max(hall.strangers.len());
            number
        };
        Arc::new(Visit {
            number,
            hall: hall.clone(),
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
        let mut hall = self.hall.lock();
        if self.is_admitted.load(Ordering::Acquire) {
            return true;
        }
        if hall.admitted >= MAX_ADMITTED || self.close.is_cancelled() {
            return false;
        }
        hall.admitted += 1;
        hall.strangers.remove(&self.number);
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
    pub fn expel(&self) {
        Reason::Foreign.count(1);
        let close = self.close.clone();
        tokio::spawn(async move {
            tokio::time::sleep(EXPULSION_DELAY).await;
            close.cancel();
        });
    }
}

impl Drop for Visit {
    fn drop(&mut self) {
        let mut hall = self.hall.lock();
        match self.is_admitted.load(Ordering::Acquire) {
            true => hall.admitted -= 1,
            false => drop(hall.strangers.remove(&self.number)),
        }
    }
}

/// What requests know of the connection that they come over.
#[derive(Clone)]
pub(super) struct Arrival {
    pub visit: Arc<Visit>,
    /// The certificate of the other end.
    pub certificate: Option<CertificateDer<'static>>,
}

/// Accepts connections for as long as what it returns is read.
pub(super) fn arrivals(
    listener: TcpListener,
    tls: Option<Arc<Tls>>,
    hall: Arc<Mutex<Hall>>,
) -> ReceiverStream<io::Result<PeerStream>> {
    for reason in Reason::ALL {
        reason.count(0);
    }
    let (arrived, arrivals) = mpsc::channel(MAX_WAITING);
    tokio::spawn(async move {
        loop {
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                () = arrived.closed() => return,
            };
            let (stream, from) = match accepted {
                Ok((stream, from)) => (stream, from.ip().to_canonical()),
                Err(error) => {
                    tracing::warn!(%error, "a connection of another node was not accepted");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            };
            let visit = Visit::begin(&hall, from);
            let (tls, arrived) = (tls.clone(), arrived.clone());
            tokio::spawn(async move {
                let over = visit.close.clone();
                let opened = over.run_until_cancelled(open(stream, tls, visit)).await;
                match opened {
                    None => {}
                    // Whoever reads them has ended.
                    Some(Ok(stream)) => drop(arrived.send(Ok(stream)).await),
                    Some(Err(error)) => {
                        Reason::Handshake.count(1);
                        tracing::debug!(%from, %error, "a handshake with another node failed");
                    }
                }
            });
        }
    });
    ReceiverStream::new(arrivals)
}

async fn open(
    stream: TcpStream,
    tls: Option<Arc<Tls>>,
    visit: Arc<Visit>,
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
    let close = visit.close.clone();
    let leave = async move {
        tokio::select! {
            () = close.cancelled() => None,
            () = deadline => Some(Reason::Slow),
        }
    };
    Ok(PeerStream {
        stream,
        leave: Box::pin(leave),
        is_admitted: false,
        arrival: Arrival { visit, certificate },
    })
}

/// A connection that was accepted.
pub(super) struct PeerStream {
    stream: Stream,
    /// Is done when the connection has to end.
    leave: Pin<Box<dyn Future<Output = Option<Reason>> + Send>>,
    /// Whether it is no stranger's any more, so that it has no deadline.
    is_admitted: bool,
    arrival: Arrival,
}

impl Connected for PeerStream {
    type ConnectInfo = Arrival;

    fn connect_info(&self) -> Arrival {
        self.arrival.clone()
    }
}

impl PeerStream {
    /// Ready if the connection has to end.
    fn poll_leave(&mut self, cx: &mut Context<'_>) -> Poll<io::Error> {
        if !self.is_admitted && self.arrival.visit.is_admitted.load(Ordering::Acquire) {
            self.is_admitted = true;
            let closed = self.arrival.visit.close.clone().cancelled_owned();
            self.leave = Box::pin(closed.map(|()| None));
        }
        let Poll::Ready(reason) = self.leave.as_mut().poll(cx) else {
            return Poll::Pending;
        };
        if let Some(reason) = reason {
            reason.count(1);
        }
        let close = self.arrival.visit.close.clone();
        close.cancel();
        self.leave = Box::pin(async { None });
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
        if let Poll::Ready(error) = self.poll_leave(cx) {
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
        let hall = Arc::default();
        let member = Visit::begin(&hall, address(1));
        assert!(member.admit());
        let quiet = Visit::begin(&hall, address(2));
        let mut crowd: Vec<_> = (0..MAX_STRANGERS - 1)
            .map(|_| Visit::begin(&hall, address(3)))
            .collect();
        assert_eq!(hall.lock().strangers.len(), MAX_STRANGERS);
        for round in 0..1000 {
            crowd.push(Visit::begin(&hall, address(3)));
            assert_eq!(hall.lock().strangers.len(), MAX_STRANGERS);
            assert!(crowd[round].close.is_cancelled(), "the oldest leaves");
        }
        assert!(!quiet.close.is_cancelled() && !member.close.is_cancelled());
        assert!(quiet.admit());
        assert!(!crowd[0].admit(), "it has to leave");
        drop((crowd, quiet, member));
        let hall = hall.lock();
        assert_eq!((hall.strangers.len(), hall.admitted), (0, 0));
    }

    #[tokio::test]
    async fn a_member_that_sends_what_is_not_its_own_has_to_leave_soon() {
        let hall = Arc::default();
        let member = Visit::begin(&hall, address(1));
        assert!(member.admit());
        member.expel();
        assert!(!member.close.is_cancelled(), "it gets the reason");
        member.close.cancelled().await;
    }

    #[test]
    fn whoever_is_refused_again_and_again_has_to_leave() {
        let hall = Arc::default();
        let visit = Visit::begin(&hall, address(1));
        for _ in 1..MAX_REFUSED {
            visit.refuse();
        }
        assert!(!visit.close.is_cancelled());
        visit.refuse();
        assert!(visit.close.is_cancelled());
        let member = Visit::begin(&hall, address(1));
        assert!(member.admit());
        for _ in 0..2 * MAX_REFUSED {
            member.refuse();
        }
        assert!(!member.close.is_cancelled());
    }
}
