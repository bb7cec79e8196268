//! The snapshots that replicas here fetch from other members: how far each is, and how fast it goes.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use esker_raft::engine::TransferStatus;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

/// The time over which a rate is measured.
const WINDOW: Duration = Duration::from_secs(2);

/// A snapshot that a replica fetches.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fetching {
    /// The node that sends it.
    pub from: u64,
    /// The last entry that it covers.
    pub lsn: u64,
    /// Bytes that are here.
    pub bytes_done: u64,
    /// Bytes in all.
    pub bytes_total: u64,
    /// Bytes in a second lately.
    pub bytes_per_second: u64,
    /// The disk here is full: it goes on once there is space.
    pub waits_for_space: bool,
    /// Everything is here and verified, and replaces the replica's state.
    pub is_installing: bool,
}

/// The snapshots that replicas here fetch.
#[derive(Default)]
pub(crate) struct Transfers {
    by_partition: Mutex<BTreeMap<u64, Sampled>>,
}

struct Sampled {
    now: Fetching,
    /// Where the measurement of the rate began.
    since: Instant,
    bytes_then: u64,
}

impl Transfers {
    /// Takes what a group reports of its own fetch. To be called several times a second.
    pub fn sample(&self, partition: u64, mine: Option<&TransferStatus>, now: Instant) {
        let mut all = self.by_partition.lock();
        let Some(mine) = mine else {
            if all.remove(&partition).is_some() {
                publish(partition, &Fetching::default());
            }
            return;
        };
        let progress = &mine.progress;
        let before = all
            .get(&partition)
            .filter(|it| it.now.lsn == progress.last_included_index.0);
        let (mut since, mut bytes_then) = (now, progress.bytes_done);
        let mut bytes_per_second = 0;
        if let Some(before) = before {
            (since, bytes_then) = (before.since, before.bytes_then);
            bytes_per_second = before.now.bytes_per_second;
        }
        let elapsed = now.saturating_duration_since(since);
        if elapsed >= WINDOW {
            let fetched = progress.bytes_done.saturating_sub(bytes_then);
            bytes_per_second = (fetched as f64 / elapsed.as_secs_f64()) as u64;
            (since, bytes_then) = (now, progress.bytes_done);
        }
        let fetching = Fetching {
            from: progress.source.0,
            lsn: progress.last_included_index.0,
            bytes_done: progress.bytes_done,
            bytes_total: progress.bytes_total,
            bytes_per_second,
            waits_for_space: mine.waits_for_space,
            is_installing: mine.installing,
        };
        publish(partition, &fetching);
        let sampled = Sampled {
            now: fetching,
            since,
            bytes_then,
        };
        all.insert(partition, sampled);
    }

    /// What a replica fetches, if it does.
    pub fn of(&self, partition: u64) -> Option<Fetching> {
        let all = self.by_partition.lock();
        all.get(&partition).map(|it| it.now.clone())
    }

    /// Why a fetch waits, if one waits for space on the disk here.
    pub fn wait_for_space(&self, partition: u64) -> Option<String> {
        let fetching = self.of(partition).filter(|it| it.waits_for_space)?;
        Some(format!(
            "the disk is full: {} of {} bytes of a snapshot of node {} are here, and the rest waits for space",
            fetching.bytes_done, fetching.bytes_total, fetching.from
        ))
    }
}

fn publish(partition: u64, fetching: &Fetching) {
    let partition = partition.to_string();
    let gauge = |name: &'static str, value: u64| {
        metrics::gauge!(name, "partition" => partition.clone()).set(value as f64);
    };
    let remaining = fetching.bytes_total.saturating_sub(fetching.bytes_done);
    gauge("esker_partition_fetch_remaining_bytes", remaining);
    let waits = u64::from(fetching.waits_for_space);
    gauge("esker_partition_fetch_waits_for_space", waits);
}

#[cfg(test)]
mod tests {
    use esker_raft::message::Progress;
    use esker_raft::{CheckpointId, Lsn, NodeId};

    use super::*;

    fn status(lsn: u64, bytes_done: u64, waits_for_space: bool) -> TransferStatus {
        TransferStatus {
            receiver: NodeId(2),
            progress: Progress {
                checkpoint: CheckpointId([7; 16]),
                source: NodeId(1),
                last_included_index: Lsn(lsn),
                bytes_done,
                bytes_total: 10_000,
            },
            installing: false,
            waits_for_space,
        }
    }

    #[test]
    fn the_rate_is_that_of_the_last_seconds_and_another_snapshot_begins_anew() {
        let transfers = Transfers::default();
        let start = Instant::now();
        let at = |millis: u64| start + Duration::from_millis(millis);
        for (millis, bytes, rate) in [(0, 1_000, 0), (1_000, 2_000, 0), (2_000, 5_000, 2_000)] {
            transfers.sample(3, Some(&status(9, bytes, false)), at(millis));
            let fetching = transfers.of(3).unwrap();
            assert_eq!(fetching.bytes_per_second, rate, "after {millis} ms");
        }
        transfers.sample(3, Some(&status(9, 5_000, true)), at(4_000));
        assert_eq!(transfers.of(3).unwrap().bytes_per_second, 0);
        let why = transfers.wait_for_space(3).unwrap();
        assert!(why.contains("5000 of 10000 bytes"), "{why}");
        transfers.sample(3, Some(&status(11, 9_000, false)), at(4_250));
        assert_eq!(transfers.of(3).unwrap().bytes_per_second, 0);
        assert_eq!(transfers.wait_for_space(3), None);
        transfers.sample(3, None, at(4_500));
        assert_eq!(transfers.of(3), None);
    }
}
