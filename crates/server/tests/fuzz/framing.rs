//! Append sessions: frames, and what is not quite a frame.

use axum::body::Body;
use futures::StreamExt as _;
use http::{Method, Request};
use http_body_util::BodyExt as _;
use rand::Rng;
use rand::rngs::StdRng;
use rand::seq::{IndexedMutRandom as _, IndexedRandom as _};
use s2_api::v1::error::ErrorCode;
use s2_api::v1::stream::proto::{self, AppendAck};
use s2_api::v1::stream::s2s::CompressionAlgorithm;

use crate::generate::{self, now_ms, once_in};
use crate::model::{Batch, Between, Record, Refusal, Stream};
use crate::mutate::{self, Arrival};
use crate::reading::{self, Form};
use crate::run::Lane;
use crate::wire::{self, FRAME_LIMIT, Fault, InputEnd, SessionAnswer, TERMINAL};
use crate::world::WAIT_TIMEOUT;

/// What the cases must have brought about.
pub const MUST_HAPPEN: &[&str] = &[
    "clean end",
    "bad frame",
    "invalid",
    "fencing token mismatch",
    "sequence number mismatch",
    "timestamp missing",
    "left early",
    "refused for its coding",
    "acknowledged before a fault",
];

/// What the session has to do, and how sure that is.
struct Expected {
    batches: Vec<Batch>,
    end: InputEnd,
}

/// One session.
pub async fn case(lane: &mut Lane) {
    let at = lane.any_stream();
    let frames = frames(lane, at).await;
    let mut bytes = frames.concat();
    if once_in(&mut lane.rng, 3) {
        let times = lane.rng.random_range(1..4);
        mutate::bytes(&mut lane.rng, &mut bytes, times);
    }
    // A session has no coding as a whole, whatever its bytes are.
    let coding = match once_in(&mut lane.rng, 12) {
        true => ["gzip", "zstd"].choose(&mut lane.rng),
        false => None,
    };
    let arrival = match coding.is_none() && once_in(&mut lane.rng, 8) {
        true => Arrival::BrokenOff,
        false => Arrival::Whole,
    };
    let (batches, end) = wire::session_input(&bytes, arrival == Arrival::BrokenOff);
    let expected = Expected { batches, end };
    let stream = &lane.streams[at];
    let path = format!("{}/records", reading::stream_path(&stream.name));
    let mut request = lane
        .request(Method::POST, &path)
        .header("content-type", "s2s/proto");
    if let Some(coding) = coding {
        request = request.header("content-encoding", *coding);
    }
    if let Some(accepted) = ["gzip", "zstd", "br", "gzip;q=0"].get(lane.rng.random_range(0..8)) {
        request = request.header("accept-encoding", *accepted);
    }
    let body = mutate::body(&mut lane.rng, &bytes, arrival);
    let request = request.body(body).unwrap();
    let before = lane.streams[at].tail();
    if coding.is_some() {
        let answer = lane.world.send(request).await;
        assert_eq!(answer.status, 415, "{answer:?}");
        lane.count("refused for its coding");
    } else if once_in(&mut lane.rng, 10) {
        leave_early(lane, at, request, &expected).await;
    } else {
        to_the_end(lane, at, request, &expected).await;
    }
    let form = Form::any(&mut lane.rng);
    let Lane {
        world,
        basin,
        streams,
        ..
    } = lane;
    reading::check_from(world, basin, &mut streams[at], before, form).await;
}

/// Frames, mostly good ones.
async fn frames(lane: &mut Lane, at: usize) -> Vec<Vec<u8>> {
    let rng = &mut lane.rng;
    let compression = *[
        CompressionAlgorithm::None,
        CompressionAlgorithm::Gzip,
        CompressionAlgorithm::Zstd,
    ]
    .choose(rng)
    .unwrap();
    let batches = generate::batches(rng, &lane.streams[at], 6);
    let mut frames: Vec<_> = batches
        .iter()
        .map(|batch| wire::framed(compression, &proto::AppendInput::from(batch)))
        .collect();
    let strange = match rng.random_range(0..10) {
        0..=5 => 0,
        6..=8 => 1,
        _ => 3,
    };
    for _ in 0..strange {
        let to = rng.random_range(0..=frames.len());
        match rng.random_range(0..6) {
            0 if !frames.is_empty() => drop(frames.remove(to.min(frames.len() - 1))),
            1 if !frames.is_empty() => {
                let again = frames.choose(rng).unwrap().clone();
                frames.insert(to, again);
            }
            2 if !frames.is_empty() => {
                let from = rng.random_range(0..frames.len());
                let to = to.min(frames.len() - 1);
                frames.swap(from, to);
            }
            3 if !frames.is_empty() => {
                let frame = frames.choose_mut(rng);
                spoil_head(rng, frame.unwrap());
            }
            _ => {
                let frame = strange_frame(rng, &lane.bombs.frames, &batches).await;
                frames.insert(to, frame);
            }
        }
    }
    frames
}

