//! The sans-IO façade over raft-rs: events in, actions out.
//!
//! An [`Engine`] is one member of one group. It does no I/O but for reading old log entries
//! through the [`LogReader`] that it was given, reads no clock, starts no thread: the same
//! schedule of events gives the same actions.
//!
//! What the host does with the actions:
//!
//! - [`Action::Persist`]: make it durable, in the order given, then say [`Event::Persisted`] with
//!   its number. Several may be made durable by one sync; the last number stands for all before.
//! - [`Action::Apply`]: apply in order, then say [`Event::Applied`].
//! - [`Action::SnapshotHint`]: take a snapshot, meanwhile go on with everything else. Say
//!   [`Event::SnapshotBegun`] when it begins, also when no hint came before, and
//!   [`Event::SnapshotTaken`] or [`Event::SnapshotFailed`] when it ends. A host that has bytes in memory
//!   may say [`Event::SnapshotBytes`] instead, and does what [`Action::StoreSnapshot`] says.
//! - [`Action::LogAlarm`]: apply does not move and the log grows; tell somebody.
//! - [`Action::Compact`]: entries up to there may be removed from the log, at leisure.
//! - [`Action::Send`]: deliver to peers; loss, delay and repetition are fine.
//! - [`Action::OfferSnapshot`], [`Action::FetchSnapshot`], [`Action::AbandonFetch`],
//!   [`Action::InstallSnapshot`]: how a peer catches up whose next entries are gone; see `peers` in
//!   this module for who says what when, and [`crate::transfer`] for the bytes.
//! - [`Action::ReadReady`] / [`Action::ReadFailed`]: the answer to [`Event::ReadIndex`].
//! - [`Action::Accepted`] / [`Action::Rejected`]: the fate of a proposal at the door. An accepted
//!   one has landed if and only if an entry of that LSN *and* that term is applied.
//!
//! Commit-only updates of the hard state are not persisted by themselves: they ride with the next
//! entries, and at open the commit index is the larger of the stored and what the host applied.
//!
//! The log goes as far as the newest snapshot covers it (the *floor*), or less far if the host said
//! [`Event::KeepFrom`]; how far it has gone is the *log start*. Which snapshot is the newest the
//! engine does not remember across a restart: the host says [`Event::SnapshotTaken`] again. Of the
//! entries that were applied before the open it knows how many are above the floor, and counts none
//! of their bytes; those that are applied later are counted, be they replayed or new.

#![deny(clippy::disallowed_methods)]

mod config;
mod event;
mod membership;
mod peers;
mod reads;
mod ready;
mod receive;
mod snapshots;
mod status;
mod storage;
#[cfg(test)]
mod tests;

pub use crate::membership::{ChangeRefused, Membership, MembershipChange};
pub use config::{Config, OpenError};
pub(crate) use event::entry_checksum;
pub use event::{
    Action, Committed, Event, LogFloor, LogReadError, LogReader, Persist, PersistedState,
    RawEntries, ReadFailure, RejectReason, Role, Ticket,
};
pub use membership::MAX_PROMOTION_LAG;
pub use peers::TransferStatus;
pub use status::{Counters, PeerState, PeerStatus, Status};

use std::collections::VecDeque;

use bytes::Bytes;
use raft::eraftpb::MessageType;
use raft::{Config as RaftConfig, RawNode, StateRole, Storage as _};

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

/// Most messages with entries that a peer has not acknowledged. 16 of a megabyte are a quarter of what a
/// link queues for one peer ([`MAX_QUEUED_BYTES`], 64 MiB): what is sent to a peer that catches up is not
/// dropped there, to be read and sent once more. At 10 ms a round trip it is 1.6 GB/s, at 100 ms 160 MB/s.
/// Only with commands of more than 4 MiB can so many be more than a link takes.
///
/// [`MAX_QUEUED_BYTES`]: crate::limits::MAX_QUEUED_BYTES
const MAX_MESSAGES_IN_FLIGHT: usize = 16;
const _: () = assert!(
    MAX_MESSAGES_IN_FLIGHT as u64 * MAX_MESSAGE_BYTES * 4 <= crate::limits::MAX_QUEUED_BYTES as u64
);

/// Bytes of the log that are read for peers in one step, after which they wait for the next one: a step
/// holds the engine's lock, and a disk may need a second for what a peer far behind could be sent at once.
/// One more message is always read.
const MAX_READ_FOR_PEERS: u64 = 8 * MAX_MESSAGE_BYTES;

/// Most bytes of a command. What goes into the log in one
/// piece is what a crash can leave torn there, and the look at a torn log allows for this much.
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
    /// Ticks since the open.
    ticks: u64,
    /// Until this tick after the open, or after it was elected, it hears what the others have before it
    /// lets go of its log.
    compaction_hold_until: u64,
    /// The only member, with a vote.
    alone: bool,
    halted: bool,
    may_reopen: bool,
}

