//! What goes into an engine and what comes out of it.

use bytes::Bytes;
use raft::eraftpb;

use super::log_view::{Committed, LogFloor, LogRead, LogReadError, RawEntries};
use crate::ids::{CheckpointId, Lsn, NodeId, Term};
use crate::membership::{ChangeRefused, Membership, MembershipChange};
use crate::message::{EndReason, Envelope};
use crate::transfer::Manifest;

/// Names a proposal between the host and the engine; chosen by the host, unique while pending.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Ticket(pub u64);

/// Something that happened: input of [`Engine::step`](super::Engine::step).
#[derive(Debug)]
pub enum Event {
    /// One `tick_interval` has passed.
    Tick,
    /// Campaign now. The host of a sole voter steps it after the open.
    Campaign,
    /// A peer's message arrived. The engine drops fetches and chunks, which are for the transfers.
    Receive(Envelope),
    /// That peer cannot be reached at the moment.
    Unreachable(NodeId),
    /// The host proposes a command.
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
    /// The host has a durable snapshot; an attempt that was under way has ended. Moves the floor, unless
    /// the snapshot covers less than the one before.
    SnapshotTaken {
        /// Last entry that it covers.
        last_included_index: Lsn,
        /// That entry's term. If the log has another term there, the snapshot is of another history and
        /// counts as failed.
        term: Term,
        /// The membership as of that entry. Without it, the snapshot is offered to no peer.
        peers: Option<Membership>,
    },
    /// As [`Event::SnapshotTaken`], for a host that has the snapshot as bytes and has not stored it: the
    /// engine knows term and membership as of that entry, and answers with [`Action::StoreSnapshot`]. If it
    /// does not know them, because the membership was changed after that entry, the attempt counts as
    /// failed. An attempt that is under way goes on until [`Event::SnapshotTaken`].
    SnapshotBytes {
        /// Last entry that it covers; at most what is applied.
        last_included_index: Lsn,
        /// The state machine's own encoding.
        bytes: Bytes,
    },
    /// The host's attempt failed. After a pause there is another hint, whatever the thresholds are.
    SnapshotFailed,
    /// The host begins an attempt, after a hint or by itself. No hint is given until it has ended with
    /// [`Event::SnapshotTaken`] or [`Event::SnapshotFailed`].
    SnapshotBegun,
    /// The host wants the entries above `lsn` kept, also if a snapshot covers them. A later event replaces
    /// this one, with a lower or a higher LSN; removed entries do not come back. The engine does not
    /// remember it across a restart. Without it, compaction goes up to the floor.
    KeepFrom {
        /// Last entry that may be removed.
        lsn: Lsn,
    },
    /// The log has become too long: a leader keeps nothing any more for the members that are away now, which may need
    /// a snapshot when they are back ([`KeptForAbsent`](super::KeptForAbsent)). Another member tells its leader with
    /// the messages of the next ticks, and the leader does the same: to be repeated while the log is too long.
    GiveUpAbsent,
    /// The host wants to change the membership, one change at a time. A change is complete, and the next
    /// one possible, once [`Membership::is_joint`] is false in the applied state.
    ChangeMembership {
        /// Returned with the verdict.
        ticket: Ticket,
        /// Which change.
        change: MembershipChange,
    },
    /// The host wants another leader. Proposals are rejected meanwhile. If the transfer does not complete
    /// within an election timeout, this member goes on leading.
    TransferLeadership {
        /// Returned if the transfer is refused. Otherwise [`Action::Became`] has the result.
        ticket: Ticket,
        /// The voter that is to lead.
        to: NodeId,
    },
    /// The host wants a linearizable read. Answered with [`Action::ReadReady`] or [`Action::ReadFailed`],
    /// by followers too.
    ReadIndex {
        /// Returned with the answer.
        ticket: Ticket,
    },
    /// Whether the host's state may be wrong, so that no peer is to get it. While that is so, this member offers no
    /// snapshot; a peer that needs one waits. It goes on sending entries.
    WithholdSnapshots {
        /// From now on.
        withheld: bool,
    },
    /// The host cannot offer the snapshot that [`Action::OfferSnapshot`] names. If one is still needed, the
    /// engine hints at a newer one.
    OfferFailed {
        /// The peer for which it was meant.
        to: NodeId,
    },
    /// After a restart: part of this checkpoint is on disk. Answered with [`Action::FetchSnapshot`] if it
    /// is still needed, else with [`Action::AbandonFetch`].
    ResumeFetch {
        /// What was being fetched.
        offer: Box<Manifest>,
    },
    /// The answer to [`Action::ReadLog`].
    LogRead {
        /// What was to be read.
        read: LogRead,
        /// What the log's reader has returned.
        entries: Result<RawEntries, LogReadError>,
    },
    /// The progress of the fetch, for the status and the messages to other members.
    FetchProgress {
        /// Of which checkpoint.
        checkpoint: CheckpointId,
        /// Bytes that are there.
        bytes_done: u64,
        /// The disk here is full: it goes on once there is space.
        waits_for_space: bool,
    },
    /// The checkpoint is complete, durable and verified.
    SnapshotFetched {
        /// Which one.
        checkpoint: CheckpointId,
    },
    /// The fetch failed.
    FetchFailed {
        /// Of which checkpoint.
        checkpoint: CheckpointId,
        /// Why.
        reason: EndReason,
    },
    /// The host's state machine has durably become the snapshot's state. Step it only then.
    SnapshotInstalled {
        /// Which one.
        checkpoint: CheckpointId,
    },
    /// The host could not install the snapshot; its state machine is unchanged.
    InstallFailed {
        /// Which one.
        checkpoint: CheckpointId,
    },
    /// The entries that the host was handed do not follow what it has applied. Applying them again does not
    /// help; another engine, opened on the applied state, hands out the right ones. Answered with
    /// [`Action::Halt`].
    Broken {
        /// What is wrong.
        what: String,
    },
    /// The host's state is wrong, although log and entries are well: this member is to take part no more.
    /// Answered with [`Action::Halt`], and no other engine helps.
    Condemned {
        /// What is wrong.
        what: String,
    },
}

