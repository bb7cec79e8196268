//! Reads: every start and every end, in every form, against a model of the stream.

use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::seq::IndexedRandom as _;
use rand::{Rng as _, SeedableRng as _};
use s2_api::v1::stream::proto;
use s2_sdk::types::{
    AppendInput, AppendRecord, AppendRecordBatch, CommandRecord, ReadFrom, ReadInput, ReadLimits,
    ReadStart, ReadStop, StreamConfig, TimestampingConfig,
};
use serde_json::{Value, json};

use crate::support::events::Events;
use crate::support::frames::{self, Output};
use crate::support::http::{Answer, TRANSPORTS};
use crate::support::sdk;
use crate::support::{Http, Server, in_time, soon, within};

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

/// What a stream holds, and what a read of it is to answer.
struct Model {
    /// Sequence number, timestamp, metered bytes.
    records: Vec<(u64, u64, usize)>,
    tail: (u64, u64),
}

#[derive(Clone, Copy, Debug)]
enum From {
    Default,
    SeqNum(u64),
    Timestamp(u64),
    TailOffset(u64),
}

#[derive(Clone, Copy, Debug)]
struct Query {
    from: From,
    clamp: Option<bool>,
    count: Option<usize>,
    bytes: Option<usize>,
    until: Option<u64>,
}

#[derive(Debug, PartialEq, Eq)]
enum Expected {
    Records(Vec<u64>),
    Unwritten,
    Invalid,
}

impl Query {
    fn text(&self) -> String {
        let mut parts = Vec::new();
        match self.from {
            From::Default => {}
            From::SeqNum(n) => parts.push(format!("seq_num={n}")),
            From::Timestamp(t) => parts.push(format!("timestamp={t}")),
            From::TailOffset(n) => parts.push(format!("tail_offset={n}")),
        }
        let optional = [
            self.clamp.map(|c| format!("clamp={c}")),
            self.count.map(|c| format!("count={c}")),
            self.bytes.map(|b| format!("bytes={b}")),
            self.until.map(|u| format!("until={u}")),
        ];
        parts.extend(optional.into_iter().flatten());
        parts.join("&")
    }
}

impl Model {
    /// A read that does not wait, within the limits of one batch if it is `unary`. One that is not
    /// and has no limits either would follow, and so may begin at the tail.
    fn read(&self, query: Query, unary: bool) -> Expected {
        if let (From::Timestamp(from), Some(until)) = (query.from, query.until)
            && from >= until
        {
            return Expected::Invalid;
        }
        if query.count == Some(0) || query.bytes == Some(0) {
            return Expected::Records(Vec::new());
        }
        let (tail, last) = self.tail;
        let clamp = query.clamp.unwrap_or(false);
        let start = match query.from {
            From::Default => tail,
            From::SeqNum(n) if n > tail && clamp => tail,
            From::SeqNum(n) => n,
            From::TailOffset(n) => tail.saturating_sub(n),
            From::Timestamp(t) if t > last && !clamp => return Expected::Unwritten,
            From::Timestamp(t) => self
                .records
                .iter()
                .find(|(_, timestamp, _)| *timestamp >= t)
                .map_or(tail, |(seq, _, _)| *seq),
        };
        let follows =
            !unary && query.count.is_none() && query.bytes.is_none() && query.until.is_none();
        if start > tail || (start == tail && !follows) {
            return Expected::Unwritten;
        }
        let most = if unary { 1000 } else { usize::MAX };
        let most_bytes = if unary { 1024 * 1024 } else { usize::MAX };
        let count = query.count.unwrap_or(most).min(most);
        let bytes = query.bytes.unwrap_or(most_bytes).min(most_bytes);
        let mut taken = Vec::new();
        let mut taken_bytes = 0;
        for (seq, timestamp, size) in &self.records {
            if *seq < start {
                continue;
            }
            taken_bytes += size;
            if taken.len() == count
                || taken_bytes > bytes
                || query.until.is_some_and(|until| *timestamp >= until)
            {
                break;
            }
            taken.push(*seq);
        }
        Expected::Records(taken)
    }
}

