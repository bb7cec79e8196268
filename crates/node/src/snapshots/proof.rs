//! Proves that a snapshot restores, by restoring it.
//!
//! The snapshot is restored into a scratch directory and imported into a database of its own, the log after
//! it is replayed up to the applied LSN of the live partition, and the digests of both are compared. Nothing
//! that is in use is changed; it costs the space of the snapshot, and reading the live partition once.

use std::path::{Path, PathBuf};
use std::time::Instant;

use esker_partition::digest::PartitionDigest;
use esker_partition::streams::StreamOptions;
use esker_partition::{
    Catalog, Checkpoint, LineageId, PartitionId, Store, StoreOptions, StreamPartition,
};
use esker_raft::{GroupId, Lsn, StateMachine};
use esker_repository::{Error as RepositoryError, Progress, Repository, Root, SnapshotDir, Which};
use time::OffsetDateTime;

use super::archive::restored;
use super::state::Proof;
use crate::blocking::blocking;
use crate::core::Inner;
use crate::error::Error;

/// Bytes of log that are read at a time.
const CHUNK: u64 = 4 << 20;
/// Bytes of memory of the scratch database: for blocks, and for each of two memtables.
const MEMORY: usize = 16 << 20;

/// A directory that is removed on drop.
struct Scratch {
    dir: PathBuf,
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_dir_all(&self.dir)
            && error.kind() != std::io::ErrorKind::NotFound
        {
            tracing::warn!(dir = %self.dir.display(), %error, "a scratch directory was not removed");
        }
    }
}

impl Inner {
    pub(crate) async fn prove_and_note(
        &self,
        partition: u64,
        snapshot: Option<&str>,
    ) -> Result<Proof, Error> {
        let result = self.prove(partition, snapshot).await;
        let mut known = self.snapshots.known[partition as usize].lock();
        match &result {
            Ok(proof) => {
                tracing::info!(
                    partition,
                    snapshot = proof.snapshot,
                    compared_at = proof.compared_at,
                    restore = ?proof.restore,
                    replay = ?proof.replay,
                    "a snapshot was restored, brought up to date and found equal"
                );
                known.proof_failure = None;
                if known.proven.as_ref().is_none_or(|p| p.lsn <= proof.lsn) {
                    known.proven = Some(proof.clone());
                }
            }
            Err(Error::Storage(why)) => {
                tracing::error!(partition, why, "a snapshot does not restore");
                known.proof_failure = Some(why.clone());
                known.force_full = true;
                // It finds out which objects are damaged, and repairs them.
                known.scrub.want();
            }
            Err(_) => {}
        }
        result
    }

    async fn prove(&self, partition: u64, snapshot: Option<&str>) -> Result<Proof, Error> {
        let begun = Instant::now();
        let scratch = Scratch {
            dir: self
                .data_dir
                .scratch()
                .join(format!("{partition}-{}", rand::random::<u32>())),
        };
        let snapshots = &self.snapshots;
        let repository = snapshots.archive.repository(&snapshots.identity, partition);
        let later = |e: esker_repository::Error| match e {
            e if e.is_damage() => Error::Storage(e.to_string()),
            e @ esker_repository::Error::Unusable(_) => Error::Storage(e.to_string()),
            e => e.into(),
        };
        let root = repository.root().await.map_err(later)?;
        let dir = find(&repository, &root, snapshot)?;
        let live = self.partition_db(partition).clone();
        let ours = live.lineage()?.id();
        let metadata = repository.describe(&dir).await.map_err(later)?;
        let its = metadata.lineage.map(|lineage| LineageId(lineage.0));
        if its != Some(ours) {
            return Err(Error::EarlierLineage {
                snapshot: dir.to_string(),
                its: its.map_or_else(|| "unknown".to_owned(), |its| its.to_string()),
                ours: ours.to_string(),
            });
        }
        let in_place = self.data_dir.check_in_place(&self.options.data_dir);
        in_place.map_err(|e| Error::TryLater(e.to_string()))?;
        std::fs::create_dir_all(&scratch.dir).map_err(|e| Error::TryLater(e.to_string()))?;
        let to = scratch.dir.join("files");
        let found = repository
            .restore(&Which::Exactly(dir.clone()), &to, &Progress::new())
            .await
            .map_err(later)?;
        let checkpoint = restored(found.dir(), found.metadata()).map_err(Error::Storage)?;
        let bytes = checkpoint.bytes();
        let group = self.group(partition).clone();
        let reader = self.raft.log().reader(GroupId(partition));
        let db = scratch.dir.join("db");
        let compared = blocking(move || {
            let store = import(&db, partition, &checkpoint)?;
            let restore = begun.elapsed();
            let expected = live.digest().map_err(|e| Error::TryLater(e.to_string()))?;
            let begun = Instant::now();
            let from = checkpoint.meta.lsn;
            let replayed = replay(&store, partition, from, expected.lsn, &*reader);
            let start = group.status().log_start.0;
            let replayed = match replayed {
                // The log was trimmed meanwhile, or before: the result would prove nothing about the
                // snapshot.
                Err(_) if start > from => Err(Error::TryLater(format!(
                    "the log begins after LSN {start} by now, and the snapshot ends at {from}: test a newer one"
                ))),
                other => other,
            }?;
            let replay = begun.elapsed();
            let part = store.partition_db(PartitionId(partition));
            let found = part.digest().map_err(|e| Error::Storage(e.to_string()))?;
            store.close();
            Ok::<_, Error>((restore, replay, replayed, expected, found))
        });
        let (restore, replay, replayed, expected, found) = compared.await?;
        drop(scratch);
        compare(&dir.to_string(), &expected, &found)?;
        snapshots.rates.restored(bytes, restore);
        Ok(Proof {
            partition,
            snapshot: dir.to_string(),
            lsn: dir.lsn.0,
            compared_at: expected.lsn,
            digest: format!("{:032x}", expected.digest),
            bytes,
            replayed,
            restore,
            replay,
            at: OffsetDateTime::now_utc(),
        })
    }
}

