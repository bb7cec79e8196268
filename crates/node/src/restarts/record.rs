//! The restarts that a node has requested, in `restarts.json`, and what is known of the next one.
//!
//! There are at most [`MAX_RESTARTS`] in [`RESTART_WINDOW`], with at least the pauses of [`PAUSES`] between
//! them. They are counted in `restarts.json`, which is written before the process ends, so a start that is
//! killed counts too. Beyond the bound, and where the file cannot be read or written, no restart is made;
//! health and status name the reason.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use tokio::sync::watch;

use crate::clock::past_age_at;
use crate::data_dir::write_durably;
use crate::error::StartError;
use crate::recovery::Activity;

/// Most restarts in [`RESTART_WINDOW`]: a fault that needs more of them is not fixed by restarts.
const MAX_RESTARTS: usize = 3;

const RESTART_WINDOW: Duration = Duration::from_secs(60 * 60);

/// Shortest time between the last restart and the next one, by the number of restarts in the window.
const PAUSES: [Duration; MAX_RESTARTS] = [
    Duration::ZERO,
    Duration::from_secs(60),
    Duration::from_secs(10 * 60),
];

/// Once preparing a copy takes this long, it is reported as the reason why the restart is delayed.
const LONG_PREPARATION: Duration = Duration::from_secs(30);

/// Bytes of a cause that are stored.
const MAX_CAUSE: usize = 1024;

/// The restarts that the node has asked for, and those that it needs.
#[derive(Debug)]
pub(crate) struct Restarts {
    path: PathBuf,
    /// Never locked while waiting for the disk.
    noted: Mutex<Noted>,
    /// Locked while `restarts.json` is written.
    noting: Mutex<()>,
    /// Why `restarts.json` cannot be read, if it cannot: no restart is made then.
    unread: Mutex<Option<String>>,
    /// The copy that is being prepared.
    pub preparing: Mutex<Option<Preparation>>,
    /// Why no restart is made although one is needed, if that is the case.
    held_back: Mutex<Option<String>>,
    /// When the host is asked again, after it has not restarted the node.
    pub retry_at: Mutex<Option<Instant>>,
    /// Why a restart has to be made now.
    pub wanted: watch::Sender<Option<String>>,
}

/// A copy of a partition that is being prepared for a restart.
#[derive(Clone, Debug)]
pub(crate) struct Preparation {
    pub partition: u64,
    pub since: Instant,
    pub activity: Arc<Activity>,
}

/// What is in `restarts.json`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Noted {
    /// The number of restarts since the directory was created.
    total: u64,
    /// The last ones, oldest first.
    recent: Vec<Restart>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Restart {
    #[serde(with = "time::serde::rfc3339")]
    at: OffsetDateTime,
    cause: String,
}

impl Noted {
    /// The restarts in the window. One in the future comes from a clock that was ahead, and does not count.
    fn of_window(&self, now: OffsetDateTime) -> Vec<&Restart> {
        let is_late = |at| past_age_at(at, now).is_some_and(|age| age < RESTART_WINDOW);
        let recent = self.recent.iter();
        recent.filter(|restart| is_late(restart.at)).collect()
    }

    /// When the next restart may be made, if not now.
    fn not_before(&self, now: OffsetDateTime) -> Option<OffsetDateTime> {
        let lately = self.of_window(now);
        let (first, last) = (lately.first()?, lately.last()?);
        let due = match PAUSES.get(lately.len()) {
            Some(pause) => last.at + *pause,
            None => first.at + RESTART_WINDOW,
        };
        (due > now).then_some(due)
    }

    fn with(&self, at: OffsetDateTime, cause: &str) -> Noted {
        let mut next = self.clone();
        next.total += 1;
        let mut cause = cause.to_owned();
        cause.truncate(cause.floor_char_boundary(MAX_CAUSE));
        next.recent.push(Restart { at, cause });
        let surplus = next.recent.len().saturating_sub(MAX_RESTARTS);
        next.recent.drain(..surplus);
        next
    }
}