/// A stream with batches of all sizes, equal timestamps within and over batches, gaps between them,
/// and a trim point inside of a batch.
async fn varied(server: &Server, rng: &mut StdRng) -> Model {
    let stream = orders(server).await;
    let mut records = Vec::new();
    let mut timestamp = 1000;
    for _ in 0..60 {
        let size = *[1, 1, 2, 5, 17].choose(rng).unwrap();
        let mut batch = Vec::new();
        for _ in 0..size {
            timestamp += *[0, 0, 0, 1, 7].choose(rng).unwrap();
            let body = rng.random_range(0..40);
            records.push((records.len() as u64, timestamp, 8 + body));
            batch.push(
                AppendRecord::new(vec![b'x'; body])
                    .unwrap()
                    .with_timestamp(timestamp),
            );
        }
        let batch = AppendRecordBatch::try_from_iter(batch).unwrap();
        stream.append(AppendInput::new(batch)).await.unwrap();
    }
    let trim = 13;
    timestamp += 3;
    let command: AppendRecord = CommandRecord::trim(trim).with_timestamp(timestamp).into();
    records.push((records.len() as u64, timestamp, 8 + 2 + 4 + 8));
    let batch = AppendRecordBatch::try_from_iter([command]).unwrap();
    stream.append(AppendInput::new(batch)).await.unwrap();
    let tail = (records.len() as u64, timestamp);
    records.retain(|(seq, _, _)| *seq >= trim);
    Model { records, tail }
}

fn random_query(rng: &mut StdRng, model: &Model) -> Query {
    let (tail, last) = model.tail;
    let from = match rng.random_range(0..8) {
        0 => From::Default,
        1..=3 => From::SeqNum(rng.random_range(0..tail + 4)),
        4 | 5 => From::Timestamp(rng.random_range(990..last + 4)),
        _ => From::TailOffset(rng.random_range(0..tail + 4)),
    };
    let mut maybe = |chance: f64| rng.random_bool(chance);
    let (clamp, count, bytes, until) = (maybe(0.4), maybe(0.5), maybe(0.4), maybe(0.3));
    Query {
        from,
        clamp: clamp.then(|| rng.random_bool(0.8)),
        count: count.then(|| rng.random_range(0..60)),
        bytes: bytes.then(|| rng.random_range(0..900)),
        until: until.then(|| rng.random_range(990..last + 9)),
    }
}

#[tokio::test]
async fn every_start_and_every_end_answers_what_a_model_of_the_stream_says() {
    let seed = rand::random();
    let mut rng = StdRng::seed_from_u64(seed);
    let server = Server::fresh().await;
    let model = varied(&server, &mut rng).await;
    let clients = TRANSPORTS.map(|transport| server.http(transport));
    for i in 0..600 {
        let query = random_query(&mut rng, &model);
        let text = query.text();
        let context = format!("seed {seed}: {text}");
        let http = &clients[i % 2];

        let expected = model.read(query, true);
        let unary = get(http, &text).await;
        check_head(&unary, &expected, &model, &context);
        if let Expected::Records(expected) = &expected {
            assert_eq!(seq_nums(&unary.json()), *expected, "{context}");
        }

        // Sessions have no limits of their own; `wait=0` keeps an unlimited one from following.
        let text = format!("{text}&wait=0");
        let expected = model.read(query, false);
        let Expected::Records(expected) = &expected else {
            for name in ["accept", "content-type"] {
                let value = match name {
                    "accept" => "text/event-stream",
                    _ => "s2s/proto",
                };
                let answer = http
                    .get(&format!("{RECORDS}?{text}"))
                    .basin("test-basin")
                    .header(name, value)
                    .send()
                    .await;
                check_head(&answer, &expected, &model, &context);
            }
            continue;
        };
        let mut events = Events::open(http, "test-basin", "orders", &text, None).await;
        let mut seen = Vec::new();
        let mut events = events.rest().await;
        assert_eq!(events.pop().unwrap().data, "[DONE]", "{context}");
        for event in events {
            assert_eq!(event.event, "batch", "{context}");
            seen.extend(event.seq_nums());
        }
        assert_eq!(seen, *expected, "{context}");
        let mut session = frames::read_session(http, "test-basin", "orders", &text).await;
        let mut outputs = session.rest().await;
        assert_eq!(outputs.pop(), Some(Output::End), "{context}");
        let seen: Vec<u64> = outputs
            .into_iter()
            .flat_map(|output| output.message().records)
            .map(|record| record.seq_num)
            .collect();
        assert_eq!(seen, *expected, "{context}");
    }
}

fn check_head(answer: &Answer, expected: &Expected, model: &Model, context: &str) {
    match expected {
        Expected::Records(_) => assert_eq!(answer.status, 200, "{context}: {}", answer.text()),
        Expected::Unwritten => {
            assert_eq!(answer.status, 416, "{context}: {}", answer.text());
            let (seq_num, timestamp) = model.tail;
            let tail = json!({"tail": {"seq_num": seq_num, "timestamp": timestamp}});
            assert_eq!(answer.json(), tail, "{context}");
        }
        Expected::Invalid => {
            assert_eq!(answer.status, 422, "{context}: {}", answer.text());
            assert_eq!(answer.code(), "invalid", "{context}");
        }
    }
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
    // The largest record fits alone.
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
    // What is not known is not meant for us.
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

mod waiting {
    use super::*;

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
        // Not in vain, on each transport, with and without limits.
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
                // Far from the thirty seconds of one that is not woken.
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
                    // Not before this, at least.
                    put_off = sent;
                }
                longest
            };
            let outputs = soon("the end of a session", session.rest());
            let (outputs, longest) = tokio::join!(outputs, append);
            let waited = put_off.elapsed();
            // Otherwise it may have ended before a record came, and rightly so.
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
        // All of them have reached the tail.
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
}

