//! Groups of three: first single steps, by hand, then whole histories, by seed.

use raft::eraftpb::{Message, MessageType};
use testkit::seeds::{self, PrintOnPanic};

use super::network::{Network, Reached, run};
use super::*;

const THREE: [u64; 3] = [1, 2, 3];
/// Seeds of whole histories that are run at least. More follow until they have reached enough; `make soak-raft` runs
/// others.
const LEAST_SEEDS: u64 = 130;

/// A message to member 1.
fn message(kind: MessageType, from: u64, term: u64) -> Message {
    let mut message = Message::default();
    message.set_msg_type(kind);
    message.from = from;
    message.to = 1;
    message.term = term;
    message
}

/// Kinds and verdicts of the messages that are sent: `(kind, to, rejects)`.
fn sent(actions: &[Action]) -> Vec<(MessageType, u64, bool)> {
    let of = |m: &PeerMessage| (m.0.get_msg_type(), m.0.to, m.0.reject);
    raft_messages(actions).into_iter().map(of).collect()
}

fn vote_request(from: u64, term: u64) -> Event {
    received(message(MessageType::MsgRequestVote, from, term))
}

#[test]
fn a_follower_rejects_proposals_and_names_the_leader() {
    let disk = Disk::default();
    let mut engine = open(1, &THREE, &disk, 0).unwrap();
    let rejected = |leader| format!("rejected #5: NotLeader {{ leader: {leader:?} }}");
    assert_eq!(
        outline(&engine.step(propose(5, "c"))),
        rejected(None::<NodeId>)
    );

    let heartbeat = message(MessageType::MsgHeartbeat, 2, 1);
    settle(&mut engine, &disk, received(heartbeat));
    assert_eq!(
        outline(&engine.step(propose(5, "c"))),
        rejected(Some(NodeId(2)))
    );
    assert_eq!((engine.last(), engine.term()), (Lsn(0), Term(1)));
}

#[test]
fn commands_that_have_waited_together_go_to_each_member_in_one_message_of_bounded_size() {
    use super::cluster::Cluster;
    use crate::engine::MAX_MESSAGE_BYTES;

    let mut cluster = Cluster::new(&THREE);
    cluster.write(1);
    let leader = cluster.leader();
    let engine = &mut cluster.host_mut(leader).engine;
    let mut appends = |commands: Vec<Vec<u8>>| {
        let before = engine.last().0;
        let count = commands.len() as u64;
        let batch = (0..).map(Ticket).zip(commands).collect();
        let actions = engine.step(Event::ProposeBatch(batch));
        let accepted = actions.iter().filter_map(|action| match action {
            Action::Accepted { ticket, lsn, .. } => Some((ticket.0, lsn.0)),
            _ => None,
        });
        let expected = (0..count).map(|n| (n, before + 1 + n));
        assert_eq!(accepted.collect::<Vec<_>>(), expected.collect::<Vec<_>>());
        let mut messages = Vec::new();
        for PeerMessage(message) in raft_messages(&actions) {
            if message.get_msg_type() == MessageType::MsgAppend {
                let bytes: usize = message.entries.iter().map(|it| it.data.len()).sum();
                messages.push((message.to, message.entries.len(), bytes as u64));
            }
        }
        messages.sort_unstable();
        messages
    };
    let others = THREE.into_iter().filter(|id| *id != leader);
    let one_each: Vec<_> = others.map(|to| (to, 60, 60 * 100)).collect();
    assert_eq!(appends(vec![vec![7; 100]; 60]), one_each);
    // Of entries that together are larger, a message has no more than it may have, and none waits for an answer.
    let large = appends(vec![vec![7; 300_000]; 10]);
    assert!(
        large
            .iter()
            .all(|(_, _, bytes)| *bytes <= MAX_MESSAGE_BYTES)
    );
    let sent: usize = large.iter().map(|(_, entries, _)| entries).sum();
    assert_eq!(sent, 2 * 10, "{large:?}");
}

