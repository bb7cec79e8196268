//! What goes into an engine and what comes out of it.

use std::fmt;

use bytes::Bytes;
use protobuf::Message as _;
use raft::eraftpb;

use crate::ids::{Lsn, NodeId, Term};

/// Names a proposal between the host and the engine; chosen by the host, unique while pending.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Ticket(pub u64);

/// Something that happened.
#[derive(Debug)]
pub enum Event {
    /// One `tick_interval` has passed.
    Tick,
    /// Stand for election now. A group of one does so when it opens.
    Campaign,
    /// A peer's message arrived.
    Receive(PeerMessage),
    /// The host wants a command in the log.
    Propose {
        /// Returned with the verdict.
        ticket: Ticket,
        /// Opaque bytes; 1 to [`MAX_COMMAND_BYTES`](super::MAX_COMMAND_BYTES).
        command: Vec<u8>,
    },
    /// As [`Event::Propose`], for several at once, in order.
    ProposeBatch(Vec<(Ticket, Vec<u8>)>),
    /// Everything up to this [`Persist::number`] is durable.
    Persisted {
        /// The number.
        number: u64,
    },
    /// The host has applied everything up to here.
    Applied {
        /// Last applied entry.
        lsn: Lsn,
    },
    /// The host has a durable snapshot, and if an attempt was under way, it has ended. Moves the
    /// floor, unless the snapshot covers less than the one before.
    SnapshotTaken {
        /// Last entry that it covers.
        last_included_index: Lsn,
        /// That entry's term. A snapshot whose term the log contradicts is of another history: it
        /// counts as failed.
        term: Term,
    },
    /// The attempt that a hint or the host began came to nothing.
    SnapshotFailed,
    /// The host began an attempt by itself. No hint is given until it has ended.
    SnapshotBegun,
    /// The host wants the entries above `lsn` kept, also if a snapshot covers them. Said again, it
    /// holds from then on, lower or higher; what is gone is gone. It is not remembered across a
    /// restart, and until it is said, compaction goes up to the floor.
    KeepFrom {
        /// Last entry that may go.
        lsn: Lsn,
    },
}

/// Something that has to be done. See the [module's head](crate::engine).
#[derive(Debug)]
pub enum Action {
    /// Make durable.
    Persist(Persist),
    /// Deliver to peers.
    Send(Vec<PeerMessage>),
    /// Apply, in order.
    Apply(Vec<Committed>),
    /// The proposal is in the leader's log, at this place.
    Accepted {
        /// Which proposal.
        ticket: Ticket,
        /// Its place.
        lsn: Lsn,
        /// The term it was proposed in.
        term: Term,
    },
    /// The proposal is not in the log and never will be.
    Rejected {
        /// Which proposal.
        ticket: Ticket,
        /// Why.
        reason: RejectReason,
    },
    /// Please take a snapshot. The attempt is under way until the host says
    /// [`Event::SnapshotTaken`] or [`Event::SnapshotFailed`].
    SnapshotHint {
        /// What is applied now: the snapshot covers at least this.
        last_included_index: Lsn,
    },
    /// More entries than the guardrail allows are above the floor, and apply stands there, so that a
    /// snapshot cannot help. Said once, until that is over.
    LogAlarm {
        /// Entries above the floor.
        entries: u64,
    },
    /// Entries up to there may be removed from the log.
    Compact {
        /// The new log start.
        floor: LogFloor,
    },
    /// Role or leader changed.
    Became {
        /// The role now.
        role: Role,
        /// The leader now, if known.
        leader: Option<NodeId>,
        /// The term now.
        term: Term,
    },
    /// The log could not be read, or holds what this version does not know. It comes alone, and
    /// nothing more comes from this engine.
    Halt {
        /// What happened, to what.
        what: String,
    },
}

/// What has to be made durable as one unit.
#[derive(Debug)]
pub struct Persist {
    /// Rises by at least one from one to the next.
    pub number: u64,
    pub(crate) entries: Vec<eraftpb::Entry>,
    pub(crate) hard_state: eraftpb::HardState,
}

