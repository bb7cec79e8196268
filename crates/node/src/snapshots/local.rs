//! The newest checkpoint of each partition, on this disk.
//!
//! The floor is its LSN: the log need not reach back beyond it. A checkpoint that a newer one has replaced
//! is removed as soon as no reader uses it.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use esker_partition::{Checkpoint, checkpoint};
use esker_raft::{GroupId, SnapshotData, SnapshotError, SnapshotSink, StoredSnapshot};
use parking_lot::Mutex;

use crate::data_dir::DataDir;

/// A checkpoint that is in use.
#[derive(Debug)]
pub(crate) struct Held {
    pub checkpoint: Checkpoint,
    replaced: AtomicBool,
}

impl Drop for Held {
    fn drop(&mut self) {
        if self.replaced.load(Ordering::Acquire)
            && let Err(error) = std::fs::remove_dir_all(&self.checkpoint.dir)
        {
            tracing::warn!(dir = %self.checkpoint.dir.display(), %error, "an old checkpoint was not removed");
        }
    }
}

/// Failed attempts since the last success.
#[derive(Debug)]
struct Failing {
    /// Why the last attempt failed.
    why: String,
    times: u64,
}

/// The newest checkpoint of each partition.
#[derive(Debug)]
pub(crate) struct LocalSnapshots {
    /// The directory of all checkpoints.
    base: PathBuf,
    newest: Vec<Mutex<Option<Arc<Held>>>>,
    failures: Vec<Mutex<Option<Failing>>>,
    /// What is not needed once the start has succeeded.
    stale: Mutex<Vec<Stale>>,
}

/// How a checkpoint fits the database at a start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fit {
    /// It is of the database's lineage, and may be the partition's checkpoint.
    Usable,
    /// It cannot be used, and the database has all that is in it.
    Superseded,
    /// It has what the database does not have, as far as is known.
    HasMore,
}

/// A checkpoint that is not used.
#[derive(Debug)]
struct Stale {
    partition: u64,
    dir: PathBuf,
    /// Whether the database has all that is in it.
    is_superseded: bool,
}

impl LocalSnapshots {
    /// Opens the checkpoints of partitions 0 to `partitions`, and removes those that a crash left
    /// unfinished. The newest that is usable becomes the partition's checkpoint; the others stay until
    /// [`LocalSnapshots::remove_stale`].
    pub fn open(
        base: PathBuf,
        partitions: u32,
        fit: impl Fn(u64, &Checkpoint) -> Fit,
    ) -> LocalSnapshots {
        let (mut newest, mut stale) = (Vec::new(), Vec::new());
        for partition in 0..=u64::from(partitions) {
            let dir = base.join(partition.to_string());
            if let Err(error) = checkpoint::remove_unfinished(&dir) {
                tracing::warn!(%error, "an unfinished checkpoint was not removed");
            }
            let mut found: Option<Arc<Held>> = None;
            let there = checkpoint::all(&dir).unwrap_or_else(|error| {
                tracing::warn!(%error, "the checkpoints of partition {partition} were not looked at");
                Vec::new()
            });
            for dir in there {
                let opened = Checkpoint::open(&dir);
                let fits = match &opened {
                    Ok(checkpoint) => fit(partition, checkpoint),
                    Err(error) if error.is_unreadable() => {
                        tracing::warn!(%error, "a checkpoint was not looked at, and stays");
                        continue;
                    }
                    // A file is damaged or missing. What is left of it may be all that is left.
                    Err(_) => match Checkpoint::described(&dir) {
                        Ok(described) if fit(partition, &described) != Fit::HasMore => {
                            Fit::Superseded
                        }
                        _ => Fit::HasMore,
                    },
                };
                match opened {
                    Ok(checkpoint) if found.is_none() && fits == Fit::Usable => {
                        found = Some(Arc::new(Held::new(checkpoint)));
                    }
                    _ => stale.push(Stale {
                        partition,
                        dir,
                        is_superseded: fits != Fit::HasMore,
                    }),
                }
            }
            newest.push(Mutex::new(found));
        }
        let failures = newest.iter().map(|_| Mutex::new(None)).collect();
        LocalSnapshots {
            base,
            newest,
            failures,
            stale: Mutex::new(stale),
        }
    }

