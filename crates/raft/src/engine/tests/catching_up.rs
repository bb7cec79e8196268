//! Followers whose next entries are removed: offers, fetches, installs, and the log that is kept for them.

use raft::eraftpb::MessageType;

use super::cluster::{Cluster, Fate};
use super::*;
use crate::ids::CheckpointId;
use crate::message::{EndReason, Ended};

fn offers(cluster: &Cluster, id: u64) -> usize {
    cluster.said(id, |a| matches!(a, Action::OfferSnapshot { .. }))
}

fn fetches(cluster: &Cluster, id: u64) -> usize {
    cluster.said(id, |a| matches!(a, Action::FetchSnapshot { .. }))
}

fn installs(cluster: &Cluster, id: u64) -> usize {
    cluster.said(id, |a| matches!(a, Action::InstallSnapshot { .. }))
}

/// Three members, of which the third was away while the others wrote, took a snapshot and let go of
/// their logs. It is back, and nothing has happened since.
fn one_behind() -> Cluster {
    one_behind_with(|_| {})
}

fn one_behind_with(adjust: impl Fn(&mut Config)) -> Cluster {
    let mut cluster = Cluster::with(&[1, 2, 3], adjust);
    cluster.write(10);
    cluster.cut = vec![3];
    cluster.write(60);
    // Long enough for the others to see that it is away: until then the log is kept for it.
    cluster.ticks(30);
    cluster.snapshot(1);
    cluster.snapshot(2);
    cluster.ticks(2);
    for id in [1, 2] {
        let engine = &cluster.host(id).engine;
        assert_eq!(engine.log_start(), engine.floor(), "member {id}");
    }
    cluster.cut.clear();
    cluster
}

/// Chunks get through as long as there are some left to let through.
fn only_chunks(cluster: &mut Cluster, mut left: usize) {
    cluster.fate = Box::new(move |envelope| match envelope.payload {
        Payload::Chunk(_) if left == 0 => Fate::Lost,
        Payload::Chunk(_) => {
            left -= 1;
            Fate::Arrives
        }
        _ => Fate::Arrives,
    });
}

fn all_arrives(cluster: &mut Cluster) {
    cluster.fate = Box::new(|_| Fate::Arrives);
}

#[test]
fn a_follower_whose_next_entry_is_removed_gets_a_snapshot_and_goes_on_with_entries() {
    let mut cluster = one_behind();
    cluster.ticks(10);
    cluster.assert_agreed(&[1, 2, 3]);
    assert_eq!(
        (
            offers(&cluster, 1),
            fetches(&cluster, 3),
            installs(&cluster, 3)
        ),
        (1, 1, 1)
    );
    cluster.write(10);
    cluster.assert_agreed(&[1, 2, 3]);
    assert_eq!(offers(&cluster, 1), 1, "no second one");
    let (leader, follower) = (cluster.host(1), cluster.host(3));
    assert_eq!(leader.engine.counters().snapshots_sent, 1);
    assert_eq!(follower.engine.counters().snapshots_received, 1);
    assert_eq!(
        follower.engine.log_start(),
        leader.newest().manifest.last_included_index
    );
    let counts = follower.fetched.unwrap();
    assert_eq!(counts.bytes_fetched, leader.newest().manifest.total_bytes());
    assert_eq!(
        (counts.requested_again, counts.corrupt, counts.unwanted),
        (0, 0, 0)
    );
}

#[test]
fn a_follower_that_lags_and_answers_gets_entries_also_if_a_snapshot_covers_them() {
    let mut cluster = Cluster::new(&[1, 2, 3]);
    cluster.write(5);
    // Appends to it are lost, heartbeats are not.
    cluster.fate = Box::new(|envelope| match &envelope.payload {
        Payload::Raft(m) if m.to() == NodeId(3) && !m.0.entries.is_empty() => Fate::Lost,
        _ => Fate::Arrives,
    });
    cluster.write(20);
    cluster.snapshot(1);
    cluster.ticks(3);
    let status = cluster.host(1).engine.status();
    assert!(status.log_start < status.floor, "{status:?}");
    all_arrives(&mut cluster);
    cluster.ticks(10);
    cluster.assert_agreed(&[1, 2, 3]);
    assert_eq!(offers(&cluster, 1), 0);
    cluster.ticks(3);
    assert_eq!(
        cluster.host(1).engine.log_start(),
        cluster.host(1).engine.floor()
    );
}

