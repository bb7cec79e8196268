//! Cursors in front of a gap in the numbers: a trim to one removes everything up to behind the gap.

use std::sync::Arc;
use std::time::Duration;

use esker_follow::in_stream::others::Guard;
use esker_follow::in_stream::write::take;
use esker_follow::snapshot::record;
use esker_follow::{External, Follower, Snapshots, inspect};
use s2_sdk::types::AppendRecord;
use tokio::time::{sleep, timeout};
use uuid::Uuid;

use crate::fold::Chain;
use crate::model::{Faults, GAP, Scripted, Stream};
use crate::store::Store;
use crate::{describe, has_everything, in_stream, some, state};

/// What left the gap.
#[derive(Clone, Copy, Debug)]
enum Cause {
    Fork,
    Import,
}

const CAUSES: [Cause; 2] = [Cause::Fork, Cause::Import];

/// A stream of five records, a gap right behind them, and two more records; and where these begin.
fn with_gap(cause: Cause) -> (Stream, u64) {
    let stream = Stream::new(1);
    stream.data(some(5));
    match cause {
        Cause::Fork => stream.fork(5),
        Cause::Import => stream.pass_over(100),
    }
    let resumes_at = stream.data(some(2));
    assert!(resumes_at > 5);
    (stream, resumes_at)
}

/// What an earlier build appended: a snapshot whose cursor is in front of the gap, and its trim.
fn in_front(stream: &Stream, resumes_at: u64, is_framed: bool) {
    let (meta, bytes, totals) = describe(stream, 5, &state(stream, 5));
    let (id, trim) = (Uuid::new_v4(), record::trim_record(5));
    let batch: Vec<AppendRecord> = if is_framed {
        let (first, second) = (bytes.slice(..9), bytes.slice(9..));
        vec![
            record::fragment_record(id, 0, Some(&meta), first).unwrap(),
            record::fragment_record(id, 1, None, second).unwrap(),
            record::final_record(id, 2, &totals).unwrap(),
            trim,
        ]
    } else {
        let single = record::single_record(id, &meta, &totals, bytes).unwrap();
        vec![trim, single]
    };
    stream.land(&batch, None).unwrap();
    assert_eq!(stream.now_head(), resumes_at, "the trim leaps over the gap");
    stream.data(some(1));
}

#[tokio::test(start_paused = true)]
async fn a_snapshot_whose_cursor_is_in_front_of_a_gap_reaches_what_is_behind_it() {
    let cases = CAUSES.map(|cause| [(cause, false), (cause, true)]);
    for (cause, is_framed) in cases.into_iter().flatten() {
        let (stream, resumes_at) = with_gap(cause);
        in_front(&stream, resumes_at, is_framed);
        let reader = in_stream(&stream).open().await.unwrap();
        assert_eq!(reader.restored().unwrap().cursor, 5);
        has_everything(&reader, &stream).await;
        let inspected = inspect(&stream, &Snapshots::InStream, |_, _| {}).await;
        let found = inspected.unwrap().snapshots;
        assert!(found.len() == 1 && found[0].is_usable(), "{found:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_follower_that_learns_of_a_gap_before_it_reads_on_takes_its_snapshot_behind_it() {
    // Which of two events comes first is not the seed's.
    for seed in 0..10 {
        let stream = Stream::new(seed);
        stream.data(some(5));
        let follower = in_stream(&stream).attempts(0).open().await.unwrap();
        has_everything(&follower, &stream).await;
        // It asks for the lineage after each of these.
        stream.set_faults(Faults {
            broken_read: 1.0,
            ..Faults::none()
        });
        stream.fork(5);
        stream.data(some(2));
        sleep(Duration::from_millis(100)).await;
        let restores = async {
            sleep(Duration::from_secs(1)).await;
            stream.set_faults(Faults::none());
        };
        let (taken, ()) = tokio::join!(follower.snapshot(), restores);
        let reader = in_stream(&stream).open().await.unwrap();
        has_everything(&reader, &stream).await;
        let taken = taken.unwrap();
        assert_eq!(reader.restored(), Some(&taken));
        assert!(taken.cursor >= 5 + GAP, "{taken:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_cursor_in_front_of_a_gap_is_no_reason_for_a_trim() {
    let cases = CAUSES.map(|cause| [(cause, 0), (cause, 2 << 20)]);
    for (cause, padding) in cases.into_iter().flatten() {
        let (stream, _) = with_gap(cause);
        let mut chain = state(&stream, 5);
        chain.padding = padding;
        let (meta, ..) = describe(&stream, 5, &chain);
        let guard = Guard::default();
        guard.update(|others| others.read_to(u64::MAX));
        let taken = take(&stream, &guard, chain, &meta, true).await;
        // A large one is there by then.
        assert_eq!(taken.is_ok(), padding > 0, "{taken:?}");
        assert_eq!(stream.now_head(), 0, "{cause:?}, {padding}");
        let reader = in_stream(&stream).open().await.unwrap();
        has_everything(&reader, &stream).await;
    }
}

#[tokio::test(start_paused = true)]
async fn the_last_question_before_a_trim_is_which_history_it_is() {
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
    stream.script([busy(), busy(), busy(), busy()]);
    // By then the follower has not read up to the tail, and the trim waits for it.
    let guard = Guard::default();
    guard.update(|others| others.read_to(13));
    let recreates = async {
        sleep(Duration::from_secs(5)).await;
        assert_eq!(stream.appends(), 4, "the next one has no condition");
        stream.recreate();
        stream.data(some(20));
        guard.update(|others| others.read_to(14));
    };
    let (taken, ()) = tokio::join!(take(&stream, &guard, chain, &meta, true), recreates);
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
async fn a_snapshot_beside_the_stream_in_front_of_a_gap_gives_way_to_one_in_it() {
    let (stream, store) = (Stream::new(1), Store::new(1, 0.0, 0));
    let beside = || {
        let place = External::new(Arc::new(store.clone()), "snapshots/stream");
        Follower::builder(stream.clone(), Chain::default()).external(place)
    };
    stream.data(some(5));
    let follower = beside().open().await.unwrap();
    has_everything(&follower, &stream).await;
    assert_eq!(follower.snapshot().await.unwrap().cursor, 5);
    drop(follower);
    stream.fork(5);
    // What comes then is trimmed away for another one, which is all that is left.
    stream.data(some(5));
    let other = in_stream(&stream).open().await.unwrap();
    has_everything(&other, &stream).await;
    other.snapshot().await.unwrap();
    drop(other);
    stream.data(some(2));
    let reader = beside().open().await.unwrap();
    assert_eq!(reader.restored().unwrap().cursor, 5);
    let limit = Duration::from_secs(600);
    let caught_up = timeout(limit, has_everything(&reader, &stream)).await;
    caught_up.expect("it looks into the stream");
}
