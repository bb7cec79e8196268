//! Metrics of the S2 API: usage of the account, of basins and of streams.

use std::time::{SystemTime, UNIX_EPOCH};

use futures::StreamExt as _;
use s2_sdk::S2;
use s2_sdk::error::ErrorCode;
use s2_sdk::types::{
    AccountMetricSet, BasinMetricSet, GetAccountMetricsInput, GetBasinMetricsInput,
    GetStreamMetricsInput, Metric, MetricUnit, ReadSessionConfig, StreamMetricSet, TimeRange,
    TimeRangeAndInterval, TimeseriesInterval,
};

use crate::support::http::TRANSPORTS;
use crate::support::sdk::{self, basin_name, stream_name};
use crate::support::{Server, Setup, eventually};

const BASIN: &str = "metered-basin";
const STREAM: &str = "orders";
const INTERVALS: [TimeseriesInterval; 3] = [
    TimeseriesInterval::Minute,
    TimeseriesInterval::Hour,
    TimeseriesInterval::Day,
];

fn now() -> u32 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    since.as_secs() as u32
}

/// The last hour.
fn range() -> TimeRange {
    TimeRange::new(now() - 3600, now())
}

fn in_intervals(interval: TimeseriesInterval) -> TimeRangeAndInterval {
    TimeRangeAndInterval::new(now() - 3600, now()).with_interval(interval)
}

async fn of_basin(s2: &S2, set: BasinMetricSet) -> Vec<Metric> {
    let input = GetBasinMetricsInput::new(basin_name(BASIN), set);
    s2.get_basin_metrics(input).await.unwrap()
}

async fn of_account(s2: &S2, set: AccountMetricSet) -> Vec<Metric> {
    let input = GetAccountMetricsInput::new(set);
    s2.get_account_metrics(input).await.unwrap()
}

async fn of_stream(s2: &S2, range: TimeRange) -> Vec<Metric> {
    let set = StreamMetricSet::Storage(range);
    let input = GetStreamMetricsInput::new(basin_name(BASIN), stream_name(STREAM), set);
    s2.get_stream_metrics(input).await.unwrap()
}

/// Names of accumulations with the sum of each, in order.
fn sums(metrics: &[Metric], unit: MetricUnit, interval: TimeseriesInterval) -> Vec<(&str, f64)> {
    metrics
        .iter()
        .map(|metric| match metric {
            Metric::Accumulation(of) => {
                assert_eq!((of.unit, of.interval), (unit, interval), "{of:?}");
                (of.name.as_str(), of.values.iter().map(|(_, v)| v).sum())
            }
            other => panic!("not an accumulation: {other:?}"),
        })
        .collect()
}

/// The last value of the one gauge.
fn gauge(metrics: &[Metric]) -> f64 {
    let [Metric::Gauge(gauge)] = metrics else {
        panic!("not one gauge: {metrics:?}");
    };
    assert_eq!(gauge.unit, MetricUnit::Bytes);
    gauge.values.last().expect("it has values").1
}

/// Appends and reads. Returns the metered bytes.
async fn use_stream(s2: &S2) -> f64 {
    let basin = sdk::basin(s2, BASIN).await;
    let stream = sdk::stream(&basin, STREAM).await;
    let bodies = ["a", "bcd", ""];
    sdk::append(&stream, bodies).await;
    stream.read(sdk::from_seq(0, 10)).await.unwrap();
    stream.check_tail().await.unwrap();
    bodies.iter().map(|body| 8 + body.len()).sum::<usize>() as f64
}

