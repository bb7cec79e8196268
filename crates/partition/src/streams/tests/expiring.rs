//! What is due by time, and the commands that carry it out.

use esker_raft::StateMachine as _;
use s2_common::record::SeqNum;

use super::fixture::*;
use crate::command::{Append, AppendRefusal, DeleteIfEmpty, Expire, Kind, Outcome, SettingsSet};
use crate::ids::{BasinId, StreamId};
use crate::reader::{Due, DueScan};
use crate::settings::StreamSettings;

fn delete_when_empty_for_secs(age: u64) -> StreamSettings {
    StreamSettings {
        // Nothing expires, so that only the deletion is due.
        retention_age_secs: Some(0),
        delete_on_empty_secs: Some(age),
        ..StreamSettings::default()
    }
}

/// Everything that is due, in pages of one, two and many streams: the result must be the same.
fn due(partition: &Fixture, now_ms: u64) -> Vec<Due> {
    let reader = partition.reader();
    let [one, two, many] = [1, 2, 100].map(|count| {
        let mut all = Vec::new();
        let mut after = StreamId(0);
        loop {
            let scan = reader.due(after, count, now_ms).unwrap();
            all.extend(scan.due.into_iter().map(|found| found.due));
            match scan.next {
                Some(next) => {
                    assert!(next > after, "a page moves on");
                    after = next;
                }
                None => return all,
            }
        }
    });
    assert_eq!(one, two);
    assert_eq!(one, many);
    one
}

fn expiry(stream: StreamId, up_to: SeqNum) -> Due {
    Due::Expire { stream, up_to }
}

fn deletion(stream: StreamId, since_ms: u64) -> Due {
    Due::DeleteIfEmpty { stream, since_ms }
}

#[test]
fn records_are_due_when_they_are_older_than_the_retention() {
    let mut partition = Fixture::new();
    let stream = partition.create_in(BASIN, "s", keep_for_secs(10));
    let forever = partition.create_in(BASIN, "forever", keep_for_secs(0));
    for at_ms in [20_000, 21_000, 22_000] {
        for stream in [stream, forever] {
            partition.append(bodies(stream, at_ms, ["a", "b"])).unwrap();
        }
    }
    for _ in 0..2 {
        assert_eq!(due(&partition, 0), []);
        // A record is kept while its age is at most the retention.
        assert_eq!(due(&partition, 30_000), []);
        assert_eq!(due(&partition, 30_001), [expiry(stream, 2)]);
        assert_eq!(due(&partition, 31_000), [expiry(stream, 2)]);
        assert_eq!(due(&partition, 31_001), [expiry(stream, 4)]);
        assert_eq!(due(&partition, 32_001), [expiry(stream, 6)]);
        assert_eq!(due(&partition, u64::MAX), [expiry(stream, 6)]);
        partition.reopen();
    }
}

#[test]
fn retention_goes_by_the_arrival_and_not_by_what_clients_say() {
    let mut partition = Fixture::new();
    let settings = StreamSettings {
        timestamping_uncapped: Some(true),
        ..keep_for_secs(10)
    };
    let stream = partition.create_in(BASIN, "s", settings);
    // A timestamp from long ago, one from the future, and a clock that goes back.
    for (timestamp, at_ms) in [(1, 20_000), (99_000, 21_000), (5, 20_500)] {
        let batch = vec![(Some(timestamp), rec("x").1); 2];
        partition.append(append(stream, at_ms, batch)).unwrap();
    }
    for (now_ms, expected) in [
        (30_000, vec![]),
        (30_001, vec![expiry(stream, 2)]),
        (31_000, vec![expiry(stream, 2)]),
        (31_001, vec![expiry(stream, 6)]),
    ] {
        assert_eq!(due(&partition, now_ms), expected, "at {now_ms}");
    }
}

