//! When a partition is scanned for what is due by time.
//!
//! A scan goes through all streams of a partition, a page at a time. If it finds nothing that is due, it leaves
//! the time at which something will be; until then, and as long as the partition does not change in a way that
//! may make something due earlier, it is not scanned again. Times are points of the agreed time, and are compared
//! with it in each round, so they hold whatever the clocks do.
//!
//! Nothing of this is stored: a start, and a node that begins to lead, scan everything once.

use std::time::{Duration, Instant};

use esker_partition::StreamId;
use esker_partition::reader::DueScan;

/// A partition is scanned after this long in any case: some 0.3 scans a second of a thousand partitions.
const MAX_REST: Duration = Duration::from_secs(3600);

/// The state of one partition.
#[derive(Debug)]
pub(super) enum Visits {
    /// The partition is to be scanned from its first stream on.
    Due,
    /// A scan is under way.
    Scanning {
        /// The stream after which it continues.
        after: StreamId,
        /// Changes of the partition when it began.
        changes: u64,
        /// What it has found so far.
        found: Found,
    },
    /// There is nothing to do until something changes, or a time comes.
    Rest {
        /// In milliseconds since the epoch; none if nothing will be due.
        until_ms: Option<u64>,
        changes: u64,
        since: Instant,
    },
}

/// What the pages of a scan have found.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Found {
    is_due: bool,
    earliest_ms: Option<u64>,
}

impl Found {
    fn with(self, page: &DueScan) -> Found {
        let both = self.earliest_ms.into_iter().chain(page.earliest_ms);
        Found {
            is_due: self.is_due || !page.due.is_empty(),
            earliest_ms: both.min(),
        }
    }
}

impl Visits {
    /// The stream after which the partition is to be scanned now, if it is. `changes` is the number of its
    /// changes, read before the scan.
    pub fn begin(&mut self, now_ms: u64, changes: u64, now: Instant) -> Option<StreamId> {
        if let Visits::Rest {
            until_ms,
            changes: before,
            since,
        } = self
        {
            let is_over = until_ms.is_some_and(|until_ms| until_ms <= now_ms)
                || *before != changes
                || now.saturating_duration_since(*since) >= MAX_REST;
            if !is_over {
                return None;
            }
            *self = Visits::Due;
        }
        if let Visits::Due = self {
            *self = Visits::Scanning {
                after: StreamId::default(),
                changes,
                found: Found::default(),
            };
        }
        match self {
            Visits::Scanning { after, .. } => Some(*after),
            Visits::Due | Visits::Rest { .. } => None,
        }
    }

    /// Notes what a page has found. At the end of a scan that found something, the partition is scanned again:
    /// a command may be refused or lost, and what it leaves is due at a time that is not known yet.
    pub fn scanned(&mut self, page: &DueScan, now: Instant) {
        let Visits::Scanning { changes, found, .. } = self else {
            return;
        };
        let (changes, found) = (*changes, found.with(page));
        *self = match page.next {
            Some(after) => Visits::Scanning {
                after,
                changes,
                found,
            },
            None if found.is_due => Visits::Due,
            None => Visits::Rest {
                until_ms: found.earliest_ms,
                changes,
                since: now,
            },
        };
    }

    /// Begins again: another node has led the partition.
    pub fn restart(&mut self) {
        *self = Visits::Due;
    }
}

#[cfg(test)]
mod tests {
    use esker_partition::reader::{Due, DueBySettings};

    use super::*;

    fn page(due: bool, next: Option<u64>, earliest_ms: Option<u64>) -> DueScan {
        let one = DueBySettings {
            due: Due::DeleteIfEmpty {
                stream: StreamId(1),
                since_ms: 0,
            },
            settings_version: 1,
        };
        DueScan {
            due: due.then_some(one).into_iter().collect(),
            next: next.map(StreamId),
            earliest_ms,
        }
    }

    /// At rest until `until_ms`, with 7 changes.
    fn at_rest(until_ms: Option<u64>, now: Instant) -> Visits {
        let mut visits = Visits::Due;
        assert_eq!(visits.begin(100, 7, now), Some(StreamId(0)));
        visits.scanned(&page(false, None, until_ms), now);
        visits
    }

    #[test]
    fn a_partition_with_nothing_due_rests_until_the_earliest_time_of_all_pages() {
        let now = Instant::now();
        let mut visits = Visits::Due;
        assert_eq!(visits.begin(100, 7, now), Some(StreamId(0)));
        visits.scanned(&page(false, Some(5), Some(900)), now);
        assert_eq!(visits.begin(101, 7, now), Some(StreamId(5)));
        visits.scanned(&page(false, Some(9), Some(500)), now);
        assert_eq!(visits.begin(102, 7, now), Some(StreamId(9)));
        visits.scanned(&page(false, None, Some(700)), now);
        assert_eq!(visits.begin(499, 7, now), None);
        assert_eq!(visits.begin(500, 7, now), Some(StreamId(0)));
    }

    #[test]
    fn the_time_may_jump_in_both_directions() {
        let now = Instant::now();
        let mut visits = at_rest(Some(500), now);
        assert_eq!(visits.begin(10, 7, now), None, "the clock was ahead");
        assert_eq!(visits.begin(499, 7, now), None);
        assert_eq!(visits.begin(1 << 40, 7, now), Some(StreamId(0)));
    }

    #[test]
    fn a_change_ends_the_rest_also_one_that_came_while_the_scan_ran() {
        let now = Instant::now();
        let mut visits = at_rest(None, now);
        assert_eq!(visits.begin(u64::MAX, 7, now), None, "nothing will be due");
        assert_eq!(visits.begin(100, 8, now), Some(StreamId(0)));
        // A later page is read with a newer number; what counts is the one of the beginning.
        visits.scanned(&page(false, Some(5), None), now);
        assert_eq!(visits.begin(100, 9, now), Some(StreamId(5)));
        visits.scanned(&page(false, None, None), now);
        assert_eq!(visits.begin(100, 9, now), Some(StreamId(0)));
    }

    #[test]
    fn what_was_due_is_looked_for_until_nothing_of_it_is_left() {
        let now = Instant::now();
        let mut visits = Visits::Due;
        for _ in 0..3 {
            assert_eq!(visits.begin(100, 7, now), Some(StreamId(0)));
            visits.scanned(&page(true, Some(5), Some(900)), now);
            assert_eq!(visits.begin(100, 7, now), Some(StreamId(5)));
            visits.scanned(&page(false, None, Some(900)), now);
        }
        assert_eq!(visits.begin(100, 7, now), Some(StreamId(0)));
        visits.scanned(&page(false, None, Some(900)), now);
        assert_eq!(visits.begin(100, 7, now), None);
    }

    #[test]
    fn a_page_that_cannot_be_read_is_read_again() {
        let now = Instant::now();
        let mut visits = Visits::Due;
        visits.begin(100, 7, now);
        visits.scanned(&page(false, Some(5), None), now);
        for _ in 0..3 {
            assert_eq!(visits.begin(100, 7, now), Some(StreamId(5)));
        }
    }

    #[test]
    fn the_rest_ends_after_an_hour_and_with_another_leader() {
        let now = Instant::now();
        let mut visits = at_rest(None, now);
        assert_eq!(visits.begin(100, 7, now + MAX_REST / 2), None);
        let later = now + MAX_REST;
        assert_eq!(visits.begin(100, 7, later), Some(StreamId(0)));
        let mut visits = at_rest(None, now);
        visits.restart();
        assert_eq!(visits.begin(100, 7, now), Some(StreamId(0)));
    }
}
