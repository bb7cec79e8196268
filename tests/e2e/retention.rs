//! Time-based deletion: records past their age, and empty streams.

use std::time::{Duration, Instant};

use s2_sdk::error::ErrorCode;
use s2_sdk::types::{
    AppendInput, AppendRecord, AppendRecordBatch, BasinConfig, CommandRecord, DeleteOnEmptyConfig,
    DeleteStreamInput, ReconfigureStreamInput, RetentionPolicy, StreamConfig,
    StreamReconfiguration,
};
use s2_sdk::{S2Basin, S2Stream};

use crate::support::frames::{self, ReadSession};
use crate::support::sdk::{self, stream_name};
use crate::support::{Server, Setup, eventually, in_time, within};

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
    const AGE: Duration = Duration::from_secs(4);
    let server = Server::fresh().await;
    let basin = sdk::basin(&server.sdk(), "test-basin").await;
    let long = sdk::stream_with(&basin, "long", age(3600)).await;
    let infinite = StreamConfig::new().with_retention_policy(RetentionPolicy::Infinite);
    let infinite = sdk::stream_with(&basin, "infinite", infinite).await;
    for stream in [&long, &infinite] {
        sdk::append(stream, ["old", "old"]).await;
    }
    in_time("an age", async |number| {
        let name = format!("short-{number}");
        let short = sdk::stream_with(&basin, &name, age(AGE.as_secs())).await;
        let old = Instant::now();
        sdk::append(&short, ["old", "old"]).await;
        let acked = Instant::now();
        tokio::time::sleep(AGE / 2).await;
        let young = Instant::now();
        sdk::append(&short, ["young"]).await;
        let records = sdk::read_all(&short).await.len();
        within(old.elapsed(), AGE)?;
        assert_eq!(records, 3, "not before its age");
        let left = eventually("the old ones are gone", async || {
            let records = sdk::read_all(&short).await;
            (records.len() < 3).then_some(records)
        })
        .await;
        let gone = Instant::now();
        assert!(gone - old >= AGE, "{:?}", gone - old);
        // After a longer delay, the young record may be gone, too.
        within(gone - young, AGE)?;
        assert_eq!(sdk::bodies(&left), ["young"]);
        within(gone - acked, AGE + Duration::from_millis(900))?;
        eventually("the young one is gone", async || {
            sdk::read_all(&short).await.is_empty().then_some(())
        })
        .await;
        assert!(young.elapsed() >= AGE, "{:?}", young.elapsed());
        // The tail does not move, and new records can be appended.
        assert_eq!(short.check_tail().await.unwrap().seq_num, 3);
        assert_eq!(sdk::append(&short, ["next"]).await.start.seq_num, 3);
        Ok(())
    })
    .await;
    for stream in [&long, &infinite] {
        assert_eq!(sdk::read_all(stream).await.len(), 2);
    }
}

#[tokio::test]
async fn age_counts_from_the_arrival_not_from_the_clients_timestamp() {
    let server = Server::fresh().await;
    let basin = sdk::basin(&server.sdk(), "test-basin").await;
    let stream = sdk::stream_with(&basin, "orders", age(3600)).await;
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
    keep_for(&basin, "orders", 1).await;
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
    // No round of the retention comes before the read.
    server.restart(&setup.set("retention.interval=1h")).await;
    let basin = server.sdk().basin(sdk::basin_name("test-basin"));
    let stream = basin.stream(stream_name("orders"));
    assert!(sdk::read_all(&stream).await.is_empty());
    assert_eq!(stream.check_tail().await.unwrap().seq_num, 2);
}

#[tokio::test]
async fn an_empty_stream_is_deleted_after_its_time_and_one_with_records_is_not() {
    const MIN_AGE: Duration = Duration::from_secs(1);
    const SOON_AFTER: Duration = Duration::from_millis(1900);
    let server = Server::fresh().await;
    let basin = sdk::basin(&server.sdk(), "test-basin").await;
    sdk::stream_with(&basin, "stays", on_empty(0)).await;
    in_time("a stream that was never written", async |number| {
        let (idle, busy) = (format!("never-written-{number}"), format!("busy-{number}"));
        let mut emptied = Instant::now();
        let stream = sdk::stream_with(&basin, &busy, on_empty(1)).await;
        let creating = Instant::now();
        sdk::stream_with(&basin, &idle, on_empty(1)).await;
        let created = Instant::now();
        let gone = eventually("it is deleted", async || {
            // Appends and trims postpone the deletion, if they come in time.
            let appended = stream.append(sdk::input(["x"])).await;
            if let Err(late) = within(emptied.elapsed(), MIN_AGE) {
                return Some(Err(late));
            }
            appended.unwrap();
            emptied = Instant::now();
            trim_all(&stream).await;
            (!exists(&basin, &idle).await).then(|| Ok(Instant::now()))
        })
        .await?;
        assert!(gone - creating >= MIN_AGE, "{:?}", gone - creating);
        let stays = exists(&basin, &busy).await;
        within(emptied.elapsed(), MIN_AGE)?;
        assert!(stays, "{busy}");
        within(gone - created, SOON_AFTER)
    })
    .await;
    in_time("a stream that was emptied", async |number| {
        let name = format!("written-{number}");
        let creating = Instant::now();
        let written = sdk::stream_with(&basin, &name, on_empty(1)).await;
        let appended = written.append(sdk::input(["a"])).await;
        within(creating.elapsed(), MIN_AGE)?;
        appended.unwrap();
        tokio::time::sleep(MIN_AGE + Duration::from_millis(300)).await;
        assert!(exists(&basin, &name).await, "{name}");
        // A stream that a trim empties has the full time from then on.
        let trimming = Instant::now();
        trim_all(&written).await;
        let trimmed = Instant::now();
        eventually("the trimmed one is deleted", async || {
            (!exists(&basin, &name).await).then_some(())
        })
        .await;
        let gone = Instant::now();
        assert!(gone - trimming >= MIN_AGE, "{:?}", gone - trimming);
        within(gone - trimmed, SOON_AFTER)
    })
    .await;
    assert!(exists(&basin, "stays").await);
}

