//! A node: the log that its groups share, and the threads that serve them all.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::thread::JoinHandle;
use std::time::Duration;

use parking_lot::Mutex;

use super::group::{Group, SendToPeers};
use super::snapshots::Permits;
use super::state_machine::{SnapshotSink, StateMachine};
use crate::engine::{Config, Engine, Membership, OpenError};
use crate::ids::{GroupId, NodeId};
use crate::log::{Faults, Inspection, LogConfig, LogError, LogWriter, SharedLog};

/// What a node is told at its start.
#[derive(Clone, Debug)]
pub struct NodeConfig {
    /// This node.
    pub id: NodeId,
    /// The log.
    pub log: LogConfig,
    /// Time between ticks of the engines.
    pub tick_interval: Duration,
    /// See [`Config::max_pending_proposals`].
    pub max_pending_proposals: u64,
    /// See [`Config::snapshot_hint_threshold_entries`].
    pub snapshot_hint_threshold_entries: u64,
    /// See [`Config::snapshot_hint_threshold_bytes`].
    pub snapshot_hint_threshold_bytes: u64,
    /// See [`Config::max_log_entries`].
    pub max_log_entries: u64,
    /// How many groups may write a snapshot at the same time; 0 is taken for 1, the default.
    pub parallel_snapshots: usize,
}

/// Why a node or a group could not start.
#[derive(Debug, thiserror::Error)]
pub enum NodeError {
    /// The log.
    #[error(transparent)]
    Log(#[from] LogError),
    /// A group's log and state do not fit together.
    #[error("partition {group}: {source}")]
    Open {
        /// The group.
        group: GroupId,
        /// What is wrong.
        source: OpenError,
    },
    /// A thread could not be started.
    #[error("starting a thread: {0}")]
    Thread(#[from] std::io::Error),
}

type Tickable = Box<dyn Fn() -> bool + Send>;

/// A running node. Cheap to clone.
#[derive(Clone)]
pub struct Node {
    inner: Arc<Inner>,
}

struct Inner {
    config: NodeConfig,
    log: SharedLog,
    writer: LogWriter,
    snapshots: Arc<Permits>,
    /// One for each group; answers false once its group is gone.
    tickables: Mutex<Vec<Tickable>>,
    stopping: AtomicBool,
    ticker: Mutex<Option<JoinHandle<()>>>,
}

impl Node {
    /// Opens the log and starts the threads that all groups share. The inspection tells what was
    /// found in the log.
    pub fn start(config: NodeConfig, faults: Faults) -> Result<(Node, Inspection), NodeError> {
        let (log, inspection) = SharedLog::open(config.log.clone(), faults)?;
        let writer = LogWriter::start(&log)?;
        let inner = Arc::new(Inner {
            snapshots: Arc::new(Permits::new(config.parallel_snapshots.max(1))),
            config,
            log,
            writer,
            tickables: Mutex::new(Vec::new()),
            stopping: AtomicBool::new(false),
            ticker: Mutex::new(None),
        });
        let ticker = std::thread::Builder::new()
            .name("raft-ticker".to_owned())
            .spawn({
                let interval = inner.config.tick_interval;
                let inner = Arc::downgrade(&inner);
                move || tick(&inner, interval)
            })?;
        *inner.ticker.lock() = Some(ticker);
        Ok((Node { inner }, inspection))
    }

    /// Opens a group on its state machine. A sole voter stands for election at once. Snapshots are
    /// taken when the log has grown by the configured thresholds, and `sink` hears of them.
    pub fn open_group<S: StateMachine>(
        &self,
        id: GroupId,
        machine: S,
        send: SendToPeers,
        sink: Arc<dyn SnapshotSink>,
    ) -> Result<Group<S::Output>, NodeError> {
        let inner = &self.inner;
        let membership: Membership = machine.membership();
        let sole = membership.voters == [inner.config.id];
        let mut config = Config::new(inner.config.id);
        config.max_pending_proposals = inner.config.max_pending_proposals;
        config.snapshot_hint_threshold_entries = inner.config.snapshot_hint_threshold_entries;
        config.snapshot_hint_threshold_bytes = inner.config.snapshot_hint_threshold_bytes;
        config.max_log_entries = inner.config.max_log_entries;
        let engine = Engine::open(
            config,
            inner.log.state(id)?,
            machine.applied(),
            &membership,
            inner.log.reader(id),
        )
        .map_err(|source| NodeError::Open { group: id, source })?;
        let snapshots = (inner.snapshots.clone(), sink);
        let group = Group::start(id, engine, machine, inner.writer.clone(), send, snapshots)?;
        inner.tickables.lock().push({
            let group = group.clone();
            let stopped = self.weak();
            Box::new(move || {
                group.tick();
                stopped.upgrade().is_some()
            })
        });
        if sole {
            group.campaign();
        }
        Ok(group)
    }

    /// The log.
    pub fn log(&self) -> &SharedLog {
        &self.inner.log
    }

    /// The log's writer.
    pub fn writer(&self) -> &LogWriter {
        &self.inner.writer
    }

    /// Ends the shared threads. Groups are to be stopped before.
    pub fn stop(&self) {
        self.inner.stopping.store(true, Ordering::Relaxed);
        self.inner.writer.stop();
        let ticker = self.inner.ticker.lock().take();
        if let Some(ticker) = ticker {
            ticker.thread().unpark();
            // A panic of the ticker has already been reported by the panic hook.
            let _ = ticker.join();
        }
        self.inner.tickables.lock().clear();
    }

    fn weak(&self) -> Weak<Inner> {
        Arc::downgrade(&self.inner)
    }
}

fn tick(inner: &Weak<Inner>, interval: Duration) {
    loop {
        std::thread::park_timeout(interval);
        let Some(inner) = inner.upgrade() else {
            return;
        };
        if inner.stopping.load(Ordering::Relaxed) {
            return;
        }
        inner.tickables.lock().retain(|tick| tick());
    }
}
