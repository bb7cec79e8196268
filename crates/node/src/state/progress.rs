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
    /// Notes a caller who waits for a snapshot that covers a commit. Those who have gone are forgotten: one snapshot may
    /// take long, and as many as one likes may ask and go meanwhile.
    pub fn wait(
        &mut self,
        commit_ts: u64,
        answer: oneshot::Sender<Result<StateSnapshot, StateError>>,
    ) {
        if self.waiting.len().is_power_of_two() {
            self.waiting.retain(|(_, answer)| !answer.is_closed());
        }
        self.waiting.push((commit_ts, answer));
    }

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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn callers_who_have_gone_are_forgotten_while_a_snapshot_takes_long() {
        let mut progress = Progress::default();
        let (stays, _answered) = oneshot::channel();
        progress.wait(1, stays);
        for commit_ts in 0..100_000 {
            // It asks and goes.
            progress.wait(commit_ts, oneshot::channel().0);
        }
        assert!(progress.waiting.len() <= 4, "{}", progress.waiting.len());
        let waiting = progress.waiting.iter();
        assert_eq!(waiting.filter(|it| !it.1.is_closed()).count(), 1);
    }
}
