//! What is known about the space on the disk of the data directory; [`crate::space`] acts on it.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::time::Duration;

use parking_lot::Mutex;

use crate::reserve::Reserve;
use crate::signal::Signal;

/// How long the file system is waited for at most when free space is read or the reserve is removed.
const FILE_SYSTEM_TIMEOUT: Duration = Duration::from_secs(2);

/// What is known about space.
#[derive(Debug)]
pub(crate) struct Space {
    /// Bytes that the log writer may have written since the start before appends wait.
    pub log_limit: AtomicU64,
    /// Bytes that it may have written before free space is measured again.
    pub free_limit: AtomicU64,
    /// Bytes of the log on disk when it was last measured.
    pub log_bytes: AtomicU64,
    /// Whether less is free than is kept.
    pub is_short: AtomicBool,
    /// Whether the last such line of the server's log reports that the disk is nearly full.
    pub shortage_logged: AtomicBool,
    /// The problem with the free space when it was last measured, if there was one.
    pub shortage: Mutex<Option<String>>,
    /// One thread at a time looks at the file system for a task: one that hangs holds no more of them.
    pub looking: Arc<tokio::sync::Mutex<()>>,
    /// Whether an append gave up waiting since the log was within its limit.
    pub is_stuck: AtomicBool,
    /// The space that is reserved for a full disk.
    pub reserve: Arc<Reserve>,
    /// How often the reserve was released.
    pub releases: AtomicU64,
    /// Whether the last attempt to release it failed, which is logged once.
    pub release_fails: AtomicBool,
    /// Wakes the thread that trims the log.
    pub log_keeper: Arc<Signal>,
}

impl Space {
    /// The account of a data directory, with a log of this many bytes.
    pub fn new(data_dir: &Path, log_bytes: u64) -> Space {
        Space {
            log_limit: AtomicU64::new(u64::MAX),
            free_limit: AtomicU64::new(0),
            log_bytes: AtomicU64::new(log_bytes),
            is_short: AtomicBool::new(false),
            shortage_logged: AtomicBool::new(false),
            shortage: Mutex::default(),
            looking: Arc::default(),
            is_stuck: AtomicBool::new(false),
            reserve: Arc::new(Reserve::open(data_dir)),
            releases: AtomicU64::new(0),
            release_fails: AtomicBool::new(false),
            log_keeper: Arc::default(),
        }
    }

    /// Runs work on a thread where blocking is fine, after earlier work; `None` if that takes longer than
    /// [`FILE_SYSTEM_TIMEOUT`]. The work is completed all the same.
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
            // The join fails where the runtime ends, or a panic has ended the process.
            thread.await.ok()
        };
        tokio::time::timeout(FILE_SYSTEM_TIMEOUT, done).await.ok()?
    }
}
