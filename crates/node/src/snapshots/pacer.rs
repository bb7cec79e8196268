//! Adapts the rate of uploads to the latency of appends: measures, and sets what [`upload_rate`] decides.
//!
//! [`upload_rate`]: super::upload_rate

use std::num::NonZeroU64;
use std::sync::Weak;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::archive::Archive;
use super::upload_rate::{Interval, UploadRate};
use crate::core::Inner;

/// How often the rate is set.
const INTERVAL: Duration = Duration::from_millis(250);
/// The part of appends that may take longer than what is compared.
const QUANTILE: f64 = 0.95;

/// The state between two intervals.
pub(super) struct Pacer {
    rate: UploadRate,
    /// The numbers at the beginning of the interval.
    since: Instant,
    uploaded: u64,
    written: u64,
}

impl Pacer {
    /// `None` if the rate is not limited.
    pub fn new(inner: &Inner) -> Option<Pacer> {
        let max = inner.options.snapshots.upload_rate?;
        set(&inner.snapshots.archive, max);
        Some(Pacer {
            rate: UploadRate::new(max),
            since: Instant::now(),
            uploaded: inner.snapshots.archive.admitted_bytes(),
            written: inner.raft.writer().counts().bytes,
        })
    }

    fn next(&mut self, inner: &Inner) {
        let passed = self.since.elapsed();
        let (uploaded, written) = (
            inner.snapshots.archive.admitted_bytes(),
            inner.raft.writer().counts().bytes,
        );
        let log_rate = (written.saturating_sub(self.written)) as f64 / passed.as_secs_f64();
        let interval = Interval {
            latency: inner.latencies.take().quantile(QUANTILE),
            uploaded: uploaded.saturating_sub(self.uploaded),
            log_rate: log_rate as u64,
            is_urgent: inner.log_is_full() || inner.is_short(),
        };
        self.since += passed;
        (self.uploaded, self.written) = (uploaded, written);
        set(&inner.snapshots.archive, self.rate.next(&interval));
    }
}

fn set(archive: &Archive, rate: NonZeroU64) {
    archive.set_upload_rate(rate);
    metrics::gauge!("esker_partition_store_snapshots_upload_rate_bytes").set(rate.get() as f64);
}

/// The task.
pub(super) async fn pace(inner: Weak<Inner>, pacer: Option<Pacer>) {
    let Some(mut pacer) = pacer else {
        return;
    };
    loop {
        tokio::time::sleep(INTERVAL).await;
        let Some(inner) = inner.upgrade() else {
            return;
        };
        // Uploads of a stop have no limit.
        if inner.draining.load(Ordering::Relaxed) {
            return;
        }
        pacer.next(&inner);
    }
}
