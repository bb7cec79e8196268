//! What each metric means: the `# HELP` lines of `/metrics`, and `docs/reference/metrics.md`.

/// What kind of value a metric is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Counter,
    Gauge,
    Histogram,
}

impl Kind {
    #[cfg(test)]
    fn name(self) -> &'static str {
        match self {
            Kind::Counter => "counter",
            Kind::Gauge => "gauge",
            Kind::Histogram => "histogram",
        }
    }
}

/// A metric.
struct Metric {
    name: &'static str,
    kind: Kind,
    #[cfg_attr(not(test), expect(dead_code, reason = "for the page alone"))]
    unit: &'static str,
    #[cfg_attr(not(test), expect(dead_code, reason = "for the page alone"))]
    labels: &'static [&'static str],
    meaning: &'static str,
}

const fn counter(
    name: &'static str,
    unit: &'static str,
    labels: &'static [&'static str],
    meaning: &'static str,
) -> Metric {
    Metric {
        name,
        kind: Kind::Counter,
        unit,
        labels,
        meaning,
    }
}

const fn gauge(
    name: &'static str,
    unit: &'static str,
    labels: &'static [&'static str],
    meaning: &'static str,
) -> Metric {
    Metric {
        name,
        kind: Kind::Gauge,
        unit,
        labels,
        meaning,
    }
}

const fn seconds(
    name: &'static str,
    labels: &'static [&'static str],
    meaning: &'static str,
) -> Metric {
    Metric {
        name,
        kind: Kind::Histogram,
        unit: "seconds",
        labels,
        meaning,
    }
}

/// Metrics that belong together.
#[cfg_attr(not(test), expect(dead_code, reason = "titles are for the page alone"))]
struct Section {
    title: &'static str,
    about: &'static str,
    metrics: &'static [Metric],
}

const PARTITION: &[&str] = &["partition"];
const GROUP: &[&str] = &["group"];

