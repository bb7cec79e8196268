//! What raft-rs reads: the hard state, and the log as memory in front of a [`LogReader`].
//!
//! Entries stay in memory until they are both durable and applied, and the term of the last one
//! that left even after that, so that the path of a write never reads the disk; older ones come from the
//! reader. If apply does not move they become too many: then the oldest go once they are durable, and
//! come from the reader when they are applied at last. Entries in memory are contiguous and end with the
//! log's last.
//!
//! raft-rs panics on nearly every error of its storage. So a failure of the reader is noted here,
//! raft-rs gets an answer that it can go on with (no entries; term 0, which no entry has), and the
//! engine halts at the end of that step without letting out anything that came of it.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;

use raft::eraftpb::{ConfState, Entry, EntryType, HardState, Snapshot};
use raft::{GetEntriesContext, RaftState, Storage, StorageError};

use super::{LogFloor, LogReader, Membership, PersistedState};
use crate::ids::{Lsn, NodeId, Term};

/// Bytes read at once when looking for changes of the membership.
const SCAN_BYTES: u64 = 1024 * 1024;

pub(super) struct EngineStorage {
    hard_state: HardState,
    conf_state: ConfState,
    start: LogFloor,
    /// Contiguous, up to and with `last`.
    recent: VecDeque<Entry>,
    recent_bytes: u64,
    last: Lsn,
    /// The last entry that was evicted, and its term: the next one is compared with it.
    evicted: LogFloor,
    /// No entry above it changes the membership.
    last_change: Lsn,
    /// Peers that lack entries which are gone, since this was last asked.
    behind: RefCell<Vec<NodeId>>,
    reader: Box<dyn LogReader>,
    /// Bytes that were read for peers in this step.
    read_for_peers: Cell<u64>,
    /// The first failure to read: see the module.
    failure: RefCell<Option<Failure>>,
}

/// What keeps the engine from going on.
#[derive(Debug)]
pub(super) struct Failure {
    pub what: String,
    /// Whether the same may work later.
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
        EngineStorage {
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

    /// No entry above it changes the membership.
    pub fn last_change(&self) -> Lsn {
        self.last_change
    }

    pub fn start(&self) -> LogFloor {
        self.start
    }

    /// Peers may be read for again.
    pub fn begin_step(&self) {
        self.read_for_peers.set(0);
    }

    /// Adds entries at the end; those that they replace (a new leader's say) go first.
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
        // An empty memory may begin anywhere; the reader has what is before.
        self.recent.extend(entries.iter().cloned());
        self.recent_bytes += entries.iter().map(entry_bytes).sum::<u64>();
        self.last = Lsn(entries[entries.len() - 1].index);
    }

    /// Drops entries up to `lsn` from memory.
    pub fn evict(&mut self, lsn: Lsn) {
        self.evict_down_to(0, lsn);
    }

    /// Drops entries up to `lsn` from memory, as long as there are more bytes in it than that.
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

    /// Moves the log start; `None` if the term of the new one cannot be told, which is recorded.
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
        Some(self.start)
    }

    /// The log is empty, and begins after what an installed snapshot covers.
    pub fn restart(&mut self, at: LogFloor) {
        self.recent.clear();
        self.recent_bytes = 0;
        self.start = at;
        self.evicted = at;
        self.last = at.lsn;
    }

    /// Peers that lack entries which are gone, each once.
    pub fn take_behind(&self) -> Vec<NodeId> {
        if self.behind.borrow().is_empty() {
            return Vec::new();
        }
        let mut behind = self.behind.take();
        behind.sort_unstable();
        behind.dedup();
        behind
    }

    /// A peer lacks entries which are gone.
    pub fn note_behind(&self, peer: NodeId) {
        self.behind.borrow_mut().push(peer);
    }

    /// The entries `[low, high)` that change the membership. Read in pieces: there may be a long
    /// replay ahead, and there is nothing to read if none was ever written there.
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

    /// The engine cannot go on, and another one that is opened on the same log could not either.
    pub fn fail(&self, what: String) {
        self.fail_for(what, false);
    }

    /// The engine cannot go on. `may_pass`: whether another one might.
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

    /// Entries `[low, high)` from the log; none if that failed, which is noted.
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
            // No limit: raft-rs looks for changes of the membership among all that is committed and
            // not applied, before it campaigns.
            None => return Ok(self.changes(low, high)),
            // The host has enough to apply: see `Engine::drain_ready`.
            Some(0) => return Ok(Vec::new()),
            Some(max_size) => max_size,
        };
        let first_recent = self.first_recent();
        let mut found = Vec::new();
        if low < first_recent {
            let for_peer = context.can_async();
            let before = self.read_for_peers.get();
            if for_peer && before >= super::MAX_READ_FOR_PEERS {
                // raft-rs asks again when it hears of the peer: it acknowledges what it is sent, and
                // answers heartbeats.
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

    /// There never is one inside a message. The engine offers one instead: see `peers`.
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

fn entry_bytes(entry: &Entry) -> u64 {
    entry.data.len() as u64 + entry.context.len() as u64 + 24
}
