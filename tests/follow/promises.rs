//! Restarts, disconnects, busy streams: nothing missing, nothing twice.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Instant;

use esker_follow::folds::Latest;
use esker_follow::{Encoding, Error, Follower, Kind, TrimTo};
use futures::StreamExt as _;
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use s2_sdk::types::{AppendInput, AppendRecord, AppendRecordBatch, CommandRecord, EncryptionKey};

use super::place::{Place, SOON, append_one, expected, is_elsewhere, numbers, order, settled};
use crate::support::{eventually, sdk};

#[tokio::test]
async fn a_follower_has_all_that_was_appended_and_what_comes() {
    let place = Place::new().await;
    place.append(0..2500, 100).await;
    let follower = place.latest().open().await.unwrap();
    follower.caught_up().await.unwrap();
    let view = follower.view().await.unwrap();
    assert_eq!(view.cursor, 2500);
    assert_eq!(numbers(&view.state), expected(2500, 100));

    let mut watching = follower.watch().await.unwrap();
    place.append(2500..2600, 100).await;
    let seen = watching.wait_for(|view| view.cursor == 2600);
    let seen = tokio::time::timeout(SOON, seen).await.unwrap().unwrap();
    assert_eq!(numbers(&seen.state), expected(2600, 100));
}

#[tokio::test]
async fn after_a_restart_only_what_came_since_the_snapshot_is_read() {
    let place = Place::new().await;
    place.append(0..3000, 50).await;
    let follower = place.latest().in_stream().open().await.unwrap();
    follower.caught_up().await.unwrap();
    let taken = follower.snapshot().await.unwrap();
    assert_eq!((taken.kind, taken.cursor), (Kind::Single, 3000));
    assert!(!taken.anchored);
    drop(follower);
    place.append(3000..3100, 50).await;

    let follower = place.latest().in_stream().open().await.unwrap();
    follower.caught_up().await.unwrap();
    assert_eq!(follower.restored().unwrap().cursor, 3000);
    let status = follower.status();
    assert_eq!(status.applied, 100);
    // The trim command and the snapshot have taken a place each.
    assert_eq!(status.cursor, 3102);
    let view = follower.close().await.unwrap();
    assert_eq!(numbers(&view.state), expected(3100, 50));
}

#[tokio::test]
async fn a_follower_of_an_encrypted_stream_has_its_snapshots_in_it_with_the_streams_key() {
    let place = Place::new().await;
    place.encrypt().await;
    let key = EncryptionKey::new([7; 32]);
    let stream = place.stream().with_encryption_key(key.clone());
    sdk::append(&stream, (0..500).map(|n| order(n, 50))).await;

    let with_key = |key| {
        let endpoint = place.endpoint().with_encryption_key(key);
        Follower::builder(endpoint, Latest::by("/id").unwrap()).in_stream()
    };
    let follower = with_key(key.clone()).open().await.unwrap();
    follower.caught_up().await.unwrap();
    let taken = follower.snapshot().await.unwrap();
    assert_eq!((taken.kind, taken.cursor), (Kind::Single, 500));
    drop(follower);
    sdk::append(&stream, (500..520).map(|n| order(n, 50))).await;

    let follower = with_key(key).open().await.unwrap();
    follower.caught_up().await.unwrap();
    assert_eq!(follower.restored().unwrap().cursor, 500);
    let view = follower.close().await.unwrap();
    assert_eq!(numbers(&view.state), expected(520, 50));

    for endpoint in [
        place.endpoint(),
        place
            .endpoint()
            .with_encryption_key(EncryptionKey::new([8; 32])),
    ] {
        let other = Follower::builder(endpoint, Latest::by("/id").unwrap()).in_stream();
        assert!(
            other.open().await.is_err(),
            "it has no state without the key"
        );
    }
}

#[tokio::test]
async fn the_stream_is_trimmed_to_a_snapshot_in_it() {
    let place = Place::new().await;
    place.append(0..100, 50).await;
    let follower = place.latest().in_stream().open().await.unwrap();
    follower.caught_up().await.unwrap();
    follower.snapshot().await.unwrap();
    let head = eventually("the stream is trimmed", async || {
        let batch = place.stream().read(sdk::from_seq(0, 1)).await.unwrap();
        let head = batch.records[0].seq_num;
        (head > 0).then_some(head)
    });
    assert_eq!(head.await, 101);
}

