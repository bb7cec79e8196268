//! What the runtime promises, on real files and real threads.
//!
//! - [`machine`]: a state machine that remembers commands, and a store that survives it;
//! - [`answers`]: who is answered what, and when;
//! - [`sequences`]: proposals whose order counts;
//! - [`restart`]: what is there after a restart; compaction, purge, stop;
//! - [`damaged`]: snapshots that rot where they are stored;
//! - [`faults`]: full disks, failed syncs, damaged logs, state machines that cannot apply;
//! - [`reopening`]: groups that have halted, and go on;
//! - [`members`]: groups of several members, for those that follow;
//! - [`cluster_init`]: which starts may begin a group, and which may not;
//! - [`condemning`]: a member whose state is found to be wrong;
//! - [`installing`]: a state that is replaced by a peer's snapshot, or cannot be;
//! - [`leading`]: what is known of who leads;
//! - [`snapshots`]: hints and requests, what goes on meanwhile, failures;
//! - [`purging`]: files of the log that no group needs are deleted, or the host does not want that;
//! - [`foreign`]: messages in the name of another node than that of their connection;
//! - [`fetching`]: fetches that cannot go on, or need not;
//! - [`absences`]: the log that is kept for members that are away;
//! - [`keeping`]: which snapshots stay, and for how long;
//! - [`serving`]: sending snapshots no faster than allowed;
//! - [`slow_disk`]: reads of the log that take long, and engines that are busy, hold up nobody else;
//! - [`stopping`]: what is left of a group that was stopped;
//! - [`spans`]: the spans and log lines of transfers;
//! - [`power`]: power cuts, by seed.

mod absences;
mod answers;
mod cluster_init;
mod condemning;
mod damaged;
mod faults;
#[cfg(feature = "grpc")]
mod foreign;
mod installing;
mod keeping;
mod leading;
mod machine;
mod members;
mod power;
mod purging;
mod reopening;
mod restart;
mod sequences;
mod slow_disk;
mod snapshot_receiver;
mod snapshot_sender;
mod snapshots;
mod spans;
mod stopping;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use super::*;
use crate::ids::{GroupId, Lsn, NodeId};
use crate::log::{Faults, LogConfig};
use machine::{Answer, Store, padded};

/// Nothing here takes that long unless it hangs.
const WAIT_TIMEOUT: Duration = Duration::from_secs(30);

type Waiting = oneshot::Receiver<Result<Answer, ProposeError>>;

/// Small files, so that tests rotate and purge.
fn config(dir: &Path) -> NodeConfig {
    NodeConfig {
        id: NodeId(1),
        log: LogConfig {
            dir: dir.to_owned(),
            segment_size: 32 * 1024,
            purge_threshold: 64 * 1024,
            max_group_size: 16 * 1024,
            direct_writes: true,
        },
        tick_interval: Duration::from_millis(20),
        max_pending_proposals: 10_000,
        // Snapshots are taken when a test requests them.
        snapshot_hint_threshold_entries: 0,
        snapshot_hint_threshold_bytes: 0,
        max_log_entries: 0,
        parallel_snapshots: 1,
        ..NodeConfig::new(NodeId(1), dir)
    }
}

/// A directory that the test removes, and the log's place in it.
fn scratch() -> (tempfile::TempDir, PathBuf) {
    let keep = tempfile::tempdir().unwrap();
    let dir = keep.path().join("log");
    (keep, dir)
}

/// A running node with one group for each store.
struct Host {
    node: Node,
    groups: Vec<Group<Answer>>,
}

impl Host {
    fn start(dir: &Path, faults: &Faults, stores: &[Store]) -> Host {
        let (node, _) = Node::start(config(dir), faults.clone()).unwrap();
        Host::on(node, stores)
    }

    fn on(node: Node, stores: &[Store]) -> Host {
        let open = |(id, store): (u64, &Store)| open_group(&node, id, store).unwrap();
        let groups = (0..).zip(stores).map(open).collect();
        let host = Host { node, groups };
        for group in &host.groups {
            wait_for("the group serves", || {
                let status = group.status();
                status.role == crate::Role::Leader && status.applied_term == status.term
            });
        }
        host
    }

    /// Ends its threads.
    fn end(&self) {
        for group in &self.groups {
            group.stop();
        }
        self.node.stop();
    }

    /// Ends it, and lets go of the log, which can then be opened again.
    fn stop(self) {
        self.end();
    }
}

/// Opens a group on a store, which is also the sink of its snapshots.
fn open_group(node: &Node, id: u64, store: &Store) -> Result<Group<Answer>, NodeError> {
    let sink = Arc::new(store.clone());
    node.open_group(GroupId(id), store.machine(), Box::new(|_| {}), sink)
}

/// Takes a snapshot, which flushes a group's state, and waits until its log is compacted up to there.
fn flush_and_compact(host: &Host, at: usize) -> Lsn {
    let group = &host.groups[at];
    let lsn = group
        .snapshot()
        .blocking_recv()
        .unwrap()
        .unwrap()
        .last_included_index;
    assert_eq!((group.status().floor, group.status().log_start), (lsn, lsn));
    assert!(host.node.writer().flush(WAIT_TIMEOUT));
    lsn
}

/// Waits until it is so.
fn wait_for(what: &str, so: impl Fn() -> bool) {
    let started = Instant::now();
    while !so() {
        assert!(started.elapsed() < WAIT_TIMEOUT, "in vain: {what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Waits for an answer. Without one the test fails instead of hanging.
fn answer(waiting: Waiting) -> Result<Answer, ProposeError> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .build()
        .unwrap();
    runtime
        .block_on(async { tokio::time::timeout(WAIT_TIMEOUT, waiting).await })
        .expect("a proposal is answered")
        .unwrap_or(Err(ProposeError::Unknown))
}

/// Proposes and waits.
fn execute(group: &Group<Answer>, command: &str) -> Result<Answer, ProposeError> {
    answer(group.propose(command.into())?)
}

/// Proposes these and waits for all; they are under way together.
fn execute_all(group: &Group<Answer>, commands: &[String]) {
    execute_padded(group, commands, 0);
}

/// The same, each with so many bytes behind it.
fn execute_padded(group: &Group<Answer>, commands: &[String], padding: usize) {
    let propose = |command: &String| group.propose(padded(command, padding)).unwrap();
    let waiting: Vec<_> = commands.iter().map(propose).collect();
    for (command, waiting) in commands.iter().zip(waiting) {
        assert_eq!(&answer(waiting).unwrap().command, command);
    }
}

/// `<prefix>-0`, `<prefix>-1`, …
fn numbered(prefix: &str, count: usize) -> Vec<String> {
    (0..count).map(|n| format!("{prefix}-{n}")).collect()
}

/// These commands, each once, in this order, though others may be among them.
#[track_caller]
fn assert_contains_in_order(all: &[String], expected: &[String], context: &str) {
    let mut rest = all.iter();
    for command in expected {
        assert!(
            rest.any(|c| c == command),
            "{context}: {command} is lost or out of order in {all:?}"
        );
    }
    assert_no_repetition(all, context);
}

#[track_caller]
fn assert_no_repetition(all: &[String], context: &str) {
    let distinct: BTreeSet<_> = all.iter().collect();
    assert_eq!(distinct.len(), all.len(), "{context}: repeated in {all:?}");
}
