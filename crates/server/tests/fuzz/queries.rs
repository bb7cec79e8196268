//! Reads: what a query asks for, and queries that ask for nothing.

use std::time::Duration;

use http::{HeaderValue, Uri};
use http_body_util::BodyExt as _;
use rand::Rng;
use rand::seq::IndexedRandom as _;
use s2_api::v1::error::ErrorCode;

use crate::generate::{self, now_ms, once_in};
use crate::model::{BATCH_BYTES, BATCH_RECORDS, Kept, Stream};
use crate::mutate;
use crate::reading::{self, Form};
use crate::round_trips::append_batch;
use crate::run::Lane;
use crate::wire::Fault;
/// What the cases must have brought about.
pub const MUST_HAPPEN: &[&str] = &[
    "records",
    "nothing",
    "unwritten",
    "contradiction",
    "follows",
    "mutated and answered",
    "mutated and refused",
];

/// A read, as its query says it.
#[derive(Clone, Debug, Default)]
struct Query {
    seq_num: Option<u64>,
    timestamp: Option<u64>,
    tail_offset: Option<u64>,
    clamp: Option<bool>,
    count: Option<u64>,
    bytes: Option<u64>,
    until: Option<u64>,
    wait: Option<u32>,
    /// What was delivered before: the last sequence number, how many records, how many bytes. Only
    /// server-sent events go on like that.
    delivered: Option<(u64, u64, u64)>,
}

/// What has to come of a read.
#[derive(Debug)]
enum Expected<'a> {
    /// These records; then, if it follows, the tail and no end.
    Records { records: &'a [Kept], follows: bool },
    /// Nothing is written where it begins.
    Unwritten,
    /// This error.
    Fault(ErrorCode),
}

/// One read.
pub async fn case(lane: &mut Lane) {
    let at = lane.any_stream();
    // So that there is something to read, of every age and size.
    if lane.place.1 < 20 || once_in(&mut lane.rng, 8) {
        append_batch(lane, at).await;
    }
    let form = Form::any(&mut lane.rng);
    let query = Query::any(&mut lane.rng, &lane.streams[at], form);
    let mut text = query.text();
    if once_in(&mut lane.rng, 3) {
        let times = lane.rng.random_range(1..4);
        mutate::text(&mut lane.rng, &mut text, times);
        mutated(lane, at, &text, form).await;
        return;
    }
    let stream = &lane.streams[at];
    let expected = query.expected(stream, form);
    let mut request = reading::request(&lane.basin, &stream.name, &text, form);
    let delivered = query.delivered.map_or(0, |(_, count, _)| count);
    if let Some((seq_num, count, bytes)) = query.delivered {
        let last = HeaderValue::from_str(&format!("{seq_num},{count},{bytes}"));
        request.headers_mut().insert("last-event-id", last.unwrap());
    }
    let what = format!(
        "{query:?} as {form:?}, of {}..{}",
        stream.head(),
        stream.tail()
    );
    let outcome = match expected {
        Expected::Records {
            records,
            follows: true,
        } => {
            let read =
                reading::read_some(&lane.world, request, form, delivered, records.len(), true)
                    .await;
            check(&read.records, records, form, &what);
            assert_eq!(read.fault, None, "{what}");
            "follows"
        }
        Expected::Records { records, .. } => {
            let answer = lane.world.send(request).await;
            let read = reading::parse_after(&answer, form, delivered);
            assert_eq!(read.fault, None, "{what}");
            check(&read.records, records, form, &what);
            match records.is_empty() {
                true => "nothing",
                false => "records",
            }
        }
        Expected::Unwritten => {
            let answer = lane.world.send(request).await;
            assert_eq!(answer.status, 416, "{what}: {answer:?}");
            assert_eq!(answer.fault(), Fault::Unwritten(stream.tail()), "{what}");
            "unwritten"
        }
        Expected::Fault(code) => {
            let answer = lane.world.send(request).await;
            assert!(answer.status != 200, "{what} is answered");
            assert_eq!(answer.fault(), Fault::Code(code), "{what}");
            "contradiction"
        }
    };
    lane.count(outcome);
}

