//! Records whose bodies contain their identity.
//!
//! The body of a record has the stream's tag, the writer and the index, and is filled up with bytes that are
//! computed from these. So a reader can determine for each body whether it is exactly what was sent to this
//! stream, and which record it is, without a copy of what was sent. Fence commands have their identity in the
//! token, which is all the body they may have.

use bytes::{BufMut, Bytes, BytesMut};
use s2_sdk::types::SequencedRecord;

use super::checker::Seen;
use super::record_id::RecordId;

/// The first bytes of every body.
const MAGIC: u32 = 0x4573_6b72;

/// Bytes before the filling: magic, stream, writer, index.
const HEAD_BYTES: usize = 4 + 4 + 4 + 8;

/// Distinguishes the streams of a soak, also from those of other runs.
pub type StreamTag = u32;

/// The body of a record.
pub fn body(stream: StreamTag, id: RecordId) -> Bytes {
    let mut filling = Filling::new(stream, id);
    let length = filling.length();
    let mut body = BytesMut::with_capacity(HEAD_BYTES + length);
    body.put_u32(MAGIC);
    body.put_u32(stream);
    body.put_u32(id.writer);
    body.put_u64(id.index);
    for _ in 0..length {
        body.put_u8(filling.next_byte());
    }
    body.freeze()
}

/// The fencing token of the fence command that is record `id`: at most 36 bytes, the API's limit.
pub fn fencing_token(stream: StreamTag, id: RecordId) -> String {
    format!("{stream:x}.{:x}.{:x}", id.writer, id.index)
}

/// Identifies a record that was read from the stream with tag `stream`.
pub fn seen(stream: StreamTag, record: &SequencedRecord) -> Seen {
    let id = if record.is_command_record() {
        identify_token(stream, &record.body)
    } else if record.headers.is_empty() {
        identify_body(stream, &record.body)
    } else {
        None
    };
    Seen {
        seq_num: record.seq_num,
        timestamp: record.timestamp,
        id,
    }
}

fn identify_body(stream: StreamTag, found: &Bytes) -> Option<RecordId> {
    let head = found.get(..HEAD_BYTES)?;
    let id = RecordId {
        writer: u32::from_be_bytes(head[8..12].try_into().ok()?),
        index: u64::from_be_bytes(head[12..20].try_into().ok()?),
    };
    (body(stream, id) == found).then_some(id)
}

fn identify_token(stream: StreamTag, found: &[u8]) -> Option<RecordId> {
    let text = str::from_utf8(found).ok()?;
    let mut parts = text.split('.').skip(1);
    let id = RecordId {
        writer: u32::from_str_radix(parts.next()?, 16).ok()?,
        index: u64::from_str_radix(parts.next()?, 16).ok()?,
    };
    (fencing_token(stream, id) == text).then_some(id)
}

/// Bytes that are computed from the identity of a record (xorshift64*).
struct Filling(u64);

impl Filling {
    fn new(stream: StreamTag, id: RecordId) -> Self {
        let mixed = (u64::from(stream) << 32 | u64::from(id.writer))
            .wrapping_mul(0x9e37_79b9_7f4a_7c15)
            ^ id.index.wrapping_mul(0xd1b5_4a32_d192_ed03);
        // The generator would stay at 0.
        Self(mixed | 1)
    }

    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn next_byte(&mut self) -> u8 {
        (self.next() >> 56) as u8
    }

    /// Mostly a few hundred bytes; one record in 64 has up to 32 KiB.
    fn length(&mut self) -> usize {
        let bound = if self.next().is_multiple_of(64) {
            32 << 10
        } else {
            400
        };
        (self.next() % bound) as usize
    }
}

#[cfg(test)]
mod tests {
    use s2_sdk::types::Header;

    use super::*;

    const ID: RecordId = RecordId {
        writer: 3,
        index: 77,
    };

    fn read(body: Bytes, headers: Vec<Header>) -> Seen {
        seen(5, &SequencedRecord::from_parts(9, 100, headers, body))
    }

    #[test]
    fn a_body_is_recognized_as_the_record_that_it_is() {
        let expected = Seen {
            seq_num: 9,
            timestamp: 100,
            id: Some(ID),
        };
        assert_eq!(read(body(5, ID), Vec::new()), expected);
    }

    #[test]
    fn a_fence_command_is_recognized_by_its_token() {
        let token = fencing_token(5, ID);
        assert!(token.len() <= 36);
        let fence = vec![Header::new("", "fence")];
        assert_eq!(read(token.into(), fence).id, Some(ID));
        let longest = RecordId {
            writer: u32::MAX,
            index: 1 << 40,
        };
        assert!(fencing_token(u32::MAX, longest).len() <= 36);
    }

    #[test]
    fn the_body_of_another_stream_is_foreign() {
        assert_eq!(read(body(6, ID), Vec::new()).id, None);
    }

    #[test]
    fn any_damaged_bit_makes_a_body_foreign() {
        let good = body(5, ID);
        for bit in 0..good.len() * 8 {
            let mut damaged = BytesMut::from(&good[..]);
            damaged[bit / 8] ^= 1 << (bit % 8);
            let found = read(damaged.freeze(), Vec::new()).id;
            assert_ne!(found, Some(ID), "bit {bit}");
        }
        assert_eq!(read(good.slice(..good.len() - 1), Vec::new()).id, None);
        assert_eq!(read(Bytes::new(), Vec::new()).id, None);
    }
}
