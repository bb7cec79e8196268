//! Which copies of a partition lead back to the present, and which to less than that.
//!
//! A copy *connects* if the log continues where it ends: the same history, and no entry missing. Copies that
//! connect lose nothing, so the first usable one is taken; they are tried in the order of their cost. If
//! none connects, acknowledged data may be lost, and the operator has to accept that.

use std::fmt;
use std::path::PathBuf;

use esker_partition::{Checkpoint, Lineage, LineageId, LogTail};
use esker_repository::SnapshotDir;

/// What the log has of a partition.
#[derive(Clone, Debug)]
pub(crate) struct LogFacts {
    /// Entries up to this LSN are trimmed.
    pub start: u64,
    /// The term of the last trimmed entry.
    pub start_term: u64,
    /// The last entry.
    pub last: u64,
    /// The term of the last entry.
    pub last_term: u64,
    /// Up to here the entries are known to be committed.
    pub commit: u64,
    /// The lineage that the log belongs to.
    pub lineage: Lineage,
}

/// Where a copy is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// The database.
    Database,
    /// A checkpoint on this disk.
    Local(PathBuf),
    /// A snapshot in the repository.
    Repository(SnapshotDir),
    /// The log alone: it goes back to the beginning of the history.
    Log,
    /// The JSON snapshot of this commit: it has the state store, and nothing else of the partition.
    State(u64),
    /// No copy: nothing of the partition is left, and the operator has named it in `--empty-partitions`.
    Empty,
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Source::Database => f.write_str("database"),
            Source::Local(_) => f.write_str("local snapshot"),
            Source::Repository(dir) => write!(f, "repository snapshot {dir}"),
            Source::Log => f.write_str("log from its beginning"),
            Source::Empty => f.write_str("nothing: it begins empty"),
            Source::State(commit_ts) => {
                write!(
                    f,
                    "state snapshot of commit_ts {commit_ts}, without the partition's streams"
                )
            }
        }
    }
}

/// Why no copy connects where there is no log.
pub(crate) const LOG_IS_LOST: &str = "the log is lost";

/// A copy of a partition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Candidate {
    pub source: Source,
    pub lineage: LineageId,
    /// What it covers.
    pub lsn: u64,
    /// The term of the last entry in it, if that is known.
    pub term: Option<u64>,
    /// Checksums of the last entries in it, if they are known.
    pub tail: Option<LogTail>,
}

impl Candidate {
    /// A copy of which the term and the checksums of its last entries are not known.
    pub fn at(source: Source, lineage: LineageId, lsn: u64) -> Candidate {
        Candidate {
            source,
            lineage,
            lsn,
            term: None,
            tail: None,
        }
    }
}

/// What a checkpoint on this disk covers.
pub(super) fn copy_of(checkpoint: &Checkpoint) -> Candidate {
    Candidate {
        source: Source::Local(checkpoint.dir.clone()),
        lineage: checkpoint.lineage().unwrap_or(LineageId(0)),
        lsn: checkpoint.meta.lsn,
        term: Some(checkpoint.meta.term),
        tail: checkpoint.meta.log_tail.clone(),
    }
}

/// Checks that the log continues where a copy ends; the error is the reason why it does not.
pub(crate) fn connects(log: Option<&LogFacts>, copy: &Candidate) -> Result<(), String> {
    let Some(log) = log else {
        return Err(LOG_IS_LOST.to_owned());
    };
    if !log.lineage.contains(copy.lineage, copy.lsn) {
        return Err(format!(
            "it is of lineage {}, and the log is of {}",
            copy.lineage,
            log.lineage.id()
        ));
    }
    if copy.lsn < log.start {
        return Err(format!(
            "it ends at LSN {}, and the log begins after {}",
            copy.lsn, log.start
        ));
    }
    if copy.lsn > log.last {
        return Err(format!(
            "it ends at LSN {}, and the log before that, at {}: the log was cut or replaced",
            copy.lsn, log.last
        ));
    }
    Ok(())
}

/// Whether the log has every entry of the history, from an empty partition on: then an empty partition
/// connects.
pub(crate) fn is_whole(log: Option<&LogFacts>) -> bool {
    log.is_some_and(|log| log.start == 0 && (log.lineage.forks == 0 || log.lineage.begins_empty))
}

