//! Appends one at a time: bodies, headers, codings.

use axum::body::Body;
use http::{HeaderName, HeaderValue, Method, Request};
use rand::Rng;
use rand::seq::IndexedRandom as _;
use s2_api::v1::error::ErrorCode;
use s2_api::v1::stream::proto::{self, AppendAck, StreamPosition};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::framing::{check_ack, refused};
use crate::generate::{self, now_ms, once_in};
use crate::model::{Batch, Between, Record, TOKEN_BYTES};
use crate::mutate::{self, Arrival};
use crate::reading::{self, Form};
use crate::run::Lane;
use crate::wire::{self, Fault};
use crate::world::{Answer, REQUEST_BODY};

/// What the cases must have brought about.
pub const MUST_HAPPEN: &[&str] = &[
    "appended",
    "bad json",
    "bad proto",
    "invalid",
    "fencing token mismatch",
    "sequence number mismatch",
    "timestamp missing",
    "odd headers refused",
    "odd headers accepted",
];

/// How a body is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BodyForm {
    /// JSON with text.
    Json,
    /// JSON with base64.
    JsonBase64,
    /// Protobuf.
    Proto,
}

impl BodyForm {
    /// One that can carry the batch.
    pub fn any(rng: &mut impl Rng, batch: &Batch) -> BodyForm {
        match rng.random_range(0..3) {
            0 if batch.records.iter().all(Record::is_text) => BodyForm::Json,
            0 | 1 => BodyForm::JsonBase64,
            _ => BodyForm::Proto,
        }
    }

    /// Writes the batch.
    pub fn write(self, batch: &Batch) -> Vec<u8> {
        let shown = |bytes: &[u8]| match self {
            BodyForm::Json => String::from_utf8(bytes.to_vec()).unwrap(),
            _ => wire::base64(bytes),
        };
        if self == BodyForm::Proto {
            return prost::Message::encode_to_vec(&proto::AppendInput::from(batch));
        }
        let record = |record: &Record| {
            let headers = record.headers.iter();
            let headers: Vec<_> = headers.map(|(n, v)| [shown(n), shown(v)]).collect();
            let mut json = json!({"headers": headers, "body": shown(&record.body)});
            if let Some(timestamp) = record.timestamp {
                json["timestamp"] = timestamp.into();
            }
            json
        };
        let records: Vec<Value> = batch.records.iter().map(record).collect();
        let mut json = json!({ "records": records });
        if let Some(expected) = batch.match_seq_num {
            json["match_seq_num"] = expected.into();
        }
        if let Some(token) = &batch.fencing_token {
            json["fencing_token"] = token.as_str().into();
        }
        serde_json::to_vec(&json).unwrap()
    }

    /// Reads a batch as the API does.
    ///
    /// # Errors
    ///
    /// The code that says what is wrong with it.
    fn read(self, body: &[u8]) -> Result<Batch, ErrorCode> {
        let batch = match self {
            BodyForm::Proto => <proto::AppendInput as prost::Message>::decode(body)
                .map_err(|_| ErrorCode::BadProto)?
                .into(),
            BodyForm::Json | BodyForm::JsonBase64 => self.read_json(body)?,
        };
        match batch.is_valid() {
            true => Ok(batch),
            false => Err(ErrorCode::Invalid),
        }
    }

    fn read_json(self, body: &[u8]) -> Result<Batch, ErrorCode> {
        #[derive(Deserialize)]
        struct Input {
            records: Vec<InputRecord>,
            match_seq_num: Option<u64>,
            fencing_token: Option<String>,
        }
        #[derive(Deserialize)]
        struct InputRecord {
            timestamp: Option<u64>,
            #[serde(default)]
            headers: Vec<(String, String)>,
            #[serde(default)]
            body: String,
        }
        let input: Input = serde_json::from_slice(body).map_err(|_| ErrorCode::BadJson)?;
        if input.fencing_token.as_ref().map_or(0, String::len) > TOKEN_BYTES {
            return Err(ErrorCode::BadJson);
        }
        let bytes = |text: String| match self {
            BodyForm::Json => Ok(text.into()),
            _ => wire::unbase64(&text).ok_or(ErrorCode::Invalid),
        };
        let mut batch = Batch {
            records: Vec::new(),
            match_seq_num: input.match_seq_num,
            fencing_token: input.fencing_token,
        };
        for record in input.records {
            let mut headers = Vec::new();
            for (name, value) in record.headers {
                headers.push((bytes(name)?, bytes(value)?));
            }
            batch.records.push(Record {
                timestamp: record.timestamp,
                headers,
                body: bytes(record.body)?,
            });
        }
        Ok(batch)
    }

