//! Faults of a disk for tests: full, failing, slow, and a power cut.
//!
//! Tests keep a clone of the [`Faults`] of the file system, and set them while the log runs. Production has
//! them too, unset: one relaxed load per operation.
//!
//! # The power cut
//!
//! After [`Faults::track_unsynced`], every change to a file is remembered, with what it replaced, until
//! that file is synced. [`Faults::power_cut`] then does to the files what a machine that lost power may
//! have done, and switches the (simulated) machine off: what still runs on it gets errors, and can neither
//! change a file nor get a lost write reported as durable. A new log on the same directory, with new
//! `Faults`, is the machine after its restart. The old log has to be dropped before, and would sync while
//! it is: [`Faults::bury`] makes that silent and without effect.
//!
//! Names of files (created, deleted) are modelled as durable at once.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use parking_lot::{Condvar, Mutex};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use rustix::io::Errno;

/// What a disk writes whole or not at all, in bytes.
const SECTOR_BYTES: u64 = 512;

/// The most that is remembered of unsynced changes, in bytes: far above what the log leaves
/// unsynced (one write group), so that reaching it means that a test forgot to sync.
const MAX_UNSYNCED_BYTES: u64 = 256 << 20;

/// The switches of a log's file system; clones share them. Inert until one is set.
#[derive(Clone, Default)]
pub struct Faults {
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    /// Whether anything in `state` is set.
    armed: AtomicBool,
    state: Mutex<State>,
    /// Wakes held syncs when something has changed.
    changed: Condvar,
}

#[derive(Default)]
struct State {
    /// Kind of failure, and bytes that can still be written before it.
    write: Option<(WriteFault, u64)>,
    allocate_fails: bool,
    sync_fails: bool,
    delete_fails: bool,
    reads_fail: bool,
    sync_stall: Duration,
    sync_held: bool,
    /// Syncs that wait because they are held.
    held_syncs: usize,
    before_read: Option<Box<dyn FnOnce() + Send>>,
    after_create: Option<Box<dyn FnOnce() + Send>>,
    catch: Option<Arc<Catch>>,
    unsynced: Option<BTreeMap<PathBuf, Unsynced>>,
    power: Power,
}

/// Called for a failed sync, in place of ending the process.
type Catch = dyn Fn(&Path, &io::Error) + Send + Sync;

#[derive(Default)]
enum Power {
    #[default]
    On,
    /// The power is off; these files lost something.
    Off { lost: BTreeSet<PathBuf> },
    /// The power is off, and closing files succeeds without effect.
    Buried,
}

/// How writes fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WriteFault {
    /// No space, as a real full disk is reported: raft-engine passes it on (`Error::Io`, kind
    /// `StorageFull`).
    NoSpace,
    /// No space, spelled as raft-engine's own file system does: it rotates and tries once more,
    /// and answers `Error::TryAgain` if that fails, too.
    NoSpaceRotate,
    /// An I/O error.
    Io,
}

/// What becomes of unsynced changes when the power is cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PowerCut {
    /// All are lost: contents and length are those of the last sync.
    DropUnsynced,
    /// Each sector of 512 bytes is old or new, at random, and the length is old, new or between.
    Tear {
        /// Of the random choices; the same seed and the same writes give the same files.
        seed: u64,
    },
}

/// Changes to one file since its last sync.
struct Unsynced {
    /// Length at the last sync.
    durable_len: u64,
    /// (offset, bytes): what changes replaced, in the order of the changes.
    replaced: Vec<(u64, Vec<u8>)>,
    /// (start, end) of what was written.
    written: Vec<(u64, u64)>,
    /// Bytes remembered here.
    bytes: u64,
}

impl Faults {
    /// No fault at all.
    pub fn new() -> Self {
        Self::default()
    }

    /// Writes fail once `bytes` more have been written: the one that crosses the line is cut
    /// short, and all after it fail, until [`Faults::clear`].
    pub fn fail_writes_after(&self, bytes: u64, fault: WriteFault) {
        self.set(|state| state.write = Some((fault, bytes)));
    }

    /// Whether preallocation fails, for want of space.
    pub fn fail_allocate(&self, fail: bool) {
        self.set(|state| state.allocate_fails = fail);
    }

    /// Whether syncs of files fail, with an I/O error and without syncing.
    pub fn fail_sync(&self, fail: bool) {
        self.set(|state| state.sync_fails = fail);
    }

