//! From a data directory to running partitions: every source that a start can recover from.
//!
//! 1. Lock the directory. Decide what an empty one means ([`directory`], [`acceptance`], [`restored_identity`],
//!    [`joining`]).
//! 2. Inspect the log's files, cut a torn tail, open the log. A lost or damaged one ends the start,
//!    unless the operator accepts the loss.
//! 3. Open the database, and find out what it has of each partition ([`inspect`]).
//! 4. For each partition: does the log continue where the database ends? Then it is replayed. Otherwise
//!    copies are tried ([`search`], [`candidates`]): local ones first ([`local_copies`]), then the
//!    repository's, newest first ([`archived_copies`]). Each is checked byte for byte before it is used, and
//!    none is used that the log contradicts ([`contradiction`]). A log that ends before a copy on this disk does
//!    not count as one that has everything ([`cut_log`], [`lineage_after_log`]). If none connects with the log, the start
//!    ends and reports what was tried; or, if the operator accepts a loss, the copy that loses least is taken
//!    and a new lineage begins there ([`plan`], [`loss`], [`database_blocks`], [`last_resort`],
//!    [`empty_partitions`]). On a node of a cluster nothing is given up ([`members`]), unless
//!    the others are ([`survivor`], [`uncommitted`]). No lineage begins while a node of the cluster runs
//!    ([`running_cluster`]).
//! 5. Bring database and log into that state ([`rebuild`], [`rebuild_state`], [`new_lineage`]), open the groups ([`groups`]),
//!    and replay all partitions at once ([`replay`]).
//! 6. Damage that is met in any of these steps rules out the source that it was met in, and the start
//!    begins again at 2 ([`attempts`]).
//!
//! A node that joins a cluster takes its partitions from the repository, where that has them ([`archived_replicas`]).
//! [`report`] is what a recovery did. [`readiness`] prepares a copy while the node runs ([`activity`]), and
//! [`archived_state`] fetches a JSON snapshot for an empty directory that cannot be restored.
//!
//! "There is no snapshot" and "the repository could not be read" are different answers, and neither
//! leads to an empty database.
//!
//! The steps are async, and share a [`context::Context`]. Steps that read or write much run on threads where
//! blocking is fine. Small files, and the end of a start that fails, are handled on the current thread,
//! because nothing else runs yet.

mod acceptance;
mod activity;
mod archived_copies;
mod archived_replicas;
mod archived_state;
mod attempts;
mod candidates;
mod context;
mod contradiction;
mod cut_log;
mod database_blocks;
mod directory;
mod empty_partitions;
mod groups;
mod inspect;
mod joining;
mod last_resort;
mod lineage_after_log;
mod local_copies;
mod loss;
mod member_copies;
mod members;
mod new_lineage;
mod plan;
mod readiness;
mod rebuild;
mod rebuild_state;
mod replay;
mod report;
mod restored_identity;
mod running_cluster;
mod search;
mod survivor;
mod uncommitted;

use std::sync::Arc;
use std::time::{Duration, Instant};

use esker_partition::Store;
use esker_partition::command::{DropBasin, Kind};
use esker_partition::digest::ReplicaDigests;

use crate::blocking::blocking;
use crate::core::Inner;
use crate::data_dir::{DataDir, FORMAT, UNCHANGED_SINCE, is_log_lost, mark_log};
use crate::error::StartError;
use crate::options::NodeOptions;
use crate::snapshots::scan_tells;
pub(crate) use activity::Activity;
use attempts::{Attempts, Opened};
pub(crate) use candidates::Candidate;
pub use candidates::Source;
use context::{Context, log_bytes};
pub(crate) use contradiction::Witness;
use directory::Entered;
use plan::Plan;
pub(crate) use readiness::make_ready;
pub use report::{PartitionRecovery, RecoveryReport};
use running_cluster::none_runs;
pub use survivor::give_up_others;

/// For how long a node that has restarted itself retries a start that cannot read something now, such as the
/// repository: without the restart, its other partitions would be served.
const RESTARTED_TIMEOUT: Duration = Duration::from_secs(2 * 60);
/// Wait before the first retry; each further wait is twice as long, up to [`LAST_RETRY`].
const FIRST_RETRY: Duration = Duration::from_secs(1);
/// Longest wait between retries.
const LAST_RETRY: Duration = Duration::from_secs(10);

/// Recovers a data directory; returns when every partition serves.
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
        tracing::warn!(%error, ?pause, "retrying the start after an automatic restart");
        tokio::time::sleep(pause).await;
        pause = LAST_RETRY.min(2 * pause);
    }
}

