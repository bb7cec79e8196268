//! The input of a put: a directory of immutable files, and the position that they cover.

use std::collections::HashMap;
use std::fmt;
use std::fs;
use std::io;
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::error::Error;
use crate::ids::{Digest, LineageId, Lsn};
use crate::metadata::{FileMetadata, KeyRange, check_name, check_tree};

/// Maximum number of files of one snapshot: those that fit into its description.
pub const MAX_FILES: usize = 150_000;

/// Reads the files of a checkpoint.
#[async_trait]
pub trait Source: fmt::Debug + Send + Sync + 'static {
    /// Reads `len` bytes of a file, from `offset` on. Returns an error if there are fewer.
    async fn read_at(&self, name: &str, offset: u64, len: usize) -> io::Result<Bytes>;

    /// The checksum of a whole file, if it is known without reading it.
    fn known_digest(&self, _name: &str) -> Option<Digest> {
        None
    }

    /// Remembers the checksum of a whole file.
    fn remember_digest(&self, _name: &str, _digest: Digest) {}

    /// The path of the file, if it is a local file of which hard links may be created.
    fn path(&self, _name: &str) -> Option<PathBuf> {
        None
    }
}

/// Immutable files and the position that they cover. They must not change until they are put.
#[derive(Clone, Debug)]
pub struct Checkpoint {
    /// Reads the files.
    pub source: Arc<dyn Source>,
    /// The files.
    pub files: Vec<FileMetadata>,
    /// The last position that they cover.
    pub lsn: Lsn,
    /// The lineage that the position belongs to.
    pub lineage: Option<LineageId>,
    /// The Raft term of the position.
    pub term: Option<u64>,
    /// The Raft membership as of the position.
    pub membership: Option<Value>,
    /// Number of partitions of the cluster.
    pub partitions: Option<u32>,
    /// The partition keys that the partition holds.
    pub key_range: KeyRange,
    /// The log behind the partition.
    pub log_id: Option<u32>,
    /// RocksDB's name of the order of keys.
    pub db_comparator_name: String,
    /// Additional fields of the description.
    pub extra: Map<String, Value>,
}

impl Checkpoint {
    /// A checkpoint of these files; all other fields have their defaults.
    pub fn new(source: Arc<dyn Source>, files: Vec<FileMetadata>, lsn: Lsn) -> Checkpoint {
        Checkpoint {
            source,
            files,
            lsn,
            lineage: None,
            term: None,
            membership: None,
            partitions: None,
            key_range: KeyRange::ALL,
            log_id: None,
            db_comparator_name: "leveldb.BytewiseComparator".to_owned(),
            extra: Map::new(),
        }
    }

    /// A checkpoint of all files below a directory. Directories without a file at any depth are left out
    /// ([`empty_directories`] names them); an entry that is neither a file nor a directory is an error.
    pub fn scan(dir: &Path, lsn: Lsn, digests: Arc<Digests>) -> Result<Checkpoint, Error> {
        let mut files = Vec::new();
        collect(dir, "", &mut files)?;
        files.sort_by(|a, b| a.name.cmp(&b.name));
        let source = Arc::new(DirSource {
            dir: dir.to_owned(),
            digests,
        });
        Ok(Checkpoint::new(source, files, lsn))
    }

    /// Refuses a checkpoint whose snapshot could not be read back.
    pub(crate) fn check(&self) -> Result<(), Error> {
        if self.files.len() > MAX_FILES {
            return Err(Error::Invalid(format!(
                "a snapshot has at most {MAX_FILES} files, not {}",
                self.files.len()
            )));
        }
        let mut names = HashMap::with_capacity(self.files.len());
        for file in &self.files {
            if let Err(why) = check_name(&file.name) {
                return Err(Error::Invalid(format!(
                    "a file cannot be named {:?}: {why}",
                    file.name
                )));
            }
            if names.insert(&file.name, ()).is_some() {
                return Err(Error::Invalid(format!(
                    "two files are named {:?}",
                    file.name
                )));
            }
        }
        if let Err(name) = check_tree(self.files.iter().map(|f| f.name.as_str())) {
            return Err(Error::Invalid(format!(
                "{name:?} cannot be a file and a directory"
            )));
        }
        Ok(())
    }
}

fn collect(dir: &Path, prefix: &str, files: &mut Vec<FileMetadata>) -> Result<(), Error> {
    let failed = |what, path: &Path| {
        let path = path.to_owned();
        move |source| Error::Io { what, path, source }
    };
    for entry in fs::read_dir(dir).map_err(failed("list", dir))? {
        let entry = entry.map_err(failed("list", dir))?;
        let path = entry.path();
        let file_name = entry.file_name();
        let Some(name) = file_name.to_str() else {
            return Err(Error::Invalid(format!(
                "the name of {} is no UTF-8",
                path.display()
            )));
        };
        let name = format!("{prefix}/{name}");
        // Symlinks are not followed.
        let meta = fs::symlink_metadata(&path).map_err(failed("look at", &path))?;
        if meta.is_dir() {
            collect(&path, &name, files)?;
        } else if meta.is_file() {
            if files.len() == MAX_FILES {
                return Err(Error::Invalid(format!(
                    "{} holds more than {MAX_FILES} files",
                    dir.display()
                )));
            }
            files.push(FileMetadata::plain(name, meta.len()));
        } else {
            return Err(Error::Invalid(format!(
                "{} is neither a file nor a directory",
                path.display()
            )));
        }
    }
    Ok(())
}

