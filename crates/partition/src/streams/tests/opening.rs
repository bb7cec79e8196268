//! Streams open in memory: no more than the limit, and nothing is lost when one is closed.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::fixture::*;
use crate::command::{Append, Kind};
use crate::ids::StreamId;
use crate::reader::ReadError;
use crate::stream::Stream;
use crate::streams::StreamOptions;

fn few_open(open_streams: usize) -> Fixture {
    Fixture::with(StreamOptions {
        open_streams,
        ..StreamOptions::default()
    })
}

#[test]
fn beyond_the_limit_idle_streams_are_closed_and_lose_nothing() {
    const STREAMS: usize = 60;
    let mut partition = few_open(8);
    let mut twin = Fixture::new();
    for partition in [&mut partition, &mut twin] {
        let ids: Vec<_> = (0..STREAMS)
            .map(|i| partition.create(&format!("s{i}")))
            .collect();
        for round in 0..5 {
            for stream in &ids {
                let guarded = Append {
                    match_seq_num: Some(round * 2),
                    fencing_token: Some(if round == 0 { "" } else { "t" }.to_owned()),
                    session: 1 + round,
                    ..append(
                        *stream,
                        2_000 + round,
                        vec![rec(format!("{stream}")), fence("t")],
                    )
                };
                partition.append(guarded).unwrap();
                let refused = Append {
                    match_seq_num: Some(99),
                    session: 100,
                    ..bodies(*stream, 2_000, ["x"])
                };
                assert!(partition.append(refused).is_err());
            }
        }
    }
    assert!(partition.reader().directory().open_streams() <= 8);
    assert_eq!(twin.reader().directory().open_streams(), STREAMS);
    assert_eq!(partition.content(&[BASIN]), twin.content(&[BASIN]));
    assert!(partition.reader().directory().open_streams() <= 8);
}

#[test]
fn a_stream_that_somebody_holds_stays_open() {
    let mut partition = few_open(4);
    let held: Vec<_> = (0..10)
        .map(|i| {
            partition.create(&format!("held{i}"));
            partition.stream(&format!("held{i}"))
        })
        .collect();
    for i in 0..20 {
        partition.create(&format!("idle{i}"));
    }
    let open = partition.reader().directory().open_streams();
    assert!(open <= held.len() + 4, "{open} are open");
    // A holder of a stream sees its changes.
    for (i, handle) in held.iter().enumerate() {
        assert!(Arc::ptr_eq(handle, &partition.stream(&format!("held{i}"))));
        partition.append(bodies(handle.id, 2_000, ["a"])).unwrap();
        assert_eq!(handle.tail(), position(1, 2_000));
    }
    drop(held);
    for i in 20..40 {
        partition.create(&format!("idle{i}"));
    }
    assert!(partition.reader().directory().open_streams() <= 4);
}

#[test]
fn a_stream_is_never_open_twice() {
    let mut partition = Fixture::new();
    partition.create("s");
    partition.reopen();
    assert_eq!(partition.reader().directory().open_streams(), 0);
    let by_name = partition.stream("s");
    partition.append(bodies(by_name.id, 2_000, ["a"])).unwrap();
    assert!(Arc::ptr_eq(&by_name, &partition.stream("s")));
    assert_eq!(partition.reader().directory().open_streams(), 1);
    assert_eq!(by_name.tail(), position(1, 2_000));
}

#[test]
fn streams_that_are_gone_are_not_open() {
    let mut partition = Fixture::new();
    for name in ["a", "b", "c"] {
        partition.create(name);
    }
    let held = partition.stream("a");
    partition.delete("a");
    assert_eq!(partition.reader().directory().open_streams(), 2);
    partition.apply(drop_basin(BASIN));
    assert_eq!(partition.reader().directory().open_streams(), 0);
    assert!(held.view().gone);
}

#[test]
fn more_streams_in_one_step_than_may_be_open_are_all_there() {
    let mut partition = few_open(2);
    let commands = (0..40)
        .flat_map(|i| {
            let id = StreamId(i + 1);
            [
                create(BASIN, &format!("s{i}"), Default::default()),
                Kind::Append(append(id, 2_000, vec![rec(format!("{i}"))])),
            ]
        })
        .collect();
    partition.step(commands);
    assert!(partition.reader().directory().open_streams() <= 2);
    for i in 0..40 {
        assert_eq!(partition.texts(&format!("s{i}")), [i.to_string()]);
    }
}

#[test]
fn readers_beside_the_apply_thread_see_whole_streams_only() {
    const NAMES: [&str; 4] = ["a", "b", "c", "d"];
    const ROUNDS: u64 = 600;
    let mut partition = few_open(2);
    let reader = partition.reader();
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for first in 0..2 {
            let (reader, done) = (&reader, &done);
            scope.spawn(move || {
                let mut held: Option<Arc<Stream>> = None;
                let mut turn = first;
                while !done.load(Ordering::Relaxed) {
                    turn += 1;
                    let Some(stream) = reader.stream(BASIN, NAMES[turn % 4]).unwrap() else {
                        continue;
                    };
                    let tail = stream.tail().seq_num;
                    match reader.scan(&stream, 0, Default::default(), Default::default()) {
                        Ok(scan) => {
                            // The stream's own records from the first on, and all that existed before.
                            let texts: Vec<_> = seen(&scan).into_iter().map(|s| s.text).collect();
                            let expected = (0..texts.len()).map(|n| format!("{}:{n}", stream.id));
                            assert!(texts.iter().cloned().eq(expected), "{texts:?}");
                            assert!(texts.len() as u64 >= tail);
                        }
                        Err(ReadError::Gone) => assert!(stream.view().gone),
                        Err(other) => panic!("{other}"),
                    }
                    if let Some(held) = held.replace(stream.clone())
                        && held.id == stream.id
                    {
                        assert!(Arc::ptr_eq(&held, &stream), "open twice");
                    }
                }
            });
        }
        for round in 0..ROUNDS {
            let name = NAMES[(round % 4) as usize];
            let id = StreamId(round + 1);
            let record = |n| Kind::Append(append(id, 2_000, vec![rec(format!("{id}:{n}"))]));
            partition.step(vec![
                delete(BASIN, name),
                create(BASIN, name, Default::default()),
                record(0),
            ]);
            partition.step(vec![record(1), record(2)]);
            partition.step(vec![record(3)]);
        }
        done.store(true, Ordering::Relaxed);
    });
    for name in NAMES {
        assert_eq!(partition.texts(name).len(), 4);
    }
}

#[test]
fn an_open_stream_is_found_while_another_one_is_read_from_a_slow_disk() {
    let mut partition = Fixture::new();
    let id = partition.create("open");
    let reader = partition.reader();
    let held = reader.directory().hold_opening();
    // Neither waits: this thread holds the lock.
    let found = reader.open_stream(BASIN, "open").unwrap();
    assert_eq!(found.id, id);
    let found = reader.stream(BASIN, "open").unwrap().unwrap();
    assert_eq!(found.id, id);
    assert!(reader.open_stream(BASIN, "absent").is_none());
    drop(held);
    assert!(reader.stream(BASIN, "absent").unwrap().is_none());
}
