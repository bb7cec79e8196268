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

use std::collections::BTreeMap;

use raft::eraftpb::{Message, MessageType, Snapshot, SnapshotMetadata};
use raft::{SnapshotStatus, StateRole};

use super::{Action, Engine, LogFloor, Membership, Role};
use crate::ids::{CheckpointId, Lsn, NodeId, Term};
use crate::message::{EndReason, Ended, Payload, Progress, Refusal};
use crate::transfer::Manifest;

/// A peer whose transfers keep failing is offered another one ever later, up to so many times the
/// first pause.
const MAX_PAUSE_FACTOR: u64 = 32;

#[derive(Default)]
pub(super) struct Peers {
    /// The tick at which a member was last heard.
    heard: BTreeMap<NodeId, u64>,
    offers: BTreeMap<NodeId, Offered>,
    holds: BTreeMap<NodeId, Hold>,
    /// What this member is fetching.
    fetching: Option<Fetching>,
    /// The newest snapshot of this member's host, and who is in it, if that is known.
    newest: Option<Newest>,
    /// A joiner has asked for a snapshot at this tick.
    asked_at: Option<u64>,
}

struct Offered {
    lsn: Lsn,
    /// Not again before this tick.
    again: u64,
    pause: u64,
}

/// The log behind what a peer is fetching.
struct Hold {
    progress: Progress,
    heard: u64,
    until: u64,
}

