//! Opens the groups of the partitions, which replay from then on, and assembles the node.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::time::Instant;

use esker_partition::command::Outcome;
use esker_partition::state::{StateReader, state_partition};
use esker_partition::store::PartitionDb;
use esker_partition::streams::StreamOptions;
use esker_partition::{Catalog, CatalogReader, PartitionId, Store, StreamPartition};
use esker_raft::runtime::SendToPeers;
use esker_raft::{Group, GroupId, GroupOptions, Lsn, SnapshotSink, StateMachine, Term};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use super::attempts::Opened;
use super::context::{Context, log_bytes, log_state};
use super::contradiction::{Witness, put_aside_locals};
use super::report::RecoveryReport;
use crate::admission::{Gate, Pace};
use crate::answer::LOOK_INTERVAL;
use crate::blocking::blocking;
use crate::cluster::{Departure, Diverged, Replicas};
use crate::core::{Inner, StreamGroup};
use crate::data_dir::{DataDir, UNDECIDED};
use crate::error::StartError;
use crate::follower_turns::FollowerTurns;
use crate::lookups::Lookups;
use crate::options::NodeOptions;
use crate::read_budget::ReadBudget;
use crate::restarts::Restarts;
use crate::shared_records::SharedScans;
use crate::shared_ticks::SharedTicks;
use crate::snapshots::{Fit, LocalSnapshots, Rates, ScrubFile, Snapshots};
use crate::space_account::Space;
use crate::state::files::Files;
use crate::state::rebuild::{Loaded, Origin, StateSources};
use crate::state::{self, Shared};

/// Accepted appends that are not applied yet, per partition. Further appends wait; at
/// [`MAX_PENDING`](super::MAX_PENDING) the partition would refuse them. The difference of the two is for
/// what is proposed beside appends, a few at a time.
const MAX_PENDING_APPENDS: usize = 15 * 1024;

/// The groups of all partitions.
pub(super) struct Groups {
    catalog: Group<Outcome>,
    catalog_reader: CatalogReader,
    partitions: Vec<StreamGroup>,
    state_reader: StateReader,
    diverged: Diverged,
    local: Arc<LocalSnapshots>,
    state: StateSources,
    pub loaded: Loaded,
}

/// Opens the groups. They replay from then on.
pub(super) async fn open(
    cx: &Context,
    store: &Store,
    report: &mut RecoveryReport,
    opened: &mut Opened,
) -> Result<Groups, StartError> {
    let local = open_local_snapshots(cx, store, report).await?;
    let (state, loaded) = recover_state(cx, store, report).await?;
    let (leaf, store) = (cx.clone(), store.clone());
    let opening = blocking(move || open_all(&leaf, &store, local, state, loaded));
    let (groups, mut open) = opening.await?;
    opened.groups.append(&mut open.groups);
    Ok(groups)
}

/// Opens the newest local snapshot of each partition that fits the database, and finds where each partition
/// begins to replay.
async fn open_local_snapshots(
    cx: &Context,
    store: &Store,
    report: &mut RecoveryReport,
) -> Result<Arc<LocalSnapshots>, StartError> {
    let (leaf, store) = (cx.clone(), store.clone());
    let opening = blocking(move || {
        let Context {
            options,
            data_dir,
            attempts,
            raft,
            ..
        } = leaf;
        remove_scratch(&data_dir);
        put_aside_locals(&raft, &data_dir, options.partitions)?;
        let mut positions = Vec::new();
        for number in 0..=u64::from(options.partitions) {
            let part = store.partition_db(PartitionId(number));
            let applied = part.applied()?.map_or(0, |a| a.lsn);
            let last = log_state(&raft, number)?.last.0;
            positions.push((applied, last, part.lineage()?));
        }
        let local = LocalSnapshots::open(
            data_dir.checkpoints(),
            options.partitions,
            |partition, checkpoint| {
                let (applied, _, lineage) = &positions[partition as usize];
                let is_of = checkpoint.lineage();
                let is_known = is_of.is_some_and(|of| lineage.contains(of, checkpoint.meta.lsn));
                match is_known && checkpoint.meta.lsn <= *applied {
                    true if is_of != Some(lineage.id()) => Fit::Superseded,
                    true if attempts.is_damaged_local(&checkpoint.dir) => Fit::Superseded,
                    true => Fit::Usable,
                    false => Fit::HasMore,
                }
            },
        );
        Ok::<_, StartError>((local, positions, log_bytes(&raft)?))
    });
    let (local, positions, log_bytes) = opening.await?;
    for (partition, (applied, last, _)) in (0..).zip(&positions) {
        report.note(partition, *applied, *last);
    }
    let applied: Vec<u64> = positions.iter().map(|(applied, ..)| *applied).collect();
    tracing::info!(
        source = %report.source(),
        path = %cx.data_dir.db().display(),
        ?applied,
        log_bytes,
        "Loading partitions: {}", report.source()
    );
    Ok(Arc::new(local))
}

