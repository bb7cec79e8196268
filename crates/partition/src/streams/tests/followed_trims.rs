//! Trims during a read: a batch that directly follows what a reader has received is returned whole.

use std::sync::Arc;

use esker_raft::{Lsn, Term};
use s2_common::read_extent::{ReadLimit, ReadUntil};
use s2_common::stream::{ReadFrom, ReadStart};

use super::fixture::*;
use crate::command::Kind;
use crate::reader::{Cursor, Reader, ScanEnd};
use crate::store::Applied;
use crate::stream::Stream;
use crate::streams::StreamOptions;
use crate::streams::step::Step;

/// A reader that continues where it is, as a session does.
struct Session {
    reader: Reader,
    stream: Arc<Stream>,
    cursor: Cursor,
}

impl Session {
    /// A session that begins at the tail.
    fn at_tail(partition: &Fixture, name: &str) -> Session {
        let from = ReadFrom::TailOffset(0);
        Session::starting(partition, name, from)
    }

    fn starting(partition: &Fixture, name: &str, from: ReadFrom) -> Session {
        let (reader, stream) = (partition.reader(), partition.stream(name));
        let start = ReadStart { from, clamp: false };
        let cursor = reader.begin(&stream, start, true).unwrap();
        Session {
            reader,
            stream,
            cursor,
        }
    }

    /// All records that it can read now.
    fn take(&mut self) -> Vec<String> {
        let mut texts = Vec::new();
        loop {
            let cursor = self.cursor.clone();
            let (limit, until) = (ReadLimit::Unbounded, ReadUntil::Unbounded);
            let scan = self
                .reader
                .scan(&self.stream, cursor, limit, until)
                .unwrap();
            texts.extend(seen(&scan).into_iter().map(|seen| seen.text));
            let ended = matches!(scan.end, ScanEnd::Tail(_));
            self.cursor = scan.into_cursor();
            if ended {
                return texts;
            }
        }
    }
}

/// What a client appends to end a message: two records, a trim of all before, the next token.
fn message(number: u64) -> Vec<Rec> {
    vec![
        rec(format!("{number}.a")),
        rec(format!("{number}.b")),
        trim(u64::MAX),
        fence(&format!("{number}")),
    ]
}

fn texts_of(number: u64) -> [String; 4] {
    [
        format!("{number}.a"),
        format!("{number}.b"),
        format!("trim:{}", u64::MAX),
        format!("fence:{number}"),
    ]
}

#[test]
fn a_reader_at_the_tail_gets_a_batch_whole_that_trims_itself() {
    for (in_memory, flushed) in [(true, false), (false, false), (false, true)] {
        let mut partition = Fixture::new();
        let stream = partition.create("s");
        let handle = partition.stream("s");
        let _follower = in_memory.then(|| handle.follow());
        let mut session = Session::at_tail(&partition, "s");
        for number in 0..5 {
            partition
                .append(append(stream, 2_000, message(number)))
                .unwrap();
            if flushed {
                partition.flush();
            }
            assert_eq!(handle.has_recent(session.cursor.next()), in_memory);
            assert_eq!(session.take(), texts_of(number), "in memory: {in_memory}");
        }
        // A new read sees what the trims left.
        assert_eq!(partition.texts("s"), ["fence:4"]);
        let first = ReadFrom::SeqNum(0);
        let mut session = Session::starting(&partition, "s", first);
        assert_eq!(session.take(), ["fence:4"]);
    }
}

#[test]
fn what_one_step_appends_reaches_a_follower_whole_whatever_it_trims_and_however_small_its_memory() {
    let mut partition = Fixture::with(StreamOptions {
        recent: crate::RecentBudget::new(1, 1),
        ..StreamOptions::default()
    });
    let stream = partition.create("s");
    let handle = partition.stream("s");
    let _follower = handle.follow();
    let mut session = Session::at_tail(&partition, "s");
    for round in 0..3 {
        let numbers = round * 4..round * 4 + 4;
        let step = numbers
            .clone()
            .map(|number| Kind::Append(append(stream, 2_000, message(number))))
            .collect();
        partition.step(step);
        let expected: Vec<_> = numbers.flat_map(texts_of).collect();
        assert_eq!(session.take(), expected);
    }
}

