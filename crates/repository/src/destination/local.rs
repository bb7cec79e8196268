//! A local directory as an object store, with a compare-and-swap that is atomic between tasks and between
//! processes.
//!
//! An object is a regular file below the root, named by its key. It is first written to a file in `.tmp`
//! and synced. Then, under a lock of its key, the existing object is compared with what the caller expects,
//! the file is renamed into place, and the directory is synced. So no reader sees a partly written object,
//! and a put that was answered survives a power failure. (The `LocalFileSystem` of `object_store` does not
//! implement updates that depend on an ETag.)
//!
//! - `objects`: the operations on one object
//! - `tree`: opens directories by descriptors, so that no path leads out of the root
//! - `scratch`: `.tmp`, with unfinished files and locks
//! - `walk`: lists in the order of keys
//! - `upload`: writes objects in parts
//! - `direct`: writes a part past the operating system's cache
//!
//! Symlinks and special files are not objects: they are not listed, read, replaced or deleted. The same
//! applies to files whose names are not UTF-8 or have control characters. All file operations run on the
//! blocking threads of tokio, so they need a tokio runtime.

mod direct;
mod objects;
mod scratch;
mod tree;
mod upload;
mod walk;

use std::fmt;
use std::fs::File;
use std::io::{self, Write as _};
use std::ops::Range;
use std::os::unix::fs::FileExt as _;
use std::path::{Path as FsPath, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use futures::StreamExt as _;
use futures::stream::{self, BoxStream};
use object_store::path::Path;
use object_store::{
    CopyOptions, Error, GetOptions, GetResult, GetResultPayload, ListResult, MultipartUpload,
    ObjectMeta, ObjectStore, PutMultipartOptions, PutOptions, PutPayload, PutResult, Result,
};

pub use objects::TAGGED;
use objects::{Objects, split};
use tree::Tree;
use walk::Walk;

const STORE: &str = "local directory";

/// Bytes per chunk of a body that is read; each reader has one chunk in memory.
const CHUNK: u64 = 1024 * 1024;
/// Entries per step of a listing.
const PAGE: usize = 1000;
/// Deletes that run at a time.
const DELETES: usize = 8;

/// See the module. Cheap to clone.
#[derive(Clone)]
pub struct LocalStore {
    inner: Arc<Objects>,
}

/// The operation that failed, with the file; the source of [`Error::Generic`].
#[derive(Debug, thiserror::Error)]
#[error("cannot {what} {}: {source}", .path.display())]
pub struct LocalError {
    what: &'static str,
    path: PathBuf,
    source: io::Error,
}

impl LocalStore {
    /// Opens a store below a directory, which need not exist: the first put creates it, with its parents.
    ///
    /// Blocks: removes temporary files that crashed processes left there over 24 hours ago.
    ///
    /// # Errors
    ///
    /// The path is that of something else than a directory, or it is relative and the working directory
    /// does not exist.
    pub fn open(root: &FsPath, hard_links: bool) -> io::Result<LocalStore> {
        let root = std::path::absolute(root)?;
        match std::fs::metadata(&root) {
            Ok(meta) if !meta.is_dir() => return Err(io::ErrorKind::NotADirectory.into()),
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let tree = Tree::new(root);
        match scratch::clean(&tree) {
            Ok(0) => {}
            Ok(files) => {
                tracing::info!(root = %tree.root().display(), files, "Removed abandoned temporary files");
            }
            // The directory may be read-only.
            Err(error) => {
                tracing::debug!(root = %tree.root().display(), %error, "Temporary files not looked at");
            }
        }
        let inner = Arc::new(Objects { tree, hard_links });
        Ok(LocalStore { inner })
    }

    /// The directory, absolute.
    pub fn root(&self) -> &FsPath {
        self.inner.tree.root()
    }

    /// Whether a file may become an object by a hard link.
    pub fn links(&self) -> bool {
        self.inner.hard_links
    }

    /// Creates an object from a file by a hard link, without copying it. The file is synced first; its
    /// bytes must never change again. An existing object is not replaced; if it is a hard link of this file
    /// already, the call succeeds.
    ///
    /// `Ok(false)`: hard links are off or impossible (another file system, too many links, not permitted,
    /// not a regular file), and the content has to be put.
    ///
    /// # Errors
    ///
    /// [`io::ErrorKind::AlreadyExists`] if the object is another file; errors of the file system.
    pub async fn link(&self, location: &Path, source: &FsPath) -> io::Result<bool> {
        if !self.inner.hard_links {
            return Ok(false);
        }
        let (inner, location, source) =
            (self.inner.clone(), location.clone(), source.to_path_buf());
        match tokio::task::spawn_blocking(move || inner.link(&location, &source)).await {
            Ok(linked) => linked,
            Err(error) => Err(io::Error::other(error)),
        }
    }
}

impl LocalStore {
    /// Whether an object is a hard link of a file, so that damage to the bytes of one is damage to the
    /// other. If one of the two cannot be examined, the answer is no.
    pub async fn is_same_file(&self, location: &Path, source: &FsPath) -> bool {
        use std::os::unix::fs::MetadataExt as _;
        let object = self.inner.path(location);
        let source = source.to_path_buf();
        let look = move || {
            let identity = |path: &FsPath| {
                let found = std::fs::symlink_metadata(path).ok()?;
                Some((found.dev(), found.ino()))
            };
            let object = identity(&object);
            object.is_some() && object == identity(&source)
        };
        tokio::task::spawn_blocking(look).await.unwrap_or(false)
    }
}

impl fmt::Debug for LocalStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("LocalStore").field(&self.root()).finish()
    }
}

