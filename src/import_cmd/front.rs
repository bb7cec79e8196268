//! The positions before a stream's first record.
//!
//! A stream of the source that was trimmed begins at a position above zero, and a new stream always begins at
//! zero. The positions before are filled with records without content, of which the last trims the stream to
//! where the source begins: readers of the copy see the same positions as in the source. If the fencing token
//! was set before that, one of these records sets it.

use s2_sdk::error::{AppendConditionFailed, AppendError};
use s2_sdk::types::{
    AppendInput, AppendRecord, AppendRecordBatch, CommandRecord, FencingToken, SequencedRecord,
};

use super::Import;
use super::records::append;
use crate::failure::Failure;
use crate::follow_cmd::progress::Records;
use crate::stream_cmd::target::StreamTarget;

/// Most positions that are filled by default: ten million take a minute or so.
pub const MAX_FRONT: u64 = 10_000_000;
/// Records of a batch, at most as many as the API takes.
const BATCH: u64 = 1000;
/// A fencing token that no stream has. An append with it fails, and its error has the token in force.
const NO_STREAM_HAS_IT: &str = "esker-import-asks-for-the-token";

impl Import {
    /// Fills the copy from its tail to the position where the source begins.
    pub async fn fill(&self, target: &StreamTarget, tail: u64, head: u64) -> Result<(), Failure> {
        let missing = head - tail;
        if missing > self.max_front {
            return Err(Failure::wrong(
                "import_front",
                format!(
                    "{target} begins at {head} in the source, and {missing} positions before that are more than \
                     --max-front"
                ),
            )
            .advise("fill more of them with a higher --max-front"));
        }
        let token = self.fencing_token(target).await?;
        let bar = Records::new(tail, head);
        let mut next = tail;
        while next < head {
            let end = head.min(next + BATCH);
            let records = (next..end).map(|at| filler(at, head, token.as_ref()));
            let records = records.collect::<Result<Vec<_>, _>>();
            let records = records.map_err(|e| Failure::wrong("client", e))?;
            append(&self.target, target, records, next).await?;
            next = end;
            bar.at(next);
        }
        bar.clear();
        Ok(())
    }

    /// The fencing token that is in force in the source, if this client may ask for it. The question is an
    /// append with two conditions, neither of which can hold.
    async fn fencing_token(&self, target: &StreamTarget) -> Result<Option<FencingToken>, Failure> {
        let asked = self.source.asked_stream(target);
        let invalid = |e: s2_sdk::types::ValidationError| Failure::wrong("client", e.0);
        let record = AppendRecord::new("").map_err(invalid)?.with_timestamp(0);
        let batch = AppendRecordBatch::try_from_iter([record]).map_err(invalid)?;
        let input = AppendInput::new(batch)
            .with_match_seq_num(u64::MAX)
            .with_fencing_token(NO_STREAM_HAS_IT.parse().map_err(invalid)?);
        let unknown = || {
            remark!(
                "The fencing token of {target} cannot be seen in the source; if it has one, set it in the copy \
                 with `esker stream fence`."
            );
            Ok(None)
        };
        match self.source.stream(target).append(input).await {
            Err(AppendError::ConditionFailed(AppendConditionFailed::FencingTokenMismatch(
                token,
            ))) => Ok(Some(token).filter(|token| !token.is_empty())),
            Err(AppendError::ConditionFailed(_)) => unknown(),
            Err(error) => {
                let failure = asked.append(&error);
                match failure.exit {
                    3 => Err(failure),
                    _ => unknown(),
                }
            }
            Ok(_) => Err(Failure::wrong(
                "client",
                format!(
                    "the source appended a record to {target} although its conditions do not hold"
                ),
            )),
        }
    }
}

/// The record at a position before the head. The last trims to it, and the one before sets the fencing token.
fn filler(
    at: u64,
    head: u64,
    token: Option<&FencingToken>,
) -> Result<AppendRecord, s2_sdk::types::ValidationError> {
    // Where there is one position, the token is more important than that readers do not see a record.
    let fences = if head == 1 { 0 } else { head.saturating_sub(2) };
    let record = match token {
        Some(token) if at == fences => CommandRecord::fence(token.clone()).into(),
        _ if at + 1 == head => CommandRecord::trim(head).into(),
        _ => AppendRecord::new("")?,
    };
    // Timestamps never go back in a stream, so the front has the earliest.
    Ok(record.with_timestamp(0))
}

/// Whether a record is one of those that [`Import::fill`] appends.
pub fn is_filler(record: &SequencedRecord) -> bool {
    record.timestamp == 0
        && (record.is_command_record() || record.body.is_empty() && record.headers.is_empty())
}
