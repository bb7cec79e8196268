//! Usage of the account, of basins and of streams: what the metrics of the S2 API report.
//!
//! | module | what it holds |
//! |---|---|
//! | `series` | a value over time, in buckets of a minute, an hour and a day |
//! | `meters` | what is measured |
//! | `state` | all measurements, and their bounds |
//! | `file` | the measurements on disk |
//! | `sampler` | sizes of streams and basins over time; forgetting; saving |
//! | `shared_readings` | sizes that requests have read, shared between them |
//! | `query` | ranges of requests, and the metrics within them |
//! | `merged` | the answers of several nodes as one |
//!
//! Handlers count what they serve, in memory. Sizes are read every minute by a task. A file in the data
//! directory keeps the measurements; it is written every five minutes and when the server stops, so a crash
//! loses what was measured since. Measurements are of this server alone, and are no part of what is
//! replicated; in a cluster, whoever is asked asks the others too.

mod file;
mod merged;
mod meters;
mod query;
mod sampler;
mod series;
mod shared_readings;
mod state;

use std::hash::{BuildHasher as _, RandomState};
use std::net::SocketAddr;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use s2_common::access::Operation;

pub(crate) use merged::merged;
pub(crate) use query::{Bounds, account, basin, storage_of_stream};
pub(crate) use sampler::run;

use file::LoadError;
use meters::Meter;
use shared_readings::SharedReadings;
use state::State;

/// The storage class whose appends are counted apart.
const EXPRESS: &str = "express";
/// How often what a session reads is counted.
const COUNT_INTERVAL: Duration = Duration::from_secs(1);

/// Measures usage. Cheap to clone.
#[derive(Clone, Default)]
pub struct Usage {
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    hasher: RandomState,
    readings: SharedReadings,
    /// One at a time writes the file: a stop may come while the sampler saves.
    saving: Mutex<()>,
    /// Whether the file could not be read at the start, and may be whole.
    keeps_file: AtomicBool,
}

impl Usage {
    /// Usage as the data directory has it, or none if that cannot be used.
    pub fn open(data_dir: &Path) -> Usage {
        let mut keeps_file = false;
        let state = match file::load(&file::path(data_dir)) {
            Ok(state) => state,
            Err(LoadError::Absent(path)) => {
                tracing::info!(path = %path.display(), "no usage metrics are stored: they begin now");
                State::default()
            }
            // It may be whole, so it is not replaced: the next start may read it.
            Err(error @ LoadError::Unreadable(..)) => {
                tracing::warn!(%error, "usage metrics begin now, and are not saved in this run");
                keeps_file = true;
                State::default()
            }
            Err(error @ LoadError::Damaged(..)) => {
                tracing::warn!(%error, "stored usage metrics are not used: they begin now");
                State::default()
            }
        };
        Usage {
            shared: Arc::new(Shared {
                state: Mutex::new(state),
                hasher: RandomState::new(),
                readings: SharedReadings::default(),
                saving: Mutex::default(),
                keeps_file: AtomicBool::new(keeps_file),
            }),
        }
    }

