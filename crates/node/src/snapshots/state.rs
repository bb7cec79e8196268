//! What a node knows about its snapshots and about the repository.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::{Duration, Instant};

use esker_repository::sweep::Sweep;
use esker_repository::{CurrentRoot, Error as RepositoryError, Progress};
use parking_lot::Mutex;
use time::OffsetDateTime;
use tokio::sync::oneshot;

use super::archive::Archive;
use super::failure::Failure;
use super::local::LocalSnapshots;
use super::rates::Rates;
use super::scrub_state::{ScrubFile, ScrubState};
use crate::data_dir::Identity;
use crate::recovery::RecoveryReport;

/// First and longest wait between attempts at a repository that fails.
const FIRST_RETRY: Duration = Duration::from_secs(2);
const LAST_RETRY: Duration = Duration::from_secs(300);
/// Interval of sweeps of a partition of which no snapshot is put.
const SWEEP_INTERVAL: Duration = Duration::from_secs(24 * 3600);
/// Longest wait between attempts at a sweep that fails: it lists all objects.
const LAST_SWEEP_RETRY: Duration = Duration::from_secs(3600);

/// What a node knows about its snapshots.
#[derive(Debug)]
pub(crate) struct Snapshots {
    pub archive: Archive,
    pub local: Arc<LocalSnapshots>,
    pub rates: Rates,
    pub identity: Identity,
    /// What is known of the repository, by partition.
    pub known: Vec<Mutex<RepositoryState>>,
    /// The last LSN, by partition, up to which all basins that its streams need are in the repository; 0
    /// until that is known.
    pub named: Vec<AtomicU64>,
    /// Wakes the uploader.
    pub wake: tokio::sync::Notify,
    /// How far the scrub is.
    pub scrub_file: ScrubFile,
    /// By partition: held by the repair under way.
    pub repairs: Vec<tokio::sync::Mutex<()>>,
    recovery: Mutex<Option<Arc<RecoveryReport>>>,
}

impl Snapshots {
    pub fn new(
        archive: Archive,
        local: Arc<LocalSnapshots>,
        rates: Rates,
        identity: &Identity,
        scrub_file: ScrubFile,
    ) -> Snapshots {
        Snapshots {
            archive,
            local,
            rates,
            identity: identity.clone(),
            known: (0..=identity.partitions)
                .map(|_| Mutex::default())
                .collect(),
            named: (0..=identity.partitions)
                .map(|_| AtomicU64::new(0))
                .collect(),
            wake: tokio::sync::Notify::new(),
            scrub_file,
            repairs: (0..=identity.partitions)
                .map(|_| tokio::sync::Mutex::default())
                .collect(),
            recovery: Mutex::new(None),
        }
    }

    /// Notes the report of the last start.
    pub fn recovered(&self, report: RecoveryReport) {
        *self.recovery.lock() = Some(Arc::new(report));
    }

    pub fn recovery(&self) -> Option<Arc<RecoveryReport>> {
        self.recovery.lock().clone()
    }
}

/// A snapshot that the repository retains.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Archived {
    pub lsn: u64,
    pub id: String,
    pub created_at: OffsetDateTime,
    /// Number of its objects that are marked as damaged or missing, with the key of one and what is wrong with
    /// it.
    pub damaged: Option<(u64, String, String)>,
}

/// What a complete sweep of a partition's repository has found.
#[derive(Clone, Debug)]
pub struct SweepStatus {
    /// When it ended.
    pub at: OffsetDateTime,
    /// Its counts.
    pub found: Sweep,
}

impl SweepStatus {
    /// The status of a sweep that has just ended.
    pub(super) fn of(found: &Sweep) -> SweepStatus {
        SweepStatus {
            at: OffsetDateTime::now_utc(),
            found: found.clone(),
        }
    }
}

