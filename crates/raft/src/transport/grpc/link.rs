//! One stream to one peer: a bounded queue, and a task that keeps the stream open.
//!
//! While a stream is open, its connection takes the messages from the queue itself, as it can send them: no task and no
//! second queue is between the two. The link's task has the queue between two streams.

use std::pin::Pin;
use std::sync::atomic::AtomicUsize;
use std::sync::{Arc, Weak};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::Bytes;
use futures::Stream;
use http::uri::PathAndQuery;
use parking_lot::Mutex;
use tokio::runtime::{Handle, Runtime};
use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::{mpsc, watch};
use tonic::metadata::MetadataMap;
use tonic::transport::Channel;
use tonic::{Code, Request, Status};

use super::codec::Outgoing;
use super::connector::Dial;
use super::hello::{self, NotTheNode};
use super::queued::Queued;
use super::tls::{self, Tls};
use super::whereabouts::Whereabouts;
use super::{Credentials, chain};
use crate::ids::NodeId;
use crate::message::{Envelope, MAX_ENVELOPE_BYTES};
use crate::transport::{Inbox, MAX_QUEUED_BYTES, Permit};

/// Pause after a broken stream; doubles after each failure in a row...
const MIN_RETRY_INTERVAL: Duration = Duration::from_millis(50);
/// ...up to this: a peer that is back is connected within this time.
const MAX_RETRY_INTERVAL: Duration = Duration::from_secs(1);
/// A stream that was open for this long does not count as a failure.
const STABLE_AFTER: Duration = Duration::from_secs(5);

/// The configuration of a link.
#[derive(Clone)]
pub(super) struct Opening {
    pub node: NodeId,
    pub path: &'static str,
    pub credentials: Credentials,
    /// Where other nodes reach this one.
    pub own_address: String,
    pub whereabouts: Whereabouts,
    pub tls: Option<Arc<Tls>>,
    pub inbox: Weak<dyn Inbox>,
    /// Where the inbox learns that the peer is unreachable. That may take as long as the work of all groups, while the
    /// thread of the link has messages of others to send.
    pub receiving: Handle,
}

/// Ends when its last clone is dropped.
#[derive(Clone)]
pub(super) struct Link {
    queue: mpsc::Sender<Queued>,
    bytes: Arc<AtomicUsize>,
    address: Arc<watch::Sender<String>>,
}

impl Link {
    pub fn open(runtime: &Runtime, opening: Opening, address: &str, queued: usize) -> Link {
        let (queue, waiting) = mpsc::channel(queued);
        let (address, addresses) = watch::channel(address.to_owned());
        runtime.spawn(run(opening, addresses, waiting));
        Link {
            queue,
            bytes: Arc::default(),
            address: Arc::new(address),
        }
    }

    pub fn set_address(&self, address: &str) {
        self.address.send_if_modified(|known| {
            let new = known != address;
            if new {
                *known = address.to_owned();
            }
            new
        });
    }

    /// Queues a message, or drops it if the queue is full.
    pub fn push(&self, message: Envelope, permit: Option<Permit>) {
        let (queued, before, size) = Queued::new(message, permit, &self.bytes);
        let surplus = match before == 0 || before + size <= MAX_QUEUED_BYTES {
            true => match self.queue.try_send(queued) {
                Err(TrySendError::Full(queued)) => Some(queued),
                // A closed one drops it.
                Ok(()) | Err(TrySendError::Closed(_)) => None,
            },
            false => Some(queued),
        };
        if let Some(surplus) = surplus {
            surplus.drop_surplus();
        }
    }
}