impl Restarts {
    /// Reads the file. A file that is not valid counts as empty, and the next restart replaces it. A file
    /// that cannot be read now does not prevent a start: it is read again when a restart is needed.
    pub fn open(data_dir: &Path) -> Restarts {
        let restarts = Restarts {
            path: data_dir.join("restarts.json"),
            noted: Mutex::default(),
            noting: Mutex::default(),
            unread: Mutex::default(),
            preparing: Mutex::default(),
            held_back: Mutex::default(),
            retry_at: Mutex::default(),
            wanted: watch::Sender::new(None),
        };
        if let Err(why) = restarts.read() {
            tracing::warn!(
                why,
                "the server does not restart itself until it can be read"
            );
        }
        restarts
    }

    /// Reads the file.
    pub fn read(&self) -> Result<(), String> {
        let path = &self.path;
        let noted = match std::fs::read(path) {
            Ok(text) => serde_json::from_slice(&text).unwrap_or_else(|error| {
                tracing::warn!(path = %path.display(), %error, "restarts are counted from 0");
                Noted::default()
            }),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Noted::default(),
            Err(e) => {
                let why = format!(
                    "the server's restarts cannot be counted: {} cannot be read: {e}",
                    path.display()
                );
                *self.unread.lock() = Some(why.clone());
                return Err(why);
            }
        };
        metrics::counter!("esker_restarts_total").absolute(noted.total);
        *self.noted.lock() = noted;
        *self.unread.lock() = None;
        Ok(())
    }

    /// Why no restart would be made if one were needed, if that is known.
    pub fn unread(&self) -> Option<String> {
        self.unread.lock().clone()
    }

    /// Why no restart is made although one is needed, if that is the case.
    pub fn held_back(&self) -> Option<String> {
        let held_back = self.held_back.lock().clone();
        let takes_long = |since: Instant| since.elapsed() >= LONG_PREPARATION;
        let is_late = || {
            let preparing = self.preparing.lock();
            preparing.as_ref().is_some_and(|it| takes_long(it.since))
        };
        held_back.or_else(|| self.preparing().filter(|_| is_late()))
    }

    /// The copy that is being prepared for a restart, in words.
    pub fn preparing(&self) -> Option<String> {
        let preparing = self.preparing.lock().clone()?;
        let (partition, activity) = (preparing.partition, &preparing.activity);
        let seconds = preparing.since.elapsed().as_secs();
        let step = activity.shown();
        let stalled = activity.stalled().map(|stalled| {
            let seconds = stalled.as_secs();
            format!(
                ", without progress for {seconds} s: the disk or the repository does not answer"
            )
        });
        Some(format!(
            "a copy of partition {partition} is being made ready, for {seconds} s so far ({step}{})",
            stalled.unwrap_or_default()
        ))
    }

    /// The restarts of the last hour, in words.
    pub fn lately(&self) -> Option<String> {
        let noted = self.noted.lock();
        let lately = noted.of_window(OffsetDateTime::now_utc());
        let last = lately.last()?;
        let (at, cause) = (shown(last.at), &last.cause);
        Some(match lately.len() {
            1 => format!("the server restarted itself at {at}: {cause}"),
            times => format!(
                "the server restarted itself {times} times in the last hour, the last time at {at}: {cause}"
            ),
        })
    }

    pub fn not_before(&self) -> Option<OffsetDateTime> {
        self.noted.lock().not_before(OffsetDateTime::now_utc())
    }

    pub fn note(&self, cause: &str) -> Result<(), StartError> {
        let _noting = self.noting.lock();
        let next = self.noted.lock().with(OffsetDateTime::now_utc(), cause);
        let text = serde_json::to_vec_pretty(&next).map_err(|e| StartError::BadIdentity {
            path: self.path.clone(),
            why: e.to_string(),
        })?;
        write_durably(&self.path, &text)?;
        *self.noted.lock() = next;
        Ok(())
    }

