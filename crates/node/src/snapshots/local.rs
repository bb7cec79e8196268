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
    /// Directories to remove once the start has succeeded.
    stale: Mutex<Vec<PathBuf>>,
}

impl LocalSnapshots {
    /// Opens the checkpoints of partitions 0 to `partitions`, and removes those that a crash left
    /// unfinished. The newest that fits `usable` becomes the partition's checkpoint; the others stay until
    /// [`LocalSnapshots::remove_stale`].
    pub fn open(
        base: PathBuf,
        partitions: u32,
        usable: impl Fn(u64, &Checkpoint) -> bool,
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
                match opened {
                    Ok(checkpoint) if found.is_none() && usable(partition, &checkpoint) => {
                        found = Some(Arc::new(Held::new(checkpoint)));
                    }
                    Err(error) if error.is_unreadable() => {
                        tracing::warn!(%error, "a checkpoint was not looked at, and stays");
                    }
                    // It is older, of another history, or not usable.
                    _ => stale.push(dir),
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

    /// Removes the checkpoints that were found and are not used. To be called when everything has been
    /// replayed: until then the database may turn out to be damaged, and an older checkpoint be needed.
    pub fn remove_stale(&self) {
        let in_use: Vec<PathBuf> = self
            .newest
            .iter()
            .filter_map(|one| Some(one.lock().as_ref()?.checkpoint.dir.clone()))
            .collect();
        for dir in self.stale.lock().drain(..) {
            if !in_use.contains(&dir)
                && let Err(error) = std::fs::remove_dir_all(&dir)
            {
                tracing::warn!(dir = %dir.display(), %error, "an old checkpoint was not removed");
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
