//! The sans-IO façade over raft-rs: events in, actions out. It must know no clock, no thread, no disk but
//! the log behind its [`LogReader`], and no transport.
//!
//! An [`Engine`] is one member of one group. It has old entries read by its host. Its only I/O are lookups through the
//! given [`LogReader`] when it is opened, and rare ones afterwards (`storage.rs`). It reads no clock and starts no thread: the same sequence of events gives the same
//! actions.
//!
//! What the host has to do with the actions:
//!
//! - [`Action::Persist`]: make it durable, in the given order, then step [`Event::Persisted`] with its
//!   number. One sync may make several durable; the last number then covers all before it.
//! - [`Action::Apply`]: apply in order, then step [`Event::Applied`].
//! - [`Action::SnapshotHint`]: take a snapshot, and meanwhile go on with everything else. Step
//!   [`Event::SnapshotBegun`] when it begins, also if there was no hint before, and
//!   [`Event::SnapshotTaken`] or [`Event::SnapshotFailed`] when it ends. A host that has the snapshot as
//!   bytes in memory may step [`Event::SnapshotBytes`] instead, and then carries out
//!   [`Action::StoreSnapshot`].
//! - [`Action::LogAlarm`]: the log grows and nothing of it is applied; report it to an operator.
//! - [`Action::ReadLog`]: read, and then step [`Event::LogRead`]. Other events may be stepped meanwhile.
//! - [`Action::Compact`]: entries up to there may be removed from the log, at any time.
//! - [`Action::Send`]: deliver to peers; messages may be lost, delayed or repeated.
//! - [`Action::OfferSnapshot`], [`Action::FetchSnapshot`], [`Action::AbandonFetch`],
//!   [`Action::InstallSnapshot`]: how a peer catches up whose next entries are removed; `peers.rs` has the
//!   order of the messages, and [`crate::transfer`] moves the bytes.
//! - [`Action::ReadReady`] / [`Action::ReadFailed`]: the answer to [`Event::ReadIndex`].
//! - [`Action::Accepted`] / [`Action::Rejected`]: whether a proposal enters the log. An accepted one has
//!   taken effect if and only if an entry of that LSN *and* that term is applied.
//!
//! A new commit index alone is not persisted: it is written with the next entries, and at an open the
//! commit index is the larger of the stored one and what the host has applied.
//!
//! Entries may be removed up to the *floor*, the last entry that the newest snapshot covers, or less far if
//! the host steps [`Event::KeepFrom`], or if a member that is away needs them. The *log start* is the entry that compaction has reached. The engine
//! does not remember the newest snapshot across a restart: the host steps [`Event::SnapshotTaken`] again.
//! Of entries that were applied before the open, the engine counts how many are above the floor, and not
//! their bytes; entries that are applied later, replayed or new, are counted with their bytes.

#![deny(clippy::disallowed_methods)]

mod change_confirmation;
mod commit_notice;
mod compaction;
mod config;
mod event;
mod guard;
mod log_reads;
mod log_view;
mod membership;
mod peers;
mod proposals;
mod reads;
mod ready;
mod receive;
mod snapshots;
mod status;
mod storage;
mod terms;
#[cfg(test)]
mod tests;

pub use crate::membership::{ChangeRefused, Membership, MembershipChange, VoterChange};
pub use config::{Config, KeptForAbsent, OpenError};
pub use event::{Action, Event, Persist, ReadFailure, RejectReason, Role, Ticket};
pub use guard::panic_is_caught;
pub(crate) use log_view::entry_checksum;
pub use log_view::{
    Committed, LogFloor, LogRead, LogReadError, LogReader, PersistedState, RawEntries,
};
pub use membership::MAX_PROMOTION_LAG;
pub use peers::{KeptLog, TransferStatus};
pub use status::{Counters, PeerState, PeerStatus, Status};
pub(crate) use terms::{MAX_TERMS_AT_OPEN, find_terms};

use std::collections::VecDeque;

