//! Metrics of requests that go from node to node.

use std::time::Duration;

/// How a request ended that was for another node.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Outcome {
    /// The other node has answered, whatever it was.
    Answered,
    /// No leader became known in time.
    NoLeader,
    /// The leader could not be reached in time; nothing happened.
    Unreachable,
    /// The connection or the leader was lost after something had been passed on.
    Lost,
    /// The client has gone.
    Abandoned,
}

const OUTCOMES: [(Outcome, &str); 5] = [
    (Outcome::Answered, "answered"),
    (Outcome::NoLeader, "no_leader"),
    (Outcome::Unreachable, "unreachable"),
    (Outcome::Lost, "lost"),
    (Outcome::Abandoned, "abandoned"),
];

const REQUESTS: &str = "esker_forward_requests_total";
const HOPS: &str = "esker_forward_hops_total";
const SERVED: &str = "esker_forward_served_total";
const READ_HERE: &str = "esker_forward_read_here_total";
const BYTES: &str = "esker_forward_bytes_total";
const OPEN: &str = "esker_forward_open";
const FIRST_BYTE: &str = "esker_forward_first_byte_seconds";

/// Which way bytes go.
#[derive(Clone, Copy)]
pub(super) enum Direction {
    /// To the other node.
    Request,
    /// To the client.
    Answer,
}

impl Direction {
    fn label(self) -> &'static str {
        match self {
            Direction::Request => "request",
            Direction::Answer => "answer",
        }
    }
}

/// Registers all series.
pub(super) fn register() {
    for (_, label) in OUTCOMES {
        metrics::counter!(REQUESTS, "outcome" => label).increment(0);
    }
    for hop in 1..=super::envelope::MAX_HOPS {
        metrics::counter!(HOPS, "hop" => hop.to_string()).increment(0);
    }
    for direction in [Direction::Request, Direction::Answer] {
        metrics::counter!(BYTES, "direction" => direction.label()).increment(0);
    }
    metrics::counter!(SERVED).increment(0);
    metrics::counter!(READ_HERE).increment(0);
    metrics::gauge!(OPEN).increment(0.0);
}

pub(super) fn ended(outcome: Outcome) {
    let label = OUTCOMES.iter().find(|(of, _)| *of == outcome);
    let label = label.map_or("", |(_, label)| *label);
    metrics::counter!(REQUESTS, "outcome" => label).increment(1);
}

pub(super) fn sent(hop: u32) {
    metrics::counter!(HOPS, "hop" => hop.to_string()).increment(1);
}

pub(super) fn served() {
    metrics::counter!(SERVED).increment(1);
}

pub(super) fn read_here() {
    metrics::counter!(READ_HERE).increment(1);
}

pub(super) fn first_byte(took: Duration) {
    metrics::histogram!(FIRST_BYTE).record(took.as_secs_f64());
}

pub(super) fn passed(direction: Direction, bytes: usize) {
    metrics::counter!(BYTES, "direction" => direction.label()).increment(bytes as u64);
}

/// A forwarded request that is under way.
pub(super) struct Open(());

impl Open {
    pub(super) fn begin() -> Open {
        metrics::gauge!(OPEN).increment(1.0);
        Open(())
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        metrics::gauge!(OPEN).decrement(1.0);
    }
}
