//! A member's fetching of a snapshot: a [`Receiver`] on a thread of its own, which writes, and one
//! that verifies whole files beside it.
//!
//! What arrives goes through a bounded queue to the thread. Its bound is what the receiver can have
//! asked for, and some more for ticks; what does not fit was not asked for.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver as Queue, SyncSender};
use std::thread::JoinHandle;

use parking_lot::Mutex;

use super::shared::Shared;
use crate::engine::Event;
use crate::ids::{CheckpointId, NodeId};
use crate::message::{Chunk, EndReason, Ended, Payload};
use crate::store::Partial;
use crate::transfer::{
    Checksum, Held, Manifest, Receiver, ReceiverAction, ReceiverConfig, ReceiverEvent,
};

/// Events beside chunks that may wait: ticks, ends, verified files.
const SPARE: usize = 64;

/// What a member is fetching, and the thread of what it fetched before.
#[derive(Default)]
pub(super) struct Fetches {
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    running: Option<Running>,
    /// Of the fetch under way, or of the one before.
    thread: Option<JoinHandle<()>>,
    closed: bool,
}

struct Running {
    checkpoint: CheckpointId,
    source: NodeId,
    events: SyncSender<ReceiverEvent>,
    orders: Arc<Orders>,
}

#[derive(Default)]
struct Orders {
    /// Leave what is there.
    stop: AtomicBool,
    /// Remove what is there.
    abandon: AtomicBool,
}

impl Orders {
    fn over(&self) -> bool {
        self.stop.load(Ordering::Relaxed) || self.abandon.load(Ordering::Relaxed)
    }
}

impl Fetches {
    /// Begins. The engine's lock is held: everything that takes time is the thread's.
    pub fn begin<O: Send + 'static>(&self, shared: Arc<Shared<O>>, from: NodeId, offer: Manifest) {
        let mut state = self.state.lock();
        if state.closed {
            return;
        }
        let Some(member) = &shared.member else { return };
        let config = member.receiver.clone();
        let bound = config.window_bytes / u64::from(config.chunk_bytes);
        let (events, queue) = mpsc::sync_channel(bound.min(1 << 16) as usize + SPARE);
        let orders = Arc::new(Orders::default());
        let checkpoint = offer.checkpoint;
        let before = state.thread.take();
        let spawned = std::thread::Builder::new()
            .name(format!("fetch-{}", shared.id))
            .spawn({
                let (events, orders) = (events.clone(), orders.clone());
                move || {
                    if let Some(before) = before {
                        // It touches no file after this.
                        let _ = before.join();
                    }
                    let span = tracing::info_span!("fetch", group = %shared.id, %checkpoint, %from);
                    let _entered = span.enter();
                    let mut fetch = Fetch {
                        shared,
                        from,
                        offer,
                        config,
                        queue,
                        events,
                        orders,
                    };
                    fetch.run();
                }
            });
        match spawned {
            Ok(thread) => state.thread = Some(thread),
            // The engine hears nothing of it, and its leader that nothing happens: it offers again.
            Err(error) => tracing::error!(%error, "starting a fetch"),
        }
        state.running = Some(Running {
            checkpoint,
            source: from,
            events,
            orders,
        });
    }

    /// Ends a fetch, also on disk.
    pub fn abandon(&self, checkpoint: CheckpointId) {
        let mut state = self.state.lock();
        if let Some(running) = state.running.take_if(|r| r.checkpoint == checkpoint) {
            running.orders.abandon.store(true, Ordering::Relaxed);
            let _ = running.events.try_send(ReceiverEvent::Tick);
        }
    }

    /// Whether that is being fetched.
    pub fn runs(&self, checkpoint: CheckpointId) -> bool {
        let state = self.state.lock();
        state
            .running
            .as_ref()
            .is_some_and(|r| r.checkpoint == checkpoint)
    }

    /// Something for the fetch from that node.
    pub fn hear(&self, from: NodeId, event: ReceiverEvent) {
        let state = self.state.lock();
        let checkpoint = match &event {
            ReceiverEvent::Chunk(Chunk { checkpoint, .. })
            | ReceiverEvent::Ended(Ended { checkpoint, .. }) => *checkpoint,
            _ => return,
        };
        if let Some(running) = &state.running
            && (running.source, running.checkpoint) == (from, checkpoint)
        {
            let _ = running.events.try_send(event);
        }
    }

    pub fn tick(&self) {
        if let Some(running) = &self.state.lock().running {
            let _ = running.events.try_send(ReceiverEvent::Tick);
        }
    }

    /// No fetch begins any more; one that is under way ends, and can be resumed.
    pub fn close(&self) {
        let mut state = self.state.lock();
        state.closed = true;
        if let Some(running) = state.running.take() {
            running.orders.stop.store(true, Ordering::Relaxed);
            let _ = running.events.try_send(ReceiverEvent::Tick);
        }
        let thread = state.thread.take();
        drop(state);
        if let Some(thread) = thread {
            // A panic of it has already been reported by the panic hook.
            let _ = thread.join();
        }
    }
}

