//! From a data directory to running partitions: every way back.
//!
//! 1. Lock the directory. An empty one: what does that mean ([`directory`])?
//! 2. Look at the log's files, cut a torn tail, open the log. A lost or damaged one ends the start,
//!    unless the operator accepts the loss.
//! 3. Open the database, and look what it has of each partition ([`look`]).
//! 4. For each partition: does the log go on where the database ends? Then it is replayed. Else the
//!    copies are tried, local ones first, then the repository's, newest first, each checked byte for
//!    byte before it is used ([`copies`], [`ways`]), and none that the log contradicts ([`contradiction`]). If none connects with the log, the start ends
//!    and says what was tried; or, if the operator accepts a loss, the copy that loses least is
//!    taken and a new lineage begins there ([`plan`]).
//! 5. Bring the database into that shape ([`rebuild`]), and replay, all partitions at once.
//! 6. Damage that is met in any of that rules out what it was met in: from 2 on again ([`attempts`]).
//!
//! "There is no snapshot" and "the repository could not be read" are different answers, and neither
//! ever makes an empty database.

mod acceptance;
mod archived_state;
mod attempts;
mod candidates;
mod contradiction;
mod copies;
mod database_blocks;
mod directory;
mod empty_partitions;
mod inspect;
mod last_resort;
mod plan;
mod readiness;
mod rebuild;
mod replay;
mod report;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::time::{Duration, Instant};

use esker_partition::command::{DropBasin, Kind};
use esker_partition::state::state_partition;
use esker_partition::{Catalog, PartitionId, Store, StreamPartition};
use esker_raft::runtime::SendToPeers;
use esker_raft::{GroupId, Lsn, SnapshotSink, Term};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use crate::blocking::blocking;
use crate::core::{Inner, StreamGroup};
use crate::data_dir::DataDir;
use crate::error::StartError;
use crate::options::NodeOptions;
use crate::read_budget::ReadBudget;
use crate::restarts::Restarts;
use crate::snapshots::{Archive, LocalSnapshots, Rates, Snapshots, scan_tells};
use crate::space_account::Space;
use crate::state;
use attempts::Attempts;
pub(crate) use candidates::Candidate;
pub use candidates::Source;
pub(crate) use contradiction::Witness;
use plan::Plan;
pub(crate) use readiness::make_ready;
pub use report::{PartitionRecovery, RecoveryReport};

/// Everything that is open before the groups are.
struct Opened {
    data_dir: DataDir,
    store: Store,
    archive: Archive,
    report: RecoveryReport,
    /// Partitions that have begun a new lineage in this start.
    forked: Vec<u64>,
    /// Partitions of which a snapshot in the repository was found damaged.
    damaged: Vec<u64>,
    open: attempts::Opened,
}

/// How long a node that has restarted itself tries again where something cannot be read now, such as the
/// repository: without the restart, its partitions would be served.
const RESTARTED_TIMEOUT: Duration = Duration::from_secs(2 * 60);
/// How long it waits before that, twice as long each time...
const FIRST_RETRY: Duration = Duration::from_secs(1);
/// ...up to this.
const LAST_RETRY: Duration = Duration::from_secs(10);

pub(crate) async fn recover(options: NodeOptions) -> Result<Arc<Inner>, StartError> {
    let started = Instant::now();
    let mut pause = FIRST_RETRY;
    loop {
        let error = match recover_once(options.clone()).await {
            Err(error) if options.restarted && error.is_unreadable() => error,
            done => return done,
        };
        if started.elapsed() + pause > RESTARTED_TIMEOUT {
            return Err(error);
        }
        tracing::warn!(%error, ?pause, "the start after a restart by itself is tried again");
        tokio::time::sleep(pause).await;
        pause = LAST_RETRY.min(2 * pause);
    }
}

async fn recover_once(mut options: NodeOptions) -> Result<Arc<Inner>, StartError> {
    let started = Instant::now();
    let handle = tokio::runtime::Handle::current();
    let (path, said) = (options.data_dir.clone(), options.bootstrap);
    let explain = |error| acceptance::explain(&path, said, error);
    let attempts = Arc::new(Attempts::default());
    options.store.damage = attempts.met.clone();
    let entered = blocking({
        let options = options.clone();
        move || directory::enter(&options, &handle)
    })
    .await
    .map_err(explain)?;
    loop {
        attempts.begin();
        let tried = attempt(&options, &entered, &attempts, started).await;
        let Err(error) = tried else {
            return tried;
        };
        let data_dir = entered.data_dir.clone();
        let noting = attempts.clone();
        let may_go_on = blocking(move || noting.note(&data_dir)).await?;
        // What could not be read now says nothing about the next source.
        if !may_go_on || error.is_unreadable() {
            return Err(explain(error));
        }
    }
}

