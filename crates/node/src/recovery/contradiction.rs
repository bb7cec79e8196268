//! Checks whether a copy belongs to the history that the log has.
//!
//! A copied data directory continues under the same numbers, in the same terms and in the same lineage as
//! the original, with other entries. Replaying this log on a copy of that history would mix the two. So what
//! is stored of a partition has checksums of the entries that led to it ([`LogTail`]), and a start compares
//! them with the log before it uses a copy.
//!
//! A log contradicts only what it still has: entries that were compacted away prove nothing. A copy that an
//! earlier build has made has no checksums, and is compared by its term alone.

use std::path::Path;

use esker_partition::log_tail::{BLOCK_ENTRIES, LogBlock, fold};
use esker_partition::{Checkpoint, checkpoint};
use esker_raft::log::{EntryChecksum, LogError, SharedLog};
use esker_raft::runtime::NodeError;
use esker_raft::{GroupId, Lsn};

use super::candidates::{Candidate, LogFacts, copy_of};
use super::inspect::log_facts;
use crate::data_dir::DataDir;
use crate::error::StartError;

/// A partition's log.
#[derive(Clone)]
pub(crate) struct Witness {
    log: SharedLog,
    partition: u64,
    facts: LogFacts,
}

impl Witness {
    pub fn new(raft: &esker_raft::Node, partition: u64, facts: LogFacts) -> Witness {
        Witness {
            log: raft.log().clone(),
            partition,
            facts,
        }
    }

    /// The log of a partition as it is now; `None` if it has nothing of the partition.
    pub fn of(raft: &esker_raft::Node, partition: u64) -> Result<Option<Witness>, StartError> {
        let facts = log_facts(raft, partition)?;
        Ok(facts.map(|facts| Witness::new(raft, partition, facts)))
    }

    /// Why a copy does not belong to the history of the node that serves from this log: the log contradicts
    /// it, or ends before it. `None` if it belongs to it.
    pub fn is_of_another_history(&self, copy: &Candidate) -> Result<Option<String>, StartError> {
        let (last, lsn) = (self.facts.last, copy.lsn);
        if copy.lineage == self.facts.lineage.id() && lsn > last {
            return Ok(Some(format!("it ends at LSN {lsn}, and the log at {last}")));
        }
        self.contradicts(copy)
    }

    /// Why the log contradicts a copy, if it does. Reads two blocks of entries at most.
    pub fn contradicts(&self, copy: &Candidate) -> Result<Option<String>, StartError> {
        let read = |low: u64, high: u64| {
            let group = GroupId(self.partition);
            self.log.entry_checksums(group, Lsn(low), Lsn(high))
        };
        let moved = |error: &LogError| {
            let state = error
                .is_damage()
                .then(|| self.log.state(GroupId(self.partition)));
            let start = state.transpose()?.map(|state| state.start);
            Ok(start.map(|start| (start.lsn.0, start.term.0)))
        };
        contradiction_of_live_log(&self.facts, copy, read, moved).map_err(|error: LogError| {
            match error.is_unreadable() {
                true => StartError::unreadable("the log", &error),
                false => StartError::Raft(NodeError::from(error)),
            }
        })
    }
}

/// As [`contradiction`], for a log whose entries may be compacted meanwhile: compacted entries contradict
/// nothing. `start` returns where the log starts now and in which term; it is called if an error may result
/// from compaction. The start moves forward only, and nothing is read once the log starts after the copy, so
/// this ends.
fn contradiction_of_live_log<E>(
    log: &LogFacts,
    copy: &Candidate,
    read: impl Fn(u64, u64) -> Result<Vec<EntryChecksum>, E>,
    start: impl Fn(&E) -> Result<Option<(u64, u64)>, E>,
) -> Result<Option<String>, E> {
    let mut log = log.clone();
    loop {
        let error = match contradiction(&log, copy, &read) {
            Ok(found) => return Ok(found),
            Err(error) => error,
        };
        match start(&error)? {
            Some((lsn, term)) if lsn > log.start => (log.start, log.start_term) = (lsn, term),
            _ => return Err(error),
        }
    }
}

