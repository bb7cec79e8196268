//! Appends the records of the demo over one session, and tracks what was acknowledged.
//!
//! Batches are small, and only some of them are under way at a time, so that a kill finds records of all
//! three kinds: acknowledged, under way, and not sent.

use std::collections::VecDeque;
use std::num::NonZeroU32;
use std::ops::Range;
use std::time::{Duration, Instant};

use s2_sdk::S2Stream;
use s2_sdk::append_session::{AppendSession, AppendSessionConfig, BatchSubmitTicket};
use s2_sdk::error::AppendSessionError;
use s2_sdk::types::{AppendInput, AppendRecord, AppendRecordBatch, ValidationError};

use super::records::{BATCH, Records, WINDOW};
use crate::failure::Failure;

/// Size of the batches, and how many of them are under way.
#[derive(Clone, Copy)]
pub struct Load {
    /// Records of a batch.
    pub batch: u64,
    /// Batches under way at a time.
    pub window: NonZeroU32,
}

/// Small batches, some of them under way.
pub const STEADY: Load = Load {
    batch: BATCH,
    window: WINDOW,
};

/// Limits of metered bytes: of a batch, and what a record has beyond its body.
const BATCH_BYTES: usize = 1024 * 1024;
const RECORD_OVERHEAD: usize = 8;

/// How an append went.
pub struct Appended {
    /// Records before this number are acknowledged.
    pub acknowledged: u64,
    /// Records before this number were sent, or about to be.
    pub sent: u64,
    /// From the first batch to the last acknowledgement.
    pub took: Duration,
    /// The error that ended it before the last record.
    pub broke: Option<AppendSessionError>,
}

/// Appends the records of these numbers. Each batch has the condition that its records get their own numbers
/// as sequence numbers. After each acknowledgement, `acknowledged` is called with the number up to which
/// records are acknowledged, and returns whether to continue; if not, this waits for the batches under way
/// and returns.
pub async fn append(
    stream: &S2Stream,
    records: &Records,
    numbers: Range<u64>,
    load: Load,
    mut acknowledged: impl FnMut(u64) -> Result<bool, Failure>,
) -> Result<Appended, Failure> {
    let config = AppendSessionConfig::new().with_max_unacked_batches(load.window);
    let session = stream.append_session(config);
    let began = Instant::now();
    let mut appended = Appended {
        acknowledged: numbers.start,
        sent: numbers.start,
        took: Duration::ZERO,
        broke: None,
    };
    let mut goes_on = true;
    let mut under_way: VecDeque<BatchSubmitTicket> = VecDeque::new();
    loop {
        while under_way.len() < load.window.get() as usize && goes_on && appended.broke.is_none() {
            let next = appended.sent..numbers.end.min(appended.sent + load.batch);
            let Some(batch) = batch(records, next).map_err(invalid)? else {
                break;
            };
            let count = batch.len() as u64;
            match submit(&session, batch, appended.sent).await {
                Ok(ticket) => under_way.push_back(ticket),
                Err(error) => {
                    appended.broke = Some(error);
                    break;
                }
            }
            appended.sent += count;
        }
        let Some(ticket) = under_way.pop_front() else {
            return Ok(appended);
        };
        match ticket.await {
            Ok(ack) => {
                appended.acknowledged = ack.end.seq_num;
                appended.took = began.elapsed();
                goes_on = acknowledged(ack.end.seq_num)?;
            }
            // The batches after it fail as well.
            Err(error) => appended.broke = Some(error),
        }
    }
}

async fn submit(
    session: &AppendSession,
    batch: AppendRecordBatch,
    first: u64,
) -> Result<BatchSubmitTicket, AppendSessionError> {
    session
        .submit(AppendInput::new(batch).with_match_seq_num(first))
        .await
}

/// The batch of these records, or of as many as fit; `None` after the last one.
pub fn batch(
    records: &Records,
    numbers: Range<u64>,
) -> Result<Option<AppendRecordBatch>, ValidationError> {
    let mut batch = Vec::new();
    let mut bytes = 0;
    for number in numbers {
        let Some(body) = records.get(number) else {
            break;
        };
        bytes += body.len() + RECORD_OVERHEAD;
        if bytes > BATCH_BYTES {
            break;
        }
        batch.push(AppendRecord::new(body.clone())?);
    }
    if batch.is_empty() {
        return Ok(None);
    }
    AppendRecordBatch::try_from_iter(batch).map(Some)
}

/// The failure for records that the SDK refuses.
pub fn invalid(error: ValidationError) -> Failure {
    Failure::wrong("demo", format!("a batch of records is refused: {error}"))
}
