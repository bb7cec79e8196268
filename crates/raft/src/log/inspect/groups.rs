//! The atomic groups of the rewrite queue: batches that raft-engine applies together or not at all.
//!
//! When a purge rewrites the rewrite queue itself, and the entries of a Raft group do not fit into one
//! batch, it marks the batches as begin, middle and end of a numbered atomic group. The numbers start again
//! with each process. Two atomic groups of one Raft group never overlap, except where files of different
//! copies of a log were mixed: raft-engine would panic there. This module follows raft-engine's rules.

use std::collections::{HashMap, HashSet};

/// The position of a batch in its atomic group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mark {
    Begin,
    Middle,
    End,
}

impl Mark {
    pub(super) fn parse(byte: u8) -> Option<Mark> {
        match byte {
            0 => Some(Mark::Begin),
            1 => Some(Mark::Middle),
            2 => Some(Mark::End),
            _ => None,
        }
    }
}

/// An atomic group that has begun and not ended.
struct Begun {
    /// The file of its first batch.
    start: u64,
    regions: HashSet<u64>,
}

#[derive(Default)]
pub(super) struct Groups {
    open: HashMap<u64, Begun>,
    /// Numbers of all that have begun.
    seen: HashSet<u64>,
    /// The file in which the last group of each region ended.
    ends: HashMap<u64, u64>,
}

impl Groups {
    /// Takes the next batch that carries a mark. `id`: number of the atomic group, `seq`: of the file.
    ///
    /// # Errors
    ///
    /// The rule that the batch breaks.
    pub(super) fn apply(
        &mut self,
        id: u64,
        mark: Mark,
        seq: u64,
        regions: impl Iterator<Item = u64>,
    ) -> Result<(), String> {
        if mark == Mark::Begin {
            // An earlier group of this number that never ended was interrupted, by a crash or a full disk.
            let regions = regions.collect();
            let start = seq;
            self.open.insert(id, Begun { start, regions });
            self.seen.insert(id);
            return Ok(());
        }
        let Some(begun) = self.open.get_mut(&id) else {
            if self.seen.contains(&id) {
                return Err(format!("atomic group {id} goes on after its end"));
            }
            // The file with its beginning is purged: the group is not needed any more.
            return Ok(());
        };
        begun.regions.extend(regions);
        if mark == Mark::Middle {
            return Ok(());
        }
        let Some(ended) = self.open.remove(&id) else {
            return Ok(());
        };
        for region in ended.regions {
            if let Some(end) = self.ends.insert(region, seq)
                && end > ended.start
            {
                return Err(format!(
                    "atomic group {id} began in file {}, before the last one of its partition ended in file {end}",
                    ended.start
                ));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::Mark::{Begin, End, Middle};
    use super::*;

    fn result(batches: &[(u64, Mark, u64, u64)]) -> Result<(), String> {
        let mut groups = Groups::default();
        batches.iter().try_for_each(|(id, mark, seq, region)| {
            groups.apply(*id, *mark, *seq, std::iter::once(*region))
        })
    }

    #[test]
    fn groups_that_follow_each_other_were_interrupted_or_lost_their_beginning_are_fine() {
        for batches in [
            &[
                (0, Begin, 1, 1),
                (0, Middle, 1, 1),
                (0, End, 2, 1),
                (1, Begin, 2, 1),
                (1, End, 3, 1),
            ][..],
            // Interrupted, and the next process numbers its own from 0 again.
            &[
                (0, Begin, 1, 1),
                (0, Middle, 1, 1),
                (0, Begin, 2, 2),
                (0, End, 2, 2),
            ],
            // Purged.
            &[
                (4, Middle, 3, 1),
                (4, End, 3, 1),
                (4, Begin, 4, 1),
                (4, End, 4, 1),
            ],
            // Different partitions.
            &[
                (0, Begin, 1, 1),
                (1, Begin, 2, 2),
                (1, End, 2, 2),
                (0, End, 3, 1),
            ],
        ] {
            assert_eq!(result(batches), Ok(()), "{batches:?}");
        }
    }

    #[test]
    fn groups_of_one_partition_that_overlap_or_go_on_after_their_end_are_refused() {
        for batches in [
            &[
                (0, Begin, 1, 1),
                (1, Begin, 2, 1),
                (1, End, 2, 1),
                (0, End, 3, 1),
            ][..],
            &[(0, Begin, 1, 1), (0, End, 1, 1), (0, End, 2, 1)],
            &[(0, Begin, 1, 1), (0, End, 1, 1), (0, Middle, 2, 1)],
        ] {
            assert!(result(batches).is_err(), "{batches:?}");
        }
    }
}
