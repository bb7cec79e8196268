//! Snapshots in the stream.

use std::time::Duration;

use esker_follow::snapshot::record::{self, Seen};
use esker_follow::{Encoding, Error, Follower, Kind, Update};
use futures::StreamExt as _;
use s2_sdk::types::{AppendRecord, CommandRecord};
use uuid::Uuid;

use crate::fold::Chain;
use crate::model::{Faults, Scripted, Stream};
use crate::{describe, has_everything, in_stream, some, state};

/// Large enough for some fragments.
fn large() -> Chain {
    Chain {
        padding: 3 << 20,
        ..Chain::default()
    }
}

/// Before this append, somebody else appends.
fn overtaken() -> Scripted {
    Scripted {
        before: Box::new(|stream| {
            stream.data(["overtakes"]);
        }),
        ..Scripted::default()
    }
}

fn singles(stream: &Stream) -> usize {
    let records = stream.records();
    let seen = records.iter().map(record::see);
    seen.filter(|s| matches!(s, Seen::Single { .. })).count()
}

#[tokio::test(start_paused = true)]
async fn a_snapshot_in_one_record_takes_the_place_of_all_before_it() {
    let stream = Stream::new(1);
    stream.data(some(5));
    let follower = in_stream(&stream).open().await.unwrap();
    has_everything(&follower, &stream).await;
    let taken = follower.snapshot().await.unwrap();
    assert_eq!((taken.kind, taken.cursor), (Kind::Single, 5));
    assert!(!taken.anchored);
    assert_eq!(stream.now_head(), 6, "the snapshot is the head");
    stream.data(some(2));

    let reader = in_stream(&stream).open().await.unwrap();
    assert_eq!(reader.restored().unwrap().cursor, 5);
    has_everything(&reader, &stream).await;
    has_everything(&follower, &stream).await;
}

#[tokio::test(start_paused = true)]
async fn whoever_has_everything_restores_nothing_because_of_somebody_s_snapshot() {
    let stream = Stream::new(1);
    stream.data(some(5));
    let follower = in_stream(&stream).open().await.unwrap();
    let reader = in_stream(&stream).open().await.unwrap();
    has_everything(&follower, &stream).await;
    has_everything(&reader, &stream).await;
    let mut updates = reader.updates();
    follower.snapshot().await.unwrap();
    stream.data(some(1));
    loop {
        match updates.next().await.unwrap() {
            Update::Applied { to: 8, .. } => break,
            Update::Restored(info) => panic!("{info:?}"),
            _ => {}
        }
    }
    has_everything(&reader, &stream).await;
    assert!(reader.status().newest.is_none());
}

#[tokio::test(start_paused = true)]
async fn a_412_after_a_lost_answer_that_was_a_success_is_a_success() {
    let stream = Stream::new(1);
    stream.data(some(5));
    let follower = in_stream(&stream).open().await.unwrap();
    has_everything(&follower, &stream).await;
    stream.script([Scripted {
        answers: false,
        ..Scripted::default()
    }]);
    let taken = follower.snapshot().await.unwrap();
    assert_eq!((taken.cursor, taken.anchored), (5, false));
    assert_eq!(stream.appends(), 2, "it was tried again");
    assert_eq!(singles(&stream), 1, "and landed once");
    assert_eq!(follower.status().lost, 0);
    let reader = in_stream(&stream).open().await.unwrap();
    has_everything(&reader, &stream).await;
}

#[tokio::test(start_paused = true)]
async fn an_append_that_was_lost_is_made_again() {
    let stream = Stream::new(1);
    stream.data(some(5));
    let follower = in_stream(&stream).open().await.unwrap();
    has_everything(&follower, &stream).await;
    stream.script([Scripted {
        lands: false,
        answers: false,
        ..Scripted::default()
    }]);
    assert_eq!(follower.snapshot().await.unwrap().cursor, 5);
    assert_eq!(singles(&stream), 1);
}

#[tokio::test(start_paused = true)]
async fn a_lost_race_is_tried_again_from_further_on_and_then_anchored() {
    let stream = Stream::new(1);
    stream.data(some(5));
    let follower = in_stream(&stream).attempts(2).open().await.unwrap();
    has_everything(&follower, &stream).await;
    stream.script([overtaken(), overtaken(), overtaken()]);
    let taken = follower.snapshot().await.unwrap();
    assert_eq!(taken.cursor, 7, "each attempt begins behind the last race");
    assert!(taken.anchored);
    assert_eq!(follower.status().lost, 2);
    assert_eq!(stream.now_head(), 7, "what it does not cover is kept");
    let reader = in_stream(&stream).open().await.unwrap();
    let restored = reader.restored().unwrap();
    assert_eq!((restored.cursor, restored.anchored), (7, true));
    has_everything(&reader, &stream).await;
}

