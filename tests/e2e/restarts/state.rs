//! Everything acknowledged is there after every kind of end.

use std::time::Duration;

use s2_sdk::S2;
use s2_sdk::types::{
    AppendInput, AppendRecord, AppendRecordBatch, BasinConfig, CommandRecord, DeleteBasinInput,
    DeleteOnEmptyConfig, DeleteStreamInput, FencingToken, Header, ReconfigureStreamInput,
    RetentionPolicy, StreamConfig, StreamReconfiguration, TimestampingConfig, TimestampingMode,
};
use serde_json::json;

use super::everything;
use crate::support::sdk::{self, basin_name, stream_name};
use crate::support::{Server, Setup, eventually};

/// Makes one of everything.
async fn fill(s2: &S2, round: usize) {
    let config = BasinConfig::new()
        .with_create_stream_on_append(true)
        .with_default_stream_config(
            StreamConfig::new().with_retention_policy(RetentionPolicy::Age(100_000)),
        );
    let basin = sdk::basin_with(s2, &format!("basin-of-round-{round}"), config).await;
    for i in 0..12 {
        let stream = basin.stream(stream_name(&format!("made-by-append-{i}")));
        for j in 0..3 {
            sdk::append(&stream, (0..=i).map(|k| format!("{i} {j} {k}"))).await;
        }
    }
    let config = StreamConfig::new()
        .with_storage_class("express")
        .with_retention_policy(RetentionPolicy::Infinite)
        .with_timestamping(
            TimestampingConfig::new()
                .with_mode(TimestampingMode::ClientRequire)
                .with_uncapped(true),
        )
        .with_delete_on_empty(DeleteOnEmptyConfig::new().with_min_age(Duration::from_secs(3600)));
    let special = sdk::stream_with(&basin, "special/\u{e9}\u{1F600} %2F", config).await;
    let record = |body: Vec<u8>, timestamp| {
        AppendRecord::new(body)
            .unwrap()
            .with_headers([
                Header::new("name", "value"),
                Header::new(vec![0, 255], vec![]),
            ])
            .unwrap()
            .with_timestamp(timestamp)
    };
    let records = [
        record(b"body".to_vec(), 5),
        record(vec![0; 300_000], 7),
        record(Vec::new(), u64::MAX - 1),
    ];
    let batch = AppendRecordBatch::try_from_iter(records).unwrap();
    special.append(AppendInput::new(batch)).await.unwrap();

    let fenced = sdk::stream(&basin, "fenced-and-trimmed").await;
    sdk::append(&fenced, ["a", "b", "c", "d"]).await;
    let token: FencingToken = format!("token-{round}").parse().unwrap();
    let records: [AppendRecord; 2] = [
        CommandRecord::fence(token).into(),
        CommandRecord::trim(2).into(),
    ];
    let batch = AppendRecordBatch::try_from_iter(records).unwrap();
    fenced.append(AppendInput::new(batch)).await.unwrap();

    sdk::stream(&basin, "empty").await;
    let deleted = sdk::stream(&basin, "deleted").await;
    sdk::append(&deleted, ["gone"]).await;
    basin
        .delete_stream(DeleteStreamInput::new(stream_name("deleted")))
        .await
        .unwrap();
    let changed = sdk::stream(&basin, "changed").await;
    sdk::append(&changed, ["before"]).await;
    let changes = StreamReconfiguration::new().with_retention_policy(RetentionPolicy::Age(4321));
    basin
        .reconfigure_stream(ReconfigureStreamInput::new(stream_name("changed"), changes))
        .await
        .unwrap();

    let doomed = sdk::basin(s2, "doomed-basin").await;
    sdk::append(&sdk::stream(&doomed, "doomed").await, ["gone"]).await;
    s2.delete_basin(DeleteBasinInput::new(basin_name("doomed-basin")))
        .await
        .unwrap();
    eventually("the basin is gone", async || {
        let config = s2.get_basin_config(basin_name("doomed-basin")).await;
        config.is_err().then_some(())
    })
    .await;
}

#[tokio::test]
async fn everything_is_the_same_after_kill_9() {
    let setup = Setup::default().partitions(3);
    let mut server = setup.start_fresh().await;
    for round in 0..3 {
        fill(&server.sdk(), round).await;
        let before = everything(&server.sdk()).await;
        server.kill();
        server.restart(&setup).await;
        let after = everything(&server.sdk()).await;
        pretty_eq(&before, &after);
    }
}

