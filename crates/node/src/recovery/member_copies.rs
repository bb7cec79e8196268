//! Copies in `raft/`: snapshots that other members have sent, or that were made for them.
//!
//! Each is a whole checkpoint. A node that joined begins with one, and it is the only one beside the database until
//! the first local snapshot. The log may end before one that was fetched, because it is restarted after the
//! install: that is no proof of a log that was cut.

use std::fs;
use std::path::{Path, PathBuf};

use esker_partition::{Checkpoint, Lineage, checkpoint};

use crate::data_dir::{DataDir, is_there};
use crate::error::StartError;

/// The directory of a group's snapshots.
fn group_dir(data_dir: &DataDir, partition: u64) -> PathBuf {
    data_dir.raft().join(format!("group-{partition}"))
}

/// The directories that may have a checkpoint, and whether a copy there was complete at once: one that is being
/// fetched may lack files.
///
/// # Errors
///
/// They cannot be listed now.
pub(super) fn all(data_dir: &DataDir, partition: u64) -> Result<Vec<(PathBuf, bool)>, StartError> {
    let dir = group_dir(data_dir, partition);
    let unreadable = |e: &std::io::Error| StartError::unreadable(dir.display().to_string(), e);
    let entries = match fs::read_dir(&dir) {
        Ok(entries) => entries,
        Err(e) if checkpoint::is_absent(&dir, &e) => return Ok(Vec::new()),
        Err(e) => return Err(unreadable(&e)),
    };
    let mut found = Vec::new();
    for entry in entries {
        let entry = entry.map_err(|e| unreadable(&e))?;
        let name = entry.file_name();
        let name = name.to_string_lossy();
        let is_stored = name.starts_with("snap-");
        if is_stored || name.starts_with("fetch-") {
            found.push((entry.path().join("files"), is_stored));
        }
    }
    found.sort();
    Ok(found)
}

/// Removes the snapshots of a partition whose log is begun again with `lineage`. They are put aside if one of them
/// may have what is not part of that history, or if nothing of it is (`begins_without`). To be called before the
/// log is begun: after a crash in between it is done again. Blocking.
///
/// # Errors
///
/// They cannot be listed, moved or removed now.
pub(super) fn leave(
    data_dir: &DataDir,
    partition: u64,
    lineage: &Lineage,
    begins_without: bool,
) -> Result<(), StartError> {
    let dir = group_dir(data_dir, partition);
    if !is_there(&dir)? {
        return Ok(());
    }
    let has_more = |(files, is_stored): &(PathBuf, bool)| match Checkpoint::open(files) {
        Ok(found) => {
            let is_part = |id| lineage.contains(id, found.meta.lsn);
            begins_without || !found.lineage().is_some_and(is_part)
        }
        // What is left of a damaged one may be all that is left; of one that was being fetched, others have all.
        Err(error) => *is_stored || error.is_unreadable(),
    };
    if all(data_dir, partition)?.iter().any(has_more) {
        let aside = data_dir.put_aside_as(&dir, &format!("raft-group-{partition}"))?;
        tracing::warn!(
            partition,
            aside = %aside.display(),
            "snapshots of other members were put aside: they may have what nothing else has; remove them when you no longer want them"
        );
        return Ok(());
    }
    remove(&dir)
}

fn remove(dir: &Path) -> Result<(), StartError> {
    match fs::remove_dir_all(dir) {
        Err(source) if source.kind() != std::io::ErrorKind::NotFound => Err(StartError::Io {
            operation: "removing",
            path: dir.to_owned(),
            source,
        }),
        _ => Ok(()),
    }
}
