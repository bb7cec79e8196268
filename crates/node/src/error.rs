//! Why something was not done, by what the caller can do about it.

use std::borrow::Cow;
use std::path::PathBuf;
use std::sync::Arc;

use esker_partition::command::Outcome;
use esker_partition::{Basin, ReadError, STATE_BASIN_ID, StoreError};
use esker_raft::ProposeError;
use s2_common::record::{FencingToken, SeqNum, StreamPosition};

/// Why an operation failed.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Error {
    /// No basin of the name.
    #[error("basin `{0}` not found")]
    BasinNotFound(String),
    /// The basin is being deleted.
    #[error("basin `{0}` is being deleted")]
    BasinDeletionPending(String),
    /// There is a basin of the name already.
    #[error("basin `{0}` already exists")]
    BasinExists(String),
    /// No stream of the name.
    #[error("stream `{stream}` in basin `{basin}` not found")]
    StreamNotFound {
        /// The basin.
        basin: String,
        /// The stream.
        stream: String,
    },
    /// There is a stream of the name already.
    #[error("stream `{stream}` in basin `{basin}` already exists")]
    StreamExists {
        /// The basin.
        basin: String,
        /// The stream.
        stream: String,
    },
    /// Another fencing token is in force: this one.
    #[error("fencing token mismatch: `{0}` is in force")]
    FencingTokenMismatch(FencingToken),
    /// The next sequence number is another: this one.
    #[error("sequence number mismatch: the next is {0}")]
    SeqNumMismatch(SeqNum),
    /// Nothing is written where the read begins; this is the tail.
    #[error("unwritten position; the tail is {0}")]
    Unwritten(StreamPosition),
    /// No partition of the number.
    #[error("there is no partition {partition}: they are 0 (the catalog) to {last}")]
    PartitionNotFound {
        /// The number.
        partition: u64,
        /// The highest that there is.
        last: u32,
    },
    /// The request cannot be meant.
    #[error("{0}")]
    Invalid(String),
    /// It is written by the server alone.
    #[error(
        "basin `{0}` is reserved for the state store: clients may read it; commit with `esker state` or a client of the state service"
    )]
    ReadOnly(String),
    /// Somebody else changed it at the same time. Nothing happened.
    #[error("changed by somebody else at the same time; try again")]
    Conflict,
    /// A snapshot is not of the lineage that the partition is of now. That says nothing about what is in it.
    #[error(
        "snapshot {snapshot} is of lineage {its}, and the partition is of lineage {ours} since a restore: its log does not bring the snapshot up to date, so that there is nothing to compare. Name one of the present lineage; `esker snapshot verify --data` checks the bytes of the others"
    )]
    EarlierLineage {
        /// The snapshot.
        snapshot: String,
        /// Its lineage; `unknown` if it names none.
        its: String,
        /// The partition's.
        ours: String,
    },
    /// Nothing happened; try again later.
    #[error("{0}")]
    TryLater(String),
    /// The server is stopping. Nothing happened.
    #[error("the server is stopping")]
    Stopping,
    /// It may have happened or not.
    #[error("{0}")]
    Unknown(String),
    /// The database failed.
    #[error("storage: {0}")]
    Storage(String),
    /// The snapshot repository.
    #[error(transparent)]
    Repository(Arc<esker_repository::Error>),
}

impl From<esker_repository::Error> for Error {
    fn from(error: esker_repository::Error) -> Self {
        Error::Repository(Arc::new(error))
    }
}

impl From<ProposeError> for Error {
    fn from(error: ProposeError) -> Self {
        match error {
            ProposeError::Unknown => Error::Unknown(error.to_string()),
            ProposeError::NotLeader { .. }
            | ProposeError::Busy
            | ProposeError::LogFull
            | ProposeError::LogUnwritable { .. }
            | ProposeError::Stalled { .. }
            | ProposeError::Halted { .. }
            | ProposeError::Refused(_)
            | ProposeError::Superseded => Error::TryLater(error.to_string()),
        }
    }
}

impl From<StoreError> for Error {
    fn from(error: StoreError) -> Self {
        Error::Storage(error.to_string())
    }
}

