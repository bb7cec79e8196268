//! Streams that are cut off, trimmed while they are read, or created again.

use std::sync::Arc;
use std::time::Duration;

use esker_follow::endpoint::Identity;
use esker_follow::in_stream::others::Guard;
use esker_follow::in_stream::write::take;
use esker_follow::snapshot::record;
use esker_follow::{Error, External, Follower, Unusable, Update};
use futures::StreamExt as _;
use uuid::Uuid;

use crate::fold::Chain;
use crate::model::{Faults, GAP, Scripted, Stream};
use crate::store::Store;
use crate::{describe, has_everything, in_stream, some, state};

fn place(store: &Store) -> External {
    External::new(Arc::new(store.clone()), "snapshots/stream")
}

fn beside(stream: &Stream, store: &Store) -> esker_follow::Builder<Chain> {
    Follower::builder(stream.clone(), Chain::default()).external(place(store))
}

/// Somebody has read the whole stream, and found no other fold's snapshot.
fn nothing_else() -> Guard {
    let guard = Guard::default();
    guard.update(|others| others.read_to(u64::MAX));
    guard
}

/// A fork between the look at the stream and the append.
fn cut_off(at: u64) -> Scripted {
    Scripted {
        before: Box::new(move |stream| stream.fork(at)),
        ..Scripted::default()
    }
}

#[tokio::test(start_paused = true)]
async fn a_snapshot_of_an_earlier_stream_of_the_same_name_is_refused() {
    let (stream, store) = (Stream::new(1), Store::new(1, 0.0, 0));
    stream.data(some(5));
    let follower = beside(&stream, &store).open().await.unwrap();
    has_everything(&follower, &stream).await;
    follower.snapshot().await.unwrap();
    drop(follower);
    stream.recreate();
    stream.data(some(10));
    match beside(&stream, &store).open().await {
        Err(Error::Unusable {
            why: Unusable::OtherStream { .. },
            ..
        }) => {}
        other => panic!("{other:?}"),
    }
    let builder = beside(&stream, &store).pass_over_unusable();
    let reader = builder.open().await.unwrap();
    assert!(reader.restored().is_none());
    has_everything(&reader, &stream).await;
}

#[tokio::test(start_paused = true)]
async fn a_follower_of_a_stream_that_is_recreated_starts_over() {
    let stream = Stream::new(1);
    stream.data(some(5));
    let reader = in_stream(&stream).open().await.unwrap();
    has_everything(&reader, &stream).await;
    stream.recreate();
    stream.data(["another"; 9]);
    tokio::time::sleep(Duration::from_secs(5)).await;
    has_everything(&reader, &stream).await;
}