#[tokio::test]
async fn what_is_appended_and_read_is_counted_in_every_interval() {
    let server = Server::fresh().await;
    let s2 = server.sdk();
    let bytes = use_stream(&s2).await;
    let operations = MetricUnit::Operations;
    for interval in INTERVALS {
        let within = in_intervals(interval);
        let appends = of_basin(&s2, BasinMetricSet::AppendOps(within)).await;
        assert_eq!(sums(&appends, operations, interval), [("standard", 1.0)]);
        let reads = of_basin(&s2, BasinMetricSet::ReadOps(within)).await;
        assert_eq!(sums(&reads, operations, interval), [("unary", 1.0)]);
        let appended = of_basin(&s2, BasinMetricSet::AppendThroughput(within)).await;
        let sum = sums(&appended, MetricUnit::Bytes, interval);
        assert_eq!(sum, [("append-throughput", bytes)]);
        let read = of_basin(&s2, BasinMetricSet::ReadThroughput(within)).await;
        let sum = sums(&read, MetricUnit::Bytes, interval);
        assert_eq!(sum, [("read-throughput", bytes)]);
        let requests = of_basin(&s2, BasinMetricSet::BasinOps(within)).await;
        let expected = [("create-stream", 1.0), ("check-tail", 1.0)];
        assert_eq!(sums(&requests, operations, interval), expected);
        let account = of_account(&s2, AccountMetricSet::AccountOps(within)).await;
        let account = sums(&account, operations, interval);
        assert!(account.contains(&("create-basin", 1.0)), "{account:?}");
    }
}

#[tokio::test]
async fn a_session_is_an_operation_a_minute_and_its_bytes_are_counted() {
    let server = Server::fresh().await;
    let s2 = server.sdk();
    let bytes = use_stream(&s2).await;
    let stream = s2.basin(basin_name(BASIN)).stream(stream_name(STREAM));
    let mut session = stream
        .read_session(sdk::from_seq(0, 3), ReadSessionConfig::new())
        .await
        .unwrap();
    let mut records = 0;
    while let Some(batch) = session.next().await {
        records += batch.unwrap().records.len();
    }
    assert_eq!(records, 3);
    drop(session);
    let within = in_intervals(TimeseriesInterval::Day);
    let reads = of_basin(&s2, BasinMetricSet::ReadOps(within)).await;
    let sums_of = sums(&reads, MetricUnit::Operations, TimeseriesInterval::Day);
    let streaming = sums_of.iter().find(|(name, _)| *name == "streaming");
    assert!(
        streaming.is_some_and(|(_, count)| *count >= 1.0),
        "{sums_of:?}"
    );
    eventually("both reads are counted", async || {
        let read = of_basin(&s2, BasinMetricSet::ReadThroughput(within)).await;
        let sum = sums(&read, MetricUnit::Bytes, TimeseriesInterval::Day);
        (sum == [("read-throughput", 2.0 * bytes)]).then_some(())
    })
    .await;
}

#[tokio::test]
async fn sizes_are_those_of_the_records_that_readers_see() {
    let server = Server::fresh().await;
    let s2 = server.sdk();
    let bytes = use_stream(&s2).await;
    assert_eq!(gauge(&of_stream(&s2, range()).await), bytes);
    let at_once = of_stream(&s2, TimeRange::new(now(), now())).await;
    assert_eq!(gauge(&at_once), bytes);
    let basin = of_basin(&s2, BasinMetricSet::Storage(range())).await;
    assert_eq!(gauge(&basin), bytes);
    let active = of_account(&s2, AccountMetricSet::ActiveBasins(range())).await;
    let [Metric::Label(label)] = &active[..] else {
        panic!("{active:?}");
    };
    assert_eq!(label.values, [BASIN]);
    // Long ago, nothing was known.
    for metrics in [
        of_stream(&s2, TimeRange::new(0, 3600)).await,
        of_basin(&s2, BasinMetricSet::Storage(TimeRange::new(0, 3600))).await,
    ] {
        assert!(matches!(&metrics[..], [Metric::Gauge(g)] if g.values.is_empty()));
    }
}