async fn recover_once(mut options: NodeOptions) -> Result<Arc<Inner>, StartError> {
    let started = Instant::now();
    let (path, said) = (options.data_dir.clone(), options.bootstrap);
    let attempts = Arc::new(Attempts::default());
    options.store.damage = attempts.met.clone();
    let options = Arc::new(options);
    let entered = directory::enter(&options).await;
    let entered = entered.map_err(|error| acceptance::explain(&path, said, error))?;
    let is_member = entered.data_dir.has_peers() && !entered.data_dir.is_new;
    let explain = |error| match is_member && !entered.survives {
        true => members::explain(&path, error),
        false => acceptance::explain(&path, said, error),
    };
    loop {
        attempts.begin();
        let mut opened = Opened::default();
        let tried = attempt(&options, &entered, &attempts, &mut opened, started).await;
        let error = match tried {
            Ok(inner) => {
                opened.hand_over();
                return Ok(Arc::new(inner));
            }
            Err(error) => error,
        };
        attempts.finish_work().await;
        let (noting, data_dir) = (attempts.clone(), entered.data_dir.clone());
        let may_go_on = blocking(move || {
            // Whatever the attempt has opened is closed before the next one.
            drop(opened);
            noting.note(&data_dir)
        });
        // A source that could not be read now is not ruled out.
        if !may_go_on.await? || error.is_unreadable() {
            return Err(explain(error));
        }
    }
}

/// One attempt. Whatever it opens is in `opened`.
async fn attempt(
    options: &Arc<NodeOptions>,
    entered: &Entered,
    attempts: &Arc<Attempts>,
    opened: &mut Opened,
    started: Instant,
) -> Result<Inner, StartError> {
    let mut plan = read_plan(&entered.data_dir).await?;
    let (cx, scan) = open_log(options, entered, attempts, opened).await?;
    let Database {
        store,
        forked,
        damaged,
        mut report,
    } = open_database(&cx, &mut plan).await?;
    opened.store = Some(store.clone());
    report.scan = scan.unwrap_or_default();
    // A group replays from the moment it is open.
    let replay = Instant::now();
    let groups = groups::open(&cx, &store, &mut report, opened).await?;
    let assembled = {
        let report = report.clone();
        blocking(move || groups.assemble(cx, store, &report)).await
    };
    let (mut inner, loaded) = assembled?;
    for partition in damaged {
        let mut known = inner.snapshots.known[partition as usize].lock();
        known.force_full = true;
        known.scrub.want();
    }
    let events = report.entries;
    tracing::info!(events, "Replaying {events} log entries of the partitions");
    replay::wait(&inner).await?;
    report.replay = replay.elapsed();
    serve(&mut inner, options, &forked, entered).await?;
    loaded.recovered(&inner.state.reader);
    note_report(&inner, report, started);
    Ok(inner)
}

async fn read_plan(data_dir: &DataDir) -> Result<Option<Plan>, StartError> {
    let path = data_dir.path().to_owned();
    blocking(move || Plan::read(&path)).await
}

/// Opens the log. Returns how long that took, if the log was large enough to measure it.
async fn open_log(
    options: &Arc<NodeOptions>,
    entered: &Entered,
    attempts: &Arc<Attempts>,
    opened: &mut Opened,
) -> Result<(Context, Option<Duration>), StartError> {
    let (entered, log_options) = (entered.clone(), options.clone());
    let opening = blocking(move || {
        let Entered {
            data_dir, accepted, ..
        } = &entered;
        // A loss is accepted of what is lost, not of what is not mounted.
        if !data_dir.is_new && is_log_lost(data_dir.path())? && !accepted.loss {
            return Err(StartError::LogMissing {
                dir: data_dir.path().to_owned(),
            });
        }
        let peers = entered.bind_to_peers(&log_options)?;
        let scan = Instant::now();
        let raft = inspect::open_log(&log_options, data_dir, accepted.loss, peers.as_deref())?;
        Ok((raft, peers, scan.elapsed(), entered))
    });
    let (raft, peers, scan, entered) = opening.await?;
    opened.raft = Some(raft.clone());
    let log_bytes = log_bytes(&raft)?;
    let digests = match &options.cluster {
        Some(cluster) if peers.is_some() => {
            ReplicaDigests::new(entered.data_dir.identity.node_id, cluster.check_rate)
        }
        _ => ReplicaDigests::default(),
    };
    opened.digests = digests.clone();
    let cx = Context {
        digests,
        store: options.store_in(&entered.data_dir),
        options: options.clone(),
        data_dir: entered.data_dir,
        archive: entered.archive,
        accepted: entered.accepted,
        joined: entered.lineages,
        snapshots_after: (entered.joined)
            .map_or_else(Arc::default, |joined| joined.snapshots_after.into()),
        survives: entered.survives,
        diverged: entered.diverged,
        attempts: attempts.clone(),
        raft,
        peers,
        activity: Arc::default(),
    };
    Ok((cx, Some(scan).filter(|_| scan_tells(log_bytes))))
}

/// The database in a state that the log connects with.
struct Database {
    store: Store,
    /// Partitions that have begun a new lineage in this start.
    forked: Vec<u64>,
    /// Partitions of which a snapshot in the repository was found damaged.
    damaged: Vec<u64>,
    report: RecoveryReport,
}