async fn run(
    opening: Opening,
    mut address: watch::Receiver<String>,
    mut waiting: mpsc::Receiver<Queued>,
) {
    let mut pause = MIN_RETRY_INTERVAL;
    let mut failed: u64 = 0;
    let mut refused: u64 = 0;
    // A connection is opened when there is a message to send.
    while let Some(first) = waiting.recv().await {
        let own = address.borrow_and_update().clone();
        // Each second attempt goes to where the node was found beside its address, if it was.
        let found = opening.whereabouts.found_beside(opening.node, &own);
        let target = match found {
            Some(found) if failed % 2 == 1 => found,
            _ => own,
        };
        let opened = tokio::time::Instant::now();
        let lent = Lent::new(waiting);
        let ended = tokio::select! {
            broken = stream(&opening, &target, first, &lent) => Ok(broken),
            changed = address.changed() => Err(changed),
        };
        let Some(returned) = lent.take_back() else {
            return;
        };
        waiting = returned;
        let broken = match ended {
            Ok(broken) => broken,
            Err(Ok(())) => continue,
            // The link was dropped.
            Err(Err(_)) => return,
        };
        if opened.elapsed() >= STABLE_AFTER {
            pause = MIN_RETRY_INTERVAL;
            refused = 0;
        }
        failed += 1;
        let Broken { why, lasting } = broken;
        tracing::debug!(node = %opening.node, path = opening.path, target, why, "a stream to a peer broke");
        if lasting {
            refused += 1;
            // Attempts never end: the 1st, 2nd, 4th, 8th, … is logged.
            if refused.is_power_of_two() {
                let node = opening.node;
                tracing::warn!(
                    %node, target, why, times = refused,
                    "a peer refuses the connection: check the certificates, the secret and the address"
                );
            }
        }
        let Some(inbox) = opening.inbox.upgrade() else {
            return;
        };
        let node = opening.node;
        let noted = opening
            .receiving
            .spawn(async move { inbox.unreachable(node) });
        // One at a time. It fails only if the transport stops.
        if noted.await.is_err() {
            return;
        }
        // Messages that come during the pause would be outdated on arrival: they are dropped.
        let over = tokio::time::sleep(pause);
        tokio::pin!(over);
        loop {
            tokio::select! {
                () = &mut over => break,
                dropped = waiting.recv() => match dropped {
                    Some(dropped) => drop(dropped),
                    None => return,
                },
            }
        }
        pause = (pause * 2).min(MAX_RETRY_INTERVAL);
    }
}

/// Why a stream broke.
struct Broken {
    why: String,
    /// One end refuses the other: repeating it will not help.
    lasting: bool,
}

impl Broken {
    fn by(error: &(dyn std::error::Error + 'static)) -> Broken {
        Broken {
            why: chain(error),
            lasting: tls::is_refusal(error),
        }
    }

    fn for_good(why: &str) -> Broken {
        Broken {
            why: why.to_owned(),
            lasting: true,
        }
    }
}

impl From<&str> for Broken {
    fn from(why: &str) -> Broken {
        Broken {
            why: why.to_owned(),
            lasting: false,
        }
    }
}

/// A link's queue, while a stream sends what is in it.
#[derive(Clone)]
struct Lent(Arc<Mutex<Lending>>);

struct Lending {
    /// `None` once it was taken back.
    queue: Option<mpsc::Receiver<Queued>>,
    /// What waits for more of it.
    waker: Option<Waker>,
}

impl Lent {
    fn new(queue: mpsc::Receiver<Queued>) -> Lent {
        Lent(Arc::new(Mutex::new(Lending {
            queue: Some(queue),
            waker: None,
        })))
    }

    /// The queue. The stream ends: a connection keeps it open otherwise, and itself with it.
    fn take_back(&self) -> Option<mpsc::Receiver<Queued>> {
        let mut lending = self.0.lock();
        if let Some(waker) = lending.waker.take() {
            waker.wake();
        }
        lending.queue.take()
    }

