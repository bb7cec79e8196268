//! The status and the counters of an engine, for hosts and operators.

use raft::ProgressState;

use super::{Engine, Membership, Role, TransferStatus};
use crate::ids::{Lsn, NodeId, Term};
use crate::message::{EndReason, Refusals};

/// The status of a member.
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
    /// This member leads, and does not know yet that the last change of the voters holds without those who voted
    /// before it ([`Engine::has_unconfirmed_change`]).
    pub has_unconfirmed_change: bool,
    /// The member has no log and no membership, and waits to be added.
    pub waits_to_join: bool,
    /// The other members as this leader knows them, sorted; empty on a member that does not lead.
    pub peers: Vec<PeerStatus>,
    /// Transfers that this member knows of, its own first.
    pub transfers: Vec<TransferStatus>,
}

/// How a leader sees a peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PeerStatus {
    /// Which one.
    pub id: NodeId,
    /// Up to this entry its log is known to equal the leader's.
    pub matched: Lsn,
    /// How it is replicated to.
    pub state: PeerState,
    /// The last entry covered by the snapshot that it is fetching, if it is.
    pub pending_snapshot: Option<Lsn>,
    /// Why the last offer to it failed, until it has caught up by another one.
    pub last_failure: Option<EndReason>,
    /// Ticks since its last message; `None` if there was none since this member was opened or the peer was
    /// added.
    pub heard_ticks_ago: Option<u64>,
}

/// How a peer is replicated to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PeerState {
    /// The leader probes up to where its log matches.
    Probe,
    /// It gets entries as they are appended.
    Replicate,
    /// It lacks entries that are removed, and needs a snapshot.
    Snapshot,
}

/// What a member did since it was opened.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Campaigns.
    pub elections: u64,
    /// Elections won.
    pub elections_won: u64,
    /// Proposals accepted.
    pub proposals: u64,
    /// Entries handed out for applying.
    pub commits: u64,
    /// Snapshots of its own.
    pub snapshots_taken: u64,
    /// Attempts that failed.
    pub snapshots_failed: u64,
    /// Offers made.
    pub snapshots_offered: u64,
    /// Snapshots whose receiver reported the install.
    pub snapshots_sent: u64,
    /// Snapshots installed.
    pub snapshots_received: u64,
    /// Bytes of the snapshots that were fetched whole.
    pub bytes_received: u64,
    /// Fetches that went on after a restart.
    pub fetches_resumed: u64,
    /// Fetches and installs that failed.
    pub fetches_failed: u64,
    /// Messages that were refused, by reason.
    pub refused: Refusals,
}

impl Engine {
    /// The status of this member. Allocates for each peer, so it is for people and metrics, not for every
    /// proposal.
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
            has_unconfirmed_change: self.has_unconfirmed_change(),
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
                    // raft-rs may keep a peer in `Replicate` that was away until its next entry was
                    // removed.
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
