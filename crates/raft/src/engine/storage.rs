//! The storage that raft-rs reads: the hard state, and the log as entries in memory in front of a
//! [`LogReader`].
//!
//! Entries stay in memory until they are durable and applied, and the term of the last evicted entry stays
//! after that, so the path of a write never reads the disk. Older entries come from the reader. If applies
//! stop and the entries in memory exceed their limit, the oldest durable ones are evicted and read again
//! when they are applied. Entries in memory are contiguous and end with the last entry of the log.
//!
//! raft-rs panics on nearly every error of its storage. So a failure of the reader is recorded here, and
//! raft-rs gets a harmless answer (no entries; term 0, which no entry has). The engine halts at the end of
//! that step, and drops all actions that resulted from the answer.

use std::cell::{Cell, RefCell, RefMut};
use std::collections::VecDeque;

use raft::eraftpb::{ConfState, Entry, EntryType, HardState, Snapshot};
use raft::{GetEntriesContext, RaftState, Storage, StorageError};

use super::log_reads::{LogReads, entry_bytes};
use super::terms::Terms;
use super::{LogFloor, LogReader, Membership, PersistedState};
use crate::ids::{Lsn, NodeId, Term};

/// Bytes read at once when looking for changes of the membership.
const SCAN_BYTES: u64 = 1024 * 1024;

pub(super) struct EngineStorage {
    hard_state: HardState,
    /// The last entry that is committed by what was written.
    written_commit: u64,
    conf_state: ConfState,
    start: LogFloor,
    /// Contiguous entries, up to and including `last`.
    recent: VecDeque<Entry>,
    recent_bytes: u64,
    last: Lsn,
    /// The last evicted entry and its term, with which raft-rs compares the next one.
    evicted: LogFloor,
    /// No entry above it changes the membership.
    last_change: Lsn,
    /// Peers that need removed entries, since the last [`EngineStorage::take_behind`].
    behind: RefCell<Vec<NodeId>>,
    reader: Box<dyn LogReader>,
    terms: Terms,
    reads: RefCell<LogReads>,
    /// Bytes that were read for peers in this step.
    read_for_peers: Cell<u64>,
    /// The first failure to read: see the module's head.
    failure: RefCell<Option<Failure>>,
}

/// Why the engine has to halt.
#[derive(Debug)]
pub(super) struct Failure {
    pub what: String,
    /// Whether another engine may work on the same log later.
    pub may_pass: bool,
}

impl EngineStorage {
    pub fn new(
        persisted: PersistedState,
        applied: Lsn,
        membership: &Membership,
        reader: Box<dyn LogReader>,
    ) -> Self {
        let mut hard_state = persisted.hard_state;
        hard_state.commit = hard_state.commit.max(applied.0);
        let conf_state = membership.to_conf_state();
        let start = (persisted.start.lsn, persisted.start.term);
        let terms = Terms::new(reader.terms(start, persisted.last));
        EngineStorage {
            written_commit: hard_state.commit,
            hard_state,
            conf_state,
            start: persisted.start,
            recent: VecDeque::new(),
            recent_bytes: 0,
            last: persisted.last,
            evicted: persisted.start,
            last_change: persisted.last_change,
            behind: RefCell::default(),
            reader,
            terms,
            reads: RefCell::default(),
            read_for_peers: Cell::new(0),
            failure: RefCell::new(None),
        }
    }

    pub fn hard_state(&self) -> &HardState {
        &self.hard_state
    }

    pub fn set_hard_state(&mut self, hs: HardState) {
        self.hard_state = hs;
    }

    /// The hard state, which the caller writes.
    pub fn written_hard_state(&mut self) -> HardState {
        self.written_commit = self.hard_state.commit;
        self.hard_state.clone()
    }

    /// Whether one of these entries changes the membership, and no hard state was written by which it is committed.
    pub fn lacks_commit_of_change(&self, committed: &[Entry]) -> bool {
        let mut above = committed
            .iter()
            .filter(|entry| entry.index > self.written_commit);
        above.any(|entry| entry.get_entry_type() != EntryType::EntryNormal)
    }

    /// No entry above it changes the membership.
    pub fn last_change(&self) -> Lsn {
        self.last_change
    }

    pub fn start(&self) -> LogFloor {
        self.start
    }

    /// A new step begins: its bytes that are read for peers count from 0.
    pub fn begin_step(&self) {
        self.read_for_peers.set(0);
    }

    /// As if the terms could not be looked up when it was opened.
    #[cfg(test)]
    pub fn forget_terms(&mut self) {
        self.terms = Terms::default();
    }