/// An error if only the server changes the basin.
pub(crate) fn changeable(basin: &Basin) -> Result<(), Error> {
    match basin.id {
        STATE_BASIN_ID => Err(Error::ReadOnly(basin.name.clone())),
        _ => Ok(()),
    }
}

pub(crate) fn unexpected(outcome: &Outcome) -> Error {
    Error::Unknown(format!("an answer to another command: {outcome:?}"))
}

/// Why a node did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// A partition halted while its log was replayed.
    #[error(
        "partition {partition} has halted while its log was replayed: {why}; nothing was changed: mend the cause and start again"
    )]
    Halted {
        /// The partition.
        partition: u64,
        /// Why.
        why: String,
    },
    /// Files of partitions keep the database from being opened.
    #[error("the database in {path} is damaged", path = .path.display())]
    DatabaseDamaged {
        /// Its directory.
        path: PathBuf,
    },
    /// Another process uses the data directory.
    #[error(
        "{dir} is in use by the process with pid {pid}: stop it, or use another data directory"
    )]
    InUse {
        /// The data directory.
        dir: PathBuf,
        /// What the lock file says.
        pid: String,
    },
    /// The data directory was written by a newer version.
    #[error("{dir} has format {found}, this version knows up to {known}: use a newer esker")]
    NewerFormat {
        /// The data directory.
        dir: PathBuf,
        /// The format found.
        found: u32,
        /// The newest format known.
        known: u32,
    },
    /// The data directory was written by a version that was never released.
    #[error("{dir} has format {found}, which no release has written: it cannot be opened")]
    OlderFormat {
        /// The data directory.
        dir: PathBuf,
        /// The format found.
        found: u32,
    },
    /// The data directory's identity cannot be read.
    #[error("{path}: {why}")]
    BadIdentity {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// There is data, but nothing that says whose.
    #[error(
        "{dir} holds {what} but no node.json: it is damaged or not a data directory; nothing was changed"
    )]
    NoIdentity {
        /// The data directory.
        dir: PathBuf,
        /// What was found.
        what: String,
    },
    /// The number of partitions is fixed.
    #[error(
        "{dir} was made with {made} partitions, the configuration says {configured}: the number cannot be changed"
    )]
    PartitionsChanged {
        /// The data directory.
        dir: PathBuf,
        /// The number it was made with.
        made: u32,
        /// The number configured.
        configured: u32,
    },
    /// What is to be restored has another number of partitions than the configuration.
    #[error(
        "{found} of a cluster with {made} partitions, the configuration says {configured}: the number cannot be \
         changed. Start with `partitions = {made}`, or use another destination and directory for a new cluster. \
         Nothing was changed"
    )]
    RestoredPartitions {
        /// Which copies say so, in words.
        found: String,
        /// The number that they are of.
        made: u32,
        /// The number configured.
        configured: u32,
    },
    /// The name is fixed.
    #[error(
        "{dir} belongs to cluster `{made}`, the configuration says `{configured}`: the name cannot be changed. Correct `cluster-name` or `data-dir`; nothing was changed"
    )]
    ClusterNameChanged {
        /// The data directory.
        dir: PathBuf,
        /// The name it was made with.
        made: String,
        /// The name configured.
        configured: String,
    },
    /// Copies of somebody's data, and nothing else: a new cluster would remove them.
    #[error(
        "{dir} has no node.json, and {what}: they may be the last copies of what a cluster had. \
         Start with --bootstrap restore to go on from them; or move them away, and a new cluster begins. Nothing was changed"
    )]
    HoldsCopies {
        /// The data directory.
        dir: PathBuf,
        /// What was found.
        what: String,
    },
    /// What should be a directory is none.
    #[error("{path} is {what}: {remedy}")]
    NoDirectory {
        /// The path.
        path: PathBuf,
        /// What it is.
        what: &'static str,
        /// What to do.
        remedy: &'static str,
    },
    /// The log is missing.
    #[error(
        "{dir}: the log is missing although this data directory was in use; nothing was created in its place. \
         To go on without it, from what the databases have on disk and with everything after that lost, \
         start with --bootstrap restore"
    )]
    LogMissing {
        /// The data directory.
        dir: PathBuf,
    },
    /// The log has nothing of a partition, as if it were new.
    #[error(
        "{dir}: the log has nothing of partition {partition} although this data directory was in use: a file of it is missing; nothing was created in its place. \
         To go on without it, start with --bootstrap restore"
    )]
    LogIncomplete {
        /// The data directory.
        dir: PathBuf,
        /// The partition.
        partition: u64,
    },
    /// The snapshot repository's destination is no destination.
    #[error("{0}")]
    Destination(String),
    /// An empty data directory, and a repository with somebody's snapshots.
    #[error(
        "{dir} belongs to no cluster yet, and {repository} holds snapshots of cluster `{cluster}`: \
         start with --bootstrap restore to restore it, or use another destination for a new cluster"
    )]
    RepositoryHoldsCluster {
        /// The data directory.
        dir: PathBuf,
        /// The repository.
        repository: String,
        /// Whose snapshots.
        cluster: String,
    },
    /// An empty data directory, but for JSON snapshots of a state store.
    #[error(
        "{dir} has no database, and snapshots/{name} in it has a state store with {keys} keys: begin a new \
         cluster with --bootstrap new, which leaves the file as it is, then take its state over with \
         `esker state import`; or use another directory"
    )]
    StateSnapshotsThere {
        /// The data directory.
        dir: PathBuf,
        /// The newest valid one.
        name: String,
        /// Its keys.
        keys: u64,
    },
    /// The repository was needed and could not be read. That says nothing about what is there.
    #[error("{repository} could not be read: {why}; nothing was changed")]
    RepositoryUnreadable {
        /// The repository.
        repository: String,
        /// What happened.
        why: String,
    },
    /// A loss is accepted for one start only.
    #[error(
        "{error}. --bootstrap restore was given and does not count any more, because a start with it has served since {served_at}: is ESKER_BOOTSTRAP left in the environment? Start once without it, and then with it again if the loss is to be accepted"
    )]
    RestoreSpent {
        /// When that start served.
        served_at: String,
        /// Why this one is refused.
        error: Box<StartError>,
    },
    /// There is nothing to restore.
    #[error("{repository} was read, and there is nothing to restore: {why}")]
    NothingToRestore {
        /// The repository.
        repository: String,
        /// What was looked for.
        why: String,
    },
    /// Something that a start needs is there, and the operating system refuses to read it. Nothing is
    /// known about what is in it.
    #[error("{what} cannot be read now: {why}. Nothing was changed. {remedy}")]
    Unreadable {
        /// What is needed.
        what: String,
        /// What the operating system says.
        why: String,
        /// What to do.
        remedy: &'static str,
    },
    /// No copy of a partition leads back to the present.
    #[error(
        "partition {partition} cannot be recovered without a loss; tried: {tried}. Nothing was changed. {remedy}"
    )]
    NothingUsable {
        /// The partition.
        partition: u64,
        /// Each copy, and why it is not usable.
        tried: String,
        /// What to do.
        remedy: Cow<'static, str>,
    },
    /// A loss was accepted, and of these partitions no copy is left to go on from.
    #[error(
        "no copy that can be used is left of {list}; {tried}. Nothing was changed. {remedy}",
        list = in_words(.partitions)
    )]
    NoCopy {
        /// The partitions.
        partitions: Vec<u64>,
        /// Of each, what was tried, and why it is not usable.
        tried: String,
        /// What to do.
        remedy: String,
    },
    /// A partition is to begin empty of which there is a copy.
    #[error(
        "--empty-partitions names partition {partition}, and there is a copy of it: {copy}. Leave the partition \
         out, and it is restored from there. Nothing was changed"
    )]
    CopyLeft {
        /// The partition.
        partition: u64,
        /// The copy.
        copy: String,
    },
    /// A partition is to begin empty that there is not.
    #[error(
        "--empty-partitions names partition {partition}, and there are 0 (the catalog) to {last}. Nothing was changed"
    )]
    NoSuchPartition {
        /// The number.
        partition: u64,
        /// The highest that there is.
        last: u32,
    },
    /// The state store can be rebuilt from nothing.
    #[error(
        "the state store cannot be used, and cannot be rebuilt; tried: {tried}. Nothing was changed. Put a newer snapshot of it into the directory `snapshots` of the data directory, and start again; or restore the partition: `esker server --bootstrap restore` on an empty data directory"
    )]
    StateUnusable {
        /// Each source, and why it is not usable.
        tried: String,
    },
    /// Somebody else has begun another lineage.
    #[error(
        "partition {partition} of {repository} is of another lineage by now: {why}; this directory is of a stale lineage. Restore it from the repository into an empty one"
    )]
    OtherLineage {
        /// The partition.
        partition: u64,
        /// The repository.
        repository: String,
        /// Which.
        why: String,
    },
    /// Another restore has begun a lineage and put no snapshot of it yet.
    #[error(
        "partition {partition} of {repository} has a new lineage, begun a moment ago, and no snapshot of it: another restore is under way. If that node is lost as well, try again in {wait} s"
    )]
    LineageBegins {
        /// The partition.
        partition: u64,
        /// The repository.
        repository: String,
        /// Seconds to wait.
        wait: u64,
    },
    /// Joining takes a cluster.
    #[error("--bootstrap join: this version runs single nodes, there is no cluster to join yet")]
    JoinUnsupported,
    /// Something else was asked of a directory that is in use.
    #[error("--bootstrap new: {dir} is in use; nothing was changed")]
    NotEmpty {
        /// The data directory.
        dir: PathBuf,
    },
    /// A node that served from this directory restarts itself, and finds another directory there.
    #[error(
        "{dir} is not the directory that this server has served from before it restarted itself: it has no node.json. Mount the disk again, or bring the directory back, and start again; nothing was changed"
    )]
    DirectoryReplaced {
        /// The data directory.
        dir: PathBuf,
    },
    /// The data directory is not at its path any more.
    #[error(
        "{dir} does not lead to the data directory that is in use any more ({why}): mount the disk again, or bring the directory back"
    )]
    DirectoryGone {
        /// The data directory.
        dir: PathBuf,
        /// How that is known.
        why: String,
    },
    /// A file operation failed.
    #[error("{operation} {path}: {source}")]
    Io {
        /// What was being done.
        operation: &'static str,
        /// To what.
        path: PathBuf,
        /// What happened.
        source: std::io::Error,
    },
    /// The database.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The log, or a partition on it.
    #[error(transparent)]
    Raft(#[from] esker_raft::runtime::NodeError),
}