impl fmt::Display for LocalStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{STORE} {}", self.root().display())
    }
}

/// Runs `work` on a thread that may block. A panic of `work` is resumed in the caller. A caller that stops
/// waiting does not stop the work.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => done,
        Err(error) => match error.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            Err(cancelled) => Err(Error::Generic {
                store: STORE,
                source: cancelled.into(),
            }),
        },
    }
}

/// Converts an error of the file system into one of the store, by what the caller can do.
fn failed(what: &'static str, path: PathBuf) -> impl FnOnce(io::Error) -> Error {
    move |source| {
        let kind = source.kind();
        let shown = path.display().to_string();
        let source = Box::new(LocalError { what, path, source });
        match kind {
            io::ErrorKind::NotFound => Error::NotFound {
                path: shown,
                source,
            },
            io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => {
                Error::PermissionDenied {
                    path: shown,
                    source,
                }
            }
            _ => Error::Generic {
                store: STORE,
                source,
            },
        }
    }
}

/// A range of a file, in chunks.
fn body(file: File, path: PathBuf, range: Range<u64>) -> BoxStream<'static, Result<Bytes>> {
    let state = (Arc::new(file), Arc::new(path), range);
    stream::try_unfold(state, async |(file, path, range)| {
        if range.is_empty() {
            return Ok(None);
        }
        let end = range.end.min(range.start + CHUNK);
        let (read_file, read_path) = (file.clone(), path.clone());
        let chunk = blocking(move || {
            let length = usize::try_from(end - range.start).unwrap_or(0);
            let mut buffer = vec![0; length];
            read_file
                .read_exact_at(&mut buffer, range.start)
                .map_err(failed("read", read_path.to_path_buf()))?;
            Ok(Bytes::from(buffer))
        });
        Ok(Some((chunk.await?, (file, path, end..range.end))))
    })
    .boxed()
}

#[async_trait]
impl ObjectStore for LocalStore {
    async fn put_opts(
        &self,
        location: &Path,
        payload: PutPayload,
        opts: PutOptions,
    ) -> Result<PutResult> {
        if !opts.attributes.is_empty() {
            return Err(not_implemented("attributes"));
        }
        let (inner, location) = (self.inner.clone(), location.clone());
        blocking(move || {
            split(&location)?;
            let fail = |what| failed(what, inner.path(&location));
            let mut temp = scratch::temp(&inner.tree).map_err(fail("make a file for"))?;
            for chunk in &payload {
                temp.file.write_all(chunk).map_err(fail("write"))?;
            }
            drop(payload);
            inner.publish(temp, &location, &opts.mode)
        })
        .await
    }

