//! A log in memory: what survives a member's crash.

use std::collections::BTreeMap;
use std::sync::Arc;

use parking_lot::Mutex;
use raft::eraftpb::{Entry, EntryType, HardState};

use super::*;

/// A log on a disk that never forgets; clones share it.
#[derive(Clone, Default)]
pub struct Disk(Arc<Mutex<Written>>);

#[derive(Default)]
struct Written {
    hard_state: HardState,
    start: LogFloor,
    entries: BTreeMap<u64, Entry>,
    /// Reads of this entry, or of its term, fail.
    unreadable: Option<u64>,
    /// How often entries or terms were read.
    reads: u64,
    /// Most bytes that one read has returned.
    largest_read: u64,
}

impl Disk {
    /// A log with these terms' entries, the first at LSN 1, of which `commit` are known to be
    /// committed. The command of each is its LSN.
    pub fn with(terms: &[u64], commit: u64) -> Disk {
        let disk = Disk::default();
        for (lsn, term) in (1..).zip(terms) {
            disk.put(lsn, *term, lsn.to_string().into_bytes());
        }
        {
            let mut written = disk.0.lock();
            written.hard_state.term = terms.last().copied().unwrap_or(0);
            written.hard_state.commit = commit;
        }
        disk
    }

    /// Puts an entry in place.
    pub fn put(&self, lsn: u64, term: u64, command: Vec<u8>) {
        let entry = Entry {
            index: lsn,
            term,
            data: command.into(),
            ..Entry::default()
        };
        self.0.lock().entries.insert(lsn, entry);
    }

    /// Makes the entry one that changes the membership.
    pub fn make_membership_change(&self, lsn: u64) {
        let mut written = self.0.lock();
        let entry = written.entries.get_mut(&lsn).unwrap();
        entry.set_entry_type(EntryType::EntryConfChangeV2);
    }

    /// Makes durable.
    pub fn write(&self, persist: &Persist) {
        let mut written = self.0.lock();
        written.hard_state = persist.hard_state.clone();
        if let Some(start) = persist.restart {
            written.start = start;
            written.entries.clear();
        }
        if let Some(first) = persist.entries.first() {
            written.entries.split_off(&first.index);
        }
        for entry in &persist.entries {
            written.entries.insert(entry.index, entry.clone());
        }
    }

    /// Removes entries.
    pub fn compact(&self, floor: LogFloor) {
        let mut written = self.0.lock();
        written.start = floor;
        written.entries = written.entries.split_off(&(floor.lsn.0 + 1));
    }

    /// From now on, reads of the entry at `lsn` fail.
    pub fn make_unreadable(&self, lsn: u64) {
        self.0.lock().unreadable = Some(lsn);
    }

    /// How often entries or terms were read so far.
    pub fn reads(&self) -> u64 {
        self.0.lock().reads
    }

    /// Most bytes that one read has returned so far.
    pub fn largest_read(&self) -> u64 {
        self.0.lock().largest_read
    }

    /// What a host does at its start when its state comes from a snapshot that the log does not know.
    pub fn restart(&self, at: LogFloor) {
        let state = self.state().restarted_after(at);
        let mut written = self.0.lock();
        written.entries.clear();
        written.start = at;
        written.hard_state = state.hard_state;
    }

    pub fn state(&self) -> PersistedState {
        let written = self.0.lock();
        let last = written.entries.keys().next_back();
        PersistedState {
            start: written.start,
            tag: None,
            last_change: {
                let changes = |e: &&Entry| e.get_entry_type() != EntryType::EntryNormal;
                let last = written.entries.values().rev().find(changes);
                Lsn(last.map_or(0, |e| e.index))
            },
            last: last.map_or(written.start.lsn, |last| Lsn(*last)),
            last_term: {
                let last = written.entries.values().next_back();
                last.map_or(written.start.term, |e| Term(e.term))
            },
            hard_state: written.hard_state.clone(),
        }
    }

    pub fn reader(&self) -> Box<dyn LogReader> {
        Box::new(self.clone())
    }
}

impl LogReader for Disk {
    fn entries(&self, low: Lsn, high: Lsn, max_bytes: u64) -> Result<RawEntries, LogReadError> {
        let mut written = self.0.lock();
        written.reads += 1;
        let (mut read, mut bytes) = (Vec::new(), 0);
        for lsn in low.0..high.0 {
            if written.unreadable == Some(lsn) {
                let what = format!("bad sector below entry {lsn}");
                return Err(LogReadError::Unreadable(what));
            }
            let entry = written.entries.get(&lsn).ok_or_else(missing)?;
            read.push(entry.clone());
            bytes += entry.data.len() as u64;
            if bytes > max_bytes {
                break;
            }
        }
        written.largest_read = written.largest_read.max(bytes);
        Ok(RawEntries(read))
    }

    fn term(&self, lsn: Lsn) -> Result<Term, LogReadError> {
        let mut written = self.0.lock();
        written.reads += 1;
        if written.unreadable == Some(lsn.0) {
            return Err(LogReadError::Unreadable("bad sector".to_owned()));
        }
        let entry = written.entries.get(&lsn.0).ok_or_else(missing)?;
        Ok(Term(entry.term))
    }
}

fn missing() -> LogReadError {
    LogReadError::Damaged("no such entry".to_owned())
}
