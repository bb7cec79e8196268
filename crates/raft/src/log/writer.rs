//! The one thread that writes the log: group commit for all groups of a node.
//!
//! Requests are queued while a sync is under way. The next write group takes as many as fit into
//! [`max_group_size`](super::LogConfig::max_group_size), groups in turn ([`super::write_queue`]), and makes them
//! durable with one sync. A write group
//! is one batch of raft-engine, so a crash leaves all of it or none. Every batch is synced, also one that
//! only compacts. So at most the last batch can be torn, on which [`super::inspect`] relies.
//!
//! A write that fails, for instance on a full disk, is repeated with the same requests until it works.
//! Meanwhile [`LogWriter::stalled`] is true, and new proposals are refused. A failed *sync* ends the
//! process, see [`super::fs`].
//!
//! The queue is bounded by what producers may have in flight: `max_pending_proposals` per group, and the
//! bytes that the host admits.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};
use protobuf::Message as _;
use raft::eraftpb::HardState;
use raft_engine::{Command, LogBatch};

use super::extents::ExtentNotes;
use super::write_queue::WriteQueue;
use super::{
    EntryIndex, KEY_HARD_STATE, KEY_LAST_CHANGE, KEY_START, KEY_TAG, RaftEngine, SharedLog,
    encode_floor, fill_restart, region,
};
use crate::engine::{LogFloor, Persist};
use crate::ids::GroupId;
use crate::priority::shorten_time_slice;

/// Pause before a failed write is repeated: short, so that writes resume soon after space is freed, and
/// long enough not to use a processor.
const RETRY_INTERVAL: Duration = Duration::from_millis(100);
/// Time between two log messages of one stall.
const STALL_LOG_INTERVAL: Duration = Duration::from_secs(10);

/// Gets the numbers of durable writes. Called on the writer's thread, so it must be quick.
pub trait Persisted: Send + Sync {
    /// Everything of this group up to `number` is durable.
    fn persisted(&self, number: u64);
}

enum Request {
    Persist {
        group: GroupId,
        persist: Persist,
        to: Arc<dyn Persisted>,
    },
    Compact {
        group: GroupId,
        floor: LogFloor,
    },
    /// Answered once everything before it is written.
    Barrier(mpsc::Sender<()>),
}

impl Request {
    fn bytes(&self) -> u64 {
        match self {
            Request::Persist { persist, .. } => persist.bytes(),
            Request::Compact { .. } | Request::Barrier(_) => 64,
        }
    }
}

#[derive(Default)]
struct Queue {
    requests: Vec<Request>,
    stopping: bool,
    /// The thread has ended: further requests are dropped.
    closed: bool,
}

#[derive(Default)]
struct Shared {
    queue: Mutex<Queue>,
    arrived: Condvar,
    stalled: AtomicBool,
    /// Why the last write failed, until one works.
    stall_cause: Mutex<Option<String>>,
    /// When the write under way began, if one is.
    writing_since: Mutex<Option<Instant>>,
    /// Write groups made durable, and requests in them.
    counts: Mutex<WriterCounts>,
}

/// Counters of the writer since its start.
#[derive(Clone, Copy, Debug, Default)]
pub struct WriterCounts {
    /// Write groups, each with one sync.
    pub groups: u64,
    /// Requests made durable.
    pub requests: u64,
    /// Bytes written, roughly.
    pub bytes: u64,
    /// Time in write and sync.
    pub busy: Duration,
}

/// Handle to the writer's thread. Cheap to clone.
#[derive(Clone)]
pub struct LogWriter {
    shared: Arc<Shared>,
    thread: Arc<Mutex<Option<JoinHandle<()>>>>,
}

impl LogWriter {
    /// Starts the thread.
    pub fn start(log: &SharedLog) -> std::io::Result<LogWriter> {
        let shared = Arc::new(Shared::default());
        let thread = std::thread::Builder::new()
            .name("log-writer".to_owned())
            .spawn({
                let shared = shared.clone();
                let engine = log.engine.clone();
                let writing = log.writing.clone();
                let notes = log.notes.clone();
                let max_group = log.config.max_group_size;
                move || {
                    shorten_time_slice();
                    run(&shared, &engine, &writing, &notes, max_group);
                }
            })?;
        Ok(LogWriter {
            shared,
            thread: Arc::new(Mutex::new(Some(thread))),
        })
    }

