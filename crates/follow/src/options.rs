//! How a stream is read back, and when snapshots are taken.

use std::time::Duration;

use crate::snapshot::Encoding;

/// What happens to records that the fold reports as malformed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum MalformedRecords {
    /// The follower ends, and names the record.
    #[default]
    Stop,
    /// They are skipped, and counted.
    Skip,
}

/// How snapshots and records are read.
#[derive(Clone, Debug)]
pub struct Reading {
    /// Whether snapshots of another fold, a newer version, another stream or a stale lineage are passed
    /// over for older ones.
    pub pass_over: bool,
    /// What happens to malformed records.
    pub malformed: MalformedRecords,
    /// How long to wait for a server that does not answer before the state is there. After that there is
    /// no limit.
    pub restore_timeout: Option<Duration>,
}

impl Default for Reading {
    fn default() -> Reading {
        Reading {
            pass_over: false,
            malformed: MalformedRecords::Stop,
            restore_timeout: Some(Duration::from_secs(30)),
        }
    }
}

/// When a snapshot is due: as soon as any of these is reached. Without any, snapshots are taken only
/// when asked for.
#[derive(Clone, Debug, Default)]
pub struct Triggers {
    /// Records since the newest snapshot.
    pub records: Option<u64>,
    /// Bytes of their bodies.
    pub bytes: Option<u64>,
    /// Time since the newest snapshot, if there is anything new.
    pub interval: Option<Duration>,
    /// Time that replaying what came since is predicted to take.
    pub budget: Option<Duration>,
}

impl Triggers {
    /// Whether there is any.
    pub fn any(&self) -> bool {
        let Triggers {
            records,
            bytes,
            interval,
            budget,
        } = self;
        records.is_some() || bytes.is_some() || interval.is_some() || budget.is_some()
    }
}

/// How snapshots are written.
#[derive(Clone, Debug)]
pub struct Writing {
    /// How they are encoded.
    pub encoding: Encoding,
    /// Attempts to append a snapshot within the stream before the next record arrives; then it is
    /// anchored. Each attempt is a new snapshot.
    pub attempts: u32,
}

impl Default for Writing {
    fn default() -> Writing {
        Writing {
            encoding: Encoding::Zstd,
            attempts: 3,
        }
    }
}
