//! A running node.

mod restart;

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use esker_partition::PartitionId;
use esker_partition::store::PartitionDb;
use esker_raft::GroupStatus;
use tokio_util::sync::CancellationToken;

use crate::cluster;
use crate::core::Inner;
use crate::counters;
use crate::data_dir::Identity;
use crate::error::{Error, StartError};
use crate::maintenance::Maintenance;
use crate::options::NodeOptions;
use crate::read_budget::ReadBudget;
use crate::recovery;
use crate::restarts;
use crate::snapshots::{CreatedSnapshot, NodeStatus, Uploader};
use crate::state::StateStore;
use crate::state::background::Background;
use crate::tokens::Tokens;
use crate::upkeep::UpkeepCounts;

/// How long tasks are waited for after the grace period: they end as soon as they detect the stop.
const LAST_WAIT: Duration = Duration::from_millis(500);
/// How long closing the database and the log may take after that: they complete the current write.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(5);

/// Checks that the configured destination can be used for snapshots, as far as that can be known without a
/// request to a store.
///
/// # Errors
///
/// [`StartError::Destination`]: a start would fail with it.
pub fn check_destination(options: &NodeOptions) -> Result<(), StartError> {
    crate::snapshots::Archive::open(&options.snapshots, &options.data_dir).map(drop)
}

/// A running node. Cheap to clone.
#[derive(Clone)]
pub struct Node {
    pub(crate) inner: Arc<Inner>,
    maintenance: Arc<Maintenance>,
    uploader: Arc<Uploader>,
    state: StateStore,
    background: Arc<Background>,
}

impl Node {
    /// The partitions whose replicas differ without it being known which is right. They are served meanwhile; once it is
    /// known, the wrong ones stop.
    pub fn undecided_replicas(&self) -> Vec<crate::Problem> {
        self.inner.undecided_replicas()
    }

    /// Recovers the data directory and starts everything; returns when every partition serves.
    pub async fn start(options: NodeOptions) -> Result<Node, StartError> {
        counters::register();
        let inner = recovery::recover(options).await?;
        let no_threads = |source| StartError::Io {
            operation: "starting threads for",
            path: inner.options.data_dir.clone(),
            source,
        };
        let maintenance = Maintenance::start(&inner).map_err(no_threads)?;
        let uploader = Uploader::start(&inner).map_err(no_threads)?;
        let background = Background::start(&inner);
        restarts::watch_for_needs(&inner);
        if let Some(peers) = &inner.peers {
            // Before the first election: the addresses of the others are in the catalog.
            inner.follow_nodes();
            peers
                .transport
                .answer_calls(Arc::new(cluster::Answers::new(&inner)));
            tokio::spawn(cluster::run(inner.clone()));
            tokio::spawn(cluster::compare_clocks(inner.clone()));
            tokio::spawn(cluster::run_checks(inner.clone()));
            tokio::spawn(cluster::watch_replicas(inner.clone()));
            tokio::spawn(cluster::give_leaderships_away(inner.clone()));
            tokio::spawn(cluster::leave_cluster(inner.clone()));
        }
        Ok(Node {
            state: StateStore::new(inner.clone()),
            background: Arc::new(background),
            inner,
            maintenance: Arc::new(maintenance),
            uploader: Arc::new(uploader),
        })
    }

    /// The node's identity.
    pub fn identity(&self) -> &Identity {
        &self.inner.identity
    }

    /// The snapshot repository's URL, for display.
    pub fn repository_url(&self) -> &str {
        self.inner.snapshots.archive.shown()
    }

    /// The state store.
    pub fn state(&self) -> &StateStore {
        &self.state
    }

    /// The partition of the state store.
    pub fn state_partition(&self) -> u64 {
        self.inner.state.partition.0
    }

    /// The access tokens.
    pub fn tokens(&self) -> Tokens {
        Tokens::new(self.inner.clone())
    }

    /// What the periodic maintenance has done since the start.
    pub fn upkeep_counts(&self) -> UpkeepCounts {
        let reads = self.inner.parts().map(PartitionDb::position_reads);
        self.inner.upkeep.counts(reads.sum())
    }

    /// The status of the partitions, the catalog first.
    pub fn status(&self) -> Vec<(PartitionId, GroupStatus)> {
        std::iter::once((PartitionId(0), self.inner.catalog.status()))
            .chain(
                self.inner
                    .partitions
                    .iter()
                    .map(|p| (p.reader.partition(), p.group.status())),
            )
            .collect()
    }

    /// Puts a snapshot of a partition into the repository now, and waits for it. It covers all that was
    /// applied before.
    ///
    /// # Errors
    ///
    /// [`Error::PartitionNotFound`]; [`Error::TryLater`] if none was put, with the cause.
    pub async fn create_snapshot(&self, partition: u64) -> Result<CreatedSnapshot, Error> {
        let snapshots = &self.inner.snapshots;
        let Some(known) = snapshots.known.get(partition as usize) else {
            return Err(self.no_partition(partition));
        };
        let answered = known.lock().ask();
        snapshots.wake.notify_one();
        match answered.await {
            Ok(result) => result.map_err(Error::TryLater),
            Err(_) => Err(Error::Stopping),
        }
    }

    pub(crate) fn no_partition(&self, partition: u64) -> Error {
        Error::PartitionNotFound {
            partition,
            last: self.inner.options.partitions,
        }
    }

    /// The status for operators. Makes no request to the repository.
    pub fn recovery_status(&self) -> NodeStatus {
        self.inner.recovery_status()
    }

    pub(crate) fn wake_maintenance(&self) {
        self.maintenance.wake();
    }

