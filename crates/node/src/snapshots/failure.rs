//! Why the repository takes no snapshots, and what to do about it.

use std::fmt;

use esker_repository::Error as RepositoryError;

/// The repository fails, for any reason.
const FAILING: &str = "repository_failing";
/// A partition's root was removed.
const ROOT_MISSING: &str = "repository_root_missing";
/// The repository has continued with another lineage.
const OTHER_LINEAGE: &str = "repository_other_lineage";
/// Another copy of this node writes to the repository, or has written to it.
const OTHER_WRITER: &str = "repository_other_writer";
const COPIED: &str = "the data directory was copied, or put back from a copy: stop the one of the two that is not wanted; for both to go on, give one a snapshots.destination of its own; to go on with what the repository has, start an empty data directory with --bootstrap restore";

/// A failure, as a [`Problem`](super::Problem) shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Failure {
    /// A stable code.
    pub code: &'static str,
    /// What is wrong.
    pub what: String,
    /// What to do.
    pub remedy: &'static str,
}

impl Failure {
    /// The repository fails, for any reason.
    pub fn failing(what: impl Into<String>) -> Failure {
        Failure {
            code: FAILING,
            what: what.into(),
            remedy: "look at the network, the address and the keys of snapshots.destination; service goes on, and it is tried again",
        }
    }

    /// The snapshot failed on this machine, before any request to the repository.
    pub fn here(what: impl Into<String>) -> Failure {
        Failure {
            remedy: "the snapshot failed on this machine: look at free space on the disk of the data directory; it is tried again",
            ..Failure::failing(what)
        }
    }

    /// Replicas differ, and the one here may be wrong.
    pub fn doubtful() -> Failure {
        Failure {
            remedy: "see the problem replicas_differ; snapshots are put again once it is known which replica is right",
            ..Failure::failing(
                "the replicas of this partition differ, and it is not known which is right: none is put into the repository",
            )
        }
    }

    /// The repository has snapshots of another copy of this node.
    pub fn other_history(what: String) -> Failure {
        Failure {
            code: OTHER_WRITER,
            what,
            remedy: COPIED,
        }
    }

    /// The repository has continued with another lineage.
    pub fn other_lineage(what: impl Into<String>) -> Failure {
        Failure {
            code: OTHER_LINEAGE,
            what: what.into(),
            remedy: "stop this server, and let clients use the one that was restored; what only this one has can be read from it before that",
        }
    }

    /// The failure for an error of the repository.
    pub fn of(error: &RepositoryError) -> Failure {
        let what = error.to_string();
        let (code, remedy) = match error {
            RepositoryError::MarkerMissing { .. } | RepositoryError::OtherDestination { .. } => (
                "repository_missing",
                "mount the disk, or bring the directory or bucket back; if it was removed on purpose, stop the server, delete destination.json in its data directory, and start it again",
            ),
            RepositoryError::OtherWriter { .. } => (OTHER_WRITER, COPIED),
            RepositoryError::OtherCluster { .. } | RepositoryError::NotOurs { .. } => (
                "repository_of_others",
                "set snapshots.destination to a prefix or directory that nobody else uses",
            ),
            RepositoryError::OtherLineage { .. } => return Failure::other_lineage(what),
            RepositoryError::NoRoot { others: true, .. } => (
                ROOT_MISSING,
                "bring the newest version of latest.json back; if there is none, and the data directory is well, move the partition's directory in the repository away, and a new snapshot is put",
            ),
            error if error.is_damage() => {
                return Failure {
                    remedy: "esker snapshot verify names what is damaged or missing: bring it back from a version or a backup; service goes on, and it is tried again",
                    ..Failure::failing(what)
                };
            }
            RepositoryError::NewerFormat { .. } => {
                return Failure {
                    remedy: "start that release again, or a newer one; until then nothing in the repository that it wrote is used or deleted, and service goes on",
                    ..Failure::failing(what)
                };
            }
            RepositoryError::NoSpace { .. } => {
                return Failure {
                    remedy: "make room at snapshots.destination; service goes on, and it is tried again",
                    ..Failure::failing(what)
                };
            }
            _ => return Failure::failing(what),
        };
        Failure { code, what, remedy }
    }

    /// Whether the repository fails in a way that a later attempt may not meet.
    pub fn is_failing(&self) -> bool {
        self.code == FAILING
    }

    /// Whether the repository has continued with another lineage.
    pub fn is_other_lineage(&self) -> bool {
        self.code == OTHER_LINEAGE
    }

    /// Whether another copy of this node writes to the repository.
    pub fn is_other_writer(&self) -> bool {
        self.code == OTHER_WRITER
    }

    /// Whether the repository belongs to another node, or to another history, so that nothing in it may be
    /// changed. A removed root affects its partition alone: snapshots of other partitions are put.
    pub fn is_refusal(&self) -> bool {
        ![FAILING, ROOT_MISSING].contains(&self.code)
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.is_refusal() {
            true => write!(f, "{}; {}", self.what, self.remedy),
            false => f.write_str(&self.what),
        }
    }
}