/// One attempt. Whatever it has opened is closed when it fails.
async fn attempt(
    options: &NodeOptions,
    entered: &directory::Entered,
    attempts: &Arc<Attempts>,
    started: Instant,
) -> Result<Arc<Inner>, StartError> {
    let handle = tokio::runtime::Handle::current();
    let opening = (options.clone(), entered.clone(), attempts.clone());
    let (mut inner, open, forked, mut report, loaded, replay) = blocking(move || {
        let (options, entered, attempts) = opening;
        let opened = open(&options, entered, &attempts, &handle)?;
        let (forked, damaged) = (opened.forked.clone(), opened.damaged.clone());
        // A group replays from the moment it is open.
        let replay = Instant::now();
        let (inner, open, report, loaded) = groups(options, opened, &attempts, &handle)?;
        for partition in damaged {
            inner.snapshots.known[partition as usize].lock().force_full = true;
        }
        Ok::<_, StartError>((inner, open, forked, report, loaded, replay))
    })
    .await?;
    let events = report.entries;
    tracing::info!(events, "Replaying {events} log entries of the partitions");
    let replayed = replay::wait(&inner).await;
    let replay_took = replay.elapsed();
    let served = match replayed {
        Ok(()) => serve(&mut inner, options, &forked).await,
        Err(error) => Err(error),
    };
    if let Err(error) = served {
        blocking(move || {
            drop(open);
            drop(inner);
        })
        .await;
        return Err(error);
    }
    open.hand_over();
    report.replay = replay_took;
    loaded.recovered(&inner.state.reader);
    let replayed = report.partitions.iter();
    let bytes = replayed.map(|one| inner.after(one.partition, one.lsn).1);
    let bytes = bytes.sum();
    inner.snapshots.rates.replayed(events, bytes, report.replay);
    report.total = started.elapsed();
    let apart = report.replay + report.restore + report.scan;
    inner
        .snapshots
        .rates
        .started(report.total.saturating_sub(apart));
    tracing::info!(
        scan = ?report.scan,
        restore = ?report.restore,
        replay = ?report.replay,
        total = ?report.total,
        "Partitions recovered"
    );
    inner.snapshots.recovered(report);
    Ok(Arc::new(inner))
}

/// Opens everything below the groups, and brings the database into a shape that the log connects with.
fn open(
    options: &NodeOptions,
    entered: directory::Entered,
    attempts: &Attempts,
    handle: &tokio::runtime::Handle,
) -> Result<Opened, StartError> {
    let directory::Entered {
        data_dir,
        archive,
        accepted,
    } = entered;
    let mut plan = Plan::read(data_dir.path())?;
    let log_was_there = inspect::has_log(&data_dir)?;
    if !data_dir.is_new && !log_was_there && !accepted.loss {
        return Err(StartError::LogMissing {
            dir: data_dir.path().to_owned(),
        });
    }
    let scan = Instant::now();
    let raft = inspect::open_log(options, &data_dir, accepted.loss)?;
    let mut open = attempts::Opened::default();
    open.raft = Some(raft.clone());
    let log_bytes = log_bytes(&raft)?;
    let scan = Some(scan.elapsed()).filter(|_| scan_tells(log_bytes));
    let is_new_cluster = data_dir.is_new && !plan.as_ref().is_some_and(|plan| plan.everything);
    let mut report = RecoveryReport::default();
    let (mut forked, mut damaged) = (Vec::new(), Vec::new());
    let store_options = options.store_in(&data_dir);
    let store = if is_new_cluster {
        rebuild::create(&raft, &data_dir, &store_options)?
    } else {
        let pending: Vec<u64> = plan
            .iter()
            .flat_map(|plan| plan.forks.keys().copied())
            .collect();
        let may_lack = |partition| accepted.loss || pending.contains(&partition);
        let forks = plan.as_ref().map(|plan| plan.forks.clone());
        let planned = |partition| forks.as_ref()?.get(&partition)?.id();
        let facts = inspect::inspect(options, &data_dir, &raft, &store_options, may_lack, planned)?;
        let decided = Instant::now();
        let ways = handle.block_on(copies::find(
            &facts,
            &data_dir,
            &raft,
            &archive,
            plan.get_or_insert_default(),
            attempts,
            &accepted,
        ))?;
        let restored = decided.elapsed();
        damaged.extend(ways.iter().filter(|w| w.damage).map(|w| w.partition));
        let rebuilt = rebuild::rebuild(
            handle,
            facts,
            ways,
            &data_dir,
            &raft,
            &archive,
            &store_options,
            plan.get_or_insert_default(),
            attempts,
        )?;
        forked = rebuilt.forked;
        report = rebuilt.report;
        if report.restored_bytes > 0 {
            report.restore = restored + rebuilt.took;
        }
        rebuilt.store
    };
    report.scan = scan.unwrap_or_default();
    open.store = Some(store.clone());
    Ok(Opened {
        data_dir,
        store,
        archive,
        report,
        forked,
        damaged,
        open,
    })
}

