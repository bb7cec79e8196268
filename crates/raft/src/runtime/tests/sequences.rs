//! Proposals whose order counts.

use raft::eraftpb::MessageType;

use super::members::Members;
use super::*;
use crate::message::Payload;

/// A member leads, and its log is busy with the first proposal of a sequence; the second one waits for the log. The
/// leadership is to go to a member that does not take it, so the second one is refused when the log is free again.
/// Later the transfer is given up, and the same leader goes on in the same term.
#[test]
fn after_a_proposal_that_is_refused_while_it_waits_for_the_log_none_of_its_sequence_is_accepted() {
    // A transfer is given up after an election timeout: a second, in which the log becomes free on any machine.
    let mut members = Members::start_with(&[1, 2, 3], |config| {
        config.tick_interval = Duration::from_millis(100);
    });
    members.write(1);
    let (leader, to) = (members.leader(), members.follower());
    let term = members.group(leader).status().term;
    members.network.filter(Some(Box::new(|envelope| {
        !matches!(&envelope.payload, Payload::Raft(m) if m.0.get_msg_type() == MessageType::MsgTimeoutNow)
    })));
    let sequence = Arc::new(Sequence::default());
    let group = members.group(leader).clone();
    let propose = |line: &str| {
        let attached = Attached {
            sequence: Some(sequence.clone()),
            ..Attached::default()
        };
        group.propose_with(line.into(), attached)
    };
    let faults = members.faults[&leader].clone();
    faults.hold_sync(true);
    // The log may still be busy with what came before. The first proposal has to be in the log, or the others would
    // enter it together with the first.
    let before = group.status().last;
    let first = propose("first").unwrap();
    wait_for("the first one is in the log", || {
        group.status().last > before
    });
    let (refused, with_it) = (propose("second").unwrap(), propose("third").unwrap());
    let runtime = tokio::runtime::Builder::new_current_thread();
    let runtime = { runtime }.enable_all().build().unwrap();
    let mut transfer = std::pin::pin!(group.transfer_leadership(NodeId(to)));
    let begun = async { tokio::time::timeout(Duration::ZERO, &mut transfer).await };
    assert!(runtime.block_on(begun).is_err(), "it is under way");
    wait_for("the leadership moves", || group.is_transferring());
    faults.hold_sync(false);
    first.blocking_recv().unwrap().unwrap();
    for refused in [refused, with_it] {
        refused.blocking_recv().unwrap().unwrap_err();
    }
    runtime.block_on(transfer).unwrap_err();
    wait_for("the leader goes on", || {
        let other = group.propose("other".into());
        other.is_ok_and(|other| other.blocking_recv().unwrap().is_ok())
    });
    assert_eq!(group.status().term, term, "it is the same leadership");
    let later = propose("fourth");
    let later = later.and_then(|later| later.blocking_recv().unwrap());
    assert!(
        later.is_err(),
        "it was accepted: {:?}",
        members.lines(leader)
    );
    let lines = members.lines(leader);
    assert_eq!(lines[1..], ["first".to_owned(), "other".to_owned()]);
}
