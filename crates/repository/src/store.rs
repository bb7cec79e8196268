//! One partition's objects, with retries.
//!
//! Everything that the protocol does to the object store goes through here. A transient failure (a
//! 5xx, a broken connection, no answer) is tried again with back-off, within one budget for the
//! whole operation; a refusal is not. A compare-and-swap is tried exactly once: its failure may be
//! a success whose answer got lost, and only its caller can find out which.
//!
//! Keys are those of [`crate::layout`], below the partition's prefix.

use std::collections::HashSet;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures::StreamExt as _;
use futures::stream::{self, BoxStream};
use object_store::multipart::{MultipartStore, PartId};
use object_store::path::Path;
use object_store::{
    GetOptions, GetRange, GetResult, ObjectMeta, ObjectStore, ObjectStoreExt as _, PutMode,
    PutOptions, PutPayload, UpdateVersion,
};
use tokio::task::JoinHandle;

use crate::destination::{Destination, LocalStore};
use crate::env::{Env, within};
use crate::error::{Error, StoreFailure};
use crate::ids::PartitionId;
use crate::lanes::Lanes;
use crate::rate_limiter::RateLimiter;
use crate::repository::Options;
use crate::watchdog::{Ticks, within_progress};

/// How hard a store is tried.
#[derive(Clone, Copy, Debug)]
pub struct Retries {
    /// Attempts at one request, at least 1. Six of them, with back-off, wait out some seconds of trouble.
    pub attempts: u32,
    /// Second and later attempts at all requests of one operation (a put, a restore, a sweep)
    /// together, so that a store that fails half the time is not asked for ever.
    pub budget: u32,
    /// Before the second attempt, at most; doubles each time.
    pub first_wait: Duration,
    /// Between two attempts, at most.
    pub longest_wait: Duration,
    /// How long a store may take nothing and say nothing before a request counts as failed.
    pub silence: Duration,
}

impl Default for Retries {
    fn default() -> Retries {
        Retries {
            attempts: 6,
            budget: 100,
            first_wait: Duration::from_millis(200),
            longest_wait: Duration::from_secs(10),
            silence: Duration::from_secs(60),
        }
    }
}

/// Keys of one request that deletes: what S3 takes.
const DELETED_AT_ONCE: usize = 1000;
/// Such requests under way at a time.
const DELETE_REQUESTS: usize = 8;
/// Attempts at one; what fails is left to the next sweep.
const DELETE_ATTEMPTS: u32 = 3;

/// What became of a compare-and-swap.
pub(crate) enum Swap {
    /// It was done.
    Done(UpdateVersion),
    /// The object was another one, or so the store says.
    Lost,
    /// Nobody knows.
    Unknown(StoreFailure),
}

/// Where the bytes of an object go, in order.
pub(crate) trait Sink: Send {
    /// Takes some.
    fn take(&mut self, bytes: Bytes) -> impl Future<Output = Result<(), Error>> + Send;
}

/// See the module.
#[derive(Clone)]
pub(crate) struct Store {
    inner: Arc<dyn ObjectStore>,
    multipart: Option<Arc<dyn MultipartStore>>,
    destination: Destination,
    base: Path,
    shown: String,
    env: Arc<dyn Env>,
    retries: Retries,
    pace: Option<RateLimiter>,
    lanes: Lanes,
    left: Arc<AtomicU32>,
    /// Uploads in parts that were dropped and are being aborted.
    aborts: Arc<Mutex<Vec<JoinHandle<()>>>>,
}

impl std::fmt::Debug for Store {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Store").field(&self.shown).finish()
    }
}

/// Whether another attempt makes sense.
fn is_transient(error: &object_store::Error) -> bool {
    use object_store::Error as E;
    match error {
        E::NotFound { .. }
        | E::AlreadyExists { .. }
        | E::Precondition { .. }
        | E::NotModified { .. }
        | E::PermissionDenied { .. }
        | E::Unauthenticated { .. }
        | E::NotSupported { .. }
        | E::NotImplemented { .. }
        | E::InvalidPath { .. }
        | E::UnknownConfigurationKey { .. } => false,
        // A full disk does not go away by asking again.
        other => !has_full_disk(other),
    }
}