/// All metrics of the server.
const SECTIONS: &[Section] = &[
    Section {
        title: "What is at risk",
        about: "How much would be lost with this disk now, and how long it would take to come back. Alerts belong here first. `esker status` exits with 1 only for problems that need action.",
        metrics: &[
            gauge(
                "esker_problems",
                "problems",
                &["kind"],
                "Problems that `esker status` lists: those that need `action`, and those that are `advice`, of which some are there from the first day.",
            ),
            gauge(
                "esker_entries_at_risk",
                "log entries",
                PARTITION,
                "Entries of the log that no snapshot in the repository covers, or whose streams' basins its catalog lacks: what is lost with this disk. An entry is an append of one or many records.",
            ),
            gauge(
                "esker_seconds_at_risk",
                "seconds",
                PARTITION,
                "Age of the newest snapshot in the repository while there are such entries; 0 while there are none.",
            ),
            gauge(
                "esker_predicted_restart_seconds",
                "seconds",
                &[],
                "Estimated duration of a restart on this disk.",
            ),
            gauge(
                "esker_predicted_restore_seconds",
                "seconds",
                &[],
                "Estimated duration of a restore from the repository onto an empty disk.",
            ),
            gauge(
                "esker_snapshot_age_seconds",
                "seconds",
                PARTITION,
                "Age of the newest snapshot in the repository. Absent while there is none.",
            ),
            gauge(
                "esker_snapshot_proof_age_seconds",
                "seconds",
                PARTITION,
                "Time since a snapshot was last restored for a test. Absent while none was.",
            ),
            gauge(
                "esker_snapshots_retained",
                "snapshots",
                PARTITION,
                "Snapshots that the repository retains.",
            ),
            gauge(
                "esker_snapshots_damaged",
                "snapshots",
                PARTITION,
                "Retained snapshots that have a damaged or missing object, which is not repaired.",
            ),
            gauge(
                "esker_snapshot_scrub_age_seconds",
                "seconds",
                PARTITION,
                "Time since all objects of the retained snapshots were last read and compared. Absent while they never were.",
            ),
            gauge(
                "esker_partition_archived_lag",
                "log entries",
                PARTITION,
                "Entries after the oldest snapshot that the repository retains, to the end of the log.",
            ),
        ],
    },
    Section {
        title: "Streams",
        about: "Appends and reads of records.",
        metrics: &[
            counter(
                "esker_appended_batches_total",
                "batches",
                &[],
                "Batches that were appended and are durable.",
            ),
            counter(
                "esker_appended_records_total",
                "records",
                &[],
                "Records that were appended and are durable.",
            ),
            counter(
                "esker_refused_appends_total",
                "batches",
                &[],
                "Batches that were refused when they were applied: a condition did not hold, or the stream was gone.",
            ),
            counter(
                "esker_append_space_waits_total",
                "appends",
                &[],
                "Appends that waited for space in the log or on the disk.",
            ),
            gauge(
                "esker_reserve_bytes",
                "bytes",
                &[],
                "What is set aside on the disk for trims and deletions when it is full; 0 while it is released.",
            ),
            counter(
                "esker_reserve_released_total",
                "releases",
                &[],
                "How often that was released because the disk was full.",
            ),
            gauge(
                "esker_append_inflight_bytes",
                "bytes",
                &[],
                "Bytes of appends that are admitted and not yet durable; at most `limits.append-inflight`.",
            ),
            gauge(
                "esker_append_waiting",
                "appends",
                &[],
                "Appends and commits that wait for their turn to be admitted.",
            ),
            counter(
                "esker_read_records_total",
                "records",
                &[],
                "Records that were handed to readers.",
            ),
            counter(
                "esker_read_database_records_total",
                "records",
                &[],
                "Those of them that came from the database, not from memory.",
            ),
            counter(
                "esker_read_shared_records_total",
                "records",
                &[],
                "Those of them that another session had read already.",
            ),
        ],
    },
    Section {
        title: "Forwarding",
        about: "Requests that one node of a cluster sends to another, which leads what they are about. They exist on nodes of a cluster alone.",
        metrics: &[
            counter(
                "esker_forward_requests_total",
                "requests",
                &["outcome"],
                "Requests of clients that were for another node: `answered` by it, whatever the answer; `no_leader`, none became known in time; `unreachable`, the leader took it not in time, and nothing happened; `lost`, the leader was lost after something had been passed on; `abandoned` by the client.",
            ),
            counter(
                "esker_forward_hops_total",
                "requests",
                &["hop"],
                "Requests that were sent to another node, again or for the first time: `1`, to the leader that this node knew; `2`, to the one that a node named which did not lead.",
            ),
            counter(
                "esker_forward_served_total",
                "requests",
                &[],
                "Requests of other nodes that this node got.",
            ),
            counter(
                "esker_forward_read_here_total",
                "requests",
                &[],
                "Reads of streams that this node has answered from its own replica, without leading the partition.",
            ),
            gauge(
                "esker_forward_open",
                "requests",
                &[],
                "Requests that are at another node now, sessions among them.",
            ),
            counter(
                "esker_forward_bytes_total",
                "bytes",
                &["direction"],
                "Bytes of bodies that were passed on: of a `request` to another node, of an `answer` to the client.",
            ),
            seconds(
                "esker_forward_first_byte_seconds",
                &[],
                "Time until the head of another node's answer, from when the request was sent to it.",
            ),
        ],
    },
    Section {
        title: "HTTP",
        about: "Requests of the S2 API and the admin API.",
        metrics: &[
            counter(
                "esker_http_requests_total",
                "requests",
                &["route", "method", "status"],
                "Requests that were answered. Paths that are no route count as one, and so do methods that are none.",
            ),
            counter(
                "esker_http_session_errors_total",
                "sessions",
                &["status"],
                "Sessions that ended with an error after their head was answered with 200, by the status that the error has.",
            ),
            counter(
                "esker_http_refused_total",
                "requests",
                &["reason"],
                "Requests that were refused for their host, their headers, their origin or their content type, before they were read; `tls`: connections that speak TLS to a port without it.",
            ),
            counter(
                "esker_tls_handshakes_total",
                "handshakes",
                &[],
                "TLS handshakes that have succeeded.",
            ),
            counter(
                "esker_tls_handshakes_failed_total",
                "handshakes",
                &["reason"],
                "TLS handshakes that have failed: `cleartext` (HTTP without TLS), `timeout`, `closed`, `refused_by_client` (it does not trust the certificate, most often), `no_client_certificate`, `bad_client_certificate`, `incompatible` (no version, cipher suite or protocol in common), `protocol`.",
            ),
            counter(
                "esker_tls_reloads_total",
                "reloads",
                &["result"],
                "Changes of the files of TLS: `ok`, new connections use them; `failed`, they do not fit each other or cannot be read.",
            ),
            counter(
                "esker_peer_certificate_reloads_total",
                "reloads",
                &["result"],
                "Changes of the files of `cluster.certificate`: `ok`, new connections between nodes use them; `failed`, they do not fit each other or cannot be read.",
            ),
            gauge(
                "esker_tls_certificate_expiry_timestamp_seconds",
                "seconds since the epoch",
                &[],
                "Until when the served certificate and its chain are valid.",
            ),
            gauge(
                "esker_peer_certificate_expiry_timestamp_seconds",
                "seconds since the epoch",
                &[],
                "When the certificate of this node for other nodes, or another one of its chain, expires; with `cluster.certificate` alone.",
            ),
            counter(
                "esker_cluster_secret_reloads_total",
                "reloads",
                &["result"],
                "Changes of the file of `cluster.secret-file`: `ok`, new connections between nodes use it; `failed`, it cannot be read or has no secret.",
            ),
            counter(
                "esker_auth_failures_total",
                "requests",
                &["reason"],
                "Requests that were refused for their access token: it is `missing`, `malformed`, `unknown` (never issued, or revoked), `expired` or `suspended`, does not permit what was asked for (`forbidden`), or it was `unavailable` whether it is valid. Those that `limited` counts came from an address with too many of them, and are counted with their reason, too.",
            ),
            counter(
                "esker_root_token_reloads_total",
                "reloads",
                &["result"],
                "Changes of the file of the root token: `ok`, the new token is used; `failed`, the file cannot be used, and the token of before stays.",
            ),
            gauge(
                "esker_http_connections",
                "connections",
                &[],
                "Open connections, those of the state store's listener included.",
            ),
            counter(
                "esker_http_connections_refused_total",
                "connections",
                &[],
                "Connections that were closed without an answer: all of `limits.connections` were taken, and three quarters of the reserve by connections of the same address, and 512 waited already, or they had waited for 10 s.",
            ),
            gauge(
                "esker_http2_windows_bytes",
                "bytes",
                &[],
                "Windows of connections of HTTP/2 beyond the 64 KiB that each has; at most `limits.http2-windows`.",
            ),
            counter(
                "esker_http2_windows_reclaimed_total",
                "connections",
                &[],
                "Connections that were ended because they had a part of `limits.http2-windows`, of which less than half was free, and no request with a valid token had come within 10 s.",
            ),
            counter(
                "esker_http_answers_stalled_total",
                "answers",
                &[],
                "Answers that were ended because their clients took nothing of them for `limits.stall-timeout`.",
            ),
            gauge(
                "esker_request_bodies_bytes",
                "bytes",
                &[],
                "Bytes of request bodies that are held in memory; at most `limits.request-bodies`.",
            ),
            gauge(
                "esker_request_bodies_waiting",
                "bodies",
                &[],
                "Request bodies and frames of append sessions that wait for that memory: requests for 10 s at most, sessions for as long as it takes.",
            ),
            gauge(
                "esker_read_sessions_bytes",
                "bytes",
                &[],
                "Bytes that read sessions hold until clients take them; at most `limits.read-sessions`.",
            ),
            gauge(
                "esker_read_sessions_waiting",
                "sessions",
                &[],
                "Read sessions that wait for that memory.",
            ),
            gauge(
                "esker_answers_held_bytes",
                "bytes",
                &["of"],
                "Bytes of answers that are held in memory until clients take them, of scans of the state store and of others.",
            ),
        ],
    },
    Section {
        title: "Access tokens",
        about: "Tokens that the catalog stores. A restore of the catalog with a loss suspends them, because revocations may be lost, until the root token confirms them.",
        metrics: &[
            gauge(
                "esker_access_tokens",
                "tokens",
                &[],
                "Access tokens that are stored, expired ones included until they are removed.",
            ),
            gauge(
                "esker_access_tokens_suspended",
                "tokens",
                &[],
                "Access tokens that are not valid until the root token confirms them.",
            ),
        ],
    },
    Section {
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
    },
    Section {
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
    },
    Section {
        title: "Snapshots of partitions in the repository",
        about: "The names are those that operators of Restate know.",
        metrics: &[
            counter(
                "esker_partition_store_snapshots_upload_total",
                "snapshots",
                &[],
                "Snapshots that were put.",
            ),
            counter(
                "esker_partition_store_snapshots_upload_failed_total",
                "attempts",
                &[],
                "Attempts to put one that failed.",
            ),
            seconds(
                "esker_partition_store_snapshots_upload_duration_seconds",
                &[],
                "Duration of a put that succeeded.",
            ),
            counter(
                "esker_partition_store_snapshots_upload_bytes_total",
                "bytes",
                &[],
                "Bytes that were sent.",
            ),
            gauge(
                "esker_partition_store_snapshots_upload_rate_bytes",
                "bytes a second",
                &[],
                "The rate at which files may be uploaded now: at most `snapshots.upload-rate`, and less while uploads make appends wait. Absent without a limit.",
            ),
            counter(
                "esker_partition_store_snapshots_upload_bytes_deduplicated_total",
                "bytes",
                &[],
                "Bytes that were not sent, because the repository had them.",
            ),
            counter(
                "esker_partition_store_snapshots_download_failed_total",
                "attempts",
                &[],
                "Attempts to fetch a snapshot that failed.",
            ),
            counter(
                "esker_partition_store_snapshots_download_fallback_total",
                "snapshots",
                &[],
                "Snapshots that were passed over for an older one, because they could not be used.",
            ),
            seconds(
                "esker_partition_store_snapshots_download_duration_seconds",
                &[],
                "Duration of a fetch that succeeded.",
            ),
            counter(
                "esker_partition_store_snapshots_orphan_scan_total",
                "sweeps",
                &[],
                "Sweeps for objects that no retained snapshot needs.",
            ),
            counter(
                "esker_partition_store_snapshots_orphan_scan_failed_total",
                "sweeps",
                &[],
                "Sweeps that failed or could not delete everything.",
            ),
            counter(
                "esker_partition_store_snapshots_orphan_files_deleted_total",
                "objects",
                &[],
                "Objects that sweeps deleted.",
            ),
            counter(
                "esker_partition_store_snapshots_scrub_objects_total",
                "objects",
                &["result"],
                "Objects that the scrub has read: `sound`, `damaged` (or missing), or `unreadable` now.",
            ),
            counter(
                "esker_partition_store_snapshots_scrub_bytes_total",
                "bytes",
                &[],
                "Bytes that the scrub has read and compared.",
            ),
            counter(
                "esker_partition_store_snapshots_scrub_failed_total",
                "attempts",
                &[],
                "Passes of the scrub that could not read everything. They are tried again.",
            ),
            counter(
                "esker_partition_store_snapshots_objects_repaired_total",
                "objects",
                &[],
                "Damaged or missing objects that were replaced by a sound one.",
            ),
            counter(
                "esker_repository_retries_total",
                "requests",
                &[],
                "Requests to the object store that were tried again.",
            ),
        ],
    },
    Section {
        title: "State store",
        about: "Transactional keys over a commit log.",
        metrics: &[
            counter(
                "esker_state_requests_total",
                "requests",
                &["method", "code"],
                "gRPC calls that have ended, by their status code.",
            ),
            seconds(
                "esker_state_request_seconds",
                &["method"],
                "Duration of gRPC calls.",
            ),
            counter(
                "esker_state_commits_total",
                "commits",
                &[],
                "Transactions that were committed.",
            ),
            counter(
                "esker_state_operations_total",
                "operations",
                &[],
                "Operations of those.",
            ),
            counter(
                "esker_state_refused_commits_total",
                "commits",
                &[],
                "Commits that were refused, for conflicts for example.",
            ),
            gauge(
                "esker_state_commit_ts",
                "commits",
                &[],
                "Number of the last commit.",
            ),
            gauge(
                "esker_state_keys",
                "keys",
                &[],
                "Keys that have a value now.",
            ),
            gauge(
                "esker_state_history_begins",
                "commits",
                &[],
                "First commit at which earlier states can still be read.",
            ),
            counter(
                "esker_state_pruned_commits_total",
                "commits",
                &[],
                "Commits that were removed from the history.",
            ),
            gauge(
                "esker_state_transactions_open",
                "transactions",
                &[],
                "Transactions that are open.",
            ),
            gauge(
                "esker_state_transactions_bytes",
                "bytes",
                &[],
                "Memory of what they have written.",
            ),
            counter(
                "esker_state_transactions_expired_total",
                "transactions",
                &[],
                "Transactions that were ended because nothing came for their time-out.",
            ),
            gauge(
                "esker_state_scans_running",
                "scans",
                &[],
                "Scans that run now.",
            ),
            gauge(
                "esker_state_scans_waiting",
                "scans",
                &[],
                "Scans that wait for their turn, for 10 s at most.",
            ),
            gauge(
                "esker_state_exports_running",
                "exports",
                &[],
                "Exports and verifications that run now.",
            ),
            gauge(
                "esker_state_exports_waiting",
                "exports",
                &[],
                "Exports and verifications that wait for a place, or for one of the share of their principal, for 10 s at most.",
            ),
            gauge(
                "esker_state_imports_running",
                "imports",
                &[],
                "Imports that are sent or take effect now.",
            ),
            counter(
                "esker_state_snapshots_total",
                "snapshots",
                &[],
                "JSON snapshots that were written.",
            ),
            counter(
                "esker_state_snapshots_failed_total",
                "attempts",
                &[],
                "Attempts to write one that failed.",
            ),
            seconds(
                "esker_state_snapshot_duration_seconds",
                &[],
                "Duration of writing a JSON snapshot.",
            ),
            gauge(
                "esker_state_commits_since_snapshot",
                "commits",
                &[],
                "Commits since the newest JSON snapshot.",
            ),
            counter(
                "esker_state_snapshots_archived_total",
                "snapshots",
                &[],
                "JSON snapshots that were copied into the repository.",
            ),
            counter(
                "esker_state_snapshots_archive_failed_total",
                "attempts",
                &[],
                "Attempts to copy one that failed.",
            ),
        ],
    },
    Section {
        title: "Replication",
        about: "One series a Raft group; a partition is the group of its number. With one node, nothing is sent.",
        metrics: &[
            gauge(
                "esker_raft_leader",
                "0 or 1",
                GROUP,
                "1 if this node leads the group.",
            ),
            gauge("esker_raft_term", "terms", GROUP, "Term of the group."),
            counter(
                "esker_raft_elections_total",
                "elections",
                GROUP,
                "Elections that this node began.",
            ),
            counter(
                "esker_raft_elections_won_total",
                "elections",
                GROUP,
                "Elections that it won.",
            ),
            counter(
                "esker_raft_proposals_total",
                "proposals",
                GROUP,
                "Commands that were proposed here.",
            ),
            counter(
                "esker_raft_commits_total",
                "log entries",
                GROUP,
                "Entries that were committed.",
            ),
            gauge(
                "esker_raft_apply_lag_entries",
                "log entries",
                GROUP,
                "Entries that are committed and not applied.",
            ),
            gauge(
                "esker_raft_floor",
                "log index",
                GROUP,
                "Last entry that the group's newest snapshot covers; its log may be trimmed up to it.",
            ),
            gauge(
                "esker_raft_entries_above_floor",
                "log entries",
                GROUP,
                "Entries from there to the end.",
            ),
            counter(
                "esker_raft_messages_malformed_total",
                "messages",
                &[],
                "Messages of peers that could not be read.",
            ),
            counter(
                "esker_raft_messages_newer_format_total",
                "messages",
                &[],
                "Messages of peers in a format that this version does not know.",
            ),
            counter(
                "esker_raft_messages_refused_total",
                "messages",
                GROUP,
                "Messages that the group refused.",
            ),
            counter(
                "esker_raft_messages_dropped_total",
                "messages",
                &["reason"],
                "Messages between members that were dropped, of all groups. `queue_full`, too much was queued, on their way out for the receiver, or on arrival for their group. On their way out: `disconnected`, there was no connection to it; `no_address`, its address is not known. On arrival: `malformed`; `newer_format`; `sender` and `recipient`, of or for another node than that of their connection, which is ended; `group`, the group is not open here; `cluster`, `lineage` and `incarnation`, of another cluster, another history of the group, or an earlier start of the sender; `not_a_member`; `contradiction`, with what this member knows.",
            ),
            counter(
                "esker_raft_reopened_total",
                "times",
                GROUP,
                "How often the group has halted and was opened again.",
            ),
            counter(
                "esker_raft_snapshots_taken_total",
                "snapshots",
                GROUP,
                "Snapshots that were taken.",
            ),
            counter(
                "esker_raft_snapshots_failed_total",
                "attempts",
                GROUP,
                "Attempts to take one that failed.",
            ),
            counter(
                "esker_raft_snapshots_offered_total",
                "snapshots",
                GROUP,
                "Snapshots that were offered to members that are behind the log.",
            ),
            counter(
                "esker_raft_snapshots_sent_total",
                "snapshots",
                GROUP,
                "Snapshots that members have fetched whole.",
            ),
            counter(
                "esker_raft_snapshots_received_total",
                "snapshots",
                GROUP,
                "Snapshots that were received and installed.",
            ),
            counter(
                "esker_raft_snapshots_resumed_total",
                "transfers",
                GROUP,
                "Transfers that went on after an interruption.",
            ),
            counter(
                "esker_raft_snapshot_fetches_failed_total",
                "transfers",
                GROUP,
                "Transfers that failed.",
            ),
            counter(
                "esker_raft_snapshot_bytes_received_total",
                "bytes",
                GROUP,
                "Bytes of snapshots that were received.",
            ),
            counter(
                "esker_raft_snapshot_corrupt_total",
                "chunks",
                GROUP,
                "Pieces of snapshots that did not have their checksum.",
            ),
            counter(
                "esker_raft_snapshot_bytes_sent_total",
                "bytes",
                &[],
                "Bytes of snapshots that were sent to all members.",
            ),
            counter(
                "esker_raft_strangers_closed_total",
                "connections",
                &["reason"],
                "Connections to `cluster.peer-listen` that were closed before a request over them was admitted: `slow`, it took longer than 10 s; `crowded`, 256 were open and others needed the place; `refused`, 16 of its requests were refused; `handshake`, that of TLS has failed. `foreign`: a request was admitted, and then a message came that was of or for another node.",
            ),
            gauge(
                "esker_raft_snapshot_send_rate_bytes",
                "bytes a second",
                &[],
                "The rate at which snapshots may be sent to other nodes now, all together: at most `cluster.transfer-rate`, and less while that makes appends wait.",
            ),
            counter(
                "esker_raft_snapshot_paced_milliseconds_total",
                "milliseconds",
                &[],
                "Time for which sending waited, so as to stay within its rate.",
            ),
            counter(
                "esker_raft_snapshot_full_disk_waits_total",
                "attempts",
                &[],
                "Attempts to write a snapshot of another member that found the disk full: the fetch waits until there is room.",
            ),
        ],
    },
    Section {
        title: "Server's log",
        about: "Logging never ends the process or holds it up; these say what was not written.",
        metrics: &[
            counter(
                "esker_log_lines_lost_total",
                "lines",
                &[],
                "Lines that could not be written to standard error.",
            ),
            counter(
                "esker_log_lines_suppressed_total",
                "lines",
                &[],
                "Repeated lines that were left out.",
            ),
        ],
    },
    Section {
        title: "Traces",
        about: "Without `traces.endpoint` they stay at 0.",
        metrics: &[counter(
            "esker_trace_spans_total",
            "spans",
            &["result"],
            "Spans of requests: `sent` to the collector, `failed` where it did not take them, and `dropped` where too many waited for it.",
        )],
    },
];

