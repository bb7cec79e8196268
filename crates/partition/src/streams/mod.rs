//! The state machine of a stream partition.
//!
//! Entries are applied a *step* at a time ([`step`]): everything that a step decides goes into one
//! RocksDB batch together with the LSN; then it is published to readers ([`directory`]). Data that later
//! steps need and readers do not is kept apart from that ([`mod@failed`]).

mod behind_fork;
pub(crate) mod counters;
pub(crate) mod directory;
pub(crate) mod failed;
pub(crate) mod name_cache;
pub(crate) mod name_index;
pub(crate) mod options;
mod restore;
pub(crate) mod step;
#[cfg(test)]
pub(crate) mod tests;

use std::sync::Arc;
use std::time::Duration;

use esker_raft::{
    ApplyError, Committed, Lsn, Membership, SnapshotError, StateMachine, StoredSnapshot,
};

use crate::checkpoint::Capture;
use crate::command::{Kind, Outcome};
use crate::digest::ReplicaDigests;
use crate::ids::PartitionId;
use crate::keys;
use crate::reader::Reader;
use crate::reclaim::Reclaimer;
use crate::state::{Published, StateReader};
use crate::store::{Applied, PartitionDb, Store, StoreError};
use behind_fork::BehindFork;
use counters::Counters;
use directory::Directory;
use failed::{FailedSessions, REMEMBER_FAILED};
pub use name_cache::name_bytes_of;
pub use options::StreamOptions;
use step::Step;

/// A stream partition: the only writer of its part of the database.
pub struct StreamPartition {
    part: PartitionDb,
    applied: Applied,
    counters: Counters,
    directory: Arc<Directory>,
    failed: FailedSessions,
    reclaimer: Reclaimer,
    state: Published,
    digests: ReplicaDigests,
    /// What the entries know less than the partition: usually nothing.
    behind: BehindFork,
    /// Answers of the steps of a call before the one that failed: the next call has the same entries
    /// again.
    unanswered: Option<Vec<Outcome>>,
}

impl StreamPartition {
    /// Opens it on the state in the database.
    ///
    /// # Errors
    ///
    /// The database cannot be read, or lacks the partition.
    pub fn open(
        store: &Store,
        partition: PartitionId,
        options: StreamOptions,
    ) -> Result<StreamPartition, StoreError> {
        StreamPartition::remembering(store, partition, options, REMEMBER_FAILED)
    }

    /// Opens it with a window of this many entries for refusals, which must be the same at every opening;
    /// tests use a small one.
    fn remembering(
        store: &Store,
        partition: PartitionId,
        options: StreamOptions,
        remember_failed: u64,
    ) -> Result<StreamPartition, StoreError> {
        let part = store.partition_db(partition);
        let applied = part
            .applied()?
            .ok_or_else(|| part.malformed("the position", &"it is missing"))?;
        let counters = read_counters(&part, part.forks()?)?;
        let failed = FailedSessions::load(&part, applied.lsn, remember_failed)?;
        let reclaimer = Reclaimer::open(part.clone(), &options)?;
        let digests = options.digests.clone();
        digests.open(&part)?;
        let directory = Arc::new(Directory::open(part.clone(), options)?);
        let state = Published::open(&part)?;
        Ok(StreamPartition {
            part,
            applied,
            counters,
            directory,
            failed,
            reclaimer,
            state,
            digests,
            behind: BehindFork::default(),
            unanswered: None,
        })
    }

    /// Bytes of deleted data that files hold, roughly.
    #[cfg(test)]
    pub(crate) fn garbage(&self) -> u64 {
        self.reclaimer.garbage()
    }

    /// The append sessions that are refused.
    #[cfg(test)]
    pub(crate) fn failed_sessions(&self) -> &FailedSessions {
        &self.failed
    }

    /// A reader of the streams.
    pub fn reader(&self) -> Reader {
        Reader::new(self.part.clone(), self.directory.clone())
    }

    /// A reader of the state store, if it is in this partition.
    pub fn state_reader(&self) -> StateReader {
        StateReader::new(self.part.clone(), self.state.clone())
    }
}

/// The counters after so many forks.
fn read_counters(part: &PartitionDb, forks: u64) -> Result<Counters, StoreError> {
    let mut counters = part
        .get::<Counters>(keys::COUNTERS, "the counters")?
        .unwrap_or(Counters {
            next_stream: 1,
            forks: 0,
        });
    counters.see_forks(forks);
    Ok(counters)
}

/// Whether the command has to be in a step of its own.
fn stands_alone(command: &Kind) -> bool {
    matches!(
        command,
        Kind::StatePrune(_)
            | Kind::StateImport(_)
            | Kind::BeginLineage(_)
            | Kind::AskDigest(_)
            | Kind::NoteDigests(_)
            | Kind::TrustReplica(_)
    )
}

/// The commands of entries, up to and including the first that has to be in a step of its own.
fn parse(entries: &[Committed]) -> Result<Vec<Option<Kind>>, ApplyError> {
    let mut commands = Vec::with_capacity(entries.len());
    for entry in entries {
        let command = match &entry.command {
            Some(command) => Some(
                Kind::from_bytes(command.clone())
                    .map_err(|e| ApplyError(format!("LSN {}: {e}", entry.lsn)))?,
            ),
            None => None,
        };
        let ends = command.as_ref().is_some_and(stands_alone);
        commands.push(command);
        if ends {
            break;
        }
    }
    Ok(commands)
}

