//! `/metrics`, compared with its page in the docs.

use std::collections::{BTreeMap, BTreeSet};

use crate::support::{Setup, eventually, sdk};

/// Type and labels of each metric, according to the page.
fn documented() -> BTreeMap<String, (String, BTreeSet<String>)> {
    let page = include_str!("../../docs/reference/metrics.md");
    let rows = page.lines().filter(|line| line.starts_with("| `esker_"));
    let code = |cell: &str| cell.trim().trim_matches('`').to_owned();
    rows.map(|row| {
        let cells: Vec<_> = row.split('|').collect();
        let labels = cells[4].split(',').map(code).filter(|l| !l.is_empty());
        let kind = cells[2].trim().to_owned();
        (code(cells[1]), (kind, labels.collect()))
    })
    .collect()
}

/// The names of a series' labels.
fn labels(series: &str) -> BTreeSet<String> {
    let Some((_, labels)) = series.split_once('{') else {
        return BTreeSet::new();
    };
    let labels = labels
        .split("\",")
        .filter_map(|label| label.split_once('='));
    let names = labels.map(|(name, _)| name.to_owned());
    // `le`, the bound of a histogram's bucket, does not count.
    names.filter(|name| name != "le").collect()
}

#[tokio::test]
async fn every_metric_has_the_type_the_labels_and_the_help_of_its_page() {
    let documented = documented();
    assert!(documented.len() > 80);
    // In a cluster, of this node alone: what nodes pass on to each other has metrics, too.
    let setup = Setup::default().set("cluster.peer-listen=127.0.0.1:0");
    let server = setup.start_fresh().await;
    let basin = sdk::basin(&server.sdk(), "test-basin").await;
    let stream = sdk::stream(&basin, "orders").await;
    sdk::append(&stream, ["one"]).await;
    sdk::read_all(&stream).await;
    // Some are published at intervals, others exist only after the event that they measure.
    let later = [
        "esker_clock_ahead_seconds",
        "esker_cluster_removed_replicas",
        "esker_digest_comparisons_total",
        "esker_forward_first_byte_seconds",
        "esker_partition_diverged",
        "esker_partition_undecided",
        "esker_partition_members_wait_seconds",
        "esker_partition_fetch_remaining_bytes",
        "esker_partition_fetch_waits_for_space",
        "esker_partition_store_snapshots_download_duration_seconds",
        "esker_partition_store_snapshots_upload_duration_seconds",
        "esker_partition_store_snapshots_scrub_objects_total",
        "esker_cluster_secret_reloads_total",
        "esker_peer_certificate_expiry_timestamp_seconds",
        "esker_peer_certificate_reloads_total",
        "esker_raft_snapshot_full_disk_waits_total",
        "esker_repository_large_descriptions_total",
        "esker_raft_strangers_closed_total",
        "esker_root_token_reloads_total",
        "esker_snapshot_age_seconds",
        "esker_snapshot_proof_age_seconds",
        "esker_snapshot_scrub_age_seconds",
        "esker_state_request_seconds",
        "esker_state_snapshot_duration_seconds",
        "esker_tls_certificate_expiry_timestamp_seconds",
        "esker_tls_reloads_total",
    ];
    let mut missing = Vec::new();
    let all_are_there = eventually("all metrics are there", async || {
        let text = server.http1().get("/metrics").send().await.text();
        let seen = check(&text, &documented);
        let named = documented.keys().filter(|name| !seen.contains(*name));
        let named = named.filter(|name| !later.contains(&name.as_str()));
        let named: Vec<_> = named.cloned().collect();
        if named != missing {
            println!("missing: {named:?}");
            missing = named;
        }
        missing.is_empty().then_some(())
    });
    all_are_there.await;
}

/// Checks each line against the page. Returns the metrics in the answer.
fn check(
    text: &str,
    documented: &BTreeMap<String, (String, BTreeSet<String>)>,
) -> BTreeSet<String> {
    let mut helps = BTreeSet::new();
    let mut kinds = BTreeMap::new();
    let mut seen = BTreeSet::new();
    for line in text.lines().filter(|line| !line.is_empty()) {
        let mut words = line.splitn(4, ' ');
        let (first, second, name, rest) = (
            words.next().unwrap(),
            words.next().unwrap(),
            words.next(),
            words.next(),
        );
        match (first, second) {
            ("#", "HELP") => {
                assert!(!rest.unwrap().is_empty(), "{line}");
                helps.insert(name.unwrap().to_owned());
            }
            ("#", "TYPE") => {
                kinds.insert(name.unwrap().to_owned(), rest.unwrap().to_owned());
            }
            _ => {
                let name = first.split('{').next().unwrap();
                let base = ["_bucket", "_sum", "_count"]
                    .iter()
                    .find_map(|end| name.strip_suffix(end))
                    .filter(|base| kinds.contains_key(*base))
                    .unwrap_or(name);
                let (kind, wanted) = documented.get(base).expect(line);
                assert_eq!(&kinds[base], kind, "{line}");
                assert_eq!(&labels(first), wanted, "{line}");
                assert!(helps.contains(base), "{line}");
                seen.insert(base.to_owned());
            }
        }
    }
    seen
}
