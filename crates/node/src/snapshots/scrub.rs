//! The scrub: reads what the retained snapshots need, in the repository, at a bounded rate, and repairs what is
//! damaged or missing.
//!
//! Incremental snapshots share objects, so one damaged object damages all of them, and only reading it shows
//! that. A pass over a partition reads its objects in the order of their keys. The last key is remembered in
//! `scrub.json`, so that a restart continues the pass; what was read since the file was written is read again.
//!
//! What is damaged or missing is marked in the root, and repaired from the newest local checkpoint, whose files
//! are those of the database. What could not be read now proves nothing: the pass goes on with the next
//! object, and the partition is tried again later.

use std::collections::HashSet;
use std::sync::Weak;
use std::time::{Duration, Instant};

use esker_repository::marks::{BadObject, SoundObjects};
use esker_repository::repair::{FilesBySize, LocalCopies, NoCopies, Repair};
use esker_repository::scrub::ScrubObject;
use esker_repository::{Error as RepositoryError, Progress, RateLimiter, Repository};
use time::OffsetDateTime;

use super::archive::to_put;
use super::failure::Failure;
use super::root::check_history;
use super::scrub_state::Stored;
use crate::core::Inner;

/// How often it is checked whether a pass is due.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// How often the last key of a pass under way is written down: at most so much is read again after a restart.
const SAVE_INTERVAL: Duration = Duration::from_secs(60);
/// How long damage that was found waits for more of the same pass: each repair writes the descriptions again.
const REPAIR_WAIT: Duration = Duration::from_secs(60);
/// Maximum number of objects of one repair.
const MAX_REPAIR: usize = 1000;
/// A pass ends after so many objects in a row that could not be read now: the store fails altogether.
const MAX_UNREADABLE: usize = 3;

/// Scrubs one partition after the other, as they are due.
pub(super) async fn scrub(inner: Weak<Inner>) {
    loop {
        tokio::time::sleep(LOOK_EVERY).await;
        let Some(inner) = inner.upgrade() else {
            return;
        };
        let interval = inner.options.snapshots.scrub_interval;
        for partition in 0..inner.snapshots.known.len() as u64 {
            let stored = inner.snapshots.scrub_file.of(partition);
            let is_due = {
                let known = inner.snapshots.known[partition as usize].lock();
                known.looked
                    && known.is_ours()
                    && known.scrub.is_due(&stored, interval, Instant::now())
            };
            if is_due {
                scrub_partition(&inner, partition, stored.after).await;
            }
        }
    }
}

/// One pass over a partition, from `after` on.
async fn scrub_partition(inner: &Inner, partition: u64, after: Option<String>) {
    let begun = Instant::now();
    let from_start = {
        let mut known = inner.snapshots.known[partition as usize].lock();
        std::mem::take(&mut known.scrub.from_start)
    };
    if from_start && after.is_some() {
        let file = &inner.snapshots.scrub_file;
        file.change(partition, |stored| stored.after = None);
    }
    let after = after.filter(|_| !from_start);
    let mut pass = Pass {
        inner,
        partition,
        repository: {
            let snapshots = &inner.snapshots;
            snapshots.archive.repository(&snapshots.identity, partition)
        },
        bad: Vec::new(),
        found_at: None,
        sound: SoundObjects::default(),
        objects: 0,
        bytes: 0,
    };
    let unread = match pass.run(after).await {
        Ok(unread) => unread,
        Err(error) => Some(error.to_string()),
    };
    let mut known = inner.snapshots.known[partition as usize].lock();
    match unread {
        Some(why) => {
            tracing::warn!(
                partition,
                why,
                "not everything in the repository could be read"
            );
            metrics::counter!("esker_partition_store_snapshots_scrub_failed_total").increment(1);
            known.scrub.failed(why);
        }
        None => {
            known.scrub.completed();
            drop(known);
            inner.snapshots.scrub_file.change(partition, |stored| {
                *stored = Stored {
                    since: Some(OffsetDateTime::now_utc()),
                    completed: true,
                    after: None,
                };
            });
            tracing::info!(
                partition,
                objects = pass.objects,
                bytes = pass.bytes,
                took = ?begun.elapsed(),
                "the objects of the retained snapshots were read and compared"
            );
        }
    }
}

