//! Options of snapshots and recovery.

use std::num::{NonZeroU32, NonZeroU64};
use std::time::Duration;

pub use esker_repository::Kind as SnapshotKind;
pub use esker_repository::destination::DestinationOptions;

/// When and where partitions are snapshotted, and how much log is kept.
#[derive(Clone, Debug)]
pub struct SnapshotOptions {
    /// URL of the repository: `s3://bucket/prefix`, `file:///dir` or a directory. Without one, it is a
    /// directory in the data directory, which is lost with its disk.
    pub destination: Option<String>,
    /// Keys and settings of the destination.
    pub destination_options: DestinationOptions,
    /// A snapshot is put into the repository this long after the one before, if anything was applied since.
    /// `None`: elapsed time alone is no reason.
    pub interval: Option<Duration>,
    /// A snapshot is put only once this many records were applied since; without `interval`, as soon as this
    /// many were applied.
    pub interval_records: Option<u64>,
    /// A snapshot is put as soon as replaying the log after the newest one is predicted to take longer than
    /// this. `None`: never for that reason.
    pub recovery_budget: Option<Duration>,
    /// How files are kept.
    pub kind: SnapshotKind,
    /// How many snapshots are retained; `None`: the newest only.
    pub num_retained: Option<NonZeroU32>,
    /// Whether orphans are swept, after every upload and daily.
    pub orphan_cleanup: bool,
    /// Orphans younger than this are not swept.
    pub orphan_min_age: Duration,
    /// Bytes of files that all uploads of the node together send in a second. `None`: no limit.
    pub upload_rate: Option<NonZeroU64>,
    /// Most bytes of log that the node keeps for the sake of archived snapshots.
    pub max_log_bytes: u64,
    /// What happens beyond that.
    pub on_log_full: OnLogFull,
    /// The newest snapshot of each partition is restored into a scratch directory and compared with
    /// the live partition this often. `None`: only when asked.
    pub restore_test_interval: Option<Duration>,
    /// The objects of each partition's retained snapshots are read and compared this often, and repaired.
    /// `None`: only when asked, or when damage was found.
    pub scrub_interval: Option<Duration>,
    /// Bytes that this reads in a second. `None`: no limit.
    pub scrub_rate: Option<NonZeroU64>,
    /// Every so many incremental snapshots, one reuses nothing. `None`: they reuse whatever they can.
    pub full_every: Option<NonZeroU32>,
    /// Whether a graceful stop puts a snapshot of every partition first.
    pub on_stop: bool,
    /// A local snapshot is taken once this many entries were applied since the one before; 0 for
    /// never for that reason.
    pub local_threshold_entries: u64,
    /// The same in bytes.
    pub local_threshold_bytes: u64,
}

/// What happens when the log that is kept for archived snapshots exceeds its bound.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OnLogFull {
    /// It is trimmed to the newest local snapshot: archived snapshots older than that no longer
    /// reach the present.
    #[default]
    TrimAnyway,
    /// Appends are refused until a snapshot is archived.
    RefuseAppends,
}

impl Default for SnapshotOptions {
    fn default() -> SnapshotOptions {
        const MIB: u64 = 1024 * 1024;
        SnapshotOptions {
            destination: None,
            destination_options: DestinationOptions::default(),
            interval: Some(Duration::from_secs(600)),
            interval_records: None,
            recovery_budget: Some(Duration::from_secs(30)),
            kind: SnapshotKind::Full,
            num_retained: None,
            orphan_cleanup: true,
            orphan_min_age: Duration::from_secs(24 * 3600),
            // 1 GiB in 16 seconds. A disk that writes several hundred MiB a second has most of that left for
            // the log.
            upload_rate: NonZeroU64::new(64 * MIB),
            max_log_bytes: 4096 * MIB,
            on_log_full: OnLogFull::TrimAnyway,
            restore_test_interval: None,
            // Damage is found within a week. At this rate, a week is enough for 4.6 TiB, and a disk or a
            // network link of 1 Gbit/s is used to 7 %.
            scrub_interval: Some(Duration::from_secs(7 * 24 * 3600)),
            scrub_rate: NonZeroU64::new(8 * MIB),
            full_every: None,
            on_stop: false,
            local_threshold_entries: 1_000_000,
            local_threshold_bytes: 256 * MIB,
        }
    }
}

/// What an empty data directory means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bootstrap {
    /// A new cluster begins here.
    New,
    /// Every partition is restored from the repository. In a directory that is in use: a loss is
    /// accepted where nothing else is left, and a new lineage begins.
    Restore,
    /// This node joins a cluster.
    Join,
}