    /// Removes the checkpoints that were found and are not used; those that have what the database does not have
    /// are put aside. To be called when everything has been replayed: until then the database may turn out to be
    /// damaged, and an older checkpoint be needed. Blocking.
    pub fn remove_stale(&self, data_dir: &DataDir) {
        let in_use: Vec<PathBuf> = self
            .newest
            .iter()
            .filter_map(|one| Some(one.lock().as_ref()?.checkpoint.dir.clone()))
            .collect();
        for stale in self.stale.lock().drain(..) {
            let Stale { partition, dir, .. } = stale;
            if in_use.contains(&dir) {
                continue;
            }
            if stale.is_superseded {
                if let Err(error) = std::fs::remove_dir_all(&dir) {
                    tracing::warn!(dir = %dir.display(), %error, "an old checkpoint was not removed");
                }
                continue;
            }
            match data_dir.put_checkpoint_aside(partition, &dir) {
                Ok(aside) => tracing::warn!(
                    partition,
                    snapshot = %dir.display(),
                    aside = %aside.display(),
                    "a local snapshot that is not used was put aside: it may have what nothing else has; remove it when you no longer want it"
                ),
                Err(error) => {
                    tracing::warn!(dir = %dir.display(), %error, "a local snapshot was not put aside");
                }
            }
        }
    }

    /// The newest checkpoint of a partition.
    pub fn newest(&self, partition: u64) -> Option<Arc<Held>> {
        self.newest.get(partition as usize)?.lock().clone()
    }

    /// The checkpoint of a stored snapshot, or a newer one that has replaced it meanwhile.
    pub fn covering(&self, partition: u64, taken: &StoredSnapshot) -> Option<Arc<Held>> {
        let newest = self.newest(partition)?;
        (newest.checkpoint.meta.lsn >= taken.last_included_index.0).then_some(newest)
    }

    /// Why the last attempt failed, if it did.
    pub fn failure(&self, partition: u64) -> Option<String> {
        let failing = self.failures.get(partition as usize)?.lock();
        failing.as_ref().map(|failing| failing.why.clone())
    }

    fn replace(&self, partition: u64, checkpoint: Checkpoint) {
        let Some(place) = self.newest.get(partition as usize) else {
            return;
        };
        let mut place = place.lock();
        if place
            .as_ref()
            .is_some_and(|held| held.checkpoint.dir == checkpoint.dir)
        {
            return;
        }
        let new = Arc::new(Held::new(checkpoint));
        if let Some(old) = place.replace(new) {
            old.replaced.store(true, Ordering::Release);
        }
    }
}

impl Held {
    fn new(checkpoint: Checkpoint) -> Held {
        Held {
            checkpoint,
            replaced: AtomicBool::new(false),
        }
    }
}

impl SnapshotSink for LocalSnapshots {
    fn taken(&self, group: GroupId, snapshot: &StoredSnapshot) {
        let SnapshotData::Files(dir) = &snapshot.data else {
            return;
        };
        match Checkpoint::open(&dir.path) {
            Ok(checkpoint) => {
                tracing::debug!(
                    partition = group.0,
                    lsn = checkpoint.meta.lsn,
                    files = checkpoint.meta.files.len(),
                    "a local snapshot was taken"
                );
                if let Some(failing) = self.failures[group.0 as usize].lock().take() {
                    tracing::info!(
                        partition = group.0,
                        failed = failing.times,
                        "local snapshots are taken again"
                    );
                }
                self.replace(group.0, checkpoint);
            }
            Err(error) => {
                tracing::error!(%error, base = %self.base.display(), "a checkpoint that was just made cannot be read")
            }
        }
    }

