//! The sweep: deletes the objects that nothing refers to, and provably no others.
//!
//! It lists objects *first*, and reads the root *afterwards*. An object that was listed, and that neither
//! this root nor an intent in it refers to, can never be referenced again: a key enters the root only if
//! the root has it already, or by an intent that was registered before the object was written, hence before
//! it was listed. Clocks play no part in this; the minimum age is a second safeguard.
//!
//! Ages are computed from [`Env::now_for_ages`](crate::env::Env::now_for_ages), and may be too small, never
//! too large because of a jump. An object that is dated in the future has no age: it is kept until the
//! clock passes its date, or until a sweep with a minimum age of zero deletes it. Intents and pins that are
//! dated in the future get the present date.
//!
//! A list of any length is processed in slices: some keys are listed, the root is read, and the orphans
//! among these keys are deleted.

use std::time::Duration;

use futures::StreamExt as _;
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

use crate::error::Error;
use crate::ids::Generation;
use crate::layout::{Object, ROOT};
use crate::options::Options;
use crate::repository::{Change, CurrentRoot, Refs, Repository};
use crate::root::Root;
use crate::steady::CLOCK_TOLERANCE;
use crate::store::{Listed, Store};

/// Maximum number of keys in memory: some 30 MiB.
const SLICE: usize = 200_000;

/// What a sweep did.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Sweep {
    /// Objects listed.
    pub listed: u64,
    /// Their bytes.
    pub listed_bytes: u64,
    /// Objects deleted.
    pub deleted: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Objects that could not be deleted. The next sweep retries them.
    pub failed: u64,
    /// Orphans that are younger than the minimum age.
    pub young: u64,
    /// Their bytes.
    pub young_bytes: u64,
    /// Objects that do not belong to a repository.
    pub foreign: u64,
    /// Uploads whose intents had expired and were removed.
    pub fenced: u64,
    /// Pins that had expired and were removed.
    pub unpinned: u64,
}

/// Why an object may be deleted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(
    feature = "openapi",
    derive(utoipa::ToSchema),
    schema(as = Condemned)
)]
#[serde(rename_all = "kebab-case")]
pub enum OrphanReason {
    /// A file that no kept snapshot refers to.
    UnreferencedFile,
    /// A description of a snapshot that is not kept.
    UnretainedSnapshot,
}

/// Whether an object is kept or deleted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum ObjectStatus {
    /// It is the root.
    Root,
    /// It does not belong to a repository.
    Foreign,
    /// A kept snapshot needs it.
    Referenced,
    /// It belongs to an upload under way.
    Intended(Generation),
    /// Nothing refers to it, and it is too young to be deleted.
    Young(OrphanReason),
    /// It is deleted.
    Orphan(OrphanReason),
}

/// Decides on objects that were listed before this root was read.
pub(crate) struct OrphanClassifier<'a> {
    pub root: &'a Root,
    pub refs: &'a Refs,
    pub now: OffsetDateTime,
    /// The minimum age. If it is zero, ages do not matter, not even those of objects dated in the future.
    pub min_age: Duration,
}

/// A root without the intents and pins that have expired.
pub(crate) struct Expiry {
    pub root: Root,
    /// Generations of the intents that have expired.
    pub fenced: Vec<Generation>,
    /// Ids of the pins that have expired.
    pub unpinned: Vec<String>,
    /// Whether an intent or a pin that was dated in the future got the present date.
    pub dated: bool,
}