    /// What the host is to read, or has read.
    pub fn reads(&self) -> RefMut<'_, LogReads> {
        self.reads.borrow_mut()
    }

    /// Appends entries. Entries that they replace, such as those of an earlier leader, are removed first.
    pub fn append(&mut self, entries: &[Entry]) {
        let Some(first) = entries.first() else {
            return;
        };
        assert!(
            first.index <= self.last.0 + 1,
            "a gap before LSN {}",
            first.index
        );
        while let Some(replaced) = self.recent.pop_back_if(|e| e.index >= first.index) {
            self.recent_bytes -= entry_bytes(&replaced);
        }
        if let Some(change) = entries.iter().rev().find(|e| is_change(e)) {
            self.last_change = self.last_change.max(Lsn(change.index));
        }
        // If no entry is in memory, the first one may have any LSN: the reader has those before it.
        self.recent.extend(entries.iter().cloned());
        self.recent_bytes += entries.iter().map(entry_bytes).sum::<u64>();
        self.terms.append(entries);
        self.last = Lsn(entries[entries.len() - 1].index);
    }

    /// Drops entries up to `lsn` from memory.
    pub fn evict(&mut self, lsn: Lsn) {
        self.evict_down_to(0, lsn);
    }

    /// Drops entries up to `lsn` from memory until at most `bytes` remain.
    pub fn evict_down_to(&mut self, bytes: u64, lsn: Lsn) {
        while (bytes == 0 || self.recent_bytes > bytes)
            && let Some(entry) = self.recent.pop_front_if(|e| e.index <= lsn.0)
        {
            self.recent_bytes -= entry_bytes(&entry);
            self.evicted = LogFloor {
                lsn: Lsn(entry.index),
                term: Term(entry.term),
            };
        }
    }

    /// Bytes of the entries in memory, roughly.
    pub fn bytes_in_memory(&self) -> u64 {
        self.recent_bytes
    }

    /// Moves the log start. `None` if the term of the new one cannot be read, which is recorded as a
    /// failure.
    pub fn compact(&mut self, up_to: Lsn) -> Option<LogFloor> {
        let term = self.term(up_to.0).ok()?;
        if self.has_failed() {
            return None;
        }
        self.start = LogFloor {
            lsn: up_to,
            term: Term(term),
        };
        self.evict(up_to);
        self.terms.compact(up_to);
        Some(self.start)
    }

    /// Empties the log and lets it begin after an installed snapshot.
    pub fn restart(&mut self, at: LogFloor) {
        self.recent.clear();
        self.recent_bytes = 0;
        self.start = at;
        self.evicted = at;
        self.last = at.lsn;
        self.terms.restart((at.lsn, at.term));
        self.reads().restart();
    }

    /// Takes the peers that need removed entries, each once.
    pub fn take_behind(&self) -> Vec<NodeId> {
        if self.behind.borrow().is_empty() {
            return Vec::new();
        }
        let mut behind = self.behind.take();
        behind.sort_unstable();
        behind.dedup();
        behind
    }

    /// Notes that a peer needs removed entries.
    pub fn note_behind(&self, peer: NodeId) {
        self.behind.borrow_mut().push(peer);
    }

    /// The entries `[low, high)` that change the membership. They are read in pieces, because a long replay
    /// may be ahead; ranges without such entries are not read.
    fn changes(&self, low: u64, high: u64) -> Vec<Entry> {
        let high = high.min(self.last_change.0 + 1);
        let mut changes = Vec::new();
        let mut next = low;
        while next < high && !self.has_failed() {
            let first_recent = self.first_recent();
            if next >= first_recent {
                let skip = (next - first_recent) as usize;
                let recent = self.recent.iter().skip(skip);
                let recent = recent.take_while(|e| e.index < high);
                changes.extend(recent.filter(|e| is_change(e)).cloned());
                break;
            }
            let piece = self.read(next, high.min(first_recent), SCAN_BYTES);
            next = piece.last().map_or(high, |e| e.index + 1);
            changes.extend(piece.into_iter().filter(is_change));
        }
        changes
    }

    /// Records a failure after which no engine can work on this log.
    pub fn fail(&self, what: String) {
        self.fail_for(what, false);
    }

    /// Records a failure. `may_pass`: whether another engine may work on the same log later.
    pub fn fail_for(&self, what: String, may_pass: bool) {
        let failure = Failure { what, may_pass };
        self.failure.borrow_mut().get_or_insert(failure);
    }

    pub fn has_failed(&self) -> bool {
        self.failure.borrow().is_some()
    }

    pub fn take_failure(&self) -> Option<Failure> {
        self.failure.borrow_mut().take()
    }

    fn first_recent(&self) -> u64 {
        self.recent.front().map_or(self.last.0 + 1, |e| e.index)
    }

    /// Entries `[low, high)` from the log. Empty after a failure, which is recorded.
    fn read(&self, low: u64, high: u64, max_bytes: u64) -> Vec<Entry> {
        match self.reader.entries(Lsn(low), Lsn(high), max_bytes) {
            Ok(read) if !read.0.is_empty() => read.0,
            Ok(_) => {
                self.fail(format!("the log has no entry at LSN {low}"));
                Vec::new()
            }
            Err(e) => {
                let what = format!("reading log entries {low}..{high}: {e}");
                self.fail_for(what, e.is_unreadable());
                Vec::new()
            }
        }
    }
}

