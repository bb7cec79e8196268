//! Turns the state into bytes and back: checksum, compression, threads.
//!
//! ```text
//! fold.snapshot ─▶ zstd ─▶ checksum, count ─▶ chunks ──(at most 4 wait)──▶ records or an object
//! fold.restore  ◀─ zstd ◀─ checksum, count ◀─ chunks ◀─(at most 4 wait)── records or an object
//! ```
//!
//! The fold runs on a thread where blocking is fine. What waits between the two sides is bounded by
//! [`WAITING`] chunks of at most [`CHUNK`] bytes, however large the state is.

use std::io::{self, Read, Write};

use bytes::{Bytes, BytesMut};
use tokio::sync::mpsc;
use xxhash_rust::xxh3::Xxh3;

use super::meta::{Encoding, Meta, Totals};
use crate::fold::Fold;

/// Bytes of a chunk: what fits into one record beside its headers (see
/// [`record`](super::record)), whose batch has at most 1 MiB.
pub const CHUNK: usize = (1 << 20) - 2048;
/// Chunks that wait between the fold and the network: enough to keep both busy.
pub const WAITING: usize = 4;
/// Level of zstd: its default, some hundred MB/s on one core.
const LEVEL: i32 = 3;
/// log2 of the largest window that is read, which is memory of the reader: 8 MiB.
const WINDOW_LOG: u32 = 23;

/// Counts bytes, and computes the checksum of a description and of them.
#[derive(Clone)]
pub struct Sum {
    bytes: u64,
    xxh3: Xxh3,
}

impl std::fmt::Debug for Sum {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Sum").field("bytes", &self.bytes).finish()
    }
}

impl Default for Sum {
    fn default() -> Sum {
        Sum {
            bytes: 0,
            xxh3: Xxh3::new(),
        }
    }
}

impl Sum {
    /// Of a description, and no bytes yet.
    pub fn of(meta: &Meta) -> Sum {
        let mut sum = Sum::default();
        sum.xxh3.update(&meta.to_json());
        sum
    }

    /// Adds bytes.
    pub fn update(&mut self, bytes: &[u8]) {
        self.bytes += bytes.len() as u64;
        self.xxh3.update(bytes);
    }

    /// Bytes so far.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// The totals of what was added.
    pub fn totals(&self) -> Totals {
        Totals {
            bytes: self.bytes,
            xxh3: format!("{:032x}", self.xxh3.digest128()),
        }
    }
}

/// The bytes of a state, as chunks. Each but the last has [`CHUNK`] bytes.
pub struct Chunks {
    chunks: mpsc::Receiver<Bytes>,
    writer: tokio::task::JoinHandle<io::Result<Totals>>,
}

impl Chunks {
    /// The next one; `None` at the end, or if the fold fails: [`Chunks::totals`] returns the error.
    pub async fn next(&mut self) -> Option<Bytes> {
        self.chunks.recv().await
    }

    /// The totals of what was written, after the last chunk.
    ///
    /// # Errors
    ///
    /// What the fold failed with, or that it panicked.
    pub async fn totals(self) -> io::Result<Totals> {
        drop(self.chunks);
        self.writer
            .await
            .unwrap_or_else(|panic| Err(io::Error::other(format!("the fold panicked: {panic}"))))
    }
}

/// Writes a state on a thread of its own, encoded as its description defines.
pub fn write<F: Fold>(fold: F, meta: &Meta) -> Chunks {
    let (sender, chunks) = mpsc::channel(WAITING);
    let (encoding, sum) = (meta.encoding, Sum::of(meta));
    let writer = tokio::task::spawn_blocking(move || {
        let mut out = Outlet {
            sender,
            chunk: BytesMut::new(),
            sum,
        };
        match encoding {
            Encoding::None => fold.snapshot(&mut out)?,
            Encoding::Zstd => {
                let mut encoder = zstd::Encoder::new(&mut out, LEVEL)?;
                fold.snapshot(&mut encoder)?;
                encoder.finish()?;
            }
        }
        out.finish()
    });
    Chunks { chunks, writer }
}

struct Outlet {
    sender: mpsc::Sender<Bytes>,
    chunk: BytesMut,
    sum: Sum,
}

impl Outlet {
    fn send(&mut self) -> io::Result<()> {
        let chunk = self.chunk.split().freeze();
        self.sum.update(&chunk);
        let gone = |_| io::Error::new(io::ErrorKind::BrokenPipe, "nobody wants it any more");
        self.sender.blocking_send(chunk).map_err(gone)
    }

