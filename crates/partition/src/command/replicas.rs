//! Commands on a partition's replicas: their log, and the digests of their state.

use crate::origin::Origin;

/// See [`Kind::NoteArchived`](super::Kind::NoteArchived).
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct NoteArchived {
    /// The lineage of the snapshot: 16 bytes.
    #[prost(bytes = "vec", tag = "1")]
    pub lineage: Vec<u8>,
    /// LSN of the oldest snapshot that the repository retains, or of an entry before it, above which a member that is
    /// away needs the log.
    #[prost(uint64, tag = "2")]
    pub lsn: u64,
}

/// See [`Kind::AskDigest`](super::Kind::AskDigest).
#[derive(Clone, Copy, PartialEq, Eq, prost::Message)]
pub struct AskDigest {
    /// What the digest covers: [`DIGEST_FORMAT`](crate::digest::DIGEST_FORMAT). A member that computes another
    /// one computes none.
    #[prost(uint32, tag = "1")]
    pub format: u32,
}

/// See [`Kind::NoteDigests`](super::Kind::NoteDigests).
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct NoteDigests {
    /// LSN of the entry that asked for them.
    #[prost(uint64, tag = "1")]
    pub lsn: u64,
    /// Time of the proposal, in milliseconds since the epoch.
    #[prost(uint64, tag = "2")]
    pub at_ms: u64,
    /// The digest of each member that has answered.
    #[prost(message, repeated, tag = "3")]
    pub answers: Vec<MemberDigest>,
    /// Whether answers of one origin count once. Not in entries of earlier builds: each of their answers counts, on
    /// every member, whenever such an entry is applied.
    #[prost(bool, tag = "4")]
    pub has_origins: bool,
}

/// See [`Kind::TrustReplica`](super::Kind::TrustReplica).
#[derive(Clone, Copy, PartialEq, Eq, prost::Message)]
pub struct TrustReplica {
    /// LSN of the entry that recorded the comparison that is decided by this.
    #[prost(uint64, tag = "1")]
    pub noted_at: u64,
    /// The member whose state is right.
    #[prost(uint64, tag = "2")]
    pub node: u64,
}

/// Why a replica was not taken for the right one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TrustRefusal {
    /// There is no undecided comparison.
    Decided,
    /// The last comparison is another one, recorded at this LSN.
    Another(u64),
    /// The member has no answer in it.
    NoAnswer,
}

/// The digest of a member's state.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct MemberDigest {
    /// The member.
    #[prost(uint64, tag = "1")]
    pub node: u64,
    /// 16 bytes, the highest first.
    #[prost(bytes = "vec", tag = "2")]
    pub digest: Vec<u8>,
    /// Whose work the state is of which it is; absent if that is not known.
    #[prost(message, optional, tag = "3")]
    pub origin: Option<Origin>,
}