/// The copy that loses least, of those that are part of the history, and the number of forks between it and
/// the newest lineage. `ancestry` has that lineage and those that it descends from, each with the last LSN
/// that is part of the history; it is empty if it is not known, and then any copy is eligible.
pub(crate) fn best<'a>(
    copies: &'a [Candidate],
    ancestry: &[(LineageId, u64)],
) -> Option<(&'a Candidate, u64)> {
    let forks = |copy: &Candidate| {
        let is_of =
            |(lineage, lsn): &&(LineageId, u64)| copy.lineage == *lineage && copy.lsn <= *lsn;
        match ancestry.iter().position(|one| is_of(&one)) {
            Some(forks) => Some(forks as u64),
            None => ancestry.is_empty().then_some(0),
        }
    };
    copies
        .iter()
        .filter_map(|copy| Some((copy, forks(copy)?)))
        // Of equal copies the first is taken: it costs least.
        .rev()
        .max_by_key(|(copy, _)| copy.lsn)
}

#[cfg(test)]
mod tests {
    use esker_partition::PartitionId;

    use super::*;

    fn copy(lineage: LineageId, lsn: u64) -> Candidate {
        Candidate::at(Source::Database, lineage, lsn)
    }

    fn log(start: u64, last: u64) -> LogFacts {
        LogFacts {
            start,
            start_term: 1,
            last,
            last_term: 1,
            commit: last,
            lineage: Lineage::first("c", 1, PartitionId(1)),
        }
    }

    #[test]
    fn a_copy_connects_if_the_log_has_every_entry_after_it() {
        let log = log(10, 20);
        let id = log.lineage.id();
        for (lsn, connected) in [(9, false), (10, true), (15, true), (20, true), (21, false)] {
            assert_eq!(
                connects(Some(&log), &copy(id, lsn)).is_ok(),
                connected,
                "{lsn}"
            );
        }
    }

    #[test]
    fn nothing_connects_without_a_log() {
        let id = log(0, 0).lineage.id();
        assert!(connects(None, &copy(id, 5)).is_err());
    }

    #[test]
    fn what_is_of_another_history_does_not_connect() {
        let log = log(10, 20);
        assert!(connects(Some(&log), &copy(LineageId(1), 15)).is_err());
    }

    #[test]
    fn a_copy_of_the_parent_connects_at_the_fork_alone() {
        let first = log(0, 0).lineage;
        let forked = LogFacts {
            // The log of a new lineage begins at the fork.
            start: 10,
            start_term: 1,
            last: 20,
            last_term: 1,
            commit: 20,
            lineage: first.fork(LineageId(7), 10),
        };
        assert!(connects(Some(&forked), &copy(first.id(), 10)).is_ok());
        assert!(connects(Some(&forked), &copy(first.id(), 11)).is_err());
        assert!(connects(Some(&forked), &copy(first.id(), 9)).is_err());
        assert!(connects(Some(&forked), &copy(LineageId(7), 15)).is_ok());
    }

    #[test]
    fn a_log_is_whole_only_if_it_goes_back_to_the_beginning_of_its_history() {
        assert!(is_whole(Some(&log(0, 20))));
        assert!(!is_whole(Some(&log(1, 20))));
        assert!(!is_whole(None));
        let of = |lineage| LogFacts {
            lineage,
            ..log(0, 20)
        };
        let first = log(0, 0).lineage;
        assert!(!is_whole(Some(&of(first.fork(LineageId(7), 0)))));
        let empty = first.begin_empty(first.id(), 0, LineageId(7));
        assert!(is_whole(Some(&of(empty))));
    }

    #[test]
    fn the_best_copy_is_the_one_that_loses_least_of_the_current_history() {
        let (old, new) = (LineageId(1), LineageId(2));
        let copies = [copy(old, 90), copy(new, 50), copy(new, 60)];
        let found = best(&copies, &[(new, u64::MAX), (old, 40)]);
        assert_eq!(found, Some((&copies[2], 0)));
        assert_eq!(best(&copies, &[]), Some((&copies[0], 0)));
        assert_eq!(best(&copies, &[(LineageId(3), u64::MAX)]), None);
    }

    #[test]
    fn where_a_lineage_left_nothing_the_best_copy_is_of_its_ancestors_up_to_the_forks() {
        let (first, second, third) = (LineageId(1), LineageId(2), LineageId(3));
        let ancestry = [(third, u64::MAX), (second, 70), (first, 40)];
        let copies = [copy(first, 41), copy(first, 40), copy(first, 30)];
        assert_eq!(best(&copies, &ancestry), Some((&copies[1], 2)));
        let copies = [copy(first, 40), copy(second, 71), copy(second, 70)];
        assert_eq!(best(&copies, &ancestry), Some((&copies[2], 1)));
    }
}
