//! The tasks that make snapshots when they are due, test restores, and scrub.
//!
//! Snapshots are made of one partition at a time, so that memory and bandwidth are bounded by one upload.
//! What the repository retains is read at the start, and then known from each commit; the log is kept back
//! to the oldest retained snapshot. A repository that cannot be reached does not stop the node: it is tried
//! again after growing pauses, and the log grows up to its bound.
//!
//! The tasks have a runtime of their own, whose threads have a low priority: what they read, hash, sign and
//! send takes no processor time and no turn of the disk from appends.

use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use esker_raft::priority::{DiskPriority, lower_priority};
use esker_repository::destination::probe::probe;
use esker_repository::env::System;

use super::failure::Failure;
use super::load::Load;
use super::pacer::{Pacer, pace};
use super::root::read_root;
use super::schedule::due;
use super::scrub::scrub;
use super::snapshot_job::{make_snapshot, sweep_if_due};
use crate::core::Inner;
use crate::error::Error;

/// How often it is checked whether a snapshot is due.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// How often descriptions are forgotten that nobody has looked at meanwhile. Whoever turns the pages of a snapshot's
/// files needs them again within seconds.
const FORGET_INTERVAL: Duration = Duration::from_secs(60);

/// Threads on which the tasks read files and inspect databases: each file of an upload uses one.
const BLOCKING_THREADS: usize = 16;

/// How long a stop waits for the tasks: one that is between two waits ends at the next one.
const STOP_TIMEOUT: Duration = Duration::from_secs(1);
/// How often it looks whether they have ended.
const STOP_INTERVAL: Duration = Duration::from_millis(2);

/// The tasks.
#[derive(Debug)]
pub(crate) struct Uploader {
    tasks: Vec<tokio::task::JoinHandle<()>>,
    /// Taken when this is dropped.
    runtime: Option<tokio::runtime::Runtime>,
}

impl Uploader {
    pub fn start(inner: &Arc<Inner>) -> std::io::Result<Uploader> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .max_blocking_threads(BLOCKING_THREADS)
            .thread_name("uploads")
            // They also sync files, and the log's syncs may wait for the same journal.
            .on_thread_start(|| lower_priority(DiskPriority::Lowest))
            .enable_all()
            .build()?;
        let pacer = Pacer::new(inner);
        let inner = Arc::downgrade(inner);
        let tasks = vec![
            runtime.spawn(run(inner.clone())),
            runtime.spawn(test_restores(inner.clone())),
            runtime.spawn(scrub(inner.clone())),
            // On the runtime of appends: it is to be in time while uploads keep their threads busy.
            tokio::spawn(pace(inner, pacer)),
        ];
        Ok(Uploader {
            tasks,
            runtime: Some(runtime),
        })
    }

    /// Stops the tasks, and waits until they hold nothing of the node any more, for a short time at most. An
    /// upload under way leaves an intent behind, and its objects are swept.
    pub async fn stop(&self) {
        for task in &self.tasks {
            task.abort();
        }
        let deadline = tokio::time::Instant::now() + STOP_TIMEOUT;
        while !self.tasks.iter().all(tokio::task::JoinHandle::is_finished) {
            if tokio::time::Instant::now() >= deadline {
                return;
            }
            tokio::time::sleep(STOP_INTERVAL).await;
        }
    }
}

impl Drop for Uploader {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            // A thread that waits for a hanging disk or store is not awaited.
            runtime.shutdown_background();
        }
    }
}

async fn run(inner: Weak<Inner>) {
    let mut probed = false;
    let mut forgotten = Instant::now();
    loop {
        let Some(inner) = inner.upgrade() else {
            return;
        };
        if forgotten.elapsed() >= FORGET_INTERVAL {
            inner.snapshots.archive.forget_unused_descriptions();
            forgotten = Instant::now();
        }
        if !probed {
            probed = probe_once(&inner).await;
        }
        // It covers all partitions, so it is computed once a round.
        let load = inner.load();
        let applied = inner.all_applied();
        if !inner.is_catalog_ahead() {
            inner.note_named(&applied);
        }
        for partition in 0..inner.snapshots.known.len() as u64 {
            inner.follow_archived(partition);
            start_snapshot_if_due(&inner, partition, probed, load).await;
        }
        let woken = tokio::time::timeout(LOOK_EVERY, inner.snapshots.wake.notified());
        // A wake-up and the end of the wait are both a reason to check again.
        let _ = woken.await;
    }
}

