//! Operations on streams, except for their records.

use std::sync::Arc;

use esker_partition::command::{
    DeleteStream, Kind, Outcome, ProvisionRefusal, ProvisionStream, SetStreamSettings, SettingsSet,
};
use esker_partition::encryption::{RecordCipher, associated_data, cipher_number};
use esker_partition::reader::StreamSize;
use esker_partition::settings::StreamSettings;
use esker_partition::{Basin, Stream, partition_of};
use s2_common::config::{OptionalStreamConfig, StreamConfig, StreamReconfiguration};
use s2_common::encryption::{EncryptionKey, EncryptionSpec, EncryptionSpecResolutionError};
use s2_common::record::StreamPosition;

use crate::admission::Client;
use crate::basins::{CHANGE_ATTEMPTS, Change, Create};
use crate::core::StreamGroup;
use crate::error::{Error, changeable, read_error, unexpected};
use crate::node::Node;
pub use crate::stream_list::StreamListing;
use crate::stream_list::merge;

/// The storage class of streams if neither their settings nor their basin's name one, as the S2 API defines
/// it.
pub const DEFAULT_STORAGE_CLASS: &str = "express";

/// Which of a basin's settings may create a missing stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CreateOn {
    /// `create_stream_on_append`.
    Append,
    /// `create_stream_on_read`.
    Read,
}

/// A stream, and the partition that it is in. Cheap to clone.
#[derive(Clone)]
pub struct StreamHandle {
    pub(crate) node: Node,
    pub(crate) basin: Arc<Basin>,
    pub(crate) stream: Arc<Stream>,
    pub(crate) partition: StreamGroup,
    /// Whose appends and reads are made with this handle.
    pub(crate) client: Client,
    /// The stream's cipher with the key of a request; none until [`StreamHandle::with_key`].
    pub(crate) encryption: RecordCipher,
}

impl StreamHandle {
    /// The handle with the key of a request, for its appends and reads. If the stream has no cipher, the key is
    /// not used.
    ///
    /// # Errors
    ///
    /// [`Error::EncryptionKey`] if the stream has a cipher, and the key is missing or has another length.
    pub fn with_key(self, key: Option<EncryptionKey>) -> Result<StreamHandle, Error> {
        match EncryptionSpec::resolve(self.stream.cipher, key) {
            Ok(spec) => Ok(StreamHandle {
                encryption: spec.into(),
                ..self
            }),
            Err(why) => Err(self.bad_key(&why)),
        }
    }

    /// The key with which records are encrypted and decrypted.
    pub(crate) fn encryption(&self) -> Result<&RecordCipher, Error> {
        match self.stream.cipher {
            Some(cipher) if self.encryption.algorithm().is_none() => {
                Err(self.bad_key(&EncryptionSpecResolutionError::MissingKey { cipher }))
            }
            _ => Ok(&self.encryption),
        }
    }

    /// What binds its records to it.
    pub(crate) fn associated_data(&self) -> [u8; 16] {
        associated_data(self.stream.partition, self.stream.id)
    }

    fn bad_key(&self, why: &EncryptionSpecResolutionError) -> Error {
        Error::EncryptionKey {
            basin: self.basin.name.clone(),
            stream: self.stream.name.clone(),
            why: why.to_string(),
        }
    }

    /// The tail.
    pub fn tail(&self) -> StreamPosition {
        self.stream.tail()
    }

    /// The storage class of its settings, if they have one.
    pub fn storage_class(&self) -> Option<String> {
        let view = self.stream.view();
        view.config.storage_class.as_ref().map(ToString::to_string)
    }

    pub(crate) fn not_found(&self) -> Error {
        not_found(&self.basin.name, &self.stream.name)
    }
}

pub(crate) fn not_found(basin: &str, stream: &str) -> Error {
    Error::StreamNotFound {
        basin: basin.to_owned(),
        stream: stream.to_owned(),
    }
}

