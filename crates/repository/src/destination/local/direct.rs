//! Parts of objects, written past the operating system's cache.
//!
//! An object is written once and rarely read, so a copy of it in the cache is of no use, displaces what is
//! read, and costs most of the time of the write. Blocks that a part covers completely are written with
//! `O_DIRECT` where the system and the file system know it; the rest is written as usual.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;

use direct_io::{BLOCK, BUFFER, DirectFile, is_refusal};
use object_store::PutPayload;

use super::scratch::TempFile;

/// Writes a part at `at`.
///
/// # Errors
///
/// Those of the disk.
pub(super) fn write_part(temp: &TempFile, at: u64, data: &PutPayload) -> io::Result<()> {
    let is_aligned = at.is_multiple_of(BLOCK as u64) && data.content_length() >= BUFFER;
    let direct = is_aligned.then(|| DirectFile::open_at(&temp.dir, &temp.name));
    if let Some(mut direct) = direct.flatten() {
        match direct.write_blocks(at, data.iter().map(|chunk| &chunk[..])) {
            Ok(tail) => {
                let end = at + data.content_length() as u64;
                return temp.file.write_all_at(tail, end - tail.len() as u64);
            }
            // Some file systems refuse only the write.
            Err(error) if is_refusal(&error) => {}
            Err(error) => return Err(error),
        }
    }
    write_cached(&temp.file, at, data)
}

fn write_cached(file: &File, mut at: u64, data: &PutPayload) -> io::Result<()> {
    for chunk in data {
        file.write_all_at(chunk, at)?;
        at += chunk.len() as u64;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::scratch;
    use super::super::tree::Tree;
    use super::*;

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
