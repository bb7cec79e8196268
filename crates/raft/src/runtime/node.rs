//! A node: the log that its groups share, the threads that serve all of them, and the transport to other
//! nodes.
//!
//! A start goes from the number of the start and the snapshot sender to the log, the log writer, the
//! transport, the ticker and the purger. [`Node::open_group`] opens a group of one member,
//! [`Node::open_member`] one with others.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use bytes::Bytes;
use parking_lot::{Mutex, RwLock};

use super::config::{ConfigError, NodeConfig};
use super::counts::{Unread, UnreadCounts};
use super::error::NodeError;
use super::group::Group;
use super::incarnation::next_incarnation;
use super::log_fetcher::LogFetcher;
use super::mailbox::NodeBytes;
use super::member::{ClusterInit, GroupOptions, Member, Tag, complete_install, make_ready};
use super::reopening::Reopening;
use super::shared::{Addressed, SendToPeers, Setup};
use super::snapshot_jobs::{Permits, SnapshotJobs};
use super::snapshot_sender::SnapshotSender;
use super::state_machine::{SnapshotSink, StateMachine};
use crate::drops::{self, DropReason};
use crate::engine::{Engine, Event, Membership};
use crate::ids::{GroupId, Incarnation, Lineage, Lsn, NodeId};
use crate::log::{Faults, Inspection, LogWriter, SharedLog};
use crate::message::{Envelope, Identity};
use crate::store::SnapshotStore;
use crate::transfer::SenderCounts;
use crate::transport::{Foreign, Inbox, ProvenSender, Transport};

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
    log_fetcher: LogFetcher,
    mailbox_bytes: NodeBytes,
    snapshots: Arc<Permits>,
    /// One for each group; returns false once its group is gone.
    tickables: Mutex<Vec<Tickable>>,
    /// When the ticker last ran.
    ticked: Mutex<Instant>,
    stopping: AtomicBool,
    /// Like the purger, it ends when it is unparked after `stopping` was set.
    ticker: Mutex<Option<JoinHandle<()>>>,
    purger: Mutex<Option<JoinHandle<()>>>,
    others: Option<Others>,
}

/// What a node with a transport has in addition.
struct Others {
    transport: Arc<dyn Transport>,
    snapshot_sender: Arc<SnapshotSender>,
    incarnation: Incarnation,
    groups: RwLock<BTreeMap<GroupId, Weak<dyn Addressed>>>,
    unread: Unread,
}

impl Inbox for Inner {
    fn receive(&self, message: Bytes, from: Option<&mut ProvenSender>) -> Result<(), Foreign> {
        let Some(others) = &self.others else {
            return Ok(());
        };
        let message = match Envelope::decode(message) {
            Ok(message) => message,
            Err(error) => {
                others.unread.note(&error);
                return Ok(());
            }
        };
        if let Some(from) = from {
            let checked = from.check(&message, self.config.id);
            checked.inspect_err(|foreign| others.unread.note_foreign(foreign))?;
        }
        let group = others.groups.read().get(&message.sender.group).cloned();
        match group.and_then(|group| group.upgrade()) {
            Some(group) => group.receive(message),
            // It may be opened yet: while the node starts, its groups are opened one after the other.
            None => DropReason::Group.count(1),
        }
        Ok(())
    }

    fn unreachable(&self, node: NodeId) {
        let Some(others) = &self.others else { return };
        let groups: Vec<_> = others.groups.read().values().cloned().collect();
        for group in groups.iter().filter_map(Weak::upgrade) {
            group.unreachable(node);
        }
    }
}

impl Node {
    /// Opens the log and starts the threads that all groups share. The inspection describes the state of
    /// the log's files.
    ///
    /// # Errors
    ///
    /// The configuration is invalid, the log cannot be opened, or a thread cannot be started.
    pub fn start(config: NodeConfig, faults: Faults) -> Result<(Node, Inspection), NodeError> {
        Node::start_with(config, faults, None)
    }

    /// As [`Node::start`], with a transport to other nodes: the node may have groups of several members.
    /// Needs [`NodeConfig::dir`].
    pub fn start_among(
        config: NodeConfig,
        transport: Arc<dyn Transport>,
    ) -> Result<(Node, Inspection), NodeError> {
        Node::start_with(config, Faults::default(), Some(transport))
    }