impl Engine {
    /// Opens a member on what its log and its host's state machine remember, `membership` as of
    /// `applied`. A membership without anybody is that of one who is to join, with an empty log: it
    /// takes no entries and gives no vote until a leader that has added it has sent it a snapshot.
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
        if votes && persisted.is_blank() && !membership.is_only(config.id) && !config.founding {
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
            ..RaftConfig::default()
        };
        raft_config
            .validate()
            .map_err(|e| OpenError::Config(e.to_string()))?;
        let raw = RawNode::new(&raft_config, storage, &crate::logger::raft_logger())
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

    /// Takes one event in, and says what has to be done about it, in order.
    ///
    /// A step that answers [`Action::Halt`] answers nothing else, and had no effect; after it the
    /// engine answers nothing more.
    pub fn step(&mut self, event: Event) -> Vec<Action> {
        let mut actions = Vec::new();
        if self.halted {
            return actions;
        }
        self.raw.store().begin_step();
        match event {
            Event::Tick => self.tick(&mut actions),
            Event::Campaign => {
                // raft-rs would let somebody without a vote win, where nobody else has one. One that leads
                // already stays as it is.
                if self.raw.raft.promotable() && self.may_campaign() {
                    let _ = self.raw.campaign();
                }
            }
            Event::Receive(envelope) => self.receive(envelope, &mut actions),
            Event::Unreachable(node) => self.raw.report_unreachable(node.0),
            Event::Propose { ticket, command } => self.propose(ticket, command, &mut actions),
            Event::ProposeBatch(proposals) => {
                let mut together = 0;
                for (ticket, command) in proposals {
                    together += command.len();
                    if together > MAX_COMMAND_BYTES {
                        // Not all in one piece.
                        self.drain_ready(&mut actions);
                        together = command.len();
                    }
                    self.propose(ticket, command, &mut actions);
                }
            }
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
            Event::ChangeMembership { ticket, change } => {
                self.change_membership(ticket, change, &mut actions);
            }
            Event::TransferLeadership { ticket, to } => {
                self.transfer_leadership(ticket, to, &mut actions);
            }
            Event::ReadIndex { ticket } => self.read_index(ticket, &mut actions),
            Event::OfferFailed { to } => self.offer_failed(to),
            Event::ResumeFetch { offer } => self.resume_fetch(offer, &mut actions),
            Event::FetchProgress {
                checkpoint,
                bytes_done,
            } => self.fetch_progress(checkpoint, bytes_done),
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
            // What is in the log is whole: only the host was handed something else.
            Event::Broken { what } => self.raw.store().fail_for(what, true),
        }
        self.fix_election_timeout();
        self.drain_ready(&mut actions);
        if !self.alone {
            self.offer_snapshots(&mut actions);
            self.abandon_unneeded(&mut actions);
        }
        actions.extend(self.snapshots.consider(self.last()));
        if let Some(failure) = self.raw.raft.raft_log.store.take_failure() {
            self.halted = true;
            self.may_reopen = failure.may_pass;
            // What was decided on an unreadable log does not get out.
            actions = vec![Action::Halt { what: failure.what }];
        }
        actions
    }

    /// After [`Action::Halt`]: whether another engine may be opened on the same log and what was applied
    /// from it. It may if the log could only not be read, or the host was handed something else than what
    /// follows. It is of no use if the log is damaged, contradicts itself, or holds what this version does
    /// not know: the next engine would meet the same.
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

    /// Last entry that the newest snapshot covers, as far as the host has told since the open; the
    /// log start before.
    pub fn floor(&self) -> Lsn {
        self.snapshots.floor()
    }

    /// The entry that compaction has reached; entries at or below it are gone, or may be.
    pub fn log_start(&self) -> Lsn {
        self.raw.raft.raft_log.store.start().lsn
    }

    /// Bytes of the entries above the log start, as far as they were handed out for applying since
    /// the open. Those that had been applied before are not counted, nor those not yet committed.
    pub fn log_bytes(&self) -> u64 {
        self.snapshots.counted_bytes() + self.backlog_bytes
    }

    /// Bytes of the log's entries that are in memory, roughly.
    pub fn log_bytes_in_memory(&self) -> u64 {
        self.raw.store().bytes_in_memory()
    }

    /// Whether more entries than the guardrail allows are above the floor, with apply standing there.
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

    /// The leader, as far as known.
    pub fn leader(&self) -> Option<NodeId> {
        (self.leader.0 != 0).then_some(self.leader)
    }

    /// Whether ticks mean anything to this member: a group of one needs no heartbeat, and waits only
    /// before it hints at a snapshot again, or for a read.
    pub fn needs_ticks(&self) -> bool {
        !(self.alone && self.role == Role::Leader)
            || self.snapshots.backs_off()
            || self.reads.pending()
    }

    /// Who this member is, to the others: what [`Identity::seal`] needs for the messages of transfers.
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

    /// Before it campaigns raft-rs looks at what is committed and not applied, and it takes an
    /// installed snapshot for applied only once the log has been restarted there, durably.
    pub(super) fn may_campaign(&self) -> bool {
        self.raw.raft.raft_log.applied >= self.log_start().0
    }

