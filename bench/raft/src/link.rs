//! gRPC links that record heartbeats, or are slow.

use std::io;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use bytes::Bytes;
use esker_raft::message::Payload;
use esker_raft::transport::grpc::GrpcTransport;
use esker_raft::transport::{Foreign, Inbox, Permit, ProvenSender};
use esker_raft::{Envelope, NodeId, Transport};
use parking_lot::Mutex;

/// Messages at least this large are slowed down: chunks.
const LARGE: usize = 32 * 1024;

/// What a link has recorded.
#[derive(Default)]
pub struct Heard {
    last: Option<Instant>,
    /// Longest time between two heartbeats that arrived.
    pub longest_gap: Duration,
    pub heartbeats: u64,
}

impl Heard {
    /// Begins to record.
    pub fn begin(&mut self) {
        *self = Heard {
            last: Some(Instant::now()),
            ..Heard::default()
        };
    }

    /// Ends the record: the time since the last heartbeat counts, too.
    pub fn end(&mut self) {
        if let Some(last) = self.last {
            self.longest_gap = self.longest_gap.max(last.elapsed());
        }
    }
}

/// See the [module's head](self).
pub struct Link {
    grpc: GrpcTransport,
    /// Where heartbeats are recorded, if they are: that costs a second decoding.
    pub heard: Option<Arc<Mutex<Heard>>>,
    /// Bytes per second; unlimited if 0.
    rate: u64,
    inbox: Mutex<Option<Arc<Ear>>>,
}

impl Link {
    pub fn new(grpc: GrpcTransport, heard: Option<Arc<Mutex<Heard>>>, rate: u64) -> Link {
        Link {
            grpc,
            heard,
            rate,
            inbox: Mutex::default(),
        }
    }
}

struct Ear {
    inbox: Weak<dyn Inbox>,
    heard: Option<Arc<Mutex<Heard>>>,
    rate: u64,
}

impl Inbox for Ear {
    fn receive(&self, message: Bytes, from: Option<&mut ProvenSender>) -> Result<(), Foreign> {
        if let Some(heard) = &self.heard
            && message.len() < LARGE
            && let Ok(Envelope { payload, .. }) = Envelope::decode(message.clone())
            && matches!(&payload, Payload::Raft(m) if m.is_heartbeat())
        {
            let now = Instant::now();
            let mut heard = heard.lock();
            heard.heartbeats += 1;
            if let Some(last) = heard.last {
                heard.longest_gap = heard.longest_gap.max(now - last);
            }
            heard.last = Some(now);
        }
        if self.rate > 0 && message.len() >= LARGE {
            // The delay blocks the stream, and its sender with it.
            let seconds = message.len() as f64 / self.rate as f64;
            std::thread::sleep(Duration::from_secs_f64(seconds));
        }
        match self.inbox.upgrade() {
            Some(inbox) => inbox.receive(message, from),
            None => Ok(()),
        }
    }

    fn unreachable(&self, node: NodeId) {
        if let Some(inbox) = self.inbox.upgrade() {
            inbox.unreachable(node);
        }
    }
}

impl Transport for Link {
    fn start(&self, inbox: Weak<dyn Inbox>) -> io::Result<()> {
        let ear = Arc::new(Ear {
            inbox,
            heard: self.heard.clone(),
            rate: self.rate,
        });
        let weak: Weak<dyn Inbox> = Arc::downgrade(&ear) as Weak<dyn Inbox>;
        *self.inbox.lock() = Some(ear);
        self.grpc.start(weak)
    }

    fn send(&self, message: Envelope) {
        self.grpc.send(message);
    }

    fn send_bulk(&self, message: Envelope, permit: Option<Permit>) {
        self.grpc.send_bulk(message, permit);
    }

    fn stop(&self) {
        self.grpc.stop();
    }
}
