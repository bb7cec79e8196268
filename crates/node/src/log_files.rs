//! Which files of the log are still needed.
//!
//! The log is kept back to the oldest archived snapshot, so a busy partition may have many entries in old
//! files. raft-engine deletes the oldest files once the log is larger than its threshold, but first copies
//! the entries in the oldest fifth of them that a group still needs to new files. For a group with few
//! entries in the log that is right: an idle partition does not keep old files. For one with many it would
//! write the log a second time. So files are deleted only when no group needs many entries in them.

use std::collections::VecDeque;

use esker_raft::KeptForAbsent;

/// A group with more entries than this has more than a few. raft-engine copies no more of a group, unless the
/// group holds the oldest files for long.
const FEW_ENTRIES: u64 = 32;

/// A group with more entries than this, or more bytes, has many.
const MANY_ENTRIES: u64 = 10_000;
const MANY_BYTES: u64 = 4 << 20;

/// The limit of bytes for a group: all groups together may have at most half of the log's bound copied.
pub(crate) fn many_bytes(max_log_bytes: u64, groups: usize) -> u64 {
    MANY_BYTES.min(max_log_bytes / (2 * groups.max(1) as u64))
}

/// Most bytes of a group that are kept for members that are away: what a busy partition takes in during the restart
/// of a node.
const MAX_BYTES_FOR_ABSENT: u64 = 32 << 20;
/// Longest absence during which old files may stay because of it, in ticks of 100 ms: 10 min, so that a node which
/// restarts with its machine, or is repaired at once, needs no snapshots.
const ABSENCE_TICKS: u64 = 6_000;

/// What is kept of a group for members that are away, beside what snapshots need: for all groups together at most a
/// quarter of the log's bound. After [`ABSENCE_TICKS`] it is an eighth, which is no more than a few for raft-engine: it
/// copies that, and the absence holds no files any more.
pub(crate) fn kept_for_absent(max_log_bytes: u64, groups: usize) -> KeptForAbsent {
    KeptForAbsent {
        bytes: MAX_BYTES_FOR_ABSENT.min(max_log_bytes / (4 * groups.max(1) as u64)),
        entries: KeptForAbsent::LONG_ABSENCE_SHARE * MANY_ENTRIES,
        ticks: ABSENCE_TICKS,
    }
}

/// Boundaries of old files that are remembered; beyond that, every second one is dropped.
const REMEMBERED: usize = 512;

/// The entries that are needed of a group.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Wanted {
    /// Entries at or below this LSN are not needed.
    pub start: u64,
    /// The last entry.
    pub last: u64,
    /// Bytes of the entries above `start`, as far as they are known.
    pub bytes: u64,
}

impl Wanted {
    fn entries(&self) -> u64 {
        self.last.saturating_sub(self.start)
    }
}

/// The log's content when it was opened. The sizes of a group's entries from before that are not known, so
/// each counts as an average one.
#[derive(Clone, Debug, Default)]
pub(crate) struct AtOpen {
    /// Each group's last entry.
    last: Vec<u64>,
    bytes_per_entry: f64,
}

impl AtOpen {
    pub fn new(log_bytes: u64, groups: &[Wanted]) -> AtOpen {
        let entries: u64 = groups.iter().map(|g| g.last.saturating_sub(g.start)).sum();
        AtOpen {
            last: groups.iter().map(|g| g.last).collect(),
            bytes_per_entry: log_bytes as f64 / entries.max(1) as f64,
        }
    }

    /// Adds an estimate of the bytes of the entries from before the log was opened.
    pub fn with_old(&self, at: usize, group: Wanted) -> Wanted {
        let old = self
            .last
            .get(at)
            .map_or(0, |last| last.saturating_sub(group.start));
        let old_bytes = (old as f64 * self.bytes_per_entry) as u64;
        Wanted {
            bytes: group.bytes.max(old_bytes),
            ..group
        }
    }
}