struct Pass<'a> {
    inner: &'a Inner,
    partition: u64,
    repository: Repository,
    /// Damage that is not repaired yet, and when the first of it was found.
    bad: Vec<BadObject>,
    found_at: Option<Instant>,
    /// Marked objects that are as they were written.
    sound: SoundObjects,
    objects: u64,
    bytes: u64,
}

impl Pass<'_> {
    /// Returns why some object could not be read now.
    async fn run(&mut self, after: Option<String>) -> Result<Option<String>, RepositoryError> {
        // Before anything is read: what is marked later is damage that another reading has found since.
        let root = self.repository.root().await?;
        self.sound = SoundObjects::before_reading(&root);
        let plan = self.repository.scrub_plan().await?;
        for bad in plan.bad {
            self.found(bad);
        }
        let marked: HashSet<String> = root
            .retained_snapshots
            .iter()
            .flat_map(|retained| retained.damaged.iter().map(|mark| mark.key.clone()))
            .collect();
        let descriptions = plan.descriptions.into_iter();
        let descriptions = descriptions.filter(|key| marked.contains(key));
        descriptions.for_each(|key| self.sound.insert(key));
        // Objects that are marked and not listed are sound only if all are.
        let has_further = root
            .retained_snapshots
            .iter()
            .any(|r| r.damaged_further > 0);
        let limiter = self.inner.snapshots.archive.scrub_limiter().cloned();
        let (mut unread, mut in_a_row) = (None, 0);
        let mut saved_at = Instant::now();
        let is_left = |object: &&ScrubObject| {
            let is_marked = marked.contains(&object.key);
            is_marked || after.as_ref().is_none_or(|after| object.key > *after)
        };
        for object in plan.objects.iter().filter(is_left) {
            match self.read(object, limiter.as_ref()).await {
                Ok(Some(bad)) => self.found(bad),
                Ok(None) if has_further || marked.contains(&object.key) => {
                    self.sound.insert(object.key.clone());
                }
                Ok(None) => {}
                // The others may be readable.
                Err(error) => {
                    count("unreadable");
                    unread = Some(error.to_string());
                    in_a_row += 1;
                    if in_a_row == MAX_UNREADABLE {
                        break;
                    }
                    continue;
                }
            }
            in_a_row = 0;
            if self.bad.len() >= MAX_REPAIR
                || self.found_at.is_some_and(|at| at.elapsed() > REPAIR_WAIT)
            {
                self.repair().await?;
            }
            // A pass that has left an object out begins again from there. Damage that is not marked yet is found
            // again after a restart or a failed repair, so no later key is written down before.
            if unread.is_none() && self.bad.is_empty() && saved_at.elapsed() > SAVE_INTERVAL {
                saved_at = Instant::now();
                let key = Some(object.key.clone());
                self.inner
                    .snapshots
                    .scrub_file
                    .change(self.partition, |stored| stored.after = key);
            }
        }
        self.repair().await?;
        if !self.sound.is_empty() {
            self.repository.mark(&[], &self.sound).await?;
            self.inner.look_again(self.partition);
        }
        Ok(unread)
    }

    async fn read(
        &mut self,
        object: &ScrubObject,
        limiter: Option<&RateLimiter>,
    ) -> Result<Option<BadObject>, RepositoryError> {
        let found = self.repository.scrub_object(object, limiter).await?;
        self.objects += 1;
        self.bytes += object.size;
        metrics::counter!("esker_partition_store_snapshots_scrub_bytes_total")
            .increment(object.size);
        count(if found.is_some() { "damaged" } else { "sound" });
        Ok(found)
    }

    fn found(&mut self, bad: BadObject) {
        self.found_at.get_or_insert_with(Instant::now);
        self.bad.push(bad);
    }

    async fn repair(&mut self) -> Result<(), RepositoryError> {
        self.found_at = None;
        for bad in std::mem::take(&mut self.bad).chunks(MAX_REPAIR) {
            self.inner.repair_snapshots(self.partition, bad).await?;
        }
        Ok(())
    }
}