    /// Queues a group's entries and hard state.
    pub fn persist(&self, group: GroupId, persist: Persist, to: Arc<dyn Persisted>) {
        self.push(Request::Persist { group, persist, to });
    }

    /// Queues a compaction. It is written together with other requests.
    pub fn compact(&self, group: GroupId, floor: LogFloor) {
        self.push(Request::Compact { group, floor });
    }

    /// Whether the last write failed and is being repeated.
    pub fn stalled(&self) -> bool {
        self.shared.stalled.load(Ordering::Relaxed)
    }

    /// Why the last write failed, if it is being repeated.
    pub fn stall_cause(&self) -> Option<String> {
        self.shared.stall_cause.lock().clone()
    }

    /// How long the write under way has taken so far, if there is one. A write that failed and waits to be
    /// repeated is none.
    pub fn writing_for(&self) -> Option<Duration> {
        let since = *self.shared.writing_since.lock();
        since.map(|since| since.elapsed())
    }

    /// The counters so far.
    pub fn counts(&self) -> WriterCounts {
        *self.shared.counts.lock()
    }

    /// Waits until everything queued before is written, or `timeout` has passed. Returns whether it was
    /// written.
    pub fn flush(&self, timeout: Duration) -> bool {
        let (tx, rx) = mpsc::channel();
        self.push(Request::Barrier(tx));
        rx.recv_timeout(timeout).is_ok()
    }

    /// Writes queued requests and ends the thread. A write that fails is not repeated any more: nothing of
    /// it was acknowledged.
    pub fn stop(&self) {
        self.shared.queue.lock().stopping = true;
        self.shared.arrived.notify_one();
        let thread = self.thread.lock().take();
        if let Some(thread) = thread {
            // A panic of the writer has already been reported by the panic hook.
            let _ = thread.join();
        }
    }

    fn push(&self, request: Request) {
        let mut queue = self.shared.queue.lock();
        if queue.closed {
            return;
        }
        queue.requests.push(request);
        let first = queue.requests.len() == 1;
        drop(queue);
        if first {
            self.shared.arrived.notify_one();
        }
    }
}

/// Drops queued requests when the writer's thread ends for any reason, and with them the references to the
/// groups, which reference the writer.
struct CloseQueue<'a>(&'a Shared);

impl Drop for CloseQueue<'_> {
    fn drop(&mut self) {
        let mut queue = self.0.queue.lock();
        queue.closed = true;
        let given_up = std::mem::take(&mut queue.requests);
        drop(queue);
        drop(given_up);
    }
}

fn run(
    shared: &Shared,
    engine: &RaftEngine,
    writing: &Mutex<()>,
    notes: &ExtentNotes,
    max_group: u64,
) {
    let _close = CloseQueue(shared);
    let mut arrived: Vec<Request> = Vec::new();
    let mut waiting = WriteQueue::new();
    // Each waits for everything before it, by number.
    let mut barriers: Vec<(u64, mpsc::Sender<()>)> = Vec::new();
    let mut last = 0;
    let mut batch = LogBatch::default();
    loop {
        {
            let mut queue = shared.queue.lock();
            while waiting.is_empty() && queue.requests.is_empty() {
                if queue.stopping {
                    return;
                }
                shared.arrived.wait(&mut queue);
            }
            std::mem::swap(&mut arrived, &mut queue.requests);
        }
        let now = Instant::now();
        for request in arrived.drain(..) {
            let bytes = request.bytes();
            match request {
                Request::Barrier(answer) => barriers.push((last, answer)),
                Request::Persist { group, .. } | Request::Compact { group, .. } => {
                    last = waiting.push(group, bytes, request, now);
                }
            }
        }
        let group = waiting.take(max_group, now);
        if !group.is_empty() {
            let begun = Instant::now();
            if !write_group(shared, engine, writing, &mut batch, &group) {
                return;
            }
            let bytes = group.iter().map(Request::bytes).sum();
            let now = Instant::now();
            waiting.written(bytes, max_group, now - begun, now);
            // The length of the previous file is noted before anything in a new file is acknowledged.
            notes.write_due(engine, writing);
            notify_persisted(group);
        }
        let oldest = waiting.oldest();
        barriers.retain(|(last, answer)| {
            let is_written = oldest.is_none_or(|oldest| *last < oldest);
            if is_written {
                // The receiver may have stopped waiting.
                let _ = answer.send(());
            }
            !is_written
        });
    }
}

