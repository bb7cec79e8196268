//! `cluster.json`: the cluster that a destination belongs to.
//!
//! The marker at the top of a destination names the cluster. The first put creates it, on the condition
//! that there is none, and it is never changed. Before that, all partitions at the destination are
//! inspected: a destination with partitions of another cluster is refused; one with partitions of this
//! cluster only, which earlier releases wrote, is accepted.
//!
//! The marker also identifies the destination: if a disk is not mounted or a bucket was emptied, the
//! marker is missing or has another id. Once a [`Destination`] has seen an id, nothing is written there
//! unless the marker has the same id.

use std::sync::Arc;

use bytes::Bytes;
use futures::stream::{self, StreamExt as _, TryStreamExt as _};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use time::OffsetDateTime;

use crate::cluster::Cluster;
use crate::destination::Destination;
use crate::env::{Env, System};
use crate::error::{Error, ParseError};
use crate::ids::{DestinationId, PartitionId};
use crate::layout::{Object, ROOT, parse_partition};
use crate::metadata::{METADATA_BYTES, SnapshotMetadata};
use crate::options::Options;
use crate::root::{ROOT_BYTES, Root};
use crate::store::{Store, Swap};

/// Key of the marker, below the destination.
pub const MARKER: &str = "cluster.json";
/// Maximum size of a marker that is read, in bytes. A marker has some 300.
const MAX_MARKER_BYTES: u64 = 64 << 10;
/// The version that is written.
const VERSION: &str = "V1";
/// Maximum number of attempts to create a marker while the store reports neither success nor refusal.
const MAX_CREATIONS: u32 = 6;
/// Partitions that are inspected at a time, before a marker is created.
const PARALLEL_INSPECTIONS: usize = 16;

/// The cluster that a destination belongs to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClusterMarker {
    /// `V1`.
    pub version: String,
    /// Drawn when the marker was created; no other destination has it.
    pub destination_id: DestinationId,
    /// The cluster's name.
    pub cluster_name: String,
    /// Distinguishes clusters of the same name. Absent if the cluster had none when the marker was created.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cluster_fingerprint: Option<u64>,
    /// The node that created the marker; for operators.
    pub node_name: String,
    /// When it was created, by that node's clock.
    #[serde(with = "time::serde::rfc3339")]
    pub created_at: OffsetDateTime,
    /// All other fields.
    #[serde(flatten)]
    pub extra: Map<String, Value>,
}

impl ClusterMarker {
    fn parse(bytes: &[u8]) -> Result<ClusterMarker, ParseError> {
        let value: Value = serde_json::from_slice(bytes).map_err(|e| format!("no JSON: {e}"))?;
        match value.get("version").and_then(Value::as_str) {
            Some(VERSION) => {}
            other => return Err(ParseError::of_version(other, &[VERSION])),
        }
        Ok(serde_json::from_value(value).map_err(|e| e.to_string())?)
    }
}

/// The marker of a destination; `None` if no cluster has claimed it. Writes nothing.
pub async fn marker(destination: &Destination) -> Result<Option<ClusterMarker>, Error> {
    let store = store_of(destination, Arc::new(System), &Options::default());
    read(&store).await
}

/// Checks whether a cluster may write to a destination: its marker names the cluster, or there is no marker
/// and no partition of another cluster. Writes nothing. A put does the same check; this function is for
/// callers that write something before the first put.
///
/// # Errors
///
/// [`Error::OtherCluster`] and [`Error::NotOurs`] if it belongs to another cluster or program;
/// [`Error::MarkerMissing`] and [`Error::OtherDestination`] if it is not the destination that this process
/// has seen before; errors of reading the destination.
pub async fn check(destination: &Destination, cluster: &Cluster) -> Result<(), Error> {
    let store = store_of(destination, Arc::new(System), &Options::default());
    check_with(&store, cluster).await
}

/// As [`check`], with the clock, random numbers and retries of `store`.
pub(crate) async fn check_with(store: &Store, cluster: &Cluster) -> Result<(), Error> {
    inspect(&store.above(), cluster).await.map(|_| ())
}

/// As [`check`], and creates the marker if there is none.
///
/// # Errors
///
/// Those of [`check`].
pub async fn claim(destination: &Destination, cluster: &Cluster) -> Result<ClusterMarker, Error> {
    let store = store_of(destination, Arc::new(System), &Options::default());
    claim_with(&store, cluster).await
}

fn store_of(destination: &Destination, env: Arc<dyn Env>, options: &Options) -> Store {
    Store::new(destination, PartitionId(0), env, options).above()
}

/// As [`claim`], with the clock, random numbers and retries of `store`.
pub(crate) async fn claim_with(store: &Store, cluster: &Cluster) -> Result<ClusterMarker, Error> {
    let store = &store.above();
    let mut attempt = 0;
    loop {
        if let Some(marker) = inspect(store, cluster).await? {
            store.destination().seen().set(marker.destination_id);
            return Ok(marker);
        }
        attempt += 1;
        if attempt > MAX_CREATIONS {
            return Err(Error::Contended {
                root: store.display_url(MARKER),
                attempts: MAX_CREATIONS,
            });
        }
        if attempt > 1 {
            store.env().sleep(store.wait_after(attempt - 1)).await;
        }
        let marker = ClusterMarker {
            version: VERSION.to_owned(),
            destination_id: DestinationId(
                (u128::from(store.env().random()) << 64) | u128::from(store.env().random()),
            ),
            cluster_name: cluster.name.clone(),
            cluster_fingerprint: cluster.fingerprint,
            node_name: cluster.node_name.clone(),
            created_at: store.env().now(),
            extra: Map::new(),
        };
        let bytes = serde_json::to_vec_pretty(&marker)
            .map_err(|e| Error::Invalid(format!("a cluster's marker: {e}")))?;
        match store.swap(MARKER, Bytes::from(bytes), None).await? {
            Swap::Done(_) => tracing::info!(
                object = store.display_url(MARKER),
                cluster = cluster.name,
                "The destination belongs to this cluster now"
            ),
            // Another process created one, or the outcome is unknown: the next read shows which.
            Swap::Lost => {}
            Swap::Unknown(failure) => {
                tracing::debug!(%failure, "The creation of a marker got no plain answer");
            }
        }
    }
}

