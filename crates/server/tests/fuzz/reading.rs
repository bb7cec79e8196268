//! Reading a stream back, in every form that the API has.

use std::time::Duration;

use axum::body::Body;
use bytes::Bytes;
use futures::StreamExt as _;
use http::{Method, Request, Response};
use rand::Rng;
use s2_api::v1::stream::proto::ReadBatch;
use serde_json::Value;

use crate::model::{Kept, Stream};
use crate::wire::{Fault, SessionAnswer, percent_encoded, unbase64};
use crate::world::{Answer, WAIT_TIMEOUT, World};

/// A form in which records can be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// JSON, text as it is and the rest mangled.
    Json,
    /// JSON with base64.
    JsonBase64,
    /// Protobuf.
    Proto,
    /// A session of frames, compressed like this if at all.
    Frames(Option<&'static str>),
    /// Server-sent events, text as it is and the rest mangled.
    Events,
    /// Server-sent events with base64.
    EventsBase64,
}

/// All of them.
pub const FORMS: [Form; 8] = [
    Form::Json,
    Form::JsonBase64,
    Form::Proto,
    Form::Frames(None),
    Form::Frames(Some("gzip")),
    Form::Frames(Some("zstd")),
    Form::Events,
    Form::EventsBase64,
];

impl Form {
    /// Any of them.
    pub fn any(rng: &mut impl Rng) -> Form {
        FORMS[rng.random_range(0..FORMS.len())]
    }

    /// Whether an answer has everything that there is to read.
    pub fn is_session(self) -> bool {
        !matches!(self, Form::Json | Form::JsonBase64 | Form::Proto)
    }

    /// Whether bytes that are not UTF-8 come out as something else.
    pub fn is_lossy(self) -> bool {
        matches!(self, Form::Json | Form::Events)
    }

    /// The headers that ask for it.
    pub fn headers(self) -> &'static [(&'static str, &'static str)] {
        match self {
            Form::Json => &[],
            Form::JsonBase64 => &[("s2-format", "base64"), ("accept-encoding", "gzip")],
            Form::Proto => &[
                ("accept", "application/protobuf"),
                ("accept-encoding", "zstd"),
            ],
            Form::Frames(None) => &[("content-type", "s2s/proto")],
            Form::Frames(Some("gzip")) => {
                &[("content-type", "s2s/proto"), ("accept-encoding", "gzip")]
            }
            Form::Frames(Some(_)) => &[("content-type", "s2s/proto"), ("accept-encoding", "zstd")],
            Form::Events => &[("accept", "text/event-stream")],
            Form::EventsBase64 => &[("accept", "text/event-stream"), ("s2-format", "base64")],
        }
    }
}

/// A record as it was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    /// Its sequence number.
    pub seq_num: u64,
    /// Its timestamp.
    pub timestamp: u64,
    /// Names and values.
    pub headers: Vec<(Bytes, Bytes)>,
    /// The body.
    pub body: Bytes,
}

impl Seen {
    /// Checks that it is this record.
    #[track_caller]
    pub fn check(&self, kept: &Kept, form: Form) {
        let shown = |bytes: &Bytes| match form.is_lossy() {
            true => Bytes::from(String::from_utf8_lossy(bytes).into_owned()),
            false => bytes.clone(),
        };
        let (record, seq_num) = (&kept.record, kept.seq_num);
        assert_eq!(self.seq_num, seq_num, "the sequence number, as {form:?}");
        let headers: Vec<_> = record
            .headers
            .iter()
            .map(|(n, v)| (shown(n), shown(v)))
            .collect();
        assert!(
            self.headers == headers && self.body == shown(&record.body),
            "record {seq_num} reads as {self:?} in {form:?}, and was {record:?}"
        );
    }
}

/// What a read answered.
#[derive(Debug)]
pub struct Read {
    /// Records, in order.
    pub records: Vec<Seen>,
    /// The error that ended it.
    pub fault: Option<Fault>,
    /// How often the tail was told without records.
    pub heartbeats: u64,
}

/// The path of a stream.
pub fn stream_path(name: &str) -> String {
    format!("/v1/streams/{}", percent_encoded(name.as_bytes()))
}

/// A read with this query.
pub fn request(basin: &str, stream: &str, query: &str, form: Form) -> Request<Body> {
    let mut request = Request::builder()
        .method(Method::GET)
        .uri(format!("{}/records?{query}", stream_path(stream)))
        .header("s2-basin", basin);
    for (name, value) in form.headers() {
        request = request.header(*name, *value);
    }
    request.body(Body::empty()).unwrap()
}