impl Node {
    /// The partition that a stream is in, or would be if it existed; `None` if the catalog has no such basin, as far
    /// as this node has applied it.
    pub fn stream_partition(&self, basin: &str, stream: &str) -> Option<u64> {
        let basin = self.any_basin(basin).ok()?;
        let partition = partition_of(basin.id, stream, self.inner.options.partitions);
        Some(partition.0)
    }

    /// Streams of a basin in the order of their names, over all partitions, and whether there are more. Blocks
    /// while the database reads.
    pub fn list_streams(
        &self,
        basin: &str,
        prefix: &str,
        start_after: &str,
        limit: usize,
    ) -> Result<(Vec<StreamListing>, bool), Error> {
        let basin = self.any_basin(basin)?;
        let partitions = &self.inner.partitions;
        merge(partitions.len(), start_after, limit, |at, after, most| {
            let reader = &partitions[at].reader;
            let found = reader.list(basin.id, prefix, after, most)?;
            let found = found.into_iter().map(|s| StreamListing {
                name: s.name,
                created_ms: s.created_ms,
                cipher: s.cipher,
            });
            Ok(found.collect())
        })
    }

    /// Creates a stream, or makes sure that it exists.
    pub async fn provision_stream(
        &self,
        basin: &str,
        name: &str,
        config: &OptionalStreamConfig,
        create: &Create,
    ) -> Result<(Change, StreamListing), Error> {
        // The defaults and the cipher of the basin are those that were acknowledged last, whichever node has changed
        // them; the cipher never changes any more.
        self.catch_up(0).await?;
        let basin = self.basin(basin)?;
        changeable(&basin)?;
        self.inner.clocks_compared().await;
        let mut merged = config
            .clone()
            .merge(basin.config.default_stream_config.clone());
        // The default is stored as absent: ensuring the settings that a stream reports changes nothing.
        merged
            .storage_class
            .take_if(|class| class == DEFAULT_STORAGE_CLASS);
        let command = ProvisionStream {
            basin: basin.id.0,
            name: name.to_owned(),
            settings: StreamSettings::from(&merged),
            mode: create.mode() as i32,
            request_hash: create.request_hash(&StreamSettings::from(config)),
            at_ms: self.inner.stamp_ms(),
            cipher: cipher_number(basin.config.stream_cipher),
        };
        let partition = self.inner.partition(basin.id, name);
        let outcome = self
            .inner
            .execute(&partition.group, Kind::ProvisionStream(command))
            .await?;
        match outcome {
            Outcome::StreamProvisioned(Ok(done)) => Ok((
                done.change.into(),
                StreamListing {
                    name: name.to_owned(),
                    created_ms: done.created_ms,
                    cipher: done.cipher,
                },
            )),
            Outcome::StreamProvisioned(Err(ProvisionRefusal::Exists)) => Err(Error::StreamExists {
                basin: basin.name.clone(),
                stream: name.to_owned(),
            }),
            Outcome::StreamProvisioned(Err(ProvisionRefusal::BasinDropped)) => {
                Err(Error::BasinDeletionPending(basin.name.clone()))
            }
            other => Err(unexpected(&other)),
        }
    }

    /// The settings of a stream. Blocks while the database reads.
    pub fn stream_config(&self, basin: &str, name: &str) -> Result<StreamConfig, Error> {
        let handle = self.read_existing(self.any_basin(basin)?, name)?;
        Ok(StreamConfig::clone(&handle.stream.view().config))
    }

    /// How many bytes a stream holds: exact for a small one, and an estimate from samples for a large one.
    /// Blocks while the database reads.
    ///
    /// # Errors
    ///
    /// [`Error::BasinNotFound`] and [`Error::StreamNotFound`]; [`Error::Storage`] if it cannot be read.
    pub fn metered_size(&self, basin: &str, name: &str) -> Result<StreamSize, Error> {
        let handle = self.read_existing(self.any_basin(basin)?, name)?;
        let size = handle.partition.reader.metered_size(&handle.stream);
        size.map_err(|e| read_error(e, basin, name))
    }

