use std::time::Duration;

use super::*;
use crate::config::ByteCount;

#[test]
fn a_configuration_by_default_is_a_node_by_default() {
    let config = Config::default();
    let options = node_options(&config, None);
    let expected = NodeOptions::new(&config.data_dir);
    assert_eq!(format!("{options:?}"), format!("{expected:?}"));
}

#[test]
fn every_key_of_state_reaches_the_node() {
    let config = StateConfig {
        listen: None,
        snapshot_interval: 1,
        snapshots_retained: 2,
        archive_snapshots: false,
        transaction_timeout: HumanDuration::from_secs(3),
        transaction_timeout_max: HumanDuration::from_secs(4),
        transactions: 5,
        transaction_operations: 6,
        transactions_bytes: ByteCount::new(7),
        keep_versions: Some(8),
        keep_history: Some(9),
        keep_history_age: Some(HumanDuration::from_secs(10)),
    };
    let expected = StateOptions {
        snapshot_interval: 1,
        snapshots_retained: 2,
        archive_snapshots: false,
        default_timeout: Duration::from_secs(3),
        max_timeout: Duration::from_secs(4),
        max_transactions: 5,
        max_operations: 6,
        max_transaction_bytes: 7,
        keep_versions: Some(8),
        keep_history_commits: Some(9),
        keep_history_age: Some(Duration::from_secs(10)),
    };
    assert_eq!(state_options(&config), expected);
    let config = Config {
        state: config,
        ..Config::default()
    };
    assert_eq!(node_options(&config, None).state, expected);
}

#[test]
fn every_key_of_snapshots_reaches_the_node() {
    let secret = |text| Some(Secret::new(text).unwrap());
    let config = Config {
        snapshots: SnapshotsConfig {
            destination: Some("s3://bucket/prefix".into()),
            snapshot_interval: None,
            snapshot_interval_num_records: Some(1),
            recovery_budget: Some(HumanDuration::from_secs(2)),
            snapshot_kind: SnapshotKind::Incremental,
            num_retained: Some(3),
            orphan_cleanup: false,
            orphan_min_age: HumanDuration::from_secs(4),
            upload_rate: ByteCount::new(9),
            max_log_bytes: ByteCount::new(5),
            on_log_full: OnLogFull::RefuseAppends,
            restore_test_interval: Some(HumanDuration::from_secs(6)),
            scrub_interval: Some(HumanDuration::from_secs(10)),
            scrub_rate: ByteCount::new(11),
            full_every: Some(12),
            snapshot_on_stop: true,
            local_snapshot_num_records: 7,
            local_snapshot_bytes: ByteCount::new(8),
            aws_profile: Some("profile".into()),
            aws_region: Some("region".into()),
            aws_access_key_id: secret("id"),
            aws_secret_access_key: secret("secret"),
            aws_session_token: secret("token"),
            aws_endpoint_url: Some("http://endpoint".into()),
            aws_allow_http: Some(true),
        },
        ..Config::default()
    };
    let options = node_options(&config, Some(Bootstrap::Restore));
    assert_eq!(options.bootstrap, Some(Bootstrap::Restore));

    let options = options.snapshots;
    assert_eq!(options.destination.as_deref(), Some("s3://bucket/prefix"));
    assert_eq!(options.interval, None);
    assert_eq!(options.interval_records, Some(1));
    assert_eq!(options.recovery_budget, Some(Duration::from_secs(2)));
    assert_eq!(options.kind, esker_node::SnapshotKind::Incremental);
    assert_eq!(options.num_retained, NonZeroU32::new(3));
    assert!(!options.orphan_cleanup);
    assert_eq!(options.orphan_min_age, Duration::from_secs(4));
    assert_eq!(options.upload_rate, NonZeroU64::new(9));
    assert_eq!(options.max_log_bytes, 5);
    assert_eq!(options.on_log_full, esker_node::OnLogFull::RefuseAppends);
    assert_eq!(options.restore_test_interval, Some(Duration::from_secs(6)));
    assert_eq!(options.scrub_interval, Some(Duration::from_secs(10)));
    assert_eq!(options.scrub_rate, NonZeroU64::new(11));
    assert_eq!(options.full_every, NonZeroU32::new(12));
    assert!(options.on_stop);
    assert_eq!(options.local_threshold_entries, 7);
    assert_eq!(options.local_threshold_bytes, 8);

    let aws = options.destination_options;
    assert_eq!(aws.aws_profile.as_deref(), Some("profile"));
    assert_eq!(aws.aws_region.as_deref(), Some("region"));
    assert_eq!(aws.aws_access_key_id.as_deref(), Some("id"));
    assert_eq!(aws.aws_secret_access_key.as_deref(), Some("secret"));
    assert_eq!(aws.aws_session_token.as_deref(), Some("token"));
    assert_eq!(aws.aws_endpoint_url.as_deref(), Some("http://endpoint"));
    assert_eq!(aws.aws_allow_http, Some(true));
}
