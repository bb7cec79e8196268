//! How a member fetches a snapshot: a [`Receiver`] on a thread of its own, which writes, and a second
//! thread that verifies complete files meanwhile.
//!
//! Messages reach the thread through a bounded queue. The bound is the number of chunks that the receiver
//! can have requested, and some more for other events; a message that does not fit was not requested, and
//! is dropped.
//!
//! While the disk is full, the fetch waits, without a limit in time. After any other error of the disk the
//! fetch goes on from what the disk still has; after [`MAX_FAILURES`] errors in a row it ends, and the
//! engine gets [`Event::FetchFailed`].
//!
//! A fetch knows its group only as a [`FetchHost`].

mod verifier;

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver as Queue, SyncSender};
use std::thread::JoinHandle;

use parking_lot::Mutex;

use super::counts::Counts;
use crate::engine::Event;
use crate::ids::{CheckpointId, NodeId};
use crate::message::{Chunk, EndReason, Ended, Identity, Payload};
use crate::priority::{DiskPriority, lower_priority};
use crate::store::{Partial, SnapshotStore, StoreError};
use crate::transfer::{
    Held, Manifest, Receiver, ReceiverAction, ReceiverConfig, ReceiverCounts, ReceiverEvent,
};
use crate::transport::Transport;
use verifier::Verifier;

/// Events other than chunks that may be queued: ticks, ends, verified files.
const MAX_OTHER_EVENTS: usize = 64;

/// Counts writes of fetched snapshots that found the disk full; the fetch waits then.
const FULL_DISK_WAITS: &str = "esker_raft_snapshot_full_disk_waits_total";
/// Errors of the disk in a row, other than a full disk, after which a fetch ends. The next offer resumes
/// it.
const MAX_FAILURES: u32 = 5;

/// The group that a fetch is for.
pub(super) trait FetchHost: Send + Sync {
    /// Steps the group's engine.
    fn step(&self, event: Event);
    /// What the group counts.
    fn counts(&self) -> &Counts;
}

/// What a fetch needs.
pub(super) struct FetchSetup {
    pub host: Arc<dyn FetchHost>,
    /// The member that fetches.
    pub identity: Identity,
    pub store: Arc<SnapshotStore>,
    pub transport: Arc<dyn Transport>,
    pub config: ReceiverConfig,
    /// The node that has the checkpoint.
    pub from: NodeId,
    pub offer: Manifest,
}

/// The fetch of a member, and the thread of the one before.
#[derive(Default)]
pub(super) struct Fetches {
    state: Mutex<State>,
    /// A fault for tests: no thread can be started.
    #[cfg(test)]
    pub no_threads: AtomicBool,
}

#[derive(Default)]
struct State {
    running: Option<Running>,
    /// The thread of the fetch under way, of the one before, or of a removal.
    thread: Option<JoinHandle<()>>,
    closed: bool,
}

struct Running {
    checkpoint: CheckpointId,
    source: NodeId,
    events: SyncSender<ReceiverEvent>,
    /// Set to end the fetch. Its files stay.
    stop: Arc<AtomicBool>,
}

impl Running {
    fn stop(self) {
        self.stop.store(true, Ordering::Relaxed);
        // Wakes the thread.
        let _ = self.events.try_send(ReceiverEvent::Tick);
    }
}

impl Fetches {
    /// Begins a fetch. Returns false if no thread can be started. Called with the engine's lock held, so
    /// everything that takes time is left to the thread.
    #[must_use]
    pub fn begin(&self, setup: FetchSetup) -> bool {
        let mut state = self.state.lock();
        if state.closed {
            // The group stops, so the engine gets no answer.
            return true;
        }
        let config = &setup.config;
        let bound = config.window_bytes / u64::from(config.chunk_bytes);
        let (events, queue) = mpsc::sync_channel(bound.min(1 << 16) as usize + MAX_OTHER_EVENTS);
        let stop = Arc::<AtomicBool>::default();
        let (checkpoint, from) = (setup.offer.checkpoint, setup.from);
        let running = Running {
            checkpoint,
            source: from,
            events: events.clone(),
            stop: stop.clone(),
        };
        let group = setup.identity.group;
        let begun = self.next_thread(&mut state, format!("fetch-{group}"), move || {
            // Others wait for what it syncs. The verifier inherits it.
            lower_priority(DiskPriority::Lowest);
            let span = tracing::info_span!("fetch", %group, %checkpoint, %from);
            let _entered = span.enter();
            let mut fetch = Fetch {
                setup,
                queue,
                events,
                stop,
                full: false,
            };
            fetch.run();
        });
        match begun {
            Ok(()) => state.running = Some(running),
            Err(error) => {
                tracing::error!(%error, "starting a fetch");
                return false;
            }
        }
        true
    }

