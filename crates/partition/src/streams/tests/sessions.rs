//! Append sessions: after the first refusal, no later append of the session is applied.

use esker_raft::{Committed, Lsn, StateMachine as _, Term};

use super::fixture::*;
use crate::command::{Append, AppendRefusal, Kind};
use crate::ids::StreamId;
use crate::keys;
use crate::settings::StreamSettings;
use crate::streams::StreamOptions;
use crate::streams::failed::REMEMBER_FAILED;

fn of_session(session: u64, stream: StreamId, body: &'static str) -> Append {
    Append {
        session,
        ..bodies(stream, 2000, [body])
    }
}

fn refused(session: u64, stream: StreamId) -> Append {
    Append {
        match_seq_num: Some(99),
        ..of_session(session, stream, "refused")
    }
}

#[test]
fn after_a_refusal_the_rest_of_the_session_is_refused_and_others_are_not() {
    let mut partition = Fixture::new();
    let stream = partition.create("s");
    let other = partition.create("other");
    partition.append(of_session(1, stream, "a")).unwrap();

    assert_eq!(
        partition.append(refused(1, stream)),
        Err(AppendRefusal::SeqNumMismatch(1))
    );

    for _ in 0..3 {
        assert_eq!(
            partition.append(of_session(1, stream, "never")),
            Err(AppendRefusal::SessionFailed)
        );
    }
    partition.append(of_session(2, stream, "b")).unwrap();
    partition.append(of_session(0, stream, "c")).unwrap();
    partition.append(of_session(1, other, "d")).unwrap();
    assert_eq!(partition.texts("s"), ["a", "b", "c"]);
    assert_eq!(partition.texts("other"), ["d"]);
}

#[test]
fn a_refusal_counts_at_once_within_a_step() {
    let mut partition = Fixture::new();
    let stream = partition.create("s");
    let outcomes = partition.step(vec![
        Kind::Append(of_session(1, stream, "a")),
        Kind::Append(refused(1, stream)),
        Kind::Append(of_session(1, stream, "never")),
        Kind::Append(of_session(2, stream, "b")),
    ]);
    assert_eq!(
        appended(outcomes[2].clone()),
        Err(AppendRefusal::SessionFailed)
    );
    assert_eq!(partition.texts("s"), ["a", "b"]);
}

#[test]
fn a_refusal_is_remembered_when_the_partition_is_opened_again() {
    for flushed in [false, true] {
        let mut partition = Fixture::new();
        let stream = partition.create("s");
        partition.append(of_session(1, stream, "a")).unwrap();
        partition.flush();
        assert!(partition.append(refused(1, stream)).is_err());
        if flushed {
            partition.reopen();
        } else {
            partition.stop_and_open();
            partition.replay(1);
        }
        assert_eq!(
            partition.append(of_session(1, stream, "never")),
            Err(AppendRefusal::SessionFailed)
        );
        partition.append(of_session(2, stream, "b")).unwrap();
        assert_eq!(partition.texts("s"), ["a", "b"]);
    }
}

#[test]
fn every_kind_of_refusal_fails_the_session() {
    let mut partition = Fixture::new();
    let stream = partition.create_in(
        BASIN,
        "s",
        StreamSettings {
            timestamping_mode: Some(1),
            ..StreamSettings::default()
        },
    );
    let fine = |session| Append {
        session,
        ..append(stream, 2000, vec![timed(1, "x")])
    };
    let fenced = Append {
        fencing_token: Some("t".to_owned()),
        ..fine(1)
    };
    let misplaced = Append {
        match_seq_num: Some(9),
        ..fine(2)
    };
    let unstamped = of_session(3, stream, "x");
    for (session, refused) in [(1, fenced), (2, misplaced), (3, unstamped)] {
        assert!(partition.append(refused).is_err());
        assert_eq!(
            partition.append(fine(session)),
            Err(AppendRefusal::SessionFailed)
        );
    }
    assert!(partition.append(fine(4)).is_ok());
}