#[tokio::test(start_paused = true)]
async fn a_parent_lineage_s_snapshot_is_good_up_to_the_fork_and_refused_beyond() {
    for (fork, restored) in [(10, 10), (12, 10), (9, 5), (5, 5)] {
        let (stream, store) = (Stream::new(1), Store::new(1, 0.0, 0));
        let follower = beside(&stream, &store).open().await.unwrap();
        for _ in 0..2 {
            stream.data(some(5));
            tokio::time::sleep(Duration::from_secs(1)).await;
            has_everything(&follower, &stream).await;
            follower.snapshot().await.unwrap();
        }
        stream.data(some(3));
        stream.fork(fork);
        stream.data(some(4));
        let reader = beside(&stream, &store).open().await.unwrap();
        assert_eq!(
            reader.restored().unwrap().cursor,
            restored,
            "fork at {fork}"
        );
        has_everything(&reader, &stream).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_jump_in_live_sequence_numbers_reopens_from_a_snapshot() {
    let stream = Stream::new(1);
    stream.data(some(5));
    let reader = in_stream(&stream).open().await.unwrap();
    has_everything(&reader, &stream).await;
    let mut updates = reader.updates();
    // All of this before the reader looks again.
    stream.data(some(5));
    let (meta, bytes, totals) = describe(&stream, 10, &state(&stream, 10));
    let single = record::single_record(Uuid::new_v4(), &meta, &totals, bytes).unwrap();
    let batch = [record::trim_record(11), single];
    stream.land(&batch, Some(10)).unwrap();
    stream.data(some(2));
    loop {
        match updates.next().await.unwrap() {
            Update::Restored(info) => break assert_eq!(info.unwrap().cursor, 10),
            Update::Ended(error) => panic!("{error:?}"),
            _ => {}
        }
    }
    has_everything(&reader, &stream).await;
    assert_eq!(reader.status().newest.unwrap().cursor, 10);
}

#[tokio::test(start_paused = true)]
async fn a_history_that_is_cut_off_behind_what_was_read_goes_on() {
    let stream = Stream::new(1);
    stream.data(some(5));
    let reader = in_stream(&stream).open().await.unwrap();
    has_everything(&reader, &stream).await;
    stream.fork(5);
    stream.data(some(5));
    tokio::time::sleep(Duration::from_secs(1)).await;
    has_everything(&reader, &stream).await;
    assert_eq!(reader.status().applied, 10, "nothing was read again");
}

#[tokio::test(start_paused = true)]
async fn what_was_read_of_a_history_that_is_cut_off_is_forgotten() {
    let stream = Stream::new(1);
    stream.data(some(10));
    let reader = in_stream(&stream).open().await.unwrap();
    has_everything(&reader, &stream).await;
    stream.fork(7);
    stream.data(some(1));
    tokio::time::sleep(Duration::from_secs(1)).await;
    has_everything(&reader, &stream).await;
    // Twice, and the second time further back than the first.
    stream.fork(4);
    stream.data(some(2));
    tokio::time::sleep(Duration::from_secs(1)).await;
    has_everything(&reader, &stream).await;
    assert_eq!(stream.now_tail(), 4 + 2 * GAP + 2);
}

#[tokio::test(start_paused = true)]
async fn no_snapshot_of_what_was_lost_passes_for_one_of_the_next_lineage() {
    for seed in 0..10 {
        let (stream, store) = (Stream::new(seed), Store::new(1, 0.0, 0));
        stream.data(some(10));
        let follower = beside(&stream, &store).open().await.unwrap();
        has_everything(&follower, &stream).await;
        // It is disconnected, and hears of the new lineage before it hears of the gap.
        stream.set_faults(Faults {
            broken_read: 1.0,
            ..Faults::none()
        });
        stream.data(some(1));
        tokio::time::sleep(Duration::from_millis(1)).await;
        stream.fork(7);
        stream.data(some(2));
        stream.set_faults(Faults {
            delay: 3000,
            ..Faults::none()
        });
        let taken = follower.snapshot().await.unwrap();
        let reader = beside(&stream, &store).open().await.unwrap();
        assert_eq!(reader.restored(), Some(&taken));
        has_everything(&reader, &stream).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_jump_that_nothing_explains_is_not_read_over_and_over() {
    let stream = Stream::new(1);
    stream.data(some(5));
    stream.identify(|identity| identity.lineage = None);
    let reader = in_stream(&stream).open().await.unwrap();
    has_everything(&reader, &stream).await;
    stream.fork(5);
    let known = stream.now_identity();
    stream.identify(|identity| {
        identity.lineage = None;
        identity.forks.clear();
    });
    stream.data(some(1));
    tokio::time::sleep(Duration::from_secs(100)).await;
    assert!(stream.reads() < 500, "{} reads in 100 s", stream.reads());
    assert!(reader.status().ended.is_none());
    let waits_for = reader.status().waits_for.unwrap();
    assert!(waits_for.contains("jump behind 5"), "{waits_for}");
    // As soon as the server says what it was, it goes on.
    stream.identify(|identity| *identity = known);
    tokio::time::sleep(Duration::from_secs(10)).await;
    has_everything(&reader, &stream).await;
    assert_eq!(reader.status().waits_for, None);
}

#[tokio::test(start_paused = true)]
async fn a_stream_that_was_empty_when_it_was_cut_off_begins_empty() {
    let stream = Stream::new(1);
    stream.fork(0);
    let early = in_stream(&stream).open().await.unwrap();
    early.caught_up().await.unwrap();
    stream.data(some(3));
    let late = in_stream(&stream).open().await.unwrap();
    for reader in [early, late] {
        tokio::time::sleep(Duration::from_secs(1)).await;
        has_everything(&reader, &stream).await;
    }
}

#[tokio::test(start_paused = true)]
async fn an_anchored_snapshot_of_a_stale_lineage_takes_nothing_from_the_next() {
    let stream = Stream::new(1);
    stream.data(some(10));
    let chain = state(&stream, 10);
    let (meta, ..) = describe(&stream, 10, &chain);
    stream.script([cut_off(7)]);
    let taken = take(&stream, &nothing_else(), chain, &meta, true).await;
    assert!(taken.is_err(), "{taken:?}");
    assert_eq!(
        stream.now_head(),
        0,
        "nothing covers what it would have taken"
    );
    let reader = in_stream(&stream).open().await.unwrap();
    has_everything(&reader, &stream).await;
}

#[tokio::test(start_paused = true)]
async fn a_history_that_is_cut_off_between_the_last_look_and_the_trim_keeps_what_is_left() {
    let stream = Stream::new(1);
    stream.data(some(10));
    let chain = state(&stream, 10);
    let (meta, ..) = describe(&stream, 10, &chain);
    // Others append after each look, so that the trim is sent without a condition at last.
    let busy = || Scripted {
        before: Box::new(|stream| {
            stream.data(some(1));
        }),
        ..Scripted::default()
    };
    stream.script([busy(), busy(), busy(), busy(), cut_off(7)]);
    let taken = take(&stream, &nothing_else(), chain, &meta, true).await;
    assert!(taken.is_err(), "{taken:?}");
    assert_eq!(stream.appends(), 5, "the last one had no condition");
    assert_eq!(
        stream.now_head(),
        0,
        "nothing covers what it would have taken"
    );
    let reader = in_stream(&stream).open().await.unwrap();
    has_everything(&reader, &stream).await;
}

#[tokio::test(start_paused = true)]
async fn a_framed_snapshot_that_is_cut_off_takes_nothing_from_what_is_left() {
    let stream = Stream::new(1);
    stream.data(some(10));
    let mut chain = state(&stream, 10);
    chain.padding = 2 << 20;
    let (meta, ..) = describe(&stream, 10, &chain);
    stream.script([Scripted {
        after: Box::new(|stream| stream.fork(7)),
        ..Scripted::default()
    }]);
    let _ = take(&stream, &nothing_else(), chain, &meta, false).await;
    assert_eq!(
        stream.now_head(),
        0,
        "nothing covers what it would have taken"
    );
    let reader = in_stream(&stream).open().await.unwrap();
    has_everything(&reader, &stream).await;
}

#[tokio::test(start_paused = true)]
async fn a_cursor_beyond_the_tail_is_refused() {
    let store = Store::new(1, 0.0, 0);
    let longer = Stream::new(1);
    longer.data(some(9));
    let follower = beside(&longer, &store).open().await.unwrap();
    has_everything(&follower, &longer).await;
    follower.snapshot().await.unwrap();
    // It says to be the same stream.
    let shorter = Stream::new(1);
    shorter.data(some(4));
    match beside(&shorter, &store).open().await {
        Err(Error::Unusable {
            why: Unusable::BeyondTail { cursor: 9, tail: 4 },
            ..
        }) => {}
        other => panic!("{other:?}"),
    }
    let builder = beside(&shorter, &store).pass_over_unusable();
    has_everything(&builder.open().await.unwrap(), &shorter).await;
}

#[tokio::test(start_paused = true)]
async fn a_stream_that_is_recreated_after_it_was_identified_and_before_it_is_read_is_noticed() {
    let stream = Stream::new(1);
    stream.data(some(5));
    let reader = in_stream(&stream).open().await.unwrap();
    has_everything(&reader, &stream).await;
    stream.before_read(|stream| {
        stream.set_faults(Faults::none());
        stream.recreate();
        stream.data(["another"; 9]);
    });
    stream.set_faults(Faults {
        broken_read: 1.0,
        ..Faults::none()
    });
    stream.data(some(1));
    tokio::time::sleep(Duration::from_secs(5)).await;
    has_everything(&reader, &stream).await;
    // And its snapshots are of the stream that it follows.
    reader.snapshot().await.unwrap();
    has_everything(&in_stream(&stream).open().await.unwrap(), &stream).await;
}

#[tokio::test(start_paused = true)]
async fn a_stream_that_is_recreated_with_as_many_records_is_not_trimmed_for_a_snapshot() {
    let stream = Stream::new(1);
    stream.data(some(10));
    let chain = state(&stream, 10);
    let (meta, ..) = describe(&stream, 10, &chain);
    // The first attempt is lost. The second one has the right condition, and would find the wrong stream.
    stream.script([Scripted {
        lands: false,
        answers: false,
        after: Box::new(|stream| {
            stream.recreate();
            stream.data(["another"; 10]);
        }),
        ..Scripted::default()
    }]);
    let taken = take(&stream, &nothing_else(), chain, &meta, false).await;
    assert!(taken.is_err(), "{taken:?}");
    assert_eq!((stream.now_head(), stream.now_tail()), (0, 10));
}

#[tokio::test(start_paused = true)]
async fn a_stream_that_was_not_there_when_it_was_identified_is_not_the_one_before() {
    let stream = Stream::new(1);
    stream.data(some(5));
    let reader = in_stream(&stream).open().await.unwrap();
    has_everything(&reader, &stream).await;
    // It is deleted, so nothing is listed of it, and created again before the read that follows.
    stream.before_read(|stream| {
        stream.recreate();
        stream.data(["another"; 9]);
    });
    stream.delete();
    tokio::time::sleep(Duration::from_secs(5)).await;
    has_everything(&reader, &stream).await;
}

#[tokio::test(start_paused = true)]
async fn a_stream_that_is_not_identified_gets_no_snapshot_of_one_that_was() {
    for anchored in [false, true] {
        let stream = Stream::new(1);
        stream.data(some(10));
        let chain = state(&stream, 10);
        let (meta, ..) = describe(&stream, 10, &chain);
        stream.identify(|identity| *identity = Identity::default());
        let taken = take(&stream, &nothing_else(), chain, &meta, anchored).await;
        assert!(taken.is_err(), "{taken:?}");
        assert_eq!((stream.now_head(), stream.now_tail()), (0, 10));
    }
}
