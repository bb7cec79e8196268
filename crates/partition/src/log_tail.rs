//! Checksums of the entries that led to a position.
//!
//! Two copies of one data directory that both continue have the same LSNs and terms, but different
//! entries. So what is stored of a partition has checksums of the newest entries that it covers, and a
//! comparison shows whether a log has the same entries. One checksum is of the last entry; one or two are
//! of blocks of entries up to it. The last entry alone is not enough: it is often the empty entry with
//! which a term begins, which is equal in both copies. A block has [`BLOCK_ENTRIES`] entries, or
//! [`BLOCK_BYTES`] of data. With two blocks there is always a complete one, or they have everything since
//! the checksums began.
//!
//! Entries that a log no longer has cannot contradict anything, and what an earlier build stored has no
//! checksums.

use esker_raft::Committed;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use xxhash_rust::xxh3::xxh3_64;

/// Most entries of a block: a comparison has to read them.
pub const BLOCK_ENTRIES: u64 = 64;
/// A block takes no further entry once it has this many bytes of data.
pub const BLOCK_BYTES: u64 = 1 << 20;

/// Checksums of the newest entries up to a position.
#[derive(Clone, PartialEq, Eq, prost::Message, Serialize, Deserialize)]
pub struct LogTail {
    /// Checksum of the entry at the position: [`Committed::checksum`].
    #[prost(fixed64, tag = "1")]
    #[serde(serialize_with = "digits", deserialize_with = "from_digits")]
    pub entry: u64,
    /// One or two contiguous blocks. The last one ends at the position.
    #[prost(message, repeated, tag = "2")]
    pub blocks: Vec<LogBlock>,
}

/// A block of contiguous entries.
#[derive(Clone, PartialEq, Eq, prost::Message, Serialize, Deserialize)]
pub struct LogBlock {
    /// The LSN before the first entry.
    #[prost(uint64, tag = "1")]
    pub after: u64,
    /// Bytes of data in them.
    #[prost(uint64, tag = "2")]
    pub bytes: u64,
    /// Checksum of all entries, see [`fold`].
    #[prost(fixed64, tag = "3")]
    #[serde(serialize_with = "digits", deserialize_with = "from_digits")]
    pub checksum: u64,
}

/// The checksum of a block after one more entry; that of an empty block is 0.
pub fn fold(block: u64, entry: u64) -> u64 {
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&block.to_be_bytes());
    bytes[8..].copy_from_slice(&entry.to_be_bytes());
    xxh3_64(&bytes)
}

impl LogTail {
    /// The checksums of the position after `entries`, which are contiguous; `before` has those of the
    /// position `lsn`.
    pub(crate) fn after(
        before: Option<&LogTail>,
        lsn: u64,
        entries: &[Committed],
    ) -> Option<LogTail> {
        let first = entries.first()?;
        let known = before.filter(|_| first.lsn.0 == lsn + 1);
        let mut tail = known.cloned().unwrap_or_default();
        for entry in entries {
            tail.push(entry);
        }
        Some(tail)
    }

    fn push(&mut self, entry: &Committed) {
        let before = entry.lsn.0.saturating_sub(1);
        let is_full = |block: &LogBlock| {
            before.saturating_sub(block.after) >= BLOCK_ENTRIES || block.bytes >= BLOCK_BYTES
        };
        if self.blocks.last().is_none_or(is_full) {
            if self.blocks.len() > 1 {
                self.blocks.remove(0);
            }
            self.blocks.push(LogBlock {
                after: before,
                ..LogBlock::default()
            });
        }
        if let Some(block) = self.blocks.last_mut() {
            block.bytes += entry.command.as_ref().map_or(0, |data| data.len() as u64);
            block.checksum = fold(block.checksum, entry.checksum);
        }
        self.entry = entry.checksum;
    }

    /// The blocks, each with its last LSN; `lsn` is that of the position.
    pub fn spans(&self, lsn: u64) -> impl Iterator<Item = (&LogBlock, u64)> {
        let ends = self.blocks.iter().skip(1).map(|next| next.after);
        self.blocks.iter().zip(ends.chain([lsn]))
    }
}

impl LogTail {
    /// Whether the checksums of two states at one position can be of the same entries. Checksums that are
    /// not known agree with everything.
    pub(crate) fn agree(one: Option<&LogTail>, other: Option<&LogTail>) -> bool {
        let (Some(one), Some(other)) = (one, other) else {
            return true;
        };
        let ends = |tail: &LogTail| {
            tail.blocks
                .last()
                .map(|block| (block.after, block.checksum))
        };
        let is_other = |(after, checksum): (u64, u64)| {
            ends(other).is_some_and(|(begun, sum)| begun == after && sum != checksum)
        };
        one.entry == other.entry && !ends(one).is_some_and(is_other)
    }
}

