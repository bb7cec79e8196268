//! Listing a tree in the order of its keys, as an object store does, in bounded memory.
//!
//! The names of a directory are read in no order. The walk keeps the [`WINDOW`] smallest names that it has
//! not returned yet, sorted, and reads the directory again when they are used up: at most 32 MiB for a
//! directory of any size, and one pass for all but huge ones. In the order of keys, a directory `a` is
//! sorted as `a/`: after the file `a-b`.

use std::collections::BinaryHeap;
use std::fs::File;
use std::io;

use object_store::path::Path;
use object_store::{ListResult, ObjectMeta};
use rustix::fs::{Dir, FileType};
use rustix::io::Errno;

use super::scratch;
use super::tree::{Entry, Tree, look, open_dir, type_of};

/// Maximum number of names of one directory in memory; each has at most 255 bytes.
const WINDOW: usize = 128 * 1024;

/// The position of a listing.
pub(super) struct Walk {
    /// The open directories, from the one where the listing began to the current one.
    stack: Vec<Frame>,
    /// Only keys greater than this are listed.
    after: String,
    window: usize,
}

/// A directory that is being listed.
struct Frame {
    dir: File,
    /// Its key, with a slash at the end; empty for the root.
    prefix: String,
    /// The next names, in reverse order. Names of directories end with a slash.
    names: Vec<String>,
    /// The largest name that was taken into `names`, if more names follow it.
    more_after: Option<String>,
}

impl Walk {
    /// Lists all objects below a prefix whose keys are greater than `after`.
    pub(super) fn new(tree: &Tree, prefix: &Path, after: String) -> io::Result<Walk> {
        Walk::with_window(tree, prefix, after, WINDOW)
    }

    fn with_window(tree: &Tree, prefix: &Path, after: String, window: usize) -> io::Result<Walk> {
        let mut walk = Walk {
            stack: Vec::new(),
            after,
            window,
        };
        let segments = || prefix.as_ref().split_terminator('/');
        if segments().next() == Some(scratch::DIR) {
            return Ok(walk);
        }
        match tree.open(segments()) {
            Ok(dir) => {
                let prefix = match prefix.as_ref() {
                    "" => String::new(),
                    key => format!("{key}/"),
                };
                walk.enter(dir, prefix)?;
                Ok(walk)
            }
            Err(error) if is_absent(&error) => Ok(walk),
            Err(error) => Err(error),
        }
    }

    fn enter(&mut self, dir: File, prefix: String) -> io::Result<()> {
        let mut frame = Frame {
            dir,
            prefix,
            names: Vec::new(),
            more_after: None,
        };
        frame.fill(&self.after, self.window, None)?;
        self.stack.push(frame);
        Ok(())
    }

    /// Returns up to `most` further objects; an empty list at the end.
    pub(super) fn next(&mut self, most: usize) -> io::Result<Vec<ObjectMeta>> {
        let mut found = Vec::new();
        while found.len() < most {
            let Some(frame) = self.stack.last_mut() else {
                break;
            };
            let Some(name) = frame.names.pop() else {
                match frame.more_after.take() {
                    Some(last) => frame.fill(&self.after, self.window, Some(&last))?,
                    None => drop(self.stack.pop()),
                }
                continue;
            };
            let key = format!("{}{name}", frame.prefix);
            if let Some(name) = name.strip_suffix('/') {
                match open_dir(&frame.dir, name) {
                    Ok(dir) => self.enter(dir, key)?,
                    // It was removed or replaced meanwhile.
                    Err(error) if is_absent(&error) => {}
                    Err(error) => return Err(error),
                }
            } else {
                found.extend(object(&frame.dir, &name, &key)?);
            }
        }
        Ok(found)
    }
}

impl Frame {
    /// Takes the smallest names that are greater than `last`.
    fn fill(&mut self, after: &str, window: usize, last: Option<&str>) -> io::Result<()> {
        let mut smallest = BinaryHeap::new();
        let mut left_out = false;
        for entry in Dir::read_from(&self.dir)? {
            let entry = entry?;
            let Some(name) = name_of(&self.dir, &entry)? else {
                continue;
            };
            let is_scratch = self.prefix.is_empty() && name.strip_suffix('/') == Some(scratch::DIR);
            let is_passed = last.is_some_and(|last| name.as_str() <= last);
            if is_scratch || is_passed || !is_after(&self.prefix, &name, after) {
                continue;
            }
            smallest.push(name);
            if smallest.len() > window {
                smallest.pop();
                left_out = true;
            }
        }
        self.more_after = smallest.peek().filter(|_| left_out).cloned();
        self.names = smallest.into_sorted_vec();
        self.names.reverse();
        Ok(())
    }
}