    fn poll_next(&self, context: &mut Context<'_>) -> Poll<Option<Queued>> {
        let mut lending = self.0.lock();
        let Lending { queue, waker } = &mut *lending;
        let Some(queue) = queue else {
            return Poll::Ready(None);
        };
        let next = queue.poll_recv(context);
        if next.is_pending()
            && waker
                .as_ref()
                .is_none_or(|it| !it.will_wake(context.waker()))
        {
            *waker = Some(context.waker().clone());
        }
        next
    }
}

/// The messages of a stream.
struct Messages {
    first: Option<Queued>,
    queue: Lent,
}

impl Stream for Messages {
    type Item = Queued;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Queued>> {
        if let Some(first) = self.first.take() {
            return Poll::Ready(Some(first));
        }
        self.queue.poll_next(context)
    }
}

/// Sends until the stream breaks, and returns why it did.
async fn stream(opening: &Opening, address: &str, first: Queued, queue: &Lent) -> Broken {
    let call = call(opening, address, first, queue);
    match call.await {
        Ok(_) => "the peer ended it".into(),
        Err(broken) => broken,
    }
}

async fn call(
    opening: &Opening,
    address: &str,
    first: Queued,
    queue: &Lent,
) -> Result<tonic::Response<Bytes>, Broken> {
    let mut channel = connect(address, opening.tls.clone()).await?;
    identify(opening, address, &mut channel).await?;
    let mut client =
        tonic::client::Grpc::new(channel).max_encoding_message_size(MAX_ENVELOPE_BYTES + 64);
    client.ready().await.map_err(|e| Broken::by(&e))?;
    let mut request = Request::new(Messages {
        first: Some(first),
        queue: queue.clone(),
    });
    let mut headers = http::HeaderMap::new();
    opening.credentials.add_to(&mut headers)?;
    *request.metadata_mut() = MetadataMap::from_headers(headers);
    let path = PathAndQuery::from_static(opening.path);
    let answer = client.client_streaming(request, path, Outgoing).await;
    answer.map_err(|status: Status| match status.code() {
        Code::Unauthenticated | Code::PermissionDenied => Broken::for_good(status.message()),
        _ => Broken::by(&status),
    })
}

/// Lets the other end show that it is the node that the messages are for.
async fn identify(opening: &Opening, address: &str, channel: &mut Channel) -> Result<(), Broken> {
    let Opening {
        node,
        credentials,
        whereabouts,
        ..
    } = opening;
    let asked = hello::ask(channel, credentials, *node, &opening.own_address).await;
    let claim = match asked {
        Ok(()) => {
            whereabouts.note_right(*node, address);
            return Ok(());
        }
        Err(NotTheNode::Another(claim)) => claim,
        Err(NotTheNode::Refuses(why)) => return Err(Broken::for_good(&why)),
        Err(NotTheNode::Silent(why)) => return Err(Broken::from(&*why)),
    };
    let own = credentials.claim;
    if own.is_some_and(|own| own.cluster != claim.cluster) {
        let why = format!(
            "the address answers as a node of the cluster {}",
            claim.cluster
        );
        return Err(Broken::for_good(&why));
    }
    whereabouts.note_stranger(*node, address, claim.node);
    if own.is_none_or(|own| own.node != claim.node) {
        whereabouts.note_found(claim.node, address);
    }
    let why = format!("the address answers as node {}", claim.node);
    Err(Broken::for_good(&why))
}

async fn connect(address: &str, tls: Option<Arc<Tls>>) -> Result<Channel, Broken> {
    let dial = Dial::to(address, tls).map_err(|why| Broken::for_good(&why))?;
    dial.connect().await.map_err(|e| Broken::by(&e))
}

#[cfg(test)]
mod tests {
    use futures::StreamExt as _;

    use super::*;
    use crate::engine::Config;
    use crate::message::Payload;

    #[tokio::test]
    async fn a_stream_takes_from_the_queue_what_it_sends_and_nothing_once_it_has_broken() {
        let bytes = Arc::default();
        let queued = || {
            let sender = Config::new(NodeId(2)).identity();
            let message = sender.seal(NodeId(1), Payload::Wanted);
            Queued::new(message, None, &bytes).0
        };
        let (sender, waiting) = mpsc::channel(8);
        let lent = Lent::new(waiting);
        let mut messages = Messages {
            first: Some(queued()),
            queue: lent.clone(),
        };
        assert!(sender.try_send(queued()).is_ok());
        assert!(messages.next().await.is_some() && messages.next().await.is_some());
        assert_eq!(sender.capacity(), 8, "nothing is between the two");
        for _ in 0..2 {
            assert!(sender.try_send(queued()).is_ok());
        }
        let mut left = lent.take_back().unwrap();
        assert!(messages.next().await.is_none());
        assert!(left.try_recv().is_ok() && left.try_recv().is_ok());
        assert!(lent.take_back().is_none());
    }

    /// Else its connection would stay open.
    #[tokio::test]
    async fn a_stream_that_waits_for_messages_ends_when_the_queue_is_taken_back() {
        let (_sender, waiting) = mpsc::channel(8);
        let lent = Lent::new(waiting);
        let mut messages = Messages {
            first: None,
            queue: lent.clone(),
        };
        let ends = tokio::spawn(async move { messages.next().await.is_none() });
        tokio::task::yield_now().await;
        assert!(!ends.is_finished(), "it waits");
        assert!(lent.take_back().is_some());
        let ended = tokio::time::timeout(Duration::from_secs(20), ends).await;
        assert!(ended.unwrap().unwrap());
    }
}
