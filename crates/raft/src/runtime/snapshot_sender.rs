//! How a node sends snapshots: one [`Sender`] for all groups, and the thread that reads files for it.
//!
//! Actions are carried out without the lock of the sender's state, because an action may step the sender
//! again at once. Memory is bounded by the sender's bytes in flight; a chunk counts until the transport
//! drops its [`Permit`].
//!
//! The thread also enforces the limit in bytes per second: it waits *before* it reads a chunk, and no other
//! thread waits for it. A chunk that was read is sent at once, so no chunk waits in memory. A read whose
//! transfer has ended is skipped, and does not count for the limit. Its priority is low, for the processor and for
//! the disk: appends go first.
//!
//! [`Permit`]: crate::transport::Permit

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex, MutexGuard};
use tracing::Span;

use super::rate_limiter::RateLimiter;
use crate::ids::{CheckpointId, NodeId};
use crate::message::{EndReason, Ended, Fetch, Identity, Payload};
use crate::priority::{DiskPriority, lower_priority};
use crate::store::{SnapshotStore, Stored};
use crate::transfer::{
    Manifest, ReadError, ReadId, Sender, SenderAction, SenderConfig, SenderCounts, SenderEvent,
};
use crate::transport::Transport;

pub(super) struct SnapshotSender {
    state: Mutex<State>,
    work: Mutex<Work>,
    /// There is work, or some of it is not needed any more.
    arrived: Condvar,
    transport: Arc<dyn Transport>,
    thread: Mutex<Option<JoinHandle<()>>>,
    max_transfers: usize,
    throttled: AtomicU64,
    /// Bytes in a second, of all transfers together; 0 is no limit.
    rate: AtomicU64,
    this: Weak<SnapshotSender>,
}

struct State {
    sender: Sender,
    published: BTreeMap<CheckpointId, Published>,
    /// The transfers of the sender, for the log.
    sending: BTreeMap<(NodeId, CheckpointId), Sending>,
}

/// A transfer under way.
struct Sending {
    /// The span of everything that is done for the transfer.
    span: Span,
    sent: u64,
    total: u64,
}

/// A transfer has begun or ended. Logged without a lock.
struct Change(Span, Transition);

enum Transition {
    Begun { total: u64 },
    Over { sent: u64, total: u64 },
}

impl State {
    /// Compares the sender's transfers with those known before. They are few, so each is looked up.
    fn follow(&mut self) -> Vec<Change> {
        let State {
            sender,
            published,
            sending,
        } = self;
        let mut changes = Vec::new();
        for (to, checkpoint, sent, total) in sender.transfers() {
            let known = sending.entry((to, checkpoint)).or_insert_with(|| {
                let group = published.get(&checkpoint).map(|p| p.identity.group.0);
                let span = tracing::info_span!(parent: None, "send", group, %checkpoint, %to);
                changes.push(Change(span.clone(), Transition::Begun { total }));
                Sending { span, sent, total }
            });
            known.sent = sent;
        }
        sending.retain(|key, Sending { span, sent, total }| {
            let goes_on = sender.transfers().any(|t| (t.0, t.1) == *key);
            if !goes_on {
                let (sent, total) = (*sent, *total);
                changes.push(Change(span.clone(), Transition::Over { sent, total }));
            }
            goes_on
        });
        changes
    }

    /// The span of the transfer that a read is for.
    fn span_of(&self, id: ReadId) -> Span {
        let sending = self
            .sender
            .transfer_of(id)
            .and_then(|t| self.sending.get(&t));
        sending.map_or_else(Span::none, |sending| sending.span.clone())
    }
}

impl Change {
    fn log(self) {
        let Change(span, course) = self;
        let _entered = span.enter();
        match course {
            Transition::Begun { total } => tracing::info!(total, "sending a snapshot"),
            Transition::Over { sent, total } => tracing::info!(sent, total, "nothing more is sent"),
        }
    }
}

#[derive(Clone)]
struct Published {
    identity: Identity,
    store: Arc<SnapshotStore>,
}