    /// Changes settings of a stream; returns the new settings. `may_go_on` is asked each time that the stream has been
    /// looked up, which may have waited for its turn.
    pub async fn reconfigure_stream<E: From<Error>>(
        &self,
        client: Client,
        (basin, name): (&str, &str),
        changes: &StreamReconfiguration,
        may_go_on: impl Fn() -> Result<(), E>,
    ) -> Result<StreamConfig, E> {
        for _ in 0..CHANGE_ATTEMPTS {
            let looked_up = self.current(client, basin, name).await;
            may_go_on()?;
            let (found, handle) = looked_up?;
            changeable(&found)?;
            let handle = handle?;
            let view = handle.stream.view();
            let config = OptionalStreamConfig::from(StreamConfig::clone(&view.config))
                .reconfigure(changes.clone())
                .merge(handle.basin.config.default_stream_config.clone());
            let command = SetStreamSettings {
                stream: handle.stream.id.0,
                if_version: view.settings_version,
                settings: StreamSettings::from(&config),
                at_ms: self.inner.stamp_ms(),
            };
            let outcome = self
                .inner
                .execute(&handle.partition.group, Kind::SetStreamSettings(command))
                .await?;
            match outcome {
                Outcome::SettingsSet(SettingsSet::Done) => return Ok(config),
                Outcome::SettingsSet(SettingsSet::Conflict | SettingsSet::Gone) => {}
                other => return Err(unexpected(&other).into()),
            }
        }
        Err(Error::Conflict.into())
    }

    /// Deletes a stream; its name is free at once.
    pub async fn delete_stream(&self, basin: &str, name: &str) -> Result<(), Error> {
        let basin = self.any_basin(basin)?;
        changeable(&basin)?;
        let partition = self.inner.partition(basin.id, name);
        let command = DeleteStream {
            basin: basin.id.0,
            name: name.to_owned(),
        };
        let outcome = self
            .inner
            .execute(&partition.group, Kind::DeleteStream(command))
            .await?;
        match outcome {
            Outcome::StreamDeleted(true) => Ok(()),
            Outcome::StreamDeleted(false) => Err(not_found(&basin.name, name)),
            other => Err(unexpected(&other)),
        }
    }

    /// In a cluster, waits until this node has applied what a partition has committed: what is missing here may have
    /// been created meanwhile. Returns whether anything may be there that was not before.
    async fn catch_up(&self, partition: u64) -> Result<bool, Error> {
        match self.cluster() {
            Some(cluster) => cluster.read_index(partition).await.map(|()| true),
            None => Ok(false),
        }
    }

    /// The basin and a stream of it, which may be missing; in a cluster, it is missing only if it is so for the
    /// leaders.
    async fn current(
        &self,
        client: Client,
        basin: &str,
        name: &str,
    ) -> Result<(Arc<Basin>, Result<StreamHandle, Error>), Error> {
        let is_missing = |error: &Error| {
            matches!(
                error,
                Error::BasinNotFound(_)
                    | Error::BasinDeletionPending(_)
                    | Error::StreamNotFound { .. }
            )
        };
        let seen = self.here(client, basin, name).await;
        let error = match &seen {
            Ok((_, Err(error))) | Err(error) => error,
            Ok((_, Ok(_))) => return seen,
        };
        if !is_missing(error) || !self.catch_up(0).await? {
            return seen;
        }
        // Of a basin that was created again, streams are in other partitions.
        if let Some(partition) = self.stream_partition(basin, name) {
            self.catch_up(partition).await?;
        }
        self.here(client, basin, name).await
    }

