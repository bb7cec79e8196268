//! Why a node did not start.

use std::borrow::Cow;
use std::path::PathBuf;

use esker_partition::StoreError;

/// The remedy on a node of a cluster.
pub(crate) const JOIN_AGAIN: &str = "Other nodes have replicas of its partitions, so nothing is given up here, and --bootstrap restore does not count: a history that begins on this node alone would be a second one beside theirs. Move log/ away, set `cluster.join` to the peer address of another node, and start again: this node joins under a new number, the old one is removed, and what is here is put aside in damaged/. Only if a majority of the nodes is lost for good: `esker cluster recover` on the node that has most";

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
    /// Damaged files of partitions prevent the database from being opened.
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
        /// The content of the lock file.
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
    /// The directory has data, but no identity.
    #[error(
        "{dir} holds {what} but no node.json: it is damaged or not a data directory; nothing was changed"
    )]
    NoIdentity {
        /// The data directory.
        dir: PathBuf,
        /// What was found.
        what: String,
    },
    /// A directory without an identity has what a start removes from its own.
    #[error(
        "{dir} has no node.json, and {what} in it is not empty: a node would remove what is in there, and it may be \
         somebody else's. Move it away, or use another data directory. Nothing was changed"
    )]
    HoldsOthers {
        /// The data directory.
        dir: PathBuf,
        /// What was found.
        what: String,
    },
    /// The configured number of partitions differs from that of the directory, which is fixed.
    #[error(
        "{dir} was made with {made} partitions, the configuration says {configured}: the number cannot be changed"
    )]
    PartitionsChanged {
        /// The data directory.
        dir: PathBuf,
        /// The number that it was created with.
        made: u32,
        /// The configured number.
        configured: u32,
    },
    /// The copies to restore have another number of partitions than the configuration.
    #[error(
        "{found} of a cluster with {made} partitions, the configuration says {configured}: the number cannot be \
         changed. Start with `partitions = {made}`, or use another destination and directory for a new cluster. \
         Nothing was changed"
    )]
    RestoredPartitions {
        /// Which copies have that number, in words.
        found: String,
        /// The number of partitions of their cluster.
        made: u32,
        /// The configured number.
        configured: u32,
    },
    /// The configured cluster name differs from that of the directory, which is fixed.
    #[error(
        "{dir} belongs to cluster `{made}`, the configuration says `{configured}`: the name cannot be changed. Correct `cluster-name` or `data-dir`; nothing was changed"
    )]
    ClusterNameChanged {
        /// The data directory.
        dir: PathBuf,
        /// The name that it was created with.
        made: String,
        /// The configured name.
        configured: String,
    },
    /// The directory has copies of a cluster's data, and nothing else: a new cluster would remove them.
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
    /// A path that has to be a directory is something else.
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
    /// The disk of the log is not mounted, or another one is.
    #[error("{log}: {what}, so the log cannot be read now. {remedy}. Nothing was changed")]
    LogNotMounted {
        /// The directory of the log.
        log: PathBuf,
        /// What was found.
        what: &'static str,
        /// What to do.
        remedy: &'static str,
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
    /// The configured destination of snapshots is not valid.
    #[error("{0}")]
    Destination(String),
    /// The data directory is empty, and the repository has a cluster's snapshots.
    #[error(
        "{dir} belongs to no cluster yet, and {repository} holds snapshots of cluster `{cluster}`: \
         if nodes of it run, join them (`cluster.join`); if none does, start with --bootstrap restore to \
         restore it; or use another destination for a new cluster"
    )]
    RepositoryHoldsCluster {
        /// The data directory.
        dir: PathBuf,
        /// The repository.
        repository: String,
        /// The name of the cluster that the snapshots belong to.
        cluster: String,
    },
    /// The data directory is empty, but for JSON snapshots of a state store.
    #[error(
        "{dir} has no database, and snapshots/{name} in it has a state store with {keys} keys: begin a new \
         cluster with --bootstrap new, which leaves the file as it is, then take its state over with \
         `esker state import`; or use another directory"
    )]
    StateSnapshotsThere {
        /// The data directory.
        dir: PathBuf,
        /// The file name of the newest valid one.
        name: String,
        /// Number of keys in it.
        keys: u64,
    },
    /// The repository was needed and could not be read. Nothing is known about its content.
    #[error("{repository} could not be read: {why}; nothing was changed")]
    RepositoryUnreadable {
        /// The repository.
        repository: String,
        /// Why it could not be read.
        why: String,
    },
    /// The option that accepts a loss was given, and has no effect because a start with it has served.
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
        /// What was searched for, and not found.
        why: String,
    },
    /// The operating system refuses to read something that a start needs. Nothing is known about its
    /// content.
    #[error("{what} cannot be read now: {why}. Nothing was changed. {remedy}")]
    Unreadable {
        /// What cannot be read.
        what: String,
        /// The error of the operating system.
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
    /// A loss was accepted, and no copy of these partitions is left to continue from.
    #[error(
        "no copy that can be used is left of {list}; {tried}. Nothing was changed. {remedy}",
        list = in_words(.partitions)
    )]
    NoCopy {
        /// The partitions.
        partitions: Vec<u64>,
        /// For each partition, what was tried, and why it is not usable.
        tried: String,
        /// What to do.
        remedy: String,
    },
    /// A partition that is named to begin empty has a copy.
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
    /// A partition that is named to begin empty does not exist.
    #[error(
        "--empty-partitions names partition {partition}, and there are 0 (the catalog) to {last}. Nothing was changed"
    )]
    NoSuchPartition {
        /// The number.
        partition: u64,
        /// The highest existing number.
        last: u32,
    },
    /// There is no source to rebuild the state store from.
    #[error(
        "the state store cannot be used, and cannot be rebuilt; tried: {tried}. Nothing was changed. Put a newer snapshot of it into the directory `snapshots` of the data directory, and start again; or restore the partition: `esker server --bootstrap restore` on an empty data directory"
    )]
    StateUnusable {
        /// Each source, and why it is not usable.
        tried: String,
    },
    /// Another node has begun another lineage.
    #[error(
        "partition {partition} of {repository} is of another lineage by now: {why}; this directory is of a stale lineage. Restore it from the repository into an empty one"
    )]
    OtherLineage {
        /// The partition.
        partition: u64,
        /// The repository.
        repository: String,
        /// Details of the other lineage.
        why: String,
    },
    /// Another restore has begun a lineage, and has not put a snapshot of it yet.
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
    /// A new lineage could not be begun in the repository now.
    #[error(
        "the new lineage of partition {partition} could not be begun in {repository}: {why}. {done}. Mend the cause, and start again: restore.json has what was decided",
        done = begun_before(.begun)
    )]
    LineageNotBegun {
        /// The partition.
        partition: u64,
        /// The repository.
        repository: String,
        /// Why not.
        why: String,
        /// The partitions whose lineages have begun.
        begun: Vec<u64>,
    },
    /// A node of a cluster has lost its log, and with it votes and acknowledgements.
    #[error(
        "{dir}: {what}. What this node has voted for and acknowledged is not known any more, so it does not serve under its number again. {remedy}. Nothing was changed",
        remedy = JOIN_AGAIN
    )]
    MemberLostLog {
        /// The data directory.
        dir: PathBuf,
        /// What is lost.
        what: String,
    },
    /// The cluster has removed this node, and its replicas are deleted.
    #[error(
        "{dir}: {what}. Its replicas are deleted here, because every partition had everything without them. To join the cluster again, move this directory away, and start with an empty one and `cluster.join`"
    )]
    NodeRemoved {
        /// The data directory.
        dir: PathBuf,
        /// Which node, and when.
        what: String,
    },
    /// A node is to go on without others, and has none.
    #[error(
        "{dir} belongs to a node that is alone: there are no other nodes to go on without. Start it. Nothing was changed"
    )]
    NoPeers {
        /// The data directory.
        dir: PathBuf,
    },
    /// Other nodes have replicas of the partitions, and there is no listener for them.
    #[error(
        "{dir} belongs to a node of a cluster, and `cluster.peer-listen` is not set: without the other nodes it would serve nothing, or another history than they. Set it; or remove the other nodes with `esker cluster remove` while this one runs, if it is to be alone. Nothing was changed"
    )]
    PeersNotHeard {
        /// The data directory.
        dir: PathBuf,
    },
    /// The other nodes are given up, and one of them runs.
    #[error(
        "{dir} has recover.json, so this node is to go on without the other nodes of its cluster, and a node of that cluster answers at {address}: two histories would begin from one. If the others still have a majority, remove recover.json, and start again: this node goes on with them. If they have not, stop all of them first. Nothing was changed"
    )]
    OthersRun {
        /// The data directory.
        dir: PathBuf,
        /// The node that has answered.
        address: String,
    },
    /// The other nodes are given up, and a node that has another secret answers at the address of one of them.
    #[error(
        "{dir} has recover.json, so this node is to go on without the other nodes of its cluster, and a node that refuses the secret of this one answers at {address}. If it is of this cluster, whose secret was changed while this node was down, two histories would begin from one: give this node that secret (`cluster.secret-file`), remove recover.json, and start again. If it is of another cluster, take its address out of `cluster.join`; if that does not name it, an earlier node of this cluster had the address: stop what has it now, or keep this node from reaching it, for this one start. Nothing was changed"
    )]
    OthersMayRun {
        /// The data directory.
        dir: PathBuf,
        /// Where it has answered.
        address: String,
    },
    /// A node is to go on without others, and its replicas have diverged.
    #[error(
        "{dir}: the replica of {list} is known to differ from what the other nodes had (diverged.json): it would be the only one that is left. Go on with another node: `esker cluster recover` there. If this is the last one, `esker cluster recover --accept-diverged` takes what the repository and the log have of {list}, and only where that is not all, the replica as it is. Nothing was changed",
        list = in_words(.partitions)
    )]
    Diverged {
        /// The data directory.
        dir: PathBuf,
        /// The partitions.
        partitions: Vec<u64>,
    },
    /// A cluster is to be restored from the repository while a node of it runs.
    #[error(
        "--bootstrap restore: {address}, which `cluster.join` names, runs. A restore begins another history beside that of the nodes that run. To get a copy of what they have, join: leave --bootstrap out. If they have lost their majority for good, stop all of them first; `esker cluster recover` goes on with what one of them has. Nothing was changed"
    )]
    ClusterRuns {
        /// The node that has answered.
        address: String,
    },
    /// A cluster is being restored from the repository, and a node of it runs.
    #[error(
        "{dir} is being restored from the repository, and a node of that cluster answers at {address}. A restore begins another history beside that of the nodes that run. To get a copy of what they have, move {dir} away, set `cluster.join` to {address}, and leave --bootstrap out. If they have lost their majority for good, stop all of them, and start again: the restore goes on. This start has begun no lineage"
    )]
    RestoredRuns {
        /// The data directory.
        dir: PathBuf,
        /// The node that has answered.
        address: String,
    },
    /// A cluster is being restored from the repository, and a node that has another secret answers at the address of
    /// one of its nodes.
    #[error(
        "{dir} is being restored from the repository, and a node that refuses the secret of this one answers at {address}, where a node of that cluster was. If it is of that cluster, a restore begins another history beside it: give this node the secret of the cluster (`cluster.secret-file`), and start again. If it is of another cluster, take its address out of `cluster.join`; if that does not name it, an earlier node of the restored cluster had the address: stop what has it now, or keep this node from reaching it, for this one start. This start has begun no lineage"
    )]
    RestoredMayRun {
        /// The data directory.
        dir: PathBuf,
        /// Where it has answered.
        address: String,
    },
    /// Joining a cluster is not supported: this version runs single nodes.
    #[error("--bootstrap join: this version runs single nodes, there is no cluster to join yet")]
    JoinUnsupported,
    /// The address for other nodes cannot be listened on.
    #[error(
        "cannot listen on {address} for other nodes: {source}; stop the program that uses it, or choose another with `cluster.peer-listen`"
    )]
    PeerListen {
        /// The address.
        address: std::net::SocketAddr,
        /// What happened.
        source: std::io::Error,
    },
    /// The certificates for other nodes cannot be used.
    #[error("the files of `cluster` cannot be used: {0}")]
    PeerCertificate(String),
    /// The cluster does not take this node.
    #[error("{address} refuses that this node joins: {why}. Nothing was changed here")]
    JoinRefused {
        /// The member that was asked.
        address: String,
        /// Its reason.
        why: String,
    },
    /// No member of the cluster has answered.
    #[error(
        "no node of the cluster has answered: {tried}. Correct `cluster.join`, or start those nodes; nothing was changed here"
    )]
    JoinUnreachable {
        /// What was tried.
        tried: String,
    },
    /// A new cluster was requested in a directory that is in use.
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
    /// The path of the data directory does not lead to the directory that is in use any more.
    #[error(
        "{dir} does not lead to the data directory that is in use any more ({why}): mount the disk again, or bring the directory back"
    )]
    DirectoryGone {
        /// The data directory.
        dir: PathBuf,
        /// How that was detected.
        why: String,
    },
    /// A file operation failed.
    #[error("{operation} {path}: {source}")]
    Io {
        /// The operation.
        operation: &'static str,
        /// The path that it was for.
        path: PathBuf,
        /// The error of the operating system.
        source: std::io::Error,
    },
    /// The database failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The log failed, or a partition's group on it.
    #[error(transparent)]
    Raft(#[from] esker_raft::runtime::NodeError),
}

