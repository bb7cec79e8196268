//! The reserve: a file of the data directory that takes space, which is released when the disk is full.
//!
//! On a full disk a trim or a deletion needs space before it gives any back: for its entry in the log, the
//! memtable that is flushed, and the list of the database's files. So a file of that size is allocated while
//! there is space ([`Reserve::keep`]), removed when a command that gives space back finds the disk full
//! ([`Reserve::release`]), and allocated again once there is space. It holds no data: a crash leaves it
//! there or not, and both are right. Other programs may remove or shorten it, and the settings may require
//! another size: it is checked from time to time ([`Reserve::look`]), and corrected.
//!
//! A file system that cannot allocate space in advance has no reserve ([`Reserve::is_possible`]). It is asked
//! again from time to time: another one may be mounted in its place.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

/// Its name in the data directory.
const NAME: &str = "reserve";
/// A reserve whose size differs from the wanted one by less than this share is left as it is: the size of
/// some file systems, and so the wanted size, changes all the time.
const SIZE_TOLERANCE: u64 = 16;
/// First and longest wait between attempts that the file system refuses: a quota or a limit lasts.
const FIRST_RETRY: Duration = Duration::from_secs(1);
const LAST_RETRY: Duration = Duration::from_secs(60);
/// Time after which a file system that cannot allocate space in advance is asked again.
const IMPOSSIBLE_RETRY: Duration = Duration::from_secs(600);

/// See the [module's head](self).
#[derive(Debug)]
pub(crate) struct Reserve {
    path: PathBuf,
    /// Bytes that it holds; 0 if it does not exist.
    held: AtomicU64,
    is_impossible: AtomicBool,
    /// Bytes that were released, and that nobody has noted yet ([`Reserve::take_released`]).
    released: AtomicU64,
    /// One thread at a time changes the file.
    attempts: Mutex<Attempts>,
}

/// Failed attempts to allocate it.
#[derive(Debug, Default)]
struct Attempts {
    /// Number of failures in a row.
    failed: u32,
    /// The earliest time of the next attempt.
    not_before: Option<Instant>,
}

impl Reserve {
    /// Opens the reserve, and measures it if it exists.
    pub fn open(data_dir: &Path) -> Reserve {
        let reserve = Reserve {
            path: data_dir.join(NAME),
            held: AtomicU64::new(0),
            is_impossible: AtomicBool::new(false),
            released: AtomicU64::new(0),
            attempts: Mutex::default(),
        };
        reserve.look();
        reserve
    }

    /// Bytes that it held when it was last measured.
    pub fn held(&self) -> u64 {
        self.held.load(Ordering::Acquire)
    }

    /// Whether the file system can allocate space in advance, as far as that is known.
    pub fn is_possible(&self) -> bool {
        !self.is_impossible.load(Ordering::Relaxed)
    }

    /// Whether an attempt to allocate it may succeed: the file system can, or is to be asked again.
    pub fn may_be_possible(&self, now: Instant) -> bool {
        let not_before = || self.attempts.lock().not_before;
        self.is_possible() || not_before().is_none_or(|at| now >= at)
    }

    /// Measures it: another program may have removed or shortened it.
    pub fn look(&self) {
        let _one = self.attempts.lock();
        self.look_alone();
    }

    fn look_alone(&self) {
        // If it cannot be measured now, the last measurement stays.
        if let Ok(held) = allocated(&self.path) {
            self.held.store(held, Ordering::Release);
        }
    }

    /// Whether it holds about this many bytes.
    pub fn is_of(&self, bytes: u64) -> bool {
        let held = self.held();
        held > 0 && held.abs_diff(bytes) <= bytes / SIZE_TOLERANCE
    }

    /// Makes it hold this many bytes; returns whether it was changed. After a failure, the next attempt is
    /// made after 1 s to 60 s.
    ///
    /// # Errors
    ///
    /// The error of the operating system; then it holds what it did before.
    pub fn keep(&self, bytes: u64, now: Instant) -> io::Result<bool> {
        let mut attempts = self.attempts.lock();
        self.look_alone();
        let waits = attempts.not_before.is_some_and(|at| now < at);
        if bytes == 0 || self.is_of(bytes) || waits {
            return Ok(false);
        }
        let before = self.held();
        // Free space that is read during the allocation is less by this size already.
        self.held.store(before.max(bytes), Ordering::Release);
        let resized = self.resize(bytes);
        match &resized {
            Ok(()) => {
                *attempts = Attempts::default();
                self.is_impossible.store(false, Ordering::Relaxed);
            }
            Err(error) if error.kind() == io::ErrorKind::Unsupported => {
                self.is_impossible.store(true, Ordering::Relaxed);
                attempts.not_before = Some(now + IMPOSSIBLE_RETRY);
                let _ = fs::remove_file(&self.path);
            }
            Err(_) => {
                let wait = FIRST_RETRY.saturating_mul(1 << attempts.failed.min(6));
                attempts.failed += 1;
                attempts.not_before = Some(now + wait.min(LAST_RETRY));
                // An allocation that failed may have set part of it aside. It is never made longer here: what is
                // added would hold no space.
                let _ = match before {
                    0 => fs::remove_file(&self.path),
                    before => self.open_file().and_then(|file| {
                        let length = file.metadata()?.len();
                        file.set_len(length.min(before))
                    }),
                };
            }
        }
        self.look_alone();
        resized.map(|()| true)
    }