impl Storage for EngineStorage {
    fn initial_state(&self) -> raft::Result<RaftState> {
        Ok(RaftState::new(
            self.hard_state.clone(),
            self.conf_state.clone(),
        ))
    }

    fn entries(
        &self,
        low: u64,
        high: u64,
        max_size: impl Into<Option<u64>>,
        context: GetEntriesContext,
    ) -> raft::Result<Vec<Entry>> {
        if low <= self.start.lsn.0 {
            return Err(raft::Error::Store(StorageError::Compacted));
        }
        assert!(
            high <= self.last.0 + 1,
            "entries up to {high} of {}",
            self.last
        );
        let max_size = match max_size.into() {
            // Without a limit, raft-rs looks for changes of the membership among the entries that are
            // committed and not applied, before it campaigns.
            None => return Ok(self.changes(low, high)),
            // The host has enough to apply: see `Engine::drain_ready`.
            Some(0) => return Ok(Vec::new()),
            Some(max_size) => max_size,
        };
        let first_recent = self.first_recent();
        let mut found = Vec::new();
        if low < first_recent && !self.reader.reads_at_once() {
            let end = high.min(first_recent);
            let mut reads = self.reads();
            if let Some(found) = reads.at_hand(low, end, max_size) {
                return Ok(found);
            }
            if !context.can_async() {
                reads.want_to_apply(low, end, max_size);
                return Ok(Vec::new());
            }
            reads.want_for_peer(low, end, self.hard_state.term, context);
            return Err(raft::Error::Store(StorageError::LogTemporarilyUnavailable));
        }
        if low < first_recent {
            let for_peer = context.can_async();
            let before = self.read_for_peers.get();
            if for_peer && before >= super::MAX_READ_FOR_PEERS {
                // raft-rs reads again with the next acknowledgement or answered heartbeat of the peer.
                return Err(raft::Error::Store(StorageError::LogTemporarilyUnavailable));
            }
            let end = high.min(first_recent);
            found = self.read(low, end, max_size);
            if for_peer {
                let bytes = found.iter().map(entry_bytes).sum::<u64>();
                self.read_for_peers.set(before + bytes);
            }
            if (found.len() as u64) < end - low {
                return Ok(found);
            }
        }
        let mut bytes: u64 = found.iter().map(entry_bytes).sum();
        let from = low.max(first_recent);
        if from < high {
            let skip = (from - first_recent) as usize;
            let count = (high - from) as usize;
            for entry in self.recent.iter().skip(skip).take(count) {
                bytes += entry_bytes(entry);
                if bytes > max_size && !found.is_empty() {
                    break;
                }
                found.push(entry.clone());
            }
        }
        Ok(found)
    }

    fn term(&self, idx: u64) -> raft::Result<u64> {
        if idx == self.start.lsn.0 {
            return Ok(self.start.term.0);
        }
        if idx < self.start.lsn.0 {
            return Err(raft::Error::Store(StorageError::Compacted));
        }
        if idx > self.last.0 {
            return Err(raft::Error::Store(StorageError::Unavailable));
        }
        let first_recent = self.first_recent();
        if idx >= first_recent {
            return Ok(self.recent[(idx - first_recent) as usize].term);
        }
        if idx == self.evicted.lsn.0 {
            return Ok(self.evicted.term.0);
        }
        if let Some(term) = self.terms.of(idx) {
            return Ok(term);
        }
        Ok(self.reader.term(Lsn(idx)).map_or_else(
            |e| {
                let what = format!("reading the term of LSN {idx}: {e}");
                self.fail_for(what, e.is_unreadable());
                0
            },
            |term| term.0,
        ))
    }

    fn first_index(&self) -> raft::Result<u64> {
        Ok(self.start.lsn.0 + 1)
    }

    fn last_index(&self) -> raft::Result<u64> {
        Ok(self.last.0)
    }

    /// Snapshots never travel inside a message; the engine offers them instead: see `peers.rs`.
    fn snapshot(&self, _request_index: u64, to: u64) -> raft::Result<Snapshot> {
        self.note_behind(NodeId(to));
        Err(raft::Error::Store(
            StorageError::SnapshotTemporarilyUnavailable,
        ))
    }
}

fn is_change(entry: &Entry) -> bool {
    entry.get_entry_type() != EntryType::EntryNormal
}
