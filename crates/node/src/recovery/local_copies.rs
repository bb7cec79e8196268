//! Copies on this disk: the database, local snapshots, and those that other members have sent.

use std::cmp::Reverse;
use std::path::Path;

use esker_partition::{Checkpoint, LineageId, StoreError, checkpoint};

use super::candidates::{Candidate, connects, copy_of};
use super::inspect::copy_in;
use super::member_copies;
use super::plan::PlannedFork;
use super::search::{RecoverySource, Search, remove};
use crate::error::StartError;

impl Search<'_> {
    /// The database, if the log continues where it ends.
    pub(super) async fn database(&mut self) -> Result<Option<RecoverySource>, StartError> {
        let found = match &self.facts.database {
            Ok(found) => found,
            Err(why) => {
                self.tried.push(format!("database: {why}"));
                return Ok(None);
            }
        };
        let copy = copy_in(found);
        if self.is_contradicted(&copy).await? {
            self.keeps_database = true;
            return Ok(None);
        }
        self.look_for_a_cut(&copy);
        match connects(self.log.as_ref(), &copy) {
            Ok(()) => Ok(Some(self.recovery_source(&copy, None, None, true))),
            Err(why) => {
                self.tried.push(format!("database: {why}"));
                Ok(None)
            }
        }
    }

    /// Checkpoints on this disk that are whole, newest first; of the same LSN, local snapshots before those of other
    /// members.
    pub(super) async fn locals(&mut self) -> Result<Vec<Checkpoint>, StartError> {
        let base = self
            .cx
            .data_dir
            .checkpoints()
            .join(self.facts.partition.to_string());
        let mut whole = Vec::new();
        let listed = format!("listing {}", base.display());
        self.cx.activity.begin(listed, 0);
        let attempts = &self.cx.attempts;
        let there = attempts.blocking(move || checkpoint::all(&base)).await;
        let there = there.unwrap_or_else(|error| {
            self.unreadable.push(format!("local snapshots: {error}"));
            Vec::new()
        });
        for dir in there {
            let at = dir.clone();
            let activity = self.cx.activity.clone();
            let opened = attempts.blocking(move || {
                let step = format!("comparing the files of {}", dir.display());
                activity.begin(step.as_str(), 0);
                let checkpoint = Checkpoint::open(&dir)?;
                activity.begin(step, checkpoint.bytes());
                checkpoint.verify()?;
                Ok::<_, StoreError>(checkpoint)
            });
            match opened.await {
                Ok(checkpoint) if self.is_ruled_out(&copy_of(&checkpoint).source) => {}
                Ok(checkpoint) => {
                    if !self.is_contradicted(&copy_of(&checkpoint)).await? {
                        whole.push(checkpoint);
                    }
                }
                Err(error) => self.local_is_not_usable(&at, &error),
            }
        }
        whole.extend(self.of_members().await?);
        // Stable: the order of copies of the same LSN stays.
        whole.sort_by_key(|checkpoint| Reverse(checkpoint.meta.lsn));
        Ok(whole)
    }

    /// Whole checkpoints that other members have sent, or that were made for them. Those that the log does not reach
    /// are left out while it can be used: see [`member_copies`].
    async fn of_members(&mut self) -> Result<Vec<Checkpoint>, StartError> {
        let (data_dir, partition) = (self.cx.data_dir.clone(), self.facts.partition);
        let attempts = &self.cx.attempts;
        let all = move || member_copies::all(&data_dir, partition);
        let there = match attempts.blocking(all).await {
            Ok(there) => there,
            Err(error) => {
                let why = format!("snapshots of other members: {error}");
                self.unreadable.push(why);
                return Ok(Vec::new());
            }
        };
        let mut whole = Vec::new();
        for (dir, is_stored) in there {
            let (at, activity) = (dir.clone(), self.cx.activity.clone());
            let last = self.log.as_ref().map(|log| log.last);
            let opened = attempts.blocking(move || {
                let step = format!("comparing the files of {}", dir.display());
                activity.begin(step.as_str(), 0);
                let checkpoint = Checkpoint::open(&dir)?;
                let is_reached = last.is_none_or(|last| checkpoint.meta.lsn <= last);
                if checkpoint.meta.partition != partition || !is_reached {
                    return Ok(None);
                }
                activity.begin(step, checkpoint.bytes());
                checkpoint.verify()?;
                Ok::<_, StoreError>(Some(checkpoint))
            });
            match opened.await {
                Ok(None) => {}
                Ok(Some(checkpoint)) => {
                    let copy = copy_of(&checkpoint);
                    if !self.is_ruled_out(&copy.source) && !self.is_contradicted(&copy).await? {
                        whole.push(checkpoint);
                    }
                }
                // One that is being fetched lacks files, and no loss follows from that.
                Err(error) if !is_stored && !error.is_unreadable() => {}
                Err(error) => self.local_is_not_usable(&at, &error),
            }
        }
        Ok(whole)
    }

    fn local_is_not_usable(&mut self, dir: &Path, error: &StoreError) {
        let why = format!("local snapshot: {error}");
        match error.is_unreadable() {
            true => self.unreadable.push(why.clone()),
            false => self.cx.attempts.local_is_damaged(dir),
        }
        self.tried.push(why);
    }

    /// Checks the blocks of a copy whose file checksums match. A file checksum is computed when the copy is
    /// made, and does not reveal a block that was damaged already. This reads the copy once more, so it is
    /// done where damage was found, where files of a database are about to be replaced by the copy, or where
    /// a new lineage may begin with it.
    pub(super) async fn blocks(&self, checkpoint: &Checkpoint) -> Result<(), StoreError> {
        let facts = self.facts;
        let may_fork = self.cx.accepted.loss || self.cx.survives || self.is_pending();
        if !facts.is_damaged && facts.database.is_err() && !may_fork {
            return Ok(());
        }
        let step = format!("comparing the blocks of {}", checkpoint.dir.display());
        self.cx.activity.begin(step, checkpoint.bytes());
        let (checkpoint, scratch) = (checkpoint.clone(), self.place("check"));
        let attempts = &self.cx.attempts;
        (attempts.blocking(move || checkpoint.verify_blocks(&scratch))).await
    }

    pub(super) async fn local(
        &mut self,
        checkpoint: &Checkpoint,
    ) -> Result<Option<RecoverySource>, StartError> {
        let copy = copy_of(checkpoint);
        if let Err(why) = connects(self.log.as_ref(), &copy) {
            self.tried.push(format!("local snapshot: {why}"));
            return Ok(None);
        }
        let ready = self.link(checkpoint).await?;
        Ok(ready.map(|ready| self.recovery_source(&copy, Some(ready), None, true)))
    }

    /// Links of a checkpoint's files, which the database consumes; `None` if they are damaged.
    pub(super) async fn link(
        &mut self,
        checkpoint: &Checkpoint,
    ) -> Result<Option<Checkpoint>, StartError> {
        if let Err(error) = self.blocks(checkpoint).await {
            self.local_is_not_usable(&checkpoint.dir, &error);
            return Ok(None);
        }
        let step = format!("linking the files of {}", checkpoint.dir.display());
        self.cx.activity.begin(step, 0);
        let (checkpoint, to) = (checkpoint.clone(), self.place("local"));
        let attempts = &self.cx.attempts;
        (attempts.blocking(move || {
            remove(&to)?;
            Ok(Some(checkpoint.link_to(&to)?))
        }))
        .await
    }

    /// Whether the database has something that a source does not have, and the log behind it.
    pub(super) fn has_more(&self, copy: &Candidate, fork: Option<&PlannedFork>) -> bool {
        let Ok(database) = &self.facts.database else {
            return false;
        };
        // What an interrupted start has begun is made of what this source is made of.
        let is_begun = (self.planned).is_some_and(|it| it.id() == Some(database.lineage));
        if is_begun || self.files_are_aside {
            return false;
        }
        let is_in = |lineage: LineageId, lsn| database.lineage == lineage && database.lsn <= lsn;
        let reaches = match (fork, &self.log) {
            (None, Some(log)) => log.last,
            _ => copy.lsn,
        };
        let log = self.log.as_ref().filter(|log| database.lsn <= log.last);
        let in_log = log.is_some_and(|log| {
            fork.is_none() && log.lineage.contains(database.lineage, database.lsn)
        });
        !is_in(copy.lineage, reaches) && !in_log
    }
}
