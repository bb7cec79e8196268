//! Fetches that cannot go on, or need not.

use super::keeping::Sent;
use super::*;
use crate::engine::Membership;
use crate::ids::{CheckpointId, ClusterId, Incarnation, Lineage, Term};
use crate::message::{EndReason, Ended, Identity, Payload};
use crate::store::DiskFaults;
use crate::transfer::{Checksum, Content, Manifest, OFFER_FORMAT};

const GROUP: GroupId = GroupId(4);
const IT: CheckpointId = CheckpointId([6; 16]);

/// A node that waits to be added, and the messages that it sends.
struct Joiner {
    _keep: tempfile::TempDir,
    dir: PathBuf,
    faults: DiskFaults,
    sent: Arc<Sent>,
    node: Node,
    group: Group<Answer>,
}

impl Joiner {
    fn start() -> Joiner {
        let (keep, dir) = scratch();
        let mut config = config(&dir);
        config.tick_interval = Duration::from_millis(2);
        config.dir = Some(keep.path().join("raft"));
        let sent = Arc::<Sent>::default();
        let (node, _) = Node::start_among(config, sent.clone()).unwrap();
        let options = GroupOptions::joining(GROUP);
        let faults = options.faults.clone();
        let group = node.open_member(options, Store::default().machine());
        Joiner {
            dir: keep.path().join("raft/group-4"),
            _keep: keep,
            faults,
            sent,
            node,
            group: group.unwrap(),
        }
    }

    /// A message of the leader.
    fn deliver(&self, payload: Payload) {
        let leader = Identity {
            cluster: ClusterId::default(),
            group: GROUP,
            lineage: Lineage::default(),
            node: NodeId(2),
            incarnation: Incarnation(1),
        };
        self.group.receive(leader.seal(NodeId(1), payload));
    }

    fn is_offered_it(&self) {
        self.deliver(Payload::Offer(Box::new(Manifest {
            format: OFFER_FORMAT,
            checkpoint: IT,
            source: NodeId(2),
            last_included_index: Lsn(10),
            term: Term(1),
            peers: Membership {
                voters: vec![NodeId(2)],
                learners: vec![NodeId(1)],
                ..Membership::default()
            },
            content: Content::Bytes {
                size: 1000,
                checksum: Checksum::of(&[7; 1000]),
            },
        })));
    }

    fn failed(&self) -> u64 {
        self.group.counters().engine.fetches_failed
    }

    fn asks(&self) -> bool {
        let sent = self.sent.0.lock();
        sent.iter().any(|s| matches!(s, Payload::Fetch(_)))
    }

    /// The last message about the transfer.
    fn last_word(&self) -> Option<EndReason> {
        let sent = self.sent.0.lock();
        let about = |s: &&Payload| matches!(s, Payload::Progress(_) | Payload::Ended(_));
        match sent.iter().rev().find(about)? {
            Payload::Ended(ended) => Some(ended.reason),
            _ => None,
        }
    }

    fn partial(&self) -> PathBuf {
        self.dir.join(format!("fetch-{IT}"))
    }
}

impl Drop for Joiner {
    fn drop(&mut self) {
        self.group.stop();
        self.node.stop();
    }
}

#[test]
fn a_fetch_that_gets_no_thread_is_reported_as_failed_and_begins_with_the_next_offer() {
    let member = Joiner::start();
    let no_threads = |none: bool| {
        let shared = member.group.shared.member.as_ref().unwrap();
        shared.fetches.no_threads.store(none, Ordering::SeqCst);
    };
    no_threads(true);
    member.is_offered_it();
    assert_eq!(member.failed(), 1);
    assert!(member.group.details().transfers.is_empty());
    assert_eq!(member.last_word(), Some(EndReason::NotInstalled));
    no_threads(false);
    member.is_offered_it();
    wait_for("it asks for the first part", || member.asks());
    assert_eq!(member.group.details().transfers.len(), 1);
}

#[test]
fn a_disk_that_keeps_failing_ends_a_fetch_which_goes_on_with_the_next_offer() {
    let member = Joiner::start();
    member.faults.die_after(0);
    member.is_offered_it();
    wait_for("it is given up", || member.failed() == 1);
    assert_eq!(member.last_word(), Some(EndReason::NotInstalled));
    assert!(!member.asks());
    member.faults.die_after(u64::MAX);
    member.is_offered_it();
    wait_for("it asks for the first part", || member.asks());
}

#[test]
fn a_disk_that_fails_once_costs_a_fetch_nothing() {
    let member = Joiner::start();
    member.faults.fail_once_after(3);
    member.is_offered_it();
    wait_for("it asks for the first part", || member.asks());
    assert_eq!(member.failed(), 0);
}

#[test]
fn a_fetch_that_had_failed_and_is_not_needed_leaves_nothing_behind() {
    let member = Joiner::start();
    member.is_offered_it();
    wait_for("it asks for the first part", || member.asks());
    member.deliver(Payload::Ended(Ended {
        checkpoint: IT,
        reason: EndReason::Vanished,
    }));
    wait_for("it is over", || member.failed() == 1);
    assert!(member.partial().exists(), "for the next fetch");
    let shared = member.group.shared.member.as_ref().unwrap();
    shared.fetches.abandon(&shared.store, IT);
    wait_for("it is gone", || !member.partial().exists());
}