    /// From now on a failed sync calls `observer` with the file (or directory) and the error, in place of
    /// ending the process. raft-engine still panics on that thread.
    pub fn catch_failed_sync(&self, observer: impl Fn(&Path, &io::Error) + Send + Sync + 'static) {
        self.set(|state| state.catch = Some(Arc::new(observer)));
    }

    /// Whether deletes fail, with an I/O error.
    pub fn fail_delete(&self, fail: bool) {
        self.set(|state| state.delete_fails = fail);
    }

    /// Every sync first sleeps that long; zero for none.
    pub fn stall_sync(&self, pause: Duration) {
        self.set(|state| state.sync_stall = pause);
    }

    /// Whether syncs wait, for as long as it is so.
    pub fn hold_sync(&self, hold: bool) {
        self.set(|state| state.sync_held = hold);
    }

    /// Whether reads of files fail, with an I/O error.
    pub fn fail_reads(&self, fail: bool) {
        self.set(|state| state.reads_fail = fail);
    }

    /// Runs once, on the reading thread, before the next read of a file: after the log has looked up where
    /// the entries are, and before it reads them.
    pub fn before_next_read(&self, run: impl FnOnce() + Send + 'static) {
        self.set(|state| state.before_read = Some(Box::new(run)));
    }

    /// Runs once, on the creating thread, after the next file was created and before it is written to.
    pub fn after_next_create(&self, run: impl FnOnce() + Send + 'static) {
        self.set(|state| state.after_create = Some(Box::new(run)));
    }

    pub(super) fn after_create(&self) {
        if self.inert() {
            return;
        }
        let run = self.shared.state.lock().after_create.take();
        if let Some(run) = run {
            run();
        }
    }

    pub(super) fn before_read(&self) -> io::Result<()> {
        if self.inert() {
            return Ok(());
        }
        let mut state = self.shared.state.lock();
        let (run, fails) = (state.before_read.take(), state.reads_fail);
        drop(state);
        if let Some(run) = run {
            run();
        }
        match fails {
            true => Err(Errno::IO.into()),
            false => Ok(()),
        }
    }

    /// How many syncs are held now.
    pub fn held_syncs(&self) -> usize {
        self.shared.state.lock().held_syncs
    }

    /// Ends all failures and stalls. Does not bring the power back.
    pub fn clear(&self) {
        self.set(|state| {
            *state = State {
                held_syncs: state.held_syncs,
                catch: state.catch.take(),
                unsynced: state.unsynced.take(),
                power: std::mem::take(&mut state.power),
                ..State::default()
            };
        });
    }

    /// Remembers unsynced changes from now on, so that the power can be cut. Call it before the
    /// log opens: what is on disk now counts as synced.
    pub fn track_unsynced(&self) {
        self.set(|state| state.unsynced = Some(BTreeMap::new()));
    }

    /// Cuts the power: see the module. Returns how many files lost something.
    ///
    /// # Errors
    ///
    /// Without [`Faults::track_unsynced`] before; and those of the real file system.
    pub fn power_cut(&self, cut: PowerCut) -> io::Result<usize> {
        let mut state = self.shared.state.lock();
        let Some(unsynced) = state.unsynced.take() else {
            return Err(io::Error::other(
                "a power cut needs track_unsynced() before",
            ));
        };
        state.power = Power::Off {
            lost: unsynced.keys().cloned().collect(),
        };
        let mut rng = match cut {
            PowerCut::DropUnsynced => None,
            PowerCut::Tear { seed } => Some(StdRng::seed_from_u64(seed)),
        };
        let lost = unsynced.len();
        for (path, changes) in unsynced {
            let file = OpenOptions::new().read(true).write(true).open(path)?;
            changes.lose(&file, rng.as_mut())?;
        }
        Ok(lost)
    }

    /// After a power cut, once no write is under way: from now on everything but a write succeeds
    /// and does nothing, so that the log of the dead machine can be dropped.
    pub fn bury(&self) {
        self.set(|state| state.power = Power::Buried);
    }

