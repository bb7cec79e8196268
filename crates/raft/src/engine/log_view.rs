//! The log as an engine sees it: where it begins and ends, its entries, and how they are read.

use std::sync::Arc;

use bytes::Bytes;
use raft::eraftpb;
use xxhash_rust::xxh3::Xxh3Default;

use super::terms::{MAX_TERMS_AT_OPEN, find_terms};
use crate::ids::{Lsn, Term};
use crate::membership::Membership;

/// Where the log begins: entries at or below are removed, and the term of the last one is kept.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LogFloor {
    /// Last entry that may be removed.
    pub lsn: Lsn,
    /// Its term.
    pub term: Term,
}

/// What the log has of a group.
#[derive(Clone, Debug, Default)]
pub struct PersistedState {
    /// Where the log begins.
    pub start: LogFloor,
    /// Its last entry; that of the start if it has none.
    pub last: Lsn,
    /// The term of its last entry; that of the start if it has none.
    pub last_term: Term,
    /// What the host stored with [`begin_group`](crate::log::SharedLog::begin_group), if it did.
    pub tag: Option<Vec<u8>>,
    /// The last entry that changes the membership, or one after it; 0 if there never was one.
    pub(crate) last_change: Lsn,
    pub(crate) hard_state: eraftpb::HardState,
}

impl PersistedState {
    /// Whether nothing was ever written: no entry, no term, no vote.
    pub fn is_blank(&self) -> bool {
        self.last.0 == 0 && self.hard_state.term == 0 && self.hard_state.vote == 0
    }

    /// Up to here all entries are known to be committed. More may be: what was committed last is written down with
    /// the next entries.
    pub fn commit(&self) -> Lsn {
        Lsn(self.hard_state.commit)
    }

    /// Whether the log has the entry `at` with that term, or begins directly after it.
    pub fn continues(&self, at: LogFloor, reader: &dyn LogReader) -> bool {
        if at.lsn == self.start.lsn {
            return at.term == self.start.term;
        }
        (self.start.lsn..=self.last).contains(&at.lsn)
            && reader.term(at.lsn).is_ok_and(|term| term == at.term)
    }

    /// The state of the log after a snapshot of everything up to `at` was installed: it begins after `at`
    /// and is empty. Term and vote stay, because they are promises to other members.
    #[must_use]
    pub fn restarted_after(mut self, at: LogFloor) -> PersistedState {
        self.start = at;
        (self.last, self.last_term) = (at.lsn, at.term);
        if self.hard_state.term < at.term.0 {
            self.hard_state.term = at.term.0;
            self.hard_state.vote = 0;
        }
        self.hard_state.commit = at.lsn.0;
        self.last_change = Lsn(0);
        self
    }
}

/// Entries that are to be read from the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogRead {
    /// Distinguishes the reads of an engine.
    pub number: u64,
    /// The first entry.
    pub low: Lsn,
    /// The entry after the last one.
    pub high: Lsn,
    /// Where to stop, as in [`LogReader::entries`].
    pub max_bytes: u64,
}

/// Reads entries that are no longer in memory.
pub trait LogReader: Send + Sync {
    /// Entries `[low, high)`, at least one, stopping once `max_bytes` are exceeded.
    fn entries(&self, low: Lsn, high: Lsn, max_bytes: u64) -> Result<RawEntries, LogReadError>;
    /// Term of one entry.
    fn term(&self, lsn: Lsn) -> Result<Term, LogReadError>;
    /// Where terms begin in a log that begins after `start` and ends with `last`: entries with their terms, in order.
    /// From the first of them on, all are there; an entry that cannot be read, or too many terms, leave out what is
    /// before.
    fn terms(&self, start: (Lsn, Term), last: Lsn) -> Vec<(Lsn, Term)> {
        find_terms(start, last, MAX_TERMS_AT_OPEN, |lsn| self.term(lsn).ok())
    }
    /// Whether a read never waits. The engine then reads by itself, instead of asking its host to.
    fn reads_at_once(&self) -> bool {
        false
    }
}

/// Why entries could not be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LogReadError {
    /// The operating system refused to read. The same may work later; nothing is known to be damaged.
    #[error("{0}")]
    Unreadable(String),
    /// Entries are missing or damaged.
    #[error("{0}")]
    Damaged(String),
}

impl LogReadError {
    /// Whether reading may work later.
    pub fn is_unreadable(&self) -> bool {
        matches!(self, LogReadError::Unreadable(_))
    }
}

/// Entries as the log stores them; opaque outside this crate.
#[derive(Debug)]
pub struct RawEntries(pub(crate) Vec<eraftpb::Entry>);

impl RawEntries {
    /// The entries as they are applied, without the membership that a change leads to, which depends on the
    /// entries before. The caller has to know that they are committed.
    ///
    /// # Errors
    ///
    /// An entry is of a kind that this library never writes.
    pub fn into_committed(self) -> Result<Vec<Committed>, String> {
        let committed = |entry: eraftpb::Entry| match entry.get_entry_type() {
            eraftpb::EntryType::EntryNormal => Ok(Committed {
                checksum: entry_checksum(&entry),
                lsn: Lsn(entry.index),
                term: Term(entry.term),
                command: (!entry.data.is_empty()).then_some(entry.data),
                membership: None,
            }),
            eraftpb::EntryType::EntryConfChangeV2 => Ok(Committed {
                checksum: entry_checksum(&entry),
                lsn: Lsn(entry.index),
                term: Term(entry.term),
                command: None,
                membership: None,
            }),
            eraftpb::EntryType::EntryConfChange => Err(format!(
                "the entry at LSN {} is of a kind that no version writes",
                entry.index
            )),
        };
        self.0.into_iter().map(committed).collect()
    }
}

/// A committed entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Committed {
    /// Its place.
    pub lsn: Lsn,
    /// The term in which it was proposed.
    pub term: Term,
    /// The command. `None` for the empty entry with which a leader begins its term or confirms a change of the
    /// voters, and for an entry that changes the membership.
    pub command: Option<Bytes>,
    /// If the entry changes the membership: the membership from this entry on. The state machine keeps it
    /// with the state.
    pub membership: Option<Arc<Membership>>,
    /// xxh3-64 of the entry as the log has it: its LSN, its term, its kind and its data. It distinguishes
    /// two histories with the same numbers.
    pub checksum: u64,
}

/// See [`Committed::checksum`].
pub(crate) fn entry_checksum(entry: &eraftpb::Entry) -> u64 {
    let mut hash = Xxh3Default::new();
    hash.update(&entry.index.to_be_bytes());
    hash.update(&entry.term.to_be_bytes());
    hash.update(&[entry.get_entry_type() as u8]);
    hash.update(&entry.data);
    hash.digest()
}