#[test]
fn a_vote_is_sent_when_it_is_durable_and_not_before() {
    let disk = Disk::default();
    let mut engine = open(1, &THREE, &disk, 0).unwrap();
    let asked = engine.step(vote_request(2, 5));
    assert_eq!(sent(&asked), [], "{asked:?}");
    let number = numbers(&asked)[0];
    let durable = engine.step(Event::Persisted { number });
    assert_eq!(
        sent(&durable),
        [(MessageType::MsgRequestVoteResponse, 2, false)]
    );
}

#[test]
fn a_member_remembers_its_vote_across_a_crash() {
    let disk = Disk::default();
    let mut engine = open(1, &THREE, &disk, 0).unwrap();
    settle(&mut engine, &disk, vote_request(2, 5));
    drop(engine);
    let mut engine = open(1, &THREE, &disk, 0).unwrap();
    assert_eq!(engine.term(), Term(5));
    for (from, rejects) in [(3, true), (2, false)] {
        let actions = settle(&mut engine, &disk, vote_request(from, 5));
        assert_eq!(
            sent(&actions),
            [(MessageType::MsgRequestVoteResponse, from, rejects)]
        );
    }
}

#[test]
fn a_follower_acknowledges_entries_when_they_are_durable_and_not_before() {
    let disk = Disk::default();
    let mut engine = open(1, &THREE, &disk, 0).unwrap();
    let heartbeat = message(MessageType::MsgHeartbeat, 2, 1);
    settle(&mut engine, &disk, received(heartbeat));

    let mut append = message(MessageType::MsgAppend, 2, 1);
    append.set_entries(vec![entry(1)].into());
    append.commit = 1;
    let received = engine.step(received(append));
    assert_eq!(outline(&received), "persist [1@1]");
    let number = numbers(&received)[0];
    let durable = engine.step(Event::Persisted { number });
    assert_eq!(sent(&durable), [(MessageType::MsgAppendResponse, 2, false)]);
    assert_eq!(commands(&durable), ["c"], "committed, and now durable here");
}

fn entry(index: u64) -> raft::eraftpb::Entry {
    raft::eraftpb::Entry {
        index,
        term: 1,
        data: b"c".to_vec().into(),
        ..Default::default()
    }
}

#[test]
fn entries_of_several_messages_that_one_sync_makes_durable_are_acknowledged_once() {
    let disk = Disk::default();
    let mut engine = open(1, &THREE, &disk, 0).unwrap();
    let heartbeat = message(MessageType::MsgHeartbeat, 2, 1);
    settle(&mut engine, &disk, received(heartbeat));

    let mut number = 0;
    for index in 1..=3 {
        let mut append = message(MessageType::MsgAppend, 2, 1);
        (append.index, append.log_term) = (index - 1, u64::from(index > 1));
        append.set_entries(vec![entry(index)].into());
        number = numbers(&engine.step(received(append)))[0];
    }
    let durable = engine.step(Event::Persisted { number });
    let indexes: Vec<_> = raft_messages(&durable).iter().map(|m| m.0.index).collect();
    assert_eq!(indexes, [3]);
}

/// Makes member 1 the leader in term 1, with the entry of its term committed.
fn lead(engine: &mut Engine, disk: &Disk) {
    settle(engine, disk, Event::Campaign);
    for kind in [
        MessageType::MsgRequestPreVoteResponse,
        MessageType::MsgRequestVoteResponse,
    ] {
        let yes = message(kind, 2, 1);
        settle(engine, disk, received(yes));
    }
    assert_eq!(engine.role(), Role::Leader);
    for from in [2, 3] {
        settle(engine, disk, acknowledges(from, 1));
    }
    assert_eq!(engine.committed(), Lsn(1));
}

fn acknowledges(from: u64, index: u64) -> Event {
    let mut yes = message(MessageType::MsgAppendResponse, from, 1);
    yes.index = index;
    received(yes)
}

