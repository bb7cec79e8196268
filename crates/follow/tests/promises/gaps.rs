//! Cursors in front of a gap in the numbers: a trim to one removes everything up to behind the gap.

use std::sync::Arc;
use std::time::Duration;

use esker_follow::in_stream::others::Guard;
use esker_follow::in_stream::write::take;
use esker_follow::snapshot::record;
use esker_follow::{Builder, Error, External, Follower, Snapshots, TrimTo, inspect};
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
        // After some attempts that were lost, a snapshot is appended at any position, and may yet follow its cursor.
        let restored = reader.restored().map(|it| (it.place.clone(), it.cursor));
        assert_eq!(restored, Some((taken.place.clone(), taken.cursor)));
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

fn place(store: &Store) -> External {
    External::new(Arc::new(store.clone()), "snapshots/stream")
}

fn beside(stream: &Stream, place: External) -> Builder<Chain> {
    Follower::builder(stream.clone(), Chain::default()).external(place)
}

/// Catches up within ten minutes.
async fn catches_up(reader: &Follower<Chain>, stream: &Stream) {
    let limit = Duration::from_secs(600);
    let caught_up = timeout(limit, has_everything(reader, stream)).await;
    caught_up.expect("it never catches up");
}

#[tokio::test(start_paused = true)]
async fn a_snapshot_beside_the_stream_in_front_of_a_gap_gives_way_to_one_in_it() {
    let (stream, store) = (Stream::new(1), Store::new(1, 0.0, 0));
    let beside = || beside(&stream, place(&store));
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

#[tokio::test(start_paused = true)]
async fn a_snapshot_from_between_two_forks_is_used_if_nothing_was_appended_in_between() {
    let (stream, store) = (Stream::new(1), Store::new(1, 0.0, 0));
    stream.data(some(5));
    let trims = beside(&stream, place(&store).trim(TrimTo::Newest));
    let trims = trims.open().await.unwrap();
    has_everything(&trims, &stream).await;
    trims.snapshot().await.unwrap();
    drop(trims);
    assert_eq!(stream.now_head(), 5);
    stream.data(some(3));
    let follower = beside(&stream, place(&store).keep(1)).open().await.unwrap();
    has_everything(&follower, &stream).await;
    stream.fork(stream.now_tail());
    has_everything(&follower, &stream).await;
    // It is all that is left of what is before.
    let taken = follower.snapshot().await.unwrap();
    assert_eq!(taken.cursor, stream.now_tail());
    stream.fork(taken.cursor);
    assert_eq!(stream.now_identity().forks.len(), 2);
    stream.data(some(2));
    let reader = beside(&stream, place(&store)).open().await.unwrap();
    assert_eq!(reader.restored().unwrap().cursor, taken.cursor);
    catches_up(&reader, &stream).await;
    // The one that ran all the time has not read anything again.
    catches_up(&follower, &stream).await;
    assert_eq!(follower.status().applied, 3 + 2);
    // A trim to its cursor is one to the end of the gap, since a server takes none to a number within one.
    let trims = beside(&stream, place(&store).keep(2).trim(TrimTo::Oldest));
    let trims = trims.open().await.unwrap();
    stream.data(some(1));
    catches_up(&trims, &stream).await;
    trims.snapshot().await.unwrap();
    assert_eq!(stream.now_head(), taken.cursor + GAP);
}

#[tokio::test(start_paused = true)]
async fn a_snapshot_from_between_two_forks_is_stale_if_it_has_a_record_that_is_lost() {
    let (stream, store) = (Stream::new(1), Store::new(1, 0.0, 0));
    stream.data(some(5));
    let follower = beside(&stream, place(&store)).open().await.unwrap();
    has_everything(&follower, &stream).await;
    assert_eq!(follower.snapshot().await.unwrap().cursor, 5);
    stream.fork(5);
    let between = stream.data(some(2));
    has_everything(&follower, &stream).await;
    assert_eq!(follower.snapshot().await.unwrap().cursor, between + 2);
    drop(follower);
    stream.fork(between);
    stream.data(some(1));
    let reader = beside(&stream, place(&store)).open().await.unwrap();
    assert_eq!(reader.restored().unwrap().cursor, 5);
    catches_up(&reader, &stream).await;
    // Nor is one that begins where it would have continued, had the history not been cut off before that.
    let (stream, store) = (Stream::new(1), Store::new(1, 0.0, 0));
    stream.data(some(5));
    stream.fork(5);
    let follower = beside(&stream, place(&store)).open().await.unwrap();
    has_everything(&follower, &stream).await;
    assert_eq!(follower.snapshot().await.unwrap().cursor, 5 + GAP);
    drop(follower);
    stream.fork(3);
    stream.data(some(1));
    let reader = beside(&stream, place(&store)).open().await.unwrap();
    assert_eq!(reader.restored(), None);
    catches_up(&reader, &stream).await;
}

/// Leaves more gaps behind what is there than a server remembers.
fn many_gaps(stream: &Stream, cause: Cause) {
    for _ in 0..12 {
        match cause {
            Cause::Fork => stream.fork(stream.now_tail()),
            Cause::Import => stream.pass_over(10),
        }
        stream.data(some(2));
    }
    assert_eq!(stream.unlisted(), 4);
}

#[tokio::test(start_paused = true)]
async fn gaps_that_are_no_longer_listed_are_passed_while_a_record_before_them_is_there() {
    for cause in CAUSES {
        let (stream, store) = (Stream::new(1), Store::new(1, 0.0, 0));
        stream.data(some(5));
        let follower = beside(&stream, place(&store)).open().await.unwrap();
        has_everything(&follower, &stream).await;
        follower.snapshot().await.unwrap();
        drop(follower);
        many_gaps(&stream, cause);
        // From the beginning, and from a snapshot right in front of the first gap.
        let reader = in_stream(&stream).open().await.unwrap();
        catches_up(&reader, &stream).await;
        // A fork that is not listed makes the snapshot one of an unknown lineage.
        let reader = beside(&stream, place(&store)).open().await.unwrap();
        let restored = reader.restored().map(|restored| restored.cursor);
        let expected = match cause {
            Cause::Fork => None,
            Cause::Import => Some(5),
        };
        assert_eq!(restored, expected);
        catches_up(&reader, &stream).await;
        // On the way to a snapshot in the stream.
        let (meta, bytes, totals) = describe(&stream, 1, &state(&stream, 1));
        let single = record::single_record(Uuid::new_v4(), &meta, &totals, bytes).unwrap();
        stream
            .land(&[record::trim_record(1), single], None)
            .unwrap();
        assert_eq!(stream.now_head(), 1);
        let reader = in_stream(&stream).open().await.unwrap();
        assert_eq!(reader.restored().unwrap().cursor, 1);
        catches_up(&reader, &stream).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_cursor_in_front_of_a_gap_that_is_not_listed_is_no_reason_for_a_trim() {
    for cause in CAUSES {
        let stream = Stream::new(1);
        stream.data(some(5));
        many_gaps(&stream, cause);
        let chain = state(&stream, 5);
        let (meta, ..) = describe(&stream, 5, &chain);
        let guard = Guard::default();
        guard.update(|others| others.read_to(u64::MAX));
        let taken = take(&stream, &guard, chain, &meta, true).await;
        assert!(taken.is_err(), "{taken:?}");
        assert_eq!(stream.now_head(), 0, "{cause:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_snapshot_in_front_of_a_gap_that_is_not_listed_and_of_trimmed_records_ends_a_follower() {
    let (stream, store) = (Stream::new(1), Store::new(1, 0.0, 0));
    stream.data(some(5));
    let follower = beside(&stream, place(&store)).open().await.unwrap();
    has_everything(&follower, &stream).await;
    follower.snapshot().await.unwrap();
    drop(follower);
    many_gaps(&stream, Cause::Import);
    // Whether there was a record between the snapshot and the head is not known any more.
    stream.land(&[record::trim_record(15)], None).unwrap();
    assert_eq!(stream.now_head(), 15);
    let reader = beside(&stream, place(&store)).open().await.unwrap();
    let ended = timeout(Duration::from_secs(600), reader.ended()).await;
    match ended.expect("it has to end") {
        Error::HistoryGone {
            head: 15, tried, ..
        } => {
            assert!(tried[0].contains("goes to 5"), "{tried:?}");
        }
        other => panic!("{other:?}"),
    }
}

#[tokio::test(start_paused = true)]
async fn a_snapshot_of_a_lineage_that_is_not_remembered_is_passed_over_and_named() {
    let (stream, store) = (Stream::new(1), Store::new(1, 0.0, 0));
    stream.data(some(5));
    let follower = beside(&stream, place(&store)).open().await.unwrap();
    has_everything(&follower, &stream).await;
    follower.snapshot().await.unwrap();
    drop(follower);
    for _ in 0..20 {
        stream.fork(stream.now_tail());
        stream.data(some(1));
    }
    let reader = beside(&stream, place(&store)).open().await.unwrap();
    assert_eq!(reader.restored(), None);
    let [why] = reader.passed_over() else {
        panic!("{:?}", reader.passed_over());
    };
    assert!(why.contains("which the server does not list"), "{why}");
    catches_up(&reader, &stream).await;
    // Without the beginning of the stream, nothing is left to begin with.
    stream.land(&[record::trim_record(1)], None).unwrap();
    match beside(&stream, place(&store)).open().await {
        Err(Error::HistoryGone { head: 1, tried, .. }) => {
            assert!(
                tried[0].contains("which the server does not list"),
                "{tried:?}"
            );
        }
        other => panic!("{other:?}"),
    }
}
