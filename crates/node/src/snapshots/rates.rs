//! How fast this node is, and how long a recovery would take.
//!
//! Replay: entries and bytes a second of all partitions together, in the last start that replayed enough to
//! measure it. Scan: bytes of the log that a start reads in a second, in the last start whose log was large
//! enough to measure it; the scan of a smaller log counts as part of the start. Restore: bytes a second of
//! the last snapshot that was fetched. Measurements are kept in `rates.json`; a prediction is marked if it
//! is based on an assumption.

use std::path::{Path, PathBuf};
use std::time::Duration;

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use crate::data_dir::write_durably;

/// Assumed until the rates are measured: a slow disk and one core.
const ASSUMED_ENTRIES: f64 = 50_000.0;
const ASSUMED_REPLAY_BYTES: f64 = 50e6;
const ASSUMED_RESTORE_BYTES: f64 = 50e6;
const ASSUMED_SCAN_BYTES: f64 = 500e6;
/// A replay of fewer entries, or a restore of fewer bytes, measures start-up rather than speed.
const ENTRIES_THAT_TELL: u64 = 1_000;
const BYTES_THAT_TELL: u64 = 1 << 20;
/// The scan of a smaller log is not measured, because the file that is written to counts whole.
const LOG_THAT_TELLS: u64 = 96 << 20;

/// The measured rates. A field is `None` until it was measured.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Measured {
    /// Entries replayed in a second.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub replay_entries: Option<f64>,
    /// Bytes of these entries in a second.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub replay_bytes: Option<f64>,
    /// Bytes restored in a second, from the repository into the database.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub restore_bytes: Option<f64>,
    /// Bytes of the log read in a second.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scan_bytes: Option<f64>,
    /// Seconds of a start that depend on none of these.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub start: Option<f64>,
}

/// The measurements, and the file that keeps them.
#[derive(Debug)]
pub(crate) struct Rates {
    path: PathBuf,
    measured: Mutex<Measured>,
    /// Held by whoever writes the file: whoever looks at what was measured does not wait for the disk.
    writing: Mutex<()>,
}

/// A time that was predicted.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Prediction {
    /// The predicted time.
    pub time: Duration,
    /// Whether it is based on a rate that was not measured on this node.
    pub assumed: bool,
}

/// Whether a log of this many bytes is large enough to measure the scan.
pub(crate) fn scan_tells(bytes: u64) -> bool {
    bytes >= LOG_THAT_TELLS
}

impl Rates {
    /// Reads the earlier measurements. Those that cannot be read are measured again.
    pub fn open(data_dir: &Path) -> Rates {
        let path = data_dir.join("rates.json");
        let measured = std::fs::read(&path)
            .ok()
            .and_then(|text| serde_json::from_slice(&text).ok())
            .unwrap_or_default();
        Rates {
            path,
            measured: Mutex::new(measured),
            writing: Mutex::new(()),
        }
    }

    pub fn measured(&self) -> Measured {
        *self.measured.lock()
    }

    /// Notes a replay, if it was large enough to measure the rate.
    pub fn replayed(&self, entries: u64, bytes: u64, took: Duration) {
        let seconds = took.as_secs_f64();
        if entries < ENTRIES_THAT_TELL || seconds <= 0.0 {
            return;
        }
        self.note(|measured| {
            measured.replay_entries = Some(entries as f64 / seconds);
            measured.replay_bytes = Some((bytes as f64 / seconds).max(1.0));
        });
    }

    /// Notes a restore, if it was large enough to measure the rate.
    pub fn restored(&self, bytes: u64, took: Duration) {
        let seconds = took.as_secs_f64();
        if bytes < BYTES_THAT_TELL || seconds <= 0.0 {
            return;
        }
        self.note(|measured| measured.restore_bytes = Some(bytes as f64 / seconds));
    }

    /// Notes a scan of the log, if it was large enough to measure the rate.
    pub fn scanned(&self, bytes: u64, took: Duration) {
        let seconds = took.as_secs_f64();
        if !scan_tells(bytes) || seconds <= 0.0 {
            return;
        }
        self.note(|measured| measured.scan_bytes = Some(bytes as f64 / seconds));
    }

    /// Notes the time of a start without scan, restore and replay.
    pub fn started(&self, took: Duration) {
        self.note(|measured| measured.start = Some(took.as_secs_f64()));
    }

