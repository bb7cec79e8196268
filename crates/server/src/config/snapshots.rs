//! The section `[snapshots]`: when and where partitions are snapshotted, and how much log is kept.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::secret::Secret;
use super::units::{ByteCount, HumanDuration};

/// Snapshots of the partitions (`[snapshots]`).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct SnapshotsConfig {
    /// The repository: where snapshots are put, each partition below its number. A bucket on S3 or
    /// on a store with its API, or a directory; a relative path is relative to the directory in
    /// which the server is started. Unset, it is a directory below `data-dir`, which does not
    /// survive the loss of that disk: every start warns of it.
    #[schemars(extend("format" = "destination"))]
    pub destination: Option<String>,

    /// How long after the newest snapshot of a partition the next one is put, if anything was applied
    /// since. If `snapshot-interval-num-records` is set as well, both must hold. Unset, time alone is
    /// no reason.
    #[schemars(extend("x-minimum" = "100ms", "x-maximum" = "30days"))]
    pub snapshot_interval: Option<HumanDuration>,

    /// How many records a partition must have taken since its newest snapshot for the next one to be
    /// put. If `snapshot-interval` is set as well, both must hold. Unset, records are not counted.
    #[schemars(range(min = 1, max = 1_000_000_000_000_u64))]
    pub snapshot_interval_num_records: Option<u64>,

    /// A snapshot is put as soon as replaying what came after the newest is predicted to take
    /// longer than this, even if no interval has passed. Unset, snapshots are never put for that
    /// reason.
    #[schemars(extend("x-minimum" = "100ms", "x-maximum" = "1day"))]
    pub recovery_budget: Option<HumanDuration>,

    /// How a new snapshot keeps its files: `full`, a copy of each beside its description, or
    /// `incremental`, by content and shared among snapshots, so that only what is new is uploaded.
    /// Both kinds go together in one repository.
    #[schemars(extend("x-alias" = "experimental-snapshot-kind"))]
    pub snapshot_kind: SnapshotKind,

    /// How many of the newest snapshots of a partition are retained; older ones are deleted at
    /// once. Unset, only the newest is retained, so there is nothing to fall back on if it is
    /// damaged (a start warns of it), and older ones are left to the cleanup of orphans.
    #[schemars(range(min = 1, max = 1000), extend("x-alias" = "experimental-num-retained"))]
    pub num_retained: Option<u32>,

    /// Whether objects of the repository that no snapshot needs any more are deleted, after every
    /// upload and once a day.
    #[schemars(extend("x-alias" = "experimental-orphan-cleanup"))]
    pub orphan_cleanup: bool,

    /// Younger orphans are left alone.
    #[schemars(extend("x-minimum" = "0s", "x-maximum" = "30days"))]
    pub orphan_min_age: HumanDuration,

    /// Bytes that all uploads of this server together send in a second, so that they leave disk and network to
    /// appends. Copies into a directory are counted, also on the same disk. While uploads make appends wait, the
    /// rate is lower: down to a sixteenth of this, or to twice what is appended if that is more. A snapshot takes
    /// at least its new bytes divided by this: if the log would reach `max-log-bytes` in that time, raise one of
    /// them. It does not apply to the snapshots of `snapshot-on-stop`. 0: no limit, and no lower rate for appends
    /// that wait.
    #[schemars(extend("x-minimum" = "0B", "x-maximum" = "1TiB"))]
    pub upload_rate: ByteCount,

    /// Most bytes of log, over all partitions of this server, that are kept so that snapshots in the
    /// repository plus the log reach the present. `on-log-full` decides what happens beyond that. At least
    /// four times `log.segment-size`.
    #[schemars(extend("x-minimum" = "4MiB", "x-maximum" = "16TiB"))]
    pub max_log_bytes: ByteCount,

    /// What happens when the log that is kept for the sake of the repository is larger than
    /// `max-log-bytes`. `trim-anyway`: it is trimmed to the newest local snapshot, so older ones in
    /// the repository no longer reach the present. `refuse-appends`: appends are refused until a
    /// snapshot is in the repository.
    pub on_log_full: OnLogFull,

    /// How often the newest snapshot of each partition is restored into a scratch directory and
    /// compared with the live partition. Unset, that happens only when it is asked for.
    #[schemars(extend("x-minimum" = "1s", "x-maximum" = "30days"))]
    pub restore_test_interval: Option<HumanDuration>,

    /// How often the objects that the retained snapshots of each partition need are read and compared with
    /// their checksums. What is damaged or missing is uploaded again from a local file with the same bytes;
    /// where there is none, the snapshots are marked, and the next one does not use it. Unset, that happens
    /// only when it is asked for, or when a restore has found damage.
    #[schemars(extend("x-minimum" = "1s", "x-maximum" = "30days"))]
    pub scrub_interval: Option<HumanDuration>,

    /// Bytes that this reads in a second, over all partitions of this server. At the default, a week is
    /// enough for 4.6 TiB. 0: no limit.
    #[schemars(extend("x-minimum" = "0B", "x-maximum" = "1TiB"))]
    pub scrub_rate: ByteCount,

    /// Every so many incremental snapshots of a partition, one shares no object with earlier ones, for
    /// independent copies. 1: none shares anything. Unset, every snapshot shares what it can.
    #[schemars(range(min = 1, max = 1000))]
    pub full_every: Option<u32>,

    /// Whether a server that was asked to stop first puts a snapshot of every partition.
    pub snapshot_on_stop: bool,

    /// A local snapshot of a partition, in the data directory, is taken once this many entries of its
    /// log were applied since the one before, so that the log can be trimmed and a restart replays
    /// little. 0: never for that reason.
    #[schemars(range(max = 1_000_000_000_000_u64))]
    pub local_snapshot_num_records: u64,

    /// The same in bytes of log. 0: never for that reason.
    #[schemars(extend("x-minimum" = "0B", "x-maximum" = "1TiB"))]
    pub local_snapshot_bytes: ByteCount,

    /// The profile in `~/.aws/credentials` and `~/.aws/config` from which keys and settings of S3 are
    /// taken. It wins over the keys in `AWS_ACCESS_KEY_ID` and its like. Unset, `AWS_PROFILE` names
    /// it, or it is `default`.
    #[schemars(extend("format" = "text"))]
    pub aws_profile: Option<String>,

    /// The region of the bucket. Unset, that of `AWS_REGION`, `AWS_DEFAULT_REGION` or the profile, or
    /// `us-east-1`.
    #[schemars(extend("format" = "text"))]
    pub aws_region: Option<String>,

    /// An access key of S3. Needs `aws-secret-access-key`. Unset, keys are taken from `aws-profile`,
    /// from `AWS_ACCESS_KEY_ID` and its like, from the default profile, or from the role of the
    /// machine, whichever is found first.
    pub aws_access_key_id: Option<Secret>,

    /// The secret of `aws-access-key-id`, which it needs. Better in the environment than in a flag,
    /// since others see flags. Unset, see there.
    pub aws_secret_access_key: Option<Secret>,

    /// The token that belongs to temporary keys. Needs both of them. Unset, the keys have none.
    pub aws_session_token: Option<Secret>,

    /// The endpoint of a store other than Amazon's, with the API of S3. Unset, that of
    /// `AWS_ENDPOINT_URL_S3`, `AWS_ENDPOINT_URL` or the profile, or Amazon's.
    #[schemars(extend("format" = "endpoint"))]
    pub aws_endpoint_url: Option<String>,

    /// Allows an endpoint to be `http://`: anyone on the network path can then read and change the data.
    /// Unset, `AWS_ALLOW_HTTP` decides, or it is not allowed.
    pub aws_allow_http: Option<bool>,
}

