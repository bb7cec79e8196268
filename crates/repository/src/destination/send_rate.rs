//! How fast the body of one request is sent.
//!
//! Uploads are admitted a part of 8 MiB at a time ([`RateLimiter`](crate::RateLimiter)). If such a part were
//! sent as fast as the network takes it, everything else would wait meanwhile, however low the rate. So a
//! body is sent in pieces, evenly, at this rate.

use std::num::NonZeroU64;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Longest pause before a piece, so that a request does not look dead to a store, however low the rate.
const MAX_PAUSE: Duration = Duration::from_secs(1);
/// Pieces that are late by less than this are sent without pauses until the rate is kept again. A timer has a
/// resolution of a millisecond, and a piece at a high rate takes less.
const MAX_LATE: Duration = Duration::from_millis(20);

/// The rate, which may change at any time. Clones share it.
#[derive(Clone, Debug, Default)]
pub(super) struct SendRate {
    /// Bytes a second; 0 for no limit.
    per_second: Arc<AtomicU64>,
}

impl SendRate {
    pub fn set(&self, per_second: Option<NonZeroU64>) {
        let per_second = per_second.map_or(0, NonZeroU64::get);
        self.per_second.store(per_second, Ordering::Relaxed);
    }

    /// The time that so many bytes take; `None` if there is no limit.
    fn time_of(&self, bytes: usize) -> Option<Duration> {
        let rate = NonZeroU64::new(self.per_second.load(Ordering::Relaxed))?;
        let nanos = (bytes as u128 * 1_000_000_000).div_ceil(u128::from(rate.get()));
        Some(Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX)).min(MAX_PAUSE))
    }
}

/// When the pieces of one body are due. Times are since the first piece.
#[derive(Debug)]
pub(super) struct Schedule {
    rate: SendRate,
    due: Duration,
}

impl Schedule {
    pub fn new(rate: SendRate) -> Schedule {
        Schedule {
            rate,
            due: Duration::ZERO,
        }
    }

    /// When the next piece is due.
    pub fn due(&self) -> Duration {
        self.due
    }

    /// Notes that a piece was passed on.
    pub fn sent(&mut self, bytes: usize, now: Duration) {
        self.due = match self.rate.time_of(bytes) {
            Some(time) => self.due.max(now.saturating_sub(MAX_LATE)) + time,
            None => Duration::ZERO,
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KIB: usize = 1 << 10;

    /// When each of these pieces is sent, in milliseconds, if a timer wakes at whole milliseconds and the
    /// network needs `network` for each.
    fn times(schedule: &mut Schedule, pieces: usize, network: Duration) -> Vec<u128> {
        let mut now = Duration::ZERO;
        let mut sent = Vec::new();
        for _ in 0..pieces {
            if now < schedule.due() {
                let micros = schedule.due().as_micros().div_ceil(1000) * 1000;
                now = Duration::from_micros(u64::try_from(micros).unwrap());
            }
            sent.push(now.as_millis());
            schedule.sent(64 * KIB, now);
            now += network;
        }
        sent
    }

    fn schedule(kib_a_second: u64) -> (SendRate, Schedule) {
        let rate = SendRate::default();
        rate.set(NonZeroU64::new(kib_a_second * KIB as u64));
        (rate.clone(), Schedule::new(rate))
    }

    #[test]
    fn a_body_is_sent_evenly_at_the_rate() {
        let (_, mut slow) = schedule(640);
        assert_eq!(times(&mut slow, 4, Duration::ZERO), [0, 100, 200, 300]);
        // 160 pieces of 0.625 ms each.
        let (_, mut fast) = schedule(102_400);
        let last = *times(&mut fast, 161, Duration::ZERO).last().unwrap();
        assert_eq!(last, 100);
    }

    #[test]
    fn a_network_that_stalls_is_followed_by_no_burst() {
        let (_, mut schedule) = schedule(6400);
        schedule.sent(64 * KIB, Duration::from_secs(10));
        let mut now = Duration::from_secs(10);
        for _ in 0..10 {
            now = now.max(schedule.due());
            schedule.sent(64 * KIB, now);
        }
        // Ten pieces of 10 ms, of which two are late.
        assert!(now >= Duration::from_millis(10_070), "{now:?}");
    }

    #[test]
    fn the_rate_may_change_or_be_lifted_and_no_pause_is_longer_than_a_second() {
        let (rate, mut schedule) = schedule(1);
        schedule.sent(64 * KIB, Duration::ZERO);
        assert_eq!(schedule.due(), MAX_PAUSE);
        rate.set(NonZeroU64::new(640 * KIB as u64));
        schedule.sent(64 * KIB, MAX_PAUSE);
        assert_eq!(schedule.due(), MAX_PAUSE + Duration::from_millis(100));
        rate.set(None);
        schedule.sent(64 * KIB, MAX_PAUSE);
        assert_eq!(schedule.due(), Duration::ZERO);
    }
}
