//! Appends: sequence numbers, timestamps, conditions.

use s2_common::record::FencingToken;

use super::fixture::*;
use crate::command::{Append, AppendRefusal, Kind};
use crate::ids::StreamId;
use crate::keys;
use crate::settings::StreamSettings;
use crate::stream::StreamState;

const CLIENT_PREFER: u32 = 0;
const CLIENT_REQUIRE: u32 = 1;
const ARRIVAL: u32 = 2;

fn timestamping(mode: u32, uncapped: bool) -> StreamSettings {
    StreamSettings {
        timestamping_mode: Some(mode),
        timestamping_uncapped: Some(uncapped),
        ..StreamSettings::default()
    }
}

fn token(token: &str) -> FencingToken {
    token.parse().unwrap()
}

/// The timestamps that a new stream gives to one batch that arrives at 1000.
fn stamped(settings: StreamSettings, wanted: &[Option<u64>]) -> Result<Vec<u64>, AppendRefusal> {
    let mut partition = Fixture::new();
    let stream = partition.create_in(BASIN, "s", settings);
    let records = wanted.iter().map(|t| (*t, rec("x").1)).collect();
    partition.append(append(stream, 1000, records))?;
    let all = read_all(&partition.reader(), &partition.stream("s"));
    Ok(all.into_iter().map(|seen| seen.timestamp).collect())
}

#[test]
fn sequence_numbers_count_up_from_zero_without_gaps() {
    let mut partition = Fixture::new();
    let stream = partition.create("s");

    let first = partition
        .append(bodies(stream, 10, ["a", "b", "c"]))
        .unwrap();
    let second = partition.append(bodies(stream, 20, ["d"])).unwrap();

    assert_eq!(first.start, position(0, 10));
    assert_eq!(first.end, position(3, 10));
    assert_eq!(first.tail, first.end);
    assert_eq!(second.start, position(3, 20));
    assert_eq!(second.end, position(4, 20));
    let all = read_all(&partition.reader(), &partition.stream("s"));
    let seqs: Vec<_> = all.iter().map(|seen| (seen.seq, &seen.text[..])).collect();
    assert_eq!(seqs, [(0, "a"), (1, "b"), (2, "c"), (3, "d")]);
}

#[test]
fn appends_of_one_step_follow_one_another() {
    let mut partition = Fixture::new();
    let (one, two) = (partition.create("one"), partition.create("two"));

    let outcomes = partition.step(vec![
        Kind::Append(bodies(one, 10, ["a", "b"])),
        Kind::Append(bodies(two, 11, ["x"])),
        Kind::Append(bodies(one, 12, ["c"])),
    ]);

    let starts: Vec<_> = outcomes
        .into_iter()
        .map(|outcome| appended(outcome).unwrap().start)
        .collect();
    assert_eq!(starts, [position(0, 10), position(0, 11), position(2, 12)]);
    assert_eq!(partition.texts("one"), ["a", "b", "c"]);
    assert_eq!(partition.texts("two"), ["x"]);
}

#[test]
fn a_stream_can_be_created_and_written_in_one_step() {
    let mut partition = Fixture::new();
    partition.create("earlier");

    let outcomes = partition.step(vec![
        create(BASIN, "s", StreamSettings::default()),
        Kind::Append(bodies(StreamId(2), 2000, ["a"])),
    ]);

    assert_eq!(provisioned(outcomes[0].clone()).unwrap().id, StreamId(2));
    assert_eq!(partition.texts("s"), ["a"]);
}

#[test]
fn client_prefer_takes_the_clients_timestamp_and_else_the_arrival() {
    let settings = timestamping(CLIENT_PREFER, false);
    assert_eq!(
        stamped(settings.clone(), &[Some(900), Some(950), None]),
        Ok(vec![900, 950, 1000])
    );
    assert_eq!(stamped(settings.clone(), &[None, None]), Ok(vec![1000; 2]));
    // This is the default of a stream's settings.
    assert_eq!(
        stamped(StreamSettings::default(), &[Some(0), None]),
        Ok(vec![0, 1000])
    );
}