use raft::{Config as RaftConfig, RawNode, StateRole};

use crate::ids::{Lsn, NodeId, Term};
use crate::message::{Gate, Identity};
use peers::Peers;
use reads::Reads;
use ready::Outstanding;
use snapshots::Snapshots;
use storage::EngineStorage;

/// Most bytes of committed entries that raft-rs hands out at once.
const MAX_COMMITTED_PER_READY: u64 = 1024 * 1024;

/// Most bytes of entries in one message to a peer; an entry that is larger travels alone.
const MAX_MESSAGE_BYTES: u64 = 1024 * 1024;

/// Most messages with entries that a peer has not acknowledged. 16 messages of 1 MiB are a quarter of what
/// a link queues for one peer ([`MAX_QUEUED_BYTES`], 64 MiB), so messages to a peer that catches up are not
/// dropped there and need not be read and sent again. With a round trip of 10 ms that is 1.6 GB/s, with 100
/// ms 160 MB/s. Only commands of more than 4 MiB can exceed what a link queues.
///
/// [`MAX_QUEUED_BYTES`]: crate::limits::MAX_QUEUED_BYTES
const MAX_MESSAGES_IN_FLIGHT: usize = 16;
const _: () = assert!(
    MAX_MESSAGES_IN_FLIGHT as u64 * MAX_MESSAGE_BYTES * 4 <= crate::limits::MAX_QUEUED_BYTES as u64
);

/// Bytes of the log that are read at once for a peer, and are in memory until its messages are sent: half of what may be
/// under way to it. Without asking the host, a step reads no more; one more message is always read.
const MAX_READ_FOR_PEERS: u64 = 8 * MAX_MESSAGE_BYTES;

/// Most bytes of a command. A command is written to the log in one piece, and the inspection of a torn log
/// allows for a torn piece of this size.
pub const MAX_COMMAND_BYTES: usize = 8 * 1024 * 1024;

/// One member of one group. See the module's head.
pub struct Engine {
    raw: RawNode<EngineStorage>,
    config: Config,
    /// Readies handed out and not yet durable, oldest first.
    outstanding: VecDeque<Outstanding>,
    role: Role,
    leader: NodeId,
    applied: Lsn,
    /// Committed entries handed out and not yet applied, with their sizes.
    backlog: VecDeque<(Lsn, u64)>,
    backlog_bytes: u64,
    snapshots: Snapshots,
    gate: Gate,
    /// As of what was handed out for applying.
    membership: Membership,
    peers: Peers,
    reads: Reads,
    counters: Counters,
    /// The commit index that was last announced in messages of its own: see `commit_notice.rs`.
    announced: Lsn,
    /// The last change of the voters is confirmed once an entry above this is committed: see `change_confirmation.rs`.
    confirmed_above: Lsn,
    /// Ticks since the open.
    ticks: u64,
    /// Until this tick, after the open or an election, the log is not compacted: first the peers report
    /// what they have.
    compaction_hold_until: u64,
    /// The only member, with a vote.
    alone: bool,
    halted: bool,
    may_reopen: bool,
}

