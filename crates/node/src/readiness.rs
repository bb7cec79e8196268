//! Whether a node takes appends, and whether it runs at all: two questions, with different answers.
//!
//! A node that is not ready may be alive and well: its disk is full, or hangs. To restart it would not help, so
//! only a node whose own loops have stopped is not alive.

use std::sync::atomic::Ordering;
use std::time::Duration;

use crate::core::Inner;
use crate::node::Node;
use crate::problem::Problem;

/// A node whose ticker has not run for so long is not alive: it runs several times a second, and waits for
/// no disk by itself.
const ALIVE: Duration = Duration::from_secs(60);

/// Why a node takes no appends, or is not alive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NotReady {
    /// A stable code.
    pub code: &'static str,
    /// What is wrong, and what happens next.
    pub why: String,
}

/// Codes of [`NotReady`], and what each means.
pub const NOT_READY: &[(&str, &str)] = &[
    ("stopping", "The server was asked to stop."),
    (
        "log_full",
        "The log is full, and `snapshots.on-log-full` refuses appends until a snapshot is archived.",
    ),
    (
        "disk_full",
        "Less is free on the disk of the data directory than is kept for flushing and trimming.",
    ),
    (
        "log_not_trimmed",
        "The log is larger than it may be, and cannot be trimmed.",
    ),
    (
        "disk_hangs",
        "The disk has not answered to a write of the log for some seconds.",
    ),
    (
        "partition_halted",
        "A partition has stopped, because its log cannot be read or contradicts itself.",
    ),
    (
        "replica_diverged",
        "The state of a replica here is not that of the other nodes: it is stopped, and this node has to be replaced.",
    ),
    (
        "replica_waits_for_space",
        "A replica fetches its state from another node, and the disk is full: it goes on once there is space.",
    ),
    (
        "writes_refused",
        "The disk refuses writes: it is full or read-only, or no more files can be opened.",
    ),
    (
        "restart_needed",
        "A restart is needed, and is not made by itself.",
    ),
    (
        "partition_damaged",
        "Files of a partition are damaged; a restart that recovers it is being prepared.",
    ),
    (
        "no_leader",
        "A partition has no leader that this node knows of: an election is under way, or a majority of its nodes is gone, or the partition is not replicated to this node yet.",
    ),
    (
        "refused_by_cluster",
        "The other nodes of the cluster do not take this one: it was removed, its data directory is a copy or an older state of that of a node that was started since, or another process runs with a copy of it.",
    ),
    (
        "ticker_stopped",
        "The thread that drives all partitions has not run for a minute: the process has to be restarted.",
    ),
];

impl Node {
    /// Whether appends are accepted; the reason if they are not.
    pub fn health(&self) -> Result<(), NotReady> {
        self.inner.readiness()
    }

    /// Problems of the program around the node, such as a certificate that ends.
    pub fn host_problems(&self) -> Vec<Problem> {
        self.inner.options.host_problems.list()
    }

    /// Whether the node's own loops run. A disk that does not answer is no reason against it.
    pub fn liveness(&self) -> Result<(), NotReady> {
        let since = self.inner.raft.ticked();
        match since < ALIVE || self.inner.hanging_write().is_some() {
            true => Ok(()),
            false => Err(not_ready(
                "ticker_stopped",
                format!("the ticker has not run for {} s", since.as_secs()),
            )),
        }
    }
}

fn not_ready(code: &'static str, why: impl Into<String>) -> NotReady {
    NotReady {
        code,
        why: why.into(),
    }
}

impl Inner {
    fn readiness(&self) -> Result<(), NotReady> {
        if self.draining.load(Ordering::Relaxed) {
            return Err(not_ready("stopping", "the server is stopping"));
        }
        if self.refuses_appends.load(Ordering::Relaxed) {
            let why = "the log is full, and snapshots are not archived";
            return Err(not_ready("log_full", why));
        }
        if let Some(why) = self.shortage() {
            return Err(not_ready("disk_full", why));
        }
        if let Some(why) = self.stuck() {
            return Err(not_ready("log_not_trimmed", why));
        }
        if let Some(why) = self.hanging_write() {
            return Err(not_ready("disk_hangs", why));
        }
        for group in self.groups() {
            let partition = group.id().0;
            if let Some(why) = self.replicas.diverged.why(partition) {
                let why = format!("partition {partition} has stopped here: {why}");
                return Err(not_ready("replica_diverged", why));
            }
            if let Some(why) = self.replicas.transfers.wait_for_space(partition) {
                let why = format!("partition {partition} does not catch up: {why}");
                return Err(not_ready("replica_waits_for_space", why));
            }
            if let Some(halted) = group.halted() {
                let rest = match halted.reopens {
                    true => "it is opened again by itself",
                    false => "mend the cause, then start the server again",
                };
                let why = format!("partition {partition} has halted: {}; {rest}", halted.why);
                return Err(not_ready("partition_halted", why));
            }
            if group.status().stalled {
                let why = self.stall_cause(partition);
                let why = format!("partition {partition} cannot be written: {why}");
                return Err(not_ready("writes_refused", why));
            }
        }
        if let Some(why) = self.refused_by_cluster() {
            let why = format!("the other nodes of the cluster do not take this one: {why}");
            return Err(not_ready("refused_by_cluster", why));
        }
        if let Some(why) = self.restarts.held_back() {
            let why = format!("a restart is needed, and is not made by itself: {why}");
            return Err(not_ready("restart_needed", why));
        }
        if let Some(partition) = self.damaged_partition() {
            let why = self.damage(partition).unwrap_or_default();
            let next = match self.restarts.preparing() {
                Some(what) => format!("{what}; then the server restarts itself"),
                None => "the server is about to restart itself to recover it".to_owned(),
            };
            let why = format!("files of partition {partition} are damaged ({why}): {next}");
            return Err(not_ready("partition_damaged", why));
        }
        // A single node leads everything, or is not started yet.
        if self.peers.is_some() {
            for group in self.groups() {
                if group.leader().is_none() && group.details().waits_to_join {
                    let why = format!(
                        "partition {} is not replicated to this node yet: its leader has to add it, and `esker cluster \
                         status` has what that waits for",
                        group.id()
                    );
                    return Err(not_ready("no_leader", why));
                }
                if group.leader().is_none() {
                    let why = format!(
                        "partition {} has no leader that this node knows of: an election is under way, or a \
                         majority of its nodes is gone",
                        group.id()
                    );
                    return Err(not_ready("no_leader", why));
                }
            }
        }
        Ok(())
    }
}
