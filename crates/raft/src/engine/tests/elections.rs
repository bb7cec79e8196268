//! Corners of elections that raft-rs leaves to its host, each found by the simulation.

use super::cluster::{Cluster, Fate};
use super::*;
use crate::ids::CheckpointId;
use crate::transfer::{Checksum, Content, Manifest, OFFER_FORMAT};

#[test]
fn a_leader_that_is_left_to_remove_itself_resigns_and_the_others_go_on() {
    let mut cluster = Cluster::with(&[1, 2, 3], |config| {
        if config.id.0 == 3 {
            // Never the first to stand for election.
            config.election_ticks = 60;
        }
    });
    cluster.write(5);
    // The first leader removes 2, and gets no answer.
    cluster.fate = Box::new(|envelope| match envelope.to.0 {
        1 => Fate::Lost,
        _ => Fate::Arrives,
    });
    let (ticket, change) = (Ticket(9), MembershipChange::RemovePeer(NodeId(2)));
    cluster.step(1, Event::ChangeMembership { ticket, change });
    cluster.pump();
    // Then 2 leads, with the entry in its log.
    cluster.cut = vec![1];
    cluster.fate = Box::new(|_| Fate::Arrives);
    for _ in 0..100 {
        if cluster.host(2).engine.role() != Role::Leader {
            cluster.ticks(1);
        }
    }
    assert_eq!(cluster.host(2).engine.role(), Role::Leader);
    assert!(cluster.host(2).membership.is_joint());
    cluster.cut.clear();
    cluster.ticks(200);
    assert_eq!(voters_of(&cluster, 2), [1, 3]);
    assert_ne!(cluster.host(2).engine.role(), Role::Leader);
    assert_ne!(cluster.leader(), 2);
    cluster.write(5);
    cluster.assert_agreed(&[1, 3]);
    assert_eq!(cluster.host(1).lines.len(), 10);
}

fn voters_of(cluster: &Cluster, id: u64) -> Vec<u64> {
    let voters = &cluster.host(id).engine.membership().voters;
    voters.iter().map(|n| n.0).collect()
}

#[test]
fn a_sole_voter_sends_its_learners_nothing_before_its_term_is_durable() {
    let disk = Disk::default();
    let mut config = Config::new(NodeId(1));
    config.creates_cluster = true;
    let membership = Membership {
        learners: vec![NodeId(2)],
        ..members(&[1])
    };
    let open = |config: &Config| {
        let (state, reader) = (disk.state(), disk.reader());
        Engine::open(config.clone(), state, Lsn(0), &membership, reader).unwrap()
    };
    let mut engine = open(&config);
    let mut said = engine.step(Event::Campaign);
    said.extend(engine.step(propose(1, "a")));
    said.extend(engine.step(Event::Tick));
    assert_eq!(engine.role(), Role::Leader);
    assert!(
        raft_messages(&said).is_empty(),
        "after a crash it would lead in the same term, and say something else: {said:?}"
    );
    let number = *numbers(&said).last().unwrap();
    let durable = engine.step(Event::Persisted { number });
    assert!(!raft_messages(&durable).is_empty(), "{durable:?}");
    // From then on nothing waits: its entries go out before they are durable.
    let mut learned = raft::eraftpb::Message::default();
    learned.set_msg_type(raft::eraftpb::MessageType::MsgAppendResponse);
    (learned.from, learned.to, learned.term, learned.index) = (2, 1, 1, 1);
    engine.step(received(learned));
    let proposed = engine.step(propose(2, "b"));
    assert!(!raft_messages(&proposed).is_empty(), "{proposed:?}");
}

/// A follower of a group of three that has installed a snapshot; the write that restarts its log is
/// under way.
fn just_installed() -> (Engine, Vec<Action>) {
    let disk = Disk::default();
    let mut engine = open(1, &[1, 2, 3], &disk, 0).unwrap();
    let mut heartbeat = raft::eraftpb::Message::default();
    heartbeat.set_msg_type(raft::eraftpb::MessageType::MsgHeartbeat);
    (heartbeat.from, heartbeat.to, heartbeat.term) = (2, 1, 1);
    settle(&mut engine, &disk, received(heartbeat));
    let checkpoint = CheckpointId([1; 16]);
    let offer = Box::new(Manifest {
        format: OFFER_FORMAT,
        checkpoint,
        source: NodeId(2),
        last_included_index: Lsn(10),
        term: Term(1),
        peers: members(&[1, 2, 3]),
        content: Content::Bytes {
            size: 0,
            checksum: Checksum::of(&[]),
        },
    });
    let sender = Config::new(NodeId(2)).identity();
    let offered = Event::Receive(sender.seal(NodeId(1), Payload::Offer(offer)));
    engine.step(offered);
    engine.step(Event::SnapshotFetched { checkpoint });
    let installed = engine.step(Event::SnapshotInstalled { checkpoint });
    assert_eq!((engine.applied(), engine.log_start()), (Lsn(10), Lsn(10)));
    (engine, installed)
}

#[test]
fn who_has_just_installed_does_not_stand_for_election_before_that_is_durable() {
    let (mut engine, installed) = just_installed();
    let mut now = raft::eraftpb::Message::default();
    now.set_msg_type(raft::eraftpb::MessageType::MsgTimeoutNow);
    (now.from, now.to, now.term) = (2, 1, 1);
    engine.step(received(now));
    engine.step(Event::Campaign);
    for _ in 0..100 {
        engine.step(Event::Tick);
    }
    assert_eq!((engine.role(), engine.term()), (Role::Follower, Term(1)));

    let number = *numbers(&installed).last().unwrap();
    engine.step(Event::Persisted { number });
    engine.step(Event::Tick);
    assert_eq!(engine.role(), Role::Candidate, "it has waited long enough");
}