/// Remembers the last entry of each group when each file was first written to.
#[derive(Debug, Default)]
pub(crate) struct LogFiles {
    /// A file, and the groups' last entries when it was first seen: later entries are in it or after it.
    seen: VecDeque<(u64, Vec<u64>)>,
    /// A group with more bytes than this has many.
    many_bytes: u64,
}

impl LogFiles {
    pub fn new(many_bytes: u64) -> LogFiles {
        LogFiles {
            many_bytes,
            ..LogFiles::default()
        }
    }

    /// Notes which files the log has now, from the first to the one that is written to.
    pub fn note(&mut self, (first, active): (u64, u64), groups: &[Wanted]) {
        if self.seen.is_empty() {
            // Existing entries may be in any file.
            self.seen
                .push_back((first, groups.iter().map(|g| g.start).collect()));
        }
        if self.seen.back().is_none_or(|(file, _)| *file < active) {
            self.seen
                .push_back((active, groups.iter().map(|g| g.last).collect()));
        }
        while self.seen.len() > 1 && self.seen[1].0 <= first {
            self.seen.pop_front();
        }
        if self.seen.len() > REMEMBERED {
            let mut keep = false;
            self.seen.retain(|_| {
                keep = !keep;
                keep
            });
        }
    }

    /// The first file in which a group with many needed entries has any; `None` if no group has many.
    pub fn first_wanted(&self, groups: &[Wanted]) -> Option<u64> {
        self.first_of(groups, |group| {
            group.entries() > MANY_ENTRIES || group.bytes > self.many_bytes
        })
    }

    /// The first file in which one of these groups has needed entries; `None` if there is no such group.
    fn first_of(&self, groups: &[Wanted], counts: impl Fn(&Wanted) -> bool) -> Option<u64> {
        let counted = groups.iter().enumerate().filter(|(_, g)| counts(g));
        counted
            .filter_map(|(at, group)| {
                let before = |(_, lasts): &&(u64, Vec<u64>)| {
                    lasts.get(at).is_some_and(|last| *last <= group.start)
                };
                let found = self.seen.iter().rev().find(before);
                found.or(self.seen.front()).map(|(file, _)| *file)
            })
            .min()
    }

    /// Whether deleting old files makes raft-engine copy few entries.
    pub fn may_delete(&self, span: (u64, u64), groups: &[Wanted]) -> bool {
        is_beyond_oldest(span, self.first_wanted(groups))
    }

    /// Whether the oldest files are free: deleting them makes raft-engine copy next to nothing. They are then
    /// deleted however short the log is, because a start reads what is left.
    pub fn are_oldest_free(&self, span: (u64, u64), groups: &[Wanted]) -> bool {
        // A few entries may be large: one has up to 8 MiB.
        let first = self.first_of(groups, |group| {
            group.entries() > FEW_ENTRIES || group.bytes > self.many_bytes
        });
        span.1 > span.0 && is_beyond_oldest(span, first)
    }
}

