//! When those who voted before a change are needed no more, and a node that was removed may be stopped for good.

use raft::eraftpb::{EntryType, MessageType};

use super::cluster::{Cluster, Fate};
use super::joins::{change_voters, kill, three_with_a_learner};
use super::*;

/// More messages than are sent in this time.
const MESSAGES: u64 = 100;

fn raft_message(envelope: &Envelope) -> Option<&raft::eraftpb::Message> {
    match &envelope.payload {
        Payload::Raft(PeerMessage(message)) => Some(message),
        _ => None,
    }
}

/// Whether a message has an entry without a command.
fn confirms(envelope: &Envelope) -> bool {
    let empty = |entry: &raft::eraftpb::Entry| {
        entry.data.is_empty() && entry.get_entry_type() == EntryType::EntryNormal
    };
    raft_message(envelope).is_some_and(|message| message.entries.iter().any(empty))
}

fn leads(cluster: &Cluster) -> bool {
    let mut hosts = cluster.hosts.values();
    hosts.any(|host| host.up && host.engine.role() == Role::Leader)
}

/// 4 gets the vote of 3. So many messages arrive, and of those to `deaf` none; all others are lost.
fn replaced(messages: u64, deaf: u64) -> Cluster {
    let mut cluster = three_with_a_learner();
    let mut left = messages;
    cluster.fate = Box::new(move |envelope| {
        let arrives = left > 0 && envelope.to.0 != deaf;
        left = left.saturating_sub(1);
        match arrives {
            true => Fate::Arrives,
            false => Fate::Lost,
        }
    });
    let (ticket, change) = (Ticket(1000), change_voters(&[4], &[3]));
    cluster.step(1, Event::ChangeMembership { ticket, change });
    cluster.pump();
    // Some of the entries go out with the answers to heartbeats. It is too short for an election.
    cluster.ticks(6);
    cluster
}

/// The leader is lost, and the node that was removed is stopped for good.
fn lose_leader_and_removed(cluster: &mut Cluster) {
    cluster.fate = Box::new(|_| Fate::Arrives);
    kill(cluster, 1);
    kill(cluster, 3);
    cluster.ticks(100);
}

#[test]
fn without_the_removed_node_a_leader_is_elected_from_where_the_change_is_confirmed_on() {
    let (mut unconfirmed, mut stuck, mut confirmed) = (0, 0, 0);
    for deaf in [0, 2, 4] {
        for messages in 0..MESSAGES {
            let mut cluster = replaced(messages, deaf);
            let leader = &cluster.host(1).engine;
            let is_complete = *leader.membership() == members(&[1, 2, 4]);
            if !is_complete {
                continue;
            }
            assert_eq!(
                leader.status().has_unconfirmed_change,
                leader.has_unconfirmed_change()
            );
            match leader.has_unconfirmed_change() {
                true => {
                    unconfirmed += 1;
                    lose_leader_and_removed(&mut cluster);
                    stuck += usize::from(!leads(&cluster));
                }
                false => {
                    confirmed += 1;
                    lose_leader_and_removed(&mut cluster);
                    assert!(
                        leads(&cluster),
                        "after {messages} messages, of which {deaf} gets none"
                    );
                    cluster.write(3);
                    cluster.assert_agreed(&[2, 4]);
                }
            }
        }
    }
    assert!(confirmed > 10, "{confirmed}");
    assert!(unconfirmed > 2, "{unconfirmed}");
    assert!(stuck > 0, "the removed node would never be needed");
}

#[test]
fn a_leader_knows_that_a_change_before_its_time_is_confirmed_once_it_has_committed() {
    let mut cluster = Cluster::new(&[1, 2, 3]);
    cluster.write(3);
    assert!(!cluster.host(1).engine.has_unconfirmed_change());
    let (ticket, to) = (Ticket(9), NodeId(2));
    cluster.step(1, Event::TransferLeadership { ticket, to });
    let mut arrived = 0;
    while cluster.host(2).engine.role() != Role::Leader {
        arrived += 1;
        assert!(arrived < 100, "it is never elected");
        cluster.next_arrives();
    }
    assert!(cluster.host(2).engine.has_unconfirmed_change());
    let last = cluster.host(2).engine.last();
    cluster.pump();
    assert!(!cluster.host(2).engine.has_unconfirmed_change());
    assert_eq!(cluster.host(2).engine.last(), last, "no further entry");
    assert!(!cluster.host(1).engine.has_unconfirmed_change(), "follows");
}

#[test]
fn a_change_that_ends_during_a_transfer_of_the_leadership_is_confirmed_later() {
    let mut cluster = three_with_a_learner();
    // The transfer never ends.
    cluster.fate = Box::new(|envelope| match raft_message(envelope) {
        Some(message) if message.get_msg_type() == MessageType::MsgTimeoutNow => Fate::Lost,
        _ => Fate::Arrives,
    });
    let (ticket, change) = (Ticket(1000), change_voters(&[4], &[3]));
    cluster.step(1, Event::ChangeMembership { ticket, change });
    let (ticket, to) = (Ticket(9), NodeId(2));
    cluster.step(1, Event::TransferLeadership { ticket, to });
    cluster.pump();
    // Less than the time that a transfer has.
    cluster.ticks(5);
    assert_eq!(*cluster.host(1).engine.membership(), members(&[1, 2, 4]));
    assert!(cluster.host(1).engine.has_unconfirmed_change());
    cluster.ticks(30);
    assert_eq!(cluster.leader(), 1);
    assert!(!cluster.host(1).engine.has_unconfirmed_change());
}

/// Nothing is written after the change, and the state on the disk is as of before it.
#[test]
fn a_follower_that_restarts_knows_that_a_change_is_committed_which_nothing_has_confirmed() {
    let mut cluster = Cluster::new(&[1, 2, 3]);
    cluster.write(3);
    let host = cluster.host(2);
    let (applied, membership) = (host.applied, host.membership.clone());
    let lines = host.lines.clone();
    cluster.fate = Box::new(|envelope| match confirms(envelope) {
        true => Fate::Lost,
        false => Fate::Arrives,
    });
    cluster.change(change_voters(&[], &[3])).unwrap();
    cluster.ticks(4);
    assert_eq!(cluster.host(2).membership, members(&[1, 2]));
    assert!(cluster.host(1).engine.has_unconfirmed_change());
    for id in 1..=3 {
        kill(&mut cluster, id);
    }
    let host = cluster.host_mut(2);
    (host.applied, host.membership, host.lines) = (applied, membership, lines);
    cluster.restart(2);
    cluster.ticks(3);
    assert_eq!(cluster.host(2).membership, members(&[1, 2]));
}
