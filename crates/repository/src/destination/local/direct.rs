//! Parts of objects, written past the operating system's cache.
//!
//! An object is written once and rarely read, so a copy of it in the cache is of no use, displaces what is
//! read, and costs most of the time of the write. Blocks that a part covers completely are written with
//! `O_DIRECT` where the system and the file system know it; the rest is written as usual.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;

use object_store::PutPayload;

use super::scratch::TempFile;

/// A multiple of what disks and file systems demand of offset, length and address.
const BLOCK: usize = 4096;
/// Bytes that are written at once; each part that is being written has so many more in memory.
const BUFFER: usize = 1024 * 1024;

/// Writes a part at `at`.
///
/// # Errors
///
/// Those of the disk.
pub(super) fn write_part(temp: &TempFile, at: u64, data: &PutPayload) -> io::Result<()> {
    let is_aligned = at.is_multiple_of(BLOCK as u64) && data.content_length() >= BUFFER;
    let file = is_aligned.then(|| open(temp)).flatten();
    if let Some(file) = file {
        match write_blocks(&file, &temp.file, at, data) {
            // Some file systems refuse only the write.
            Err(error) if is_refusal(&error) => {}
            other => return other,
        }
    }
    write_cached(&temp.file, at, data)
}

/// Whether a direct write has failed because the file system does not have such writes: the same bytes can be written
/// as usual.
fn is_refusal(error: &io::Error) -> bool {
    use io::ErrorKind::{InvalidInput, Unsupported};
    matches!(error.kind(), InvalidInput | Unsupported)
        || error.raw_os_error() == Some(rustix::io::Errno::OPNOTSUPP.raw_os_error())
}

#[cfg(target_os = "linux")]
fn open(temp: &TempFile) -> Option<File> {
    use rustix::fs::{Mode, OFlags, openat};
    let flags = OFlags::WRONLY | OFlags::DIRECT | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let file = openat(&temp.dir, &temp.name, flags, Mode::empty());
    Some(file.ok()?.into())
}

#[cfg(not(target_os = "linux"))]
fn open(_: &TempFile) -> Option<File> {
    None
}

fn write_cached(file: &File, mut at: u64, data: &PutPayload) -> io::Result<()> {
    for chunk in data {
        file.write_all_at(chunk, at)?;
        at += chunk.len() as u64;
    }
    Ok(())
}

fn write_blocks(direct: &File, cached: &File, mut at: u64, data: &PutPayload) -> io::Result<()> {
    let mut space = vec![0; BUFFER + BLOCK];
    let begin = space.as_ptr().align_offset(BLOCK);
    let Some(buffer) = space.get_mut(begin..begin + BUFFER) else {
        return Err(io::ErrorKind::InvalidInput.into());
    };
    let mut filled = 0;
    for chunk in data {
        let mut rest = &chunk[..];
        while !rest.is_empty() {
            let (now, later) = rest.split_at(rest.len().min(BUFFER - filled));
            buffer[filled..filled + now.len()].copy_from_slice(now);
            filled += now.len();
            rest = later;
            if filled == BUFFER {
                direct.write_all_at(buffer, at)?;
                at += BUFFER as u64;
                filled = 0;
            }
        }
    }
    let (blocks, tail) = buffer[..filled].split_at(filled - filled % BLOCK);
    direct.write_all_at(blocks, at)?;
    cached.write_all_at(tail, at + blocks.len() as u64)
}

#[cfg(test)]
mod tests {
    use super::super::scratch;
    use super::super::tree::Tree;
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
    fn parts_of_any_size_and_place_are_in_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let tree = Tree::new(dir.path().to_owned());
        let temp = scratch::temp(&tree).unwrap();
        let sizes = [2 * BUFFER, BUFFER + 3 * BLOCK + 17, 5, BUFFER + 1, BLOCK];
        let mut expected = Vec::new();
        for (i, size) in sizes.into_iter().enumerate() {
            let at = expected.len();
            expected.extend((at..at + size).map(|byte| (byte / 3 + i) as u8));
            let chunks = expected[at..]
                .chunks(300_000)
                .map(bytes::Bytes::copy_from_slice);
            write_part(&temp, at as u64, &chunks.collect()).unwrap();
            let read = std::fs::read(dir.path().join(scratch::DIR).join(&temp.name)).unwrap();
            assert!(read == expected, "part {i}");
        }
    }
}
