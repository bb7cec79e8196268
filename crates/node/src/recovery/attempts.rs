//! What the attempts of a start have found damaged.
//!
//! A start reads a few rows of the database before it decides that it can be used, and much more afterwards:
//! directories, and whatever replay needs. Damage that is met there, or in a copy that is used, ends the
//! attempt: it is noted durably, everything is closed, and the next attempt takes the next source of that
//! partition. Another attempt follows only if this one has ruled out a source, so there are at most as many
//! attempts as there are sources. A crash in between loses nothing: the note stays, and damage that it does
//! not name is found again.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use esker_partition::Store;
use esker_partition::command::Outcome;
use esker_partition::digest::ReplicaDigests;
use esker_partition::store::DamageReport;
use esker_raft::Group;
use parking_lot::Mutex;
use tokio_util::task::TaskTracker;

use super::candidates::Source;
use crate::blocking::blocking;
use crate::data_dir::DataDir;
use crate::error::StartError;

/// What is known of sources, in this start.
#[derive(Debug, Default)]
pub(super) struct Attempts {
    /// Damage that the database of the current attempt has met.
    pub met: DamageReport,
    known: Mutex<Known>,
    /// Work on other threads. It goes on if whoever waits for it is dropped, and keeps the database open.
    work: TaskTracker,
}

#[derive(Debug, Default)]
struct Known {
    /// The sources that the current attempt uses, but for databases that are used as they were.
    in_use: BTreeMap<u64, Source>,
    /// Sources that are damaged, and how that was found.
    ruled_out: Vec<(u64, Source, String)>,
    /// Whether the current attempt has ruled out any.
    has_ruled_out: bool,
    /// Local snapshots that are damaged.
    damaged_locals: BTreeSet<PathBuf>,
}

impl Attempts {
    /// Begins an attempt.
    pub fn begin(&self) {
        self.met.take();
        let mut known = self.known.lock();
        known.in_use.clear();
        known.has_ruled_out = false;
    }

    /// Runs blocking work of a search. It belongs to the attempt also if the search is dropped.
    pub async fn blocking<T: Send + 'static>(&self, f: impl FnOnce() -> T + Send + 'static) -> T {
        let token = self.work.token();
        blocking(move || {
            // It ends after all that the work has open.
            let _until_then = token;
            f()
        })
        .await
    }

    /// Waits until no work of the attempt is left. The next attempt would find the database in use, and files that
    /// vanish while it opens them.
    pub async fn finish_work(&self) {
        self.work.close();
        self.work.wait().await;
        self.work.reopen();
    }

    /// Notes that a partition is made from this source.
    pub fn uses(&self, partition: u64, source: &Source) {
        self.known.lock().in_use.insert(partition, source.clone());
    }

    /// Notes that this source is damaged: the next attempt takes another.
    pub fn rule_out(&self, partition: u64, source: Source, why: String) {
        let mut known = self.known.lock();
        let is_known = |(p, s, _): &(u64, Source, String)| *p == partition && *s == source;
        if !known.ruled_out.iter().any(is_known) {
            known.ruled_out.push((partition, source, why));
            known.has_ruled_out = true;
        }
    }

    /// Why a source must not be used, if it was ruled out.
    pub fn why_not(&self, partition: u64, source: &Source) -> Option<String> {
        let known = self.known.lock();
        let mut ruled_out = known.ruled_out.iter();
        let found = ruled_out.find(|(p, s, _)| *p == partition && s == source);
        found.map(|(_, _, why)| why.clone())
    }

    /// Notes that a local snapshot is damaged: the log is not trimmed because of it.
    pub fn local_is_damaged(&self, dir: &Path) {
        self.known.lock().damaged_locals.insert(dir.to_owned());
    }

    pub fn is_damaged_local(&self, dir: &Path) -> bool {
        self.known.lock().damaged_locals.contains(dir)
    }

    /// Notes durably what the attempt has met. Returns whether another attempt has a source left to try.
    pub fn note(&self, data_dir: &DataDir) -> Result<bool, StartError> {
        for (partition, why) in self.met.take() {
            let partition = partition.0;
            data_dir.report_damage(partition, &why)?;
            let in_use = self.known.lock().in_use.get(&partition).cloned();
            let source = in_use.unwrap_or(Source::Database);
            tracing::error!(
                partition,
                %source,
                why,
                "a file of the database is damaged: another copy of the partition is tried"
            );
            self.rule_out(partition, source, why);
        }
        Ok(self.known.lock().has_ruled_out)
    }
}

/// What an attempt has open. It is closed when this is dropped, unless the attempt succeeded: then the node
/// owns it.
#[derive(Default)]
pub(super) struct Opened {
    pub raft: Option<esker_raft::Node>,
    pub groups: Vec<Group<Outcome>>,
    pub digests: ReplicaDigests,
    pub store: Option<Store>,
}

impl Opened {
    /// Passes everything on to the node, which owns it from then on.
    pub fn hand_over(mut self) {
        self.raft = None;
        self.groups.clear();
        self.digests = ReplicaDigests::default();
        self.store = None;
    }
}

impl Drop for Opened {
    fn drop(&mut self) {
        for group in self.groups.drain(..) {
            group.stop();
        }
        self.digests.close();
        if let Some(raft) = self.raft.take() {
            raft.stop();
        }
        if let Some(store) = self.store.take() {
            store.close();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::sync::mpsc::channel;

    use super::*;

    #[tokio::test]
    async fn an_attempt_lasts_until_the_work_of_searches_that_were_dropped_is_done() {
        let attempts = Attempts::default();
        let (go_on, waits) = channel::<()>();
        // Stands for the open database.
        let open = Arc::new(AtomicBool::new(true));
        let closed = open.clone();
        let mut search = Box::pin(attempts.blocking(move || {
            waits.recv().unwrap();
            closed.store(false, Ordering::SeqCst);
        }));
        assert!(futures::poll!(&mut search).is_pending());
        drop(search);
        let mut finishing = Box::pin(attempts.finish_work());
        assert!(futures::poll!(&mut finishing).is_pending());
        go_on.send(()).unwrap();
        finishing.await;
        assert!(!open.load(Ordering::SeqCst));
        // The next attempt has work of its own.
        assert_eq!(attempts.blocking(|| 7).await, 7);
        attempts.finish_work().await;
    }
}