#[test]
fn a_snapshot_is_hinted_at_when_none_helps() {
    let mut cluster = one_behind();
    // After a restart the engine does not know the membership of its host's snapshot.
    let lsn = cluster.host(1).newest().manifest.last_included_index;
    let term = cluster.host(1).newest().manifest.term;
    cluster.host_mut(1).stored.clear();
    cluster.restart(1);
    let known = Event::SnapshotTaken {
        last_included_index: lsn,
        term,
        peers: None,
    };
    cluster.step(1, known);
    cluster.cut = vec![2];
    cluster.host_mut(1).heeds_hints = true;
    cluster.step(1, Event::Campaign);
    cluster.cut = Vec::new();
    cluster.ticks(60);
    cluster.assert_agreed(&[1, 2, 3]);
}

#[test]
fn a_leader_whose_state_is_withheld_offers_nothing_until_it_is_not_and_entries_go_on() {
    let mut cluster = one_behind();
    cluster.step(1, Event::WithholdSnapshots { withheld: true });
    cluster.ticks(100);
    assert_eq!((offers(&cluster, 1), installs(&cluster, 3)), (0, 0));
    cluster.write(10);
    cluster.assert_agreed(&[1, 2]);
    cluster.step(1, Event::WithholdSnapshots { withheld: false });
    cluster.ticks(10);
    assert_eq!((offers(&cluster, 1), installs(&cluster, 3)), (1, 1));
    cluster.assert_agreed(&[1, 2, 3]);
}

#[test]
fn a_joiner_is_offered_only_snapshots_that_know_it() {
    let mut cluster = Cluster::new(&[1, 2, 3]);
    cluster.write(30);
    cluster.snapshot(1);
    cluster.host_mut(1).heeds_hints = false;
    cluster.joiner(4);
    cluster
        .change(MembershipChange::AddLearner(NodeId(4)))
        .unwrap();
    cluster.ticks(30);
    assert_eq!(
        offers(&cluster, 1),
        0,
        "the snapshot is from before it was added"
    );
    let hint = |a: &Action| matches!(a, Action::SnapshotHint { .. });
    // The first hint, and, since the host does not begin, those 10 and 30 ticks later.
    let hints = cluster.said(1, hint);
    assert!(
        (1..=3).contains(&hints),
        "{hints} hints at one from after it"
    );
    cluster.snapshot(1);
    cluster.ticks(20);
    assert_eq!(offers(&cluster, 1), 1);
    cluster.assert_agreed(&[1, 2, 3, 4]);
}

#[test]
fn an_offer_that_does_not_know_its_receiver_is_refused() {
    let mut cluster = one_behind();
    cluster.cut = vec![2, 3];
    let mut offer = cluster.host(1).newest().manifest.clone();
    offer.peers = members(&[1, 2]);
    let sealed = cluster
        .identity(1)
        .seal(NodeId(3), Payload::Offer(Box::new(offer)));
    let actions = cluster.host_mut(3).engine.step(Event::Receive(sealed));
    let [Action::Send(sent)] = &actions[..] else {
        panic!("{actions:?}");
    };
    let reason = EndReason::NotAMember;
    assert!(
        matches!(&sent[0].payload, Payload::Ended(Ended { reason: r, .. }) if *r == reason),
        "{sent:?}"
    );
}

