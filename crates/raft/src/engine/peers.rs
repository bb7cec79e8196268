//! How a peer that lacks removed entries catches up by a snapshot. This file has the leader's side,
//! `follower_catch_up.rs` the follower's. The bytes of the snapshot are moved by [`crate::transfer`].
//!
//! ```text
//! leader                                   follower
//!   raft-rs needs removed entries
//!   OfferSnapshot (or a hint) ──Offer──▶   needed? FetchSnapshot
//!   keeps its log behind that ◀─Progress─  … every few ticks, to all members
//!                                          SnapshotFetched ─▶ InstallSnapshot
//!                                          SnapshotInstalled ─▶ raft-rs restores and acknowledges
//!   raft-rs goes on with entries ◀──Ended─
//! ```
//!
//! On the leader, raft-rs never sees a snapshot: its storage answers that none is available at the moment,
//! and raft-rs probes the follower with every heartbeat until an acknowledgement of the follower shows that
//! it can go on with entries. On the follower, raft-rs sees the snapshot only when it is installed:
//! earlier, raft-rs would hold back votes and acknowledgements.
//!
//! A transfer goes on when the leader changes or has a newer snapshot. Every member that gets a report of a
//! transfer keeps the log behind its snapshot, up to a limit in bytes. If that log is removed, the follower
//! is offered another snapshot after this one. What is kept for members that are away is in
//! `absent_members.rs`.

mod absent_members;
mod follower_catch_up;

pub use absent_members::KeptLog;

use std::collections::{BTreeMap, BTreeSet};

use raft::eraftpb::SnapshotMetadata;
use raft::{SnapshotStatus, StateRole};

use super::{Action, Engine, LogFloor, Membership, Role};
use crate::ids::{Lsn, NodeId, Term};
use crate::message::{EndReason, Ended, Progress, Refusal};
use crate::transfer::Manifest;

/// Largest pause between two offers to a peer whose transfers fail, as a multiple of the first pause.
const MAX_PAUSE_FACTOR: u64 = 32;

#[derive(Default)]
pub(super) struct Peers {
    /// The tick of the last message of each member.
    last_contact: BTreeMap<NodeId, u64>,
    offers: BTreeMap<NodeId, Offered>,
    holds: BTreeMap<NodeId, Hold>,
    /// The fetch of this member.
    fetching: Option<Fetching>,
    /// A fetch of this member that failed. Its files are useful to the next fetch.
    left: Option<Box<Manifest>>,
    /// The newest snapshot of this member's host, with its membership if known.
    newest: Option<Newest>,
    /// The tick at which this member, which waits to be added, has requested a snapshot.
    requested_at: Option<u64>,
    /// No peer is to get this member's state: nothing is offered.
    pub withheld: bool,
    /// When this member began to lead.
    lead: Lead,
    /// The ticks of the first elections of this member since which it has not heard of the others.
    unheard_since: BTreeMap<NodeId, u64>,
    /// Members that were away when the log had become too long: nothing is kept for them.
    given_up: BTreeSet<NodeId>,
    /// Until this tick, messages of this member have it that the log of its node is full.
    full_until: u64,
}

/// The beginning of a leadership.
#[derive(Default)]
struct Lead {
    tick: u64,
    /// A member that has not reported to this leader has no more of the log, unless its answers were lost.
    last: Lsn,
}

struct Offered {
    lsn: Lsn,
    /// No further offer before this tick.
    again: u64,
    pause: u64,
    /// Why the last transfer failed, if it did.
    failed: Option<EndReason>,
}

/// A peer's fetch, behind which the log is kept until a tick.
struct Hold {
    progress: Progress,
    reported_at: u64,
    until: u64,
}

struct Fetching {
    offer: Box<Manifest>,
    bytes_done: u64,
    waits_for_space: bool,
    installing: bool,
    /// The tick at which progress was last reported.
    reported_at: u64,
}

struct Newest {
    lsn: Lsn,
    peers: Option<Membership>,
}

/// A transfer to or from this member, for the status.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TransferStatus {
    /// The member that fetches.
    pub receiver: NodeId,
    /// The last report of the receiver; for this member's own fetch, its present state.
    pub progress: Progress,
    /// The snapshot is complete and being installed.
    pub installing: bool,
    /// The disk of this member, which fetches, is full: it goes on once there is space. Of another member that is
    /// not known.
    pub waits_for_space: bool,
}

impl Peers {
    /// Forgets nodes that are not members.
    pub fn only(&mut self, membership: &Membership) {
        self.last_contact
            .retain(|node, _| membership.contains(*node));
        self.offers.retain(|node, _| membership.contains(*node));
        self.holds.retain(|node, _| membership.contains(*node));
        self.given_up.retain(|node| membership.contains(*node));
        self.unheard_since
            .retain(|node, _| membership.contains(*node));
    }

