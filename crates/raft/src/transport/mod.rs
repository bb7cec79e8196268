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

use crate::ids::{ClusterId, Incarnation, NodeId};
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

/// What a connection has proved about its sender. All messages over it have to be of this sender.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProvenSender {
    /// The cluster of the sender.
    pub cluster: ClusterId,
    /// The sender.
    pub node: NodeId,
    /// The start of the sender's process that its first message had: one stream is of one start.
    pub incarnation: Option<Incarnation>,
}

/// A message that must not come over its connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Foreign {
    /// It names another sender than the connection has proved.
    #[error("a message of node {named} came over a connection of node {proved}")]
    Sender {
        /// Whom the message names.
        named: NodeId,
        /// Whose connection it is.
        proved: NodeId,
    },
    /// It names another cluster than the connection has proved.
    #[error("a message of another cluster came over a connection of node {0}")]
    Cluster(NodeId),
    /// It names another start of its sender than earlier messages of the stream.
    #[error(
        "node {node} has sent messages of its starts {first} and {named} over one connection, which is of one process"
    )]
    Incarnation {
        /// The sender.
        node: NodeId,
        /// The start that the first message named.
        first: Incarnation,
        /// The start that this one names.
        named: Incarnation,
    },
    /// It is for another node.
    #[error("a message for node {to} came to node {me}")]
    Recipient {
        /// Whom it is for.
        to: NodeId,
        /// The node that got it.
        me: NodeId,
    },
}

impl ProvenSender {
    /// The sender of a stream that has not had a message yet.
    pub fn new(cluster: ClusterId, node: NodeId) -> ProvenSender {
        ProvenSender {
            cluster,
            node,
            incarnation: None,
        }
    }

    /// Checks that a message, which the node `me` got over this sender's stream, is of this sender and for that node.
    ///
    /// # Errors
    ///
    /// See [`Foreign`].
    pub fn check(&mut self, message: &Envelope, me: NodeId) -> Result<(), Foreign> {
        let named = &message.sender;
        if named.node != self.node {
            return Err(Foreign::Sender {
                named: named.node,
                proved: self.node,
            });
        }
        if named.cluster != self.cluster {
            return Err(Foreign::Cluster(self.node));
        }
        if message.to != me {
            return Err(Foreign::Recipient { to: message.to, me });
        }
        match *self.incarnation.get_or_insert(named.incarnation) {
            first if first != named.incarnation => Err(Foreign::Incarnation {
                node: self.node,
                first,
                named: named.incarnation,
            }),
            _ => Ok(()),
        }
    }
}

/// Receives the messages of a transport.
pub trait Inbox: Send + Sync + 'static {
    /// Takes an encoded, untrusted message. It may block on a lock or the disk for a moment; the transport
    /// then delays further messages of that sender. `from` is what the connection has proved about the sender, if
    /// it proves that.
    ///
    /// # Errors
    ///
    /// The message is of or for another node than its connection. The transport ends the connection.
    fn receive(&self, message: Bytes, from: Option<&mut ProvenSender>) -> Result<(), Foreign>;

    /// That node cannot be reached at the moment. Called repeatedly, for as long as that is so.
    fn unreachable(&self, node: NodeId);
}