/// Opens the database, and brings it into a state that the log connects with.
async fn open_database(cx: &Context, plan: &mut Option<Plan>) -> Result<Database, StartError> {
    let is_new_cluster = cx.data_dir.is_new && !plan.as_ref().is_some_and(|plan| plan.everything);
    let format = if is_new_cluster {
        FORMAT
    } else {
        UNCHANGED_SINCE
    };
    let data_dir = cx.data_dir.clone();
    blocking(move || data_dir.bring_up_to_date(format)).await?;
    if is_new_cluster {
        return Ok(Database {
            store: archived_replicas::create(cx).await?,
            forked: Vec::new(),
            damaged: Vec::new(),
            report: RecoveryReport::default(),
        });
    }
    let (leaf, planned) = (cx.clone(), plan.clone().unwrap_or_default());
    let inspecting = blocking(move || {
        let mut facts = inspect::inspect(&leaf, &planned)?;
        cut_log::note_cut(&leaf, &mut facts, &planned)?;
        Ok::<_, StartError>(facts)
    });
    let facts = inspecting.await?;
    if cx.survives {
        // Before copies are looked for, which may take long. They are asked again before a lineage begins.
        none_runs(cx, facts.catalog()).await?;
    }
    let decided = Instant::now();
    let sources = search::find(cx, &facts, plan.get_or_insert_default()).await?;
    let restored = decided.elapsed();
    let data_dir = cx.data_dir.clone();
    blocking(move || data_dir.bring_up_to_date(FORMAT)).await?;
    let damaged = sources.iter().filter(|source| source.damage);
    let damaged = damaged.map(|source| source.partition).collect();
    let rebuilt = rebuild::rebuild(cx, facts, sources, plan.get_or_insert_default()).await?;
    let mut report = rebuilt.report;
    if report.restored_bytes > 0 {
        report.restore = restored + rebuilt.took;
    }
    Ok(Database {
        store: rebuilt.store,
        forked: rebuilt.forked,
        damaged,
        report,
    })
}

/// Reports the end of the recovery, and remembers how fast it was.
fn note_report(inner: &Inner, mut report: RecoveryReport, started: Instant) {
    let replayed = report.partitions.iter();
    let bytes = replayed.map(|one| inner.after(one.partition, one.lsn).1);
    let rates = &inner.snapshots.rates;
    rates.replayed(report.entries, bytes.sum(), report.replay);
    report.total = started.elapsed();
    let apart = report.replay + report.restore + report.scan;
    rates.started(report.total.saturating_sub(apart));
    tracing::info!(
        scan = ?report.scan,
        restore = ?report.restore,
        replay = ?report.replay,
        total = ?report.total,
        "Partitions recovered"
    );
    inner.snapshots.recovered(report);
}

/// The last steps once everything has been replayed, before requests are served.
async fn serve(
    inner: &mut Inner,
    options: &NodeOptions,
    forked: &[u64],
    entered: &Entered,
) -> Result<(), StartError> {
    let (local, data_dir) = (inner.snapshots.local.clone(), inner.data_dir.clone());
    blocking(move || local.remove_stale(&data_dir)).await;
    publish_forked(inner, forked).await;
    match inner.find_unknown_basins() {
        Ok(found) => *inner.unknown_basins.lock() = found,
        Err(error) => tracing::warn!(%error, "streams without a basin were not looked for"),
    }
    let (tokens, suspended) = inner.catalog_reader.count_tokens();
    if suspended > 0 {
        tracing::warn!(
            tokens,
            suspended,
            "access tokens are suspended because the catalog was restored with a loss, and revocations may \
             be lost: revoke those that must not be valid, then confirm the others with the root token"
        );
    }
    // Every partition has entries in the log now: from here on, a partition without any is damaged.
    inner.data_dir.finish()?;
    mark_log(inner.data_dir.path());
    // In this order: a crash in between must leave no acceptance that has effect for another loss.
    // On a node of a cluster the option has had no effect, and is not spent.
    let said = options.bootstrap.filter(|_| entered.accepted.loss);
    acceptance::spend(inner.data_dir.path(), said)?;
    if entered.survives {
        inner.replicas.diverged.forget_all()?;
        inner.data_dir.forget_removal()?;
        inner.data_dir.note_peers(false)?;
        survivor::remove(inner.data_dir.path())?;
    }
    Plan::remove(inner.data_dir.path())
}

/// How long a start waits for one partition to drop a basin. A basin that is not dropped only takes space.
const DROP_TIMEOUT: Duration = Duration::from_secs(10);

/// Drops, in partitions that were restored to an earlier state, the basins that were deleted since then.
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
                // The streams of such a basin cannot be found by name: they only take space.
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

/// Tick interval of the engines; an election takes ten to twenty ticks.
const TICK: Duration = Duration::from_millis(100);
/// Accepted proposals that are not applied yet, per partition.
pub(crate) const MAX_PENDING: u64 = 16 * 1024;
