//! Which partitions that this node leads wait for a change of their members, why, and for how long.
//!
//! A leader looks several times a second at what keeps the members from being those that the catalog wants. What
//! passes within seconds is normal and only shown in the status; what stays is logged, again and again.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use super::plan::Wait;

/// How long a partition waits until that is logged: longer than a change with a restart in between takes.
const WARN_AFTER: Duration = Duration::from_secs(30);
/// How often it is logged as long as it stays.
const WARN_INTERVAL: Duration = Duration::from_secs(600);

/// Why the members of a partition are not those that the catalog wants.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChangeWait {
    /// In words.
    pub why: String,
    /// For how long, in milliseconds, as the node that leads it knows.
    pub for_ms: u64,
    /// Whether that is a problem, if it stays so.
    pub is_problem: bool,
}

/// What is to be logged.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Report {
    /// It has waited for so long.
    Waits(Duration),
    /// It waits no longer, and that it did was logged.
    Ended(Duration),
}

/// The partitions that this node leads, and that wait.
#[derive(Default)]
pub(crate) struct Waiting {
    by_partition: Mutex<BTreeMap<u64, Waits>>,
}

struct Waits {
    wait: Wait,
    since: Instant,
    logged: Option<Instant>,
}

impl Waiting {
    /// Takes why a partition waits now, if it does. Returns what is to be logged.
    pub(super) fn note(&self, partition: u64, now: Instant, wait: Option<Wait>) -> Option<Report> {
        let mut all = self.by_partition.lock();
        let Some(wait) = wait else {
            let ended = all.remove(&partition)?;
            publish(partition, Duration::ZERO);
            return ended.logged.map(|_| Report::Ended(now - ended.since));
        };
        let waits = all.entry(partition).or_insert_with(|| Waits {
            wait: wait.clone(),
            since: now,
            logged: None,
        });
        if waits.wait.is_problem != wait.is_problem {
            // What is a problem now was none before, or the other way around.
            waits.since = now;
        }
        waits.wait = wait;
        let waited = now - waits.since;
        if !waits.wait.is_problem {
            publish(partition, Duration::ZERO);
            return None;
        }
        publish(partition, waited);
        let is_due = match waits.logged {
            None => waited >= WARN_AFTER,
            Some(at) => now - at >= WARN_INTERVAL,
        };
        is_due.then(|| {
            waits.logged = Some(now);
            Report::Waits(waited)
        })
    }

    /// Forgets a partition that this node does not lead: the node that does sees for itself.
    pub(super) fn forget(&self, partition: u64) {
        if self.by_partition.lock().remove(&partition).is_some() {
            publish(partition, Duration::ZERO);
        }
    }

    /// Why a partition waits, if it has for long and that is a problem.
    pub fn problem(&self, partition: u64, now: Instant) -> Option<String> {
        let waits = self.of(partition, now)?;
        let waited = Duration::from_millis(waits.for_ms);
        (waits.is_problem && waited >= WARN_AFTER).then(|| {
            let seconds = waited.as_secs();
            format!(
                "its members have not been those that they should be for {seconds} s: {}",
                waits.why
            )
        })
    }

    /// Why a partition waits, if it does.
    pub(super) fn of(&self, partition: u64, now: Instant) -> Option<ChangeWait> {
        let all = self.by_partition.lock();
        let waits = all.get(&partition)?;
        let waited = now.saturating_duration_since(waits.since);
        Some(ChangeWait {
            why: waits.wait.why.clone(),
            for_ms: u64::try_from(waited.as_millis()).unwrap_or(u64::MAX),
            is_problem: waits.wait.is_problem,
        })
    }
}

fn publish(partition: u64, waited: Duration) {
    let partition = partition.to_string();
    metrics::gauge!("esker_partition_members_wait_seconds", "partition" => partition)
        .set(waited.as_secs_f64());
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wait(why: &str, is_problem: bool) -> Option<Wait> {
        let why = why.to_owned();
        Some(Wait { why, is_problem })
    }

    #[test]
    fn what_waits_for_long_is_logged_again_and_again_and_so_is_its_end() {
        let (waiting, begun) = (Waiting::default(), Instant::now());
        assert_eq!(waiting.note(1, begun, wait("lacks 5", true)), None);
        let later = begun + WARN_AFTER;
        // The words may change meanwhile: it waits all the same.
        let logged = waiting.note(1, later, wait("lacks 4", true));
        assert_eq!(logged, Some(Report::Waits(WARN_AFTER)));
        let soon = begun + WARN_AFTER / 2;
        assert_eq!(waiting.problem(1, soon), None, "it may pass");
        let problem = waiting.problem(1, later).unwrap();
        assert!(problem.contains("for 30 s: lacks 4"), "{problem}");
        let shown = waiting.of(1, later).unwrap();
        assert_eq!((shown.why.as_str(), shown.for_ms), ("lacks 4", 30_000));
        let soon = later + WARN_INTERVAL / 2;
        assert_eq!(waiting.note(1, soon, wait("lacks 4", true)), None);
        let again = waiting.note(1, later + WARN_INTERVAL, wait("lacks 4", true));
        assert_eq!(again, Some(Report::Waits(WARN_AFTER + WARN_INTERVAL)));
        let ended = waiting.note(1, later + WARN_INTERVAL, None);
        assert_eq!(ended, Some(Report::Ended(WARN_AFTER + WARN_INTERVAL)));
        assert_eq!(waiting.of(1, later + WARN_INTERVAL), None);
    }

    #[test]
    fn what_passes_or_is_no_problem_is_shown_and_not_logged() {
        let (waiting, begun) = (Waiting::default(), Instant::now());
        assert_eq!(waiting.note(1, begun, wait("lacks 5", true)), None);
        assert_eq!(waiting.note(1, begun + WARN_AFTER / 2, None), None);
        let much_later = begun + 10 * WARN_INTERVAL;
        assert_eq!(waiting.note(2, begun, wait("drains", false)), None);
        assert_eq!(waiting.note(2, much_later, wait("drains", false)), None);
        assert!(!waiting.of(2, much_later).unwrap().is_problem);
        // From when it is a problem.
        assert_eq!(waiting.note(2, much_later, wait("is removed", true)), None);
        waiting.forget(2);
        assert_eq!(waiting.of(2, much_later), None);
    }
}