/// Whether a store says that there is no such bucket: S3 answers so with a code in the body, and as if
/// the object were missing.
pub(crate) fn is_no_bucket(error: &object_store::Error) -> bool {
    error.to_string().contains("<Code>NoSuchBucket</Code>")
}

fn has_full_disk(error: &(dyn std::error::Error + 'static)) -> bool {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(io) = error.downcast_ref::<std::io::Error>()
            && matches!(
                io.kind(),
                std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded
            )
        {
            return true;
        }
        next = error.source();
    }
    false
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
            shown: format!("{}/{partition}", destination.shown().trim_end_matches('/')),
            env,
            retries: options.retries,
            pace: options.pace.clone(),
            lanes: Lanes::new(),
            left: Arc::new(AtomicU32::new(options.retries.budget)),
            aborts: Arc::default(),
        }
    }

    /// The same, with a budget of its own: for one operation.
    pub(crate) fn operation(&self) -> Store {
        let mut store = self.clone();
        store.left = Arc::new(AtomicU32::new(self.retries.budget));
        store.lanes = Lanes::new();
        store
    }

    fn no_bucket(&self) -> Error {
        Error::NoBucket {
            destination: self.destination.shown().to_owned(),
        }
    }

    /// The same, of what lies beside the partitions: keys are below the destination.
    pub(crate) fn above(&self) -> Store {
        Store {
            base: self.destination.prefix().clone(),
            shown: self.destination.shown().trim_end_matches('/').to_owned(),
            ..self.clone()
        }
    }

    /// The same, of another partition at the destination.
    pub(crate) fn of_partition(&self, partition: PartitionId) -> Store {
        let above = self.above();
        Store {
            base: above.base.clone().join(partition.to_string()),
            shown: format!("{}/{partition}", above.shown),
            ..above
        }
    }

    pub(crate) fn destination(&self) -> &Destination {
        &self.destination
    }

    /// Waits until uploads in parts that were dropped are aborted: who ends the process next would
    /// leave them behind.
    pub(crate) async fn aborted(&self) {
        let aborts = match self.aborts.lock() {
            Ok(mut aborts) => std::mem::take(&mut *aborts),
            Err(_) => return,
        };
        for abort in aborts {
            // What went wrong was logged.
            let _ = abort.await;
        }
    }

    pub(crate) fn env(&self) -> &Arc<dyn Env> {
        &self.env
    }

    /// An object's URL, for people.
    pub(crate) fn shown(&self, key: &str) -> String {
        format!("{}/{key}", self.shown)
    }

    fn path(&self, key: &str) -> Path {
        key.split('/')
            .fold(self.base.clone(), |path, segment| path.join(segment))
    }

    /// What is below the prefix of a path that was listed.
    fn key_of(&self, path: &Path) -> Option<String> {
        let rest = path.as_ref().strip_prefix(self.base.as_ref())?;
        Some(rest.strip_prefix('/')?.to_owned())
    }

    /// Tries until it works, is refused, or the budget is spent.
    async fn attempt<T, F>(
        &self,
        what: &'static str,
        key: &str,
        request: impl FnMut() -> F,
    ) -> Result<T, Error>
    where
        F: Future<Output = object_store::Result<T>>,
    {
        self.attempt_in(None, what, key, request).await
    }

    /// The same, each attempt in a lane, if there are some.
    async fn attempt_in<T, F>(
        &self,
        lanes: Option<&Lanes>,
        what: &'static str,
        key: &str,
        mut request: impl FnMut() -> F,
    ) -> Result<T, Error>
    where
        F: Future<Output = object_store::Result<T>>,
    {
        let mut attempts = 0;
        loop {
            attempts += 1;
            let lane = match lanes {
                Some(lanes) => Some(lanes.enter().await),
                None => None,
            };
            let failure = match within_progress(&*self.env, self.retries.silence, request()).await {
                Some(Ok(done)) => {
                    if let Some(lane) = lane {
                        lane.went_well();
                    }
                    return Ok(done);
                }
                Some(Err(source)) if is_no_bucket(&source) => return Err(self.no_bucket()),
                Some(Err(object_store::Error::NotFound { .. })) => {
                    return Err(Error::Missing {
                        object: self.shown(key),
                    });
                }
                Some(Err(source)) if !is_transient(&source) => {
                    return Err(Error::Denied {
                        what,
                        object: self.shown(key),
                        source,
                    });
                }
                Some(Err(source)) => StoreFailure::Failed(source),
                None => StoreFailure::Silent(self.retries.silence),
            };
            // A store that takes nothing is not tried as often for each file as for one.
            let in_a_row = lane.map_or(0, |lane| lane.failed());
            self.again(what, key, attempts.max(in_a_row), failure)
                .await?;
        }
    }

    /// Waits before the next attempt, if there is one.
    async fn again(
        &self,
        what: &'static str,
        key: &str,
        attempts: u32,
        failure: StoreFailure,
    ) -> Result<(), Error> {
        let spent = self
            .left
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| {
                left.checked_sub(1)
            })
            .is_err();
        if attempts >= self.retries.attempts || spent {
            return Err(Error::Store {
                what,
                object: self.shown(key),
                attempts,
                source: failure,
            });
        }
        tracing::debug!(object = self.shown(key), attempts, %failure, "Trying again to {what}");
        metrics::counter!("esker_repository_retries_total").increment(1);
        self.env.sleep(self.wait_after(attempts)).await;
        Ok(())
    }

    /// Between half and all of the wait, so that many do not come back at once.
    pub(crate) fn wait_after(&self, attempts: u32) -> Duration {
        let doubled = self.retries.first_wait * 2_u32.pow(attempts.saturating_sub(1).min(16));
        let most = doubled.min(self.retries.longest_wait);
        let share = 500 + u32::try_from(self.env.random() % 500).unwrap_or(0);
        most * share / 1000
    }

    /// Reads a small object whole; it must not be larger than `most` bytes.
    pub(crate) async fn get(&self, key: &str, most: u64) -> Result<(Bytes, UpdateVersion), Error> {
        let path = self.path(key);
        let got = self
            .attempt("read", key, || async {
                let got = self.inner.get_opts(&path, GetOptions::default()).await?;
                let version = UpdateVersion {
                    e_tag: got.meta.e_tag.clone(),
                    version: got.meta.version.clone(),
                };
                let size = got.meta.size;
                if size > most {
                    return Ok(Err(size));
                }
                let mut bytes = BytesMut::with_capacity(usize::try_from(size).unwrap_or(0));
                let mut body = got.into_stream();
                let ticks = Ticks::of_task();
                while let Some(chunk) = body.next().await {
                    let chunk = chunk?;
                    ticks.tick();
                    // The size is only what the store said.
                    if bytes.len() + chunk.len() > usize::try_from(most).unwrap_or(usize::MAX) {
                        return Ok(Err((bytes.len() + chunk.len()) as u64));
                    }
                    bytes.extend_from_slice(&chunk);
                }
                if bytes.len() as u64 != size {
                    return Err(short(&path, bytes.len() as u64, size));
                }
                Ok(Ok((bytes.freeze(), version)))
            })
            .await?;
        got.map_err(|size| Error::Damaged {
            object: self.shown(key),
            why: format!("it has {size} bytes, and no such object has more than {most}"),
        })
    }

    /// Begins to read an object from an offset on. The caller reads on where it breaks off.
    pub(crate) async fn open(&self, key: &str, offset: u64) -> Result<GetResult, Error> {
        let path = self.path(key);
        self.attempt("read", key, || {
            let options = GetOptions {
                range: (offset > 0).then_some(GetRange::Offset(offset)),
                ..GetOptions::default()
            };
            self.inner.get_opts(&path, options)
        })
        .await
    }

    /// Reads an object's bytes in order, to the end, going on where a connection breaks; the
    /// object must have `size` bytes.
    pub(crate) async fn read_all(
        &self,
        key: &str,
        size: u64,
        sink: &mut impl Sink,
    ) -> Result<(), Error> {
        let mut offset = 0;
        let mut breaks = 0;
        'connection: loop {
            let got = self.open(key, offset).await?;
            if got.meta.size != size {
                return Err(Error::Damaged {
                    object: self.shown(key),
                    why: format!("it has {} bytes instead of {size}", got.meta.size),
                });
            }
            let mut body = got.into_stream();
            let failure = loop {
                match within(&*self.env, self.retries.silence, body.next()).await {
                    Some(Some(Ok(chunk))) => {
                        offset += chunk.len() as u64;
                        if offset > size {
                            return Err(Error::Damaged {
                                object: self.shown(key),
                                why: format!("more than {size} bytes came"),
                            });
                        }
                        sink.take(chunk).await?;
                        // It goes forward: what broke before is forgiven, but for the budget.
                        breaks = 0;
                    }
                    Some(Some(Err(source))) => break StoreFailure::Failed(source),
                    Some(None) if offset == size => return Ok(()),
                    Some(None) => {
                        break StoreFailure::Failed(short(&self.path(key), offset, size));
                    }
                    None => break StoreFailure::Silent(self.retries.silence),
                }
            };
            breaks += 1;
            self.again("read", key, breaks, failure).await?;
            if offset == size {
                break 'connection Ok(());
            }
        }
    }

    /// Waits until so many bytes of files may be sent. The requests that send them do not wait: time
    /// that is spent here is none of a request's, and no store is kept waiting for what it was
    /// promised.
    pub(crate) async fn turn(&self, bytes: u64) {
        if let Some(pace) = &self.pace {
            pace.turn(&*self.env, bytes).await;
        }
    }

    /// To be called before each attempt to send so many bytes. The first one had its turn; others have
    /// waited for their back-off and go at once, and what comes later waits for them.
    fn attempts_at(&self, bytes: u64) -> impl FnMut() + '_ {
        let mut had_its_turn = true;
        move || {
            if !std::mem::take(&mut had_its_turn)
                && let Some(pace) = &self.pace
            {
                pace.charge(&*self.env, bytes);
            }
        }
    }

    /// Writes an object that nobody else writes: a second attempt writes the same.
    pub(crate) async fn put(&self, key: &str, bytes: Bytes) -> Result<(), Error> {
        self.write(None, key, bytes, || {}).await
    }

    /// As [`Store::put`], for a file, which had its [`turn`](Store::turn).
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

    /// Replaces an object if it is still the given version, or makes it if there is none. Once.
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
                // Some stores answer an update of an object that is gone so.
                Some(Err(E::NotFound { .. })) => Swap::Lost,
                Some(Err(source)) if !is_transient(&source) => {
                    return Err(Error::Denied {
                        what: "swap",
                        object: self.shown(key),
                        source,
                    });
                }
                Some(Err(source)) => Swap::Unknown(StoreFailure::Failed(source)),
                None => Swap::Unknown(StoreFailure::Silent(self.retries.silence)),
            },
        )
    }

    /// Whether an object of this size is there.
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

    /// Whether an object is there.
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

    /// Names of the directories at the destination: this partition's, and what lies beside it.
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

    /// Whether [`Store::link`] is worth a try.
    pub(crate) fn links(&self) -> bool {
        self.destination.local().is_some_and(LocalStore::links)
    }

    /// Makes an object of a local file without copying it, where that is possible.
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

    /// Whether an object shares its bytes with a local file although copies are wanted.
    pub(crate) async fn is_unwanted_link(&self, key: &str, file: Option<&std::path::Path>) -> bool {
        match (self.destination.local(), file) {
            (Some(local), Some(file)) if !local.links() => {
                local.is_same_file(&self.path(key), file).await
            }
            _ => false,
        }
    }

    /// Whether large objects can be written in parts that are tried again one by one.
    pub(crate) fn has_parts(&self) -> bool {
        self.multipart.is_some()
    }

    /// Begins to write an object in order, for stores without parts. Nothing is tried again.
    pub(crate) async fn begin_stream(
        &self,
        key: &str,
    ) -> Result<Box<dyn object_store::MultipartUpload>, Error> {
        let path = self.path(key);
        let begun = self
            .inner
            .put_multipart_opts(&path, object_store::PutMultipartOptions::default());
        begun.await.map_err(|source| self.write_failed(key, source))
    }

    pub(crate) fn write_failed(&self, key: &str, source: object_store::Error) -> Error {
        Error::Store {
            what: "write",
            object: self.shown(key),
            attempts: 1,
            source: source.into(),
        }
    }

    /// Begins to write an object in parts.
    pub(crate) async fn begin_parts(&self, key: &str) -> Result<MultipartUpload, Error> {
        let multipart = self
            .multipart
            .clone()
            .ok_or_else(|| Error::Invalid(format!("{} does not take parts", self.shown(key))))?;
        let path = self.path(key);
        let id = self
            .attempt("begin to write", key, || multipart.create_multipart(&path))
            .await?;
        Ok(MultipartUpload {
            store: self.clone(),
            multipart,
            key: key.to_owned(),
            path,
            id: Some(id),
        })
    }

    /// Lists all keys, in order. A failed page is asked for again.
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
                            object: s.store.shown.clone(),
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

    /// Deletes objects, in bulk where the store can. What could not be deleted comes back; one that
    /// was gone already counts as deleted.
    pub(crate) async fn delete(&self, keys: Vec<String>) -> Vec<(String, Error)> {
        let mut requests = Vec::new();
        for chunk in keys.chunks(DELETED_AT_ONCE) {
            requests.push(self.delete_chunk(chunk.to_vec()));
        }
        let failed: Vec<Vec<_>> = stream::iter(requests)
            .buffered(DELETE_REQUESTS)
            .collect()
            .await;
        failed.into_iter().flatten().collect()
    }

    async fn delete_chunk(&self, mut keys: Vec<String>) -> Vec<(String, Error)> {
        let mut attempts = 1;
        loop {
            let failed = self.delete_at_once(&keys).await;
            if failed.is_empty() || attempts == DELETE_ATTEMPTS {
                return failed;
            }
            self.env.sleep(self.wait_after(attempts)).await;
            attempts += 1;
            keys = failed.into_iter().map(|(key, _)| key).collect();
        }
    }

    async fn delete_at_once(&self, keys: &[String]) -> Vec<(String, Error)> {
        let paths: Vec<_> = keys.iter().map(|key| Ok(self.path(key))).collect();
        let mut answers = self.inner.delete_stream(stream::iter(paths).boxed());
        // A request that fails may be one answer for many keys: what counts is which are said to be
        // gone.
        let mut gone = HashSet::new();
        let mut failure = None;
        loop {
            match within(&*self.env, self.retries.silence, answers.next()).await {
                Some(Some(Ok(path))) => {
                    gone.insert(path);
                }
                Some(Some(Err(object_store::Error::NotFound { path, .. }))) => {
                    gone.extend(Path::parse(path));
                }
                Some(Some(Err(source))) => {
                    failure.get_or_insert_with(|| source.to_string());
                }
                Some(None) => break,
                None => {
                    failure.get_or_insert_with(|| "no answer in time".to_owned());
                    break;
                }
            }
        }
        keys.iter()
            .filter(|key| !gone.contains(&self.path(key)))
            .map(|key| {
                let why = failure.as_deref().unwrap_or("the store does not say why");
                let source = object_store::Error::Generic {
                    store: "repository",
                    source: why.into(),
                };
                let error = Error::Store {
                    what: "delete",
                    object: self.shown(key),
                    attempts: 1,
                    source: source.into(),
                };
                (key.clone(), error)
            })
            .collect()
    }
}