fn remove_scratch(data_dir: &DataDir) {
    for dir in [data_dir.scratch(), data_dir.path().join(UNDECIDED)] {
        if let Err(error) = std::fs::remove_dir_all(&dir)
            && error.kind() != std::io::ErrorKind::NotFound
        {
            tracing::warn!(%error, dir = %dir.display(), "what a test of a restore left is not removed");
        }
    }
}

/// Checks that the state store can be used, and rebuilds it if it cannot.
async fn recover_state(
    cx: &Context,
    store: &Store,
    report: &mut RecoveryReport,
) -> Result<(StateSources, Loaded), StartError> {
    let partition = state_partition(cx.options.partitions);
    let leaf = cx.clone();
    let (files, witness) = blocking(move || {
        let files = open_state_files(&leaf.data_dir)?;
        Ok::<_, StartError>((files, Witness::of(&leaf.raft, partition.0)?))
    })
    .await?;
    let sources = StateSources {
        part: store.partition_db(partition),
        files,
        archive: Shared::archive_of(&cx.options.state, &cx.archive),
        scratch: cx.data_dir.scratch(),
        witness,
    };
    let origin = Origin {
        source: report.source_of(partition.0),
        folded: report.state_commits,
    };
    let loaded = state::rebuild::recover(&sources, origin).await?;
    if report.lost_some(partition.0) {
        report.newer_state = state::newer::newest(&sources).await?;
    }
    Ok((sources, loaded))
}

/// The directory of JSON snapshots.
fn open_state_files(data_dir: &DataDir) -> Result<Files, StartError> {
    let path = data_dir.snapshots();
    Files::open(path.clone()).map_err(|source| StartError::Io {
        operation: "opening",
        path,
        source,
    })
}

/// Opens the groups; those that are open are stopped if one of them fails.
fn open_all(
    cx: &Context,
    store: &Store,
    local: Arc<LocalSnapshots>,
    state: StateSources,
    loaded: Loaded,
) -> Result<(Groups, Opened), StartError> {
    let options = &cx.options;
    let mut open = Opened::default();
    let sink: Arc<dyn SnapshotSink> = local.clone();
    let node = cx.data_dir.identity.node_id;
    let diverged = match cx.survives {
        // What is left is what there is; the file goes once this node serves.
        true => Diverged::none(cx.data_dir.path(), node),
        false => Diverged::open(cx.data_dir.path(), node)?,
    };
    let catalog = Catalog::open_with(store, cx.digests.clone())?;
    let catalog_reader = catalog.reader();
    let catalog = open_group(cx, &catalog_reader.partition_db().clone(), catalog, &sink)?;
    open.groups.push(catalog.clone());
    let mut state_reader = None;
    let mut partitions = Vec::new();
    let stream_options = StreamOptions {
        digests: cx.digests.clone(),
        ..options.stream_options()
    };
    let pace = Arc::new(Pace::new(options.append_share()));
    for number in 1..=u64::from(options.partitions) {
        let partition = StreamPartition::open(store, PartitionId(number), stream_options.clone())?;
        let reader = partition.reader();
        if state.part.partition().0 == number {
            state_reader = Some(partition.state_reader());
        }
        let group = open_group(cx, &reader.partition_db().clone(), partition, &sink)?;
        open.groups.push(group.clone());
        partitions.push(StreamGroup {
            group,
            reader,
            gate: Gate::new(MAX_PENDING_APPENDS, options.append_share(), pace.clone()),
        });
    }
    for (number, group) in (0..).zip(&open.groups) {
        // An earlier process may have ended before it could note it.
        if let Some(found) = cx.digests.divergence(number)
            && let Err(error) = diverged.note(number, &found)
        {
            tracing::warn!(partition = number, %error, "that the replica has diverged is not noted");
        }
        if let Some(why) = diverged.why(number) {
            group.condemn(why);
        }
        // Nobody is to get a state that may be wrong. Where this is the only replica, nobody is there to get it.
        group.withhold_snapshots(cx.digests.is_doubtful(number));
        // The log is kept whole until it is known what the repository has.
        group.keep_from(group.status().log_start);
        if let Some(held) = local.newest(number) {
            let meta = &held.checkpoint.meta;
            group.snapshot_known(Lsn(meta.lsn), Term(meta.term));
        }
    }
    let groups = Groups {
        catalog,
        catalog_reader,
        partitions,
        state_reader: state_reader.expect("the store's partition is one of those that there are"),
        diverged,
        local,
        state,
        loaded,
    };
    Ok((groups, open))
}