    fn set(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.shared.state.lock());
        self.shared.changed.notify_all();
        // Once a fault was set, every operation takes the slow path.
        self.shared.armed.store(true, Ordering::Release);
    }

    pub(super) fn inert(&self) -> bool {
        !self.shared.armed.load(Ordering::Relaxed)
    }

    /// Reports a failed sync to the test's observer; returns whether there is one.
    pub(super) fn catch(&self, path: &Path, error: &io::Error) -> bool {
        let catch = self.shared.state.lock().catch.clone();
        catch.map(|observer| observer(path, error)).is_some()
    }

    /// An error if the power is off and not buried.
    pub(super) fn power(&self) -> io::Result<()> {
        if self.inert() {
            return Ok(());
        }
        self.shared.state.lock().power.check()
    }

    pub(super) fn write(&self, path: &Path, file: &File, at: u64, buf: &[u8]) -> io::Result<usize> {
        if self.inert() {
            return file.write_at(buf, at);
        }
        let state = &mut *self.shared.state.lock();
        if !state.power.on()? {
            return Err(power_is_off());
        }
        let mut len = buf.len() as u64;
        if let Some((fault, left)) = &mut state.write {
            if *left == 0 && len > 0 {
                return Err(fault.error());
            }
            len = len.min(*left);
            *left -= len;
        }
        if let Some(unsynced) = &mut state.unsynced {
            let changes = Unsynced::of(unsynced, path, file)?;
            changes.replace(file, at, at + len)?;
            changes.written.push((at, at + len));
            changes.remember(len)?;
        }
        file.write_all_at(&buf[..len as usize], at)?;
        Ok(len as usize)
    }

    pub(super) fn sync(&self, path: &Path, file: &File) -> io::Result<()> {
        if self.inert() {
            return file.sync_data();
        }
        // A test that fails drops its log; a second panic would hide the first.
        if std::thread::panicking() {
            return Ok(());
        }
        // Without the lock, so that the power can be cut while a sync is under way.
        let stall = self.shared.state.lock().sync_stall;
        if !stall.is_zero() {
            std::thread::sleep(stall);
        }
        let mut state = self.shared.state.lock();
        state.held_syncs += 1;
        while state.sync_held {
            self.shared.changed.wait(&mut state);
        }
        state.held_syncs -= 1;
        let state = &mut *state;
        match &state.power {
            Power::On => {}
            Power::Off { lost } if lost.contains(path) => return state.power.check(),
            Power::Off { .. } | Power::Buried => return Ok(()),
        }
        if state.sync_fails {
            return Err(Errno::IO.into());
        }
        match &mut state.unsynced {
            // Only the disk of the simulated machine counts; the real one is not synced.
            Some(unsynced) => drop(unsynced.remove(path)),
            None => file.sync_data()?,
        }
        Ok(())
    }

    pub(super) fn truncate(&self, path: &Path, file: &File, len: u64) -> io::Result<()> {
        if self.inert() {
            return file.set_len(len);
        }
        let state = &mut *self.shared.state.lock();
        if !state.power.on()? {
            return Ok(());
        }
        if let Some(unsynced) = &mut state.unsynced {
            Unsynced::of(unsynced, path, file)?.replace(file, len, u64::MAX)?;
        }
        file.set_len(len)
    }

    pub(super) fn allocate(&self, path: &Path, file: &File, at: u64, len: u64) -> io::Result<()> {
        if self.inert() {
            return preallocate(file, at, len);
        }
        let state = &mut *self.shared.state.lock();
        if !state.power.on()? {
            return Ok(());
        }
        if state.allocate_fails {
            return Err(WriteFault::NoSpace.error());
        }
        if let Some(unsynced) = &mut state.unsynced {
            Unsynced::of(unsynced, path, file)?;
        }
        preallocate(file, at, len)
    }

    pub(super) fn remove(&self, path: &Path) -> io::Result<()> {
        if self.inert() {
            return std::fs::remove_file(path);
        }
        let state = &mut *self.shared.state.lock();
        if !state.power.on()? {
            return Ok(());
        }
        if state.delete_fails {
            return Err(Errno::IO.into());
        }
        if let Some(unsynced) = &mut state.unsynced {
            unsynced.remove(path);
        }
        std::fs::remove_file(path)
    }

    pub(super) fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        if self.inert() {
            return std::fs::rename(from, to);
        }
        let state = &mut *self.shared.state.lock();
        if !state.power.on()? {
            return Ok(());
        }
        std::fs::rename(from, to)?;
        if let Some(unsynced) = &mut state.unsynced
            && let Some(changes) = unsynced.remove(from)
        {
            unsynced.insert(to.to_owned(), changes);
        }
        Ok(())
    }
}

