//! JSON snapshots on this disk: `snapshots/` of the data directory.
//!
//! ```text
//! snapshots/snapshot-<commit_ts>.json              a snapshot, see `document`
//! snapshots/.sums/snapshot-<commit_ts>.json.xxh128 its checksum, as `xxh128sum` writes it
//! snapshots/.tmp-<commit_ts>                       one that was not finished
//! ```
//!
//! One becomes visible by a rename, after it and its checksum are synced: what is there is whole, unless
//! somebody or the disk has changed it. One that was removed by hand is no error. One without a checksum
//! is read strictly, with a warning; one that does not match its own is never used.

use std::cell::Cell;
use std::fs::{self, File};
use std::io::{self, BufReader, BufWriter, Read, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use esker_partition::state::{StateEntry, StateKey};
use xxhash_rust::xxh3::Xxh3;

use super::document::{self, Header, ReadEntry};
use super::error::FileError;

/// Written in pieces of this many bytes.
const PIECE: usize = 256 * 1024;
/// Synced after this many: the disk is never far behind, so that no commit's sync has to wait for it.
const SYNC_EVERY: u64 = 2 * 1024 * 1024;
/// Bytes a second at most: commits share the disk and the processors.
const RATE: f64 = 48.0 * 1024.0 * 1024.0;
/// Bytes that are read at most for one entry, which has a MiB and its names, however it is laid out: no
/// file makes memory grow.
const MAX_ENTRY: u64 = 16 * 1024 * 1024;
/// Bytes of the disk that no snapshot takes: a commit needs room in the log, and can do without a snapshot.
const LEAVE_FREE: u64 = 64 * 1024 * 1024;

/// The directory of JSON snapshots.
#[derive(Clone, Debug)]
pub(crate) struct Files {
    dir: PathBuf,
    leave_free: u64,
}

/// A snapshot that was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Written {
    pub header: Header,
    pub keys: u64,
    pub bytes: u64,
    /// In hexadecimal digits.
    pub sum: String,
}

impl Written {
    /// What its checksum's file says.
    pub fn sum_line(&self) -> String {
        format!("{}  {}\n", self.sum, name_of(self.header.commit_ts))
    }
}

/// The file of a snapshot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Found {
    pub commit_ts: u64,
    pub path: PathBuf,
    pub bytes: u64,
}

/// Its name.
pub(crate) fn name_of(commit_ts: u64) -> String {
    format!("snapshot-{commit_ts}.json")
}

/// The commit of a snapshot's name.
pub(crate) fn commit_of(name: &str) -> Option<u64> {
    let digits = name.strip_prefix("snapshot-")?.strip_suffix(".json")?;
    let commit_ts = digits.parse().ok()?;
    // `snapshot-007.json` is somebody else's.
    (name_of(commit_ts) == name).then_some(commit_ts)
}

impl Files {
    /// The directory, made if it is missing; what was not finished in it is removed.
    pub fn open(dir: PathBuf) -> io::Result<Files> {
        let files = Files {
            dir,
            leave_free: LEAVE_FREE,
        };
        fs::create_dir_all(files.sums())?;
        sync(&files.dir)?;
        for entry in fs::read_dir(&files.dir)? {
            let entry = entry?;
            if entry.file_name().to_string_lossy().starts_with(".tmp-") {
                fs::remove_file(entry.path())?;
            }
        }
        files.forget_sums()?;
        Ok(files)
    }

    /// The directory as it is, for looking only: nothing in it is made or removed.
    pub fn at(dir: PathBuf) -> Files {
        Files {
            dir,
            leave_free: LEAVE_FREE,
        }
    }

    pub fn dir(&self) -> &Path {
        &self.dir
    }

    fn sums(&self) -> PathBuf {
        self.dir.join(".sums")
    }

    pub fn path(&self, commit_ts: u64) -> PathBuf {
        self.dir.join(name_of(commit_ts))
    }

    pub fn sum_path(&self, commit_ts: u64) -> PathBuf {
        self.sums().join(format!("{}.xxh128", name_of(commit_ts)))
    }

    /// Whether the disk has room for more than what is left to the log.
    pub fn has_room(&self) -> io::Result<()> {
        has_room(&File::open(&self.dir)?, self.leave_free)
    }

