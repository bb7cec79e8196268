//! Retention: deletes at once what a commit has removed from the root.
//!
//! Files are deleted first, and the description last and only if all files were deleted, so that after an
//! interrupted deletion the description still names the snapshot's files. What cannot be deleted is left to
//! the sweep. If the description of a snapshot that must stay cannot be read, nothing is deleted.

use serde::Serialize;

use crate::error::Error;
use crate::layout::SnapshotDir;
use crate::repository::{CurrentRoot, Repository};
use crate::root::{Retained, Root};
use crate::store::Store;

/// What was deleted because newer snapshots replaced it.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Retention {
    /// Snapshots that are not retained any more.
    pub evicted: Vec<String>,
    /// Objects deleted.
    pub deleted: u64,
    /// Objects that could not be deleted; a sweep deletes them.
    pub failed: u64,
}

impl Repository {
    /// Deletes what a swap from `before` to `after` has removed from the root.
    pub(crate) async fn retain(
        &self,
        store: &Store,
        before: &Root,
        after: &CurrentRoot,
    ) -> Retention {
        let evicted: Vec<SnapshotDir> = before
            .retained_snapshots
            .iter()
            .filter(|r| !after.retains(&r.snapshot_id))
            .map(Retained::dir)
            .collect();
        let mut report = Retention {
            evicted: evicted.iter().map(ToString::to_string).collect(),
            ..Retention::default()
        };
        // Without a number, the sweep deletes older snapshots, by their age.
        if self.options.num_retained.is_none() || evicted.is_empty() {
            return report;
        }
        if let Err(error) = self
            .delete_evicted(store, &evicted, after, &mut report)
            .await
        {
            tracing::warn!(
                partition = %self.partition,
                %error,
                "Snapshots that are retained no more are not deleted now"
            );
        }
        report
    }

    async fn delete_evicted(
        &self,
        store: &Store,
        evicted: &[SnapshotDir],
        after: &Root,
        report: &mut Retention,
    ) -> Result<(), Error> {
        let mut descriptions = Vec::new();
        for dir in evicted {
            descriptions.push(self.read_description(store, dir).await);
        }
        let refs = self.refs(store, after).await?;
        for (dir, description) in evicted.iter().zip(descriptions) {
            let description = match description {
                Ok(description) => description,
                Err(error) => {
                    tracing::warn!(%error, "An old snapshot is left to the sweep");
                    continue;
                }
            };
            if refs.contains(&dir.metadata()) {
                // It is pinned or abandoned.
                continue;
            }
            let mut files: Vec<String> = description
                .files
                .iter()
                .map(|f| description.key_of(f))
                .filter(|key| !refs.contains(key))
                .collect();
            files.sort();
            files.dedup();
            let count = files.len() as u64;
            let failed = store.delete(files).await;
            report.deleted += count - failed.len() as u64;
            report.failed += failed.len() as u64;
            if let Some((_, error)) = failed.first() {
                tracing::warn!(%error, "Files of an old snapshot are left to the sweep");
                continue;
            }
            match store.delete(vec![dir.metadata()]).await.first() {
                None => report.deleted += 1,
                Some((_, error)) => {
                    report.failed += 1;
                    tracing::warn!(%error, "The description of an old snapshot is left to the sweep");
                }
            }
        }
        Ok(())
    }
}
