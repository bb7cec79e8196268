//! Prune: a sweep whose plan can be read first.
//!
//! A plan names every object that would be deleted, and the generation of the root that it was made for.
//! Its execution deletes only these objects, and refuses if the root has changed: while the root is
//! unchanged, everything that the plan is based on is still true.

use std::collections::HashSet;
use std::time::Duration;

use futures::StreamExt as _;
use serde::{Deserialize, Serialize};

use crate::error::Error;
use crate::ids::{Generation, SnapshotId};
use crate::layout::{Object, ROOT};
use crate::repository::{Change, Repository};
use crate::root::{Retained, Root};
use crate::store::Listed;
use crate::sweep::{
    Expiry, ObjectStatus, OrphanClassifier, OrphanReason, delete_all, expire_entries,
};

/// Maximum number of objects in a plan; the next plan has the others.
const PLANNED: usize = 500_000;

/// What a prune deletes beyond a sweep.
#[derive(Clone, Debug, Default)]
pub struct PruneOptions {
    /// Replaces the repository's minimum age. Zero is safe: see [`Repository::sweep`].
    pub min_age: Option<Duration>,
    /// Retain only this many of the newest snapshots.
    pub keep: Option<std::num::NonZeroU32>,
    /// Release the snapshots of stale lineages.
    pub abandoned: bool,
}

/// What would be deleted, and why.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct PrunePlan {
    /// The generation of the root that the plan was made for.
    #[cfg_attr(feature = "openapi", schema(value_type = u64))]
    pub generation: Generation,
    /// Number of snapshots that are retained afterwards.
    pub retained: usize,
    /// Snapshots that are released first, by one swap of the root.
    pub released: Vec<String>,
    /// Uploads that have expired, by generation: the same swap removes their intents.
    #[serde(default)]
    #[cfg_attr(feature = "openapi", schema(value_type = Vec<u64>))]
    pub fenced: Vec<Generation>,
    /// Pins that have expired, by id: the same swap removes them.
    #[serde(default)]
    pub unpinned: Vec<String>,
    /// Objects that are deleted.
    pub objects: Vec<PrunedObject>,
    /// Their bytes.
    pub bytes: u64,
    /// Orphans that are kept for now, because they are too young.
    pub young: u64,
}

/// An object that a prune deletes.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct PrunedObject {
    /// Its key, below the partition.
    pub key: String,
    /// Its bytes.
    pub size: u64,
    /// When it was written, by the store's clock, in milliseconds since the epoch.
    pub modified_ms: i64,
    /// Why it is deleted.
    pub why: OrphanReason,
}

/// What [`Repository::prune`] did.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Pruned {
    /// Snapshots that were released.
    pub released: Vec<String>,
    /// Objects deleted.
    pub deleted: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Objects that could not be deleted.
    pub failed: u64,
}

impl PruneOptions {
    /// The root without the snapshots that are released, and the names of these. Those of a `newer` format stay.
    fn release(&self, root: &Root, newer: &HashSet<SnapshotId>) -> (Root, Vec<String>) {
        let mut next = root.clone();
        let mut released = Vec::new();
        if let Some(keep) = self.keep {
            let keep = (keep.get() as usize).min(next.retained_snapshots.len());
            let cut = next.retained_snapshots.split_off(keep);
            let stays = |r: &Retained| newer.contains(&r.snapshot_id);
            let (stay, cut): (Vec<_>, Vec<_>) = cut.into_iter().partition(stays);
            next.retained_snapshots.extend(stay);
            released.extend(cut.into_iter().map(|r| r.path));
        }
        if self.abandoned {
            released.extend(next.abandoned.drain(..).map(|a| a.snapshot.path));
        }
        (next, released)
    }
}

impl PrunePlan {
    /// Whether the root has to be swapped first.
    fn changes_root(&self) -> bool {
        !(self.released.is_empty() && self.fenced.is_empty() && self.unpinned.is_empty())
    }
}

