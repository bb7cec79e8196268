//! Large writes of the log, past the operating system's cache.
//!
//! The log is written once and read after a restart at most, so a copy of it in the cache is of no use. Under
//! load most of the writer's time went into such copies: each page of a new file is fetched, in virtual machines
//! often from the host, filled, and written from there. A [`DirectFile`] writes the blocks that a buffer covers
//! completely with `O_DIRECT`; the ends are written as usual. Length and content of the file are the same either
//! way, and so is what a crash may leave of a write that was not synced.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::Path;

/// A multiple of what disks and file systems demand of offset, length and address.
const BLOCK: usize = 4096;
/// Less than this is written as usual: one write and its sync are quicker than a direct write and the sync of
/// the ends.
const MIN_DIRECT: usize = 64 * 1024;
/// Bytes that are written at once, and are held in memory for that, once for each file that is written: as much as
/// a disk divides among its queues at once.
const BUFFER: usize = 1024 * 1024;

/// A second handle of a file.
pub(super) struct DirectFile {
    file: File,
    /// Has [`BUFFER`] bytes from the first that is aligned.
    buffer: Vec<u8>,
}

impl DirectFile {
    /// `None` if the system or the file system knows no such writes.
    #[cfg(target_os = "linux")]
    pub(super) fn open(path: &Path) -> Option<DirectFile> {
        use rustix::fs::{Mode, OFlags};
        let flags = OFlags::WRONLY | OFlags::DIRECT | OFlags::CLOEXEC;
        let file = rustix::fs::open(path, flags, Mode::empty()).ok()?;
        Some(DirectFile {
            file: file.into(),
            buffer: Vec::new(),
        })
    }

    /// Other systems have other ways.
    #[cfg(not(target_os = "linux"))]
    pub(super) fn open(_: &Path) -> Option<DirectFile> {
        None
    }

    /// The bytes of `len` at `offset` that cover blocks completely, if they are enough for a direct write.
    pub(super) fn covered(offset: u64, len: usize) -> Option<Range<usize>> {
        let block = BLOCK as u64;
        let end = offset.checked_add(len as u64)?;
        let begin = usize::try_from(offset.checked_next_multiple_of(block)? - offset).ok()?;
        let tail = usize::try_from(end % block).ok()?;
        let covered = begin..len.checked_sub(tail)?;
        (covered.end.saturating_sub(covered.start) >= MIN_DIRECT).then_some(covered)
    }

    /// Writes whole blocks; `offset` is one's beginning.
    ///
    /// # Errors
    ///
    /// Those of the disk; or the file system refuses direct writes of this file ([`is_refusal`]): some do so only here.
    /// A part of the bytes may be written then.
    pub(super) fn write_all(&mut self, mut offset: u64, bytes: &[u8]) -> io::Result<()> {
        if self.buffer.is_empty() {
            self.buffer = vec![0; BUFFER + BLOCK];
        }
        let aligned = self.buffer.as_ptr().align_offset(BLOCK);
        for piece in bytes.chunks(BUFFER) {
            let Some(buffer) = self.buffer.get_mut(aligned..aligned + piece.len()) else {
                return Err(io::ErrorKind::InvalidInput.into());
            };
            buffer.copy_from_slice(piece);
            self.file.write_all_at(buffer, offset)?;
            offset += piece.len() as u64;
        }
        Ok(())
    }
}

/// Whether a direct write has failed because the file system does not have such writes: the same bytes can be written
/// as usual.
pub(super) fn is_refusal(error: &io::Error) -> bool {
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
        let covered = DirectFile::covered;
        assert_eq!(covered(0, MIN_DIRECT), Some(0..MIN_DIRECT));
        assert_eq!(covered(0, MIN_DIRECT - 1), None, "too little");
        assert_eq!(covered(1, MIN_DIRECT), None, "a block less");
        let len = MIN_DIRECT + 2 * BLOCK;
        assert_eq!(covered(4095, len), Some(1..1 + MIN_DIRECT + BLOCK));
        assert_eq!(covered(4097, len), Some(4095..4095 + MIN_DIRECT + BLOCK));
        assert_eq!(covered(8192, len + 1), Some(0..len));
        assert_eq!(covered(u64::MAX, len), None, "no file is so long");
        assert_eq!(covered(5, 0), None);
    }

    #[test]
    fn a_direct_write_of_several_buffers_is_in_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        std::fs::write(&path, [7; BLOCK]).unwrap();
        let Some(mut direct) = DirectFile::open(&path) else {
            return;
        };
        let bytes: Vec<u8> = (0..2 * BUFFER + BLOCK).map(|i| (i / 7) as u8).collect();
        match direct.write_all(BLOCK as u64, &bytes) {
            // Not on this file system.
            Err(error) if is_refusal(&error) => return,
            other => other.unwrap(),
        }
        let read = std::fs::read(&path).unwrap();
        assert_eq!(read.len(), BLOCK + bytes.len());
        assert!(read[BLOCK..] == bytes);
    }
}
