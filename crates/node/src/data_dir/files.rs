//! Operations on files and directories, with errors that name them.

use std::fs::{self, File};
use std::io::Write as _;
use std::path::Path;

use esker_partition::checkpoint::{MISSING_TARGET, is_absent};

use crate::error::StartError;

/// What was read; `None` if nothing is at the path.
///
/// # Errors
///
/// It cannot be read now; or the path is, or is below, a symlink whose target is missing: the target may be on a disk
/// that is not mounted.
pub(crate) fn or_absent<T>(read: std::io::Result<T>, path: &Path) -> Result<Option<T>, StartError> {
    let shown = path.display().to_string();
    match read {
        Ok(read) => Ok(Some(read)),
        Err(e) if is_absent(path, &e) => Ok(None),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
            Err(StartError::unreadable(shown, &MISSING_TARGET))
        }
        Err(e) => Err(StartError::unreadable(shown, &e)),
    }
}

/// Replaces a file: whole or not at all, durable when this returns.
pub(crate) fn write_durably(path: &Path, bytes: &[u8]) -> Result<(), StartError> {
    let temporary = path.with_extension("tmp");
    let mut file = File::create(&temporary).map_err(io("creating", &temporary))?;
    file.write_all(bytes)
        .and_then(|()| file.sync_all())
        .map_err(io("writing", &temporary))?;
    fs::rename(&temporary, path).map_err(io("renaming to", path))?;
    path.parent().map_or(Ok(()), sync_dir)
}

pub(crate) fn sync_dir(dir: &Path) -> Result<(), StartError> {
    File::open(dir)
        .and_then(|d| d.sync_all())
        .map_err(io("syncing", dir))
}

/// Removes a file, if it is there; durable when this returns.
pub(super) fn remove(path: &Path) -> Result<(), StartError> {
    match fs::remove_file(path) {
        Ok(()) => path.parent().map_or(Ok(()), sync_dir),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(()),
        Err(source) => Err(io("removing", path)(source)),
    }
}

/// Whether a name exists, even as a symlink whose target is missing.
pub(crate) fn is_there(path: &Path) -> Result<bool, StartError> {
    match fs::symlink_metadata(path) {
        Ok(_) => Ok(true),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(false),
        Err(e) => Err(io("looking at", path)(e)),
    }
}

/// Whether a path has more than an empty directory; a newly mounted disk counts as empty.
pub(super) fn is_in_use(path: &Path) -> Result<bool, StartError> {
    if !is_there(path)? {
        return Ok(false);
    }
    let entries = match fs::read_dir(path) {
        Ok(entries) => entries,
        Err(_) => return Ok(true),
    };
    for entry in entries {
        let entry = entry.map_err(io("listing", path))?;
        if entry.file_name() != "lost+found" {
            return Ok(true);
        }
    }
    Ok(false)
}

pub(super) fn io(
    operation: &'static str,
    path: &Path,
) -> impl FnOnce(std::io::Error) -> StartError {
    let path = path.to_owned();
    move |source| StartError::Io {
        operation,
        path,
        source,
    }
}
