//! What goes into an engine and what comes out of it.

use std::sync::Arc;

use bytes::Bytes;
use raft::eraftpb;
use xxhash_rust::xxh3::Xxh3Default;

use crate::ids::{CheckpointId, Lsn, NodeId, Term};
use crate::membership::{ChangeRefused, Membership, MembershipChange};
use crate::message::{EndReason, Envelope};
use crate::transfer::Manifest;

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
    /// A peer's message arrived. Fetches and chunks are not the engine's, and are dropped.
    Receive(Envelope),
    /// Nothing gets through to that peer at the moment.
    Unreachable(NodeId),
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
        /// Who belonged to the group, as of that entry. Unknown, the snapshot is offered to nobody.
        peers: Option<Membership>,
    },
    /// As [`Event::SnapshotTaken`], for a host that has the snapshot as bytes and has not stored it: the
    /// engine knows term and membership as of that entry, and answers with [`Action::StoreSnapshot`]. If
    /// it does not know them, because the membership was changed after that entry, the attempt counts as
    /// failed. An attempt that is under way goes on until the host says [`Event::SnapshotTaken`].
    SnapshotBytes {
        /// Last entry that it covers; at most what is applied.
        last_included_index: Lsn,
        /// The state machine's own encoding.
        bytes: Bytes,
    },
    /// The host's attempt came to nothing. After a pause there is a hint, whatever the thresholds are.
    SnapshotFailed,
    /// The host begins an attempt, after a hint or by itself. No hint is given until it has ended with
    /// [`Event::SnapshotTaken`] or [`Event::SnapshotFailed`].
    SnapshotBegun,
    /// The host wants the entries above `lsn` kept, also if a snapshot covers them. Said again, it
    /// holds from then on, lower or higher; what is gone is gone. It is not remembered across a
    /// restart, and until it is said, compaction goes up to the floor.
    KeepFrom {
        /// Last entry that may go.
        lsn: Lsn,
    },
    /// The host wants another membership. One change at a time; it is in force, and the next one
    /// possible, once [`Membership::is_joint`] is over in what is applied.
    ChangeMembership {
        /// Returned with the verdict.
        ticket: Ticket,
        /// Which change.
        change: MembershipChange,
    },
    /// The host wants another leader. Proposals are rejected meanwhile; if it does not come about
    /// within an election timeout, this member goes on leading.
    TransferLeadership {
        /// Returned if it is refused; otherwise [`Action::Became`] tells.
        ticket: Ticket,
        /// The voter that is to lead.
        to: NodeId,
    },
    /// The host wants to read what is not older than this moment. Answered with
    /// [`Action::ReadReady`] or [`Action::ReadFailed`], by followers too.
    ReadIndex {
        /// Returned with the answer.
        ticket: Ticket,
    },
    /// The host cannot offer the snapshot that [`Action::OfferSnapshot`] names. A newer one is hinted at
    /// if it is still needed.
    OfferFailed {
        /// To whom it was to be offered.
        to: NodeId,
    },
    /// After a restart: part of this checkpoint is there. Answered with
    /// [`Action::FetchSnapshot`] if it still makes sense, else with [`Action::AbandonFetch`].
    ResumeFetch {
        /// What was being fetched.
        offer: Box<Manifest>,
    },
    /// So far the fetch has come; for the status, and for what the others are told.
    FetchProgress {
        /// Of which checkpoint.
        checkpoint: CheckpointId,
        /// Bytes that are there.
        bytes_done: u64,
    },
    /// Everything of the checkpoint is there, durable and verified.
    SnapshotFetched {
        /// Which one.
        checkpoint: CheckpointId,
    },
    /// The fetch came to nothing.
    FetchFailed {
        /// Of which checkpoint.
        checkpoint: CheckpointId,
        /// Why.
        reason: EndReason,
    },
    /// The host's state machine is, durably, what the snapshot says. Not before.
    SnapshotInstalled {
        /// Which one.
        checkpoint: CheckpointId,
    },
    /// The host could not install it; its state machine is as it was.
    InstallFailed {
        /// Which one.
        checkpoint: CheckpointId,
    },
    /// What the host was handed does not follow on what it has applied: applying it again does not help,
    /// and an engine that is opened on what is applied hands out what follows. Answered with
    /// [`Action::Halt`].
    Broken {
        /// What is wrong.
        what: String,
    },
}