    fn propose(&mut self, ticket: Ticket, command: Vec<u8>, actions: &mut Vec<Action>) {
        let reason = if self.role != Role::Leader {
            Some(RejectReason::NotLeader {
                leader: self.leader(),
            })
        } else if let Some(to) = self.raw.raft.lead_transferee {
            Some(RejectReason::Transferring { to: NodeId(to) })
        } else if self.snapshots.full(self.last()) {
            Some(RejectReason::LogFull)
        } else if self.last().0 - self.applied.0 >= self.config.max_pending_proposals {
            Some(RejectReason::Busy)
        } else if command.is_empty() {
            // Consensus has a use of its own for entries without data: see `Committed::command`.
            Some(RejectReason::Refused("the command is empty".to_owned()))
        } else if command.len() > MAX_COMMAND_BYTES {
            Some(RejectReason::Refused(format!(
                "a command has at most {MAX_COMMAND_BYTES} bytes, this one has {}",
                command.len()
            )))
        } else if let Err(error) = self.raw.propose(Vec::new(), command) {
            Some(match error {
                raft::Error::ProposalDropped => RejectReason::NotLeader {
                    leader: self.leader(),
                },
                other => RejectReason::Refused(other.to_string()),
            })
        } else {
            self.counters.proposals += 1;
            None
        };
        actions.push(match reason {
            Some(reason) => Action::Rejected { ticket, reason },
            None => Action::Accepted {
                ticket,
                lsn: self.last(),
                term: self.term(),
            },
        });
    }

    fn note_applied(&mut self, lsn: Lsn, actions: &mut Vec<Action>) {
        if lsn < self.applied {
            // From before a snapshot was installed.
            return;
        }
        assert!(
            lsn <= self.committed(),
            "applied LSN {lsn} is above {}, what is committed",
            self.committed()
        );
        self.applied = lsn;
        while let Some((front, bytes)) = self.backlog.front().copied()
            && front <= lsn
        {
            self.backlog_bytes -= bytes;
            self.backlog.pop_front();
            self.snapshots.count(front, bytes);
        }
        self.raw.advance_apply_to(lsn.0);
        self.evict();
        self.reads_applied(actions);
        if self.snapshots.applied(lsn) {
            self.compact(actions);
        }
    }

    /// Drops entries from memory that are both durable and applied; and of those that are durable, as
    /// many as are too many.
    fn evict(&mut self) {
        let persisted = self.raw.raft.raft_log.persisted;
        let most = self.config.max_log_bytes_in_memory;
        let store = self.raw.mut_store();
        store.evict(Lsn(persisted.min(self.applied.0)));
        store.evict_down_to(most, Lsn(persisted));
    }

    fn snapshot_taken(
        &mut self,
        lsn: Lsn,
        term: Term,
        peers: Option<Membership>,
        actions: &mut Vec<Action>,
    ) {
        // Only what is committed can have been applied, hence be covered.
        let ours = |engine: &Engine| {
            lsn <= engine.committed() && engine.raw.store().term(lsn.0).ok() == Some(term.0)
        };
        if lsn > self.floor() && !ours(self) {
            self.counters.snapshots_failed += 1;
            self.snapshots.failed();
            return;
        }
        self.counters.snapshots_taken += 1;
        self.note_newest(lsn, peers);
        self.snapshots.taken(lsn);
        self.compact(actions);
    }

    fn snapshot_bytes(&mut self, lsn: Lsn, bytes: Bytes, actions: &mut Vec<Action>) {
        // The membership is known as of what was handed out for applying; it is that of `lsn` as well
        // if no entry in between changes it.
        let store = self.raw.store();
        let known = lsn <= self.applied && lsn.0 > 0 && store.last_change() <= lsn;
        match store.term(lsn.0) {
            Ok(term) if known => actions.push(Action::StoreSnapshot {
                last_included_index: lsn,
                term: Term(term),
                peers: self.membership.clone(),
                bytes,
            }),
            _ => {
                self.counters.snapshots_failed += 1;
                self.snapshots.failed();
            }
        }
    }

    fn compact(&mut self, actions: &mut Vec<Action>) {
        let up_to = self.compactable();
        if up_to <= self.log_start() {
            return;
        }
        if let Some(floor) = self.raw.mut_store().compact(up_to) {
            self.snapshots.compacted(up_to);
            actions.push(Action::Compact { floor });
        }
    }

    /// raft-rs draws election timeouts from a thread's generator; here they follow from the seed
    /// and the term alone, so that a schedule can be repeated.
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

/// Whether a message may be processed when it comes from a peer. Proposals and transfers of
/// leadership are for the leader's own host, and a snapshot never travels inside a message.
fn is_peer_message(kind: MessageType) -> bool {
    matches!(
        kind,
        MessageType::MsgAppend
            | MessageType::MsgAppendResponse
            | MessageType::MsgRequestVote
            | MessageType::MsgRequestVoteResponse
            | MessageType::MsgHeartbeat
            | MessageType::MsgHeartbeatResponse
            | MessageType::MsgTimeoutNow
            | MessageType::MsgReadIndex
            | MessageType::MsgReadIndexResp
            | MessageType::MsgRequestPreVote
            | MessageType::MsgRequestPreVoteResponse
    )
}