/// The snapshot of a name, an id or an LSN; the newest retained one, if none is named.
pub(super) fn find(
    repository: &Repository,
    root: &Root,
    name: Option<&str>,
) -> Result<SnapshotDir, Error> {
    match (name, root.retained_snapshots.first()) {
        (Some(name), _) => Ok(repository.find(root, name)?),
        (None, Some(newest)) => Ok(newest.dir()),
        (None, None) => Err(RepositoryError::Unusable(Vec::new()).into()),
    }
}

fn import(db: &Path, partition: u64, checkpoint: &Checkpoint) -> Result<Store, Error> {
    // A failure of the scratch database proves nothing about the snapshot.
    let options = StoreOptions {
        block_cache: MEMORY,
        write_buffer: MEMORY,
        write_buffers_total: 2 * MEMORY,
        ..StoreOptions::default()
    };
    let store = Store::open_any(db, &options)
        .map_err(|e| Error::TryLater(format!("a scratch database: {e}")))?;
    store
        .import(PartitionId(partition), checkpoint)
        .map_err(|e| Error::Storage(format!("the snapshot cannot be imported: {e}")))?;
    Ok(store)
}

/// Applies the entries after `from`, up to and including `to`; returns their number.
fn replay(
    store: &Store,
    partition: u64,
    from: u64,
    to: u64,
    log: &dyn esker_raft::engine::LogReader,
) -> Result<u64, Error> {
    if partition == 0 {
        let machine = Catalog::open(store)?;
        return replay_into(machine, from, to, log);
    }
    let options = StreamOptions::default();
    let machine = StreamPartition::open(store, PartitionId(partition), options)?;
    replay_into(machine, from, to, log)
}

fn replay_into<M: StateMachine>(
    mut machine: M,
    from: u64,
    to: u64,
    log: &dyn esker_raft::engine::LogReader,
) -> Result<u64, Error> {
    let broken = |why: String| Error::Storage(format!("the log after the snapshot: {why}"));
    let mut next = from + 1;
    let mut outputs = Vec::new();
    while next <= to {
        let entries = log
            .entries(Lsn(next), Lsn(to + 1), CHUNK)
            .map_err(|e| match e.is_unreadable() {
                // An unreadable file proves nothing about the snapshot.
                true => Error::TryLater(e.to_string()),
                false => broken(e.to_string()),
            })?
            .into_committed()
            .map_err(broken)?;
        for step in entries.chunks(1024) {
            outputs.clear();
            machine
                .apply(step, &mut outputs)
                .map_err(|e| broken(e.to_string()))?;
        }
        match entries.last() {
            Some(last) => next = last.lsn.0 + 1,
            None => return Err(broken(format!("there is no entry at LSN {next}"))),
        }
    }
    Ok(to.saturating_sub(from))
}

fn compare(name: &str, live: &PartitionDigest, found: &PartitionDigest) -> Result<(), Error> {
    if (live.lsn, live.lineage, live.digest) == (found.lsn, found.lineage, found.digest) {
        return Ok(());
    }
    Err(Error::Storage(format!(
        "snapshot {name}, restored and brought up to date, differs from the live partition: \
         at LSN {} of lineage {} with digest {:032x}, and the partition is at LSN {} of lineage {} with digest {:032x}",
        found.lsn, found.lineage, found.digest, live.lsn, live.lineage, live.digest
    )))
}