/// Returns the marker, if it is the right one; `None` if there is none and one may be created.
async fn inspect(store: &Store, cluster: &Cluster) -> Result<Option<ClusterMarker>, Error> {
    let marker = read(store).await?;
    let seen = store.destination().seen().get();
    let Some(marker) = marker else {
        if seen.is_some() {
            return Err(Error::MarkerMissing {
                marker: store.display_url(MARKER),
            });
        }
        check_partitions(store, cluster).await?;
        return Ok(None);
    };
    cluster.check(
        &store.display_url(MARKER),
        &marker.cluster_name,
        marker.cluster_fingerprint,
    )?;
    match seen {
        Some(id) if id != marker.destination_id => {
            return Err(Error::OtherDestination {
                marker: store.display_url(MARKER),
                expected: id,
                found: marker.destination_id,
            });
        }
        Some(_) => {}
        // Only the names were compared: the partitions may have a fingerprint.
        None if marker.cluster_fingerprint.is_none() && cluster.fingerprint.is_some() => {
            check_partitions(store, cluster).await?;
        }
        None => {}
    }
    Ok(Some(marker))
}

async fn read(store: &Store) -> Result<Option<ClusterMarker>, Error> {
    match store.get(MARKER, MAX_MARKER_BYTES).await {
        Ok((bytes, _)) => {
            let marker = ClusterMarker::parse(&bytes);
            let marker = marker.map_err(|why| why.of(store.display_url(MARKER)))?;
            Ok(Some(marker))
        }
        Err(Error::Missing { .. }) => Ok(None),
        Err(error) => Err(error),
    }
}

/// What is known of a partition at a destination without a marker.
enum PartitionOwner {
    /// It has no object of a snapshot.
    Nothing,
    /// Its root or a description names this cluster.
    Ours,
    /// No readable object names a cluster.
    Unknown(Error),
}

/// Fails if a partition belongs to another cluster, or if none is known to be of this cluster and the owner
/// of one is unknown.
async fn check_partitions(store: &Store, cluster: &Cluster) -> Result<(), Error> {
    let names = store.directories().await?;
    let mut inspections = Vec::new();
    for id in names.iter().filter_map(|name| parse_partition(name)) {
        let store = store.of_partition(id);
        inspections.push(async move { inspect_partition(&store, id, cluster).await });
    }
    let found: Vec<PartitionOwner> = stream::iter(inspections)
        .buffered(PARALLEL_INSPECTIONS)
        .try_collect()
        .await?;
    let some_are_ours = found.iter().any(|one| matches!(one, PartitionOwner::Ours));
    for one in found {
        match one {
            PartitionOwner::Unknown(error) if !some_are_ours => return Err(error),
            _ => {}
        }
    }
    Ok(())
}

async fn inspect_partition(
    store: &Store,
    id: PartitionId,
    cluster: &Cluster,
) -> Result<PartitionOwner, Error> {
    let url = store.display_url(ROOT);
    let unknown = match store.get(ROOT, ROOT_BYTES).await {
        Ok((bytes, _)) => match Root::parse(&bytes, id) {
            Ok(root) => {
                cluster.check(&url, &root.cluster_name, root.cluster_fingerprint)?;
                return match root.generation {
                    Some(_) => Ok(PartitionOwner::Ours),
                    None => Err(Error::NotOurs { root: url }),
                };
            }
            Err(why) => why.of(url),
        },
        Err(error @ Error::Damaged { .. }) => error,
        Err(Error::Missing { .. }) => Error::NoRoot {
            root: url,
            others: true,
        },
        Err(error) => return Err(error),
    };
    // The root names no cluster, but a description may.
    let mut others = matches!(unknown, Error::Damaged { .. } | Error::NewerFormat { .. });
    let mut listed = store.list();
    while let Some(object) = listed.next().await {
        let key = object?.key;
        let Object::Metadata(dir) = Object::of(&key) else {
            others |= !matches!(Object::of(&key), Object::Foreign | Object::Root);
            continue;
        };
        others = true;
        let bytes = match store.get(&key, METADATA_BYTES).await {
            Ok((bytes, _)) => bytes,
            Err(error) if error.is_damage() => continue,
            Err(error) => return Err(error),
        };
        if let Ok(metadata) = SnapshotMetadata::parse(&bytes, id, &dir) {
            let (name, fingerprint) = (&metadata.cluster_name, metadata.cluster_fingerprint);
            cluster.check(&store.display_url(&key), name, fingerprint)?;
            return Ok(PartitionOwner::Ours);
        }
    }
    Ok(match others {
        true => PartitionOwner::Unknown(unknown),
        false => PartitionOwner::Nothing,
    })
}
