//! The file operations below the snapshot store, with the syncs that make them durable, and with faults for
//! tests.
//!
//! A crash can happen before or after every operation. [`DiskFaults`] make operations fail: with a full
//! disk after so many bytes; or one of them, or all of them, after so many operations, which leaves the
//! same files as a process that ended at that moment. Or they make operations wait, as an overloaded disk
//! does.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use bytes::Bytes;
use parking_lot::{Condvar, Mutex};

/// Never reached.
const UNLIMITED: u64 = u64::MAX;

/// Switches for tests; clones share them. Unused, they cost one or two atomic operations.
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

/// A disk whose operations hang.
#[derive(Debug, Default)]
struct StandingStill {
    /// The kind of operation that waits; none normally.
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

    /// The disk has space again.
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

    /// Operations of that kind (`"writing"`, `"reading"`, `"syncing"`, `"linking"`, …) wait until
    /// [`DiskFaults::move_on`]. Those of another kind that waited before go on.
    pub fn stand_still(&self, operation: &'static str) {
        *self.still.which.lock() = Some(operation);
        self.still.set.store(true, Ordering::SeqCst);
        self.still.over.notify_all();
    }

    /// Waiting operations go on.
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

    /// Whether a write has failed because the disk was full since [`DiskFaults::full_after`].
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

    /// How many of these bytes fit onto the disk.
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

    /// Names in a directory; none if it does not exist.
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

    /// Cuts the file to `offset` and writes the pieces there. At 0 the file is created again, so that other
    /// links to it are not changed. A failed write is cut off again.
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
                // The next attempt cuts it again; this frees the space at once.
                let _ = file.set_len(offset);
            }
            written
        };
        self.run("writing", path, write)
    }

    /// Writes a small file and syncs it.
    pub fn write_whole(&self, path: &Path, bytes: &[u8]) -> io::Result<()> {
        self.write_at(path, 0, &[bytes])?;
        self.sync_file(path)
    }

    pub fn sync_file(&self, path: &Path) -> io::Result<()> {
        self.run("syncing", path, || File::open(path)?.sync_all())
    }

    /// Syncs a directory, which makes its names durable.
    pub fn sync_dir(&self, path: &Path) -> io::Result<()> {
        self.run("syncing", path, || File::open(path)?.sync_all())
    }

    pub fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.run("renaming", from, || fs::rename(from, to))
    }

    /// Links an immutable file, or copies it where the file system has no hard links.
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

    /// Whether so many bytes fit now. False if that cannot be determined.
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

    /// Reads a file piece by piece, because files may be larger than memory.
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