/// Something that has to be done. See the [module's head](crate::engine).
#[derive(Debug)]
pub enum Action {
    /// Make durable.
    Persist(Persist),
    /// Deliver to peers.
    Send(Vec<Envelope>),
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
    /// Please take a snapshot: [`Event::SnapshotBegun`] when it begins, then
    /// [`Event::SnapshotTaken`] or [`Event::SnapshotFailed`]. A host that does nothing gets the next hint
    /// when as much again has been applied.
    SnapshotHint {
        /// What is applied now: the snapshot covers at least this.
        last_included_index: Lsn,
    },
    /// Store this snapshot durably, then say [`Event::SnapshotTaken`] with the same index, term and
    /// membership; or [`Event::SnapshotFailed`].
    StoreSnapshot {
        /// Last entry that it covers.
        last_included_index: Lsn,
        /// That entry's term.
        term: Term,
        /// Who belongs to the group, as of that entry.
        peers: Membership,
        /// What [`Event::SnapshotBytes`] carried.
        bytes: Bytes,
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
    /// Offer this snapshot to a peer, which lacks entries that are gone: publish its manifest at the
    /// [`Sender`](crate::transfer::Sender), and send it as [`Payload::Offer`](crate::message::Payload::Offer);
    /// or say [`Event::OfferFailed`].
    OfferSnapshot {
        /// To whom.
        to: NodeId,
        /// Which one: what it covers. It is the newest that the host has spoken of.
        last_included_index: Lsn,
    },
    /// Fetch this checkpoint from its source, with a [`Receiver`](crate::transfer::Receiver); then
    /// say [`Event::SnapshotFetched`] or [`Event::FetchFailed`].
    FetchSnapshot {
        /// From whom.
        from: NodeId,
        /// What.
        offer: Box<Manifest>,
    },
    /// The fetch is not needed any more: end it, also on disk. Nothing is to be said.
    AbandonFetch {
        /// Of which checkpoint.
        checkpoint: CheckpointId,
    },
    /// Let the state machine be what was fetched, durably; with that done, forget everything that was
    /// handed out for applying and is not applied: it is covered. Then say
    /// [`Event::SnapshotInstalled`]; or [`Event::InstallFailed`], and go on applying: what was handed
    /// out does not come again. Nothing is handed out for applying meanwhile.
    InstallSnapshot {
        /// What.
        offer: Box<Manifest>,
    },
    /// A read may be served from what is applied.
    ReadReady {
        /// Which read.
        ticket: Ticket,
        /// At least everything up to there was applied.
        lsn: Lsn,
    },
    /// A read cannot be served. It may be tried again.
    ReadFailed {
        /// Which read.
        ticket: Ticket,
        /// Why.
        reason: ReadFailure,
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
    /// The log could not be read, or holds what this version does not know; or the host said
    /// [`Event::Broken`]. It comes alone, and nothing more comes from this engine:
    /// [`Engine::may_reopen`](super::Engine::may_reopen) tells whether another one may be opened in its place.
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
    /// The log is to be emptied first, and to begin after this: a snapshot was installed.
    pub(crate) restart: Option<LogFloor>,
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

    /// The last of the entries that changes the membership, if there is one.
    pub(crate) fn last_change(&self) -> Option<Lsn> {
        let changes = |e: &&eraftpb::Entry| e.get_entry_type() != eraftpb::EntryType::EntryNormal;
        let last = self.entries.iter().rev().find(changes);
        last.map(|entry| Lsn(entry.index))
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
    /// The command; `None` for the empty entry with which a leader begins its term, and for one that
    /// changes the membership.
    pub command: Option<Bytes>,
    /// If the entry changes the membership: what it is from this entry on. Whoever keeps the state
    /// keeps it with the state.
    pub membership: Option<Arc<Membership>>,
    /// xxh3-64 of the entry as the log has it: its LSN, its term, its kind and its data. Two histories
    /// that are numbered alike are told apart by it.
    pub checksum: u64,
}

/// See [`Committed::checksum`].
pub(crate) fn entry_checksum(entry: &eraftpb::Entry) -> u64 {
    let mut hash = Xxh3Default::new();
    hash.update(&entry.index.to_be_bytes());
    hash.update(&entry.term.to_be_bytes());
    hash.update(&[entry.get_entry_type() as u8]);
    hash.update(&entry.data);
    hash.digest()
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
    /// Leadership is being transferred.
    Transferring {
        /// To whom.
        to: NodeId,
    },
    /// The membership cannot be changed so, or not now.
    Membership(ChangeRefused),
    /// The consensus layer refused it.
    Refused(String),
}

/// Why a read cannot be served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReadFailure {
    /// No leader is known.
    NoLeader,
    /// Too many reads are pending.
    Busy,
    /// No majority confirmed the leader in time, or what was committed then was not applied here in time:
    /// three election timeouts each.
    TimedOut,
    /// The group has halted, or was stopped: nothing is answered here any more.
    Stopped,
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
    /// The last entry that changes the membership, or one above it; 0 if there never was one.
    pub(crate) last_change: Lsn,
    pub(crate) hard_state: eraftpb::HardState,
}

impl PersistedState {
    /// Whether nothing was ever written: no entry, no term, no vote.
    pub fn is_blank(&self) -> bool {
        self.last.0 == 0 && self.hard_state.term == 0 && self.hard_state.vote == 0
    }

    /// Whether the log has that entry, of that term, or has had it and goes on after it.
    pub fn continues(&self, at: LogFloor, reader: &dyn LogReader) -> bool {
        if at.lsn == self.start.lsn {
            return at.term == self.start.term;
        }
        (self.start.lsn..=self.last).contains(&at.lsn)
            && reader.term(at.lsn).is_ok_and(|term| term == at.term)
    }

    /// The log as it has to be after a snapshot was installed that covers everything up to `at`: it
    /// begins there, and holds nothing. Term and vote stay: they are promises to others.
    #[must_use]
    pub fn restarted_after(mut self, at: LogFloor) -> PersistedState {
        self.start = at;
        self.last = at.lsn;
        if self.hard_state.term < at.term.0 {
            self.hard_state.term = at.term.0;
            self.hard_state.vote = 0;
        }
        self.hard_state.commit = at.lsn.0;
        self.last_change = Lsn(0);
        self
    }
}

/// Reads entries that are no longer in memory.
pub trait LogReader: Send {
    /// Entries `[low, high)`, at least one, stopping once `max_bytes` are exceeded.
    fn entries(&self, low: Lsn, high: Lsn, max_bytes: u64) -> Result<RawEntries, LogReadError>;
    /// Term of one entry.
    fn term(&self, lsn: Lsn) -> Result<Term, LogReadError>;
}

/// Why entries could not be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LogReadError {
    /// The operating system refused: the same may work later, and nothing is known to be damaged.
    #[error("{0}")]
    Unreadable(String),
    /// Entries are missing, or are not what was written.
    #[error("{0}")]
    Damaged(String),
}

impl LogReadError {
    /// Whether the same may work later.
    pub fn is_unreadable(&self) -> bool {
        matches!(self, LogReadError::Unreadable(_))
    }
}

/// Entries as the log stores them; opaque outside this crate.
#[derive(Debug)]
pub struct RawEntries(pub(crate) Vec<eraftpb::Entry>);

impl RawEntries {
    /// As they are applied, but for what a change of the membership leads to: that depends on those
    /// before. Whoever reads them from a log has to know that they are committed.
    pub fn into_committed(self) -> Result<Vec<Committed>, String> {
        let committed = |entry: eraftpb::Entry| match entry.get_entry_type() {
            eraftpb::EntryType::EntryNormal => Ok(Committed {
                checksum: entry_checksum(&entry),
                lsn: Lsn(entry.index),
                term: Term(entry.term),
                command: (!entry.data.is_empty()).then_some(entry.data),
                membership: None,
            }),
            eraftpb::EntryType::EntryConfChangeV2 => Ok(Committed {
                checksum: entry_checksum(&entry),
                lsn: Lsn(entry.index),
                term: Term(entry.term),
                command: None,
                membership: None,
            }),
            eraftpb::EntryType::EntryConfChange => Err(format!(
                "the entry at LSN {} is of a kind that nobody writes",
                entry.index
            )),
        };
        self.0.into_iter().map(committed).collect()
    }
}
