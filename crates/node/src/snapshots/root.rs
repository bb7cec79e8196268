//! Reading and claiming a partition's root in the repository.

use esker_partition::LineageId;
use esker_repository::{CurrentRoot, Error as RepositoryError, Repository};

use super::archive::log_tail;
use super::archived_position::keep_log;
use super::failure::Failure;
use super::state::RepositoryState;
use crate::blocking::blocking;
use crate::clock::past_age;
use crate::core::Inner;
use crate::recovery::{Candidate, Source, Witness};

/// Reads what the repository has of a partition. Returns whether that is known now; if not, the failure was
/// noted, and given to the callers who wait for a snapshot.
pub(super) async fn read_root(inner: &Inner, partition: u64, repository: &Repository) -> bool {
    let archive = &inner.snapshots.archive;
    let prunes = inner.snapshots.known[partition as usize].lock().prunes;
    let read = match repository.root().await {
        Ok(root) => {
            let checked = check_root(inner, partition, repository, &root).await;
            checked
                .inspect_err(|failure| match failure.is_other_lineage() {
                    true => tracing::error!(partition, why = failure.what),
                    false => tracing::error!(partition, error = %failure, "no snapshots are put into the repository"),
                })
                .map(|()| Some(root))
        }
        // There is no root yet; or the disk of the repository is not mounted.
        Err(RepositoryError::NoRoot { others: false, .. }) => {
            let owner = archive.check_owner(&inner.snapshots.identity).await;
            owner
                .map_err(|error| Failure::of(&error))
                .inspect_err(|failure| tracing::warn!(partition, error = %failure, "no snapshots are put into the repository"))
                .map(|()| None)
        }
        Err(error) => {
            tracing::warn!(partition, %error, "the repository could not be read");
            Err(Failure::of(&error))
        }
    };
    // Before the lock, which requests take: this may write a file.
    if let Ok(Some(root)) = &read {
        archive.note_root(partition, root);
    }
    let mut known = inner.snapshots.known[partition as usize].lock();
    match read {
        Ok(Some(root)) => {
            known.note_root(&root);
            note_newest(inner, partition, &mut known);
            known.succeeded();
            keep_log(inner.group(partition), &mut known);
            // It may have been pruned after it was read: it is read again.
            known.looked = known.prunes == prunes;
            known.looked
        }
        Ok(None) => {
            known.looked = true;
            known.retained.clear();
            true
        }
        Err(failure) => {
            known.answer(&Err(failure.to_string()));
            known.failed(failure);
            false
        }
    }
}

/// Notes how many entries after the newest snapshot change nothing, and warns of a clock that was wrong.
fn note_newest(inner: &Inner, partition: u64, known: &mut RepositoryState) {
    let Some(newest) = known.newest().cloned() else {
        return;
    };
    known.empty = (newest.lsn, inner.count_empty(partition, newest.lsn));
    if past_age(newest.created_at).is_none() {
        tracing::warn!(
            partition,
            created_at = %newest.created_at,
            "the newest snapshot is from the future: a clock was ahead, or this one is behind; the next one is due at once"
        );
    }
}

/// Checks that this node may continue from a root: the root belongs to its lineage and history, and no other
/// copy of this node writes there.
async fn check_root(
    inner: &Inner,
    partition: u64,
    repository: &Repository,
    root: &CurrentRoot,
) -> Result<(), Failure> {
    let lineage = inner.partition_db(partition).lineage().ok();
    let ours = lineage.map(|l| super::lineage_id(l.id()));
    if root.lineage.is_some() && root.lineage != ours {
        return Err(Failure::other_lineage(format!(
            "{} has gone on with lineage {}: this node is of a stale lineage, and what is appended here is not kept anywhere else. Stop it, and restore from the repository into an empty directory",
            inner.snapshots.archive.shown(),
            root.lineage.map(|l| l.to_string()).unwrap_or_default(),
        )));
    }
    let writer = repository.check_writer(root);
    writer.map_err(|error| Failure::of(&error))?;
    // Of two copies of a data directory, only one puts the snapshots of all partitions.
    if partition != 0
        && let Some(failure) = inner.snapshots.known[0].lock().other_writer()
    {
        return Err(failure);
    }
    check_history(inner, partition, repository, root).await
}

