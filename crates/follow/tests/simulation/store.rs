//! An object store in memory that fails by chance, before or after it did what it was asked for, and whose list
//! may be behind.

use std::collections::VecDeque;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures::stream::BoxStream;
use futures::{StreamExt as _, TryStreamExt as _};
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::{
    CopyOptions, Error, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta,
    ObjectStore, PutMultipartOptions, PutOptions, PutPayload, PutResult, Result,
};
use parking_lot::Mutex;
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use tokio::time::Instant;

/// A store; clones are handles to the same one.
#[derive(Clone, Debug)]
pub struct Store {
    inner: Arc<InMemory>,
    luck: Arc<Mutex<Luck>>,
    lists: Arc<Mutex<Lists>>,
}

#[derive(Debug)]
struct Luck {
    rng: StdRng,
    fails: f64,
    delay: u64,
}

/// Lists that are as of an earlier moment.
#[derive(Default)]
struct Lists {
    /// How often a list is behind, and by how many milliseconds at most.
    chance: f64,
    lag: u64,
    /// What there was from each moment on, the newest last.
    past: VecDeque<(Instant, Vec<ObjectMeta>)>,
    /// Done once, before the next list is made.
    before: Option<Box<dyn FnOnce() + Send>>,
}

/// Most moments that are remembered.
const MAX_PAST: usize = 1000;

impl fmt::Debug for Lists {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "lists, {} ms behind", self.lag)
    }
}

impl fmt::Display for Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("store")
    }
}

impl Store {
    /// A request fails with this chance, and takes so many milliseconds at most.
    pub fn new(seed: u64, fails: f64, delay: u64) -> Store {
        Store {
            inner: Arc::default(),
            luck: Arc::new(Mutex::new(Luck {
                rng: StdRng::seed_from_u64(seed),
                fails,
                delay,
            })),
            lists: Arc::default(),
        }
    }

    /// From now on, this share of the lists is as of up to so many milliseconds ago.
    pub fn lag(&self, chance: f64, lag: u64) {
        let mut lists = self.lists.lock();
        (lists.chance, lists.lag) = (chance, lag);
    }

    /// Whether there is an object whose name begins with a cursor.
    pub async fn has_cursor(&self, cursor: u64) -> bool {
        let all: Vec<ObjectMeta> = self.inner.list(None).try_collect().await.unwrap();
        let begins = |object: &ObjectMeta| {
            let name = object.location.filename()?;
            name.split(['.', '-']).next()?.parse().ok()
        };
        all.iter().any(|object| begins(object) == Some(cursor))
    }

    /// Does this before the next list is made.
    pub fn before_list(&self, act: impl FnOnce() + Send + 'static) {
        self.lists.lock().before = Some(Box::new(act));
    }

    /// Remembers what there is from now on.
    async fn remember(&self) -> Result<()> {
        let now: Vec<ObjectMeta> = self.inner.list(None).try_collect().await?;
        let mut lists = self.lists.lock();
        lists.past.push_back((Instant::now(), now));
        if lists.past.len() > MAX_PAST {
            lists.past.pop_front();
        }
        Ok(())
    }

    /// A list that is behind, if this one is.
    fn earlier(&self) -> Option<Vec<ObjectMeta>> {
        let lists = self.lists.lock();
        let mut luck = self.luck.lock();
        if lists.chance == 0.0 || !luck.rng.random_bool(lists.chance) {
            return None;
        }
        let lag = Duration::from_millis(luck.rng.random_range(0..=lists.lag));
        let mut past = lists.past.iter().rev();
        let then = past.find(|(at, _)| at.elapsed() >= lag);
        Some(then.map(|(_, list)| list.clone()).unwrap_or_default())
    }

    pub fn fail(&self, fails: f64) {
        self.luck.lock().fails = fails;
    }

    async fn answer(&self) -> Result<()> {
        let (pause, fails) = {
            let mut luck = self.luck.lock();
            let Luck { fails, delay, .. } = *luck;
            let pause = luck.rng.random_range(0..=delay);
            (pause, fails > 0.0 && luck.rng.random_bool(fails))
        };
        if pause > 0 {
            tokio::time::sleep(Duration::from_millis(pause)).await;
        }
        match fails {
            true => Err(Error::Generic {
                store: "store",
                source: "it failed by chance".into(),
            }),
            false => Ok(()),
        }
    }
}

#[async_trait]
impl ObjectStore for Store {
    async fn put_opts(
        &self,
        location: &Path,
        payload: PutPayload,
        options: PutOptions,
    ) -> Result<PutResult> {
        self.answer().await?;
        let put = self.inner.put_opts(location, payload, options).await;
        self.remember().await?;
        self.answer().await?;
        put
    }

    async fn put_multipart_opts(
        &self,
        location: &Path,
        options: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>> {
        self.answer().await?;
        self.inner.put_multipart_opts(location, options).await
    }

    async fn get_opts(&self, location: &Path, options: GetOptions) -> Result<GetResult> {
        self.answer().await?;
        self.inner.get_opts(location, options).await
    }

    fn delete_stream(
        &self,
        locations: BoxStream<'static, Result<Path>>,
    ) -> BoxStream<'static, Result<Path>> {
        let store = self.clone();
        let deleted = locations.and_then(move |path| {
            let store = store.clone();
            async move {
                store.answer().await?;
                let one = futures::stream::iter([Ok(path.clone())]).boxed();
                let _: Vec<_> = store.inner.delete_stream(one).try_collect().await?;
                store.remember().await?;
                store.answer().await?;
                Ok(path)
            }
        });
        deleted.boxed()
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        let store = self.clone();
        let prefix = prefix.cloned();
        let listed = async move {
            store.answer().await?;
            let act = store.lists.lock().before.take();
            if let Some(act) = act {
                act();
            }
            let Some(mut earlier) = store.earlier() else {
                return Ok::<_, Error>(store.inner.list(prefix.as_ref()));
            };
            if let Some(prefix) = &prefix {
                earlier.retain(|object| object.location.prefix_match(prefix).is_some());
            }
            Ok(futures::stream::iter(earlier.into_iter().map(Ok)).boxed())
        };
        futures::stream::once(listed).try_flatten().boxed()
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        self.answer().await?;
        self.inner.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        self.answer().await?;
        self.inner.copy_opts(from, to, options).await
    }
}
