//! Snapshots beside the stream.

use std::sync::Arc;
use std::time::Duration;

use esker_follow::{Error, External, Follower, TrimTo};
use futures::TryStreamExt as _;
use object_store::path::Path;
use object_store::{ObjectStore as _, ObjectStoreExt as _};
use testkit::corruption::flip;

use crate::fold::Chain;
use crate::model::Stream;
use crate::store::Store;
use crate::{has_everything, some};

fn place(store: &Store) -> External {
    External::new(Arc::new(store.clone()), "snapshots/stream")
}

fn beside(stream: &Stream, external: External) -> esker_follow::Builder<Chain> {
    Follower::builder(stream.clone(), Chain::default()).external(external)
}

async fn names(store: &Store) -> Vec<String> {
    let listed: Vec<_> = store.list(None).try_collect().await.unwrap();
    let mut names: Vec<_> = listed.iter().map(|o| o.location.to_string()).collect();
    names.sort();
    names
}

/// Takes a snapshot after each few records.
async fn take(stream: &Stream, follower: &Follower<Chain>, snapshots: usize) {
    for _ in 0..snapshots {
        stream.data(some(10));
        tokio::time::sleep(Duration::from_secs(1)).await;
        has_everything(follower, stream).await;
        follower.snapshot().await.unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn only_the_newest_k_are_kept_and_others_never_deleted() {
    let (stream, store) = (Stream::new(1), Store::new(1, 0.0, 0));
    let foreign = ["snapshots/stream/notes.txt", "snapshots/stream/5.bin"];
    for name in foreign {
        store
            .put(&Path::from(name), "anything".into())
            .await
            .unwrap();
    }
    let follower = beside(&stream, place(&store).keep(2)).open().await.unwrap();
    take(&stream, &follower, 4).await;
    let left = names(&store).await;
    let ours = ["snapshots/stream/30.bin.zst", "snapshots/stream/40.bin.zst"];
    assert_eq!(left, [ours[0], ours[1], foreign[1], foreign[0]]);
    assert_eq!(
        stream.now_head(),
        0,
        "the stream is not trimmed unless one says so"
    );
}

#[tokio::test(start_paused = true)]
async fn foreign_objects_are_left_alone() {
    let (stream, store) = (Stream::new(1), Store::new(1, 0.0, 0));
    stream.data(some(10));
    // It has the name that a snapshot would get.
    let taken = Path::from("snapshots/stream/10.bin.zst");
    store.put(&taken, "anything".into()).await.unwrap();
    let builder = beside(&stream, place(&store)).pass_over_unusable();
    let follower = builder.open().await.unwrap();
    has_everything(&follower, &stream).await;
    let info = follower.snapshot().await.unwrap();
    assert_ne!(info.place, taken.to_string());
    let bytes = store.get(&taken).await.unwrap().bytes().await.unwrap();
    assert_eq!(&bytes[..], b"anything");
    let builder = beside(&stream, place(&store)).pass_over_unusable();
    let reader = builder.open().await.unwrap();
    assert_eq!(reader.restored().unwrap().place, info.place);
}

#[tokio::test(start_paused = true)]
async fn the_stream_is_trimmed_to_the_oldest_or_the_newest_that_is_kept() {
    for (to, head) in [(TrimTo::Oldest, 21), (TrimTo::Newest, 32)] {
        let (stream, store) = (Stream::new(1), Store::new(1, 0.0, 0));
        let external = place(&store).keep(2).trim(to);
        let follower = beside(&stream, external.clone()).open().await.unwrap();
        // Each trim takes a position, too.
        take(&stream, &follower, 3).await;
        assert_eq!(stream.now_head(), head);
        let reader = beside(&stream, external).open().await.unwrap();
        assert_eq!(reader.restored().unwrap().cursor, 32);
        has_everything(&reader, &stream).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_store_that_fails_for_a_moment_does_not_keep_a_follower_from_opening() {
    let (stream, store) = (Stream::new(1), Store::new(1, 0.0, 0));
    stream.data(["a", "b", "c"]);
    let follower = beside(&stream, place(&store)).open().await.unwrap();
    has_everything(&follower, &stream).await;
    follower.snapshot().await.unwrap();
    drop(follower);

    store.fail(1.0);
    let opening = tokio::spawn(beside(&stream, place(&store)).open());
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert!(!opening.is_finished());
    store.fail(0.0);
    let follower = opening.await.unwrap().unwrap();
    assert_eq!(follower.restored().unwrap().cursor, 3);

    // For ever it is not waited for.
    store.fail(1.0);
    let opened = beside(&stream, place(&store)).open().await;
    assert!(matches!(opened, Err(Error::Store { .. })), "{opened:?}");
}

#[tokio::test(start_paused = true)]
async fn a_failing_store_never_stops_the_follower() {
    let (stream, store) = (Stream::new(1), Store::new(1, 0.0, 0));
    let external = place(&store).trim(TrimTo::Newest);
    let builder = beside(&stream, external.clone()).every_records(5);
    let follower = builder.open().await.unwrap();
    store.fail(1.0);
    for _ in 0..10 {
        stream.data(some(10));
        tokio::time::sleep(Duration::from_secs(5)).await;
        has_everything(&follower, &stream).await;
    }
    let status = follower.status();
    assert_eq!(status.taken, 0);
    assert!(status.failed > 1, "it is tried again");
    assert!(matches!(
        follower.snapshot().await,
        Err(Error::Store { .. })
    ));
    assert_eq!(
        stream.now_head(),
        0,
        "nothing is trimmed without a snapshot"
    );
    store.fail(0.0);
    tokio::time::sleep(Duration::from_secs(120)).await;
    assert!(follower.status().taken > 0, "{:?}", follower.status());
    let reader = beside(&stream, external).open().await.unwrap();
    has_everything(&reader, &stream).await;
}

#[tokio::test(start_paused = true)]
async fn a_store_that_fails_while_a_snapshot_is_wanted_again_is_waited_for() {
    let (stream, store) = (Stream::new(1), Store::new(1, 0.0, 0));
    let external = place(&store).trim(TrimTo::Newest);
    let taker = beside(&stream, external.clone()).open().await.unwrap();
    take(&stream, &taker, 1).await;
    let reader = beside(&stream, external).open().await.unwrap();
    has_everything(&reader, &stream).await;
    // What it has read is cut off: it needs a snapshot, and the store is not there.
    drop(taker);
    store.fail(1.0);
    stream.data(some(5));
    tokio::time::sleep(Duration::from_secs(1)).await;
    stream.fork(12);
    stream.data(some(1));
    tokio::time::sleep(Duration::from_secs(100)).await;
    assert!(
        reader.status().ended.is_none(),
        "{:?}",
        reader.status().ended
    );
    assert!(!reader.status().caught_up);
    store.fail(0.0);
    tokio::time::sleep(Duration::from_secs(10)).await;
    has_everything(&reader, &stream).await;
}

#[tokio::test(start_paused = true)]
async fn a_damaged_snapshot_is_passed_over_for_an_older_one() {
    let (stream, store) = (Stream::new(1), Store::new(1, 0.0, 0));
    let follower = beside(&stream, place(&store)).open().await.unwrap();
    take(&stream, &follower, 2).await;
    let newest = Path::from("snapshots/stream/20.bin.zst");
    let bytes = store.get(&newest).await.unwrap().bytes().await.unwrap();
    let mut damaged = bytes.to_vec();
    let middle = damaged.len() / 2 + 40;
    flip(&mut damaged, middle);
    store.put(&newest, damaged.into()).await.unwrap();
    let reader = beside(&stream, place(&store)).open().await.unwrap();
    assert_eq!(reader.restored().unwrap().cursor, 10);
    has_everything(&reader, &stream).await;
}

#[tokio::test(start_paused = true)]
async fn foreign_objects_do_not_count_however_many_there_are() {
    let (stream, store) = (Stream::new(1), Store::new(1, 0.0, 0));
    for number in 0..10_001 {
        let name = format!("snapshots/stream/photo-{number}.jpg");
        store.put(&Path::from(name), "x".into()).await.unwrap();
    }
    let follower = beside(&stream, place(&store)).open().await.unwrap();
    take(&stream, &follower, 4).await;
    let reader = beside(&stream, place(&store)).open().await.unwrap();
    assert_eq!(reader.restored().unwrap().cursor, 40);
    assert_eq!(names(&store).await.len(), 10_001 + 3);

    // Also if they are named like snapshots: then those with the highest numbers are looked at.
    for number in 0..10_001 {
        let name = format!("snapshots/stream/0-{number}.jpg");
        store.put(&Path::from(name), "x".into()).await.unwrap();
    }
    let reader = beside(&stream, place(&store)).open().await.unwrap();
    assert_eq!(reader.restored().unwrap().cursor, 40);
}

fn cursors(names: &[String]) -> Vec<u64> {
    let number = |name: &String| name.split(['/', '.', '-']).nth(2)?.parse().ok();
    let mut cursors: Vec<u64> = names.iter().filter_map(number).collect();
    cursors.sort_unstable();
    cursors
}

#[tokio::test(start_paused = true)]
async fn snapshots_of_a_lineage_that_was_cut_off_go_when_there_are_enough_of_the_new_one() {
    let (stream, store) = (Stream::new(1), Store::new(1, 0.0, 0));
    let builder = beside(&stream, place(&store).keep(2));
    let follower = builder.open().await.unwrap();
    take(&stream, &follower, 3).await;
    assert_eq!(cursors(&names(&store).await), [20, 30]);
    // What is before 20 is of both lineages; the one at 30 is of no use any more.
    stream.fork(25);
    stream.data(some(1));
    tokio::time::sleep(Duration::from_secs(10)).await;
    has_everything(&follower, &stream).await;
    let first = follower.snapshot().await.unwrap().cursor;
    assert_eq!(cursors(&names(&store).await), [20, first]);
    take(&stream, &follower, 1).await;
    let second = follower.snapshot().await.unwrap().cursor;
    assert_eq!(cursors(&names(&store).await), [first, second]);
}

#[tokio::test(start_paused = true)]
async fn snapshots_of_an_earlier_stream_go_only_by_choice() {
    for by_choice in [false, true] {
        let (stream, store) = (Stream::new(1), Store::new(1, 0.0, 0));
        let external = place(&store).keep(2);
        let follower = beside(&stream, external.clone()).open().await.unwrap();
        take(&stream, &follower, 3).await;
        drop(follower);
        stream.recreate();
        let external = match by_choice {
            true => external.delete_former_streams(),
            false => external,
        };
        let builder = beside(&stream, external).pass_over_unusable();
        let follower = builder.open().await.unwrap();
        stream.data(some(3));
        has_everything(&follower, &stream).await;
        follower.snapshot().await.unwrap();
        assert_eq!(cursors(&names(&store).await), [3, 20, 30], "too few of now");
        stream.data(some(1));
        has_everything(&follower, &stream).await;
        follower.snapshot().await.unwrap();
        let expected: &[u64] = match by_choice {
            true => &[3, 4],
            false => &[3, 4, 20, 30],
        };
        assert_eq!(cursors(&names(&store).await), expected);
    }
}

/// The bytes of an object, with one of them changed.
async fn damage(store: &Store, name: &str) {
    let path = Path::from(name);
    let bytes = store.get(&path).await.unwrap().bytes().await.unwrap();
    let mut damaged = bytes.to_vec();
    let middle = damaged.len() / 2 + 40;
    flip(&mut damaged, middle);
    store.put(&path, damaged.into()).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_damaged_snapshot_at_the_same_cursor_does_not_stand_for_one_that_is_whole() {
    let (stream, store) = (Stream::new(1), Store::new(1, 0.0, 0));
    let external = || place(&store).trim(TrimTo::Newest);
    stream.data(some(10));
    let follower = beside(&stream, place(&store)).open().await.unwrap();
    has_everything(&follower, &stream).await;
    follower.snapshot().await.unwrap();
    drop(follower);
    damage(&store, "snapshots/stream/10.bin.zst").await;

    // It cannot use that one, and takes its own at the same cursor.
    let follower = beside(&stream, external()).open().await.unwrap();
    assert_eq!(follower.restored(), None);
    has_everything(&follower, &stream).await;
    let taken = follower.snapshot().await.unwrap();
    assert_ne!(taken.place, "snapshots/stream/10.bin.zst");
    let reader = beside(&stream, external()).open().await.unwrap();
    assert_eq!(reader.restored().unwrap().place, taken.place);
    has_everything(&reader, &stream).await;
}

#[tokio::test(start_paused = true)]
async fn a_stream_is_never_trimmed_beyond_the_snapshot_that_was_put() {
    let (stream, store) = (Stream::new(1), Store::new(1, 0.0, 0));
    stream.data(some(10));
    // One that is ahead, of another follower, and no longer whole.
    let ahead = beside(&stream, place(&store)).open().await.unwrap();
    let behind = beside(&stream, place(&store).keep(1).trim(TrimTo::Newest));
    let behind = behind.open().await.unwrap();
    has_everything(&behind, &stream).await;
    take(&stream, &ahead, 1).await;
    let (meta, bytes, totals) = crate::describe(&stream, 1000, &crate::state(&stream, 20));
    let head = esker_follow::snapshot::object::head(&meta);
    let tail = esker_follow::snapshot::object::tail(esker_follow::Encoding::None, &totals);
    let object = [&head[..], &bytes[..], &tail[..]].concat();
    store
        .put(&Path::from("snapshots/stream/1000.bin"), object.into())
        .await
        .unwrap();
    damage(&store, "snapshots/stream/1000.bin").await;
    has_everything(&behind, &stream).await;
    stream.data(some(5));
    has_everything(&behind, &stream).await;
    let taken = behind.snapshot().await.unwrap();
    assert_eq!(taken.cursor, 25);
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert!(stream.now_head() <= 25, "{}", stream.now_head());
    assert!(names(&store).await.contains(&taken.place), "it is kept");
}

#[tokio::test(start_paused = true)]
async fn a_list_that_lacks_the_snapshot_for_which_the_stream_was_trimmed_is_waited_for() {
    for seed in 0..10 {
        let (stream, store) = (Stream::new(seed), Store::new(seed, 0.0, 0));
        let external = || place(&store).keep(1).trim(TrimTo::Newest);
        let follower = beside(&stream, external()).open().await.unwrap();
        take(&stream, &follower, 2).await;
        drop(follower);
        let head = stream.now_head();
        assert!(head > 0);
        store.lag(1.0, 3000);
        let reader = beside(&stream, external()).open().await.unwrap();
        assert!(reader.restored().unwrap().cursor >= head);
        has_everything(&reader, &stream).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_running_follower_waits_for_a_list_that_is_behind() {
    for seed in 0..10 {
        let (stream, store) = (Stream::new(seed), Store::new(seed, 0.0, 0));
        let external = || place(&store).keep(2).trim(TrimTo::Newest);
        let follower = beside(&stream, external()).open().await.unwrap();
        take(&stream, &follower, 2).await;
        drop(follower);
        // It may begin with the older one, which is still there, and for which nothing is left.
        store.lag(1.0, 3000);
        let reader = beside(&stream, external()).open().await.unwrap();
        tokio::time::sleep(Duration::from_secs(30)).await;
        assert!(reader.status().ended.is_none(), "{:?}", reader.status());
        has_everything(&reader, &stream).await;
    }
}

#[tokio::test(start_paused = true)]
async fn what_a_loss_makes_the_newest_while_the_store_lists_is_not_deleted() {
    let (stream, store) = (Stream::new(1), Store::new(1, 0.0, 0));
    let follower = beside(&stream, place(&store).keep(2)).open().await.unwrap();
    take(&stream, &follower, 2).await;
    stream.data(some(10));
    has_everything(&follower, &stream).await;
    let cut_off = stream.clone();
    store.before_list(move || cut_off.fork(15));
    // It may be taken once more, of what is left.
    follower.snapshot().await.unwrap();
    drop(follower);
    let left = names(&store).await;
    let wanted = "snapshots/stream/10.bin.zst".to_owned();
    assert!(left.contains(&wanted), "{left:?}");
    let reader = beside(&stream, place(&store)).open().await.unwrap();
    assert!(reader.restored().is_some());
    has_everything(&reader, &stream).await;
}

#[tokio::test(start_paused = true)]
async fn a_late_delete_of_a_former_stream_s_snapshot_takes_none_of_the_present_one() {
    let (stream, store) = (Stream::new(1), Store::new(1, 0.0, 0));
    let external = || place(&store).keep(1).delete_former_streams();
    let follower = beside(&stream, place(&store)).open().await.unwrap();
    take(&stream, &follower, 1).await;
    drop(follower);
    let former = Path::from("snapshots/stream/10.bin.zst");
    stream.recreate();
    store.delete(&former).await.unwrap();
    stream.data(some(10));
    let follower = beside(&stream, external()).open().await.unwrap();
    has_everything(&follower, &stream).await;
    let taken = follower.snapshot().await.unwrap();
    // The answer to the request was lost, and the store gets it again.
    let _ = store.delete(&former).await;
    let reader = beside(&stream, external()).open().await.unwrap();
    assert_eq!(reader.restored(), Some(&taken));
}
