//! Metrics of the snapshots in the repository.

use super::{Section, counter, gauge, seconds};

pub(super) const SNAPSHOTS: Section = Section {
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
            "esker_repository_large_descriptions_total",
            "descriptions",
            &["from"],
            "Descriptions of snapshots with thousands of files that pages of the console and the admin API needed, by where they were read `from`: the `repository`, or `memory`.",
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
};
