//! Uploads one file: reads it in parts, hashes them, and writes them.

use std::sync::Arc;

use bytes::Bytes;
use futures::StreamExt as _;
use futures::stream::{self, FuturesUnordered};
use tokio::sync::{Semaphore, watch};
use xxhash_rust::xxh3::Xxh3;

use crate::checkpoint::Source;
use crate::error::Error;
use crate::ids::Digest;
use crate::metadata::FileMetadata;
use crate::part::{PART, part_size};
use crate::progress::Progress;
use crate::store::Store;

/// Bytes that are read and written at a time if an object is written in order.
const PIECE: u64 = 1 << 20;
/// Bytes that are hashed at a time when nothing is uploaded.
const HASHED_AT_ONCE: u64 = 1 << 20;

/// Shared by the uploads of one put: the source, and the limit on bytes in memory.
pub(crate) struct Uploads<'a> {
    pub store: &'a Store,
    pub source: &'a Arc<dyn Source>,
    pub memory: &'a Semaphore,
    pub buffer: usize,
    pub progress: &'a Progress,
    /// Set when an upload has failed: the others end as soon as they can, and abort what they have begun.
    pub stopped: watch::Sender<bool>,
}

impl Uploads<'_> {
    /// Uploads a file, and returns its checksum. A file that is shorter than expected, or that has changed
    /// since it was hashed, is an error; no snapshot refers to the object that was written then.
    pub(crate) async fn upload(
        &self,
        file: &FileMetadata,
        key: &str,
        expected: Option<Digest>,
    ) -> Result<Digest, Error> {
        self.go_on()?;
        if let Some(path) = self.source.path(&file.name)
            && self.store.link(key, &path).await?
        {
            let digest = match expected {
                Some(digest) => digest,
                None => self.digest(file).await?,
            };
            self.progress.add_bytes(file.size);
            self.progress.add_file();
            return Ok(digest);
        }
        let digest = if file.size <= PART {
            let permits = self.permits(file.size).await;
            self.turn(file.size).await?;
            let bytes = self.read(file, 0, file.size).await?;
            let digest = Digest::of(&bytes);
            self.unchanged(file, expected, digest)?;
            self.store.put_file(key, bytes).await?;
            self.progress.add_bytes(file.size);
            drop(permits);
            digest
        } else {
            self.upload_in_parts(file, key, expected).await?
        };
        self.source.remember_digest(&file.name, digest);
        self.progress.add_file();
        Ok(digest)
    }

    async fn upload_in_parts(
        &self,
        file: &FileMetadata,
        key: &str,
        expected: Option<Digest>,
    ) -> Result<Digest, Error> {
        if !self.store.has_parts() {
            return self.upload_in_order(file, key, expected).await;
        }
        let part = part_size(file.size);
        let parts = self.store.begin_parts(key).await?;
        match self.send_parts(file, &parts, part, expected).await {
            Ok((done, digest)) => {
                parts.complete(done, file.size).await?;
                Ok(digest)
            }
            Err(error) => {
                parts.abort().await;
                Err(error)
            }
        }
    }

    /// Uploads to a store that takes an object only in order: while one piece is written, the next is read.
    async fn upload_in_order(
        &self,
        file: &FileMetadata,
        key: &str,
        expected: Option<Digest>,
    ) -> Result<Digest, Error> {
        let _room = self.permits(2 * PIECE).await;
        let mut upload = self.store.begin_stream(key).await?;
        let mut hasher = Xxh3::new();
        let mut offset = 0;
        let mut next = self.read_in_turn(file, 0, PIECE.min(file.size)).await;
        let sent = loop {
            let bytes = match next {
                Ok(bytes) => bytes,
                Err(error) => break Err(error),
            };
            offset += bytes.len() as u64;
            let len = bytes.len() as u64;
            hasher.update(&bytes);
            let writing = upload.put_part(object_store::PutPayload::from_bytes(bytes));
            let reading = async {
                let len = PIECE.min(file.size - offset);
                match len {
                    0 => Ok(Bytes::new()),
                    len => self.read_in_turn(file, offset, len).await,
                }
            };
            let (wrote, read) = futures::future::join(writing, reading).await;
            if let Err(source) = wrote {
                break Err(self.store.write_failed(key, source));
            }
            self.progress.add_bytes(len);
            if offset == file.size {
                let digest = Digest(hasher.digest128());
                break self.unchanged(file, expected, digest).map(|()| digest);
            }
            next = read;
        };
        match sent {
            Ok(digest) => {
                let completed = upload.complete().await;
                completed.map_err(|source| self.store.write_failed(key, source))?;
                Ok(digest)
            }
            Err(error) => {
                // An unfinished upload is a temporary file, which is removed when the upload is dropped.
                let _ = upload.abort().await;
                Err(error)
            }
        }
    }

    async fn send_parts(
        &self,
        file: &FileMetadata,
        parts: &crate::store::MultipartUpload,
        part: u64,
        expected: Option<Digest>,
    ) -> Result<(Vec<object_store::multipart::PartId>, Digest), Error> {
        let mut hasher = Xxh3::new();
        let mut under_way = FuturesUnordered::new();
        let mut done = Vec::new();
        let mut offset = 0;
        while offset < file.size {
            self.go_on()?;
            let len = part.min(file.size - offset);
            // While this part waits for memory and for its turn, the parts under way are polled: they free
            // memory.
            let permits = {
                let mut room = std::pin::pin!(async {
                    let permits = self.permits(len).await;
                    self.turn(len).await.map(|()| permits)
                });
                loop {
                    tokio::select! {
                        biased;
                        Some(sent) = under_way.next(), if !under_way.is_empty() => {
                            done.push(sent?);
                        }
                        permits = &mut room => break permits?,
                    }
                }
            };
            let bytes = self.read(file, offset, len).await?;
            hasher.update(&bytes);
            let index = done.len() + under_way.len();
            under_way.push(async move {
                let sent = parts.put(index, bytes).await;
                self.progress.add_bytes(len);
                drop(permits);
                sent.map(|id| (index, id))
            });
            offset += len;
        }
        let digest = Digest(hasher.digest128());
        self.unchanged(file, expected, digest)?;
        while let Some(sent) = under_way.next().await {
            done.push(sent?);
        }
        done.sort_by_key(|(index, _)| *index);
        Ok((done.into_iter().map(|(_, id)| id).collect(), digest))
    }

    /// Fails if another file has failed; the error of that file is reported.
    fn go_on(&self) -> Result<(), Error> {
        match *self.stopped.borrow() {
            true => Err(Error::Invalid("the upload was given up".to_owned())),
            false => Ok(()),
        }
    }

    /// Waits until so many bytes may be sent, or another file has failed: a low rate does not delay that
    /// file's error.
    async fn turn(&self, bytes: u64) -> Result<(), Error> {
        let mut stopped = self.stopped.subscribe();
        {
            let turn = std::pin::pin!(self.store.turn(bytes));
            let stopped = std::pin::pin!(stopped.wait_for(|stopped| *stopped));
            futures::future::select(turn, stopped).await;
        }
        self.go_on()
    }

    /// Runs uploads, several at a time, until all have ended. When one fails, the others are not dropped
    /// but end by themselves, so that each can abort what it has begun.
    pub(crate) async fn all<T>(
        &self,
        uploads: Vec<impl Future<Output = Result<T, Error>>>,
        parallel: usize,
    ) -> Result<Vec<T>, Error> {
        let mut running = stream::iter(uploads).buffer_unordered(parallel);
        let mut done = Vec::new();
        let mut failure = None;
        while let Some(ended) = running.next().await {
            match ended {
                Ok(one) => done.push(one),
                Err(error) => {
                    self.stopped.send_replace(true);
                    failure.get_or_insert(error);
                }
            }
        }
        match failure {
            None => Ok(done),
            Some(error) => Err(error),
        }
    }

    /// The checksum of a file: remembered, or computed by reading the file.
    pub(crate) async fn digest(&self, file: &FileMetadata) -> Result<Digest, Error> {
        if let Some(known) = self.source.known_digest(&file.name) {
            return Ok(known);
        }
        let mut hasher = Xxh3::new();
        let mut offset = 0;
        while offset < file.size {
            let len = HASHED_AT_ONCE.min(file.size - offset);
            let _room = self.permits(len).await;
            hasher.update(&self.read(file, offset, len).await?);
            offset += len;
        }
        let digest = Digest(hasher.digest128());
        self.source.remember_digest(&file.name, digest);
        Ok(digest)
    }

    async fn permits(&self, bytes: u64) -> Option<tokio::sync::SemaphorePermit<'_>> {
        let bytes = usize::try_from(bytes)
            .unwrap_or(usize::MAX)
            .min(self.buffer);
        let permits = u32::try_from(bytes).unwrap_or(u32::MAX);
        // The semaphore is never closed.
        self.memory.acquire_many(permits).await.ok()
    }

    async fn read_in_turn(
        &self,
        file: &FileMetadata,
        offset: u64,
        len: u64,
    ) -> Result<Bytes, Error> {
        self.turn(len).await?;
        self.read(file, offset, len).await
    }

    async fn read(&self, file: &FileMetadata, offset: u64, len: u64) -> Result<Bytes, Error> {
        let len = usize::try_from(len).unwrap_or(usize::MAX);
        let read = self.source.read_at(&file.name, offset, len).await;
        read.map_err(|source| Error::Io {
            what: "read",
            path: self
                .source
                .path(&file.name)
                .unwrap_or_else(|| file.name.clone().into()),
            source,
        })
    }

    fn unchanged(
        &self,
        file: &FileMetadata,
        expected: Option<Digest>,
        actual: Digest,
    ) -> Result<(), Error> {
        match expected {
            Some(expected) if expected != actual => Err(Error::Invalid(format!(
                "{} is not what it was when it was hashed ({actual} instead of {expected}): \
                 files of a checkpoint must not change",
                file.name
            ))),
            _ => Ok(()),
        }
    }
}
