//! What has to be done from time to time.
//!
//! Two threads: one keeps the log short (flush the database, compact the log behind what is
//! flushed, delete log files), one looks after what time makes due (age retention,
//! delete-on-empty, deletion of basins). Neither decides anything: they propose.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use esker_partition::StreamId;
use esker_partition::command::{DeleteIfEmpty, DropBasin, Expire, ForgetBasin, Kind, Outcome};
use esker_partition::reader::Due;
use esker_partition::store::Part;
use esker_raft::{Group, Lsn};
use parking_lot::{Condvar, Mutex};

use crate::clock::now_ms;
use crate::node::{Inner, Node};

/// How often the log is looked after.
const LOG_INTERVAL: Duration = Duration::from_millis(250);
/// A partition whose log has this many entries that are not flushed is flushed, however small they
/// are: a restart replays some hundred thousand a second.
const FLUSH_AFTER_ENTRIES: u64 = 100_000;
/// The same for what a start has replayed: a node that is killed again and again must not replay more
/// and more each time.
const FLUSH_REPLAYED_ENTRIES: u64 = 5_000;
/// What was applied is flushed after this long at the latest, so that an idle node restarts at once.
const FLUSH_AFTER: Duration = Duration::from_secs(60);

/// The threads.
pub(crate) struct Upkeep {
    signal: Arc<Signal>,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

#[derive(Default)]
struct Signal {
    stopping: AtomicBool,
    woken: Mutex<bool>,
    changed: Condvar,
}

impl Signal {
    /// Waits for `interval`, a wake-up or the end; whether to go on.
    fn wait(&self, interval: Duration) -> bool {
        let mut woken = self.woken.lock();
        if !*woken && !self.stopping.load(Ordering::Relaxed) {
            self.changed.wait_for(&mut woken, interval);
        }
        *woken = false;
        !self.stopping.load(Ordering::Relaxed)
    }

    fn wake(&self) {
        *self.woken.lock() = true;
        self.changed.notify_all();
    }
}

impl Upkeep {
    pub fn start(inner: &Arc<Inner>) -> std::io::Result<Upkeep> {
        let signal = Arc::new(Signal::default());
        let log = std::thread::Builder::new()
            .name("log-upkeep".to_owned())
            .spawn({
                let (inner, signal) = (Arc::downgrade(inner), signal.clone());
                move || keep_log_short(&inner, &signal)
            })?;
        let due = std::thread::Builder::new()
            .name("retention".to_owned())
            .spawn({
                let interval = inner.options.retention_interval;
                let (inner, signal) = (Arc::downgrade(inner), signal.clone());
                move || look_after_due(&inner, &signal, interval)
            })?;
        Ok(Upkeep {
            signal,
            threads: Mutex::new(vec![log, due]),
        })
    }

    pub fn wake(&self) {
        self.signal.wake();
    }

    /// Tells the threads to end. They may be waiting for answers until the groups have stopped.
    pub fn ask_to_stop(&self) {
        self.signal.stopping.store(true, Ordering::Relaxed);
        self.signal.wake();
    }

