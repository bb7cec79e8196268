//! Trim commands: what they trim. Readers see the effect at once.

use super::fixture::*;
use crate::command::{Append, AppendRefusal, Kind};
use crate::reader::ScanEnd;

#[test]
fn a_trim_reaches_at_most_just_behind_its_own_record() {
    // Three records, then a trim at 3: the requested trim points, and those in force.
    for (requested, effective) in [(0, 0), (1, 1), (3, 3), (4, 4), (5, 4), (u64::MAX, 4)] {
        let mut partition = Fixture::new();
        let stream = partition.create("s");
        partition
            .append(bodies(stream, 2000, ["a", "b", "c"]))
            .unwrap();
        partition
            .append(append(stream, 2000, vec![trim(requested)]))
            .unwrap();
        assert_eq!(
            partition.state("s").trim_point,
            effective,
            "a trim to {requested}"
        );
        let all = [
            "a".to_owned(),
            "b".to_owned(),
            "c".to_owned(),
            format!("trim:{requested}"),
        ];
        assert_eq!(partition.texts("s"), all[effective as usize..]);
    }
}

#[test]
fn a_trim_knows_its_own_place_in_the_batch() {
    let mut partition = Fixture::new();
    let stream = partition.create("s");
    let batch = vec![rec("a"), trim(u64::MAX), rec("b"), trim(1), rec("c")];
    partition.append(append(stream, 2000, batch)).unwrap();
    assert_eq!(partition.state("s").trim_point, 2);
    assert_eq!(partition.texts("s"), ["b", "trim:1", "c"]);
}

#[test]
fn a_trim_point_never_goes_back() {
    let mut partition = Fixture::new();
    let stream = partition.create("s");
    partition
        .append(bodies(stream, 2000, ["a", "b", "c"]))
        .unwrap();
    for (requested, effective) in [(2, 2), (1, 2), (0, 2), (3, 3), (2, 3)] {
        partition
            .append(append(stream, 2000, vec![trim(requested)]))
            .unwrap();
        assert_eq!(partition.state("s").trim_point, effective);
    }
    partition.reopen();
    assert_eq!(partition.state("s").trim_point, 3);
    partition
        .append(append(stream, 2000, vec![trim(1)]))
        .unwrap();
    assert_eq!(partition.state("s").trim_point, 3);
}

#[test]
fn a_snapshot_replaces_all_before_it_in_one_atomic_batch() {
    let mut partition = Fixture::new();
    let stream = partition.create("s");
    partition
        .append(bodies(stream, 2000, ["a", "b", "c"]))
        .unwrap();
    let snapshot = |cursor| Append {
        match_seq_num: Some(cursor),
        ..append(stream, 2000, vec![trim(cursor + 1), rec("snapshot")])
    };

    // Another append came first: nothing changes, not even by the trim.
    let early = partition.append(snapshot(2));
    assert_eq!(early, Err(AppendRefusal::SeqNumMismatch(3)));
    assert_eq!(partition.texts("s"), ["a", "b", "c"]);

    let at = partition.append(snapshot(3)).unwrap();
    assert_eq!(at.start.seq_num, 3);
    for _ in 0..2 {
        assert_eq!(partition.texts("s"), ["snapshot"]);
        assert_eq!(partition.state("s").head(), 4);
        partition.reopen();
    }
    partition.append(bodies(stream, 2000, ["d"])).unwrap();
    assert_eq!(partition.texts("s"), ["snapshot", "d"]);
}

#[test]
fn readers_see_a_trim_at_once_also_within_a_batch() {
    for follow in [false, true] {
        let mut partition = Fixture::new();
        let stream = partition.create("s");
        let handle = partition.stream("s");
        let follower = follow.then(|| handle.follow());
        partition
            .append(bodies(stream, 2000, ["a", "b", "c", "d", "e"]))
            .unwrap();
        let reader = partition.reader();
        assert_eq!(seen(&scan(&reader, &handle, 0)).len(), 5);
        assert_eq!(handle.has_recent(0), follow);

        partition
            .append(append(stream, 2000, vec![trim(3)]))
            .unwrap();

        for from in 0..=3 {
            let scan = scan(&reader, &handle, from);
            assert_eq!(
                seen(&scan).iter().map(|s| s.seq).collect::<Vec<_>>(),
                [3, 4, 5],
                "a read that starts below the trim point starts at the head"
            );
            assert_eq!(scan.next, 6);
        }
        assert_eq!(seen(&scan(&reader, &handle, 4)).len(), 2);
        drop(follower);
    }
}

#[test]
fn a_trim_of_one_step_holds_for_the_appends_around_it() {
    let mut partition = Fixture::new();
    let stream = partition.create("s");
    partition.step(vec![
        Kind::Append(bodies(stream, 2000, ["a", "b"])),
        Kind::Append(append(stream, 2000, vec![trim(1)])),
        Kind::Append(bodies(stream, 2000, ["c"])),
    ]);
    assert_eq!(partition.texts("s"), ["b", "trim:1", "c"]);
}

#[test]
fn a_stream_trimmed_whole_is_empty_and_keeps_its_tail() {
    let mut partition = Fixture::new();
    let stream = partition.create("s");
    partition.append(bodies(stream, 2000, ["a", "b"])).unwrap();
    partition
        .append(append(stream, 2100, vec![trim(u64::MAX)]))
        .unwrap();
    for _ in 0..2 {
        let handle = partition.stream("s");
        assert!(handle.view().state.is_empty());
        assert_eq!(handle.tail(), position(3, 2100));
        for from in 0..=3 {
            let scan = scan(&partition.reader(), &handle, from);
            assert_eq!(seen(&scan), []);
            assert_eq!(scan.end, ScanEnd::Tail(position(3, 2100)));
            assert_eq!(scan.next, 3);
        }
        drop(handle);
        partition.reopen();
    }
    let next = partition.append(bodies(stream, 2200, ["c"])).unwrap();
    assert_eq!(next.start, position(3, 2200));
    assert_eq!(partition.texts("s"), ["c"]);
}
