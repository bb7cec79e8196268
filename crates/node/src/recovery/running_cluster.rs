//! Checks that no node of the cluster runs where a lineage begins that would be a second history beside theirs.
//!
//! A restore into an empty directory and a survivor begin such lineages. The nodes are asked twice. When a start
//! decides, it asks those that `cluster.join` names ([`none_answers`]). Right before the first lineage begins, it asks
//! also those that the catalog has ([`none_runs`]): the first node of a cluster has no `cluster.join`, and fetching the
//! copies may have taken hours in which the cluster has come back. Neither answer is kept for a later start.

use std::collections::BTreeSet;
use std::path::Path;

use esker_partition::command::NodeState;
use esker_partition::{Catalog, Store};

use super::context::Context;
use super::survivor::is_alone;
use crate::blocking::blocking;
use crate::cluster::{ClusterOptions, Running, cluster_number, running};
use crate::error::StartError;

/// Checks that no node answers that `cluster.join` names. For the directory of a survivor, or one that is being
/// restored, and that has the id of the cluster.
pub(super) async fn none_answers(
    data_dir: &Path,
    cluster: &ClusterOptions,
    cluster_name: &str,
    cluster_id: Option<&str>,
) -> Result<(), StartError> {
    let of = cluster_id.map(cluster_number);
    match running(cluster, &cluster.join, cluster_name, of, None).await {
        Some(found) => Err(refused(data_dir, is_alone(data_dir)?, found)),
        None => Ok(()),
    }
}

/// Checks that none of the other nodes runs that `cluster.join` names or that the catalog in `store` has.
///
/// A restore without settings of a cluster may be a rehearsal with a copy of the repository, so it only warns. A
/// survivor has no such use.
pub(super) async fn none_runs(cx: &Context, store: Option<&Store>) -> Result<(), StartError> {
    let settings = cx.options.cluster.clone().unwrap_or_default();
    let mut addresses: BTreeSet<String> = settings.join.iter().cloned().collect();
    if let Some(store) = store {
        addresses.extend(others_in_catalog(cx, store).await?);
    }
    let addresses: Vec<String> = addresses.into_iter().collect();
    let identity = &cx.data_dir.identity;
    let found = running(
        &settings,
        &addresses,
        &identity.cluster_name,
        Some(cluster_number(&identity.cluster_id)),
        cx.peers.as_ref().map(|peers| peers.claim()),
    );
    let Some(found) = found.await else {
        return Ok(());
    };
    if cx.peers.is_none() && !cx.survives {
        tracing::warn!(
            address = found.address,
            "a node of the cluster answers that is being restored: with the cluster's own repository, this begins another history beside that of the nodes that run; a rehearsal needs a copy of the repository"
        );
        return Ok(());
    }
    Err(refused(cx.data_dir.path(), cx.survives, found))
}

/// The addresses of the other nodes that the catalog has.
async fn others_in_catalog(cx: &Context, store: &Store) -> Result<Vec<String>, StartError> {
    let (store, me) = (store.clone(), cx.data_dir.identity.node_id);
    let nodes = blocking(move || Catalog::open(&store).map(|it| it.reader().nodes())).await?;
    let others = nodes
        .values()
        .filter(|node| node.id != me && node.state != NodeState::Removed);
    let addresses = others.map(|node| node.peer_address.clone());
    Ok(addresses.filter(|address| !address.is_empty()).collect())
}

fn refused(data_dir: &Path, survives: bool, found: Running) -> StartError {
    let (dir, address) = (data_dir.to_owned(), found.address);
    match (survives, found.has_other_secret) {
        (true, true) => StartError::OthersMayRun { dir, address },
        (true, false) => StartError::OthersRun { dir, address },
        (false, true) => StartError::RestoredMayRun { dir, address },
        (false, false) => StartError::RestoredRuns { dir, address },
    }
}