/// `read` returns the log's entries from one LSN up to, but not including, another.
fn contradiction<E>(
    log: &LogFacts,
    copy: &Candidate,
    read: impl Fn(u64, u64) -> Result<Vec<EntryChecksum>, E>,
) -> Result<Option<String>, E> {
    let lsn = copy.lsn;
    if copy.lineage != log.lineage.id() {
        // The entries that led to the copy are of a lineage whose log is gone.
        return Ok(None);
    }
    let of_term = |term: u64| {
        let other = copy.term.filter(|of_copy| *of_copy != term)?;
        Some(format!(
            "the log contradicts it: the entry at LSN {lsn} has term {term}, and it was made after one of term {other}"
        ))
    };
    if lsn == log.start && lsn > 0 {
        return Ok(of_term(log.start_term));
    }
    let mut others = None;
    let mut last_entry = None;
    let spans = copy.tail.iter().flat_map(|tail| tail.spans(lsn));
    let is_there = |(block, last): &(&LogBlock, u64)| {
        let length = last.saturating_sub(block.after);
        (1..=BLOCK_ENTRIES).contains(&length) && block.after >= log.start && *last <= log.last
    };
    for (block, last) in spans.filter(is_there) {
        let entries = read(block.after + 1, last + 1)?;
        let folded = entries
            .iter()
            .fold(0, |sum, entry| fold(sum, entry.checksum));
        if folded != block.checksum {
            others = others.or(Some((block.after + 1, last)));
        }
        last_entry = entries.last().copied().filter(|entry| entry.lsn.0 == lsn);
    }
    if last_entry.is_none() && (log.start + 1..=log.last).contains(&lsn) {
        last_entry = read(lsn, lsn + 1)?.first().copied();
    }
    let other_term = last_entry.and_then(|entry| of_term(entry.term.0));
    let other_entry = || {
        let (entry, tail) = (last_entry?, copy.tail.as_ref()?);
        (entry.checksum != tail.entry).then(|| {
            format!("the log contradicts it: the entry at LSN {lsn} is another one than it was made after")
        })
    };
    let other_block = || {
        let (first, last) = others?;
        Some(format!(
            "the log contradicts it: it was made after other entries than those at LSNs {first} to {last}"
        ))
    };
    Ok(other_term.or_else(other_entry).or_else(other_block))
}

/// Moves local snapshots that the log contradicts to `damaged/`, so that the log is not trimmed because of
/// them. They are kept because they may be the only copy of something.
pub(super) fn put_aside_locals(
    raft: &esker_raft::Node,
    data_dir: &DataDir,
    partitions: u32,
) -> Result<(), StartError> {
    for partition in 0..=u64::from(partitions) {
        let base = data_dir.checkpoints().join(partition.to_string());
        // If the directory cannot be listed now, its snapshots are not used either.
        let there = checkpoint::all(&base).unwrap_or_default();
        if there.is_empty() {
            continue;
        }
        let Some(witness) = Witness::of(raft, partition)? else {
            continue;
        };
        for dir in there {
            let Ok(found) = Checkpoint::open(&dir) else {
                continue;
            };
            if let Some(why) = witness.contradicts(&copy_of(&found))? {
                let aside = data_dir.put_checkpoint_aside(partition, &dir)?;
                tracing::error!(
                    partition,
                    snapshot = %shown(&dir),
                    why,
                    aside = %aside.display(),
                    "a local snapshot was put aside: it is of another copy of this data directory, or the log is"
                );
            }
        }
    }
    Ok(())
}

fn shown(dir: &Path) -> std::path::Display<'_> {
    dir.file_name().map_or(dir, Path::new).display()
}

#[cfg(test)]
mod tests {
    use esker_partition::{Lineage, LineageId, LogTail, PartitionId};
    use esker_raft::Term;

    use super::super::candidates::Source;
    use super::*;

    /// The entry of a copy at an LSN; entries of different copies differ from LSN 101 on.
    fn entry(copy: u64, lsn: u64) -> EntryChecksum {
        EntryChecksum {
            lsn: Lsn(lsn),
            term: Term(3),
            checksum: lsn * 1000 + if lsn > 100 { copy } else { 0 },
        }
    }

    fn log(start: u64, last: u64) -> LogFacts {
        LogFacts {
            start,
            start_term: 3,
            last,
            last_term: 3,
            commit: last,
            lineage: Lineage::first("c", 1, PartitionId(1)),
        }
    }

    /// The candidate that was made of a copy at an LSN.
    fn made(copy: u64, lsn: u64, blocks: &[u64]) -> Candidate {
        let mut ends = blocks.iter().skip(1).copied().chain([lsn]);
        let block = |after: &u64| LogBlock {
            after: *after,
            bytes: 0,
            checksum: (after + 1..=ends.next().unwrap())
                .fold(0, |sum, lsn| fold(sum, entry(copy, lsn).checksum)),
        };
        Candidate {
            term: Some(3),
            tail: Some(LogTail {
                entry: entry(copy, lsn).checksum,
                blocks: blocks.iter().map(block).collect(),
            }),
            ..Candidate::at(Source::Database, log(0, 0).lineage.id(), lsn)
        }
    }