impl Engine {
    /// Opens a member on the state of its log and of its host's state machine; `membership` is as of
    /// `applied`. A member with an empty membership and an empty log waits to be added: it takes no entries
    /// and gives no vote until a leader that has added it has sent it a snapshot.
    ///
    /// # Errors
    ///
    /// See [`OpenError`].
    pub fn open(
        config: Config,
        persisted: PersistedState,
        applied: Lsn,
        membership: &Membership,
        reader: Box<dyn LogReader>,
    ) -> Result<Engine, OpenError> {
        config.validate()?;
        if persisted.last < applied {
            return Err(OpenError::LogBehindDatabase {
                last: persisted.last,
                applied,
            });
        }
        if persisted.start.lsn > applied {
            return Err(OpenError::LogAheadOfDatabase {
                first: persisted.start.lsn.next(),
                applied,
            });
        }
        let votes = membership.voters.contains(&config.id)
            || membership.voters_outgoing.contains(&config.id);
        if votes
            && persisted.is_blank()
            && !membership.is_only(config.id)
            && !config.creates_cluster
        {
            return Err(OpenError::LogLost {
                id: config.id,
                voters: membership.voters.len(),
            });
        }
        let snapshots = Snapshots::new(&config, persisted.start.lsn, applied, persisted.last);
        let storage = EngineStorage::new(persisted, applied, membership, reader);
        let raft_config = RaftConfig {
            id: config.id.0,
            election_tick: config.election_ticks,
            heartbeat_tick: config.heartbeat_ticks,
            applied: applied.0,
            max_size_per_msg: MAX_MESSAGE_BYTES,
            max_inflight_msgs: MAX_MESSAGES_IN_FLIGHT,
            check_quorum: true,
            pre_vote: true,
            max_committed_size_per_ready: MAX_COMMITTED_PER_READY,
            skip_bcast_commit: true,
            ..RaftConfig::default()
        };
        raft_config
            .validate()
            .map_err(|e| OpenError::Config(e.to_string()))?;
        let logger = crate::logger::raft_logger();
        let raw = guard::guarded(|| RawNode::new(&raft_config, storage, &logger))
            .map_err(OpenError::Damaged)?
            .map_err(|e| OpenError::Config(e.to_string()))?;
        let mut engine = Engine {
            raw,
            outstanding: VecDeque::new(),
            role: Role::Follower,
            leader: NodeId(0),
            applied,
            backlog: VecDeque::new(),
            backlog_bytes: 0,
            snapshots,
            gate: Gate::new(config.identity()),
            membership: membership.clone(),
            peers: Peers::default(),
            reads: Reads::default(),
            counters: Counters::default(),
            announced: Lsn(0),
            confirmed_above: Lsn(0),
            ticks: 0,
            compaction_hold_until: config.election_ticks as u64,
            alone: membership.is_only(config.id),
            config,
            halted: false,
            may_reopen: false,
        };
        engine.fix_election_timeout();
        match engine.raw.store().take_failure() {
            Some(failure) => Err(match failure.may_pass {
                true => OpenError::Unreadable(failure.what),
                false => OpenError::Damaged(failure.what),
            }),
            None => Ok(engine),
        }
    }

    /// Processes one event, and returns what has to be done, in order.
    ///
    /// A step that returns [`Action::Halt`] returns nothing else and has no effect. All later steps return
    /// nothing. A panic of raft-rs, which it answers with to messages or logs that contradict what is
    /// committed, halts the engine as well ([`guard`]).
    pub fn step(&mut self, event: Event) -> Vec<Action> {
        if self.halted {
            return Vec::new();
        }
        match guard::guarded(|| self.step_unguarded(event)) {
            Ok(actions) => actions,
            Err(what) => {
                self.halted = true;
                self.may_reopen = false;
                vec![Action::Halt { what }]
            }
        }
    }