#[tokio::test]
async fn records_that_expire_leave_an_empty_stream_that_goes_too() {
    const MIN_AGE: Duration = Duration::from_secs(1);
    let server = Server::fresh().await;
    let config = BasinConfig::new().with_default_stream_config(
        age(1).with_delete_on_empty(DeleteOnEmptyConfig::new().with_min_age(MIN_AGE)),
    );
    let basin = sdk::basin_with(&server.sdk(), "test-basin", config).await;
    in_time("an age, and a time to be empty", async |number| {
        let name = format!("orders-{number}");
        let creating = Instant::now();
        let stream = sdk::stream(&basin, &name).await;
        let appending = Instant::now();
        let appended = stream.append(sdk::input(["a"])).await;
        within(creating.elapsed(), MIN_AGE)?;
        appended.unwrap();
        let acked = Instant::now();
        eventually("it is gone", async || {
            (!exists(&basin, &name).await).then_some(())
        })
        .await;
        let gone = Instant::now();
        assert!(gone - appending >= 2 * MIN_AGE, "{:?}", gone - appending);
        within(gone - acked, Duration::from_millis(3500))
    })
    .await;
}

#[tokio::test]
async fn a_recreated_stream_is_not_deleted_by_the_deadline_of_the_one_before() {
    const MIN_AGE: Duration = Duration::from_secs(3);
    let server = Server::fresh().await;
    let basin = sdk::basin(&server.sdk(), "test-basin").await;
    in_time("the second between the deadlines", async |number| {
        let names = ["same-settings", "no-deletion", "with-records"];
        let names = names.map(|name| format!("{name}-{number}"));
        let [same_settings, no_deletion, with_records] = &names;
        let first = Instant::now();
        for name in &names {
            sdk::stream_with(&basin, name, on_empty(MIN_AGE.as_secs())).await;
        }
        let first_made = Instant::now();
        tokio::time::sleep(MIN_AGE / 2).await;
        for name in &names {
            let delete = DeleteStreamInput::new(stream_name(name));
            let deleted = basin.delete_stream(delete).await;
            within(first.elapsed(), MIN_AGE)?;
            deleted.unwrap();
        }
        let second = Instant::now();
        sdk::stream_with(&basin, same_settings, on_empty(MIN_AGE.as_secs())).await;
        sdk::stream_with(&basin, no_deletion, on_empty(0)).await;
        let stream = sdk::stream_with(&basin, with_records, on_empty(MIN_AGE.as_secs())).await;
        let appended = stream.append(sdk::input(["a"])).await;
        within(second.elapsed(), MIN_AGE)?;
        appended.unwrap();
        // After the first deadline, before the second.
        let past = first_made + MIN_AGE + Duration::from_millis(300);
        tokio::time::sleep_until(past.into()).await;
        for name in &names {
            let stays = exists(&basin, name).await;
            within(second.elapsed(), MIN_AGE)?;
            assert!(stays, "{name}");
        }
        eventually("its own deadline holds", async || {
            (!exists(&basin, same_settings).await).then_some(())
        })
        .await;
        assert!(second.elapsed() >= MIN_AGE);
        assert!(exists(&basin, no_deletion).await);
        assert_eq!(sdk::bodies(&sdk::read_all(&stream).await), ["a"]);
        Ok(())
    })
    .await;
}

/// The next record of a session, with its number.
async fn next_record(session: &mut ReadSession) -> (u64, Vec<u8>) {
    let batch = session.batch().await;
    assert_eq!(batch.records.len(), 1);
    (batch.records[0].seq_num, batch.records[0].body.to_vec())
}

async fn keep_for(basin: &S2Basin, name: &str, secs: u64) {
    let changes = StreamReconfiguration::new().with_retention_policy(RetentionPolicy::Age(secs));
    let input = ReconfigureStreamInput::new(stream_name(name), changes);
    basin.reconfigure_stream(input).await.unwrap();
}

#[tokio::test]
async fn a_follower_of_a_stream_that_expires_sees_no_end_and_then_what_comes() {
    let server = Server::fresh().await;
    let basin = sdk::basin(&server.sdk(), "test-basin").await;
    let stream = sdk::stream_with(&basin, "orders", age(3600)).await;
    let http = server.http2();
    let mut session = frames::read_session(&http, "test-basin", "orders", "seq_num=0").await;
    assert!(session.next().await.message().records.is_empty());
    sdk::append(&stream, ["a"]).await;
    assert_eq!(next_record(&mut session).await, (0, b"a".to_vec()));
    // Only records that it has already read expire.
    keep_for(&basin, "orders", 1).await;
    eventually("all is gone", async || {
        sdk::read_all(&stream).await.is_empty().then_some(())
    })
    .await;
    keep_for(&basin, "orders", 3600).await;
    sdk::append(&stream, ["b"]).await;
    assert_eq!(next_record(&mut session).await, (1, b"b".to_vec()));
}
