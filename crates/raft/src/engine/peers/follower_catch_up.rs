//! The follower's side of a catch-up: how a member answers an offer, follows its own fetch, and takes over
//! an installed snapshot.

use raft::StateRole;
use raft::eraftpb::{Message, MessageType, Snapshot, SnapshotMetadata};

use super::Fetching;
use crate::engine::{Action, Engine, Role};
use crate::ids::{CheckpointId, NodeId};
use crate::message::{EndReason, Ended, NewerOffer, Payload, Refusal};
use crate::transfer::Manifest;

impl Engine {
    /// Whether this member has no membership and no log yet: it then only takes a snapshot.
    pub(in crate::engine) fn waits_to_join(&self) -> bool {
        self.membership.voters.is_empty()
    }

    /// Requests a snapshot from a node that sends messages of a leader.
    pub(in crate::engine) fn request_snapshot(
        &mut self,
        leader: NodeId,
        actions: &mut Vec<Action>,
    ) {
        let recently = |at: u64| self.ticks < at + self.config.heartbeat_ticks as u64;
        if self.peers.fetching.is_some() || self.peers.requested_at.is_some_and(recently) {
            return;
        }
        self.peers.requested_at = Some(self.ticks);
        let wanted = self.config.identity().seal(leader, Payload::Wanted);
        actions.push(Action::Send(vec![wanted]));
    }

