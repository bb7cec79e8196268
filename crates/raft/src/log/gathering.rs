//! A pause before a write, for more requests to come that share its sync.
//!
//! A write group of a few small requests costs about as much as one of many: a sync, and the threads of each group
//! that are woken and wake others. While clients keep sending small requests, and requests come faster than the
//! processors handle them, groups stay as small as what arrives during a sync. So the writer waits a little, which
//! is less than a sync takes, before it writes few requests right after a group that had several: the
//! processors handle other requests meanwhile, and they are in the same write. One client alone, or a
//! few, never wait. Where pauses bring nothing, they are tried now and then only.

use std::time::Duration;

/// How long a pause is: less than a sync takes on nearly all disks.
pub(super) const PAUSE: Duration = Duration::from_micros(100);
/// Requests of the group before, at least, for a pause.
const MIN_BEFORE: usize = 4;
/// With more requests than this, a write begins at once.
const MAX_FEW: usize = 16;
/// With more bytes than this, too: a sync is a small part of the time that such a write takes.
const MAX_BYTES: u64 = 64 * 1024;
/// Writes without a pause, after one that has brought less than a quarter of what was there.
const WRITES_WITHOUT: u32 = 32;

/// Decides when the writer pauses.
#[derive(Debug, Default)]
pub(super) struct Gathering {
    /// Requests of the last group.
    before: usize,
    /// Writes to come without a pause.
    without: u32,
}

impl Gathering {
    /// Whether to pause before a write of so many requests and bytes.
    pub(super) fn pauses(&mut self, requests: usize, bytes: u64) -> bool {
        if self.without > 0 {
            self.without -= 1;
            return false;
        }
        requests > 0
            && requests <= MAX_FEW
            && bytes <= MAX_BYTES
            && self.before.max(requests) >= MIN_BEFORE
    }

    /// A pause is over, and there are so many requests.
    pub(super) fn paused(&mut self, requests: usize, now: usize) {
        if now < requests + requests.div_ceil(4) {
            self.without = WRITES_WITHOUT;
        }
    }

    /// A group of so many requests is written.
    pub(super) fn written(&mut self, requests: usize) {
        self.before = requests;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn few_clients_never_wait() {
        let mut gathering = Gathering::default();
        for requests in [1, 2, 3, 1, 3, 3] {
            assert!(!gathering.pauses(requests, 100));
            gathering.written(requests);
        }
    }

    #[test]
    fn a_small_write_after_several_requests_waits_for_more() {
        let mut gathering = Gathering::default();
        gathering.written(5);
        assert!(gathering.pauses(1, 100));
        gathering.paused(1, 5);
        gathering.written(5);
        assert!(gathering.pauses(4, 100), "it brought something");
        assert!(!gathering.pauses(0, 0), "nothing is to be written");
        assert!(
            !gathering.pauses(17, 2_000),
            "that many share a sync already"
        );
        assert!(!gathering.pauses(4, 1 << 20), "the sync is a small part");
    }

    #[test]
    fn pauses_that_bring_nothing_are_rare() {
        let mut gathering = Gathering::default();
        let mut pauses = 0;
        for _ in 0..330 {
            if gathering.pauses(4, 100) {
                gathering.paused(4, 4);
                pauses += 1;
            }
            gathering.written(4);
        }
        assert_eq!(pauses, 10);
    }
}
