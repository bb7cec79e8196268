//! Every start and every end of a read, against a model of the stream.

use rand::rngs::StdRng;
use rand::seq::IndexedRandom as _;
use rand::{Rng as _, SeedableRng as _};
use s2_sdk::types::{AppendInput, AppendRecord, AppendRecordBatch, CommandRecord};
use serde_json::json;
use testkit::seeds;

use super::{RECORDS, get, orders, seq_nums};
use crate::support::Server;
use crate::support::events::Events;
use crate::support::frames::{self, Output};
use crate::support::http::{Answer, TRANSPORTS};

/// The content of a stream, and the expected answers to reads of it.
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
    /// The answer to a read that does not wait, within the limits of one batch if it is `unary`. A read that
    /// is not unary and has no limits either would follow, and so may begin at the tail.
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

/// A stream with batches of all sizes, equal timestamps within and across batches, gaps between them, and a
/// trim point inside a batch.
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
    let seed = seeds::one(1, "--test e2e reads::model");
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