    fn open_file(&self) -> io::Result<File> {
        let mut options = OpenOptions::new();
        options.write(true).create(true).truncate(false);
        options.open(&self.path)
    }

    fn resize(&self, bytes: u64) -> io::Result<()> {
        let there = fs::symlink_metadata(&self.path);
        if there.is_ok_and(|there| !there.is_file()) {
            // A link may lead to another disk.
            fs::remove_file(&self.path)?;
        }
        let file = self.open_file()?;
        if file.metadata()?.len() > bytes {
            file.set_len(bytes)?;
        }
        set_aside(&file, bytes)?;
        match holds_all(&file.metadata()?) {
            true => Ok(()),
            // The file system accepts the request, and allocates nothing.
            false => Err(io::ErrorKind::Unsupported.into()),
        }
    }

    /// Bytes that were released since the last call. A release counts although whoever asked for it has gone.
    pub fn take_released(&self) -> u64 {
        self.released.swap(0, Ordering::AcqRel)
    }

    /// Bytes of the disk that the file takes, also if it is no whole reserve: a crash or a failed allocation can
    /// leave a part.
    pub fn bytes_on_disk(&self) -> u64 {
        self.held().max(blocks(&self.path).unwrap_or_default())
    }

    /// Gives its space back to the disk, also that of a part; how many bytes that were, if it was there.
    ///
    /// # Errors
    ///
    /// It cannot be removed now, and still exists.
    pub fn release(&self) -> io::Result<Option<u64>> {
        let _one = self.attempts.lock();
        self.look_alone();
        let bytes = match self.held() {
            0 => blocks(&self.path)?,
            held => held,
        };
        if bytes == 0 {
            return Ok(None);
        }
        match fs::remove_file(&self.path) {
            Ok(()) => {
                self.held.store(0, Ordering::Release);
                self.released.fetch_add(bytes, Ordering::AcqRel);
                Ok(Some(bytes))
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                self.held.store(0, Ordering::Release);
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }
}

/// Bytes that the file system has allocated for it: all of its length; otherwise it is not a reserve.
fn allocated(path: &Path) -> io::Result<u64> {
    match fs::symlink_metadata(path) {
        Ok(meta) if meta.is_file() && holds_all(&meta) => Ok(meta.len()),
        Ok(_) => Ok(0),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(0),
        Err(error) => Err(error),
    }
}

/// Bytes that a regular file takes on the disk, whatever its length.
fn blocks(path: &Path) -> io::Result<u64> {
    match fs::symlink_metadata(path) {
        Ok(meta) if meta.is_file() => Ok(meta.blocks().saturating_mul(512)),
        Ok(_) => Ok(0),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(0),
        Err(error) => Err(error),
    }
}

fn holds_all(meta: &fs::Metadata) -> bool {
    meta.blocks().saturating_mul(512) >= meta.len()
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

    /// A directory whose file system can allocate space in advance; `None` if this one cannot.
    fn directory() -> Option<tempfile::TempDir> {
        let dir = tempfile::tempdir().unwrap();
        match Reserve::open(dir.path()).keep(BYTES, Instant::now()) {
            Ok(_) => {
                fs::remove_file(dir.path().join(NAME)).unwrap();
                Some(dir)
            }
            Err(error) => {
                assert_eq!(error.kind(), io::ErrorKind::Unsupported);
                eprintln!("SKIPPED: the file system of {dir:?} sets no space aside");
                None
            }
        }
    }

    #[test]
    fn a_reserve_holds_space_until_it_is_released_also_over_a_restart() {
        let Some(dir) = directory() else { return };
        let now = Instant::now();
        let reserve = Reserve::open(dir.path());
        assert_eq!((reserve.held(), reserve.release().unwrap()), (0, None));
        assert!(reserve.keep(BYTES, now).unwrap());
        assert!(!reserve.keep(BYTES, now).unwrap(), "it is there");
        assert_eq!(reserve.held(), BYTES);
        assert_eq!(allocated(&dir.path().join(NAME)).unwrap(), BYTES);
        let again = Reserve::open(dir.path());
        assert_eq!(again.held(), BYTES);
        assert_eq!(again.release().unwrap(), Some(BYTES));
        assert!(!dir.path().join(NAME).exists());
        assert_eq!((again.held(), again.release().unwrap()), (0, None));
    }

    #[test]
    fn a_file_that_holds_no_space_is_no_reserve_and_is_made_one() {
        let Some(dir) = directory() else { return };
        // A file as a crash or a copy of the directory leaves it.
        let file = File::create(dir.path().join(NAME)).unwrap();
        file.set_len(BYTES).unwrap();
        let reserve = Reserve::open(dir.path());
        assert_eq!(reserve.held(), 0);
        assert!(reserve.keep(BYTES, Instant::now()).unwrap());
        assert_eq!(Reserve::open(dir.path()).held(), BYTES);
    }

    #[test]
    fn a_file_system_that_could_set_nothing_aside_is_asked_again_later() {
        let Some(dir) = directory() else { return };
        let now = Instant::now();
        let reserve = Reserve::open(dir.path());
        reserve.is_impossible.store(true, Ordering::Relaxed);
        reserve.attempts.lock().not_before = Some(now + IMPOSSIBLE_RETRY);
        assert!(!reserve.may_be_possible(now) && !reserve.keep(BYTES, now).unwrap());
        let later = now + IMPOSSIBLE_RETRY;
        assert!(reserve.may_be_possible(later) && reserve.keep(BYTES, later).unwrap());
        assert!(reserve.is_possible());
        assert_eq!(reserve.held(), BYTES);
    }

    #[test]
    fn a_part_of_a_reserve_is_released_too() {
        let Some(dir) = directory() else { return };
        // What a crash in an allocation leaves: some blocks, and another length.
        let file = File::create(dir.path().join(NAME)).unwrap();
        set_aside(&file, BYTES).unwrap();
        file.set_len(4 * BYTES).unwrap();
        let reserve = Reserve::open(dir.path());
        assert_eq!(reserve.held(), 0);
        assert!(reserve.bytes_on_disk() >= BYTES);
        assert!(reserve.release().unwrap().unwrap() >= BYTES);
        assert!(!dir.path().join(NAME).exists());
        assert!(reserve.take_released() >= BYTES);
        assert_eq!(reserve.take_released(), 0);
    }

    #[test]
    fn a_reserve_of_another_size_gets_the_one_that_is_wanted() {
        let Some(dir) = directory() else { return };
        let now = Instant::now();
        let reserve = Reserve::open(dir.path());
        for wanted in [BYTES, 3 * BYTES, 2 * BYTES] {
            assert!(reserve.keep(wanted, now).unwrap(), "{wanted}");
            assert_eq!(reserve.held(), wanted);
            assert_eq!(allocated(&dir.path().join(NAME)).unwrap(), wanted);
        }
        // A small change of the wanted size does not cause a write.
        assert!(!reserve.keep(2 * BYTES + 1, now).unwrap());
        // Another program shortened it.
        let file = OpenOptions::new().write(true).open(dir.path().join(NAME));
        file.unwrap().set_len(BYTES / 2).unwrap();
        reserve.look();
        assert_eq!(reserve.held(), BYTES / 2);
        assert!(reserve.keep(2 * BYTES, now).unwrap());
        assert_eq!(reserve.held(), 2 * BYTES);
    }

    #[test]
    fn a_reserve_that_somebody_removed_is_not_released_and_is_taken_again() {
        let Some(dir) = directory() else { return };
        let now = Instant::now();
        let reserve = Reserve::open(dir.path());
        reserve.keep(BYTES, now).unwrap();
        fs::remove_file(dir.path().join(NAME)).unwrap();
        assert_eq!(reserve.release().unwrap(), None);
        assert_eq!(reserve.held(), 0);
        reserve.keep(BYTES, now).unwrap();
        fs::remove_file(dir.path().join(NAME)).unwrap();
        reserve.look();
        assert_eq!(reserve.held(), 0);
        assert!(reserve.keep(BYTES, now).unwrap());
        assert_eq!(Reserve::open(dir.path()).held(), BYTES);
    }

    #[test]
    fn a_reserve_that_the_file_system_refuses_is_tried_again_ever_more_seldom() {
        let Some(dir) = directory() else { return };
        // No file can have this many bytes.
        let refused = u64::MAX;
        let reserve = Reserve::open(dir.path());
        let start = Instant::now();
        reserve.keep(BYTES, start).unwrap();
        let mut failed = Vec::new();
        for second in 0..300 {
            if reserve
                .keep(refused, start + Duration::from_secs(second))
                .is_err()
            {
                failed.push(second);
            }
            assert_eq!(reserve.held(), BYTES, "what was there stays");
        }
        let waits: Vec<_> = failed.windows(2).map(|two| two[1] - two[0]).collect();
        let expected = [1, 2, 4, 8, 16, 32, 60, 60, 60];
        assert_eq!(waits, expected);
        assert!(reserve.is_possible());
        // It is allocated as soon as that is possible.
        assert!(
            reserve
                .keep(2 * BYTES, start + Duration::from_secs(400))
                .unwrap()
        );
        assert!(
            reserve
                .keep(refused, start + Duration::from_secs(400))
                .is_err()
        );
    }
}
