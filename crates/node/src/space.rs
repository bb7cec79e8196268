//! Space on the disk of the data directory: when an append has to wait for it, and when it is refused.
//!
//! How much space is in use does not depend on how fast clients append:
//!
//! | what | bound | beyond |
//! |---|---|---|
//! | the log | [`Inner::log_limit`]: a quarter more than [`Inner::log_most`] | appends wait until it is trimmed |
//! | what is deleted and still in files | see `reclaim` of esker-partition | appends wait until the files are rewritten |
//! | free space | a reserve, so that flushes and deletions always work | appends are refused, but those that only trim |
//!
//! The log writer counts what it writes, so the first and the last are exact between two looks at the
//! disk. What was admitted before adds `limits.append-inflight` at most.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use esker_partition::store::Part;
use parking_lot::{Condvar, Mutex};
use tokio::time::Instant;

use crate::error::Error;
use crate::node::Inner;
use crate::snapshots::OnLogFull;

/// Longest that an append waits for space: well within the time that a client waits for an answer.
const SPACE_TIMEOUT: Duration = Duration::from_secs(5);
/// How often one that waits looks again.
const LOOK_INTERVAL: Duration = Duration::from_millis(20);
/// Space that is not worth a snapshot.
const LITTLE: u64 = 1 << 20;
/// At most this share of a disk is kept free.
const RESERVE_SHARE: u64 = 8;
/// What is appended is written this often before space comes back: to the log, to a file of the
/// database, and to another one when files are merged.
const WRITTEN_TIMES: u64 = 3;

/// What is known about space.
#[derive(Debug)]
pub(crate) struct Space {
    /// How many bytes the log writer may have written since the start before appends wait.
    log_limit: AtomicU64,
    /// The same before free space is looked at again.
    free_limit: AtomicU64,
    /// What the log had on disk when that was last known.
    log_bytes: AtomicU64,
    /// Whether less is free than is to be.
    is_short: AtomicBool,
    /// Whether an append gave up waiting since the log was within its limit.
    is_stuck: AtomicBool,
    /// Wakes the thread that trims the log.
    pub log_keeper: Arc<Signal>,
}

impl Default for Space {
    fn default() -> Space {
        Space {
            log_limit: AtomicU64::new(u64::MAX),
            free_limit: AtomicU64::new(0),
            log_bytes: AtomicU64::new(0),
            is_short: AtomicBool::new(false),
            is_stuck: AtomicBool::new(false),
            log_keeper: Arc::default(),
        }
    }
}

impl Space {
    /// With a log of so many bytes.
    pub fn with_log(bytes: u64) -> Space {
        Space {
            log_bytes: AtomicU64::new(bytes),
            ..Space::default()
        }
    }
}

/// Wakes a thread that looks after something from time to time, and ends it.
#[derive(Debug, Default)]
pub(crate) struct Signal {
    stopping: AtomicBool,
    woken: Mutex<bool>,
    changed: Condvar,
}

impl Signal {
    /// Waits for `interval`, a wake-up or the end; whether to go on.
    pub fn wait(&self, interval: Duration) -> bool {
        let mut woken = self.woken.lock();
        if !*woken && !self.stopping.load(Ordering::Relaxed) {
            self.changed.wait_for(&mut woken, interval);
        }
        *woken = false;
        !self.stopping.load(Ordering::Relaxed)
    }

    pub fn wake(&self) {
        *self.woken.lock() = true;
        self.changed.notify_all();
    }

    /// The thread ends soon.
    pub fn stop(&self) {
        self.stopping.store(true, Ordering::Relaxed);
        self.wake();
    }
}

/// Free and all bytes of the file system of a directory; `None` if it does not say.
fn file_system(dir: &Path) -> Option<(u64, u64)> {
    let stats = rustix::fs::statvfs(dir).ok()?;
    Some((
        stats.f_bavail.saturating_mul(stats.f_frsize),
        stats.f_blocks.saturating_mul(stats.f_frsize),
    ))
}

impl Inner {
    /// What the log may have on disk before it is trimmed: below its purge threshold it is never made
    /// smaller, and of each of its two queues one file is being written to.
    pub(crate) fn log_most(&self) -> u64 {
        let most = self.options.snapshots.max_log_bytes;
        most.max(self.options.log_purge_threshold) + 2 * self.options.log_segment_size
    }

    /// What the log may have on disk before appends wait for its being trimmed.
    pub(crate) fn log_limit(&self) -> u64 {
        let most = self.log_most();
        most + most / 4
    }

    fn written(&self) -> u64 {
        self.raft.writer().counts().bytes
    }

    /// What the log has on disk, as far as that was last known.
    pub(crate) fn log_bytes(&self) -> u64 {
        self.space.log_bytes.load(Ordering::Relaxed)
    }

