//! Translates the library's errors for a person: a stable code, what happened, and what to do.

use std::error::Error as _;
use std::io;

use esker_repository::destination::ProbeError;
use esker_repository::{Destination, Error, StoreFailure};

use crate::failure::Failure;

/// The store of a request, for advice.
#[derive(Clone, Copy)]
pub struct Place<'a> {
    pub destination: &'a Destination,
    /// Where credentials come from.
    pub keys: &'a str,
}

/// The failure for a place without a repository.
pub fn no_repository(shown: &str) -> Failure {
    Failure::wrong(
        "no_repository",
        format!("there is no snapshot at {shown}, and never was"),
    )
    .advise(
        "correct --repository or --partition, or make the first with `esker snapshot put DIR --lsn N`",
    )
}

/// A library's error, as a failure of the command.
pub fn of(error: &Error, place: Place<'_>) -> Failure {
    let advised = |code, hint: &str| Failure::wrong(code, error).advise(hint);
    match error {
        Error::NoRoot {
            others: false,
            root,
        } => no_repository(root.strip_suffix("/latest.json").unwrap_or(root)),
        Error::NoRoot { .. } => Failure::wrong("root_missing", error),
        Error::NoBucket { .. } => Failure::wrong("no_repository", error),
        Error::Damaged { .. } | Error::Missing { .. } => advised(
            "damaged",
            "`esker snapshot verify` says what else is, and which snapshots it hurts",
        ),
        Error::NewerFormat { .. } => Failure::wrong("newer_format", error),
        Error::OtherCluster { .. } => Failure::wrong("other_cluster", error),
        Error::NotOurs { .. } => Failure::wrong("not_ours", error),
        Error::MarkerMissing { .. } | Error::OtherDestination { .. } => {
            Failure::wrong("repository_missing", error)
        }
        Error::OtherWriter { .. } => advised(
            "other_writer",
            "a server puts the snapshots of this partition; put to another partition or prefix",
        ),
        Error::OtherLineage { .. } => advised(
            "other_lineage",
            "name the snapshot's history with --lineage, or put to another prefix",
        ),
        Error::Superseded { .. } => Failure::wrong("superseded", error),
        Error::Fenced { .. } => advised("fenced", "try again, and look at the clocks"),
        Error::RootMoved { .. } => Failure::wrong("root_moved", error),
        Error::Contended { .. } => advised("contended", "try again"),
        Error::NoSnapshot(_) => {
            advised("no_snapshot", "`esker snapshot list` shows those that are")
        }
        Error::Unusable(_) => Failure::wrong("unusable", error),
        Error::Denied { .. } => Failure::unreachable("denied", error).advise(denied(place)),
        Error::Store { .. } if is_full(error) => Failure::wrong("no_space", error),
        Error::Store { .. } => Failure::unreachable("store", error).advise(failing(place)),
        Error::Io { source, .. } if is_storage_full(source) => Failure::wrong("no_space", error),
        Error::NoSpace { .. } => Failure::wrong("no_space", error),
        Error::Io { .. } => Failure::wrong("io", error),
        Error::Invalid(_) => Failure::usage("invalid", error),
        other => Failure::wrong("snapshot", other),
    }
}

/// A store that was probed and is not fit to be written to.
pub fn of_probe(error: &ProbeError, place: Place<'_>) -> Failure {
    match error {
        ProbeError::ReadOnly { .. } => Failure::unreachable("denied", error).advise(denied(place)),
        ProbeError::Liar { .. } => Failure::wrong(
            "lying_store",
            format!(
                "{error}. Nothing was written: two writers would lose each other's snapshots there"
            ),
        )
        .advise("a newer version of the store, or its setting for conditional puts, may help"),
        ProbeError::NoBucket { .. } => Failure::wrong("no_repository", error),
        _ => Failure::unreachable("store", error),
    }
}

/// Advice for a store that fails.
fn failing(place: Place<'_>) -> String {
    match place.destination.local() {
        Some(local) => format!("look at the disk below {}", local.root().display()),
        None => "is the store up, and --aws-endpoint-url right?".to_owned(),
    }
}

/// Advice for a store that denies access.
fn denied(place: Place<'_>) -> String {
    if let Some(local) = place.destination.local() {
        return format!("look at the permissions of {}", local.root().display());
    }
    format!("used were {}", place.keys)
}

/// Whether the cause of an error is a full disk.
fn is_full(error: &Error) -> bool {
    let Error::Store {
        source: StoreFailure::Failed(source),
        ..
    } = error
    else {
        return false;
    };
    let mut next = source.source();
    while let Some(error) = next {
        if error.downcast_ref().is_some_and(is_storage_full) {
            return true;
        }
        next = error.source();
    }
    false
}

fn is_storage_full(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded
    )
}