/// Extends `file` with zeros up to `at + len`; a file system that cannot is none the worse.
#[cfg(target_os = "linux")]
fn preallocate(file: &File, at: u64, len: u64) -> io::Result<()> {
    let extend = || rustix::fs::fallocate(file, rustix::fs::FallocateFlags::empty(), at, len);
    match rustix::io::retry_on_intr(extend) {
        Err(e) if e != Errno::OPNOTSUPP => Err(e.into()),
        _ => Ok(()),
    }
}

/// Elsewhere, files grow as they are written.
#[cfg(not(target_os = "linux"))]
fn preallocate(_: &File, _: u64, _: u64) -> io::Result<()> {
    Ok(())
}

impl WriteFault {
    fn error(self) -> io::Error {
        match self {
            Self::NoSpace => Errno::NOSPC.into(),
            Self::NoSpaceRotate => io::Error::new(io::ErrorKind::StorageFull, "nospace"),
            Self::Io => Errno::IO.into(),
        }
    }
}

fn power_is_off() -> io::Error {
    io::Error::other("the power is off")
}

impl Power {
    fn check(&self) -> io::Result<()> {
        match self {
            Self::Off { .. } => Err(power_is_off()),
            Self::On | Self::Buried => Ok(()),
        }
    }

    /// Whether to go on. An error if the power is off; `false` if the operation is to succeed without
    /// effect.
    fn on(&self) -> io::Result<bool> {
        self.check().map(|()| matches!(self, Self::On))
    }
}

impl Unsynced {
    fn of<'a>(
        all: &'a mut BTreeMap<PathBuf, Unsynced>,
        path: &Path,
        file: &File,
    ) -> io::Result<&'a mut Self> {
        let durable_len = file.metadata()?.len();
        Ok(all.entry(path.to_owned()).or_insert_with(|| Self {
            durable_len,
            replaced: Vec::new(),
            written: Vec::new(),
            bytes: 0,
        }))
    }

    /// Saves what `[from, to)` contains now, up to the length of the last sync.
    fn replace(&mut self, file: &File, from: u64, to: u64) -> io::Result<()> {
        let to = to.min(self.durable_len).min(file.metadata()?.len());
        if from < to {
            let old = read(file, from, to)?;
            self.replaced.push((from, old));
            self.remember(to - from)?;
        }
        Ok(())
    }

    fn remember(&mut self, bytes: u64) -> io::Result<()> {
        self.bytes += bytes;
        if self.bytes > MAX_UNSYNCED_BYTES {
            return Err(io::Error::other("too much unsynced to remember"));
        }
        Ok(())
    }

    /// Takes the file back to its last sync, and then, if torn, lets some of the changes through.
    fn lose(self, file: &File, rng: Option<&mut StdRng>) -> io::Result<()> {
        let len = file.metadata()?.len();
        let sectors: BTreeSet<u64> = self
            .written
            .iter()
            .flat_map(|(from, to)| from / SECTOR_BYTES..to.div_ceil(SECTOR_BYTES))
            .collect();
        let mut new = Vec::new();
        for sector in sectors {
            let at = sector * SECTOR_BYTES;
            if at < len {
                new.push((at, read(file, at, len.min(at + SECTOR_BYTES))?));
            }
        }
        file.set_len(self.durable_len)?;
        for (at, old) in self.replaced.iter().rev() {
            file.write_all_at(old, *at)?;
        }
        let Some(rng) = rng else { return Ok(()) };
        let torn_len = match rng.random_range(0..3) {
            0 => self.durable_len,
            1 => len,
            _ => rng.random_range(len.min(self.durable_len)..=len.max(self.durable_len)),
        };
        file.set_len(torn_len)?;
        for (at, bytes) in new {
            let fits = torn_len.saturating_sub(at).min(bytes.len() as u64) as usize;
            if rng.random_bool(0.5) {
                file.write_all_at(&bytes[..fits], at)?;
            }
        }
        Ok(())
    }
}

fn read(file: &File, from: u64, to: u64) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; (to - from) as usize];
    file.read_exact_at(&mut bytes, from)?;
    Ok(bytes)
}
