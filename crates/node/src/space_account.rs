//! What is known about space on the disk of the data directory; [`crate::space`] acts on it.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::time::Duration;

use parking_lot::Mutex;

use crate::reserve::Reserve;
use crate::signal::Signal;

/// Longest that is waited for the file system to say how much is free, or to remove the reserve.
const FILE_SYSTEM_TIMEOUT: Duration = Duration::from_secs(2);

/// What is known about space.
#[derive(Debug)]
pub(crate) struct Space {
    /// How many bytes the log writer may have written since the start before appends wait.
    pub log_limit: AtomicU64,
    /// The same before free space is read again.
    pub free_limit: AtomicU64,
    /// What the log had on disk when that was last known.
    pub log_bytes: AtomicU64,
    /// Whether less is free than is to be.
    pub is_short: AtomicBool,
    /// What is wrong with the space that was free at the last look, if anything was.
    pub shortage: Mutex<Option<String>>,
    /// One thread at a time looks at the file system for a task: one that hangs holds no more of them.
    pub looking: Arc<tokio::sync::Mutex<()>>,
    /// Whether an append gave up waiting since the log was within its limit.
    pub is_stuck: AtomicBool,
    /// What is set aside for a full disk.
    pub reserve: Arc<Reserve>,
    /// How often the reserve was released.
    pub releases: AtomicU64,
    /// Whether the last attempt to release it failed, which is logged once.
    pub release_fails: AtomicBool,
    /// Wakes the thread that trims the log.
    pub log_keeper: Arc<Signal>,
}

impl Space {
    /// With a log of so many bytes, in a data directory.
    pub fn new(data_dir: &Path, log_bytes: u64) -> Space {
        Space {
            log_limit: AtomicU64::new(u64::MAX),
            free_limit: AtomicU64::new(0),
            log_bytes: AtomicU64::new(log_bytes),
            is_short: AtomicBool::new(false),
            shortage: Mutex::default(),
            looking: Arc::default(),
            is_stuck: AtomicBool::new(false),
            reserve: Arc::new(Reserve::open(data_dir)),
            releases: AtomicU64::new(0),
            release_fails: AtomicBool::new(false),
            log_keeper: Arc::default(),
        }
    }

    /// Does something on a thread where blocking is fine, after what others do there; `None` if that takes longer
    /// than [`FILE_SYSTEM_TIMEOUT`]. It is done to its end all the same.
    pub async fn on_thread<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Option<T> {
        let looking = self.looking.clone();
        let done = async move {
            let alone = looking.lock_owned().await;
            let thread = tokio::task::spawn_blocking(move || {
                let done = work();
                drop(alone);
                done
            });
            // It fails where the runtime ends, or a panic has ended the process.
            thread.await.ok()
        };
        tokio::time::timeout(FILE_SYSTEM_TIMEOUT, done).await.ok()?
    }
}