#[track_caller]
fn check(seen: &[reading::Seen], expected: &[Kept], form: Form, what: &str) {
    let places = |mut seq_nums: Vec<u64>| {
        seq_nums.dedup();
        (seq_nums.first().copied(), seq_nums.len())
    };
    let got = places(seen.iter().map(|s| s.seq_num).collect());
    let due = places(expected.iter().map(|k| k.seq_num).collect());
    assert_eq!(got, due, "first record and number of records of {what}");
    for (seen, kept) in seen.iter().zip(expected) {
        seen.check(kept, form);
        assert_eq!(seen.timestamp, kept.known_timestamp(), "{what}");
    }
}

impl Query {
    fn any(rng: &mut impl Rng, stream: &Stream, form: Form) -> Query {
        /// Close to a record's, or anything.
        fn some_time(rng: &mut impl Rng, stream: &Stream) -> u64 {
            let times = stream.from(0);
            match times.choose(rng) {
                Some(kept) if !once_in(rng, 4) => {
                    let time = kept.known_timestamp();
                    time.saturating_add(1)
                        .saturating_sub(rng.random_range(0..3))
                }
                _ => generate::number(rng, now_ms()),
            }
        }
        let mut query = Query::default();
        match rng.random_range(0..8) {
            0..=2 => query.seq_num = Some(generate::number(rng, stream.tail())),
            3 | 4 => query.timestamp = Some(some_time(rng, stream)),
            5 => query.tail_offset = Some(generate::number(rng, stream.tail())),
            6 => {}
            _ => {
                query.seq_num = Some(generate::number(rng, stream.tail()));
                query.tail_offset = once_in(rng, 4).then_some(1);
                query.timestamp = once_in(rng, 4).then_some(1);
            }
        }
        if once_in(rng, 3) {
            query.clamp = Some(rng.random());
        }
        if once_in(rng, 2) {
            query.count = Some(generate::number(rng, 20));
        }
        if once_in(rng, 4) {
            query.bytes = Some(generate::number(rng, 2000));
        }
        if once_in(rng, 5) {
            query.until = Some(some_time(rng, stream));
        }
        if once_in(rng, 6) {
            query.wait = Some(0);
        }
        if matches!(form, Form::Events | Form::EventsBase64) && once_in(rng, 3) {
            let seq_num = generate::number(rng, stream.tail());
            // Small enough that the sums stay in what fits, which is all that ids promise.
            let (count, bytes) = (rng.random_range(0..30), rng.random_range(0..3000));
            query.delivered = Some((seq_num, count, bytes));
        }
        query
    }

    fn text(&self) -> String {
        let number = |name: &'static str, value: Option<u64>| value.map(|v| format!("{name}={v}"));
        let pairs = [
            number("seq_num", self.seq_num),
            number("timestamp", self.timestamp),
            number("tail_offset", self.tail_offset),
            self.clamp.map(|clamp| format!("clamp={clamp}")),
            number("count", self.count),
            number("bytes", self.bytes),
            number("until", self.until),
            number("wait", self.wait.map(u64::from)),
        ];
        let pairs: Vec<String> = pairs.into_iter().flatten().collect();
        pairs.join("&")
    }

