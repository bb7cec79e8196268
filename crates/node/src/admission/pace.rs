//! How much may be in flight where several clients compete, so that none waits long behind the others.
//!
//! Whatever is admitted is written and applied in the order of admission, so the time that an append takes is
//! the time of everything that was admitted before it. Fair turns help only those that wait for admission;
//! so where several compete, no more is admitted than the disk does within [`Pace::target`]: a few times what
//! an append takes alone. Groups of appends are then still large enough for a sync to cost little.
//!
//! What an append takes alone is measured while little else is in flight. The window is measured again after
//! each change, from what was admitted after it, where clients competed.
//!
//! Other partitions share the log, and may be busy all the time: then nothing is measured alone. Where even the
//! smallest window takes about as long as the target or longer, to shrink it gains nothing and costs all
//! throughput, so the target is raised to one and a half times of what the smallest window takes.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

/// The window is never smaller: with less in flight, an append counts as alone.
pub(super) const MIN_WINDOW: usize = 256 * 1024;
/// The window when nothing was measured yet.
const FIRST_WINDOW: usize = 2 * 1024 * 1024;
/// The target as a multiple of what an append takes alone.
const TARGET_FACTOR: u32 = 4;
/// Bounds of the target. Below the first, groups are so small that the cost of a sync counts; beyond the second,
/// clients notice.
const MIN_TARGET: Duration = Duration::from_millis(2);
const MAX_TARGET: Duration = Duration::from_millis(250);
/// One measurement counts with so much at most: a stall that has ended tells nothing about the pace.
const MAX_SAMPLE: Duration = Duration::from_secs(1);
/// The window changes no more often.
const CHANGE_INTERVAL: Duration = Duration::from_millis(20);
/// A new measurement of an append alone counts for this share.
const SMOOTHING: u32 = 16;

/// What all partitions share, because they share the log.
pub(crate) struct Pace {
    window: AtomicUsize,
    /// Work in flight, over all partitions.
    in_flight: AtomicUsize,
    max_window: usize,
    measured: Mutex<Measured>,
}

#[derive(Default)]
struct Measured {
    /// What an append takes alone.
    alone: Option<Duration>,
    changed: Option<Instant>,
    sum: Duration,
    samples: u32,
    /// Whether something waited for the window since it was changed.
    was_full: bool,
}

/// An append in flight, for the measurement.
pub(super) struct Paced {
    since: Instant,
    work: usize,
    alone: bool,
    in_window: bool,
}

impl Pace {
    /// A pace with windows of at most `max_window` bytes.
    pub(crate) fn new(max_window: usize) -> Pace {
        let max_window = max_window.max(MIN_WINDOW);
        Pace {
            window: AtomicUsize::new(FIRST_WINDOW.min(max_window)),
            in_flight: AtomicUsize::new(0),
            max_window,
            measured: Mutex::default(),
        }
    }

    /// Most work that one partition has in flight where clients compete.
    pub(crate) fn window(&self) -> usize {
        self.window.load(Ordering::Relaxed)
    }

    /// An append is admitted; `in_window` is whether the window bounds what its partition has in flight.
    pub(super) fn begin(&self, work: usize, in_window: bool, now: Instant) -> Paced {
        let before = self.in_flight.fetch_add(work, Ordering::Relaxed);
        Paced {
            since: now,
            work,
            alone: before + work <= MIN_WINDOW,
            in_window,
        }
    }

    /// An append is answered. `was_full` reports whether others wait for the window.
    pub(super) fn end(&self, paced: &Paced, was_full: bool, now: Instant) {
        let before = self.in_flight.fetch_sub(paced.work, Ordering::Relaxed);
        let took = now.saturating_duration_since(paced.since).min(MAX_SAMPLE);
        let mut measured = self.measured.lock();
        // At both ends: what came in behind it may have made its group larger.
        if paced.alone && before <= MIN_WINDOW {
            let alone = measured.alone.unwrap_or(took);
            measured.alone = Some(alone - alone / SMOOTHING + took / SMOOTHING);
        }
        if !paced.in_window {
            return;
        }
        measured.was_full |= was_full;
        let changed = *measured.changed.get_or_insert(now);
        if paced.since < changed {
            return;
        }
        measured.sum += took;
        measured.samples += 1;
        if now.saturating_duration_since(changed) < CHANGE_INTERVAL {
            return;
        }
        let average = measured.sum / measured.samples;
        let target = measured.target();
        let window = self.window();
        let is_least = window == MIN_WINDOW && measured.was_full && target < MAX_TARGET;
        let raises = is_least && average * 3 > target * 2;
        if raises {
            // Bit by bit, because one stall tells nothing.
            let alone = measured.alone.unwrap_or_default();
            let more = (average / 2).saturating_sub(alone) / SMOOTHING;
            measured.alone = Some(alone + more);
        }
        let changed = match average > target {
            _ if raises => window,
            true => {
                let part = target.as_secs_f64() / average.as_secs_f64();
                ((window as f64 * part.max(0.5)) as usize).max(MIN_WINDOW)
            }
            // It grows only if that lets something in.
            false if measured.was_full => (window + window / 4).min(self.max_window),
            false => window,
        };
        self.window.store(changed, Ordering::Relaxed);
        *measured = Measured {
            alone: measured.alone,
            changed: Some(now),
            ..Measured::default()
        };
    }
}