    /// How long callers waited for the answers to appends and commits since the last call: the times that these
    /// shares of them did not exceed. `None` if there were none. One caller at a time gets meaningful figures.
    pub fn take_latencies<const N: usize>(&self, shares: [f64; N]) -> Option<[Duration; N]> {
        let taken = self.inner.sampled_latencies.take();
        let quantile = |share| taken.quantile(share).unwrap_or_default();
        (taken.count() > 0).then(|| shares.map(quantile))
    }

    /// Cancelled when the node stops.
    pub fn stopping(&self) -> &CancellationToken {
        &self.inner.stopping
    }

    /// Memory of read sessions.
    pub fn reads(&self) -> &ReadBudget {
        &self.inner.reads
    }

    /// Whether new appends are refused because the node stops.
    pub fn is_draining(&self) -> bool {
        self.inner.draining.load(Ordering::Relaxed)
    }

    /// Refuses new requests, ends read sessions, and waits until every append in flight is answered or
    /// `grace` has passed. Snapshots before the stop have the same deadline; those that do not meet it are
    /// named in the log. Then flushes the database, so that the next start has nothing to replay.
    pub async fn stop(&self, grace: Duration) {
        self.stop_with(grace, self.inner.options.snapshots.on_stop)
            .await;
    }

    /// As [`Node::stop`], without snapshots before it: the node starts again at once.
    pub async fn stop_for_restart(&self, grace: Duration) {
        self.stop_with(grace, false).await;
    }

    async fn stop_with(&self, grace: Duration, with_snapshots: bool) {
        let inner = &self.inner;
        inner.draining.store(true, Ordering::Relaxed);
        inner.stopping.cancel();
        let deadline = tokio::time::Instant::now() + grace;
        let all = u32::try_from(inner.options.append_inflight).unwrap_or(u32::MAX);
        let drained = tokio::time::timeout_at(deadline, inner.admission.acquire_many(all)).await;
        if !matches!(drained, Ok(Ok(_))) {
            tracing::warn!(
                ?grace,
                "appends were still in flight when the grace period ended"
            );
        }
        if with_snapshots {
            // Uploads can delay no append now, and there is a deadline.
            inner.snapshots.archive.lift_pace();
            self.snapshot_before_stop(deadline).await;
        }
        self.give_up_uploads().await;
        let last = deadline.max(tokio::time::Instant::now() + LAST_WAIT);
        if tokio::time::timeout_at(last, self.background.join())
            .await
            .is_err()
        {
            tracing::warn!(
                ?grace,
                "the grace period ended while a snapshot of the state store was on its way to the repository: it is put after the next start"
            );
        }
        let this = self.clone();
        let (done, stopped) = tokio::sync::oneshot::channel();
        // This is not a thread of the runtime: the runtime waits for those without a deadline.
        let spawned = std::thread::Builder::new()
            .name("stop".to_owned())
            .spawn(move || {
                this.stop_blocking(last.into_std());
                // The caller may open the directory again, or end the process.
                drop(this);
                // The caller may no longer wait.
                let _ = done.send(());
            });
        if let Err(error) = spawned {
            tracing::warn!(%error, "no thread to stop in order; the next start replays the log");
            return;
        }
        let last = last.max(tokio::time::Instant::now()) + CLOSE_TIMEOUT;
        if tokio::time::timeout_at(last, stopped).await.is_err() {
            tracing::warn!(
                ?grace,
                "the database is still being closed and is given up: the disk does not answer; the next start replays the log"
            );
        }
    }

    /// Puts snapshots of what was applied since the newest ones, as far as the deadline allows.
    async fn snapshot_before_stop(&self, deadline: tokio::time::Instant) {
        for partition in 0..self.inner.snapshots.known.len() as u64 {
            let covered = self.inner.snapshots.known[partition as usize]
                .lock()
                .newest()
                .map_or(0, |newest| newest.lsn);
            if self.inner.group(partition).status().applied.0 <= covered {
                continue;
            }
            let created = self.create_snapshot(partition);
            match tokio::time::timeout_at(deadline, created).await {
                Ok(Ok(_)) => {}
                Ok(Err(error)) => {
                    tracing::warn!(partition, %error, "no snapshot was put before the stop");
                }
                Err(_) => tracing::warn!(
                    partition,
                    newest = covered,
                    "the grace period ended before a snapshot of the partition was in the repository"
                ),
            }
        }
    }

    /// Ends uploads. One under way leaves an intent behind, and its objects are swept.
    async fn give_up_uploads(&self) {
        self.uploader.stop().await;
        for (partition, known) in self.inner.snapshots.known.iter().enumerate() {
            if known.lock().uploading.is_some() {
                tracing::warn!(
                    partition,
                    "the upload of a snapshot is given up because the server stops"
                );
            }
        }
    }

    fn stop_blocking(&self, deadline: Instant) {
        let started = Instant::now();
        self.maintenance.ask_to_stop();
        let inner = &self.inner;
        let mut is_flushed = true;
        for part in inner
            .partitions
            .iter()
            .map(|p| p.reader.partition_db())
            .chain([inner.catalog_reader.partition_db()])
        {
            if let Err(error) = part.flush_until(Some(deadline)) {
                let partition = part.partition().0;
                tracing::warn!(partition, %error, "not flushed; the next start replays the log instead");
                is_flushed = false;
            }
        }
        if !is_flushed {
            // A snapshot that is being taken also waits for a flush.
            inner.store.give_up();
        }
        inner.replicas.digests.close();
        for group in inner.groups() {
            group.stop();
        }
        inner.raft.stop();
        self.maintenance.join();
        inner.store.close();
        if let Err(error) = inner.replicas.departure.delete_replicas(&inner.data_dir) {
            tracing::warn!(%error, "the replicas of this removed node are not all deleted; the next start deletes the rest");
        }
        tracing::info!(took = ?started.elapsed(), "stopped");
    }
}
