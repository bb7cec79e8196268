//! Reads objects: small ones at once, large ones in order, continued where a connection breaks.

use bytes::{Bytes, BytesMut};
use futures::StreamExt as _;
use object_store::path::Path;
use object_store::{GetOptions, GetRange, GetResult, ObjectStore, UpdateVersion};

use super::{ObjectVersion, Store};
use crate::env::within;
use crate::error::{Error, StoreFailure};
use crate::watchdog::Ticks;

/// Consumes the bytes of an object, in order.
pub(crate) trait Sink: Send {
    /// Consumes the next bytes.
    fn take(&mut self, bytes: Bytes) -> impl Future<Output = Result<(), Error>> + Send;
}

impl Store {
    /// Reads a small object completely; it must not be larger than `most` bytes.
    pub(crate) async fn get(&self, key: &str, most: u64) -> Result<(Bytes, UpdateVersion), Error> {
        let (bytes, ObjectVersion { e_tag, version, .. }) = self.get_object(key, most).await?;
        Ok((bytes, UpdateVersion { e_tag, version }))
    }

    /// The same, with what tells later whether the object is still the same.
    pub(crate) async fn get_object(
        &self,
        key: &str,
        most: u64,
    ) -> Result<(Bytes, ObjectVersion), Error> {
        let path = self.path(key);
        let got = self
            .attempt("read", key, || async {
                let got = self.inner.get_opts(&path, GetOptions::default()).await?;
                let version = ObjectVersion::of(&got.meta);
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
                    // The store may send more than the size that it reported.
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
            object: self.display_url(key),
            why: format!("it has {size} bytes, and no such object has more than {most}"),
        })
    }

    /// Starts to read an object at an offset. If the connection breaks, the caller opens the object again
    /// at the next offset.
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

    /// Reads all of an object's bytes in order, and continues at the same offset if the connection breaks.
    /// The object must have `size` bytes.
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
                    object: self.display_url(key),
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
                                object: self.display_url(key),
                                why: format!("more than {size} bytes came"),
                            });
                        }
                        sink.take(chunk).await?;
                        // There was progress, so earlier breaks count for the budget only.
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
}

impl Store {
    /// Reads all of an object's bytes in order, in requests of at most `part` bytes, each after its turn. So
    /// no connection waits for a turn. The object must have `size` bytes.
    pub(crate) async fn read_in_parts<W: Future<Output = ()>>(
        &self,
        key: &str,
        size: u64,
        part: u64,
        turn: impl Fn(u64) -> W,
        sink: &mut impl Sink,
    ) -> Result<(), Error> {
        let path = self.path(key);
        let mut offset = 0;
        loop {
            let len = part.min(size - offset);
            turn(len).await;
            let (found, bytes) = self
                .attempt("read", key, || async {
                    let options = GetOptions {
                        // An empty range is refused, so an empty object is read whole.
                        range: (size > 0).then_some(GetRange::Bounded(offset..offset + len)),
                        ..GetOptions::default()
                    };
                    let got = self.inner.get_opts(&path, options).await?;
                    let found = got.meta.size;
                    if found != size {
                        return Ok((found, Bytes::new()));
                    }
                    let mut bytes = BytesMut::with_capacity(usize::try_from(len).unwrap_or(0));
                    let mut body = got.into_stream();
                    let ticks = Ticks::of_task();
                    while let Some(chunk) = body.next().await {
                        let chunk = chunk?;
                        ticks.tick();
                        if bytes.len() as u64 + chunk.len() as u64 > len {
                            return Err(short(&path, bytes.len() as u64 + chunk.len() as u64, len));
                        }
                        bytes.extend_from_slice(&chunk);
                    }
                    if bytes.len() as u64 != len {
                        return Err(short(&path, bytes.len() as u64, len));
                    }
                    Ok((found, bytes.freeze()))
                })
                .await?;
            if found != size {
                return Err(Error::Damaged {
                    object: self.display_url(key),
                    why: format!("it has {found} bytes instead of {size}"),
                });
            }
            sink.take(bytes).await?;
            offset += len;
            if offset == size {
                return Ok(());
            }
        }
    }
}

fn short(path: &Path, got: u64, size: u64) -> object_store::Error {
    object_store::Error::Generic {
        store: "repository",
        source: format!("{path} broke off after {got} of {size} bytes").into(),
    }
}