#[test]
fn the_log_is_kept_behind_a_transfer_under_way() {
    let mut cluster = one_behind();
    only_chunks(&mut cluster, 5);
    cluster.ticks(10);
    let fetched = cluster.host(1).newest().manifest.last_included_index;
    for _ in 0..5 {
        cluster.write(20);
        for id in [1, 2] {
            cluster.snapshot(id);
            let engine = &cluster.host(id).engine;
            assert_eq!(
                engine.log_start(),
                fetched,
                "member {id} keeps what comes after it"
            );
            assert!(engine.floor() > fetched);
        }
        cluster.ticks(10);
    }
    all_arrives(&mut cluster);
    cluster.ticks(200);
    cluster.assert_agreed(&[1, 2, 3]);
    assert_eq!(
        (offers(&cluster, 1), fetches(&cluster, 3)),
        (1, 1),
        "one was enough"
    );
    for id in [1, 2] {
        let engine = &cluster.host(id).engine;
        assert_eq!(engine.log_start(), engine.floor(), "member {id} lets go");
    }
}

#[test]
fn a_newer_snapshot_does_not_cancel_a_transfer_under_way() {
    let mut cluster = one_behind();
    let first = cluster.host(1).newest().manifest.clone();
    only_chunks(&mut cluster, 5);
    cluster.ticks(4);
    cluster.write(30);
    cluster.snapshot(1);
    // It even gets an offer, as from a leader that does not know the transfer.
    let newer = Box::new(cluster.host(1).newest().manifest.clone());
    assert_ne!(newer.checkpoint, first.checkpoint);
    cluster.send(1, NodeId(3), Payload::Offer(newer));
    cluster.pump();
    all_arrives(&mut cluster);
    cluster.ticks(200);
    cluster.assert_agreed(&[1, 2, 3]);
    let installed = cluster.host(3).said.iter().find_map(|a| match a {
        Action::InstallSnapshot { offer } => Some(offer.checkpoint),
        _ => None,
    });
    assert_eq!(installed, Some(first.checkpoint));
    assert_eq!(fetches(&cluster, 3), 1);
}

#[test]
fn beyond_the_limit_the_log_goes_and_the_transfer_does_not() {
    let mut cluster = one_behind_with(|config| config.max_bytes_kept_for_peers = 2000);
    only_chunks(&mut cluster, 5);
    cluster.ticks(10);
    let first = cluster.host(1).newest().manifest.last_included_index;
    cluster.write(200);
    for id in [1, 2] {
        cluster.snapshot(id);
        assert!(cluster.host(id).engine.log_start() > first, "member {id}");
    }
    all_arrives(&mut cluster);
    cluster.ticks(400);
    cluster.assert_agreed(&[1, 2, 3]);
    // The second one is for what was written meanwhile.
    assert_eq!(installs(&cluster, 3), 2);
}

#[test]
fn a_change_of_leader_does_not_cancel_a_transfer() {
    let mut cluster = one_behind();
    only_chunks(&mut cluster, 5);
    cluster.ticks(10);
    let (ticket, to) = (Ticket(1), NodeId(2));
    cluster.step(1, Event::TransferLeadership { ticket, to });
    cluster.pump();
    assert_eq!(cluster.leader(), 2);
    cluster.write(20);
    cluster.snapshot(2);
    all_arrives(&mut cluster);
    cluster.ticks(200);
    cluster.assert_agreed(&[1, 2, 3]);
    let from = |a: &Action| {
        matches!(
            a,
            Action::FetchSnapshot {
                from: NodeId(1),
                ..
            }
        )
    };
    assert_eq!((cluster.said(3, from), fetches(&cluster, 3)), (1, 1));
    assert_eq!(
        offers(&cluster, 2),
        0,
        "the new leader knows, and has kept its log"
    );
}