impl StartError {
    /// A stable code, for programs; one of [`START_CODES`](super::START_CODES).
    pub fn code(&self) -> &'static str {
        match self {
            StartError::InUse { .. } => "data_dir_in_use",
            StartError::NewerFormat { .. } => "data_dir_newer_format",
            StartError::BadIdentity { .. } | StartError::NoIdentity { .. } => {
                "data_dir_bad_identity"
            }
            StartError::HoldsOthers { .. } => "data_dir_holds_others",
            StartError::OlderFormat { .. } => "data_dir_unreleased_format",
            StartError::NotEmpty { .. } => "data_dir_not_empty",
            StartError::DirectoryReplaced { .. } | StartError::DirectoryGone { .. } => {
                "data_dir_replaced"
            }
            StartError::Destination(_) => "destination",
            StartError::RepositoryHoldsCluster { .. } => "repository_holds_cluster",
            StartError::Halted { .. } => "replay_halted",
            StartError::StateSnapshotsThere { .. } => "state_snapshots_there",
            StartError::RepositoryUnreadable { .. } | StartError::LineageNotBegun { .. } => {
                "repository_unreadable"
            }
            StartError::RestoreSpent { error, .. } => error.code(),
            StartError::NothingToRestore { .. } => "nothing_to_restore",
            StartError::NothingUsable { .. } | StartError::NoCopy { .. } => "nothing_usable",
            StartError::CopyLeft { .. } | StartError::NoSuchPartition { .. } => "empty_partitions",
            StartError::Unreadable { .. } => "unreadable",
            StartError::StateUnusable { .. } => "state_unusable",
            StartError::LineageBegins { .. } => "lineage_begins",
            StartError::OtherLineage { .. } => "other_lineage",
            StartError::MemberLostLog { .. } => "member_lost_log",
            StartError::NodeRemoved { .. } => "node_removed",
            StartError::NoPeers { .. } => "no_peers",
            StartError::PeersNotHeard { .. } => "peers_not_heard",
            StartError::ClusterRuns { .. }
            | StartError::OthersRun { .. }
            | StartError::OthersMayRun { .. }
            | StartError::RestoredRuns { .. }
            | StartError::RestoredMayRun { .. } => "cluster_runs",
            StartError::Diverged { .. } => "diverged_replicas",
            StartError::JoinUnsupported => "join_unsupported",
            StartError::PeerListen { .. } => "peer_listen",
            StartError::PeerCertificate(_) => "peer_certificate",
            StartError::JoinRefused { .. } => "join_refused",
            StartError::JoinUnreachable { .. } => "join_unreachable",
            StartError::PartitionsChanged { .. } | StartError::RestoredPartitions { .. } => {
                "partitions_changed"
            }
            StartError::ClusterNameChanged { .. } => "cluster_name_changed",
            StartError::HoldsCopies { .. } => "data_dir_holds_copies",
            StartError::NoDirectory { .. } => "data_dir_no_directory",
            StartError::LogMissing { .. } => "log_missing",
            StartError::LogNotMounted { .. } => "log_not_mounted",
            StartError::LogIncomplete { .. } => "log",
            StartError::Io { .. } => "io",
            StartError::Store(error) if error.is_unreadable() => "unreadable",
            StartError::Store(_) | StartError::DatabaseDamaged { .. } => "database",
            StartError::Raft(error) if error.is_unreadable() => "unreadable",
            StartError::Raft(_) => "log",
        }
    }

    /// Whether something could not be read now, so that nothing is known about it.
    pub(crate) fn is_unreadable(&self) -> bool {
        matches!(
            self.code(),
            "unreadable" | "repository_unreadable" | "log_not_mounted"
        )
    }

    /// The error for something that cannot be read now, with the cause.
    pub(crate) fn unreadable(what: impl Into<String>, why: &dyn std::fmt::Display) -> StartError {
        const TOO_MANY: &str = "Raise the limit of open files (`ulimit -n`, or LimitNOFILE= of a systemd unit), and start again";
        let why = why.to_string();
        // The standard library and RocksDB both have these words in the messages for EMFILE and ENFILE.
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

/// What a start has begun in the repository before it was refused.
fn begun_before(partitions: &[u64]) -> String {
    match partitions.is_empty() {
        true => "Nothing was changed".to_owned(),
        false => format!(
            "Those of {} have begun there, so no other node may be started that has them",
            in_words(partitions)
        ),
    }
}

/// Formats numbers of partitions: `partition 2`, `partitions 2, 3`.
pub(crate) fn in_words(partitions: &[u64]) -> String {
    let numbers: Vec<String> = partitions.iter().map(u64::to_string).collect();
    let what = if numbers.len() == 1 { "" } else { "s" };
    format!("partition{what} {}", numbers.join(", "))
}
