//! JSON snapshots that are newer than the store after a restore with a loss.
//!
//! They belong to a lineage that the restore has left, so nothing imports them automatically, and retention
//! does not count them. They have what was lost, and only the operator can decide whether it is wanted.

use std::time::Duration;

use esker_partition::Lineage;
use esker_partition::store::StoreError;

use super::archive::StateArchive;
use super::document::Header;
use super::files::{Files, name_of};
use super::lineage::was_left;
use super::rebuild::StateSources;
use crate::blocking::blocking;

/// How long a start waits at most for the repository to list them.
const LOOK_TIMEOUT: Duration = Duration::from_secs(10);

/// The newest of them, if there is any: its name, and its place. Those that cannot be read now are passed
/// over with a warning.
pub(crate) async fn newest(sources: &StateSources) -> Result<Option<String>, StoreError> {
    let leaf = sources.clone();
    let (lineage, restored, here) = blocking(move || {
        let lineage = leaf.part.lineage()?;
        let restored = leaf.part.state_meta()?.unwrap_or_default().commit_ts;
        let here = local(&leaf.files, &lineage, restored);
        Ok::<_, StoreError>((lineage, restored, here))
    })
    .await?;
    let mut found = here.map(|header| (header, sources.files.dir().display().to_string()));
    let known = found
        .as_ref()
        .map_or(restored, |(header, _)| header.commit_ts);
    if let Some(archive) = &sources.archive {
        let looking = archived(archive, &lineage, known);
        match tokio::time::timeout(LOOK_TIMEOUT, looking).await {
            Ok(Ok(None)) => {}
            Ok(Ok(Some(header))) => {
                found = Some((header, format!("{}/state/default", archive.shown())));
            }
            Ok(Err(error)) => tracing::warn!(
                %error,
                "whether the repository has newer snapshots of the state store is not known"
            ),
            Err(_) => tracing::warn!(
                timeout = ?LOOK_TIMEOUT,
                "whether the repository has newer snapshots of the state store is not known: it did not answer in time"
            ),
        }
    }
    Ok(found.map(|(header, place)| {
        let name = name_of(header.commit_ts);
        tracing::warn!(
            snapshot = name,
            place,
            commit_ts = header.commit_ts,
            restored,
            "a snapshot of the state store is newer than what was restored: what was lost is in it. It is of the \
             lineage before the restore, so nothing uses it by itself; `esker state import --replace` takes its \
             state over"
        );
        format!("{name} in {place}")
    }))
}

fn local(files: &Files, lineage: &Lineage, than: u64) -> Option<Header> {
    let listed = files.list().unwrap_or_else(|error| {
        tracing::warn!(%error, "snapshots of the state store are not known");
        Vec::new()
    });
    listed
        .into_iter()
        .take_while(|one| one.commit_ts > than)
        .filter_map(|one| Some(files.check(one.commit_ts).ok()?.0.header))
        .find(|header| was_left(lineage, header))
}

async fn archived(
    archive: &StateArchive,
    lineage: &Lineage,
    than: u64,
) -> object_store::Result<Option<Header>> {
    for one in archive.list().await? {
        if one.commit_ts <= than {
            break;
        }
        if let Ok(header) = archive.head(&one).await?
            && header.commit_ts == one.commit_ts
            && was_left(lineage, &header)
        {
            return Ok(Some(header));
        }
    }
    Ok(None)
}