    /// Why the log of copy 0 contradicts a candidate, if it does.
    fn says(log: &LogFacts, copy: &Candidate) -> Option<String> {
        let read = |low, high| {
            assert!(log.start < low && high <= log.last + 1, "{low}..{high}");
            Ok::<_, ()>((low..high).map(|lsn| entry(0, lsn)).collect())
        };
        contradiction(log, copy, read).unwrap()
    }

    #[test]
    fn a_log_contradicts_copies_of_other_entries_and_no_others() {
        let log = log(50, 200);
        for (copy, lsn) in [(0, 150), (0, 101), (1, 100), (0, 200), (0, 51)] {
            assert_eq!(
                says(&log, &made(copy, lsn, &[lsn - 20])),
                None,
                "{copy} {lsn}"
            );
        }
        let why = says(&log, &made(1, 150, &[130, 140])).unwrap();
        assert!(why.contains("the entry at LSN 150"), "{why}");
    }

    #[test]
    fn an_entry_that_is_equal_in_both_does_not_hide_those_before_it() {
        let log = log(50, 200);
        let mut copy = made(1, 150, &[90, 140]);
        // For example an empty entry with which a term began.
        copy.tail.as_mut().unwrap().entry = entry(0, 150).checksum;
        let why = says(&log, &copy).unwrap();
        assert!(why.contains("LSNs 91 to 140"), "{why}");
    }

    #[test]
    fn what_lies_beyond_the_log_is_contradicted_by_the_block_that_it_has() {
        let log = log(50, 120);
        assert!(says(&log, &made(1, 150, &[90, 120])).is_some());
        assert_eq!(says(&log, &made(0, 150, &[90, 120])), None);
        assert_eq!(
            says(&log, &made(1, 150, &[90, 121])),
            None,
            "it has no whole one"
        );
    }

    #[test]
    fn a_log_that_has_no_entry_of_it_any_more_contradicts_nothing_but_the_term() {
        for (log, lsn) in [(log(150, 200), 140), (log(150, 200), 150), (log(0, 0), 0)] {
            let copy = made(1, lsn, &[lsn.saturating_sub(30)]);
            assert_eq!(says(&log, &copy), None, "{lsn}");
        }
        let other_term = Candidate {
            term: Some(2),
            ..made(0, 150, &[120])
        };
        assert!(
            says(&log(150, 200), &other_term)
                .unwrap()
                .contains("term 2")
        );
        assert!(says(&log(50, 200), &other_term).unwrap().contains("term 2"));
        // The last entry is still in the log, and the block is not.
        assert!(says(&log(140, 200), &made(1, 150, &[120])).is_some());
    }

    #[test]
    fn entries_that_are_compacted_while_they_are_compared_contradict_nothing_and_are_no_damage() {
        for (start, moves_to, contradicts) in [(50, 200, false), (50, 140, true), (50, 50, true)] {
            let read = |low: u64, high: u64| match low > moves_to {
                true => Ok((low..high).map(|lsn| entry(0, lsn)).collect()),
                false => Err("compacted"),
            };
            let moved = |_: &&str| Ok(Some((moves_to, 3)));
            let copy = made(1, 150, &[120]);
            let found = contradiction_of_live_log(&log(start, 200), &copy, read, moved).unwrap();
            assert_eq!(found.is_some(), contradicts, "{moves_to}: {found:?}");
        }
        // An entry that is missing although the log starts before it is damage.
        let damaged = contradiction_of_live_log(
            &log(50, 200),
            &made(0, 150, &[120]),
            |_, _| Err("damaged"),
            |_| Ok(Some((50, 3))),
        );
        assert_eq!(damaged, Err("damaged"));
    }

    #[test]
    fn what_is_not_known_contradicts_nothing() {
        let log = log(50, 200);
        let of_an_earlier_build = Candidate {
            tail: None,
            ..made(1, 150, &[120])
        };
        assert_eq!(says(&log, &of_an_earlier_build), None);
        let of_another_lineage = Candidate {
            lineage: LineageId(7),
            ..made(1, 150, &[120])
        };
        assert_eq!(says(&log, &of_another_lineage), None);
        // Malformed blocks are not read.
        for blocks in [&[120, 110][..], &[60], &[150], &[170]] {
            let mut copy = made(0, 150, &[120]);
            let block = |after: &u64| LogBlock {
                after: *after,
                ..LogBlock::default()
            };
            copy.tail.as_mut().unwrap().blocks = blocks.iter().map(block).collect();
            let why = says(&log, &copy);
            assert!(why.is_none() || blocks == [120, 110], "{blocks:?}: {why:?}");
        }
    }
}
