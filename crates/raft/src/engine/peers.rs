//! What the engine does so that a peer which lacks entries that are gone catches up, as the one who
//! helps and as the one who is helped. The bytes travel elsewhere: see [`crate::transfer`].
//!
//! ```text
//! leader                                   follower
//!   raft-rs wants to send what is gone
//!   OfferSnapshot (or a hint) ──Offer──▶   useful? FetchSnapshot
//!   keeps its log behind that ◀─Progress─  … every few ticks, to everybody
//!                                          SnapshotFetched ─▶ InstallSnapshot
//!                                          SnapshotInstalled ─▶ raft-rs is told, and acknowledges
//!   raft-rs goes on with entries ◀──Ended─
//! ```
//!
//! raft-rs never sees a snapshot on the leader: to it, there is none at the moment, and the follower
//! is probed with every heartbeat until its own acknowledgement says that it can go on with entries.
//! On the follower it sees the snapshot when everything is there and installed: before that, it would
//! hold back votes and acknowledgements.
//!
//! A transfer does not end because the leader changes, or has a newer snapshot. Everybody who hears
//! of one keeps the log behind it, up to a limit in bytes; if the log goes all the same, the
//! follower is offered another snapshot after this one.

mod follower_catch_up;

use std::collections::BTreeMap;

use raft::eraftpb::SnapshotMetadata;
use raft::{SnapshotStatus, StateRole};

use super::{Action, Engine, LogFloor, Membership, Role};
use crate::ids::{Lsn, NodeId, Term};
use crate::message::{EndReason, Ended, Progress, Refusal};
use crate::transfer::Manifest;

/// A peer whose transfers keep failing is offered another one ever later, up to so many times the
/// first pause.
const MAX_PAUSE_FACTOR: u64 = 32;

#[derive(Default)]
pub(super) struct Peers {
    /// The tick at which a member was last heard.
    last_contact: BTreeMap<NodeId, u64>,
    offers: BTreeMap<NodeId, Offered>,
    holds: BTreeMap<NodeId, Hold>,
    /// What this member is fetching.
    fetching: Option<Fetching>,
    /// What it was fetching, and gave up: what is there of it is of use to the next fetch.
    left: Option<Box<Manifest>>,
    /// The newest snapshot of this member's host, and who is in it, if that is known.
    newest: Option<Newest>,
    /// A joiner has asked for a snapshot at this tick.
    requested_at: Option<u64>,
}

struct Offered {
    lsn: Lsn,
    /// Not again before this tick.
    again: u64,
    pause: u64,
    /// What came of the last one, if it was nothing.
    failed: Option<EndReason>,
}

/// The log behind what a peer is fetching.
struct Hold {
    progress: Progress,
    reported_at: u64,
    until: u64,
}

struct Fetching {
    offer: Box<Manifest>,
    bytes_done: u64,
    installing: bool,
    /// Progress was told at this tick.
    reported_at: u64,
}

struct Newest {
    lsn: Lsn,
    peers: Option<Membership>,
}

/// A transfer to or from this member, for the status.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TransferStatus {
    /// Who fetches.
    pub receiver: NodeId,
    /// As the receiver said last, or is.
    pub progress: Progress,
    /// Everything is there, and being installed.
    pub installing: bool,
}

impl Peers {
    /// Forgets everybody else.
    pub fn only(&mut self, membership: &Membership) {
        self.last_contact
            .retain(|node, _| membership.contains(*node));
        self.offers.retain(|node, _| membership.contains(*node));
        self.holds.retain(|node, _| membership.contains(*node));
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
        });
        let mine = self.fetching.iter().map(|fetching| TransferStatus {
            receiver: me,
            progress: fetching.progress(),
            installing: fetching.installing,
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

/// The helper's side.
impl Engine {
    pub(super) fn note_contact(&mut self, node: NodeId) {
        if self.membership.contains(node) {
            self.peers.last_contact.insert(node, self.ticks);
        }
    }

    /// The host has a snapshot of its own.
    pub(super) fn note_newest(&mut self, lsn: Lsn, peers: Option<Membership>) {
        let newest = self.peers.newest.as_ref();
        if newest.is_none_or(|n| n.lsn <= lsn) {
            self.peers.newest = Some(Newest { lsn, peers });
        }
    }

    /// Helps the peers that raft-rs could not send entries to in this step.
    pub(super) fn offer_snapshots(&mut self, actions: &mut Vec<Action>) {
        for to in self.raw.store().take_behind() {
            if self.role == Role::Leader && self.raw.raft.state == StateRole::Leader {
                self.offer_snapshot(to, actions);
            }
        }
    }

    fn offer_snapshot(&mut self, to: NodeId, actions: &mut Vec<Action>) {
        // It says so often while it does. Offered something then, it says so once more.
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
        // Its successor must be in the log.
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
        // Else the newest is of now, and lacks the peer: what added it is about to be applied.
    }

    /// The host does not have the snapshot any more, or cannot read it: that one is offered to nobody.
    pub(super) fn offer_failed(&mut self, to: NodeId) {
        if let Some(newest) = &mut self.peers.newest {
            newest.peers = None;
        }
        self.delay_next_offer(to);
    }

    /// What was fetched is not what was offered, or not there. If it is this member's newest snapshot,
    /// it would be so again and again.
    fn discard_newest(&mut self, progress: &Progress) {
        if progress.source == self.config.id
            && let Some(newest) = &mut self.peers.newest
            && newest.lsn == progress.last_included_index
        {
            newest.peers = None;
        }
    }

    /// An offer, or what came of it, failed: the next one waits longer.
    fn delay_next_offer(&mut self, to: NodeId) {
        if let Some(offered) = self.peers.offers.get_mut(&to) {
            let most = self.config.offer_retry_ticks * MAX_PAUSE_FACTOR;
            offered.again = self.ticks + offered.pause;
            offered.pause = (offered.pause * 2).min(most);
        }
    }

    /// A joiner without a log wants a snapshot.
    pub(super) fn wanted_by(&mut self, node: NodeId) {
        let progress = self.raw.raft.prs().get(node.0);
        let new = progress.is_some_and(|p| p.matched == 0);
        // One that has acknowledged entries, or may have voted, and lost its log is not helped back.
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
            // Until its acknowledgement is here too.
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

    /// Up to where the log may be compacted, as far as it is for others: what they are fetching, were
    /// offered, or have, unless that would keep more bytes than configured.
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
            let lately = self
                .ticks
                .saturating_sub(2 * self.config.election_ticks as u64);
            let heard = |id: &u64| {
                self.peers
                    .last_contact(NodeId(*id))
                    .is_some_and(|at| at >= lately)
            };
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

/// Where a log goes on after an offer was installed.
pub(super) fn floor_of(metadata: &SnapshotMetadata) -> LogFloor {
    LogFloor {
        lsn: Lsn(metadata.index),
        term: Term(metadata.term),
    }
}