impl StreamPartition {
    /// Applies as many entries as fit into one step, and returns their number. If it fails, nothing has
    /// changed.
    fn apply_some(
        &mut self,
        entries: &[Committed],
        outputs: &mut Vec<Outcome>,
    ) -> Result<usize, ApplyError> {
        let commands = parse(entries)?;
        // A command that reads earlier writes must find them written, however the entries are divided into
        // steps.
        let alone = |c: &Option<Kind>| c.as_ref().is_some_and(stands_alone);
        let count = match commands.iter().position(alone) {
            Some(0) => 1,
            Some(first) => first,
            None => commands.len(),
        };
        let mut answers = Vec::with_capacity(count);
        self.apply_step(
            &entries[..count],
            commands.into_iter().take(count),
            &mut answers,
        )?;
        outputs.append(&mut answers);
        Ok(count)
    }

    /// Applies entries in one write.
    fn apply_step(
        &mut self,
        entries: &[Committed],
        commands: impl Iterator<Item = Option<Kind>>,
        outputs: &mut Vec<Outcome>,
    ) -> Result<(), ApplyError> {
        if entries.is_empty() {
            return Ok(());
        }
        let mut step = Step::new(
            &self.part,
            &self.directory,
            &self.failed,
            &self.state,
            self.counters,
        )
        .with_capacity_for(entries);
        step.behind = self.behind;
        for (entry, command) in entries.iter().zip(commands) {
            assert!(
                entry.lsn.0 > self.applied.lsn,
                "partition {}: LSN {} is already applied",
                self.part.partition(),
                entry.lsn
            );
            if let Some(command) = command {
                let outcome = step
                    .apply(entry.lsn, entry.term, command)
                    .map_err(|e| ApplyError(format!("LSN {}: {e}", entry.lsn)))?;
                outputs.push(outcome);
            }
        }
        let mut applied = self.applied.after(entries);
        let mut done = step
            .write(&mut applied)
            .map_err(|e| failed(&self.part, &e))?;
        self.applied = applied;
        self.counters = done.counters;
        if let Some(lineage) = done.lineage.take() {
            self.directory
                .begin_lineage(lineage.forks, || self.part.note_lineage(lineage.clone()));
        }
        self.failed.written(&done.failed, self.applied.lsn);
        self.reclaimer.mark(&done.to_reclaim);
        self.reclaimer.add_garbage(done.garbage);
        let mut touched = done.touched.iter();
        let appended = touched.any(|it| !it.change.batches.is_empty());
        self.reclaimer.note_written(done.bytes, appended);
        for basin in &done.dropped {
            self.reclaimer.mark_basin(*basin);
        }
        if let Some(meta) = &done.state {
            self.state.set(meta.clone(), done.commits);
        }
        self.state.forgotten(std::mem::take(&mut done.forgotten));
        let digests = std::mem::take(&mut done.digests);
        self.directory.publish(done);
        digests.carry_out(&self.digests, &self.part);
        if self.reclaimer.is_urgent() {
            self.reclaim();
        }
        Ok(())
    }

    fn reclaim(&mut self) {
        if let Err(error) = self.reclaimer.work(&self.directory) {
            tracing::warn!(partition = %self.part.partition(), %error, "space was not reclaimed");
        }
    }
}

impl StateMachine for StreamPartition {
    type Output = Outcome;
    type Capture = Capture;

    fn applied(&self) -> Lsn {
        Lsn(self.applied.lsn)
    }

    fn membership(&self) -> Membership {
        self.applied.membership()
    }

    fn apply(
        &mut self,
        entries: &[Committed],
        outputs: &mut Vec<Outcome>,
    ) -> Result<(), ApplyError> {
        let mut rest = entries;
        if let Some(answers) = self.unanswered.take() {
            let done = rest.iter().take_while(|e| e.lsn.0 <= self.applied.lsn);
            rest = &rest[done.count()..];
            outputs.extend(answers);
        }
        while !rest.is_empty() {
            match self.apply_some(rest, outputs) {
                Ok(count) => rest = &rest[count..],
                Err(error) => {
                    self.unanswered = Some(std::mem::take(outputs));
                    return Err(error);
                }
            }
        }
        Ok(())
    }

    fn begin_snapshot(&mut self) -> Capture {
        self.part.begin_checkpoint()
    }

    fn restore(&mut self, snapshot: StoredSnapshot) -> Result<(), SnapshotError> {
        self.replace_by(&snapshot)
            .map_err(|e| SnapshotError(e.to_string()))
    }

    fn maintain(&mut self) {
        self.reclaim();
    }

    fn maintenance_interval(&self) -> Duration {
        self.reclaimer.interval()
    }
}

/// The error of a failed write, after an attempt to make the database accept writes again, which it may
/// refuse after a failure.
pub(crate) fn failed(part: &PartitionDb, error: &StoreError) -> ApplyError {
    match part.try_again() {
        Ok(()) => ApplyError(error.to_string()),
        Err(again) => ApplyError(format!("{error}; {again}")),
    }
}