/// What is known of a partition's repository.
#[derive(Debug, Default)]
pub(crate) struct RepositoryState {
    /// Whether the root was read, and what was noted of it is still valid.
    pub looked: bool,
    /// The LSN above which the log is kept because an entry of it has recorded that.
    pub followed: Option<u64>,
    /// Whether the log was kept for a member that was away when it was last decided what the oldest retained snapshot
    /// needs.
    pub keeps_for_absent: bool,
    /// How often a prune has changed the root, or may have. What was read before the last prune is not
    /// valid.
    pub prunes: u64,
    /// Whether this start has claimed the root, and has found that it belongs to this history.
    pub is_claimed: bool,
    /// Retained snapshots, newest first.
    pub retained: Vec<Archived>,
    /// The LSN of the newest one, and the number of entries after it that change nothing.
    pub empty: (u64, u64),
    /// Snapshots of stale lineages that the operator has to prune.
    pub abandoned: usize,
    /// Bytes of the newest snapshot, if this process put or restored it.
    pub newest_bytes: Option<u64>,
    /// Why the last attempt failed, if it did.
    pub failure: Option<Failure>,
    /// Why the last sweep failed, if it did.
    sweep_failure: Option<String>,
    /// What the last complete sweep since the start has found.
    pub last_sweep: Option<SweepStatus>,
    /// The newest snapshot that was restored and compared, and was equal.
    pub proven: Option<Proof>,
    /// Why the last such test failed, if it did.
    pub proof_failure: Option<String>,
    /// Whether a file that was put is damaged. The next snapshot shares no file with existing ones: an
    /// incremental one would take over the damage.
    pub force_full: bool,
    /// The scrub of the partition.
    pub scrub: ScrubState,
    /// The progress of the upload under way, if there is one.
    pub uploading: Option<Progress>,
    failures: u32,
    try_at: Option<Instant>,
    swept_at: Option<Instant>,
    /// Callers who wait for the next snapshot.
    pub waiting: Vec<Waiting>,
    /// How many sweeps in a row have failed.
    sweep_failures: u32,
}

/// A caller who waits for a snapshot.
pub(super) type Waiting = oneshot::Sender<Result<CreatedSnapshot, String>>;

impl RepositoryState {
    pub fn newest(&self) -> Option<&Archived> {
        self.retained.first()
    }

    pub fn oldest(&self) -> Option<&Archived> {
        self.retained.last()
    }

    /// The LSN above which the log is kept for what the repository retains, as this node knows it: it has recorded
    /// that itself, or a member that leads has. 0 if nothing is known to be retained.
    pub fn log_kept_from(&self) -> u64 {
        let oldest = self.oldest().map(|oldest| oldest.lsn);
        self.followed.max(oldest).unwrap_or_default()
    }

    /// The LSN of the newest snapshot in the repository, as this node knows it. A member that follows knows only
    /// what the log has recorded, which is of the oldest one. 0 if there is none.
    pub fn archived_up_to(&self) -> u64 {
        let newest = self.newest().map(|newest| newest.lsn);
        self.followed.max(newest).unwrap_or_default()
    }

    /// Whether the repository is known to have snapshots of this node, and no other node claims it.
    pub fn is_ours(&self) -> bool {
        let refused = self.failure.as_ref().is_some_and(Failure::is_refusal);
        !refused && self.newest().is_some()
    }

    /// The failure, if it is that another copy of this node writes to the repository.
    pub fn other_writer(&self) -> Option<Failure> {
        let failure = self.failure.as_ref();
        failure.filter(|failure| failure.is_other_writer()).cloned()
    }

    /// Requests a snapshot. The answer comes when the next one that begins from here on has ended.
    pub fn ask(&mut self) -> oneshot::Receiver<Result<CreatedSnapshot, String>> {
        let (answer, answered) = oneshot::channel();
        // Those who have gone are forgotten: a snapshot may take long, and many may ask and go meanwhile.
        if self.waiting.len().is_power_of_two() {
            self.waiting.retain(|answer| !answer.is_closed());
        }
        self.waiting.push(answer);
        answered
    }

    /// Answers all callers who wait for a snapshot.
    pub fn answer(&mut self, result: &Result<CreatedSnapshot, String>) {
        for waiting in self.waiting.drain(..) {
            // The caller may no longer wait.
            let _ = waiting.send(result.clone());
        }
    }

    /// Whether the next attempt has to wait. It never does while a caller waits for a snapshot.
    pub fn waits(&self) -> bool {
        self.waiting.is_empty() && self.try_at.is_some_and(|at| at > Instant::now())
    }

