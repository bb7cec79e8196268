//! Metrics of the log, and of the partitions that share it.

use super::{PARTITION, Section, counter, gauge};

pub(super) const LOG: Section = Section {
    title: "Log",
    about: "The write-ahead log that all partitions share.",
    metrics: &[
        counter(
            "esker_log_requests_total",
            "writes",
            &[],
            "Writes that were handed to the log.",
        ),
        counter(
            "esker_log_write_groups_total",
            "groups",
            &[],
            "Groups in which they were written: one synchronisation of the disk each.",
        ),
        counter(
            "esker_log_written_bytes_total",
            "bytes",
            &[],
            "Bytes that were written to the log.",
        ),
        gauge(
            "esker_log_files_bytes",
            "bytes",
            &[],
            "Size of the log's files on the disk, rewrite files included.",
        ),
    ],
};

pub(super) const PARTITIONS: Section = Section {
    title: "Partitions",
    about: "One series a partition. A partition's position in its log is an LSN, counted in entries from 1.",
    metrics: &[
        gauge(
            "esker_partition_halted",
            "0 or 1",
            PARTITION,
            "1 if the partition has stopped for an error. `esker status` names the cause.",
        ),
        gauge(
            "esker_partition_fetch_remaining_bytes",
            "bytes",
            PARTITION,
            "In a cluster: bytes that the replica here still fetches of a snapshot of another node; 0 if it fetches none.",
        ),
        gauge(
            "esker_partition_fetch_waits_for_space",
            "0 or 1",
            PARTITION,
            "1 while that waits because the disk is full.",
        ),
        gauge(
            "esker_partition_diverged",
            "0 or 1",
            PARTITION,
            "1 if the state of the replica here is not that of the majority of the nodes: it is stopped, and the node has to be replaced.",
        ),
        gauge(
            "esker_partition_undecided",
            "0 or 1",
            PARTITION,
            "1 if the replicas of the partition differ, and it is not known which is right: no node gets a snapshot of one of them, and none is put into the repository. `esker status` has what to do.",
        ),
        gauge(
            "esker_partition_members_wait_seconds",
            "seconds",
            PARTITION,
            "In a cluster, on the node that leads the partition: for how long the members of the partition have not been those that they should be, for example because a node does not catch up; 0 if they are. `esker cluster status` has the reason.",
        ),
        gauge(
            "esker_cluster_removed_replicas",
            "partitions",
            &[],
            "On a node that was removed: partitions whose replicas here are kept, because it is not certain yet that the others have everything without them. 0 if they may go, and on a node that belongs to the cluster.",
        ),
        gauge(
            "esker_clock_ahead_seconds",
            "seconds",
            &[],
            "How far the clock of this node is ahead of the time that a majority of the nodes have; below 0 if it is behind. While too few clocks are known, the last value stays. Two right clocks differ by less than a minute.",
        ),
        counter(
            "esker_digest_comparisons_total",
            "comparisons",
            &["outcome"],
            "Comparisons of the replicas of a partition that this node has made as its leader: `equal`; `diverged`, some differ from the majority; `undecided`, they differ and it is not known which is right; `failed`, too few have answered.",
        ),
        counter(
            "esker_digest_read_bytes_total",
            "bytes",
            &[],
            "Bytes that were read here for comparisons of replicas.",
        ),
        counter(
            "esker_upkeep_inspections_total",
            "partitions",
            &[],
            "Partitions whose files and memory were inspected by periodic maintenance: 64 in a second at most where nothing changes.",
        ),
        counter(
            "esker_retention_scans_total",
            "pages",
            &[],
            "Pages of streams that were read for what is due by time. A partition is read when something of it may be due, and once an hour.",
        ),
        counter(
            "esker_restarts_total",
            "restarts",
            &[],
            "Automatic restarts of the server since the data directory was created.",
        ),
        gauge(
            "esker_partition_last_lsn",
            "LSN",
            PARTITION,
            "Last entry of the log.",
        ),
        gauge(
            "esker_partition_applied_lsn",
            "LSN",
            PARTITION,
            "Last entry that was applied to the database.",
        ),
        gauge(
            "esker_partition_durable_lsn",
            "LSN",
            PARTITION,
            "Last entry that was applied and is in the database's files, so that a restart does not replay it.",
        ),
        gauge(
            "esker_partition_floor_lsn",
            "LSN",
            PARTITION,
            "Last entry that the newest local snapshot covers; the log may be trimmed up to it.",
        ),
        gauge(
            "esker_partition_log_entries",
            "log entries",
            PARTITION,
            "Entries that the log has.",
        ),
        gauge(
            "esker_partition_log_entries_above_floor",
            "log entries",
            PARTITION,
            "Entries from the floor to the end of the log.",
        ),
        gauge(
            "esker_partition_log_kept_for_absent_entries",
            "log entries",
            PARTITION,
            "Entries that the log keeps, beside what snapshots need, for nodes that are away and have a replica. On the node that leads the partition; 0 on others.",
        ),
        gauge(
            "esker_partition_log_kept_for_absent_bytes",
            "bytes",
            PARTITION,
            "Bytes of these entries, without those that were applied before the start.",
        ),
        gauge(
            "esker_partition_files_bytes",
            "bytes",
            PARTITION,
            "Size of the partition's files in the database.",
        ),
        gauge(
            "esker_partition_memtable_bytes",
            "bytes",
            PARTITION,
            "Memory of what was applied and is not in files yet.",
        ),
    ],
};
