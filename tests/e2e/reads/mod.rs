//! Reads: every start and every end, in every form.
//!
//! | module | what it shows |
//! |---|---|
//! | [`model`] | every start and every end of a read, against a model of the stream |
//! | [`waiting`] | reads that wait at the tail |
//! | [`events`] | reads as server-sent events |

mod events;
mod model;
mod waiting;

use s2_sdk::types::{
    AppendInput, AppendRecord, AppendRecordBatch, ReadFrom, ReadInput, ReadLimits, ReadStart,
    ReadStop, StreamConfig, TimestampingConfig,
};
use serde_json::Value;

use crate::support::http::Answer;
use crate::support::{Http, Server, sdk};

const RECORDS: &str = "/v1/streams/orders/records";

async fn orders(server: &Server) -> s2_sdk::S2Stream {
    let basin = sdk::basin(&server.sdk(), "test-basin").await;
    let config =
        StreamConfig::new().with_timestamping(TimestampingConfig::new().with_uncapped(true));
    sdk::stream_with(&basin, "orders", config).await
}

async fn get(http: &Http, query: &str) -> Answer {
    http.get(&format!("{RECORDS}?{query}"))
        .basin("test-basin")
        .send()
        .await
}

fn seq_nums(answer: &Value) -> Vec<u64> {
    let records = answer["records"].as_array().unwrap();
    records
        .iter()
        .map(|record| record["seq_num"].as_u64().unwrap())
        .collect()
}

#[tokio::test]
async fn the_tail_comes_along_when_the_read_reaches_it_and_only_then() {
    let server = Server::fresh().await;
    let stream = orders(&server).await;
    let ack = sdk::append(&stream, ["a", "b", "c"]).await;
    let http = server.http1();
    for (query, reaches) in [
        ("seq_num=0", true),
        ("seq_num=1&count=1", false),
        ("seq_num=0&bytes=10", false),
        ("tail_offset=1", true),
    ] {
        let answer = get(&http, query).await.expect(200).json();
        if reaches {
            assert_eq!(answer["tail"]["seq_num"], ack.tail.seq_num, "{query}");
            assert_eq!(answer["tail"]["timestamp"], ack.tail.timestamp, "{query}");
        } else {
            assert_eq!(answer.get("tail"), None, "{query}");
        }
    }
}

#[tokio::test]
async fn a_unary_read_answers_at_most_1000_records_and_1_mib() {
    let server = Server::fresh().await;
    let stream = orders(&server).await;
    for _ in 0..3 {
        sdk::append(&stream, (0..700).map(|i| format!("{i}"))).await;
    }
    for _ in 0..3 {
        sdk::append(&stream, [vec![b'x'; 400_000]]).await;
    }
    let http = server.http1();
    for query in [
        "seq_num=5",
        "seq_num=5&count=5000",
        "seq_num=5&bytes=50000000",
    ] {
        let answer = get(&http, query).await.expect(200).json();
        assert_eq!(seq_nums(&answer), (5..1005).collect::<Vec<_>>(), "{query}");
    }
    for query in [
        "seq_num=2100",
        "seq_num=2100&bytes=50000000",
        "seq_num=2100&count=3",
    ] {
        let answer = get(&http, query).await.expect(200).json();
        assert_eq!(seq_nums(&answer), [2100, 2101], "{query}");
    }
    // A batch can have the largest record alone.
    sdk::append(&stream, [vec![b'y'; 1024 * 1024 - 8]]).await;
    let answer = get(&http, "tail_offset=1").await.expect(200).json();
    assert_eq!(seq_nums(&answer), [2103]);
}

#[tokio::test]
async fn only_one_start_can_be_given_and_it_has_to_be_a_number() {
    let server = Server::fresh().await;
    let stream = orders(&server).await;
    sdk::append(&stream, ["a"]).await;
    let http = server.http1();
    for query in [
        "seq_num=0&timestamp=0",
        "seq_num=0&tail_offset=1",
        "timestamp=0&tail_offset=1",
        "seq_num=0&timestamp=0&tail_offset=0",
        "timestamp=7&until=7",
        "timestamp=8&until=7",
    ] {
        get(&http, query).await.refused(422, "invalid");
    }
    for query in [
        "seq_num=-1",
        "seq_num=one",
        "seq_num=",
        "timestamp=1.5",
        "tail_offset=18446744073709551616",
        "seq_num=0&count=-1",
        "seq_num=0&bytes=x",
        "seq_num=0&until=yesterday",
        "seq_num=0&wait=-1",
        "seq_num=0&wait=4294967296",
        "seq_num=0&clamp=maybe",
    ] {
        get(&http, query).await.refused(400, "bad_query");
    }
    // Unknown parameters are ignored.
    get(&http, "seq_num=0&unheard=of").await.expect(200);
}

#[tokio::test]
async fn the_official_client_reads_with_every_start_and_stop() {
    let server = Server::fresh().await;
    let stream = orders(&server).await;
    let records = (0..10u64).map(|i| {
        let record = AppendRecord::new(format!("{i}")).unwrap();
        record.with_timestamp(100 + i / 2)
    });
    let batch = AppendRecordBatch::try_from_iter(records).unwrap();
    stream.append(AppendInput::new(batch)).await.unwrap();
    let read = async |from, stop| {
        let start = ReadStart::new().with_from(from);
        let input = ReadInput::new().with_start(start).with_stop(stop);
        sdk::seq_nums(&stream.read(input).await.unwrap().records)
    };
    let count = |n| ReadStop::new().with_limits(ReadLimits::new().with_count(n));
    let bytes = |n| ReadStop::new().with_limits(ReadLimits::new().with_bytes(n));
    assert_eq!(read(ReadFrom::SeqNum(7), ReadStop::new()).await, [7, 8, 9]);
    assert_eq!(read(ReadFrom::Timestamp(103), count(2)).await, [6, 7]);
    assert_eq!(read(ReadFrom::TailOffset(3), bytes(18)).await, [7, 8]);
    let until = ReadStop::new().with_until(..102);
    assert_eq!(read(ReadFrom::SeqNum(1), until).await, [1, 2, 3]);
    assert_eq!(read(ReadFrom::TailOffset(0), count(0)).await, [0u64; 0]);
    let wait = ReadStop::new().with_wait(1);
    assert_eq!(read(ReadFrom::TailOffset(0), wait).await, [0u64; 0]);
}