impl Persist {
    /// Rough size in bytes in the log.
    pub fn bytes(&self) -> u64 {
        let entries: usize = self
            .entries
            .iter()
            .map(|e| e.data.len() + e.context.len() + 24)
            .sum();
        entries as u64 + 64
    }

    /// How many entries.
    pub fn entries(&self) -> usize {
        self.entries.len()
    }
}

/// A committed entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Committed {
    /// Its place.
    pub lsn: Lsn,
    /// The term that it was proposed in.
    pub term: Term,
    /// The command; `None` for the empty entry with which a leader begins its term.
    pub command: Option<Bytes>,
}

/// Why a proposal was refused before it had any effect.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RejectReason {
    /// Only the leader takes proposals.
    NotLeader {
        /// The leader, if known.
        leader: Option<NodeId>,
    },
    /// Too many proposals are pending.
    Busy,
    /// Apply stands at the floor, and the entries above it are twice what the guardrail allows.
    LogFull,
    /// The consensus layer refused it.
    Refused(String),
}

/// Role of a member.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Takes proposals.
    Leader,
    /// Follows.
    Follower,
    /// Stands for election.
    Candidate,
}

/// Who belongs to a group.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Membership {
    /// Members with a vote, sorted.
    pub voters: Vec<NodeId>,
    /// Members without, sorted.
    pub learners: Vec<NodeId>,
}

/// Where the log begins: entries at or below are gone, the term of the last one is kept.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LogFloor {
    /// Last entry that may be gone.
    pub lsn: Lsn,
    /// Its term.
    pub term: Term,
}

/// What the log remembers of a group.
#[derive(Clone, Debug, Default)]
pub struct PersistedState {
    /// Where the log begins.
    pub start: LogFloor,
    /// Its last entry; the start's if it has none.
    pub last: Lsn,
    /// What the host wrote at [`begin_group`](crate::log::SharedLog::begin_group), if it did.
    pub tag: Option<Vec<u8>>,
    pub(crate) hard_state: eraftpb::HardState,
}

/// Reads entries that are no longer in memory.
pub trait LogReader: Send {
    /// Entries `[low, high)`, at least one, stopping once `max_bytes` are exceeded.
    fn entries(&self, low: Lsn, high: Lsn, max_bytes: u64) -> Result<RawEntries, String>;
    /// Term of one entry.
    fn term(&self, lsn: Lsn) -> Result<Term, String>;
}

/// Entries as the log stores them; opaque outside this crate.
#[derive(Debug)]
pub struct RawEntries(pub(crate) Vec<eraftpb::Entry>);

impl RawEntries {
    /// As they are applied. Whoever reads them from a log has to know that they are committed.
    pub fn into_committed(self) -> Result<Vec<Committed>, String> {
        let committed = |entry: eraftpb::Entry| match entry.get_entry_type() {
            eraftpb::EntryType::EntryNormal => Ok(Committed {
                lsn: Lsn(entry.index),
                term: Term(entry.term),
                command: (!entry.data.is_empty()).then_some(entry.data),
            }),
            _ => Err(format!(
                "the entry at LSN {} changes the membership, which this version cannot do",
                entry.index
            )),
        };
        self.0.into_iter().map(committed).collect()
    }
}

/// A message between members; opaque.
#[derive(Clone, PartialEq)]
pub struct PeerMessage(pub(crate) eraftpb::Message);

impl PeerMessage {
    /// The sender.
    pub fn from(&self) -> NodeId {
        NodeId(self.0.from)
    }

    /// The receiver.
    pub fn to(&self) -> NodeId {
        NodeId(self.0.to)
    }

    /// Bytes for the wire.
    pub fn encode(&self) -> Vec<u8> {
        self.0
            .write_to_bytes()
            .expect("a message in memory serializes")
    }

    /// Parses what [`PeerMessage::encode`] made. Kinds that only exist inside a member are
    /// refused.
    pub fn decode(bytes: &[u8]) -> Result<PeerMessage, String> {
        let message = eraftpb::Message::parse_from_bytes(bytes).map_err(|e| e.to_string())?;
        if !super::is_peer_message(message.get_msg_type()) {
            return Err(format!(
                "message kind {:?} never travels",
                message.get_msg_type()
            ));
        }
        Ok(PeerMessage(message))
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
