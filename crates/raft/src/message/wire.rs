//! The encoding. Numbers are promised: a field's tag is never used for anything else.

use bytes::Bytes;

#[derive(Clone, PartialEq, prost::Message)]
pub struct Envelope {
    #[prost(uint32, tag = "1")]
    pub format: u32,
    /// 16 bytes.
    #[prost(bytes = "bytes", tag = "2")]
    pub cluster: Bytes,
    #[prost(uint64, tag = "3")]
    pub group: u64,
    /// 16 bytes.
    #[prost(bytes = "bytes", tag = "4")]
    pub lineage: Bytes,
    #[prost(uint64, tag = "5")]
    pub from: u64,
    #[prost(uint64, tag = "6")]
    pub incarnation: u64,
    #[prost(uint64, tag = "7")]
    pub to: u64,
    #[prost(bool, tag = "8")]
    pub log_is_full: bool,
    #[prost(oneof = "Payload", tags = "10, 11, 12, 13, 14, 15, 16")]
    pub payload: Option<Payload>,
}

#[derive(Clone, PartialEq, prost::Oneof)]
pub enum Payload {
    #[prost(message, tag = "10")]
    Raft(RaftMessage),
    #[prost(message, tag = "11")]
    Offer(Offer),
    #[prost(message, tag = "12")]
    Progress(Progress),
    #[prost(message, tag = "13")]
    Ended(Ended),
    #[prost(message, tag = "14")]
    Fetch(Fetch),
    #[prost(message, tag = "15")]
    Chunk(Chunk),
    #[prost(message, tag = "16")]
    Wanted(Wanted),
}

