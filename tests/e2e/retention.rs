//! What time makes due: records past their age, streams that are empty.

use std::time::{Duration, Instant};

use s2_sdk::error::ErrorCode;
use s2_sdk::types::{
    AppendInput, AppendRecord, AppendRecordBatch, BasinConfig, CommandRecord, DeleteOnEmptyConfig,
    DeleteStreamInput, ReconfigureStreamInput, RetentionPolicy, StreamConfig,
    StreamReconfiguration,
};
use s2_sdk::{S2Basin, S2Stream};

use crate::support::sdk::{self, stream_name};
use crate::support::{Server, Setup, eventually, now_ms};

fn age(secs: u64) -> StreamConfig {
    StreamConfig::new().with_retention_policy(RetentionPolicy::Age(secs))
}

fn on_empty(secs: u64) -> StreamConfig {
    StreamConfig::new()
        .with_delete_on_empty(DeleteOnEmptyConfig::new().with_min_age(Duration::from_secs(secs)))
}

async fn exists(basin: &S2Basin, name: &str) -> bool {
    match basin.get_stream_config(stream_name(name)).await {
        Ok(_) => true,
        Err(error) => {
            let code = error.server_error().unwrap().known_code();
            assert_eq!(code, Some(ErrorCode::StreamNotFound));
            false
        }
    }
}

async fn trim_all(stream: &S2Stream) {
    let trim: AppendRecord = CommandRecord::trim(u64::MAX).into();
    let batch = AppendRecordBatch::try_from_iter([trim]).unwrap();
    stream.append(AppendInput::new(batch)).await.unwrap();
}

#[tokio::test]
async fn records_past_their_age_go_and_younger_ones_stay() {
    let server = Server::fresh().await;
    let basin = sdk::basin(&server.sdk(), "test-basin").await;
    let short = sdk::stream_with(&basin, "short", age(2)).await;
    let long = sdk::stream_with(&basin, "long", age(3600)).await;
    let infinite = StreamConfig::new().with_retention_policy(RetentionPolicy::Infinite);
    let infinite = sdk::stream_with(&basin, "infinite", infinite).await;
    let appended = Instant::now();
    for stream in [&short, &long, &infinite] {
        sdk::append(stream, ["old", "old"]).await;
    }
    tokio::time::sleep(Duration::from_millis(1200)).await;
    sdk::append(&short, ["young"]).await;
    assert_eq!(sdk::read_all(&short).await.len(), 3, "not before its age");
    eventually("the old ones are gone", async || {
        let records = sdk::read_all(&short).await;
        (records.len() == 1).then(|| assert_eq!(sdk::bodies(&records), ["young"]))
    })
    .await;
    let took = appended.elapsed();
    assert!((2.0..2.9).contains(&took.as_secs_f64()), "{took:?}");
    eventually("the young one is gone", async || {
        sdk::read_all(&short).await.is_empty().then_some(())
    })
    .await;
    // The tail does not move, and the stream goes on.
    assert_eq!(short.check_tail().await.unwrap().seq_num, 3);
    assert_eq!(sdk::append(&short, ["next"]).await.start.seq_num, 3);
    for stream in [&long, &infinite] {
        assert_eq!(sdk::read_all(stream).await.len(), 2);
    }
}

#[tokio::test]
async fn age_counts_from_the_arrival_not_from_the_clients_timestamp() {
    let server = Server::fresh().await;
    let basin = sdk::basin(&server.sdk(), "test-basin").await;
    let stream = sdk::stream_with(&basin, "orders", age(60)).await;
    let record = AppendRecord::new("an import from long ago").unwrap();
    let batch = AppendRecordBatch::try_from_iter([record.with_timestamp(1)]).unwrap();
    stream.append(AppendInput::new(batch)).await.unwrap();
    tokio::time::sleep(Duration::from_millis(600)).await;
    assert_eq!(sdk::read_all(&stream).await.len(), 1);
}

#[tokio::test]
async fn a_changed_retention_holds_for_what_is_there_already() {
    let server = Server::fresh().await;
    let basin = sdk::basin(&server.sdk(), "test-basin").await;
    let stream = sdk::stream_with(&basin, "orders", age(3600)).await;
    sdk::append(&stream, ["old"]).await;
    tokio::time::sleep(Duration::from_millis(1100)).await;
    let changes = StreamReconfiguration::new().with_retention_policy(RetentionPolicy::Age(1));
    basin
        .reconfigure_stream(ReconfigureStreamInput::new(stream_name("orders"), changes))
        .await
        .unwrap();
    eventually("the old one is gone", async || {
        sdk::read_all(&stream).await.is_empty().then_some(())
    })
    .await;
}

#[tokio::test]
async fn an_expiry_is_not_undone_by_a_restart() {
    let setup = Setup::default();
    let mut server = setup.start_fresh().await;
    let basin = sdk::basin(&server.sdk(), "test-basin").await;
    let stream = sdk::stream_with(&basin, "orders", age(1)).await;
    sdk::append(&stream, ["a", "b"]).await;
    eventually("all is gone", async || {
        sdk::read_all(&stream).await.is_empty().then_some(())
    })
    .await;
    server.kill();
    // No round comes before the read.
    server.restart(&setup.set("retention.interval=1h")).await;
    let basin = server.sdk().basin(sdk::basin_name("test-basin"));
    let stream = basin.stream(stream_name("orders"));
    assert!(sdk::read_all(&stream).await.is_empty());
    assert_eq!(stream.check_tail().await.unwrap().seq_num, 2);
}