    /// What is there, newest first.
    pub fn list(&self) -> io::Result<Vec<Found>> {
        let mut found = Vec::new();
        let entries = match fs::read_dir(&self.dir) {
            Ok(entries) => entries,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(found),
            Err(e) => return Err(e),
        };
        for entry in entries {
            let entry = entry?;
            let Some(commit_ts) = entry.file_name().to_str().and_then(commit_of) else {
                continue;
            };
            match entry.metadata() {
                Ok(metadata) if metadata.is_file() => found.push(Found {
                    commit_ts,
                    path: entry.path(),
                    bytes: metadata.len(),
                }),
                Ok(_) => {}
                Err(e) if e.kind() == io::ErrorKind::NotFound => {}
                Err(e) => return Err(e),
            }
        }
        found.sort_by_key(|one| std::cmp::Reverse(one.commit_ts));
        Ok(found)
    }

    /// Writes a snapshot: whole or not at all, durable when this returns. `entries` gives its entries to
    /// the writer.
    pub fn write<E: From<io::Error>>(
        &self,
        header: Header,
        entries: impl FnOnce(&mut Writer) -> Result<(), E>,
    ) -> Result<Written, E> {
        // The directory may have been removed by hand.
        fs::create_dir_all(self.sums())?;
        let temporary = self.dir.join(format!(".tmp-{}", header.commit_ts));
        let done = self.write_to(&temporary, header, entries);
        if done.is_err() {
            let _ = fs::remove_file(&temporary);
        }
        done
    }

    fn write_to<E: From<io::Error>>(
        &self,
        temporary: &Path,
        header: Header,
        entries: impl FnOnce(&mut Writer) -> Result<(), E>,
    ) -> Result<Written, E> {
        let file = File::create(temporary)?;
        has_room(&file, self.leave_free)?;
        let mut writer = Writer::new(file, self.leave_free);
        document::write_header(&mut writer.to, &header)?;
        entries(&mut writer)?;
        document::write_end(&mut writer.to)?;
        writer.to.flush()?;
        let keys = writer.keys;
        let Paced {
            file, bytes, hash, ..
        } = writer
            .to
            .into_inner()
            .map_err(|e| E::from(e.into_error()))?;
        file.sync_all()?;
        let written = Written {
            header,
            keys,
            bytes,
            sum: format!("{:032x}", hash.digest128()),
        };
        let commit_ts = written.header.commit_ts;
        let mut file = File::create(self.sum_path(commit_ts))?;
        file.write_all(written.sum_line().as_bytes())?;
        file.sync_all()?;
        sync(&self.sums())?;
        fs::rename(temporary, self.path(commit_ts))?;
        sync(&self.dir)?;
        Ok(written)
    }

    /// Reads a snapshot to its end, and gives its entries, which are not to be used before it has
    /// succeeded; whether it has a checksum that it was compared with.
    pub fn read(
        &self,
        commit_ts: u64,
        mut take: impl FnMut(StateKey, StateEntry) -> Result<(), String>,
    ) -> Result<(Written, bool), FileError> {
        let path = self.path(commit_ts);
        let file = File::open(&path)?;
        let expected = match fs::read_to_string(self.sum_path(commit_ts)) {
            Ok(text) => Some(
                text.split_whitespace()
                    .next()
                    .unwrap_or_default()
                    .to_owned(),
            ),
            Err(e) if e.kind() == io::ErrorKind::NotFound => None,
            Err(e) => {
                let error = io::Error::new(e.kind(), format!("its checksum: {e}"));
                return Err(error.into());
            }
        };
        let written = read(file, |one| take(one.key, one.entry))?;
        match expected {
            Some(expected) if expected != written.sum => Err(FileError::Damaged(format!(
                "its checksum is {}, and {expected} was written",
                written.sum
            ))),
            _ if written.header.commit_ts != commit_ts => Err(FileError::Damaged(format!(
                "it is of commit_ts {}, not of that in its name",
                written.header.commit_ts
            ))),
            expected => Ok((written, expected.is_some())),
        }
    }

    /// Reads it to its end, and forgets it.
    pub fn check(&self, commit_ts: u64) -> Result<(Written, bool), FileError> {
        self.read(commit_ts, |_, _| Ok(()))
    }

