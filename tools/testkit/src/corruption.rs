//! Damage to bytes and files, as by a disk or a mistake of an operator.
//!
//! A file of a database and of its checkpoints has several hard links. Damage *in place* affects all of them;
//! damage *alone* affects one name only, and the others keep the original file.

use std::fs;
use std::path::Path;

/// Changes one bit of a byte.
///
/// # Panics
///
/// If there is no such byte.
pub fn flip(bytes: &mut [u8], at: usize) {
    bytes[at] ^= 0x10;
}

/// Changes one bit of the byte in the middle.
///
/// # Panics
///
/// If there are no bytes.
pub fn flip_middle(bytes: &mut [u8]) {
    let middle = bytes.len() / 2;
    flip(bytes, middle);
}

/// Changes a file in place.
///
/// # Panics
///
/// If it cannot be read and written.
pub fn change_in_place(path: &Path, change: impl FnOnce(&mut [u8])) {
    let mut content = fs::read(path).unwrap();
    change(&mut content);
    fs::write(path, content).unwrap();
}

/// Replaces a file by a changed copy.
///
/// # Panics
///
/// If it cannot be read, removed and written.
pub fn change_alone(path: &Path, change: impl FnOnce(&mut [u8])) {
    let mut content = fs::read(path).unwrap();
    change(&mut content);
    fs::remove_file(path).unwrap();
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
    fn other_names_of_a_file_see_damage_in_place_and_not_damage_alone() {
        let dir = tempfile::tempdir().unwrap();
        let (file, link) = (dir.path().join("file"), dir.path().join("link"));
        fs::write(&file, [1, 2, 3]).unwrap();
        fs::hard_link(&file, &link).unwrap();
        change_in_place(&file, flip_middle);
        assert_eq!(fs::read(&link).unwrap(), [1, 2 ^ 0x10, 3]);
        change_alone(&file, |bytes| flip(bytes, 0));
        assert_eq!(fs::read(&file).unwrap(), [1 ^ 0x10, 2 ^ 0x10, 3]);
        assert_eq!(fs::read(&link).unwrap(), [1, 2 ^ 0x10, 3]);
        truncate(&link, 1);
        assert_eq!(fs::read(&link).unwrap(), [1]);
    }
}