mod events {
    use super::*;

    #[tokio::test]
    async fn events_have_cumulative_ids_and_a_resumed_read_deducts_what_was_delivered() {
        let server = Server::fresh().await;
        let stream = orders(&server).await;
        let http = server.http1();
        // "x" has 9 metered bytes. Two connections end at the tail, the third at the limit.
        for limits in [
            "count=10",
            "bytes=90",
            "count=10&bytes=999",
            "count=99&bytes=95",
        ] {
            let base = stream.check_tail().await.unwrap().seq_num;
            let query = format!("seq_num={base}&{limits}");
            let mut last: Option<String> = None;
            let mut seen = Vec::new();
            for (more, total) in [(4, 4), (3, 7), (13, 10)] {
                sdk::append(&stream, vec!["x"; more]).await;
                let mut events =
                    Events::open(&http, "test-basin", "orders", &query, last.as_deref()).await;
                let mut events = events.rest().await;
                assert_eq!(events.pop().unwrap().data, "[DONE]");
                for event in &events {
                    assert_eq!(event.event, "batch");
                    seen.extend(event.seq_nums());
                    let id = event.id.clone().unwrap();
                    let at = seen.last().unwrap();
                    assert_eq!(id, format!("{at},{},{}", seen.len(), 9 * seen.len()));
                    last = Some(id);
                }
                assert_eq!(seen, (base..base + total).collect::<Vec<_>>(), "{limits}");
            }
            let mut events =
                Events::open(&http, "test-basin", "orders", &query, last.as_deref()).await;
            let rest = events.rest().await;
            assert_eq!(rest.len(), 1, "the limit is used up: {rest:?}");
        }
        // Made-up numbers count as they are, and the largest do no harm.
        sdk::append(&stream, ["x", "x"]).await;
        let huge = format!("0,{},{}", usize::MAX - 1, usize::MAX);
        let mut events = Events::open(
            &http,
            "test-basin",
            "orders",
            "seq_num=0&wait=0",
            Some(&huge),
        )
        .await;
        let first = events.next().await.unwrap();
        assert_eq!(first.seq_nums()[0], 1);
        let id = first.id.unwrap();
        assert!(
            id.ends_with(&format!(",{},{}", usize::MAX, usize::MAX)),
            "{id}"
        );
        for bad in ["", "1", "1,2", "a,b,c", "1,2,-3", "1,2,3,4"] {
            http.get(&format!("{RECORDS}?seq_num=0"))
                .basin("test-basin")
                .header("accept", "text/event-stream")
                .header("last-event-id", bad)
                .send()
                .await
                .refused(400, "bad_header");
        }
    }

    #[tokio::test]
    async fn a_follower_gets_a_ping_at_the_tail_and_records_as_they_come() {
        let server = Server::fresh().await;
        let stream = orders(&server).await;
        sdk::append(&stream, ["a"]).await;
        for transport in TRANSPORTS {
            let http = server.http(transport);
            let next = stream.check_tail().await.unwrap().seq_num;
            let query = format!("seq_num={}", next - 1);
            let mut events = Events::open(&http, "test-basin", "orders", &query, None).await;
            assert_eq!(events.next().await.unwrap().seq_nums(), [next - 1]);
            let ping = events.next().await.unwrap();
            assert_eq!(ping.event, "ping");
            assert_eq!(ping.json()["tail"]["seq_num"], next);
            assert!(ping.json()["timestamp"].as_u64().unwrap() > 1_000_000_000_000);
            sdk::append(&stream, ["b", "c"]).await;
            let event = events.batch().await;
            assert_eq!(event.seq_nums(), [next, next + 1]);
            assert_eq!(event.json()["tail"]["seq_num"], next + 2);
        }
    }

    #[tokio::test]
    async fn the_format_of_bodies_is_the_one_asked_for() {
        let server = Server::fresh().await;
        let stream = orders(&server).await;
        sdk::append(&stream, [vec![0xff, 0xfe]]).await;
        let mut exchange = server
            .http1()
            .get(&format!("{RECORDS}?seq_num=0&count=1"))
            .basin("test-basin")
            .header("accept", "text/event-stream")
            .header("s2-format", "base64")
            .open()
            .await;
        exchange.finish();
        let text = exchange.rest().await.unwrap();
        let text = String::from_utf8(text.to_vec()).unwrap();
        assert!(text.contains(r#""body":"//4=""#), "{text}");
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
