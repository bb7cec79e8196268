//! Puts JSON snapshots into the repository, beside the partitions' snapshots.

use std::sync::{Arc, Weak};
use std::time::Duration;

use super::Shared;
use super::error::FileError;
use super::files::name_of;
use super::progress::BACKOFF;
use crate::blocking::blocking;
use crate::core::Inner;
use crate::signal::pause;

/// How often the repository is compared with the local snapshots when no new one is written.
const ARCHIVE_INTERVAL: Duration = Duration::from_secs(60);

pub(super) async fn keep_archived(inner: Weak<Inner>) {
    let mut wait = Duration::ZERO;
    let mut failures = 0;
    while let Some(inner) = inner.upgrade() {
        if !pause(&inner.stopping, Some(&inner.state.wake_archive), wait).await {
            return;
        }
        let partition = inner.state.partition.0;
        let may_archive = inner.leads(partition) && !inner.is_withheld(partition);
        if !may_archive || !inner.state.has_repository(&inner) {
            wait = BACKOFF.0;
            continue;
        }
        // As before each put of a partition: a disk may have been unmounted.
        let owner = inner.snapshots.archive.check_owner(&inner.identity).await;
        let archived = match owner {
            Ok(()) => inner.state.archive_new(&inner).await,
            Err(error) => Err(error.to_string()),
        };
        wait = match archived {
            Ok(()) => {
                failures = 0;
                ARCHIVE_INTERVAL
            }
            Err(why) => {
                failures += 1;
                metrics::counter!("esker_state_snapshots_archive_failed_total").increment(1);
                tracing::warn!(%why, "a snapshot of the state store was not put into the repository: it is tried again");
                (BACKOFF.0 * 2u32.saturating_pow(failures - 1)).min(BACKOFF.1)
            }
        };
    }
}

impl Shared {
    /// Whether the repository is known to belong to this cluster: it has a snapshot of the store's
    /// partition. In another cluster's repository the numbers of commits have another meaning, so nothing is
    /// put or removed there.
    fn has_repository(&self, inner: &Inner) -> bool {
        let partition = usize::try_from(self.partition.0).unwrap_or(usize::MAX);
        let known = inner.snapshots.known.get(partition);
        known.is_some_and(|known| known.lock().is_ours())
    }

    /// Puts the snapshots that the repository lacks, and removes those that are too old.
    async fn archive_new(&self, inner: &Arc<Inner>) -> Result<(), String> {
        let Some(archive) = &self.archive else {
            return Ok(());
        };
        let retained = self.options.snapshots_retained.max(1) as usize;
        let there = archive.list().await.map_err(|e| e.to_string())?;
        let this = inner.clone();
        let here = blocking(move || this.state.inspect_files()).await;
        if here.is_empty() && there.is_empty() {
            return Ok(());
        }
        // The names of objects are numbers of commits, which a copy of this data directory gives out as
        // well.
        inner.claim_for(self.partition.0).await?;
        for commit_ts in here.into_iter().take(retained).rev() {
            let path = self.files.path(commit_ts);
            let archived = there.iter().find(|one| one.commit_ts == commit_ts);
            if let Some(one) = archived
                && let Ok(metadata) = std::fs::metadata(&path)
                && let Ok(sum) = std::fs::read_to_string(self.files.sum_path(commit_ts))
                && (archive.is(one, metadata.len(), &sum).await).map_err(|e| e.to_string())?
            {
                continue;
            }
            let files = self.files.clone();
            // A file that was changed on this disk must not replace an archived object.
            let written = match blocking(move || files.check(commit_ts)).await {
                Ok((written, _)) => written,
                // The file was removed in the meantime.
                Err(FileError::Unreadable(e)) if e.kind() == std::io::ErrorKind::NotFound => {
                    continue;
                }
                Err(why) => {
                    tracing::warn!(
                        commit_ts,
                        %why,
                        "a snapshot of the state store cannot be used and is not archived"
                    );
                    continue;
                }
            };
            if let Some(one) = archived {
                let may_replace = archive.may_replace(one, &written.header.lineage).await;
                if !may_replace.map_err(|e| e.to_string())? {
                    continue;
                }
            }
            let bytes = written.bytes;
            // A file without a checksum on this disk is put with the checksum of what was read.
            let put = archive.put(commit_ts, &path, written.sum_line());
            match put.await {
                Ok(()) => {
                    metrics::counter!("esker_state_snapshots_archived_total").increment(1);
                    tracing::info!(
                        commit_ts,
                        bytes,
                        to = archive.shown(),
                        "a snapshot of the state store was archived"
                    );
                }
                // The file was removed in the meantime.
                Err(e) if e.kind() == std::io::ErrorKind::NotFound && !path.exists() => {}
                Err(e) => return Err(e.to_string()),
            }
        }
        let newest = self.reader.meta().commit_ts;
        let kept = archive.retain(retained, &self.lineage, newest).await;
        let others = kept.map_err(|e| e.to_string())?;
        if *self.others_archived.lock() != others {
            for (commit_ts, why) in &others {
                tracing::warn!(
                    snapshot = name_of(*commit_ts),
                    why,
                    repository = archive.shown(),
                    "an archived snapshot is not of this state store as it is now, and is not removed: \
                     fetch it and import it with `esker state import` if it has what is wanted, or remove it"
                );
            }
            *self.others_archived.lock() = others;
        }
        Ok(())
    }
}
