//! An object store that counts the requests that S3 would get.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use async_trait::async_trait;
use futures::stream::BoxStream;
use futures::{StreamExt as _, TryStreamExt as _};
use object_store::path::Path;
use object_store::{
    CopyOptions, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore,
    PutMultipartOptions, PutOptions, PutPayload, PutResult, Result, UploadPart,
};

/// Keys of a page of a list, and of a bulk delete.
const BULK: u64 = 1000;
/// Bytes of a part as S3 would get it.
const PART: u64 = 8 << 20;

/// An object store that counts requests: see the module.
#[derive(Debug)]
pub struct Counting {
    inner: Arc<dyn ObjectStore>,
    counts: Arc<Counts>,
}

#[derive(Debug, Default)]
struct Counts {
    requests: AtomicU64,
    parts: AtomicU64,
    uploads: AtomicU64,
    listed: AtomicU64,
    deleted: AtomicU64,
    lists: AtomicU64,
}

impl Counting {
    pub fn new(inner: Arc<dyn ObjectStore>) -> Counting {
        Counting {
            inner,
            counts: Arc::default(),
        }
    }

    pub fn inner(&self) -> &Arc<dyn ObjectStore> {
        &self.inner
    }

    pub fn parts(&self) -> u64 {
        self.counts.parts.load(Ordering::Relaxed)
    }

    pub fn multipart_uploads(&self) -> u64 {
        self.counts.uploads.load(Ordering::Relaxed)
    }

    pub fn requests(&self) -> u64 {
        let get = |count: &AtomicU64| count.load(Ordering::Relaxed);
        let pages = match get(&self.counts.lists) {
            0 => 0,
            lists => get(&self.counts.listed).div_ceil(BULK).max(lists),
        };
        get(&self.counts.requests) + pages + get(&self.counts.deleted).div_ceil(BULK)
    }

    fn one(&self) {
        self.counts.requests.fetch_add(1, Ordering::Relaxed);
    }
}

impl fmt::Display for Counting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.inner.fmt(f)
    }
}

#[async_trait]
impl ObjectStore for Counting {
    async fn put_opts(
        &self,
        location: &Path,
        payload: PutPayload,
        opts: PutOptions,
    ) -> Result<PutResult> {
        self.one();
        self.inner.put_opts(location, payload, opts).await
    }

    async fn put_multipart_opts(
        &self,
        location: &Path,
        opts: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>> {
        self.one();
        self.counts.uploads.fetch_add(1, Ordering::Relaxed);
        Ok(Box::new(Upload {
            inner: self.inner.put_multipart_opts(location, opts).await?,
            counts: self.counts.clone(),
            bytes: 0,
        }))
    }

    async fn get_opts(&self, location: &Path, options: GetOptions) -> Result<GetResult> {
        self.one();
        self.inner.get_opts(location, options).await
    }

    fn delete_stream(
        &self,
        locations: BoxStream<'static, Result<Path>>,
    ) -> BoxStream<'static, Result<Path>> {
        let counts = self.counts.clone();
        self.inner.delete_stream(
            locations
                .inspect_ok(move |_| {
                    counts.deleted.fetch_add(1, Ordering::Relaxed);
                })
                .boxed(),
        )
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        let counts = self.counts.clone();
        counts.lists.fetch_add(1, Ordering::Relaxed);
        self.inner
            .list(prefix)
            .inspect_ok(move |_| {
                counts.listed.fetch_add(1, Ordering::Relaxed);
            })
            .boxed()
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        self.one();
        self.inner.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        self.one();
        self.inner.copy_opts(from, to, options).await
    }
}

#[derive(Debug)]
struct Upload {
    inner: Box<dyn MultipartUpload>,
    counts: Arc<Counts>,
    bytes: u64,
}

impl Upload {
    fn count(&mut self, bytes: u64) {
        // A local directory takes smaller pieces than S3's parts.
        let before = self.bytes.div_ceil(PART);
        self.bytes += bytes;
        let parts = self.bytes.div_ceil(PART) - before;
        self.counts.parts.fetch_add(parts, Ordering::Relaxed);
        self.counts.requests.fetch_add(parts, Ordering::Relaxed);
    }
}

#[async_trait]
impl MultipartUpload for Upload {
    fn put_part(&mut self, data: PutPayload) -> UploadPart {
        self.count(data.content_length() as u64);
        self.inner.put_part(data)
    }

    async fn complete(&mut self) -> Result<PutResult> {
        self.counts.requests.fetch_add(1, Ordering::Relaxed);
        self.inner.complete().await
    }

    async fn abort(&mut self) -> Result<()> {
        self.counts.requests.fetch_add(1, Ordering::Relaxed);
        self.inner.abort().await
    }
}
