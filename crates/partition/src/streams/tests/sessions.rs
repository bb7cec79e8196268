//! Append sessions: after the first refusal, nothing more of the session lands.

use super::fixture::*;
use crate::command::{Append, AppendRefusal, Kind};
use crate::ids::StreamId;
use crate::settings::StreamSettings;

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
    // The new stream knows nothing of it.
    partition.append(of_session(1, again, "y")).unwrap();
}

#[test]
fn refusals_are_not_remembered_for_ever() {
    let mut partition = Fixture::new();
    partition.create("s");
    let mut state = partition.state("s");
    for lsn in 0..10 {
        state.fail_session(100 + lsn, lsn);
    }
    assert!((100..110).all(|session| state.has_failed(session)));
    // Far more entries of the log than a leader has proposals pending.
    state.fail_session(200, 5 + (1 << 16));
    let kept: Vec<u64> = state.failed_sessions.iter().map(|f| f.session).collect();
    assert_eq!(kept, [106, 107, 108, 109, 200]);
}
