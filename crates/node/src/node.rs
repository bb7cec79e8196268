//! A running node.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use esker_partition::command::{Kind, Outcome};
use esker_partition::state::command::ImportStep;
use esker_partition::store::PartitionDb;
use esker_partition::streams::StreamOptions;
use esker_partition::{
    BasinId, CatalogReader, PartitionId, Reader, RecentBudget, Store, StoreOptions, partition_of,
};
use esker_raft::{Group, GroupStatus};
use parking_lot::Mutex;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use crate::counters;
use crate::data_dir::{DataDir, Identity};
use crate::error::{Error, StartError};
use crate::maintenance::Maintenance;
use crate::read_budget::ReadBudget;
use crate::recovery;
use crate::restarts::{self, Restarts};
use crate::snapshots::{Bootstrap, CreatedSnapshot, SnapshotOptions, Snapshots, Uploader};
use crate::space::Space;
use crate::state::background::Background;
use crate::state::{self, StateOptions, StateStore, ValueCheck};
use crate::unknown_basins::UnknownBasin;

/// What is waited for after the grace period, for tasks that end as soon as they look.
const LAST_WAIT: Duration = Duration::from_millis(500);
/// What closing the database and the log may take after that: they end what they are at.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(5);

/// What a node is told at its start.
#[derive(Clone, Debug)]
pub struct NodeOptions {
    /// The data directory.
    pub data_dir: PathBuf,
    /// For people; kept when the directory is made.
    pub cluster_name: String,
    /// Stream partitions; fixed when the directory is made.
    pub partitions: u32,
    /// A log file is closed at this size, bytes.
    pub log_segment_size: u64,
    /// Log files that are no longer needed are deleted once the log is larger, bytes.
    pub log_purge_threshold: u64,
    /// Most bytes that one sync makes durable.
    pub log_max_group_size: u64,
    /// A partition's database is flushed once this many bytes wait in its memory.
    pub flush_after: u64,
    /// The database.
    pub store: StoreOptions,
    /// Bytes of appends in flight, over all callers.
    pub append_inflight: usize,
    /// Bytes of newest batches kept for each followed stream.
    pub follower_buffer: usize,
    /// The same over all followed streams.
    pub follower_buffers_total: usize,
    /// Bytes that read sessions hold together.
    pub read_sessions: usize,
    /// How often age retention, delete-on-empty and deleted basins are looked after.
    pub retention_interval: Duration,
    /// Streams examined per partition and round.
    pub streams_per_round: usize,
    /// A partition's files are rewritten once this many bytes are reclaimable, and at least half
    /// of all.
    pub compact_garbage: u64,
    /// Snapshots and recovery.
    pub snapshots: SnapshotOptions,
    /// The state store.
    pub state: StateOptions,
    /// What values of the state store can be read by clients.
    pub check_value: ValueCheck,
    /// What an empty data directory means, if somebody said so.
    pub bootstrap: Option<Bootstrap>,
    /// Partitions that begin empty where a restore finds no copy of them; of no effect without
    /// [`Bootstrap::Restore`].
    pub empty_partitions: BTreeSet<u64>,
    /// Whether this start goes on from a node that served from the data directory, and restarts itself
    /// ([`Node::restart_wanted`]). A directory that nobody has served from is refused then, whatever
    /// `bootstrap` says.
    pub restarted: bool,
}

impl NodeOptions {
    /// Bytes of appends that one partition may have in flight: half, where there are others.
    pub(crate) fn append_share(&self) -> usize {
        match self.partitions {
            1 => self.append_inflight,
            _ => self.append_inflight / 2,
        }
    }

    /// The defaults, for a data directory.
    pub fn new(data_dir: impl Into<PathBuf>) -> NodeOptions {
        const MIB: u64 = 1024 * 1024;
        NodeOptions {
            data_dir: data_dir.into(),
            cluster_name: "esker".to_owned(),
            partitions: 8,
            log_segment_size: 32 * MIB,
            log_purge_threshold: 256 * MIB,
            log_max_group_size: 4 * MIB,
            flush_after: 28 * MIB,
            store: StoreOptions::default(),
            append_inflight: 128 * MIB as usize,
            follower_buffer: 32 * MIB as usize,
            follower_buffers_total: 64 * MIB as usize,
            read_sessions: 256 * MIB as usize,
            retention_interval: Duration::from_secs(1),
            streams_per_round: 250,
            compact_garbage: 64 * MIB,
            snapshots: SnapshotOptions::default(),
            state: StateOptions::default(),
            check_value: ValueCheck::default(),
            bootstrap: None,
            empty_partitions: BTreeSet::new(),
            restarted: false,
        }
    }

    pub(crate) fn store_in(&self, data_dir: &DataDir) -> StoreOptions {
        StoreOptions {
            checkpoints: Some(data_dir.checkpoints()),
            ..self.store.clone()
        }
    }

    pub(crate) fn stream_options(&self) -> StreamOptions {
        StreamOptions {
            recent: RecentBudget::new(self.follower_buffer, self.follower_buffers_total),
            compact_garbage: self.compact_garbage,
            ..StreamOptions::default()
        }
    }
}

