//! The log on a host's disk: its durable part, and the writes to it.
//!
//! Writes go into one queue, as with the log writer, and a sync makes some of them durable at once. After a
//! crash a prefix of the unsynced writes may be durable; a torn one is cut.

use std::collections::VecDeque;
use std::sync::Arc;

use parking_lot::Mutex;
use raft::eraftpb::{Entry, EntryType, HardState};

use crate::engine::{LogFloor, LogReadError, LogReader, Persist, PersistedState, RawEntries};
use crate::ids::{Lsn, Term};

/// A write.
pub enum Write {
    /// With the term of the entry before its first one, if that is known.
    Persist(Persist, Option<u64>),
    Compact(LogFloor),
}

/// What is durable; clones share it.
#[derive(Clone, Default)]
pub struct Log(Arc<Mutex<Durable>>);

#[derive(Default)]
struct Durable {
    hard_state: HardState,
    start: LogFloor,
    /// Contiguous, from the start on.
    entries: VecDeque<Entry>,
}

impl Durable {
    fn at(&self, lsn: u64) -> Option<&Entry> {
        let skip = lsn.checked_sub(self.start.lsn.0 + 1)?;
        self.entries.get(skip as usize)
    }
}

impl Log {
    /// Makes it durable.
    pub fn write(&self, write: &Write) {
        let mut durable = self.0.lock();
        match write {
            Write::Persist(persist, _) => {
                durable.hard_state = persist.hard_state.clone();
                if let Some(start) = persist.restart {
                    durable.start = start;
                    durable.entries.clear();
                }
                if let Some(first) = persist.entries.first() {
                    let keep = first.index - durable.start.lsn.0 - 1;
                    assert!(keep <= durable.entries.len() as u64, "a gap in a log");
                    durable.entries.truncate(keep as usize);
                }
                durable.entries.extend(persist.entries.iter().cloned());
            }
            Write::Compact(floor) => {
                if floor.lsn <= durable.start.lsn {
                    return;
                }
                let gone = (floor.lsn.0 - durable.start.lsn.0) as usize;
                let gone = gone.min(durable.entries.len());
                durable.entries.drain(..gone);
                durable.start = *floor;
            }
        }
    }

    /// Restarts the log at a start of a host whose state comes from a snapshot that the log does not have.
    pub fn restart(&self, at: LogFloor) {
        let state = self.state().restarted_after(at);
        let mut durable = self.0.lock();
        durable.entries.clear();
        durable.start = at;
        durable.hard_state = state.hard_state;
    }

    pub fn start(&self) -> Lsn {
        self.0.lock().start.lsn
    }

    /// The term of an entry, or of the start.
    pub fn term_at(&self, lsn: Lsn) -> Option<Term> {
        let durable = self.0.lock();
        if lsn == durable.start.lsn {
            return Some(durable.start.term);
        }
        durable.at(lsn.0).map(|e| Term(e.term))
    }

    /// Whether an entry above `lsn` changes the membership.
    pub fn changes_above(&self, lsn: Lsn) -> bool {
        let durable = self.0.lock();
        let above = durable.entries.iter().rev();
        above.take_while(|e| e.index > lsn.0).any(is_change)
    }

    pub fn state(&self) -> PersistedState {
        let durable = self.0.lock();
        let last_change = durable.entries.iter().rev().find(|e| is_change(e));
        PersistedState {
            start: durable.start,
            last: Lsn(durable.start.lsn.0 + durable.entries.len() as u64),
            last_term: (durable.entries.iter().next_back())
                .map_or(durable.start.term, |e| Term(e.term)),
            tag: None,
            last_change: Lsn(last_change.map_or(0, |e| e.index)),
            hard_state: durable.hard_state.clone(),
        }
    }

    pub fn reader(&self) -> Box<dyn LogReader> {
        Box::new(self.clone())
    }
}

fn is_change(entry: &Entry) -> bool {
    entry.get_entry_type() != EntryType::EntryNormal
}

impl LogReader for Log {
    fn entries(&self, low: Lsn, high: Lsn, max_bytes: u64) -> Result<RawEntries, LogReadError> {
        let durable = self.0.lock();
        let (mut read, mut bytes) = (Vec::new(), 0);
        for lsn in low.0..high.0 {
            let entry = durable.at(lsn).ok_or_else(|| missing(lsn))?;
            bytes += entry.data.len() as u64;
            if bytes > max_bytes && !read.is_empty() {
                break;
            }
            read.push(entry.clone());
        }
        Ok(RawEntries(read))
    }

    fn term(&self, lsn: Lsn) -> Result<Term, LogReadError> {
        let term = self.term_at(lsn);
        term.ok_or_else(|| missing(lsn.0))
    }
}

fn missing(lsn: u64) -> LogReadError {
    LogReadError::Damaged(format!("no entry at LSN {lsn}"))
}
