//! What the node did in the last hour: a sample every ten seconds, in memory.
//!
//! It is for people who look at a node before anyone has set up Prometheus, and is read through
//! `GET /esker/v1/history`. A restart begins it anew. Memory: [`SAMPLES`] samples of some 80 bytes.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use esker_node::Node;
use metrics_exporter_prometheus::PrometheusHandle;
use time::OffsetDateTime;
use tokio_util::sync::CancellationToken;

/// How often a sample is taken.
pub(crate) const SAMPLE_INTERVAL: Duration = Duration::from_secs(10);
/// Samples that are kept: those of an hour.
pub(crate) const SAMPLES: usize = 360;

/// What the node did in an interval.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Sample {
    /// The end of the interval.
    pub at: OffsetDateTime,
    /// How long it was: about [`SAMPLE_INTERVAL`].
    pub seconds: f64,
    /// Records that were appended.
    pub records: u64,
    /// Batches of them.
    pub batches: u64,
    /// Commits of the state store.
    pub commits: u64,
    /// Half of the appends and commits took at most this; `None` if there were none.
    pub p50: Option<Duration>,
    /// The same of 99 in 100.
    pub p99: Option<Duration>,
    /// Bytes that snapshots have uploaded.
    pub bytes_uploaded: u64,
    /// Bytes of the log on disk, at the end of the interval.
    pub log_bytes: u64,
    /// Entries of the log that no checkpoint covers, at the end of the interval: what a restart replays.
    pub entries_above_floor: u64,
}

/// The samples. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub(crate) struct History(Arc<Mutex<VecDeque<Sample>>>);

impl History {
    /// All samples, the oldest first.
    pub(crate) fn samples(&self) -> Vec<Sample> {
        self.lock().iter().cloned().collect()
    }

    fn push(&self, sample: Sample) {
        let mut samples = self.lock();
        if samples.len() == SAMPLES {
            samples.pop_front();
        }
        samples.push_back(sample);
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, VecDeque<Sample>> {
        // A sample is pushed whole or not at all.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Totals of metrics, over all their labels.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Totals {
    records: u64,
    batches: u64,
    commits: u64,
    bytes_uploaded: u64,
    log_bytes: u64,
    entries_above_floor: u64,
}

impl Totals {
    /// The totals in a text in Prometheus' format.
    fn read(text: &str) -> Totals {
        let mut totals = Totals::default();
        for line in text.lines().filter(|line| !line.starts_with('#')) {
            let Some((series, value)) = line.rsplit_once(' ') else {
                continue;
            };
            let name = series.split('{').next().unwrap_or(series);
            let total = match name {
                "esker_appended_records_total" => &mut totals.records,
                "esker_appended_batches_total" => &mut totals.batches,
                "esker_state_commits_total" => &mut totals.commits,
                "esker_partition_store_snapshots_upload_bytes_total" => &mut totals.bytes_uploaded,
                "esker_log_files_bytes" => &mut totals.log_bytes,
                "esker_partition_log_entries_above_floor" => &mut totals.entries_above_floor,
                _ => continue,
            };
            // A float that is negative or no number becomes 0.
            *total += value.parse().map_or(0, |value: f64| value as u64);
        }
        totals
    }
}

/// Takes samples until the server stops.
pub(crate) async fn run(
    history: History,
    node: Node,
    metrics: PrometheusHandle,
    stop: CancellationToken,
) {
    let render = || {
        let metrics = metrics.clone();
        // With a thousand partitions it is megabytes of text.
        tokio::task::spawn_blocking(move || Totals::read(&metrics.render()))
    };
    let mut last = render().await.unwrap_or_default();
    let mut began = tokio::time::Instant::now();
    // What came before the first sample is not of its interval.
    node.take_latencies([0.5]);
    while tokio::time::timeout(SAMPLE_INTERVAL, stop.cancelled())
        .await
        .is_err()
    {
        let Ok(totals) = render().await else {
            return;
        };
        let took = node.take_latencies([0.5, 0.99]);
        let now = tokio::time::Instant::now();
        history.push(Sample {
            at: OffsetDateTime::now_utc(),
            seconds: (now - began).as_secs_f64(),
            records: totals.records.saturating_sub(last.records),
            batches: totals.batches.saturating_sub(last.batches),
            commits: totals.commits.saturating_sub(last.commits),
            p50: took.map(|[p50, _]| p50),
            p99: took.map(|[_, p99]| p99),
            bytes_uploaded: totals.bytes_uploaded.saturating_sub(last.bytes_uploaded),
            log_bytes: totals.log_bytes,
            entries_above_floor: totals.entries_above_floor,
        });
        (last, began) = (totals, now);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn totals_are_over_all_labels_and_of_whole_names() {
        let text = "# HELP esker_log_files_bytes Bytes.\n\
            esker_log_files_bytes 7\n\
            esker_partition_log_entries_above_floor{partition=\"0\"} 3\n\
            esker_partition_log_entries_above_floor{partition=\"1\"} 4\n\
            esker_appended_records_total 10\n\
            esker_appended_records_total_more 99\n\
            esker_appended_batches_total NaN\n\
            broken\n";
        let expected = Totals {
            records: 10,
            log_bytes: 7,
            entries_above_floor: 7,
            ..Totals::default()
        };
        assert_eq!(Totals::read(text), expected);
    }

    #[test]
    fn the_oldest_sample_makes_room() {
        let history = History::default();
        let at = OffsetDateTime::UNIX_EPOCH;
        for number in 0..=SAMPLES {
            history.push(Sample {
                at: at + Duration::from_secs(number as u64),
                seconds: 10.0,
                records: 0,
                batches: 0,
                commits: 0,
                p50: None,
                p99: None,
                bytes_uploaded: 0,
                log_bytes: 0,
                entries_above_floor: 0,
            });
        }
        let samples = history.samples();
        assert_eq!(samples.len(), SAMPLES);
        assert_eq!(samples[0].at, at + Duration::from_secs(1));
    }
}