/// Takes a whole answer apart.
#[track_caller]
pub fn parse(answer: &Answer, form: Form) -> Read {
    parse_after(answer, form, 0)
}

/// Takes a whole answer apart, which goes on after so many records.
#[track_caller]
pub fn parse_after(answer: &Answer, form: Form, delivered: u64) -> Read {
    let mut read = Read {
        records: Vec::new(),
        fault: None,
        heartbeats: 0,
    };
    if answer.status != 200 {
        read.fault = Some(answer.fault());
        return read;
    }
    let kind = answer.headers["content-type"].to_str().unwrap();
    match form {
        Form::Json | Form::JsonBase64 => {
            assert_eq!(kind, "application/json");
            read.records = records_of_json(&answer.json(), form);
        }
        Form::Proto => {
            assert_eq!(kind, "application/protobuf");
            let batch = <ReadBatch as prost::Message>::decode(&answer.body[..]).unwrap();
            read.records = records_of_proto(batch);
        }
        Form::Frames(_) => {
            assert_eq!(kind, "s2s/proto");
            let session = SessionAnswer::<ReadBatch>::parse(&answer.body);
            read.fault = session.fault;
            for batch in session.messages {
                assert!(!batch.records.is_empty() || batch.tail.is_some());
                read.heartbeats += u64::from(batch.records.is_empty());
                read.records.extend(records_of_proto(batch));
            }
        }
        Form::Events | Form::EventsBase64 => {
            assert_eq!(kind, "text/event-stream");
            let text = std::str::from_utf8(&answer.body).unwrap();
            read_events(text, form, delivered, &mut read);
        }
    }
    read
}

fn records_of_proto(batch: ReadBatch) -> Vec<Seen> {
    let seen = |record: s2_api::v1::stream::proto::SequencedRecord| Seen {
        seq_num: record.seq_num,
        timestamp: record.timestamp,
        headers: record
            .headers
            .into_iter()
            .map(|h| (h.name, h.value))
            .collect(),
        body: record.body,
    };
    batch.records.into_iter().map(seen).collect()
}

#[track_caller]
fn records_of_json(batch: &Value, form: Form) -> Vec<Seen> {
    let bytes = |text: &Value| {
        let text = text.as_str().unwrap();
        match form.is_lossy() {
            true => Bytes::from(text.to_owned()),
            false => unbase64(text).unwrap(),
        }
    };
    let seen = |record: &Value| Seen {
        seq_num: record["seq_num"].as_u64().unwrap(),
        timestamp: record["timestamp"].as_u64().unwrap(),
        headers: record.get("headers").map_or(Vec::new(), |headers| {
            let headers = headers.as_array().unwrap();
            headers
                .iter()
                .map(|h| (bytes(&h[0]), bytes(&h[1])))
                .collect()
        }),
        body: record.get("body").map_or(Bytes::new(), bytes),
    };
    let records = batch["records"].as_array().unwrap();
    records.iter().map(seen).collect()
}

#[track_caller]
fn read_events(text: &str, form: Form, delivered: u64, read: &mut Read) {
    let mut done = false;
    for event in text.split_terminator("\n\n") {
        assert!(!done, "an event after the end: {event}");
        let field = |name: &str| {
            let mut values = event
                .lines()
                .filter_map(|line| line.strip_prefix(name)?.strip_prefix(": "));
            let value = values.next();
            assert_eq!(values.next(), None, "two fields {name}");
            value
        };
        let data = field("data").unwrap();
        match field("event") {
            Some("batch") => {
                let batch = serde_json::from_str(data).unwrap();
                read.records.extend(records_of_json(&batch, form));
                let last = read.records.last().expect("an empty batch");
                let id = field("id").unwrap();
                let count = delivered + read.records.len() as u64;
                let so_far = format!("{},{count},", last.seq_num);
                assert!(id.starts_with(&so_far), "id {id} is not {so_far}…");
            }
            Some("ping") => read.heartbeats += 1,
            Some("error") => {
                let error: Value = serde_json::from_str(data).unwrap();
                panic!("a read ended with {error}");
            }
            None => {
                assert_eq!(data, "[DONE]");
                done = true;
            }
            other => panic!("an unknown event: {other:?}"),
        }
    }
}

