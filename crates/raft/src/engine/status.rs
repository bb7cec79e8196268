//! What a host, and whoever runs it, needs to see.

use raft::ProgressState;

use super::{Engine, Membership, Role, TransferStatus};
use crate::ids::{Lsn, NodeId, Term};
use crate::message::{EndReason, Refusals};

/// Where a member stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Status {
    /// This member.
    pub id: NodeId,
    /// Its role.
    pub role: Role,
    /// The leader, if known.
    pub leader: Option<NodeId>,
    /// The term.
    pub term: Term,
    /// Last entry of the log.
    pub last: Lsn,
    /// Last committed entry.
    pub committed: Lsn,
    /// Last applied entry.
    pub applied: Lsn,
    /// Last entry that the newest snapshot covers.
    pub floor: Lsn,
    /// Entries at or below are gone.
    pub log_start: Lsn,
    /// Entries above the floor.
    pub entries_above_floor: u64,
    /// Who belongs to the group, as of what was handed out for applying.
    pub membership: Membership,
    /// It has no log and no membership, and waits for a snapshot.
    pub waits_to_join: bool,
    /// The others; on a leader, and as a leader knows them. Sorted.
    pub peers: Vec<PeerStatus>,
    /// Transfers that this member has heard of, its own first.
    pub transfers: Vec<TransferStatus>,
}

/// How a leader sees a peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PeerStatus {
    /// Which one.
    pub id: NodeId,
    /// Up to here its log is known to be the leader's.
    pub matched: Lsn,
    /// How it is replicated to.
    pub state: PeerState,
    /// It is offered, or fetches, a snapshot of everything up to here.
    pub pending_snapshot: Option<Lsn>,
    /// Why the last offer to it came to nothing, for as long as it has not caught up by another one.
    pub last_failure: Option<EndReason>,
    /// Ticks since it was last heard; `None` for not since this member was opened, or the other added.
    pub heard_ticks_ago: Option<u64>,
}

/// How a peer is replicated to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PeerState {
    /// It is asked how far it is.
    Probe,
    /// It gets entries as they come.
    Replicate,
    /// It lacks entries that are gone.
    Snapshot,
}

/// What a member did since it was opened.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Times that it stood for election.
    pub elections: u64,
    /// Times that it won.
    pub elections_won: u64,
    /// Proposals accepted.
    pub proposals: u64,
    /// Entries handed out for applying.
    pub commits: u64,
    /// Snapshots of its own.
    pub snapshots_taken: u64,
    /// Attempts that came to nothing.
    pub snapshots_failed: u64,
    /// Offers made.
    pub snapshots_offered: u64,
    /// Offers of which the receiver said that it has installed.
    pub snapshots_sent: u64,
    /// Snapshots installed.
    pub snapshots_received: u64,
    /// Bytes of the snapshots that were fetched whole.
    pub bytes_received: u64,
    /// Fetches that went on after a restart.
    pub fetches_resumed: u64,
    /// Fetches and installs that came to nothing.
    pub fetches_failed: u64,
    /// Messages that were not heard, by reason.
    pub refused: Refusals,
}

impl Engine {
    /// Where this member stands. Costs an allocation for each peer: for people and metrics, not for
    /// every proposal.
    pub fn status(&self) -> Status {
        Status {
            id: self.config.id,
            role: self.role,
            leader: self.leader(),
            term: self.term(),
            last: self.last(),
            committed: self.committed(),
            applied: self.applied,
            floor: self.floor(),
            log_start: self.log_start(),
            entries_above_floor: self.last().0.saturating_sub(self.floor().0),
            membership: self.membership.clone(),
            waits_to_join: self.waits_to_join(),
            peers: self.peer_status(),
            transfers: self.peers.transfers(self.config.id),
        }
    }

    /// What this member did since it was opened.
    pub fn counters(&self) -> Counters {
        Counters {
            refused: self.gate.refused().clone(),
            ..self.counters.clone()
        }
    }

    fn peer_status(&self) -> Vec<PeerStatus> {
        if self.role != Role::Leader {
            return Vec::new();
        }
        let transfers = self.peers.transfers(self.config.id);
        let others = self.raw.raft.prs().iter();
        let others = others.filter(|(id, _)| **id != self.config.id.0);
        let mut peers: Vec<_> = others
            .map(|(id, progress)| {
                let id = NodeId(*id);
                let transfer = transfers.iter().find(|t| t.receiver == id);
                let gone = progress.next_idx <= self.log_start().0;
                PeerStatus {
                    id,
                    matched: Lsn(progress.matched),
                    // raft-rs may go on as if a peer replicated that was away until the next entry for it
                    // was gone.
                    state: match progress.state {
                        _ if gone => PeerState::Snapshot,
                        ProgressState::Replicate => PeerState::Replicate,
                        ProgressState::Probe => PeerState::Probe,
                        ProgressState::Snapshot => PeerState::Snapshot,
                    },
                    pending_snapshot: transfer.map(|t| t.progress.last_included_index),
                    last_failure: self.peers.last_failure(id),
                    heard_ticks_ago: self.peers.last_contact(id).map(|at| self.ticks - at),
                }
            })
            .collect();
        peers.sort_unstable_by_key(|peer| peer.id);
        peers
    }
}
