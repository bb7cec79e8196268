//! What is known about space on the disk of the data directory; [`crate::space`] acts on it.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64};

use crate::reserve::Reserve;
use crate::signal::Signal;

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
    /// Whether an append gave up waiting since the log was within its limit.
    pub is_stuck: AtomicBool,
    /// What is set aside for a full disk.
    pub reserve: Reserve,
    /// How often the reserve was released.
    pub releases: AtomicU64,
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
            is_stuck: AtomicBool::new(false),
            reserve: Reserve::open(data_dir),
            releases: AtomicU64::new(0),
            log_keeper: Arc::default(),
        }
    }
}
