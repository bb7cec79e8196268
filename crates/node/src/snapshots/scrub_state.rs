//! How far the scrub of the repository is: `scrub.json` in the data directory, and what is known since the
//! start.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

use crate::clock::past_age;
use crate::data_dir::write_durably;
use crate::error::StartError;

/// First and longest wait after a pass that has failed.
const FIRST_RETRY: Duration = Duration::from_secs(30);
const LAST_RETRY: Duration = Duration::from_secs(3600);

const FILE: &str = "scrub.json";

/// How far the pass over a partition is.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(default)]
pub(super) struct Stored {
    /// When the partition was first seen, or its last complete pass ended.
    #[serde(with = "time::serde::rfc3339::option")]
    pub since: Option<OffsetDateTime>,
    /// Whether a pass was ever completed.
    pub completed: bool,
    /// The last key of the pass under way; `None` if none is under way.
    pub after: Option<String>,
}

/// The contents of `scrub.json`, by partition.
#[derive(Debug)]
pub(crate) struct ScrubFile {
    path: PathBuf,
    stored: Mutex<BTreeMap<u64, Stored>>,
}

impl ScrubFile {
    /// Reads the file. A damaged one is replaced: it decides only what is read again.
    pub fn open(data_dir: &Path) -> Result<ScrubFile, StartError> {
        let path = data_dir.join(FILE);
        let stored = match std::fs::read(&path) {
            Ok(bytes) => serde_json::from_slice(&bytes).unwrap_or_else(|error| {
                tracing::warn!(path = %path.display(), %error, "the file is damaged: the scrub of the repository begins again");
                BTreeMap::new()
            }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => BTreeMap::new(),
            Err(source) => {
                return Err(StartError::Io {
                    operation: "reading",
                    path,
                    source,
                });
            }
        };
        Ok(ScrubFile {
            path,
            stored: Mutex::new(stored),
        })
    }

    /// How far the pass over a partition is. The partition is noted at the first call.
    pub(super) fn of(&self, partition: u64) -> Stored {
        let mut stored = self.stored.lock();
        let one = stored.entry(partition).or_default();
        one.since.get_or_insert_with(OffsetDateTime::now_utc);
        one.clone()
    }

    /// When the last complete pass over a partition ended.
    pub fn completed_at(&self, partition: u64) -> Option<OffsetDateTime> {
        let stored = self.stored.lock();
        let one = stored.get(&partition)?;
        one.since.filter(|_| one.completed)
    }

    /// Changes it, and writes the file.
    pub(super) fn change(&self, partition: u64, change: impl FnOnce(&mut Stored)) {
        let bytes = {
            let mut stored = self.stored.lock();
            change(stored.entry(partition).or_default());
            serde_json::to_vec_pretty(&*stored)
        };
        let written = bytes
            .map_err(|e| e.to_string())
            .and_then(|bytes| write_durably(&self.path, &bytes).map_err(|e| e.to_string()));
        if let Err(error) = written {
            tracing::warn!(error, "how far the scrub is was not written down");
        }
    }
}

/// What is known of the scrub of a partition since the start.
#[derive(Debug, Default)]
pub(crate) struct ScrubState {
    /// Whether a pass is due whatever the interval is: something was found damaged.
    pub is_wanted: bool,
    /// Whether that was found since the pass under way began: the next pass begins at the first key.
    pub from_start: bool,
    /// Why the last pass could not read everything, if it could not.
    pub failure: Option<String>,
    failures: u32,
    try_at: Option<Instant>,
}

impl ScrubState {
    /// Requests a pass over everything: damage was found.
    pub fn want(&mut self) {
        self.is_wanted = true;
        self.from_start = true;
    }

    /// What is known after a complete pass. What was found meanwhile may be damage to what it had read before.
    pub fn completed(&mut self) {
        *self = ScrubState {
            is_wanted: self.from_start,
            from_start: self.from_start,
            ..ScrubState::default()
        };
    }

    /// Notes that a pass could not read everything. The wait before the next one grows with each failure.
    pub fn failed(&mut self, why: String) {
        self.failures += 1;
        let wait = FIRST_RETRY
            .saturating_mul(1 << self.failures.min(10))
            .min(LAST_RETRY);
        self.try_at = Some(Instant::now() + wait);
        self.failure = Some(why);
    }

    /// Whether a pass is due.
    pub(super) fn is_due(&self, stored: &Stored, interval: Option<Duration>, now: Instant) -> bool {
        if self.try_at.is_some_and(|at| at > now) {
            return false;
        }
        let passed = |since| past_age(since).is_none_or(|age| interval.is_some_and(|i| age >= i));
        self.is_wanted
            || interval.is_some() && (stored.after.is_some() || stored.since.is_some_and(passed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pass_is_due_an_interval_after_the_last_and_at_once_where_damage_was_found() {
        let hour = Some(Duration::from_secs(3600));
        let now = Instant::now();
        let ended = |ago: u64| Stored {
            since: Some(OffsetDateTime::now_utc() - Duration::from_secs(ago)),
            completed: true,
            after: None,
        };
        let mut state = ScrubState::default();
        assert!(!state.is_due(&ended(3500), hour, now));
        assert!(state.is_due(&ended(3700), hour, now));
        assert!(
            !state.is_due(&ended(3700), None, now),
            "it is not configured"
        );
        let under_way = Stored {
            after: Some("ssts/0".to_owned()),
            ..ended(10)
        };
        assert!(
            state.is_due(&under_way, hour, now),
            "a restart continues it"
        );
        let future = Stored {
            since: Some(OffsetDateTime::now_utc() + Duration::from_secs(90_000)),
            ..Stored::default()
        };
        assert!(state.is_due(&future, hour, now), "a clock was wrong");
        state.is_wanted = true;
        assert!(state.is_due(&ended(1), None, now));
        state.failed("it does not answer".to_owned());
        assert!(!state.is_due(&ended(1), None, now));
        assert!(state.is_due(&ended(1), None, now + LAST_RETRY));
        state.want();
        state.completed();
        assert!(state.is_due(&ended(1), None, now), "it was found meanwhile");
        assert!(std::mem::take(&mut state.from_start));
        state.completed();
        assert!(!state.is_due(&ended(1), None, now));
    }

    #[test]
    fn how_far_a_pass_is_survives_a_restart_and_a_damaged_file_begins_again() {
        let dir = tempfile::tempdir().unwrap();
        let file = ScrubFile::open(dir.path()).unwrap();
        file.change(3, |stored| stored.after = Some("ssts/7".to_owned()));
        assert_eq!(file.completed_at(3), None);
        let file = ScrubFile::open(dir.path()).unwrap();
        assert_eq!(file.of(3).after.as_deref(), Some("ssts/7"));
        file.change(3, |stored| stored.completed = true);
        assert!(file.completed_at(3).is_some());
        std::fs::write(dir.path().join(FILE), "{").unwrap();
        assert_eq!(ScrubFile::open(dir.path()).unwrap().of(3).after, None);
    }
}