/// Checks that the newest snapshot belongs to the history of this node. An older copy of this data directory
/// may follow the incarnation that has put the snapshot, and lack entries that the snapshot has.
pub(super) async fn check_history(
    inner: &Inner,
    partition: u64,
    repository: &Repository,
    root: &CurrentRoot,
) -> Result<(), Failure> {
    let Some(newest) = root.retained_snapshots.first().map(|newest| newest.dir()) else {
        return Ok(());
    };
    let metadata = match repository.describe(&newest).await {
        Ok(metadata) => metadata,
        // A damaged snapshot proves nothing about the history, and nor does one that is not understood.
        Err(RepositoryError::NewerFormat { .. }) => return Ok(()),
        Err(error) if error.is_damage() => return Ok(()),
        Err(error) => return Err(Failure::of(&error)),
    };
    let (Some(lineage), Ok(tail)) = (metadata.lineage, log_tail(&metadata)) else {
        return Ok(());
    };
    let copy = Candidate {
        term: metadata.term,
        tail,
        ..Candidate::at(
            Source::Repository(newest.clone()),
            LineageId(lineage.0),
            metadata.min_applied_lsn.0,
        )
    };
    let raft = inner.raft.clone();
    let compared = blocking(move || match Witness::of(&raft, partition)? {
        Some(witness) => witness.is_of_another_history(&copy),
        None => Ok(None),
    });
    match compared.await {
        Ok(None) => Ok(()),
        Ok(Some(why)) => Err(Failure::other_history(format!(
            "{newest} in {} is of another history than this node: {why}",
            inner.snapshots.archive.shown()
        ))),
        Err(error) => Err(Failure::here(error.to_string())),
    }
}

impl Inner {
    /// Claims the catalog's root before anything is put. So only one of two copies of a data directory puts
    /// the snapshots of all partitions, and the repository never has snapshots of both, which would be of
    /// two histories. A catalog without a root, or with one that cannot be read, prevents nothing: each put
    /// of a partition claims that partition's root as well.
    pub(super) async fn claim_catalog(&self) -> Result<(), Failure> {
        let begun = self.snapshots.archive.begin_to_write();
        begun.map_err(|e| Failure::here(e.to_string()))?;
        match self.claim(0).await {
            Err(failure) if failure.is_refusal() => {
                let mut known = self.snapshots.known[0].lock();
                known.looked = false;
                known.failed(failure.clone());
                Err(failure)
            }
            Err(failure) => {
                tracing::debug!(%failure, "the catalog's root is not claimed");
                Ok(())
            }
            Ok(_) => Ok(()),
        }
    }

    /// Claims the root for this start, so that no copy of the data directory writes for the partition.
    /// Returns the root; `None` if there is none to claim.
    pub(super) async fn claim(&self, partition: u64) -> Result<Option<CurrentRoot>, Failure> {
        let archive = &self.snapshots.archive;
        let lineage = self.partition_db(partition).lineage();
        let lineage = lineage.map_err(|e| Failure::here(e.to_string()))?;
        let repository = archive.repository(&self.snapshots.identity, partition);
        match repository.claim(super::lineage_id(lineage.id())).await {
            Ok(root) => {
                archive.note_root(partition, &root);
                Ok(Some(root))
            }
            Err(RepositoryError::NoRoot { others: false, .. }) => Ok(None),
            Err(error) => Err(Failure::of(&error)),
        }
    }

    /// Claims the roots as before a put of the partition, for objects that are put beside its snapshots.
    pub(crate) async fn claim_for(&self, partition: u64) -> Result<(), String> {
        let claimed = async {
            self.claim_catalog().await?;
            self.claim(partition).await.map(drop)
        };
        claimed.await.map_err(|failure| {
            let why = failure.to_string();
            if failure.is_refusal() {
                let mut known = self.snapshots.known[partition as usize].lock();
                known.looked = false;
                known.failed(failure);
            }
            why
        })
    }
}