/// The work of the thread.
#[derive(Default)]
struct Work {
    /// Bounded by the sender's bytes in flight.
    reads: VecDeque<Read>,
    /// Bounded by the number of checkpoints. Removals are not subject to the rate limit.
    removals: VecDeque<(Arc<SnapshotStore>, CheckpointId)>,
    stopping: bool,
    /// The work has changed since the thread looked last.
    notified: bool,
}

struct Read {
    id: ReadId,
    span: Span,
    store: Arc<SnapshotStore>,
    checkpoint: CheckpointId,
    file: u32,
    offset: u64,
    length: u32,
}

/// See [`crate::transport::Permit`].
struct InFlight {
    sender: Weak<SnapshotSender>,
    id: ReadId,
}

impl Drop for InFlight {
    fn drop(&mut self) {
        if let Some(sender) = self.sender.upgrade() {
            sender.step(SenderEvent::Sent { id: self.id }, None);
        }
    }
}

impl SnapshotSender {
    /// Starts the thread. `bytes_per_second` bounds all transfers together; 0 is no limit.
    pub fn start(
        config: SenderConfig,
        bytes_per_second: u64,
        transport: Arc<dyn Transport>,
    ) -> io::Result<Arc<SnapshotSender>> {
        let max_transfers = config.max_transfers;
        let sender = Arc::new_cyclic(|this| SnapshotSender {
            state: Mutex::new(State {
                sender: Sender::new(config),
                published: BTreeMap::new(),
                sending: BTreeMap::new(),
            }),
            work: Mutex::default(),
            arrived: Condvar::new(),
            transport,
            thread: Mutex::default(),
            max_transfers,
            throttled: AtomicU64::new(0),
            rate: AtomicU64::new(bytes_per_second),
            this: this.clone(),
        });
        let thread = std::thread::Builder::new()
            .name("snapshot-reader".to_owned())
            .spawn({
                let sender = sender.clone();
                move || {
                    lower_priority(DiskPriority::Idle);
                    sender.run(RateLimiter::new(bytes_per_second));
                }
            })?;
        *sender.thread.lock() = Some(thread);
        Ok(sender)
    }

    /// Lets peers fetch a stored snapshot. Older ones of its store are removed as soon as no peer fetches
    /// them.
    pub fn publish(&self, identity: Identity, store: &Arc<SnapshotStore>, stored: &Stored) {
        self.add(identity, store, stored, SenderEvent::Publish);
        self.retire_older(store);
    }

    /// Lets peers fetch what a store holds when it is opened. A peer may have been fetching an older
    /// snapshot when the process ended, and has not requested more of it yet. So the newest `max_transfers`
    /// older ones stay until `idle_ticks` have passed.
    pub fn publish_found(&self, identity: Identity, store: &Arc<SnapshotStore>) {
        for (n, stored) in store.all().iter().rev().enumerate() {
            let event = match n <= self.max_transfers {
                true => SenderEvent::Found,
                false => SenderEvent::Publish,
            };
            self.add(identity, store, stored, event);
        }
        self.retire_older(store);
    }

    fn add(
        &self,
        identity: Identity,
        store: &Arc<SnapshotStore>,
        stored: &Stored,
        event: impl Fn(Box<Manifest>) -> SenderEvent,
    ) {
        let published = Published {
            identity,
            store: store.clone(),
        };
        let checkpoint = stored.manifest.checkpoint;
        self.state.lock().published.insert(checkpoint, published);
        self.step(event(Box::new(stored.manifest.clone())), None);
    }

    fn retire_older(&self, store: &Arc<SnapshotStore>) {
        let newest = store.newest().map(|s| s.manifest.checkpoint);
        // Also those that the store does not list any more: some of their files may be on disk.
        let older: Vec<_> = {
            let state = self.state.lock();
            let own = (state.published.iter()).filter(|(_, p)| Arc::ptr_eq(&p.store, store));
            own.map(|(checkpoint, _)| *checkpoint)
                .filter(|checkpoint| Some(*checkpoint) != newest)
                .collect()
        };
        for checkpoint in older {
            self.step(SenderEvent::Retire(checkpoint), None);
        }
    }

