//! Counts what the periodic maintenance does: in an idle node it does not grow with the number of partitions.

use std::sync::atomic::{AtomicU64, Ordering};

/// What was done since the start.
#[derive(Debug, Default)]
pub(crate) struct Upkeep {
    rounds: AtomicU64,
    inspections: AtomicU64,
    retention_rounds: AtomicU64,
    scans: AtomicU64,
}

/// What the periodic maintenance has done since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct UpkeepCounts {
    /// Rounds of the thread that bounds the log.
    pub rounds: u64,
    /// Partitions whose files and memtables it has inspected.
    pub inspections: u64,
    /// Rounds of the thread that proposes what is due.
    pub retention_rounds: u64,
    /// Pages of streams that were read for what is due.
    pub scans: u64,
    /// Positions of partitions that were read from the database.
    pub position_reads: u64,
}

impl Upkeep {
    /// Counts a round, and the partitions that it has inspected.
    pub fn inspected(&self, partitions: u64) {
        self.rounds.fetch_add(1, Ordering::Relaxed);
        self.inspections.fetch_add(partitions, Ordering::Relaxed);
        metrics::counter!("esker_upkeep_inspections_total").increment(partitions);
    }

    /// Counts a round, and the pages of streams that it has read.
    pub fn scanned(&self, pages: u64) {
        self.retention_rounds.fetch_add(1, Ordering::Relaxed);
        self.scans.fetch_add(pages, Ordering::Relaxed);
        metrics::counter!("esker_retention_scans_total").increment(pages);
    }

    /// The counts, with this many reads of positions.
    pub fn counts(&self, position_reads: u64) -> UpkeepCounts {
        UpkeepCounts {
            rounds: self.rounds.load(Ordering::Relaxed),
            retention_rounds: self.retention_rounds.load(Ordering::Relaxed),
            inspections: self.inspections.load(Ordering::Relaxed),
            scans: self.scans.load(Ordering::Relaxed),
            position_reads,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use s2_common::config::{BasinConfig, OptionalDeleteOnEmptyConfig, OptionalStreamConfig};

    use super::*;
    use crate::basins::Create;
    use crate::log_keeper::INSPECTED_AT_REST;
    use crate::node::Node;
    use crate::options::NodeOptions;

    /// Generous: the machine may do other things, and what is awaited is an event.
    const TIMEOUT: Duration = Duration::from_secs(120);
    const PARTITIONS: u32 = 60;
    const BASIN: &str = "test-basin";

    async fn until_rounds(node: &Node, before: UpkeepCounts, rounds: u64, deadline: Instant) {
        loop {
            let now = node.upkeep_counts();
            if now.rounds >= before.rounds + rounds
                && now.retention_rounds >= before.retention_rounds + rounds
            {
                return;
            }
            assert!(
                Instant::now() < deadline,
                "maintenance stands still: {now:?}"
            );
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Waits until some rounds have done no more than they do in a node of a few partitions.
    async fn until_idle(node: &Node) {
        let deadline = Instant::now() + TIMEOUT;
        loop {
            for part in node.inner.parts() {
                // A minute after the last entry, the node does so by itself.
                part.flush().unwrap();
            }
            let before = node.upkeep_counts();
            until_rounds(node, before, 8, deadline).await;
            let after = node.upkeep_counts();
            let most = (after.rounds - before.rounds + 1) * INSPECTED_AT_REST as u64;
            if after.inspections - before.inspections <= most
                && after.scans == before.scans
                && after.position_reads == before.position_reads
            {
                return;
            }
            assert!(
                Instant::now() < deadline,
                "not idle: from {before:?} to {after:?}"
            );
        }
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn an_idle_node_reads_nothing_of_its_partitions_and_what_becomes_due_is_done() {
        let dir = tempfile::tempdir().unwrap();
        let node = Node::start(NodeOptions {
            partitions: PARTITIONS,
            retention_interval: Duration::from_millis(100),
            ..NodeOptions::new(dir.path())
        });
        let node = node.await.unwrap();
        let ensure = Create::Ensure;
        let config = BasinConfig::default();
        let basin = node.provision_basin(BASIN, &config, &ensure);
        basin.await.unwrap();
        for number in 0..2 * PARTITIONS {
            let settings = OptionalStreamConfig::default();
            let name = format!("kept-{number}");
            let stream = node.provision_stream(BASIN, &name, &settings, &ensure);
            stream.await.unwrap();
        }
        until_idle(&node).await;

        // A new stream ends the rest of its partition, and its deletion comes when it is due.
        let settings = OptionalStreamConfig {
            delete_on_empty: OptionalDeleteOnEmptyConfig {
                min_age: Some(Duration::from_secs(1)),
            },
            ..OptionalStreamConfig::default()
        };
        let scans = node.upkeep_counts().scans;
        let stream = node.provision_stream(BASIN, "short-lived", &settings, &ensure);
        stream.await.unwrap();
        let deadline = Instant::now() + TIMEOUT;
        let is_there = || {
            let (listed, _) = node.list_streams(BASIN, "short-lived", "", 1).unwrap();
            !listed.is_empty()
        };
        while is_there() {
            assert!(Instant::now() < deadline, "it was not deleted");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        until_idle(&node).await;
        let scanned = node.upkeep_counts().scans - scans;
        assert!(
            scanned < 30,
            "{scanned} pages were read for one stream of one partition"
        );
        node.stop(Duration::from_secs(30)).await;
    }
}
