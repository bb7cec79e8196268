//! The terms of the log's entries, in memory: where each term begins.
//!
//! raft-rs asks for the term of an entry whenever a peer rejects entries, or is sent older ones. The answer must not
//! wait for the disk, so the beginnings are looked up once, when the engine is opened, and kept from then on. Terms
//! never decrease along the log: if two entries have the same term, so have all between them.

use std::collections::VecDeque;

use raft::eraftpb::Entry;

use super::LogFloor;
use crate::ids::{Lsn, Term};

/// Most terms that are looked up at an open: about 20 reads each in a log of a million entries. An entry of an earlier
/// term is looked up when it is asked for.
pub(crate) const MAX_TERMS_AT_OPEN: usize = 256;

/// Where terms begin; of consecutive LSNs, up to the last entry of the log.
#[derive(Debug, Default)]
pub(super) struct Terms {
    /// The first entry and its term. The first run may be the end of a longer one.
    runs: VecDeque<(u64, u64)>,
}

impl Terms {
    /// Those that were found at an open.
    pub fn new(found: Vec<LogFloor>) -> Terms {
        let runs = found.into_iter().map(|run| (run.lsn.0, run.term.0));
        Terms {
            runs: runs.collect(),
        }
    }

    /// The term of an entry that the log has; `None` if it is not known.
    pub fn of(&self, lsn: u64) -> Option<u64> {
        let after = self.runs.partition_point(|(first, _)| *first <= lsn);
        let run = self.runs.get(after.checked_sub(1)?)?;
        Some(run.1)
    }

    /// These entries now end the log, and replace those from the first of them on.
    pub fn append(&mut self, entries: &[Entry]) {
        let Some(first) = entries.first() else {
            return;
        };
        while self.runs.pop_back_if(|run| run.0 >= first.index).is_some() {}
        for entry in entries {
            if self.runs.back().is_none_or(|last| last.1 != entry.term) {
                self.runs.push_back((entry.index, entry.term));
            }
        }
    }

    /// The log begins after this entry.
    pub fn compact(&mut self, floor: LogFloor) {
        while self.runs.get(1).is_some_and(|next| next.0 <= floor.lsn.0) {
            self.runs.pop_front();
        }
        if let Some(first) = self.runs.front_mut() {
            first.0 = first.0.max(floor.lsn.0);
        }
    }

    /// The log is empty and begins after this entry.
    pub fn restart(&mut self, at: LogFloor) {
        self.runs = VecDeque::from([(at.lsn.0, at.term.0)]);
    }
}