    /// The headers that say so.
    pub fn headers(self) -> &'static [(&'static str, &'static str)] {
        match self {
            BodyForm::Json => &[("content-type", "application/json")],
            BodyForm::JsonBase64 => &[
                ("content-type", "application/json; charset=utf-8"),
                ("s2-format", "base64"),
            ],
            BodyForm::Proto => &[("content-type", "application/protobuf")],
        }
    }
}

/// The acknowledgement in an answer.
#[track_caller]
pub fn ack(answer: &Answer) -> AppendAck {
    match answer.headers["content-type"].to_str().unwrap() {
        "application/json" => {
            let json = answer.json();
            let position = |name: &str| {
                let number = |field: &str| json[name][field].as_u64().unwrap();
                Some(StreamPosition {
                    seq_num: number("seq_num"),
                    timestamp: number("timestamp"),
                })
            };
            AppendAck {
                start: position("start"),
                end: position("end"),
                tail: position("tail"),
            }
        }
        "application/protobuf" => prost::Message::decode(&answer.body[..]).unwrap(),
        other => panic!("an acknowledgement as {other}"),
    }
}

/// One append.
pub async fn case(lane: &mut Lane) {
    let at = lane.any_stream();
    let batch = match once_in(&mut lane.rng, 5) {
        true => generate::odd_batch(&mut lane.rng, &lane.streams[at]),
        false => generate::batch(&mut lane.rng, &lane.streams[at]),
    };
    let form = BodyForm::any(&mut lane.rng, &batch);
    let mut bytes = form.write(&batch);
    if lane.rng.random() {
        let times = lane.rng.random_range(1..5);
        mutate::bytes(&mut lane.rng, &mut bytes, times);
    }
    let faulty = Err(match form {
        BodyForm::Proto => ErrorCode::BadProto,
        _ => ErrorCode::BadJson,
    });
    let mut expected = match bytes.len() > REQUEST_BODY {
        true => faulty.clone(),
        false => form.read(&bytes),
    };
    let path = format!("{}/records", reading::stream_path(&lane.streams[at].name));
    let mut request = lane.request(Method::POST, &path);
    for (name, value) in form.headers() {
        request = request.header(*name, *value);
    }
    let accepted = [
        "application/json",
        "application/protobuf",
        "*/*",
        "text/event-stream",
    ];
    if let Some(accepted) = accepted.get(lane.rng.random_range(0..8)) {
        request = request.header("accept", *accepted);
    }
    let mut arrival = Arrival::Whole;
    let mut odd = false;
    match lane.rng.random_range(0..20) {
        coding @ 0..=2 => {
            let coding = ["gzip", "zstd"][coding % 2];
            bytes = wire::compress(coding, &bytes).await;
            request = request.header("content-encoding", coding);
            if once_in(&mut lane.rng, 4) {
                bytes.truncate(lane.rng.random_range(1..bytes.len()));
                expected = faulty;
            }
        }
        3 if !bytes.is_empty() => {
            request = request.header("content-encoding", "zstd");
            expected = faulty;
        }
        4 => {
            arrival = Arrival::BrokenOff;
            expected = faulty;
        }
        5..=10 => odd = true,
        _ => {}
    }
    let body = mutate::body(&mut lane.rng, &bytes, arrival);
    let mut request = request.body(body).unwrap();
    if odd {
        odd_headers(&mut lane.rng, &mut request);
    }
    let before = lane.streams[at].tail();
    append(lane, at, request, expected, odd).await;
    let form = Form::any(&mut lane.rng);
    let Lane {
        world,
        basin,
        streams,
        ..
    } = lane;
    reading::check_from(world, basin, &mut streams[at], before, form).await;
}