    pub fn last_contact(&self, node: NodeId) -> Option<u64> {
        self.last_contact.get(&node).copied()
    }

    pub fn last_failure(&self, node: NodeId) -> Option<EndReason> {
        self.offers.get(&node)?.failed
    }

    pub fn installing(&self) -> bool {
        self.fetching.as_ref().is_some_and(|f| f.installing)
    }

    pub fn transfers(&self, me: NodeId) -> Vec<TransferStatus> {
        let others = self.holds.iter().map(|(node, hold)| TransferStatus {
            receiver: *node,
            progress: hold.progress,
            installing: false,
            waits_for_space: false,
        });
        let mine = self.fetching.iter().map(|fetching| TransferStatus {
            receiver: me,
            progress: fetching.progress(),
            installing: fetching.installing,
            waits_for_space: fetching.waits_for_space,
        });
        mine.chain(others).collect()
    }
}

impl Fetching {
    fn progress(&self) -> Progress {
        Progress {
            checkpoint: self.offer.checkpoint,
            source: self.offer.source,
            last_included_index: self.offer.last_included_index,
            bytes_done: self.bytes_done,
            bytes_total: self.offer.total_bytes(),
        }
    }
}

/// The side of the member that has the snapshot.
impl Engine {
    pub(super) fn note_contact(&mut self, node: NodeId) {
        if self.membership.contains(node) {
            self.peers.last_contact.insert(node, self.ticks);
            self.peers.unheard_since.remove(&node);
            self.note_return(node);
        }
    }

    /// The host has taken or loaded a snapshot.
    pub(super) fn note_newest(&mut self, lsn: Lsn, peers: Option<Membership>) {
        let newest = self.peers.newest.as_ref();
        if newest.is_none_or(|n| n.lsn <= lsn) {
            self.peers.newest = Some(Newest { lsn, peers });
        }
    }

    /// Offers snapshots to the peers that raft-rs could not send entries to in this step.
    pub(super) fn offer_snapshots(&mut self, actions: &mut Vec<Action>) {
        for to in self.raw.store().take_behind() {
            let leads = self.role == Role::Leader && self.raw.raft.state == StateRole::Leader;
            if leads && !self.peers.withheld {
                self.offer_snapshot(to, actions);
            }
        }
    }

    fn offer_snapshot(&mut self, to: NodeId, actions: &mut Vec<Action>) {
        // A peer that fetches reports it regularly, so it needs no offer.
        let fetches =
            |hold: &Hold| hold.reported_at + 2 * self.config.election_ticks as u64 > self.ticks;
        if self.peers.holds.get(&to).is_some_and(fetches) {
            return;
        }
        let offered = self.peers.offers.get(&to);
        if offered.is_some_and(|o| o.again > self.ticks) {
            return;
        }
        let (start, floor) = (self.log_start(), self.floor());
        let newest = self.peers.newest.as_ref();
        let knows = |n: &&Newest| n.peers.as_ref().is_some_and(|p| p.contains(to));
        // The entry after it must be in the log.
        let useful = newest
            .filter(knows)
            .filter(|n| n.lsn >= start && n.lsn <= floor);
        if let Some(useful) = useful {
            let lsn = useful.lsn;
            let first = self.config.offer_retry_ticks;
            let pause = offered.map_or(first, |o| o.pause);
            let offer = Offered {
                lsn,
                again: self.ticks + pause,
                pause,
                failed: offered.and_then(|o| o.failed),
            };
            self.peers.offers.insert(to, offer);
            self.counters.snapshots_offered += 1;
            actions.push(Action::OfferSnapshot {
                to,
                last_included_index: lsn,
            });
        } else if newest.is_none_or(|n| n.peers.is_none() || n.lsn < self.applied) {
            self.snapshots.want();
        }
        // Otherwise the newest snapshot covers everything applied and does not contain the peer: the entry
        // that adds it is about to be applied.
    }

    /// The host does not have the snapshot any more, or cannot read it. It is not offered again.
    pub(super) fn offer_failed(&mut self, to: NodeId) {
        if let Some(newest) = &mut self.peers.newest {
            newest.peers = None;
        }
        self.delay_next_offer(to);
    }

    /// A peer could not fetch what this member offered, because it is damaged or gone. If it is the newest
    /// snapshot, it is not offered again: the result would be the same.
    fn discard_newest(&mut self, progress: &Progress) {
        if progress.source == self.config.id
            && let Some(newest) = &mut self.peers.newest
            && newest.lsn == progress.last_included_index
        {
            newest.peers = None;
        }
    }

