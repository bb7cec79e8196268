//! The rate of uploads, and of snapshots for other members, which falls while they make appends wait: pure decisions.
//!
//! Four times a second the controller gets the latency of appends (and of commits) in the last interval, and
//! returns the rate for the next one. It compares the latency with a *reference*: the average of intervals
//! in which nothing was uploaded, or no faster than the minimum, so that uploads are not the cause.
//!
//! - Latency above `1.5 × reference + 1 ms`: the rate is halved, at most every other interval, because what
//!   was admitted before is still under way in the one after.
//! - Otherwise it rises by a sixteenth of itself and a 256th of the maximum: from the minimum to the maximum
//!   in 10 s, and only one interval of a dozen is too fast where the disk has less left.
//! - No append at all in the interval: it doubles.
//!
//! # Bounds
//!
//! The maximum is `snapshots.upload-rate`. The minimum is
//!
//! ```text
//! min(upload-rate, max(upload-rate / 16, 2 × bytes that are written to the log in a second))
//! ```
//!
//! So a snapshot of `n` bytes takes `16 n / upload-rate` at most, whatever appends do. While one is put,
//! half as much is appended at most as is uploaded; so successive incremental snapshots do not grow.
//! A snapshot that others wait for (the log or the disk is full) is uploaded at the maximum.
//!
//! What is sent to other members has a controller of its own, with `cluster.transfer-rate` as its maximum. While one of
//! the two sends, the other learns nothing of appends.

use std::num::NonZeroU64;
use std::time::Duration;

/// Intervals in a second.
const INTERVALS: u64 = 4;
/// The minimum is this part of the maximum.
const MIN_SHARE: u64 = 16;
/// The minimum is this many times the rate at which the log grows.
const LOG_FACTOR: u64 = 2;
/// The rate rises by this part of itself in an interval, and by that part of the maximum.
const RISE_SHARE: u64 = 16;
const RISE_MAX_SHARE: u64 = 256;
/// Intervals after a reduction without another one.
const HOLD_INTERVALS: u32 = 1;
/// The weight of an interval in the reference is one of this many parts.
const REFERENCE_PARTS: u32 = 8;
/// Beyond a reference and a half, latency may rise by this much. Fast disks vary by more than a half.
const TOLERANCE: Duration = Duration::from_millis(1);

/// What happened in an interval.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Interval {
    /// The 95th percentile of the time that appends and commits took; `None` if there were none.
    pub latency: Option<Duration>,
    /// Bytes that uploads may send from now on. They are admitted in parts of 8 MiB, and a part is sent
    /// at the rate: at a low one, over many intervals.
    pub uploaded: u64,
    /// Bytes that were written to the log, in a second.
    pub log_rate: u64,
    /// Whether something waits for a snapshot that is being uploaded.
    pub is_urgent: bool,
    /// Whether something else may have made appends wait: nothing is learned from them.
    pub is_disturbed: bool,
}

/// The controller. See the module.
#[derive(Debug)]
pub(super) struct UploadRate {
    max: u64,
    rate: u64,
    /// Bytes that were admitted and are still under way, if they are sent at the rate.
    unsent: u64,
    /// Whether nothing was uploaded in the interval before.
    was_idle: bool,
    reference: Option<Duration>,
    hold: u32,
}

impl UploadRate {
    pub fn new(max: NonZeroU64) -> UploadRate {
        UploadRate {
            max: max.get(),
            rate: max.get(),
            unsent: 0,
            was_idle: true,
            reference: None,
            hold: 0,
        }
    }

    /// Whether bytes that were admitted may be under way still.
    pub fn is_busy(&self) -> bool {
        self.unsent > 0 || !self.was_idle
    }