    fn step_unguarded(&mut self, event: Event) -> Vec<Action> {
        let mut actions = Vec::new();
        self.raw.store().begin_step();
        match event {
            Event::Tick => self.tick(&mut actions),
            Event::Campaign => {
                // Without this check raft-rs lets a member without a vote win where no other member has
                // one. A leader stays leader.
                if self.raw.raft.promotable() && self.may_campaign() {
                    let _ = self.raw.campaign();
                }
            }
            Event::Receive(envelope) => self.receive(envelope, &mut actions),
            Event::Unreachable(node) => self.raw.report_unreachable(node.0),
            Event::Propose { ticket, command } => {
                self.propose_batch(vec![(ticket, command)], &mut actions);
            }
            Event::ProposeBatch(proposals) => self.propose_batch(proposals, &mut actions),
            Event::Persisted { number } => self.persisted(number, &mut actions),
            Event::Applied { lsn } => self.note_applied(lsn, &mut actions),
            Event::SnapshotTaken {
                last_included_index,
                term,
                peers,
            } => self.snapshot_taken(last_included_index, term, peers, &mut actions),
            Event::SnapshotBytes {
                last_included_index,
                bytes,
            } => self.snapshot_bytes(last_included_index, bytes, &mut actions),
            Event::SnapshotFailed => {
                self.counters.snapshots_failed += 1;
                self.snapshots.failed();
            }
            Event::SnapshotBegun => self.snapshots.begun(),
            Event::KeepFrom { lsn } => {
                self.snapshots.keep_from(lsn);
                self.compact(&mut actions);
            }
            Event::GiveUpAbsent => {
                self.give_up_absent();
                self.compact(&mut actions);
            }
            Event::ChangeMembership { ticket, change } => {
                self.change_membership(ticket, change, &mut actions);
            }
            Event::TransferLeadership { ticket, to } => {
                self.transfer_leadership(ticket, to, &mut actions);
            }
            Event::ReadIndex { ticket } => self.read_index(ticket, &mut actions),
            Event::WithholdSnapshots { withheld } => self.peers.withheld = withheld,
            Event::OfferFailed { to } => self.offer_failed(to),
            Event::ResumeFetch { offer } => self.resume_fetch(offer, &mut actions),
            Event::FetchProgress {
                checkpoint,
                bytes_done,
                waits_for_space,
            } => self.fetch_progress(checkpoint, bytes_done, waits_for_space),
            Event::SnapshotFetched { checkpoint } => {
                self.snapshot_fetched(checkpoint, &mut actions);
            }
            Event::FetchFailed { checkpoint, reason } => {
                self.fetch_failed(checkpoint, reason, &mut actions);
            }
            Event::SnapshotInstalled { checkpoint } => {
                self.snapshot_installed(checkpoint, &mut actions);
            }
            Event::InstallFailed { checkpoint } => self.install_failed(checkpoint, &mut actions),
            Event::LogRead { read, entries } => self.log_read(read, entries),
            // The log itself is intact: only what the host was handed does not follow.
            Event::Broken { what } => self.raw.store().fail_for(what, true),
            Event::Condemned { what } => self.raw.store().fail(what),
        }
        self.fix_election_timeout();
        self.announce_commit();
        self.drain_ready(&mut actions);
        self.request_reads(&mut actions);
        if !self.alone {
            self.offer_snapshots(&mut actions);
            self.abandon_unneeded(&mut actions);
        }
        actions.extend(self.snapshots.consider(self.last()));
        if let Some(failure) = self.raw.raft.raft_log.store.take_failure() {
            self.halted = true;
            self.may_reopen = failure.may_pass;
            // Nothing that was decided on an unreadable log may leave the engine.
            actions = vec![Action::Halt { what: failure.what }];
        }
        actions
    }

    /// After [`Action::Halt`]: whether another engine may be opened on the same log and the applied state.
    /// It may if the log was only unreadable, or if the host was handed entries that do not follow. It
    /// would not help if the log is damaged, contradicts itself, or has entries of a newer version.
    pub fn may_reopen(&self) -> bool {
        self.halted && self.may_reopen
    }

    /// Last entry of the log, persisted or not.
    pub fn last(&self) -> Lsn {
        Lsn(self.raw.raft.raft_log.last_index())
    }

    /// Last committed entry.
    pub fn committed(&self) -> Lsn {
        Lsn(self.raw.raft.raft_log.committed)
    }

    /// Last applied entry.
    pub fn applied(&self) -> Lsn {
        self.applied
    }

    /// Last entry that the newest snapshot covers, as reported since the open; the log start until then.
    pub fn floor(&self) -> Lsn {
        self.snapshots.floor()
    }

    /// The entry that compaction has reached. Entries at or below it may be removed.
    pub fn log_start(&self) -> Lsn {
        self.raw.raft.raft_log.store.start().lsn
    }

