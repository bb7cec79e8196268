//! A node's sending of snapshots: one [`Sender`] for all groups, and the thread that reads for it.
//!
//! Actions are carried out without the sender's lock: what they lead to may come back at once. Memory
//! is the sender's bytes in flight; a chunk counts until its [`Permit`] is dropped by the transport.
//!
//! The thread is also what keeps to the limit of bytes a second: it waits *before* it reads a chunk, and
//! nobody waits for it. What is read leaves at once, so that memory holds nothing that may not go yet; a
//! read that nobody wants any more is passed over, and costs nothing of the limit.
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
use crate::store::{SnapshotStore, Stored};
use crate::transfer::{
    Manifest, ReadError, ReadId, Sender, SenderAction, SenderConfig, SenderCounts, SenderEvent,
};
use crate::transport::Transport;

pub(super) struct SnapshotSender {
    state: Mutex<State>,
    work: Mutex<Work>,
    /// There is work, or some of it may not be wanted any more.
    arrived: Condvar,
    transport: Arc<dyn Transport>,
    thread: Mutex<Option<JoinHandle<()>>>,
    max_transfers: usize,
    paced: AtomicU64,
    this: Weak<SnapshotSender>,
}

struct State {
    sender: Sender,
    published: BTreeMap<CheckpointId, Published>,
    /// The transfers of the sender, as the log tells of them.
    sending: BTreeMap<(NodeId, CheckpointId), Sending>,
}

/// A transfer under way.
struct Sending {
    /// What is done for it is done in here.
    span: Span,
    sent: u64,
    total: u64,
}

/// A transfer has begun, or is over; said without locks.
struct Change(Span, Transition);

enum Transition {
    Begun { total: u64 },
    Over { sent: u64, total: u64 },
}

impl State {
    /// Follows the sender's transfers; few, so that each is looked for.
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

/// What the thread is to do.
#[derive(Default)]
struct Work {
    /// Bounded by the sender's bytes in flight.
    reads: VecDeque<Read>,
    /// Bounded by the checkpoints that there are. They wait for nothing.
    removals: VecDeque<(Arc<SnapshotStore>, CheckpointId)>,
    stopping: bool,
    /// Something happened since the thread looked last.
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
    /// `bytes_per_second` is what all transfers together may send; 0 for as much as they can.
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
            paced: AtomicU64::new(0),
            this: this.clone(),
        });
        let thread = std::thread::Builder::new()
            .name("snapshot-reader".to_owned())
            .spawn({
                let sender = sender.clone();
                move || sender.run(RateLimiter::new(bytes_per_second))
            })?;
        *sender.thread.lock() = Some(thread);
        Ok(sender)
    }

    /// A stored snapshot may be fetched; older ones of its store are removed as soon as nobody fetches
    /// them.
    pub fn publish(&self, identity: Identity, store: &Arc<SnapshotStore>, stored: &Stored) {
        self.add(identity, store, stored, SenderEvent::Publish);
        self.retire_older(store);
    }

    /// What a store holds when it is opened may be fetched. Somebody may have been fetching one of the
    /// older ones when the process ended, and has not asked again yet: so many stay until then as may be
    /// served at once, the newest of them.
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
        // Those too that the store does not list any more: something of them may be on the disk.
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

    /// A group has stopped: nothing of it is served any more.
    pub fn withdraw(&self, store: &Arc<SnapshotStore>) {
        let mut state = self.state.lock();
        state.published.retain(|_, p| !Arc::ptr_eq(&p.store, store));
    }

    /// A peer wants part of a snapshot of the group that this is the member of.
    pub fn fetch(&self, member: Identity, from: NodeId, fetch: Fetch) {
        self.step(SenderEvent::Fetch { from, fetch }, Some(member));
    }

    /// A peer says that it goes on with its transfer.
    pub fn note_progress(&self, from: NodeId, checkpoint: CheckpointId) {
        self.step(SenderEvent::Progress { from, checkpoint }, None);
    }

    /// A peer says that its transfer is over.
    pub fn ended(&self, from: NodeId, ended: Ended) {
        if ended.reason == EndReason::Corrupt {
            // The next snapshot must not have the same file, or its receiver would not fare better.
            let state = self.state.lock();
            let published = state.published.get(&ended.checkpoint).cloned();
            drop(state);
            if let Some(Published { store, .. }) = published {
                store.doubt(ended.checkpoint);
            }
        }
        self.step(SenderEvent::Ended { from, ended }, None);
        // What the thread waits to read may be for nobody now.
        self.notify(|_| {});
    }

    pub fn tick(&self) {
        self.step(SenderEvent::Tick, None);
    }

    pub fn counts(&self) -> SenderCounts {
        self.state.lock().sender.counts()
    }

    /// For how long chunks have waited, so that no more was sent than the limit allows.
    pub fn paced(&self) -> Duration {
        Duration::from_nanos(self.paced.load(Ordering::Relaxed))
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
            if let Some((store, checkpoint)) = work.removals.pop_front() {
                MutexGuard::unlocked(&mut work, || remove(&store, checkpoint));
            } else if work.stopping {
                return;
            } else if let Some(read) = work.reads.front() {
                let (id, wait) = (read.id, limiter.wait(Instant::now()));
                // The sender's lock is never taken under that of the work: steps push work.
                let wanted = MutexGuard::unlocked(&mut work, || self.wants(id));
                if wanted && !wait.is_zero() {
                    if work.notified {
                        continue;
                    }
                    let since = Instant::now();
                    self.arrived.wait_for(&mut work, wait);
                    let waited = since.elapsed().as_nanos();
                    self.paced.fetch_add(waited as u64, Ordering::Relaxed);
                    // What there is to do is looked at anew.
                    continue;
                }
                // Nobody else takes reads.
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
            // The engine asks for a newer one. Others may go on with this one, if it is all there.
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

    /// Ends the thread, after the removals that wait. Reads that wait are left: nobody is served any
    /// more.
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
