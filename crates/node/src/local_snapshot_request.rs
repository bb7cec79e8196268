//! A local snapshot that maintenance requests, to trim the log or to free space.
//!
//! There is one request at a time. One that has failed is repeated after a pause: its cause, such as a full
//! disk, lasts, and each attempt flushes memtables and logs its failure.

use std::sync::Arc;
use std::time::{Duration, Instant};

use esker_raft::{SnapshotError, StoredSnapshot};
use tokio::sync::oneshot;
use tokio::sync::oneshot::error::TryRecvError;

/// Wait before the first retry; it doubles after each failure, up to [`LAST_RETRY`].
const FIRST_RETRY: Duration = Duration::from_secs(2);
/// Longest wait between retries.
const LAST_RETRY: Duration = Duration::from_secs(300);
/// The same while appends wait for the snapshot, which they do for 4 s at most.
const LAST_RETRY_IN_NEED: Duration = Duration::from_secs(4);

type Answer = oneshot::Receiver<Result<Arc<StoredSnapshot>, SnapshotError>>;

/// See the [module's head](self).
#[derive(Default)]
pub(crate) struct LocalSnapshotRequest {
    asked: Option<Answer>,
    failures: u32,
    /// When the last one failed, and how long the next one waits after that.
    failed: Option<(Instant, Duration)>,
}

impl LocalSnapshotRequest {
    /// Requests a snapshot, unless one is under way or has failed recently. While appends wait for it
    /// (`in_need`), a failure counts as recent for [`LAST_RETRY_IN_NEED`] at most.
    pub fn ask(&mut self, now: Instant, in_need: bool, ask: impl FnOnce() -> Answer) {
        if let Some(asked) = &mut self.asked {
            match asked.try_recv() {
                Err(TryRecvError::Empty) => return,
                Ok(Ok(_)) => self.forget_failures(),
                // The group has stopped, or the snapshot has failed.
                Err(TryRecvError::Closed) | Ok(Err(_)) => self.note_failure(now),
            }
            self.asked = None;
        }
        let longest = match in_need {
            true => LAST_RETRY_IN_NEED,
            false => LAST_RETRY,
        };
        let is_due = |(at, pause): (Instant, Duration)| at + pause.min(longest) <= now;
        if self.failed.is_none_or(is_due) {
            self.asked = Some(ask());
        }
    }

    /// Resets the failures, because their cause may be gone.
    pub fn forget_failures(&mut self) {
        self.failures = 0;
        self.failed = None;
    }

    fn note_failure(&mut self, now: Instant) {
        let pause = FIRST_RETRY.saturating_mul(1 << self.failures.min(16));
        self.failures = self.failures.saturating_add(1);
        self.failed = Some((now, pause.min(LAST_RETRY)));
    }
}

/// Detects when requests that failed for lack of space may succeed again.
#[derive(Debug, Default)]
pub(crate) struct SpaceWatch {
    was_short: bool,
    releases: u64,
}

impl SpaceWatch {
    /// Notes whether the disk is short of space and how often the reserve was released. Returns whether
    /// there is more space than when this was last called.
    pub fn has_more(&mut self, is_short: bool, releases: u64) -> bool {
        let was_short = std::mem::replace(&mut self.was_short, is_short);
        let before = std::mem::replace(&mut self.releases, releases);
        (was_short && !is_short) || before != releases
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Checks four times a second for a time, and each request fails at once. Returns when one was made, in
    /// seconds.
    fn asked(
        request: &mut LocalSnapshotRequest,
        started: Instant,
        seconds: u64,
        in_need: bool,
    ) -> Vec<u64> {
        let mut asked = Vec::new();
        for look in 0..seconds * 4 {
            let after = Duration::from_millis(look * 250);
            request.ask(started + after, in_need, || {
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
        let times = asked(&mut request, started, 1800, false);
        assert_eq!(times[..8], [0, 2, 6, 14, 31, 63, 127, 255]);
        assert_eq!(times.len(), 8 + 5, "then every 300 s: {times:?}");
        // When there is space again, the snapshot is requested at once.
        request.forget_failures();
        let later = started + Duration::from_secs(1801);
        assert_eq!(asked(&mut request, later, 1, false), [0]);
    }

    #[test]
    fn one_that_is_under_way_is_not_asked_for_again() {
        let now = Instant::now();
        let mut request = LocalSnapshotRequest::default();
        let (_under_way, answer) = oneshot::channel();
        request.ask(now, false, || answer);
        request.ask(now + LAST_RETRY, true, || panic!("it is under way"));
    }

    #[test]
    fn while_appends_wait_for_one_it_is_asked_for_within_seconds() {
        let started = Instant::now();
        let mut request = LocalSnapshotRequest::default();
        asked(&mut request, started, 1800, false);
        let later = started + Duration::from_secs(1800);
        let times = asked(&mut request, later, 60, true);
        let most = LAST_RETRY_IN_NEED.as_secs() + 1;
        assert!(times[0] <= most, "{times:?}");
        assert!(
            times.windows(2).all(|two| two[1] - two[0] <= most),
            "{times:?}"
        );
    }

    #[test]
    fn a_released_reserve_and_room_on_the_disk_are_more_space() {
        let mut watch = SpaceWatch::default();
        assert!(!watch.has_more(false, 0));
        assert!(!watch.has_more(true, 0), "it is short of space");
        assert!(watch.has_more(true, 1), "the reserve is released");
        assert!(!watch.has_more(true, 1));
        assert!(watch.has_more(false, 1), "there is room");
        assert!(!watch.has_more(false, 1));
    }
}