    /// A group has stopped: peers cannot fetch its snapshots any more.
    pub fn withdraw(&self, store: &Arc<SnapshotStore>) {
        let mut state = self.state.lock();
        state.published.retain(|_, p| !Arc::ptr_eq(&p.store, store));
    }

    /// A peer requests part of a snapshot. `member` is this node's identity in the group.
    pub fn fetch(&self, member: Identity, from: NodeId, fetch: Fetch) {
        self.step(SenderEvent::Fetch { from, fetch }, Some(member));
    }

    /// A peer requests part of a snapshot that it may not have, or not any more: its transfer ends.
    pub fn refuse(&self, member: Identity, from: NodeId, checkpoint: CheckpointId) {
        let reason = EndReason::Vanished;
        let ended = Ended { checkpoint, reason };
        self.step(SenderEvent::Ended { from, ended }, None);
        // The read that the thread waits for may not be needed any more.
        self.notify(|_| {});
        self.transport
            .send(member.seal(from, Payload::Ended(ended)));
    }

    /// A peer reports that its transfer goes on.
    pub fn note_progress(&self, from: NodeId, checkpoint: CheckpointId) {
        self.step(SenderEvent::Progress { from, checkpoint }, None);
    }

    /// A peer reports that its transfer has ended.
    pub fn ended(&self, from: NodeId, ended: Ended) {
        if ended.reason == EndReason::Corrupt {
            // The next snapshot must not contain the same damaged file, or its transfer would fail too.
            let state = self.state.lock();
            let published = state.published.get(&ended.checkpoint).cloned();
            drop(state);
            if let Some(Published { store, .. }) = published {
                store.doubt(ended.checkpoint);
            }
        }
        self.step(SenderEvent::Ended { from, ended }, None);
        // The read that the thread waits for may not be needed any more.
        self.notify(|_| {});
    }

    pub fn tick(&self) {
        self.step(SenderEvent::Tick, None);
    }

    pub fn counts(&self) -> SenderCounts {
        self.state.lock().sender.counts()
    }

    /// How long chunks have waited for the rate limit, in all.
    pub fn throttled(&self) -> Duration {
        Duration::from_nanos(self.throttled.load(Ordering::Relaxed))
    }

    /// Changes the limit of all transfers together, for what is read from now on; 0 is no limit.
    pub fn set_rate(&self, bytes_per_second: u64) {
        self.rate.store(bytes_per_second, Ordering::Relaxed);
    }

    fn step(&self, event: SenderEvent, member: Option<Identity>) {
        let mut to_do = Vec::new();
        let changes = {
            let mut state = self.state.lock();
            let actions = state.sender.step(event);
            let changes = state.follow();
            for action in actions {
                let published = state.published.get(&checkpoint_of(&action)).cloned();
                if let SenderAction::Release(checkpoint) = action {
                    state.published.remove(&checkpoint);
                }
                to_do.push((action, published));
            }
            changes
        };
        changes.into_iter().for_each(Change::log);
        for (action, published) in to_do {
            self.carry_out(action, published, member);
        }
    }

    fn carry_out(
        &self,
        action: SenderAction,
        published: Option<Published>,
        member: Option<Identity>,
    ) {
        match action {
            SenderAction::ReadChunk {
                id,
                checkpoint,
                file,
                offset,
                length,
            } => match published {
                Some(Published { store, .. }) => {
                    let read = Read {
                        id,
                        span: self.state.lock().span_of(id),
                        store,
                        checkpoint,
                        file,
                        offset,
                        length,
                    };
                    self.notify(|work| work.reads.push_back(read));
                }
                None => {
                    let result = Err(ReadError::Gone);
                    self.step(SenderEvent::Read { id, result }, member);
                }
            },
            SenderAction::SendChunk { id, to, chunk } => {
                let permit = InFlight {
                    sender: self.this.clone(),
                    id,
                };
                if let Some(Published { identity, .. }) = published {
                    let chunk = identity.seal(to, Payload::Chunk(chunk));
                    self.transport.send_bulk(chunk, Some(Box::new(permit)));
                }
            }
            SenderAction::SendEnded { to, ended } => {
                if let Some(identity) = published.map(|p| p.identity).or(member) {
                    self.transport
                        .send(identity.seal(to, Payload::Ended(ended)));
                }
            }
            SenderAction::Release(checkpoint) => {
                if let Some(Published { store, .. }) = published {
                    self.notify(|work| work.removals.push_back((store, checkpoint)));
                }
            }
        }
    }