/// Opens the groups; they replay from here on.
fn groups(
    options: NodeOptions,
    opened: Opened,
    attempts: &Attempts,
    handle: &tokio::runtime::Handle,
) -> Result<
    (
        Inner,
        attempts::Opened,
        RecoveryReport,
        state::rebuild::Loaded,
    ),
    StartError,
> {
    let Opened {
        data_dir,
        store,
        archive,
        mut report,
        mut open,
        ..
    } = opened;
    let raft = open.raft.clone().expect("the log is opened first");
    let identity = data_dir.identity.clone();
    if let Err(error) = std::fs::remove_dir_all(data_dir.scratch())
        && error.kind() != std::io::ErrorKind::NotFound
    {
        tracing::warn!(%error, dir = %data_dir.scratch().display(), "what a test of a restore left is not removed");
    }
    contradiction::put_aside_locals(&raft, &data_dir, options.partitions)?;
    let mut positions = Vec::new();
    for number in 0..=u64::from(options.partitions) {
        let part = store.part(PartitionId(number));
        let applied = part.applied()?.map_or(0, |a| a.lsn);
        positions.push((applied, part.lineage()?.id()));
    }
    let local = LocalSnapshots::open(
        data_dir.checkpoints(),
        options.partitions,
        |p, checkpoint| {
            let (applied, lineage) = positions[p as usize];
            checkpoint.lineage() == Some(lineage)
                && checkpoint.meta.lsn <= applied
                && !attempts.is_damaged_local(&checkpoint.dir)
        },
    );
    let local = Arc::new(local);
    let sink: Arc<dyn SnapshotSink> = local.clone();
    let mut applied = Vec::new();
    for (number, (at, _)) in (0..).zip(positions) {
        let last = log_state(&raft, number)?.last;
        report.note(number, at, last.0);
        applied.push(at);
    }
    tracing::info!(
        source = %report.source(),
        path = %data_dir.db().display(),
        ?applied,
        log_bytes = log_bytes(&raft)?,
        "Loading partitions: {}", report.source()
    );
    let alone = || -> SendToPeers { Box::new(|_| {}) };
    let catalog = Catalog::open(&store)?;
    let catalog_reader = catalog.reader();
    let catalog = raft.open_group(GroupId(0), catalog, alone(), sink.clone())?;
    open.groups.push(catalog.clone());
    let state_at = state_partition(options.partitions);
    let files = open_state_files(&data_dir)?;
    let state_archive = state::Shared::archive_of(&options.state, &archive);
    let loaded = state::rebuild::recover(
        &store.part(state_at),
        &files,
        state_archive.as_ref(),
        &data_dir.scratch(),
        handle,
        state::rebuild::Origin {
            source: report.source_of(state_at.0),
            folded: report.state_commits,
        },
        Witness::of(&raft, state_at.0)?.as_ref(),
    )?;
    if report.lost_some(state_at.0) {
        let part = store.part(state_at);
        report.newer_state = state::newer::newest(&part, &files, state_archive.as_ref(), handle)?;
    }
    let mut state_reader = None;
    let mut partitions = Vec::new();
    let stream_options = options.stream_options();
    for number in 1..=u64::from(options.partitions) {
        let partition = StreamPartition::open(&store, PartitionId(number), stream_options.clone())?;
        let reader = partition.reader();
        if number == state_at.0 {
            state_reader = Some(partition.state_reader());
        }
        let group = raft.open_group(GroupId(number), partition, alone(), sink.clone())?;
        open.groups.push(group.clone());
        partitions.push(StreamGroup {
            group,
            reader,
            places: Arc::new(Semaphore::new(MAX_PENDING_APPENDS)),
            share: Arc::new(Semaphore::new(options.append_share())),
        });
    }
    let groups = std::iter::once(&catalog).chain(partitions.iter().map(|p| &p.group));
    for (number, group) in (0..).zip(groups) {
        // Until it is known what the repository has, everything is kept.
        group.keep_from(group.status().log_start);
        if let Some(held) = local.newest(number) {
            let meta = &held.checkpoint.meta;
            group.snapshot_known(Lsn(meta.lsn), Term(meta.term));
        }
    }
    let rates = Rates::open(data_dir.path());
    let log_bytes = log_bytes(&raft)?;
    rates.scanned(log_bytes, report.scan);
    if report.restored_bytes > 0 {
        rates.restored(report.restored_bytes, report.restore);
    }
    let state_reader = state_reader.expect("the store's partition is one of those that there are");
    let state = state::Shared::new(
        options.state.clone(),
        state_reader,
        files,
        state_archive,
        &identity,
    )?;
    let snapshots = Snapshots::new(archive, local, rates, &identity);
    let inner = Inner {
        admission: Arc::new(Semaphore::new(options.append_inflight)),
        reads: ReadBudget::new(options.read_sessions),
        options,
        identity,
        raft,
        store,
        catalog,
        catalog_reader,
        partitions,
        draining: AtomicBool::new(false),
        stopping: CancellationToken::new(),
        next_session: AtomicU64::new(rand::random_range(1..=u64::MAX / 2)),
        snapshots,
        state,
        started: Instant::now(),
        refuses_appends: AtomicBool::new(false),
        space: Space::new(data_dir.path(), log_bytes),
        unknown_basins: Default::default(),
        restarts: Restarts::open(data_dir.path()),
        data_dir,
    };
    Ok((inner, open, report, loaded))
}

