//! JSON snapshots of a state store that only the repository has, for a data directory that has nothing.
//!
//! They cannot be restored by themselves: which cluster they are of is not in them, and its streams are lost.
//! The newest is fetched into the directory, so that it can be named, and imported into a new cluster.

use std::path::Path;

use esker_repository::ownership;

use super::copies::remove;
use super::directory::newest_state;
use crate::snapshots::Archive;
use crate::state::archive::StateArchive;
use crate::state::files::{Files, commit_of, name_of};

/// Fetches the newest valid JSON snapshot of the repository that is newer than those in a directory, so that
/// it is named with them, and can be imported. What cannot be fetched is named in the log.
pub(super) async fn bring_archived_state(dir: &Path, cluster: &str, archive: &Archive) {
    match ownership::marker(archive.destination()).await {
        Ok(marker)
            if marker
                .as_ref()
                .is_none_or(|marker| marker.cluster_name == cluster) => {}
        // Another cluster's, or nothing is known of it.
        _ => return,
    }
    let archive = StateArchive::new(archive.destination());
    let newest_here = match newest_state(dir) {
        Ok(newest) => newest.and_then(|(name, _)| commit_of(&name)).unwrap_or(0),
        // It is met again, and ends the start.
        Err(_) => return,
    };
    let listed = match archive.list().await {
        Ok(listed) => listed,
        Err(error) => {
            tracing::warn!(%error, "archived snapshots of a state store are not known");
            return;
        }
    };
    let scratch = dir.join("scratch");
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
            Err(why) => tracing::warn!(
                snapshot = name,
                from = archive.shown(),
                why,
                "an archived snapshot of a state store cannot be used: the one before it is tried"
            ),
        }
    }
    if let Err(error) = remove(&scratch) {
        tracing::warn!(%error, "what was fetched is not removed");
    }
}

/// Fetches one archived snapshot into a directory's snapshots, if it is whole.
async fn bring(
    archive: &StateArchive,
    commit_ts: u64,
    scratch: &Path,
    dir: &Path,
) -> Result<(), String> {
    let failed = |e: std::io::Error| e.to_string();
    remove(scratch).map_err(|e| e.to_string())?;
    std::fs::create_dir_all(scratch).map_err(failed)?;
    archive.fetch(commit_ts, scratch).await.map_err(failed)?;
    let fetched = Files::at(scratch.to_owned());
    fetched.check(commit_ts).map_err(|e| e.to_string())?;
    let files = Files::open(dir.join("snapshots")).map_err(failed)?;
    if files.path(commit_ts).exists() {
        files.set_aside(commit_ts).map_err(failed)?;
    }
    files.adopt(&fetched, commit_ts).map_err(failed)
}