#[tokio::test(start_paused = true)]
async fn one_record_between_an_anchored_snapshot_and_its_cursor_is_not_lost() {
    let stream = Stream::new(1);
    stream.data(some(5));
    let follower = in_stream(&stream).attempts(0).open().await.unwrap();
    has_everything(&follower, &stream).await;
    stream.script([overtaken()]);
    assert_eq!(follower.snapshot().await.unwrap().cursor, 5);
    let reader = in_stream(&stream).open().await.unwrap();
    assert_eq!(reader.restored().unwrap().cursor, 5);
    has_everything(&reader, &stream).await;
}

#[tokio::test(start_paused = true)]
async fn old_records_then_the_trim_then_the_snapshot_are_read_right() {
    let stream = Stream::new(1);
    stream.data(some(5));
    let follower = in_stream(&stream).open().await.unwrap();
    has_everything(&follower, &stream).await;
    stream.land(&[record::trim_record(2)], None).unwrap();
    stream.set_faults(Faults {
        trim_delay: 1_000_000_000,
        ..Faults::none()
    });
    has_everything(&follower, &stream).await;
    follower.snapshot().await.unwrap();
    stream.data(some(3));
    assert_eq!(stream.now_head(), 2, "the trim has not taken effect");
    let reader = in_stream(&stream).open().await.unwrap();
    assert_eq!(reader.restored().unwrap().cursor, 6);
    has_everything(&reader, &stream).await;
}

#[tokio::test(start_paused = true)]
async fn records_between_fragments_are_neither_lost_nor_applied_twice() {
    let stream = Stream::new(1);
    stream.data(some(5));
    let builder = Follower::builder(stream.clone(), large()).in_stream();
    let builder = builder.encoding(Encoding::None);
    let follower = builder.open().await.unwrap();
    has_everything(&follower, &stream).await;
    stream.script([Scripted {
        after: Box::new(|stream| {
            stream.data(some(3));
        }),
        ..Scripted::default()
    }]);
    let taken = follower.snapshot().await.unwrap();
    assert_eq!((taken.kind, taken.cursor), (Kind::Framed, 5));
    assert_eq!(stream.now_head(), 5);
    stream.data(some(2));
    let reader = Follower::builder(stream.clone(), large()).in_stream();
    let reader = reader.open().await.unwrap();
    assert_eq!(reader.restored().unwrap().kind, Kind::Framed);
    assert_eq!(reader.status().applied, 0);
    has_everything(&reader, &stream).await;
    assert_eq!(reader.status().applied, 5);
    has_everything(&follower, &stream).await;
}

#[tokio::test(start_paused = true)]
async fn more_records_between_fragments_than_are_kept_are_read_again() {
    let stream = Stream::new(1);
    stream.data(some(5));
    let follower = in_stream(&stream).open().await.unwrap();
    has_everything(&follower, &stream).await;
    let chain = state(&stream, 5);
    let (meta, bytes, totals) = describe(&stream, 5, &chain);
    let id = Uuid::new_v4();
    let first = record::fragment_record(id, 0, Some(&meta), bytes.slice(..20)).unwrap();
    stream.land(&[first], None).unwrap();
    for i in 0..10 {
        stream.data([vec![i; 900 << 10]]);
    }
    let second = record::fragment_record(id, 1, None, bytes.slice(20..)).unwrap();
    let end = record::final_record(id, 2, &totals).unwrap();
    let trim = record::trim_record(5);
    stream.land(&[second, end, trim], None).unwrap();
    let reader = in_stream(&stream).open().await.unwrap();
    assert_eq!(reader.restored().unwrap().cursor, 5);
    has_everything(&reader, &stream).await;
}

#[tokio::test(start_paused = true)]
async fn torn_and_interleaved_snapshots_are_ignored() {
    let stream = Stream::new(1);
    stream.data(some(5));
    let wrong = Chain {
        seen: [(1, 1)].into_iter().collect(),
        ..Chain::default()
    };
    let (meta, bytes, totals) = describe(&stream, 5, &wrong);
    let (torn, swapped, whole) = (Uuid::new_v4(), Uuid::new_v4(), Uuid::new_v4());
    let fragment =
        |id, index: u64, meta, bytes| record::fragment_record(id, index, meta, bytes).unwrap();
    let (good_meta, good, good_totals) = describe(&stream, 5, &state(&stream, 5));
    let batch = [
        // One that never ends, one whose second fragment is missing, and one that is whole.
        fragment(torn, 0, Some(&meta), bytes.slice(..10)),
        fragment(swapped, 0, Some(&meta), bytes.slice(..10)),
        fragment(whole, 0, Some(&good_meta), good.slice(..10)),
        fragment(swapped, 2, None, bytes.slice(10..)),
        fragment(torn, 1, None, bytes.slice(10..12)),
        fragment(whole, 1, None, good.slice(10..)),
        record::final_record(swapped, 2, &totals).unwrap(),
        record::final_record(Uuid::new_v4(), 2, &totals).unwrap(),
        record::final_record(whole, 2, &good_totals).unwrap(),
        record::trim_record(5),
    ];
    stream.land(&batch, None).unwrap();
    stream.data(some(3));
    let reader = in_stream(&stream).open().await.unwrap();
    assert_eq!(reader.restored().unwrap().place, "7");
    has_everything(&reader, &stream).await;
}

