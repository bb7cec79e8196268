//! Counts the records of a read session without decoding them completely.
//!
//! If a server delivers a gigabyte in a second, the client's decoder must not need that second. This scanner
//! walks over the encoded `ReadBatch` messages (S2 API, protocol buffers), reads the sequence numbers and the
//! lengths of the bodies, and skips the rest.
//!
//! A frame of a session has three bytes of length (big-endian, flags included), one byte of flags, and the
//! payload.

use anyhow::{Context, bail, ensure};
use bytes::{Buf, BytesMut};

use super::ReadTotals;

/// Bytes of a frame before its flags.
const LENGTH_BYTES: usize = 3;

/// The frame is the last one and carries an error.
const FLAG_TERMINAL: u8 = 0b1000_0000;

/// The payload is compressed.
const FLAGS_COMPRESSION: u8 = 0b0110_0000;

/// Takes the next whole frame out of `buffer` and returns its payload, one encoded message; `None`
/// if there is none yet.
///
/// # Errors
///
/// If the frame carries an error, or is compressed, which no request here allows.
pub fn next_frame(buffer: &mut BytesMut) -> anyhow::Result<Option<BytesMut>> {
    if buffer.len() < LENGTH_BYTES {
        return Ok(None);
    }
    let length =
        usize::from(buffer[0]) << 16 | usize::from(buffer[1]) << 8 | usize::from(buffer[2]);
    ensure!(length > 0, "a frame without flags");
    if buffer.len() < LENGTH_BYTES + length {
        return Ok(None);
    }
    buffer.advance(LENGTH_BYTES);
    let mut frame = buffer.split_to(length);
    let flags = frame.get_u8();
    if flags & FLAG_TERMINAL != 0 {
        bail!("the session ended with {}", String::from_utf8_lossy(&frame));
    }
    ensure!(flags & FLAGS_COMPRESSION == 0, "a compressed frame");
    Ok(Some(frame))
}

/// Adds the records of one encoded `ReadBatch` to `totals`. The first one must have the sequence
/// number `start + totals.records`, each further one the next.
///
/// # Errors
///
/// If the message is malformed or a sequence number is not the expected one.
pub fn count_records(message: &[u8], start: u64, totals: &mut ReadTotals) -> anyhow::Result<()> {
    for field in Fields(message) {
        // ReadBatch: records = 1, tail = 2.
        if let (1, Value::Bytes(record)) = field? {
            let expected = start + totals.records;
            let (seq_num, body_bytes) = parse_record(record)?;
            ensure!(
                seq_num == expected,
                "read sequence number {seq_num} where {expected} was due"
            );
            totals.records += 1;
            totals.body_bytes += body_bytes as u64;
        }
    }
    Ok(())
}

/// Sequence number and length of the body of one encoded `SequencedRecord`.
fn parse_record(record: &[u8]) -> anyhow::Result<(u64, usize)> {
    // A field that has its default value is left out.
    let mut seq_num = 0;
    let mut body_bytes = 0;
    for field in Fields(record) {
        // SequencedRecord: seq_num = 1, timestamp = 2, headers = 3, body = 4.
        match field? {
            (1, Value::Number(number)) => seq_num = number,
            (4, Value::Bytes(body)) => body_bytes = body.len(),
            _ => {}
        }
    }
    Ok((seq_num, body_bytes))
}

/// A field's value, of the kinds that these messages have.
enum Value<'a> {
    Number(u64),
    Bytes(&'a [u8]),
}

/// The fields of an encoded message, one after the other.
struct Fields<'a>(&'a [u8]);

impl<'a> Iterator for Fields<'a> {
    type Item = anyhow::Result<(u64, Value<'a>)>;

    fn next(&mut self) -> Option<Self::Item> {
        (!self.0.is_empty()).then(|| self.take_field())
    }
}

impl<'a> Fields<'a> {
    fn take_field(&mut self) -> anyhow::Result<(u64, Value<'a>)> {
        let result = self.parse_field();
        if result.is_err() {
            // The fields after a malformed one cannot be separated.
            self.0 = &[];
        }
        result
    }

