//! Adapts the rates of uploads, and of snapshots for other members, to the latency of appends: measures, and sets what
//! [`upload_rate`] decides.
//!
//! [`upload_rate`]: super::upload_rate

use std::num::NonZeroU64;
use std::sync::Weak;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::upload_rate::{Interval, UploadRate};
use crate::core::Inner;

/// How often the rates are set.
const INTERVAL: Duration = Duration::from_millis(250);
/// The part of appends that may take longer than what is compared.
const QUANTILE: f64 = 0.95;

/// What is sent, and its rate.
struct Lane {
    rate: UploadRate,
    /// Bytes that were sent at the beginning of the interval.
    sent: u64,
    /// Whether something was sent in it.
    is_busy: bool,
}

impl Lane {
    fn new(max: NonZeroU64, sent: u64) -> Lane {
        Lane {
            rate: UploadRate::new(max),
            sent,
            is_busy: false,
        }
    }

    /// The rate for the next interval, of which `of_all` has what both lanes have in common.
    fn next(&mut self, sent: u64, of_all: &Interval) -> NonZeroU64 {
        let interval = Interval {
            uploaded: sent.saturating_sub(self.sent),
            ..*of_all
        };
        self.sent = sent;
        let rate = self.rate.next(&interval);
        self.is_busy = self.rate.is_busy();
        rate
    }
}

/// The state between two intervals.
pub(super) struct Pacer {
    /// To the repository; `None` without a limit.
    uploads: Option<Lane>,
    /// To other members; `None` without a limit, or without other members.
    transfers: Option<Lane>,
    /// The numbers at the beginning of the interval.
    since: Instant,
    written: u64,
}

impl Pacer {
    /// `None` if no rate is limited.
    pub fn new(inner: &Inner) -> Option<Pacer> {
        let uploads = inner.options.snapshots.upload_rate;
        let cluster = inner.options.cluster.as_ref();
        let transfers = cluster.and_then(|cluster| NonZeroU64::new(cluster.transfer_rate));
        if uploads.is_none() && transfers.is_none() {
            return None;
        }
        uploads.inspect(|rate| set_uploads(inner, *rate));
        transfers.inspect(|rate| set_transfers(inner, *rate));
        Some(Pacer {
            uploads: uploads.map(|max| Lane::new(max, inner.snapshots.archive.admitted_bytes())),
            transfers: transfers.map(|max| Lane::new(max, inner.raft.sent().bytes_sent)),
            since: Instant::now(),
            written: inner.raft.writer().counts().bytes,
        })
    }

    fn next(&mut self, inner: &Inner) {
        let passed = self.since.elapsed();
        let written = inner.raft.writer().counts().bytes;
        let log_rate = (written.saturating_sub(self.written)) as f64 / passed.as_secs_f64();
        let of_all = Interval {
            latency: inner.latencies.take().quantile(QUANTILE),
            log_rate: log_rate as u64,
            ..Interval::default()
        };
        self.since += passed;
        self.written = written;
        let is_busy = |lane: &Option<Lane>| lane.as_ref().is_some_and(|lane| lane.is_busy);
        let (uploads, transfers) = (is_busy(&self.uploads), is_busy(&self.transfers));
        if let Some(lane) = &mut self.uploads {
            let interval = Interval {
                is_urgent: inner.log_is_full() || inner.is_short(),
                is_disturbed: transfers,
                ..of_all
            };
            let rate = lane.next(inner.snapshots.archive.admitted_bytes(), &interval);
            set_uploads(inner, rate);
        }
        if let Some(lane) = &mut self.transfers {
            let interval = Interval {
                is_disturbed: uploads,
                ..of_all
            };
            let rate = lane.next(inner.raft.sent().bytes_sent, &interval);
            set_transfers(inner, rate);
        }
    }
}

fn set_uploads(inner: &Inner, rate: NonZeroU64) {
    inner.snapshots.archive.set_upload_rate(rate);
    metrics::gauge!("esker_partition_store_snapshots_upload_rate_bytes").set(rate.get() as f64);
}

fn set_transfers(inner: &Inner, rate: NonZeroU64) {
    inner.raft.set_snapshot_rate(rate.get());
    metrics::gauge!("esker_raft_snapshot_send_rate_bytes").set(rate.get() as f64);
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
        // What a stop uploads has no limit.
        if inner.draining.load(Ordering::Relaxed) {
            return;
        }
        pacer.next(&inner);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;
    const MAX: NonZeroU64 = NonZeroU64::new(64 * MIB).unwrap();

    #[test]
    fn a_lane_falls_while_what_it_sends_makes_appends_wait_and_recovers_when_it_has_ended() {
        let mut lane = Lane::new(MAX, 7 * MIB);
        let of = |millis| Interval {
            latency: Some(Duration::from_millis(millis)),
            ..Interval::default()
        };
        for _ in 0..20 {
            assert_eq!(lane.next(7 * MIB, &of(1)), MAX);
            assert!(!lane.is_busy);
        }
        let mut sent = 7 * MIB;
        for _ in 0..10 {
            sent += 4 * MIB;
            lane.next(sent, &of(20));
            assert!(lane.is_busy);
        }
        let slowest = lane.next(sent + MIB, &of(20));
        assert!(slowest.get() <= MAX.get() / 8, "{slowest}");
        // Over a time in which what was admitted is sent.
        let last = (0..200).map(|_| lane.next(sent + MIB, &of(1))).last();
        assert_eq!(last, Some(MAX));
        assert!(!lane.is_busy);
    }
}