#[test]
fn a_session_does_not_survive_its_stream() {
    let mut partition = Fixture::new();
    let stream = partition.create("s");
    assert!(partition.append(refused(1, stream)).is_err());
    assert!(partition.delete("s"));
    let again = partition.create("s");
    assert_eq!(
        partition.append(of_session(1, stream, "x")),
        Err(AppendRefusal::StreamGone)
    );
    // The new stream has no such refusal.
    partition.append(of_session(1, again, "y")).unwrap();
}

#[test]
fn a_refusal_is_forgotten_after_the_window_also_on_disk() {
    let mut partition = Fixture::new();
    let stream = partition.create("s");
    assert!(partition.append(refused(1, stream)).is_err());
    let refused_at = partition.applied();
    // As far behind the refusal as any append of the session can be, and much further.
    partition.idle(REMEMBER_FAILED - 2);
    partition.reopen();
    assert_eq!(
        partition.append(of_session(1, stream, "never")),
        Err(AppendRefusal::SessionFailed)
    );
    assert_eq!(partition.applied(), refused_at + REMEMBER_FAILED - 1);
    assert_eq!(partition.refusals().len(), 1, "the second is no news");

    partition.append(of_session(2, stream, "a")).unwrap();

    assert_eq!(partition.refusals(), []);
    for _ in 0..2 {
        partition.append(of_session(1, stream, "b")).unwrap();
        partition.reopen();
        assert_eq!(partition.refusals(), []);
    }
    assert_eq!(partition.texts("s"), ["a", "b", "b"]);
}

#[test]
fn many_refusals_do_not_make_an_append_larger() {
    const WINDOW: u64 = 500;
    let mut partition = Fixture::remembering(StreamOptions::default(), WINDOW);
    let stream = partition.create("s");
    let state_bytes = |partition: &Fixture| {
        let (from, to) = (
            keys::stream_state(stream),
            keys::stream_state(StreamId(stream.0 + 1)),
        );
        let part = partition.partition_db();
        let mut it = part.iterate(&from, &to, false);
        it.seek_to_first();
        it.value().unwrap().len()
    };
    partition.append(of_session(1, stream, "a")).unwrap();
    let before = state_bytes(&partition);

    for session in 2..3 * WINDOW {
        assert!(partition.append(refused(session, stream)).is_err());
        let refusals = (session - 1).min(WINDOW) as usize;
        assert_eq!(partition.refusal_keys(), refusals);
    }

    partition.append(of_session(1, stream, "b")).unwrap();
    assert_eq!(state_bytes(&partition), before);
    assert_eq!(partition.refusals().len() as u64, WINDOW - 1);
    partition.reopen();
    let sessions: Vec<u64> = partition.refusals().iter().map(|r| r.session).collect();
    assert!(sessions.into_iter().eq(2 * WINDOW + 1..3 * WINDOW));
}

#[test]
fn a_step_longer_than_the_window_leaves_what_single_steps_leave() {
    const WINDOW: u64 = 4;
    for size in 1..=12 {
        let mut partition = Fixture::remembering(StreamOptions::default(), WINDOW);
        let stream = partition.create("s");
        // Session 1 fails at LSNs 2 and 6, is refused in between, and is then forgotten.
        let mut commands = vec![Kind::Append(refused(1, stream))];
        commands.extend((2..5).map(|session| Kind::Append(of_session(session, stream, "a"))));
        commands.push(Kind::Append(refused(1, stream)));
        commands.push(Kind::Append(of_session(1, stream, "never")));
        commands.push(Kind::Append(refused(2, stream)));
        commands.extend((3..5).map(|session| Kind::Append(of_session(session, stream, "b"))));
        commands.push(Kind::Append(of_session(1, stream, "c")));
        let mut outcomes = Vec::new();
        for step in commands.chunks(size) {
            outcomes.extend(partition.step(step.to_vec()));
            partition.refusals();
        }
        assert_eq!(
            appended(outcomes[4].clone()),
            Err(AppendRefusal::SeqNumMismatch(3))
        );
        assert_eq!(
            appended(outcomes[5].clone()),
            Err(AppendRefusal::SessionFailed)
        );
        assert_eq!(partition.texts("s"), ["a", "a", "a", "b", "b", "c"]);
        let refusals = partition.refusals();
        let refusals: Vec<_> = refusals.iter().map(|r| (r.lsn, r.session)).collect();
        assert_eq!(refusals, [(8, 2)], "steps of {size}");
    }
}