    /// Notes what the root retains, after it was read or committed.
    pub fn note_root(&mut self, root: &CurrentRoot) {
        self.looked = true;
        self.abandoned = root.abandoned.len();
        self.retained = root
            .retained_snapshots
            .iter()
            .map(|retained| Archived {
                lsn: retained.min_applied_lsn.0,
                id: retained.snapshot_id.to_string(),
                created_at: retained.created_at,
                damaged: (retained.count_damaged() > 0).then(|| {
                    let (key, why) = match retained.damaged.first() {
                        Some(mark) => (mark.key.clone(), mark.why.clone()),
                        None => (
                            "one that is not listed".to_owned(),
                            "more were found damaged than a root lists, and a complete scrub has to read all".to_owned(),
                        ),
                    };
                    (retained.count_damaged(), key, why)
                }),
            })
            .collect();
    }

    /// Entries after the newest snapshot that change nothing, as far as they are known.
    pub fn empty_entries(&self) -> u64 {
        let newest = self.newest().map_or(0, |n| n.lsn);
        match self.empty.0 == newest {
            true => self.empty.1,
            false => 0,
        }
    }

    /// Notes that a sweep has ended, and the error that ended it, if there was one.
    pub fn note_sweep(&mut self, error: Option<&RepositoryError>) {
        self.swept_at = Some(Instant::now());
        self.sweep_failure = None;
        let Some(error) = error else {
            self.sweep_failures = 0;
            return;
        };
        let failure = Failure::of(error);
        // Most causes affect snapshots too. Reading the root again detects them, and clears the failure
        // otherwise.
        self.looked = false;
        match error {
            // The destination is empty: perhaps a disk is not mounted.
            RepositoryError::NoRoot { others: false, .. } => {}
            _ if !failure.is_failing() => self.failed(failure),
            _ => {
                self.sweep_failures += 1;
                self.sweep_failure = Some(failure.what);
            }
        }
    }

    /// Why the last sweep failed, if it did and the repository does not fail altogether.
    pub fn sweep_failure(&self) -> Option<&str> {
        let of_sweep = self.sweep_failure.as_deref();
        of_sweep.filter(|_| self.failure.is_none())
    }

    /// Whether another sweep is due. A partition's first one is due an interval after the start.
    pub fn is_sweep_due(&mut self, now: Instant) -> bool {
        let interval = match self.sweep_failures {
            0 => SWEEP_INTERVAL,
            failures => FIRST_RETRY
                .saturating_mul(1 << failures.min(16))
                .min(LAST_SWEEP_RETRY),
        };
        let swept = *self.swept_at.get_or_insert(now);
        now.duration_since(swept) >= interval && !self.retained.is_empty()
    }

    /// Notes that an attempt has failed. The wait before the next one grows with each failure.
    pub fn failed(&mut self, why: Failure) {
        self.failures += 1;
        let wait = FIRST_RETRY
            .saturating_mul(1 << self.failures.min(10))
            .min(LAST_RETRY);
        self.try_at = Some(Instant::now() + wait);
        self.failure = Some(why);
    }

    /// Notes that an attempt has succeeded.
    pub fn succeeded(&mut self) {
        self.failures = 0;
        self.try_at = None;
        self.failure = None;
    }
}

/// A snapshot that was put.
#[derive(Clone, Debug)]
pub struct CreatedSnapshot {
    /// The partition.
    pub partition: u64,
    /// Its directory in the repository: LSN and id.
    pub snapshot: String,
    /// The last LSN that it covers.
    pub lsn: u64,
    /// The LSN of the oldest retained snapshot: the log is kept from there on.
    pub archived_lsn: u64,
    /// Number of its files.
    pub files: u64,
    /// Size of its files in bytes.
    pub bytes: u64,
    /// Bytes that were uploaded; the other files were there already.
    pub bytes_uploaded: u64,
    /// How long it took.
    pub took: Duration,
}

