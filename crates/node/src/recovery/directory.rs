//! Decides what a data directory is, and what an empty one means.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;

use esker_partition::Lineage;
use esker_repository::{ownership, partitions};

use super::acceptance::{self, Accepted};
use super::archived_state::{bring_archived_state, newest_state};
use super::joining::{join_again, join_as_drawn, told_before};
use super::plan::Plan;
use super::restored_identity::restored_identity;
use super::running_cluster::none_answers;
use super::survivor;
use crate::blocking::blocking;
use crate::cluster::{ClusterOptions, Joined, Peers, running};
use crate::data_dir::{DataDir, Identity, LockedDir, Stage, copies_in};
use crate::error::StartError;
use crate::options::NodeOptions;
use crate::snapshots::{Archive, Bootstrap};

/// A directory that belongs to a node. Cheap to clone.
#[derive(Clone)]
pub(super) struct Entered {
    pub data_dir: DataDir,
    pub archive: Archive,
    pub accepted: Accepted,
    /// What the cluster has told that this node joins in this start.
    pub joined: Option<Joined>,
    /// The lineages with which the logs of its groups begin; empty if it joins none.
    pub lineages: Arc<[Lineage]>,
    /// Whether the other nodes of the cluster are given up.
    pub survives: bool,
    /// The partitions of which the replicas here differ from the others' that are given up.
    pub diverged: Arc<[u64]>,
}

impl Entered {
    /// Listens to other nodes, if there are any.
    pub fn bind_to_peers(&self, options: &NodeOptions) -> Result<Option<Arc<Peers>>, StartError> {
        let listens = |cluster: &'_ ClusterOptions| cluster.listen.zip(Some(cluster.clone()));
        let Some((listen, cluster)) = options.cluster.as_ref().and_then(listens) else {
            return match self.data_dir.has_peers() && !self.survives {
                true => Err(StartError::PeersNotHeard {
                    dir: self.data_dir.path().to_owned(),
                }),
                false => Ok(None),
            };
        };
        // The next start has to know each that the others have seen.
        self.archive.begin_to_write()?;
        let start = self.archive.start();
        let peers = Peers::bind(&cluster, listen, &self.data_dir.identity, start)?;
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
        let locked = LockedDir::open(&path)?;
        refuse_removed(&locked)?;
        Ok::<_, StartError>(locked)
    })
    .await?;
    let mut locked = locked;
    let begun = match begin(options, &mut locked).await {
        Ok(begun) => begun,
        Err(error) => {
            blocking(move || locked.leave()).await;
            return Err(error);
        }
    };
    let options = options.clone();
    blocking(move || use_dir(&options, locked, begun)).await
}