/// Looks up where terms begin, from the end of the log, at most `most`. In order of the LSNs; from the first one on
/// all are known. `term_of` returns nothing for an entry that cannot be read: what is before it is left out.
pub(crate) fn find_terms(
    start: LogFloor,
    last: Lsn,
    most: usize,
    mut term_of: impl FnMut(Lsn) -> Option<Term>,
) -> Vec<LogFloor> {
    let mut found = Vec::new();
    if last <= start.lsn {
        return vec![start];
    }
    let Some(term) = term_of(last) else {
        return found;
    };
    // The entries at both ends of a range are known. The range that is on top ends where what is known begins.
    let mut ranges = vec![(start, LogFloor { lsn: last, term })];
    while let Some((low, high)) = ranges.pop() {
        if low.term == high.term {
            continue;
        }
        if high.lsn == low.lsn.next() {
            found.push(high);
            if found.len() < most {
                continue;
            }
            found.reverse();
            return found;
        }
        let middle = Lsn(low.lsn.0 + (high.lsn.0 - low.lsn.0) / 2);
        let term = term_of(middle).filter(|term| (low.term..=high.term).contains(term));
        let Some(term) = term else {
            found.push(high);
            found.reverse();
            return found;
        };
        let middle = LogFloor { lsn: middle, term };
        ranges.push((low, middle));
        ranges.push((middle, high));
    }
    found.push(start);
    found.reverse();
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn floor(lsn: u64, term: u64) -> LogFloor {
        LogFloor {
            lsn: Lsn(lsn),
            term: Term(term),
        }
    }

    fn entries(first: u64, terms: &[u64]) -> Vec<Entry> {
        let entry = |(index, term): (u64, &u64)| Entry {
            index,
            term: *term,
            ..Entry::default()
        };
        (first..).zip(terms).map(entry).collect()
    }

    /// Of a log that begins after LSN 10, which was of term 2.
    const LOG: [u64; 12] = [2, 2, 3, 3, 3, 3, 7, 8, 8, 8, 8, 8];

    fn term_in_log(lsn: Lsn) -> Option<Term> {
        LOG.get(lsn.0.checked_sub(11)? as usize).copied().map(Term)
    }

    fn assert_known_from(terms: &Terms, first: u64) {
        for lsn in 11..23 {
            let expected = term_in_log(Lsn(lsn)).map(|term| term.0);
            let known = terms.of(lsn);
            let is_right = known == expected.filter(|_| lsn >= first);
            assert!(is_right, "LSN {lsn}: {known:?}, known from {first} on");
        }
    }

    #[test]
    fn the_terms_of_a_log_are_found_with_few_reads() {
        let mut reads = 0;
        let found = find_terms(floor(10, 2), Lsn(22), 256, |lsn| {
            reads += 1;
            term_in_log(lsn)
        });
        let expected = [floor(10, 2), floor(13, 3), floor(17, 7), floor(18, 8)];
        assert_eq!(found, expected);
        assert_known_from(&Terms::new(found), 11);
        // A long log of one term is read once.
        let long = find_terms(floor(10, 2), Lsn(1 << 40), 256, |_| {
            reads = 1;
            Some(Term(2))
        });
        assert_eq!((long, reads), (vec![floor(10, 2)], 1));
        let empty = find_terms(floor(10, 2), Lsn(10), 256, |_| panic!("there is no entry"));
        assert_eq!(empty, [floor(10, 2)]);
    }

    #[test]
    fn of_what_cannot_be_read_nothing_is_claimed() {
        for unreadable in 11..23 {
            let found = find_terms(floor(10, 2), Lsn(22), 256, |lsn| {
                term_in_log(lsn).filter(|_| lsn.0 != unreadable)
            });
            let terms = Terms::new(found);
            for lsn in 11..23 {
                let known = terms.of(lsn);
                let expected = term_in_log(Lsn(lsn)).map(|term| term.0);
                let is_right = known.is_none() || known == expected;
                assert!(
                    is_right,
                    "{unreadable} is not readable: {lsn} is of {known:?}"
                );
            }
        }
        let bounded = find_terms(floor(10, 2), Lsn(22), 2, term_in_log);
        assert_eq!(bounded, [floor(17, 7), floor(18, 8)]);
        assert_known_from(&Terms::new(bounded), 17);
    }

    #[test]
    fn the_terms_follow_the_log() {
        let mut terms = Terms::new(vec![floor(0, 0)]);
        terms.append(&entries(1, &[1, 1, 2]));
        assert_eq!(
            [0, 1, 2, 3].map(|lsn| terms.of(lsn)),
            [0, 1, 1, 2].map(Some)
        );
        // Another leader's entries replace some.
        terms.append(&entries(2, &[3, 3]));
        assert_eq!([1, 2, 3].map(|lsn| terms.of(lsn)), [1, 3, 3].map(Some));
        terms.append(&entries(4, &[3, 4]));
        terms.compact(floor(3, 3));
        assert_eq!(
            [2, 3, 4, 5].map(|lsn| terms.of(lsn)),
            [None, Some(3), Some(3), Some(4)]
        );
        terms.compact(floor(5, 4));
        assert_eq!([4, 5].map(|lsn| terms.of(lsn)), [None, Some(4)]);
        terms.restart(floor(9, 6));
        terms.append(&entries(10, &[6, 7]));
        assert_eq!(
            [8, 9, 10, 11].map(|lsn| terms.of(lsn)),
            [None, Some(6), Some(6), Some(7)]
        );
        // Of a log whose end alone is known.
        let mut terms = Terms::default();
        terms.append(&entries(5, &[2]));
        assert_eq!([4, 5].map(|lsn| terms.of(lsn)), [None, Some(2)]);
    }
}
