//! The two encodings of a batch of records: in a command, and in the database.
//!
//! Both have the same *body*: for each record its length (u32, little-endian) and the record as the
//! `s2-storage` crate encodes it. In the database, a head precedes the body:
//!
//! ```text
//! version: u8 = 1 or 2 | arrival: varint | count: varint
//!   | first timestamp: varint | (count − 1) × delta: varint | body
//! ```
//!
//! The arrival is the time at which the leader accepted the batch, in milliseconds since the epoch. It
//! never decreases within a stream. Age retention uses it, because clients may set timestamps as they
//! like. Timestamps are milliseconds and never decrease within a stream. The format has no checksum of
//! its own: RocksDB has one for each block.
//!
//! Version 2 is the same for the streams that have a cipher. Earlier builds, which cannot read encrypted
//! records, refuse it by name.

use std::sync::Arc;

use bytes::{Buf, Bytes};
use s2_common::record::{
    CommandRecord, Metered, MeteredSize as _, Record, SeqNum, Sequenced, StreamPosition, Timestamp,
};
use s2_common::stream::AppendRecordBatch;
use s2_storage::record::{
    StoredRecord, StoredSequencedRecord, decode_if_command_record, decode_stored_record,
    encode_stored_record_into, stored_record_encoded_size,
};

use crate::raw_record::RawRecord;

const VERSION: u8 = 1;
/// The version of batches in streams that have a cipher.
const VERSION_ENCRYPTED: u8 = 2;

fn is_known(version: u8) -> bool {
    matches!(version, VERSION | VERSION_ENCRYPTED)
}

/// The bytes are not a batch in a format that this version reads.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("malformed batch: {0}")]
pub struct MalformedBatch(pub String);

fn malformed(what: impl Into<String>) -> MalformedBatch {
    MalformedBatch(what.into())
}

/// The records of an append, before they have sequence numbers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unsequenced {
    /// Number of records.
    pub count: u32,
    /// The records, each after its length: see the head of this module.
    pub body: Bytes,
    /// For each record, the client's timestamp plus one, or 0 for none; empty if none has one.
    pub timestamps: Vec<u64>,
    /// Whether any record is a command record.
    pub has_commands: bool,
    /// The cipher with which those that are not command records are encrypted: see
    /// [`cipher_number`](crate::encryption::cipher_number).
    pub cipher: u32,
}

impl Unsequenced {
    /// Encodes the records that a client appends, without a cipher.
    pub fn encode(records: AppendRecordBatch<Record>) -> Unsequenced {
        Unsequenced::encode_as(records, 0, 0, |record, body| {
            let size = record.metered_size();
            let stored = StoredRecord::from(record.into_inner());
            encode_stored_record_into(Metered::with_size(size, &stored), body);
        })
    }

    /// The same, in the form that `write` appends for each, which is at most `longer` bytes longer.
    pub(crate) fn encode_as(
        records: AppendRecordBatch<Record>,
        cipher: u32,
        longer: usize,
        write: impl Fn(Metered<Record>, &mut Vec<u8>),
    ) -> Unsequenced {
        let count = records.len();
        let mut body = Vec::with_capacity(records.metered_size() + (16 + longer) * count);
        let mut timestamps = Vec::new();
        let mut has_commands = false;
        for (i, record) in records.into_iter().enumerate() {
            let parts = record.into_parts();
            if let Some(timestamp) = parts.timestamp {
                timestamps.resize(count, 0);
                timestamps[i] = timestamp.saturating_add(1);
            }
            has_commands |= matches!(*parts.record, Record::Command(_));
            let length_at = body.len();
            body.extend_from_slice(&[0; 4]);
            let at = body.len();
            write(parts.record, &mut body);
            let length = (body.len() - at) as u32;
            body[length_at..at].copy_from_slice(&length.to_le_bytes());
        }
        Unsequenced {
            count: count as u32,
            body: body.into(),
            timestamps,
            has_commands,
            cipher,
        }
    }

    /// A batch of one record, which is not a command record and has no timestamp from its client.
    pub fn single(record: Record) -> Unsequenced {
        let record = Metered::from(record);
        let size = record.metered_size();
        let stored = StoredRecord::from(record.into_inner());
        let stored = Metered::with_size(size, &stored);
        let length = stored_record_encoded_size(stored.clone()) as u32;
        let mut body = Vec::with_capacity(length as usize + 4);
        body.extend_from_slice(&length.to_le_bytes());
        encode_stored_record_into(stored, &mut body);
        Unsequenced {
            count: 1,
            body: body.into(),
            timestamps: Vec::new(),
            has_commands: false,
            cipher: 0,
        }
    }

