//! Copies in the repository: lists what it retains of a partition, and fetches it.

use std::path::Path;
use std::time::Duration;

use esker_partition::{Checkpoint, LineageId};
use esker_repository::{
    CurrentRoot, Error as RepositoryError, Progress, Repository, SnapshotMetadata, Which,
};

use super::activity::Activity;
use super::candidates::{Candidate, Source};
use super::search::{Search, remove};
use crate::error::StartError;
use crate::snapshots::{log_tail, restored};

/// How often a long restore reports its progress.
const REPORT_INTERVAL: Duration = Duration::from_secs(5);
/// How often its progress is looked at.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);

impl Search<'_> {
    /// The snapshots that the repository retains, newest first.
    pub(super) async fn archived(
        &mut self,
        repository: &Repository,
        root: &CurrentRoot,
    ) -> Result<Vec<Candidate>, StartError> {
        let mut copies = Vec::new();
        for retained in &root.retained_snapshots {
            let dir = retained.dir();
            self.cx
                .activity
                .begin(format!("reading what snapshot {dir} is"), 0);
            let metadata = match repository.describe(&dir).await {
                Ok(metadata) => metadata,
                Err(error) if error.is_damage() => {
                    self.damage = true;
                    tracing::warn!(partition = self.facts.partition, snapshot = %dir, %error, "a snapshot is damaged: an older one is tried");
                    self.tried
                        .push(format!("repository snapshot {dir}: {error}"));
                    continue;
                }
                Err(error @ RepositoryError::NewerFormat { .. }) => {
                    // Another copy may lead to the present. Where none does, nothing may be given up.
                    tracing::warn!(partition = self.facts.partition, snapshot = %dir, %error, "a snapshot is not used");
                    let why = format!("repository snapshot {dir}: {error}");
                    self.unreadable.push(why.clone());
                    self.tried.push(why);
                    self.newest_unreadable = self.newest_unreadable.max(dir.lsn.0);
                    continue;
                }
                Err(error) => return Err(self.unreadable_repository(&error)),
            };
            let Some(lineage) = metadata.lineage else {
                self.tried
                    .push(format!("repository snapshot {dir}: it has no lineage"));
                continue;
            };
            let tail = match log_tail(&metadata) {
                Ok(tail) => tail,
                Err(why) => {
                    self.snapshot_is_damaged(&Source::Repository(dir), &why);
                    continue;
                }
            };
            let copy = Candidate {
                source: Source::Repository(dir),
                lineage: LineageId(lineage.0),
                lsn: metadata.min_applied_lsn.0,
                term: metadata.term,
                tail,
            };
            // Entries at the end of a member's log may never have been committed.
            if self.goes_beyond_log(&copy) || !self.is_contradicted(&copy).await? {
                copies.push(copy);
            }
        }
        Ok(copies)
    }

    /// Fetches a snapshot and checks it; `None` if it is damaged.
    pub(super) async fn fetch(
        &mut self,
        repository: &Repository,
        copy: &Candidate,
    ) -> Result<Option<Checkpoint>, StartError> {
        let fetched = self.fetch_files(repository, copy).await?;
        let Some(checkpoint) = fetched else {
            return Ok(None);
        };
        let Err(error) = self.blocks(&checkpoint).await else {
            return Ok(Some(checkpoint));
        };
        if error.is_unreadable() {
            return Err(StartError::unreadable(copy.source.to_string(), &error));
        }
        self.snapshot_is_damaged(&copy.source, &error);
        Ok(None)
    }

    fn snapshot_is_damaged(&mut self, source: &Source, error: &dyn std::fmt::Display) {
        self.damage = true;
        let partition = self.facts.partition;
        tracing::warn!(partition, snapshot = %source, %error, "a snapshot is damaged: an older one is tried");
        metrics::counter!("esker_partition_store_snapshots_download_fallback_total").increment(1);
        self.tried.push(format!("{source}: {error}"));
    }

    async fn fetch_files(
        &mut self,
        repository: &Repository,
        copy: &Candidate,
    ) -> Result<Option<Checkpoint>, StartError> {
        let Source::Repository(dir) = &copy.source else {
            return Ok(None);
        };
        if self.is_ruled_out(&copy.source) {
            self.damage = true;
            return Ok(None);
        }
        let partition = self.facts.partition;
        let to = self.place(&dir.to_string());
        let metadata = match repository.describe(dir).await {
            Ok(metadata) => metadata,
            Err(error) => return Err(self.unreadable_repository(&error)),
        };
        let step = format!("comparing the files of {}", to.display());
        self.cx.activity.begin(step, metadata.bytes());
        let (there, of) = (to.clone(), metadata.clone());
        let fetched = (self.cx.attempts).blocking(move || fetched_before(&there, &of));
        if let Some(checkpoint) = fetched.await? {
            return Ok(Some(checkpoint));
        }
        tracing::info!(partition, snapshot = %dir, "Loading snapshot from {}", self.cx.archive.shown());
        let activity = &self.cx.activity;
        activity.begin(format!("fetching snapshot {dir}"), 0);
        let progress = Progress::new();
        let which = Which::Exactly(dir.clone());
        let result = tokio::select! {
            result = repository.restore(&which, &to, &progress) => result,
            never = report_on(partition, &progress) => match never {},
            never = show_progress(activity, &progress) => match never {},
        };
        match result {
            Ok(found) => {
                let checkpoint = restored(found.dir(), found.metadata());
                match checkpoint {
                    Ok(checkpoint) => Ok(Some(checkpoint)),
                    Err(why) => {
                        self.tried.push(format!("repository snapshot {dir}: {why}"));
                        Ok(None)
                    }
                }
            }
            Err(
                error @ (RepositoryError::Damaged { .. }
                | RepositoryError::Missing { .. }
                | RepositoryError::NoSnapshot(_)
                | RepositoryError::Unusable(_)),
            ) => {
                let error = match error {
                    // Only this snapshot was tried.
                    RepositoryError::Unusable(mut tried) if tried.len() == 1 => *tried.remove(0).1,
                    other => other,
                };
                self.snapshot_is_damaged(&copy.source, &error);
                Ok(None)
            }
            Err(error) => Err(self.unreadable_repository(&error)),
        }
    }
}