/// Changes a frame's length or flags.
fn spoil_head(rng: &mut impl Rng, frame: &mut Vec<u8>) {
    if frame.len() < 4 {
        frame.insert(0, rng.random());
        return;
    }
    match rng.random_range(0..5) {
        // A byte of the length is there twice, or not at all.
        0 => frame.insert(rng.random_range(0..3), frame[1]),
        1 => drop(frame.remove(rng.random_range(0..3))),
        2 => frame[2] = frame[2].wrapping_add(*[1, 0xff].choose(rng).unwrap()),
        3 => frame[rng.random_range(0..3)] = rng.random(),
        _ => frame[3] ^= 1 << rng.random_range(0..8),
    }
}

/// A frame that no client sends, though some are in order.
async fn strange_frame(rng: &mut StdRng, bombs: &[Vec<u8>], batches: &[Batch]) -> Vec<u8> {
    let message = match batches.choose(rng) {
        Some(batch) => prost::Message::encode_to_vec(&proto::AppendInput::from(batch)),
        None => Vec::new(),
    };
    match rng.random_range(0..14) {
        0 => wire::frame(TERMINAL, b"\x01\xf4{\"code\":\"other\",\"message\":\"\"}"),
        1 => wire::frame(TERMINAL, &generate::bytes(rng, 3)),
        2 => vec![0, 0, 0],
        3 => vec![0xff; 4],
        // One byte more than a frame may have, and exactly as many, which do not come.
        4 => (FRAME_LIMIT as u32 + 1).to_be_bytes()[1..].to_vec(),
        5 => (FRAME_LIMIT as u32).to_be_bytes()[1..].to_vec(),
        6 => wire::frame(rng.random(), &message),
        7 => wire::frame(*[0x10, 0x0f, 0x1f].choose(rng).unwrap(), &message),
        8 => wire::frame(*[0x20, 0x40, 0x60].choose(rng).unwrap(), &message),
        9 => wire::frame(0, &generate::bytes(rng, 40)),
        10 => wire::frame(0, b""),
        11 if once_in(rng, 4) => {
            let beyond = rng.random_range(0..2);
            wire::frame(0, &padded(message, FRAME_LIMIT - 1 + beyond))
        }
        12 if once_in(rng, 4) => {
            let beyond = rng.random_range(0..2);
            let message = padded(message, FRAME_LIMIT - 1 + beyond);
            wire::frame(0x40, &wire::compress("gzip", &message).await)
        }
        _ => bombs.choose(rng).unwrap().clone(),
    }
}

/// A message of so many bytes: an unknown field makes up for what is missing.
fn padded(mut message: Vec<u8>, length: usize) -> Vec<u8> {
    /// Field 15, of bytes.
    const KEY: u8 = 15 << 3 | 2;
    /// The key, and a length that takes three bytes.
    const HEAD: usize = 4;
    let Some(padding) = length.checked_sub(message.len() + HEAD) else {
        return message;
    };
    if !(1 << 14..1 << 21).contains(&padding) {
        return message;
    }
    message.push(KEY);
    prost::encoding::encode_varint(padding as u64, &mut message);
    message.resize(length, 0);
    message
}

/// Reads the whole answer, and compares.
async fn to_the_end(lane: &mut Lane, at: usize, request: Request<Body>, expected: &Expected) {
    let before = now_ms();
    let answer = lane.world.send(request).await;
    let arrival = Between(before, now_ms());
    assert_eq!(answer.status, 200, "{answer:?}");
    assert_eq!(answer.headers["content-type"], "s2s/proto");
    let answer = SessionAnswer::<AppendAck>::parse(&answer.body);
    let mut acks = answer.messages.iter();
    let stream = &mut lane.streams[at];
    let mut fault = match expected.end {
        InputEnd::Clean => None,
        InputEnd::BadFrame => Some(Fault::Code(ErrorCode::BadFrame)),
        InputEnd::Invalid => Some(Fault::Code(ErrorCode::Invalid)),
    };
    let mut outcome = match expected.end {
        InputEnd::Clean => "clean end",
        InputEnd::BadFrame => "bad frame",
        InputEnd::Invalid => "invalid",
    };
    for (number, batch) in expected.batches.iter().enumerate() {
        match stream.append(batch, arrival) {
            Ok(()) => {
                let ack = acks.next().unwrap_or_else(|| {
                    panic!("batch {number} was not acknowledged: {:?}", answer.fault)
                });
                check_ack(stream, batch, ack);
            }
            Err(refusal) => {
                (fault, outcome) = refused(refusal);
                break;
            }
        }
    }
    assert_eq!(answer.fault, fault, "how the session ended");
    assert_eq!(acks.len(), 0, "more acknowledgements than batches");
    if answer.fault.is_some() && !answer.messages.is_empty() {
        lane.count("acknowledged before a fault");
    }
    lane.count(outcome);
}

