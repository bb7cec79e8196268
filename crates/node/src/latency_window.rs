//! How long callers waited for answers, in the present interval: a histogram that is taken and emptied.
//!
//! Buckets grow by an eighth, so a quantile is exact to 12 %. Noting a value costs one atomic addition.

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

/// Buckets for each doubling.
const STEPS: u32 = 8;
/// Doublings, from 1 µs to 2^26 µs (67 s); longer times are in the last bucket.
const DOUBLINGS: u32 = 26;
const BUCKETS: usize = (STEPS * DOUBLINGS) as usize;

/// The present interval.
#[derive(Debug)]
pub(crate) struct LatencyWindow {
    counts: [AtomicU32; BUCKETS],
}

/// An interval that is over.
#[derive(Clone, Debug)]
pub(crate) struct Latencies {
    counts: [u32; BUCKETS],
}

impl Default for LatencyWindow {
    fn default() -> LatencyWindow {
        LatencyWindow {
            counts: [const { AtomicU32::new(0) }; BUCKETS],
        }
    }
}

impl LatencyWindow {
    pub fn note(&self, took: Duration) {
        self.counts[bucket(took)].fetch_add(1, Ordering::Relaxed);
    }

    /// The interval until now; the next one begins empty.
    pub fn take(&self) -> Latencies {
        Latencies {
            counts: std::array::from_fn(|at| self.counts[at].swap(0, Ordering::Relaxed)),
        }
    }
}

impl Latencies {
    pub fn count(&self) -> u64 {
        self.counts.iter().map(|count| u64::from(*count)).sum()
    }

    /// A time that at least this share of all callers did not exceed; `None` if there were none.
    pub fn quantile(&self, share: f64) -> Option<Duration> {
        let wanted = (self.count() as f64 * share).ceil().max(1.0) as u64;
        let mut seen = 0;
        let at = self.counts.iter().position(|count| {
            seen += u64::from(*count);
            seen >= wanted
        })?;
        Some(upper_bound(at))
    }
}

fn bucket(took: Duration) -> usize {
    let micros = u64::try_from(took.as_micros()).unwrap_or(u64::MAX).max(1);
    let doubling = micros.ilog2();
    // The part above the power of two, in eighths of it.
    let step = ((u128::from(micros) - (1 << doubling)) * u128::from(STEPS)) >> doubling;
    let at = u64::from(doubling * STEPS) + u64::try_from(step).unwrap_or(0);
    usize::try_from(at).unwrap_or(BUCKETS).min(BUCKETS - 1)
}

fn upper_bound(bucket: usize) -> Duration {
    let bucket = u32::try_from(bucket).unwrap_or(u32::MAX);
    let (doubling, step) = (bucket / STEPS, u64::from(bucket % STEPS));
    let nanos = (1000_u64 << doubling) * (u64::from(STEPS) + step + 1) / u64::from(STEPS);
    Duration::from_nanos(nanos)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_quantile_is_exact_to_an_eighth_from_microseconds_to_a_minute() {
        for micros in [1, 7, 8, 9, 100, 449, 1000, 16_890, 1_000_000, 59_000_000] {
            let window = LatencyWindow::default();
            let took = Duration::from_micros(micros);
            window.note(took);
            let found = window.take().quantile(0.99).unwrap();
            assert!(found >= took, "{found:?} for {took:?}");
            assert!(
                found <= took * 9 / 8 + Duration::from_micros(1),
                "{found:?} for {took:?}"
            );
        }
        let window = LatencyWindow::default();
        window.note(Duration::MAX);
        window.note(Duration::ZERO);
        assert_eq!(window.take().count(), 2);
    }

    #[test]
    fn the_slowest_of_twenty_are_above_the_95th_percentile_and_an_interval_is_taken_once() {
        let window = LatencyWindow::default();
        for _ in 0..95 {
            window.note(Duration::from_millis(1));
        }
        for _ in 0..5 {
            window.note(Duration::from_millis(100));
        }
        let taken = window.take();
        assert!(taken.quantile(0.95).unwrap() < Duration::from_millis(2));
        assert!(taken.quantile(0.96).unwrap() >= Duration::from_millis(100));
        assert_eq!(window.take().quantile(0.5), None);
    }
}