#[tokio::test]
async fn a_state_that_does_not_fit_into_a_batch_is_framed() {
    let place = Place::new().await;
    // 3000 ids with some 1 KiB each, which does not compress into one batch.
    let stream = place.stream();
    let mut rng = StdRng::seed_from_u64(1);
    for chunk in (0..3000_u64).collect::<Vec<_>>().chunks(200) {
        let bodies = chunk.iter().map(|n| {
            let padding: String = (0..100)
                .map(|_| format!("{:016x}", rng.random::<u64>()))
                .collect();
            format!(r#"{{"id":{n},"n":{n},"padding":"{padding}"}}"#)
        });
        sdk::append(&stream, bodies).await;
    }
    for encoding in [Encoding::None, Encoding::Zstd] {
        let follower = place
            .latest()
            .in_stream()
            .encoding(encoding)
            .open()
            .await
            .unwrap();
        follower.caught_up().await.unwrap();
        let before = numbers(&follower.view().await.unwrap().state);
        append_one(&stream, r#"{"id":7,"n":7}"#).await;
        let taken = follower.snapshot().await.unwrap();
        assert_eq!(taken.kind, Kind::Framed);
        drop(follower);
        place.append(0..10, 3000).await;
        let follower = place.latest().in_stream().open().await.unwrap();
        follower.caught_up().await.unwrap();
        assert_eq!(follower.restored().unwrap(), &taken);
        assert_eq!(numbers(&follower.view().await.unwrap().state), before);
    }
}

#[tokio::test]
async fn snapshots_beside_the_stream_are_kept_and_the_stream_trimmed_to_the_oldest_of_them() {
    let place = Place::new().await;
    let objects = || place.objects().keep(2).trim(TrimTo::Oldest);
    let follower = place.latest().external(objects()).open().await.unwrap();
    for round in 0..4 {
        place.append(100 * round..100 * (round + 1), 10).await;
        let tail = place.tail().await;
        let mut status = follower.watch_status();
        let met = status.wait_for(|status| status.cursor >= tail);
        tokio::time::timeout(SOON, met).await.unwrap().unwrap();
        follower.snapshot().await.unwrap();
    }
    drop(follower);
    // Each trim took a place. The first snapshots had 0 and 100 below them; the trims follow.
    let names = place.names();
    assert_eq!(names.len(), 2, "{names:?}");
    let cursor = |name: &String| name.split('.').next().unwrap().parse::<u64>().unwrap();
    let oldest = names.iter().map(cursor).min().unwrap();
    eventually("the stream is trimmed", async || {
        let batch = place.stream().read(sdk::from_seq(0, 1)).await.unwrap();
        (batch.records[0].seq_num == oldest).then_some(())
    })
    .await;
    let follower = place.latest().external(objects()).open().await.unwrap();
    follower.caught_up().await.unwrap();
    assert_eq!(
        numbers(&follower.view().await.unwrap().state),
        expected(400, 10)
    );
    assert!(follower.status().applied < 10);
}

#[tokio::test]
async fn a_snapshot_beside_the_stream_is_read_by_usual_tools() {
    let place = Place::new().await;
    place.append(0..10, 3).await;
    let objects = place.objects();
    let follower = place.latest().external(objects).encoding(Encoding::None);
    let follower = follower.open().await.unwrap();
    follower.caught_up().await.unwrap();
    let taken = follower.snapshot().await.unwrap();
    assert_eq!(taken.place, "snapshots/orders/10.json");
    let text = std::fs::read_to_string(place.dir.path().join("objects").join(taken.place)).unwrap();
    let lines: Vec<serde_json::Value> = text
        .lines()
        .filter(|line| !line.is_empty())
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    assert_eq!(lines[0]["esker_snapshot"]["cursor"], 10);
    assert_eq!(lines.len(), 1 + 3 + 1);
}

#[tokio::test]
async fn history_that_nothing_covers_is_an_error_and_never_a_gap() {
    let place = Place::new().await;
    place.append(0..20, 3).await;
    let trim: AppendRecord = CommandRecord::trim(10).into();
    let trim = AppendRecordBatch::try_from_iter([trim]).unwrap();
    place.stream().append(AppendInput::new(trim)).await.unwrap();
    eventually("the stream is trimmed", async || {
        let batch = place.stream().read(sdk::from_seq(0, 1)).await.unwrap();
        (batch.records[0].seq_num == 10).then_some(())
    })
    .await;
    for builder in [
        place.latest(),
        place.latest().in_stream(),
        place.latest().external(place.objects()),
    ] {
        match builder.open().await {
            Err(Error::HistoryGone { head, .. }) => assert_eq!(head, 10),
            other => panic!("{other:?}"),
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_follower_goes_on_over_kills_of_the_server_without_loss_or_repetition() {
    if is_elsewhere() {
        return;
    }
    let mut place = Place::new().await;
    let follower = place
        .latest()
        .in_stream()
        .every_records(50)
        .open()
        .await
        .unwrap();
    let mut server = place.server.take().unwrap();
    let address = server.address().to_owned();
    let mut appended = 0;
    for _ in 0..4 {
        place.append(appended..appended + 300, 20).await;
        appended += 300;
        server.kill();
        let setup = crate::support::Setup::default().listen(&address);
        server.restart(&setup).await;
    }
    place.append(appended..appended + 1, 20).await;
    appended += 1;
    let mut watching = follower.watch().await.unwrap();
    let tail = place.tail().await;
    let met = watching.wait_for(|view| view.cursor >= tail);
    let seen = tokio::time::timeout(SOON, met)
        .await
        .unwrap()
        .unwrap()
        .state
        .clone();
    assert_eq!(numbers(&seen), expected(appended, 20));
    assert_eq!(follower.status().applied, appended);
    assert!(follower.status().reconnects > 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn on_a_busy_stream_there_is_a_snapshot_soon_all_the_same() {
    let place = Place::new().await;
    place.append(0..1000, 50).await;
    let follower = place.latest().in_stream().open().await.unwrap();
    follower.caught_up().await.unwrap();
    let stop = Arc::new(AtomicBool::new(false));
    let count = Arc::new(AtomicU64::new(1000));
    let writers: Vec<_> = (0..8)
        .map(|_| {
            let (stream, stop, count) = (place.stream(), stop.clone(), count.clone());
            tokio::spawn(async move {
                while !stop.load(Ordering::Relaxed) {
                    let n = count.fetch_add(1, Ordering::Relaxed);
                    append_one(&stream, &super::place::order(n, u64::MAX)).await;
                }
            })
        })
        .collect();
    let begun = Instant::now();
    for _ in 0..5 {
        follower.snapshot().await.unwrap();
    }
    let took = begun.elapsed();
    stop.store(true, Ordering::Relaxed);
    for writer in writers {
        writer.await.unwrap();
    }
    assert!(took < SOON, "{took:?}");
    drop(follower);
    let follower = place.latest().in_stream().open().await.unwrap();
    follower.caught_up().await.unwrap();
    let appended = count.load(Ordering::Relaxed);
    let view = follower.view().await.unwrap();
    assert_eq!(view.state.len() as u64, 50 + appended - 1000);
    assert!(follower.status().applied < appended);
}

#[tokio::test]
async fn two_snapshotters_and_a_reader_agree() {
    let place = Place::new().await;
    let open = async || {
        let builder = place.latest().in_stream().every_records(100);
        builder.open().await.unwrap()
    };
    let (one, other) = (open().await, open().await);
    for round in 0..10 {
        place.append(200 * round..200 * (round + 1), 30).await;
    }
    assert_eq!(settled(&place, &one).await, expected(2000, 30));
    assert_eq!(settled(&place, &other).await, expected(2000, 30));
    eventually("one of them has taken a snapshot", async || {
        let taken = one.status().taken + other.status().taken;
        (taken > 0).then_some(())
    })
    .await;
    let reader = place.latest().open().await.unwrap();
    reader.caught_up().await.unwrap();
    assert!(reader.restored().is_some());
    assert_eq!(settled(&place, &reader).await, expected(2000, 30));
}

#[tokio::test]
async fn a_recreated_stream_is_not_taken_for_the_old_one() {
    let place = Place::new().await;
    place.append(0..100, 10).await;
    let follower = place
        .latest()
        .external(place.objects())
        .open()
        .await
        .unwrap();
    follower.caught_up().await.unwrap();
    follower.snapshot().await.unwrap();
    drop(follower);
    let s2 = place.s2();
    let basin = s2.basin(sdk::basin_name(place.basin()));
    let name = sdk::stream_name("orders");
    let input = s2_sdk::types::DeleteStreamInput::new(name.clone());
    basin.delete_stream(input).await.unwrap();
    eventually("the name is free", async || {
        let input = s2_sdk::types::CreateStreamInput::new(name.clone());
        basin.create_stream(input).await.ok()
    })
    .await;
    place.append(0..200, 10).await;
    match place.latest().external(place.objects()).open().await {
        Err(Error::Unusable { snapshot, why }) => {
            assert_eq!(snapshot, "snapshots/orders/100.json.zst");
            assert!(why.to_string().contains("of the same name"), "{why}");
        }
        other => panic!("{other:?}"),
    }
    let builder = place
        .latest()
        .external(place.objects())
        .pass_over_unusable();
    let follower = builder.open().await.unwrap();
    follower.caught_up().await.unwrap();
    assert_eq!(
        numbers(&follower.view().await.unwrap().state),
        expected(200, 10)
    );
    // The snapshots of the two followers do not interfere.
    follower.snapshot().await.unwrap();
    assert_eq!(place.names(), ["100.json.zst", "200.json.zst"]);
}

#[tokio::test]
async fn updates_tell_what_happens_in_order() {
    use esker_follow::Update;
    let place = Place::new().await;
    let follower = place.latest().in_stream().open().await.unwrap();
    follower.caught_up().await.unwrap();
    let mut updates = follower.updates();
    place.append(0..10, 5).await;
    follower.snapshot().await.unwrap();
    follower.close().await.unwrap();
    let (mut to, mut taken) = (0, false);
    loop {
        match tokio::time::timeout(SOON, updates.next()).await.unwrap() {
            Some(Update::Applied { from, to: end }) => {
                assert_eq!(from, to);
                to = end;
            }
            Some(Update::SnapshotTaken(_)) => taken = true,
            Some(Update::CaughtUp { .. }) => {}
            Some(Update::Ended(None)) => break,
            other => panic!("{other:?}"),
        }
    }
    assert!(to >= 10);
    assert!(taken);
}