    /// As [`Node::start_among`], with faults of the disk under the log, for tests.
    pub fn start_with(
        config: NodeConfig,
        faults: Faults,
        transport: Option<Arc<dyn Transport>>,
    ) -> Result<(Node, Inspection), NodeError> {
        config.validate()?;
        let others = match transport {
            Some(transport) => {
                let Some(dir) = &config.dir else {
                    return Err(NodeError::Config(ConfigError {
                        name: "dir",
                        why: "must be set on a node that is not alone".to_owned(),
                    }));
                };
                Some(Others {
                    incarnation: next_incarnation(dir)?,
                    snapshot_sender: SnapshotSender::start(
                        config.for_sender(),
                        config.max_snapshot_bytes_per_second,
                        transport.clone(),
                    )?,
                    transport,
                    groups: RwLock::default(),
                    unread: Unread::default(),
                })
            }
            None => None,
        };
        let (log, inspection) = SharedLog::open(config.log.clone(), faults)?;
        let writer = LogWriter::start(&log)?;
        let log_fetcher = LogFetcher::start()?;
        let inner = Arc::new(Inner {
            snapshots: Arc::new(Permits::new(config.parallel_snapshots.max(1))),
            config,
            log,
            writer,
            log_fetcher,
            mailbox_bytes: NodeBytes::default(),
            tickables: Mutex::new(Vec::new()),
            ticked: Mutex::new(Instant::now()),
            stopping: AtomicBool::new(false),
            ticker: Mutex::new(None),
            purger: Mutex::new(None),
            others,
        });
        if let Some(others) = &inner.others {
            drops::register();
            let inbox: Weak<Inner> = Arc::downgrade(&inner);
            others.transport.start(inbox)?;
        }
        let ticker = std::thread::Builder::new()
            .name("raft-ticker".to_owned())
            .spawn({
                let interval = inner.config.tick_interval;
                let inner = Arc::downgrade(&inner);
                move || tick(&inner, interval)
            })?;
        *inner.ticker.lock() = Some(ticker);
        let interval = inner.config.purge_interval;
        if !interval.is_zero() {
            // A thread of its own: before a file is deleted, entries in it may have to be copied.
            let purger = std::thread::Builder::new()
                .name("log-purger".to_owned())
                .spawn({
                    let inner = Arc::downgrade(&inner);
                    move || purge(&inner, interval)
                })?;
            *inner.purger.lock() = Some(purger);
        }
        Ok((Node { inner }, inspection))
    }

    /// How long ago the ticker last ran: it runs at each tick interval, and waits for no disk by itself.
    pub fn ticked(&self) -> Duration {
        self.inner.ticked.lock().elapsed()
    }

    /// Opens a group of one member on its state machine. A sole voter campaigns at once. Snapshots are
    /// taken when the log has grown by the configured thresholds; `sink` is called with each.
    ///
    /// # Errors
    ///
    /// [`NodeError::Open`] if log and state do not fit together, [`NodeError::Log`] if the log cannot be
    /// read.
    pub fn open_group<S: StateMachine>(
        &self,
        id: GroupId,
        machine: S,
        send: SendToPeers,
        sink: Arc<dyn SnapshotSink>,
    ) -> Result<Group<S::Output>, NodeError> {
        let inner = &self.inner;
        let membership: Membership = machine.membership();
        let engine = Engine::open(
            inner.config.for_engine(),
            inner.log.state(id)?,
            machine.applied(),
            &membership,
            inner.log.reader(id),
        )
        .map_err(|source| NodeError::Open { group: id, source })?;
        let mut setup = self.setup(id, engine, send, sink, None);
        let config = inner.config.for_engine();
        setup.reopening = Some(Reopening::new(inner.log.clone(), config));
        let group = self.run(Group::start(setup, machine)?);
        if membership.voters == [inner.config.id] {
            group.campaign();
        }
        Ok(group)
    }