fn digits<S: Serializer>(checksum: &u64, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(&format_args!("{checksum:016x}"))
}

fn from_digits<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u64, D::Error> {
    let digits = String::deserialize(deserializer)?;
    let is_hex = digits.len() == 16 && digits.bytes().all(|b| b.is_ascii_hexdigit());
    let parsed = u64::from_str_radix(&digits, 16).ok().filter(|_| is_hex);
    parsed.ok_or_else(|| serde::de::Error::custom("a checksum has 16 hexadecimal digits"))
}

#[cfg(test)]
mod tests {
    use esker_raft::{Lsn, Term};

    use super::*;

    fn entry(lsn: u64, bytes: usize) -> Committed {
        Committed {
            lsn: Lsn(lsn),
            term: Term(1),
            command: Some(vec![0; bytes].into()),
            membership: None,
            checksum: lsn * 31,
        }
    }

    fn folded(lsns: std::ops::RangeInclusive<u64>) -> u64 {
        lsns.fold(0, |block, lsn| fold(block, lsn * 31))
    }

    #[test]
    fn the_blocks_have_a_complete_one_whatever_the_steps_are() {
        for step in [1, 3, 64, 200] {
            let entries: Vec<_> = (11..=1010).map(|lsn| entry(lsn, 10)).collect();
            let (mut tail, mut lsn) = (None, 10);
            for entries in entries.chunks(step) {
                tail = LogTail::after(tail.as_ref(), lsn, entries);
                lsn = entries.last().unwrap().lsn.0;
                let tail = tail.as_ref().unwrap();
                assert_eq!(tail.entry, lsn * 31);
                let spans: Vec<_> = tail.spans(lsn).collect();
                for (block, last) in &spans {
                    assert_eq!(block.checksum, folded(block.after + 1..=*last));
                    assert!(last - block.after <= BLOCK_ENTRIES);
                }
                let covered = lsn - spans[0].0.after;
                assert!(covered >= BLOCK_ENTRIES.min(lsn - 10), "{step}: {covered}");
            }
        }
    }

    #[test]
    fn a_block_is_bounded_in_bytes() {
        let entries: Vec<_> = (1..=10).map(|lsn| entry(lsn, 700 << 10)).collect();
        let tail = LogTail::after(None, 0, &entries).unwrap();
        let after: Vec<_> = tail.blocks.iter().map(|block| block.after).collect();
        assert_eq!(after, [6, 8]);
    }

    #[test]
    fn checksums_begin_again_after_what_is_not_known() {
        let tail = LogTail::after(None, 5, &[entry(6, 1), entry(7, 1)]).unwrap();
        assert_eq!(tail.blocks[0].after, 5);
        let tail = LogTail::after(Some(&tail), 7, &[entry(20, 1)]).unwrap();
        let spans: Vec<_> = tail.spans(20).map(|(b, last)| (b.after, last)).collect();
        assert_eq!(spans, [(19, 20)]);
        assert_eq!(LogTail::after(Some(&tail), 20, &[]), None);
    }

    #[test]
    fn what_is_not_known_of_a_position_agrees_with_everything() {
        let tail = |lsns: std::ops::RangeInclusive<u64>| {
            let entries: Vec<_> = lsns.clone().map(|lsn| entry(lsn, 1)).collect();
            LogTail::after(None, lsns.start() - 1, &entries)
        };
        let (one, shorter) = (tail(1..=9), tail(4..=9));
        let mut other = one.clone();
        other.as_mut().unwrap().blocks[0].checksum += 1;
        for (other, agree) in [
            (one.clone(), true),
            (shorter, true),
            (None, true),
            (other, false),
        ] {
            assert_eq!(
                LogTail::agree(one.as_ref(), other.as_ref()),
                agree,
                "{other:?}"
            );
        }
    }

    #[test]
    fn json_has_digits_that_nobody_rounds() {
        let tail = LogTail::after(None, 5, &[entry(6, 1)]).unwrap();
        let json = serde_json::to_string(&tail).unwrap();
        assert!(
            json.starts_with(
                r#"{"entry":"00000000000000ba","blocks":[{"after":5,"bytes":1,"checksum":""#
            ),
            "{json}"
        );
        assert_eq!(serde_json::from_str::<LogTail>(&json).unwrap(), tail);
        assert!(serde_json::from_str::<LogTail>(&json.replace("00ba", "ba")).is_err());
    }
}
