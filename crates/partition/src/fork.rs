//! What the forks of its partition did to one stream.
//!
//! Who keeps something that was made of a stream's records (a state, say) has to know whether these
//! records are still what the stream has. A lineage and a cursor say what it was made of; the forks say
//! up to where that lineage's history is this one's.
//!
//! A stream remembers the gaps that the last forks left, and its partition the lineages that they cut
//! off. Both forget the oldest first, so both are read from the newest on: the last gap is of the last
//! forks that there were, and how many these were follows from its length.

use s2_common::record::SeqNum;

use crate::ids::LineageId;
use crate::lineage::{GAP, Lineage};
use crate::stream::StreamState;

/// A fork, as one stream has seen it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fork {
    /// The lineage that was cut off; `None` stands for one or several that are not remembered.
    pub parent: Option<LineageId>,
    /// What the parent had below this is a part of the present history; what it had from here on is
    /// lost.
    pub seq_num: SeqNum,
    /// Where the present history goes on.
    pub resumes_at: SeqNum,
}

impl StreamState {
    /// The forks that the stream has seen, as far as they are remembered, oldest first. Forks between
    /// which nothing was appended left one gap together: they have the same numbers.
    pub fn forks_seen(&self, lineage: &Lineage) -> Vec<Fork> {
        let ancestry = lineage.ancestry();
        let mut newest_first = Vec::new();
        let mut forks = self.forks;
        for gap in self.gaps.iter().rev() {
            let fork = |parent| Fork {
                parent,
                seq_num: gap.from,
                resumes_at: gap.end,
            };
            let of_gap = gap.end.saturating_sub(gap.from) / GAP;
            let before = forks.saturating_sub(of_gap);
            let cut_off = ancestry
                .iter()
                .rev()
                .filter(|(_, seen)| (before..forks).contains(seen));
            let known = newest_first.len();
            newest_first.extend(cut_off.map(|(id, _)| fork(Some(*id))));
            if ((newest_first.len() - known) as u64) < of_gap {
                newest_first.push(fork(None));
            }
            forks = before;
        }
        newest_first.reverse();
        newest_first
    }
}
