//! Reading and claiming a partition's root in the repository.

use esker_partition::LineageId;
use esker_partition::command::Outcome;
use esker_raft::{Group, Lsn};
use esker_repository::{CurrentRoot, Error as RepositoryError, Repository};

use super::archive::log_tail;
use super::failure::Failure;
use super::state::{CreatedSnapshot, RepositoryState};
use crate::blocking::blocking;
use crate::clock::past_age;
use crate::core::Inner;
use crate::recovery::{Candidate, Source, Witness};

/// Reads what the repository has; whether that is known now.
pub(super) async fn inspect(
    inner: &Inner,
    partition: u64,
    repository: &Repository,
    group: &Group<Outcome>,
) -> bool {
    let place = &inner.snapshots.known[partition as usize];
    match repository.root().await {
        Ok(root) => {
            let lineage = inner.part(partition).lineage().ok();
            let ours = lineage.map(|l| super::lineage_id(l.id()));
            let of_others = check_history(inner, partition, repository, &root)
                .await
                .err();
            let of_catalog = match partition {
                0 => None,
                _ => inner.snapshots.known[0].lock().other_writer(),
            };
            let mut known = place.lock();
            if root.lineage.is_some() && root.lineage != ours {
                let why = format!(
                    "{} has gone on with lineage {}: this node is of a stale lineage, and what is appended here is not kept anywhere else. Stop it, and restore from the repository into an empty directory",
                    inner.snapshots.archive.shown(),
                    root.lineage.map(|l| l.to_string()).unwrap_or_default(),
                );
                tracing::error!(partition, why);
                known.failed(Failure::other_lineage(why.clone()));
                answer(&mut known, &Err(why));
                return false;
            }
            if let Err(error) = repository.check_writer(&root) {
                let failure = Failure::of(&error);
                tracing::error!(partition, error = %failure, "no snapshots are put into the repository");
                answer(&mut known, &Err(failure.to_string()));
                known.failed(failure);
                return false;
            }
            if let Some(failure) = of_catalog.or(of_others) {
                tracing::error!(partition, error = %failure, "no snapshots are put into the repository");
                answer(&mut known, &Err(failure.to_string()));
                known.failed(failure);
                return false;
            }
            inner.snapshots.archive.note_root(partition, &root);
            known.note_root(&root);
            if let Some(newest) = known.newest().map(|newest| newest.lsn) {
                known.empty = (newest, inner.count_empty(partition, newest));
            }
            if let Some(newest) = known.newest()
                && past_age(newest.created_at).is_none()
            {
                tracing::warn!(
                    partition,
                    created_at = %newest.created_at,
                    "the newest snapshot is from the future: a clock was ahead, or this one is behind; the next one is due at once"
                );
            }
            known.succeeded();
            keep(group, &known);
            true
        }
        Err(RepositoryError::NoRoot { others: false, .. }) => {
            // Nothing at all is what a disk that is not mounted has.
            let archive = &inner.snapshots.archive;
            let owner = archive.check_owner(&inner.snapshots.identity).await;
            let mut known = place.lock();
            if let Err(error) = owner {
                let failure = Failure::of(&error);
                tracing::warn!(partition, error = %failure, "no snapshots are put into the repository");
                answer(&mut known, &Err(failure.to_string()));
                known.failed(failure);
                return false;
            }
            known.looked = true;
            known.retained.clear();
            true
        }
        Err(error) => {
            tracing::warn!(partition, %error, "the repository could not be read");
            let mut known = place.lock();
            known.failed(Failure::of(&error));
            answer(&mut known, &Err(error.to_string()));
            false
        }
    }
}

/// Whether the newest snapshot is of the history that this node has. An older copy of this data directory
/// may follow the incarnation that has put it, and not have what is in it.
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
        // It is no way back, and says nothing.
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

/// The log is kept from the oldest retained snapshot on.
pub(super) fn keep(group: &Group<Outcome>, known: &RepositoryState) {
    if let Some(oldest) = known.oldest() {
        group.keep_from(Lsn(oldest.lsn));
    }
}

pub(super) fn answer(known: &mut RepositoryState, result: &Result<CreatedSnapshot, String>) {
    for asker in known.asked.drain(..) {
        let _ = asker.send(result.clone());
    }
}

impl Inner {
    /// Claims the catalog's root, before anything is put: of two copies of a data directory one puts the
    /// snapshots of all partitions, and never each some, which would be of two histories. A catalog that
    /// has no root yet, or whose root cannot be read, keeps nothing back: each partition's root is claimed
    /// by its own put as well.
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

    /// Makes sure that this start of the data directory, and no copy of it, writes for a partition.
    /// The root; none if there is none to be claimed.
    pub(super) async fn claim(&self, partition: u64) -> Result<Option<CurrentRoot>, Failure> {
        let archive = &self.snapshots.archive;
        let lineage = self.part(partition).lineage();
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

    /// As before each put of a partition, for what is put beside the partition's snapshots.
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
