//! The files of a failed fetch are removed once they are not needed.

use raft::eraftpb::MessageType;

use super::*;
use crate::ids::CheckpointId;
use crate::message::EndReason;
use crate::transfer::{Checksum, Content, Manifest, OFFER_FORMAT};

const IT: CheckpointId = CheckpointId([6; 16]);

/// A follower of node 2, with nothing in its log.
fn follower() -> Engine {
    let disk = Disk::default();
    let mut config = Config::new(NodeId(1));
    config.creates_cluster = true;
    let state = disk.state();
    Engine::open(config, state, Lsn(0), &members(&[1, 2]), disk.reader()).unwrap()
}

fn offer() -> Event {
    let sender = Config::new(NodeId(2)).identity();
    let offer = Manifest {
        format: OFFER_FORMAT,
        checkpoint: IT,
        source: NodeId(2),
        last_included_index: Lsn(3),
        term: Term(1),
        peers: members(&[1, 2]),
        content: Content::Bytes {
            size: 1000,
            checksum: Checksum::of(b""),
        },
    };
    Event::Receive(sender.seal(NodeId(1), Payload::Offer(Box::new(offer))))
}

/// The entries from behind one to another, which are committed.
fn entries(after: u64, up_to: u64) -> Event {
    let mut append = raft::eraftpb::Message::default();
    append.set_msg_type(MessageType::MsgAppend);
    (append.from, append.to, append.term) = (2, 1, 1);
    (append.index, append.log_term) = (after, after.min(1));
    let entry = |lsn| raft::eraftpb::Entry {
        index: lsn,
        term: 1,
        data: b"x".to_vec().into(),
        ..Default::default()
    };
    append.set_entries((after + 1..=up_to).map(entry).collect::<Vec<_>>().into());
    append.commit = up_to;
    received(append)
}

fn failed() -> Event {
    Event::FetchFailed {
        checkpoint: IT,
        reason: EndReason::Vanished,
    }
}

fn abandons(actions: &[Action]) -> bool {
    let it = |a: &Action| matches!(a, Action::AbandonFetch { checkpoint } if *checkpoint == IT);
    actions.iter().any(it)
}

fn fetches(actions: &[Action]) -> bool {
    let it = |a: &Action| matches!(a, Action::FetchSnapshot { .. });
    actions.iter().any(it)
}

#[test]
fn a_failed_fetch_is_abandoned_when_its_entries_have_come_and_not_before() {
    let mut engine = follower();
    assert!(fetches(&engine.step(offer())));
    assert!(!abandons(&engine.step(failed())), "it may be gone on with");
    assert!(!abandons(&engine.step(entries(0, 2))), "one is missing");
    assert!(abandons(&engine.step(entries(2, 3))));
    assert!(!abandons(&engine.step(entries(3, 4))), "once");
}

#[test]
fn a_failed_fetch_that_is_resumed_is_not_abandoned() {
    let mut engine = follower();
    assert!(fetches(&engine.step(offer())));
    engine.step(failed());
    assert!(fetches(&engine.step(offer())));
    let actions = engine.step(entries(0, 3));
    let abandoned = actions.iter().filter(|a| abandons(std::slice::from_ref(a)));
    assert_eq!(abandoned.count(), 1, "the one under way: {actions:?}");
}