    /// What the API says of it.
    fn expected<'a>(&self, stream: &'a Stream, form: Form) -> Expected<'a> {
        let starts = [self.seq_num, self.timestamp, self.tail_offset];
        let starts = starts.iter().flatten().count();
        if starts > 1 {
            return Expected::Fault(ErrorCode::Invalid);
        }
        let Some((seq_num, count, bytes)) = self.delivered else {
            return self.expected_of_the_rest(stream, form);
        };
        let left = |all: Option<u64>, delivered| all.map(|all| all.saturating_sub(delivered));
        let rest = Query {
            seq_num: Some(seq_num.saturating_add(1)),
            timestamp: None,
            tail_offset: None,
            count: left(self.count, count),
            bytes: left(self.bytes, bytes),
            ..self.clone()
        };
        rest.expected_of_the_rest(stream, form)
    }

    /// The same, with nothing delivered before.
    fn expected_of_the_rest<'a>(&self, stream: &'a Stream, form: Form) -> Expected<'a> {
        let until = self.until.unwrap_or(u64::MAX);
        if self.until.is_some() && self.timestamp.is_some_and(|time| time >= until) {
            return Expected::Fault(ErrorCode::Invalid);
        }
        let unary = !form.is_session();
        // Unary reads are bounded, said or not.
        let most = |asked: Option<u64>, most: usize| match unary {
            true => asked.unwrap_or(u64::MAX).min(most as u64),
            false => asked.unwrap_or(u64::MAX),
        };
        let count = most(self.count, BATCH_RECORDS);
        let bytes = most(self.bytes, BATCH_BYTES);
        if count == 0 || bytes == 0 {
            return Expected::Records {
                records: &[],
                follows: false,
            };
        }
        let bounded = unary
            || [self.count, self.bytes, self.until]
                .iter()
                .any(Option::is_some);
        // A wait of nothing follows nothing, but does not bound a read that has no other bound.
        let follows = !bounded;
        let tail = stream.tail();
        let clamp = self.clamp == Some(true);
        let mut start = match (self.seq_num, self.timestamp, self.tail_offset) {
            (Some(seq_num), _, _) => seq_num,
            (_, Some(time), _) if time > stream.tail_timestamp().1 && !clamp => {
                return Expected::Unwritten;
            }
            (_, Some(time), _) => stream
                .from(0)
                .iter()
                .find(|kept| kept.known_timestamp() >= time)
                .map_or(tail, |kept| kept.seq_num),
            (_, _, offset) => tail.saturating_sub(offset.unwrap_or(0)),
        };
        if clamp {
            start = start.min(tail);
        }
        if start > tail || (start == tail && !follows) {
            return Expected::Unwritten;
        }
        let mut left = (count, bytes);
        let records = stream.from(start);
        let fitting = records.iter().take_while(|kept| {
            let metered = kept.record.metered() as u64;
            let fits = left.0 >= 1 && left.1 >= metered && kept.known_timestamp() < until;
            if fits {
                left = (left.0 - 1, left.1 - metered);
            }
            fits
        });
        let fitting = fitting.count();
        Expected::Records {
            records: &records[..fitting],
            follows,
        }
    }
}

/// A query that may say anything: it is answered or refused, and never the server's fault.
async fn mutated(lane: &mut Lane, at: usize, text: &str, form: Form) {
    let stream = &lane.streams[at];
    let mut request = reading::request(&lane.basin, &stream.name, "", form);
    let uri = format!("{}?{text}", request.uri().path());
    let Ok(uri) = uri.parse::<Uri>() else {
        return;
    };
    *request.uri_mut() = uri;
    if once_in(&mut lane.rng, 3) {
        let rng = &mut lane.rng;
        let last = match rng.random_range(0..3) {
            0 => format!("{},{},{}", u64::MAX, u64::MAX, u64::MAX),
            1 => format!("{},1,10", generate::number(rng, 10)),
            _ => "1,,".to_owned(),
        };
        let last = HeaderValue::from_str(&last).unwrap();
        request.headers_mut().insert("last-event-id", last);
    }
    // It may have been made to wait; what waits is left alone after a while.
    let asked = tokio::time::timeout(Duration::from_millis(100), lane.world.open_request(request));
    let outcome = match asked.await {
        Err(_) => "mutated and waits",
        Ok(response) if response.status() == 200 => {
            reading::leave(response, Duration::from_millis(20)).await;
            "mutated and answered"
        }
        Ok(response) => {
            let status = response.status();
            assert!(status.is_client_error(), "{status} to {text} as {form:?}");
            let body = response.into_body().collect().await.unwrap().to_bytes();
            let _ = Fault::new(status.as_u16(), std::str::from_utf8(&body).unwrap());
            "mutated and refused"
        }
    };
    lane.count(outcome);
}
