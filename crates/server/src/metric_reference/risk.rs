//! Metrics of what would be lost, and of how long it would take to come back.

use super::{PARTITION, Section, gauge};

pub(super) const RISK: Section = Section {
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
};