    /// Opens a group that has, or may get, several members. At the first start the group is founded or the
    /// member waits to be added, as the options say. At later starts the state machine is restored from the
    /// newest snapshot if it is behind that, and a fetch that was under way is resumed.
    ///
    /// # Errors
    ///
    /// [`NodeError::LogLost`] if the member existed before and the log has nothing of it,
    /// [`NodeError::NoTransport`] on a node without a transport, and those of the log, the snapshot store
    /// and the state machine.
    pub fn open_member<S: StateMachine>(
        &self,
        options: GroupOptions,
        mut machine: S,
    ) -> Result<Group<S::Output>, NodeError> {
        let inner = &self.inner;
        let id = options.id;
        let (Some(others), Some(dir)) = (&inner.others, &inner.config.dir) else {
            return Err(NodeError::NoTransport { group: id });
        };
        let identity = self.identity(Some(others), id, options.lineage);
        let dir = group_dir(dir, id);
        if inner.log.tag(id).is_none() {
            let ClusterInit::By(founders) = options.cluster_init.clone() else {
                return Err(NodeError::LogLost { group: id });
            };
            // A directory that cannot be looked up is not one that is absent.
            let there = dir.try_exists().map_err(|error| {
                let what = format!("looking for {}: {error}", dir.display());
                let source = std::io::Error::new(error.kind(), what).into();
                NodeError::Store { group: id, source }
            })?;
            if there || machine.applied() > Lsn(0) {
                return Err(NodeError::LogLost { group: id });
            }
            // Before the directory is made: a directory without a log means a lost log.
            let lineage = options.lineage;
            let tag = Tag { lineage, founders }.encode();
            inner.log.begin_group(id, Default::default(), &tag)?;
        }
        let store = SnapshotStore::open(&dir, identity, options.faults.clone());
        let store = Arc::new(store.map_err(|source| NodeError::Store { group: id, source })?);
        let ready = make_ready(&inner.log, &options, &store, &mut machine)?;

        let mut config = inner.config.for_engine();
        config.group = id;
        config.lineage = options.lineage;
        config.incarnation = others.incarnation;
        // The log has the tag, written when the group was begun. If it has nothing else, nothing is lost.
        config.creates_cluster = true;
        config.seed = inner.config.id.0.wrapping_mul(0x9e37_79b9) ^ id.0;
        let engine = Engine::open(
            config,
            inner.log.state(id)?,
            machine.applied(),
            &ready.membership,
            inner.log.reader(id),
        )
        .map_err(|source| NodeError::Open { group: id, source })?;

        let send: SendToPeers = {
            let transport = others.transport.clone();
            Box::new(move |messages| messages.into_iter().for_each(|m| transport.send(m)))
        };
        let member = Member::new(
            identity,
            store.clone(),
            others.snapshot_sender.clone(),
            others.transport.clone(),
            inner.config.for_receiver(),
        );
        let sink = options.sink.unwrap_or_else(|| Arc::new(()));
        let setup = self.setup(id, engine, send, sink, Some(member));
        let group = self.run(Group::start(setup, machine)?);
        let shared = &group.shared;
        if let Some(member) = &shared.member {
            member.publish_found();
            if let Some(newest) = store.newest() {
                shared.step(Event::SnapshotTaken {
                    last_included_index: newest.manifest.last_included_index,
                    term: newest.manifest.term,
                    peers: Some(newest.manifest.peers.clone()),
                });
            }
            if let Some(offer) = ready.fetching {
                let offer = Box::new(offer);
                shared.step(Event::ResumeFetch { offer });
            }
        }
        let addressed: Weak<dyn Addressed> = Arc::downgrade(shared) as Weak<dyn Addressed>;
        others.groups.write().insert(id, addressed);
        if ready.membership.voters == [inner.config.id] {
            group.campaign();
        }
        Ok(group)
    }

    /// Completes an install of a member's snapshot that a crash interrupted after it had replaced the state,
    /// which now is as of `applied`: the log goes on after it. [`Node::open_member`] does so as well; a host
    /// that compares state and log before that calls this first, also on a node without a transport, which had
    /// one when the install began. Without effect if no install was interrupted, and without a directory of snapshots.
    ///
    /// # Errors
    ///
    /// Those of the log and of the snapshot store.
    pub fn complete_install(
        &self,
        id: GroupId,
        lineage: Lineage,
        applied: Lsn,
    ) -> Result<(), NodeError> {
        let inner = &self.inner;
        let Some(dir) = &inner.config.dir else {
            return Ok(());
        };
        let dir = group_dir(dir, id);
        let of_store = |source| NodeError::Store { group: id, source };
        let there = dir.try_exists().map_err(|e| of_store(e.into()))?;
        if !there || inner.log.tag(id).is_none() {
            return Ok(());
        }
        let identity = self.identity(inner.others.as_ref(), id, lineage);
        let store = SnapshotStore::open(&dir, identity, Default::default()).map_err(of_store)?;
        complete_install(&inner.log, id, &Arc::new(store), applied).map(drop)
    }

    fn identity(&self, others: Option<&Others>, group: GroupId, lineage: Lineage) -> Identity {
        Identity {
            cluster: self.inner.config.cluster,
            group,
            lineage,
            node: self.inner.config.id,
            // Without others, nothing is sent that has it.
            incarnation: others.map_or_else(Incarnation::default, |others| others.incarnation),
        }
    }