/// Whether what is needed begins after the oldest fifth of the files, of which raft-engine copies entries.
fn is_beyond_oldest((first, active): (u64, u64), wanted: Option<u64>) -> bool {
    let fifth = (active - first + 1).div_ceil(5);
    wanted.is_none_or(|wanted| wanted >= first + fifth)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn group(start: u64, last: u64) -> Wanted {
        Wanted {
            start,
            last,
            bytes: 0,
        }
    }

    /// Ten files; the first group writes 20,000 entries into each, the second a few into the first.
    fn ten_files() -> LogFiles {
        let mut files = LogFiles::new(MANY_BYTES);
        for file in 1..=10 {
            files.note((1, file), &[group(0, (file - 1) * 20_000), group(0, 5)]);
        }
        files
    }

    #[test]
    fn a_busy_group_is_not_copied_for_the_sake_of_space() {
        let files = ten_files();
        let last = 200_000;
        for (start, first_wanted, may) in [
            (0, 1, false),
            (19_999, 1, false),
            (20_000, 2, false),
            (40_000, 3, true),
            (150_000, 8, true),
        ] {
            let groups = [group(start, last), group(0, 5)];
            assert_eq!(files.first_wanted(&groups), Some(first_wanted), "{start}");
            assert_eq!(files.may_delete((1, 10), &groups), may, "{start}");
        }
    }

    #[test]
    fn a_member_that_stays_away_holds_no_files() {
        for max_log_bytes in [4 << 20, 1 << 30, 4 << 30, 16 << 40] {
            for groups in [1, 2, 9, 200, 10_000] {
                let kept = kept_for_absent(max_log_bytes, groups);
                let all = kept.bytes * groups as u64;
                assert!(all <= max_log_bytes / 4, "{kept:?} of {groups} groups");
                let share = KeptForAbsent::LONG_ABSENCE_SHARE;
                let long = Wanted {
                    bytes: kept.bytes / share,
                    ..group(0, kept.entries / share)
                };
                let mut files = LogFiles::new(many_bytes(max_log_bytes, groups));
                files.note((1, 10), &[group(0, 0)]);
                assert!(files.may_delete((1, 10), &[long]), "{kept:?} of {groups}");
            }
        }
    }

    #[test]
    fn an_idle_group_with_little_holds_nothing_back() {
        let files = ten_files();
        let groups = [group(200_000, 200_000), group(0, 5)];
        assert_eq!(files.first_wanted(&groups), None);
        assert!(files.may_delete((1, 10), &groups));
    }

    #[test]
    fn the_oldest_files_are_free_once_no_group_needs_more_than_a_few_entries_of_them() {
        let files = ten_files();
        let last = 200_000;
        let free =
            |start, idle| files.are_oldest_free((1, 10), &[group(start, last), group(0, idle)]);
        assert!(!free(19_999, 5));
        assert!(!free(20_000, 5), "raft-engine considers the oldest fifth");
        assert!(free(40_000, 5));
        assert!(free(last, 5));
        assert!(!free(last, 33), "they would be copied");
        let large = Wanted {
            bytes: MANY_BYTES + 1,
            ..group(0, 5)
        };
        let groups = [group(last, last), large];
        assert!(
            !files.are_oldest_free((1, 10), &groups),
            "a few large ones would be copied"
        );
        let one_file = (10, 10);
        assert!(!files.are_oldest_free(one_file, &[group(last, last)]));
    }

    #[test]
    fn after_a_start_what_is_there_may_be_anywhere() {
        let mut files = LogFiles::new(MANY_BYTES);
        files.note((3, 9), &[group(1000, 90_000)]);
        assert_eq!(files.first_wanted(&[group(1000, 90_000)]), Some(3));
        assert_eq!(files.first_wanted(&[group(60_000, 90_000)]), Some(3));
        // Once the entries from before are trimmed, the needed ones are in the files that were written
        // since.
        assert_eq!(files.first_wanted(&[group(90_000, 150_000)]), Some(9));
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let mut files = LogFiles::new(MANY_BYTES);
        for file in 1..5_000 {
            files.note((1, file), &[group(0, file * 100)]);
        }
        assert!(files.seen.len() <= REMEMBERED + 1);
        files.note((4_900, 5_000), &[group(0, 500_000)]);
        assert!(files.seen.len() < 200);
    }

    #[test]
    fn entries_from_before_the_start_count_with_their_share_of_the_bytes() {
        let groups = [group(0, 30), group(5, 15)];
        let at_open = AtOpen::new(40 << 20, &groups);
        assert_eq!(at_open.with_old(0, groups[0]).bytes, 30 << 20);
        assert_eq!(at_open.with_old(1, groups[1]).bytes, 10 << 20);
        // Trimmed entries do not count, and the sizes of later entries are known.
        assert_eq!(at_open.with_old(0, group(30, 90)).bytes, 0);
        let mut files = LogFiles::new(many_bytes(4 << 20, 2));
        files.note((1, 9), &groups);
        assert!(!files.may_delete((1, 9), &[at_open.with_old(0, groups[0])]));
        assert!(files.may_delete((1, 9), &[at_open.with_old(0, group(30, 90))]));
    }
}