/// Sends it and compares. With odd headers it may be refused, whatever the body says.
async fn append(
    lane: &mut Lane,
    at: usize,
    request: Request<Body>,
    expected: Result<Batch, ErrorCode>,
    odd: bool,
) {
    let what = format!("{:?}", request.headers());
    let before = now_ms();
    let answer = lane.world.send(request).await;
    let arrival = Between(before, now_ms());
    if odd && answer.status != 200 {
        // Any error of the API, but none of the server's own.
        let fault = answer.fault();
        assert!((400..500).contains(&answer.status), "{fault:?} to {what}");
        lane.count("odd headers refused");
        return;
    }
    let batch = match expected {
        Ok(batch) => batch,
        Err(code) => {
            assert_eq!(answer.fault(), Fault::Code(code), "{what}");
            lane.count(match code {
                ErrorCode::BadJson => "bad json",
                ErrorCode::BadProto => "bad proto",
                _ => "invalid",
            });
            return;
        }
    };
    let stream = &mut lane.streams[at];
    match stream.append(&batch, arrival) {
        Ok(()) => {
            assert_eq!(answer.status, 200, "{:?} to {what}", answer.fault());
            check_ack(stream, &batch, &ack(&answer));
            lane.count(match odd {
                true => "odd headers accepted",
                false => "appended",
            });
        }
        Err(refusal) => {
            let (fault, outcome) = refused(refusal);
            assert_eq!(Some(answer.fault()), fault, "{what}");
            lane.count(outcome);
        }
    }
}

/// Adds or replaces a header or two. None changes how the body is read, if it is read.
fn odd_headers(rng: &mut impl Rng, request: &mut Request<Body>) {
    const ODD: &[(&str, &[u8])] = &[
        ("accept", b"application/json, application/protobuf;q=0.1"),
        ("accept", b"\xff\xfe"),
        ("accept-encoding", b"zstd;q=banana, gzip;q=0, *"),
        ("authorization", b"Bearer anything"),
        ("content-encoding", b"br"),
        ("content-encoding", b"identity"),
        ("content-encoding", b"gzip, zstd"),
        ("content-encoding", b"\xff"),
        ("content-length", b"3"),
        ("content-length", b"18446744073709551616"),
        ("content-type", b"text/plain"),
        ("content-type", b"application"),
        ("content-type", b"application/x-www-form-urlencoded"),
        ("content-type", b"\xff/json"),
        ("content-type", b""),
        ("expect", b"100-continue"),
        ("last-event-id", b"1,2"),
        ("s2-basin", b""),
        ("s2-basin", b"short"),
        ("s2-basin", b"No-Such_Basin/.."),
        ("s2-basin", b"no-such-basin"),
        ("s2-basin", b"\xff\xfe\xfd"),
        ("s2-encryption-key", b"0123456789abcdef"),
        (
            "s2-encryption-key",
            b"AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=",
        ),
        ("s2-format", b"hex"),
        ("s2-format", b"\xff"),
        ("s2-request-token", b"anything"),
        ("s2-stream-config", b"{}"),
        ("s2-stream-config", b"{\"retention_policy\":{\"age\":0}}"),
        (
            "s2-stream-config",
            b"{\"retention_policy\":{\"age\":18446744073709551615}}",
        ),
        (
            "s2-stream-config",
            b"{\"timestamping\":{\"mode\":\"none\"}}",
        ),
        ("s2-stream-config", b"[[[["),
        ("s2-stream-config", b"\xff"),
        ("transfer-encoding", b"chunked, gzip"),
    ];
    for _ in 0..rng.random_range(1..3) {
        let (name, value) = ODD.choose(rng).unwrap();
        let name = HeaderName::from_static(name);
        let value = HeaderValue::from_bytes(value).unwrap();
        match once_in(rng, 4) {
            true => drop(request.headers_mut().append(name, value)),
            false => drop(request.headers_mut().insert(name, value)),
        }
    }
    if once_in(rng, 10) {
        let long = vec![b'x'; rng.random_range(0..20_000)];
        let value = HeaderValue::from_bytes(&long).unwrap();
        let name = *["x-long", "s2-stream-config", "accept"]
            .choose(rng)
            .unwrap();
        request.headers_mut().insert(name, value);
    }
}