    /// The same as this node has applied it.
    async fn here(
        &self,
        client: Client,
        basin: &str,
        name: &str,
    ) -> Result<(Arc<Basin>, Result<StreamHandle, Error>), Error> {
        let found = self.basin(basin)?;
        let existing = self.existing(client, found.clone(), name).await;
        Ok((found, existing))
    }

    /// A stream to append to or read from, for this client. A missing one is created if the basin's settings allow it,
    /// with these settings over the basin's defaults.
    pub async fn open_stream(
        &self,
        client: Client,
        basin: &str,
        name: &str,
        on: CreateOn,
        settings: &OptionalStreamConfig,
    ) -> Result<StreamHandle, Error> {
        let (found, existing) = self.current(client, basin, name).await?;
        let create = match on {
            CreateOn::Append => found.config.create_stream_on_append,
            CreateOn::Read => found.config.create_stream_on_read,
        };
        match existing {
            Err(Error::StreamNotFound { .. }) if create => {}
            other => return other,
        }
        let only = Create::Only { token: None };
        let (of, named, settings) = (basin.to_owned(), name.to_owned(), settings.clone());
        let create =
            |node: Node| async move { node.provision_stream(&of, &named, &settings, &only).await };
        match self.change(client, create).await {
            // Another request may have created it first.
            Ok(_) | Err(Error::StreamExists { .. }) => self.existing(client, found, name).await,
            Err(error) => Err(error),
        }
    }

    /// Changes basins, streams or access tokens, in turns by principal. Once begun, the change goes on even if the future
    /// is dropped.
    ///
    /// # Errors
    ///
    /// Those of the change; [`Error::TryLater`] if its turn has not come within 10 s, and [`Error::Stopping`]: nothing
    /// happened then.
    pub async fn change<T, E, F>(
        &self,
        client: Client,
        change: impl FnOnce(Node) -> F,
    ) -> Result<T, E>
    where
        T: Send + 'static,
        E: From<Error> + Send + 'static,
        F: Future<Output = Result<T, E>> + Send + 'static,
    {
        let changes = &self.inner.changes;
        let change = change(self.clone());
        changes.run(client, &self.inner.stopping, change).await
    }

    /// Runs work that reads the database on a thread where blocking is fine, 16 at a time, in turns by principal.
    ///
    /// # Errors
    ///
    /// Those of the work; [`Error::TryLater`] if its turn has not come within 10 s, and [`Error::Stopping`].
    pub async fn look_up<T: Send + 'static>(
        &self,
        client: Client,
        work: impl FnOnce(&Node) -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Error> {
        let (node, inner) = (self.clone(), &self.inner);
        let work = move || work(&node);
        inner.lookups.run(client, &inner.stopping, work).await
    }

    /// Whether there is a stream of this name, as far as this node has applied its partition. What cannot be read now
    /// counts as missing.
    pub async fn has_stream(&self, client: Client, basin: &str, name: &str) -> bool {
        match self.any_basin(basin) {
            Ok(basin) => self.existing(client, basin, name).await.is_ok(),
            Err(_) => false,
        }
    }

    /// A stream that exists. It is read on another thread unless it is open in memory.
    async fn existing(
        &self,
        client: Client,
        basin: Arc<Basin>,
        name: &str,
    ) -> Result<StreamHandle, Error> {
        let partition = self.inner.partition(basin.id, name);
        let mut handle = match partition.reader.open_stream(basin.id, name) {
            Some(stream) => self.handle(basin, stream, partition.clone()),
            None => {
                let name = name.to_owned();
                let work = move |node: &Node| node.read_existing(basin, &name);
                self.look_up(client, work).await?
            }
        };
        handle.client = client;
        Ok(handle)
    }

    /// A stream that exists. Blocks while the database reads.
    pub(crate) fn read_existing(
        &self,
        basin: Arc<Basin>,
        name: &str,
    ) -> Result<StreamHandle, Error> {
        let partition = self.inner.partition(basin.id, name).clone();
        let stream = partition
            .reader
            .stream(basin.id, name)?
            .ok_or_else(|| not_found(&basin.name, name))?;
        Ok(self.handle(basin, stream, partition))
    }