    fn failed(&self, group: GroupId, error: &SnapshotError) {
        let Some(place) = self.failures.get(group.0 as usize) else {
            return;
        };
        let mut place = place.lock();
        let times = place.as_ref().map_or(0, |failing| failing.times) + 1;
        *place = Some(Failing {
            why: error.to_string(),
            times,
        });
        drop(place);
        // Consecutive failures have one cause: only the 1st, 2nd, 4th, 8th and so on are logged.
        match times.is_power_of_two() {
            true => tracing::warn!(
                partition = group.0,
                %error,
                times,
                "no local snapshot was taken; the log is kept"
            ),
            false => {
                tracing::debug!(partition = group.0, %error, times, "no local snapshot was taken")
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::data_dir::{Identity, LockedDir};

    /// Writes the description of a checkpoint of partition 0.
    fn describe(base: &Path, lsn: u64, description: &str) {
        let dir = base.join(format!("0/lsn_{lsn:020}"));
        std::fs::create_dir_all(&dir).unwrap();
        std::fs::write(dir.join("checkpoint.json"), description).unwrap();
    }

    fn described(lsn: u64, files: &[&str]) -> String {
        let file = |name: &&str| {
            serde_json::json!({
                "name": name, "size": 1, "level": 0, "start_key": null, "end_key": null, "smallest_seqno": 0,
                "largest_seqno": 0, "num_entries": 1, "num_deletions": 0,
            })
        };
        let files: Vec<_> = files.iter().map(file).collect();
        serde_json::json!({
            "format": 1, "partition": 0, "lsn": lsn, "term": 1, "voters": [1], "learners": [],
            "lineage": "1", "comparator": "", "files": files,
        })
        .to_string()
    }

    #[test]
    fn a_local_snapshot_is_removed_only_if_the_database_has_all_of_it() {
        let dir = tempfile::tempdir().unwrap();
        let locked = LockedDir::open(dir.path()).unwrap();
        let data_dir = locked.belonging_to(|| Identity::new("test", 1), 1).unwrap();
        let base = data_dir.checkpoints();
        // The database has everything up to 10.
        for lsn in [3, 5, 12] {
            describe(&base, lsn, &described(lsn, &[]));
        }
        // Damaged: a file is missing, or it cannot be known what it has.
        describe(&base, 4, &described(4, &["/1.sst"]));
        describe(&base, 13, &described(13, &["/1.sst"]));
        describe(&base, 6, "{");
        let fit = |_: u64, checkpoint: &Checkpoint| match checkpoint.meta.lsn {
            0..=10 => Fit::Usable,
            _ => Fit::HasMore,
        };
        let local = LocalSnapshots::open(base.clone(), 0, fit);
        assert_eq!(local.newest(0).unwrap().checkpoint.meta.lsn, 5);
        let left = || {
            let mut names: Vec<_> = checkpoint::all(&base.join("0"))
                .unwrap()
                .iter()
                .filter_map(|dir| checkpoint::lsn_of(dir))
                .collect();
            names.sort();
            names
        };
        assert_eq!(
            left(),
            [3, 4, 5, 6, 12, 13],
            "until the start has succeeded"
        );
        local.remove_stale(&data_dir);
        assert_eq!(left(), [5]);
        let mut aside = data_dir.checkpoints_aside(0).unwrap();
        aside.sort();
        let read = |dir: &PathBuf| std::fs::read_to_string(dir.join("checkpoint.json")).unwrap();
        let mut kept: Vec<String> = aside.iter().map(read).collect();
        kept.sort();
        let mut wanted = [
            described(12, &[]),
            described(13, &["/1.sst"]),
            "{".to_owned(),
        ];
        wanted.sort();
        assert_eq!(kept, wanted);
    }
}