#[test]
fn client_require_refuses_a_batch_in_which_a_record_has_no_timestamp() {
    let settings = timestamping(CLIENT_REQUIRE, false);
    assert_eq!(
        stamped(settings.clone(), &[Some(900), Some(950)]),
        Ok(vec![900, 950])
    );
    for wanted in [&[None][..], &[Some(900), None], &[None, Some(900)]] {
        assert_eq!(
            stamped(settings.clone(), wanted),
            Err(AppendRefusal::TimestampMissing)
        );
    }
    // No record of such a batch is appended.
    let mut partition = Fixture::new();
    let stream = partition.create_in(BASIN, "s", settings);
    let before = partition.state("s");
    let batch = vec![timed(5, "a"), rec("b")];
    assert!(partition.append(append(stream, 2000, batch)).is_err());
    assert_eq!(partition.state("s"), before);
    assert_eq!(partition.texts("s"), [""; 0]);
}

#[test]
fn arrival_ignores_the_clients_timestamps() {
    for uncapped in [false, true] {
        assert_eq!(
            stamped(
                timestamping(ARRIVAL, uncapped),
                &[Some(900), None, Some(5000)]
            ),
            Ok(vec![1000; 3])
        );
    }
}

#[test]
fn timestamps_in_the_future_become_the_arrival_unless_uncapped() {
    for mode in [CLIENT_PREFER, CLIENT_REQUIRE] {
        assert_eq!(
            stamped(timestamping(mode, false), &[Some(1000), Some(1001)]),
            Ok(vec![1000, 1000])
        );
        assert_eq!(
            stamped(
                timestamping(mode, true),
                &[Some(1000), Some(1001), Some(90_000)]
            ),
            Ok(vec![1000, 1001, 90_000])
        );
    }
}

#[test]
fn the_largest_timestamps_are_kept_as_they_are() {
    let far = u64::MAX - 1;
    assert_eq!(
        stamped(timestamping(CLIENT_PREFER, true), &[Some(far)]),
        Ok(vec![far])
    );
}

#[test]
fn timestamps_never_decrease_within_a_batch() {
    assert_eq!(
        stamped(
            timestamping(CLIENT_PREFER, false),
            &[Some(500), Some(400), Some(600), Some(0)]
        ),
        Ok(vec![500, 500, 600, 600])
    );
}

#[test]
fn timestamps_never_decrease_from_batch_to_batch() {
    let mut partition = Fixture::new();
    let stream = partition.create("s");
    partition.append(bodies(stream, 2000, ["a"])).unwrap();
    // The clock of another leader may be behind.
    let late = partition.append(bodies(stream, 1500, ["b"])).unwrap();
    assert_eq!(late.start, position(1, 2000));
    // A client's clock may be behind, too.
    let old = append(stream, 2500, vec![timed(7, "c")]);
    assert_eq!(partition.append(old).unwrap().end, position(3, 2000));
    // The rule holds after all records are trimmed, the partition is opened again, and the settings
    // change.
    partition
        .append(append(stream, 2600, vec![trim(u64::MAX)]))
        .unwrap();
    partition.reopen();
    partition.apply(set_settings(stream, 1, timestamping(ARRIVAL, false)));
    let last = partition.append(bodies(stream, 100, ["d"])).unwrap();
    assert_eq!(last.start, position(4, 2600));
}

#[test]
fn an_uncapped_timestamp_holds_up_those_after_it() {
    let mut partition = Fixture::new();
    let stream = partition.create_in(BASIN, "s", timestamping(CLIENT_PREFER, true));
    partition
        .append(append(stream, 2000, vec![timed(9_000, "a")]))
        .unwrap();
    let next = partition.append(bodies(stream, 3000, ["b"])).unwrap();
    assert_eq!(next.start, position(1, 9_000));
}

#[test]
fn changed_timestamping_holds_from_the_next_append_on_also_in_one_step() {
    let mut partition = Fixture::new();
    let stream = partition.create("s");
    let outcomes = partition.step(vec![
        Kind::Append(append(stream, 2000, vec![timed(1500, "a")])),
        set_settings(stream, 1, timestamping(CLIENT_REQUIRE, false)),
        Kind::Append(bodies(stream, 2000, ["b"])),
        set_settings(stream, 2, timestamping(ARRIVAL, false)),
        Kind::Append(append(stream, 2000, vec![timed(1600, "c")])),
    ]);
    let appends: Vec<_> = [0, 2, 4]
        .into_iter()
        .map(|i| appended(outcomes[i].clone()).map(|a| a.start))
        .collect();
    assert_eq!(
        appends,
        [
            Ok(position(0, 1500)),
            Err(AppendRefusal::TimestampMissing),
            Ok(position(1, 2000))
        ]
    );
}

