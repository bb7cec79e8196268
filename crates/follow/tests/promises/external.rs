//! Snapshots beside the stream.

use std::sync::Arc;
use std::time::Duration;

use esker_follow::{Error, External, Follower, TrimTo};
use futures::TryStreamExt as _;
use object_store::path::Path;
use object_store::{ObjectStore as _, ObjectStoreExt as _};

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
    damaged[middle] ^= 1;
    store.put(&newest, damaged.into()).await.unwrap();
    let reader = beside(&stream, place(&store)).open().await.unwrap();
    assert_eq!(reader.restored().unwrap().cursor, 10);
    has_everything(&reader, &stream).await;
}
