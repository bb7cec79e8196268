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
//! - [`Action::SnapshotHint`]: take a snapshot, meanwhile go on with everything else, then say
//!   [`Event::SnapshotTaken`] or [`Event::SnapshotFailed`]. A host that takes one of its own accord
//!   says [`Event::SnapshotBegun`] before.
//! - [`Action::LogAlarm`]: apply does not move and the log grows; tell somebody.
//! - [`Action::Compact`]: entries up to there may be removed from the log, at leisure.
//! - [`Action::Send`]: deliver to peers; loss, delay and repetition are fine.
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

mod event;
mod ready;
mod snapshots;
mod storage;
#[cfg(test)]
mod tests;

pub use event::{
    Action, Committed, Event, LogFloor, LogReader, Membership, PeerMessage, Persist,
    PersistedState, RawEntries, RejectReason, Role, Ticket,
};

use std::collections::VecDeque;
use std::ops::RangeInclusive;

use raft::eraftpb::MessageType;
use raft::{Config as RaftConfig, RawNode, StateRole, Storage as _};

use crate::ids::{Lsn, NodeId, Term};
use ready::Outstanding;
use snapshots::Snapshots;
use storage::EngineStorage;

/// Most bytes of committed entries that raft-rs hands out at once.
const MAX_COMMITTED_PER_READY: u64 = 1024 * 1024;

/// Most bytes of a command. What goes into the log in one
/// piece is what a crash can leave torn there, and the look at a torn log allows for this much.
pub const MAX_COMMAND_BYTES: usize = 8 * 1024 * 1024;

/// What an engine is told at its creation.
#[derive(Clone, Debug)]
pub struct Config {
    /// This member.
    pub id: NodeId,
    /// Ticks without word from a leader before an election; at least `2 * heartbeat_ticks`.
    pub election_ticks: usize,
    /// Ticks between heartbeats.
    pub heartbeat_ticks: usize,
    /// Accepted proposals that are not applied yet; beyond it proposals are rejected as
    /// [`RejectReason::Busy`].
    pub max_pending_proposals: u64,
    /// Committed entries handed out and not applied yet, in bytes, beyond which no more are read
    /// from the log: keeps a long replay in bounded memory. One entry may exceed it.
    pub max_apply_backlog_bytes: u64,
    /// Applied entries above the floor from which on a snapshot is hinted at; 0 for never.
    pub snapshot_hint_threshold_entries: u64,
    /// The same in bytes, roughly; 0 for never.
    pub snapshot_hint_threshold_bytes: u64,
    /// The guardrail: with more entries than this above the floor, applied or not, a snapshot is
    /// hinted at if it can help, and an alarm is given if it cannot; 0 for none. If both are set, it
    /// must be larger than `snapshot_hint_threshold_entries`.
    pub max_log_entries: u64,
    /// Ticks without a hint after a failed attempt: the first time, and at most; they double from one
    /// to the other. At least 1.
    pub snapshot_backoff_ticks: RangeInclusive<u64>,
    /// Seed of the election timeouts.
    pub seed: u64,
}

impl Config {
    /// The defaults for a member: elections after 10 ticks, heartbeats every 2, a snapshot every
    /// 10,000 entries or 64 MiB, no guardrail.
    pub fn new(id: NodeId) -> Self {
        Config {
            id,
            election_ticks: 10,
            heartbeat_ticks: 2,
            max_pending_proposals: 16 * 1024,
            max_apply_backlog_bytes: 8 * 1024 * 1024,
            snapshot_hint_threshold_entries: 10_000,
            snapshot_hint_threshold_bytes: 64 * 1024 * 1024,
            max_log_entries: 0,
            snapshot_backoff_ticks: 10..=600,
            seed: id.0,
        }
    }

    fn validate(&self) -> Result<(), OpenError> {
        let (entries, guardrail) = (self.snapshot_hint_threshold_entries, self.max_log_entries);
        if guardrail > 0 && guardrail <= entries {
            return Err(OpenError::Config(format!(
                "max_log_entries ({guardrail}) must be larger than \
                 snapshot_hint_threshold_entries ({entries})"
            )));
        }
        let (first, most) = (
            *self.snapshot_backoff_ticks.start(),
            *self.snapshot_backoff_ticks.end(),
        );
        if first == 0 || first > most {
            return Err(OpenError::Config(format!(
                "snapshot_backoff_ticks ({first} to {most}) must begin at 1 or more, and not end \
                 before it begins"
            )));
        }
        Ok(())
    }
}

/// Why an engine could not be created.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// A value of the configuration is out of range.
    #[error("invalid consensus configuration: {0}")]
    Config(String),
    /// The log does not reach the state that was applied from it.
    #[error(
        "the log ends at LSN {last} but the database has applied LSN {applied}: \
         the log was cut or replaced; restore this node from a snapshot"
    )]
    LogBehindDatabase {
        /// Last entry of the log.
        last: Lsn,
        /// Last entry that the database has.
        applied: Lsn,
    },
    /// The log starts after the state that it should continue.
    #[error(
        "the log starts at LSN {first} but the database ends at LSN {applied}: \
         the entries between are gone; restore this node from a snapshot"
    )]
    LogAheadOfDatabase {
        /// First entry of the log.
        first: Lsn,
        /// Last entry that the database has.
        applied: Lsn,
    },
    /// The log could not be read; the message names the LSN.
    #[error("{0}")]
    Unreadable(String),
}

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
    sole_voter: bool,
    halted: bool,
}

