//! Writes a large object in parts, each of which is retried alone.

use std::sync::Arc;

use bytes::Bytes;
use object_store::multipart::{MultipartStore, PartId};
use object_store::path::Path;
use object_store::{ObjectStore, PutPayload};

use super::Store;
use crate::error::Error;

/// An object that is written in parts. Dropping it starts to abort it; [`MultipartUpload::abort`] waits
/// until that is done.
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

    /// Writes one part.
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

    /// Completes the object from its parts, in order.
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
        // An earlier attempt may have succeeded although its answer was lost. Then the upload does not
        // exist any more, and the object exists: no other upload uses its key.
        if self.store.has(&self.key, size).await.unwrap_or(false) {
            self.id = None;
            return Ok(());
        }
        self.abort().await;
        Err(error)
    }

    /// Aborts the upload. If that fails, its parts stay until the bucket's lifecycle rule removes them.
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

impl Store {
    /// Whether large objects can be written in parts that are retried one by one.
    pub(crate) fn has_parts(&self) -> bool {
        self.multipart.is_some()
    }

    /// Starts to write an object in order, for stores without multipart uploads. Not retried.
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
            object: self.display_url(key),
            attempts: 1,
            source: source.into(),
        }
    }

    /// Starts to write an object in parts.
    pub(crate) async fn begin_parts(&self, key: &str) -> Result<MultipartUpload, Error> {
        let multipart = self.multipart.clone().ok_or_else(|| {
            Error::Invalid(format!("{} does not take parts", self.display_url(key)))
        })?;
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
}
