//! The node's options, from the configuration.

use std::num::{NonZeroU32, NonZeroU64};

use esker_node::{
    Bootstrap, DestinationOptions, NodeOptions, SnapshotOptions, StateOptions, StoreOptions,
    ValueCheck,
};

use crate::config::{
    Config, HumanDuration, OnLogFull, Secret, SnapshotKind, SnapshotsConfig, StateConfig,
};

pub(super) fn node_options(config: &Config, bootstrap: Option<Bootstrap>) -> NodeOptions {
    NodeOptions {
        cluster_name: config.cluster_name.clone(),
        partitions: config.partitions,
        log_segment_size: config.log.segment_size.as_u64(),
        log_purge_threshold: config.log.purge_threshold.as_u64(),
        log_max_group_size: config.log.max_group_size.as_u64(),
        flush_after: config.log.flush_after.as_u64(),
        store: StoreOptions {
            block_cache: config.store.block_cache.as_usize(),
            write_buffer: config.store.write_buffer.as_usize(),
            write_buffers_total: config.store.write_buffers_total.as_usize(),
            max_open_files: i32::try_from(config.store.max_open_files).unwrap_or(i32::MAX),
            background_jobs: i32::try_from(config.store.background_jobs).unwrap_or(i32::MAX),
            ..StoreOptions::default()
        },
        // Space is reclaimed in steps of what a partition has in memory.
        compact_garbage: 2 * config.store.write_buffer.as_u64(),
        append_inflight: config.limits.append_inflight.as_usize(),
        follower_buffer: config.limits.follower_buffer.as_usize(),
        follower_buffers_total: config.limits.follower_buffers_total.as_usize(),
        read_sessions: config.limits.read_sessions.as_usize(),
        retention_interval: config.retention.interval.as_duration(),
        streams_per_round: config.retention.streams_per_round as usize,
        snapshots: snapshot_options(&config.snapshots),
        state: state_options(&config.state),
        check_value: ValueCheck(crate::state::check_value),
        bootstrap,
        ..NodeOptions::new(&config.data_dir)
    }
}

fn snapshot_options(config: &SnapshotsConfig) -> SnapshotOptions {
    let exposed = |secret: &Option<Secret>| secret.as_ref().map(|it| it.expose().to_owned());
    SnapshotOptions {
        destination: config.destination.clone(),
        destination_options: DestinationOptions {
            aws_profile: config.aws_profile.clone(),
            aws_region: config.aws_region.clone(),
            aws_access_key_id: exposed(&config.aws_access_key_id),
            aws_secret_access_key: exposed(&config.aws_secret_access_key),
            aws_session_token: exposed(&config.aws_session_token),
            aws_endpoint_url: config.aws_endpoint_url.clone(),
            aws_allow_http: config.aws_allow_http,
            ..DestinationOptions::default()
        },
        interval: config.snapshot_interval.map(HumanDuration::as_duration),
        interval_records: config.snapshot_interval_num_records,
        recovery_budget: config.recovery_budget.map(HumanDuration::as_duration),
        kind: match config.snapshot_kind {
            SnapshotKind::Full => esker_node::SnapshotKind::Full,
            SnapshotKind::Incremental => esker_node::SnapshotKind::Incremental,
        },
        // The bounds of the configuration do not allow 0.
        num_retained: config.num_retained.and_then(NonZeroU32::new),
        orphan_cleanup: config.orphan_cleanup,
        orphan_min_age: config.orphan_min_age.as_duration(),
        // 0 is no bound.
        upload_rate: NonZeroU64::new(config.upload_rate.as_u64()),
        max_log_bytes: config.max_log_bytes.as_u64(),
        on_log_full: match config.on_log_full {
            OnLogFull::TrimAnyway => esker_node::OnLogFull::TrimAnyway,
            OnLogFull::RefuseAppends => esker_node::OnLogFull::RefuseAppends,
        },
        restore_test_interval: config.restore_test_interval.map(HumanDuration::as_duration),
        scrub_interval: config.scrub_interval.map(HumanDuration::as_duration),
        // 0 is no bound.
        scrub_rate: NonZeroU64::new(config.scrub_rate.as_u64()),
        full_every: config.full_every.and_then(NonZeroU32::new),
        on_stop: config.snapshot_on_stop,
        local_threshold_entries: config.local_snapshot_num_records,
        local_threshold_bytes: config.local_snapshot_bytes.as_u64(),
    }
}

fn state_options(config: &StateConfig) -> StateOptions {
    StateOptions {
        snapshot_interval: config.snapshot_interval,
        snapshots_retained: config.snapshots_retained,
        archive_snapshots: config.archive_snapshots,
        default_timeout: config.transaction_timeout.as_duration(),
        max_timeout: config.transaction_timeout_max.as_duration(),
        max_transactions: config.transactions as usize,
        max_operations: config.transaction_operations as usize,
        max_transaction_bytes: config.transactions_bytes.as_usize(),
        keep_versions: config.keep_versions,
        keep_history_commits: config.keep_history,
        keep_history_age: config.keep_history_age.map(HumanDuration::as_duration),
    }
}

#[cfg(test)]
mod tests;
