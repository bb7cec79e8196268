//! The files under stored snapshots, with what has to be synced where, and with faults on demand.
//!
//! Every operation is one that a crash can come before or after. [`DiskFaults`] make them fail: for
//! want of space after so many bytes, or one or all of them after so many operations, the latter being
//! what a process that ended at that moment leaves behind. Or they make them wait, as a disk does that
//! has too much to do.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use bytes::Bytes;
use parking_lot::{Condvar, Mutex};

/// Never reached.
const UNLIMITED: u64 = u64::MAX;

/// Switches for tests; clones share them. Untouched, they cost an atomic operation or two.
#[derive(Clone, Debug)]
pub struct DiskFaults {
    /// Bytes that can still be written before the disk is full.
    space: Arc<AtomicU64>,
    /// Operations that still succeed.
    operations: Arc<AtomicU64>,
    /// Operations until one fails.
    until_one_fails: Arc<AtomicU64>,
    done: Arc<AtomicU64>,
    hit: Arc<AtomicBool>,
    still: Arc<StandingStill>,
}

/// A disk that does nothing for a while.
#[derive(Debug, Default)]
struct StandingStill {
    /// The operations that wait; none, the usual case, for the disk that works.
    which: Mutex<Option<&'static str>>,
    over: Condvar,
    waiting: AtomicU64,
    set: AtomicBool,
}

impl Default for DiskFaults {
    fn default() -> Self {
        DiskFaults {
            space: Arc::new(AtomicU64::new(UNLIMITED)),
            operations: Arc::new(AtomicU64::new(UNLIMITED)),
            until_one_fails: Arc::new(AtomicU64::new(UNLIMITED)),
            done: Arc::default(),
            hit: Arc::default(),
            still: Arc::default(),
        }
    }
}

impl DiskFaults {
    /// The disk is full once `bytes` more are written.
    pub fn full_after(&self, bytes: u64) {
        self.hit.store(false, Ordering::SeqCst);
        self.space.store(bytes, Ordering::SeqCst);
    }

    /// There is space again.
    pub fn space_returned(&self) {
        self.space.store(UNLIMITED, Ordering::SeqCst);
    }

    /// After so many more operations everything fails, as if the process had ended there.
    pub fn die_after(&self, operations: u64) {
        self.operations.store(operations, Ordering::SeqCst);
    }

    /// After so many more operations one fails, and those after it do not.
    pub fn fail_once_after(&self, operations: u64) {
        self.until_one_fails.store(operations, Ordering::SeqCst);
    }

    /// Operations of that kind (`"writing"`, `"reading"`, `"syncing"`, `"linking"`, …) do not end until
    /// [`DiskFaults::move_on`]. Those of another kind that stood still before go on.
    pub fn stand_still(&self, operation: &'static str) {
        *self.still.which.lock() = Some(operation);
        self.still.set.store(true, Ordering::SeqCst);
        self.still.over.notify_all();
    }

    /// What waits goes on.
    pub fn move_on(&self) {
        self.still.set.store(false, Ordering::SeqCst);
        *self.still.which.lock() = None;
        self.still.over.notify_all();
    }

    /// How many operations wait since [`DiskFaults::stand_still`].
    pub fn waiting(&self) -> u64 {
        self.still.waiting.load(Ordering::SeqCst)
    }

    /// Operations so far.
    pub fn operations(&self) -> u64 {
        self.done.load(Ordering::SeqCst)
    }

    /// Whether a write has failed for want of space since [`DiskFaults::full_after`].
    pub fn was_full(&self) -> bool {
        self.hit.load(Ordering::SeqCst)
    }

    fn operation(&self, what: &str) -> io::Result<()> {
        if self.still.set.load(Ordering::Relaxed) {
            self.wait_until_it_moves_on(what);
        }
        self.done.fetch_add(1, Ordering::Relaxed);
        let one_less = |left: u64| match left {
            UNLIMITED => None,
            0 => Some(UNLIMITED),
            left => Some(left - 1),
        };
        let until = &self.until_one_fails;
        if until.fetch_update(Ordering::SeqCst, Ordering::SeqCst, one_less) == Ok(0) {
            return Err(io::Error::other("it fails once (a fault, on purpose)"));
        }
        let left = |left: u64| match left {
            UNLIMITED => Some(UNLIMITED),
            left => left.checked_sub(1),
        };
        (self.operations)
            .fetch_update(Ordering::SeqCst, Ordering::SeqCst, left)
            .map(|_| ())
            .map_err(|_| io::Error::other("the process has ended (a fault, on purpose)"))
    }

    fn wait_until_it_moves_on(&self, what: &str) {
        let mut which = self.still.which.lock();
        if *which == Some(what) {
            self.still.waiting.fetch_add(1, Ordering::SeqCst);
            while *which == Some(what) {
                self.still.over.wait(&mut which);
            }
            self.still.waiting.fetch_sub(1, Ordering::SeqCst);
        }
    }

    /// How many of these bytes there is space for.
    fn space_for(&self, bytes: u64) -> u64 {
        let take = |left: u64| match left {
            UNLIMITED => Some(UNLIMITED),
            left => Some(left.saturating_sub(bytes)),
        };
        let before = (self.space).fetch_update(Ordering::SeqCst, Ordering::SeqCst, take);
        let fits = before.unwrap_or(0).min(bytes);
        if fits < bytes {
            self.hit.store(true, Ordering::SeqCst);
        }
        fits
    }
}