#[test]
fn while_entries_follow_each_other_followers_learn_of_commits_from_them_and_at_last_from_a_message()
{
    let disk = Disk::default();
    let mut engine = open(1, &THREE, &disk, 0).unwrap();
    lead(&mut engine, &disk);
    let appends = |actions: &[Action]| -> Vec<(u64, u64)> {
        let messages = raft_messages(actions);
        let appends = messages
            .iter()
            .filter(|m| m.0.get_msg_type() == MessageType::MsgAppend);
        appends
            .map(|m| (m.0.entries.len() as u64, m.0.commit))
            .collect()
    };
    let first = settle(&mut engine, &disk, propose(1, "a"));
    assert_eq!(appends(&first), [(1, 1); 2]);
    // The next is under way before the first is committed.
    let second = settle(&mut engine, &disk, propose(2, "b"));
    assert_eq!(appends(&second), [(1, 1); 2]);
    let committed = settle(&mut engine, &disk, acknowledges(2, 2));
    assert_eq!(commands(&committed), ["a"]);
    assert_eq!(appends(&committed), [], "the next entries have it");
    let third = settle(&mut engine, &disk, propose(3, "c"));
    assert_eq!(appends(&third), [(1, 2); 2]);
    let last = settle(&mut engine, &disk, acknowledges(2, 4));
    assert_eq!(commands(&last), ["b", "c"]);
    assert_eq!(appends(&last), [(0, 4); 2], "no more entries are under way");
    let late = settle(&mut engine, &disk, acknowledges(3, 4));
    assert_eq!(appends(&late), [], "it is announced once");
}

#[test]
fn a_leader_without_a_majority_steps_down_however_much_its_host_has_to_apply() {
    // It has a log to replay, and its host takes its time.
    let disk = Disk::with(&[1; 50], 50);
    let mut config = Config::new(NodeId(1));
    config.max_apply_backlog_bytes = 1;
    let mut engine = open_with(config, &THREE, &disk, 0).unwrap();
    let step = |engine: &mut Engine, event| {
        let actions = engine.step(event);
        for number in numbers(&actions) {
            engine.step(Event::Persisted { number });
        }
        outline(&actions)
    };
    step(&mut engine, Event::Campaign);
    for kind in [
        MessageType::MsgRequestPreVoteResponse,
        MessageType::MsgRequestVoteResponse,
    ] {
        let yes = message(kind, 2, 2);
        step(&mut engine, received(yes));
    }
    assert_eq!(engine.role(), Role::Leader);
    let mut said = String::new();
    for _ in 0..3 * Config::new(NodeId(1)).election_ticks {
        said += &step(&mut engine, Event::Tick);
    }
    assert!(said.contains("became Follower in term 2"), "{said}");
}

#[test]
fn the_path_of_a_write_never_reads_the_log() {
    assert_eq!(Network::new(1).reads_of_quiet_writes(), 0);
}

#[test]
fn the_same_schedule_gives_the_same_actions() {
    for seed in 0..20 {
        let (first, second) = (run(seed, 1500), run(seed, 1500));
        assert!(!first.transcript.is_empty());
        for (n, (a, b)) in first.transcript.iter().zip(&second.transcript).enumerate() {
            assert_eq!(a, b, "seed {seed}, action {n}");
        }
        assert_eq!(first.transcript.len(), second.transcript.len());
    }
}

#[test]
fn members_agree_whatever_happens_and_make_progress_once_it_stops() {
    let mut reached = Reached::default();
    for seed in seeds::range(0..400) {
        let _printed = PrintOnPanic::new(seed, "-p esker-raft engine::tests::three");
        // Long enough for several terms; every fourth seed gets more.
        let faults = if seed % 4 == 0 { 6000 } else { 2000 };
        reached += run(seed, faults).reached();
        if !seeds::are_chosen() && seed + 1 >= LEAST_SEEDS && reached.enough() {
            break;
        }
    }
    assert!(
        seeds::are_chosen() || reached.enough(),
        "the seeds reach too little: {reached:?}"
    );
}