/// Whether snapshots can be kept where the options say, as far as that can be known without asking a
/// store.
///
/// # Errors
///
/// [`StartError::Destination`], as a start would end with it.
pub fn check_destination(options: &NodeOptions) -> Result<(), StartError> {
    crate::snapshots::Archive::open(&options.snapshots, &options.data_dir).map(drop)
}

/// A stream partition of a running node.
#[derive(Clone)]
pub(crate) struct StreamGroup {
    pub group: Group<Outcome>,
    pub reader: Reader,
    /// A permit for each append that may still be pending.
    pub places: Arc<Semaphore>,
    /// Bytes of appends that it may still have of what is for all partitions: one that stalls leaves something
    /// to the others.
    pub share: Arc<Semaphore>,
}

pub(crate) struct Inner {
    pub options: NodeOptions,
    pub identity: Identity,
    pub raft: esker_raft::Node,
    pub store: Store,
    pub catalog: Group<Outcome>,
    pub catalog_reader: CatalogReader,
    /// Partition n is at n − 1.
    pub partitions: Vec<StreamGroup>,
    /// Bytes that may still be taken in.
    pub admission: Arc<Semaphore>,
    /// Memory of read sessions.
    pub reads: ReadBudget,
    pub draining: AtomicBool,
    /// Ends read sessions.
    pub stopping: CancellationToken,
    pub next_session: AtomicU64,
    pub snapshots: Snapshots,
    pub state: state::Shared,
    pub started: Instant,
    /// Appends are refused until a snapshot is archived: see [`OnLogFull`].
    pub refuses_appends: AtomicBool,
    pub space: Space,
    /// Basins of streams that the catalog did not know when this start began to serve.
    pub unknown_basins: Mutex<Vec<UnknownBasin>>,
    pub restarts: Restarts,
    /// Holds the lock on the data directory.
    pub data_dir: DataDir,
}

/// A running node. Cheap to clone.
#[derive(Clone)]
pub struct Node {
    pub(crate) inner: Arc<Inner>,
    pub(crate) upkeep: Arc<Maintenance>,
    uploader: Arc<Uploader>,
    state: StateStore,
    keeper: Arc<Background>,
}

impl Node {
    /// Recovers the data directory and starts everything; returns when every partition serves.
    pub async fn start(options: NodeOptions) -> Result<Node, StartError> {
        counters::register();
        let inner = recovery::recover(options).await?;
        let upkeep = Maintenance::start(&inner).map_err(|source| StartError::Io {
            operation: "starting threads for",
            path: inner.options.data_dir.clone(),
            source,
        })?;
        let uploader = Uploader::start(&inner);
        let keeper = Background::start(&inner);
        restarts::watch_for_needs(&inner);
        Ok(Node {
            state: StateStore::new(inner.clone()),
            keeper: Arc::new(keeper),
            inner,
            upkeep: Arc::new(upkeep),
            uploader: Arc::new(uploader),
        })
    }

    /// Who this is.
    pub fn identity(&self) -> &Identity {
        &self.inner.identity
    }

    /// The snapshot repository's URL, for people.
    pub fn repository_url(&self) -> &str {
        self.inner.snapshots.archive.shown()
    }

    /// The state store.
    pub fn state(&self) -> &StateStore {
        &self.state
    }

    /// Where the partitions stand, the catalog first.
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

    /// Puts a snapshot of a partition into the repository now, and waits for it. It covers whatever
    /// was applied before.
    ///
    /// # Errors
    ///
    /// [`Error::PartitionNotFound`], [`Error::TryLater`] if it came to nothing.
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