/// The error that tells of a refusal, and how it is counted.
pub fn refused(refusal: Refusal) -> (Option<Fault>, &'static str) {
    let (fault, outcome) = match refusal {
        Refusal::FencingToken(token) => {
            (Fault::FencingTokenMismatch(token), "fencing token mismatch")
        }
        Refusal::SeqNum(next) => (Fault::SeqNumMismatch(next), "sequence number mismatch"),
        Refusal::Timestamp => (Fault::Code(ErrorCode::Invalid), "timestamp missing"),
    };
    (Some(fault), outcome)
}

/// Checks that the acknowledgement is that of the batch appended last.
#[track_caller]
pub fn check_ack(stream: &mut Stream, batch: &Batch, ack: &AppendAck) {
    let (start, end, tail) = (ack.start.unwrap(), ack.end.unwrap(), ack.tail.unwrap());
    assert_eq!(end.seq_num, stream.tail(), "the end");
    assert_eq!(end.seq_num - start.seq_num, batch.records.len() as u64);
    assert_eq!(tail.seq_num, stream.tail(), "the tail");
    assert_eq!(tail.timestamp, end.timestamp, "the tail's timestamp");
    stream.learn(start.seq_num, start.timestamp);
    stream.learn(end.seq_num - 1, end.timestamp);
}

/// Goes away in the middle. Then some batches were appended, whole and in order, and no fewer than
/// were acknowledged.
async fn leave_early(lane: &mut Lane, at: usize, request: Request<Body>, expected: &Expected) {
    let before = now_ms();
    let chunks = lane.rng.random_range(0..4);
    let mut body = lane.world.open_request(request).await.into_body();
    let mut seen = Vec::new();
    let reading = async {
        for _ in 0..chunks {
            let Some(chunk) = body.frame().await else {
                break;
            };
            seen.extend_from_slice(&chunk.unwrap().into_data().unwrap());
        }
    };
    tokio::time::timeout(WAIT_TIMEOUT, reading).await.unwrap();
    if lane.rng.random() {
        // It goes on a little, unread.
        let _ = futures::poll!(body.into_data_stream().next());
    } else {
        drop(body);
    }
    let acked = wire::first_acks(&seen).len();
    // Whatever was taken in is in the log before this.
    let (seed, case) = lane.place;
    let marker = Batch {
        records: vec![Record {
            timestamp: Some(now_ms()),
            headers: Vec::new(),
            body: format!("marker of {seed}/{case}").into(),
        }],
        ..Batch::default()
    };
    let path = format!("{}/records", reading::stream_path(&lane.streams[at].name));
    let request = lane
        .request(Method::POST, &path)
        .header("content-type", "application/protobuf")
        .header("accept", "application/protobuf")
        .body(Body::from(prost::Message::encode_to_vec(
            &proto::AppendInput::from(&marker),
        )))
        .unwrap();
    let answer = lane.world.send(request).await;
    assert_eq!(answer.status, 200, "{answer:?}");
    let ack = <AppendAck as prost::Message>::decode(&answer.body[..]).unwrap();
    let arrival = Between(before, now_ms());
    let stream = &mut lane.streams[at];
    let landed = ack.start.unwrap().seq_num;
    let mut whole = 0;
    for batch in &expected.batches {
        if stream.tail() >= landed || stream.append(batch, arrival).is_err() {
            break;
        }
        whole += 1;
    }
    assert_eq!(stream.tail(), landed, "a batch was appended in part");
    assert!(whole >= acked, "{acked} acknowledged, {whole} there");
    stream.append(&marker, arrival).unwrap();
    check_ack(stream, &marker, &ack);
    lane.count("left early");
}