/// Removes intents and pins that have expired. Those that were dated by a clock that was ahead would be
/// kept until this clock passes their date, so they get the present date.
///
/// `now` is the time to compute ages with, which may be behind `time_of_day` after a jump: a date is in the
/// future if it is ahead of both.
pub(crate) fn expire_entries(
    root: &Root,
    options: &Options,
    now: OffsetDateTime,
    time_of_day: OffsetDateTime,
) -> Expiry {
    let latest = now.max(time_of_day);
    let mut next = root.clone();
    let timeout = options.intent_timeout;
    let expired = next
        .intents
        .extract_if(.., |i| now - i.renewed_at >= timeout);
    let fenced = expired.map(|i| i.generation).collect();
    let expired = next.pins.extract_if(.., |p| p.expires_at <= now);
    let unpinned = expired.map(|p| p.id).collect();
    let mut dated = false;
    for intent in &mut next.intents {
        if intent.renewed_at > latest + CLOCK_TOLERANCE {
            intent.renewed_at = latest;
            dated = true;
        }
    }
    for pin in &mut next.pins {
        let expires_at = latest + options.pin_for;
        if pin.expires_at > expires_at + CLOCK_TOLERANCE {
            pin.expires_at = expires_at;
            dated = true;
        }
    }
    Expiry {
        root: next,
        fenced,
        unpinned,
        dated,
    }
}

impl Expiry {
    pub(crate) fn changes_root(&self) -> bool {
        self.dated || !(self.fenced.is_empty() && self.unpinned.is_empty())
    }
}

impl OrphanClassifier<'_> {
    pub(crate) fn classify(&self, listed: &Listed) -> ObjectStatus {
        let why = match Object::of(&listed.key) {
            Object::Root => return ObjectStatus::Root,
            Object::Foreign => return ObjectStatus::Foreign,
            _ if self.refs.contains(&listed.key) => return ObjectStatus::Referenced,
            Object::Shared { generation } => {
                if let Some(intent) = generation.and_then(|g| self.root.intent(g)) {
                    return ObjectStatus::Intended(intent.generation);
                }
                OrphanReason::UnreferencedFile
            }
            Object::Metadata(dir) | Object::File(dir) => {
                let intent = self
                    .root
                    .intents
                    .iter()
                    .find(|i| i.snapshot_ids.contains(&dir.id));
                if let Some(intent) = intent {
                    return ObjectStatus::Intended(intent.generation);
                }
                OrphanReason::UnretainedSnapshot
            }
        };
        let age_ms = i64::try_from(self.now.unix_timestamp_nanos() / 1_000_000)
            .unwrap_or(i64::MAX)
            .saturating_sub(listed.modified_ms);
        let is_young = !self.min_age.is_zero()
            && i128::from(age_ms) < i128::try_from(self.min_age.as_millis()).unwrap_or(i128::MAX);
        match is_young {
            true => ObjectStatus::Young(why),
            false => ObjectStatus::Orphan(why),
        }
    }
}

impl Repository {
    /// Deletes orphans. Also removes intents and pins that have expired.
    ///
    /// An error, such as an unreadable description, ends the sweep before the current slice is deleted, and
    /// counts as a failed scan.
    pub async fn sweep(&self) -> Result<Sweep, Error> {
        let mut sweep = Sweep::default();
        let result = self.sweep_all(&mut sweep).await;
        metrics::counter!("esker_partition_store_snapshots_orphan_scan_total").increment(1);
        metrics::counter!("esker_partition_store_snapshots_orphan_files_deleted_total")
            .increment(sweep.deleted);
        if let Err(error) = result {
            metrics::counter!("esker_partition_store_snapshots_orphan_scan_failed_total")
                .increment(1);
            return Err(error);
        }
        Ok(sweep)
    }