/// Something that the host has to do. See the [module's head](crate::engine).
#[derive(Debug)]
pub enum Action {
    /// Make durable.
    Persist(Persist),
    /// Deliver to peers.
    Send(Vec<Envelope>),
    /// Apply, in order.
    Apply(Vec<Committed>),
    /// The proposal is in the leader's log, at this LSN.
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
    /// Take a snapshot: step [`Event::SnapshotBegun`] when it begins, then [`Event::SnapshotTaken`] or
    /// [`Event::SnapshotFailed`]. A host that ignores a hint gets the next one when as much again has been
    /// applied.
    SnapshotHint {
        /// Last applied entry. The snapshot has to cover at least this.
        last_included_index: Lsn,
    },
    /// Store this snapshot durably, then step [`Event::SnapshotTaken`] with the same index, term and
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
    /// More entries than the guardrail allows are above the floor, and none of them is applied, so a
    /// snapshot cannot help. Emitted once until that is over.
    LogAlarm {
        /// Entries above the floor.
        entries: u64,
    },
    /// Read entries with a [`LogReader`](super::LogReader) of the log, and step [`Event::LogRead`]. It may take as long as the disk
    /// takes; the engine goes on meanwhile. Not emitted if the reader [reads at once](super::LogReader::reads_at_once).
    ReadLog(LogRead),
    /// Entries up to there may be removed from the log.
    Compact {
        /// The new log start.
        floor: LogFloor,
    },
    /// Offer this snapshot to a peer that lacks removed entries: publish its manifest at the
    /// [`Sender`](crate::transfer::Sender), and send it as
    /// [`Payload::Offer`](crate::message::Payload::Offer); or step [`Event::OfferFailed`].
    OfferSnapshot {
        /// To whom.
        to: NodeId,
        /// Last entry that the snapshot covers. It is the newest one that the host has reported.
        last_included_index: Lsn,
    },
    /// Fetch this checkpoint from its source, with a [`Receiver`](crate::transfer::Receiver); then step
    /// [`Event::SnapshotFetched`] or [`Event::FetchFailed`].
    FetchSnapshot {
        /// From whom.
        from: NodeId,
        /// What.
        offer: Box<Manifest>,
    },
    /// The fetch is not needed any more: end it and remove its files. Step no event for it.
    AbandonFetch {
        /// Of which checkpoint.
        checkpoint: CheckpointId,
    },
    /// Replace the state durably by the fetched snapshot. Then drop all entries that were handed out and
    /// are not applied, because the snapshot covers them, and step [`Event::SnapshotInstalled`]. If it
    /// fails, step [`Event::InstallFailed`] and go on applying: entries are not handed out a second time.
    /// The engine hands out no entries meanwhile.
    InstallSnapshot {
        /// What.
        offer: Box<Manifest>,
    },
    /// A read may be served from the applied state.
    ReadReady {
        /// Which read.
        ticket: Ticket,
        /// Everything up to here is applied.
        lsn: Lsn,
    },
    /// A read cannot be served. The host may try it again.
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
    /// The log could not be read, or has entries of a newer version; or the host stepped [`Event::Broken`]
    /// or [`Event::Condemned`]. It is the only action of its step, and the engine emits nothing after it.
    /// [`Engine::may_reopen`](super::Engine::may_reopen) returns whether another engine may be opened in
    /// its place.
    Halt {
        /// The operation, its object and the cause.
        what: String,
    },
}

/// What has to be made durable as one unit.
#[derive(Debug)]
pub struct Persist {
    /// Increases by at least one from each `Persist` to the next.
    pub number: u64,
    /// A snapshot was installed: empty the log first, and let it begin after this entry.
    pub(crate) restart: Option<LogFloor>,
    pub(crate) entries: Vec<eraftpb::Entry>,
    pub(crate) hard_state: eraftpb::HardState,
}

impl Persist {
    /// Approximate size in the log, in bytes.
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
    /// The entries above the floor are twice what the guardrail allows, and none of them is applied.
    LogFull,
    /// Leadership is being transferred.
    Transferring {
        /// To whom.
        to: NodeId,
    },
    /// The change of the membership is not possible, or not now.
    Membership(ChangeRefused),
    /// raft-rs refused it.
    Refused(String),
}

/// Why a read cannot be served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReadFailure {
    /// No leader is known.
    NoLeader,
    /// Too many reads are pending.
    Busy,
    /// No majority confirmed the leader in time, or the entries that were committed then were not applied
    /// here in time. The limit for each is three election timeouts.
    TimedOut,
    /// The group has halted or stopped.
    Stopped,
}

/// Role of a member.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// It takes proposals.
    Leader,
    /// Follows.
    Follower,
    /// It campaigns.
    Candidate,
}