    /// Checks that the body has `count` records, at least one, and nothing else.
    pub fn check(&self) -> Result<(), MalformedBatch> {
        let mut rest = &self.body[..];
        let mut count = 0;
        while let Some((length, after)) = rest.split_first_chunk::<4>() {
            rest = after
                .get(u32::from_le_bytes(*length) as usize..)
                .ok_or_else(|| malformed("truncated record"))?;
            count += 1;
        }
        if !rest.is_empty() {
            return Err(malformed("truncated length"));
        }
        if count == 0 || count != self.count {
            return Err(malformed(format!(
                "{count} records where {} should be",
                self.count
            )));
        }
        Ok(())
    }

    /// The client's timestamp of record `i`.
    pub fn timestamp(&self, i: usize) -> Option<Timestamp> {
        self.timestamps.get(i).and_then(|t| t.checked_sub(1))
    }

    /// The command records, each with its index in the batch.
    pub fn commands(&self) -> Result<Vec<(u32, CommandRecord)>, MalformedBatch> {
        let mut commands = Vec::new();
        if self.has_commands {
            for (i, record) in (0u32..).zip(Records(self.body.clone())) {
                let command =
                    decode_if_command_record(&record?).map_err(|e| malformed(e.to_string()))?;
                commands.extend(command.map(|c| (i, c)));
            }
        }
        Ok(commands)
    }

    /// The stored form. `arrival_ms` is in milliseconds since the epoch; `timestamps` has one timestamp
    /// for each record, none less than the one before it.
    pub fn store(&self, arrival_ms: u64, timestamps: &[Timestamp]) -> Bytes {
        let mut value = Vec::with_capacity(self.body.len() + 16 + 2 * timestamps.len());
        value.push(match self.cipher {
            0 => VERSION,
            _ => VERSION_ENCRYPTED,
        });
        put_varint(&mut value, arrival_ms);
        put_varint(&mut value, timestamps.len() as u64);
        let mut previous = 0;
        for timestamp in timestamps {
            put_varint(&mut value, timestamp - previous);
            previous = *timestamp;
        }
        value.extend_from_slice(&self.body);
        value.into()
    }
}

/// A stored batch and the sequence number of its first record. Cheap to clone.
#[derive(Clone, Debug)]
pub struct StoredBatch {
    /// Sequence number of the first record.
    pub first_seq: SeqNum,
    /// When it arrived, in milliseconds since the epoch.
    pub arrival_ms: u64,
    timestamps: Arc<[Timestamp]>,
    body: Bytes,
}

impl StoredBatch {
    /// Parses a stored value.
    pub fn parse(first_seq: SeqNum, mut value: Bytes) -> Result<StoredBatch, MalformedBatch> {
        if !value.has_remaining() || !is_known(value.get_u8()) {
            return Err(malformed("unknown version; use a newer esker"));
        }
        let arrival_ms = get_varint(&mut value)?;
        let count = get_varint(&mut value)?;
        // Each record takes at least five bytes: four for its length and one for its timestamp.
        if count == 0 || count > value.remaining() as u64 / 5 {
            return Err(malformed(format!("{count} records do not fit")));
        }
        let mut timestamps = Vec::with_capacity(count as usize);
        let mut timestamp: Timestamp = 0;
        for _ in 0..count {
            timestamp = timestamp
                .checked_add(get_varint(&mut value)?)
                .ok_or_else(|| malformed("timestamps overflow"))?;
            timestamps.push(timestamp);
        }
        Ok(StoredBatch {
            first_seq,
            arrival_ms,
            timestamps: timestamps.into(),
            body: value,
        })
    }

    /// Sequence number after the last record.
    pub fn end_seq(&self) -> SeqNum {
        self.first_seq + self.timestamps.len() as u64
    }

    /// Timestamp of the last record.
    pub fn last_timestamp(&self) -> Timestamp {
        self.timestamps.last().copied().unwrap_or_default()
    }

    /// Rough size in memory.
    pub fn bytes(&self) -> usize {
        self.body.len() + 8 * self.timestamps.len() + 64
    }

    /// Sequence number of the first record with at least this timestamp, if there is one.
    pub fn seq_at(&self, timestamp: Timestamp) -> Option<SeqNum> {
        let at = self.timestamps.partition_point(|t| *t < timestamp);
        (at < self.timestamps.len()).then(|| self.first_seq + at as u64)
    }

