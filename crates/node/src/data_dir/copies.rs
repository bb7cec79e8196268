//! Local snapshots in a directory, with or without an identity.

use std::fs;
use std::path::{Path, PathBuf};

use super::files::{io, or_absent};
use crate::error::{StartError, in_words};

/// The checkpoints below a directory by partition, newest first; partitions without any are left out.
pub(crate) fn checkpoints_in(base: &Path) -> Result<Vec<(u64, Vec<PathBuf>)>, StartError> {
    let Some(entries) = or_absent(fs::read_dir(base), base)? else {
        return Ok(Vec::new());
    };
    let mut found = Vec::new();
    for entry in entries {
        let entry = entry.map_err(io("listing", base))?;
        let name = entry.file_name();
        let Some(number) = name.to_str().and_then(|name| name.parse().ok()) else {
            continue;
        };
        let there = esker_partition::checkpoint::all(&entry.path())?;
        if !there.is_empty() {
            found.push((number, there));
        }
    }
    found.sort();
    Ok(found)
}

/// The copies of a cluster's partitions in a directory, in words. A directory without an identity may have
/// some, if the rest was lost.
pub(crate) fn copies_in(dir: &Path) -> Result<Option<String>, StartError> {
    let found = checkpoints_in(&dir.join("checkpoints"))?;
    if found.is_empty() {
        return Ok(None);
    }
    let numbers: Vec<u64> = found.iter().map(|(number, _)| *number).collect();
    Ok(Some(format!(
        "checkpoints/ has local snapshots of {}",
        in_words(&numbers)
    )))
}
