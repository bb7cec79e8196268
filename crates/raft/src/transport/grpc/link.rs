//! One stream to one peer: a bounded queue, and a task that keeps the stream open.

use std::sync::atomic::AtomicUsize;
use std::sync::{Arc, Weak};
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt as _;
use http::uri::PathAndQuery;
use tokio::runtime::Runtime;
use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tonic::metadata::MetadataMap;
use tonic::transport::Channel;
use tonic::{Code, Request, Status};

use super::codec::Outgoing;
use super::connector::Dial;
use super::hello::{self, NotTheNode};
use super::queued::Queued;
use super::tls::{self, Tls};
use super::whereabouts::Whereabouts;
use super::{Credentials, MAX_BATCH, MESSAGES, chain};
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
        let ended = tokio::select! {
            ended = stream(&opening, &target, first, &mut waiting) => ended,
            changed = address.changed() => match changed {
                Ok(()) => continue,
                Err(_) => return,
            },
        };
        let Err(broken) = ended else {
            return;
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
        match opening.inbox.upgrade() {
            Some(inbox) => inbox.unreachable(opening.node),
            None => return,
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

/// Sends until the stream breaks or the link is dropped.
async fn stream(
    opening: &Opening,
    address: &str,
    first: Queued,
    waiting: &mut mpsc::Receiver<Queued>,
) -> Result<(), Broken> {
    let mut channel = connect(address, opening.tls.clone()).await?;
    identify(opening, address, &mut channel).await?;
    let mut client =
        tonic::client::Grpc::new(channel).max_encoding_message_size(MAX_ENVELOPE_BYTES + 64);
    client.ready().await.map_err(|e| Broken::by(&e))?;
    // A chunk is large enough to be sent alone.
    let batch = match opening.path == MESSAGES {
        true => MAX_BATCH,
        false => 1,
    };
    let (more, rest) = mpsc::channel(batch);
    let messages = futures::stream::iter([first]).chain(ReceiverStream::new(rest));
    let mut request = Request::new(messages);
    let mut headers = http::HeaderMap::new();
    opening.credentials.add_to(&mut headers)?;
    *request.metadata_mut() = MetadataMap::from_headers(headers);
    let path = PathAndQuery::from_static(opening.path);
    let call = client.client_streaming(request, path, Outgoing);
    tokio::pin!(call);
    let broke = |answer: Result<tonic::Response<Bytes>, Status>| match answer {
        Ok(_) => "the peer ended it".into(),
        Err(status) if [Code::Unauthenticated, Code::PermissionDenied].contains(&status.code()) => {
            Broken::for_good(status.message())
        }
        Err(status) => Broken::by(&status),
    };
    loop {
        let place = tokio::select! {
            answer = &mut call => return Err(broke(answer)),
            place = more.reserve() => place.map_err(|_| "its end is gone")?,
        };
        tokio::select! {
            answer = &mut call => return Err(broke(answer)),
            next = waiting.recv() => match next {
                Some(next) => place.send(next),
                None => return Ok(()),
            },
        }
    }
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