/// Describes all metrics to the recorder, which prints the descriptions as `# HELP` lines.
pub(crate) fn describe() {
    for metric in SECTIONS.iter().flat_map(|section| section.metrics) {
        let meaning = metric.meaning;
        match metric.kind {
            Kind::Counter => metrics::describe_counter!(metric.name, meaning),
            Kind::Gauge => metrics::describe_gauge!(metric.name, meaning),
            Kind::Histogram => metrics::describe_histogram!(metric.name, meaning),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::fmt::Write as _;
    use std::path::Path;

    use super::*;

    const PAGE: &str = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../../docs/reference/metrics.md"
    );

    /// The reference of all metrics, as a page.
    fn markdown() -> String {
        let mut page = String::from(
            "# Metrics\n\n\
         `GET /metrics` answers in the text format of Prometheus, on `listen`. Counters exist from the \
         start with the value 0, so that an alert on their increase sees the first event; series with a label \
         exist from the start where what they name does. Histograms have a `_bucket`, a `_sum` and a `_count`.\n\n\
         This page is written from the code (`crates/server/src/metric_reference.rs`), and a test compares both.\n",
        );
        for section in SECTIONS {
            let Section {
                title,
                about,
                metrics,
            } = section;
            write!(
            page,
            "\n## {title}\n\n{about}\n\n| metric | type | unit | labels | meaning |\n|---|---|---|---|---|\n"
        )
        .unwrap();
            for metric in *metrics {
                let labels: Vec<_> = metric.labels.iter().map(|l| format!("`{l}`")).collect();
                writeln!(
                    page,
                    "| `{}` | {} | {} | {} | {} |",
                    metric.name,
                    metric.kind.name(),
                    metric.unit,
                    labels.join(", "),
                    metric.meaning
                )
                .unwrap();
            }
        }
        page
    }

    #[test]
    fn the_page_of_metrics_is_current() {
        let wanted = markdown();
        if std::env::var_os("ESKER_BLESS").is_some() {
            std::fs::create_dir_all(Path::new(PAGE).parent().unwrap()).unwrap();
            std::fs::write(PAGE, &wanted).unwrap();
        }
        let found = std::fs::read_to_string(PAGE).unwrap_or_default();
        assert_eq!(
            found, wanted,
            "docs/reference/metrics.md is not what the code says; run this test with ESKER_BLESS=1"
        );
    }

    /// Names of metrics in quotation marks, in the sources below a directory.
    fn names_in(dir: &Path, names: &mut BTreeSet<String>) {
        for entry in std::fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                names_in(&path, names);
            } else if path.extension().is_some_and(|e| e == "rs")
                && !path.ends_with("metric_reference.rs")
            {
                let source = std::fs::read_to_string(&path).unwrap();
                let literals = source.split('"').filter(|text| {
                    let name = text.strip_prefix("esker_");
                    let is_word =
                        |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
                    name.is_some_and(|name| !name.is_empty() && name.chars().all(is_word))
                });
                names.extend(literals.map(str::to_owned));
            }
        }
    }

    #[test]
    fn every_metric_of_the_code_is_described_and_nothing_else() {
        let mut used = BTreeSet::new();
        let crates = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
        for name in ["node", "partition", "raft", "repository", "server"] {
            names_in(&crates.join(name).join("src"), &mut used);
        }
        // Names of crates have the same prefix.
        used.retain(|name| !crates.join(name.trim_start_matches("esker_")).is_dir());
        let described = SECTIONS.iter().flat_map(|section| section.metrics);
        let described: Vec<_> = described.map(|metric| metric.name.to_owned()).collect();
        let listed: BTreeSet<_> = described.iter().cloned().collect();
        assert_eq!(listed.len(), described.len(), "each is described once");
        let missing: Vec<_> = used.difference(&listed).collect();
        let surplus: Vec<_> = listed.difference(&used).collect();
        assert!(
            missing.is_empty() && surplus.is_empty(),
            "describe {missing:?}, and remove {surplus:?}"
        );
    }

    #[test]
    fn names_say_what_kind_of_value_they_are() {
        for metric in SECTIONS.iter().flat_map(|section| section.metrics) {
            let is_total = metric.name.ends_with("_total");
            assert_eq!(is_total, metric.kind == Kind::Counter, "{}", metric.name);
        }
    }
}