#[test]
fn a_batch_expires_whole_and_one_that_is_half_trimmed_too() {
    let mut partition = Fixture::new();
    let stream = partition.create_in(BASIN, "s", keep_for_secs(10));
    for at_ms in [20_000, 21_000, 22_000] {
        partition
            .append(bodies(stream, at_ms, ["a", "b", "c"]))
            .unwrap();
    }
    partition.apply(expire(stream, 4, 22_000));
    assert_eq!(due(&partition, 31_000), [], "the first is trimmed already");
    assert_eq!(due(&partition, 31_001), [expiry(stream, 6)]);
    partition.apply(expire(stream, 8, 22_000));
    assert_eq!(due(&partition, 32_000), []);
    assert_eq!(due(&partition, 32_001), [expiry(stream, 9)]);
}

#[test]
fn among_many_batches_the_first_that_stays_is_found() {
    let mut partition = Fixture::with(eager());
    let stream = partition.create_in(BASIN, "s", keep_for_secs(10));
    let arrival = |batch: u64| 20_000 + batch / 3 * 100;
    for batch in 0..100 {
        let records = (0..=batch % 4).map(|_| rec("x")).collect();
        partition
            .append(append(stream, arrival(batch), records))
            .unwrap();
    }
    let first_of = |batch: u64| (0..batch).map(|b| b % 4 + 1).sum::<u64>();
    for trimmed in [0, 1, 57, 124, 249] {
        partition.apply(expire(stream, trimmed, 20_000));
        // The same once the batches below are gone.
        partition.machine().maintain();
        for now_ms in (29_900..33_500).step_by(50) {
            let stays = (0..100).find(|batch| arrival(*batch) + 10_000 >= now_ms);
            let up_to = first_of(stays.unwrap_or(100));
            let expected = if up_to > trimmed {
                vec![expiry(stream, up_to)]
            } else {
                vec![]
            };
            assert_eq!(
                due(&partition, now_ms),
                expected,
                "at {now_ms}, trimmed to {trimmed}"
            );
        }
    }
}

#[test]
fn an_expiry_trims_and_never_goes_back_or_past_the_tail() {
    let mut partition = Fixture::new();
    let stream = partition.create("s");
    partition
        .append(bodies(stream, 2000, ["a", "b", "c"]))
        .unwrap();
    for (up_to, head) in [(0, 0), (2, 2), (1, 2), (2, 2), (9, 3)] {
        assert_eq!(
            partition.apply(expire(stream, up_to, 5000)),
            Outcome::Expired
        );
        assert_eq!(partition.state("s").trim_point, head);
    }
    // Later appends are not affected.
    partition.append(bodies(stream, 6000, ["d"])).unwrap();
    assert_eq!(partition.texts("s"), ["d"]);
    // No other stream is affected, and a stream that does not exist is no error.
    partition.apply(expire(StreamId(77), 5, 7000));
}

#[test]
fn an_empty_stream_is_due_once_nothing_happened_to_it_for_long_enough() {
    let mut partition = Fixture::new();
    let stream = partition.create_in(BASIN, "s", delete_when_empty_for_secs(10));
    let kept = partition.create_in(BASIN, "kept", StreamSettings::default());
    for _ in 0..2 {
        assert_eq!(due(&partition, CREATED_MS + 9_999), []);
        assert_eq!(
            due(&partition, CREATED_MS + 10_000),
            [deletion(stream, CREATED_MS)]
        );
        partition.reopen();
    }
    // While it has records, it is not due, however old they are.
    partition.append(bodies(stream, 20_000, ["a"])).unwrap();
    partition.append(bodies(kept, 20_000, ["a"])).unwrap();
    assert_eq!(due(&partition, 90_000), []);
    // Once all records are trimmed, the time begins again.
    partition.apply(expire(stream, 1, 50_000));
    assert_eq!(due(&partition, 59_999), []);
    assert_eq!(due(&partition, 60_000), [deletion(stream, 50_000)]);
}

