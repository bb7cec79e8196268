//! The state of JSON snapshots: which exist, which callers wait for one, and failures.

use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use super::error::StateError;
use super::types::StateSnapshot;

/// Pause after a failed snapshot: the first, and the longest.
pub(crate) const BACKOFF: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));

/// Which snapshots exist, which callers wait for one, and failures.
#[derive(Debug, Default)]
pub(crate) struct Progress {
    /// Whether the files were read: before that, nothing is known of them.
    pub looked: bool,
    /// The newest on this disk that counts, and the oldest; 0 if one of them cannot be read now.
    pub newest: Option<u64>,
    pub oldest: Option<u64>,
    /// Files that do not count, each with the reason.
    pub ignored: Vec<String>,
    /// Callers who wait for a snapshot that covers a commit.
    pub waiting: Vec<(u64, oneshot::Sender<Result<StateSnapshot, StateError>>)>,
    /// Number of failures since the start, and the reason of the last one.
    pub failed: u64,
    pub last_failure: Option<String>,
    pub retry: Option<(Instant, Duration)>,
}

impl Progress {
    pub fn failed(&mut self, why: String) {
        self.failed += 1;
        let pause = match self.retry {
            Some((_, pause)) => (pause * 2).min(BACKOFF.1),
            None => BACKOFF.0,
        };
        self.retry = Some((Instant::now() + pause, pause));
        self.last_failure = Some(why);
    }

    pub fn may_try(&self) -> bool {
        self.retry.is_none_or(|(at, _)| at <= Instant::now())
    }
}
