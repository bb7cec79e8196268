//! JSON snapshots of a state store that only the repository has, for an empty data directory.
//!
//! A cluster cannot be restored from them alone: they do not name their cluster, and its streams are lost.
//! The newest is fetched into the directory, so that the start can name it, and the operator can import it
//! into a new cluster.

use std::io;
use std::path::Path;

use esker_repository::ownership;

use super::search::remove;
use crate::blocking::blocking;
use crate::data_dir::UNDECIDED;
use crate::error::StartError;
use crate::snapshots::Archive;
use crate::state::archive::StateArchive;
use crate::state::error::FileError;
use crate::state::files::{Files, commit_of, name_of};

/// The newest valid JSON snapshot of a state store in a directory, with its keys.
pub(super) fn newest_state(dir: &Path) -> Result<Option<(String, u64)>, StartError> {
    let files = Files::at(dir.join("snapshots"));
    let unreadable = |source| StartError::Io {
        operation: "reading",
        path: files.dir().to_owned(),
        source,
    };
    for found in files.list().map_err(unreadable)? {
        match files.check(found.commit_ts) {
            Ok((written, _)) => return Ok(Some((name_of(found.commit_ts), written.keys))),
            Err(FileError::Unreadable(source)) => {
                return Err(StartError::Io {
                    operation: "reading",
                    path: found.path,
                    source,
                });
            }
            Err(FileError::Damaged(why)) => {
                tracing::warn!(file = %found.path.display(), why, "not a JSON snapshot of a state store");
            }
        }
    }
    Ok(None)
}

/// Fetches the newest valid JSON snapshot of the repository that is newer than those in a directory, so that
/// the start names it with them, and it can be imported. One that is damaged is named in the log.
///
/// # Errors
///
/// The repository or the directory cannot be read now: there may be a newer snapshot than those that are
/// known.
pub(super) async fn bring_archived_state(
    dir: &Path,
    cluster: &str,
    archive: &Archive,
) -> Result<(), StartError> {
    let shown = archive.shown().to_owned();
    let unreadable = |why: String| StartError::RepositoryUnreadable {
        repository: shown.clone(),
        why,
    };
    let marker = ownership::marker(archive.destination()).await;
    let marker = marker.map_err(|e| unreadable(e.to_string()))?;
    if marker.is_some_and(|marker| marker.cluster_name != cluster) {
        return Ok(());
    }
    let archive = StateArchive::new(archive.destination());
    let here = dir.to_owned();
    let newest_here = match blocking(move || newest_state(&here)).await {
        Ok(newest) => newest.and_then(|(name, _)| commit_of(&name)).unwrap_or(0),
        // The caller meets the same error, and ends the start.
        Err(_) => return Ok(()),
    };
    let listed = archive.list().await;
    let listed = listed.map_err(|e| unreadable(e.to_string()))?;
    let scratch = dir.join(UNDECIDED);
    for one in listed {
        if one.commit_ts <= newest_here {
            break;
        }
        let brought = bring(&archive, one.commit_ts, &scratch, dir).await;
        let name = name_of(one.commit_ts);
        match brought {
            Ok(()) => {
                tracing::info!(
                    snapshot = name,
                    from = archive.shown(),
                    "a snapshot of a state store was fetched from the repository"
                );
                break;
            }
            Err(FileError::Unreadable(error)) if error.kind() != io::ErrorKind::NotFound => {
                let _ = remove(&scratch);
                return Err(unreadable(format!("fetching {name}: {error}")));
            }
            Err(why) => tracing::warn!(
                snapshot = name,
                from = archive.shown(),
                %why,
                "an archived snapshot of a state store cannot be used: the one before it is tried"
            ),
        }
    }
    if let Err(error) = remove(&scratch) {
        tracing::warn!(%error, "what was fetched is not removed");
    }
    Ok(())
}

/// Fetches one archived snapshot into a directory's snapshots, if it is whole.
async fn bring(
    archive: &StateArchive,
    commit_ts: u64,
    scratch: &Path,
    dir: &Path,
) -> Result<(), FileError> {
    remove(scratch).map_err(|e| FileError::Unreadable(io::Error::other(e.to_string())))?;
    std::fs::create_dir_all(scratch)?;
    archive.fetch(commit_ts, scratch).await?;
    let (fetched, dir) = (Files::at(scratch.to_owned()), dir.join("snapshots"));
    blocking(move || {
        fetched.check(commit_ts)?;
        let files = Files::open(dir)?;
        if files.path(commit_ts).exists() {
            files.set_aside(commit_ts)?;
        }
        Ok(files.adopt(&fetched, commit_ts)?)
    })
    .await
}
