//! Histories that were lost in part. Only Esker has and reports them.

use std::time::Duration;

use esker_follow::Error;
use s2_sdk::types::{AppendInput, AppendRecord, AppendRecordBatch, CommandRecord, FencingToken};

use super::place::{Place, SOON, expected, is_elsewhere, order, settled};
use crate::support::{Setup, eventually};

/// A server that puts its partitions into a repository that survives the loss.
fn setup(place: &Place) -> Setup {
    let backups = place.dir.path().join("backups");
    Setup::default()
        .set(&format!("snapshots.destination={}", backups.display()))
        .set("snapshots.snapshot-interval=1h")
        .set("snapshots.num-retained=3")
}

/// A stream with 100 records that the repository has, and 100 that it does not have.
async fn past() -> Option<Place> {
    if is_elsewhere() {
        return None;
    }
    let place = Place::with(setup).await;
    place.append(0..100, 10).await;
    put(&place).await;
    Some(place)
}

/// Puts everything into the repository.
async fn put(place: &Place) {
    let server = place.server.as_ref().unwrap();
    for partition in 0..=2 {
        let path = format!("/esker/v1/partitions/{partition}/snapshots");
        server.http1().post(&path).send().await.expect(200);
    }
}

/// Loses everything but the repository.
async fn lose(place: &mut Place) {
    let setup = setup(place);
    let server = place.server.as_mut().unwrap();
    let address = server.address().to_owned();
    server.kill();
    std::fs::remove_dir_all(server.data_dir()).unwrap();
    let setup = setup.listen(&address).bootstrap("restore");
    server.restart(&setup).await;
}

#[tokio::test]
async fn a_snapshot_of_what_was_lost_is_passed_over_for_one_from_before() {
    let Some(mut place) = past().await else {
        return;
    };
    let follower = place
        .latest()
        .external(place.objects())
        .open()
        .await
        .unwrap();
    follower.caught_up().await.unwrap();
    follower.snapshot().await.unwrap();
    place.append(100..200, 10).await;
    assert_eq!(settled(&place, &follower).await, expected(200, 10));
    follower.snapshot().await.unwrap();
    drop(follower);
    assert_eq!(place.names(), ["100.json.zst", "200.json.zst"]);

    lose(&mut place).await;
    let follower = place
        .latest()
        .external(place.objects())
        .open()
        .await
        .unwrap();
    assert_eq!(follower.restored().unwrap().cursor, 100);
    assert_eq!(settled(&place, &follower).await, expected(100, 10));
    place.append(100..130, 10).await;
    assert_eq!(settled(&place, &follower).await, expected(130, 10));
    // The next one is of the new lineage.
    let taken = follower.snapshot().await.unwrap();
    assert_eq!(taken.cursor, 100 + (1 << 40) + 30);
    drop(follower);
    let follower = place
        .latest()
        .external(place.objects())
        .open()
        .await
        .unwrap();
    let restored = follower.restored().unwrap();
    assert_eq!(
        (&restored.place, restored.cursor),
        (&taken.place, taken.cursor)
    );
    assert_eq!(settled(&place, &follower).await, expected(130, 10));
}

#[tokio::test]
async fn a_follower_that_had_read_what_was_lost_goes_back_and_one_that_had_not_goes_on() {
    let Some(mut place) = past().await else {
        return;
    };
    let behind = place
        .latest()
        .external(place.objects())
        .open()
        .await
        .unwrap();
    behind.caught_up().await.unwrap();
    behind.snapshot().await.unwrap();
    let applied = behind.status().applied;
    behind.close().await.unwrap();
    place.append(100..200, 10).await;
    let ahead = place
        .latest()
        .external(place.objects())
        .open()
        .await
        .unwrap();
    assert_eq!(settled(&place, &ahead).await, expected(200, 10));

    lose(&mut place).await;
    place.append(100..110, 10).await;
    assert_eq!(settled(&place, &ahead).await, expected(110, 10));
    assert_eq!(ahead.status().newest.unwrap().cursor, 100);
    assert_eq!(applied, 100);
}

#[tokio::test]
async fn a_snapshot_from_between_two_losses_without_an_append_in_between_is_restored() {
    let Some(mut place) = past().await else {
        return;
    };
    lose(&mut place).await;
    let follower = place
        .latest()
        .external(place.objects())
        .open()
        .await
        .unwrap();
    assert_eq!(settled(&place, &follower).await, expected(100, 10));
    let between = follower.snapshot().await.unwrap();
    assert_eq!(between.cursor, 100 + (1 << 40));

    // Another restore is refused as long as the repository has nothing of the lineages that the first one began.
    put(&place).await;
    lose(&mut place).await;
    let reader = place
        .latest()
        .external(place.objects())
        .open()
        .await
        .unwrap();
    assert_eq!(reader.restored(), Some(&between));
    place.append(100..110, 10).await;
    assert_eq!(settled(&place, &reader).await, expected(110, 10));
    assert_eq!(reader.status().applied, 10);
    // The one that ran all the time has not read anything again.
    assert_eq!(settled(&place, &follower).await, expected(110, 10));
    assert_eq!(follower.status().applied, 100 + 10);
}

