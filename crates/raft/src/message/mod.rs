//! The messages between members of a group, and their encoding.
//!
//! ```text
//! Envelope   the sender (cluster, group, lineage, node, incarnation) and the receiver
//!   Raft       a message of consensus                              engine  <-> engine
//!   Offer      the manifest of a checkpoint                        leader   -> follower
//!   NewerOffer the readable fields of an offer of a newer format     leader   -> follower
//!   Wanted     request for a snapshot by a node without a log      joiner   -> leader
//!   Progress   what the sender of the message is fetching          follower -> all
//!   Ended      the end of a transfer, with its reason              either way
//!   Fetch      request for part of a file                          receiver -> sender
//!   Chunk      the bytes, with their checksum                      sender   -> receiver
//! ```
//!
//! All messages have a `prost` encoding of this crate; raft-rs's protobuf 2 never parses bytes of a peer.
//! Decoding is for untrusted input: it fails with an error, never panics, and allocates at most a small
//! multiple of the length of the input (see `scan.rs`). A decoded message has passed every check that needs
//! no context. Checks that need it are those of the [`Gate`] and the engine.

#![deny(clippy::disallowed_methods)]

mod convert;
mod gate;
mod scan;
#[cfg(test)]
mod tests;
mod wire;

pub(crate) use convert::conf_change;
pub use gate::{Gate, Refusal, Refusals};

use std::fmt;

use bytes::Bytes;
use prost::Message as _;
use raft::eraftpb;

use crate::ids::{CheckpointId, ClusterId, GroupId, Incarnation, Lineage, Lsn, NodeId};
pub use crate::transfer::{Chunk, EndReason, Ended, Fetch, MAX_CHUNK_BYTES};
use crate::transfer::{InvalidManifest, Manifest};
use scan::Scanned;

/// Version of the envelope.
pub const ENVELOPE_FORMAT: u32 = 1;
/// Most bytes of an encoded envelope. The largest valid ones are an append with one command of 8 MiB, or 1
/// MiB of small ones, and an offer of [`MAX_FILES`](crate::transfer::MAX_FILES) short names.
pub const MAX_ENVELOPE_BYTES: usize = 32 * 1024 * 1024;
/// Most entries of one append. They take at least 3 bytes each on the wire and some 100 in memory.
pub const MAX_ENTRIES: usize = 1 << 17;

/// The identity of a member in messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Identity {
    /// The cluster.
    pub cluster: ClusterId,
    /// The group.
    pub group: GroupId,
    /// The group's history.
    pub lineage: Lineage,
    /// The node.
    pub node: NodeId,
    /// This start of its process.
    pub incarnation: Incarnation,
}

impl Identity {
    /// A message from this member.
    pub fn seal(&self, to: NodeId, payload: Payload) -> Envelope {
        Envelope {
            sender: *self,
            to,
            log_is_full: false,
            payload,
        }
    }
}

/// A message with its sender and receiver.
#[derive(Clone, PartialEq, Debug)]
pub struct Envelope {
    /// The sender.
    pub sender: Identity,
    /// The receiving node.
    pub to: NodeId,
    /// The sender follows, and its node's log or disk is full: the leader is to keep nothing any more for members that
    /// are away ([`Event::GiveUpAbsent`](crate::engine::Event::GiveUpAbsent)). Earlier builds do not read it.
    pub log_is_full: bool,
    /// What.
    pub payload: Payload,
}

/// The content of a message. See the [module's head](self).
#[derive(Clone, PartialEq, Debug)]
pub enum Payload {
    /// For [`Event::Receive`](crate::engine::Event::Receive).
    Raft(PeerMessage),
    /// For the engine.
    Offer(Box<Manifest>),
    /// For the engine: this member cannot fetch it, and answers the leader so.
    NewerOffer(NewerOffer),
    /// For the engine.
    Wanted,
    /// For the engine.
    Progress(Progress),
    /// For the engine, and for both sides of a transfer.
    Ended(Ended),
    /// For the [`Sender`](crate::transfer::Sender).
    Fetch(Fetch),
    /// For the [`Receiver`](crate::transfer::Receiver).
    Chunk(Chunk),
}

