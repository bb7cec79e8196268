//! Decides what a data directory is, and what an empty one means.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;

use esker_partition::{Checkpoint, Lineage, PartitionId, Store, StoreError, StoreOptions};
use esker_repository::{ownership, partitions};

use super::acceptance::{self, Accepted};
use super::archived_state::{bring_archived_state, newest_state};
use super::plan::Plan;
use super::search::remove;
use crate::blocking::blocking;
use crate::cluster::{Joined, Peers, join};
use crate::data_dir::{DataDir, Identity, LockedDir, checkpoints_in, copies_in};
use crate::error::StartError;
use crate::options::NodeOptions;
use crate::snapshots::{Archive, Bootstrap, cluster_id};

/// A directory that belongs to a node. Cheap to clone.
#[derive(Clone)]
pub(super) struct Entered {
    pub data_dir: DataDir,
    pub archive: Archive,
    pub accepted: Accepted,
    /// What the cluster has told that this node joins in this start.
    pub joined: Option<Joined>,
}

impl Entered {
    /// Listens to other nodes, if there are any.
    pub fn bind_to_peers(&self, options: &NodeOptions) -> Result<Option<Arc<Peers>>, StartError> {
        let Some(cluster) = &options.cluster else {
            return Ok(None);
        };
        let Some(listen) = cluster.listen else {
            return Ok(None);
        };
        let peers = Peers::bind(cluster, listen, &self.data_dir.identity)?;
        if let Some(joined) = &self.joined {
            peers.know(&joined.nodes);
        }
        Ok(Some(Arc::new(peers)))
    }
}

/// Locks a data directory, decides what it is, and begins to create the contents of an empty one.
pub(super) async fn enter(options: &Arc<NodeOptions>) -> Result<Entered, StartError> {
    let mut empty = options.empty_partitions.iter();
    if let Some(partition) = empty.find(|one| **one > u64::from(options.partitions)) {
        return Err(StartError::NoSuchPartition {
            partition: *partition,
            last: options.partitions,
        });
    }
    let (restarted, path) = (options.restarted, options.data_dir.clone());
    let locked = blocking(move || {
        if restarted {
            served_from(&path)?;
        }
        LockedDir::open(&path)
    })
    .await?;
    let begun = match begin(options, &locked).await {
        Ok(begun) => begun,
        Err(error) => {
            blocking(move || locked.leave()).await;
            return Err(error);
        }
    };
    let options = options.clone();
    blocking(move || use_dir(&options, locked, begun)).await
}

/// Gives an empty directory its identity, and checks that the identity is the configured one.
fn use_dir(options: &NodeOptions, locked: LockedDir, begun: Begun) -> Result<Entered, StartError> {
    let identity = || match begun.identity {
        Some(identity) => identity,
        None => Identity::new(&options.cluster_name, options.partitions),
    };
    let mut data_dir = locked.belonging_to(identity, options.partitions)?;
    data_dir.joins |= begun.joined.is_some();
    if data_dir.identity.cluster_name != options.cluster_name {
        return Err(StartError::ClusterNameChanged {
            dir: data_dir.path().to_owned(),
            made: data_dir.identity.cluster_name.clone(),
            configured: options.cluster_name.clone(),
        });
    }
    crate::space::release_reserve_for_start(data_dir.path());
    if begun.archive.is_default {
        tracing::warn!(
            repository = begun.archive.shown(),
            "partition snapshots are kept in the data directory and do not survive this disk: \
             set snapshots.destination"
        );
    }
    let restores = begun.said == Some(Bootstrap::Restore);
    // Until it serves for the first time, a directory that is filled from the repository has nothing to
    // lose. The option was given to an earlier start, which a crash interrupted.
    let is_filled = data_dir.is_new && begun.plan.is_some_and(|plan| plan.everything);
    let accepted = Accepted {
        loss: restores || is_filled,
        empty: match restores {
            true => options.empty_partitions.clone(),
            false => BTreeSet::new(),
        },
    };
    Ok(Entered {
        data_dir,
        archive: begun.archive,
        accepted,
        joined: begun.joined,
    })
}

/// What a start begins with.
struct Begun {
    archive: Archive,
    plan: Option<Plan>,
    /// The bootstrap option, if it has effect.
    said: Option<Bootstrap>,
    /// The cluster and node that the directory belongs to, if it is empty and is filled from the repository.
    identity: Option<Identity>,
    /// What the cluster has told that the node joins.
    joined: Option<Joined>,
}