#[test]
fn refusals_of_a_stream_that_is_gone_age_out() {
    const WINDOW: u64 = 10;
    let mut partition = Fixture::remembering(eager(), WINDOW);
    let stream = partition.create("s");
    assert!(partition.append(refused(1, stream)).is_err());
    assert!(partition.delete("s"));
    assert_eq!(
        partition.append(refused(2, stream)),
        Err(AppendRefusal::StreamGone)
    );
    partition.machine().maintain();
    assert_eq!(partition.refusals().len(), 1, "and none for a stream gone");
    partition.idle(WINDOW);
    assert_eq!(partition.refusals(), []);
    partition.reopen();
    assert_eq!(partition.refusals(), []);
}

#[test]
fn a_refusal_in_a_step_that_fails_is_not_remembered() {
    let mut partition = Fixture::new();
    let stream = partition.create("s");
    let step = [
        bytes_of(Kind::Append(refused(1, stream))),
        bytes::Bytes::from_static(b"\x01nonsense"),
    ];
    assert!(partition.try_bytes(step.to_vec()).is_err());
    assert_eq!(partition.refusals(), []);
    partition.append(of_session(1, stream, "a")).unwrap();
}

/// An entry of this term.
fn entry(lsn: u64, term: u64, append: Append) -> Committed {
    Committed {
        lsn: Lsn(lsn),
        term: Term(term),
        command: Some(bytes_of(Kind::Append(append))),
        membership: None,
        checksum: 0,
    }
}

#[test]
fn what_was_superseded_by_another_leader_leaves_no_hole_in_a_session() {
    for step in 1..=6 {
        let mut partition = Fixture::new();
        let stream = partition.create("s");
        let next = partition.applied() + 1;
        let of_term = |session, term, body| Append {
            session_term: term,
            ..of_session(session, stream, body)
        };
        // The session's second append, proposed in term 1, is not among them: another leader has put an entry
        // of its own there. Its third one enters the log when the first leader leads again.
        let entries = [
            entry(next, 1, of_term(1, 1, "first")),
            entry(next + 1, 2, of_term(2, 2, "another leader's")),
            entry(next + 2, 3, of_term(1, 1, "third")),
            entry(next + 3, 3, of_term(1, 3, "fourth")),
            // All of this session's appends were answered before its second one was proposed.
            entry(next + 4, 3, of_term(2, 3, "goes on")),
            // Earlier builds wrote no terms.
            entry(next + 5, 3, of_session(3, stream, "earlier")),
        ];
        let mut outcomes = Vec::new();
        for entries in entries.chunks(step) {
            partition.machine().apply(entries, &mut outcomes).unwrap();
        }
        let refusals: Vec<_> = outcomes.into_iter().map(appended).collect();
        assert_eq!(refusals[2], Err(AppendRefusal::LeaderChanged));
        assert_eq!(refusals[3], Err(AppendRefusal::SessionFailed));
        let texts = ["first", "another leader's", "goes on", "earlier"];
        assert_eq!(partition.texts("s"), texts);
        partition.reopen();
        let late = [entry(next + 6, 3, of_term(1, 3, "never"))];
        let mut outcomes = Vec::new();
        partition.machine().apply(&late, &mut outcomes).unwrap();
        let refused = appended(outcomes.remove(0));
        assert_eq!(refused, Err(AppendRefusal::SessionFailed));
    }
}

#[test]
fn an_append_with_a_term_has_a_version_that_earlier_builds_refuse_and_others_have_not() {
    let append = of_session(1, StreamId(1), "a");
    let bytes = Kind::Append(append.clone()).into_bytes();
    assert_eq!(bytes[0], 1);
    let with_term = Append {
        session_term: 7,
        ..append
    };
    let bytes = Kind::Append(with_term.clone()).into_bytes();
    assert_eq!(bytes[0], 3);
    let read = Kind::from_bytes(bytes.into()).unwrap();
    assert_eq!(read, Kind::Append(with_term));
}