/// An offer of a newer format: the fields that are the same in every format.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NewerOffer {
    /// The checkpoint.
    pub checkpoint: CheckpointId,
    /// Above [`OFFER_FORMAT`](crate::transfer::OFFER_FORMAT).
    pub format: u32,
}

/// What a member is fetching. Members that get it keep the log behind it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// The checkpoint.
    pub checkpoint: CheckpointId,
    /// From whom.
    pub source: NodeId,
    /// What it covers.
    pub last_included_index: Lsn,
    /// Bytes that are present, including those that were present before the fetch.
    pub bytes_done: u64,
    /// Of so many.
    pub bytes_total: u64,
}

/// A message of raft-rs; opaque.
#[derive(Clone, PartialEq)]
pub struct PeerMessage(pub(crate) eraftpb::Message);

/// Why bytes cannot be decoded as an envelope.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// Too many bytes; nothing was decoded.
    #[error("a message of {0} bytes, more than {MAX_ENVELOPE_BYTES}")]
    TooLarge(usize),
    /// The bytes are not a valid encoding.
    #[error("malformed: {0}")]
    Malformed(String),
    /// A newer version wrote it.
    #[error("the message has format {0}, this version knows up to {ENVELOPE_FORMAT}")]
    NewerFormat(u32),
    /// A field is missing, or out of its range.
    #[error("the message's {0} is missing or out of range")]
    Field(&'static str),
    /// A kind of message that is never sent between members.
    #[error("a message of kind {0} never travels")]
    Kind(u32),
    /// An offer that cannot be fetched, of a format that this version knows.
    #[error(transparent)]
    Offer(#[from] InvalidManifest),
}

impl Envelope {
    /// The encoded envelope. At most [`MAX_ENVELOPE_BYTES`] for messages of an engine.
    pub fn encode(&self) -> Vec<u8> {
        wire::Envelope::from(self).encode_to_vec()
    }

    /// Appends the encoded envelope to a buffer, without a copy in between.
    #[cfg(feature = "grpc")]
    pub(crate) fn encode_to(&self, buffer: &mut tonic::codec::EncodeBuf<'_>) {
        let envelope = wire::Envelope::from(self);
        buffer.reserve(envelope.encoded_len());
        envelope.encode_raw(buffer);
    }

    /// Decodes untrusted bytes.
    ///
    /// # Errors
    ///
    /// See [`DecodeError`].
    pub fn decode(bytes: impl Into<Bytes>) -> Result<Envelope, DecodeError> {
        let bytes = bytes.into();
        if bytes.len() > MAX_ENVELOPE_BYTES {
            return Err(DecodeError::TooLarge(bytes.len()));
        }
        let malformed = |e: prost::DecodeError| DecodeError::Malformed(e.to_string());
        match scan::check(&bytes)? {
            Scanned::Known => wire::Envelope::decode(bytes).map_err(malformed)?,
            Scanned::NewerOffer => wire::OfferEnvelope::decode(bytes)
                .map_err(malformed)?
                .into(),
        }
        .try_into()
    }

    /// Approximate encoded size, in bytes, without encoding it.
    pub fn size_hint(&self) -> usize {
        128 + match &self.payload {
            Payload::Raft(message) => {
                let entry = |e: &eraftpb::Entry| e.data.len() + e.context.len() + 24;
                message.0.entries.iter().map(entry).sum::<usize>()
            }
            Payload::Offer(manifest) => manifest.file_count() * 64,
            Payload::Chunk(chunk) => chunk.bytes.len(),
            _ => 0,
        }
    }
}

impl PeerMessage {
    /// The sender.
    pub fn from(&self) -> NodeId {
        NodeId(self.0.from)
    }

    /// The receiver.
    pub fn to(&self) -> NodeId {
        NodeId(self.0.to)
    }

    /// Whether it is a heartbeat.
    pub fn is_heartbeat(&self) -> bool {
        self.0.get_msg_type() == eraftpb::MessageType::MsgHeartbeat
    }
}

impl fmt::Debug for PeerMessage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PeerMessage")
            .field("kind", &self.0.get_msg_type())
            .field("from", &self.0.from)
            .field("to", &self.0.to)
            .field("term", &self.0.term)
            .finish_non_exhaustive()
    }
}