#[test]
fn a_receiver_that_restarts_fetches_only_what_it_lacks() {
    let mut cluster = one_behind();
    only_chunks(&mut cluster, 9);
    cluster.ticks(4);
    let there = cluster
        .host(3)
        .fetching
        .as_ref()
        .unwrap()
        .receiver
        .bytes_done();
    assert!(there > 0);
    all_arrives(&mut cluster);
    cluster.restart(3);
    cluster.ticks(40);
    cluster.assert_agreed(&[1, 2, 3]);
    let counts = cluster.host(3).fetched.unwrap();
    let total = cluster.host(1).newest().manifest.total_bytes();
    assert_eq!(
        (counts.bytes_held, counts.bytes_fetched),
        (there, total - there)
    );
    assert_eq!(cluster.host(3).engine.counters().fetches_resumed, 1);
}

#[test]
fn a_sender_that_restarts_goes_on_sending() {
    let mut cluster = one_behind();
    only_chunks(&mut cluster, 9);
    cluster.ticks(4);
    cluster.restart(1);
    all_arrives(&mut cluster);
    cluster.ticks(200);
    cluster.assert_agreed(&[1, 2, 3]);
    assert_eq!((fetches(&cluster, 3), installs(&cluster, 3)), (1, 1));
}

#[test]
fn when_the_files_vanish_under_the_sender_another_snapshot_is_offered() {
    let mut cluster = one_behind();
    only_chunks(&mut cluster, 9);
    cluster.ticks(4);
    cluster.host_mut(1).stored.clear();
    let seen = cluster.end_of_transfers();
    cluster.ticks(30);
    assert!(seen.lock().contains(&EndReason::Vanished), "{seen:?}");
    cluster.ticks(200);
    cluster.assert_agreed(&[1, 2, 3]);
    assert_eq!(installs(&cluster, 3), 1);
}

#[test]
fn a_follower_votes_and_acknowledges_while_it_fetches() {
    let mut cluster = one_behind();
    only_chunks(&mut cluster, 5);
    cluster.ticks(10);
    // Of three, one leads, one is down for good, and one fetches: its vote is needed, and given to one who
    // has the log.
    cluster.cut = vec![1];
    cluster.ticks(60);
    assert_eq!(cluster.leader(), 2);
}

#[test]
fn a_crash_between_the_install_and_its_word_is_made_good_at_the_next_start() {
    let mut cluster = one_behind();
    cluster.host_mut(3).dies_installing = true;
    cluster.ticks(10);
    assert!(!cluster.host(3).up);
    let term = cluster.host(3).disk.state().hard_state.term;
    cluster.restart(3);
    let engine = &cluster.host(3).engine;
    let fetched = cluster.host(1).newest().manifest.last_included_index;
    assert_eq!((engine.log_start(), engine.applied()), (fetched, fetched));
    assert!(
        engine.term().0 >= term,
        "what it promised in its term it keeps"
    );
    cluster.ticks(20);
    cluster.assert_agreed(&[1, 2, 3]);
    assert_eq!(installs(&cluster, 3), 1, "it is not installed twice");
}

#[test]
fn corrupt_repeated_and_reordered_chunks_change_nothing_but_the_time() {
    let mut cluster = one_behind();
    let mut seen = 0;
    cluster.fate = Box::new(move |envelope| {
        let Payload::Chunk(chunk) = &mut envelope.payload else {
            return Fate::Arrives;
        };
        seen += 1;
        match seen % 5 {
            0 => {
                let mut bytes = chunk.bytes.to_vec();
                bytes[0] ^= 1;
                chunk.bytes = bytes.into();
                Fate::Arrives
            }
            1 => Fate::Twice,
            2 => Fate::Last,
            3 => Fate::Lost,
            _ => Fate::Arrives,
        }
    });
    cluster.ticks(2000);
    cluster.assert_agreed(&[1, 2, 3]);
    let counts = cluster.host(3).fetched.unwrap();
    assert!(
        counts.corrupt > 0 && counts.unwanted > 0 && counts.requested_again > 0,
        "{counts:?}"
    );
    assert_eq!(
        counts.bytes_fetched,
        cluster.host(1).newest().manifest.total_bytes()
    );
}

