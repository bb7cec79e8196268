//! Metrics of Raft groups, and of what members send to each other.

use super::{GROUP, Section, counter, gauge};

pub(super) const REPLICATION: Section = Section {
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
            "Elections that this node won.",
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
            "Entries after the floor, to the end of the group's log.",
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
            "Attempts to take a snapshot that failed.",
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
            "Attempts to write a snapshot of another member that found the disk full: the fetch waits until there is space.",
        ),
    ],
};