/// The operations. Errors name the file and keep their kind.
#[derive(Clone, Debug, Default)]
pub(super) struct Disk {
    faults: DiskFaults,
}

impl Disk {
    pub fn new(faults: DiskFaults) -> Disk {
        Disk { faults }
    }

    fn run<T>(
        &self,
        what: &str,
        path: &Path,
        operation: impl FnOnce() -> io::Result<T>,
    ) -> io::Result<T> {
        (self.faults.operation(what))
            .and_then(|()| operation())
            .map_err(|e| io::Error::new(e.kind(), format!("{what} {}: {e}", path.display())))
    }

    pub fn create_dir_all(&self, path: &Path) -> io::Result<()> {
        self.run("creating", path, || fs::create_dir_all(path))
    }

    /// Names in a directory; none if it is not there.
    pub fn names(&self, path: &Path) -> io::Result<Vec<String>> {
        let list = || -> io::Result<Vec<String>> {
            let entries = match fs::read_dir(path) {
                Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
                other => other?,
            };
            let mut names = Vec::new();
            for entry in entries {
                if let Ok(name) = entry?.file_name().into_string() {
                    names.push(name);
                }
            }
            names.sort();
            Ok(names)
        };
        self.run("listing", path, list)
    }

    /// Writes pieces at `offset`, after cutting the file to it; at 0, the file is created again, so that
    /// nothing which shares its contents is changed. What was written of a failed write is cut away.
    pub fn write_at(
        &self,
        path: &Path,
        offset: u64,
        pieces: &[impl AsRef<[u8]>],
    ) -> io::Result<()> {
        let write = || {
            let mut options = OpenOptions::new();
            options.write(true);
            if offset == 0 {
                match fs::remove_file(path) {
                    Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
                    _ => options.create_new(true),
                };
            }
            let mut file = options.open(path)?;
            if file.metadata()?.len() < offset {
                return Err(io::Error::other(format!(
                    "it is shorter than {offset} bytes"
                )));
            }
            file.set_len(offset)?;
            file.seek(SeekFrom::Start(offset))?;
            let written = pieces.iter().try_for_each(|piece| {
                let piece = piece.as_ref();
                let fits = self.faults.space_for(piece.len() as u64) as usize;
                file.write_all(&piece[..fits])?;
                match fits == piece.len() {
                    true => Ok(()),
                    false => Err(io::Error::from(io::ErrorKind::StorageFull)),
                }
            });
            if written.is_err() {
                // It is cut again before the next try; this returns the space at once.
                let _ = file.set_len(offset);
            }
            written
        };
        self.run("writing", path, write)
    }

    /// A whole small file, durable by itself.
    pub fn write_whole(&self, path: &Path, bytes: &[u8]) -> io::Result<()> {
        self.write_at(path, 0, &[bytes])?;
        self.sync_file(path)
    }

    pub fn sync_file(&self, path: &Path) -> io::Result<()> {
        self.run("syncing", path, || File::open(path)?.sync_all())
    }

    /// Makes the names in a directory durable.
    pub fn sync_dir(&self, path: &Path) -> io::Result<()> {
        self.run("syncing", path, || File::open(path)?.sync_all())
    }

    pub fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.run("renaming", from, || fs::rename(from, to))
    }

    /// Another name for an immutable file; a copy where the file system cannot do that.
    pub fn link(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.run("linking", from, || match fs::hard_link(from, to) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => Err(e),
            Err(_) => {
                let bytes = fs::metadata(from)?.len();
                if self.faults.space_for(bytes) < bytes {
                    return Err(io::ErrorKind::StorageFull.into());
                }
                fs::copy(from, to).map(|_| ())
            }
            Ok(()) => Ok(()),
        })
    }

    pub fn remove_dir_all(&self, path: &Path) -> io::Result<()> {
        self.run("removing", path, || match fs::remove_dir_all(path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
            other => other,
        })
    }

    pub fn read(&self, path: &Path) -> io::Result<Vec<u8>> {
        self.run("reading", path, || fs::read(path))
    }

    /// Whether so many bytes would fit now. Not known, it does not.
    pub fn has_space(&self, path: &Path, bytes: u64) -> bool {
        let full = self.faults.space.load(Ordering::SeqCst) < bytes;
        let free = rustix::fs::statvfs(path).map(|fs| fs.f_bavail.saturating_mul(fs.f_frsize));
        !full && free.is_ok_and(|free| free >= bytes)
    }

    /// Exactly `length` bytes from `offset` on.
    pub fn read_at(&self, path: &Path, offset: u64, length: usize) -> io::Result<Bytes> {
        self.run("reading", path, || {
            let mut file = File::open(path)?;
            file.seek(SeekFrom::Start(offset))?;
            let mut bytes = vec![0; length];
            file.read_exact(&mut bytes)?;
            Ok(bytes.into())
        })
    }

    pub fn length(&self, path: &Path) -> io::Result<u64> {
        self.run("looking at", path, || Ok(fs::metadata(path)?.len()))
    }

    /// Hands a file's bytes out piece by piece: whole files may be larger than memory.
    pub fn scan(&self, path: &Path, mut see: impl FnMut(&[u8])) -> io::Result<u64> {
        const PIECE: usize = 1 << 20;
        self.run("reading", path, || {
            let mut file = File::open(path)?;
            let mut piece = vec![0; PIECE];
            let mut total = 0;
            loop {
                match file.read(&mut piece)? {
                    0 => return Ok(total),
                    n => {
                        see(&piece[..n]);
                        total += n as u64;
                    }
                }
            }
        })
    }
}