#[tokio::test]
async fn everything_is_the_same_after_a_stop_and_nothing_is_replayed() {
    let setup = Setup::default().partitions(3);
    let mut server = setup.start_fresh().await;
    for round in 0..3 {
        fill(&server.sdk(), round).await;
        let before = everything(&server.sdk()).await;
        server.stop().await;
        server.restart(&setup).await;
        server
            .logged("Replaying 0 log entries of the partitions")
            .await;
        let after = everything(&server.sdk()).await;
        pretty_eq(&before, &after);
    }
}

/// Fails with the first line that differs.
#[track_caller]
fn pretty_eq(before: &str, after: &str) {
    for (before, after) in before.lines().zip(after.lines()) {
        assert_eq!(before, after);
    }
    assert_eq!(before.lines().count(), after.lines().count());
}

#[tokio::test]
async fn every_start_says_what_it_loads_how_much_it_replays_and_when_it_is_done() {
    let setup = Setup::default();
    let mut server = setup.start_fresh().await;
    server.logged("Loading snapshot").await;
    server.logged("Replaying 0 events since snapshot").await;
    server.logged("Recovery complete").await;
    let basin = sdk::basin(&server.sdk(), "test-basin").await;
    let stream = sdk::stream(&basin, "orders").await;
    for i in 0..50 {
        sdk::append(&stream, [format!("{i}")]).await;
    }
    // Snapshots flush, so the number of entries to replay varies; the number of entries in the log does not.
    let status = server.http1().get("/esker/v1/status").send().await.json();
    let partitions = status["partitions"].as_array().unwrap();
    let last = |one: &serde_json::Value| one["last"].as_u64().unwrap();
    let logged: u64 = partitions.iter().map(last).sum();
    server.kill();
    server.restart(&setup).await;
    let loading = server.logged("Loading partitions").await;
    let applied = loading.split_once("applied=[").unwrap().1;
    let applied = applied.split_once(']').unwrap().0.split(", ");
    let applied: u64 = applied.map(|lsn| lsn.parse::<u64>().unwrap()).sum();
    assert!(
        loading.contains(&*server.data_dir().join("db").to_string_lossy()),
        "{loading}"
    );
    let replaying = server.logged(" log entries of the partitions").await;
    let events: u64 = replaying
        .split_once("Replaying ")
        .and_then(|(_, rest)| rest.split_once(" log entries of the partitions"))
        .map(|(n, _)| n.parse().unwrap())
        .unwrap();
    // The appends, a basin, a stream, and the first entries of a leader's term.
    assert!((52..60).contains(&logged), "{status}");
    assert_eq!(events, logged - applied, "{loading} {replaying}");
    server.logged("Partitions recovered").await;
    let of_partitions = [
        "Loading partitions",
        "log entries of the partitions",
        "Partitions recovered",
    ];
    // The state store is empty: no commit is counted, whatever the partitions replay.
    let of_state = [
        "Loading snapshot: none",
        "Replaying 0 events since snapshot",
        "Recovery complete",
    ];
    for lines in [of_partitions, of_state] {
        let order: Vec<usize> = lines
            .iter()
            .map(|text| server.log().iter().position(|l| l.contains(text)).unwrap())
            .collect();
        assert!(order.is_sorted(), "{order:?}");
    }
}

