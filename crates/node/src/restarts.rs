//! Restarts that the node asks its host for.
//!
//! Some faults are mended by a start, and by nothing less: files of a partition that turn out damaged
//! while others are served, and a database that takes no write until it is opened again. A start is the
//! way back that is tested most, so a running node does not repeat any of it: once it is sure that a start
//! can recover, it asks its host for one ([`Node::restart_wanted`]).
//!
//! Sure means, of every damaged partition: the damage is noted durably, and a copy that leads to the
//! present has been found, fetched if need be, and compared block by block (`recovery::copies`). What was
//! fetched is used by the start, so a long download costs no outage. Without such a copy the node serves on:
//! a start would end, and with it the partitions that are well.
//!
//! [`MAX_RESTARTS`] in [`RESTART_WINDOW`], none sooner after the one before than [`PAUSES`] say. They are
//! counted in `restarts.json`, written before the process ends: a start that is killed counts too. Beyond
//! the bound, and where the file cannot be read or written, there is no restart; health and status say why.
//! Nor is there one where the path of the data directory leads elsewhere by now: the start would not find
//! what was acknowledged.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use tokio::sync::watch;

use crate::clock::past_age_at;
use crate::data_dir::write_durably;
use crate::error::StartError;
use crate::node::{Inner, Node};
use crate::recovery;

/// Restarts in [`RESTART_WINDOW`]: what needs more of them is not mended by any.
const MAX_RESTARTS: usize = 3;
const RESTART_WINDOW: Duration = Duration::from_secs(60 * 60);
/// How long after the last restart the next one may be, by how many there were in the window.
const PAUSES: [Duration; MAX_RESTARTS] = [
    Duration::ZERO,
    Duration::from_secs(60),
    Duration::from_secs(10 * 60),
];
/// How often it is looked whether a restart is needed.
const LOOK_INTERVAL: Duration = Duration::from_millis(500);
/// A copy that could not be made ready is tried again after so long, twice as long after each failure...
const FIRST_RETRY: Duration = Duration::from_secs(5);
/// ...up to this.
const LAST_RETRY: Duration = Duration::from_secs(10 * 60);
/// A host that does not make a restart is asked for it again after so long.
const HOST_RETRY: Duration = Duration::from_secs(60);
/// A copy that is being made ready for so long is named as what holds the restart back.
const LONG_PREPARATION: Duration = Duration::from_secs(30);
/// Bytes of a cause that are kept.
const MAX_CAUSE: usize = 1024;

/// The restarts that the node has asked for, and those that it needs.
#[derive(Debug)]
pub(crate) struct Restarts {
    path: PathBuf,
    /// Never held while the disk is waited for.
    noted: Mutex<Noted>,
    /// Held while `restarts.json` is written.
    noting: Mutex<()>,
    /// Why `restarts.json` cannot be read, if so: there is no restart then.
    unread: Mutex<Option<String>>,
    /// The partition of which a copy is being made ready, and since when.
    preparing: Mutex<Option<(u64, Instant)>>,
    /// Why no restart is made although one is needed, if so.
    held_back: Mutex<Option<String>>,
    /// When the host is asked again, after it has made none.
    retry_at: Mutex<Option<Instant>>,
    /// Why a restart is to be made now.
    wanted: watch::Sender<Option<String>>,
}