    fn setup(
        &self,
        id: GroupId,
        engine: Engine,
        send: SendToPeers,
        sink: Arc<dyn SnapshotSink>,
        member: Option<Member>,
    ) -> Setup {
        let config = &self.inner.config;
        let second = Duration::from_secs(1).as_nanos() / config.tick_interval.as_nanos().max(1);
        Setup {
            id,
            node: config.id,
            election_ticks: config.election_ticks,
            // As many as may be pending, and at most a million, which no sync keeps waiting. The host
            // bounds their bytes when it admits them.
            max_waiting_proposals: config.max_pending_proposals.min(1 << 20) as usize,
            publish_interval: second.max(1) as u64,
            engine,
            reader: self.inner.log.reader(id).into(),
            log_fetcher: self.inner.log_fetcher.clone(),
            mailbox_bytes: self.inner.mailbox_bytes.clone(),
            writer: self.inner.writer.clone(),
            send,
            snapshot_jobs: SnapshotJobs::new(self.inner.snapshots.clone(), sink),
            member,
            reopening: None,
        }
    }

    /// Gives the group its ticks from now on.
    fn run<O: Send + 'static>(&self, group: Group<O>) -> Group<O> {
        self.inner.tickables.lock().push({
            // A weak reference: the group would otherwise live as long as its node, even after it has
            // stopped.
            let shared = Arc::downgrade(&group.shared);
            Box::new(move || {
                let shared = shared.upgrade();
                shared.inspect(|shared| shared.tick()).is_some()
            })
        });
        group
    }

    /// Makes a group take a snapshot soon; [`Group::snapshot`] also returns the outcome. Returns false if
    /// there is no such group, or it was opened with [`Node::open_group`].
    pub fn trigger_snapshot(&self, group: GroupId) -> bool {
        let others = self.inner.others.as_ref();
        let group = others.and_then(|o| o.groups.read().get(&group)?.upgrade());
        group.map(|group| group.request_snapshot()).is_some()
    }

    /// Counters of the snapshots that the node has sent, of all groups.
    pub fn sent(&self) -> SenderCounts {
        let others = self.inner.others.as_ref();
        others.map_or_else(SenderCounts::default, |o| o.snapshot_sender.counts())
    }

    /// Changes how many bytes of snapshots the node sends in a second, over all transfers; 0 is no limit. It begins
    /// with [`NodeConfig::max_snapshot_bytes_per_second`].
    pub fn set_snapshot_rate(&self, bytes_per_second: u64) {
        if let Some(others) = &self.inner.others {
            others.snapshot_sender.set_rate(bytes_per_second);
        }
    }

    /// Counters of messages from other nodes that could not be decoded, of all groups.
    pub fn unread(&self) -> UnreadCounts {
        let others = self.inner.others.as_ref();
        others.map_or_else(UnreadCounts::default, |o| o.unread.counts())
    }

    /// The log.
    pub fn log(&self) -> &SharedLog {
        &self.inner.log
    }

    /// The log's writer.
    pub fn writer(&self) -> &LogWriter {
        &self.inner.writer
    }

    /// Ends the shared threads. Stop the groups before.
    pub fn stop(&self) {
        self.inner.stopping.store(true, Ordering::Relaxed);
        self.inner.writer.stop();
        self.inner.log_fetcher.stop();
        for thread in [&self.inner.ticker, &self.inner.purger] {
            let thread = thread.lock().take();
            if let Some(thread) = thread {
                thread.thread().unpark();
                // A panic of it has already been reported by the panic hook.
                let _ = thread.join();
            }
        }
        self.inner.tickables.lock().clear();
        if let Some(others) = &self.inner.others {
            others.transport.stop();
            others.snapshot_sender.stop();
        }
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
        *inner.ticked.lock() = Instant::now();
        if let Some(others) = &inner.others {
            others.snapshot_sender.tick();
            let bytes = others.snapshot_sender.counts().bytes_sent;
            metrics::counter!("esker_raft_snapshot_bytes_sent_total").absolute(bytes);
            let throttled = others.snapshot_sender.throttled().as_millis() as u64;
            metrics::counter!("esker_raft_snapshot_paced_milliseconds_total").absolute(throttled);
        }
    }
}

fn purge(inner: &Weak<Inner>, interval: Duration) {
    loop {
        std::thread::park_timeout(interval);
        let Some(inner) = inner.upgrade() else {
            return;
        };
        if inner.stopping.load(Ordering::Relaxed) {
            return;
        }
        let held_by = match inner.log.purge() {
            Ok(held_by) => held_by,
            Err(error) => {
                tracing::warn!(%error, "files of the log were not deleted; it is tried again");
                continue;
            }
        };
        let Some(others) = inner.others.as_ref().filter(|_| inner.config.hints()) else {
            continue;
        };
        for group in held_by {
            let group = others.groups.read().get(&group).and_then(Weak::upgrade);
            if let Some(group) = group {
                group.release_log();
            }
        }
    }
}

/// Directory of a group's snapshots.
fn group_dir(dir: &Path, group: GroupId) -> std::path::PathBuf {
    dir.join(format!("group-{group}"))
}