/// How a snapshot keeps its files.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum SnapshotKind {
    /// A copy of each, beside its description.
    #[default]
    Full,
    /// By content, shared among snapshots.
    Incremental,
}

/// What happens when the log that is kept for the sake of the repository exceeds its bound.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum OnLogFull {
    /// It is trimmed to the newest local snapshot.
    #[default]
    TrimAnyway,
    /// Appends are refused until a snapshot is in the repository.
    RefuseAppends,
}

impl Default for SnapshotsConfig {
    fn default() -> Self {
        Self {
            destination: None,
            snapshot_interval: Some(HumanDuration::from_secs(600)),
            snapshot_interval_num_records: None,
            recovery_budget: Some(HumanDuration::from_secs(30)),
            snapshot_kind: SnapshotKind::default(),
            num_retained: None,
            orphan_cleanup: true,
            orphan_min_age: HumanDuration::from_secs(24 * 3600),
            upload_rate: ByteCount::mib(64),
            max_log_bytes: ByteCount::gib(4),
            on_log_full: OnLogFull::default(),
            restore_test_interval: None,
            scrub_interval: Some(HumanDuration::from_secs(7 * 24 * 3600)),
            scrub_rate: ByteCount::mib(8),
            full_every: None,
            snapshot_on_stop: false,
            local_snapshot_num_records: 1_000_000,
            local_snapshot_bytes: ByteCount::mib(256),
            aws_profile: None,
            aws_region: None,
            aws_access_key_id: None,
            aws_secret_access_key: None,
            aws_session_token: None,
            aws_endpoint_url: None,
            aws_allow_http: None,
        }
    }
}
