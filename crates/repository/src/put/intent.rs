//! An upload's intent: the entry in the root that protects the objects of an upload under way.

use std::collections::HashMap;
use std::time::Duration;

use futures::StreamExt as _;
use serde_json::Map;

use super::Upload;
use crate::checkpoint::Checkpoint;
use crate::env::within;
use crate::error::Error;
use crate::ids::{Generation, SnapshotId};
use crate::layout::Object;
use crate::metadata::Kind;
use crate::repository::{Change, CurrentRoot, Repository};
use crate::root::{Intent, Root};
use crate::store::Store;

/// Maximum number of attempts to create a missing root while the store reports neither success nor refusal.
const MAX_CREATIONS: u32 = 6;
/// How long a failed upload tries to remove its intent.
const WITHDRAWAL_TIMEOUT: Duration = Duration::from_secs(20);

impl Repository {
    /// Registers an intent by a swap, or continues one that was left behind. The returned root has it,
    /// unless the upload was fenced already.
    pub(super) async fn register(
        &self,
        store: &Store,
        checkpoint: &Checkpoint,
        id: &SnapshotId,
    ) -> Result<CurrentRoot, Error> {
        let intend = |root: &mut Root, generation: Generation| -> Result<(), Error> {
            let node_name = self.cluster()?.node_name.clone();
            if root.lineage.is_none() && root.retained_snapshots.is_empty() {
                root.lineage = checkpoint.lineage;
            }
            root.log_id = root.log_id.or(checkpoint.log_id);
            self.claim_writer(root)?;
            let goes_on = self.options.kind == Kind::Incremental && self.options.reuse;
            let left = self.left_behind(root).filter(|_| goes_on);
            let left = left.map(|left| left.generation);
            let left = root
                .intents
                .iter_mut()
                .find(|intent| Some(intent.generation) == left);
            let incarnation = self.options.incarnation.as_ref().map(|ours| ours.id);
            if let Some(left) = left {
                left.snapshot_ids.push(id.clone());
                left.incarnation = incarnation;
                left.renewed_at = store.env().now();
                return Ok(());
            }
            root.intents.push(Intent {
                snapshot_ids: vec![id.clone()],
                generation,
                node_name,
                incarnation,
                repair: false,
                renewed_at: store.env().now(),
                extra: Map::new(),
            });
            Ok(())
        };
        let mut attempt = 0;
        let known = loop {
            attempt += 1;
            match self.read_root(store).await {
                Ok(current) => break current,
                Err(Error::NoRoot { others: false, .. }) if attempt <= MAX_CREATIONS => {}
                Err(error) => return Err(error),
            }
            self.back_off(store, attempt).await;
            let mut filled = Ok(());
            let created = self
                .create_root(
                    store,
                    |root| {
                        let generation = root.generation.unwrap_or_default();
                        filled = intend(root, generation);
                    },
                    |root| root.intends(id),
                )
                .await;
            filled?;
            // None: another writer created it, or the store failed and there is none.
            if let Some(created) = created? {
                return Ok(created);
            }
        };
        self.swap_with(
            store,
            Some(known),
            |root| {
                self.check_writer(root)?;
                self.check_fits(root, checkpoint)?;
                let mut next = root.clone();
                intend(&mut next, self.next_generation(store, root)?)?;
                Ok(Change::To(Box::new(next)))
            },
            |root| root.intends(id),
        )
        .await
    }

    /// The objects that an interrupted upload has left under a generation whose intent is in the root, with
    /// their sizes.
    pub(super) async fn left_there(
        &self,
        store: &Store,
        generation: Generation,
    ) -> Result<HashMap<String, u64>, Error> {
        let mut there = HashMap::new();
        let mut listed = store.list();
        while let Some(object) = listed.next().await {
            let object = object?;
            let of = match Object::of(&object.key) {
                Object::Shared { generation } => generation,
                _ => None,
            };
            if of == Some(generation) {
                there.insert(object.key, object.size);
            }
        }
        tracing::info!(
            partition = %self.partition,
            files = there.len(),
            bytes = there.values().sum::<u64>(),
            "Resuming an interrupted upload"
        );
        Ok(there)
    }