    /// An offer or its transfer failed: the pause before the next offer doubles.
    fn delay_next_offer(&mut self, to: NodeId) {
        if let Some(offered) = self.peers.offers.get_mut(&to) {
            let most = self.config.offer_retry_ticks * MAX_PAUSE_FACTOR;
            offered.again = self.ticks + offered.pause;
            offered.pause = (offered.pause * 2).min(most);
        }
    }

    /// A node without a log, which was added to the group, requests a snapshot.
    pub(super) fn wanted_by(&mut self, node: NodeId) {
        let progress = self.raw.raft.prs().get(node.0);
        let new = progress.is_some_and(|p| p.matched == 0);
        // A member that has acknowledged entries or may have voted, and lost its log, gets no snapshot: it
        // must join under a new number.
        if self.role != Role::Leader || !new || !self.membership.learners.contains(&node) {
            return self.gate.count(Refusal::NotAMember);
        }
        self.raw.store().note_behind(node);
    }

    pub(super) fn receive_progress(&mut self, node: NodeId, progress: Progress) {
        if !self.membership.contains(node) {
            return self.gate.count(Refusal::NotAMember);
        }
        let now = self.ticks;
        let hold = Hold {
            progress,
            reported_at: now,
            until: now + self.config.transfer_idle_ticks,
        };
        self.peers.holds.insert(node, hold);
    }

    pub(super) fn receive_ended(&mut self, node: NodeId, ended: Ended) {
        if !self.membership.contains(node) {
            return self.gate.count(Refusal::NotAMember);
        }
        let hold = self.peers.holds.get_mut(&node);
        let known = hold.filter(|h| h.progress.checkpoint == ended.checkpoint);
        let done = ended.reason == EndReason::Installed;
        if done {
            // Kept until the acknowledgement of the install has arrived too.
            if let Some(hold) = known {
                hold.until = self.ticks + 2 * self.config.election_ticks as u64;
            }
            if self.peers.offers.remove(&node).is_some() {
                self.counters.snapshots_sent += 1;
            }
        } else {
            let hold = match known.is_some() {
                true => self.peers.holds.remove(&node),
                false => None,
            };
            let is_unusable = matches!(
                ended.reason,
                EndReason::Corrupt | EndReason::Unreadable | EndReason::Vanished
            );
            if let (true, Some(hold)) = (is_unusable, hold) {
                self.discard_newest(&hold.progress);
            }
            let failed = (ended.reason != EndReason::NotNeeded).then_some(ended.reason);
            if failed.is_some() {
                self.delay_next_offer(node);
            }
            if let Some(offered) = self.peers.offers.get_mut(&node) {
                offered.failed = failed;
            }
        }
        let status = match done {
            true => SnapshotStatus::Finish,
            false => SnapshotStatus::Failure,
        };
        self.raw.report_snapshot(node.0, status);
    }

    /// The last entry up to which the log may be compacted for the sake of the peers: they need what
    /// follows their last entry, or the snapshot that they fetch or were offered. A peer for which more
    /// bytes than configured would have to be kept does not count.
    pub(super) fn kept_for_peers(&self) -> Option<Lsn> {
        if self.alone {
            return None;
        }
        let limit = self.config.max_bytes_kept_for_peers;
        let affordable = |lsn: &Lsn| self.snapshots.bytes_above(*lsn) <= limit;
        let holds = self.peers.holds.values().filter(|h| h.until > self.ticks);
        let holds = holds.map(|h| h.progress.last_included_index);
        let mut lowest = holds.filter(affordable).min();
        if self.role == Role::Leader {
            let offers = self.peers.offers.values().filter(|o| o.again > self.ticks);
            let followers = self.raw.raft.prs().iter();
            let start = self.log_start().0;
            let heard = |id: &u64| self.is_heard(NodeId(*id));
            let followers = followers.filter(|(id, p)| heard(id) && p.matched >= start);
            let followers = followers.map(|(_, p)| Lsn(p.matched));
            let leader = offers.map(|o| o.lsn).chain(followers);
            lowest = lowest.into_iter().chain(leader.filter(affordable)).min();
        }
        lowest
    }

    pub(super) fn tick_peers(&mut self, actions: &mut Vec<Action>) {
        let now = self.ticks;
        self.peers.holds.retain(|_, hold| hold.until > now);
        let interval = (self.config.election_ticks as u64).div_ceil(2);
        if (self.peers.fetching.as_ref()).is_some_and(|f| now >= f.reported_at + interval) {
            self.notify_progress(actions);
        }
    }
}

/// Where the log begins after an installed snapshot.
pub(super) fn floor_of(metadata: &SnapshotMetadata) -> LogFloor {
    LogFloor {
        lsn: Lsn(metadata.index),
        term: Term(metadata.term),
    }
}