impl Repository {
    /// Plans a prune of the current root. Changes nothing.
    pub async fn plan_prune(&self, options: &PruneOptions) -> Result<PrunePlan, Error> {
        let store = self.store.operation();
        let mut objects = Vec::new();
        let mut listed = store.list();
        while let Some(object) = listed.next().await {
            objects.push(object?);
        }
        // The root is read after the list, never before: see `sweep`.
        let current = self.read_root(&store).await?;
        let Some(generation) = current.generation else {
            return Err(Error::NotOurs {
                root: store.display_url(ROOT),
            });
        };
        let newer = match options.keep {
            Some(keep) => {
                self.newer_beyond(&store, &current, keep.get() as usize)
                    .await?
            }
            None => HashSet::new(),
        };
        let (mut next, released) = options.release(&current, &newer);
        let now = store.env().now_for_ages();
        let Expiry {
            root: expire_entries,
            fenced,
            unpinned,
            ..
        } = expire_entries(&next, &self.options, now, store.env().now());
        next = expire_entries;
        // The descriptions of all snapshots that are kept must be readable, because they name the files
        // that must stay.
        let refs = self.refs(&store, &next).await?;
        let classifier = OrphanClassifier {
            root: &next,
            refs: &refs,
            now,
            min_age: options.min_age.unwrap_or(self.options.orphan_min_age),
        };
        let mut plan = PrunePlan {
            generation,
            retained: next.retained_snapshots.len(),
            released,
            fenced,
            unpinned,
            objects: Vec::new(),
            bytes: 0,
            young: 0,
        };
        for object in objects {
            let is_released = match Object::of(&object.key) {
                Object::Metadata(dir) | Object::File(dir) => {
                    plan.released.contains(&dir.to_string())
                }
                _ => false,
            };
            let why = match classifier.classify(&object) {
                ObjectStatus::Orphan(why) => why,
                // The caller released the snapshot, so its age does not matter.
                ObjectStatus::Young(why) if is_released => why,
                ObjectStatus::Young(_) => {
                    plan.young += 1;
                    continue;
                }
                _ => continue,
            };
            if plan.objects.len() == PLANNED {
                break;
            }
            plan.bytes += object.size;
            plan.objects.push(PrunedObject {
                key: object.key,
                size: object.size,
                modified_ms: object.modified_ms,
                why,
            });
        }
        Ok(plan)
    }

    /// Executes a plan. Returns [`Error::RootMoved`] if the root has changed since the plan was made.
    pub async fn prune(&self, plan: &PrunePlan) -> Result<Pruned, Error> {
        self.cluster()?;
        let store = self.store.operation();
        let current = self.read_root(&store).await?;
        let moved = |root: &Root| Error::RootMoved {
            planned: plan.generation.0,
            actual: root.generation.unwrap_or_default().0,
        };
        self.next_generation(&store, &current)?;
        if self.options.incarnation.is_some() {
            self.check_writer(&current)?;
        }
        if current.generation != Some(plan.generation) {
            return Err(moved(&current));
        }
        let (now, timeout) = (store.env().now_for_ages(), self.options.intent_timeout);
        let release = |root: &Root| {
            let mut next = root.clone();
            let kept = |path: &String| !plan.released.contains(path);
            next.retained_snapshots.retain(|r| kept(&r.path));
            next.abandoned.retain(|a| kept(&a.snapshot.path));
            // The plan may come from a file, so intents and pins that have not expired are kept.
            next.intents
                .retain(|i| !plan.fenced.contains(&i.generation) || now - i.renewed_at < timeout);
            next.pins
                .retain(|p| !plan.unpinned.contains(&p.id) || p.expires_at > now);
            next
        };
        let root = if !plan.changes_root() {
            current
        } else {
            let left = release(&current);
            if left.retained_snapshots.is_empty() && !current.retained_snapshots.is_empty() {
                return Err(Error::Invalid(
                    "this plan would leave no snapshot at all".to_owned(),
                ));
            }
            self.swap_with(
                &store,
                Some(current),
                |root| {
                    if root.generation != Some(plan.generation) {
                        return Err(moved(root));
                    }
                    Ok(Change::To(Box::new(release(root))))
                },
                |root| {
                    let kept = root.kept();
                    root.generation > Some(plan.generation)
                        && kept.iter().all(|d| !plan.released.contains(&d.to_string()))
                        && release(root) == *root
                },
            )
            .await?
        };
        // The plan may come from a file, so every object is classified again.
        let refs = self.refs(&store, &root).await?;
        let classifier = OrphanClassifier {
            root: &root,
            refs: &refs,
            now,
            min_age: Duration::ZERO,
        };
        let planned = plan.objects.iter().map(|o| Listed {
            key: o.key.clone(),
            size: o.size,
            modified_ms: i64::MIN,
        });
        let orphans: Vec<Listed> = planned
            .filter(|listed| matches!(classifier.classify(listed), ObjectStatus::Orphan(_)))
            .collect();
        let (deleted, bytes, failed) = delete_all(&store, orphans).await;
        Ok(Pruned {
            released: plan.released.clone(),
            deleted,
            bytes,
            failed,
        })
    }
}