    /// Ends a fetch, if it is under way, and removes its files. Called with the engine's lock held.
    pub fn abandon(&self, store: &Arc<SnapshotStore>, checkpoint: CheckpointId) {
        let mut state = self.state.lock();
        let running = state.running.take_if(|r| r.checkpoint == checkpoint);
        running.into_iter().for_each(Running::stop);
        if state.closed {
            // The next open decides about the files.
            return;
        }
        let store = store.clone();
        let begun = self.next_thread(&mut state, "fetch-removal".to_owned(), move || {
            if let Err(error) = store.discard_fetch(checkpoint) {
                tracing::warn!(%checkpoint, %error, "an abandoned fetch is still there");
            }
        });
        if let Err(error) = begun {
            // The next fetch removes it, or the next open.
            tracing::warn!(%checkpoint, %error, "an abandoned fetch is still there");
        }
    }

    /// Starts a thread that first waits for the one before it, so that only one at a time uses the files of
    /// fetches.
    fn next_thread(
        &self,
        state: &mut State,
        name: String,
        work: impl FnOnce() + Send + 'static,
    ) -> io::Result<()> {
        let before = Arc::new(Mutex::new(state.thread.take()));
        let spawned = self.spawn(name, {
            let before = before.clone();
            move || {
                let before = before.lock().take();
                if let Some(before) = before {
                    // A panic of it has already been reported by the panic hook.
                    let _ = before.join();
                }
                work();
            }
        });
        match spawned {
            Ok(thread) => {
                state.thread = Some(thread);
                Ok(())
            }
            Err(error) => {
                state.thread = before.lock().take();
                Err(error)
            }
        }
    }

    fn spawn(
        &self,
        name: String,
        work: impl FnOnce() + Send + 'static,
    ) -> io::Result<JoinHandle<()>> {
        #[cfg(test)]
        if self.no_threads.load(Ordering::SeqCst) {
            return Err(io::Error::other("no more threads (a fault, on purpose)"));
        }
        std::thread::Builder::new().name(name).spawn(work)
    }

    /// Hands a message of that node to the fetch from it, if there is one.
    pub fn deliver(&self, from: NodeId, event: ReceiverEvent) {
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

    /// No fetch begins any more. One that is under way ends, and can be resumed.
    pub fn close(&self) {
        let mut state = self.state.lock();
        state.closed = true;
        state.running.take().into_iter().for_each(Running::stop);
        let thread = state.thread.take();
        drop(state);
        if let Some(thread) = thread {
            // A panic of it has already been reported by the panic hook.
            let _ = thread.join();
        }
    }
}

struct Fetch {
    setup: FetchSetup,
    queue: Queue<ReceiverEvent>,
    events: SyncSender<ReceiverEvent>,
    stop: Arc<AtomicBool>,
    /// The last write failed because the disk was full.
    full: bool,
}

/// Why a fetch ended before it was complete.
#[derive(Debug)]
enum FetchError {
    /// The group or the engine ended it.
    Stopped,
    /// It failed, and the engine gets this reason.
    Failed(EndReason),
}

/// How the receiver goes on after an event.
#[derive(Debug)]
enum Progress {
    /// It needs more events.
    Continues,
    /// All files are complete and verified.
    Complete,
    /// A file cannot be written, for another reason than a full disk: it may be gone, or shorter than
    /// before.
    WriteFailed,
}

impl Fetch {
    fn run(&mut self) {
        let checkpoint = self.setup.offer.checkpoint;
        let fetched = self.fetch();
        tracing::info!(?fetched, "the fetch is over");
        self.setup.host.step(match fetched {
            Ok(()) => Event::SnapshotFetched { checkpoint },
            Err(FetchError::Failed(reason)) => Event::FetchFailed { checkpoint, reason },
            Err(FetchError::Stopped) => return,
        });
    }