    /// Number of records of a stored value, read from its head alone; `None` if the head is malformed.
    pub(crate) fn count_in(value: &[u8]) -> Option<u64> {
        // The most bytes that the version and two numbers take.
        let mut head = Bytes::copy_from_slice(&value[..value.len().min(21)]);
        if !head.has_remaining() || !is_known(head.get_u8()) {
            return None;
        }
        get_varint(&mut head).ok()?;
        get_varint(&mut head).ok()
    }

    /// The sequence number below which the batch trims the stream, if it has trim commands.
    pub(crate) fn trims_to(&self) -> Result<Option<SeqNum>, MalformedBatch> {
        let mut trims_to = None;
        for record in self.records(self.first_seq) {
            let (position, record) = record?.into_inner().into_parts();
            if let StoredRecord::Plaintext(Record::Command(CommandRecord::Trim(point))) = record {
                trims_to = trims_to.max(Some(point.min(position.seq_num + 1)));
            }
        }
        Ok(trims_to)
    }

    /// The records from `from` on, as they are stored.
    pub fn records(
        &self,
        from: SeqNum,
    ) -> impl Iterator<Item = Result<Metered<StoredSequencedRecord>, MalformedBatch>> + use<> {
        let first = self.index_of(from);
        self.records_at(first, self.offset_of(first))
    }

    /// The records from index `first` on, which is at `offset` of the body.
    pub(crate) fn records_at(
        &self,
        first: usize,
        offset: usize,
    ) -> impl Iterator<Item = Result<Metered<StoredSequencedRecord>, MalformedBatch>> + use<> {
        let first_seq = self.first_seq;
        let timestamps = self.timestamps.clone();
        let body = self.body.slice(offset.min(self.body.len())..);
        Records(body).zip(first..).map(move |(bytes, i)| {
            let record = decode_stored_record(bytes?).map_err(|e| malformed(e.to_string()))?;
            let timestamp = *timestamps
                .get(i)
                .ok_or_else(|| malformed("more records than timestamps"))?;
            let size = record.metered_size();
            Ok(Metered::with_size(
                size,
                Sequenced::new(
                    StreamPosition {
                        seq_num: first_seq + i as u64,
                        timestamp,
                    },
                    record.into_inner(),
                ),
            ))
        })
    }

    /// The same, in place.
    pub(crate) fn raw_records(
        &self,
        first: usize,
        offset: usize,
    ) -> impl Iterator<Item = Result<(StreamPosition, RawRecord<'_>), MalformedBatch>> {
        let mut rest = self.body.get(offset..).unwrap_or_default();
        let mut index = first;
        std::iter::from_fn(move || {
            if rest.is_empty() {
                return None;
            }
            let record = take_record(&mut rest).and_then(|bytes| {
                let position = self
                    .position(index)
                    .ok_or_else(|| malformed("more records than timestamps"))?;
                let record = RawRecord::parse(bytes).map_err(|e| malformed(e.0))?;
                Ok((position, record))
            });
            index += 1;
            if record.is_err() {
                rest = &[];
            }
            Some(record)
        })
    }

    /// The position of the record of this index.
    pub(crate) fn position(&self, index: usize) -> Option<StreamPosition> {
        self.timestamps.get(index).map(|timestamp| StreamPosition {
            seq_num: self.first_seq + index as u64,
            timestamp: *timestamp,
        })
    }

    /// The index of the first record at or after `seq`.
    pub(crate) fn index_of(&self, seq: SeqNum) -> usize {
        let index = seq.saturating_sub(self.first_seq);
        index.min(self.timestamps.len() as u64) as usize
    }

    /// Where in the body the record of this index begins; the end if there is none.
    pub(crate) fn offset_of(&self, index: usize) -> usize {
        let mut rest = &self.body[..];
        for _ in 0..index {
            if rest.is_empty() || take_record(&mut rest).is_err() {
                break;
            }
        }
        self.body.len() - rest.len()
    }
}

/// Takes a record after its length.
fn take_record<'a>(rest: &mut &'a [u8]) -> Result<&'a [u8], MalformedBatch> {
    let (length, after) = rest
        .split_first_chunk::<4>()
        .ok_or_else(|| malformed("truncated length"))?;
    let (record, after) = after
        .split_at_checked(u32::from_le_bytes(*length) as usize)
        .ok_or_else(|| malformed("truncated record"))?;
    *rest = after;
    Ok(record)
}

