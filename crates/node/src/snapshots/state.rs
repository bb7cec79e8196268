//! What a node knows about its snapshots and about the repository.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::{Duration, Instant};

use esker_repository::{CurrentRoot, Progress};
use parking_lot::Mutex;
use time::OffsetDateTime;
use tokio::sync::oneshot;

use super::archive::Archive;
use super::failure::Failure;
use super::local::LocalSnapshots;
use super::rates::Rates;
use crate::data_dir::Identity;
use crate::recovery::RecoveryReport;

/// Waits between attempts at a repository that fails.
const FIRST_RETRY: Duration = Duration::from_secs(2);
const LAST_RETRY: Duration = Duration::from_secs(300);

/// What a node knows about its snapshots.
#[derive(Debug)]
pub(crate) struct Snapshots {
    pub archive: Archive,
    pub local: Arc<LocalSnapshots>,
    pub rates: Rates,
    pub identity: Identity,
    /// What is known of the repository, by partition.
    pub known: Vec<Mutex<RepositoryState>>,
    /// The last LSN, by partition, up to which all basins that its streams need are in the repository;
    /// 0 until that is known.
    pub named: Vec<AtomicU64>,
    /// Wakes the uploader.
    pub wake: tokio::sync::Notify,
    recovery: Mutex<Option<Arc<RecoveryReport>>>,
}

impl Snapshots {
    pub fn new(
        archive: Archive,
        local: Arc<LocalSnapshots>,
        rates: Rates,
        identity: &Identity,
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
            recovery: Mutex::new(None),
        }
    }

    /// What the last start did.
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
}

/// What is known of a partition's repository.
#[derive(Debug, Default)]
pub(crate) struct RepositoryState {
    /// Whether it was read since the start.
    pub looked: bool,
    /// Whether this start has claimed the root, and found it of this history.
    pub is_claimed: bool,
    /// Retained snapshots, newest first.
    pub retained: Vec<Archived>,
    /// Entries after the newest one that change nothing, and which one that is.
    pub empty: (u64, u64),
    /// Snapshots of stale lineages that wait to be pruned by hand.
    pub abandoned: usize,
    /// Bytes of the newest snapshot, if this process put or restored it.
    pub newest_bytes: Option<u64>,
    /// Why the last attempt failed, if it did.
    pub failure: Option<Failure>,
    /// Why the last sweep failed, if it did.
    pub sweep_failure: Option<String>,
    /// The newest snapshot that was restored and compared, and found equal.
    pub proven: Option<Proof>,
    /// Why the last such test failed, if it did.
    pub proof_failure: Option<String>,
    /// Whether something that was put is not what it should be. The next snapshot shares no file with
    /// what is there: an incremental one would take over the damage.
    pub force_full: bool,
    /// How far an upload is that is under way.
    pub uploading: Option<Progress>,
    failures: u32,
    try_at: Option<Instant>,
    pub swept_at: Option<Instant>,
    pub asked: Vec<Asker>,
}

type Asker = oneshot::Sender<Result<CreatedSnapshot, String>>;

impl RepositoryState {
    pub fn newest(&self) -> Option<&Archived> {
        self.retained.first()
    }

    pub fn oldest(&self) -> Option<&Archived> {
        self.retained.last()
    }

    /// Whether the repository is known to have snapshots of this node, and nobody else claims it.
    pub fn is_ours(&self) -> bool {
        let refused = self.failure.as_ref().is_some_and(Failure::is_refusal);
        !refused && self.newest().is_some()
    }

    /// That somebody else writes, if that is why nothing is put.
    pub fn other_writer(&self) -> Option<Failure> {
        let failure = self.failure.as_ref();
        failure.filter(|failure| failure.is_other_writer()).cloned()
    }

    /// The answer comes when the next put that begins from here on has ended.
    pub fn ask(&mut self) -> oneshot::Receiver<Result<CreatedSnapshot, String>> {
        let (answer, answered) = oneshot::channel();
        self.asked.push(answer);
        answered
    }

    /// Whether it is not yet time for another attempt. Whoever asks does not wait for it.
    pub fn waits(&self) -> bool {
        self.asked.is_empty() && self.try_at.is_some_and(|at| at > Instant::now())
    }

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

    pub fn failed(&mut self, why: Failure) {
        self.failures += 1;
        let wait = FIRST_RETRY
            .saturating_mul(1 << self.failures.min(10))
            .min(LAST_RETRY);
        self.try_at = Some(Instant::now() + wait);
        self.failure = Some(why);
    }

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
    /// Files of it.
    pub files: u64,
    /// Bytes of it.
    pub bytes: u64,
    /// Bytes that had to be uploaded.
    pub bytes_uploaded: u64,
    /// How long it took.
    pub took: Duration,
}

/// A snapshot that was restored, brought up to date, and found equal to the live partition.
#[derive(Clone, Debug)]
pub struct Proof {
    /// The partition.
    pub partition: u64,
    /// The snapshot's directory: LSN and id.
    pub snapshot: String,
    /// What it covers.
    pub lsn: u64,
    /// Where it was compared.
    pub compared_at: u64,
    /// The digest of both, in hexadecimal digits.
    pub digest: String,
    /// Bytes restored.
    pub bytes: u64,
    /// Entries replayed.
    pub replayed: u64,
    /// Fetching, checking and importing.
    pub restore: Duration,
    /// Replaying.
    pub replay: Duration,
    /// When.
    pub at: OffsetDateTime,
}
