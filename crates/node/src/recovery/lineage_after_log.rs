//! Lineages that begin after the last entry of a log: all that the log has counts, and it may not have everything.
//!
//! That is so where the other nodes of a cluster are given up ([`super::survivor`]), and where another partition shows
//! that the log has lost its end ([`super::cut_log`]).

use esker_partition::LineageId;
use esker_repository::Error as RepositoryError;

use super::candidates::Source;
use super::plan::PlannedFork;
use super::search::{RecoverySource, Search};
use crate::error::{JOIN_AGAIN, StartError};

impl Search<'_> {
    /// A search in a log of which another partition shows that it may not have everything: what it has of this one
    /// counts, and a new lineage begins after it.
    pub(super) async fn search_in_cut_log(&mut self) -> Result<RecoverySource, StartError> {
        let source = self.search().await?;
        let (Some(why), None, Some(log)) = (self.cut, &source.fork, self.log.clone()) else {
            return Ok(source);
        };
        if self.has_others || (!self.cx.accepted.loss && !self.is_pending()) {
            return Err(StartError::NothingUsable {
                partition: self.facts.partition,
                tried: why.to_owned(),
                remedy: match self.has_others {
                    true => JOIN_AGAIN.into(),
                    false => "Bring back the log; or accept the loss of everything after what it has with --bootstrap restore".into(),
                },
            });
        }
        let identity = &self.cx.data_dir.identity;
        let repository = (self.cx.archive).repository(identity, self.facts.partition);
        let root = match repository.root().await {
            Ok(root) => Some(root),
            Err(RepositoryError::NoRoot { others: false, .. }) => None,
            Err(error) => return Err(self.unreadable_repository(&error)),
        };
        if let Some(root) = &root {
            for copy in self.archived(&repository, root).await? {
                self.look_for_a_cut(&copy);
            }
        }
        self.all_was_read_beyond(log.last)?;
        if self.log.is_none() {
            // The repository has more than the log.
            return self.search().await;
        }
        self.begins_with_whole(&source).await?;
        let source = RecoverySource {
            has_root: root.is_some(),
            replays_log: true,
            ..source
        };
        Ok(forked(source, log.lineage.id(), log.last, self.planned))
    }

    /// Checks that no snapshot of the repository that covers more was passed over because it could not be read now:
    /// the lineage would begin without what it has.
    pub(super) fn all_was_read_beyond(&self, lsn: u64) -> Result<(), StartError> {
        match self.newest_unreadable > lsn {
            true => self.all_was_read(),
            false => Ok(()),
        }
    }

    /// Compares the blocks of a database with which a new lineage is about to begin: the lineage has no copy to go
    /// back to. If one is damaged, this attempt ends, and the next one takes another copy.
    pub(super) async fn begins_with_whole(
        &mut self,
        source: &RecoverySource,
    ) -> Result<(), StartError> {
        if source.source != Source::Database || self.database_is_whole().await? {
            return Ok(());
        }
        let why = self.tried.last().cloned().unwrap_or_default();
        let attempts = &self.cx.attempts;
        attempts.rule_out(self.facts.partition, Source::Database, why);
        Err(StartError::DatabaseDamaged {
            path: self.cx.data_dir.db(),
        })
    }
}

/// The source, with a lineage that begins after `lsn`: the one that an earlier start has decided on, if it is the
/// same.
pub(super) fn forked(
    source: RecoverySource,
    parent: LineageId,
    lsn: u64,
    planned: Option<&PlannedFork>,
) -> RecoverySource {
    let same = planned.filter(|p| p.parent() == Some(parent) && p.lsn == lsn);
    let fork = same.cloned().unwrap_or_else(|| PlannedFork {
        lineage: LineageId(rand::random()).to_string(),
        parent: parent.to_string(),
        lsn,
        skipped: 0,
        between: Vec::new(),
        empty: false,
    });
    RecoverySource {
        fork: Some(fork),
        ..source
    }
}
