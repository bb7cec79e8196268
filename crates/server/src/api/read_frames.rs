//! Frames of read sessions: stored records are written straight into the frame that carries them.
//!
//! Records of a stream without a cipher are in memory as they are stored. Their frame has the exact size
//! of what it holds, so each record is copied once, and nothing else is allocated for it. What is
//! encrypted or compressed takes the way over the messages of the API, with the same result.

use std::io;

use bytes::{BufMut as _, Bytes, BytesMut};
use esker_node::{
    Error, RawContent, RawHeaders, RawRecord, ReadContent, ReadRecords, StoredRecords,
};
use s2_api::v1::stream::{proto, s2s};
use s2_common::record::StreamPosition;

/// Bytes of a frame before its message: its length, and flags.
const HEAD: usize = 4;
/// Most bytes of a frame without the three of its length; clients accept no more.
const MAX_FRAME: usize = 2 * 1024 * 1024;

/// Keys of the fields of `ReadBatch`, `SequencedRecord`, `Header` and `StreamPosition`: the number of the
/// field times eight, and 2 for a value with a length.
const BATCH_RECORDS: u8 = 1 << 3 | 2;
const BATCH_TAIL: u8 = 2 << 3 | 2;
const RECORD_SEQ_NUM: u8 = 1 << 3;
const RECORD_TIMESTAMP: u8 = 2 << 3;
const RECORD_HEADERS: u8 = 3 << 3 | 2;
const RECORD_BODY: u8 = 4 << 3 | 2;
const HEADER_NAME: u8 = 1 << 3 | 2;
const HEADER_VALUE: u8 = 2 << 3 | 2;
const POSITION_SEQ_NUM: u8 = 1 << 3;
const POSITION_TIMESTAMP: u8 = 2 << 3;

/// Encoded forms of records that several sessions get: each is encoded once.
#[derive(Clone, Copy)]
pub(super) enum Form {
    RawJson,
    Base64Json,
    Frame,
    ZstdFrame,
    GzipFrame,
}

impl From<s2s::CompressionAlgorithm> for Form {
    fn from(compression: s2s::CompressionAlgorithm) -> Form {
        match compression {
            s2s::CompressionAlgorithm::None => Form::Frame,
            s2s::CompressionAlgorithm::Zstd => Form::ZstdFrame,
            s2s::CompressionAlgorithm::Gzip => Form::GzipFrame,
        }
    }
}

/// The frame of some records.
///
/// # Errors
///
/// [`Error::Storage`] if a stored record is not one that its stream can have, or if the frame would be larger
/// than clients accept: only records that consist of headers of one byte each, in a stream with very high
/// sequence numbers, are.
pub(super) fn frame(
    records: ReadRecords,
    compression: s2s::CompressionAlgorithm,
) -> Result<Bytes, Error> {
    let tail = records.tail;
    match (&records.content, compression) {
        (ReadContent::Shared(shared), _) => {
            shared.form(Form::from(compression) as u8, |records, tail| {
                let content = ReadContent::Stored(records.clone());
                let tail = Some(tail);
                frame(ReadRecords { content, tail }, compression)
            })
        }
        (ReadContent::Stored(stored), s2s::CompressionAlgorithm::None) => {
            stored_frame(stored, tail)
        }
        _ => {
            let batch = proto::ReadBatch::from(records.into_batch()?);
            message_frame(&batch, compression).map_err(|e| Error::Storage(e.to_string()))
        }
    }
}

/// The frame of a message.
///
/// # Errors
///
/// It is larger than clients accept.
pub(super) fn message_frame(
    batch: &proto::ReadBatch,
    compression: s2s::CompressionAlgorithm,
) -> io::Result<Bytes> {
    Ok(s2s::SessionMessage::regular(compression, batch)?.encode())
}

