//! What a search for a copy does now, and whether it makes progress.
//!
//! A thread that waits for a disk cannot be interrupted, so a search that hangs is reported and not repeated: a
//! second one would take another thread and wait for the same disk. Requests of a repository have time limits of
//! their own.

use std::time::{Duration, Instant};

use parking_lot::Mutex;

/// Longest time without progress before a step counts as hanging. A request of a repository may take half of it
/// without a byte, and is then repeated.
const STALLED_TIMEOUT: Duration = Duration::from_secs(120);
/// Bytes a second at which files are read at least. Reading a file shows no progress, so a step that reads files
/// has as much longer.
const SLOWEST_READ: u64 = 8 << 20;

/// What a search does now.
#[derive(Debug)]
pub(crate) struct Activity {
    step: Mutex<Step>,
}

#[derive(Debug)]
struct Step {
    what: String,
    /// When it began, or last made progress.
    since: Instant,
    /// Bytes that it reads without showing progress.
    bytes: u64,
}

impl Default for Activity {
    fn default() -> Self {
        Activity {
            step: Mutex::new(Step {
                what: "beginning".to_owned(),
                since: Instant::now(),
                bytes: 0,
            }),
        }
    }
}

impl Activity {
    /// A step begins, which reads this many bytes of files.
    pub fn begin(&self, what: impl Into<String>, bytes: u64) {
        *self.step.lock() = Step {
            what: what.into(),
            since: Instant::now(),
            bytes,
        };
    }

    /// The step has made progress.
    pub fn progress(&self) {
        self.step.lock().since = Instant::now();
    }

    /// The step, in words.
    pub fn shown(&self) -> String {
        self.step.lock().what.clone()
    }

    /// For how long the step has made no progress, if that is longer than it may take.
    pub fn stalled(&self) -> Option<Duration> {
        let step = self.step.lock();
        let stalled = step.since.elapsed();
        (stalled >= step.allowance()).then_some(stalled)
    }

    /// As if the step had begun that much earlier.
    #[cfg(test)]
    pub fn rewind(&self, by: Duration) {
        let mut step = self.step.lock();
        step.since = step.since.checked_sub(by).unwrap();
    }
}

impl Step {
    fn allowance(&self) -> Duration {
        STALLED_TIMEOUT + Duration::from_secs(self.bytes / SLOWEST_READ)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn a_step_hangs_once_it_made_no_progress_for_longer_than_its_bytes_take() {
        let activity = Activity::default();
        activity.begin("reading", 100 * SLOWEST_READ);
        activity.rewind(STALLED_TIMEOUT + 99 * SECOND);
        assert_eq!(activity.stalled(), None);
        activity.rewind(SECOND);
        assert!(activity.stalled().is_some());
        activity.progress();
        assert_eq!(activity.stalled(), None);
        activity.rewind(STALLED_TIMEOUT);
        assert_eq!(activity.stalled(), None, "its bytes count still");
        activity.begin("another", 0);
        activity.rewind(STALLED_TIMEOUT);
        assert!(activity.stalled().is_some());
        assert_eq!(activity.shown(), "another");
    }
}