/// Writes and syncs, again and again until it works. Returns false if it did not work and the writer stops.
fn write_group(
    shared: &Shared,
    engine: &RaftEngine,
    writing: &Mutex<()>,
    batch: &mut LogBatch,
    group: &[Request],
) -> bool {
    let mut reported: Option<Instant> = None;
    let started = Instant::now();
    loop {
        *shared.writing_since.lock() = Some(Instant::now());
        let result = fill(engine, batch, group).and_then(|()| {
            let _writing = writing.lock();
            engine.write(batch, true)
        });
        *shared.writing_since.lock() = None;
        match result {
            Ok(_) => break,
            Err(error) => {
                // A batch whose write failed is sealed, so the next attempt builds a new one.
                *batch = LogBatch::default();
                *shared.stall_cause.lock() = Some(format!("{}: {error}", engine.path()));
                shared.stalled.store(true, Ordering::Relaxed);
                if reported.is_none_or(|at| at.elapsed() >= STALL_LOG_INTERVAL) {
                    tracing::error!(
                        dir = engine.path(),
                        %error,
                        "the log cannot be written: proposals are refused, the same write is tried again"
                    );
                    reported = Some(Instant::now());
                }
                if shared.queue.lock().stopping {
                    return false;
                }
                std::thread::sleep(RETRY_INTERVAL);
            }
        }
    }
    if reported.is_some() {
        shared.stalled.store(false, Ordering::Relaxed);
        *shared.stall_cause.lock() = None;
        tracing::info!(dir = engine.path(), "the log can be written again");
    }
    let mut counts = shared.counts.lock();
    counts.groups += 1;
    counts.requests += group.len() as u64;
    counts.bytes += group.iter().map(Request::bytes).sum::<u64>();
    counts.busy += started.elapsed();
    true
}

fn fill(engine: &RaftEngine, batch: &mut LogBatch, group: &[Request]) -> raft_engine::Result<()> {
    // Only the last hard state of a group in this batch counts.
    let mut hard_states: Vec<(GroupId, &HardState)> = Vec::new();
    for request in group {
        match request {
            Request::Persist {
                group: id, persist, ..
            } => {
                if let Some(start) = persist.restart {
                    let tag = engine.get(region(*id), KEY_TAG);
                    fill_restart(batch, region(*id), start, tag.as_deref())?;
                }
                batch.add_entries::<EntryIndex>(region(*id), &persist.entries)?;
                if let Some(last) = persist.last_change() {
                    let last = last.0.to_be_bytes().to_vec();
                    batch.put(region(*id), KEY_LAST_CHANGE.to_vec(), last)?;
                }
                match hard_states.iter_mut().find(|(known, _)| known == id) {
                    Some((_, latest)) => *latest = &persist.hard_state,
                    None => hard_states.push((*id, &persist.hard_state)),
                }
            }
            Request::Compact { group: id, floor } => {
                batch.put(region(*id), KEY_START.to_vec(), encode_floor(*floor))?;
                batch.add_command(
                    region(*id),
                    Command::Compact {
                        index: floor.lsn.0 + 1,
                    },
                );
            }
            Request::Barrier(_) => {}
        }
    }
    for (id, hard_state) in hard_states {
        let bytes = hard_state.write_to_bytes()?;
        batch.put(region(id), KEY_HARD_STATE.to_vec(), bytes)?;
    }
    Ok(())
}

/// Reports to each group once, with its last number.
fn notify_persisted(group: Vec<Request>) {
    let mut last: Vec<(GroupId, u64, Arc<dyn Persisted>)> = Vec::new();
    for request in group {
        match request {
            Request::Persist { group, persist, to } => {
                match last.iter_mut().find(|(id, _, _)| *id == group) {
                    Some((_, number, _)) => *number = persist.number,
                    None => last.push((group, persist.number, to)),
                }
            }
            Request::Compact { .. } | Request::Barrier(_) => {}
        }
    }
    for (_, number, to) in last {
        to.persisted(number);
    }
}
