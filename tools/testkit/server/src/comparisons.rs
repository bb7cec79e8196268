//! Comparisons of the replicas of a cluster's partitions.

use serde_json::{Value, json};

use crate::Cluster;
use crate::eventually;

/// Comparisons in a row that may come to no end on a slow machine.
const MAX_FAILED: usize = 4;

impl Cluster {
    /// The last comparison of a partition, as a node shows it.
    pub async fn last_comparison(&self, at: usize, partition: u64) -> Option<Value> {
        let of = self.partition(at, partition).await?;
        of["check"].is_object().then(|| of["check"].clone())
    }

    /// Has a partition compared by way of a node. Returns the result. It comes also if the leadership moves meanwhile. A
    /// comparison that comes to no end, because a replica takes too long, is asked for again.
    ///
    /// # Panics
    ///
    /// If there is no result soon.
    pub async fn compare(&self, at: usize, partition: u64) -> Value {
        let noted = |check: Option<Value>| check.map_or(0, |it| it["noted_at"].as_u64().unwrap());
        let before = noted(self.last_comparison(at, partition).await);
        let path = format!("partitions/{partition}/check");
        eventually("a comparison begins", async || {
            let answer = self.change(at, &path, &json!({})).await;
            (answer.status == 200).then_some(())
        })
        .await;
        let mut failed = Vec::new();
        eventually("the comparison is done", async || {
            let check = self.last_comparison(at, partition).await;
            if noted(check.clone()) > before {
                return check;
            }
            let why = self.why_not_compared(at, partition).await?;
            if self.change(at, &path, &json!({})).await.status == 200 {
                failed.push(why);
                assert!(failed.len() <= MAX_FAILED, "no comparison ends: {failed:?}");
            }
            None
        })
        .await
    }

    /// Compares all replicas of all partitions, as a node shows them.
    ///
    /// # Panics
    ///
    /// If two differ, or not all of them can be compared.
    pub async fn replicas_are_equal(&self, at: usize) {
        let view = eventually("a node answers", async || self.view(at).await.ok()).await;
        let partitions = view["partitions"].as_array().map_or(0, Vec::len);
        assert!(partitions > 0, "{view:#}");
        for partition in 0..partitions as u64 {
            let what = format!("all replicas of partition {partition} are compared");
            eventually(&what, async || {
                let check = self.compare(at, partition).await;
                assert_eq!(
                    check["outcome"], "equal",
                    "partition {partition}: {check:#}"
                );
                let digests = check["digests"].as_array()?;
                (digests.len() == self.count()).then_some(())
            })
            .await;
        }
    }

    /// Why the last comparison of a partition came to no end, if so, and none is under way.
    async fn why_not_compared(&self, at: usize, partition: u64) -> Option<String> {
        let of = self.partition(at, partition).await?;
        let why = of["check_failed"].as_str()?;
        assert!(!why.is_empty(), "{of:#}");
        (of["checking"] == false).then(|| why.to_owned())
    }

    async fn partition(&self, at: usize, partition: u64) -> Option<Value> {
        let view = self.view(at).await.ok()?;
        let mut partitions = view["partitions"].as_array()?.iter();
        partitions.find(|of| of["partition"] == partition).cloned()
    }
}
