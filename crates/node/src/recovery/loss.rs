//! Finds the copy that loses least, where none leads to the present and the operator accepts a loss.

use std::time::Duration;

use esker_partition::{Checkpoint, LineageId, PartitionId};
use esker_repository::{CurrentRoot, Repository};

use super::candidates::{Candidate, Source, best, copy_of};
use super::empty_partitions::Left;
use super::inspect::copy_in;
use super::plan::PlannedFork;
use super::search::{CONTRADICTED, RecoverySource, Search, ancestry_of};
use crate::clock::past_age;
use crate::error::StartError;

/// For this long after its beginning, a lineage without a snapshot counts as one that another node is still
/// beginning.
const BEGINNING: Duration = Duration::from_secs(60);

impl Search<'_> {
    /// The copy that loses least.
    pub(super) async fn with_a_loss(
        &mut self,
        repository: &Repository,
        root: Option<&CurrentRoot>,
        locals: &[Checkpoint],
        archived: &[Candidate],
    ) -> Result<RecoverySource, StartError> {
        let planned = self.planned;
        let lineage_there = root.and_then(|root| root.lineage).map(|l| LineageId(l.0));
        let swapped = planned.is_some_and(|p| p.id().is_some() && p.id() == lineage_there);
        if let (Some(planned), Ok(found)) = (planned, &self.facts.database)
            && planned.id() == Some(found.lineage)
        {
            // An earlier start has begun the lineage in the database already.
            let copy = copy_in(found);
            return Ok(self.recovery_source(&copy, None, Some(planned.clone()), root.is_some()));
        }
        let mut copies: Vec<Candidate> = Vec::new();
        if let (Ok(found), false) = (&self.facts.database, self.keeps_database) {
            copies.push(copy_in(found));
        }
        copies.extend(locals.iter().map(copy_of));
        copies.extend_from_slice(archived);
        let mut ancestry = ancestry_of(root);
        if let Some(planned) = planned {
            let accepts_loss = self.cx.accepted.loss;
            follow_plan(&mut copies, &mut ancestry, planned, swapped, accepts_loss);
        }
        while let Some((copy, skipped)) = best(&copies, &ancestry) {
            let copy = copy.clone();
            // A lineage that this start has begun is not another node's restore.
            if let (true, Some(root)) = (skipped > 0 && !swapped, root)
                && let Some(wait) = still_beginning(root)
            {
                return Err(StartError::LineageBegins {
                    partition: self.facts.partition,
                    repository: self.cx.archive.shown().to_owned(),
                    wait: wait.as_secs() + 1,
                });
            }
            let ready = match &copy.source {
                Source::Database if !self.database_is_whole().await? => {
                    copies.retain(|other| *other != copy);
                    continue;
                }
                Source::Database | Source::Log | Source::State(_) | Source::Empty => None,
                Source::Local(dir) => match locals.iter().find(|c| c.dir == *dir) {
                    Some(checkpoint) => match self.link(checkpoint).await? {
                        Some(ready) => Some(ready),
                        None => {
                            copies.retain(|other| *other != copy);
                            let mut others = copies.iter().filter(|o| o.lineage == copy.lineage);
                            if !others.any(|other| other.lsn >= copy.lsn) {
                                // The snapshot may be whole, and only not readable now.
                                self.all_was_read()?;
                            }
                            continue;
                        }
                    },
                    None => None,
                },
                Source::Repository(_) => match self.fetch(repository, &copy).await? {
                    Some(ready) => Some(ready),
                    None => {
                        copies.retain(|other| *other != copy);
                        continue;
                    }
                },
            };
            let parent = ancestry.first().map_or(copy.lineage, |(newest, _)| *newest);
            let same = planned.filter(|p| p.parent() == Some(parent) && p.lsn == copy.lsn);
            let between = ancestry.iter().take(skipped as usize).skip(1).rev();
            let between = between.map(|(lineage, _)| lineage.to_string()).collect();
            let fork = same.cloned().unwrap_or_else(|| PlannedFork {
                lineage: LineageId(rand::random()).to_string(),
                parent: parent.to_string(),
                lsn: copy.lsn,
                skipped,
                between,
                empty: false,
            });
            return Ok(self.recovery_source(&copy, ready, Some(fork), root.is_some()));
        }
        let accepts_loss = self.cx.accepted.loss;
        let loses_more = |source: &RecoverySource| {
            let after = source.fork.as_ref().map_or(0, |fork| fork.lsn);
            !accepts_loss && planned.is_some_and(|planned| after < planned.lsn)
        };
        let of_state = self.state(&ancestry, root.is_some()).await?;
        // There may be a newer copy among those that could not be read: no loss is accepted because of them.
        self.all_was_read()?;
        let is_begun = planned.is_some_and(|planned| planned.empty);
        let is_named = self.cx.accepted.empty.contains(&self.facts.partition);
        match of_state {
            Some(source) if !loses_more(&source) => Ok(source),
            _ if self.contradicted => Err(StartError::NothingUsable {
                partition: self.facts.partition,
                tried: self.tried.join("; "),
                remedy: CONTRADICTED.into(),
            }),
            None if is_begun || is_named => self.empty(&ancestry, root, swapped),
            None if accepts_loss => Err(StartError::NoCopy {
                partitions: vec![self.facts.partition],
                tried: format!(
                    "tried for partition {}: {}",
                    self.facts.partition,
                    self.tried.join("; ")
                ),
                remedy: String::new(),
            }),
            _ => Err(StartError::NothingUsable {
                partition: self.facts.partition,
                tried: self.tried.join("; "),
                remedy: "The copy that an earlier start has decided on is gone: bring it back; or accept a greater loss with --bootstrap restore".into(),
            }),
        }
    }

    /// An empty partition in place of one of which nothing is left.
    fn empty(
        &self,
        ancestry: &[(LineageId, u64)],
        root: Option<&CurrentRoot>,
        swapped: bool,
    ) -> Result<RecoverySource, StartError> {
        let partition = self.facts.partition;
        if !swapped
            && let Some(root) = root
            && let Some(wait) = still_beginning(root)
        {
            return Err(StartError::LineageBegins {
                partition,
                repository: self.cx.archive.shown().to_owned(),
                wait: wait.as_secs() + 1,
            });
        }
        let cluster = &self.cx.data_dir.identity.cluster_id;
        let left = Left {
            first: LineageId::first(cluster, PartitionId(partition)),
            log: self.facts.log.as_ref().map(|log| &log.lineage),
            root: root.and_then(|root| root.lineage).map(|l| LineageId(l.0)),
            ancestors: (ancestry.len() as u64).saturating_sub(1),
        };
        let nothing = Candidate::at(Source::Empty, left.first, 0);
        let fork = left.fork(self.planned, swapped);
        Ok(self.recovery_source(&nothing, None, Some(fork), root.is_some()))
    }
}