    fn note(&self, change: impl FnOnce(&mut Measured)) {
        let _writing = self.writing.lock();
        let text = {
            let mut measured = self.measured.lock();
            change(&mut measured);
            serde_json::to_vec_pretty(&*measured).unwrap_or_default()
        };
        if let Err(error) = write_durably(&self.path, &text) {
            tracing::warn!(%error, "what was measured is not kept");
        }
    }

    /// How long it takes to replay this many entries with this many bytes.
    pub fn replay(&self, entries: u64, bytes: u64) -> Prediction {
        let measured = self.measured();
        let by_entries = entries as f64 / measured.replay_entries.unwrap_or(ASSUMED_ENTRIES);
        let by_bytes = bytes as f64 / measured.replay_bytes.unwrap_or(ASSUMED_REPLAY_BYTES);
        Prediction {
            time: seconds(by_entries.max(by_bytes)),
            assumed: entries > 0 && measured.replay_entries.is_none(),
        }
    }

    /// How long it takes to restore this many bytes.
    pub fn restore(&self, bytes: u64) -> Prediction {
        let measured = self.measured();
        Prediction {
            time: seconds(bytes as f64 / measured.restore_bytes.unwrap_or(ASSUMED_RESTORE_BYTES)),
            assumed: bytes > 0 && measured.restore_bytes.is_none(),
        }
    }

    /// How long it takes to scan this many bytes of log.
    pub fn scan(&self, bytes: u64) -> Prediction {
        if !scan_tells(bytes) {
            return Prediction::default();
        }
        let measured = self.measured();
        Prediction {
            time: seconds(bytes as f64 / measured.scan_bytes.unwrap_or(ASSUMED_SCAN_BYTES)),
            assumed: measured.scan_bytes.is_none(),
        }
    }

    /// How long a start takes that has nothing to scan, restore or replay.
    pub fn start(&self) -> Prediction {
        let measured = self.measured();
        Prediction {
            time: seconds(measured.start.unwrap_or_default()),
            assumed: measured.start.is_none(),
        }
    }
}

impl std::ops::Add for Prediction {
    type Output = Prediction;

    fn add(self, other: Prediction) -> Prediction {
        Prediction {
            time: self.time + other.time,
            assumed: self.assumed || other.assumed,
        }
    }
}

fn seconds(seconds: f64) -> Duration {
    Duration::try_from_secs_f64(seconds).unwrap_or(Duration::MAX / 4)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_measured_is_kept_and_used() {
        let dir = tempfile::tempdir().unwrap();
        let rates = Rates::open(dir.path());
        assert!(rates.replay(10, 10).assumed);
        rates.replayed(10_000, 1_000_000, Duration::from_secs(2));
        rates.restored(100 << 20, Duration::from_secs(10));
        let again = Rates::open(dir.path());
        assert_eq!(again.measured(), rates.measured());
        let replay = again.replay(50_000, 0);
        assert_eq!(replay.time, Duration::from_secs(10));
        assert!(!replay.assumed);
        // Larger entries take longer.
        assert_eq!(again.replay(1, 5_000_000).time, Duration::from_secs(10));
        assert_eq!(again.restore(10 << 20).time, Duration::from_secs(1));
    }

    #[test]
    fn a_long_log_takes_its_time_and_a_short_one_is_part_of_the_start() {
        let dir = tempfile::tempdir().unwrap();
        let rates = Rates::open(dir.path());
        assert!(rates.scan(1 << 30).assumed);
        rates.scanned(32 << 20, Duration::from_secs(9));
        assert_eq!(rates.measured(), Measured::default());
        rates.scanned(1 << 30, Duration::from_secs(2));
        let again = Rates::open(dir.path());
        assert_eq!(again.scan(4 << 30).time, Duration::from_secs(8));
        assert_eq!(again.scan(32 << 20), Prediction::default());
    }

    #[test]
    fn too_little_tells_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let rates = Rates::open(dir.path());
        rates.replayed(3, 100, Duration::from_secs(9));
        rates.restored(3, Duration::from_secs(9));
        assert_eq!(rates.measured(), Measured::default());
    }

    #[test]
    fn a_broken_file_is_measured_again() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("rates.json"), "{").unwrap();
        assert_eq!(Rates::open(dir.path()).measured(), Measured::default());
    }
}