#[test]
fn what_is_due_is_found_page_by_page_and_nothing_else_is() {
    let mut partition = Fixture::new();
    let mut expected = Vec::new();
    for i in 0..10 {
        let name = format!("s{i}");
        let (settings, records) = match i % 4 {
            0 => (keep_for_secs(5), true),
            1 => (StreamSettings::default(), false),
            2 => (delete_when_empty_for_secs(5), false),
            _ => (keep_for_secs(0), true),
        };
        let stream = partition.create_in(BasinId(1 + i % 2), &name, settings);
        if records {
            partition.append(bodies(stream, 2000, ["a"])).unwrap();
        }
        match i % 4 {
            0 => expected.push(expiry(stream, 1)),
            2 => expected.push(deletion(stream, CREATED_MS)),
            _ => {}
        }
    }
    partition.delete("s2");
    expected.retain(|due| *due != deletion(StreamId(3), CREATED_MS));
    assert_eq!(due(&partition, 100_000), expected);
    assert_eq!(
        partition.reader().due(StreamId(10), 5, 100_000).unwrap(),
        DueScan::default()
    );
    assert_eq!(
        partition
            .reader()
            .due(StreamId(u64::MAX), 5, 100_000)
            .unwrap(),
        DueScan::default()
    );
}

#[test]
fn carrying_out_what_is_due_leaves_nothing_due() {
    let mut partition = Fixture::new();
    let settings = StreamSettings {
        retention_age_secs: Some(10),
        delete_on_empty_secs: Some(10),
        ..StreamSettings::default()
    };
    let stream = partition.create_in(BASIN, "s", settings);
    partition.append(bodies(stream, 2_000, ["a"])).unwrap();

    assert_eq!(due(&partition, 30_000), [expiry(stream, 1)]);
    partition.apply(expire(stream, 1, 30_000));
    assert_eq!(due(&partition, 30_000), []);
    assert_eq!(due(&partition, 40_000), [deletion(stream, 30_000)]);
    assert_eq!(
        partition.apply(delete_if_empty(stream, 30_000)),
        Outcome::StreamDeleted(true)
    );
    assert_eq!(due(&partition, u64::MAX), []);
    assert!(partition.reader().stream(BASIN, "s").unwrap().is_none());
    assert_eq!(
        partition.append(bodies(stream, 50_000, ["b"])),
        Err(AppendRefusal::StreamGone)
    );
}

#[test]
fn a_deletion_on_empty_is_stale_once_anything_happened() {
    let deleted = |what_happened: &dyn Fn(&mut Fixture, StreamId)| {
        let mut partition = Fixture::new();
        let settings = delete_when_empty_for_secs(1);
        let stream = partition.create_in(BASIN, "s", settings.clone());
        let found = due(&partition, 5_000);
        assert_eq!(found, [deletion(stream, CREATED_MS)]);
        what_happened(&mut partition, stream);
        let outcome = partition.apply(delete_if_empty(stream, CREATED_MS));
        partition.reopen();
        let there = partition.reader().stream(BASIN, "s").unwrap().is_some();
        (outcome, there)
    };
    let gone = (Outcome::StreamDeleted(true), false);
    let kept = (Outcome::StreamDeleted(false), true);

    assert_eq!(deleted(&|_, _| {}), gone);
    // An append.
    assert_eq!(
        deleted(&|partition, stream| {
            partition.append(bodies(stream, 5_000, ["a"])).unwrap();
        }),
        kept
    );
    // An append and a trim: the stream is empty again, but not for long enough.
    assert_eq!(
        deleted(&|partition, stream| {
            partition
                .append(append(stream, 5_000, vec![rec("a"), trim(2)]))
                .unwrap();
        }),
        kept
    );
    // An append and an expiry.
    assert_eq!(
        deleted(&|partition, stream| {
            partition.append(append(stream, 0, vec![rec("a")])).unwrap();
            partition.apply(expire(stream, 1, 5_000));
        }),
        kept
    );
    // Other settings.
    assert_eq!(
        deleted(&|partition, _| {
            partition.apply(ensure(BASIN, "s", keep_for_secs(0), 5_000));
        }),
        kept
    );
    // Another stream of the name, even one that was created at the same time.
    assert_eq!(
        deleted(&|partition, _| {
            partition.delete("s");
            partition.create_in(BASIN, "s", delete_when_empty_for_secs(1));
        }),
        kept
    );
    // A read, an append that was refused, and a trim of nothing do not count as activity.
    assert_eq!(
        deleted(&|partition, stream| {
            partition.texts("s");
            let refused = Append {
                match_seq_num: Some(5),
                ..bodies(stream, 5_000, ["a"])
            };
            assert!(partition.append(refused).is_err());
            partition.apply(expire(stream, 5, 5_000));
        }),
        gone
    );
}

