//! How messages get from node to node. A transport knows envelopes by sender and receiver, and not what
//! they mean.
//!
//! ```text
//! Group ─Envelope▶ Transport ═══ consensus ═══▶ Transport ─bytes▶ Inbox (the other node)
//! Sender ─Chunk──▶           ═══   bulk    ═══▶
//! ```
//!
//! Messages of consensus and of transfers (*bulk*) use separate queues and connections, so that a snapshot
//! never delays a heartbeat. A message may be lost, late, or arrive twice: consensus and transfers handle
//! that. A transport must not block in [`Transport::send`], which is called with a group's engine locked.
//!
//! | transport | for |
//! |---|---|
//! | [`memory`] | tests, and several nodes in one process; loses, delays, cuts on demand |
//! | `grpc` (feature `grpc`) | nodes on a network |

#[cfg(feature = "grpc")]
pub mod grpc;
pub mod memory;
#[cfg(test)]
mod tests;

use std::io;
use std::sync::Weak;

use bytes::Bytes;

use crate::ids::NodeId;
pub use crate::limits::MAX_QUEUED_BYTES;
use crate::message::Envelope;

/// Most messages of consensus that are queued for one peer: enough for some seconds of a busy group.
pub const MAX_QUEUED_MESSAGES: usize = 4096;
/// Most chunks and requests for chunks that are queued for one peer. The sender bounds their bytes: see
/// [`SenderConfig::max_bytes_in_flight`](crate::transfer::SenderConfig).
pub const MAX_QUEUED_CHUNKS: usize = 1024;

/// Dropped when its chunk has left this process or was dropped.
pub type Permit = Box<dyn Send + Sync>;

/// Carries messages between nodes.
pub trait Transport: Send + Sync + 'static {
    /// Starts to deliver messages to `inbox`. Called once, before anything is sent.
    ///
    /// # Errors
    ///
    /// Threads or listeners cannot be started.
    fn start(&self, inbox: Weak<dyn Inbox>) -> io::Result<()>;

    /// Queues a message of consensus for its receiver. Never blocks; drops the message if the queue is full
    /// or the peer unknown.
    fn send(&self, message: Envelope);

    /// Queues a message of a transfer. The permit is dropped when the message has left this process or is
    /// dropped. Never blocks.
    fn send_bulk(&self, message: Envelope, permit: Option<Permit>);

    /// Stops the transport. After this returns nothing is sent or delivered.
    fn stop(&self);
}

/// Receives the messages of a transport.
pub trait Inbox: Send + Sync + 'static {
    /// Takes an encoded, untrusted message. It may block on a lock or the disk for a moment; the transport
    /// then delays further messages of that sender.
    fn receive(&self, message: Bytes);

    /// That node cannot be reached at the moment. Called repeatedly, for as long as that is so.
    fn unreachable(&self, node: NodeId);
}