/// The records of a body.
struct Records(Bytes);

impl Iterator for Records {
    type Item = Result<Bytes, MalformedBatch>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.0.is_empty() {
            return None;
        }
        if self.0.len() < 4 {
            self.0.clear();
            return Some(Err(malformed("truncated length")));
        }
        let length = self.0.get_u32_le() as usize;
        if length > self.0.len() {
            self.0.clear();
            return Some(Err(malformed("truncated record")));
        }
        Some(Ok(self.0.split_to(length)))
    }
}

fn put_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

fn get_varint(bytes: &mut Bytes) -> Result<u64, MalformedBatch> {
    let mut value = 0u64;
    for shift in (0..64).step_by(7) {
        if !bytes.has_remaining() {
            return Err(malformed("truncated number"));
        }
        let byte = bytes.get_u8();
        let part = u64::from(byte & 0x7f);
        if shift == 63 && part > 1 {
            return Err(malformed("number too large"));
        }
        value |= part << shift;
        if byte & 0x80 == 0 {
            return Ok(value);
        }
    }
    Err(malformed("number too long"))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use s2_common::record::{EnvelopeRecord, FencingToken, Header};
    use s2_common::stream::{AppendRecord, AppendRecordParts};

    use super::*;

    fn batch(records: Vec<(Option<u64>, Record)>) -> AppendRecordBatch<Record> {
        records
            .into_iter()
            .map(|(timestamp, record)| {
                AppendRecord::try_from(AppendRecordParts {
                    timestamp,
                    record: record.into(),
                })
                .unwrap()
            })
            .collect::<Vec<_>>()
            .try_into()
            .unwrap()
    }

    fn envelope(body: &[u8]) -> Record {
        let header = Header {
            name: Bytes::from_static(b"n"),
            value: Bytes::from_static(b"v"),
        };
        Record::Envelope(
            EnvelopeRecord::try_from_parts(vec![header], Bytes::copy_from_slice(body)).unwrap(),
        )
    }

    proptest! {
        #[test]
        fn a_stored_batch_reads_back_as_it_was_appended(
            bodies in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..40), 1..20),
            first_seq in 0..u64::MAX / 2,
            start in 0..u64::MAX / 2,
            skip in 0u64..20,
        ) {
            let records: Vec<_> = bodies.iter().map(|b| (None, envelope(b))).collect();
            let encoded = Unsequenced::encode(batch(records.clone()));
            let timestamps: Vec<u64> = (0..bodies.len() as u64).map(|i| start + i * i).collect();
            let stored = StoredBatch::parse(first_seq, encoded.store(start, &timestamps)).unwrap();
            prop_assert_eq!(stored.end_seq(), first_seq + bodies.len() as u64);
            let read: Vec<_> = stored
                .records(first_seq + skip)
                .map(|r| r.unwrap().into_inner().into_parts())
                .collect();
            let expected: Vec<_> = (0u64..)
                .zip(records)
                .map(|(i, (_, record))| {
                    let position = StreamPosition {
                        seq_num: first_seq + i,
                        timestamp: timestamps[i as usize],
                    };
                    (position, record)
                })
                .skip(skip as usize)
                .collect();
            let read: Vec<_> = read
                .into_iter()
                .map(|(position, record)| match record {
                    StoredRecord::Plaintext(record) => (position, record),
                    StoredRecord::Encrypted { .. } => panic!("nothing was encrypted"),
                })
                .collect();
            prop_assert_eq!(read, expected);
        }

        #[test]
        fn garbage_is_an_error_and_never_a_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let mut bytes = bytes;
            if let Some(first) = bytes.first_mut() {
                *first = VERSION;
            }
            if let Ok(batch) = StoredBatch::parse(0, bytes.into()) {
                for record in batch.records(0) {
                    let _ = record;
                }
            }
        }
    }

    #[test]
    fn commands_are_found_with_their_places() {
        let fence = CommandRecord::Fence("token".parse::<FencingToken>().unwrap());
        let encoded = Unsequenced::encode(batch(vec![
            (Some(5), envelope(b"x")),
            (None, Record::Command(fence.clone())),
        ]));
        assert_eq!(encoded.commands().unwrap(), vec![(1, fence)]);
        assert_eq!(encoded.timestamp(0), Some(5));
        assert_eq!(encoded.timestamp(1), None);
    }
}
