//! One partition's objects, with retries.
//!
//! Every access of the protocol to the object store goes through this module. A transient failure (a 5xx, a
//! broken connection, no answer) is retried with back-off, within one budget for the whole operation; a
//! refusal is not. A compare-and-swap is tried exactly once: it may have succeeded although its answer was
//! lost, and only its caller can find out.
//!
//! Keys are those of [`crate::layout`], below the partition's prefix.

mod delete;
mod multipart;
mod read;
mod retry;

use std::sync::atomic::AtomicU32;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use futures::StreamExt as _;
use futures::stream::{self, BoxStream};
use object_store::multipart::MultipartStore;
use object_store::path::Path;
use object_store::{
    ObjectMeta, ObjectStore, ObjectStoreExt as _, PutMode, PutOptions, PutPayload, UpdateVersion,
};
use tokio::task::JoinHandle;

use crate::destination::{Destination, LocalStore};
use crate::env::{Env, within};
use crate::error::{Error, StoreFailure};
use crate::ids::PartitionId;
use crate::lanes::Lanes;
use crate::options::{Options, Retries};

use crate::rate_limiter::RateLimiter;
pub(crate) use multipart::MultipartUpload;
pub(crate) use read::Sink;
pub(crate) use retry::is_no_bucket;
use retry::is_transient;

/// The outcome of a compare-and-swap.
pub(crate) enum Swap {
    /// The swap was done; the new version.
    Done(UpdateVersion),
    /// The store reports that the object is another version.
    Lost,
    /// The swap may have been done or not.
    Unknown(StoreFailure),
}

/// One partition's objects. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Store {
    inner: Arc<dyn ObjectStore>,
    multipart: Option<Arc<dyn MultipartStore>>,
    destination: Destination,
    base: Path,
    display_url: String,
    env: Arc<dyn Env>,
    retries: Retries,
    rate_limiter: Option<RateLimiter>,
    lanes: Lanes,
    left: Arc<AtomicU32>,
    /// Tasks that abort multipart uploads that were dropped.
    aborts: Arc<Mutex<Vec<JoinHandle<()>>>>,
}

impl std::fmt::Debug for Store {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Store").field(&self.display_url).finish()
    }
}

impl Store {
    pub(crate) fn new(
        destination: &Destination,
        partition: PartitionId,
        env: Arc<dyn Env>,
        options: &Options,
    ) -> Store {
        let base = destination.prefix().clone().join(partition.to_string());
        Store {
            inner: destination.store().clone(),
            multipart: destination.multipart().cloned(),
            destination: destination.clone(),
            base,
            display_url: format!(
                "{}/{partition}",
                destination.display_url().trim_end_matches('/')
            ),
            env,
            retries: options.retries,
            rate_limiter: options.rate_limiter.clone(),
            lanes: Lanes::new(),
            left: Arc::new(AtomicU32::new(options.retries.budget)),
            aborts: Arc::default(),
        }
    }

    /// The same store with its own budget of retries: for one operation.
    pub(crate) fn operation(&self) -> Store {
        let mut store = self.clone();
        store.left = Arc::new(AtomicU32::new(self.retries.budget));
        store.lanes = Lanes::new();
        store
    }

    fn no_bucket(&self) -> Error {
        Error::NoBucket {
            destination: self.destination.display_url().to_owned(),
        }
    }

    /// The same store with keys below the destination, for objects beside the partitions.
    pub(crate) fn above(&self) -> Store {
        Store {
            base: self.destination.prefix().clone(),
            display_url: self
                .destination
                .display_url()
                .trim_end_matches('/')
                .to_owned(),
            ..self.clone()
        }
    }

    /// The same store for another partition at the destination.
    pub(crate) fn of_partition(&self, partition: PartitionId) -> Store {
        let above = self.above();
        Store {
            base: above.base.clone().join(partition.to_string()),
            display_url: format!("{}/{partition}", above.display_url),
            ..above
        }
    }

    pub(crate) fn destination(&self) -> &Destination {
        &self.destination
    }

    /// Waits until multipart uploads that were dropped are aborted. If the process ended earlier, their
    /// parts would stay in the bucket.
    pub(crate) async fn aborted(&self) {
        let aborts = match self.aborts.lock() {
            Ok(mut aborts) => std::mem::take(&mut *aborts),
            Err(_) => return,
        };
        for abort in aborts {
            // A failure was logged by the task.
            let _ = abort.await;
        }
    }

    pub(crate) fn env(&self) -> &Arc<dyn Env> {
        &self.env
    }

    /// An object's URL, as it is printed.
    pub(crate) fn display_url(&self, key: &str) -> String {
        format!("{}/{key}", self.display_url)
    }