/// What is done once everything has been replayed, before anybody is served.
async fn serve(inner: &mut Inner, options: &NodeOptions, forked: &[u64]) -> Result<(), StartError> {
    inner.snapshots.local.remove_stale();
    publish_forked(inner, forked).await;
    match inner.find_unknown_basins() {
        Ok(found) => *inner.unknown_basins.lock() = found,
        Err(error) => tracing::warn!(%error, "streams without a basin were not looked for"),
    }
    // Every partition has something in the log now, so one that has not is damage from here on.
    inner.data_dir.finish()?;
    // In this order: a crash in between leaves no acceptance that would count for another loss.
    acceptance::spend(inner.data_dir.path(), options.bootstrap)?;
    Plan::remove(inner.data_dir.path())
}

/// How long a start waits for one partition to drop a basin: what is missed is space.
const DROP_TIMEOUT: Duration = Duration::from_secs(10);

/// Tells partitions that were taken back in time which basins have been deleted since.
async fn publish_forked(inner: &Inner, forked: &[u64]) {
    if forked.is_empty() {
        return;
    }
    let gone = inner.catalog_reader.forgotten().unwrap_or_else(|error| {
        tracing::warn!(%error, "deleted basins are not known");
        Vec::new()
    });
    for basin in gone {
        for partition in &inner.partitions {
            if forked.contains(&partition.reader.partition().0) {
                let command = Kind::DropBasin(DropBasin { basin: basin.0 });
                // Such a basin's streams have no name to be found by: nothing is wrong but space.
                let dropped = partition.group.execute(command.into_bytes());
                if tokio::time::timeout(DROP_TIMEOUT, dropped).await.is_err() {
                    tracing::warn!(
                        partition = partition.reader.partition().0,
                        "streams of deleted basins were not dropped; they take space"
                    );
                    return;
                }
            }
        }
    }
}

/// The directory of JSON snapshots.
fn open_state_files(data_dir: &DataDir) -> Result<state::files::Files, StartError> {
    let path = data_dir.snapshots();
    state::files::Files::open(path.clone()).map_err(|source| StartError::Io {
        operation: "opening",
        path,
        source,
    })
}

/// What the log has on disk.
fn log_bytes(raft: &esker_raft::Node) -> Result<u64, StartError> {
    let bytes = raft.log().used_bytes();
    Ok(bytes.map_err(esker_raft::runtime::NodeError::from)?)
}

fn log_state(
    raft: &esker_raft::Node,
    partition: u64,
) -> Result<esker_raft::engine::PersistedState, StartError> {
    Ok(raft
        .log()
        .state(GroupId(partition))
        .map_err(esker_raft::runtime::NodeError::from)?)
}

/// Ticks of the engines; an election takes ten to twenty of them.
const TICK: Duration = Duration::from_millis(100);
/// Accepted proposals that are not applied yet, per partition.
pub(crate) const MAX_PENDING: u64 = 16 * 1024;
/// Those of them that are appends: more wait, where the partition would refuse them. The others are for what is
/// proposed beside appends, a few at a time.
const MAX_PENDING_APPENDS: usize = 15 * 1024;
