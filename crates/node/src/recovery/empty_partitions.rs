//! Partitions of which no copy is left: how they are named, and how one begins empty.
//!
//! This is never done automatically: the operator names each partition, and a copy that is there, or cannot
//! be read now, forbids it. The new lineage shares nothing with its parent, and counts the forks before it,
//! so that no number or id is given out twice.

use esker_partition::{Lineage, LineageId};

use super::plan::PlannedFork;
use crate::error::StartError;

/// Forks of a partition that neither its log nor the repository may know of: each loss of a log is one. No
/// number is given out twice as long as there were not more.
const UNKNOWN_FORKS: u64 = 64;

/// The error for partitions of which no copy is left; `all` is the number of partitions.
pub(super) fn no_copy(mut lacking: Vec<(Vec<u64>, String)>, all: usize) -> StartError {
    lacking.sort();
    let tried: Vec<String> = lacking.iter().map(|(_, tried)| tried.clone()).collect();
    let partitions: Vec<u64> = lacking.into_iter().flat_map(|(some, _)| some).collect();
    let remedy = match partitions.len() == all {
        true => "There is no copy to go on from: bring back what is missing".to_owned(),
        false => format!(
            "Bring back what is missing; or {}",
            begin_empty(&partitions)
        ),
    };
    StartError::NoCopy {
        partitions,
        tried: tried.join("; "),
        remedy,
    }
}

/// The instruction for continuing without partitions of which no copy is left.
pub(super) fn begin_empty(partitions: &[u64]) -> String {
    let numbers: Vec<String> = partitions.iter().map(u64::to_string).collect();
    let (what, of_it) = match partitions {
        [_] => ("the partition begins", "it"),
        _ => ("the partitions begin", "them"),
    };
    format!(
        "accept that all that was in {of_it} is lost with --bootstrap restore --empty-partitions {}: {what} empty",
        numbers.join(",")
    )
}

/// What is known of the history of a partition of which nothing is left.
pub(super) struct Left<'a> {
    /// The lineage that a partition of its number begins with.
    pub first: LineageId,
    /// The lineage of the log, if it is known.
    pub log: Option<&'a Lineage>,
    /// The lineage of the root in the repository, if there is one.
    pub root: Option<LineageId>,
    /// Number of lineages that the root's lineage descends from.
    pub ancestors: u64,
}

impl Left<'_> {
    /// The lineage that an empty partition begins. `planned` is what an earlier start has decided;
    /// `is_swapped` is whether the repository's root is of that lineage already.
    pub fn fork(&self, planned: Option<&PlannedFork>, is_swapped: bool) -> PlannedFork {
        let parent = self
            .root
            .or(self.log.map(Lineage::id))
            .unwrap_or(self.first);
        let skipped = match self.log {
            Some(log) => log.forks.max(self.ancestors),
            None => self.ancestors + UNKNOWN_FORKS,
        };
        let same = planned
            .filter(|planned| planned.empty && (is_swapped || planned.parent() == Some(parent)));
        same.cloned().unwrap_or_else(|| PlannedFork {
            lineage: LineageId(rand::random()).to_string(),
            parent: parent.to_string(),
            lsn: 0,
            skipped,
            between: Vec::new(),
            empty: true,
        })
    }
}

#[cfg(test)]
mod tests {
    use esker_partition::PartitionId;

    use super::*;

    #[test]
    fn an_empty_partition_counts_all_forks_that_its_log_or_the_repository_tells_of() {
        let partition = PartitionId(2);
        let first = Lineage::first("a cluster", 2, partition);
        let forked = first.fork(LineageId(7), 10).fork(LineageId(8), 20);
        let left = |log, root, ancestors| Left {
            first: first.id(),
            log,
            root,
            ancestors,
        };
        let of = |left: Left<'_>| {
            let fork = left.fork(None, false);
            (fork.parent().unwrap(), fork.skipped)
        };
        assert_eq!(of(left(Some(&forked), None, 0)), (LineageId(8), 2));
        let root = Some(LineageId(9));
        assert_eq!(of(left(Some(&forked), root, 3)), (LineageId(9), 3));
        // More forks are passed over than the unknown ones are likely to be.
        assert_eq!(of(left(None, None, 0)), (first.id(), UNKNOWN_FORKS));
        assert_eq!(of(left(None, root, 3)), (LineageId(9), 3 + UNKNOWN_FORKS));
    }

    #[test]
    fn what_was_decided_is_gone_on_with_and_nothing_else() {
        let left = Left {
            first: LineageId(1),
            log: None,
            root: None,
            ancestors: 0,
        };
        let decided = left.fork(None, false);
        assert_eq!(left.fork(Some(&decided), false), decided);
        // The root is of the decided lineage by now.
        let swapped = Left {
            root: decided.id(),
            ..left
        };
        assert_eq!(swapped.fork(Some(&decided), true), decided);
        assert_ne!(swapped.fork(Some(&decided), false), decided);
        let of_a_copy = PlannedFork {
            empty: false,
            ..decided
        };
        assert_ne!(swapped.fork(Some(&of_a_copy), true), of_a_copy);
    }
}