    async fn sweep_all(&self, sweep: &mut Sweep) -> Result<(), Error> {
        self.cluster()?;
        let store = self.store.operation();
        let mut keys = store.list();
        let mut current: Option<CurrentRoot> = None;
        loop {
            let mut slice = Vec::new();
            while slice.len() < SLICE {
                match keys.next().await {
                    Some(listed) => slice.push(listed?),
                    None => break,
                }
            }
            if slice.is_empty() && current.is_some() {
                return Ok(());
            }
            sweep.listed += slice.len() as u64;
            sweep.listed_bytes += slice.iter().map(|listed| listed.size).sum::<u64>();
            // After the list, never before: see the module.
            let root = self.expire_intents(&store, sweep).await?;
            let (root, refs) = self.refs_of_now(&store, root).await?;
            let classifier = OrphanClassifier {
                root: &root,
                refs: &refs,
                now: store.env().now_for_ages(),
                min_age: self.options.orphan_min_age,
            };
            let newest = slice.iter().map(|listed| listed.modified_ms).max();
            let latest = classifier.now + CLOCK_TOLERANCE;
            if newest.is_some_and(|ms| i128::from(ms) * 1_000_000 > latest.unix_timestamp_nanos()) {
                tracing::warn!(
                    partition = %self.partition,
                    now = %classifier.now,
                    "The repository has objects from the future: a clock was ahead, or this one is behind; if nothing needs them, they stay until then"
                );
            }
            let mut orphans = Vec::new();
            for listed in slice {
                match classifier.classify(&listed) {
                    ObjectStatus::Orphan(_) => orphans.push(listed),
                    ObjectStatus::Young(_) => {
                        sweep.young += 1;
                        sweep.young_bytes += listed.size;
                    }
                    ObjectStatus::Foreign => sweep.foreign += 1,
                    ObjectStatus::Root | ObjectStatus::Referenced | ObjectStatus::Intended(_) => {}
                }
            }
            let (deleted, bytes, failed) = delete_all(&store, orphans).await;
            sweep.deleted += deleted;
            sweep.bytes += bytes;
            sweep.failed += failed;
            current = Some(root);
        }
    }

    /// Removes intents and pins that have expired, and returns the resulting root.
    async fn expire_intents(&self, store: &Store, sweep: &mut Sweep) -> Result<CurrentRoot, Error> {
        let current = self.read_root(store).await?;
        if current.generation.is_none() {
            return Err(Error::NotOurs {
                root: store.display_url(ROOT),
            });
        }
        // A copy of a node that may not write deletes nothing either.
        if self.options.incarnation.is_some() {
            self.check_writer(&current)?;
        }
        let (now, time_of_day) = (store.env().now_for_ages(), store.env().now());
        let next = expire_entries(&current, &self.options, now, time_of_day);
        if !next.changes_root() {
            return Ok(current);
        }
        sweep.fenced += next.fenced.len() as u64;
        sweep.unpinned += next.unpinned.len() as u64;
        self.swap_with(
            store,
            Some(current),
            |root| {
                let next = expire_entries(root, &self.options, now, time_of_day);
                Ok(match next.changes_root() {
                    true => Change::To(Box::new(next.root)),
                    false => Change::Nothing,
                })
            },
            |root| !expire_entries(root, &self.options, now, time_of_day).changes_root(),
        )
        .await
    }
}

/// Deletes files first and descriptions last. A description is kept if a file of its directory could not be
/// deleted. Returns the number of deleted objects, their bytes, and the number of those that could not be
/// deleted.
pub(crate) async fn delete_all(store: &Store, objects: Vec<Listed>) -> (u64, u64, u64) {
    let (descriptions, files): (Vec<_>, Vec<_>) = objects
        .into_iter()
        .partition(|o| matches!(Object::of(&o.key), Object::Metadata(_)));
    let (mut deleted, mut bytes, mut failed) = (0, 0, 0);
    let mut broken = std::collections::HashSet::new();
    for round in [files, descriptions] {
        let round: Vec<Listed> = round
            .into_iter()
            .filter(|o| match Object::of(&o.key) {
                Object::Metadata(dir) => !broken.contains(&dir),
                _ => true,
            })
            .collect();
        if round.is_empty() {
            continue;
        }
        let sizes: std::collections::HashMap<String, u64> =
            round.iter().map(|o| (o.key.clone(), o.size)).collect();
        deleted += sizes.len() as u64;
        bytes += sizes.values().sum::<u64>();
        let keys = round.into_iter().map(|o| o.key).collect();
        for (key, error) in store.delete(keys).await {
            tracing::warn!(%error, "An orphan could not be deleted");
            if let Object::File(dir) = Object::of(&key) {
                broken.insert(dir);
            }
            deleted -= 1;
            bytes -= sizes.get(&key).copied().unwrap_or(0);
            failed += 1;
        }
    }
    (deleted, bytes, failed)
}