/// Decides what the directory is. Writes nothing into an empty one but the plan of its restore.
async fn begin(options: &Arc<NodeOptions>, locked: &LockedDir) -> Result<Begun, StartError> {
    let (leaf, path) = (options.clone(), locked.path().to_owned());
    let read = blocking(move || {
        let archive = Archive::open(&leaf.snapshots, &path)?;
        let said = acceptance::counts(&path, leaf.bootstrap)?;
        Ok::<_, StartError>((archive, Plan::read(&path)?, said))
    });
    let (archive, mut plan, said) = read.await?;
    let path = locked.path().to_owned();
    let wants = match &plan {
        // The option was given to an earlier start, which a crash interrupted.
        Some(plan) if plan.everything => Some(Bootstrap::Restore),
        _ => said,
    };
    let (mut identity, mut joined) = (None, None);
    let cluster = options.cluster.as_ref();
    let cluster = cluster.filter(|cluster| cluster.listen.is_some() && !cluster.join.is_empty());
    match wants {
        Some(Bootstrap::Join) if cluster.is_none() => return Err(StartError::JoinUnsupported),
        _ if !locked.is_empty() => {
            if said == Some(Bootstrap::New) {
                return Err(StartError::NotEmpty {
                    dir: locked.path().to_owned(),
                });
            }
        }
        Some(Bootstrap::Restore) => {
            identity = Some(restored_identity(options, &archive, locked).await?);
            let everything = Plan {
                everything: true,
                ..Plan::default()
            };
            plan = Some(everything.clone());
            blocking(move || everything.write(&path)).await?;
        }
        None | Some(Bootstrap::Join) if let Some(cluster) = cluster => {
            if let Some(what) = blocking(move || copies_in(&path)).await? {
                return Err(StartError::HoldsCopies {
                    dir: locked.path().to_owned(),
                    what,
                });
            }
            let (mine, told) = join(cluster, &options.cluster_name, options.partitions).await?;
            identity = Some(mine);
            joined = Some(told);
        }
        wants => {
            if let Some(what) = blocking(move || copies_in(&path)).await? {
                return Err(StartError::HoldsCopies {
                    dir: locked.path().to_owned(),
                    what,
                });
            }
            nobody_there(&archive, wants, locked).await?;
            if wants != Some(Bootstrap::New) {
                let cluster = &options.cluster_name;
                bring_archived_state(locked.path(), cluster, &archive).await?;
                let path = locked.path().to_owned();
                blocking(move || no_state_there(&path)).await?;
            }
        }
    }
    Ok(Begun {
        archive,
        plan,
        said,
        identity,
        joined,
    })
}

/// Refuses a directory that no node has served from, before anything is written there: below a mount that is
/// gone, nothing is created or restored.
fn served_from(dir: &Path) -> Result<(), StartError> {
    let path = dir.join("node.json");
    match std::fs::metadata(&path) {
        Ok(_) => Ok(()),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Err(StartError::DirectoryReplaced {
            dir: dir.to_owned(),
        }),
        Err(e) => Err(StartError::unreadable(path.display().to_string(), &e)),
    }
}

/// Without `--bootstrap new`, a new cluster begins only where there is no JSON snapshot of a state store.
fn no_state_there(dir: &Path) -> Result<(), StartError> {
    match newest_state(dir)? {
        None => Ok(()),
        Some((name, keys)) => Err(StartError::StateSnapshotsThere {
            dir: dir.to_owned(),
            name,
            keys,
        }),
    }
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

/// Checks that the repository has nothing of any cluster: only then does a new one begin.
async fn nobody_there(
    archive: &Archive,
    wants: Option<Bootstrap>,
    locked: &LockedDir,
) -> Result<(), StartError> {
    let unreadable = |e: esker_repository::Error| StartError::RepositoryUnreadable {
        repository: archive.shown().to_owned(),
        why: format!(
            "{e}. An empty data directory may mean that everything is to be restored from there; \
             --bootstrap new begins a new cluster without looking"
        ),
    };
    let there = match partitions(archive.destination()).await {
        Ok(there) => there,
        // The operator has chosen a new cluster, and snapshots begin as soon as the repository can be
        // reached.
        Err(error) if wants == Some(Bootstrap::New) => {
            tracing::warn!(%error, "the repository could not be read");
            return Ok(());
        }
        Err(error) => return Err(unreadable(error)),
    };
    let Some(first) = there.first() else {
        // The marker of another cluster, from which no snapshot was put yet.
        let cluster = match ownership::marker(archive.destination()).await {
            Ok(marker) => marker.map(|marker| marker.cluster_name),
            Err(error) if wants == Some(Bootstrap::New) => {
                tracing::warn!(%error, "the repository could not be read");
                None
            }
            Err(error) => return Err(unreadable(error)),
        };
        return match cluster {
            None => Ok(()),
            Some(cluster) => Err(StartError::RepositoryHoldsCluster {
                dir: locked.path().to_owned(),
                repository: archive.shown().to_owned(),
                cluster,
            }),
        };
    };
    let root = archive.reader(u64::from(first.0)).root().await;
    let cluster = match root {
        Ok(root) => root.cluster_name.clone(),
        Err(error) => format!("unknown: {error}"),
    };
    Err(StartError::RepositoryHoldsCluster {
        dir: locked.path().to_owned(),
        repository: archive.shown().to_owned(),
        cluster,
    })
}

/// The identity that is restored into an empty directory. The repository names it; where it has nothing of
/// this cluster, the local snapshots that are left name it. Both must be of one cluster, the configured one:
/// the restored directory is opened under its name, and puts its snapshots there.
async fn restored_identity(
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
    let scratch = path.join("scratch");
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

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_node_that_restarts_itself_begins_nothing_in_an_empty_directory() {
        let dir = tempfile::tempdir().unwrap();
        for bootstrap in [None, Some(Bootstrap::New), Some(Bootstrap::Restore)] {
            for name in [".", "missing"] {
                let options = NodeOptions {
                    bootstrap,
                    restarted: true,
                    ..NodeOptions::new(dir.path().join(name))
                };
                let entered = enter(&Arc::new(options)).await;
                let error = entered.err().unwrap();
                assert_eq!(error.code(), "data_dir_replaced", "{error}");
            }
        }
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    }
}