    /// Refuses a checkpoint of another lineage, or one that is older than everything retained.
    pub(super) fn check_fits(&self, root: &Root, checkpoint: &Checkpoint) -> Result<(), Error> {
        let fresh = root.lineage.is_none() && root.retained_snapshots.is_empty();
        if !fresh && root.lineage != checkpoint.lineage {
            return Err(Error::OtherLineage {
                theirs: root.lineage,
                ours: checkpoint.lineage,
            });
        }
        // This commit removes what is retained beyond the number; an older snapshot would be removed with it.
        let retained = &root.retained_snapshots;
        let count = retained.len().min(self.num_retained());
        match retained[..count].last() {
            Some(oldest) if checkpoint.lsn < oldest.min_applied_lsn => Err(Error::Superseded {
                lsn: checkpoint.lsn,
                oldest: oldest.min_applied_lsn,
            }),
            _ => Ok(()),
        }
    }

    /// Renews an intent until it is removed from the root. Returns then.
    pub(crate) async fn renew(&self, store: &Store, generation: Generation, ids: &[SnapshotId]) {
        let mut wait = self.options.renew_every;
        loop {
            store.env().sleep(wait).await;
            let store = store.operation();
            let now = store.env().now();
            let renewed = self.swap_with(
                &store,
                None,
                |root| {
                    let mut next = root.clone();
                    Ok(
                        match next.intents.iter_mut().find(|i| i.generation == generation) {
                            Some(intent) if self.holds(intent) => {
                                intent.renewed_at = now;
                                Change::To(Box::new(next))
                            }
                            _ => Change::Nothing,
                        },
                    )
                },
                |root| root.intent(generation).is_none_or(|i| i.renewed_at == now),
            );
            match renewed.await {
                // The upload's next swap is refused with the reason.
                Ok(root)
                    if !self.has_claimed(&root)
                        && !self.is_repair_of_command(&root, generation) =>
                {
                    return;
                }
                Ok(root) if root.intent(generation).is_none() => {
                    tracing::warn!(snapshots = ?ids, "The intent of an upload was removed");
                    return;
                }
                Ok(_) => wait = self.options.renew_every,
                // There is time for more attempts before the intent expires.
                Err(error) => {
                    tracing::warn!(%error, "The intent of an upload could not be renewed");
                    wait = (self.options.renew_every / 4).max(Duration::from_secs(1));
                }
            }
        }
    }

    /// Whether the intent is that of a repair by a process without an incarnation, which writes although it
    /// has not claimed the root.
    fn is_repair_of_command(&self, root: &Root, generation: Generation) -> bool {
        self.options.incarnation.is_none() && root.intent(generation).is_some_and(|i| i.repair)
    }

    /// Number of snapshots that are retained after a commit.
    pub(super) fn num_retained(&self) -> usize {
        self.options.num_retained.map_or(1, |n| n.get() as usize)
    }
}

impl Upload<'_> {
    /// Removes the intent of a failed upload, so that the next sweep deletes its objects. If that fails,
    /// the intent expires, and a later sweep removes it.
    pub(super) async fn withdraw(&self) {
        if within(
            &**self.store.env(),
            WITHDRAWAL_TIMEOUT,
            self.store.aborted(),
        )
        .await
        .is_none()
        {
            tracing::warn!("Unfinished multipart uploads may be left behind");
        }
        self.repository.withdraw(&self.store, self.generation).await;
    }
}

impl Repository {
    /// Removes the intent of a failed upload, unless a later start of the node continues it.
    pub(crate) async fn withdraw(&self, store: &Store, generation: Generation) {
        let store = store.operation();
        let removed = self.swap_with(
            &store,
            None,
            |root| {
                Ok(match root.intent(generation) {
                    // A later start of the node continues it.
                    Some(intent) if !self.holds(intent) => Change::Nothing,
                    None => Change::Nothing,
                    Some(_) => {
                        let mut next = root.clone();
                        next.intents.retain(|i| i.generation != generation);
                        Change::To(Box::new(next))
                    }
                })
            },
            |root| {
                let left = root.intent(generation);
                left.is_none_or(|intent| !self.holds(intent))
            },
        );
        match within(&**store.env(), WITHDRAWAL_TIMEOUT, removed).await {
            Some(Ok(_)) => {}
            Some(Err(error)) => {
                tracing::debug!(%error, "The intent of a failed upload stays for now");
            }
            None => tracing::debug!("The intent of a failed upload stays for now: no answer"),
        }
    }
}
