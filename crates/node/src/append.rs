//! Admission and submission of appends.
//!
//! Admission bounds memory: the bytes of an append are taken from a budget before it is proposed
//! and returned when it is answered (also if the caller does not look at the answer), so a slow
//! disk makes callers wait, not memory grow. What is
//! admitted is proposed in the order of the calls.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use esker_partition::batch::Unsequenced;
use esker_partition::command::{Append, AppendRefusal, Kind, Outcome};
use esker_raft::ProposeError;
use s2_common::record::{CommandRecord, MeteredSize as _, Record, StreamPosition};
use s2_common::stream::AppendInput;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};

use crate::basins::{changeable, unexpected};
use crate::clock::now_ms;
use crate::error::Error;
use crate::streams::StreamHandle;

/// Where an append's records are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ack {
    /// The first record.
    pub start: StreamPosition,
    /// After the last record; the last record's timestamp.
    pub end: StreamPosition,
    /// The stream's tail.
    pub tail: StreamPosition,
}

/// What an append takes from the budget beyond its metered bytes, so that many small ones count.
const OVERHEAD: usize = 256;

/// An append that was proposed.
pub struct PendingAppend {
    handle: StreamHandle,
    answer: oneshot::Receiver<Result<Outcome, ProposeError>>,
}

impl PendingAppend {
    /// Waits until it is durable and applied, or refused.
    pub async fn done(self) -> Result<Ack, Error> {
        let outcome = self.answer.await.unwrap_or(Err(ProposeError::Unknown))?;
        let appended = match outcome {
            Outcome::Appended(appended) => appended,
            other => return Err(unexpected(&other)),
        };
        match appended {
            Ok(done) => {
                metrics::counter!("esker_appended_batches_total").increment(1);
                metrics::counter!("esker_appended_records_total")
                    .increment(done.end.seq_num - done.start.seq_num);
                Ok(Ack {
                    start: done.start,
                    end: done.end,
                    tail: done.tail,
                })
            }
            Err(refusal) => {
                metrics::counter!("esker_refused_appends_total").increment(1);
                Err(match refusal {
                    AppendRefusal::StreamGone => self.handle.not_found(),
                    AppendRefusal::FencingTokenMismatch(t) => Error::FencingTokenMismatch(t),
                    AppendRefusal::SeqNumMismatch(next) => Error::SeqNumMismatch(next),
                    AppendRefusal::TimestampMissing => Error::Invalid(
                        "the stream requires a timestamp for every record, and one had none"
                            .to_owned(),
                    ),
                    AppendRefusal::SeqNumsExhausted => {
                        Error::Invalid("the stream has no sequence numbers left".to_owned())
                    }
                    AppendRefusal::SessionFailed => {
                        Error::Invalid("an earlier append of this session was refused".to_owned())
                    }
                })
            }
        }
    }
}

impl StreamHandle {
    /// Admits and proposes an append; may wait for admission.
    pub async fn append(&self, input: AppendInput) -> Result<PendingAppend, Error> {
        self.submit(input, 0, None).await
    }

    /// Begins a session: appends that are acknowledged in order, and of which none lands after one
    /// was refused. At most `inflight` bytes of it are in flight.
    pub fn session(&self, inflight: usize) -> AppendSession {
        AppendSession {
            handle: self.clone(),
            id: self.node.inner.next_session.fetch_add(1, Ordering::Relaxed),
            budget: Arc::new(Semaphore::new(inflight)),
            inflight,
        }
    }

    async fn submit(
        &self,
        input: AppendInput,
        session: u64,
        budget: Option<(&Arc<Semaphore>, usize)>,
    ) -> Result<PendingAppend, Error> {
        let inner = &self.node.inner;
        changeable(&self.basin)?;
        if self.node.is_draining() {
            return Err(Error::Stopping);
        }
        if inner.refuses_appends.load(Ordering::Relaxed) {
            return Err(Error::TryLater(
                "the log is full: appends are refused until a snapshot is archived".to_owned(),
            ));
        }
        let bytes = input.records.metered_size() + OVERHEAD;
        let mut permits = Vec::with_capacity(2);
        if let Some((budget, most)) = budget {
            permits.push(admit(budget, bytes.min(most)).await?);
        }
        // Before it takes part of what all partitions share: they do not wait for the space of this one.
        let part = self.partition.reader.part();
        inner.wait_for_space(part, only_trims(&input)).await?;
        let most = inner.options.append_inflight;
        permits.push(admit(&inner.admission, bytes.min(most)).await?);
        if self.node.is_draining() {
            return Err(Error::Stopping);
        }
        let AppendInput {
            records,
            match_seq_num,
            fencing_token,
        } = input;
        let mut append = Append::new(self.stream.id, Unsequenced::encode(records), now_ms());
        append.match_seq_num = match_seq_num;
        append.fencing_token = fencing_token.map(|t| t.to_string());
        append.session = session;
        let answer = self
            .partition
            .group
            .propose_with(Kind::Append(append).into_bytes(), Some(Box::new(permits)))?;
        Ok(PendingAppend {
            handle: self.clone(),
            answer,
        })
    }
}

/// Whether all of an append's records are commands to trim.
fn only_trims(input: &AppendInput) -> bool {
    let is_trim = |record: &Record| matches!(record, Record::Command(CommandRecord::Trim(_)));
    (input.records.iter()).all(|record| is_trim(&record.parts().record))
}

/// An append session. See [`StreamHandle::session`].
pub struct AppendSession {
    handle: StreamHandle,
    id: u64,
    budget: Arc<Semaphore>,
    inflight: usize,
}

impl AppendSession {
    /// Admits and proposes the next append of the session; may wait for admission.
    pub async fn append(&self, input: AppendInput) -> Result<PendingAppend, Error> {
        self.handle
            .submit(input, self.id, Some((&self.budget, self.inflight)))
            .await
    }
}

pub(crate) async fn admit(
    budget: &Arc<Semaphore>,
    bytes: usize,
) -> Result<OwnedSemaphorePermit, Error> {
    let permits = u32::try_from(bytes).unwrap_or(u32::MAX);
    budget
        .clone()
        .acquire_many_owned(permits)
        .await
        .map_err(|_| Error::Stopping)
}