    /// Bytes of the entries above the log start that were handed out for applying since the open. Entries
    /// applied before the open and entries not yet committed are not counted.
    pub fn log_bytes(&self) -> u64 {
        self.snapshots.counted_bytes() + self.backlog_bytes
    }

    /// Bytes of the log's entries that are in memory, roughly.
    pub fn log_bytes_in_memory(&self) -> u64 {
        self.raw.store().bytes_in_memory()
    }

    /// Whether more entries than the guardrail allows are above the floor, and none of them is applied.
    pub fn alarm(&self) -> bool {
        self.snapshots.stuck(self.last())
    }

    /// Current term.
    pub fn term(&self) -> Term {
        Term(self.raw.raft.term)
    }

    /// Current role.
    pub fn role(&self) -> Role {
        self.role
    }

    /// The term in which this member leads, if it does.
    pub fn leading_term(&self) -> Option<Term> {
        (self.role == Role::Leader).then(|| self.term())
    }

    /// The leader, as far as known.
    pub fn leader(&self) -> Option<NodeId> {
        (self.leader.0 != 0).then_some(self.leader)
    }

    /// Whether this member needs ticks. A group of one member needs them only for a delayed hint or a
    /// pending read.
    pub fn needs_ticks(&self) -> bool {
        !(self.alone && self.role == Role::Leader)
            || self.snapshots.backs_off()
            || self.reads.pending()
    }

    /// The identity of this member, for the messages of transfers (see [`Identity::seal`]).
    pub fn identity(&self) -> Identity {
        self.config.identity()
    }

    /// Who belongs to the group, as of what was handed out for applying.
    pub fn membership(&self) -> &Membership {
        &self.membership
    }

    fn tick(&mut self, actions: &mut Vec<Action>) {
        self.ticks += 1;
        let raft = &self.raw.raft;
        let stands_next = raft.state != StateRole::Leader
            && raft.election_elapsed + 1 >= raft.randomized_election_timeout();
        if !self.waits_to_join() && (!stands_next || self.may_campaign()) {
            self.raw.tick();
        }
        self.snapshots.tick();
        self.tick_reads(actions);
        if !self.alone {
            self.tick_peers(actions);
            self.tend_membership();
            self.compact(actions);
        }
    }

    /// Before a campaign raft-rs reads the entries that are committed and not applied. It counts an
    /// installed snapshot as applied only once the log was durably restarted after it.
    pub(super) fn may_campaign(&self) -> bool {
        self.raw.raft.raft_log.applied >= self.log_start().0
    }

    /// raft-rs draws election timeouts from a generator of the thread. Here they depend on the seed and the
    /// term alone, so that a run can be repeated.
    fn fix_election_timeout(&mut self) {
        let span = self.config.election_ticks as u64;
        let mut x = self.config.seed ^ self.raw.raft.term.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        x ^= x >> 31;
        let timeout = self.config.election_ticks + (x % span) as usize;
        self.raw.raft.set_randomized_election_timeout(timeout);
    }

    fn note_soft_state(&mut self, leader: u64, state: StateRole, actions: &mut Vec<Action>) {
        let role = role_of(state);
        let leader = NodeId(leader);
        if role != self.role || leader != self.leader {
            self.counters.elections += u64::from(role == Role::Candidate && role != self.role);
            if role == Role::Leader && role != self.role {
                self.counters.elections_won += 1;
                self.compaction_hold_until = self.ticks + self.config.election_ticks as u64;
                self.leads_from_now();
                self.confirm_from_election();
            }
            self.role = role;
            self.leader = leader;
            actions.push(Action::Became {
                role,
                leader: self.leader(),
                term: self.term(),
            });
        }
    }
}

fn role_of(state: StateRole) -> Role {
    match state {
        StateRole::Leader => Role::Leader,
        StateRole::Follower => Role::Follower,
        StateRole::Candidate | StateRole::PreCandidate => Role::Candidate,
    }
}