/// What is in `restarts.json`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Noted {
    /// All of them, since the directory was made.
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
    /// Those of the window. One from the future is of a clock that was ahead, and does not count.
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
    /// Reads what is noted. What is no such file counts as none, and is replaced by the next one. A file
    /// that cannot be read now is no reason not to start: it is read again when a restart is needed.
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

    /// Reads what is noted.
    fn read(&self) -> Result<(), String> {
        let path = &self.path;
        let noted = match std::fs::read(path) {
            Ok(text) => serde_json::from_slice(&text).unwrap_or_else(|error| {
                tracing::warn!(path = %path.display(), %error, "restarts are counted from 0");
                Noted::default()
            }),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Noted::default(),
            Err(e) => {
                let why = format!(
                    "restarts of the server by itself cannot be counted: {} cannot be read: {e}",
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

    /// Why no restart is made although one is needed, if so.
    pub fn held_back(&self) -> Option<String> {
        let held_back = self.held_back.lock().clone();
        let takes_long = |since: Instant| since.elapsed() >= LONG_PREPARATION;
        let is_late = || {
            self.preparing
                .lock()
                .is_some_and(|(_, since)| takes_long(since))
        };
        held_back.or_else(|| self.preparing().filter(|_| is_late()))
    }

    /// What is made ready for a restart at the moment, if anything is.
    pub fn preparing(&self) -> Option<String> {
        let (partition, since) = (*self.preparing.lock())?;
        let seconds = since.elapsed().as_secs();
        Some(format!(
            "a copy of partition {partition} is being made ready, for {seconds} s so far"
        ))
    }

    /// What is to be known of the restarts of the last hour.
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

    fn not_before(&self) -> Option<OffsetDateTime> {
        self.noted.lock().not_before(OffsetDateTime::now_utc())
    }

    fn note(&self, cause: &str) -> Result<(), StartError> {
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

    fn hold_back(&self, why: Option<String>) {
        let mut held_back = self.held_back.lock();
        if let Some(why) = &why
            && held_back.as_ref() != Some(why)
        {
            tracing::error!(why, "a restart is needed, and is not made by itself");
        }
        *held_back = why;
    }
}

/// A time, in seconds, for people.
fn shown(at: OffsetDateTime) -> String {
    let at = at.replace_nanosecond(0).unwrap_or(at);
    at.format(&Rfc3339).unwrap_or_default()
}

impl Node {
    /// Waits until a restart is needed and safe, and answers why. The host is to call
    /// [`Node::note_restart`], stop the node, and start the process again.
    pub async fn restart_wanted(&self) -> String {
        let mut wanted = self.inner.restarts.wanted.subscribe();
        loop {
            if let Some(cause) = wanted.borrow_and_update().clone() {
                return cause;
            }
            if wanted.changed().await.is_err() {
                // The sender lives as long as this node.
                std::future::pending::<()>().await;
            }
        }
    }

    /// A restart is about to be made: it counts from now on, durably. May be given up at any time, on a
    /// disk that hangs say: then the restart may count, and nothing else has happened.
    ///
    /// # Errors
    ///
    /// Why there must be none ([`Node::hold_restart_back`]): it cannot be noted, so restarts would not be
    /// bounded; or the path of the data directory does not lead to it any more; or its disk hangs.
    pub async fn note_restart(&self, cause: &str) -> Result<(), String> {
        // Without figures, which change: each new reason is logged.
        if self.inner.hanging_write().is_some() {
            return Err("the disk of the log does not answer".to_owned());
        }
        let (inner, cause) = (self.inner.clone(), cause.to_owned());
        let noted = recovery::blocking(move || {
            inner.data_dir.check_in_place(&inner.options.data_dir)?;
            inner.restarts.note(&cause)
        });
        noted.await.map_err(|e| e.to_string())
    }

    /// The host does not make the restart, for this reason. It is asked again after [`HOST_RETRY`].
    pub fn hold_restart_back(&self, why: String) {
        let restarts = &self.inner.restarts;
        restarts.hold_back(Some(why));
        *restarts.retry_at.lock() = Some(Instant::now() + HOST_RETRY);
        restarts.wanted.send_replace(None);
    }
}

/// Copies that were made ready, and when it is tried again.
#[derive(Default)]
struct Copies {
    /// Damaged partitions that a start can recover.
    ready: Vec<u64>,
    failures: u32,
    not_before: Option<Instant>,
}

impl Copies {
    fn failed(&mut self) {
        let doubled = FIRST_RETRY.saturating_mul(1 << self.failures.min(16));
        self.failures = self.failures.saturating_add(1);
        self.not_before = Some(Instant::now() + doubled.min(LAST_RETRY));
    }

    fn is_due(&self) -> bool {
        self.not_before.is_none_or(|at| at <= Instant::now())
    }
}

/// Looks, for as long as the node runs, whether a restart is needed, and asks for it when it is safe.
pub(crate) fn watch_for_needs(inner: &Arc<Inner>) {
    let stopping = inner.stopping.clone();
    let inner = Arc::downgrade(inner);
    tokio::spawn(async move {
        let mut copies = Copies::default();
        loop {
            tokio::select! {
                () = tokio::time::sleep(LOOK_INTERVAL) => {}
                () = stopping.cancelled() => return,
            }
            if inspect(&inner, &mut copies).await.is_none() {
                return;
            }
        }
    });
}

/// `None` once the node is gone.
async fn inspect(inner: &Weak<Inner>, copies: &mut Copies) -> Option<()> {
    let inner = inner.upgrade()?;
    let restarts = &inner.restarts;
    if restarts.wanted.borrow().is_some() {
        return Some(());
    }
    let Some(need) = Need::of(&inner) else {
        restarts.hold_back(None);
        return Some(());
    };
    if restarts.unread().is_some() {
        let reading = inner.clone();
        let read = recovery::blocking(move || reading.restarts.read()).await;
        if let Err(why) = read {
            restarts.hold_back(Some(format!("{}; {why}", need.cause)));
            return Some(());
        }
    }
    if let Some(at) = restarts.not_before() {
        restarts.hold_back(Some(format!(
            "{}; {}; the next restart is made at {}",
            need.cause,
            restarts.lately().unwrap_or_default(),
            shown(at)
        )));
        return Some(());
    }
    // Without figures, which change: each new message is logged.
    if inner.shortage().is_some() {
        let cause = &need.cause;
        restarts.hold_back(Some(format!(
            "{cause}; the disk of the data directory is nearly full, and a start needs space"
        )));
        return Some(());
    }
    if restarts
        .retry_at
        .lock()
        .is_some_and(|at| at > Instant::now())
    {
        return Some(());
    }
    for partition in need.damaged {
        if copies.ready.contains(&partition) {
            continue;
        }
        if !copies.is_due() {
            return Some(());
        }
        tracing::info!(
            partition,
            "a copy of the damaged partition is being made ready"
        );
        *restarts.preparing.lock() = Some((partition, Instant::now()));
        let made = make_ready(&inner, partition).await;
        *restarts.preparing.lock() = None;
        match made {
            Ok(source) => {
                tracing::info!(
                    partition,
                    source,
                    "a copy of the damaged partition is ready"
                );
                copies.ready.push(partition);
            }
            Err(why) => {
                copies.failed();
                let cause = &need.cause;
                restarts.hold_back(Some(format!(
                    "{cause}; partition {partition} has no copy that a start could use now: {why}"
                )));
                return Some(());
            }
        }
    }
    restarts.hold_back(None);
    restarts.wanted.send_replace(Some(need.cause));
    Some(())
}

/// Why a restart is needed.
struct Need {
    cause: String,
    damaged: Vec<u64>,
}

impl Need {
    fn of(inner: &Inner) -> Option<Need> {
        let partitions = 0..=u64::from(inner.options.partitions);
        let damaged: Vec<u64> = partitions.filter(|p| inner.damage(*p).is_some()).collect();
        let fatal = inner.store.fatal();
        let of_damage = damaged.first().map(|partition| {
            let why = inner.damage(*partition).unwrap_or_default();
            format!("files of partition {partition} are damaged ({why})")
        });
        let of_database = || {
            fatal.map(|why| format!("the database takes no writes until it is opened again: {why}"))
        };
        let cause = of_damage.or_else(of_database)?;
        Some(Need { cause, damaged })
    }
}

/// Notes the damage of a partition, and makes a copy ready; where it is from, or why there is none.
async fn make_ready(inner: &Arc<Inner>, partition: u64) -> Result<String, String> {
    let inner = inner.clone();
    let handle = tokio::runtime::Handle::current();
    recovery::blocking(move || {
        let why = inner.damage(partition).unwrap_or_default();
        let noted = inner.data_dir.report_damage(partition, &why);
        noted.map_err(|e| format!("the damage cannot be noted: {e}"))?;
        handle.block_on(async {
            tokio::select! {
                made = recovery::make_ready(&inner, partition, why) => {
                    made.map(|source| source.to_string()).map_err(|e| e.to_string())
                }
                () = inner.stopping.cancelled() => Err("the server is stopping".to_owned()),
            }
        })
    })
    .await
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
        *restarts.preparing.lock() = Some((3, Instant::now()));
        assert!(restarts.preparing().unwrap().contains("partition 3"));
        assert_eq!(restarts.held_back(), None);
        let long_ago = Instant::now().checked_sub(LONG_PREPARATION);
        *restarts.preparing.lock() = long_ago.map(|since| (3, since));
        assert!(restarts.held_back().unwrap().contains("partition 3"));
    }
}