/// Restores the newest snapshots into a scratch directory, one partition after the other, if that is
/// configured.
async fn test_restores(inner: Weak<Inner>) {
    // Each partition is tested once an interval, for the first time an interval after the start.
    let mut tested: Vec<Instant> = Vec::new();
    loop {
        tokio::time::sleep(LOOK_EVERY).await;
        let Some(inner) = inner.upgrade() else {
            return;
        };
        let Some(interval) = inner.options.snapshots.restore_test_interval else {
            return;
        };
        tested.resize(inner.snapshots.known.len(), inner.started);
        let due = (0..)
            .zip(&mut tested)
            .find(|(_, at)| at.elapsed() >= interval);
        let Some((partition, at)) = due else {
            continue;
        };
        *at = Instant::now();
        if !inner.leads(partition) {
            continue;
        }
        if inner.snapshots.known[partition as usize]
            .lock()
            .newest()
            .is_none()
        {
            continue;
        }
        match inner.prove_and_note(partition, None).await {
            // Both results were noted.
            Ok(_) | Err(Error::Storage(_)) => {}
            Err(error) => tracing::warn!(partition, %error, "a restore could not be tested"),
        }
    }
}

/// Tests whether the destination's conditional puts work. Returns whether they are known to work.
async fn probe_once(inner: &Inner) -> bool {
    let snapshots = &inner.snapshots;
    if snapshots.archive.destination().local().is_some() {
        return true;
    }
    if snapshots.known.iter().all(|known| known.lock().waits()) {
        return false;
    }
    // A probe writes, and nothing is written to another node's destination.
    let probed = match snapshots.archive.check_owner(&snapshots.identity).await {
        Ok(()) => probe(snapshots.archive.destination(), &System)
            .await
            .map_err(|error| Failure::failing(error.to_string())),
        Err(error) => Err(Failure::of(&error)),
    };
    let Err(failure) = probed else {
        return true;
    };
    tracing::warn!(error = %failure, "no snapshots are put into the repository");
    for known in &snapshots.known {
        let mut known = known.lock();
        known.failed(failure.clone());
        known.answer(&Err(failure.to_string()));
    }
    false
}

/// Reads a partition's root if that is due, then makes a snapshot or sweeps, whichever is due.
async fn start_snapshot_if_due(inner: &Inner, partition: u64, may_put: bool, load: Load) {
    let snapshots = &inner.snapshots;
    let (looked, waits) = {
        let mut known = snapshots.known[partition as usize].lock();
        if !inner.leads(partition) {
            // Another node puts snapshots now: what this one has read of them is out of date.
            known.looked = false;
            known.answer(&Err(
                "another node leads the partition, and puts its snapshots".to_owned(),
            ));
            return;
        }
        // The others have to know this node's incarnation before a root names it.
        if !inner.is_registered() {
            let why = inner.peers.as_ref().and_then(|it| it.why_not_registered());
            if let Some(why) = why {
                known.answer(&Err(format!(
                    "this node is not registered with the cluster, and puts no snapshots until it is: {why}"
                )));
            }
            return;
        }
        (known.looked, known.waits())
    };
    if waits {
        return;
    }
    let repository = snapshots.archive.repository(&snapshots.identity, partition);
    if !looked && !read_root(inner, partition, &repository).await {
        return;
    }
    if !may_put {
        return;
    }
    match due(snapshots.archive.options(), &inner.facts(partition, load)) {
        Some(reason) => make_snapshot(inner, partition, reason).await,
        None => sweep_if_due(inner, partition, &repository).await,
    }
}
