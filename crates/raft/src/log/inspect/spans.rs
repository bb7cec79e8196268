//! Follows which entries each group has, batch by batch of a queue.
//!
//! The rules are those by which raft-engine builds its memtables at an open: entries continue after a
//! group's last one, or replace some; a compaction drops older ones, a clean drops all. In the append queue
//! raft-engine panics at a gap. In the rewrite queue it allows gaps, because compacted entries are not
//! copied.

use std::collections::HashMap;

use super::Queue;
use super::groups::{Groups, Mark};

/// What an item of a batch does to its group. `region` is raft-engine's number of the group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Change {
    /// Entries, both ends included.
    Entries { region: u64, first: u64, last: u64 },
    /// Entries below `index` are dropped.
    Compact { region: u64, index: u64 },
    /// All are.
    Clean { region: u64 },
    /// A key gets a value.
    Put { region: u64 },
    /// The batch belongs to this atomic group.
    Mark { id: u64, mark: Mark },
    /// How far files reached: see [`extents`](super::extents).
    Note(Vec<u8>),
}

impl Change {
    fn region(&self) -> Option<u64> {
        match self {
            Change::Entries { region, .. }
            | Change::Compact { region, .. }
            | Change::Clean { region }
            | Change::Put { region } => Some(*region),
            Change::Mark { .. } | Change::Note(_) => None,
        }
    }
}

/// Why a batch cannot follow those before it.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Misfit {
    /// Entries are missing before it.
    Gap(Gap),
    /// It is of another copy of the log.
    Other(String),
}

/// Entries that are missing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Gap {
    pub(super) region: u64,
    /// The last entry before them.
    pub(super) after: u64,
    /// The first entry after them.
    pub(super) next: u64,
}

/// The first and last entry of each group that has any.
pub(super) struct Spans {
    may_have_holes: bool,
    of: HashMap<u64, (u64, u64)>,
    groups: Groups,
}

impl Spans {
    pub(super) fn new(queue: Queue) -> Spans {
        Spans {
            may_have_holes: queue == Queue::Rewrite,
            of: HashMap::new(),
            groups: Groups::default(),
        }
    }

    /// Takes the next batch; `seq` is the number of its file.
    ///
    /// # Errors
    ///
    /// Why it cannot follow those before it.
    pub(super) fn apply_batch(&mut self, seq: u64, changes: &[Change]) -> Result<(), Misfit> {
        for change in changes {
            self.apply(change).map_err(Misfit::Gap)?;
        }
        // raft-engine uses the first mark only, and none in the append queue.
        let marks = changes.iter().find_map(|change| match change {
            Change::Mark { id, mark } if self.may_have_holes => Some((*id, *mark)),
            _ => None,
        });
        if let Some((id, mark)) = marks {
            let regions = changes.iter().filter_map(Change::region);
            let fits = self.groups.apply(id, mark, seq, regions);
            fits.map_err(Misfit::Other)?;
        }
        Ok(())
    }

    /// Takes the next change.
    ///
    /// # Errors
    ///
    /// The gap before it.
    fn apply(&mut self, change: &Change) -> Result<(), Gap> {
        match *change {
            Change::Entries {
                region,
                first,
                last,
            } => {
                let start = match self.of.get(&region) {
                    Some((_, end)) if first > end.saturating_add(1) => {
                        if !self.may_have_holes {
                            return Err(Gap {
                                region,
                                after: *end,
                                next: first,
                            });
                        }
                        first
                    }
                    Some((start, _)) => first.min(*start),
                    None => first,
                };
                self.of.insert(region, (start, last));
            }
            Change::Compact { region, index } => {
                if let Some((start, end)) = self.of.get_mut(&region) {
                    if index > *end {
                        self.of.remove(&region);
                    } else {
                        *start = index.max(*start);
                    }
                }
            }
            Change::Clean { region } => {
                self.of.remove(&region);
            }
            Change::Put { .. } | Change::Mark { .. } | Change::Note(_) => {}
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::Change::{Clean, Compact, Entries};
    use super::*;

    fn entries(first: u64, last: u64) -> Change {
        Entries {
            region: 1,
            first,
            last,
        }
    }

    fn result(queue: Queue, changes: &[Change]) -> Result<(), Gap> {
        let mut spans = Spans::new(queue);
        changes.iter().try_for_each(|change| spans.apply(change))
    }

    #[test]
    fn entries_follow_replace_or_begin_again() {
        let compacted = Compact {
            region: 1,
            index: 11,
        };
        for changes in [
            &[entries(7, 9), entries(10, 12)][..],
            &[entries(7, 12), entries(9, 9), entries(10, 30)],
            &[entries(7, 12), entries(3, 4)],
            &[entries(7, 10), compacted.clone(), entries(20, 20)],
            &[entries(7, 10), Clean { region: 1 }, entries(20, 20)],
        ] {
            assert_eq!(result(Queue::Append, changes), Ok(()), "{changes:?}");
        }
    }

    #[test]
    fn a_hole_is_a_gap_in_the_append_queue_alone() {
        let partly = Compact {
            region: 1,
            index: 9,
        };
        let gap = Err(Gap {
            region: 1,
            after: 10,
            next: 12,
        });
        for changes in [
            &[entries(7, 10), entries(12, 12)][..],
            &[entries(7, 10), partly, entries(12, 12)],
            &[entries(7, 20), entries(10, 10), entries(12, 13)],
        ] {
            assert_eq!(result(Queue::Append, changes), gap, "{changes:?}");
            assert_eq!(result(Queue::Rewrite, changes), Ok(()), "{changes:?}");
        }
    }
}
