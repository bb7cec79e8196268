//! Appends, and the answers to them.

use bytes::Bytes;
use s2_common::record::{FencingToken, SeqNum, StreamPosition};

use crate::batch::Unsequenced;
use crate::ids::StreamId;

/// See [`Kind::Append`](super::Kind::Append).
#[derive(Clone, PartialEq, prost::Message)]
pub struct Append {
    /// The stream.
    #[prost(uint64, tag = "1")]
    pub stream: u64,
    /// Number of records.
    #[prost(uint32, tag = "2")]
    pub count: u32,
    /// See [`Unsequenced::body`].
    #[prost(bytes = "bytes", tag = "3")]
    pub body: Bytes,
    /// See [`Unsequenced::timestamps`].
    #[prost(uint64, repeated, tag = "4")]
    pub timestamps: Vec<u64>,
    /// See [`Unsequenced::has_commands`].
    #[prost(bool, tag = "5")]
    pub has_commands: bool,
    /// The sequence number that the first record must get.
    #[prost(uint64, optional, tag = "6")]
    pub match_seq_num: Option<u64>,
    /// The fencing token that must be in force.
    #[prost(string, optional, tag = "7")]
    pub fencing_token: Option<String>,
    /// When it arrived, in milliseconds since the epoch.
    #[prost(uint64, tag = "8")]
    pub arrival_ms: u64,
    /// The append session that it belongs to; 0 for none. After the first refusal of a session, its later
    /// appends that are in the log already are refused too.
    #[prost(uint64, tag = "9")]
    pub session: u64,
    /// See [`Unsequenced::cipher`].
    #[prost(uint32, tag = "10")]
    pub cipher: u32,
    /// The term in which those appends of the session were proposed that were not answered yet when this one
    /// was; 0 if an earlier build proposed it, and for an append that is of no session. In a later term it is
    /// refused, because another leader's entries may have taken the place of some of them. In one term, the
    /// log has all of them before it.
    #[prost(uint64, tag = "11")]
    pub session_term: u64,
}

impl Append {
    /// An append without conditions.
    pub fn new(stream: StreamId, records: Unsequenced, arrival_ms: u64) -> Append {
        Append {
            stream: stream.0,
            count: records.count,
            body: records.body,
            timestamps: records.timestamps,
            has_commands: records.has_commands,
            match_seq_num: None,
            fencing_token: None,
            arrival_ms,
            session: 0,
            session_term: 0,
            cipher: records.cipher,
        }
    }

    /// The records.
    pub fn records(&self) -> Unsequenced {
        Unsequenced {
            count: self.count,
            body: self.body.clone(),
            timestamps: self.timestamps.clone(),
            has_commands: self.has_commands,
            cipher: self.cipher,
        }
    }
}

/// The positions of an append's records.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Appended {
    /// The first record.
    pub start: StreamPosition,
    /// The sequence number after the last record, and the last record's timestamp.
    pub end: StreamPosition,
    /// The stream's tail.
    pub tail: StreamPosition,
}

/// Why nothing was appended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AppendRefusal {
    /// The stream is gone.
    StreamGone,
    /// Another fencing token is in force: this one.
    FencingTokenMismatch(FencingToken),
    /// The first record would get another sequence number: this one.
    SeqNumMismatch(SeqNum),
    /// The stream requires timestamps, and a record had none.
    TimestampMissing,
    /// The stream does not have enough sequence numbers left.
    SeqNumsExhausted,
    /// The records are not of the stream's cipher.
    CipherMismatch,
    /// The stream's cipher may encrypt no more records of it:
    /// [`MAX_AES_256_GCM_RECORDS`](crate::encryption::MAX_AES_256_GCM_RECORDS).
    CipherExhausted,
    /// An earlier append of the same session was refused.
    SessionFailed,
    /// The partition has had another leader since appends of the same session were proposed that were not
    /// answered yet.
    LeaderChanged,
}