#[test]
fn a_trim_in_the_next_batch_takes_nothing_from_who_follows() {
    for steps in [1, 2] {
        let mut partition = Fixture::new();
        let stream = partition.create("s");
        let handle = partition.stream("s");
        let _follower = handle.follow();
        let mut session = Session::at_tail(&partition, "s");
        let mut appends = vec![
            Kind::Append(bodies(stream, 2_000, ["a", "b"])),
            Kind::Append(append(stream, 2_000, vec![trim(u64::MAX)])),
            Kind::Append(bodies(stream, 2_000, ["c"])),
        ];
        let later = appends.split_off(appends.len() / steps);
        partition.step(appends);
        if !later.is_empty() {
            partition.step(later);
        }
        let expected = ["a".to_owned(), "b".to_owned(), format!("trim:{}", u64::MAX)];
        let expected: Vec<_> = expected.into_iter().chain(["c".to_owned()]).collect();
        assert_eq!(session.take(), expected);
    }
}

#[test]
fn who_begins_to_follow_while_a_step_is_applied_gets_it_from_memory() {
    let mut partition = Fixture::new();
    let stream = partition.create("s");
    // The session has read the tail; then a step is applied, and the session begins to follow before the
    // step is published.
    let handle = partition.stream("s");
    let mut session = Session::at_tail(&partition, "s");
    let state = handle.view().state;
    let lsn = partition.applied() + 1;
    let machine = partition.machine();
    let mut step = Step::new(
        &machine.part,
        &machine.directory,
        &machine.failed,
        &machine.state,
        machine.counters,
    );
    for number in 0..2 {
        let command = Kind::Append(append(stream, 2_000, message(number)));
        step.apply(Lsn(lsn + number), Term(1), command).unwrap();
    }
    let mut applied = Applied {
        lsn: lsn + 1,
        ..machine.applied.clone()
    };
    let done = step.write(&mut applied).unwrap();
    assert_eq!(handle.view().state, state, "it is not published");
    let _follower = handle.follow();
    machine.directory.publish(done);
    let expected: Vec<_> = (0..2).flat_map(texts_of).collect();
    assert!(handle.has_recent(0));
    assert_eq!(session.take(), expected);
}

#[test]
fn who_catches_up_from_the_database_begins_at_the_head_after_a_later_trim() {
    let mut partition = Fixture::new();
    let stream = partition.create("s");
    let mut session = Session::at_tail(&partition, "s");
    let mut end = 0;
    for number in 0..3 {
        let at = partition.append(append(stream, 2_000, message(number)));
        end = at.unwrap().end.seq_num;
    }
    // The last message trimmed the ones before it and its own records.
    assert_eq!(session.take(), ["fence:2"]);
    assert_eq!(session.cursor.next(), end);
    // After a trim by another batch, the session gets what that left.
    partition
        .append(bodies(stream, 2_000, ["a", "b", "c"]))
        .unwrap();
    partition
        .append(append(stream, 2_000, vec![trim(end + 2)]))
        .unwrap();
    assert_eq!(
        session.take(),
        ["c".to_owned(), format!("trim:{}", end + 2)]
    );
}

#[test]
fn a_batch_that_a_reader_has_begun_is_given_to_its_end() {
    for in_memory in [false, true] {
        let mut partition = Fixture::new();
        let stream = partition.create("s");
        let handle = partition.stream("s");
        let _follower = in_memory.then(|| handle.follow());
        let mut session = Session::at_tail(&partition, "s");
        // Two batches; one answer of the API takes one and a half of them.
        for batch in 0..2 {
            let records = (0..600).map(|n| rec(format!("{batch}.{n}"))).collect();
            partition.append(append(stream, 2_000, records)).unwrap();
        }
        let (limit, until) = (ReadLimit::Unbounded, ReadUntil::Unbounded);
        let cursor = session.cursor.clone();
        let scan = session
            .reader
            .scan(&session.stream, cursor, limit, until)
            .unwrap();
        assert_eq!((seen(&scan).len(), scan.end), (1_000, ScanEnd::More));
        session.cursor = scan.into_cursor();
        partition
            .append(append(stream, 2_000, vec![trim(u64::MAX)]))
            .unwrap();
        let rest = session.take();
        assert_eq!(rest[0], "1.400");
        assert_eq!(
            rest.iter().filter(|text| text.starts_with("1.")).count(),
            200
        );
    }
}

#[test]
fn after_a_fork_a_reader_at_the_old_tail_gets_what_comes_whole() {
    let mut partition = Fixture::new();
    let stream = partition.create("s");
    partition.append(bodies(stream, 2_000, ["a"])).unwrap();
    let old_tail = partition.stream("s").tail().seq_num;
    partition.fork(9);
    let handle = partition.stream("s");
    let _follower = handle.follow();
    let from = ReadFrom::SeqNum(old_tail);
    let mut session = Session::starting(&partition, "s", from);
    for number in 0..2 {
        partition
            .append(append(stream, 2_000, message(number)))
            .unwrap();
        assert_eq!(session.take(), texts_of(number));
    }
}
