//! Comparison of all records of a stream and its copy.

use std::collections::VecDeque;

use s2_sdk::types::SequencedRecord;

use super::Import;
use super::records::{Session, are_equal, range};
use crate::failure::Failure;
use crate::follow_cmd::progress::Records;
use crate::stream_cmd::target::StreamTarget;

impl Import {
    /// Compares both from where the later one begins, up to a position. Returns where that is, and the number of
    /// records.
    ///
    /// # Errors
    ///
    /// `import_differs` with the first position that differs: in its number, timestamp, headers or body.
    pub async fn compare(&self, target: &StreamTarget, tail: u64) -> Result<(u64, u64), Failure> {
        let (ours, _) = range(&self.source, target).await?;
        let (theirs, _) = range(&self.target, target).await?;
        let from = ours.max(theirs).min(tail);
        if theirs > ours.min(tail) {
            remark!("{target} begins at {theirs} in the copy, and at {ours} in the source.");
        }
        let differs = |why: String| {
            Failure::wrong(
                "import_differs",
                format!("{target} differs from the source: {why}"),
            )
            .advise("delete it here, and run the import again")
        };
        let bar = Records::new(from, tail);
        let mut source = Session::open(&self.source, target, from, tail).await?;
        let mut copy = Session::open(&self.target, target, from, tail).await?;
        let mut waiting: VecDeque<SequencedRecord> = VecDeque::new();
        let mut compared = 0;
        while let Some(records) = source.next().await? {
            for record in records {
                while waiting.is_empty() {
                    match copy.next().await? {
                        Some(records) => waiting.extend(records),
                        None => return Err(differs(format!("{} is missing", record.seq_num))),
                    }
                }
                let copy = waiting.pop_front();
                let same = copy.is_some_and(|copy| are_equal(&copy, &record));
                if !same {
                    return Err(differs(format!(
                        "the record at {} is another",
                        record.seq_num
                    )));
                }
                compared += 1;
            }
            bar.at(from + compared);
        }
        bar.clear();
        let is_more =
            !waiting.is_empty() || copy.next().await?.is_some_and(|more| !more.is_empty());
        if is_more || compared != tail - from {
            return Err(differs(format!(
                "{compared} records are equal, and there are {} positions",
                tail - from
            )));
        }
        Ok((from, compared))
    }
}