    fn finish(mut self) -> io::Result<Totals> {
        if !self.chunk.is_empty() {
            self.send()?;
        }
        Ok(self.sum.totals())
    }
}

impl Write for Outlet {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let taken = bytes.len().min(CHUNK - self.chunk.len());
        if self.chunk.capacity() < CHUNK && self.sum.bytes() > 0 {
            // At once, not by doubling: all chunks but the last are full.
            self.chunk.reserve(CHUNK);
        }
        self.chunk.extend_from_slice(&bytes[..taken]);
        if self.chunk.len() == CHUNK {
            self.send()?;
        }
        Ok(taken)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A state that is being restored from chunks.
#[derive(Debug)]
pub struct Restoring<F> {
    sender: mpsc::Sender<Bytes>,
    reader: tokio::task::JoinHandle<io::Result<F>>,
    bytes: u64,
    /// `None` if the caller computes it.
    sum: Option<Sum>,
}

impl<F: Fold> Restoring<F> {
    /// Begins to restore a state into a fold.
    pub fn new(fold: F, meta: &Meta) -> Restoring<F> {
        Restoring::begin(fold, meta.encoding, Some(Sum::of(meta)))
    }

    /// The same for a state whose checksum the caller computes from the same bytes.
    pub fn summed_elsewhere(fold: F, meta: &Meta) -> Restoring<F> {
        Restoring::begin(fold, meta.encoding, None)
    }

    /// The same for a state without a description.
    pub fn plain(fold: F, encoding: Encoding) -> Restoring<F> {
        Restoring::begin(fold, encoding, Some(Sum::default()))
    }

    fn begin(mut fold: F, encoding: Encoding, sum: Option<Sum>) -> Restoring<F> {
        let (sender, chunks) = mpsc::channel(WAITING);
        let reader = tokio::task::spawn_blocking(move || {
            let mut inlet = Inlet {
                chunks,
                chunk: Bytes::new(),
            };
            let restored = match encoding {
                Encoding::None => fold.restore(&mut inlet),
                Encoding::Zstd => {
                    let decoder = zstd::Decoder::new(&mut inlet).and_then(|mut decoder| {
                        decoder.window_log_max(WINDOW_LOG)?;
                        Ok(decoder)
                    });
                    decoder.and_then(|mut decoder| fold.restore(&mut decoder))
                }
            };
            // What the fold left unread has to be read for the checksum.
            io::copy(&mut inlet, &mut io::sink())?;
            restored.map(|()| fold)
        });
        Restoring {
            sender,
            reader,
            bytes: 0,
            sum,
        }
    }

    /// Adds the next bytes, any number of them.
    pub async fn push(&mut self, chunk: Bytes) {
        self.bytes += chunk.len() as u64;
        if let Some(sum) = &mut self.sum {
            sum.update(&chunk);
        }
        // A fold that panicked takes no more: `finish` returns the error.
        let _ = self.sender.send(chunk).await;
    }

    /// The state, if its bytes match the totals. Those of a state that is
    /// [`summed_elsewhere`](Self::summed_elsewhere) have been compared already.
    ///
    /// # Errors
    ///
    /// What is wrong with them.
    pub async fn finish(self, totals: &Totals) -> Result<F, String> {
        drop(self.sender);
        let restored = self.reader.await;
        if self.bytes != totals.bytes {
            return Err(format!("it has {} bytes, not {}", self.bytes, totals.bytes));
        }
        if self.sum.is_some_and(|sum| sum.totals().xxh3 != totals.xxh3) {
            return Err("its checksum differs".to_owned());
        }
        match restored {
            Ok(Ok(fold)) => Ok(fold),
            Ok(Err(error)) => Err(format!("the fold cannot read it: {error}")),
            Err(panic) => Err(format!("the fold panicked: {panic}")),
        }
    }

    /// The same as [`Restoring::finish`], for bytes whose checksum is not known.
    ///
    /// # Errors
    ///
    /// What the fold reports.
    pub async fn finish_unchecked(self) -> Result<F, String> {
        let totals = match &self.sum {
            Some(sum) => sum.totals(),
            None => Sum::default().totals(),
        };
        self.finish(&totals).await
    }
}

struct Inlet {
    chunks: mpsc::Receiver<Bytes>,
    chunk: Bytes,
}

impl Read for Inlet {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.chunk.is_empty() {
            match self.chunks.blocking_recv() {
                Some(chunk) => self.chunk = chunk,
                None => return Ok(0),
            }
        }
        let taken = buffer.len().min(self.chunk.len());
        buffer[..taken].copy_from_slice(&self.chunk.split_to(taken));
        Ok(taken)
    }
}
