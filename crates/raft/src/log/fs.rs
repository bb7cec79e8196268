//! The files under the log: raft-engine's view of the disk, made strict.
//!
//! raft-engine reaches its files through the `FileSystem` trait. This implementation of it does
//! plain positioned I/O, like the default one, with these differences:
//!
//! - **A failed sync ends the process**, with a message that names the file, the error and the
//!   reason; raft-engine would panic without any of them. After a failed fsync the kernel may
//!   have dropped what it could not write, and a second fsync would succeed: nothing can be
//!   promised but what a restart finds.
//! - **Operations that raft-engine syncs later are synced at once** where [`inspect`](super::inspect)
//!   relies on it: the name and the header of every new file (raft-engine does neither when it opens a
//!   fresh directory), and every batch of the rewrite queue.
//! - **A full disk is a plain error** of kind `StorageFull`. raft-engine knows the default
//!   implementation's spelling of it and then rotates, to move to another directory; with one
//!   directory that only litters it with nearly empty files, each counted at its full size.
//! - **Files are deleted oldest first, always.** After a failed delete, the next one starts with
//!   what was left over. So the numbers of the files on disk never have a gap.
//! - **Errors name the operation and the file**, and keep their kind.
//! - **Large writes go past the operating system's cache** ([`direct_io`]) where nothing reads the log but a
//!   restart. Under load most of the writer's time went into copies in the cache.
//! - **Small writes go into blocks that are written already**: with zeros, some way ahead. A write into space
//!   that is only reserved changes the file's description as well, which its sync then waits for.
//! - **[`Faults`]** stand between the log and the disk, in every build; inert, they cost one
//!   relaxed atomic load per operation.

mod faults;
#[cfg(test)]
mod tests;

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use direct_io::{DirectFile, is_refusal, whole_blocks};
use raft_engine::env::{FileSystem, Handle, Permission, WriteExt};
use raft_engine::internals::{FileId, FileNameExt, LogQueue};

use super::extents::RewriteEnd;
use super::inspect;

pub use faults::{Faults, PowerCut, WriteFault};

/// Zeros that are written at once, in the space that is allocated.
const ZEROS_AHEAD: u64 = 256 * 1024;
/// Only for smaller writes than this, so that zeros are a small part of what is written.
const MAX_SMALL: usize = 8 * 1024;
/// Writes that cover less than this in whole blocks are not direct: one write and its sync are quicker than a direct
/// write and the sync of the ends.
const MIN_DIRECT: usize = 64 * 1024;

/// How long the process waits for its message about a failed sync to be written before it aborts.
const MESSAGE_TIMEOUT: Duration = Duration::from_secs(1);

/// The file system that the log runs on: see the module.
pub struct LogFileSystem {
    faults: Faults,
    rewrite_end: RewriteEnd,
    /// Whether large writes of the append queue are direct.
    direct_writes: bool,
    /// A delete failed: files older than the next one to delete may still be there.
    left_over: AtomicBool,
}

/// One open file of the log.
pub struct LogFile {
    file: File,
    path: PathBuf,
    /// Its number, and the end of its queue, if it belongs to the rewrite queue.
    rewrite: Option<(u64, RewriteEnd)>,
    faults: Faults,
}

/// Reads one file of the log, from a position of its own.
pub struct FileReader {
    handle: Arc<LogFile>,
    offset: u64,
}

/// Writes one file of the log, from a position of its own.
pub struct FileWriter {
    handle: Arc<LogFile>,
    offset: u64,
    /// For large writes, if they are direct.
    direct: Option<DirectFile>,
    /// The end of the space that raft-engine has allocated, and cuts off when it closes the file.
    allocated: u64,
    /// Up to here, blocks are written.
    written: u64,
}

impl LogFileSystem {
    /// A file system that obeys `faults`; inert ones (the default) in production.
    pub fn with_faults(faults: Faults) -> Self {
        LogFileSystem::with_rewrite_end(faults, RewriteEnd::default(), true)
    }