    async fn put_multipart_opts(
        &self,
        location: &Path,
        opts: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>> {
        if !opts.attributes.is_empty() {
            return Err(not_implemented("attributes"));
        }
        let (inner, location) = (self.inner.clone(), location.clone());
        blocking(move || {
            split(&location)?;
            let temp = scratch::temp(&inner.tree)
                .map_err(failed("make a file for", inner.path(&location)))?;
            let upload = upload::Upload::new(inner, location, temp);
            Ok(Box::new(upload) as Box<dyn MultipartUpload>)
        })
        .await
    }

    async fn get_opts(&self, location: &Path, options: GetOptions) -> Result<GetResult> {
        if options.version.is_some() {
            return Err(not_implemented("versions"));
        }
        let (inner, wanted) = (self.inner.clone(), location.clone());
        let (file, meta) = blocking(move || inner.get(&wanted)).await?;
        options.check_preconditions(&meta)?;
        let range = match &options.range {
            None => 0..meta.size,
            Some(range) => range.as_range(meta.size).map_err(|why| Error::Generic {
                store: STORE,
                source: why.into(),
            })?,
        };
        let payload = if options.head {
            stream::empty().boxed()
        } else {
            body(file, self.inner.path(location), range.clone())
        };
        Ok(GetResult {
            payload: GetResultPayload::Stream(payload),
            meta,
            range,
            attributes: Default::default(),
            extensions: Default::default(),
        })
    }

    /// As in S3, deleting an object that does not exist succeeds.
    fn delete_stream(
        &self,
        locations: BoxStream<'static, Result<Path>>,
    ) -> BoxStream<'static, Result<Path>> {
        let inner = self.inner.clone();
        locations
            .map(move |location| {
                let inner = inner.clone();
                async move {
                    let location = location?;
                    blocking(move || inner.delete(&location).map(|()| location)).await
                }
            })
            .buffered(DELETES)
            .boxed()
    }

    /// Lists in the order of keys.
    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        self.list_with_offset(prefix, &Path::ROOT)
    }

    fn list_with_offset(
        &self,
        prefix: Option<&Path>,
        offset: &Path,
    ) -> BoxStream<'static, Result<ObjectMeta>> {
        let inner = self.inner.clone();
        let prefix = prefix.cloned().unwrap_or_default();
        let offset = offset.to_string();
        let pages = stream::try_unfold(None, move |walk: Option<Walk>| {
            let (inner, prefix, offset) = (inner.clone(), prefix.clone(), offset.clone());
            blocking(move || {
                let mut walk = match walk {
                    Some(walk) => walk,
                    None => Walk::new(&inner.tree, &prefix, offset)
                        .map_err(failed("list", inner.path(&prefix)))?,
                };
                let page = walk
                    .next(PAGE)
                    .map_err(failed("list", inner.path(&prefix)))?;
                Ok((!page.is_empty()).then_some((page, Some(walk))))
            })
        });
        pages
            .map(|page| match page {
                Ok(page) => stream::iter(page.into_iter().map(Ok).collect::<Vec<_>>()),
                Err(error) => stream::iter(vec![Err(error)]),
            })
            .flatten()
            .boxed()
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        let inner = self.inner.clone();
        let prefix = prefix.cloned().unwrap_or_default();
        blocking(move || {
            walk::level(&inner.tree, &prefix).map_err(failed("list", inner.path(&prefix)))
        })
        .await
    }

    async fn copy_opts(&self, _: &Path, _: &Path, _: CopyOptions) -> Result<()> {
        Err(not_implemented("copies"))
    }
}

fn not_implemented(operation: &str) -> Error {
    Error::NotImplemented {
        operation: operation.to_owned(),
        implementer: STORE.to_owned(),
    }
}
