//! Damage to bytes and files, as a disk or a careless hand does it.

use std::fs;
use std::path::Path;

/// Changes one bit of the byte in the middle.
///
/// # Panics
///
/// If there are no bytes.
pub fn flip_middle(bytes: &mut [u8]) {
    let middle = bytes.len() / 2;
    bytes[middle] ^= 0x10;
}

/// Changes one bit in the middle of a file, in place: its hard links change with it.
///
/// # Panics
///
/// If it is empty, or cannot be read and written.
pub fn flip_middle_of_file(path: &Path) {
    let mut content = fs::read(path).unwrap();
    flip_middle(&mut content);
    fs::write(path, content).unwrap();
}

/// Cuts a file to its first bytes, in place.
///
/// # Panics
///
/// If it cannot be written.
pub fn truncate(path: &Path, length: u64) {
    let file = fs::File::options().write(true).open(path).unwrap();
    file.set_len(length).unwrap();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_bit_of_the_middle_byte_changes() {
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), [1, 2, 3]).unwrap();
        flip_middle_of_file(file.path());
        assert_eq!(fs::read(file.path()).unwrap(), [1, 2 ^ 0x10, 3]);
        truncate(file.path(), 1);
        assert_eq!(fs::read(file.path()).unwrap(), [1]);
    }
}
