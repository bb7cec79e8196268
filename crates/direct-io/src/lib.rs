//! Writes of large files past the operating system's cache (`O_DIRECT`).
//!
//! Use it for files that are written once and rarely read: a copy in the cache would be of no use, would displace
//! what is read, and making it would cost most of the time of the write. Each page of a new file is fetched, in virtual
//! machines often from the host, filled, and written from there.
//!
//! A [`DirectFile`] is a second handle of a file. It writes whole blocks; what is left at either end is the
//! caller's to write through its usual handle. Length and content of the file are the same either way, and so is
//! what a crash may leave of a write that was not synced. Where the system or the file system has no such writes,
//! [`DirectFile::open`] returns `None` or a write fails with an error for which [`is_refusal`] is true; the caller then
//! writes the same bytes as usual.
//!
//! This crate knows no other crate of the workspace, no format and no policy: how large a write has to be is its
//! caller's choice.
//!
//! ```
//! use std::os::unix::fs::FileExt;
//! use direct_io::{DirectFile, is_refusal};
//!
//! # fn main() -> std::io::Result<()> {
//! let dir = tempfile::tempdir()?;
//! let path = dir.path().join("object");
//! let file = std::fs::File::create(&path)?;
//! let bytes = vec![7; 100_000];
//! let tail = match DirectFile::open(&path) {
//!     None => bytes.len(),
//!     Some(mut direct) => match direct.write_blocks(0, [&bytes[..]]) {
//!         Ok(tail) => tail.len(),
//!         Err(error) if is_refusal(&error) => bytes.len(),
//!         Err(error) => return Err(error),
//!     },
//! };
//! let at = bytes.len() - tail;
//! file.write_all_at(&bytes[at..], at as u64)?;
//! assert_eq!(std::fs::read(&path)?, bytes);
//! # Ok(())
//! # }
//! ```

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt as _;
use std::path::Path;

#[cfg(target_os = "linux")]
use rustix::fs::{CWD, Mode, OFlags};

/// Bytes of a block: a multiple of what disks and file systems demand of offset, length and address.
pub const BLOCK: usize = 4096;
/// Bytes that are written at once, and the memory of each [`DirectFile`] that has written: as much as a disk
/// divides among its queues at once.
pub const BUFFER: usize = 1024 * 1024;

/// A second handle of a file, for direct writes.
#[derive(Debug)]
pub struct DirectFile {
    file: File,
    /// Has [`BUFFER`] bytes from the first that is aligned; empty before the first write.
    buffer: Vec<u8>,
}

impl DirectFile {
    /// Opens an existing file by its path.
    ///
    /// `None` if the file cannot be opened for direct writes, or the system has none.
    #[cfg(target_os = "linux")]
    pub fn open(path: &Path) -> Option<DirectFile> {
        DirectFile::open_with(CWD, path, OFlags::empty())
    }

    /// Opens an existing file in a directory by its name; a symlink is not followed.
    ///
    /// `None` if the file cannot be opened for direct writes, or the system has none.
    #[cfg(target_os = "linux")]
    pub fn open_at(dir: impl AsFd, name: &str) -> Option<DirectFile> {
        DirectFile::open_with(dir, Path::new(name), OFlags::NOFOLLOW)
    }

    #[cfg(target_os = "linux")]
    fn open_with(dir: impl AsFd, path: &Path, flags: OFlags) -> Option<DirectFile> {
        let flags = flags | OFlags::WRONLY | OFlags::DIRECT | OFlags::CLOEXEC;
        let file = rustix::fs::openat(dir, path, flags, Mode::empty()).ok()?;
        Some(DirectFile {
            file: file.into(),
            buffer: Vec::new(),
        })
    }

    /// Always `None`: this crate has direct writes for Linux alone.
    #[cfg(not(target_os = "linux"))]
    pub fn open(_: &Path) -> Option<DirectFile> {
        None
    }

    /// Always `None`: this crate has direct writes for Linux alone.
    #[cfg(not(target_os = "linux"))]
    pub fn open_at(_: impl AsFd, _: &str) -> Option<DirectFile> {
        None
    }

    /// Writes the whole blocks of `pieces`, one after the other, from `offset` on, and returns what is left behind
    /// the last whole block: fewer than [`BLOCK`] bytes, which are not written.
    ///
    /// # Errors
    ///
    /// `offset` is not a multiple of [`BLOCK`]; the disk fails; or the file system refuses direct writes of this
    /// file ([`is_refusal`]): some do so only here. A part of the bytes may be written then.
    pub fn write_blocks<'a>(
        &mut self,
        mut offset: u64,
        pieces: impl IntoIterator<Item = &'a [u8]>,
    ) -> io::Result<&[u8]> {
        if self.buffer.is_empty() {
            self.buffer = vec![0; BUFFER + BLOCK];
        }
        let begin = self.buffer.as_ptr().align_offset(BLOCK);
        let Some(buffer) = self.buffer.get_mut(begin..begin + BUFFER) else {
            return Err(io::ErrorKind::InvalidInput.into());
        };
        let mut filled = 0;
        for mut rest in pieces {
            while !rest.is_empty() {
                let (now, later) = rest.split_at(rest.len().min(BUFFER - filled));
                buffer[filled..filled + now.len()].copy_from_slice(now);
                filled += now.len();
                rest = later;
                if filled == BUFFER {
                    self.file.write_all_at(buffer, offset)?;
                    offset += BUFFER as u64;
                    filled = 0;
                }
            }
        }
        let (blocks, tail) = buffer[..filled].split_at(filled - filled % BLOCK);
        self.file.write_all_at(blocks, offset)?;
        Ok(tail)
    }
}

