//! The records of the demo: the embedded flights, or the lines of a file.

use std::fs::File;
use std::io::Read as _;
use std::num::NonZeroU32;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;

use crate::failure::Failure;

/// Records of a batch.
pub const BATCH: u64 = 100;
/// Batches under way at a time.
pub const WINDOW: NonZeroU32 = NonZeroU32::new(16).unwrap();

/// 20,000 domestic flights in the United States, January to March 2001, in the order of departure:
/// `flights.jsonl`, compressed, which makes the program 1.6 MB smaller.
const FLIGHTS: &[u8] = include_bytes!("../../examples/data/flights.jsonl.zst");
/// Fewest records that leave a middle in which the server can be killed. At the kill half of them are
/// acknowledged, and a window of batches is under way; the answers to these may still arrive, and each lets
/// one more batch be sent.
const FEWEST: usize = 2 * BATCH as usize * (2 * WINDOW.get() as usize + 1);
/// Largest file: all records are kept in memory, to be compared with what is read.
const MAX_FILE: u64 = 1024 * 1024 * 1024;
/// Largest body of a record without headers: 1 MiB less the 8 bytes that a record is metered beyond its body.
const MAX_RECORD: usize = 1024 * 1024 - 8;

/// Records, numbered from 0. In a stream that starts empty, each gets its own number as sequence number.
pub struct Records {
    /// What they are, for the text of the demo.
    pub what: &'static str,
    lines: Arc<Vec<Bytes>>,
    bytes: u64,
    /// How many there are: after the last line, the first one follows again.
    count: u64,
}

impl Records {
    /// The flights.
    pub fn flights() -> Records {
        let lines = zstd::decode_all(FLIGHTS).expect("a test decodes them");
        Records::new("flight records", lines.into())
    }

    /// The lines of a file.
    ///
    /// # Errors
    ///
    /// If it cannot be read, is larger than 1 GiB, or has a line that is too long for a record, or
    /// fewer than 6600 lines.
    pub fn of_file(path: &Path) -> Result<Records, Failure> {
        let wrong = |problem: &dyn std::fmt::Display| {
            Failure::wrong("input", format!("{}: {problem}", path.display()))
        };
        let mut content = Vec::new();
        File::open(path)
            .and_then(|file| file.take(MAX_FILE + 1).read_to_end(&mut content))
            .map_err(|e| wrong(&e))?;
        if content.len() as u64 > MAX_FILE {
            return Err(wrong(
                &"larger than 1 GiB, which the demo would keep in memory",
            ));
        }
        let records = Records::new("records", content.into());
        if records.lines.len() < FEWEST {
            return Err(wrong(&format_args!(
                "{} lines; the demo needs {FEWEST}, one record each",
                records.lines.len()
            )));
        }
        if let Some(index) = records.lines.iter().position(|l| l.len() > MAX_RECORD) {
            return Err(wrong(&format_args!(
                "line {} is longer than a record may be ({MAX_RECORD} bytes)",
                index + 1
            )));
        }
        Ok(records)
    }

    fn new(what: &'static str, content: Bytes) -> Records {
        let mut lines = Vec::new();
        let mut rest = content;
        while !rest.is_empty() {
            let end = rest.iter().position(|&b| b == b'\n');
            lines.push(rest.split_to(end.unwrap_or(rest.len())));
            if end.is_some() {
                // The line feed.
                let _ = rest.split_to(1);
            }
        }
        let bytes = lines.iter().map(|line| line.len() as u64).sum();
        Records {
            what,
            count: lines.len() as u64,
            lines: Arc::new(lines),
            bytes,
        }
    }

    /// The same records, repeated until there are `count`.
    pub fn repeated(&self, count: u64) -> Records {
        Records {
            what: self.what,
            lines: self.lines.clone(),
            bytes: self.bytes,
            count,
        }
    }

    /// How many there are.
    pub fn count(&self) -> u64 {
        self.count
    }

    /// Bytes of all of them, each counted once.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// The body of a record, if there is one of this number.
    pub fn get(&self, number: u64) -> Option<&Bytes> {
        if number >= self.count {
            return None;
        }
        self.lines
            .get(usize::try_from(number).ok()? % self.lines.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_flights_are_there_each_a_line_of_json() {
        let flights = Records::flights();
        assert_eq!(flights.count(), 20_000);
        for number in 0..flights.count() {
            let line = flights.get(number).unwrap();
            let flight: serde_json::Value = serde_json::from_slice(line).unwrap();
            assert!(flight["origin"].is_string(), "record {number}: {flight}");
        }
        assert!(flights.get(20_000).is_none());
    }

    #[test]
    fn the_flights_of_the_demo_are_those_of_the_examples() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/data/flights.jsonl");
        let file = Records::of_file(Path::new(path)).unwrap();
        assert_eq!(Records::flights().lines, file.lines);
    }

    #[test]
    fn lines_are_cut_at_line_feeds_and_at_nothing_else() {
        let records = Records::new("records", Bytes::from_static(b"a\n\nb\r\nc"));
        let lines: Vec<_> = records.lines.iter().map(|l| &l[..]).collect();
        let expected: [&[u8]; 4] = [b"a", b"", b"b\r", b"c"];
        assert_eq!(lines, expected);
        assert_eq!(records.bytes(), 4);
    }

    #[test]
    fn repeated_records_start_over_after_the_last_one() {
        let records = Records::new("records", Bytes::from_static(b"a\nb")).repeated(3);
        let read: Vec<_> = (0..4).map(|n| records.get(n).map(|r| r[0])).collect();
        assert_eq!(read, [Some(b'a'), Some(b'b'), Some(b'a'), None]);
    }
}