    fn parse_field(&mut self) -> anyhow::Result<(u64, Value<'a>)> {
        const VARINT: u64 = 0;
        const LENGTH_DELIMITED: u64 = 2;
        let key = self.take_varint()?;
        let value = match key & 0b111 {
            VARINT => Value::Number(self.take_varint()?),
            LENGTH_DELIMITED => {
                let length = usize::try_from(self.take_varint()?)?;
                let (bytes, rest) = self
                    .0
                    .split_at_checked(length)
                    .context("a field is longer than its message")?;
                self.0 = rest;
                Value::Bytes(bytes)
            }
            other => bail!("a field of the unknown wire type {other}"),
        };
        Ok((key >> 3, value))
    }

    fn take_varint(&mut self) -> anyhow::Result<u64> {
        let mut value = 0;
        for shift in (0..64).step_by(7) {
            let (byte, rest) = self.0.split_first().context("a number is cut off")?;
            self.0 = rest;
            value |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        bail!("a number is longer than ten bytes")
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use prost::Message;
    use s2_api::v1::stream::{
        proto,
        s2s::{CompressionAlgorithm, SessionMessage, TerminalMessage},
    };

    use super::*;

    fn batch(seq_nums: impl IntoIterator<Item = u64>, body_bytes: usize) -> proto::ReadBatch {
        proto::ReadBatch {
            records: seq_nums
                .into_iter()
                .map(|seq_num| proto::SequencedRecord {
                    seq_num,
                    timestamp: 1_700_000_000_000,
                    headers: vec![proto::Header {
                        name: Bytes::from_static(b"name"),
                        value: Bytes::from_static(b"value"),
                    }],
                    body: vec![7; body_bytes].into(),
                })
                .collect(),
            tail: Some(proto::StreamPosition {
                seq_num: 1000,
                timestamp: 1,
            }),
        }
    }

    #[test]
    fn records_and_bodies_are_counted() {
        let mut totals = ReadTotals::default();
        count_records(&batch(0..3, 300).encode_to_vec(), 0, &mut totals).expect("well-formed");
        count_records(&batch(3..5, 0).encode_to_vec(), 0, &mut totals).expect("well-formed");
        let expected = ReadTotals {
            records: 5,
            body_bytes: 900,
        };
        assert_eq!(totals, expected);
    }

    #[test]
    fn a_missing_or_repeated_sequence_number_is_an_error() {
        for seq_nums in [vec![0, 2], vec![0, 0], vec![1]] {
            let message = batch(seq_nums.clone(), 1).encode_to_vec();
            let result = count_records(&message, 0, &mut ReadTotals::default());
            assert!(result.is_err(), "{seq_nums:?} was taken");
        }
    }

    #[test]
    fn a_message_that_is_cut_off_is_an_error() {
        let message = batch(0..2, 10).encode_to_vec();
        // A cut between two fields leaves a valid message; any other cut must be detected.
        let cut = &message[..message.len() / 2 - 1];
        assert!(count_records(cut, 0, &mut ReadTotals::default()).is_err());
    }

    #[test]
    fn frames_are_found_wherever_the_bytes_are_cut() {
        let messages = [batch(0..2, 10), batch(2..9, 1000)];
        let bytes: Vec<u8> = messages
            .iter()
            .flat_map(|message| {
                SessionMessage::regular(CompressionAlgorithm::None, message)
                    .expect("small")
                    .encode()
            })
            .collect();
        for chunk in [1, 2, 3, 7, 500, bytes.len()] {
            let mut buffer = BytesMut::new();
            let mut totals = ReadTotals::default();
            for part in bytes.chunks(chunk) {
                buffer.extend_from_slice(part);
                while let Some(message) = next_frame(&mut buffer).expect("well-formed") {
                    count_records(&message, 0, &mut totals).expect("well-formed");
                }
            }
            assert_eq!(totals.records, 9, "in chunks of {chunk}");
            assert!(buffer.is_empty());
        }
    }

    #[test]
    fn a_terminal_frame_is_an_error_that_says_why() {
        let frame = SessionMessage::Terminal(TerminalMessage {
            status: 404,
            body: "no such stream".to_owned(),
        })
        .encode();
        let error = next_frame(&mut BytesMut::from(&frame[..])).expect_err("terminal");
        assert!(error.to_string().contains("no such stream"), "{error}");
    }
}