    /// Takes one over from another directory of the same file system, in the place of one of that name.
    /// A crash in between leaves one that its checksum does not fit, which is never used.
    pub fn adopt(&self, from: &Files, commit_ts: u64) -> io::Result<()> {
        let or_none = |done: io::Result<()>| match done {
            Ok(()) => Ok(true),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(e) => Err(e),
        };
        let sum = self.sum_path(commit_ts);
        fs::create_dir_all(self.sums())?;
        let has_sum = or_none(fs::rename(from.sum_path(commit_ts), &sum))?;
        sync(&self.sums())?;
        fs::rename(from.path(commit_ts), self.path(commit_ts))?;
        sync(&self.dir)?;
        // Only now: without it, what was here before would be believed.
        if !has_sum && or_none(fs::remove_file(&sum))? {
            sync(&self.sums())?;
        }
        Ok(())
    }

    /// Gives what is in the place of a snapshot, and is to stay, another name; that name.
    pub fn set_aside(&self, commit_ts: u64) -> io::Result<PathBuf> {
        let path = self.path(commit_ts);
        let free = (1u32..).map(|n| self.dir.join(format!("{}.{n}.aside", name_of(commit_ts))));
        let mut free = free.filter(|aside| !aside.exists());
        let aside = free.next().ok_or(io::ErrorKind::AlreadyExists)?;
        fs::rename(&path, &aside)?;
        sync(&self.dir)?;
        Ok(aside)
    }

    /// Removes these; the commits of those that were there.
    pub fn remove(&self, commits: &[u64]) -> io::Result<Vec<u64>> {
        let mut removed = Vec::new();
        for commit_ts in commits {
            match fs::remove_file(self.path(*commit_ts)) {
                Ok(()) => removed.push(*commit_ts),
                Err(e) if e.kind() == io::ErrorKind::NotFound => {}
                Err(e) => return Err(e),
            }
        }
        if !removed.is_empty() {
            sync(&self.dir)?;
        }
        self.forget_sums()?;
        Ok(removed)
    }

    /// Removes checksums of what is no longer there.
    fn forget_sums(&self) -> io::Result<()> {
        for entry in fs::read_dir(self.sums())? {
            let entry = entry?;
            let name = entry.file_name();
            let of = name.to_str().and_then(|name| name.strip_suffix(".xxh128"));
            if of.is_some_and(|of| commit_of(of).is_some() && !self.dir.join(of).exists()) {
                fs::remove_file(entry.path())?;
            }
        }
        Ok(())
    }
}

/// Reads a snapshot, and computes its checksum.
pub(crate) fn read(
    from: impl Read,
    mut take: impl FnMut(ReadEntry) -> Result<(), String>,
) -> Result<Written, FileError> {
    let unparsed = Cell::new(0);
    let mut hashing = Hashing {
        from,
        bytes: 0,
        unparsed: &unparsed,
        hash: Xxh3::new(),
    };
    let mut keys = 0;
    let header = document::read(BufReader::with_capacity(PIECE, &mut hashing), |entry| {
        keys += 1;
        unparsed.set(0);
        take(entry)
    })?;
    Ok(Written {
        header,
        keys,
        bytes: hashing.bytes,
        sum: format!("{:032x}", hashing.hash.digest128()),
    })
}

struct Hashing<'a, R> {
    from: R,
    bytes: u64,
    /// Bytes since the last entry.
    unparsed: &'a Cell<u64>,
    hash: Xxh3,
}

impl<R: Read> Read for Hashing<'_, R> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        if self.unparsed.get() > MAX_ENTRY {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                format!("more than {MAX_ENTRY} bytes without an entry"),
            ));
        }
        let count = self.from.read(into)?;
        self.unparsed.set(self.unparsed.get() + count as u64);
        self.bytes += count as u64;
        self.hash.update(&into[..count]);
        Ok(count)
    }
}

/// Takes the entries of a snapshot.
pub(crate) struct Writer {
    to: BufWriter<Paced>,
    keys: u64,
}

impl Writer {
    fn new(file: File, leave_free: u64) -> Writer {
        let paced = Paced {
            file,
            leave_free,
            bytes: 0,
            synced: 0,
            hash: Xxh3::new(),
            since: Instant::now(),
        };
        Writer {
            to: BufWriter::with_capacity(PIECE, paced),
            keys: 0,
        }
    }

    /// Adds an entry; see [`document::write_entry`].
    pub fn entry(
        &mut self,
        key: &StateKey,
        entry: &StateEntry,
        is_unchecked: bool,
    ) -> io::Result<()> {
        document::write_entry(&mut self.to, self.keys == 0, key, entry, is_unchecked)?;
        self.keys += 1;
        Ok(())
    }
}

/// A file that is written no faster than [`RATE`], and synced on the way.
struct Paced {
    file: File,
    leave_free: u64,
    bytes: u64,
    synced: u64,
    hash: Xxh3,
    since: Instant,
}