    /// A file system that keeps `rewrite_end` up to date.
    pub(super) fn with_rewrite_end(
        faults: Faults,
        rewrite_end: RewriteEnd,
        direct_writes: bool,
    ) -> Self {
        Self {
            faults,
            rewrite_end,
            direct_writes,
            left_over: AtomicBool::new(false),
        }
    }

    fn handle(&self, path: &Path, options: &OpenOptions) -> io::Result<LogFile> {
        let file = options.open(path).map_err(|e| named("open", path, &e))?;
        let id = file_id(path).filter(|id| id.queue == LogQueue::Rewrite);
        Ok(LogFile {
            file,
            path: path.to_owned(),
            faults: self.faults.clone(),
            rewrite: id.map(|id| (id.seq, self.rewrite_end.clone())),
        })
    }

    /// Deletes every file of `newest`'s queue that is older, oldest first.
    fn delete_older(&self, newest: &Path) -> io::Result<()> {
        let (Some(dir), Some(limit)) = (newest.parent(), file_id(newest)) else {
            return Ok(());
        };
        let mut older = Vec::new();
        for entry in std::fs::read_dir(dir).map_err(|e| named("list", dir, &e))? {
            let path = entry.map_err(|e| named("list", dir, &e))?.path();
            if let Some(id) = file_id(&path)
                && id.queue == limit.queue
                && id.seq < limit.seq
            {
                older.push((id.seq, path));
            }
        }
        older.sort();
        older
            .iter()
            .try_for_each(|(_, path)| remove(&self.faults, path))
    }
}

fn file_id(path: &Path) -> Option<FileId> {
    let name = path.file_name()?.to_str()?;
    FileId::parse_file_name(name).filter(|id| id.build_file_name() == name)
}

/// Reports a failed sync and ends the process.
fn sync_failed(faults: &Faults, path: &Path, error: &io::Error) {
    let file = path.display();
    tracing::error!(
        %file, %error,
        "sync of the log failed; after a failed fsync nothing can be promised about what was \
         written; aborting. Restart: the log is replayed"
    );
    let text = format!(
        "sync of {file} failed: {error}. After a failed fsync nothing can be promised about what \
         was written, so this process aborts. Check the disk, then restart: the log is \
         replayed.\n"
    );
    write_last_words(text);
    if !faults.catch(path, error) {
        std::process::abort();
    }
}

/// Writes to standard error why the process is about to end. Logging may be filtered, or buffered and
/// lost; this is not. Nobody may read standard error, so a thread writes to it and is not waited for
/// longer than a second.
pub fn write_last_words(text: String) {
    let (done, wait) = std::sync::mpsc::channel();
    let _ = std::thread::Builder::new().spawn(move || {
        let _ = io::stderr().write_all(text.as_bytes());
        let _ = done.send(());
    });
    let _ = wait.recv_timeout(MESSAGE_TIMEOUT);
}

/// Deletes a file; one that does not exist counts as deleted.
fn remove(faults: &Faults, path: &Path) -> io::Result<()> {
    match faults.remove(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other.map_err(|e| named("delete", path, &e)),
    }
}

impl FileSystem for LogFileSystem {
    type Handle = LogFile;
    type Reader = FileReader;
    type Writer = FileWriter;

    fn create<P: AsRef<Path>>(&self, path: P) -> io::Result<LogFile> {
        let path = path.as_ref();
        self.faults.power()?;
        // Before the file: a directory that cannot be opened was not synced, and no sync of it has failed.
        let open = |dir| File::open(dir).map_err(|e| named("open", dir, &e));
        let dir = path.parent().map(|dir| open(dir).map(|file| (dir, file)));
        let dir = dir.transpose()?;
        // Not truncated: a stub may be there already, and its header is about to be written.
        let handle = self.handle(path, OpenOptions::new().read(true).write(true).create(true))?;
        if let Some((dir, file)) = dir
            && let Err(e) = file.sync_all()
        {
            sync_failed(&self.faults, dir, &e);
            return Err(named("sync", dir, &e));
        }
        self.faults.after_create();
        Ok(handle)
    }

