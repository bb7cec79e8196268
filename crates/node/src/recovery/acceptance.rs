//! At which starts `--bootstrap restore` has effect.
//!
//! The option accepts a loss. It is often set by an environment variable, and is then still set at every
//! later start, when another loss may have happened that the operator does not know of. So a start with the
//! option writes `bootstrap.json` once it serves: from then on the option has no effect in this directory,
//! until a start is made without it. Such a start removes the file, whether it then serves or is refused,
//! and the option has effect when it is set the next time.
//!
//! A crash before a start serves leaves no file: the next start continues with what was accepted. The
//! file is lost with its data directory: in an empty one, the option always has effect.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::data_dir::{now_rfc3339, sync_dir, write_durably};
use crate::error::StartError;
use crate::snapshots::Bootstrap;

const FILE: &str = "bootstrap.json";

/// What the operator accepts at a start.
#[derive(Clone, Debug, Default)]
pub(super) struct Accepted {
    /// That what cannot be recovered is lost. A loss that a plan contains was accepted by an earlier start;
    /// this start accepts none beyond it.
    pub loss: bool,
    /// Partitions that begin empty if no copy of them is left.
    pub empty: BTreeSet<u64>,
}

/// A start with the option that has served.
#[derive(Debug, Serialize, Deserialize)]
struct Spent {
    /// When it began to serve, in RFC 3339.
    served_at: String,
}

fn path(data_dir: &Path) -> PathBuf {
    data_dir.join(FILE)
}

/// When a start with the option served, if the option has no effect any more.
pub(super) fn spent(data_dir: &Path) -> Result<Option<String>, StartError> {
    let path = path(data_dir);
    match std::fs::read(&path) {
        // The file counts even if it cannot be parsed.
        Ok(text) => Ok(Some(match serde_json::from_slice::<Spent>(&text) {
            Ok(spent) => spent.served_at,
            Err(_) => "an unknown time".to_owned(),
        })),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(StartError::unreadable(path.display().to_string(), &e)),
    }
}

/// Which of the options have effect at this start.
pub(super) fn counts(
    data_dir: &Path,
    said: Option<Bootstrap>,
) -> Result<Option<Bootstrap>, StartError> {
    let Some(served_at) = spent(data_dir)? else {
        return Ok(said);
    };
    if said == Some(Bootstrap::Restore) {
        tracing::warn!(
            served_at,
            "--bootstrap restore does not count, nor does --empty-partitions: it was said for an earlier start, \
             which has served. Remove it, also ESKER_BOOTSTRAP from the environment"
        );
        return Ok(None);
    }
    let path = path(data_dir);
    std::fs::remove_file(&path).map_err(|source| StartError::Io {
        operation: "removing",
        path,
        source,
    })?;
    sync_dir(data_dir)?;
    Ok(said)
}

/// Notes that this start serves: the option that was given to it has no effect any more. Durable when this
/// returns.
pub(super) fn spend(data_dir: &Path, said: Option<Bootstrap>) -> Result<(), StartError> {
    if said != Some(Bootstrap::Restore) || spent(data_dir)?.is_some() {
        return Ok(());
    }
    let path = path(data_dir);
    let spent = Spent {
        served_at: now_rfc3339(),
    };
    let text = serde_json::to_vec_pretty(&spent).map_err(|e| StartError::BadIdentity {
        path: path.clone(),
        why: e.to_string(),
    })?;
    write_durably(&path, &text)?;
    tracing::warn!(
        "--bootstrap restore was for this start alone, and does not count any more: remove it, also \
         ESKER_BOOTSTRAP from the environment"
    );
    Ok(())
}

/// If the option would resolve a refusal, adds to the refusal why the option has no effect.
pub(super) fn explain(data_dir: &Path, said: Option<Bootstrap>, error: StartError) -> StartError {
    let is_answered = matches!(
        error,
        StartError::LogMissing { .. }
            | StartError::LogIncomplete { .. }
            | StartError::Raft(_)
            | StartError::NothingUsable { .. }
            | StartError::HoldsCopies { .. }
            | StartError::RepositoryHoldsCluster { .. }
    );
    if said != Some(Bootstrap::Restore) || !is_answered {
        return error;
    }
    match spent(data_dir) {
        Ok(Some(served_at)) => StartError::RestoreSpent {
            served_at,
            error: Box::new(error),
        },
        _ => error,
    }
}
