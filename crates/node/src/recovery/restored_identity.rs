//! The identity that is restored into an empty directory.

use std::path::Path;
use std::sync::Arc;

use esker_partition::{Checkpoint, Lineage, PartitionId, Store, StoreError, StoreOptions};
use esker_repository::partitions;

use super::archived_state::{bring_archived_state, newest_state};
use super::search::remove;
use crate::blocking::blocking;
use crate::data_dir::{Identity, LockedDir, UNDECIDED, checkpoints_in};
use crate::error::StartError;
use crate::options::NodeOptions;
use crate::snapshots::{Archive, cluster_id};

/// The identity that is restored into an empty directory. The repository names it; where it has nothing of
/// this cluster, the local snapshots that are left name it. Both must be of one cluster, the configured one:
/// the restored directory is opened under its name, and puts its snapshots there.
pub(super) async fn restored_identity(
    options: &Arc<NodeOptions>,
    archive: &Archive,
    locked: &LockedDir,
) -> Result<Identity, StartError> {
    let archived = identity_of_cluster(options, archive).await;
    let of_repository = match archived {
        Ok(identity) => Ok(identity),
        Err(nothing @ StartError::NothingToRestore { .. }) => Err(nothing),
        Err(other) => return Err(other),
    };
    let (leaf, path) = (options.clone(), locked.path().to_owned());
    let left = blocking(move || identity_of_checkpoints(&leaf, &path)).await?;
    let refused = |what: String| StartError::NothingToRestore {
        repository: archive.shown().to_owned(),
        why: format!(
            "{what}. Move checkpoints/ in {} away if it is not wanted; or correct `cluster-name`, \
             `snapshots.destination` or `data-dir`. Nothing was changed",
            locked.path().display()
        ),
    };
    match (of_repository, left) {
        (Ok(archived), Some(left)) if archived.cluster_id != left.cluster_id => {
            Err(refused(format!(
                "it has cluster `{}` with the id {}, and the local snapshots that are left are of a \
                 cluster with the id {}",
                archived.cluster_name, archived.cluster_id, left.cluster_id
            )))
        }
        (Ok(archived), _) => Ok(archived),
        (Err(nothing), None) => {
            bring_archived_state(locked.path(), &options.cluster_name, archive).await?;
            let path = locked.path().to_owned();
            Err(blocking(move || with_state(nothing, &path)).await)
        }
        (Err(_), Some(left)) => match archive.check_owner(&left).await {
            Ok(()) => Ok(left),
            Err(
                error @ (esker_repository::Error::OtherCluster { .. }
                | esker_repository::Error::NotOurs { .. }),
            ) => Err(refused(format!(
                "local snapshots are left of a cluster with the id {}, which is to be `{}`, but {error}",
                left.cluster_id, left.cluster_name
            ))),
            Err(
                error @ (esker_repository::Error::MarkerMissing { .. }
                | esker_repository::Error::OtherDestination { .. }),
            ) => Err(StartError::RepositoryUnreadable {
                repository: archive.shown().to_owned(),
                why: format!(
                    "{error}. Mount the disk, or bring the directory or bucket back; if it was \
                     removed on purpose, delete destination.json in {}",
                    locked.path().display()
                ),
            }),
            Err(error) => Err(StartError::RepositoryUnreadable {
                repository: archive.shown().to_owned(),
                why: error.to_string(),
            }),
        },
    }
}

/// The identity of the cluster that the newest snapshot in the repository names; a snapshot of the catalog
/// is preferred.
async fn identity_of_cluster(
    options: &NodeOptions,
    archive: &Archive,
) -> Result<Identity, StartError> {
    let mut why = match identity_of_partition(options, archive, 0).await? {
        Ok(identity) => return Ok(identity),
        Err(why) => why,
    };
    let there = partitions(archive.destination()).await;
    let there = there.map_err(|e| unreadable(archive, &e))?;
    for partition in there.into_iter().map(|one| u64::from(one.0)) {
        if partition == 0 {
            continue;
        }
        match identity_of_partition(options, archive, partition).await? {
            Ok(identity) => return Ok(identity),
            Err(also) => why = format!("{why}; {also}"),
        }
    }
    Err(StartError::NothingToRestore {
        repository: archive.shown().to_owned(),
        why,
    })
}

fn unreadable(archive: &Archive, error: &esker_repository::Error) -> StartError {
    StartError::RepositoryUnreadable {
        repository: archive.shown().to_owned(),
        why: error.to_string(),
    }
}

