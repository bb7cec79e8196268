//! Reading the descriptions of a partition's snapshots.
//!
//! A repository remembers those that it has read for as long as it is open: one operation needs them several times.
//! Repositories that share a [`DescriptionCache`] also find in it the large ones that others have read.

use std::collections::HashSet;
use std::io;
use std::sync::Arc;

use bytes::Bytes;

use crate::description_cache::{DescriptionCache, MIN_OBJECT_BYTES};
use crate::error::Error;
use crate::layout::SnapshotDir;
use crate::metadata::{METADATA_BYTES, SnapshotMetadata};
use crate::repository::Repository;
use crate::store::Store;

/// Counts large descriptions by where they were read from.
const LARGE_DESCRIPTIONS: &str = "esker_repository_large_descriptions_total";

impl Repository {
    /// Reads a snapshot's description.
    pub async fn describe(&self, dir: &SnapshotDir) -> Result<Arc<SnapshotMetadata>, Error> {
        self.read_description(&self.store.operation(), dir).await
    }

    pub(crate) async fn read_description(
        &self,
        store: &Store,
        dir: &SnapshotDir,
    ) -> Result<Arc<SnapshotMetadata>, Error> {
        if let Some(known) = self.descriptions.lock().await.get(dir) {
            return Ok(known.clone());
        }
        let metadata = match &self.shared {
            Some(shared) => self.read_shared(store, shared, dir).await?,
            None => self.fetch_description(store, dir).await?,
        };
        let mut known = self.descriptions.lock().await;
        known.insert(dir.clone(), metadata.clone());
        Ok(metadata)
    }

    /// Reads a description from the shared ones if its object is still the one that it was read from, else from the
    /// store.
    async fn read_shared(
        &self,
        store: &Store,
        shared: &DescriptionCache,
        dir: &SnapshotDir,
    ) -> Result<Arc<SnapshotMetadata>, Error> {
        if let Some((metadata, version)) = shared.get(self.partition, dir) {
            if store.version(&dir.metadata()).await? == Some(version) {
                metrics::counter!(LARGE_DESCRIPTIONS, "from" => "memory").increment(1);
                self.check_owner_of(store, dir, &metadata)?;
                return Ok(metadata);
            }
            shared.remove(self.partition, dir);
        }
        let (bytes, version) = store.get_object(&dir.metadata(), METADATA_BYTES).await?;
        if version.size < MIN_OBJECT_BYTES {
            return self.parse(store, bytes, dir);
        }
        metrics::counter!(LARGE_DESCRIPTIONS, "from" => "repository").increment(1);
        let turn = shared.turn_to_parse().await;
        // Whoever had the turn before may have read the same.
        if let Some((metadata, known)) = shared.get(self.partition, dir)
            && known == version
        {
            self.check_owner_of(store, dir, &metadata)?;
            return Ok(metadata);
        }
        let (metadata, turn) = self.parse_large(store, bytes, dir, turn).await?;
        shared.insert(self.partition, &metadata, version);
        // Not before: whoever is next finds it.
        drop(turn);
        Ok(metadata)
    }

    /// Reads a description from the store even if it is cached, to show whether the object exists.
    pub(crate) async fn fetch_description(
        &self,
        store: &Store,
        dir: &SnapshotDir,
    ) -> Result<Arc<SnapshotMetadata>, Error> {
        let (bytes, _) = store.get_object(&dir.metadata(), METADATA_BYTES).await?;
        match (bytes.len() as u64) < MIN_OBJECT_BYTES {
            true => self.parse(store, bytes, dir),
            false => Ok(self.parse_large(store, bytes, dir, ()).await?.0),
        }
    }

    /// Parses a large description on a thread that may block, because that takes a tenth of a second and more, for
    /// which the other tasks of this thread would wait. `turn` is held until it has ended, and returned.
    async fn parse_large<T: Send + 'static>(
        &self,
        store: &Store,
        bytes: Bytes,
        dir: &SnapshotDir,
        turn: T,
    ) -> Result<(Arc<SnapshotMetadata>, T), Error> {
        let (repository, its_store, of) = (self.clone(), store.clone(), dir.clone());
        let parsed = tokio::task::spawn_blocking(move || {
            let metadata = repository.parse(&its_store, bytes, &of)?;
            Ok((metadata, turn))
        });
        // A thread that could not end its work proves nothing about the description.
        parsed.await.unwrap_or_else(|error| {
            Err(Error::Io {
                what: "parse",
                path: store.display_url(&dir.metadata()).into(),
                source: io::Error::other(error),
            })
        })
    }

    fn parse(
        &self,
        store: &Store,
        bytes: Bytes,
        dir: &SnapshotDir,
    ) -> Result<Arc<SnapshotMetadata>, Error> {
        let metadata = SnapshotMetadata::parse(&bytes, self.partition, dir)
            .map_err(|why| why.of(store.display_url(&dir.metadata())))?;
        self.check_owner_of(store, dir, &metadata)?;
        Ok(Arc::new(metadata))
    }

    fn check_owner_of(
        &self,
        store: &Store,
        dir: &SnapshotDir,
        metadata: &SnapshotMetadata,
    ) -> Result<(), Error> {
        self.check_cluster(
            &store.display_url(&dir.metadata()),
            &metadata.cluster_name,
            metadata.cluster_fingerprint,
        )
    }

    /// Removes cached descriptions of snapshots that the root does not keep, so that the cache does not
    /// grow with the uptime.
    pub(crate) async fn forget_all_but(&self, kept: &[SnapshotDir]) {
        let kept: HashSet<_> = kept.iter().collect();
        self.descriptions
            .lock()
            .await
            .retain(|dir, _| kept.contains(dir));
    }
}
