//! Metrics of the state store.

use super::{Section, counter, gauge, seconds};

pub(super) const STATE: Section = Section {
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
        counter(
            "esker_state_rows_read_total",
            "rows",
            &[],
            "Rows of the database that were read for keys, agents and earlier values, with those that hold nothing of the answer. Reads of a key's present value are not among them.",
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
            "Memory of what open transactions have written.",
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
        gauge(
            "esker_state_imports_waiting",
            "imports",
            &[],
            "Imports that wait for a place, or for one of the share of their principal, for 10 s at most.",
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
            "Attempts to write a JSON snapshot that failed.",
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
            "Attempts to copy a JSON snapshot into the repository that failed.",
        ),
    ],
};