#[test]
fn a_stale_expiry_or_deletion_never_hits_a_recreated_stream() {
    let mut partition = Fixture::new();
    let old = partition.create("s");
    partition.append(bodies(old, 2_000, ["a", "b"])).unwrap();
    let outcomes = partition.step(vec![
        delete(BASIN, "s"),
        create(BASIN, "s", StreamSettings::default()),
        Kind::Append(bodies(StreamId(2), 3_000, ["new"])),
        expire(old, 2, 4_000),
        delete_if_empty(old, 2_000),
    ]);
    assert_eq!(outcomes[4], Outcome::StreamDeleted(false));
    assert_eq!(partition.texts("s"), ["new"]);
    assert_eq!(partition.stream("s").id, StreamId(2));
}

/// What is due by the settings of a moment ago, as a leader proposes it.
fn proposed(partition: &Fixture, now_ms: u64) -> Kind {
    let found = partition.reader().due(StreamId(0), 1, now_ms).unwrap().due;
    let if_settings_version = Some(found[0].settings_version);
    match found[0].due {
        Due::Expire { stream, up_to } => Kind::Expire(Expire {
            stream: stream.0,
            up_to,
            at_ms: now_ms,
            if_settings_version,
        }),
        Due::DeleteIfEmpty { stream, since_ms } => Kind::DeleteIfEmpty(DeleteIfEmpty {
            stream: stream.0,
            since_ms,
            if_settings_version,
        }),
    }
}

#[test]
fn what_is_due_by_settings_that_are_changed_meanwhile_does_not_happen() {
    let mut partition = Fixture::new();
    let stream = partition.create_in(BASIN, "s", keep_for_secs(10));
    partition
        .append(bodies(stream, 20_000, ["a", "b"]))
        .unwrap();
    let late = proposed(&partition, 40_000);
    let forever = partition.apply(set_settings(stream, 1, keep_for_secs(0)));
    assert_eq!(settings_set(&forever), SettingsSet::Done);
    partition.apply(late);
    assert_eq!(partition.stream("s").view().state.head(), 0);
    partition.reopen();
    assert_eq!(partition.stream("s").view().state.head(), 0);

    // By the present settings it does, and so does what earlier builds proposed.
    let short = partition.apply(set_settings(stream, 2, keep_for_secs(5)));
    assert_eq!(settings_set(&short), SettingsSet::Done);
    partition.apply(expire(stream, 1, 40_000));
    assert_eq!(partition.stream("s").view().state.head(), 1);
    let due = proposed(&partition, 40_000);
    partition.apply(due);
    assert_eq!(partition.stream("s").view().state.head(), 2);
}

#[test]
fn an_empty_stream_stays_whose_deletion_was_switched_off_by_a_leader_with_an_earlier_clock() {
    let mut partition = Fixture::new();
    partition.apply(ensure(BASIN, "s", delete_when_empty_for_secs(10), 90_000));
    let stream = partition.stream("s").id;
    let late = proposed(&partition, 200_000);
    // The time of this change is that of a clock which is behind, so that the stream was not active since.
    let kept = partition.apply(set_settings(stream, 1, keep_for_secs(0)));
    assert_eq!(settings_set(&kept), SettingsSet::Done);
    assert_eq!(partition.apply(late), Outcome::StreamDeleted(false));

    let again = partition.apply(set_settings(stream, 2, delete_when_empty_for_secs(10)));
    assert_eq!(settings_set(&again), SettingsSet::Done);
    let due = proposed(&partition, 200_000);
    assert_eq!(partition.apply(due), Outcome::StreamDeleted(true));
}
