//! What the forks of a partition did to one of its streams.
//!
//! A consumer that keeps something derived from a stream's records (a state, say) must know whether the
//! stream still has these records. A lineage and a cursor name the records that it was derived from; the
//! forks show up to which sequence number that lineage's history is part of the present one.
//!
//! A stream remembers the gaps that the last forks left, and its partition remembers the lineages that
//! they cut off. Both forget the oldest first, so both are read from the newest on: the last gap belongs
//! to the last forks, and has their number. An import that replaces the contents of the state store
//! leaves a gap as well, and cuts nothing off.

use s2_common::record::SeqNum;

use crate::ids::LineageId;
use crate::lineage::{GAP, Lineage};
use crate::stream::StreamState;

/// A fork, as one stream has seen it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fork {
    /// The lineage that was cut off; `None` for one or several that are not remembered.
    pub parent: Option<LineageId>,
    /// Records of the parent below this sequence number are part of the present history; those from it on
    /// are lost.
    pub seq_num: SeqNum,
    /// Where the present history continues.
    pub resumes_at: SeqNum,
    /// Where the parent's own numbers continued after the fork before it, if that fork belongs to the same
    /// gap. Nothing that the parent appended is left then, so what is below this number is what is below
    /// `seq_num`: a snapshot of the parent with exactly this cursor has nothing that is lost.
    pub parent_resumed_at: Option<SeqNum>,
}

impl StreamState {
    /// The forks that the stream has seen, as far as they are remembered, oldest first. Forks without an
    /// append between them share one gap, so they have the same sequence numbers, and are told apart by
    /// where their parents continued.
    ///
    /// Each fork passed over [`GAP`] numbers, so the parent of the n-th fork of a gap continued n - 1 times
    /// that behind its beginning, unless records that are lost were appended between the forks. A parent
    /// that had such records continued further up, because a lineage gives out fewer than [`GAP`] numbers,
    /// and has no cursor at exactly this number.
    pub fn forks_seen(&self, lineage: &Lineage) -> Vec<Fork> {
        let ancestry = lineage.ancestry();
        let mut newest_first = Vec::new();
        // Number of forks up to and including the gap that is examined; `None` after a gap that may not
        // be one of forks.
        let mut forks = Some(self.forks);
        for gap in self.gaps.iter().rev().filter(|gap| gap.forks != Some(0)) {
            let fork = |parent, parent_resumed_at| Fork {
                parent,
                seq_num: gap.from,
                resumes_at: gap.end,
                parent_resumed_at,
            };
            let Some((up_to, of_gap)) = forks.zip(gap.forks) else {
                newest_first.push(fork(None, None));
                forks = None;
                continue;
            };
            let before = up_to.saturating_sub(of_gap);
            let cut_off = ancestry
                .iter()
                .rev()
                .filter(|(_, seen)| (before..up_to).contains(seen));
            let known = newest_first.len();
            newest_first.extend(cut_off.map(|(id, seen)| {
                let resumed_at = gap.from.saturating_add((seen - before).saturating_mul(GAP));
                let is_inside = gap.from < resumed_at && resumed_at < gap.end;
                fork(Some(*id), is_inside.then_some(resumed_at))
            }));
            if ((newest_first.len() - known) as u64) < of_gap {
                newest_first.push(fork(None, None));
            }
            forks = Some(before);
        }
        newest_first.reverse();
        newest_first
    }