    fn fetch(&mut self) -> Result<(), FetchError> {
        let mut failures = 0;
        let partial = Arc::new(self.begin(&mut failures)?);
        let mut held = partial.held();
        let there = |held: &Held| match held {
            Held::Prefix(bytes) => *bytes,
            Held::Whole => 0,
        };
        let there: u64 = held.iter().map(there).sum();
        let total = self.setup.offer.total_bytes();
        tracing::info!(lsn = %self.setup.offer.last_included_index, there, total, "fetching a snapshot");
        if there > 0 {
            self.setup
                .host
                .counts()
                .resumed
                .fetch_add(1, Ordering::Relaxed);
        }
        let verifier = Verifier::start(partial.clone(), self.events.clone());
        let verifier = verifier.map_err(|_| FetchError::Failed(EndReason::NotInstalled))?;
        loop {
            let (config, offer) = (self.setup.config.clone(), self.setup.offer.clone());
            let mut receiver = Receiver::new(config, self.setup.from, offer, &held);
            let progress = self.receive(&mut receiver, &partial, &verifier);
            tracing::info!(counts = ?receiver.counts(), ?progress, "fetched");
            if let Progress::Complete = progress? {
                return Ok(());
            }
            if receiver.bytes_done() > receiver.counts().bytes_held {
                failures = 0;
            }
            // The files may have changed: their lengths are read again.
            self.note_failure(&mut failures)?;
            self.begin(&mut failures)?;
            held = self.still_held(&receiver, &partial);
        }
    }

    /// Opens or makes the directory of the fetch. Waits while the disk is full; retries after other errors,
    /// up to [`MAX_FAILURES`].
    fn begin(&mut self, failures: &mut u32) -> Result<Partial, FetchError> {
        let store = self.setup.store.clone();
        let mut reported = false;
        loop {
            let error = match store.begin_fetch(&self.setup.offer) {
                Ok(partial) => return Ok(partial),
                Err(error) => error,
            };
            if !reported {
                tracing::warn!(%error, "a fetch cannot begin; it is tried again");
                reported = true;
            }
            match error {
                StoreError::Io(error) if is_full(&error) => {
                    metrics::counter!(FULL_DISK_WAITS).increment(1);
                    self.report(0, true);
                    self.wait(1)?;
                }
                _ => self.note_failure(failures)?,
            }
        }
    }

    /// Counts an error of the disk. Waits before the next attempt, or fails after the last one.
    fn note_failure(&mut self, failures: &mut u32) -> Result<(), FetchError> {
        *failures += 1;
        match *failures < MAX_FAILURES {
            true => self.wait(self.setup.config.retry_ticks.max(1)),
            false => Err(FetchError::Failed(EndReason::NotInstalled)),
        }
    }

    /// Waits for so many ticks. Chunks that arrive meanwhile are dropped, and requested again later.
    fn wait(&self, mut ticks: u64) -> Result<(), FetchError> {
        while ticks > 0 {
            let event = self.queue.recv().map_err(|_| FetchError::Stopped)?;
            if self.stop.load(Ordering::Relaxed) {
                return Err(FetchError::Stopped);
            }
            ticks -= u64::from(matches!(event, ReceiverEvent::Tick));
        }
        Ok(())
    }

    /// The state of the files on disk. A file that was verified before and still has its length counts as
    /// verified.
    fn still_held(&self, receiver: &Receiver, partial: &Partial) -> Vec<Held> {
        let held = receiver.held().into_iter().zip(partial.held()).enumerate();
        let held = held.map(|(file, held)| match held {
            (Held::Whole, Held::Prefix(length))
                if self.setup.offer.file_size(file) == Some(length) =>
            {
                Held::Whole
            }
            (_, on_disk) => on_disk,
        });
        held.collect()
    }