fn count(result: &'static str) {
    metrics::counter!("esker_partition_store_snapshots_scrub_objects_total", "result" => result)
        .increment(1);
}

impl Inner {
    /// Marks objects of a partition's repository that were found damaged or missing, and repairs those of which
    /// the newest local checkpoint has a file with the same bytes.
    pub(crate) async fn repair_snapshots(
        &self,
        partition: u64,
        bad: &[BadObject],
    ) -> Result<Repair, RepositoryError> {
        let snapshots = &self.snapshots;
        // Two repairs of one start would remove each other's intent.
        let _alone = snapshots.repairs[partition as usize].lock().await;
        for object in bad {
            let key = snapshots.archive.reader(partition).display_url(&object.key);
            tracing::error!(
                partition,
                object = key,
                why = object.why,
                "an object in the repository is damaged or missing"
            );
        }
        // The incarnation of this start must be written down before it claims a root.
        let repository = snapshots.archive.repository(&snapshots.identity, partition);
        let claimed = async {
            self.claim_catalog().await?;
            match self.claim(partition).await? {
                Some(root) => check_history(self, partition, &repository, &root).await,
                None => Ok(()),
            }
        };
        claimed
            .await
            .map_err(|failure: Failure| RepositoryError::Invalid(failure.to_string()))?;
        let copies = self.local_copies(partition);
        let repaired = repository.repair(bad, &*copies, &Progress::new()).await;
        self.look_again(partition);
        let (repair, root) = repaired?;
        snapshots.archive.note_root(partition, &root);
        if root
            .retained_snapshots
            .first()
            .is_some_and(|newest| newest.count_damaged() > 0)
        {
            // A whole snapshot is put at once. Nobody waits for the answer.
            drop(snapshots.known[partition as usize].lock().ask());
            snapshots.wake.notify_one();
        }
        for one in &repair.repaired {
            tracing::info!(
                partition,
                object = one.key,
                successor = one.successor,
                uploaded_from = one.uploaded_from,
                "an object in the repository was repaired"
            );
        }
        for one in &repair.replaced {
            tracing::info!(
                partition,
                before = one.before,
                now = one.now,
                "a snapshot has repaired files and a new name"
            );
        }
        for one in &repair.marked {
            tracing::error!(
                partition,
                object = one.key,
                snapshots = ?one.hurts,
                why = one.why,
                "an object in the repository stays damaged: a restore passes over its snapshots, and the next snapshot does not use it"
            );
        }
        Ok(repair)
    }

    /// The files of the newest local checkpoint.
    fn local_copies(&self, partition: u64) -> Box<dyn LocalCopies> {
        let Some(held) = self.snapshots.local.newest(partition) else {
            return Box::new(NoCopies);
        };
        let lineage = self
            .partition_db(partition)
            .lineage()
            .map_err(|e| e.to_string());
        let files = lineage.and_then(|lineage| to_put(&held.checkpoint, &lineage, held.clone()));
        match files {
            Ok(files) => Box::new(FilesBySize::of(&files)),
            Err(why) => {
                tracing::warn!(
                    partition,
                    why,
                    "the local checkpoint is not used for a repair"
                );
                Box::new(NoCopies)
            }
        }
    }

    /// Has the root read again: its snapshots have other names or marks. An upload under way has a root from
    /// before.
    pub(super) fn look_again(&self, partition: u64) {
        {
            let mut known = self.snapshots.known[partition as usize].lock();
            known.looked = false;
            known.prunes += 1;
        }
        self.snapshots.wake.notify_one();
    }
}