    fn notify(&self, update: impl FnOnce(&mut Work)) {
        let mut work = self.work.lock();
        update(&mut work);
        work.notified = true;
        self.arrived.notify_one();
    }

    fn run(&self, mut limiter: RateLimiter) {
        let mut work = self.work.lock();
        loop {
            work.notified = false;
            limiter.set(self.rate.load(Ordering::Relaxed));
            if let Some((store, checkpoint)) = work.removals.pop_front() {
                MutexGuard::unlocked(&mut work, || remove(&store, checkpoint));
            } else if work.stopping {
                return;
            } else if let Some(read) = work.reads.front() {
                let (id, wait) = (read.id, limiter.wait(Instant::now()));
                // The lock of the state is never taken while that of the work is held: steps add work.
                let wanted = MutexGuard::unlocked(&mut work, || self.wants(id));
                if wanted && !wait.is_zero() {
                    if work.notified {
                        continue;
                    }
                    let since = Instant::now();
                    self.arrived.wait_for(&mut work, wait);
                    let waited = since.elapsed().as_nanos();
                    self.throttled.fetch_add(waited as u64, Ordering::Relaxed);
                    // The work may have changed: it is evaluated again.
                    continue;
                }
                // Only this thread takes reads.
                let Some(read) = work.reads.pop_front() else {
                    continue;
                };
                if wanted {
                    limiter.take(read.length, Instant::now());
                }
                MutexGuard::unlocked(&mut work, || self.read(read, wanted));
            } else {
                self.arrived.wait(&mut work);
            }
        }
    }

    fn wants(&self, id: ReadId) -> bool {
        self.state.lock().sender.wants(id)
    }

    fn read(&self, read: Read, wanted: bool) {
        let (id, checkpoint, file) = (read.id, read.checkpoint, read.file);
        let _entered = read.span.enter();
        if !wanted {
            return self.step(SenderEvent::Sent { id }, None);
        }
        let bytes = read
            .store
            .read_chunk(checkpoint, file, read.offset, read.length);
        let result = bytes.map_err(|error| {
            tracing::warn!(file, %error, "a snapshot cannot be sent");
            read.store.doubt(checkpoint);
            // The engine hints at a newer snapshot. Other peers may go on with this one if all of its files
            // are there.
            match error.kind() {
                io::ErrorKind::NotFound => {
                    read.store.forget(checkpoint);
                    ReadError::Gone
                }
                io::ErrorKind::UnexpectedEof => {
                    read.store.forget(checkpoint);
                    ReadError::Failed
                }
                _ => ReadError::Failed,
            }
        });
        self.step(SenderEvent::Read { id, result }, None);
    }

    /// Ends the thread after the pending removals. Pending reads are dropped.
    pub fn stop(&self) {
        self.notify(|work| work.stopping = true);
        let thread = self.thread.lock().take();
        if let Some(thread) = thread {
            // A panic of it has already been reported by the panic hook.
            let _ = thread.join();
        }
    }
}

fn remove(store: &SnapshotStore, checkpoint: CheckpointId) {
    if let Err(error) = store.remove(checkpoint) {
        tracing::warn!(%checkpoint, %error, "an old snapshot is still there");
    }
}

fn checkpoint_of(action: &SenderAction) -> CheckpointId {
    match action {
        SenderAction::ReadChunk { checkpoint, .. } | SenderAction::Release(checkpoint) => {
            *checkpoint
        }
        SenderAction::SendChunk { chunk, .. } => chunk.checkpoint,
        SenderAction::SendEnded { ended, .. } => ended.checkpoint,
    }
}