    /// Notes how large the log is.
    pub(crate) fn note_log(&self, bytes: u64, written: u64) {
        self.space.log_bytes.store(bytes, Ordering::Relaxed);
        let left = self.log_limit().saturating_sub(bytes);
        let limit = match left {
            0 => 0,
            left => written + left,
        };
        self.space.log_limit.store(limit, Ordering::Relaxed);
        if left > 0 {
            self.space.is_stuck.store(false, Ordering::Relaxed);
        }
    }

    /// Whether appends wait for the log to be trimmed.
    pub(crate) fn log_is_over(&self) -> bool {
        self.log_is_over_at(self.written())
    }

    fn log_is_over_at(&self, written: u64) -> bool {
        written >= self.space.log_limit.load(Ordering::Relaxed)
    }

    /// Looks how much space is free; answers what is wrong, if it is too little.
    pub(crate) fn look_at_free_space(&self) -> Option<String> {
        let written = self.written();
        let Some((free, all)) = file_system(&self.options.data_dir) else {
            // One that does not say is full when a write fails.
            self.space.free_limit.store(u64::MAX, Ordering::Relaxed);
            return None;
        };
        let reserve = self.options.store.write_buffers_total as u64;
        let reserve = reserve + 2 * self.options.log_segment_size;
        let reserve = reserve.min(all / RESERVE_SHARE);
        let limit = written + free.saturating_sub(reserve) / WRITTEN_TIMES;
        self.space.free_limit.store(limit, Ordering::Relaxed);
        let short = free < reserve;
        if self.space.is_short.swap(short, Ordering::Relaxed) != short {
            match short {
                true => tracing::error!(
                    dir = %self.options.data_dir.display(),
                    free,
                    reserve,
                    "The disk is nearly full: appends are refused until there is room"
                ),
                false => tracing::info!(free, "There is room on the disk again: appends are taken"),
            }
        }
        short.then(|| {
            format!(
                "the disk of {} has {free} bytes free, and {reserve} are kept for trimming and \
                 flushing: make room, trim streams, or delete them",
                self.options.data_dir.display()
            )
        })
    }

    /// What is wrong with the space that is free, if anything is.
    pub(crate) fn shortage(&self) -> Option<String> {
        self.shortage_at(self.written())
    }

    fn shortage_at(&self, written: u64) -> Option<String> {
        let is_short = self.space.is_short.load(Ordering::Relaxed);
        let is_due = written >= self.space.free_limit.load(Ordering::Relaxed);
        match is_short || is_due {
            true => self.look_at_free_space(),
            false => None,
        }
    }

    /// Whether a new snapshot of a partition would free files on a nearly full disk that the one
    /// before, of so many bytes, still holds.
    pub(crate) fn could_release(&self, partition: u64, bytes: u64) -> bool {
        self.space.is_short.load(Ordering::Relaxed)
            && bytes > self.part(partition).file_bytes() + LITTLE
    }

    /// Why appends do not get in although they waited, if so.
    pub(crate) fn stuck(&self) -> Option<String> {
        let is_stuck = self.space.is_stuck.load(Ordering::Relaxed) && self.log_is_over();
        is_stuck.then(|| "the log is larger than it may be, and cannot be trimmed".to_owned())
    }

    /// Waits until there is space for an append. One that gives space back, because it does nothing but
    /// trim, finds it in the reserve.
    ///
    /// # Errors
    ///
    /// [`Error::TryLater`] if there is none in time, with the reason; [`Error::Stopping`].
    pub(crate) async fn wait_for_space(&self, part: &Part, gives_back: bool) -> Result<(), Error> {
        let deadline = Instant::now() + SPACE_TIMEOUT;
        loop {
            // The count has a lock, and each append comes by here.
            let written = self.written();
            if !gives_back && let Some(why) = self.shortage_at(written) {
                return Err(Error::TryLater(why));
            }
            let log_is_over = self.log_is_over_at(written);
            if !log_is_over && (gives_back || !part.reclaim_is_behind()) {
                return Ok(());
            }
            if self.draining.load(Ordering::Relaxed) {
                return Err(Error::Stopping);
            }
            let refuses = self.options.snapshots.on_log_full == OnLogFull::RefuseAppends;
            if log_is_over && (refuses || Instant::now() >= deadline) {
                self.space.is_stuck.store(true, Ordering::Relaxed);
                return Err(Error::TryLater(match refuses {
                    true => "the log is full: appends are refused until a snapshot is archived",
                    false => "the log is larger than max-log-bytes and could not be trimmed in time: see the server's log",
                }.to_owned()));
            }
            if !log_is_over && Instant::now() >= deadline {
                // Another partition's merge may hold this one's up for minutes. The wait has slowed the
                // append down; what is kept free of the disk bounds the rest.
                return Ok(());
            }
            metrics::counter!("esker_append_space_waits_total").increment(1);
            if log_is_over {
                self.space.log_keeper.wake();
            }
            tokio::time::sleep(LOOK_INTERVAL).await;
        }
    }
}