#[tokio::test]
async fn without_a_snapshot_from_before_the_whole_history_that_is_left_is_read() {
    let Some(mut place) = past().await else {
        return;
    };
    place.append(100..200, 10).await;
    let follower = place
        .latest()
        .external(place.objects())
        .open()
        .await
        .unwrap();
    assert_eq!(settled(&place, &follower).await, expected(200, 10));
    follower.snapshot().await.unwrap();
    lose(&mut place).await;
    // Its only snapshot is of the lost history, and the stream still has its beginning.
    assert_eq!(settled(&place, &follower).await, expected(100, 10));
    assert_eq!(follower.status().newest, None);
}

/// Appends a trim. Returns the error's code if it is refused.
async fn trim(place: &Place, to: u64) -> Option<String> {
    let batch = AppendRecordBatch::try_from_iter([CommandRecord::trim(to).into()]).unwrap();
    let appended = place.stream().append(AppendInput::new(batch)).await;
    let error = appended.err()?;
    let error = error.request_error().unwrap().server_error().unwrap();
    Some(error.code.clone())
}

#[tokio::test]
async fn a_trim_to_what_a_loss_has_cut_off_is_refused_and_removes_nothing() {
    let Some(mut place) = past().await else {
        return;
    };
    place.append(100..200, 10).await;
    lose(&mut place).await;
    let head = async || {
        let read = crate::support::sdk::from_seq(0, 1);
        place.stream().read(read).await.unwrap().records[0].seq_num
    };
    // Before anything is appended to the new history, and afterwards.
    for _ in 0..2 {
        for lost in [101, 150, 200, 1 << 39] {
            assert_eq!(
                trim(&place, lost).await.as_deref(),
                Some("invalid"),
                "{lost}"
            );
        }
        assert_eq!(head().await, 0);
        place.append(100..110, 10).await;
    }
    // The records that are left, and those appended since, can be trimmed.
    assert_eq!(trim(&place, 50).await, None);
    assert_eq!(head().await, 50);
    assert_eq!(trim(&place, 100).await, None);
    assert_eq!(head().await, 100 + (1 << 40));
    assert_eq!(trim(&place, 105 + (1 << 40)).await, None);
    assert_eq!(head().await, 105 + (1 << 40));
}

#[tokio::test]
async fn an_unreachable_server_is_waited_for_no_longer_than_was_said() {
    let mut place = Place::new().await;
    let Some(server) = place.server.as_mut() else {
        return;
    };
    server.kill();
    let builder = place
        .latest()
        .restore_timeout(Some(Duration::from_millis(300)));
    let opened = tokio::time::timeout(SOON, builder.open()).await.unwrap();
    match opened {
        Err(Error::Endpoint { stream, .. }) => assert!(stream.ends_with("/orders"), "{stream}"),
        other => panic!("{other:?}"),
    }
}

/// Appends two records, a trim of both, and a fence, in one batch, as clients do that end a message this way.
async fn append_message(place: &Place, number: u64) -> u64 {
    let first = place.tail().await;
    let record = |n| AppendRecord::new(order(n, 10)).unwrap();
    let token: FencingToken = "".parse().unwrap();
    let records = [
        record(number),
        record(number + 1),
        CommandRecord::trim(first + 3).into(),
        CommandRecord::fence(token).into(),
    ];
    let batch = AppendRecordBatch::try_from_iter(records).unwrap();
    place
        .stream()
        .append(AppendInput::new(batch))
        .await
        .unwrap();
    first
}

#[tokio::test]
async fn a_batch_that_trims_itself_is_applied_whole_also_after_a_reconnect_and_a_jump() {
    let Some(mut place) = past().await else {
        return;
    };
    let follower = place.latest().open().await.unwrap();
    assert_eq!(settled(&place, &follower).await, expected(100, 10));
    // At the tail; at the tail again after the connection was lost; after a history that was cut off.
    let mut applied = 100;
    for round in 0..3 {
        if round == 1 {
            let address = place.server.as_ref().unwrap().address().to_owned();
            let again = setup(&place).listen(&address);
            let server = place.server.as_mut().unwrap();
            server.kill();
            server.restart(&again).await;
        }
        if round == 2 {
            // The repository has what the follower has read.
            for partition in 0..=2 {
                let path = format!("/esker/v1/partitions/{partition}/snapshots");
                let server = place.server.as_ref().unwrap();
                server.http1().post(&path).send().await.expect(200);
            }
            let before = place.tail().await;
            lose(&mut place).await;
            assert!(place.tail().await > before, "the numbers jump");
        }
        // The follower has applied a record, so it is connected and at the tail.
        place.append(applied..applied + 1, 10).await;
        applied += 1;
        assert_eq!(settled(&place, &follower).await, expected(applied, 10));
        for _ in 0..5 {
            let first = append_message(&place, applied).await;
            applied += 2;
            assert_eq!(settled(&place, &follower).await, expected(applied, 10));
            assert_eq!(follower.status().applied, applied, "round {round}");
            // A new reader does not get these records.
            eventually("the stream is trimmed", async || {
                let read = crate::support::sdk::from_seq(0, 1);
                let batch = place.stream().read(read).await.unwrap();
                (batch.records[0].seq_num > first).then_some(())
            })
            .await;
        }
    }
}
