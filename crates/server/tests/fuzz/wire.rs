//! Frames, bodies and codings, written and read independently of the server.
//!
//! The bytes of a session are taken apart here by a second implementation of the framing; only
//! decompressing a frame and the protobuf messages are those of the `s2-api` crate.

use async_compression::tokio::bufread::{GzipDecoder, GzipEncoder, ZstdDecoder, ZstdEncoder};
use bytes::{Bytes, BytesMut};
use prost::Message;
use s2_api::v1::error::ErrorCode;
use s2_api::v1::stream::proto::{self, AppendAck};
use s2_api::v1::stream::s2s::{CompressionAlgorithm, FrameDecoder, SessionMessage};
use serde_json::Value;
use tokio::io::{AsyncReadExt as _, BufReader};
use tokio_util::codec::Decoder as _;

use crate::model::Batch;

/// Most bytes of a frame, its flags included, and of what it unpacks to.
pub const FRAME_LIMIT: usize = 2 * 1024 * 1024;
/// The flag of a frame that ends the session.
pub const TERMINAL: u8 = 0x80;

/// Compresses; `coding` as HTTP calls it.
pub async fn compress(coding: &str, bytes: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    match coding {
        "gzip" => GzipEncoder::new(bytes).read_to_end(&mut out).await,
        "zstd" => ZstdEncoder::new(bytes).read_to_end(&mut out).await,
        other => panic!("no coding {other}"),
    }
    .unwrap();
    out
}

/// So many times the same byte, compressed: little to send, and much to hold.
pub async fn bomb(coding: &str, byte: u8, bytes: u64) -> Vec<u8> {
    let much = BufReader::new(tokio::io::repeat(byte).take(bytes));
    let mut out = Vec::new();
    match coding {
        "gzip" => GzipEncoder::new(much).read_to_end(&mut out).await,
        "zstd" => ZstdEncoder::new(much).read_to_end(&mut out).await,
        other => panic!("no coding {other}"),
    }
    .unwrap();
    out
}

/// Decompresses.
pub async fn decompress(coding: &str, bytes: &[u8]) -> std::io::Result<Vec<u8>> {
    let mut out = Vec::new();
    match coding {
        "gzip" => GzipDecoder::new(bytes).read_to_end(&mut out).await?,
        "zstd" => ZstdDecoder::new(bytes).read_to_end(&mut out).await?,
        other => panic!("no coding {other}"),
    };
    Ok(out)
}

/// A frame: three bytes of length, one of flags, and a payload.
pub fn frame(flags: u8, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len() + 1).unwrap();
    let mut frame = length.to_be_bytes()[1..].to_vec();
    frame.push(flags);
    frame.extend_from_slice(payload);
    frame
}

/// A message as a frame. Small ones stay uncompressed.
pub fn framed(compression: CompressionAlgorithm, message: &impl Message) -> Vec<u8> {
    let message = SessionMessage::regular(compression, message).unwrap();
    message.encode().to_vec()
}

/// Takes the first frame off: itself, whole, and its flags. `None` if there is no whole one.
///
/// # Errors
///
/// No frame can begin like this.
fn split_frame<'a>(bytes: &mut &'a [u8]) -> Result<Option<(&'a [u8], u8)>, ()> {
    let &[a, b, c, ref rest @ ..] = *bytes else {
        return Ok(None);
    };
    let length = u32::from_be_bytes([0, a, b, c]) as usize;
    if length == 0 || length > FRAME_LIMIT {
        return Err(());
    }
    if rest.len() < length {
        return Ok(None);
    }
    let (whole, after) = bytes.split_at(3 + length);
    *bytes = after;
    Ok(Some((whole, whole[3])))
}

/// The message of a whole frame that is not terminal.
fn message_of<M: Message + Default>(frame: &[u8]) -> Result<M, ()> {
    const COMPRESSION: u8 = 0x60;
    if frame[3] & COMPRESSION == 0 {
        return M::decode(&frame[4..]).map_err(drop);
    }
    match FrameDecoder.decode(&mut BytesMut::from(frame)) {
        Ok(Some(SessionMessage::Regular(data))) => data.try_into_proto().map_err(drop),
        Ok(other) => panic!("a frame became {other:?}"),
        Err(_) => Err(()),
    }
}

/// How the input of an append session ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InputEnd {
    /// Well.
    Clean,
    /// Not a frame, or not the end of one.
    BadFrame,
    /// A message that cannot be meant.
    Invalid,
}

/// What the bytes of an append session say: the batches before the first fault, and the fault.
pub fn session_input(mut bytes: &[u8], broken_off: bool) -> (Vec<Batch>, InputEnd) {
    let mut batches = Vec::new();
    loop {
        let end = match split_frame(&mut bytes) {
            Err(()) => InputEnd::BadFrame,
            Ok(None) if bytes.is_empty() && !broken_off => InputEnd::Clean,
            Ok(None) => InputEnd::BadFrame,
            Ok(Some((_, flags))) if flags & TERMINAL != 0 => InputEnd::BadFrame,
            Ok(Some((frame, _))) => match message_of::<proto::AppendInput>(frame) {
                Err(()) => InputEnd::BadFrame,
                Ok(input) => {
                    let batch = Batch::from(input);
                    if batch.is_valid() {
                        batches.push(batch);
                        continue;
                    }
                    InputEnd::Invalid
                }
            },
        };
        return (batches, end);
    }
}

