//! Limits how many bytes of snapshots a node sends per second, over all transfers.
//!
//! ```text
//! ── chunk ──┬── chunk ──┬─────── pause ───────┬── chunk ──┬▶ time
//!            └ paid until, the next may go     └ a tenth of a second of it is made up for
//! ```
//!
//! Every chunk takes a share of a second that is proportional to its length, and the next chunk may go when
//! that time is over, so the rate is even. At most one chunk goes ahead of the rate, and after a pause
//! [`CREDIT`]'s worth of bytes, which also compensates for a thread that wakes late.

use std::time::{Duration, Instant};

/// The part of a pause that may be made up for.
const CREDIT: Duration = Duration::from_millis(100);

/// The limit, and until when it is used up.
pub(super) struct RateLimiter {
    bytes_per_second: u64,
    /// The bytes sent so far use the time until then.
    paid_until: Option<Instant>,
}

impl RateLimiter {
    /// A limiter of so many bytes per second; 0 is no limit.
    pub fn new(bytes_per_second: u64) -> RateLimiter {
        RateLimiter {
            bytes_per_second,
            paid_until: None,
        }
    }

    /// Changes the limit. What was sent so far is paid for at the limit before.
    pub fn set(&mut self, bytes_per_second: u64) {
        self.bytes_per_second = bytes_per_second;
    }

    /// How long the next chunk has to wait.
    pub fn wait(&self, now: Instant) -> Duration {
        let over = self.paid_until.unwrap_or(now);
        over.saturating_duration_since(now)
    }

    /// A chunk of so many bytes is sent now.
    pub fn take(&mut self, bytes: u32, now: Instant) {
        if self.bytes_per_second == 0 {
            return;
        }
        let nanos = u64::from(bytes) * 1_000_000_000 / self.bytes_per_second;
        let credit_from = now.checked_sub(CREDIT).unwrap_or(now);
        let from = self.paid_until.map_or(now, |paid| paid.max(credit_from));
        self.paid_until = Some(from + Duration::from_nanos(nanos));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u32 = 1024 * 1024;

    /// Sends chunks as soon as the limiter allows, on a simulated clock that is late by `late` each time.
    fn send(limiter: &mut RateLimiter, chunks: u32, mut now: Instant, late: Duration) -> Instant {
        for _ in 0..chunks {
            match limiter.wait(now) {
                Duration::ZERO => {}
                wait => now += wait + late,
            }
            assert_eq!(limiter.wait(now), Duration::ZERO, "it has waited");
            limiter.take(MIB, now);
        }
        now
    }

    #[test]
    fn bytes_take_as_long_as_the_limit_demands_also_if_the_thread_wakes_late() {
        let start = Instant::now();
        for late in [0, 5, 40].map(Duration::from_millis) {
            let mut limiter = RateLimiter::new(10 * u64::from(MIB));
            // The first one goes at once.
            let took = send(&mut limiter, 51, start, late) - start;
            assert!(took >= Duration::from_secs(5), "{took:?}");
            assert!(took <= Duration::from_secs(5) + late, "{took:?}");
        }
    }

    #[test]
    fn after_a_pause_a_tenth_of_a_second_is_made_up_for_and_no_more() {
        let start = Instant::now();
        let mut limiter = RateLimiter::new(100 * u64::from(MIB));
        let now = send(&mut limiter, 1, start, Duration::ZERO) + Duration::from_secs(60);
        let at_once = (0..).take_while(|_| {
            let goes = limiter.wait(now).is_zero();
            limiter.take(MIB, now);
            goes
        });
        assert_eq!(at_once.count(), 11, "of 100 in a second");
    }

    #[test]
    fn another_limit_is_kept_from_the_next_chunk_on() {
        let start = Instant::now();
        let mut limiter = RateLimiter::new(100 * u64::from(MIB));
        let now = send(&mut limiter, 100, start, Duration::ZERO);
        limiter.set(10 * u64::from(MIB));
        let took = send(&mut limiter, 51, now, Duration::ZERO) - now;
        assert!(took >= Duration::from_secs(5), "{took:?}");
        assert!(took <= Duration::from_millis(5100), "{took:?}");
    }

    #[test]
    fn without_a_limit_nothing_waits() {
        let start = Instant::now();
        let mut limiter = RateLimiter::new(0);
        assert_eq!(send(&mut limiter, 10_000, start, Duration::ZERO), start);
    }
}
