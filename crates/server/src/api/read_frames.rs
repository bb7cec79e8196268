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
use prost::Message as _;
use s2_api::v1::stream::{proto, s2s};
use s2_common::record::{MeteredSize as _, Record, StreamPosition};
use s2_common::stream::AppendRecordBatch;

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

/// Most metered bytes of a record that certainly fits into a frame. Names and values of headers have one byte each
/// at worst, and then take twice their metered bytes on the wire; a sequence number and a timestamp take 11 bytes
/// each at most, the lengths of the record and the frame's flags 6.
const ALWAYS_FITS: usize = (MAX_FRAME - 12) / 2;
/// Most bytes of a record's position, of the key and the length of the record, and of the frame's flags.
const MAX_AROUND_RECORD: usize = 2 * 11 + 1 + 4 + 1;

/// Refuses a record that no frame could carry, whatever its sequence number.
///
/// # Errors
///
/// [`Error::Invalid`], with what is too large.
pub(super) fn check_fits(records: &AppendRecordBatch) -> Result<(), Error> {
    // Of several records in a batch, none is that large.
    if records.metered_size() <= ALWAYS_FITS {
        return Ok(());
    }
    let [record] = &records[..] else {
        return Ok(());
    };
    let Record::Envelope(record) = &*record.parts().record else {
        return Ok(());
    };
    let headers = record.headers().iter();
    let headers = headers.map(|h| 1 + with_length(bytes_size(&h.name) + bytes_size(&h.value)));
    let size = headers.sum::<usize>() + bytes_size(record.body()) + MAX_AROUND_RECORD;
    match size > MAX_FRAME {
        false => Ok(()),
        true => Err(Error::Invalid(format!(
            "the record's {} headers are so small that it may take {size} bytes of a read session's frame, and \
             {MAX_FRAME} are possible: send fewer of them",
            record.headers().len()
        ))),
    }
}

/// The frames of some records, one after the other: one, unless they take more than clients accept. Only records
/// of very small headers in a stream with very high sequence numbers do.
///
/// # Errors
///
/// [`Error::Storage`] if a stored record is not one that its stream can have, or if one alone takes more than
/// clients accept: [`check_fits`] refuses such records, and earlier builds did not.
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
            match stored_frame(stored, tail)? {
                Some(frame) => Ok(frame),
                None => message_frames(records.into_batch()?.into(), compression),
            }
        }
        _ => message_frames(records.into_batch()?.into(), compression),
    }
}

/// The frames of a message, with as many records in each as fit.
fn message_frames(
    mut batch: proto::ReadBatch,
    compression: s2s::CompressionAlgorithm,
) -> Result<Bytes, Error> {
    let is_too_large = |batch: &proto::ReadBatch| batch.encoded_len() + 1 > MAX_FRAME;
    if is_too_large(&batch) && batch.records.len() > 1 {
        let rest = proto::ReadBatch {
            records: batch.records.split_off(batch.records.len() / 2),
            tail: batch.tail.take(),
        };
        let (first, rest) = (
            message_frames(batch, compression)?,
            message_frames(rest, compression)?,
        );
        return Ok([first, rest].concat().into());
    }
    if is_too_large(&batch) {
        // The tail may be left out.
        batch.tail = None;
    }
    message_frame(&batch, compression).map_err(|e| {
        let first = batch.records.first().map_or(0, |record| record.seq_num);
        let why = format!("record {first} is too large for a frame, and can be read as JSON: {e}");
        Error::Storage(why)
    })
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

/// The frame of stored records; `None` if it would be larger than clients accept.
fn stored_frame(
    records: &StoredRecords,
    tail: Option<StreamPosition>,
) -> Result<Option<Bytes>, Error> {
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
        return Ok(None);
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
    Ok(Some(frame.freeze()))
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

#[cfg(test)]
mod tests {
    use s2_common::record::{EnvelopeRecord, Header, Metered};
    use s2_common::stream::{AppendRecord, AppendRecordParts};

    use super::*;

    fn record(headers: usize, body: usize) -> Record {
        let header = Header {
            name: Bytes::from_static(b"n"),
            value: Bytes::from_static(b"v"),
        };
        let headers = vec![header; headers];
        Record::Envelope(EnvelopeRecord::try_from_parts(headers, vec![7; body].into()).unwrap())
    }

    fn appended(headers: usize, body: usize) -> AppendRecordBatch {
        let parts = AppendRecordParts {
            timestamp: None,
            record: Metered::from(record(headers, body)),
        };
        vec![AppendRecord::try_from(parts).unwrap()]
            .try_into()
            .unwrap()
    }

    fn batch(records: &[usize], seq_num: u64) -> proto::ReadBatch {
        let header = proto::Header {
            name: Bytes::from_static(b"n"),
            value: Bytes::from_static(b"v"),
        };
        let sequenced = |(i, headers): (u64, &usize)| proto::SequencedRecord {
            seq_num: seq_num + i,
            timestamp: u64::MAX,
            headers: vec![header.clone(); *headers],
            body: Bytes::new(),
        };
        proto::ReadBatch {
            records: (0..).zip(records).map(sequenced).collect(),
            tail: Some(proto::StreamPosition {
                seq_num: seq_num + 1000,
                timestamp: u64::MAX,
            }),
        }
    }

    /// The batches of frames that follow each other.
    fn decoded(mut frames: &[u8]) -> Vec<proto::ReadBatch> {
        let mut batches = Vec::new();
        while !frames.is_empty() {
            let length = u32::from_be_bytes([0, frames[0], frames[1], frames[2]]) as usize;
            assert!(length <= MAX_FRAME, "{length}");
            let (frame, rest) = frames[3..].split_at(length);
            assert_eq!(frame[0], 0);
            batches.push(proto::ReadBatch::decode(&frame[1..]).unwrap());
            frames = rest;
        }
        batches
    }

    const MAX_SEQ_NUM: u64 = u64::MAX - 2000;

    #[test]
    fn a_record_is_admitted_if_and_only_if_a_frame_carries_it_at_every_sequence_number() {
        let plain = s2s::CompressionAlgorithm::None;
        let mut refused = 0;
        for headers in 262_130..=262_142 {
            let fits = check_fits(&appended(headers, 0)).is_ok();
            let framed = message_frames(batch(&[headers], MAX_SEQ_NUM), plain);
            assert_eq!(fits, framed.is_ok(), "{headers} headers: {framed:?}");
            refused += u32::from(!fits);
        }
        assert!(refused > 0, "the boundary is among them");
        // Other records of a MiB are admitted.
        check_fits(&appended(0, (1 << 20) - 8)).unwrap();
        check_fits(&appended(200_000, (1 << 20) - 8 - 800_000)).unwrap();
    }

    #[test]
    fn records_that_take_more_than_a_frame_come_in_several_in_order() {
        let plain = s2s::CompressionAlgorithm::None;
        let records = vec![260; 1000];
        for (seq_num, frames) in [(5, 1), (MAX_SEQ_NUM, 2)] {
            let whole = batch(&records, seq_num);
            let batches = decoded(&message_frames(whole.clone(), plain).unwrap());
            assert_eq!(batches.len(), frames, "at {seq_num}");
            let tails: Vec<_> = batches.iter().map(|batch| batch.tail.is_some()).collect();
            assert_eq!(tails.iter().filter(|has| **has).count(), 1);
            assert_eq!(tails.last(), Some(&true));
            let read: Vec<_> = batches
                .into_iter()
                .flat_map(|batch| batch.records)
                .collect();
            assert!(read == whole.records);
        }
    }
}