#[test]
fn an_install_that_fails_is_tried_again_with_another_offer() {
    let mut cluster = one_behind();
    only_chunks(&mut cluster, 5);
    cluster.ticks(4);
    let fetching = cluster.host_mut(3).fetching.take().unwrap();
    let checkpoint: CheckpointId = fetching.receiver.manifest().checkpoint;
    // The host steps it instead of the next action.
    let engine = &mut cluster.host_mut(3).engine;
    let actions = engine.step(Event::SnapshotFetched { checkpoint });
    assert!(
        matches!(actions[0], Action::InstallSnapshot { .. }),
        "{actions:?}"
    );
    all_arrives(&mut cluster);
    cluster.step(3, Event::InstallFailed { checkpoint });
    cluster.ticks(100);
    cluster.assert_agreed(&[1, 2, 3]);
    assert_eq!(cluster.host(3).engine.counters().fetches_failed, 1);
}

#[test]
fn what_came_as_entries_meanwhile_is_not_fetched_any_more() {
    let mut cluster = one_behind();
    only_chunks(&mut cluster, 5);
    cluster.ticks(10);
    assert!(cluster.host(3).fetching.is_some());
    // From a member with the whole log.
    let checkpoint = cluster
        .host(3)
        .fetching
        .as_ref()
        .unwrap()
        .receiver
        .manifest()
        .checkpoint;
    let offer = cluster.host(1).newest().manifest.clone();
    let engine = &mut cluster.host_mut(3).engine;
    let (last, log_term) = (engine.last(), engine.term());
    let mut append = raft::eraftpb::Message::default();
    append.set_msg_type(MessageType::MsgAppend);
    (append.from, append.to, append.term) = (1, 3, log_term.0);
    (append.index, append.log_term) = (last.0, log_term.0);
    let entry = |lsn| raft::eraftpb::Entry {
        index: lsn,
        term: log_term.0,
        data: b"x".to_vec().into(),
        ..Default::default()
    };
    let entries: Vec<_> = (last.0 + 1..=offer.last_included_index.0)
        .map(entry)
        .collect();
    append.set_entries(entries.into());
    append.commit = offer.last_included_index.0;
    let sender = cluster.identity(1);
    let sealed = sender.seal(NodeId(3), Payload::Raft(PeerMessage(append)));
    let actions = cluster.host_mut(3).engine.step(Event::Receive(sealed));
    let abandoned =
        |a: &Action| matches!(a, Action::AbandonFetch { checkpoint: c } if *c == checkpoint);
    assert!(actions.iter().any(abandoned), "{actions:?}");
}

#[test]
fn the_status_has_peers_and_transfers() {
    let mut cluster = one_behind();
    only_chunks(&mut cluster, 5);
    cluster.ticks(10);
    let (leader, follower) = (
        cluster.host(1).engine.status(),
        cluster.host(3).engine.status(),
    );
    let fetched = cluster.host(1).newest().manifest.last_included_index;
    let third = leader.peers.iter().find(|p| p.id == NodeId(3)).unwrap();
    assert_eq!(
        (third.state, third.pending_snapshot),
        (PeerState::Snapshot, Some(fetched))
    );
    assert!(third.heard_ticks_ago.unwrap() < 5);
    let second = leader.peers.iter().find(|p| p.id == NodeId(2)).unwrap();
    assert_eq!(
        (second.state, second.matched),
        (PeerState::Replicate, leader.last)
    );
    assert_eq!(leader.transfers.len(), 1);
    assert_eq!(follower.transfers[0].receiver, NodeId(3));
    let total = cluster.host(1).newest().manifest.total_bytes();
    assert_eq!(follower.transfers[0].progress.bytes_total, total);
    assert_eq!(leader.entries_above_floor, leader.last.0 - leader.floor.0);
    assert_eq!(follower.leader, Some(NodeId(1)));
}
