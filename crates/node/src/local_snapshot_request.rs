//! A local snapshot that upkeep asks for, because the log is to be trimmed or space given back.
//!
//! One at a time. One that has failed is asked for again after a while: its cause, a full disk say, does
//! not go by itself, and each attempt flushes memtables and logs why it has failed.

use std::sync::Arc;
use std::time::{Duration, Instant};

use esker_raft::{SnapshotError, StoredSnapshot};
use tokio::sync::oneshot;
use tokio::sync::oneshot::error::TryRecvError;

/// After the first failure it is asked for again no sooner than this, twice as late after each further
/// one...
const FIRST_RETRY: Duration = Duration::from_secs(2);
/// ...up to this.
const LAST_RETRY: Duration = Duration::from_secs(300);

type Answer = oneshot::Receiver<Result<Arc<StoredSnapshot>, SnapshotError>>;

/// See the [module's head](self).
#[derive(Default)]
pub(crate) struct LocalSnapshotRequest {
    asked: Option<Answer>,
    failures: u32,
    not_before: Option<Instant>,
}

impl LocalSnapshotRequest {
    /// Asks, unless one is under way or has failed a moment ago.
    pub fn ask(&mut self, now: Instant, ask: impl FnOnce() -> Answer) {
        if let Some(asked) = &mut self.asked {
            match asked.try_recv() {
                Err(TryRecvError::Empty) => return,
                Ok(Ok(_)) => self.forget_failures(),
                // The group has stopped, or it has failed.
                Err(TryRecvError::Closed) | Ok(Err(_)) => self.failed(now),
            }
            self.asked = None;
        }
        if self.not_before.is_none_or(|at| at <= now) {
            self.asked = Some(ask());
        }
    }

    /// What let it fail may be gone.
    pub fn forget_failures(&mut self) {
        self.failures = 0;
        self.not_before = None;
    }

    fn failed(&mut self, now: Instant) {
        let pause = FIRST_RETRY.saturating_mul(1 << self.failures.min(16));
        self.failures = self.failures.saturating_add(1);
        self.not_before = Some(now + pause.min(LAST_RETRY));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Looks four times a second for so long; when it was asked, in seconds, and each fails at once.
    fn asked(request: &mut LocalSnapshotRequest, started: Instant, seconds: u64) -> Vec<u64> {
        let mut asked = Vec::new();
        for look in 0..seconds * 4 {
            let after = Duration::from_millis(look * 250);
            request.ask(started + after, || {
                asked.push(after.as_secs());
                let (answer, answered) = oneshot::channel();
                answer
                    .send(Err(SnapshotError("no space".to_owned())))
                    .unwrap();
                answered
            });
        }
        asked
    }

    #[test]
    fn one_that_goes_on_failing_is_asked_for_ever_more_seldom() {
        let started = Instant::now();
        let mut request = LocalSnapshotRequest::default();
        let times = asked(&mut request, started, 1800);
        assert_eq!(times[..8], [0, 2, 6, 14, 31, 63, 127, 255]);
        assert_eq!(times.len(), 8 + 5, "then every 300 s: {times:?}");
        // When there is space again, it is asked for at once.
        request.forget_failures();
        let later = started + Duration::from_secs(1801);
        assert_eq!(asked(&mut request, later, 1), [0]);
    }

    #[test]
    fn one_that_is_under_way_is_not_asked_for_again() {
        let now = Instant::now();
        let mut request = LocalSnapshotRequest::default();
        let (_under_way, answer) = oneshot::channel();
        request.ask(now, || answer);
        request.ask(now + LAST_RETRY, || panic!("it is under way"));
    }
}