fn short(path: &Path, got: u64, size: u64) -> object_store::Error {
    object_store::Error::Generic {
        store: "repository",
        source: format!("{path} broke off after {got} of {size} bytes").into(),
    }
}

/// A listed object.
#[derive(Clone, Debug)]
pub(crate) struct Listed {
    pub key: String,
    pub size: u64,
    /// By the store's clock, in milliseconds since the epoch.
    pub modified_ms: i64,
}

/// An object that is written in parts. Aborted when dropped, as far as that is possible then; better
/// is to call [`MultipartUpload::abort`].
pub(crate) struct MultipartUpload {
    store: Store,
    multipart: Arc<dyn MultipartStore>,
    key: String,
    path: Path,
    id: Option<object_store::MultipartId>,
}

impl MultipartUpload {
    fn id(&self) -> object_store::MultipartId {
        self.id.clone().unwrap_or_default()
    }

    /// Writes one.
    pub(crate) async fn put(&self, index: usize, bytes: Bytes) -> Result<PartId, Error> {
        let id = self.id();
        let mut before_each = self.store.attempts_at(bytes.len() as u64);
        self.store
            .attempt_in(
                Some(&self.store.lanes),
                "write a part of",
                &self.key,
                || {
                    before_each();
                    self.multipart.put_part(
                        &self.path,
                        &id,
                        index,
                        PutPayload::from_bytes(bytes.clone()),
                    )
                },
            )
            .await
    }

