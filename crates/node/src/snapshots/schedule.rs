//! When a snapshot is put into the repository.

use std::fmt;
use std::time::Duration;

use super::SnapshotOptions;

/// The facts about a partition that decide whether a snapshot is due.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Facts {
    /// Whether a caller waits for one.
    pub asked: bool,
    /// Whether the repository has none of this lineage.
    pub none: bool,
    /// Whether streams in the repository need something of this partition that the repository lacks.
    pub needed: bool,
    /// Entries applied since the newest one.
    pub entries: u64,
    /// Time since the newest one.
    pub age: Duration,
    /// How long it would take to replay the log after the newest one.
    pub replay: Duration,
    /// Whether the log that is kept for older ones is too large, and this partition has the largest part of
    /// it.
    pub log_full: bool,
    /// Whether most of a full log that must not be trimmed is kept for older ones of this partition. Then
    /// more are put, even without anything new, until those are no longer retained.
    pub holds_log: bool,
    /// Whether the disk is nearly full, the repository is on it, and the newest one keeps files that the
    /// database no longer has.
    pub holds_space: bool,
}

/// Why a snapshot is put.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// A caller asked for it.
    Asked,
    /// The repository has none yet.
    First,
    /// Streams in other snapshots are of basins that only this partition has.
    Needed,
    /// Replaying the log after the newest one would take longer than the budget.
    RecoveryBudget,
    /// The log exceeds its bound.
    LogFull,
    /// The disk is nearly full, and the one before keeps files that a new one does not need.
    DiskFull,
    /// The interval has passed, and enough was applied.
    Interval,
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Reason::Asked => "asked for",
            Reason::First => "the repository has none",
            Reason::Needed => "streams in other snapshots need its basins",
            Reason::RecoveryBudget => "replay would exceed the recovery budget",
            Reason::LogFull => "the log is full",
            Reason::DiskFull => "the disk is nearly full, and the one before holds space",
            Reason::Interval => "the interval is over",
        })
    }
}

/// Why a snapshot is due, if it is.
pub(crate) fn due(options: &SnapshotOptions, facts: &Facts) -> Option<Reason> {
    if facts.asked {
        return Some(Reason::Asked);
    }
    if facts.none {
        return Some(Reason::First);
    }
    if facts.holds_log {
        return Some(Reason::LogFull);
    }
    if facts.holds_space {
        return Some(Reason::DiskFull);
    }
    if facts.needed {
        return Some(Reason::Needed);
    }
    if facts.entries == 0 {
        return None;
    }
    if options
        .recovery_budget
        .is_some_and(|budget| facts.replay > budget)
    {
        return Some(Reason::RecoveryBudget);
    }
    if facts.log_full {
        return Some(Reason::LogFull);
    }
    let time = options.interval.map(|interval| facts.age >= interval);
    let records = options
        .interval_records
        .map(|records| facts.entries >= records);
    match (time, records) {
        (None, None) => None,
        (time, records) if time.unwrap_or(true) && records.unwrap_or(true) => {
            Some(Reason::Interval)
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINUTE: Duration = Duration::from_secs(60);

    fn options() -> SnapshotOptions {
        SnapshotOptions {
            interval: Some(10 * MINUTE),
            interval_records: None,
            recovery_budget: Some(MINUTE),
            ..SnapshotOptions::default()
        }
    }

    fn facts(entries: u64, minutes: u32) -> Facts {
        Facts {
            entries,
            age: minutes * MINUTE,
            ..Facts::default()
        }
    }

    #[test]
    fn an_interval_is_skipped_when_nothing_was_applied_since() {
        assert_eq!(due(&options(), &facts(0, 100)), None);
        assert_eq!(due(&options(), &facts(1, 9)), None);
        assert_eq!(due(&options(), &facts(1, 10)), Some(Reason::Interval));
    }

    #[test]
    fn a_full_log_that_may_not_be_trimmed_is_a_reason_without_anything_new() {
        let full = Facts {
            holds_log: true,
            ..facts(0, 0)
        };
        assert_eq!(due(&options(), &full), Some(Reason::LogFull));
    }

    #[test]
    fn a_snapshot_that_holds_space_of_a_nearly_full_disk_is_a_reason_without_anything_new() {
        let holds = Facts {
            holds_space: true,
            ..facts(0, 0)
        };
        assert_eq!(due(&options(), &holds), Some(Reason::DiskFull));
    }

    #[test]
    fn if_both_time_and_records_are_set_both_must_hold() {
        let both = SnapshotOptions {
            interval_records: Some(100),
            ..options()
        };
        assert_eq!(due(&both, &facts(99, 100)), None);
        assert_eq!(due(&both, &facts(100, 9)), None);
        assert_eq!(due(&both, &facts(100, 10)), Some(Reason::Interval));
        let records = SnapshotOptions {
            interval: None,
            ..both
        };
        assert_eq!(due(&records, &facts(100, 0)), Some(Reason::Interval));
        let neither = SnapshotOptions {
            interval: None,
            interval_records: None,
            ..options()
        };
        assert_eq!(due(&neither, &facts(1_000_000, 1000)), None);
    }

    #[test]
    fn the_recovery_budget_decides_whatever_the_others_say() {
        let long = Facts {
            replay: MINUTE + Duration::from_secs(1),
            ..facts(5, 0)
        };
        assert_eq!(due(&options(), &long), Some(Reason::RecoveryBudget));
        let none = SnapshotOptions {
            recovery_budget: None,
            ..options()
        };
        assert_eq!(due(&none, &long), None);
    }

    #[test]
    fn the_first_and_one_that_was_asked_for_are_due_at_once() {
        let first = Facts {
            none: true,
            ..Facts::default()
        };
        assert_eq!(due(&options(), &first), Some(Reason::First));
        let asked = Facts {
            asked: true,
            ..Facts::default()
        };
        assert_eq!(due(&options(), &asked), Some(Reason::Asked));
    }
}