    pub fn hold_back(&self, why: Option<String>) {
        let mut held_back = self.held_back.lock();
        if let Some(why) = &why
            && held_back.as_ref() != Some(why)
        {
            tracing::error!(
                why,
                "a restart is needed, and the server does not restart itself"
            );
        }
        *held_back = why;
    }
}

/// A time, to the second, for display.
pub(crate) fn shown(at: OffsetDateTime) -> String {
    let at = at.replace_nanosecond(0).unwrap_or(at);
    at.format(&Rfc3339).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINUTE: Duration = Duration::from_secs(60);

    fn start() -> OffsetDateTime {
        OffsetDateTime::UNIX_EPOCH + 1000 * RESTART_WINDOW
    }

    #[test]
    fn restarts_are_made_at_once_then_after_1_and_10_minutes_and_then_as_the_hour_allows() {
        let mut noted = Noted::default();
        let mut made = Vec::new();
        for minute in 0..140 {
            let now = start() + minute * MINUTE;
            if noted.not_before(now).is_none() {
                noted = noted.with(now, "why");
                made.push(minute);
            }
        }
        assert_eq!(made, [0, 1, 11, 60, 70, 80, 120, 130]);
        assert_eq!(noted.total, made.len() as u64);
        assert_eq!(noted.recent.len(), MAX_RESTARTS);
    }

    #[test]
    fn a_restart_of_a_clock_that_was_ahead_holds_none_back() {
        let ahead = Noted::default().with(start() + 100 * RESTART_WINDOW, "why");
        assert_eq!(ahead.not_before(start()), None);
    }

    #[test]
    fn restarts_are_counted_over_restarts_and_a_file_that_is_none_counts_as_none() {
        let dir = tempfile::tempdir().unwrap();
        let restarts = Restarts::open(dir.path());
        assert_eq!((restarts.not_before(), restarts.lately()), (None, None));
        restarts.note(&"é".repeat(MAX_CAUSE)).unwrap();
        let again = Restarts::open(dir.path());
        assert!(again.not_before().is_some(), "one has just been made");
        assert_eq!(again.noted.lock().total, 1);
        let lately = again.lately().unwrap();
        assert!(
            lately.starts_with("the server restarted itself at 2"),
            "{lately}"
        );

        std::fs::write(dir.path().join("restarts.json"), "torn").unwrap();
        let none = Restarts::open(dir.path());
        assert_eq!(*none.noted.lock(), Noted::default());
    }
    #[test]
    fn restarts_that_cannot_be_read_are_no_reason_not_to_start_and_hold_restarts_back() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("restarts.json");
        std::fs::create_dir(&path).unwrap();
        let restarts = Restarts::open(dir.path());
        assert!(restarts.unread().unwrap().contains("restarts.json"));
        restarts.read().unwrap_err();
        std::fs::remove_dir(&path).unwrap();
        restarts.read().unwrap();
        assert_eq!(restarts.unread(), None);
        restarts.note("why").unwrap();
    }

    #[test]
    fn a_copy_that_is_made_ready_for_long_is_what_holds_the_restart_back() {
        let dir = tempfile::tempdir().unwrap();
        let restarts = Restarts::open(dir.path());
        let activity = Arc::<Activity>::default();
        activity.begin("fetching snapshot 5", 0);
        let prepare = |since| {
            *restarts.preparing.lock() = Some(Preparation {
                partition: 3,
                since,
                activity: activity.clone(),
            });
        };
        prepare(Instant::now());
        assert!(restarts.preparing().unwrap().contains("partition 3"));
        assert_eq!(restarts.held_back(), None);
        prepare(Instant::now().checked_sub(LONG_PREPARATION).unwrap());
        let held_back = restarts.held_back().unwrap();
        assert!(held_back.contains("partition 3"), "{held_back}");
        assert!(held_back.contains("fetching snapshot 5"), "{held_back}");
        assert!(!held_back.contains("without progress"), "{held_back}");
        activity.rewind(Duration::from_secs(3600));
        let held_back = restarts.held_back().unwrap();
        assert!(held_back.contains("without progress for 36"), "{held_back}");
    }
}