    /// The rate for the next interval, in bytes a second.
    pub fn next(&mut self, interval: &Interval) -> NonZeroU64 {
        let min = self.min(interval.log_rate);
        self.unsent = self.unsent.saturating_add(interval.uploaded);
        let is_uploading = self.unsent > 0;
        let sent = (self.rate / INTERVALS).max(1);
        self.unsent = self.unsent.saturating_sub(sent);
        self.learn(interval, is_uploading, min);
        self.hold = self.hold.saturating_sub(1);
        self.rate = match (interval.latency, self.limit()) {
            _ if interval.is_urgent => self.max,
            (None, _) => self.rate.saturating_mul(2),
            // Nothing is known of appends without uploads: the minimum shows it.
            (Some(_), None) => min,
            (Some(latency), Some(limit)) if latency > limit => match self.hold {
                0 if is_uploading => {
                    self.hold = 1 + HOLD_INTERVALS;
                    self.rate / 2
                }
                _ => self.rate,
            },
            (Some(_), Some(_)) => self.rate.saturating_add(self.rise(self.rate)),
        };
        self.rate = self.rate.clamp(min, self.max);
        // The minimum is at least 1.
        NonZeroU64::new(self.rate).unwrap_or(NonZeroU64::MIN)
    }

    fn rise(&self, rate: u64) -> u64 {
        (rate / RISE_SHARE + self.max / RISE_MAX_SHARE).max(1)
    }

    fn min(&self, log_rate: u64) -> u64 {
        let share = (self.max / MIN_SHARE).max(1);
        share.max(log_rate.saturating_mul(LOG_FACTOR)).min(self.max)
    }

    /// Takes an interval into the reference, if uploads cannot have slowed its appends down.
    fn learn(&mut self, interval: &Interval, is_uploading: bool, min: u64) {
        let is_idle = !is_uploading;
        let was_idle = std::mem::replace(&mut self.was_idle, is_idle);
        let Some(latency) = interval.latency else {
            return;
        };
        if ((is_idle && was_idle) || self.rate <= min) && !interval.is_disturbed {
            self.reference = Some(match self.reference {
                None => latency,
                Some(reference) => (reference * (REFERENCE_PARTS - 1) + latency) / REFERENCE_PARTS,
            });
        }
    }