struct Fetch<O> {
    shared: Arc<Shared<O>>,
    from: NodeId,
    offer: Manifest,
    config: ReceiverConfig,
    queue: Queue<ReceiverEvent>,
    events: SyncSender<ReceiverEvent>,
    orders: Arc<Orders>,
}

impl<O: Send + 'static> Fetch<O> {
    fn run(&mut self) {
        let Some(partial) = self.begin() else {
            return self.leave();
        };
        let held = partial.held();
        let there = |held: &Held| match held {
            Held::Prefix(bytes) => *bytes,
            Held::Whole => 0,
        };
        let there: u64 = held.iter().map(there).sum();
        let total = self.offer.total_bytes();
        tracing::info!(lsn = %self.offer.last_included_index, there, total, "fetching a snapshot");
        if there > 0 {
            self.shared.counts.resumed.fetch_add(1, Ordering::Relaxed);
        }
        let partial = Arc::new(partial);
        let verifier = Verifier::start(partial.clone(), self.events.clone());
        let Ok(verifier) = verifier else {
            return self.conclude(Err(EndReason::NotInstalled));
        };
        let mut receiver = Receiver::new(self.config.clone(), self.from, self.offer.clone(), &held);
        let mut told = 0;
        let mut full = false;
        let mut next = Some(ReceiverEvent::Start);
        let outcome = loop {
            let event = match next.take() {
                Some(event) => event,
                None => match self.queue.recv() {
                    Ok(event) => event,
                    Err(_) => break None,
                },
            };
            if self.orders.over() {
                break None;
            }
            if matches!(event, ReceiverEvent::Tick) && told != receiver.bytes_done() {
                told = receiver.bytes_done();
                self.shared.step(Event::FetchProgress {
                    checkpoint: self.offer.checkpoint,
                    bytes_done: told,
                });
            }
            let ticked = matches!(event, ReceiverEvent::Tick);
            let mut ended = self.carry_out(&mut receiver, event, &partial, &verifier, &mut full);
            if ended.is_none() && ticked && full && partial.has_space(self.config.window_bytes) {
                full = false;
                let event = ReceiverEvent::SpaceReturned;
                ended = self.carry_out(&mut receiver, event, &partial, &verifier, &mut full);
            }
            if ended.is_some() {
                break ended;
            }
        };
        verifier.stop();
        let counts = receiver.counts();
        let shared = &self.shared.counts;
        (shared.bytes_fetched).fetch_add(counts.bytes_fetched, Ordering::Relaxed);
        (shared.corrupt).fetch_add(counts.corrupt, Ordering::Relaxed);
        tracing::info!(?counts, ?outcome, "the fetch has ended");
        match outcome {
            Some(outcome) => self.conclude(outcome),
            None => self.leave(),
        }
    }

    /// The partial directory; a disk that is full is waited for.
    fn begin(&mut self) -> Option<Partial> {
        let store = self.shared.member.as_ref()?.store.clone();
        let mut reported = false;
        loop {
            match store.begin_fetch(&self.offer) {
                Ok(partial) => return Some(partial),
                Err(error) if !reported => {
                    tracing::warn!(%error, "a fetch cannot begin; it is tried again");
                    reported = true;
                }
                Err(_) => {}
            }
            // Its tick is the clock here.
            self.queue.recv().ok()?;
            if self.orders.over() {
                return None;
            }
        }
    }

    fn carry_out(
        &self,
        receiver: &mut Receiver,
        event: ReceiverEvent,
        partial: &Partial,
        verifier: &Verifier,
        full: &mut bool,
    ) -> Option<Result<(), EndReason>> {
        let member = self.shared.member.as_ref()?;
        let mut events = VecDeque::from([event]);
        while let Some(event) = events.pop_front() {
            for action in receiver.step(event) {
                match action {
                    ReceiverAction::Fetch(fetch) => {
                        let fetch = member.identity.seal(self.from, Payload::Fetch(fetch));
                        member.transport.send_bulk(fetch, None);
                    }
                    ReceiverAction::Write {
                        file,
                        offset,
                        bytes,
                    } => events.push_back(match partial.write(file, offset, &bytes) {
                        Ok(()) => ReceiverEvent::Written,
                        Err(error) => {
                            *full = matches!(
                                error.kind(),
                                io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded
                            );
                            tracing::warn!(%error, "a snapshot cannot be written; it is tried again");
                            ReceiverEvent::WriteFailed
                        }
                    }),
                    ReceiverAction::Verify { file, checksum } => verifier.verify(file, checksum),
                    ReceiverAction::Complete => return Some(Ok(())),
                    ReceiverAction::Failed(reason) => return Some(Err(reason)),
                }
            }
        }
        None
    }

    fn conclude(&self, outcome: Result<(), EndReason>) {
        let checkpoint = self.offer.checkpoint;
        self.shared.step(match outcome {
            Ok(()) => Event::SnapshotFetched { checkpoint },
            Err(reason) => Event::FetchFailed { checkpoint, reason },
        });
        // The engine may have answered that nobody needs it any more.
        self.leave();
    }

    /// It was told to end.
    fn leave(&self) {
        let checkpoint = self.offer.checkpoint;
        if self.orders.abandon.load(Ordering::Relaxed)
            && let Some(member) = &self.shared.member
            && let Err(error) = member.store.discard_fetch(checkpoint)
        {
            tracing::warn!(%error, "an abandoned fetch is still there");
        }
    }
}