/// The directories below `dir` that contain no file at any depth, which a snapshot therefore does not
/// contain. Of nested ones only the topmost is named. Sorted by name.
///
/// # Errors
///
/// [`Error::Io`] for a directory that cannot be listed.
pub fn empty_directories(dir: &Path) -> Result<Vec<PathBuf>, Error> {
    /// Returns whether there is a file.
    fn walk(dir: &Path, below: &Path, found: &mut Vec<PathBuf>) -> io::Result<bool> {
        let before = found.len();
        let mut has_file = false;
        for entry in fs::read_dir(dir)? {
            let entry = entry?;
            let name = below.join(entry.file_name());
            match entry.file_type()?.is_dir() {
                true => has_file |= walk(&entry.path(), &name, found)?,
                false => has_file = true,
            }
        }
        if !has_file && below != Path::new("") {
            found.truncate(before);
            found.push(below.to_owned());
        }
        Ok(has_file)
    }
    let mut found = Vec::new();
    walk(dir, Path::new(""), &mut found).map_err(|source| Error::Io {
        what: "list the directories below",
        path: dir.to_owned(),
        source,
    })?;
    found.sort();
    Ok(found)
}

/// Checksums of local files that were computed before. A file counts as unchanged if its path, device,
/// inode, size and modification time are the same, because these files are immutable.
#[derive(Debug, Default)]
pub struct Digests {
    known: Mutex<HashMap<PathBuf, KnownDigest>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct FileIdentity {
    device: u64,
    inode: u64,
    size: u64,
    modified_ns: i128,
}

#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
struct KnownDigest {
    identity: FileIdentity,
    digest: Digest,
}

impl FileIdentity {
    /// The change time of the inode is not compared, because creating a hard link changes it.
    fn of(meta: &fs::Metadata) -> FileIdentity {
        FileIdentity {
            device: meta.dev(),
            inode: meta.ino(),
            size: meta.len(),
            modified_ns: i128::from(meta.mtime()) * 1_000_000_000 + i128::from(meta.mtime_nsec()),
        }
    }
}

impl Digests {
    /// An empty set.
    pub fn new() -> Arc<Digests> {
        Arc::default()
    }

    /// Reads what [`Digests::save`] wrote. If it cannot be read, the set is empty, and checksums are computed
    /// again.
    pub fn load(path: &Path) -> Arc<Digests> {
        let known = fs::read(path)
            .ok()
            .and_then(|bytes| serde_json::from_slice(&bytes).ok())
            .unwrap_or_default();
        Arc::new(Digests {
            known: Mutex::new(known),
        })
    }

    /// Writes the known checksums, for another process. Files that do not exist any more are left out.
    pub fn save(&self, path: &Path) -> io::Result<()> {
        let known = {
            let mut known = self.lock();
            known.retain(|file, _| file.exists());
            serde_json::to_vec(&*known)?
        };
        if let Some(dir) = path.parent() {
            fs::create_dir_all(dir)?;
        }
        let new = path.with_extension(format!("{}.new", std::process::id()));
        fs::write(&new, known)?;
        fs::rename(&new, path)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<PathBuf, KnownDigest>> {
        self.known
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    fn get(&self, path: &Path) -> Option<Digest> {
        let meta = fs::metadata(path).ok()?;
        let known = *self.lock().get(path)?;
        (known.identity == FileIdentity::of(&meta)).then_some(known.digest)
    }

    fn insert(&self, path: &Path, digest: Digest) {
        if let Ok(meta) = fs::metadata(path) {
            let identity = FileIdentity::of(&meta);
            self.lock()
                .insert(path.to_owned(), KnownDigest { identity, digest });
        }
    }
}

#[derive(Debug)]
struct DirSource {
    dir: PathBuf,
    digests: Arc<Digests>,
}

impl DirSource {
    fn at(&self, name: &str) -> PathBuf {
        self.dir.join(name.trim_start_matches('/'))
    }
}

#[async_trait]
impl Source for DirSource {
    async fn read_at(&self, name: &str, offset: u64, len: usize) -> io::Result<Bytes> {
        let path = self.at(name);
        let read = tokio::task::spawn_blocking(move || {
            let file = fs::File::open(path)?;
            let mut bytes = vec![0; len];
            file.read_exact_at(&mut bytes, offset)?;
            Ok(Bytes::from(bytes))
        });
        read.await.map_err(io::Error::other)?
    }

    fn known_digest(&self, name: &str) -> Option<Digest> {
        self.digests.get(&self.at(name))
    }

    fn remember_digest(&self, name: &str, digest: Digest) {
        self.digests.insert(&self.at(name), digest);
    }

    fn path(&self, name: &str) -> Option<PathBuf> {
        Some(self.at(name))
    }
}
