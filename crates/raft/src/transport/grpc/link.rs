//! One stream to one peer: a bounded queue, and a task that keeps the stream open.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt as _;
use http::uri::PathAndQuery;
use tokio::runtime::Runtime;
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tonic::metadata::AsciiMetadataValue;
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Status};

use super::codec::Outgoing;
use super::{CONNECTION_WINDOW, KEEP_ALIVE, MESSAGES, SECRET, STREAM_WINDOW, TOGETHER};
use crate::ids::NodeId;
use crate::message::{Envelope, MAX_ENVELOPE_BYTES};
use crate::transport::{Inbox, MAX_QUEUED_BYTES, Permit};

/// Pause after a stream broke, the first time; doubled from one failure in a row to the next.
const FIRST_PAUSE: Duration = Duration::from_millis(50);
/// The longest pause: a peer that is back is spoken to within this.
const LONGEST_PAUSE: Duration = Duration::from_secs(1);
/// Most time that a connection may take to open.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// A stream that was open for so long was no failure.
const WAS_GOOD: Duration = Duration::from_secs(5);

/// A message on its way.
pub(super) struct Queued {
    pub message: Envelope,
    _permit: Option<Permit>,
    _bytes: QueuedBytes,
}

/// Counts as queued until it is dropped.
struct QueuedBytes {
    size: usize,
    total: Arc<AtomicUsize>,
}

impl Drop for QueuedBytes {
    fn drop(&mut self) {
        self.total.fetch_sub(self.size, Ordering::Relaxed);
    }
}

/// What a link is told.
#[derive(Clone)]
pub(super) struct Opening {
    pub node: NodeId,
    pub path: &'static str,
    pub secret: Option<String>,
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
        let (address, told) = watch::channel(address.to_owned());
        runtime.spawn(run(opening, told, waiting));
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

    /// Queues, or drops.
    pub fn push(&self, message: Envelope, permit: Option<Permit>) {
        let size = message.size_hint();
        let before = self.bytes.fetch_add(size, Ordering::Relaxed);
        let queued = Queued {
            message,
            _permit: permit,
            _bytes: QueuedBytes {
                size,
                total: self.bytes.clone(),
            },
        };
        if before == 0 || before + size <= MAX_QUEUED_BYTES {
            // A full queue drops it.
            let _ = self.queue.try_send(queued);
        }
    }
}

async fn run(
    opening: Opening,
    mut address: watch::Receiver<String>,
    mut waiting: mpsc::Receiver<Queued>,
) {
    let mut pause = FIRST_PAUSE;
    // A connection is opened when there is something to say.
    while let Some(first) = waiting.recv().await {
        let target = address.borrow_and_update().clone();
        let opened = tokio::time::Instant::now();
        let ended = tokio::select! {
            ended = stream(&opening, &target, first, &mut waiting) => ended,
            changed = address.changed() => match changed {
                Ok(()) => continue,
                Err(_) => return,
            },
        };
        let Err(error) = ended else {
            return;
        };
        if opened.elapsed() >= WAS_GOOD {
            pause = FIRST_PAUSE;
        }
        tracing::debug!(node = %opening.node, path = opening.path, target, error, "a stream to a peer broke");
        match opening.inbox.upgrade() {
            Some(inbox) => inbox.unreachable(opening.node),
            None => return,
        }
        // What is said meanwhile is old when it could arrive.
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
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

/// Sends until the stream breaks, or there is nobody left who sends.
async fn stream(
    opening: &Opening,
    address: &str,
    first: Queued,
    waiting: &mut mpsc::Receiver<Queued>,
) -> Result<(), String> {
    let channel = connect(address).await?;
    let mut client =
        tonic::client::Grpc::new(channel).max_encoding_message_size(MAX_ENVELOPE_BYTES + 64);
    client.ready().await.map_err(|e| e.to_string())?;
    // A chunk is large enough to travel alone.
    let together = match opening.path == MESSAGES {
        true => TOGETHER,
        false => 1,
    };
    let (more, rest) = mpsc::channel(together);
    let messages = futures::stream::iter([first]).chain(ReceiverStream::new(rest));
    let mut request = Request::new(messages);
    if let Some(secret) = &opening.secret {
        let secret: AsciiMetadataValue = secret.parse().map_err(|_| "the secret is no header")?;
        request.metadata_mut().insert(SECRET, secret);
    }
    let path = PathAndQuery::from_static(opening.path);
    let call = client.client_streaming(request, path, Outgoing);
    tokio::pin!(call);
    let broke = |answer: Result<tonic::Response<Bytes>, Status>| match answer {
        Ok(_) => "the peer ended it".to_owned(),
        Err(status) => status.to_string(),
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

async fn connect(address: &str) -> Result<Channel, String> {
    let url = match address.contains("://") {
        true => address.to_owned(),
        false => format!("http://{address}"),
    };
    let endpoint = Endpoint::from_shared(url).map_err(|e| e.to_string())?;
    let endpoint = endpoint
        .connect_timeout(CONNECT_TIMEOUT)
        .tcp_nodelay(true)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .http2_keep_alive_interval(KEEP_ALIVE)
        .keep_alive_timeout(KEEP_ALIVE)
        .keep_alive_while_idle(true);
    endpoint.connect().await.map_err(|e| e.to_string())
}