    /// Makes the object of its parts, in order.
    pub(crate) async fn complete(mut self, parts: Vec<PartId>, size: u64) -> Result<(), Error> {
        let id = self.id();
        let completed = self
            .store
            .attempt("complete", &self.key, || {
                self.multipart
                    .complete_multipart(&self.path, &id, parts.clone())
            })
            .await;
        let error = match completed {
            Ok(_) => {
                self.id = None;
                return Ok(());
            }
            Err(error) => error,
        };
        // The first attempt may have done it and lost its answer; then the upload is gone and the
        // object is there. Its key is of this upload alone, so it is no other's.
        if self.store.has(&self.key, size).await.unwrap_or(false) {
            self.id = None;
            return Ok(());
        }
        self.abort().await;
        Err(error)
    }

    /// Gives it up. What cannot be aborted now stays until the bucket's own rule removes it.
    pub(crate) async fn abort(mut self) {
        let Some(id) = self.id.take() else { return };
        let aborted = self
            .store
            .attempt("abort", &self.key, || {
                self.multipart.abort_multipart(&self.path, &id)
            })
            .await;
        if let Err(error) = aborted
            && !matches!(error, Error::Missing { .. })
        {
            tracing::warn!(%error, "An unfinished multipart upload is left behind");
        }
    }
}

impl Drop for MultipartUpload {
    fn drop(&mut self) {
        let Some(id) = self.id.take() else { return };
        let Ok(runtime) = tokio::runtime::Handle::try_current() else {
            return;
        };
        let (multipart, path) = (self.multipart.clone(), self.path.clone());
        let abort = runtime.spawn(async move {
            if let Err(error) = multipart.abort_multipart(&path, &id).await {
                tracing::warn!(%error, "An unfinished multipart upload is left behind");
            }
        });
        if let Ok(mut aborts) = self.store.aborts.lock() {
            aborts.retain(|earlier| !earlier.is_finished());
            aborts.push(abort);
        }
    }
}