    fn open<P: AsRef<Path>>(&self, path: P, permission: Permission) -> io::Result<LogFile> {
        let write = permission == Permission::ReadWrite;
        self.handle(path.as_ref(), OpenOptions::new().read(true).write(write))
    }

    fn delete<P: AsRef<Path>>(&self, path: P) -> io::Result<()> {
        let path = path.as_ref();
        // A purge deletes files oldest first, each once. Files whose deletion failed are therefore older
        // than this one.
        if self.left_over.swap(false, Ordering::AcqRel) {
            self.delete_older(path)
                .inspect_err(|_| self.left_over.store(true, Ordering::Release))?;
        }
        remove(&self.faults, path).inspect_err(|_| self.left_over.store(true, Ordering::Release))
    }

    fn rename<P: AsRef<Path>>(&self, from: P, to: P) -> io::Result<()> {
        let (from, to) = (from.as_ref(), to.as_ref());
        self.faults
            .rename(from, to)
            .map_err(|e| named("rename", from, &e))
    }

    fn new_reader(&self, handle: Arc<LogFile>) -> io::Result<FileReader> {
        Ok(FileReader { handle, offset: 0 })
    }

    fn new_writer(&self, handle: Arc<LogFile>) -> io::Result<FileWriter> {
        let is_direct = self.direct_writes && handle.rewrite.is_none();
        let direct = is_direct.then(|| DirectFile::open(&handle.path)).flatten();
        Ok(FileWriter {
            handle,
            offset: 0,
            direct,
            allocated: 0,
            written: 0,
        })
    }
}

impl Handle for LogFile {
    fn truncate(&self, offset: usize) -> io::Result<()> {
        self.faults
            .truncate(&self.path, &self.file, offset as u64)
            .map_err(|e| named("truncate", &self.path, &e))
    }

    fn file_size(&self) -> io::Result<usize> {
        let metadata = self
            .file
            .metadata()
            .map_err(|e| named("measure", &self.path, &e))?;
        usize::try_from(metadata.len()).map_err(io::Error::other)
    }

    fn sync(&self) -> io::Result<()> {
        self.faults.sync(&self.path, &self.file).map_err(|e| {
            // A power cut has ended the (simulated) process already.
            if self.faults.power().is_ok() {
                sync_failed(&self.faults, &self.path, &e);
            }
            named("sync", &self.path, &e)
        })
    }
}

impl Read for FileReader {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let LogFile {
            file, path, faults, ..
        } = &*self.handle;
        let read = faults
            .before_read()
            .and_then(|()| file.read_at(buf, self.offset))
            .map_err(|e| named("read", path, &e))?;
        self.offset += read as u64;
        Ok(read)
    }
}

impl Seek for FileReader {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        self.offset = seek(&self.handle, self.offset, to)?;
        Ok(self.offset)
    }
}

impl Write for FileWriter {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        let written = match self.write_direct(buf)? {
            Some(written) => written,
            None => self.write_cached(buf)?,
        };
        self.write_ahead(written);
        let LogFile { rewrite, .. } = &*self.handle;
        if self.offset == 0 || rewrite.is_some() {
            self.handle.sync()?;
        }
        let end = self.offset + written as u64;
        // A file is in use once it has more than its header.
        if let Some((seq, rewrite_end)) = rewrite
            && self.offset >= inspect::FILE_HEADER_LEN
        {
            rewrite_end.set(*seq, end);
        }
        self.offset = end;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Seek for FileWriter {
    /// raft-engine goes back to where a batch began if it could not be written.
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        self.offset = seek(&self.handle, self.offset, to)?;
        self.written = self.written.min(self.offset);
        self.cut_rewrite_end();
        Ok(self.offset)
    }
}

impl WriteExt for FileWriter {
    fn truncate(&mut self, offset: usize) -> io::Result<()> {
        Handle::truncate(&*self.handle, offset)?;
        self.offset = offset as u64;
        self.allocated = self.allocated.min(self.offset);
        self.written = self.written.min(self.offset);
        self.cut_rewrite_end();
        Ok(())
    }