    fn receive(
        &mut self,
        receiver: &mut Receiver,
        partial: &Partial,
        verifier: &Verifier,
    ) -> Result<Progress, FetchError> {
        let mut reported = None;
        let mut counted = receiver.counts();
        self.full = false;
        let mut next = Some(ReceiverEvent::Start);
        loop {
            let event = match next.take() {
                Some(event) => event,
                None => self.queue.recv().map_err(|_| FetchError::Stopped)?,
            };
            if self.stop.load(Ordering::Relaxed) {
                return Err(FetchError::Stopped);
            }
            let ticked = matches!(event, ReceiverEvent::Tick);
            let progress = (receiver.bytes_done(), receiver.waits_for_space());
            if ticked && reported != Some(progress) {
                reported = Some(progress);
                self.report(progress.0, progress.1);
            }
            let mut progress = self.carry_out(receiver, event, partial, verifier);
            self.count(receiver, &mut counted);
            let window = self.setup.config.window_bytes;
            if ticked
                && self.full
                && matches!(progress, Ok(Progress::Continues))
                && partial.has_space(window)
            {
                self.full = false;
                progress =
                    self.carry_out(receiver, ReceiverEvent::SpaceReturned, partial, verifier);
            }
            if !matches!(progress, Ok(Progress::Continues)) {
                return progress;
            }
        }
    }

    fn report(&self, bytes_done: u64, waits_for_space: bool) {
        self.setup.host.step(Event::FetchProgress {
            checkpoint: self.setup.offer.checkpoint,
            bytes_done,
            waits_for_space,
        });
    }

    /// Adds what the receiver has counted since the last call to the counters of the member.
    fn count(&self, receiver: &Receiver, counted: &mut ReceiverCounts) {
        let counts = receiver.counts();
        let (bytes, corrupt) = (
            counts.bytes_fetched - counted.bytes_fetched,
            counts.corrupt - counted.corrupt,
        );
        let shared = self.setup.host.counts();
        shared.bytes_fetched.fetch_add(bytes, Ordering::Relaxed);
        shared.corrupt.fetch_add(corrupt, Ordering::Relaxed);
        *counted = counts;
    }

    fn carry_out(
        &mut self,
        receiver: &mut Receiver,
        event: ReceiverEvent,
        partial: &Partial,
        verifier: &Verifier,
    ) -> Result<Progress, FetchError> {
        let mut events = VecDeque::from([event]);
        while let Some(event) = events.pop_front() {
            for action in receiver.step(event) {
                match action {
                    ReceiverAction::Fetch(fetch) => {
                        let fetch = self
                            .setup
                            .identity
                            .seal(self.setup.from, Payload::Fetch(fetch));
                        self.setup.transport.send_bulk(fetch, None);
                    }
                    ReceiverAction::Write {
                        file,
                        offset,
                        bytes,
                    } => match partial.write(file, offset, &bytes) {
                        Ok(()) => events.push_back(ReceiverEvent::Written),
                        Err(error) if is_full(&error) => {
                            self.full = true;
                            metrics::counter!(FULL_DISK_WAITS).increment(1);
                            tracing::warn!(%error, "a snapshot cannot be written; it is tried again");
                            events.push_back(ReceiverEvent::WriteFailed);
                        }
                        Err(error) => {
                            tracing::warn!(%error, "a snapshot cannot be written");
                            return Ok(Progress::WriteFailed);
                        }
                    },
                    ReceiverAction::Verify { file, checksum } => verifier.verify(file, checksum),
                    ReceiverAction::Complete => return Ok(Progress::Complete),
                    ReceiverAction::Failed(reason) => return Err(FetchError::Failed(reason)),
                }
            }
        }
        Ok(Progress::Continues)
    }
}

/// Whether the disk is full: the fetch then waits until space is freed.
fn is_full(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded
    )
}