    /// Whether the node takes appends; if not, why.
    pub fn health(&self) -> Result<(), String> {
        if self.is_draining() {
            return Err("the server is stopping".to_owned());
        }
        if self.inner.refuses_appends.load(Ordering::Relaxed) {
            return Err("the log is full, and snapshots are not archived".to_owned());
        }
        if let Some(why) = self.inner.shortage().or_else(|| self.inner.stuck()) {
            return Err(why);
        }
        if let Some(why) = self.inner.hanging_write() {
            return Err(why);
        }
        for group in self.inner.groups() {
            let partition = group.id().0;
            if let Some(halted) = group.halted() {
                let rest = match halted.reopens {
                    true => "it is opened again by itself",
                    false => "mend the cause, then start the server again",
                };
                let why = halted.why;
                return Err(format!("partition {partition} has halted: {why}; {rest}"));
            }
            if group.status().stalled {
                let why = self.inner.stall_cause(partition);
                return Err(format!("partition {partition} cannot be written: {why}"));
            }
        }
        if let Some(why) = self.inner.restarts.held_back() {
            return Err(format!(
                "a restart is needed, and is not made by itself: {why}"
            ));
        }
        if let Some(partition) = self.inner.damaged_partition() {
            let why = self.inner.damage(partition).unwrap_or_default();
            let next = match self.inner.restarts.preparing() {
                Some(what) => format!("{what}; then the server restarts itself"),
                None => "the server is about to restart itself to recover it".to_owned(),
            };
            return Err(format!(
                "files of partition {partition} are damaged ({why}): {next}"
            ));
        }
        Ok(())
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

    /// Refuses what is new, ends read sessions, and waits until every append in flight is answered
    /// or `grace` has passed, which holds for snapshots before the stop as well: what is given up is
    /// logged by name. Then writes the database to its files, so that the next start has
    /// nothing to replay.
    pub async fn stop(&self, grace: Duration) {
        self.stop_with(grace, self.inner.options.snapshots.on_stop)
            .await;
    }

    /// As [`Node::stop`], without snapshots before: the node is back in a moment.
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
            // No append waits for the disk now, and there is a time limit.
            inner.snapshots.archive.lift_pace();
            self.snapshot_before_stop(deadline).await;
        }
        self.give_up_uploads();
        let last = deadline.max(tokio::time::Instant::now() + LAST_WAIT);
        if tokio::time::timeout_at(last, self.keeper.join())
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
        // Not one of the runtime's threads: that would be waited for without end.
        let spawned = std::thread::Builder::new()
            .name("stop".to_owned())
            .spawn(move || {
                this.stop_blocking(last.into_std());
                // Whoever waits may open the directory again, or end the process.
                drop(this);
                // Nobody may wait any more.
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

    /// What was applied since the newest snapshots is put, if that works in time.
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

    /// Ends uploads; one under way leaves an intent behind, and its objects are swept.
    fn give_up_uploads(&self) {
        self.uploader.stop();
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
        self.upkeep.ask_to_stop();
        let inner = &self.inner;
        let mut is_flushed = true;
        for part in inner
            .partitions
            .iter()
            .map(|p| p.reader.part())
            .chain([inner.catalog_reader.part()])
        {
            if let Err(error) = part.flush_until(Some(deadline)) {
                let partition = part.partition().0;
                tracing::warn!(partition, %error, "not flushed; the next start replays the log instead");
                is_flushed = false;
            }
        }
        if !is_flushed {
            // A snapshot that is being taken waits for a flush too.
            inner.store.give_up();
        }
        for group in inner.groups() {
            group.stop();
        }
        inner.raft.stop();
        self.upkeep.join();
        inner.store.close();
        tracing::info!(took = ?started.elapsed(), "stopped");
    }
}

/// Whether a command is refused on a nearly full disk: it takes space, and gives none back.
fn takes_space(command: &Kind) -> bool {
    match command {
        Kind::ProvisionBasin(_) | Kind::ProvisionStream(_) => true,
        Kind::StateImport(import) => matches!(
            import.step,
            Some(ImportStep::Begin(_) | ImportStep::Entries(_))
        ),
        _ => false,
    }
}

impl Inner {
    pub fn partition(&self, basin: BasinId, stream: &str) -> &StreamGroup {
        let id = partition_of(basin, stream, self.options.partitions);
        &self.partitions[(id.0 - 1) as usize]
    }

    /// The group of a partition, the catalog's for 0.
    ///
    /// # Panics
    ///
    /// If there is none.
    pub fn group(&self, partition: u64) -> &Group<Outcome> {
        match partition.checked_sub(1) {
            None => &self.catalog,
            Some(at) => &self.partitions[at as usize].group,
        }
    }

    /// The database of a partition, the catalog's for 0.
    ///
    /// # Panics
    ///
    /// If there is none.
    pub fn part(&self, partition: u64) -> &PartitionDb {
        match partition.checked_sub(1) {
            None => self.catalog_reader.part(),
            Some(at) => self.partitions[at as usize].reader.part(),
        }
    }

    /// Why a partition takes no writes at the moment.
    pub fn stall_cause(&self, partition: u64) -> String {
        let cause = self.group(partition).stall_cause();
        cause.unwrap_or_else(|| "the disk takes no writes".to_owned())
    }

    /// Why a partition's database is not to be used by the next start, if so.
    pub fn damage(&self, partition: u64) -> Option<String> {
        self.store.damage(PartitionId(partition))
    }

    /// The first partition whose files are damaged.
    pub fn damaged_partition(&self) -> Option<u64> {
        let mut partitions = 0..=u64::from(self.options.partitions);
        partitions.find(|partition| self.damage(*partition).is_some())
    }

    pub fn parts(&self) -> impl Iterator<Item = &PartitionDb> {
        let streams = self.partitions.iter().map(|p| p.reader.part());
        std::iter::once(self.catalog_reader.part()).chain(streams)
    }

    pub fn groups(&self) -> impl Iterator<Item = &Group<Outcome>> {
        std::iter::once(&self.catalog).chain(self.partitions.iter().map(|p| &p.group))
    }

    /// Proposes a command that is not an append, and waits for its answer.
    pub async fn execute(&self, group: &Group<Outcome>, command: Kind) -> Result<Outcome, Error> {
        if self.draining.load(Ordering::Relaxed) {
            return Err(Error::Stopping);
        }
        match takes_space(&command) {
            true => {
                if let Some(why) = self.shortage() {
                    return Err(Error::TryLater(why));
                }
            }
            false => self.make_way(group).await,
        }
        let answer = group.propose(command.into_bytes())?;
        self.answered(group, answer).await
    }
}