    /// Extends the file with zeros, so that later syncs need not write its length. raft-engine
    /// takes a failure as a hint only.
    fn allocate(&mut self, offset: usize, size: usize) -> io::Result<()> {
        let LogFile {
            file, path, faults, ..
        } = &*self.handle;
        faults
            .allocate(path, file, offset as u64, size as u64)
            .map_err(|e| named("allocate", path, &e))?;
        self.allocated = offset as u64 + size as u64;
        Ok(())
    }
}

impl FileWriter {
    fn write_cached(&self, buf: &[u8]) -> io::Result<usize> {
        let LogFile {
            file, path, faults, ..
        } = &*self.handle;
        faults
            .write(path, file, self.offset, buf)
            .map_err(|e| named("write", path, &e))
    }

    /// After `len` bytes were written: writes zeros behind a small write into space that was not written before.
    fn write_ahead(&mut self, len: usize) {
        let end = self.offset + len as u64;
        let LogFile {
            file,
            faults,
            rewrite,
            ..
        } = &*self.handle;
        let ahead = (end + ZEROS_AHEAD).min(self.allocated);
        let is_due = end > self.written && ahead > end && len < MAX_SMALL;
        self.written = self.written.max(end);
        if is_due && rewrite.is_none() && faults.inert() {
            let zeros = vec![0; (ahead - end) as usize];
            // The sync of the write covers them. Without them, the next syncs are slower.
            if file.write_all_at(&zeros, end).is_ok() {
                self.written = ahead;
            }
        }
    }

    /// Writes all of `buf` if it is large enough for a direct write; `None` if nothing was written, and it is to be
    /// written as usual.
    fn write_direct(&mut self, buf: &[u8]) -> io::Result<Option<usize>> {
        let LogFile {
            file, path, faults, ..
        } = &*self.handle;
        let covered =
            whole_blocks(self.offset, buf.len()).filter(|covered| covered.len() >= MIN_DIRECT);
        let (Some(direct), Some(covered)) = (&mut self.direct, covered) else {
            return Ok(None);
        };
        // What faults do is known of usual writes alone.
        if !faults.inert() {
            return Ok(None);
        }
        let at = self.offset + covered.start as u64;
        let (head, rest) = buf.split_at(covered.start);
        let (blocks, tail) = rest.split_at(covered.len());
        // Nothing is left behind whole blocks.
        match direct.write_blocks(at, [blocks]).map(|_| ()) {
            Ok(()) => {}
            Err(error) if is_refusal(&error) => {
                self.direct = None;
                return Ok(None);
            }
            Err(error) => return Err(named("write", path, &error)),
        }
        let ends = file
            .write_all_at(head, self.offset)
            .and_then(|()| file.write_all_at(tail, at + blocks.len() as u64));
        ends.map_err(|e| named("write", path, &e))?;
        Ok(Some(buf.len()))
    }

    fn cut_rewrite_end(&self) {
        if let Some((seq, rewrite_end)) = &self.handle.rewrite {
            rewrite_end.cut(*seq, self.offset);
        }
    }
}

/// Where `to` is, for a file at position `offset`.
fn seek(handle: &LogFile, offset: u64, to: SeekFrom) -> io::Result<u64> {
    let moved = match to {
        SeekFrom::Start(at) => Some(at),
        SeekFrom::Current(by) => offset.checked_add_signed(by),
        SeekFrom::End(by) => (handle.file_size()? as u64).checked_add_signed(by),
    };
    moved.ok_or_else(|| io::Error::from(io::ErrorKind::InvalidInput))
}

/// The same error, of the same kind, saying what could not be done to which file.
fn named(operation: &str, path: &Path, error: &io::Error) -> io::Error {
    io::Error::new(
        error.kind(),
        format!("cannot {operation} {}: {error}", path.display()),
    )
}