#[tokio::test]
async fn what_was_decided_before_a_restart_is_decided_the_same_after_it() {
    let setup = Setup::default();
    let mut server = setup.start_fresh().await;
    let create = json!({"basin": "test-basin", "config": {"create_stream_on_append": true}});
    let post = async |server: &Server, path: &str, token: &str, body: &serde_json::Value| {
        let http = server.http1();
        http.post(path)
            .basin("test-basin")
            .header("s2-request-token", token)
            .json(body)
            .send()
            .await
    };
    post(&server, "/v1/basins", "basin-token", &create)
        .await
        .expect(201);
    let stream = json!({"stream": "orders"});
    post(&server, "/v1/streams", "stream-token", &stream)
        .await
        .expect(201);
    let basin = server.sdk().basin(basin_name("test-basin"));
    let orders = basin.stream(stream_name("orders"));
    let future = sdk::stream_with(
        &basin,
        "future",
        StreamConfig::new().with_timestamping(TimestampingConfig::new().with_uncapped(true)),
    )
    .await;
    let far = u64::MAX / 2;
    let record = AppendRecord::new("far").unwrap().with_timestamp(far);
    let batch = AppendRecordBatch::try_from_iter([record]).unwrap();
    future.append(AppendInput::new(batch)).await.unwrap();
    let token: FencingToken = "mine".parse().unwrap();
    let fence: AppendRecord = CommandRecord::fence(token.clone()).into();
    let batch = AppendRecordBatch::try_from_iter([fence]).unwrap();
    orders.append(AppendInput::new(batch)).await.unwrap();

    for kill in [true, false] {
        if kill {
            server.kill();
        } else {
            server.stop().await;
        }
        server.restart(&setup).await;
        let answer = post(&server, "/v1/basins", "basin-token", &create).await;
        assert_eq!(answer.header("s2-provision-result"), Some("noop"));
        let answer = post(&server, "/v1/streams", "stream-token", &stream).await;
        assert_eq!(answer.header("s2-provision-result"), Some("noop"));
        post(&server, "/v1/streams", "other", &stream)
            .await
            .refused(409, "resource_already_exists");

        let basin = server.sdk().basin(basin_name("test-basin"));
        let orders = basin.stream(stream_name("orders"));
        assert_eq!(super::token_in_force(&orders).await, "mine");
        let tail = orders.check_tail().await.unwrap();
        let ack = orders
            .append(
                sdk::input(["with the token"])
                    .with_fencing_token(token.clone())
                    .with_match_seq_num(tail.seq_num),
            )
            .await
            .unwrap();
        assert_eq!(ack.start.seq_num, tail.seq_num);
        assert!(ack.start.timestamp >= tail.timestamp);
        // A timestamp never decreases, even after one in the far future.
        let future = basin.stream(stream_name("future"));
        assert_eq!(future.check_tail().await.unwrap().timestamp, far);
        let ack = sdk::append(&future, ["now"]).await;
        assert_eq!(ack.start.timestamp, far);
    }
}

#[tokio::test]
async fn a_restart_with_more_flushed_than_not_replays_only_the_rest() {
    // The database is flushed often, so that replay begins somewhere in the middle.
    let setup = Setup::default()
        .set("log.flush-after=64KiB")
        .set("log.segment-size=1MiB")
        .set("log.purge-threshold=1MiB");
    let mut server = setup.start_fresh().await;
    let basin = sdk::basin(&server.sdk(), "test-basin").await;
    sdk::stream(&basin, "orders").await;
    let mut count = 0;
    for round in 0..3 {
        let basin = server.sdk().basin(basin_name("test-basin"));
        let stream = basin.stream(stream_name("orders"));
        for _ in 0..40 {
            let bodies: Vec<String> = (0..10)
                .map(|i| format!("{:08} {}", count + i, "x".repeat(10_000)))
                .collect();
            sdk::append(&stream, bodies).await;
            count += 10;
        }
        eventually("a flush", async || {
            let text = server.http1().get("/metrics").send().await.text();
            let durable: f64 = text
                .lines()
                .filter(|l| l.starts_with("esker_partition_durable_lsn{"))
                .filter_map(|l| l.rsplit(' ').next()?.parse::<f64>().ok())
                .sum();
            (durable > 0.0).then_some(())
        })
        .await;
        server.kill();
        server.restart(&setup).await;
        let basin = server.sdk().basin(basin_name("test-basin"));
        let records = sdk::read_all(&basin.stream(stream_name("orders"))).await;
        assert_eq!(records.len(), count, "round {round}");
        for (i, record) in records.iter().enumerate() {
            assert_eq!(record.seq_num, i as u64);
            assert!(record.body.starts_with(format!("{i:08} ").as_bytes()));
        }
    }
}

#[tokio::test]
async fn a_basin_that_was_being_deleted_goes_on_being_deleted() {
    let setup = Setup::default();
    let mut server = setup.start_fresh().await;
    for i in 0..10 {
        let name = format!("deleted-{i}");
        let basin = sdk::basin(&server.sdk(), &name).await;
        sdk::append(&sdk::stream(&basin, "orders").await, ["gone"]).await;
        server
            .http1()
            .delete(&format!("/v1/basins/{name}"))
            .send()
            .await
            .expect(202);
        server.kill();
        server.restart(&setup).await;
        let s2 = server.sdk();
        eventually("the basin is gone", async || {
            let config = s2.get_basin_config(basin_name(&name)).await;
            config.is_err().then_some(())
        })
        .await;
        let basin = sdk::basin(&s2, &name).await;
        assert!(
            basin
                .get_stream_config(stream_name("orders"))
                .await
                .is_err()
        );
    }
}
