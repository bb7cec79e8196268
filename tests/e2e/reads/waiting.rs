//! Reads that wait at the tail.

use std::time::{Duration, Instant};

use s2_api::v1::stream::proto;
use s2_sdk::types::{AppendInput, AppendRecord, AppendRecordBatch};

use super::{RECORDS, get, orders, seq_nums};
use crate::support::frames::{self, Output};
use crate::support::http::TRANSPORTS;
use crate::support::{Server, in_time, sdk, soon, within};

#[tokio::test]
async fn a_read_at_the_tail_waits_for_what_comes_and_no_longer_than_it_said() {
    let server = Server::fresh().await;
    let stream = orders(&server).await;
    let http = server.http1();
    in_time("a wait in vain", async |_| {
        let started = Instant::now();
        let answer = get(&http, "seq_num=0&wait=1").await.expect(200).json();
        assert_eq!(seq_nums(&answer), [0u64; 0]);
        let took = started.elapsed();
        assert!(took >= Duration::from_secs(1), "{took:?}");
        within(took, Duration::from_millis(1800))
    })
    .await;
    // Reads that are woken, on each transport, with and without limits.
    for (transport, limits) in TRANSPORTS.into_iter().zip(["", "&count=10&bytes=1000"]) {
        let http = server.http(transport);
        in_time("a wait not in vain", async |_| {
            let next = stream.check_tail().await.unwrap().seq_num;
            let started = Instant::now();
            let query = format!("seq_num={next}&wait=30{limits}");
            let (answer, ()) = tokio::join!(get(&http, &query), async {
                tokio::time::sleep(Duration::from_millis(150)).await;
                sdk::append(&stream, ["late", "later"]).await;
            });
            assert_eq!(seq_nums(&answer.expect(200).json()), [next, next + 1]);
            let took = started.elapsed();
            assert!(took >= Duration::from_millis(150), "{took:?}");
            // Much less than the thirty seconds of a read that is not woken.
            within(took, Duration::from_secs(10))
        })
        .await;
    }
    let tail = stream.check_tail().await.unwrap().seq_num;
    in_time("what is there already", async |_| {
        let started = Instant::now();
        let answer = get(&http, "seq_num=0&wait=30").await.expect(200).json();
        assert_eq!(seq_nums(&answer), (0..tail).collect::<Vec<_>>());
        within(started.elapsed(), Duration::from_secs(10))
    })
    .await;
    // A read beyond the tail may not wait.
    let beyond = format!("seq_num={}&wait=30", tail + 1);
    get(&http, &beyond).await.expect(416);
}

#[tokio::test]
async fn new_records_put_the_end_of_a_sessions_wait_off() {
    const WAIT: Duration = Duration::from_secs(3);
    in_time("the next record, and the end", async |_| {
        let server = Server::fresh().await;
        let stream = orders(&server).await;
        let http = server.http2();
        let mut put_off = Instant::now();
        let mut session =
            frames::read_session(&http, "test-basin", "orders", "seq_num=0&wait=3").await;
        let append = async {
            let mut longest = Duration::ZERO;
            for i in 0..3 {
                tokio::time::sleep(WAIT / 2).await;
                let sent = Instant::now();
                sdk::append(&stream, [format!("{i}")]).await;
                longest = longest.max(put_off.elapsed());
                // The deadline moves at least to this moment.
                put_off = sent;
            }
            longest
        };
        let outputs = soon("the end of a session", session.rest());
        let (outputs, longest) = tokio::join!(outputs, append);
        let waited = put_off.elapsed();
        // With a longer delay, the read may have ended before a record arrived, correctly.
        within(longest, WAIT)?;
        let records: Vec<u64> = outputs
            .iter()
            .filter_map(|o| match o {
                Output::Message(batch) => Some(batch),
                _ => None,
            })
            .flat_map(|batch| batch.records.iter().map(|r| r.seq_num))
            .collect();
        assert_eq!(records, [0, 1, 2]);
        assert_eq!(outputs.last(), Some(&Output::End));
        assert!(waited >= WAIT, "{waited:?}");
        within(waited, WAIT + Duration::from_secs(1))
    })
    .await;
}

#[tokio::test]
async fn a_waiting_read_ends_at_its_limits_also_within_a_batch_that_comes_live() {
    const EARLY: u64 = 17_000_000_000_000_000_000;
    const LATE: u64 = 18_000_000_000_000_000_000;
    let server = Server::fresh().await;
    let stream = orders(&server).await;
    sdk::append(&stream, ["0"]).await;
    let http = server.http2();
    let http = &http;
    let at = |t| AppendRecord::new("x").unwrap().with_timestamp(t);
    let open = async |query: &str| {
        let query = format!("seq_num=1&wait=30&{query}");
        frames::read_session(http, "test-basin", "orders", &query).await
    };
    let mut by_count = open("count=3").await;
    let mut by_bytes = open("bytes=20").await;
    let mut too_small = open("bytes=8").await;
    let mut until = open(&format!("until={LATE}")).await;
    // All sessions have reached the tail.
    for session in [&mut by_count, &mut by_bytes, &mut too_small, &mut until] {
        let heartbeat = session.next().await.message();
        assert!(heartbeat.records.is_empty());
        assert_eq!(heartbeat.tail.unwrap().seq_num, 1);
    }
    let records = [EARLY, EARLY, EARLY, EARLY, LATE, LATE].map(at);
    let batch = AppendRecordBatch::try_from_iter(records).unwrap();
    stream.append(AppendInput::new(batch)).await.unwrap();
    for (session, expected) in [
        (&mut by_count, &[1, 2, 3][..]),
        (&mut by_bytes, &[1, 2]),
        (&mut too_small, &[]),
        (&mut until, &[1, 2, 3, 4]),
    ] {
        let mut outputs = session.rest().await;
        assert_eq!(outputs.pop(), Some(Output::End));
        let seen: Vec<u64> = outputs
            .into_iter()
            .flat_map(|output| output.message().records)
            .map(|record| record.seq_num)
            .collect();
        assert_eq!(seen, expected);
    }
}

#[tokio::test]
async fn one_who_polls_at_the_tail_while_others_append_misses_nothing() {
    let server = Server::fresh().await;
    let stream = orders(&server).await;
    let total = 3000u64;
    let append = async {
        for i in 0..total {
            sdk::append(&stream, [format!("{i}")]).await;
        }
    };
    let http = server.http2();
    let poll = async |pause: Duration| {
        let mut next = 0;
        while next < total {
            let answer = get(&http, &format!("seq_num={next}&count=100")).await;
            if answer.status == 416 {
                tokio::time::sleep(pause).await;
                continue;
            }
            for seq in seq_nums(&answer.expect(200).json()) {
                assert_eq!(seq, next, "a record was skipped");
                next += 1;
            }
        }
    };
    tokio::join!(append, poll(Duration::ZERO), poll(Duration::from_millis(1)));
    let batch: proto::ReadBatch = server
        .http1()
        .get(&format!("{RECORDS}?tail_offset=1"))
        .basin("test-basin")
        .header("accept", "application/protobuf")
        .send()
        .await
        .expect(200)
        .proto();
    assert_eq!(batch.records[0].body, format!("{}", total - 1));
}