    fn path(&self, key: &str) -> Path {
        key.split('/')
            .fold(self.base.clone(), |path, segment| path.join(segment))
    }

    /// The key of a path that was listed.
    fn key_of(&self, path: &Path) -> Option<String> {
        let rest = path.as_ref().strip_prefix(self.base.as_ref())?;
        Some(rest.strip_prefix('/')?.to_owned())
    }

    /// Waits until the rate limiter admits so many bytes of files. Call it before the request begins, so
    /// that the wait is no part of the request's time limit.
    pub(crate) async fn turn(&self, bytes: u64) {
        if let Some(limiter) = &self.rate_limiter {
            limiter.turn(&*self.env, bytes).await;
        }
    }

    /// Returns a function to call before each attempt to send so many bytes. The first attempt has waited
    /// for its turn; a retry has only backed off and is charged, so that later turns wait for it.
    fn attempts_at(&self, bytes: u64) -> impl FnMut() + '_ {
        let mut had_its_turn = true;
        move || {
            if !std::mem::take(&mut had_its_turn)
                && let Some(limiter) = &self.rate_limiter
            {
                limiter.charge(&*self.env, bytes);
            }
        }
    }

    /// Writes an object whose key no other writer uses, so that a second attempt writes the same bytes.
    pub(crate) async fn put(&self, key: &str, bytes: Bytes) -> Result<(), Error> {
        self.write(None, key, bytes, || {}).await
    }

    /// As [`Store::put`], for a file that has waited for its [`turn`](Store::turn).
    pub(crate) async fn put_file(&self, key: &str, bytes: Bytes) -> Result<(), Error> {
        let attempts = self.attempts_at(bytes.len() as u64);
        self.write(Some(&self.lanes), key, bytes, attempts).await
    }

    async fn write(
        &self,
        lanes: Option<&Lanes>,
        key: &str,
        bytes: Bytes,
        mut before_each: impl FnMut(),
    ) -> Result<(), Error> {
        let path = self.path(key);
        self.attempt_in(lanes, "write", key, || {
            before_each();
            self.inner.put_opts(
                &path,
                PutPayload::from_bytes(bytes.clone()),
                PutOptions::default(),
            )
        })
        .await?;
        Ok(())
    }

    /// Replaces an object if it is still the given version, or creates it if there is none. Not retried.
    pub(crate) async fn swap(
        &self,
        key: &str,
        bytes: Bytes,
        expected: Option<&UpdateVersion>,
    ) -> Result<Swap, Error> {
        let mode = expected.map_or(PutMode::Create, |v| PutMode::Update(v.clone()));
        let path = self.path(key);
        let request = self
            .inner
            .put_opts(&path, PutPayload::from_bytes(bytes), mode.into());
        use object_store::Error as E;
        Ok(
            match within(&*self.env, self.retries.silence, request).await {
                Some(Ok(done)) => Swap::Done(UpdateVersion {
                    e_tag: done.e_tag,
                    version: done.version,
                }),
                Some(Err(
                    E::Precondition { .. } | E::AlreadyExists { .. } | E::NotModified { .. },
                )) => Swap::Lost,
                Some(Err(source)) if is_no_bucket(&source) => return Err(self.no_bucket()),
                // Some stores return this error for an update of an object that does not exist.
                Some(Err(E::NotFound { .. })) => Swap::Lost,
                Some(Err(source)) if !is_transient(&source) => {
                    return Err(Error::Denied {
                        what: "swap",
                        object: self.display_url(key),
                        source,
                    });
                }
                Some(Err(source)) => Swap::Unknown(StoreFailure::Failed(source)),
                None => Swap::Unknown(StoreFailure::Silent(self.retries.silence)),
            },
        )
    }

    /// Whether the object exists and has this size.
    pub(crate) async fn has(&self, key: &str, size: u64) -> Result<bool, Error> {
        let path = self.path(key);
        match self
            .attempt("look at", key, || self.inner.head(&path))
            .await
        {
            Ok(meta) => Ok(meta.size == size),
            Err(Error::Missing { .. }) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Whether the object exists.
    pub(crate) async fn holds(&self, key: &str) -> Result<bool, Error> {
        let path = self.path(key);
        match self
            .attempt("look at", key, || self.inner.head(&path))
            .await
        {
            Ok(_) => Ok(true),
            Err(Error::Missing { .. }) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// What tells whether an object is still the one that was read; `None` if it does not exist.
    pub(crate) async fn version(&self, key: &str) -> Result<Option<ObjectVersion>, Error> {
        let path = self.path(key);
        match self
            .attempt("look at", key, || self.inner.head(&path))
            .await
        {
            Ok(meta) => Ok(Some(ObjectVersion::of(&meta))),
            Err(Error::Missing { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// An object as a list shows it; `None` if it does not exist.
    pub(crate) async fn look_up(&self, key: &str) -> Result<Option<Listed>, Error> {
        let path = self.path(key);
        match self
            .attempt("look at", key, || self.inner.head(&path))
            .await
        {
            Ok(meta) => Ok(Some(Listed {
                key: key.to_owned(),
                size: meta.size,
                modified_ms: meta.last_modified.timestamp_millis(),
            })),
            Err(Error::Missing { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Names of the directories at the destination: the partitions', and others beside them.
    pub(crate) async fn directories(&self) -> Result<Vec<String>, Error> {
        let above = self.above();
        let prefix = self.destination.prefix();
        let listed = above
            .attempt("list", "", || self.inner.list_with_delimiter(Some(prefix)))
            .await?;
        let names = listed.common_prefixes.iter();
        Ok(names
            .filter_map(|path| path.filename().map(ToOwned::to_owned))
            .collect())
    }

    /// Whether [`Store::link`] may succeed.
    pub(crate) fn links(&self) -> bool {
        self.destination.local().is_some_and(LocalStore::links)
    }

    /// Creates an object as a hard link of a local file, where that is possible.
    pub(crate) async fn link(&self, key: &str, file: &std::path::Path) -> Result<bool, Error> {
        let Some(local) = self.destination.local() else {
            return Ok(false);
        };
        local
            .link(&self.path(key), file)
            .await
            .map_err(|source| Error::Io {
                what: "link",
                path: file.to_owned(),
                source,
            })
    }

    /// Whether an object shares its bytes with a local file although copies are required.
    pub(crate) async fn is_unwanted_link(&self, key: &str, file: Option<&std::path::Path>) -> bool {
        match (self.destination.local(), file) {
            (Some(local), Some(file)) if !local.links() => {
                local.is_same_file(&self.path(key), file).await
            }
            _ => false,
        }
    }

    /// Lists all keys, in order. A failed page is requested again.
    pub(crate) fn list(&self) -> BoxStream<'static, Result<Listed, Error>> {
        struct State {
            store: Store,
            pages: BoxStream<'static, object_store::Result<ObjectMeta>>,
            last: Option<Path>,
            breaks: u32,
        }
        let state = State {
            pages: self.inner.list(Some(&self.base)),
            store: self.clone(),
            last: None,
            breaks: 0,
        };
        stream::try_unfold(state, |mut s| async move {
            loop {
                let silence = s.store.retries.silence;
                let failure = match within(&*s.store.env, silence, s.pages.next()).await {
                    None => StoreFailure::Silent(silence),
                    Some(None) => return Ok(None),
                    Some(Some(Ok(meta))) => {
                        s.breaks = 0;
                        let Some(key) = s.store.key_of(&meta.location) else {
                            continue;
                        };
                        s.last = s.last.max(Some(meta.location));
                        let listed = Listed {
                            key,
                            size: meta.size,
                            modified_ms: meta.last_modified.timestamp_millis(),
                        };
                        return Ok(Some((listed, s)));
                    }
                    Some(Some(Err(source))) if is_no_bucket(&source) => {
                        return Err(s.store.no_bucket());
                    }
                    Some(Some(Err(source))) if !is_transient(&source) => {
                        return Err(Error::Denied {
                            what: "list",
                            object: s.store.display_url.clone(),
                            source,
                        });
                    }
                    Some(Some(Err(source))) => StoreFailure::Failed(source),
                };
                s.breaks += 1;
                s.store.again("list", "", s.breaks, failure).await?;
                s.pages = match &s.last {
                    Some(last) => s.store.inner.list_with_offset(Some(&s.store.base), last),
                    None => s.store.inner.list(Some(&s.store.base)),
                };
            }
        })
        .boxed()
    }
}

/// What tells whether an object is still the one that was read. A local directory has no ETag of a large object.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct ObjectVersion {
    pub size: u64,
    pub modified_ms: i64,
    pub e_tag: Option<String>,
    pub version: Option<String>,
}

impl ObjectVersion {
    fn of(meta: &ObjectMeta) -> ObjectVersion {
        ObjectVersion {
            size: meta.size,
            modified_ms: meta.last_modified.timestamp_millis(),
            e_tag: meta.e_tag.clone(),
            version: meta.version.clone(),
        }
    }
}

/// A listed object.
#[derive(Clone, Debug)]
pub(crate) struct Listed {
    pub key: String,
    pub size: u64,
    /// When it was written, by the store's clock, in milliseconds since the epoch.
    pub modified_ms: i64,
}
