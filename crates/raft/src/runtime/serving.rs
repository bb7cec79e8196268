//! A node's sending of snapshots: one [`Sender`] for all groups, and the thread that reads for it.
//!
//! Actions are carried out without the sender's lock: what they lead to may come back at once. Memory
//! is the sender's bytes in flight; a chunk counts until its [`Permit`] is dropped by the transport.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::sync::{Arc, Weak};
use std::thread::JoinHandle;

use parking_lot::{Condvar, Mutex};

use crate::ids::{CheckpointId, NodeId};
use crate::message::{Ended, Fetch, Identity, Payload};
use crate::store::{SnapshotStore, Stored};
use crate::transfer::{
    ReadError, ReadId, Sender, SenderAction, SenderConfig, SenderCounts, SenderEvent,
};
use crate::transport::Transport;

pub(super) struct Serving {
    state: Mutex<State>,
    /// Bounded by the sender's bytes in flight, and by the checkpoints that there are.
    work: Mutex<VecDeque<Work>>,
    arrived: Condvar,
    transport: Arc<dyn Transport>,
    thread: Mutex<Option<JoinHandle<()>>>,
    this: Weak<Serving>,
}

struct State {
    sender: Sender,
    published: BTreeMap<CheckpointId, Published>,
}

#[derive(Clone)]
struct Published {
    identity: Identity,
    store: Arc<SnapshotStore>,
}

enum Work {
    Read {
        id: ReadId,
        store: Arc<SnapshotStore>,
        checkpoint: CheckpointId,
        file: u32,
        offset: u64,
        length: u32,
    },
    Remove {
        store: Arc<SnapshotStore>,
        checkpoint: CheckpointId,
    },
    Stop,
}

/// See [`crate::transport::Permit`].
struct InFlight {
    serving: Weak<Serving>,
    id: ReadId,
}

impl Drop for InFlight {
    fn drop(&mut self) {
        if let Some(serving) = self.serving.upgrade() {
            serving.step(SenderEvent::Sent { id: self.id }, None);
        }
    }
}

impl Serving {
    pub fn start(config: SenderConfig, transport: Arc<dyn Transport>) -> io::Result<Arc<Serving>> {
        let serving = Arc::new_cyclic(|this| Serving {
            state: Mutex::new(State {
                sender: Sender::new(config),
                published: BTreeMap::new(),
            }),
            work: Mutex::default(),
            arrived: Condvar::new(),
            transport,
            thread: Mutex::default(),
            this: this.clone(),
        });
        let thread = std::thread::Builder::new()
            .name("snapshot-reader".to_owned())
            .spawn({
                let serving = serving.clone();
                move || serving.run()
            })?;
        *serving.thread.lock() = Some(thread);
        Ok(serving)
    }

    /// A stored snapshot may be fetched; older ones of its store are removed as soon as nobody fetches
    /// them.
    pub fn publish(&self, identity: Identity, store: &Arc<SnapshotStore>, stored: &Stored) {
        let published = Published {
            identity,
            store: store.clone(),
        };
        let checkpoint = stored.manifest.checkpoint;
        self.state.lock().published.insert(checkpoint, published);
        let manifest = Box::new(stored.manifest.clone());
        self.step(SenderEvent::Publish(manifest), None);
        let newest = store.newest().map(|s| s.manifest.checkpoint);
        for other in store.all() {
            let other = other.manifest.checkpoint;
            if Some(other) != newest {
                self.step(SenderEvent::Retire(other), None);
            }
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

    pub fn ended(&self, from: NodeId, ended: Ended) {
        self.step(SenderEvent::Ended { from, ended }, None);
    }

    pub fn tick(&self) {
        self.step(SenderEvent::Tick, None);
    }

    pub fn counts(&self) -> SenderCounts {
        self.state.lock().sender.counts()
    }

    fn step(&self, event: SenderEvent, asked: Option<Identity>) {
        let mut to_do = Vec::new();
        {
            let mut state = self.state.lock();
            for action in state.sender.step(event) {
                let published = state.published.get(&checkpoint_of(&action)).cloned();
                if let SenderAction::Release(checkpoint) = action {
                    state.published.remove(&checkpoint);
                }
                to_do.push((action, published));
            }
        }
        for (action, published) in to_do {
            self.carry_out(action, published, asked);
        }
    }

    fn carry_out(
        &self,
        action: SenderAction,
        published: Option<Published>,
        asked: Option<Identity>,
    ) {
        match action {
            SenderAction::ReadChunk {
                id,
                checkpoint,
                file,
                offset,
                length,
            } => match published {
                Some(Published { store, .. }) => self.push(Work::Read {
                    id,
                    store,
                    checkpoint,
                    file,
                    offset,
                    length,
                }),
                None => {
                    let result = Err(ReadError::Gone);
                    self.step(SenderEvent::Read { id, result }, asked);
                }
            },
            SenderAction::SendChunk { id, to, chunk } => {
                let permit = InFlight {
                    serving: self.this.clone(),
                    id,
                };
                if let Some(Published { identity, .. }) = published {
                    let chunk = identity.seal(to, Payload::Chunk(chunk));
                    self.transport.send_bulk(chunk, Some(Box::new(permit)));
                }
            }
            SenderAction::SendEnded { to, ended } => {
                if let Some(identity) = published.map(|p| p.identity).or(asked) {
                    self.transport
                        .send(identity.seal(to, Payload::Ended(ended)));
                }
            }
            SenderAction::Release(checkpoint) => {
                if let Some(Published { store, .. }) = published {
                    self.push(Work::Remove { store, checkpoint });
                }
            }
        }
    }

    fn push(&self, work: Work) {
        self.work.lock().push_back(work);
        self.arrived.notify_one();
    }

    fn run(&self) {
        loop {
            let work = {
                let mut waiting = self.work.lock();
                loop {
                    match waiting.pop_front() {
                        Some(work) => break work,
                        None => self.arrived.wait(&mut waiting),
                    }
                }
            };
            match work {
                Work::Read {
                    id,
                    store,
                    checkpoint,
                    file,
                    offset,
                    length,
                } => {
                    let read = store.read_chunk(checkpoint, file, offset, length);
                    let result = read.map_err(|error| {
                        tracing::warn!(%checkpoint, file, %error, "a snapshot cannot be sent");
                        // Not offered again: the engine asks for a newer one.
                        store.forget(checkpoint);
                        match error.kind() {
                            io::ErrorKind::NotFound => ReadError::Gone,
                            _ => ReadError::Failed,
                        }
                    });
                    self.step(SenderEvent::Read { id, result }, None);
                }
                Work::Remove { store, checkpoint } => {
                    if let Err(error) = store.remove(checkpoint) {
                        tracing::warn!(%checkpoint, %error, "an old snapshot is still there");
                    }
                }
                Work::Stop => return,
            }
        }
    }

    /// Ends the thread, after what was queued before.
    pub fn stop(&self) {
        self.push(Work::Stop);
        let thread = self.thread.lock().take();
        if let Some(thread) = thread {
            // A panic of it has already been reported by the panic hook.
            let _ = thread.join();
        }
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