/// The range of the bytes of a write, `len` at `offset`, that cover whole blocks of the file; `None` if there are none.
///
/// ```
/// assert_eq!(direct_io::whole_blocks(4095, 5000), Some(1..4097));
/// assert_eq!(direct_io::whole_blocks(1, 4096), None);
/// ```
pub fn whole_blocks(offset: u64, len: usize) -> Option<Range<usize>> {
    let block = BLOCK as u64;
    let end = offset.checked_add(len as u64)?;
    let begin = usize::try_from(offset.checked_next_multiple_of(block)? - offset).ok()?;
    let tail = usize::try_from(end % block).ok()?;
    let covered = begin..len.checked_sub(tail)?;
    (!covered.is_empty()).then_some(covered)
}

/// Whether a direct write has failed because the file system does not have such writes: the same bytes can be written
/// as usual.
pub fn is_refusal(error: &io::Error) -> bool {
    use io::ErrorKind::{InvalidInput, Unsupported};
    matches!(error.kind(), InvalidInput | Unsupported)
        || error.raw_os_error() == Some(rustix::io::Errno::OPNOTSUPP.raw_os_error())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_file_system_without_direct_writes_refuses_one() {
        use rustix::io::Errno;
        for refusal in [Errno::INVAL, Errno::OPNOTSUPP, Errno::NOSYS] {
            assert!(is_refusal(&refusal.into()), "{refusal}");
        }
        for failure in [Errno::IO, Errno::NOSPC, Errno::DQUOT, Errno::ROFS] {
            assert!(!is_refusal(&failure.into()), "{failure}");
        }
    }

    #[test]
    fn blocks_that_a_write_covers_completely_are_found() {
        assert_eq!(whole_blocks(0, BLOCK), Some(0..BLOCK));
        assert_eq!(whole_blocks(0, BLOCK - 1), None, "too little");
        assert_eq!(whole_blocks(1, BLOCK), None, "no block is covered");
        let len = 3 * BLOCK;
        assert_eq!(whole_blocks(4095, len), Some(1..1 + 2 * BLOCK));
        assert_eq!(whole_blocks(4097, len), Some(4095..4095 + 2 * BLOCK));
        assert_eq!(whole_blocks(8192, len + 1), Some(0..len));
        assert_eq!(whole_blocks(u64::MAX, len), None, "no file is so long");
        assert_eq!(whole_blocks(5, 0), None);
        assert_eq!(whole_blocks(0, 0), None);
    }

    /// Writes `pieces` behind a block that the file has already, and compares it with them.
    #[track_caller]
    fn check_write(pieces: &[&[u8]]) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        std::fs::write(&path, [7; BLOCK]).unwrap();
        let bytes = pieces.concat();
        let Some(mut direct) = DirectFile::open(&path) else {
            return;
        };
        let tail = match direct.write_blocks(BLOCK as u64, pieces.iter().copied()) {
            // Not on this file system.
            Err(error) if is_refusal(&error) => return,
            other => other.unwrap(),
        };
        assert!(tail.len() < BLOCK);
        let read = std::fs::read(&path).unwrap();
        assert_eq!(read.len(), BLOCK + bytes.len() - tail.len());
        assert!(read[BLOCK..] == bytes[..bytes.len() - tail.len()]);
        assert!(bytes.ends_with(tail));
        assert!(read[..BLOCK] == [7; BLOCK], "what was there stays");
    }

    fn sample(len: usize) -> Vec<u8> {
        (0..len).map(|i| (i / 7) as u8).collect()
    }

    #[test]
    fn a_direct_write_of_several_buffers_is_in_the_file() {
        check_write(&[&sample(2 * BUFFER + BLOCK)]);
    }

    #[test]
    fn a_direct_write_of_pieces_of_any_size_leaves_less_than_a_block() {
        let bytes = sample(2 * BUFFER + 3 * BLOCK + 17);
        check_write(&bytes.chunks(300_000).collect::<Vec<_>>());
        check_write(&[&bytes[..1], &[], &bytes[1..BUFFER]]);
        check_write(&[&bytes[..BLOCK - 1]]);
        check_write(&[]);
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn a_symlink_in_the_place_of_the_file_is_not_followed() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("file"), [7; BLOCK]).unwrap();
        std::os::unix::fs::symlink("file", dir.path().join("link")).unwrap();
        let handle = File::open(dir.path()).unwrap();
        assert!(DirectFile::open_at(&handle, "link").is_none());
    }
}
