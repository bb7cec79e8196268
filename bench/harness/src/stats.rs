//! Order statistics over samples that fit in memory.
//!
//! Percentiles are taken by sorting (nearest rank), not from buckets: the largest set that a row
//! collects is a few hundred thousand durations, and an exact figure needs no explanation.

use std::time::Duration;

/// Durations of single operations, in the order in which they were taken.
#[derive(Debug, Default, Clone)]
pub struct Latencies(Vec<Duration>);

impl Latencies {
    /// Adds one sample.
    pub fn push(&mut self, sample: Duration) {
        self.0.push(sample);
    }

    /// Adds all samples of `other`.
    pub fn merge(&mut self, other: Latencies) {
        self.0.extend(other.0);
    }

    /// Number of samples.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Sorts the samples; `None` if there are none.
    pub fn sorted(mut self) -> Option<SortedLatencies> {
        if self.0.is_empty() {
            return None;
        }
        self.0.sort_unstable();
        Some(SortedLatencies(self.0))
    }
}

/// A non-empty, sorted set of samples.
pub struct SortedLatencies(Vec<Duration>);

impl SortedLatencies {
    /// The sample at `percentile` (0 to 100) by nearest rank, in milliseconds.
    pub fn percentile_ms(&self, percentile: f64) -> f64 {
        let rank = (percentile / 100.0 * self.0.len() as f64).ceil() as usize;
        let index = rank.clamp(1, self.0.len()) - 1;
        self.0[index].as_secs_f64() * 1e3
    }
}

/// The median of `values`: the middle one, or the mean of the two in the middle; `None` if empty.
pub fn median(values: &[f64]) -> Option<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_unstable_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    match sorted.len() {
        0 => None,
        n if n % 2 == 1 => Some(sorted[middle]),
        _ => Some((sorted[middle - 1] + sorted[middle]) / 2.0),
    }
}

/// The same; 0 if empty.
pub fn median_or_zero(values: &[f64]) -> f64 {
    median(values).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn latencies(millis: impl IntoIterator<Item = u64>) -> SortedLatencies {
        let mut all = Latencies::default();
        for ms in millis {
            all.push(Duration::from_millis(ms));
        }
        all.sorted().expect("samples were pushed")
    }

    #[test]
    fn percentiles_are_nearest_rank_whatever_the_order_of_the_samples() {
        let sorted = latencies((1..=100).rev());
        assert_eq!(sorted.percentile_ms(50.0), 50.0);
        assert_eq!(sorted.percentile_ms(99.0), 99.0);
        assert_eq!(sorted.percentile_ms(100.0), 100.0);
        assert_eq!(sorted.percentile_ms(0.0), 1.0);
    }

    #[test]
    fn one_sample_is_every_percentile() {
        let sorted = latencies([7]);
        assert_eq!(sorted.percentile_ms(1.0), 7.0);
        assert_eq!(sorted.percentile_ms(99.0), 7.0);
    }

    #[test]
    fn no_samples_have_no_percentile() {
        assert!(Latencies::default().sorted().is_none());
    }

    #[test]
    fn the_median_of_an_even_number_is_the_mean_of_the_middle_two() {
        assert_eq!(median(&[4.0, 1.0, 3.0, 2.0]), Some(2.5));
        assert_eq!(median(&[3.0, 1.0, 2.0]), Some(2.0));
        assert_eq!(median(&[]), None);
    }
}
