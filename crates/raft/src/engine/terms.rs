//! The terms of the log's entries, in memory: where each term begins.
//!
//! raft-rs asks for the term of an entry whenever a peer rejects entries, or is sent older ones. The answer must not
//! wait for the disk, so the beginnings are looked up once, when the engine is opened, and kept from then on. Terms
//! never decrease along the log: if two entries have the same term, so have all between them.

use std::collections::VecDeque;

use raft::eraftpb::Entry;

use crate::ids::{Lsn, Term};

/// Most terms that are looked up at an open: about 20 reads each in a log of a million entries. An entry of an earlier
/// term is looked up when it is asked for.
pub(crate) const MAX_TERMS_AT_OPEN: usize = 256;

/// An entry, and its term: where that begins.
pub(crate) type Beginning = (Lsn, Term);

/// Where terms begin; of consecutive LSNs, up to the last entry of the log.
#[derive(Debug, Default)]
pub(super) struct Terms {
    /// The first entry and its term. The first run may be the end of a longer one.
    runs: VecDeque<(u64, u64)>,
}

impl Terms {
    /// Those that were found at an open.
    pub fn new(found: Vec<Beginning>) -> Terms {
        let runs = found.into_iter().map(|(lsn, term)| (lsn.0, term.0));
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
    pub fn compact(&mut self, floor: Lsn) {
        while self.runs.get(1).is_some_and(|next| next.0 <= floor.0) {
            self.runs.pop_front();
        }
        if let Some(first) = self.runs.front_mut() {
            first.0 = first.0.max(floor.0);
        }
    }

    /// The log is empty and begins after this entry.
    pub fn restart(&mut self, (lsn, term): Beginning) {
        self.runs = VecDeque::from([(lsn.0, term.0)]);
    }
}

/// Looks up where terms begin, from the end of the log, at most `most`. In order of the LSNs; from the first one on
/// all are known. `term_of` returns nothing for an entry that cannot be read: what is before it is left out.
pub(crate) fn find_terms(
    start: Beginning,
    last: Lsn,
    most: usize,
    mut term_of: impl FnMut(Lsn) -> Option<Term>,
) -> Vec<Beginning> {
    let mut found = Vec::new();
    if last <= start.0 {
        return vec![start];
    }
    let Some(term) = term_of(last) else {
        return found;
    };
    // The entries at both ends of a range are known. The range that is on top ends where what is known begins.
    let mut ranges = vec![(start, (last, term))];
    while let Some((low, high)) = ranges.pop() {
        if low.1 == high.1 {
            continue;
        }
        let middle = Lsn(low.0.0 + (high.0.0 - low.0.0) / 2);
        // Of neighbours, the second begins a term.
        let is_beginning = middle == low.0;
        let term = match is_beginning {
            true => None,
            false => term_of(middle).filter(|term| (low.1..=high.1).contains(term)),
        };
        match term {
            Some(term) => {
                ranges.push((low, (middle, term)));
                ranges.push(((middle, term), high));
            }
            None => {
                found.push(high);
                if !is_beginning || found.len() >= most {
                    found.reverse();
                    return found;
                }
            }
        }
    }
    found.push(start);
    found.reverse();
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(lsn: u64, term: u64) -> Beginning {
        (Lsn(lsn), Term(term))
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
        let found = find_terms(at(10, 2), Lsn(22), 256, |lsn| {
            reads += 1;
            term_in_log(lsn)
        });
        let expected = [at(10, 2), at(13, 3), at(17, 7), at(18, 8)];
        assert_eq!(found, expected);
        assert_known_from(&Terms::new(found), 11);
        // A long log of one term is read once.
        let long = find_terms(at(10, 2), Lsn(1 << 40), 256, |_| {
            reads = 1;
            Some(Term(2))
        });
        assert_eq!((long, reads), (vec![at(10, 2)], 1));
        let empty = find_terms(at(10, 2), Lsn(10), 256, |_| panic!("there is no entry"));
        assert_eq!(empty, [at(10, 2)]);
    }

    #[test]
    fn of_what_cannot_be_read_nothing_is_claimed() {
        for unreadable in 11..23 {
            let found = find_terms(at(10, 2), Lsn(22), 256, |lsn| {
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
        let bounded = find_terms(at(10, 2), Lsn(22), 2, term_in_log);
        assert_eq!(bounded, [at(17, 7), at(18, 8)]);
        assert_known_from(&Terms::new(bounded), 17);
    }

    #[test]
    fn the_terms_follow_the_log() {
        let mut terms = Terms::new(vec![at(0, 0)]);
        terms.append(&entries(1, &[1, 1, 2]));
        assert_eq!(
            [0, 1, 2, 3].map(|lsn| terms.of(lsn)),
            [0, 1, 1, 2].map(Some)
        );
        // Another leader's entries replace some.
        terms.append(&entries(2, &[3, 3]));
        assert_eq!([1, 2, 3].map(|lsn| terms.of(lsn)), [1, 3, 3].map(Some));
        terms.append(&entries(4, &[3, 4]));
        terms.compact(Lsn(3));
        assert_eq!(
            [2, 3, 4, 5].map(|lsn| terms.of(lsn)),
            [None, Some(3), Some(3), Some(4)]
        );
        terms.compact(Lsn(5));
        assert_eq!([4, 5].map(|lsn| terms.of(lsn)), [None, Some(4)]);
        terms.restart(at(9, 6));
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