    /// Writes the measurements into the data directory. A failure is logged.
    pub fn save(&self, data_dir: &Path) {
        if self.shared.keeps_file.load(Ordering::Relaxed) {
            return;
        }
        let saving = self.shared.saving.lock();
        let _alone = saving.unwrap_or_else(PoisonError::into_inner);
        // A copy: every append and read waits for the lock, and to encode takes long.
        let state = self.state().clone();
        let bytes = file::encode(&state);
        let path = file::path(data_dir);
        if let Err(error) = file::save(&path, &bytes) {
            tracing::warn!(path = %path.display(), %error, "usage metrics were not saved");
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        let state = self.shared.state.lock();
        state.unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts a request that succeeded: of a basin, or of the account.
    pub(crate) fn requested(&self, operation: Operation, basin: Option<&str>) {
        self.state().requested(operation, basin, now());
    }

    /// The meter of what one request does with a stream.
    pub(crate) fn of_stream(
        &self,
        basin: &str,
        stream: &str,
        connection: Option<SocketAddr>,
    ) -> StreamMeter {
        StreamMeter {
            usage: self.clone(),
            basin: basin.to_owned(),
            stream: stream.to_owned(),
            connection,
            streamed: Streamed::default(),
        }
    }
}

/// Counts what one request, or a session, does with a stream.
pub(crate) struct StreamMeter {
    usage: Usage,
    basin: String,
    stream: String,
    connection: Option<SocketAddr>,
    streamed: Streamed,
}

/// What a session has read and is not counted yet: thousands of sessions read each record.
#[derive(Default)]
struct Streamed {
    bytes: usize,
    /// When it was last counted.
    counted: Option<Instant>,
}

impl StreamMeter {
    /// Counts an append that was acknowledged.
    pub(crate) fn appended(&self, storage_class: Option<&str>, bytes: usize) {
        let meter = match storage_class {
            Some(EXPRESS) => Meter::ExpressAppends,
            _ => Meter::StandardAppends,
        };
        let (used, now) = (self.used(meter), now());
        let mut state = self.usage.state();
        state.use_once(meter, &self.basin, used, now);
        state.appended_to(&self.basin, &self.stream, now);
        let meters = &mut state.used(&self.basin, now).measured.meters;
        meters.add(Meter::AppendedBytes, now, bytes as u64);
    }

    /// Counts a read that has one answer.
    pub(crate) fn read(&self, bytes: usize) {
        let now = now();
        let mut state = self.usage.state();
        let meters = &mut state.used(&self.basin, now).measured.meters;
        meters.add(Meter::UnaryReads, now, 1);
        if bytes > 0 {
            meters.add(Meter::ReadBytes, now, bytes as u64);
        }
    }

    /// Counts what a session reads, once a second and at its end. To be called without bytes, too, while
    /// the session is open.
    pub(crate) fn streamed(&mut self, bytes: usize) {
        self.streamed.bytes += bytes;
        let counted = self.streamed.counted.map(|at| at.elapsed());
        if counted.is_none_or(|since| since >= COUNT_INTERVAL) {
            self.streamed.counted = Some(Instant::now());
            self.count_streamed();
        }
    }

    fn count_streamed(&mut self) {
        let bytes = std::mem::take(&mut self.streamed.bytes);
        let (used, now) = (self.used(Meter::StreamingReads), now());
        let mut state = self.usage.state();
        state.use_once(Meter::StreamingReads, &self.basin, used, now);
        if bytes > 0 {
            let meters = &mut state.used(&self.basin, now).measured.meters;
            meters.add(Meter::ReadBytes, now, bytes as u64);
        }
    }

    /// What uses of the stream by the same connection have in common.
    fn used(&self, meter: Meter) -> u64 {
        let what = (meter.number(), &self.basin, &self.stream, self.connection);
        self.usage.shared.hasher.hash_one(what)
    }
}

impl Drop for StreamMeter {
    fn drop(&mut self) {
        if self.streamed.bytes > 0 {
            self.count_streamed();
        }
    }
}

/// Seconds since the epoch.
pub(crate) fn now() -> u32 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |d| u32::try_from(d.as_secs()).unwrap_or(u32::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_cannot_be_read_now_is_not_replaced_and_a_damaged_one_is() {
        let dir = tempfile::tempdir().unwrap();
        let path = file::path(dir.path());
        std::fs::write(&path, "damaged").unwrap();
        Usage::open(dir.path()).save(dir.path());
        let saved = std::fs::read(&path).unwrap();
        assert!(file::decode(&saved).is_ok());

        // A link to itself cannot be read, and could be replaced.
        std::fs::remove_file(&path).unwrap();
        std::os::unix::fs::symlink(&path, &path).unwrap();
        Usage::open(dir.path()).save(dir.path());
        let there = std::fs::symlink_metadata(&path).unwrap();
        assert!(there.is_symlink());
    }
}
