//! Writing an object in parts: into one temporary file, each part at its own offset.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use async_trait::async_trait;
use object_store::path::Path;
use object_store::{MultipartUpload, PutMode, PutPayload, PutResult, Result, UploadPart};

use super::direct;
use super::objects::Objects;
use super::scratch::TempFile;
use super::{STORE, blocking, failed};

/// An upload in parts. The object is not visible before [`complete`](MultipartUpload::complete). If the
/// upload is dropped or aborted, its file is removed.
///
/// The upload buffers no part: a part is in memory from the call that passes it until its future has
/// finished, so the caller's limit on parts in flight bounds the memory.
#[derive(Debug)]
pub(super) struct Upload {
    inner: Arc<Objects>,
    location: Path,
    /// None after the upload was completed or aborted.
    temp: Option<Arc<TempFile>>,
    /// Bytes of all parts that were passed.
    offset: u64,
    /// Bytes of all parts that were written.
    written: Arc<AtomicU64>,
}

impl Upload {
    pub(super) fn new(inner: Arc<Objects>, location: Path, temp: TempFile) -> Upload {
        Upload {
            inner,
            location,
            temp: Some(Arc::new(temp)),
            offset: 0,
            written: Arc::default(),
        }
    }
}

fn over(location: &Path) -> object_store::Error {
    object_store::Error::Generic {
        store: STORE,
        source: format!("the upload of {location} is over: begin a new one").into(),
    }
}

#[async_trait]
impl MultipartUpload for Upload {
    fn put_part(&mut self, data: PutPayload) -> UploadPart {
        let Some(temp) = self.temp.clone() else {
            let error = over(&self.location);
            return Box::pin(std::future::ready(Err(error)));
        };
        let offset = self.offset;
        let length = data.content_length() as u64;
        self.offset += length;
        let (inner, location) = (self.inner.clone(), self.location.clone());
        let written = self.written.clone();
        Box::pin(blocking(move || {
            direct::write_part(&temp, offset, &data)
                .map_err(failed("write a part of", inner.path(&location)))?;
            written.fetch_add(length, Ordering::Relaxed);
            Ok(())
        }))
    }

    async fn complete(&mut self) -> Result<PutResult> {
        let location = self.location.clone();
        let temp = self.temp.take().ok_or_else(|| over(&location))?;
        let missing = self.offset - self.written.load(Ordering::Relaxed);
        // The futures of unfinished parts hold the file as well.
        let temp = Arc::try_unwrap(temp).ok().filter(|_| missing == 0);
        let Some(temp) = temp else {
            return Err(object_store::Error::Generic {
                store: STORE,
                source: format!("{missing} bytes of parts of {location} were not written").into(),
            });
        };
        let inner = self.inner.clone();
        blocking(move || inner.publish(temp, &location, &PutMode::Overwrite)).await
    }

    async fn abort(&mut self) -> Result<()> {
        let Some(temp) = self.temp.take() else {
            return Ok(());
        };
        blocking(move || {
            drop(temp);
            Ok(())
        })
        .await
    }
}