/// Leaves the copies that agree with what an earlier start has decided. `is_swapped` is whether the root is
/// of the lineage that it was to begin.
fn follow_plan(
    copies: &mut Vec<Candidate>,
    ancestry: &mut Vec<(LineageId, u64)>,
    planned: &PlannedFork,
    is_swapped: bool,
    accepts_loss: bool,
) {
    // The lineage has begun: the same copy is taken, and forks are counted from its parent. If that copy has
    // turned out damaged and a loss is accepted, another fork follows this one.
    let is_there = || copies.iter().any(|copy| copy.lsn == planned.lsn);
    if is_swapped && (is_there() || !accepts_loss) {
        ancestry.remove(0);
        copies.retain(|copy| copy.lsn == planned.lsn);
    }
    // No greater loss was accepted than the one that was decided.
    if !accepts_loss {
        copies.retain(|copy| copy.lsn >= planned.lsn);
    }
}

/// How long the node that began the newest lineage still has to put a snapshot of it. Until then that node
/// counts as alive: of two restores at once, the later one does not take over. Clocks that differ can make
/// the wait shorter, but never longer than [`BEGINNING`]: a beginning in the future comes from a clock that
/// was ahead, and gives no wait.
fn still_beginning(root: &CurrentRoot) -> Option<Duration> {
    let begun_at = root.parent.as_ref()?.begun_at()?;
    let Some(age) = past_age(begun_at) else {
        tracing::warn!(%begun_at, "the newest lineage was begun in the future, by a clock that was ahead or by another one than this: it is not waited for");
        return None;
    };
    BEGINNING.checked_sub(age).filter(|wait| !wait.is_zero())
}

#[cfg(test)]
mod tests {
    use super::*;

    const OLD: LineageId = LineageId(1);
    const NEW: LineageId = LineageId(2);

    fn copies(lsns: &[u64]) -> Vec<Candidate> {
        let copy = |lsn: &u64| Candidate::at(Source::Database, OLD, *lsn);
        lsns.iter().map(copy).collect()
    }

    fn planned(lsn: u64) -> PlannedFork {
        PlannedFork {
            lineage: NEW.to_string(),
            parent: OLD.to_string(),
            lsn,
            skipped: 0,
            between: Vec::new(),
            empty: false,
        }
    }

    /// The LSNs of the copies that are left, and the number of lineages.
    fn left(lsns: &[u64], is_swapped: bool, accepts_loss: bool) -> (Vec<u64>, usize) {
        let (mut copies, mut ancestry) = (copies(lsns), vec![(NEW, u64::MAX), (OLD, 60)]);
        let planned = planned(50);
        follow_plan(
            &mut copies,
            &mut ancestry,
            &planned,
            is_swapped,
            accepts_loss,
        );
        let lsns = copies.iter().map(|copy| copy.lsn).collect();
        (lsns, ancestry.len())
    }

    #[test]
    fn a_start_goes_on_with_the_copy_of_which_the_lineage_has_begun() {
        assert_eq!(left(&[60, 50, 40], true, false), (vec![50], 1));
        assert_eq!(left(&[60, 50, 40], true, true), (vec![50], 1));
    }

    #[test]
    fn a_copy_that_is_gone_since_is_replaced_only_if_a_loss_is_accepted_again() {
        assert_eq!(left(&[60, 40], true, false), (vec![], 1));
        assert_eq!(left(&[60, 40], true, true), (vec![60, 40], 2));
    }

    #[test]
    fn before_the_lineage_begins_no_copy_is_taken_that_loses_more_than_was_decided() {
        assert_eq!(left(&[60, 50, 40], false, false), (vec![60, 50], 2));
        assert_eq!(left(&[60, 50, 40], false, true), (vec![60, 50, 40], 2));
    }
}