    fn handle(
        &self,
        basin: Arc<Basin>,
        stream: Arc<Stream>,
        partition: StreamGroup,
    ) -> StreamHandle {
        StreamHandle {
            node: self.clone(),
            basin,
            stream,
            partition,
            client: Client::default(),
            encryption: RecordCipher::default(),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use s2_common::config::BasinConfig;

    use super::*;
    use crate::lookups::MAX_LOOKUPS;
    use crate::options::NodeOptions;

    #[tokio::test]
    async fn a_list_over_all_partitions_has_each_stream_once_in_order_whatever_the_pages() {
        let dir = tempfile::tempdir().unwrap();
        let node = Node::start(NodeOptions::new(dir.path())).await.unwrap();
        let ensure = Create::Ensure;
        let config = BasinConfig::default();
        let basin = node.provision_basin("test-basin", &config, &ensure);
        basin.await.unwrap();
        let settings = OptionalStreamConfig::default();
        let mut expected = Vec::new();
        // After each creation and deletion the list has it, also once names are kept in memory.
        for number in 0..40 {
            let name = format!("{}/{number:02}", ["a", "b"][number % 2]);
            let made = node.provision_stream("test-basin", &name, &settings, &ensure);
            made.await.unwrap();
            expected.push(name);
            if number % 5 == 4 {
                let gone = expected.swap_remove(number % expected.len());
                node.delete_stream("test-basin", &gone).await.unwrap();
            }
            expected.sort();
            for limit in [1, 7, 1000] {
                let mut names: Vec<String> = Vec::new();
                loop {
                    let after = names.last().cloned().unwrap_or_default();
                    let page = node.list_streams("test-basin", "", &after, limit);
                    let (page, has_more) = page.unwrap();
                    assert!(page.len() == limit || !has_more);
                    names.extend(page.into_iter().map(|one| one.name));
                    if !has_more {
                        break;
                    }
                }
                assert_eq!(names, expected, "limit {limit}");
            }
            let (of_a, _) = node.list_streams("test-basin", "a/", "a/1", 1000).unwrap();
            let in_a = expected.iter().filter(|name| name.starts_with("a/"));
            let in_a = in_a.filter(|name| name.as_str() > "a/1");
            assert!(of_a.iter().map(|one| &one.name).eq(in_a));
        }
        node.stop(Duration::from_secs(30)).await;
    }

    #[tokio::test]
    async fn a_stream_that_is_open_is_found_while_all_lookups_wait_for_the_database() {
        let dir = tempfile::tempdir().unwrap();
        let node = Node::start(NodeOptions::new(dir.path())).await.unwrap();
        let ensure = Create::Ensure;
        let config = BasinConfig::default();
        let basin = node.provision_basin("test-basin", &config, &ensure);
        basin.await.unwrap();
        let settings = OptionalStreamConfig::default();
        let stream = node.provision_stream("test-basin", "open", &settings, &ensure);
        stream.await.unwrap();

        let turns = node.inner.lookups.turns.clone();
        let client = Client::default();
        let all = turns.try_take(client, MAX_LOOKUPS).unwrap();
        let open = |name| node.open_stream(client, "test-basin", name, CreateOn::Append, &settings);
        open("open").await.unwrap();
        let absent = open("absent");
        tokio::pin!(absent);
        let early = tokio::time::timeout(Duration::from_millis(100), &mut absent).await;
        assert!(early.is_err(), "it was read without a turn");
        drop(all);
        let absent = absent.await;
        assert!(matches!(absent, Err(Error::StreamNotFound { .. })));
        assert_eq!(turns.free(), MAX_LOOKUPS);
        node.stop(Duration::from_secs(30)).await;
    }
}
