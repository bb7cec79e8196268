//! The reserve: a file of the data directory that takes space, so that there is some when a disk is full.
//!
//! On a full disk a trim or a deletion needs space before it gives any back: its entry in the log, the
//! memtable that is flushed, the list of the database's files. So a file of that size is set aside while
//! there is room ([`Reserve::take`]), removed when a command that gives space back finds the disk full
//! ([`Reserve::release`]), and taken again once there is room. It holds no data: a crash leaves it there
//! or not, and both are right; one that was not set aside to its end is removed when it is found.
//!
//! A file system that cannot set space aside has no reserve ([`Reserve::is_possible`]).

use std::fs::{self, File, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// Its name in the data directory.
const NAME: &str = "reserve";

/// See the [module's head](self).
#[derive(Debug)]
pub(crate) struct Reserve {
    path: PathBuf,
    /// Bytes that it holds; 0 if it is not there.
    held: AtomicU64,
    is_impossible: AtomicBool,
}

impl Reserve {
    /// Looks whether it is there.
    pub fn open(data_dir: &Path) -> Reserve {
        let path = data_dir.join(NAME);
        let held = allocated(&path).unwrap_or(0);
        if held == 0 {
            // A copy of the directory may have one that holds no space. What cannot be removed is tried again
            // when the next one is taken.
            let _ = fs::remove_file(&path);
        }
        Reserve {
            path,
            held: AtomicU64::new(held),
            is_impossible: AtomicBool::new(false),
        }
    }

    /// Bytes that it holds.
    pub fn held(&self) -> u64 {
        self.held.load(Ordering::Acquire)
    }

    /// Whether the file system sets space aside, as far as that is known.
    pub fn is_possible(&self) -> bool {
        !self.is_impossible.load(Ordering::Relaxed)
    }

    /// Sets so many bytes aside, unless it is there.
    ///
    /// # Errors
    ///
    /// What the operating system says; then nothing is set aside.
    pub fn take(&self, bytes: u64) -> io::Result<()> {
        if self.held() > 0 || bytes == 0 || !self.is_possible() {
            return Ok(());
        }
        let taken = self.allocate(bytes);
        match &taken {
            Ok(()) => self.held.store(bytes, Ordering::Release),
            Err(error) => {
                if error.kind() == io::ErrorKind::Unsupported {
                    self.is_impossible.store(true, Ordering::Relaxed);
                }
                let _ = fs::remove_file(&self.path);
            }
        }
        taken
    }

    fn allocate(&self, bytes: u64) -> io::Result<()> {
        let mut options = OpenOptions::new();
        let file = options
            .write(true)
            .create(true)
            .truncate(true)
            .open(&self.path)?;
        set_aside(&file, bytes)
    }

    /// Gives its space back to the disk; how many bytes that were, if it was there.
    ///
    /// # Errors
    ///
    /// It cannot be removed now, and is still there.
    pub fn release(&self) -> io::Result<Option<u64>> {
        let held = self.held.swap(0, Ordering::AcqRel);
        if held == 0 {
            return Ok(None);
        }
        match fs::remove_file(&self.path) {
            Ok(()) => Ok(Some(held)),
            // Somebody made room in a way of their own.
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Some(held)),
            Err(error) => {
                self.held.store(held, Ordering::Release);
                Err(error)
            }
        }
    }
}

/// Its length, if the file system has set aside all of it.
fn allocated(path: &Path) -> Option<u64> {
    use std::os::unix::fs::MetadataExt as _;
    let meta = fs::metadata(path).ok()?;
    (meta.is_file() && meta.blocks().saturating_mul(512) >= meta.len()).then_some(meta.len())
}

#[cfg(target_os = "linux")]
fn set_aside(file: &File, bytes: u64) -> io::Result<()> {
    let flags = rustix::fs::FallocateFlags::empty();
    let set = rustix::io::retry_on_intr(|| rustix::fs::fallocate(file, flags, 0, bytes));
    set.map_err(|error| match error {
        rustix::io::Errno::OPNOTSUPP => io::ErrorKind::Unsupported.into(),
        error => error.into(),
    })
}

#[cfg(not(target_os = "linux"))]
fn set_aside(_: &File, _: u64) -> io::Result<()> {
    Err(io::ErrorKind::Unsupported.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    const BYTES: u64 = 1 << 20;

    #[test]
    fn a_reserve_holds_space_until_it_is_released_also_over_a_restart() {
        let dir = tempfile::tempdir().unwrap();
        let reserve = Reserve::open(dir.path());
        assert_eq!((reserve.held(), reserve.release().unwrap()), (0, None));
        if let Err(error) = reserve.take(BYTES) {
            assert_eq!(error.kind(), io::ErrorKind::Unsupported);
            eprintln!("SKIPPED: the file system of {dir:?} sets no space aside");
            return;
        }
        assert_eq!(reserve.held(), BYTES);
        assert_eq!(allocated(&dir.path().join(NAME)), Some(BYTES));
        let again = Reserve::open(dir.path());
        assert_eq!(again.held(), BYTES);
        assert_eq!(again.release().unwrap(), Some(BYTES));
        assert!(!dir.path().join(NAME).exists());
        assert_eq!((again.held(), again.release().unwrap()), (0, None));
    }

    #[test]
    fn a_file_that_holds_no_space_is_no_reserve_and_is_replaced() {
        let dir = tempfile::tempdir().unwrap();
        // What a crash or a copy of the directory leaves.
        let file = File::create(dir.path().join(NAME)).unwrap();
        file.set_len(BYTES).unwrap();
        let reserve = Reserve::open(dir.path());
        assert_eq!(reserve.held(), 0);
        if reserve.take(BYTES).is_ok() {
            assert_eq!(Reserve::open(dir.path()).held(), BYTES);
        }
    }
}