impl Write for Paced {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = self.file.write(bytes)?;
        self.hash.update(&bytes[..count]);
        self.bytes += count as u64;
        if self.bytes - self.synced >= SYNC_EVERY {
            self.file.sync_data()?;
            has_room(&self.file, self.leave_free)?;
            self.synced = self.bytes;
        }
        let due = Duration::from_secs_f64(self.bytes as f64 / RATE);
        std::thread::sleep(due.saturating_sub(self.since.elapsed()));
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

/// Whether so many bytes are free beside a file. Not known, they are.
fn has_room(file: &File, leave_free: u64) -> io::Result<()> {
    let Ok(stats) = rustix::fs::fstatvfs(file) else {
        return Ok(());
    };
    let free = stats.f_bavail.saturating_mul(stats.f_frsize);
    if free >= leave_free {
        return Ok(());
    }
    Err(io::Error::new(
        io::ErrorKind::StorageFull,
        format!(
            "{free} bytes are free on its disk, and the last {leave_free} are left to the log: make room"
        ),
    ))
}

fn sync(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    fn entry() -> StateEntry {
        StateEntry {
            version: 1,
            commit_ts: 1,
            forks: 0,
            value: Some(Bytes::from_static(b"{\"a\":1}")),
            first: true,
        }
    }

    fn try_write(files: &Files, commit_ts: u64) -> io::Result<Written> {
        let header = Header {
            created_at: 1,
            commit_ts,
            lineage: String::new(),
            lsn: 0,
            forks: 0,
            commit_forks: None,
            log_tail: None,
        };
        files.write(header, |to| {
            to.entry(&StateKey::new("n", "a", "k"), &entry(), false)
        })
    }

    fn write(files: &Files, commit_ts: u64) -> Written {
        try_write(files, commit_ts).unwrap()
    }

    fn files() -> (tempfile::TempDir, Files) {
        let dir = tempfile::tempdir().unwrap();
        let files = Files::open(dir.path().join("snapshots")).unwrap();
        (dir, files)
    }

    fn commits(files: &Files) -> Vec<u64> {
        let found = files.list().unwrap();
        found.into_iter().map(|one| one.commit_ts).collect()
    }

    #[test]
    fn a_snapshot_that_was_changed_is_never_used() {
        let (_dir, files) = files();
        let written = write(&files, 7);
        assert_eq!(files.check(7).unwrap(), (written.clone(), true));
        let path = files.path(7);
        let whole = fs::read(&path).unwrap();
        assert_eq!(whole.len() as u64, written.bytes);
        // Each of them reads as a snapshot, but for its end.
        for at in 0..whole.len() {
            let mut changed = whole.clone();
            changed[at] ^= 1;
            fs::write(&path, &changed).unwrap();
            assert!(files.check(7).is_err(), "byte {at}");
            fs::write(&path, &whole[..at]).unwrap();
            assert!(files.check(7).is_err(), "cut at {at}");
        }
        fs::write(&path, &whole).unwrap();
        assert!(files.check(7).is_ok());
    }

    #[test]
    fn a_snapshot_without_a_checksum_is_read_strictly_and_one_of_another_name_is_refused() {
        let (_dir, files) = files();
        let written = write(&files, 7);
        fs::remove_file(files.sum_path(7)).unwrap();
        assert_eq!(files.check(7).unwrap(), (written, false));
        fs::rename(files.path(7), files.path(8)).unwrap();
        let why = files.check(8).unwrap_err();
        assert_eq!(
            why.to_string(),
            "it is of commit_ts 7, not of that in its name"
        );
    }

    #[test]
    fn the_newest_are_kept_with_their_checksums_and_nothing_of_others_is_touched() {
        let (_dir, files) = files();
        for commit_ts in [9, 10, 200, 30] {
            write(&files, commit_ts);
        }
        for other in ["snapshot-007.json", "notes.txt", "snapshot-x.json"] {
            fs::write(files.dir().join(other), "mine").unwrap();
        }
        assert_eq!(files.remove(&[10, 9, 8]).unwrap(), [10, 9]);
        assert_eq!(commits(&files), [200, 30]);
        assert_eq!(fs::read_dir(files.sums()).unwrap().count(), 2);
        assert!(files.dir().join("snapshot-007.json").exists());
        // One that was removed by hand is no error, and its checksum goes.
        fs::remove_file(files.path(200)).unwrap();
        let again = Files::open(files.dir().to_owned()).unwrap();
        assert_eq!(commits(&again), [30]);
        assert_eq!(fs::read_dir(files.sums()).unwrap().count(), 1);
    }

    #[test]
    fn the_last_room_on_the_disk_is_left_to_the_log() {
        let (_dir, mut files) = files();
        files.leave_free = u64::MAX;
        let refused = try_write(&files, 3).unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::StorageFull);
        assert_eq!(fs::read_dir(&files.dir).unwrap().count(), 1, "only .sums");
        files.leave_free = LEAVE_FREE;
        write(&files, 3);
        assert_eq!(commits(&files), [3]);
    }