#[tokio::test(start_paused = true)]
async fn commands_count_as_positions() {
    let stream = Stream::new(1);
    stream.data(some(2));
    let fence: AppendRecord = CommandRecord::fence("token".parse().unwrap()).into();
    stream.land(&[fence, record::trim_record(0)], None).unwrap();
    stream.data(some(1));
    let follower = in_stream(&stream).open().await.unwrap();
    let view = has_everything(&follower, &stream).await;
    assert_eq!((view.cursor, view.state.seen.len()), (5, 3));
    assert_eq!(follower.snapshot().await.unwrap().cursor, 5);
    let reader = in_stream(&stream).open().await.unwrap();
    has_everything(&reader, &stream).await;
}

#[tokio::test(start_paused = true)]
async fn a_snapshot_whose_head_would_expire_is_taken_again() {
    let stream = Stream::new(1);
    stream.data(some(5));
    stream.identify(|identity| identity.retention = Some(Duration::from_secs(3600)));
    // Taken long ago.
    let (meta, bytes, totals) = describe(&stream, 5, &state(&stream, 5));
    let single = record::single_record(Uuid::new_v4(), &meta, &totals, bytes).unwrap();
    let batch = [record::trim_record(6), single];
    stream.land(&batch, Some(5)).unwrap();
    let builder = in_stream(&stream).every_records(1000);
    let follower = builder.open().await.unwrap();
    has_everything(&follower, &stream).await;
    tokio::time::sleep(Duration::from_secs(10)).await;
    let status = follower.status();
    assert_eq!(status.taken, 1, "once, and not over and over");
    assert_eq!(status.newest.unwrap().cursor, 7);
    assert_eq!(stream.now_head(), 8);
}

#[tokio::test(start_paused = true)]
async fn a_restore_below_the_trim_point_is_an_error_and_never_a_gap() {
    let stream = Stream::new(1);
    stream.data(some(5));
    let follower = in_stream(&stream).open().await.unwrap();
    has_everything(&follower, &stream).await;
    stream.land(&[record::trim_record(3)], None).unwrap();
    match in_stream(&stream).open().await {
        Err(Error::HistoryGone { head: 3, .. }) => {}
        other => panic!("{other:?}"),
    }
    // Whoever has read it already goes on.
    has_everything(&follower, &stream).await;
    // Also where nothing at all is left.
    stream.land(&[record::trim_record(u64::MAX)], None).unwrap();
    match in_stream(&stream).open().await {
        Err(Error::HistoryGone { head: 7, .. }) => {}
        other => panic!("{other:?}"),
    }
}

#[tokio::test(start_paused = true)]
async fn closing_waits_for_the_snapshot_that_is_being_taken() {
    let stream = Stream::new(1);
    stream.data(some(5));
    stream.set_faults(Faults {
        delay: 5000,
        ..Faults::none()
    });
    let builder = in_stream(&stream).every_records(1);
    let follower = builder.open().await.unwrap();
    follower.caught_up().await.unwrap();
    tokio::task::yield_now().await;
    assert_eq!(singles(&stream), 0, "it takes its time");
    let view = follower.close().await.unwrap();
    assert_eq!(view.state.seen.len(), 5);
    assert_eq!(singles(&stream), 1);
}

#[tokio::test(start_paused = true)]
async fn a_snapshot_that_is_asked_for_covers_what_was_applied_before() {
    let stream = Stream::new(1);
    stream.data(some(5));
    let follower = in_stream(&stream).every_records(5).open().await.unwrap();
    // The one that becomes due is overtaken while it is being taken, by what is applied meanwhile.
    stream.script([Scripted {
        answers: false,
        after: Box::new(|stream| {
            stream.data(some(3));
        }),
        ..Scripted::default()
    }]);
    follower.caught_up().await.unwrap();
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert_eq!(follower.status().taken, 0, "its answer was lost");
    let taken = follower.snapshot().await.unwrap();
    assert_eq!(taken.cursor, stream.now_tail() - 2, "the trim and itself");
    assert_eq!(follower.status().since_snapshot, 0);
}
