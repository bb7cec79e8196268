//! The summary that is printed at the end: what was acknowledged.

use std::time::{Duration, Instant};

use s2_sdk::types::AppendRecordBatch;
use serde_json::json;

use super::Args;
use crate::failure::Failure;
use crate::output::print;
use crate::stream_cmd::target::StreamTarget;
use crate::term::{bytes, count, rate, records, took};

/// Fewest records for which the summary shows a rate.
const RATE_FROM: u64 = 1000;

/// What was acknowledged so far.
pub struct Done {
    started: Instant,
    took: Duration,
    pub records: u64,
    bytes: u64,
    /// The first sequence number, and the one after the last.
    pub range: Option<(u64, u64)>,
    /// Records that may or may not be in the stream.
    pub unknown: u64,
}

impl Done {
    pub fn new() -> Done {
        Done {
            started: Instant::now(),
            took: Duration::ZERO,
            records: 0,
            bytes: 0,
            range: None,
            unknown: 0,
        }
    }

    pub fn acknowledged(&mut self, first_seq_num: u64, records: &AppendRecordBatch) {
        let number = records.len() as u64;
        self.records += number;
        self.bytes += records.iter().map(|r| r.body().len() as u64).sum::<u64>();
        let first = self.range.map_or(first_seq_num, |(first, _)| first);
        self.range = Some((first, first_seq_num + number));
        self.took = self.started.elapsed();
    }

    /// `sequence numbers 0 to 19999`.
    pub fn range(&self) -> String {
        match self.range {
            None => "no sequence number".into(),
            Some((first, end)) if end - first == 1 => format!("sequence number {first}"),
            Some((first, end)) if end - first == self.records => {
                format!("sequence numbers {first} to {}", end - 1)
            }
            Some((first, end)) => format!(
                "sequence numbers between {first} and {}, because others appended as well",
                end - 1
            ),
        }
    }

    pub fn print(&self, args: &Args) -> Result<(), Failure> {
        if args.json {
            return print(self.document());
        }
        if self.records == 0 {
            return print("nothing to append: the input has no line");
        }
        // A rate of a few records would mean nothing.
        let rate = match self.records {
            0..RATE_FROM => String::new(),
            n => format!(", {}", rate(n, self.took)),
        };
        print(format_args!(
            "appended {} ({}) to {}: {}; {}{rate}",
            records(self.records),
            bytes(self.bytes),
            args.stream,
            self.range(),
            took(self.took),
        ))
    }

    pub fn document(&self) -> serde_json::Value {
        json!({
            "records": self.records,
            "bytes": self.bytes,
            "first_seq_num": self.range.map(|(first, _)| first),
            "next_seq_num": self.range.map(|(_, end)| end),
            "records_in_doubt": self.unknown,
            "seconds": self.took.as_secs_f64(),
        })
    }

    /// The summary as a part of a failure's message.
    pub fn so_far(&self, target: &StreamTarget) -> String {
        let before = match self.records {
            0 => "before that, nothing was appended".to_owned(),
            1 => format!("before that, 1 record was appended ({})", self.range()),
            n => format!(
                "before that, {} records were appended ({})",
                count(n),
                self.range()
            ),
        };
        match self.unknown {
            0 => before,
            n => format!(
                "{before}; {} more may or may not have been: see where the stream ends \
                 (`esker stream check-tail {target}`) before you append them again",
                count(n)
            ),
        }
    }
}