impl Measured {
    /// How long an append may take where clients compete.
    fn target(&self) -> Duration {
        let alone = self.alone.unwrap_or_default();
        (alone * TARGET_FACTOR).clamp(MIN_TARGET, MAX_TARGET)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: usize = 1024 * 1024;

    /// A disk that takes a fixed time for each sync, and a time for each byte: everything in flight is one
    /// group. Returns how long groups take in the end.
    fn settled(pace: &Pace, sync: Duration, bytes_per_ms: usize) -> Duration {
        let mut now = Instant::now();
        let mut took = Duration::ZERO;
        for _ in 0..2000 {
            let window = pace.window();
            let group: Vec<_> = (0..window / 4096)
                .map(|_| pace.begin(4096, true, now))
                .collect();
            took = sync + Duration::from_micros((window * 1000 / bytes_per_ms) as u64);
            now += took;
            for paced in &group {
                pace.end(paced, true, now);
            }
        }
        took
    }

    #[test]
    fn the_window_is_as_large_as_the_target_allows_on_any_disk() {
        for (sync, bytes_per_ms) in [(1, 200 * 1024), (5, 100 * 1024), (20, 20 * 1024)] {
            let pace = Pace::new(16 * MIB);
            let sync = Duration::from_millis(sync);
            // Some appends come alone.
            let mut now = Instant::now();
            for _ in 0..100 {
                let one = pace.begin(1024, true, now);
                now += sync;
                pace.end(&one, false, now);
            }
            let took = settled(&pace, sync, bytes_per_ms);
            let target = (sync * TARGET_FACTOR).max(MIN_TARGET);
            assert!(took <= target * 3 / 2, "{took:?} with {sync:?}");
            let window = pace.window();
            assert!(
                took >= target / 3 || window == 16 * MIB,
                "{took:?} with {sync:?}"
            );
            assert!(window > MIN_WINDOW);
        }
    }

    /// Partitions whose clients compete, beside another one with `lone` bytes of a client that is alone in it.
    /// Returns the window, and how long groups take, in the end.
    fn shared_log(partitions: usize, lone: usize, sync: Duration) -> (usize, Duration) {
        let pace = Pace::new(16 * MIB);
        pace.measured.lock().alone = Some(Duration::from_millis(1));
        let (mut now, mut took) = (Instant::now(), Duration::ZERO);
        for _ in 0..400 {
            let work = partitions * pace.window();
            let alone = (0..lone / 4096).map(|_| pace.begin(4096, false, now));
            let mut group: Vec<_> = alone.collect();
            group.extend((0..work / 4096).map(|_| pace.begin(4096, true, now)));
            took = sync + Duration::from_micros(((work + lone) / 100) as u64);
            now += took;
            for paced in &group {
                pace.end(paced, true, now);
            }
        }
        (pace.window(), took)
    }

    #[test]
    fn partitions_that_share_the_log_do_not_keep_each_other_at_the_smallest_window() {
        let sync = Duration::from_millis(20);
        let (window, took) = shared_log(2, 0, sync);
        assert!(window >= 2 * MIN_WINDOW, "{window} bytes");
        assert!(took <= sync * TARGET_FACTOR, "{took:?}");
        // One client that is alone in its partition, and has all of that partition's share in flight.
        let (window, took) = shared_log(1, 8 * MIB, Duration::from_millis(1));
        assert!(window >= 2 * MIB, "{window} bytes");
        assert!(took <= MAX_TARGET, "{took:?}");
    }

    #[test]
    fn a_client_that_is_alone_changes_no_window() {
        let pace = Pace::new(16 * MIB);
        let mut now = Instant::now();
        for _ in 0..100 {
            let one = pace.begin(8 * MIB, false, now);
            now += Duration::from_millis(100);
            pace.end(&one, true, now);
        }
        assert_eq!(pace.window(), FIRST_WINDOW);
        assert!(pace.measured.lock().alone.is_none());
    }

    #[test]
    fn a_disk_that_becomes_slow_has_a_target_of_its_own_in_the_end() {
        let pace = Pace::new(16 * MIB);
        settled(&pace, Duration::from_millis(1), 100 * 1024);
        let took = settled(&pace, Duration::from_millis(60), 100 * 1024);
        assert!(took <= MAX_TARGET, "{took:?}");
        assert!(pace.window() >= MIN_WINDOW);
        // One stall tells nothing.
        let now = Instant::now();
        let stalled = pace.begin(4096, true, now);
        pace.end(&stalled, true, now + Duration::from_secs(3600));
        assert!(pace.window() >= MIN_WINDOW);
    }
}
