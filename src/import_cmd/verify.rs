//! Comparison of all records of a stream and its copy.

use std::collections::VecDeque;
use std::time::Duration;

use s2_sdk::types::SequencedRecord;

use super::Import;
use super::records::{Session, are_equal, range, trimmed};
use crate::failure::Failure;
use crate::follow_cmd::progress::Records;
use crate::stream_cmd::target::StreamTarget;

/// How often, and at which interval, the source is asked where it begins, if the copy begins later: s2-lite
/// carries out a trim some time after the command, and Esker at once.
const TRIM_ATTEMPTS: u32 = 10;
const TRIM_INTERVAL: Duration = Duration::from_millis(500);

impl Import {
    /// Compares both from where the source begins, up to a position. Returns where that is, and the number of
    /// records. Records that the source loses meanwhile are left out.
    ///
    /// # Errors
    ///
    /// `import_differs` with the first position that differs: in its number, timestamp, headers or body; also
    /// where the copy begins later than the source. `import_gap` if the source loses the last records meanwhile.
    pub async fn compare(&self, target: &StreamTarget, tail: u64) -> Result<(u64, u64), Failure> {
        let (mut ours, _) = range(&self.source, target).await?;
        let (theirs, _) = range(&self.target, target).await?;
        let differs = |why: String| {
            Failure::wrong(
                "import_differs",
                format!("{target} differs from the source: {why}"),
            )
            .advise("delete it here, and run the import again")
        };
        for _ in 0..TRIM_ATTEMPTS {
            if theirs <= ours.min(tail) {
                break;
            }
            tokio::time::sleep(TRIM_INTERVAL).await;
            ours = range(&self.source, target).await?.0;
        }
        if theirs > ours.min(tail) {
            return Err(differs(format!(
                "the copy begins at {theirs}, and the source at {ours}"
            )));
        }
        let from = ours.min(tail);
        let bar = Records::new(from, tail);
        let mut source = Session::open(&self.source, target, from, tail).await?;
        let mut copy = Session::open(&self.target, target, from, tail).await?;
        let mut waiting: VecDeque<SequencedRecord> = VecDeque::new();
        let mut compared = 0;
        let mut next = from;
        while let Some(records) = source.next().await? {
            for record in records {
                if record.seq_num > next && range(&self.source, target).await?.0 > next {
                    // The source was trimmed, or records have expired in it.
                    next = record.seq_num;
                }
                let copy = loop {
                    match waiting.pop_front() {
                        Some(copy) if copy.seq_num < next => {}
                        Some(copy) => break copy,
                        None => match copy.next().await? {
                            Some(records) => waiting.extend(records),
                            None => {
                                return Err(differs(format!("{} is missing", record.seq_num)));
                            }
                        },
                    }
                };
                let same = are_equal(&copy, &record);
                if !same {
                    return Err(differs(format!(
                        "the record at {} is another",
                        record.seq_num
                    )));
                }
                compared += 1;
                next += 1;
            }
            bar.at(next);
        }
        bar.clear();
        if next < tail && range(&self.source, target).await?.0 > next {
            return Err(trimmed(target, next));
        }
        let is_more =
            !waiting.is_empty() || copy.next().await?.is_some_and(|more| !more.is_empty());
        if is_more || next != tail {
            return Err(differs(format!(
                "{compared} records are equal up to {next}, and it ends at {tail}"
            )));
        }
        Ok((from, compared))
    }
}