/// raft-rs's message. Sender and receiver are the envelope's; a snapshot never travels in it.
#[derive(Clone, PartialEq, prost::Message)]
pub struct RaftMessage {
    /// As raft-rs numbers them.
    #[prost(uint32, tag = "1")]
    pub kind: u32,
    #[prost(uint64, tag = "2")]
    pub term: u64,
    #[prost(uint64, tag = "3")]
    pub log_term: u64,
    #[prost(uint64, tag = "4")]
    pub index: u64,
    #[prost(message, repeated, tag = "5")]
    pub entries: Vec<Entry>,
    #[prost(uint64, tag = "6")]
    pub commit: u64,
    #[prost(uint64, tag = "7")]
    pub commit_term: u64,
    #[prost(bool, tag = "8")]
    pub reject: bool,
    #[prost(uint64, tag = "9")]
    pub reject_hint: u64,
    #[prost(bytes = "bytes", tag = "10")]
    pub context: Bytes,
    #[prost(int64, tag = "11")]
    pub priority: i64,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct Entry {
    /// As raft-rs numbers them.
    #[prost(uint32, tag = "1")]
    pub kind: u32,
    #[prost(uint64, tag = "2")]
    pub term: u64,
    #[prost(uint64, tag = "3")]
    pub index: u64,
    #[prost(bytes = "bytes", tag = "4")]
    pub data: Bytes,
    #[prost(bytes = "bytes", tag = "5")]
    pub context: Bytes,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct Membership {
    #[prost(uint64, repeated, tag = "1")]
    pub voters: Vec<u64>,
    #[prost(uint64, repeated, tag = "2")]
    pub learners: Vec<u64>,
    #[prost(uint64, repeated, tag = "3")]
    pub voters_outgoing: Vec<u64>,
    #[prost(uint64, repeated, tag = "4")]
    pub learners_next: Vec<u64>,
    /// Of the learners; older versions leave them what they are.
    #[prost(uint64, repeated, tag = "5")]
    pub to_promote: Vec<u64>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct Offer {
    #[prost(uint32, tag = "1")]
    pub format: u32,
    /// 16 bytes.
    #[prost(bytes = "bytes", tag = "2")]
    pub checkpoint: Bytes,
    #[prost(uint64, tag = "3")]
    pub source: u64,
    #[prost(uint64, tag = "4")]
    pub last_included_index: u64,
    #[prost(uint64, tag = "5")]
    pub term: u64,
    #[prost(message, optional, tag = "6")]
    pub peers: Option<Membership>,
    /// Without a name: bytes instead of files.
    #[prost(message, optional, tag = "7")]
    pub bytes: Option<File>,
    #[prost(message, repeated, tag = "8")]
    pub files: Vec<File>,
}

/// An envelope with an offer of any format: what of it is the same in all of them.
#[derive(Clone, PartialEq, prost::Message)]
pub struct OfferEnvelope {
    #[prost(uint32, tag = "1")]
    pub format: u32,
    #[prost(bytes = "bytes", tag = "2")]
    pub cluster: Bytes,
    #[prost(uint64, tag = "3")]
    pub group: u64,
    #[prost(bytes = "bytes", tag = "4")]
    pub lineage: Bytes,
    #[prost(uint64, tag = "5")]
    pub from: u64,
    #[prost(uint64, tag = "6")]
    pub incarnation: u64,
    #[prost(uint64, tag = "7")]
    pub to: u64,
    #[prost(message, optional, tag = "11")]
    pub offer: Option<OfferHead>,
}

/// How an [`Offer`] begins, whatever its format.
#[derive(Clone, PartialEq, prost::Message)]
pub struct OfferHead {
    #[prost(uint32, tag = "1")]
    pub format: u32,
    /// 16 bytes.
    #[prost(bytes = "bytes", tag = "2")]
    pub checkpoint: Bytes,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct File {
    #[prost(string, tag = "1")]
    pub name: String,
    #[prost(uint64, tag = "2")]
    pub size: u64,
    /// 16 bytes, big-endian.
    #[prost(bytes = "bytes", tag = "3")]
    pub checksum: Bytes,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct Progress {
    /// 16 bytes.
    #[prost(bytes = "bytes", tag = "1")]
    pub checkpoint: Bytes,
    #[prost(uint64, tag = "2")]
    pub source: u64,
    #[prost(uint64, tag = "3")]
    pub last_included_index: u64,
    #[prost(uint64, tag = "4")]
    pub bytes_done: u64,
    #[prost(uint64, tag = "5")]
    pub bytes_total: u64,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct Ended {
    /// 16 bytes.
    #[prost(bytes = "bytes", tag = "1")]
    pub checkpoint: Bytes,
    #[prost(uint32, tag = "2")]
    pub reason: u32,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct Fetch {
    /// 16 bytes.
    #[prost(bytes = "bytes", tag = "1")]
    pub checkpoint: Bytes,
    #[prost(uint32, tag = "2")]
    pub file: u32,
    #[prost(uint64, tag = "3")]
    pub offset: u64,
    #[prost(uint32, tag = "4")]
    pub length: u32,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct Chunk {
    /// 16 bytes.
    #[prost(bytes = "bytes", tag = "1")]
    pub checkpoint: Bytes,
    #[prost(uint32, tag = "2")]
    pub file: u32,
    #[prost(uint64, tag = "3")]
    pub offset: u64,
    #[prost(bytes = "bytes", tag = "4")]
    pub bytes: Bytes,
    /// 16 bytes, big-endian.
    #[prost(bytes = "bytes", tag = "5")]
    pub checksum: Bytes,
}

#[derive(Clone, Copy, PartialEq, prost::Message)]
pub struct Wanted {}

/// raft-rs's `ConfChangeV2`, by its own numbers: it is what the log holds.
#[derive(Clone, PartialEq, prost::Message)]
pub struct ConfChange {
    #[prost(int32, tag = "1")]
    pub transition: i32,
    #[prost(message, repeated, tag = "2")]
    pub changes: Vec<ConfChangeSingle>,
    #[prost(bytes = "bytes", tag = "3")]
    pub context: Bytes,
}

#[derive(Clone, Copy, PartialEq, prost::Message)]
pub struct ConfChangeSingle {
    #[prost(int32, tag = "1")]
    pub change_type: i32,
    #[prost(uint64, tag = "2")]
    pub node_id: u64,
}
