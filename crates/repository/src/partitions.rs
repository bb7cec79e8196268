//! Finds the partitions at a destination.

use std::sync::Arc;

use futures::StreamExt as _;

use crate::destination::Destination;
use crate::env::System;
use crate::error::Error;
use crate::ids::PartitionId;
use crate::layout::{Object, ROOT, parse_partition};
use crate::options::Options;
use crate::store::Store;

/// Finds the partitions at a destination, in ascending order: directories whose name is a partition's
/// number and that contain a root or other objects of snapshots. Other directories are ignored.
///
/// Costs one LIST, and for each partition a HEAD of its root, and a LIST if it has none.
pub async fn partitions(destination: &Destination) -> Result<Vec<PartitionId>, Error> {
    let of = |id| Store::new(destination, id, Arc::new(System), &Options::default());
    let mut found = Vec::new();
    // The store of any partition can list the directories beside it.
    let names = of(PartitionId(0)).directories().await?;
    for id in names.iter().filter_map(|name| parse_partition(name)) {
        let store = of(id);
        if store.holds(ROOT).await? || holds_ours(&store).await? {
            found.push(id);
        }
    }
    found.sort_unstable();
    Ok(found)
}

async fn holds_ours(store: &Store) -> Result<bool, Error> {
    let mut listed = store.list();
    while let Some(object) = listed.next().await {
        if !matches!(Object::of(&object?.key), Object::Foreign) {
            return Ok(true);
        }
    }
    Ok(false)
}

#[cfg(test)]
mod tests {
    use object_store::memory::InMemory;
    use object_store::path::Path;
    use object_store::{ObjectStore, ObjectStoreExt as _};

    use super::*;

    #[tokio::test]
    async fn what_holds_nothing_of_a_snapshot_is_no_partition() {
        let store: Arc<dyn ObjectStore> = Arc::new(InMemory::new());
        let snapshot = "lsn_00000000000000000042-snap_1abc";
        for key in [
            "some/prefix/7/latest.json".to_owned(),
            format!("some/prefix/12/{snapshot}/metadata.json"),
            "some/prefix/2026/report.txt".to_owned(),
            "some/prefix/notes/latest.json".to_owned(),
            "some/prefix/007/latest.json".to_owned(),
            "some/3/latest.json".to_owned(),
        ] {
            store.put(&Path::from(key), "x".into()).await.unwrap();
        }
        let at = |prefix: &str| {
            Destination::of_store(store.clone(), Path::from(prefix), format!("mem://{prefix}"))
        };
        let found = partitions(&at("some/prefix")).await.unwrap();
        assert_eq!(found, [PartitionId(7), PartitionId(12)]);
        assert_eq!(partitions(&at("nowhere")).await.unwrap(), []);
    }
}
