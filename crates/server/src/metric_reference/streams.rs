//! Metrics of appends and reads.

use super::{Section, counter, gauge};

pub(super) const STREAMS: Section = Section {
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
            "Size of the reserve: space on the disk that is set aside for trims and deletions when it is full; 0 while the reserve is released.",
        ),
        counter(
            "esker_reserve_released_total",
            "releases",
            &[],
            "How often the reserve was released because the disk was full.",
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
            "Records handed to readers that came from the database, not from memory.",
        ),
        counter(
            "esker_read_shared_records_total",
            "records",
            &[],
            "Records handed to readers that another session had already read.",
        ),
    ],
};
