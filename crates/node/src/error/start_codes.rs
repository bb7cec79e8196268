//! The codes of [`StartError`](super::StartError).

/// The codes of [`StartError`](super::StartError), each with its meaning and what to do.
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
        "`--bootstrap new` was given for a data directory that is in use.",
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
        "data_dir_holds_others",
        "`node.json` is missing, and `scratch/`, `restore/` or `raft/` has something: a node removes what is in these directories of its own.",
        "Move it away if it is wanted, or remove it; or use another data directory. Nothing was changed.",
    ),
    (
        "data_dir_no_directory",
        "`data-dir` names a file, or a symlink whose target is missing.",
        "Name a directory, or mount the target of the symlink.",
    ),
    (
        "log_missing",
        "`log/` is missing or empty although the directory was in use.",
        "Bring it back. Without it, what was acknowledged since the databases were last flushed is lost: `--bootstrap restore` accepts that and begins a new lineage. No empty log was made in its place.",
    ),
    (
        "log_not_mounted",
        "`log/` is empty, and it is not mounted as it was when it was last in use: its disk is not mounted, or one is mounted over it; or the log there is another one. The message says which. Nothing is known to be lost, and nothing was changed.",
        "Mount the disk of the log. If that disk is lost for good, mount a new one at `log/`, or remove the empty directory (`rmdir`): then the log counts as lost.",
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
        "Remove the cause (open files, permissions, a failing disk) and start again. Nothing was changed.",
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
        "If nodes of that cluster run, set `cluster.join` to one of them, and the node joins. If none does, `--bootstrap restore` restores the snapshots. A new cluster needs another destination.",
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
        "The repository has another lineage now: the data directory is of a stale one.",
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
        "node_removed",
        "The cluster has removed the node of this data directory; the message has when. Every partition had everything without its replicas, so they are deleted. What is no replica is left: JSON snapshots, a repository in the directory, and what recoveries have put aside.",
        "To join the cluster again, move the directory away, and start with an empty one and `cluster.join`. Otherwise remove it.",
    ),
    (
        "member_lost_log",
        "A node of a cluster has lost its log, or a part of it, and with it what it voted for and acknowledged; the message names what is lost.",
        "Move `log/` away, set `cluster.join`, and start again: the node joins under a new number by itself, and the old one is removed. `--bootstrap restore` does not count on a node of a cluster. Nothing was changed.",
    ),
    (
        "no_peers",
        "`esker cluster recover` was given the data directory of a node that is alone.",
        "Start the node. Nothing was changed.",
    ),
    (
        "peers_not_heard",
        "The data directory belongs to a node of a cluster, and `cluster.peer-listen` is not set.",
        "Set it. To go on with this node alone, remove the other nodes first, while a majority runs.",
    ),
    (
        "cluster_runs",
        "`--bootstrap restore` was given with an empty data directory, or `esker cluster recover` was run, and another node of the cluster runs, at an address that `cluster.join` or the catalog has; or one answers in its place that has another secret, and may be of the cluster. A restore that was interrupted asks again at each start, until it serves. Without `cluster.peer-listen`, a restore only warns.",
        "To join, set `cluster.join`, leave `--bootstrap` out, and use an empty directory; or remove `recover.json`; or stop all other nodes of the cluster if it is to be given up. A node of another cluster: take its address out of `cluster.join`. No lineage was begun.",
    ),
    (
        "diverged_replicas",
        "`esker cluster recover` was given a node of which replicas differ from those of the majority; the message names the partitions.",
        "Run it for another node. If this is the last one, `--accept-diverged` goes on with what the repository and the log have, and only where that is not all, with the replica as it is. Nothing was changed.",
    ),
    (
        "join_unsupported",
        "`--bootstrap join` needs a cluster: `cluster.peer-listen` and `cluster.join`.",
        "Set them, or use `new` or `restore`.",
    ),
    (
        "peer_listen",
        "`cluster.peer-listen` cannot be listened on; the message has the cause.",
        "Stop the program that uses the port, or choose another one.",
    ),
    (
        "peer_certificate",
        "The certificate, key or authority of `cluster` cannot be used; the message names what is wrong.",
        "Correct the file that the message names.",
    ),
    (
        "join_refused",
        "A node of the cluster has refused that this node joins; the message has its reason: another cluster name, number of partitions or secret, a name or an address that another node has, or a node that was removed.",
        "Correct what the message names. Nothing was changed here.",
    ),
    (
        "join_unreachable",
        "No node that `cluster.join` names has answered within a minute.",
        "Correct `cluster.join`, or start those nodes. Nothing was changed here.",
    ),
    (
        "io",
        "A file operation failed; the message names the file.",
        "Look at permissions and free space.",
    ),
];
