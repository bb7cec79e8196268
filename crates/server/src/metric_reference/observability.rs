//! Metrics of the server's log and traces.

use super::{Section, counter};

pub(super) const LOGGING: Section = Section {
    title: "Server's log",
    about: "Logging never ends or blocks the process. These metrics count the lines that were not written.",
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
};

pub(super) const TRACES: Section = Section {
    title: "Traces",
    about: "Without `traces.endpoint` they stay at 0.",
    metrics: &[counter(
        "esker_trace_spans_total",
        "spans",
        &["result"],
        "Spans of requests: `sent` to the collector, `failed` where it did not take them, and `dropped` where too many waited for it.",
    )],
};
