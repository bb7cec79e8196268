//! Errors of a repository, by what the caller can do about them.

use std::io;
use std::path::PathBuf;

use crate::ids::{DestinationId, LineageId, Lsn};
use crate::layout::SnapshotDir;

/// An error of a repository. Messages name the object and the operation.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The root is missing: nothing was ever put here, or the root was removed. It never means that no
    /// snapshot is retained.
    #[error("{root} does not exist{}", if *.others { ", but other objects of snapshots do: it was removed. Bring it back from a version or a backup of the bucket; nothing is written or deleted until then, and a snapshot that is named in full (lsn_…-snap_…) can be restored" } else { "" })]
    NoRoot {
        /// Its URL.
        root: String,
        /// Whether the partition's prefix holds objects of snapshots.
        others: bool,
    },
    /// An object fails a checksum or a rule of its format. It is left as it is.
    #[error("{object} is damaged: {why}")]
    Damaged {
        /// Its URL.
        object: String,
        /// What is wrong with it.
        why: String,
    },
    /// An object has a format that this release does not know, because a later release has written it. It is no
    /// damage: nothing is concluded from it, and it is neither repaired nor deleted.
    #[error(
        "{object} was written by a newer release of Esker ({why}): use that release, or a newer one"
    )]
    NewerFormat {
        /// Its URL.
        object: String,
        /// The version that it has, and those that are known.
        why: String,
    },
    /// A listed or referenced object does not exist.
    #[error("{object} is missing")]
    Missing {
        /// Its URL.
        object: String,
    },
    /// The destination belongs to another cluster.
    #[error("{object} belongs to {theirs}, not to {ours}: use another prefix for each cluster")]
    OtherCluster {
        /// The URL of the object that names the owner.
        object: String,
        /// The owner.
        theirs: String,
        /// The cluster that this process is of.
        ours: String,
    },
    /// The destination's marker was there before, and is missing now.
    #[error(
        "{marker} is missing, and was there before: the disk is not mounted, or the directory or bucket was emptied; nothing is written there until it is back"
    )]
    MarkerMissing {
        /// The marker's URL.
        marker: String,
    },
    /// The destination has another id than before.
    #[error(
        "{marker} is that of another destination (id {found}) than before (id {expected}): another disk or bucket is there now, or it was emptied and used again; nothing is written there until the former is back"
    )]
    OtherDestination {
        /// The marker's URL.
        marker: String,
        /// The id that was seen before.
        expected: DestinationId,
        /// The id that is there.
        found: DestinationId,
    },
    /// The root was written by Restate, or by another program that writes no generations.
    #[error(
        "{root} was not written by Esker (it has no generation): nothing is ever written to a destination that another program writes to; use another prefix"
    )]
    NotOurs {
        /// Its URL.
        root: String,
    },
    /// The snapshot is of another lineage than the repository.
    #[error(
        "the repository is of lineage {}, the snapshot of {}: they do not share a history",
        lineage_name(.theirs), lineage_name(.ours)
    )]
    OtherLineage {
        /// The repository's lineage.
        theirs: Option<LineageId>,
        /// The snapshot's lineage, or the one that was asked for.
        ours: Option<LineageId>,
    },
    /// Another process puts the snapshots of this lineage: another copy of the node or, if this process is
    /// a command, a node.
    #[error(
        "{root} is written by {theirs}, and not by {ours}: two that write would mix their histories"
    )]
    OtherWriter {
        /// The root's URL.
        root: String,
        /// The writer that the root names.
        theirs: String,
        /// The writer that is refused.
        ours: String,
    },
    /// All retained snapshots are newer, and an older one is not accepted.
    #[error("a snapshot at LSN {lsn} is older than the oldest retained one, at LSN {oldest}")]
    Superseded {
        /// The snapshot's LSN.
        lsn: Lsn,
        /// The LSN of the oldest retained snapshot.
        oldest: Lsn,
    },
    /// Each time that the upload was started, its intent expired and was removed.
    #[error("the upload was fenced {attempts} times: its intent expired and was removed")]
    Fenced {
        /// How often the upload was started.
        attempts: u32,
    },
    /// The root was changed between a plan and its application.
    #[error("the root moved from generation {planned} to {actual}: make a new plan")]
    RootMoved {
        /// The generation that the plan was made for.
        planned: u64,
        /// The current generation.
        actual: u64,
    },
    /// Other writers swapped the root before each attempt.
    #[error("the root {root} was swapped by others {attempts} times in a row")]
    Contended {
        /// Its URL.
        root: String,
        /// Number of attempts.
        attempts: u32,
    },
    /// There is no such snapshot.
    #[error("no snapshot {0} is retained, pinned or abandoned")]
    NoSnapshot(String),
    /// No snapshot can be restored. The snapshots that were tried, newest first, each with its error.
    #[error("no usable snapshot: {}", tried(.0))]
    Unusable(Vec<(SnapshotDir, Box<Error>)>),
    /// There is no such bucket.
    #[error("there is no bucket for {destination} (NoSuchBucket): make it, or correct the URL")]
    NoBucket {
        /// The destination's URL.
        destination: String,
    },
    /// The store refused the request.
    #[error("cannot {what} {object}: {source}")]
    Denied {
        /// The operation.
        what: &'static str,
        /// The object's URL.
        object: String,
        /// The store's error.
        source: object_store::Error,
    },
    /// The store failed at every attempt.
    #[error("cannot {what} {object}, after {attempts} attempts: {source}")]
    Store {
        /// The operation.
        what: &'static str,
        /// The object's URL.
        object: String,
        /// Number of attempts.
        attempts: u32,
        /// The failure of the last attempt.
        source: StoreFailure,
    },
    /// Reading or writing a local file failed.
    #[error("cannot {what} {}: {source}", .path.display())]
    Io {
        /// The operation.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// The error of the operating system.
        source: io::Error,
    },
    /// The disk has too little space for a restore.
    #[error("{} bytes are needed in {}, and {} are free", .needed, .path.display(), .free)]
    NoSpace {
        /// The directory.
        path: PathBuf,
        /// Bytes that are needed.
        needed: u64,
        /// Bytes that are free.
        free: u64,
    },
    /// An argument or a setting cannot be used.
    #[error("{0}")]
    Invalid(String),
}