/// The codes of [`StartError`], each with what it means and what to do.
pub const START_CODES: &[(&str, &str, &str)] = &[
    (
        "data_dir_in_use",
        "Another process uses the data directory; the message has its pid.",
        "Stop that process, or use another data directory.",
    ),
    (
        "data_dir_newer_format",
        "The data directory was written by a newer version.",
        "Use that version, or a newer one. Nothing was changed.",
    ),
    (
        "data_dir_bad_identity",
        "`node.json` is missing beside data, or cannot be read.",
        "Restore `node.json` from a copy of the directory; or move the directory away and restore from the repository (`--bootstrap restore`). Nothing was changed.",
    ),
    (
        "data_dir_not_empty",
        "`--bootstrap new` was said of a data directory that is in use.",
        "Leave `--bootstrap` out, or use another data directory.",
    ),
    (
        "data_dir_replaced",
        "A server that has restarted itself finds another directory where its data directory was, such as the one below a mount that is gone.",
        "Mount the disk again, or bring the directory back, and start the server again. No new cluster was begun, and nothing was changed.",
    ),
    (
        "data_dir_unreleased_format",
        "The data directory was written by a version from before the first release.",
        "Use another data directory.",
    ),
    (
        "partitions_changed",
        "The configured number of partitions is not the one that the directory, or what is to be restored into it, was made with.",
        "Configure the number that the message names.",
    ),
    (
        "cluster_name_changed",
        "The configured `cluster-name` is not the one that the directory was made with.",
        "Configure the name that the message names, or another data directory.",
    ),
    (
        "data_dir_holds_copies",
        "`node.json`, log and database are gone, and local snapshots of a cluster are left. A new cluster would remove them, so none begins.",
        "`--bootstrap restore` goes on from the newest copies, those of the repository included; what was acknowledged after them is lost. To begin a new cluster, move the copies away.",
    ),
    (
        "data_dir_no_directory",
        "`data-dir` names a file, or a link that leads nowhere.",
        "Name a directory, or mount what the link leads to.",
    ),
    (
        "log_missing",
        "`log/` is missing or empty although the directory was in use.",
        "Bring it back. Without it, what was acknowledged since the databases were last flushed is lost: `--bootstrap restore` accepts that and begins a new lineage. No empty log was made in its place.",
    ),
    (
        "database",
        "The database is missing, incomplete or damaged; the message names the file.",
        "No copy could take its place either: see the messages before. No empty database was made in its place.",
    ),
    (
        "log",
        "The log is damaged or incomplete in a way that no crash explains; the message names file and offset, or the partition that lacks something.",
        "Look for a failing disk. `--bootstrap restore` puts the log aside, goes on from the newest copy of each partition, and begins a new lineage: what was acknowledged after it is lost.",
    ),
    (
        "replay_halted",
        "A partition's log could not be read on while it was replayed, or nothing of it could be applied for 60 s; the message names the cause.",
        "Mend the cause (open files, permissions, a failing disk) and start again. Nothing was changed.",
    ),
    (
        "destination",
        "`snapshots.destination` is not the URL of a repository, or its settings are incomplete.",
        "Correct the configuration as the message says.",
    ),
    (
        "state_snapshots_there",
        "The data directory is empty but for JSON snapshots of a state store.",
        "`--bootstrap new` begins a new cluster beside them, and `esker state import` takes the state over.",
    ),
    (
        "repository_holds_cluster",
        "The data directory is empty, and the repository holds snapshots.",
        "`--bootstrap restore` restores them; a new cluster needs another destination.",
    ),
    (
        "repository_unreadable",
        "The repository was needed and could not be read, which says nothing about what is there.",
        "Look at the network, the address and the keys, and start again. Nothing was changed.",
    ),
    (
        "nothing_to_restore",
        "The repository was read, and has no snapshot to restore.",
        "Correct `snapshots.destination`, or begin a new cluster with `--bootstrap new`.",
    ),
    (
        "unreadable",
        "Something that a start needs is there, and the operating system refuses to read it: too many open files, permissions, no space, a failing disk. The message names it and the cause. Nothing is known to be damaged, and nothing was changed.",
        "Remove the cause and start again. What a failing disk never gives back can be moved away: it is missing then, and is recovered like anything that is missing.",
    ),
    (
        "nothing_usable",
        "No copy of a partition leads back to the present, or, with `--bootstrap restore`, none is left at all; the message says what was tried.",
        "Bring back what is missing; or accept the loss with `--bootstrap restore`, which begins a new lineage. Partitions of which no copy is left begin empty if `--empty-partitions` names them as well.",
    ),
    (
        "empty_partitions",
        "`--empty-partitions` names a partition of which there is a copy, or one that there is not.",
        "Leave it out. A partition of which a copy is left is restored from it.",
    ),
    (
        "other_lineage",
        "The repository has gone on with another lineage: the data directory is of a stale lineage.",
        "Restore from the repository into an empty directory.",
    ),
    (
        "state_unusable",
        "What the database has of the state store cannot be used, and there is neither a JSON snapshot nor a whole stream of commits to rebuild it from; the message says what was tried.",
        "Put a snapshot of it into `snapshots/` of the data directory, and start again. Nothing was changed.",
    ),
    (
        "lineage_begins",
        "Another restore began a lineage a moment ago, and has put no snapshot of it.",
        "Let it go on. If that node is lost as well, try again when the time that the message names has passed.",
    ),
    (
        "join_unsupported",
        "`--bootstrap join` needs a cluster.",
        "Use `new` or `restore`.",
    ),
    (
        "io",
        "A file operation failed; the message names the file.",
        "Look at permissions and free space.",
    ),
];