/// What a session answered: its messages, and the error that ended it.
#[derive(Debug)]
pub struct SessionAnswer<M> {
    /// Messages, in order.
    pub messages: Vec<M>,
    /// What ended it, if not all went well.
    pub fault: Option<Fault>,
}

impl<M: Message + Default> SessionAnswer<M> {
    /// Takes a whole answer apart.
    #[track_caller]
    pub fn parse(mut bytes: &[u8]) -> SessionAnswer<M> {
        let mut messages = Vec::new();
        let mut fault = None;
        while let Some((frame, flags)) = split_frame(&mut bytes).expect("no frame") {
            if flags & TERMINAL == 0 {
                messages.push(message_of(frame).expect("no message"));
                continue;
            }
            assert_eq!(flags, TERMINAL, "other flags beside the terminal one");
            let status = u16::from_be_bytes([frame[4], frame[5]]);
            let body = std::str::from_utf8(&frame[6..]).expect("not UTF-8");
            fault = Some(Fault::new(status, body));
            break;
        }
        assert!(bytes.is_empty(), "{} bytes after the end", bytes.len());
        SessionAnswer { messages, fault }
    }
}

/// The whole frames at the beginning of an answer that was not read to its end.
pub fn first_acks(mut bytes: &[u8]) -> Vec<AppendAck> {
    let mut acks = Vec::new();
    while let Ok(Some((frame, flags))) = split_frame(&mut bytes) {
        if flags & TERMINAL == 0 {
            acks.push(message_of(frame).expect("no acknowledgement"));
        }
    }
    acks
}

/// An error, as a unary answer or the end of a session tells it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fault {
    /// A code of the API.
    Code(ErrorCode),
    /// The sequence number that would have matched.
    SeqNumMismatch(u64),
    /// The fencing token that would have matched.
    FencingTokenMismatch(String),
    /// The tail, of a read that begins beyond it.
    Unwritten(u64),
}

impl Fault {
    /// Checks that it is an error of the API, and that the status fits.
    #[track_caller]
    pub fn new(status: u16, body: &str) -> Fault {
        let what = || format!("{status}: {body}");
        let json: Value = serde_json::from_str(body)
            .unwrap_or_else(|e| panic!("an error without JSON ({e}): {}", what()));
        let fields = json.as_object().unwrap_or_else(|| panic!("{}", what()));
        let keys: Vec<&str> = fields.keys().map(String::as_str).collect();
        match (status, keys.as_slice()) {
            (412, ["seq_num_mismatch"]) => {
                Fault::SeqNumMismatch(json["seq_num_mismatch"].as_u64().unwrap())
            }
            (412, ["fencing_token_mismatch"]) => {
                let token = json["fencing_token_mismatch"].as_str().unwrap();
                Fault::FencingTokenMismatch(token.to_owned())
            }
            (416, ["tail"]) => Fault::Unwritten(json["tail"]["seq_num"].as_u64().unwrap()),
            (_, ["code", "message"]) => {
                let code = json["code"].as_str().unwrap();
                let known = esker_server::api::CODES
                    .iter()
                    .map(|(known, _, _)| *known)
                    .find(|known| known.to_string() == code)
                    .unwrap_or_else(|| panic!("an unknown code: {}", what()));
                // Two statuses are more telling than that of their code.
                let due = match (status, known) {
                    (405, ErrorCode::Invalid) | (415, ErrorCode::BadHeader) => status,
                    _ => known.status().as_u16(),
                };
                assert_eq!(status, due, "{}", what());
                assert!(
                    !json["message"].as_str().unwrap().is_empty(),
                    "an error without a message: {}",
                    what()
                );
                Fault::Code(known)
            }
            _ => panic!("an unknown error: {}", what()),
        }
    }
}

/// Percent-encodes all but what may stand anywhere.
pub fn percent_encoded(bytes: &[u8]) -> String {
    let mut out = String::new();
    for byte in bytes {
        match byte {
            b'0'..=b'9' | b'a'..=b'z' | b'A'..=b'Z' | b'-' | b'_' | b'~' => out.push(*byte as char),
            other => out.push_str(&format!("%{other:02X}")),
        }
    }
    out
}

/// Base64 with padding.
pub fn base64(bytes: &[u8]) -> String {
    use base64::Engine as _;
    base64::engine::general_purpose::STANDARD.encode(bytes)
}

/// The bytes of base64 with padding.
pub fn unbase64(text: &str) -> Option<Bytes> {
    use base64::Engine as _;
    let bytes = base64::engine::general_purpose::STANDARD
        .decode(text)
        .ok()?;
    Some(bytes.into())
}
