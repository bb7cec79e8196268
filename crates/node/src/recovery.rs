//! From a data directory to running partitions.
//!
//! 1. Lock the directory, read its identity; a new one is made here.
//! 2. Look at the log's files, cut a torn tail, open the log.
//! 3. Open the database; a missing one is an error, never an empty one. The same goes for what the
//!    log has of each partition.
//! 4. Each partition replays what its log has above what its database has, all at the same time.
//!
//! Every start says what it loaded, how much it replays and when it is done.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::time::{Duration, Instant};

use esker_partition::{Catalog, PartitionId, Store, StreamPartition};
use esker_raft::log::{Faults, LogConfig};
use esker_raft::runtime::NodeConfig;
use esker_raft::{GroupId, Lsn, NodeId, StateMachine as _};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use crate::data_dir::DataDir;
use crate::error::StartError;
use crate::node::{Inner, NodeOptions, StreamGroup};

/// Ticks of the engines; an election takes ten to twenty of them.
const TICK: Duration = Duration::from_millis(100);
/// Accepted proposals that are not applied yet, per partition.
const MAX_PENDING: u64 = 16 * 1024;

pub(crate) async fn recover(options: NodeOptions) -> Result<Arc<Inner>, StartError> {
    let started = Instant::now();
    let opened = {
        let options = options.clone();
        tokio::task::spawn_blocking(move || open(options))
    };
    let (mut inner, events) = match opened.await {
        Ok(opened) => opened?,
        Err(panic) => std::panic::resume_unwind(panic.into_panic()),
    };
    tracing::info!(events, "Replaying {events} events since snapshot");
    let replay = Instant::now();
    for group in inner.groups() {
        group.wait_until_serving().await;
    }
    // Every partition has something in the log now, so one that has not is damage from here on.
    inner.data_dir.finish()?;
    tracing::info!(
        replay = ?replay.elapsed(),
        total = ?started.elapsed(),
        "Recovery complete"
    );
    Ok(Arc::new(inner))
}

/// Opens everything; also answers how many entries are to be replayed.
fn open(options: NodeOptions) -> Result<(Inner, u64), StartError> {
    let data_dir = DataDir::open(&options.data_dir, &options.cluster_name, options.partitions)?;
    if !data_dir.is_new && !has_log(&data_dir) {
        return Err(StartError::LogMissing {
            dir: data_dir.path().to_owned(),
        });
    }
    let identity = data_dir.identity.clone();
    let (raft, inspection) = esker_raft::Node::start(
        NodeConfig {
            id: NodeId(identity.node_id),
            log: LogConfig {
                dir: data_dir.log(),
                segment_size: options.log_segment_size,
                purge_threshold: options.log_purge_threshold,
                max_group_size: options.log_max_group_size,
            },
            tick_interval: TICK,
            max_pending_proposals: MAX_PENDING,
        },
        Faults::default(),
    )?;
    for torn in &inspection.torn {
        tracing::warn!(
            file = %torn.path.display(),
            offset = torn.offset,
            bytes = torn.bytes,
            "the log ended in a write that was cut short and never acknowledged: {} bytes removed",
            torn.bytes
        );
    }
    let store = if data_dir.is_new {
        Store::create(
            &data_dir.db(),
            &options.store,
            options.partitions,
            &[identity.node_id],
        )?
    } else {
        Store::open(&data_dir.db(), &options.store, options.partitions)?
    };
    // Before a group opens and writes to the log: a refused start leaves it as it was.
    let events = entries_to_replay(&raft, &store, &data_dir)?;

    let alone = || -> esker_raft::runtime::SendToPeers { Box::new(|_| {}) };
    let catalog = Catalog::open(&store)?;
    let catalog_reader = catalog.reader();
    let mut applied = vec![catalog.applied().0];
    let catalog = raft.open_group(GroupId(0), catalog, alone())?;
    let mut partitions = Vec::new();
    let stream_options = options.stream_options();
    for number in 1..=u64::from(options.partitions) {
        let partition = StreamPartition::open(&store, PartitionId(number), stream_options.clone())?;
        applied.push(partition.applied().0);
        let reader = partition.reader();
        let group = raft.open_group(GroupId(number), partition, alone())?;
        partitions.push(StreamGroup { group, reader });
    }
    tracing::info!(
        source = "database",
        path = %data_dir.db().display(),
        ?applied,
        log_files = inspection.files,
        log_bytes = inspection.bytes,
        "Loading snapshot: local database"
    );
    let inner = Inner {
        admission: Arc::new(Semaphore::new(options.append_inflight)),
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
        data_dir,
    };
    Ok((inner, events))
}

/// What the log has above what the database has, over all partitions. A directory in use has
/// something of each of them in its log; raft-engine would take one that has lost its files for new.
fn entries_to_replay(
    raft: &esker_raft::Node,
    store: &Store,
    data_dir: &DataDir,
) -> Result<u64, StartError> {
    let mut entries = 0;
    for number in 0..=u64::from(data_dir.identity.partitions) {
        let applied = store.part(PartitionId(number)).applied()?;
        let last = raft
            .log()
            .state(GroupId(number))
            .map_err(esker_raft::runtime::NodeError::from)?
            .last;
        if last == Lsn(0) && !data_dir.is_new {
            return Err(StartError::LogIncomplete {
                dir: data_dir.path().to_owned(),
                partition: number,
            });
        }
        entries += last.0.saturating_sub(applied.map_or(0, |a| a.lsn));
    }
    Ok(entries)
}

/// Whether there is any log file: a directory in use always has one.
fn has_log(data_dir: &DataDir) -> bool {
    std::fs::read_dir(data_dir.log()).is_ok_and(|mut files| {
        files.any(|f| f.is_ok_and(|f| f.path().extension().is_some_and(|e| e == "raftlog")))
    })
}