struct Fetching {
    offer: Box<Manifest>,
    bytes_done: u64,
    installing: bool,
    /// Progress was told at this tick.
    told: u64,
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
        self.heard.retain(|node, _| membership.contains(*node));
        self.offers.retain(|node, _| membership.contains(*node));
        self.holds.retain(|node, _| membership.contains(*node));
    }

    pub fn heard(&self, node: NodeId) -> Option<u64> {
        self.heard.get(&node).copied()
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
    pub(super) fn note_heard(&mut self, node: NodeId) {
        if self.membership.contains(node) {
            self.peers.heard.insert(node, self.ticks);
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
    pub(super) fn help_those_behind(&mut self, actions: &mut Vec<Action>) {
        for to in self.raw.store().take_behind() {
            if self.role == Role::Leader && self.raw.raft.state == StateRole::Leader {
                self.help(to, actions);
            }
        }
    }

    fn help(&mut self, to: NodeId, actions: &mut Vec<Action>) {
        // It says so often while it does. Offered something then, it says so once more.
        let fetches = |hold: &Hold| hold.heard + 2 * self.config.election_ticks as u64 > self.ticks;
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
            let again = self.ticks + pause;
            self.peers.offers.insert(to, Offered { lsn, again, pause });
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
        self.put_off(to);
    }

    /// What was fetched is not what was offered, or not there. If it is this member's newest snapshot,
    /// it would be so again and again.
    fn spoiled(&mut self, progress: &Progress) {
        if progress.source == self.config.id
            && let Some(newest) = &mut self.peers.newest
            && newest.lsn == progress.last_included_index
        {
            newest.peers = None;
        }
    }

    /// An offer, or what came of it, failed: the next one waits longer.
    fn put_off(&mut self, to: NodeId) {
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

    pub(super) fn hear_progress(&mut self, node: NodeId, progress: Progress) {
        if !self.membership.contains(node) {
            return self.gate.count(Refusal::NotAMember);
        }
        let heard = self.ticks;
        let hold = Hold {
            progress,
            heard,
            until: heard + self.config.transfer_idle_ticks,
        };
        self.peers.holds.insert(node, hold);
    }

    pub(super) fn hear_ended(&mut self, node: NodeId, ended: Ended) {
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
            let spoiled = matches!(
                ended.reason,
                EndReason::Corrupt | EndReason::Unreadable | EndReason::Vanished
            );
            if let (true, Some(hold)) = (spoiled, hold) {
                self.spoiled(&hold.progress);
            }
            if ended.reason != EndReason::NotNeeded {
                self.put_off(node);
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
            let heard = |id: &u64| self.peers.heard(NodeId(*id)).is_some_and(|at| at >= lately);
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
        if (self.peers.fetching.as_ref()).is_some_and(|f| now >= f.told + interval) {
            self.tell_progress(actions);
        }
    }
}

/// The side of the one who is helped.
impl Engine {
    /// A member without a log and without a membership takes part in nothing but a snapshot.
    pub(super) fn waits_to_join(&self) -> bool {
        self.membership.voters.is_empty()
    }

    /// Somebody who seems to lead speaks to a joiner.
    pub(super) fn ask_to_join(&mut self, leader: NodeId, actions: &mut Vec<Action>) {
        let recently = |at: u64| self.ticks < at + self.config.heartbeat_ticks as u64;
        if self.peers.fetching.is_some() || self.peers.asked_at.is_some_and(recently) {
            return;
        }
        self.peers.asked_at = Some(self.ticks);
        let wanted = self.config.identity().seal(leader, Payload::Wanted);
        actions.push(Action::Send(vec![wanted]));
    }

    pub(super) fn offered(
        &mut self,
        from: NodeId,
        offer: Box<Manifest>,
        actions: &mut Vec<Action>,
    ) {
        let checkpoint = offer.checkpoint;
        let verdict = if offer.validate().is_err() || offer.source != from {
            Some(EndReason::Refused)
        } else if !offer.peers.contains(self.config.id) {
            Some(EndReason::NotAMember)
        } else if !self.needs(&offer) {
            let leads = self.raw.raft.state == StateRole::Leader;
            if self.has(&offer) && !leads && !self.peers.installing() {
                // What it covers is committed. The entries before it are gone at the leader: it cannot
                // go on before it hears that this member needs none of them.
                self.raw
                    .raft
                    .raft_log
                    .commit_to(offer.last_included_index.0);
            }
            self.acknowledge();
            Some(EndReason::NotNeeded)
        } else {
            None
        };
        if let Some(reason) = verdict {
            return self.tell_ended(from, checkpoint, reason, actions);
        }
        if self.peers.fetching.is_none() {
            self.begin_fetch(offer, actions);
        }
        // Under way, it goes on, whatever is newer. That it does is what the leader is to know.
        self.tell_progress(actions);
    }

    pub(super) fn resume_fetch(&mut self, offer: Box<Manifest>, actions: &mut Vec<Action>) {
        let useful = offer.validate().is_ok()
            && offer.peers.contains(self.config.id)
            && self.peers.fetching.is_none()
            && self.needs(&offer);
        if !useful {
            let checkpoint = offer.checkpoint;
            return actions.push(Action::AbandonFetch { checkpoint });
        }
        self.counters.fetches_resumed += 1;
        self.begin_fetch(offer, actions);
        self.tell_progress(actions);
    }

    fn begin_fetch(&mut self, offer: Box<Manifest>, actions: &mut Vec<Action>) {
        actions.push(Action::FetchSnapshot {
            from: offer.source,
            offer: offer.clone(),
        });
        self.peers.fetching = Some(Fetching {
            offer,
            bytes_done: 0,
            installing: false,
            told: self.ticks,
        });
    }

    /// Whether the snapshot covers what this member has not, and cannot just commit.
    fn needs(&self, offer: &Manifest) -> bool {
        let lsn = offer.last_included_index;
        lsn > self.committed() && !self.has(offer) && self.role != Role::Leader
    }

    /// Whether this member's log has everything that the snapshot covers.
    fn has(&self, offer: &Manifest) -> bool {
        let (lsn, term) = (offer.last_included_index, offer.term);
        lsn > self.log_start()
            && lsn <= self.last()
            && self.raw.raft.raft_log.match_term(lsn.0, term.0)
    }

    pub(super) fn fetch_progress(&mut self, checkpoint: CheckpointId, bytes_done: u64) {
        if let Some(fetching) = self.fetching(checkpoint) {
            fetching.bytes_done = bytes_done;
        }
    }

    fn fetching(&mut self, checkpoint: CheckpointId) -> Option<&mut Fetching> {
        let fetching = self.peers.fetching.as_mut();
        fetching.filter(|f| f.offer.checkpoint == checkpoint)
    }

    /// What is being fetched may have come another way, as entries.
    pub(super) fn abandon_needless(&mut self, actions: &mut Vec<Action>) {
        let Some(fetching) = &self.peers.fetching else {
            return;
        };
        if fetching.installing || self.needs(&fetching.offer) {
            return;
        }
        let checkpoint = fetching.offer.checkpoint;
        actions.push(Action::AbandonFetch { checkpoint });
        self.end_fetch(EndReason::NotNeeded, actions);
    }

    pub(super) fn snapshot_fetched(&mut self, checkpoint: CheckpointId, actions: &mut Vec<Action>) {
        self.abandon_needless(actions);
        let Some(fetching) = self.fetching(checkpoint) else {
            return;
        };
        if !std::mem::replace(&mut fetching.installing, true) {
            let offer = fetching.offer.clone();
            self.counters.bytes_received += offer.total_bytes();
            actions.push(Action::InstallSnapshot { offer });
        }
    }

    pub(super) fn fetch_failed(
        &mut self,
        checkpoint: CheckpointId,
        reason: EndReason,
        actions: &mut Vec<Action>,
    ) {
        if self.fetching(checkpoint).is_some() {
            self.counters.fetches_failed += 1;
            self.end_fetch(reason, actions);
        }
    }

    /// The host's state is the snapshot's. Now, and only now, raft-rs is told.
    pub(super) fn snapshot_installed(
        &mut self,
        checkpoint: CheckpointId,
        actions: &mut Vec<Action>,
    ) {
        let Some(fetching) = self.fetching(checkpoint).filter(|f| f.installing) else {
            return;
        };
        let offer = fetching.offer.clone();
        let (lsn, term) = (offer.last_included_index, offer.term);
        let raft = &mut self.raw.raft;
        if matches!(raft.state, StateRole::Candidate | StateRole::PreCandidate) {
            // Of its own term: the vote that it gave itself stays given.
            raft.become_follower(raft.term, 0);
        }
        let mut metadata = SnapshotMetadata {
            index: lsn.0,
            term: term.0,
            ..SnapshotMetadata::default()
        };
        metadata.set_conf_state(offer.peers.to_conf_state());
        let mut snapshot = Snapshot::default();
        snapshot.set_metadata(metadata);
        if raft.state != StateRole::Follower || !raft.restore(snapshot) {
            return self.raw.store().fail(format!(
                "a snapshot of everything up to LSN {lsn} was installed, and consensus went past it"
            ));
        }
        self.applied = lsn;
        self.backlog.clear();
        self.backlog_bytes = 0;
        self.snapshots.installed(lsn);
        self.peers.newest = None;
        self.set_membership(offer.peers.clone());
        self.counters.snapshots_received += 1;
        self.acknowledge();
        self.end_fetch(EndReason::Installed, actions);
    }

    pub(super) fn install_failed(&mut self, checkpoint: CheckpointId, actions: &mut Vec<Action>) {
        if self.fetching(checkpoint).is_some_and(|f| f.installing) {
            self.counters.fetches_failed += 1;
            self.end_fetch(EndReason::NotInstalled, actions);
        }
    }

    /// Tells the leader up to where this member has everything. It goes out once that is durable,
    /// like every acknowledgement.
    fn acknowledge(&mut self) {
        let (me, committed) = (self.config.id.0, self.committed().0);
        let raft = &mut self.raw.raft;
        if raft.leader_id == 0 || raft.leader_id == me || raft.state != StateRole::Follower {
            return;
        }
        let mut acknowledged = Message::default();
        acknowledged.set_msg_type(MessageType::MsgAppendResponse);
        acknowledged.from = me;
        acknowledged.to = raft.leader_id;
        acknowledged.term = raft.term;
        acknowledged.index = committed;
        acknowledged.commit = committed;
        raft.msgs.push(acknowledged);
    }

    fn end_fetch(&mut self, reason: EndReason, actions: &mut Vec<Action>) {
        let Some(fetching) = self.peers.fetching.take() else {
            return;
        };
        let (source, checkpoint) = (fetching.offer.source, fetching.offer.checkpoint);
        for to in self.everybody_else(source) {
            self.tell_ended(to, checkpoint, reason, actions);
        }
    }

    fn tell_ended(
        &self,
        to: NodeId,
        checkpoint: CheckpointId,
        reason: EndReason,
        actions: &mut Vec<Action>,
    ) {
        let ended = Payload::Ended(Ended { checkpoint, reason });
        actions.push(Action::Send(vec![self.config.identity().seal(to, ended)]));
    }

    fn tell_progress(&mut self, actions: &mut Vec<Action>) {
        let now = self.ticks;
        let Some(fetching) = &mut self.peers.fetching else {
            return;
        };
        fetching.told = now;
        let (progress, source) = (fetching.progress(), fetching.offer.source);
        let identity = self.config.identity();
        let to = self.everybody_else(source).into_iter();
        let told = to.map(|to| identity.seal(to, Payload::Progress(progress)));
        actions.push(Action::Send(told.collect()));
    }

    /// Who may lead, or serves: the members, the leader, the source.
    fn everybody_else(&self, source: NodeId) -> Vec<NodeId> {
        let leader = self.leader();
        let mut all: Vec<_> = self
            .membership
            .members()
            .chain(leader)
            .chain([source])
            .collect();
        all.sort_unstable();
        all.dedup();
        all.retain(|node| *node != self.config.id);
        all
    }
}

/// Where a log goes on after an offer was installed.
pub(super) fn floor_of(metadata: &SnapshotMetadata) -> LogFloor {
    LogFloor {
        lsn: Lsn(metadata.index),
        term: Term(metadata.term),
    }
}