    pub(in crate::engine) fn offered(
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
                // What the snapshot covers is committed. The leader has removed the entries before it, and
                // cannot go on until it learns that this member does not need them.
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
            return self.notify_ended(from, checkpoint, reason, actions);
        }
        if self.peers.fetching.is_none() {
            self.begin_fetch(offer, actions);
        }
        // A fetch that is under way goes on, even if the offer is newer. The leader gets a report of it.
        self.notify_progress(actions);
    }

    /// This version cannot fetch the snapshot. The answer makes the leader repeat the offer, with growing
    /// pauses, until this member is upgraded.
    pub(in crate::engine) fn offered_newer(
        &mut self,
        from: NodeId,
        offer: NewerOffer,
        actions: &mut Vec<Action>,
    ) {
        self.gate.count(Refusal::NewerFormat);
        self.notify_ended(from, offer.checkpoint, EndReason::NewerFormat, actions);
    }

    pub(in crate::engine) fn resume_fetch(
        &mut self,
        offer: Box<Manifest>,
        actions: &mut Vec<Action>,
    ) {
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
        self.notify_progress(actions);
    }

    fn begin_fetch(&mut self, offer: Box<Manifest>, actions: &mut Vec<Action>) {
        actions.push(Action::FetchSnapshot {
            from: offer.source,
            offer: offer.clone(),
        });
        // The host reuses or removes the files of an earlier fetch.
        self.peers.left = None;
        self.peers.fetching = Some(Fetching {
            offer,
            bytes_done: 0,
            waits_for_space: false,
            installing: false,
            reported_at: self.ticks,
        });
    }

    /// Whether the snapshot covers entries that this member neither has committed nor has in its log.
    fn needs(&self, offer: &Manifest) -> bool {
        let lsn = offer.last_included_index;
        lsn > self.committed() && !self.has(offer) && self.role != Role::Leader
    }

    /// Whether this member's log has the last entry that the snapshot covers, and hence all before.
    fn has(&self, offer: &Manifest) -> bool {
        let (lsn, term) = (offer.last_included_index, offer.term);
        lsn > self.log_start()
            && lsn <= self.last()
            && self.raw.raft.raft_log.match_term(lsn.0, term.0)
    }

    pub(in crate::engine) fn fetch_progress(
        &mut self,
        checkpoint: CheckpointId,
        bytes_done: u64,
        waits_for_space: bool,
    ) {
        if let Some(fetching) = self.fetching(checkpoint) {
            fetching.bytes_done = bytes_done;
            fetching.waits_for_space = waits_for_space;
        }
    }

    fn fetching(&mut self, checkpoint: CheckpointId) -> Option<&mut Fetching> {
        let fetching = self.peers.fetching.as_mut();
        fetching.filter(|f| f.offer.checkpoint == checkpoint)
    }

    /// Abandons fetches, also failed ones, that are not needed any more because the entries have arrived.
    pub(in crate::engine) fn abandon_unneeded(&mut self, actions: &mut Vec<Action>) {
        let left = self.peers.left.as_ref();
        if left.is_some_and(|offer| !self.needs(offer))
            && let Some(offer) = self.peers.left.take()
        {
            let checkpoint = offer.checkpoint;
            actions.push(Action::AbandonFetch { checkpoint });
        }
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

    pub(in crate::engine) fn snapshot_fetched(
        &mut self,
        checkpoint: CheckpointId,
        actions: &mut Vec<Action>,
    ) {
        self.abandon_unneeded(actions);
        let Some(fetching) = self.fetching(checkpoint) else {
            return;
        };
        if !std::mem::replace(&mut fetching.installing, true) {
            let offer = fetching.offer.clone();
            self.counters.bytes_received += offer.total_bytes();
            actions.push(Action::InstallSnapshot { offer });
        }
    }

    pub(in crate::engine) fn fetch_failed(
        &mut self,
        checkpoint: CheckpointId,
        reason: EndReason,
        actions: &mut Vec<Action>,
    ) {
        if self.fetching(checkpoint).is_some() {
            self.counters.fetches_failed += 1;
            self.peers.left = self.end_fetch(reason, actions);
        }
    }

    /// The host's state is that of the snapshot. Only now raft-rs restores it.
    pub(in crate::engine) fn snapshot_installed(
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
            // In the same term, so that its vote for itself is kept.
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
        // Reads that waited for entries which the snapshot covers are ready; perhaps nothing else is
        // applied for a long time.
        self.reads_applied(actions);
        self.end_fetch(EndReason::Installed, actions);
    }

    pub(in crate::engine) fn install_failed(
        &mut self,
        checkpoint: CheckpointId,
        actions: &mut Vec<Action>,
    ) {
        if self.fetching(checkpoint).is_some_and(|f| f.installing) {
            self.counters.fetches_failed += 1;
            // Its files stay for the next offer.
            self.peers.left = self.end_fetch(EndReason::NotInstalled, actions);
        }
    }

    /// Acknowledges everything up to the commit index to the leader. The message is sent once that is
    /// durable, like every acknowledgement.
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

    /// Ends the fetch of this member and reports it. Returns its offer.
    fn end_fetch(&mut self, reason: EndReason, actions: &mut Vec<Action>) -> Option<Box<Manifest>> {
        let fetching = self.peers.fetching.take()?;
        let (source, checkpoint) = (fetching.offer.source, fetching.offer.checkpoint);
        for to in self.everybody_else(source) {
            self.notify_ended(to, checkpoint, reason, actions);
        }
        Some(fetching.offer)
    }

    fn notify_ended(
        &self,
        to: NodeId,
        checkpoint: CheckpointId,
        reason: EndReason,
        actions: &mut Vec<Action>,
    ) {
        let ended = Payload::Ended(Ended { checkpoint, reason });
        actions.push(Action::Send(vec![self.config.identity().seal(to, ended)]));
    }

    pub(super) fn notify_progress(&mut self, actions: &mut Vec<Action>) {
        let now = self.ticks;
        let Some(fetching) = &mut self.peers.fetching else {
            return;
        };
        fetching.reported_at = now;
        let (progress, source) = (fetching.progress(), fetching.offer.source);
        let identity = self.config.identity();
        let to = self.everybody_else(source).into_iter();
        let messages = to.map(|to| identity.seal(to, Payload::Progress(progress)));
        actions.push(Action::Send(messages.collect()));
    }

    /// All nodes that may lead or send the snapshot: the members, the leader, the source; without this one.
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