/// How a store failed.
#[derive(Debug, thiserror::Error)]
pub enum StoreFailure {
    /// It answered with an error, or the connection broke.
    #[error("{0}")]
    Failed(#[from] object_store::Error),
    /// It did not answer in time.
    #[error("no answer within {} s", .0.as_secs())]
    Silent(std::time::Duration),
}

impl Error {
    /// Whether a snapshot's objects are damaged or missing, so that an older snapshot may be tried. An object
    /// that cannot be read now is neither, nor is one of a newer format.
    pub fn is_damage(&self) -> bool {
        matches!(self, Error::Damaged { .. } | Error::Missing { .. })
    }
}

/// Why the bytes of an object are not used.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum ParseError {
    /// They break a rule of the format.
    #[error("{0}")]
    Damaged(String),
    /// They have a format that a later release writes.
    #[error("{0}; use a newer Esker")]
    Newer(String),
}

impl From<String> for ParseError {
    fn from(why: String) -> ParseError {
        ParseError::Damaged(why)
    }
}

impl ParseError {
    /// The error of a version that is not among those that are `known`: the last of these is the newest. Versions
    /// are `V` and a number.
    pub(crate) fn of_version(version: Option<&str>, known: &[&str]) -> ParseError {
        let number = |version: &str| version.strip_prefix('V')?.parse::<u32>().ok();
        let Some(version) = version else {
            return ParseError::Damaged("no version".to_owned());
        };
        let shown: String = version.chars().take(40).collect();
        let why = format!(
            "version {shown:?}, and only {} is known",
            known.join(" or ")
        );
        let newest = known.last().and_then(|newest| number(newest));
        match number(version) > newest {
            true => ParseError::Newer(why),
            false => ParseError::Damaged(why),
        }
    }

    /// As the error of an object.
    pub(crate) fn of(self, object: String) -> Error {
        match self {
            ParseError::Damaged(why) => Error::Damaged { object, why },
            ParseError::Newer(why) => Error::NewerFormat { object, why },
        }
    }
}

fn lineage_name(lineage: &Option<LineageId>) -> String {
    lineage.map_or_else(|| "none".to_owned(), |l| l.to_string())
}

fn tried(tried: &[(SnapshotDir, Box<Error>)]) -> String {
    if tried.is_empty() {
        return "none is retained".to_owned();
    }
    let each = tried.iter().map(|(dir, error)| format!("{dir}: {error}"));
    each.collect::<Vec<_>>().join("; ")
}