#[test]
fn a_wrong_sequence_number_is_refused_with_the_one_that_is_next() {
    let mut partition = Fixture::new();
    let stream = partition.create("s");
    let matching = |seq| Append {
        match_seq_num: Some(seq),
        ..bodies(stream, 2000, ["a", "b"])
    };
    assert_eq!(
        partition.append(matching(1)),
        Err(AppendRefusal::SeqNumMismatch(0))
    );
    assert_eq!(partition.append(matching(0)).unwrap().start.seq_num, 0);
    for wrong in [0, 1, 3, u64::MAX] {
        assert_eq!(
            partition.append(matching(wrong)),
            Err(AppendRefusal::SeqNumMismatch(2))
        );
    }
    assert_eq!(partition.append(matching(2)).unwrap().start.seq_num, 2);
    assert_eq!(partition.texts("s"), ["a", "b", "a", "b"]);
}

#[test]
fn of_two_appends_for_one_sequence_number_in_one_step_the_first_wins() {
    let mut partition = Fixture::new();
    let stream = partition.create("s");
    let matching = |body| {
        Kind::Append(Append {
            match_seq_num: Some(0),
            ..append(stream, 2000, vec![rec(body)])
        })
    };
    let outcomes = partition.step(vec![matching("first"), matching("second")]);
    assert!(appended(outcomes[0].clone()).is_ok());
    assert_eq!(
        appended(outcomes[1].clone()),
        Err(AppendRefusal::SeqNumMismatch(1))
    );
    assert_eq!(partition.texts("s"), ["first"]);
}

#[test]
fn a_wrong_fencing_token_is_refused_with_the_one_in_force() {
    let mut partition = Fixture::new();
    let stream = partition.create("s");
    let with = |token: &str| Append {
        fencing_token: Some(token.to_owned()),
        ..bodies(stream, 2000, ["x"])
    };
    let refused = |actual| Err(AppendRefusal::FencingTokenMismatch(token(actual)));

    // No token is in force, so the empty token matches.
    assert_eq!(partition.append(with("a")), refused(""));
    assert!(partition.append(with("")).is_ok());

    partition
        .append(append(stream, 2000, vec![fence("a")]))
        .unwrap();
    assert!(partition.append(with("a")).is_ok());
    assert_eq!(partition.append(with("b")), refused("a"));
    assert_eq!(partition.append(with("")), refused("a"));
    // An append without a token is not fenced.
    assert!(partition.append(bodies(stream, 2000, ["y"])).is_ok());

    // The token stays in force when the partition is opened again, and until it is cleared.
    partition.reopen();
    assert_eq!(partition.append(with("b")), refused("a"));
    partition
        .append(append(stream, 2000, vec![fence("")]))
        .unwrap();
    assert_eq!(partition.append(with("a")), refused(""));
    assert!(partition.append(with("")).is_ok());
}

#[test]
fn a_fence_counts_from_the_next_append_on() {
    let mut partition = Fixture::new();
    let stream = partition.create("s");
    let guarded = |token: &str, records| {
        Kind::Append(Append {
            fencing_token: Some(token.to_owned()),
            ..append(stream, 2000, records)
        })
    };
    let outcomes = partition.step(vec![
        // The token of the append is checked before its own commands are applied; the last command wins.
        guarded("", vec![fence("a"), rec("x"), fence("b")]),
        guarded("a", vec![rec("y")]),
        guarded("b", vec![fence("c"), rec("z")]),
    ]);
    assert!(appended(outcomes[0].clone()).is_ok());
    assert_eq!(
        appended(outcomes[1].clone()),
        Err(AppendRefusal::FencingTokenMismatch(token("b")))
    );
    assert!(appended(outcomes[2].clone()).is_ok());
    assert_eq!(partition.state("s").fencing_token, "c");
    assert_eq!(
        partition.texts("s"),
        ["fence:a", "x", "fence:b", "fence:c", "z"],
        "commands have places and are read like other records"
    );
}