/// The same, for one partition; or why none of its snapshots names the cluster.
async fn identity_of_partition(
    options: &NodeOptions,
    archive: &Archive,
    partition: u64,
) -> Result<Result<Identity, String>, StartError> {
    let nothing = |why: String| StartError::NothingToRestore {
        repository: archive.shown().to_owned(),
        why,
    };
    let reader = archive.reader(partition);
    let root = match reader.root().await {
        Ok(root) => root,
        Err(error @ esker_repository::Error::NoRoot { .. }) => return Ok(Err(error.to_string())),
        Err(error) => return Err(unreadable(archive, &error)),
    };
    if root.cluster_name != options.cluster_name {
        return Err(nothing(format!(
            "it holds snapshots of cluster `{}`, and this is to be `{}`: \
             correct `cluster-name` or `snapshots.destination`",
            root.cluster_name, options.cluster_name
        )));
    }
    let mut damaged = Vec::new();
    for retained in &root.retained_snapshots {
        let metadata = match reader.describe(&retained.dir()).await {
            Ok(metadata) => metadata,
            Err(error) if error.is_damage() => {
                damaged.push(error.to_string());
                continue;
            }
            Err(error) => return Err(unreadable(archive, &error)),
        };
        let (Some(id), Some(partitions)) = (cluster_id(&metadata), metadata.partitions) else {
            return Err(nothing(format!("{} was not made by a node", retained.path)));
        };
        if partitions != options.partitions {
            return Err(StartError::RestoredPartitions {
                found: format!("{} has snapshots", archive.shown()),
                made: partitions,
                configured: options.partitions,
            });
        }
        let name = &options.cluster_name;
        return Ok(Ok(Identity::of_cluster(id, name, partitions)));
    }
    Ok(Err(match (damaged.is_empty(), partition) {
        (true, 0) => "no snapshot of the catalog is retained".to_owned(),
        (true, _) => format!("no snapshot of partition {partition} is retained"),
        (false, _) => damaged.join("; "),
    }))
}

/// The same, from the newest whole checkpoint that is left; `None` if there is none.
fn identity_of_checkpoints(
    options: &NodeOptions,
    path: &Path,
) -> Result<Option<Identity>, StartError> {
    let scratch = path.join(UNDECIDED);
    let left = checkpoints_in(&path.join("checkpoints"))?;
    for dir in left.into_iter().flat_map(|(_, dirs)| dirs) {
        remove(&scratch)?;
        let read = lineage_of(&dir, &scratch);
        remove(&scratch)?;
        let lineage = match read {
            Ok(lineage) => lineage,
            Err(error) if error.is_unreadable() => {
                return Err(StartError::unreadable(dir.display().to_string(), &error));
            }
            Err(error) => {
                tracing::warn!(%error, dir = %dir.display(), "a local snapshot is damaged");
                continue;
            }
        };
        if lineage.partitions != options.partitions {
            return Err(StartError::RestoredPartitions {
                found: format!("{} has local snapshots", path.display()),
                made: lineage.partitions,
                configured: options.partitions,
            });
        }
        let (name, partitions) = (&options.cluster_name, lineage.partitions);
        return Ok(Some(Identity::of_cluster(
            &lineage.cluster_id,
            name,
            partitions,
        )));
    }
    Ok(None)
}

/// The lineage of a checkpoint, read by importing it into a scratch database.
fn lineage_of(dir: &Path, scratch: &Path) -> Result<Lineage, StoreError> {
    let checkpoint = Checkpoint::open(dir)?;
    checkpoint.verify()?;
    let partition = PartitionId(checkpoint.meta.partition);
    let linked = checkpoint.link_to(&scratch.join("files"))?;
    let store = Store::open_any(&scratch.join("db"), &StoreOptions::for_inspection())?;
    store.import(partition, &linked)?;
    let lineage = store.partition_db(partition).lineage()?;
    store.close();
    Ok(lineage)
}

/// Where the repository has nothing to restore, the error names a JSON snapshot that may have the state
/// store.
fn with_state(error: StartError, dir: &Path) -> StartError {
    let StartError::NothingToRestore { repository, why } = error else {
        return error;
    };
    match newest_state(dir) {
        Ok(None) => StartError::NothingToRestore { repository, why },
        Ok(Some((name, keys))) => StartError::NothingToRestore {
            repository,
            why: format!(
                "{why}. The state store is in {file}, with {keys} keys: begin a new cluster with \
                 --bootstrap new, then take it over with `esker state import {file}`",
                file = dir.join("snapshots").join(name).display()
            ),
        },
        Err(error) => error,
    }
}