/// Opens the group of a partition: on a node of a cluster as one that may have other members.
fn open_group<S: StateMachine<Output = Outcome>>(
    cx: &Context,
    part: &PartitionDb,
    machine: S,
    sink: &Arc<dyn SnapshotSink>,
) -> Result<Group<Outcome>, StartError> {
    let id = GroupId(part.partition().0);
    if cx.peers.is_none() {
        let alone: SendToPeers = Box::new(|_| {});
        return Ok(cx.raft.open_group(id, machine, alone, sink.clone())?);
    }
    let options = GroupOptions {
        lineage: esker_raft::Lineage(part.lineage()?.log_id().0.to_be_bytes()),
        has_host_tag: true,
        sink: Some(sink.clone()),
        ..GroupOptions::reopening(id)
    };
    Ok(cx.raft.open_member(options, machine)?)
}

impl Groups {
    /// Assembles the node from the opened groups.
    pub fn assemble(
        self,
        cx: Context,
        store: Store,
        report: &RecoveryReport,
    ) -> Result<(Inner, Loaded), StartError> {
        let Context {
            options,
            data_dir,
            archive,
            raft,
            peers,
            digests,
            survives,
            ..
        } = cx;
        let identity = data_dir.identity.clone();
        let rates = Rates::open(data_dir.path());
        let log_bytes = log_bytes(&raft)?;
        rates.scanned(log_bytes, report.scan);
        if report.restored_bytes > 0 {
            rates.restored(report.restored_bytes, report.restore);
        }
        let state = Shared::new(
            options.state.clone(),
            self.state_reader,
            self.state.files,
            self.state.archive,
            &identity,
        )?;
        let scrub_file = ScrubFile::open(data_dir.path())?;
        let removed = match survives {
            // The note goes once this node serves alone.
            true => None,
            false => data_dir.removed()?,
        };
        let inner = Inner {
            admission: Arc::new(Semaphore::new(options.append_inflight)),
            reads: ReadBudget::new(options.read_sessions),
            shared_scans: SharedScans::default(),
            turns: FollowerTurns::default(),
            options: NodeOptions::clone(&options),
            raft,
            peers,
            replicas: Replicas::new(digests, self.diverged, Departure::new(removed)),
            store,
            catalog: self.catalog,
            catalog_reader: self.catalog_reader,
            partitions: self.partitions,
            draining: AtomicBool::new(false),
            stopping: CancellationToken::new(),
            next_session: AtomicU64::new(rand::random_range(1..=u64::MAX / 2)),
            latencies: Default::default(),
            sampled_latencies: Default::default(),
            looks: SharedTicks::new(LOOK_INTERVAL),
            snapshots: Snapshots::new(archive, self.local, rates, &identity, scrub_file),
            identity,
            state,
            started: Instant::now(),
            refuses_appends: AtomicBool::new(false),
            space: Space::new(data_dir.path(), log_bytes),
            unknown_basins: Default::default(),
            upkeep: Default::default(),
            lookups: Default::default(),
            starts: Lookups::of_starts(),
            changes: Default::default(),
            restarts: Restarts::open(data_dir.path()),
            data_dir,
        };
        Ok((inner, self.loaded))
    }
}