/// The object of a file; none if the file does not exist any more.
fn object(dir: &File, name: &str, key: &str) -> io::Result<Option<ObjectMeta>> {
    let Entry::Object { size, modified } = look(dir, name)? else {
        return Ok(None);
    };
    Ok(Path::parse(key).ok().map(|location| ObjectMeta {
        location,
        last_modified: modified.into(),
        size,
        // The ETag would require reading the file.
        e_tag: None,
        version: None,
    }))
}

/// The name of a file, or the name and a slash of a directory. None if it cannot be a segment of a key.
fn name_of(dir: &File, entry: &rustix::fs::DirEntry) -> io::Result<Option<String>> {
    let Ok(name) = entry.file_name().to_str() else {
        return Ok(None);
    };
    if name == "." || name == ".." || name.chars().any(|c| c.is_ascii_control()) {
        return Ok(None);
    }
    Ok(match type_of(dir, entry.file_name(), entry.file_type())? {
        FileType::RegularFile => Some(name.to_owned()),
        FileType::Directory => Some(format!("{name}/")),
        _ => None,
    })
}

/// Whether the key of this entry is greater than `after`, or the directory may contain such keys.
fn is_after(prefix: &str, name: &str, after: &str) -> bool {
    let mut key = String::with_capacity(prefix.len() + name.len());
    key.push_str(prefix);
    key.push_str(name);
    key.as_str() > after || (name.ends_with('/') && after.starts_with(&key))
}

/// The entries directly below a prefix: objects, and the directories that contain any.
pub(super) fn level(tree: &Tree, prefix: &Path) -> io::Result<ListResult> {
    let mut result = ListResult {
        common_prefixes: Vec::new(),
        objects: Vec::new(),
        extensions: Default::default(),
    };
    let mut walk = Walk::new(tree, prefix, String::new())?;
    let Some(mut frame) = walk.stack.pop() else {
        return Ok(result);
    };
    loop {
        let Some(name) = frame.names.pop() else {
            let Some(last) = frame.more_after.take() else {
                break;
            };
            frame.fill("", WINDOW, Some(&last))?;
            continue;
        };
        let key = format!("{}{name}", frame.prefix);
        let Some(name) = name.strip_suffix('/') else {
            result.objects.extend(object(&frame.dir, &name, &key)?);
            continue;
        };
        let holds = match open_dir(&frame.dir, name) {
            Ok(dir) => has_object(&dir)?,
            Err(error) if is_absent(&error) => false,
            Err(error) => return Err(error),
        };
        if holds && let Ok(key) = Path::parse(key) {
            result.common_prefixes.push(key);
        }
    }
    Ok(result)
}

/// Whether a directory contains an object, at any depth.
fn has_object(dir: &File) -> io::Result<bool> {
    let mut inner = Vec::new();
    for entry in Dir::read_from(dir)? {
        match name_of(dir, &entry?)? {
            Some(name) if name.ends_with('/') => inner.push(name),
            Some(_) => return Ok(true),
            None => {}
        }
    }
    for name in inner {
        match open_dir(dir, name.trim_end_matches('/')) {
            Ok(dir) if has_object(&dir)? => return Ok(true),
            Ok(_) => {}
            Err(error) if is_absent(&error) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(false)
}

/// Whether the error means that there is no such path in an object store: nothing has the name, or a file
/// or a symlink has it.
pub(super) fn is_absent(error: &io::Error) -> bool {
    matches!(
        Errno::from_io_error(error),
        Some(Errno::NOENT | Errno::NOTDIR | Errno::LOOP)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_larger_than_the_window_is_listed_whole_and_in_order() {
        let dir = tempfile::tempdir().unwrap();
        for name in [
            "a", "a-b", "b/1", "b/2", "b/3", "b0", "c", "d/e/f", "é", "z",
        ] {
            let path = dir.path().join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, name).unwrap();
        }
        let tree = Tree::new(dir.path().to_owned());
        let all = |after: &str, window| {
            let mut walk = Walk::with_window(&tree, &Path::ROOT, after.to_owned(), window).unwrap();
            let mut keys = Vec::new();
            loop {
                let some = walk.next(3).unwrap();
                if some.is_empty() {
                    return keys;
                }
                keys.extend(some.into_iter().map(|meta| meta.location.to_string()));
            }
        };
        let whole = all("", 100);
        let mut sorted = whole.clone();
        sorted.sort();
        assert_eq!(whole, sorted);
        assert_eq!(whole.len(), 10);
        for window in 1..5 {
            assert_eq!(all("", window), whole, "with a window of {window}");
            for (position, after) in whole.iter().enumerate() {
                let rest = all(after, window);
                assert_eq!(rest, whole[position + 1..], "after {after}");
            }
        }
    }
}