#[tokio::test]
async fn usage_survives_a_restart_and_a_damaged_file_begins_it_again() {
    let mut server = Server::fresh().await;
    let bytes = use_stream(&server.sdk()).await;
    let setup = Setup::default();
    let appended = async |server: &Server| {
        let set = BasinMetricSet::AppendThroughput(in_intervals(TimeseriesInterval::Day));
        let metrics = of_basin(&server.sdk(), set).await;
        let sums = sums(&metrics, MetricUnit::Bytes, TimeseriesInterval::Day);
        sums.first().map(|(_, sum)| *sum)
    };
    server.stop().await;
    server.restart(&setup).await;
    assert_eq!(appended(&server).await, Some(bytes));
    server.stop().await;
    let path = server.data_dir().join("usage.bin");
    let mut damaged = std::fs::read(&path).unwrap();
    *damaged.last_mut().unwrap() ^= 1;
    std::fs::write(&path, damaged).unwrap();
    server.restart(&setup).await;
    server.logged("stored usage metrics are not used").await;
    assert_eq!(appended(&server).await, None);
    // It measures again, and the records are there.
    assert_eq!(gauge(&of_stream(&server.sdk(), range()).await), bytes);
    server.stop().await;
    server.restart(&setup).await;
    eventually("the server is well", async || {
        let health = server.http1().get("/health").send().await;
        (health.status == 200).then_some(())
    })
    .await;
}

#[tokio::test]
async fn ranges_and_names_that_make_no_sense_are_refused() {
    let server = Server::fresh().await;
    let s2 = server.sdk();
    use_stream(&s2).await;
    let hour = 3600;
    for (start, end) in [
        (now(), now() - hour),
        (now() - hour, now() + 600),
        (now() - 91 * 24 * hour, now()),
    ] {
        let set = AccountMetricSet::ActiveBasins(TimeRange::new(start, end));
        let refused = s2
            .get_account_metrics(GetAccountMetricsInput::new(set))
            .await;
        let refused = refused.unwrap_err();
        let code = refused.server_error().unwrap().known_code();
        assert_eq!(code, Some(ErrorCode::Invalid), "{start} to {end}");
    }
    let (week_ago, now) = (now() - 8 * 24 * hour, now());
    for transport in TRANSPORTS {
        let http = server.http(transport);
        let refused = async |path: String, status: u16, code: &str| {
            let answer = http.get(&path).send().await;
            assert_eq!(
                (answer.status.as_u16(), answer.code().as_str()),
                (status, code),
                "{path}"
            );
        };
        let last = format!("start={}&end={now}", now - hour);
        let weeks = format!("start={week_ago}&end={now}");
        for (path, status, code) in [
            ("/v1/metrics?set=account-ops".to_owned(), 422, "invalid"),
            (
                format!("/v1/metrics?set=account-ops&start={now}"),
                422,
                "invalid",
            ),
            (
                format!("/v1/metrics/{BASIN}?set=append-ops&{weeks}&interval=minute"),
                422,
                "invalid",
            ),
            (
                format!("/v1/metrics?set=estimated-billable-usage&{last}&interval=minute"),
                422,
                "invalid",
            ),
            (format!("/v1/metrics?set=other&{last}"), 400, "bad_query"),
            (format!("/v1/metrics?{last}"), 400, "bad_query"),
            (
                format!("/v1/metrics?set=account-ops&start=-1&end={now}"),
                400,
                "bad_query",
            ),
            (
                format!("/v1/metrics?set=account-ops&{last}&interval=week"),
                400,
                "bad_query",
            ),
            (
                format!("/v1/metrics/no-such-basin?set=storage&{last}"),
                404,
                "basin_not_found",
            ),
            (
                format!("/v1/metrics/{BASIN}/missing?set=storage&{last}"),
                404,
                "stream_not_found",
            ),
        ] {
            refused(path, status, code).await;
        }
        // Without an interval, a long range has longer ones.
        let long = http.get(&format!("/v1/metrics/{BASIN}?set=append-ops&{weeks}"));
        let long = long.send().await.expect(200).json();
        assert_eq!(long["values"][0]["accumulation"]["interval"], "hour");
        let billed = format!("/v1/metrics?set=estimated-billable-usage&{last}");
        http.get(&billed).send().await.expect(200);
    }
}