/// Refuses the directory of a node that was removed and whose replicas are gone in part, and deletes what is left of
/// them. One that has everything is started, also if all others could do without it when they were asked: it asks
/// again, because they may have lost theirs since.
fn refuse_removed(locked: &LockedDir) -> Result<(), StartError> {
    let Some(mut removed) = locked.removed()? else {
        return Ok(());
    };
    if removed.stage < Stage::Deleting {
        return Ok(());
    }
    removed.delete_replicas(locked.path())?;
    Err(StartError::NodeRemoved {
        dir: locked.path().to_owned(),
        what: removed.describe(),
    })
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
    let given_up = survivor::given_up(data_dir.path())?.filter(|_| !data_dir.is_new);
    let diverged = given_up
        .as_ref()
        .map(|given_up| survivor::diverged(data_dir.path(), data_dir.identity.node_id, given_up));
    let diverged = diverged.transpose()?.unwrap_or_default().into();
    let survives = given_up.is_some();
    let is_member = data_dir.has_peers() && !data_dir.is_new && !survives;
    let restores = begun.said == Some(Bootstrap::Restore) && !is_member;
    if is_member && begun.said == Some(Bootstrap::Restore) {
        tracing::warn!(
            "--bootstrap restore does not count on a node of a cluster: other nodes have replicas of its partitions"
        );
    }
    // Until it serves for the first time, a directory that is filled from the repository has nothing to
    // lose. The option was given to an earlier start, which a crash interrupted.
    let is_filled = data_dir.is_new && begun.plan.is_some_and(|plan| plan.everything);
    let accepted = Accepted {
        // That the other nodes are given up accepts no loss of what this one has.
        loss: restores || is_filled,
        empty: match restores {
            true => options.empty_partitions.clone(),
            false => BTreeSet::new(),
        },
    };
    let joined = match (begun.joined, data_dir.joins && data_dir.is_new) {
        // An earlier start has joined, and a crash interrupted it.
        (None, true) => told_before(data_dir.path())?,
        (joined, _) => joined,
    };
    let lineages = joined.as_ref().map(Joined::lineages).transpose();
    let lineages = lineages.map_err(|why| StartError::BadIdentity {
        path: data_dir.path().to_owned(),
        why: format!("what the cluster has told cannot be used: {why}"),
    })?;
    Ok(Entered {
        data_dir,
        archive: begun.archive,
        accepted,
        joined,
        lineages: lineages.unwrap_or_default().into(),
        survives,
        diverged,
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
async fn begin(options: &Arc<NodeOptions>, locked: &mut LockedDir) -> Result<Begun, StartError> {
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
            if let Some(cluster) = cluster
                && survivor::is_alone(locked.path())?
            {
                let member = locked.member();
                let of = member.map(|member| member.cluster_id.as_str());
                none_answers(locked.path(), cluster, &options.cluster_name, of).await?;
            }
            // The cluster may have come back since the start that has decided.
            if let Some(cluster) = cluster
                && let Some(restored) = locked.unfinished()
                && plan.as_ref().is_some_and(|plan| plan.everything)
            {
                let of = Some(restored.cluster_id.as_str());
                none_answers(locked.path(), cluster, &options.cluster_name, of).await?;
            }
            if let Some(cluster) = cluster
                && let Some(before) = locked.member_without_log()?.cloned()
                && !survivor::is_alone(locked.path())?
            {
                joined = Some(join_again(options, cluster, locked, &before).await?);
            }
        }
        Some(Bootstrap::Restore) => {
            if let Some(cluster) = cluster
                && let Some(found) =
                    running(cluster, &cluster.join, &options.cluster_name, None, None).await
            {
                return Err(StartError::ClusterRuns {
                    address: found.address,
                });
            }
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
            let (mine, told) = join_as_drawn(options, cluster, locked, None).await?;
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

    #[tokio::test]
    async fn a_directory_of_somebody_else_is_refused_and_left_as_it_is() {
        for name in ["scratch", "restore", "raft"] {
            let dir = tempfile::tempdir().unwrap();
            let file = dir.path().join(name).join("thesis.txt");
            std::fs::create_dir(file.parent().unwrap()).unwrap();
            std::fs::write(&file, "precious").unwrap();
            for bootstrap in [None, Some(Bootstrap::New), Some(Bootstrap::Restore)] {
                let options = NodeOptions {
                    bootstrap,
                    ..NodeOptions::new(dir.path())
                };
                let error = enter(&Arc::new(options)).await.err().unwrap();
                assert_eq!(error.code(), "data_dir_holds_others", "{error}");
                assert_eq!(std::fs::read_to_string(&file).unwrap(), "precious");
                assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
            }
        }
    }

    #[tokio::test]
    async fn a_refused_start_does_not_raise_the_format_of_a_directory() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("node.json");
        let options = NodeOptions::new(dir.path());
        let mut identity = Identity::new(&options.cluster_name, options.partitions);
        identity.format = 4;
        std::fs::write(&path, serde_json::to_vec(&identity).unwrap()).unwrap();
        let other_name = NodeOptions {
            cluster_name: "another".to_owned(),
            ..options.clone()
        };
        let other_number = NodeOptions {
            partitions: options.partitions + 1,
            ..options.clone()
        };
        for (options, code) in [
            (other_name, "cluster_name_changed"),
            (other_number, "partitions_changed"),
        ] {
            let error = enter(&Arc::new(options)).await.err().unwrap();
            assert_eq!(error.code(), code, "{error}");
        }
        // What is decided later is not decided by this: the log, the ports, the copies.
        let entered = enter(&Arc::new(options)).await.unwrap();
        let format = || {
            let text = std::fs::read(&path).unwrap();
            serde_json::from_slice::<Identity>(&text).unwrap().format
        };
        assert_eq!(format(), 4);
        entered
            .data_dir
            .bring_up_to_date(crate::data_dir::FORMAT)
            .unwrap();
        assert_eq!(format(), crate::data_dir::FORMAT);
    }
}