    /// Waits until they have ended.
    pub fn join(&self) {
        for thread in self.threads.lock().drain(..) {
            // A panic has been reported by the panic hook.
            let _ = thread.join();
        }
    }
}

impl Node {
    pub(crate) fn wake_upkeep(&self) {
        self.upkeep.wake();
    }
}

struct Watched {
    group: Group<Outcome>,
    part: Part,
    durable: Lsn,
    since: Instant,
    /// Not looked at since the start.
    is_new: bool,
}

fn keep_log_short(inner: &Weak<Inner>, signal: &Signal) {
    let mut watched: Vec<Watched> = Vec::new();
    loop {
        let Some(inner) = inner.upgrade() else {
            return;
        };
        if watched.is_empty() {
            watched = watch_all(&inner);
        }
        for one in &mut watched {
            one.look(inner.options.flush_after);
        }
        match inner.raft.log().purge() {
            Ok(held_by) => {
                for one in &mut watched {
                    if held_by.contains(&one.group.id()) {
                        one.flush();
                    }
                }
            }
            Err(error) => tracing::warn!(%error, "log files were not purged"),
        }
        let counts = inner.raft.writer().counts();
        metrics::counter!("esker_log_write_groups_total").absolute(counts.groups);
        metrics::counter!("esker_log_requests_total").absolute(counts.requests);
        metrics::counter!("esker_log_written_bytes_total").absolute(counts.bytes);
        metrics::gauge!("esker_log_files_bytes").set(inner.raft.log().used_bytes() as f64);
        let free = inner.admission.available_permits();
        let used = inner.options.append_inflight.saturating_sub(free);
        metrics::gauge!("esker_append_inflight_bytes").set(used as f64);
        drop(inner);
        if !signal.wait(LOG_INTERVAL) {
            return;
        }
    }
}

fn watch_all(inner: &Inner) -> Vec<Watched> {
    let catalog = (inner.catalog.clone(), inner.catalog_reader.part().clone());
    let streams = inner
        .partitions
        .iter()
        .map(|p| (p.group.clone(), p.reader.part().clone()));
    std::iter::once(catalog)
        .chain(streams)
        .map(|(group, part)| Watched {
            group,
            part,
            durable: Lsn(0),
            since: Instant::now(),
            is_new: true,
        })
        .collect()
}

impl Watched {
    fn look(&mut self, flush_after: u64) {
        self.note_durable();
        let status = self.group.status();
        let waiting = status.applied.0.saturating_sub(self.durable.0);
        let most = if std::mem::take(&mut self.is_new) {
            FLUSH_REPLAYED_ENTRIES
        } else {
            FLUSH_AFTER_ENTRIES
        };
        let due = waiting > most
            || (waiting > 0
                && (self.part.memtable_bytes() > flush_after
                    || self.since.elapsed() > FLUSH_AFTER));
        if due {
            self.flush();
        }
        let partition = self.group.id().to_string();
        let gauge = |name: &'static str, value: u64| {
            metrics::gauge!(name, "partition" => partition.clone()).set(value as f64);
        };
        gauge("esker_partition_last_lsn", status.last.0);
        gauge("esker_partition_applied_lsn", status.applied.0);
        gauge("esker_partition_durable_lsn", self.durable.0);
        gauge("esker_partition_floor_lsn", status.floor.0);
        gauge("esker_partition_files_bytes", self.part.file_bytes());
        gauge("esker_partition_memtable_bytes", self.part.memtable_bytes());
    }

    fn flush(&mut self) {
        if let Err(error) = self.part.flush() {
            tracing::warn!(%error, "not flushed; the log is kept");
            return;
        }
        self.note_durable();
    }

    fn note_durable(&mut self) {
        match self.part.durable() {
            Ok(durable) => {
                let durable = Lsn(durable.map_or(0, |d| d.lsn));
                if durable > self.durable {
                    self.durable = durable;
                    self.since = Instant::now();
                    self.group.durable(durable);
                }
            }
            Err(error) => tracing::warn!(%error, "what is durable cannot be read; the log is kept"),
        }
    }
}

fn look_after_due(inner: &Weak<Inner>, signal: &Signal, interval: Duration) {
    let mut places: Vec<StreamId> = Vec::new();
    while signal.wait(interval) {
        let Some(inner) = inner.upgrade() else {
            return;
        };
        places.resize(inner.partitions.len(), StreamId(0));
        for (partition, place) in inner.partitions.iter().zip(&mut places) {
            let count = inner.options.streams_per_round;
            match partition.reader.due(*place, count, now_ms()) {
                Ok((due, next)) => {
                    *place = next.unwrap_or_default();
                    propose_due(&partition.group, due);
                }
                Err(error) => tracing::warn!(%error, "retention was not looked after"),
            }
        }
        finish_deleted_basins(&inner);
    }
}

fn propose_due(group: &Group<Outcome>, due: Vec<Due>) {
    let mut answers = Vec::with_capacity(due.len());
    for one in due {
        let command = match one {
            Due::Expire { stream, up_to } => Kind::Expire(Expire {
                stream: stream.0,
                up_to,
                at_ms: now_ms(),
            }),
            Due::DeleteIfEmpty { stream, since_ms } => Kind::DeleteIfEmpty(DeleteIfEmpty {
                stream: stream.0,
                since_ms,
            }),
        };
        // What is refused or lost is due again in the next round.
        answers.extend(group.propose(command.into_bytes()));
    }
    for answer in answers {
        let _ = answer.blocking_recv();
    }
}

/// Drops deleted basins in every partition; those that all have dropped are forgotten.
fn finish_deleted_basins(inner: &Inner) {
    for basin in inner.catalog_reader.deleting() {
        let answers: Vec<_> = inner
            .partitions
            .iter()
            .map(|p| {
                let command = Kind::DropBasin(DropBasin { basin: basin.id.0 });
                p.group.propose(command.into_bytes())
            })
            .collect();
        let dropped = answers.into_iter().all(|answer| {
            matches!(
                answer.map(tokio::sync::oneshot::Receiver::blocking_recv),
                Ok(Ok(Ok(Outcome::BasinDropped)))
            )
        });
        if dropped {
            let command = Kind::ForgetBasin(ForgetBasin { basin: basin.id.0 });
            // What is refused or lost is tried again in the next round.
            if let Ok(answer) = inner.catalog.propose(command.into_bytes()) {
                let _ = answer.blocking_recv();
            }
        }
    }
}
