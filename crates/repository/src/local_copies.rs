//! Local files from which a repair takes the content of objects.

use std::collections::HashMap;
use std::io;
use std::sync::Arc;

use xxhash_rust::xxh3::Xxh3;

use crate::checkpoint::{Checkpoint, Source};
use crate::env::Env;
use crate::ids::Digest;
use crate::rate_limiter::RateLimiter;

/// Bytes of a local file that are hashed at a time.
const PIECE: u64 = 1 << 20;

/// What two objects must have in common for one to replace the other.
pub(crate) type Content = (Digest, u64);

/// A local file that may have the content of an object.
#[derive(Clone, Debug)]
pub struct LocalCopy {
    /// Reads it.
    pub source: Arc<dyn Source>,
    /// Its name there.
    pub name: String,
}

/// Finds local files by their content.
pub trait LocalCopies: Send + Sync {
    /// Files that may have this content. Their bytes are hashed before they are used.
    fn candidates(&self, digest: Digest, size: u64) -> Vec<LocalCopy>;
}

/// No local files.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoCopies;

impl LocalCopies for NoCopies {
    fn candidates(&self, _digest: Digest, _size: u64) -> Vec<LocalCopy> {
        Vec::new()
    }
}

/// The files of a checkpoint or a directory. Those of the right size are hashed when they are needed.
#[derive(Debug)]
pub struct FilesBySize {
    source: Arc<dyn Source>,
    by_size: HashMap<u64, Vec<String>>,
}

impl FilesBySize {
    /// The files of a checkpoint: of a directory, [`Checkpoint::scan`] makes one.
    pub fn of(checkpoint: &Checkpoint) -> FilesBySize {
        let mut by_size: HashMap<u64, Vec<String>> = HashMap::new();
        for file in &checkpoint.files {
            by_size
                .entry(file.size)
                .or_default()
                .push(file.name.clone());
        }
        FilesBySize {
            source: checkpoint.source.clone(),
            by_size,
        }
    }
}

impl LocalCopies for FilesBySize {
    fn candidates(&self, digest: Digest, size: u64) -> Vec<LocalCopy> {
        let names = self.by_size.get(&size).into_iter().flatten();
        let known = |name: &String| self.source.known_digest(name);
        names
            .filter(|name| known(name).is_none_or(|known| known == digest))
            .map(|name| LocalCopy {
                source: self.source.clone(),
                name: name.clone(),
            })
            .collect()
    }
}

impl LocalCopy {
    /// Its path or name, for display.
    pub(crate) fn shown(&self) -> String {
        let path = self.source.path(&self.name);
        path.map_or_else(|| self.name.clone(), |path| path.display().to_string())
    }

    /// Whether its bytes have this content. Reads them all, no faster than the limiter allows.
    pub(crate) async fn has(
        &self,
        (digest, size): Content,
        limiter: Option<&RateLimiter>,
        env: &dyn Env,
    ) -> io::Result<bool> {
        let mut hasher = Xxh3::new();
        let mut offset = 0;
        while offset < size {
            let len = PIECE.min(size - offset);
            if let Some(limiter) = limiter {
                limiter.turn(env, len).await;
            }
            let read = self
                .source
                .read_at(&self.name, offset, usize::try_from(len).unwrap_or(0));
            match read.await {
                Ok(bytes) => hasher.update(&bytes),
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(false),
                Err(error) => return Err(error),
            }
            offset += len;
        }
        Ok(Digest(hasher.digest128()) == digest)
    }
}