/// A snapshot that was restored, brought up to date by replay, and found equal to the live partition.
#[derive(Clone, Debug)]
pub struct Proof {
    /// The partition.
    pub partition: u64,
    /// The snapshot's directory: LSN and id.
    pub snapshot: String,
    /// The last LSN that it covers.
    pub lsn: u64,
    /// The LSN as of which it was compared.
    pub compared_at: u64,
    /// The digest of both, in hexadecimal digits.
    pub digest: String,
    /// Bytes restored.
    pub bytes: u64,
    /// Entries replayed.
    pub replayed: u64,
    /// Time of fetching, checking and importing.
    pub restore: Duration,
    /// Time of replaying.
    pub replay: Duration,
    /// When it was compared.
    pub at: OffsetDateTime,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn known() -> RepositoryState {
        RepositoryState {
            looked: true,
            retained: vec![Archived {
                lsn: 1,
                id: "a snapshot".to_owned(),
                created_at: OffsetDateTime::UNIX_EPOCH,
                damaged: None,
            }],
            ..RepositoryState::default()
        }
    }

    fn no_space() -> RepositoryError {
        RepositoryError::NoSpace {
            path: "/repository".into(),
            needed: 2,
            free: 1,
        }
    }

    #[test]
    fn a_failing_repository_is_tried_ever_more_seldom_and_at_once_for_a_caller() {
        let mut known = known();
        let mut pauses = Vec::new();
        for _ in 0..20 {
            known.failed(Failure::failing("it does not answer"));
            let pause = known.try_at.unwrap() - Instant::now();
            pauses.push(pause.as_secs_f64().round() as u64);
        }
        assert_eq!(pauses[..4], [4, 8, 16, 32]);
        assert!(pauses[8..].iter().all(|pause| *pause == 300), "{pauses:?}");
        assert!(known.waits());
        let mut answered = known.ask();
        assert!(!known.waits(), "a caller waits for an attempt");
        known.answer(&Err("no".to_owned()));
        assert_eq!(answered.try_recv().unwrap().unwrap_err(), "no");
        assert!(known.waits());
        known.succeeded();
        assert!(!known.waits());
        assert_eq!(known.failure, None);
    }

    #[test]
    fn a_sweep_that_meets_a_removed_root_is_the_failure_that_the_next_look_clears() {
        let mut known = known();
        known.note_sweep(Some(&no_space()));
        let removed = RepositoryError::NoRoot {
            root: "latest.json".to_owned(),
            others: true,
        };
        known.note_sweep(Some(&removed));
        let code = known.failure.as_ref().map(|failure| failure.code);
        assert_eq!(code, Some("repository_root_missing"));
        assert_eq!(known.sweep_failure, None);
        assert!(!known.looked, "the repository is looked at again");
        assert!(known.waits(), "but not at once");
        known.succeeded();
        assert_eq!((known.failure, known.sweep_failure), (None, None));
    }

    #[test]
    fn a_sweep_that_meets_nothing_at_all_leaves_it_to_the_next_look_to_say_why() {
        let mut known = known();
        let nothing = RepositoryError::NoRoot {
            root: "latest.json".to_owned(),
            others: false,
        };
        known.note_sweep(Some(&nothing));
        assert!(!known.looked);
        assert_eq!((&known.failure, &known.sweep_failure), (&None, &None));
    }

    #[test]
    fn a_sweep_that_fails_is_a_problem_of_its_own_and_is_tried_again_ever_more_seldom() {
        let mut known = known();
        let start = Instant::now();
        assert!(!known.is_sweep_due(start));
        assert!(!known.is_sweep_due(start + LAST_SWEEP_RETRY));
        assert!(known.is_sweep_due(start + SWEEP_INTERVAL));
        let mut waits = Vec::new();
        for _ in 0..20 {
            known.note_sweep(Some(&no_space()));
            assert!(known.sweep_failure().is_some());
            assert_eq!(known.failure, None, "snapshots are put");
            let swept = known.swept_at.unwrap();
            let mut due = (1..).map(|wait| (wait, swept + Duration::from_secs(wait)));
            let due = due.find(|(_, at)| known.is_sweep_due(*at));
            waits.push(due.unwrap().0);
        }
        assert_eq!(waits[..4], [4, 8, 16, 32]);
        assert_eq!(waits[19], LAST_SWEEP_RETRY.as_secs());
        // Where the repository fails altogether, only that is reported.
        known.failed(Failure::failing("it cannot be reached"));
        assert_eq!(known.sweep_failure(), None);
        known.succeeded();
        assert!(known.sweep_failure().is_some());
        known.note_sweep(None);
        assert_eq!(known.sweep_failure(), None);
        assert!(!known.is_sweep_due(Instant::now() + LAST_SWEEP_RETRY));
    }
}