/// What begins with `request`, and goes on after `delivered` records, is not read to its end but
/// only up to `enough` records, and the tail if `heartbeat`.
pub async fn read_some(
    world: &World,
    request: Request<Body>,
    form: Form,
    delivered: u64,
    enough: usize,
    heartbeat: bool,
) -> Read {
    let what = format!("{} as {form:?}", request.uri());
    let response = world.open_request(request).await;
    let (parts, body) = response.into_parts();
    let mut body = body.into_data_stream();
    let mut bytes = Vec::new();
    let mut checked = 0;
    let reading = async {
        loop {
            let chunk = body.next().await;
            let over = chunk.is_none();
            bytes.extend_from_slice(&chunk.transpose().unwrap().unwrap_or_default());
            checked += 1;
            if parts.status != 200 && !over {
                continue;
            }
            let answer = Answer {
                status: parts.status.as_u16(),
                headers: parts.headers.clone(),
                body: match over {
                    true => std::mem::take(&mut bytes).into(),
                    false => whole_messages(&bytes, form),
                },
            };
            let read = parse_after(&answer, form, delivered);
            let told = read.heartbeats > 0 || !heartbeat;
            if over || (read.records.len() >= enough && told) {
                return read;
            }
        }
    };
    match tokio::time::timeout(WAIT_TIMEOUT, reading).await {
        Ok(read) => read,
        Err(_) => panic!("{what}: not {enough} records within {WAIT_TIMEOUT:?} ({checked} chunks)"),
    }
}

/// The whole messages at the beginning of a session's answer.
fn whole_messages(bytes: &[u8], form: Form) -> Bytes {
    let end = match form {
        Form::Frames(_) => {
            let mut end = 0;
            while let Some(&[a, b, c]) = bytes.get(end..end + 3) {
                let next = end + 3 + u32::from_be_bytes([0, a, b, c]) as usize;
                if next > bytes.len() {
                    break;
                }
                end = next;
            }
            end
        }
        Form::Events | Form::EventsBase64 => bytes
            .windows(2)
            .rposition(|two| two == b"\n\n")
            .map_or(0, |at| at + 2),
        Form::Json | Form::JsonBase64 | Form::Proto => bytes.len(),
    };
    Bytes::copy_from_slice(&bytes[..end])
}

/// Asks for the tail.
pub async fn tail(world: &World, basin: &str, stream: &str) -> (u64, u64) {
    let request = Request::get(format!("{}/records/tail", stream_path(stream)))
        .header("s2-basin", basin)
        .body(Body::empty())
        .unwrap();
    let answer = world.send(request).await;
    assert_eq!(answer.status, 200, "the tail of {stream}: {answer:?}");
    let tail = &answer.json()["tail"];
    let number = |name: &str| tail[name].as_u64().unwrap();
    (number("seq_num"), number("timestamp"))
}

/// Reads the records from `from` on, and checks that they are the ones that the stream must have,
/// and that there are no more. Learns their timestamps.
pub async fn check_from(world: &World, basin: &str, stream: &mut Stream, from: u64, form: Form) {
    let mut next = from.max(stream.head());
    let end = stream.tail();
    while next < end {
        let left = end - next;
        let query = format!("seq_num={next}&count={left}");
        let answer = world.send(request(basin, &stream.name, &query, form)).await;
        let read = parse(&answer, form);
        assert_eq!(read.fault, None, "reading {} at {query}", stream.name);
        assert!(!read.records.is_empty(), "nothing at {next} of {end}");
        for seen in &read.records {
            assert!(next < end, "more than there is: {seen:?}");
            seen.check(&stream.kept[next as usize], form);
            stream.learn(next, seen.timestamp);
            next += 1;
        }
        assert!(
            next == end || !form.is_session(),
            "ended at {next} of {end}"
        );
    }
    let told = tail(world, basin, &stream.name).await;
    assert_eq!(told.0, end, "the tail of {}", stream.name);
    match end.checked_sub(1) {
        Some(last) => stream.learn(last, told.1),
        None => assert_eq!(told.1, 0, "the timestamp of an empty stream"),
    }
    let mut latest = 0;
    for kept in stream.from(from) {
        assert!(kept.known_timestamp() >= latest, "timestamps decrease");
        latest = kept.known_timestamp();
    }
}

/// Drops a response after a while, as a client that goes away.
pub async fn leave(response: Response<Body>, after: Duration) {
    let mut body = response.into_body().into_data_stream();
    let reading = async { while body.next().await.is_some() {} };
    // Whether it ended by itself makes no difference.
    let _ = tokio::time::timeout(after, reading).await;
}