impl StartError {
    /// A stable code, for programs; one of [`START_CODES`].
    pub fn code(&self) -> &'static str {
        match self {
            StartError::InUse { .. } => "data_dir_in_use",
            StartError::NewerFormat { .. } => "data_dir_newer_format",
            StartError::BadIdentity { .. } | StartError::NoIdentity { .. } => {
                "data_dir_bad_identity"
            }
            StartError::OlderFormat { .. } => "data_dir_unreleased_format",
            StartError::NotEmpty { .. } => "data_dir_not_empty",
            StartError::DirectoryReplaced { .. } | StartError::DirectoryGone { .. } => {
                "data_dir_replaced"
            }
            StartError::Destination(_) => "destination",
            StartError::RepositoryHoldsCluster { .. } => "repository_holds_cluster",
            StartError::Halted { .. } => "replay_halted",
            StartError::StateSnapshotsThere { .. } => "state_snapshots_there",
            StartError::RepositoryUnreadable { .. } => "repository_unreadable",
            StartError::RestoreSpent { error, .. } => error.code(),
            StartError::NothingToRestore { .. } => "nothing_to_restore",
            StartError::NothingUsable { .. } | StartError::NoCopy { .. } => "nothing_usable",
            StartError::CopyLeft { .. } | StartError::NoSuchPartition { .. } => "empty_partitions",
            StartError::Unreadable { .. } => "unreadable",
            StartError::StateUnusable { .. } => "state_unusable",
            StartError::LineageBegins { .. } => "lineage_begins",
            StartError::OtherLineage { .. } => "other_lineage",
            StartError::JoinUnsupported => "join_unsupported",
            StartError::PartitionsChanged { .. } | StartError::RestoredPartitions { .. } => {
                "partitions_changed"
            }
            StartError::ClusterNameChanged { .. } => "cluster_name_changed",
            StartError::HoldsCopies { .. } => "data_dir_holds_copies",
            StartError::NoDirectory { .. } => "data_dir_no_directory",
            StartError::LogMissing { .. } => "log_missing",
            StartError::LogIncomplete { .. } => "log",
            StartError::Io { .. } => "io",
            StartError::Store(error) if error.is_unreadable() => "unreadable",
            StartError::Store(_) | StartError::DatabaseDamaged { .. } => "database",
            StartError::Raft(error) if error.is_unreadable() => "unreadable",
            StartError::Raft(_) => "log",
        }
    }

    /// Whether something could not be read now, which says nothing about what is there.
    pub(crate) fn is_unreadable(&self) -> bool {
        matches!(self.code(), "unreadable" | "repository_unreadable")
    }

    /// What cannot be read now, and why.
    pub(crate) fn unreadable(what: impl Into<String>, why: &dyn std::fmt::Display) -> StartError {
        const TOO_MANY: &str = "Raise the limit of open files (`ulimit -n`, or LimitNOFILE= of a systemd unit), and start again";
        let why = why.to_string();
        // What both the standard library and RocksDB say of EMFILE and ENFILE.
        let remedy = match why.contains("oo many open files") {
            true => TOO_MANY,
            false => {
                "Remove the cause, and start again. What a failing disk never gives back can be moved away: it is recovered then like anything that is missing"
            }
        };
        StartError::Unreadable {
            what: what.into(),
            why,
            remedy,
        }
    }
}

/// `partition 2`, `partitions 2, 3`.
pub(crate) fn in_words(partitions: &[u64]) -> String {
    let numbers: Vec<String> = partitions.iter().map(u64::to_string).collect();
    let what = if numbers.len() == 1 { "" } else { "s" };
    format!("partition{what} {}", numbers.join(", "))
}

pub(crate) fn read_error(error: ReadError, basin: &str, stream: &str) -> Error {
    match error {
        ReadError::Unwritten(tail) => Error::Unwritten(tail),
        ReadError::Gone => Error::StreamNotFound {
            basin: basin.to_owned(),
            stream: stream.to_owned(),
        },
        ReadError::Store(e) => e.into(),
    }
}