#[tokio::test]
async fn an_empty_stream_is_deleted_after_its_time_and_one_with_records_is_not() {
    let server = Server::fresh().await;
    let basin = sdk::basin(&server.sdk(), "test-basin").await;
    let started = Instant::now();
    sdk::stream_with(&basin, "never-written", on_empty(1)).await;
    let written = sdk::stream_with(&basin, "written", on_empty(1)).await;
    sdk::append(&written, ["a"]).await;
    sdk::stream_with(&basin, "stays", on_empty(0)).await;
    let busy = sdk::stream_with(&basin, "busy", on_empty(1)).await;
    eventually("it is deleted", async || {
        // Appends and trims put it off.
        sdk::append(&busy, ["x"]).await;
        trim_all(&busy).await;
        (!exists(&basin, "never-written").await).then_some(())
    })
    .await;
    let took = started.elapsed();
    assert!((1.0..1.9).contains(&took.as_secs_f64()), "{took:?}");
    for name in ["written", "stays", "busy"] {
        assert!(exists(&basin, name).await, "{name}");
    }
    // Emptied by a trim, it has its time from then on.
    let emptied = Instant::now();
    trim_all(&written).await;
    eventually("the trimmed one is deleted", async || {
        (!exists(&basin, "written").await).then_some(())
    })
    .await;
    let took = emptied.elapsed();
    assert!((1.0..1.9).contains(&took.as_secs_f64()), "{took:?}");
    assert!(exists(&basin, "stays").await);
}

#[tokio::test]
async fn records_that_expire_leave_an_empty_stream_that_goes_too() {
    let server = Server::fresh().await;
    let config = BasinConfig::new().with_default_stream_config(
        age(1)
            .with_delete_on_empty(DeleteOnEmptyConfig::new().with_min_age(Duration::from_secs(1))),
    );
    let basin = sdk::basin_with(&server.sdk(), "test-basin", config).await;
    let started = Instant::now();
    sdk::append(&sdk::stream(&basin, "orders").await, ["a"]).await;
    eventually("it is gone", async || {
        (!exists(&basin, "orders").await).then_some(())
    })
    .await;
    let took = started.elapsed();
    assert!((2.0..3.5).contains(&took.as_secs_f64()), "{took:?}");
}

#[tokio::test]
async fn a_stream_made_anew_is_not_hit_by_the_deadline_of_the_one_before() {
    let server = Server::fresh().await;
    let basin = sdk::basin(&server.sdk(), "test-basin").await;
    let first = now_ms();
    for name in ["same-settings", "no-deletion", "with-records"] {
        sdk::stream_with(&basin, name, on_empty(1)).await;
    }
    tokio::time::sleep(Duration::from_millis(700)).await;
    for name in ["same-settings", "no-deletion", "with-records"] {
        basin
            .delete_stream(DeleteStreamInput::new(stream_name(name)))
            .await
            .unwrap();
    }
    let second = Instant::now();
    sdk::stream_with(&basin, "same-settings", on_empty(1)).await;
    sdk::stream_with(&basin, "no-deletion", on_empty(0)).await;
    let stream = sdk::stream_with(&basin, "with-records", on_empty(1)).await;
    sdk::append(&stream, ["a"]).await;
    // Past the first deadline, before the second.
    while now_ms() < first + 1300 {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert!(
        second.elapsed() < Duration::from_millis(950),
        "too slow to tell"
    );
    for name in ["same-settings", "no-deletion", "with-records"] {
        assert!(exists(&basin, name).await, "{name}");
    }
    eventually("its own deadline holds", async || {
        (!exists(&basin, "same-settings").await).then_some(())
    })
    .await;
    assert!(second.elapsed() >= Duration::from_secs(1));
    assert!(exists(&basin, "no-deletion").await);
    assert_eq!(sdk::bodies(&sdk::read_all(&stream).await), ["a"]);
}

#[tokio::test]
async fn a_follower_of_a_stream_that_expires_sees_no_end_and_then_what_comes() {
    let server = Server::fresh().await;
    let basin = sdk::basin(&server.sdk(), "test-basin").await;
    let stream = sdk::stream_with(&basin, "orders", age(1)).await;
    sdk::append(&stream, ["a"]).await;
    let http = server.http2();
    let mut session =
        crate::support::frames::read_session(&http, "test-basin", "orders", "seq_num=0").await;
    assert_eq!(session.next().await.message().records.len(), 1);
    eventually("all is gone", async || {
        sdk::read_all(&stream).await.is_empty().then_some(())
    })
    .await;
    sdk::append(&stream, ["b"]).await;
    loop {
        let batch = session.next().await.message();
        if let Some(record) = batch.records.first() {
            assert_eq!(record.seq_num, 1);
            assert_eq!(&record.body[..], b"b");
            break;
        }
    }
}
