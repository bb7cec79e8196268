//! Where the batches of streams are: rows and segments.
//!
//! A *segment* is what a partition appended between two flushes. Its batches are written into one file,
//! sorted by stream and sequence number, and are not written again by a merge. The batches of one stream
//! in a segment are a *row*. Segments are a node's own choice, and differ between replicas.

use s2_common::record::SeqNum;

/// Batches of one stream in one segment, which are in order, with no other batch of the stream between
/// them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Row {
    pub segment: u64,
    /// Where its first batch begins.
    pub first: SeqNum,
    /// Where its last batch ends.
    pub end: SeqNum,
    /// Bytes of its batches, with those that are trimmed.
    pub bytes: u64,
}

impl Row {
    pub fn to_bytes(self) -> [u8; 32] {
        four_numbers([self.segment, self.first, self.end, self.bytes])
    }

    /// What is left of it from `first` on, where a batch begins. Its bytes are estimated: the batches of a
    /// stream tend to have one size.
    pub fn from(self, first: SeqNum) -> Row {
        let first = first.clamp(self.first, self.end - 1);
        let (left, all) = (self.end - first, self.end - self.first);
        let bytes = u128::from(self.bytes) * u128::from(left) / u128::from(all);
        Row {
            first,
            // It is less than before, and never 0: a segment whose rows have no bytes is dropped.
            bytes: u64::try_from(bytes).unwrap_or(self.bytes).max(1),
            ..self
        }
    }

    /// `None` if the bytes are no row.
    pub fn parse(bytes: &[u8]) -> Option<Row> {
        let bytes: &[u8; 32] = bytes.try_into().ok()?;
        let number = |i: usize| u64::from_be_bytes(std::array::from_fn(|at| bytes[8 * i + at]));
        let [segment, first, end, bytes] = std::array::from_fn(number);
        let row = Row {
            segment,
            first,
            end,
            bytes,
        };
        (first < end).then_some(row)
    }
}

fn four_numbers(numbers: [u64; 4]) -> [u8; 32] {
    let mut bytes = [0; 32];
    for (place, number) in bytes.chunks_exact_mut(8).zip(numbers) {
        place.copy_from_slice(&number.to_be_bytes());
    }
    bytes
}

/// What a segment holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Usage {
    /// Bytes of all batches that were written to it.
    pub bytes: u64,
    /// Bytes of its rows that are left.
    pub live: u64,
}

impl Usage {
    pub fn to_bytes(self) -> [u8; 16] {
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&self.bytes.to_be_bytes());
        bytes[8..].copy_from_slice(&self.live.to_be_bytes());
        bytes
    }

    /// Bytes that no row has any more.
    pub fn garbage(self) -> u64 {
        self.bytes.saturating_sub(self.live)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_of_a_row_has_a_share_of_its_bytes() {
        let row = Row {
            segment: 7,
            first: 10,
            end: 20,
            bytes: 1000,
        };
        assert_eq!(
            row.from(15),
            Row {
                first: 15,
                bytes: 500,
                ..row
            }
        );
        assert_eq!(row.from(3), row);
        assert_eq!(
            row.from(30),
            Row {
                first: 19,
                bytes: 100,
                ..row
            }
        );
    }

    #[test]
    fn what_is_left_of_a_row_has_bytes_even_behind_a_large_gap() {
        let row = Row {
            segment: 7,
            first: 0,
            end: 1 << 40,
            bytes: 1000,
        };
        assert_eq!(row.from((1 << 40) - 1).bytes, 1);
    }

    #[test]
    fn a_row_is_read_back_and_bytes_that_are_none_are_refused() {
        let row = Row {
            segment: 7,
            first: 10,
            end: 12,
            bytes: 900,
        };
        assert_eq!(Row::parse(&row.to_bytes()), Some(row));
        assert_eq!(Row::parse(&row.to_bytes()[1..]), None);
        assert_eq!(Row::parse(&[]), None);
        let empty = Row { end: 10, ..row };
        assert_eq!(Row::parse(&empty.to_bytes()), None);
    }
}
