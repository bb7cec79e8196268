//! Counters that are registered at the start.
//!
//! If a counter first exists with the first failure, that failure is its first value, and an alert on its
//! increase never fires for it. So each counter without labels is registered when a node starts.

/// Names of all counters without labels, of this crate and of those below it.
const COUNTERS: &[&str] = &[
    "esker_append_space_waits_total",
    "esker_appended_batches_total",
    "esker_appended_records_total",
    "esker_digest_read_bytes_total",
    "esker_log_requests_total",
    "esker_log_write_groups_total",
    "esker_log_written_bytes_total",
    "esker_partition_store_snapshots_download_failed_total",
    "esker_partition_store_snapshots_download_fallback_total",
    "esker_partition_store_snapshots_objects_repaired_total",
    "esker_partition_store_snapshots_orphan_files_deleted_total",
    "esker_partition_store_snapshots_orphan_scan_failed_total",
    "esker_partition_store_snapshots_orphan_scan_total",
    "esker_partition_store_snapshots_scrub_bytes_total",
    "esker_partition_store_snapshots_scrub_failed_total",
    "esker_partition_store_snapshots_upload_bytes_deduplicated_total",
    "esker_partition_store_snapshots_upload_bytes_total",
    "esker_partition_store_snapshots_upload_failed_total",
    "esker_partition_store_snapshots_upload_total",
    "esker_raft_messages_malformed_total",
    "esker_raft_messages_newer_format_total",
    "esker_raft_snapshot_bytes_sent_total",
    "esker_raft_snapshot_paced_milliseconds_total",
    "esker_read_database_records_total",
    "esker_read_records_total",
    "esker_read_shared_records_total",
    "esker_refused_appends_total",
    "esker_repository_retries_total",
    "esker_reserve_released_total",
    "esker_restarts_total",
    "esker_retention_scans_total",
    "esker_state_commits_total",
    "esker_state_operations_total",
    "esker_state_pruned_commits_total",
    "esker_state_refused_commits_total",
    "esker_state_rows_read_total",
    "esker_state_snapshots_archive_failed_total",
    "esker_state_snapshots_archived_total",
    "esker_state_snapshots_failed_total",
    "esker_state_snapshots_total",
    "esker_state_transactions_expired_total",
    "esker_upkeep_inspections_total",
];

/// Registers all counters; a new one starts at zero.
pub(crate) fn register() {
    for name in COUNTERS {
        metrics::counter!(*name).increment(0);
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::fs;
    use std::path::Path;

    use super::*;

    /// Finds the names in `counter!("…")`: a name with labels is followed by a comma.
    fn counters_of(dir: &Path, found: &mut BTreeSet<String>) {
        for entry in fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                counters_of(&path, found);
                continue;
            }
            let source = fs::read_to_string(&path).unwrap();
            for call in source.split("counter!(").skip(1) {
                let Some(literal) = call.trim_start().strip_prefix('"') else {
                    continue;
                };
                let Some((name, rest)) = literal.split_once('"') else {
                    continue;
                };
                if name.starts_with("esker_") && rest.trim_start().starts_with(')') {
                    found.insert(name.to_owned());
                }
            }
        }
    }

    #[test]
    fn every_counter_without_labels_is_there_from_the_start() {
        let mut found = BTreeSet::new();
        for name in ["node", "partition", "raft", "repository"] {
            let crates = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
            counters_of(&crates.join(name).join("src"), &mut found);
        }
        let listed: BTreeSet<String> = COUNTERS.iter().map(ToString::to_string).collect();
        let missing: Vec<_> = found.difference(&listed).collect();
        let surplus: Vec<_> = listed.difference(&found).collect();
        assert!(
            missing.is_empty() && surplus.is_empty(),
            "add {missing:?} to COUNTERS, and remove {surplus:?}"
        );
    }
}
