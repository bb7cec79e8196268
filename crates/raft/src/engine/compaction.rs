//! What follows when entries are applied and snapshots are taken: entries leave memory, and the log is
//! compacted.

use bytes::Bytes;
use raft::Storage as _;

use super::{Action, Engine, Membership};
use crate::ids::{Lsn, Term};

impl Engine {
    pub(super) fn note_applied(&mut self, lsn: Lsn, actions: &mut Vec<Action>) {
        if lsn < self.applied {
            // A report from before a snapshot was installed.
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

    /// Drops entries from memory that are durable and applied. If more than `max_log_bytes_in_memory`
    /// remain, drops the oldest durable ones too.
    pub(super) fn evict(&mut self) {
        let persisted = self.raw.raft.raft_log.persisted;
        let most = self.config.max_log_bytes_in_memory;
        let store = self.raw.mut_store();
        store.evict(Lsn(persisted.min(self.applied.0)));
        store.evict_down_to(most, Lsn(persisted));
    }

    pub(super) fn snapshot_taken(
        &mut self,
        lsn: Lsn,
        term: Term,
        peers: Option<Membership>,
        actions: &mut Vec<Action>,
    ) {
        // A snapshot can only cover what is committed.
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

    pub(super) fn snapshot_bytes(&mut self, lsn: Lsn, bytes: Bytes, actions: &mut Vec<Action>) {
        // The engine knows the membership as of what was handed out for applying. It is also that of `lsn`
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

    pub(super) fn compact(&mut self, actions: &mut Vec<Action>) {
        let up_to = self.compactable();
        if up_to <= self.log_start() {
            return;
        }
        if let Some(floor) = self.raw.mut_store().compact(up_to) {
            self.snapshots.compacted(up_to);
            actions.push(Action::Compact { floor });
        }
    }

    /// The last entry up to which the log may be compacted.
    pub(super) fn compactable(&self) -> Lsn {
        let own = self.snapshots.compactable();
        if own <= self.log_start() {
            return own;
        }
        if !self.alone && self.ticks < self.compaction_hold_until {
            // The peers have not had the time to report what they have or fetch.
            return self.log_start();
        }
        let kept = [self.kept_for_peers(), self.kept_for_absent(own)];
        let kept = kept.into_iter().flatten().min();
        kept.map_or(own, |keep| keep.min(own))
    }
}