/// Reports the progress of a restore.
async fn report_on(partition: u64, progress: &Progress) -> std::convert::Infallible {
    loop {
        tokio::time::sleep(REPORT_INTERVAL).await;
        tracing::info!(
            partition,
            files = progress.files_done(),
            of_files = progress.files(),
            bytes = progress.bytes_done(),
            of_bytes = progress.bytes(),
            "Loading snapshot"
        );
    }
}

/// Notes the progress of a restore.
async fn show_progress(activity: &Activity, progress: &Progress) -> std::convert::Infallible {
    let mut last = 0;
    loop {
        tokio::time::sleep(LOOK_INTERVAL).await;
        // Bytes that were fetched, and files that were there already.
        let done = progress.bytes_done() + progress.files_done();
        if done != last {
            activity.progress();
            last = done;
        }
    }
}

/// A snapshot that an earlier start has fetched, if it is whole; otherwise its place is prepared.
fn fetched_before(
    to: &Path,
    metadata: &SnapshotMetadata,
) -> Result<Option<Checkpoint>, StartError> {
    if to.exists() {
        if let Ok(checkpoint) = restored(to, metadata)
            && checkpoint.verify().is_ok()
        {
            return Ok(Some(checkpoint));
        }
        remove(to)?;
    }
    let Some(parent) = to.parent() else {
        return Ok(None);
    };
    let created = std::fs::create_dir_all(parent).map_err(|source| StartError::Io {
        operation: "creating",
        path: parent.to_owned(),
        source,
    });
    created.map(|()| None)
}