    #[test]
    fn one_that_is_taken_over_replaces_a_damaged_one_with_or_without_a_checksum() {
        let ((_here, files), (_there, from)) = (self::files(), self::files());
        for has_sum in [true, false] {
            write(&files, 5);
            fs::write(files.path(5), "{}").unwrap();
            assert!(files.check(5).is_err());
            let whole = write(&from, 5);
            if !has_sum {
                // Of other bytes than what is taken over.
                fs::write(files.sum_path(5), format!("{:032x}", 1)).unwrap();
                fs::remove_file(from.sum_path(5)).unwrap();
            }
            files.adopt(&from, 5).unwrap();
            assert_eq!(files.check(5).unwrap(), (whole, has_sum));
            assert_eq!(commits(&from), [0; 0]);
        }
    }

    #[test]
    fn one_that_is_half_taken_over_is_never_used() {
        let ((_here, files), (_there, from)) = (self::files(), self::files());
        // It reads as a snapshot, and is not what was written.
        write(&files, 5);
        let text = fs::read_to_string(files.path(5)).unwrap();
        fs::write(files.path(5), text.replace("{\"a\":1}", "{\"a\":2}")).unwrap();
        write(&from, 5);
        for has_sum in [true, false] {
            if !has_sum {
                fs::remove_file(from.sum_path(5)).unwrap();
            }
            // The step after the checksum's fails.
            let away = from.dir.join("away");
            fs::rename(from.path(5), &away).unwrap();
            assert!(files.adopt(&from, 5).is_err());
            assert!(files.check(5).is_err(), "with a checksum: {has_sum}");
            fs::rename(&away, from.path(5)).unwrap();
            write(&from, 5);
        }
    }

    #[test]
    fn no_file_makes_memory_grow() {
        let head = r#"{"version":1,"created_at":1,"commit_ts":1,"lineage":"","state":{"#;
        let endless = [
            ("\"", b'x'),
            ("", b' '),
            ("\"n:a:k\": {\"value\": {\"v\": \"", b'x'),
        ];
        for (begin, byte) in endless {
            let from = head.as_bytes().chain(begin.as_bytes());
            let why = read(from.chain(io::repeat(byte)), |_| Ok(())).unwrap_err();
            assert!(matches!(&why, FileError::Damaged(_)), "{why}");
            assert!(why.to_string().contains("without an entry"), "{why}");
        }
        // However much of it there is, as long as it is entries.
        let mut text = head.as_bytes().to_vec();
        for n in 0..40 {
            document::write_entry(
                &mut text,
                n == 0,
                &StateKey::new("n", "a", format!("{n}")),
                &StateEntry {
                    value: Some(format!("{{\"v\":\"{}\"}}", "x".repeat(1 << 19)).into()),
                    ..entry()
                },
                false,
            )
            .unwrap();
        }
        document::write_end(&mut text).unwrap();
        assert!(text.len() as u64 > MAX_ENTRY);
        assert_eq!(read(&text[..], |_| Ok(())).unwrap().keys, 40);
    }

    #[test]
    fn what_was_not_finished_is_removed() {
        let (_dir, files) = files();
        fs::write(files.dir().join(".tmp-5"), "half").unwrap();
        let again = Files::open(files.dir().to_owned()).unwrap();
        assert!(!files.dir().join(".tmp-5").exists());
        assert_eq!(commits(&again), Vec::<u64>::new());
        let failed = files.write::<io::Error>(
            Header {
                created_at: 1,
                commit_ts: 5,
                lineage: String::new(),
                lsn: 0,
                forks: 0,
                commit_forks: None,
                log_tail: None,
            },
            |_| Err(io::Error::other("no")),
        );
        assert!(failed.is_err());
        assert!(!files.dir().join(".tmp-5").exists());
    }
}
