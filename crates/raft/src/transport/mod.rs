//! How messages get from node to node.
//!
//! ```text
//! Group ─Envelope▶ Transport ═══ consensus ═══▶ Transport ─bytes▶ Inbox (the other node)
//! Sender ─Chunk──▶           ═══   bulk    ═══▶
//! ```
//!
//! Consensus and bulk travel apart, so that a snapshot never delays a heartbeat. A message may be
//! lost, late, or come twice: consensus and transfers allow for it. What no transport may do is wait:
//! [`Transport::send`] is called with a group's engine locked.
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

/// Most messages of consensus that wait for one peer: what some seconds of a busy group need.
pub const MAX_QUEUED_MESSAGES: usize = 4096;
/// Most chunks, and wishes for chunks, that wait for one peer. Their bytes are bounded by the
/// sender: see [`SenderConfig::max_bytes_in_flight`](crate::transfer::SenderConfig).
pub const MAX_QUEUED_CHUNKS: usize = 1024;

/// Dropped when the chunk that it belongs to has left this process, or was given up.
pub type Permit = Box<dyn Send + Sync>;

/// Carries messages between nodes.
pub trait Transport: Send + Sync + 'static {
    /// From now on what arrives goes to `inbox`. Called once, before anything is sent.
    fn start(&self, inbox: Weak<dyn Inbox>) -> io::Result<()>;

    /// Queues a message of consensus for its receiver. Never waits; a full queue, or a peer that is
    /// not known, drops it.
    fn send(&self, message: Envelope);

    /// Queues part of a transfer, beside the messages of consensus. The permit is dropped when it has
    /// left, or is dropped itself. Never waits.
    fn send_bulk(&self, message: Envelope, permit: Option<Permit>);

    /// Ends. Nothing arrives after this returns, and nothing is sent.
    fn stop(&self);
}

/// Where messages arrive.
pub trait Inbox: Send + Sync + 'static {
    /// A message, encoded, from anybody. May wait for a lock or the disk for a moment: the transport
    /// lets the next ones of that sender wait.
    fn receive(&self, message: Bytes);

    /// Nothing gets through to that node at the moment. Said now and then.
    fn unreachable(&self, node: NodeId);
}