    /// The latency above which the rate falls.
    fn limit(&self) -> Option<Duration> {
        Some(self.reference? * 3 / 2 + TOLERANCE)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;
    const MAX: u64 = 64 * MIB;
    const MIN: u64 = MAX / MIN_SHARE;

    fn controller() -> UploadRate {
        UploadRate::new(NonZeroU64::new(MAX).unwrap())
    }

    fn interval(latency_us: u64, uploaded: u64) -> Interval {
        Interval {
            latency: Some(Duration::from_micros(latency_us)),
            uploaded,
            ..Interval::default()
        }
    }

    /// A controller that knows that appends take 1 ms without uploads.
    fn with_reference() -> UploadRate {
        let mut rate = controller();
        for _ in 0..20 {
            rate.next(&interval(1000, 0));
        }
        rate
    }

    /// A disk on which appends take 1 ms, and 4 ms while uploads send more than `capacity` a second.
    fn on_a_disk(rate: &mut UploadRate, capacity: u64, intervals: usize) -> Vec<u64> {
        let mut rates = Vec::new();
        let mut present = rate.rate;
        for _ in 0..intervals {
            let latency = if present > capacity { 4000 } else { 1000 };
            present = rate.next(&interval(latency, present / 4)).get();
            rates.push(present);
        }
        rates
    }

    #[test]
    fn the_rate_finds_what_the_disk_has_left_and_stays_near_it() {
        for capacity in [8 * MIB, 20 * MIB, 50 * MIB] {
            let mut rate = with_reference();
            let rates = on_a_disk(&mut rate, capacity, 400);
            let steady = &rates[100..];
            let most = *steady.iter().max().unwrap();
            assert!(most <= capacity + rate.rise(capacity), "{most}");
            let average = steady.iter().sum::<u64>() / steady.len() as u64;
            assert!(average >= capacity / 2, "{average} of {capacity}");
            let too_fast = steady.iter().filter(|rate| **rate > capacity).count();
            assert!(
                too_fast * 7 <= steady.len(),
                "{too_fast} of {}",
                steady.len()
            );
        }
    }

    #[test]
    fn between_two_parts_of_an_upload_nothing_is_learned() {
        const PART: u64 = 8 * MIB;
        let capacity = 5 * MIB;
        let mut rate = with_reference();
        let (mut paid, mut above) = (0, 0);
        for number in 0..2000 {
            paid += rate.rate / 4;
            let uploaded = paid / PART * PART;
            paid -= uploaded;
            let latency = if rate.rate > capacity { 4000 } else { 1000 };
            rate.next(&interval(latency, uploaded));
            above += u64::from(number >= 200 && rate.rate > 2 * capacity);
        }
        assert_eq!(above, 0);
    }

    #[test]
    fn appends_that_wait_for_something_else_lower_the_rate_to_its_minimum_and_no_further() {
        let mut rate = with_reference();
        let mut least = MAX;
        // What the minimum shows becomes the reference, and the rate recovers.
        for _ in 0..400 {
            least = least.min(rate.next(&interval(50_000, MIB)).get());
        }
        assert_eq!(least, MIN);
        assert_eq!(
            rate.rate, MAX,
            "what uploads do not change does not slow them down"
        );
    }

    #[test]
    fn the_rate_recovers_when_the_cause_is_over() {
        let mut rate = with_reference();
        for _ in 0..12 {
            rate.next(&interval(10_000, MIB));
        }
        assert!(rate.rate < MAX / 4);
        for _ in 0..40 {
            rate.next(&interval(1000, MIB));
        }
        assert_eq!(rate.rate, MAX);
    }

    #[test]
    fn without_appends_the_maximum_is_reached_within_seconds() {
        let mut rate = with_reference();
        for _ in 0..40 {
            rate.next(&interval(90_000, MIB));
            rate.reference = Some(Duration::from_millis(1));
        }
        assert_eq!(rate.rate, MIN);
        for _ in 0..4 {
            rate.next(&Interval {
                uploaded: MIB,
                ..Interval::default()
            });
        }
        assert_eq!(rate.rate, MAX);
    }

    #[test]
    fn uploads_that_begin_before_anything_is_known_show_the_reference_at_the_minimum() {
        let mut rate = controller();
        assert_eq!(rate.next(&Interval::default()).get(), MAX, "nobody appends");
        assert_eq!(rate.next(&interval(3000, MIB)).get(), MIN);
        let next = rate.next(&interval(1000, MIB)).get();
        assert_eq!(next, MIN + MIN / RISE_SHARE + MAX / RISE_MAX_SHARE);
        assert!(rate.reference.is_some());
    }

    #[test]
    fn uploads_keep_ahead_of_the_log_and_below_the_maximum() {
        let mut rate = with_reference();
        let slow = |log_rate| Interval {
            log_rate,
            ..interval(90_000, MIB)
        };
        for _ in 0..40 {
            let least = rate.next(&slow(10 * MIB)).get();
            assert!(least >= 20 * MIB);
        }
        assert_eq!(rate.next(&slow(100 * MIB)).get(), MAX);
    }

    #[test]
    fn a_snapshot_that_something_waits_for_goes_at_the_maximum() {
        let mut rate = with_reference();
        for _ in 0..40 {
            rate.next(&interval(90_000, MIB));
        }
        let urgent = Interval {
            is_urgent: true,
            ..interval(90_000, MIB)
        };
        assert_eq!(rate.next(&urgent).get(), MAX);
    }

    #[test]
    fn appends_that_something_else_makes_wait_are_no_reference() {
        let mut rate = with_reference();
        for _ in 0..100 {
            rate.next(&Interval {
                is_disturbed: true,
                ..interval(90_000, 0)
            });
        }
        assert_eq!(rate.reference, Some(Duration::from_millis(1)));
    }

    #[test]
    fn whatever_happens_the_rate_stays_within_its_bounds() {
        let mut random = 0x9e37_79b9_7f4a_7c15_u64;
        let mut draw = || {
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            random
        };
        for max in [1, 15, 16, 1000, MAX, u64::MAX] {
            let mut rate = UploadRate::new(NonZeroU64::new(max).unwrap());
            for _ in 0..2000 {
                let interval = Interval {
                    latency: (draw() % 4 > 0).then(|| Duration::from_micros(draw() % 100_000)),
                    uploaded: (draw() % 3) * (draw() % MIB),
                    log_rate: draw() % (2 * MIB),
                    is_urgent: draw() % 50 == 0,
                    is_disturbed: draw() % 9 == 0,
                };
                let next = rate.next(&interval).get();
                assert!(
                    next <= max && next >= (max / MIN_SHARE).max(1),
                    "{next} of {max}"
                );
                assert!(next >= max.min(2 * interval.log_rate));
            }
        }
    }
}