/// Verifies files one after the other, while others are written.
struct Verifier {
    files: mpsc::Sender<(u32, Checksum)>,
    thread: JoinHandle<()>,
}

impl Verifier {
    fn start(partial: Arc<Partial>, events: SyncSender<ReceiverEvent>) -> io::Result<Verifier> {
        // Each file is in it once at most.
        let (files, queue) = mpsc::channel::<(u32, Checksum)>();
        let thread = std::thread::Builder::new()
            .name("snapshot-verifier".to_owned())
            .spawn(move || {
                while let Ok((file, checksum)) = queue.recv() {
                    let good = partial.verify(file, checksum).unwrap_or_else(|error| {
                        tracing::warn!(%error, "a fetched file cannot be verified");
                        false
                    });
                    if !good {
                        tracing::warn!(file, "a fetched file is not what it should be: once more");
                    }
                    // Must not be lost; its reader always goes on, until it is gone.
                    if events.send(ReceiverEvent::Verified { file, good }).is_err() {
                        return;
                    }
                }
            })?;
        Ok(Verifier { files, thread })
    }

    fn verify(&self, file: u32, checksum: Checksum) {
        // Its thread ends after this sender.
        let _ = self.files.send((file, checksum));
    }

    fn stop(self) {
        drop(self.files);
        // It may still be verifying; nobody waits for that but the next fetch's files.
        drop(self.thread);
    }
}