#[test]
fn conditions_are_checked_in_order_and_the_first_that_fails_is_the_answer() {
    let mut partition = Fixture::new();
    let stream = partition.create_in(BASIN, "s", timestamping(CLIENT_REQUIRE, false));
    partition
        .append(append(stream, 2000, vec![(Some(1), fence("a").1)]))
        .unwrap();
    // Session 5 fails here.
    let failing = Append {
        match_seq_num: Some(99),
        session: 5,
        ..append(stream, 2000, vec![timed(1, "x")])
    };
    assert!(partition.append(failing).is_err());

    // Every condition of this append fails; then one after the other is corrected.
    let mut attempt = Append {
        session: 5,
        fencing_token: Some("b".to_owned()),
        match_seq_num: Some(99),
        ..bodies(StreamId(77), 2000, ["x"])
    };
    assert_eq!(
        partition.append(attempt.clone()),
        Err(AppendRefusal::StreamGone)
    );
    attempt.stream = stream.0;
    assert_eq!(
        partition.append(attempt.clone()),
        Err(AppendRefusal::SessionFailed)
    );
    attempt.session = 0;
    assert_eq!(
        partition.append(attempt.clone()),
        Err(AppendRefusal::FencingTokenMismatch(token("a")))
    );
    attempt.fencing_token = Some("a".to_owned());
    assert_eq!(
        partition.append(attempt.clone()),
        Err(AppendRefusal::SeqNumMismatch(1))
    );
    attempt.match_seq_num = Some(1);
    assert_eq!(
        partition.append(attempt.clone()),
        Err(AppendRefusal::TimestampMissing)
    );
    attempt.timestamps = vec![1 + 1];
    assert_eq!(partition.append(attempt).unwrap().start, position(1, 1));
}

#[test]
fn a_refused_append_leaves_nothing_behind() {
    let mut partition = Fixture::new();
    let stream = partition.create("s");
    partition.append(bodies(stream, 2000, ["a"])).unwrap();
    let before = partition.content(&[BASIN]).streams;
    for _ in 0..2 {
        let refused = Append {
            match_seq_num: Some(0),
            ..append(stream, 9000, vec![fence("t"), trim(1), rec("x")])
        };
        assert!(partition.append(refused).is_err());
        assert_eq!(partition.content(&[BASIN]).streams, before);
        partition.reopen();
    }
}

#[test]
fn an_append_to_a_stream_that_never_was_is_refused() {
    let mut partition = Fixture::new();
    assert_eq!(
        partition.append(bodies(StreamId(1), 2000, ["a"])),
        Err(AppendRefusal::StreamGone)
    );
    // The refused append does not take the id.
    assert_eq!(partition.create("s"), StreamId(1));
    assert_eq!(partition.texts("s"), [""; 0]);
}

#[test]
fn sequence_numbers_that_run_out_are_refused_and_never_wrap() {
    let mut partition = Fixture::new();
    let stream = partition.create("s");
    // No test can append that many records, so the state is written directly.
    let state = StreamState {
        tail_seq: u64::MAX - 3,
        trim_point: u64::MAX - 3,
        ..partition.state("s")
    };
    let mut batch = partition.partition_db().batch();
    batch.put(
        keys::stream_state(stream),
        prost::Message::encode_to_vec(&state),
    );
    batch.write().unwrap();
    partition.reopen();

    assert_eq!(
        partition.append(bodies(stream, 2000, ["a", "b", "c", "d"])),
        Err(AppendRefusal::SeqNumsExhausted)
    );
    let last = partition.append(append(
        stream,
        2000,
        vec![rec("a"), rec("b"), trim(u64::MAX - 2)],
    ));
    assert_eq!(last.unwrap().tail.seq_num, u64::MAX);
    assert_eq!(
        partition.append(bodies(stream, 2000, ["e"])),
        Err(AppendRefusal::SeqNumsExhausted)
    );
    assert_eq!(partition.texts("s").len(), 2);
    partition.reopen();
    assert_eq!(partition.texts("s").len(), 2);
}