fn stored_frame(records: &StoredRecords, tail: Option<StreamPosition>) -> Result<Bytes, Error> {
    let mut size = 0;
    for record in records.raw() {
        let record = Wire::of(record.map_err(|e| Error::Storage(e.to_string()))?)?;
        size += 1 + with_length(record.size);
    }
    // Records of a MiB whose headers have one byte each take two on the wire. The tail may be left out.
    let tail_size = |tail| 1 + with_length(position_size(tail));
    let tail = tail.filter(|tail| size + tail_size(*tail) < MAX_FRAME);
    size += tail.map_or(0, tail_size);
    if size + 1 > MAX_FRAME {
        let what = format!("{} records take {size} bytes of a frame", records.len());
        return Err(Error::Storage(what));
    }
    let mut frame = BytesMut::with_capacity(HEAD + size);
    frame.put_uint(size as u64 + 1, HEAD - 1);
    frame.put_u8(0);
    for record in records.raw() {
        let record = Wire::of(record.map_err(|e| Error::Storage(e.to_string()))?)?;
        put_key_and_length(&mut frame, BATCH_RECORDS, record.size);
        record.put(&mut frame);
    }
    if let Some(tail) = tail {
        put_key_and_length(&mut frame, BATCH_TAIL, position_size(tail));
        put_number(&mut frame, POSITION_SEQ_NUM, tail.seq_num);
        put_number(&mut frame, POSITION_TIMESTAMP, tail.timestamp);
    }
    debug_assert_eq!(frame.len(), HEAD + size);
    Ok(frame.freeze())
}

/// A record, and the size of its message.
struct Wire<'a> {
    position: StreamPosition,
    headers: RawHeaders<'a>,
    body: &'a [u8],
    size: usize,
}

impl<'a> Wire<'a> {
    fn of((position, record): (StreamPosition, RawRecord<'a>)) -> Result<Wire<'a>, Error> {
        let RawContent::Plain { headers, body } = record.content else {
            let seq_num = position.seq_num;
            let what = format!("record {seq_num} is encrypted, and its stream has no cipher");
            return Err(Error::Storage(what));
        };
        let mut size = position_size(position) + bytes_size(body);
        for (name, value) in headers {
            size += 1 + with_length(bytes_size(name) + bytes_size(value));
        }
        Ok(Wire {
            position,
            headers,
            body,
            size,
        })
    }

    fn put(&self, frame: &mut BytesMut) {
        put_number(frame, RECORD_SEQ_NUM, self.position.seq_num);
        put_number(frame, RECORD_TIMESTAMP, self.position.timestamp);
        for (name, value) in self.headers {
            put_key_and_length(frame, RECORD_HEADERS, bytes_size(name) + bytes_size(value));
            put_bytes(frame, HEADER_NAME, name);
            put_bytes(frame, HEADER_VALUE, value);
        }
        put_bytes(frame, RECORD_BODY, self.body);
    }
}

/// Sequence numbers and timestamps are the first two fields of a record as of a position.
fn position_size(position: StreamPosition) -> usize {
    number_size(position.seq_num) + number_size(position.timestamp)
}

/// A field that has its default value is left out.
fn number_size(number: u64) -> usize {
    match number {
        0 => 0,
        _ => 1 + varint_size(number),
    }
}

fn bytes_size(bytes: &[u8]) -> usize {
    match bytes {
        [] => 0,
        _ => 1 + with_length(bytes.len()),
    }
}

fn with_length(bytes: usize) -> usize {
    varint_size(bytes as u64) + bytes
}

fn varint_size(number: u64) -> usize {
    (64 - (number | 1).leading_zeros() as usize).div_ceil(7)
}

fn put_varint(frame: &mut BytesMut, mut number: u64) {
    while number >= 0x80 {
        frame.put_u8(number as u8 | 0x80);
        number >>= 7;
    }
    frame.put_u8(number as u8);
}

fn put_number(frame: &mut BytesMut, key: u8, number: u64) {
    if number != 0 {
        frame.put_u8(key);
        put_varint(frame, number);
    }
}

fn put_key_and_length(frame: &mut BytesMut, key: u8, length: usize) {
    frame.put_u8(key);
    put_varint(frame, length as u64);
}

fn put_bytes(frame: &mut BytesMut, key: u8, bytes: &[u8]) {
    if !bytes.is_empty() {
        put_key_and_length(frame, key, bytes.len());
        frame.put_slice(bytes);
    }
}