    /// The gaps that imports left, oldest first: the first sequence number of each, and where the numbers
    /// continue. An import cuts nothing off.
    pub fn passed_over(&self) -> Vec<(SeqNum, SeqNum)> {
        let of_imports = self.gaps.iter().filter(|gap| gap.forks == Some(0));
        of_imports.map(|gap| (gap.from, gap.end)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::PartitionId;
    use crate::stream::{Gap, Imports};

    /// A stream and the lineage of its partition.
    struct History {
        lineage: Lineage,
        state: StreamState,
        imports: Imports,
    }

    impl History {
        fn new() -> History {
            History {
                lineage: Lineage::first("a cluster", 1, PartitionId(1)),
                state: StreamState::default(),
                imports: Imports::default(),
            }
        }

        fn append(&mut self, records: u64) {
            self.state.tail_seq += records;
        }

        fn fork(&mut self, id: u128) {
            self.lineage = self.lineage.fork(LineageId(id), 1);
            self.state.see_forks(self.lineage.forks);
        }

        fn import(&mut self) {
            self.state.skip_to(self.state.tail_seq + GAP);
            self.imports = Imports {
                count: self.imports.count + 1,
                last_end: self.state.tail_seq,
            };
        }

        /// The state as an earlier build has it. That build did not record what left a gap, and merged
        /// the gap of a fork with one right before it.
        fn earlier(&self) -> StreamState {
            let mut gaps: Vec<Gap> = Vec::new();
            for gap in &self.state.gaps {
                match gaps.last_mut() {
                    Some(last) if last.end == gap.from && gap.forks != Some(0) => {
                        last.end = gap.end;
                    }
                    _ => gaps.push(Gap {
                        forks: None,
                        ..*gap
                    }),
                }
            }
            StreamState {
                gaps,
                ..self.state.clone()
            }
        }

        /// The forks that are listed: parent, sequence number, and where the history continues.
        fn listed(&self, state: &StreamState) -> Vec<(Option<u128>, SeqNum, SeqNum)> {
            let forks = state.forks_seen(&self.lineage).into_iter();
            forks
                .map(|fork| {
                    (
                        fork.parent.map(|parent| parent.0),
                        fork.seq_num,
                        fork.resumes_at,
                    )
                })
                .collect()
        }
    }

    /// A fork, an import, a fork right after it, and another one, with records in between.
    fn mixed() -> History {
        let mut it = History::new();
        it.append(3);
        it.fork(1);
        it.append(2);
        it.import();
        it.fork(2);
        it.append(1);
        it.fork(3);
        it
    }

    #[test]
    fn an_import_is_listed_as_no_fork_and_the_forks_around_it_keep_their_places() {
        let it = mixed();
        let first = LineageId::first("a cluster", PartitionId(1)).0;
        let (second, third) = (5 + 2 * GAP, 6 + 3 * GAP);
        let expected = [
            (Some(first), 3, 3 + GAP),
            (Some(1), second, second + GAP),
            (Some(2), third, third + GAP),
        ];
        assert_eq!(it.listed(&it.state), expected);
        assert_eq!(it.state.passed_over(), [(5 + GAP, second)]);
        // The end of the last import shows which gaps of an earlier build are of imports.
        let mut earlier = it.earlier();
        assert_eq!(earlier.gaps.len(), 3);
        earlier.separate_gaps(Some(it.imports));
        assert_eq!(earlier, it.state);
    }

    #[test]
    fn without_a_fork_all_gaps_of_an_earlier_build_are_of_imports() {
        let mut it = History::new();
        for _ in 0..3 {
            it.append(1);
            it.import();
        }
        let mut earlier = it.earlier();
        earlier.separate_gaps(Some(it.imports));
        assert_eq!(earlier, it.state);
        assert_eq!(it.listed(&earlier), []);
        assert_eq!(earlier.passed_over().len(), 3);
    }

    #[test]
    fn what_cannot_be_told_apart_names_no_lineage_nor_does_what_is_older() {
        let mut it = History::new();
        it.append(1);
        it.fork(1);
        it.append(1);
        it.import();
        it.append(1);
        it.import();
        it.append(1);
        it.fork(2);
        let mut earlier = it.earlier();
        earlier.separate_gaps(Some(it.imports));
        let listed = it.listed(&earlier);
        let parents: Vec<_> = listed.iter().map(|(parent, ..)| *parent).collect();
        // One of the first two gaps is a fork's, but nothing shows which one.
        assert_eq!(parents, [None, None, Some(1)]);
        assert_eq!(earlier.passed_over().len(), 1);
        // No gap is classified if the number of imports or the end of the last one is not known.
        for imports in [
            None,
            Some(Imports {
                count: 1,
                last_end: 0,
            }),
        ] {
            let mut earlier = it.earlier();
            earlier.separate_gaps(imports);
            assert_eq!(earlier, it.earlier());
            let listed = it.listed(&earlier);
            assert!(listed.iter().all(|(parent, ..)| parent.is_none()));
            assert_eq!(listed.len(), 4);
        }
    }

    #[test]
    fn gaps_of_any_other_stream_are_of_forks() {
        let mut it = History::new();
        it.append(3);
        it.fork(1);
        it.fork(2);
        it.append(1);
        it.fork(3);
        let mut earlier = it.earlier();
        earlier.separate_gaps(Some(Imports::default()));
        assert_eq!(earlier, it.state);
    }

    /// Where the parents of the listed forks continued within the gap of their fork.
    fn resumed(it: &History) -> Vec<Option<SeqNum>> {
        let forks = it.state.forks_seen(&it.lineage).into_iter();
        forks.map(|fork| fork.parent_resumed_at).collect()
    }

    #[test]
    fn of_forks_without_an_append_in_between_it_is_listed_where_each_parent_continued() {
        let mut it = mixed();
        assert_eq!(resumed(&it), [None, None, None]);
        let third = 6 + 3 * GAP;
        it.fork(4);
        it.fork(5);
        let inside = [None, Some(third + GAP), Some(third + 2 * GAP)];
        assert_eq!(resumed(&it)[2..], inside);
        let listed = it.listed(&it.state);
        let numbers: Vec<_> = listed[2..]
            .iter()
            .map(|(_, from, to)| (*from, *to))
            .collect();
        assert_eq!(numbers, [(third, third + 3 * GAP); 3]);
        // A stream that nobody used meanwhile sees all of them at once.
        let mut still = History::new();
        still.append(3);
        let first = still.lineage.id();
        for id in 1..4 {
            still.lineage = still.lineage.fork(LineageId(id), 1);
        }
        still.state.see_forks(3);
        assert_eq!(resumed(&still), [None, Some(3 + GAP), Some(3 + 2 * GAP)]);
        assert_eq!(still.listed(&still.state)[0].0, Some(first.0));
    }

    #[test]
    fn an_import_leaves_a_gap_in_an_empty_stream_too() {
        let mut it = History::new();
        it.import();
        assert_eq!(it.state.passed_over(), [(0, GAP)]);
        it.append(3);
        let tail = GAP + 3;
        it.state.trim_to(tail);
        assert!(it.state.is_empty());
        it.import();
        let end = tail + GAP;
        assert_eq!(it.state.passed_over(), [(0, GAP), (tail, end)]);
        assert!(it.state.is_empty());
        assert_eq!((it.state.head(), it.state.tail_seq), (end, end));
        // What it leaves is not taken for a fork's.
        it.fork(1);
        let first = LineageId::first("a cluster", PartitionId(1)).0;
        assert_eq!(it.listed(&it.state), [(Some(first), end, end + GAP)]);
        assert!(it.state.is_empty());
    }

    #[test]
    fn of_forks_that_are_not_remembered_nothing_is_listed_inside_the_gap() {
        let mut it = History::new();
        it.append(1);
        for id in 1..=20 {
            it.fork(id);
        }
        let resumed = resumed(&it);
        // Sixteen parents are remembered, the oldest of which was cut off by the fifth fork.
        assert_eq!((resumed.len(), resumed[0]), (17, None));
        let known = (4..20).map(|before| Some(1 + before * GAP));
        assert!(resumed.into_iter().skip(1).eq(known));
    }

    #[test]
    fn a_trim_into_gaps_that_follow_on_one_another_is_one_to_their_end() {
        let mut it = History::new();
        it.append(3);
        it.import();
        it.fork(1);
        it.append(1);
        let end = 3 + 2 * GAP;
        for seq in [3, 3 + GAP, end] {
            assert_eq!(it.state.after_gap(seq), end);
        }
        it.state.trim_to(3);
        assert_eq!(it.state.head(), end);
        assert_eq!(it.state.before_tail(1), end);
    }

    #[test]
    fn what_an_earlier_build_reads_is_where_numbers_go_on() {
        #[derive(Clone, PartialEq, Eq, prost::Message)]
        struct Earlier {
            #[prost(uint64, tag = "1")]
            from: u64,
            #[prost(uint64, tag = "2")]
            end: u64,
        }
        use prost::Message as _;
        let gap = mixed().state.gaps[1];
        let read = Earlier::decode(&gap.encode_to_vec()[..]).unwrap();
        assert_eq!((read.from, read.end), (gap.from, gap.end));
        let back = Gap::decode(&read.encode_to_vec()[..]).unwrap();
        assert_eq!(back, Gap { forks: None, ..gap });
    }
}