impl Engine {
    /// Opens a member on what its log and its host's state machine remember.
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
        let sole_voter = membership.voters == [config.id];
        let snapshots = Snapshots::new(&config, persisted.start.lsn, applied, persisted.last);
        let storage = EngineStorage::new(persisted, applied, membership, reader);
        let raft_config = RaftConfig {
            id: config.id.0,
            election_tick: config.election_ticks,
            heartbeat_tick: config.heartbeat_ticks,
            applied: applied.0,
            max_size_per_msg: 1024 * 1024,
            max_inflight_msgs: 256,
            check_quorum: true,
            pre_vote: true,
            max_committed_size_per_ready: MAX_COMMITTED_PER_READY,
            ..RaftConfig::default()
        };
        raft_config
            .validate()
            .map_err(|e| OpenError::Config(e.to_string()))?;
        let raw = RawNode::new(&raft_config, storage, &crate::runtime::raft_logger())
            .map_err(|e| OpenError::Config(e.to_string()))?;
        let mut engine = Engine {
            raw,
            config,
            outstanding: VecDeque::new(),
            role: Role::Follower,
            leader: NodeId(0),
            applied,
            backlog: VecDeque::new(),
            backlog_bytes: 0,
            snapshots,
            sole_voter,
            halted: false,
        };
        engine.fix_election_timeout();
        match engine.raw.store().take_failure() {
            Some(what) => Err(OpenError::Unreadable(what)),
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
        match event {
            Event::Tick => {
                self.raw.tick();
                self.snapshots.tick();
            }
            Event::Campaign => {
                // A member that cannot campaign (not a voter, already leading) stays as it is.
                let _ = self.raw.campaign();
            }
            Event::Receive(message) => self.receive(message),
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
            } => self.snapshot_taken(last_included_index, term, &mut actions),
            Event::SnapshotFailed => self.snapshots.failed(),
            Event::SnapshotBegun => self.snapshots.begun(),
            Event::KeepFrom { lsn } => {
                self.snapshots.keep_from(lsn);
                self.compact(&mut actions);
            }
        }
        self.fix_election_timeout();
        self.drain_ready(&mut actions);
        actions.extend(self.snapshots.consider(self.last()));
        if let Some(what) = self.raw.raft.raft_log.store.take_failure() {
            self.halted = true;
            // What was decided on an unreadable log does not get out.
            actions = vec![Action::Halt { what }];
        }
        actions
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
    /// before it hints at a snapshot again.
    pub fn needs_ticks(&self) -> bool {
        !(self.sole_voter && self.role == Role::Leader) || self.snapshots.backs_off()
    }

    fn receive(&mut self, message: PeerMessage) {
        // A refused message (from an unknown peer, of a wrong kind) is the same as a lost one.
        let _ = self.raw.step(message.0);
    }

    fn propose(&mut self, ticket: Ticket, command: Vec<u8>, actions: &mut Vec<Action>) {
        let reason = if self.role != Role::Leader {
            Some(RejectReason::NotLeader {
                leader: self.leader(),
            })
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
        assert!(
            lsn >= self.applied && lsn <= self.committed(),
            "applied LSN {lsn} is outside {}..={}",
            self.applied,
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
        if self.snapshots.applied(lsn) {
            self.compact(actions);
        }
    }

    /// Drops entries from memory that are both durable and applied.
    fn evict(&mut self) {
        let persisted = self.raw.raft.raft_log.persisted;
        let up_to = Lsn(persisted.min(self.applied.0));
        self.raw.mut_store().evict(up_to);
    }

    fn snapshot_taken(&mut self, lsn: Lsn, term: Term, actions: &mut Vec<Action>) {
        // Only what is committed can have been applied, hence be covered.
        let ours = |engine: &Engine| {
            lsn <= engine.committed() && engine.raw.store().term(lsn.0).ok() == Some(term.0)
        };
        if lsn > self.floor() && !ours(self) {
            self.snapshots.failed();
            return;
        }
        self.snapshots.taken(lsn);
        self.compact(actions);
    }

    fn compact(&mut self, actions: &mut Vec<Action>) {
        let up_to = self.snapshots.compactable();
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

/// Whether a message may be processed at all when it comes from a peer.
pub(crate) fn is_peer_message(kind: MessageType) -> bool {
    !matches!(
        kind,
        MessageType::MsgHup
            | MessageType::MsgBeat
            | MessageType::MsgUnreachable
            | MessageType::MsgSnapStatus
            | MessageType::MsgCheckQuorum
    )
}
