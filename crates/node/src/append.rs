//! Admission and submission of appends.
//!
//! Admission bounds memory: the bytes of an append are taken from a budget before it is proposed and
//! returned when it is answered, even if the caller has dropped the answer. So a slow disk makes callers
//! wait, and memory does not grow. A single append, whose client waits for the answer, waits for
//! [`ADMISSION_TIMEOUT`]; an append of a session waits without a limit, because flow control stops its
//! client meanwhile. Clients and streams that compete are admitted in turns ([`crate::admission`]); the
//! appends of one session are proposed in the order of the calls. Single ones that are under way at one time may
//! overtake each other: one that was admitted is proposed when its task runs, or after it was encrypted.

use std::cell::LazyCell;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use esker_partition::command::{Append, AppendRefusal, Kind, Outcome};
use esker_partition::encryption::{self, MAX_OVERHEAD};
use esker_raft::{ProposeError, Sequence};
use parking_lot::Mutex;
use s2_common::record::{CommandRecord, MeteredSize as _, Record, StreamPosition};
use s2_common::stream::{AppendInput, AppendRecordBatch};
use tokio::sync::{Semaphore, oneshot};

use crate::admission::{ADMISSION_TIMEOUT, Caller, admit, in_time, unless_stopping};
use crate::blocking::{MAX_INLINE, blocking};
use crate::error::{Error, changeable, unexpected};
use crate::space::SpaceUse;
use crate::stages::{self, Stage};
use crate::streams::StreamHandle;

/// The positions of an append's records.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ack {
    /// The position of the first record.
    pub start: StreamPosition,
    /// The position after the last record, and the last record's timestamp.
    pub end: StreamPosition,
    /// The stream's tail.
    pub tail: StreamPosition,
}

/// Bytes that an append takes from the budget beyond its metered bytes, so that many small appends count.
const OVERHEAD: usize = 256;

/// An append that was proposed.
pub struct PendingAppend {
    handle: StreamHandle,
    answer: oneshot::Receiver<Result<Outcome, ProposeError>>,
    /// Of an append of a session.
    unanswered: Option<Arc<Unanswered>>,
}

/// The appends of a session that were proposed and not answered yet.
///
/// If the partition gets another leader, entries of that one may take the place of some of them, and those
/// that come later must not be applied: they carry the term of those that are not answered, and are refused in
/// another one.
#[derive(Debug, Default)]
struct Unanswered(Mutex<TermOfUnanswered>);

#[derive(Debug, Default)]
struct TermOfUnanswered {
    /// How many there are. One that fails stays.
    count: usize,
    /// The term in which they were proposed.
    term: u64,
}

impl Unanswered {
    /// Another one is proposed; returns the term that it carries. `now` is the current term.
    fn add(&self, now: impl FnOnce() -> u64) -> u64 {
        let mut unanswered = self.0.lock();
        if unanswered.count == 0 {
            unanswered.term = now();
        }
        unanswered.count += 1;
        unanswered.term
    }

    /// One of them is applied.
    fn applied(&self) {
        self.0.lock().count -= 1;
    }
}

impl PendingAppend {
    /// Waits until the append is durable and applied, or refused.
    pub async fn done(self) -> Result<Ack, Error> {
        let group = &self.handle.partition.group;
        let outcome = self.handle.node.inner.answered(group, self.answer).await?;
        let appended = match outcome {
            Outcome::Appended(appended) => appended,
            other => return Err(unexpected(&other)),
        };
        match appended {
            Ok(done) => {
                if let Some(unanswered) = &self.unanswered {
                    unanswered.applied();
                }
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
                    // The stream's cipher is fixed, and its id is in the proposal: nothing happened.
                    AppendRefusal::CipherMismatch => Error::Conflict,
                    AppendRefusal::CipherExhausted => Error::Invalid(format!(
                        "AES-256-GCM may encrypt {} records of a stream, and has: go on in another stream, or \
                         with `aegis-256`, which has no such limit",
                        encryption::MAX_AES_256_GCM_RECORDS
                    )),
                    AppendRefusal::LeaderChanged => Error::TryLater(
                        "the partition has another leader since earlier appends of this session: it is not \
                         known which of them were applied; begin another session, and ask for the tail"
                            .to_owned(),
                    ),
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
    ///
    /// # Errors
    ///
    /// Those of every append, and [`Error::TryLater`] if it was not admitted within [`ADMISSION_TIMEOUT`].
    pub async fn append(&self, input: AppendInput) -> Result<PendingAppend, Error> {
        self.submit(input, None).await
    }

    /// Begins a session: its appends are acknowledged in order, and after a refused one none is applied. At
    /// most `inflight` bytes of it are in flight.
    pub fn session(&self, inflight: usize) -> AppendSession {
        AppendSession {
            handle: self.clone(),
            id: self.node.inner.next_session.fetch_add(1, Ordering::Relaxed),
            budget: Arc::new(Semaphore::new(inflight)),
            inflight,
            unanswered: Arc::default(),
            sequence: Arc::default(),
        }
    }

    async fn submit(
        &self,
        input: AppendInput,
        session: Option<&AppendSession>,
    ) -> Result<PendingAppend, Error> {
        let inner = &self.node.inner;
        changeable(&self.basin)?;
        let encryption = self.encryption()?.clone();
        if self.node.is_draining() {
            return Err(Error::Stopping);
        }
        if inner.refuses_appends.load(Ordering::Relaxed) {
            return Err(Error::TryLater(
                "the log is full: appends are refused until a snapshot is archived".to_owned(),
            ));
        }
        inner.clocks_compared().await;
        let metered = input.records.metered_size();
        let longer = match self.stream.cipher {
            None => 0,
            Some(_) => MAX_OVERHEAD * input.records.len(),
        };
        let bytes = metered + longer + OVERHEAD;
        let stopping = &inner.stopping;
        let of_session = match session {
            Some(session) => {
                let admitted = admit(&session.budget, bytes.min(session.inflight));
                Some(unless_stopping(stopping, admitted).await?)
            }
            None => None,
        };
        let usage = self.space_use(&input.records)?;
        // This comes before the append takes part of the shared budget: other partitions do not wait for the
        // space of this one.
        let part = self.partition.reader.partition_db();
        inner.wait_for_space(part, usage).await?;
        let options = &inner.options;
        let caller = match session {
            Some(_) => Caller::Session,
            None => Caller::Request,
        };
        let path = self.client.path(self.stream.id.0);
        let admitted = async {
            // In this order: an append that waits for its partition takes nothing from other partitions.
            let passed = self.partition.gate.pass(&path, bytes, caller).await?;
            let bytes = admit(&inner.admission, bytes.min(options.append_inflight)).await?;
            Ok((passed, bytes))
        };
        let admitted = unless_stopping(stopping, admitted);
        let admitted = match caller {
            Caller::Session => admitted.await?,
            Caller::Request => in_time(ADMISSION_TIMEOUT, admitted).await?,
        };
        stages::note(Stage::Admitted);
        let AppendInput {
            records,
            match_seq_num,
            fencing_token,
        } = input;
        let associated_data = self.associated_data();
        // What was admitted stays with the records, even if the caller has gone meanwhile.
        let encode = move || {
            let records = encryption::encrypt(records, &encryption, &associated_data);
            (records, admitted, of_session)
        };
        let (records, admitted, of_session) = match self.stream.cipher {
            Some(_) if metered > MAX_INLINE => blocking(encode).await,
            _ => encode(),
        };
        if self.node.is_draining() {
            return Err(Error::Stopping);
        }
        let mut append = Append::new(self.stream.id, records, inner.stamp_ms());
        append.match_seq_num = match_seq_num;
        append.fencing_token = fencing_token.map(|t| t.to_string());
        if let Some(session) = session {
            append.session = session.id;
            let group = &self.partition.group;
            append.session_term = session.unanswered.add(|| group.term().0);
        }
        let answer = stages::propose(
            &self.partition.group,
            Kind::Append(append).into_bytes(),
            Some(Box::new((admitted, of_session))),
            session.map(|session| session.sequence.clone()),
        )?;
        Ok(PendingAppend {
            handle: self.clone(),
            answer,
            unanswered: session.map(|session| session.unanswered.clone()),
        })
    }
}

impl StreamHandle {
    /// How an append uses space: it takes some, unless all of its records are commands to trim. These give
    /// some back if one of them trims above the head.
    ///
    /// # Errors
    ///
    /// A trim to a sequence number of a history that was cut off is refused: it is meant for records that
    /// are lost, and would remove records that are left. Forks happen in starts alone, so nothing changes
    /// between this check and the trim.
    fn space_use(&self, records: &AppendRecordBatch) -> Result<SpaceUse, Error> {
        // Computed on demand, because few appends have a trim.
        let state = LazyCell::new(|| self.stream.view().state);
        let (mut only_trims, mut gives_back) = (true, false);
        for record in records.iter() {
            let Record::Command(CommandRecord::Trim(point)) = &*record.parts().record else {
                only_trims = false;
                continue;
            };
            if let Some(goes_on_at) = state.cut_off(*point) {
                return Err(Error::Invalid(format!(
                    "a trim to {point} is refused: a loss has cut off the records that had such sequence \
                     numbers, and the stream goes on at {goes_on_at}; ask for its position again"
                )));
            }
            gives_back |= *point > state.head() && !state.is_empty();
        }
        Ok(match (only_trims, gives_back) {
            (false, _) => SpaceUse::Takes,
            (true, false) => SpaceUse::Keeps,
            (true, true) => SpaceUse::GivesBack,
        })
    }
}

/// An append session. See [`StreamHandle::session`].
pub struct AppendSession {
    handle: StreamHandle,
    id: u64,
    budget: Arc<Semaphore>,
    inflight: usize,
    unanswered: Arc<Unanswered>,
    /// After one of its appends that was refused before it was in the log, none is accepted. Those that are refused
    /// when they are applied are remembered by the partition.
    sequence: Arc<Sequence>,
}

impl AppendSession {
    /// Admits and proposes the next append of the session; waits for admission without a limit.
    pub async fn append(&self, input: AppendInput) -> Result<PendingAppend, Error> {
        self.handle.submit(input, Some(self)).await
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use s2_common::config::{BasinConfig, OptionalStreamConfig};
    use s2_common::record::EnvelopeRecord;
    use s2_common::stream::{AppendRecord, AppendRecordParts};

    use std::time::Duration;

    use super::*;
    use crate::admission::Client;
    use crate::basins::Create;
    use crate::node::Node;
    use crate::options::NodeOptions;
    use crate::recovery::MAX_PENDING;
    use crate::streams::CreateOn;

    #[test]
    fn appends_of_a_session_carry_the_term_of_those_that_are_not_answered() {
        let unanswered = Unanswered::default();
        assert_eq!(unanswered.add(|| 4), 4);
        assert_eq!(unanswered.add(|| 5), 4, "the first may be superseded");
        unanswered.applied();
        assert_eq!(unanswered.add(|| 6), 4);
        unanswered.applied();
        unanswered.applied();
        assert_eq!(unanswered.add(|| 6), 6, "all are applied");
        // That one failed, so it is not known what became of it.
        assert_eq!(unanswered.add(|| 7), 6);
    }

    #[tokio::test]
    async fn an_append_that_is_not_admitted_in_time_is_refused_and_keeps_nothing() {
        let timeout = Duration::from_millis(50);
        let budget = Arc::new(Semaphore::new(1000));
        let in_flight = admit(&budget, 900).await.unwrap();
        let refused = in_time(timeout, admit(&budget, 200)).await.unwrap_err();
        assert!(matches!(&refused, Error::TryLater(why) if why.contains("append-inflight")));
        // The budget that it waited for is free for others.
        drop(admit(&budget, 100).await.unwrap());
        drop(in_flight);
        drop(admit(&budget, 1000).await.unwrap());
    }

    fn small() -> AppendInput {
        let body = Bytes::from_static(b"x");
        let record = EnvelopeRecord::try_from_parts(Vec::new(), body).unwrap();
        let record = AppendRecord::try_from(AppendRecordParts {
            timestamp: None,
            record: Record::Envelope(record).into(),
        });
        AppendInput {
            records: vec![record.unwrap()].try_into().unwrap(),
            match_seq_num: None,
            fencing_token: None,
        }
    }

    async fn started(dir: &std::path::Path, partitions: u32) -> (Node, StreamHandle) {
        let mut options = NodeOptions::new(dir);
        options.partitions = partitions;
        let node = Node::start(options).await.unwrap();
        let config = BasinConfig::default();
        let basin = node.provision_basin("test-basin", &config, &Create::Ensure);
        basin.await.unwrap();
        let settings = OptionalStreamConfig::default();
        let ensure = Create::Ensure;
        let stream = node.provision_stream("test-basin", "tiny", &settings, &ensure);
        stream.await.unwrap();
        let on = CreateOn::Append;
        let handle = node.open_stream(Client::default(), "test-basin", "tiny", on, &settings);
        let handle = handle.await.unwrap();
        (node, handle)
    }

    fn batch(records: impl IntoIterator<Item = Record>) -> AppendRecordBatch {
        let records = records.into_iter().map(|record| {
            let parts = AppendRecordParts {
                timestamp: None,
                record: record.into(),
            };
            AppendRecord::try_from(parts).unwrap()
        });
        records.collect::<Vec<_>>().try_into().unwrap()
    }

    fn trim(point: u64) -> Record {
        Record::Command(CommandRecord::Trim(point))
    }

    #[tokio::test]
    async fn only_trims_above_the_head_count_as_what_gives_space_back() {
        let dir = tempfile::tempdir().unwrap();
        let (node, handle) = started(dir.path(), 1).await;
        let usage = |records: Vec<Record>| handle.space_use(&batch(records)).unwrap();
        let record = || {
            let body = Bytes::from_static(b"x");
            Record::Envelope(EnvelopeRecord::try_from_parts(Vec::new(), body).unwrap())
        };
        assert_eq!(usage(vec![record()]), SpaceUse::Takes);
        assert_eq!(usage(vec![trim(9)]), SpaceUse::Keeps, "it is empty");
        for _ in 0..3 {
            let appended = handle.append(small()).await.unwrap();
            appended.done().await.unwrap();
        }
        assert_eq!(usage(vec![trim(0)]), SpaceUse::Keeps);
        assert_eq!(usage(vec![trim(0), trim(2)]), SpaceUse::GivesBack);
        assert_eq!(usage(vec![trim(2), record()]), SpaceUse::Takes);
        let input = AppendInput {
            records: batch([trim(2)]),
            match_seq_num: None,
            fencing_token: None,
        };
        handle.append(input).await.unwrap().done().await.unwrap();
        assert_eq!(
            usage(vec![trim(2)]),
            SpaceUse::Keeps,
            "as often as it is sent again"
        );
        assert_eq!(usage(vec![trim(3)]), SpaceUse::GivesBack);
        node.stop(Duration::from_secs(30)).await;
    }

    #[tokio::test]
    async fn whichever_partitions_stall_each_other_one_has_its_share_of_what_is_in_flight() {
        for partitions in [1, 2, 3, 8] {
            let dir = tempfile::tempdir().unwrap();
            let (node, handle) = started(dir.path(), partitions).await;
            let inner = &node.inner;
            let share = inner.options.append_share();
            assert!(share * partitions as usize <= inner.options.append_inflight);
            let mut stalled = Vec::new();
            for other in &inner.partitions {
                if other.group.id() != handle.partition.group.id() {
                    assert_eq!(other.gate.free().1, share);
                    let passed = other.gate.pass(&[9, 9, 9], share, Caller::Request).await;
                    let bytes = admit(&inner.admission, share).await;
                    stalled.push((passed.unwrap(), bytes.unwrap()));
                }
            }
            let appended = handle.append(small()).await.unwrap();
            appended.done().await.unwrap();
            assert!(inner.admission.available_permits() >= share);
            drop(stalled);
            node.stop(Duration::from_secs(30)).await;
        }
    }

    #[tokio::test]
    async fn a_partition_that_stalls_leaves_bytes_in_flight_to_others_and_holds_up_no_stop() {
        let dir = tempfile::tempdir().unwrap();
        let (node, handle) = started(dir.path(), 2).await;
        let gate = handle.partition.gate.clone();
        let (_, all) = gate.free();
        assert!(all < node.inner.options.append_inflight);
        let appended = handle.append(small()).await.unwrap();
        appended.done().await.unwrap();
        assert_eq!(gate.free().1, all, "it is given back");
        // The partition has stalled with all of its bytes in flight.
        let in_flight = gate.pass(&[9, 9, 9], all, Caller::Request).await.unwrap();
        let session = handle.session(1 << 20);
        let waiting = session.append(small());
        tokio::pin!(waiting);
        let early = tokio::time::timeout(Duration::from_millis(100), &mut waiting).await;
        assert!(
            early.is_err(),
            "it was proposed beyond the partition's share"
        );
        let free = node.inner.admission.available_permits();
        assert_eq!(free, node.inner.options.append_inflight);
        let (answer, ()) = tokio::join!(waiting, node.stop(Duration::from_secs(30)));
        assert!(matches!(answer, Err(Error::Stopping)));
        drop(in_flight);
    }

    #[tokio::test]
    async fn appends_of_sessions_wait_where_a_partition_has_as_many_pending_as_it_may() {
        let dir = tempfile::tempdir().unwrap();
        let (node, handle) = started(dir.path(), 1).await;
        let session = handle.session(1 << 20);
        // The disk has stalled with all of the partition's appends in flight.
        let gate = handle.partition.gate.clone();
        let (all, _) = gate.free();
        assert!(
            (all as u64) < MAX_PENDING,
            "others find a place beside appends"
        );
        let mut in_flight = Vec::new();
        for _ in 0..all {
            let passed = gate.pass(&[9, 9, 9], 1, Caller::Request).await;
            in_flight.push(passed.unwrap());
        }
        let waiting = session.append(small());
        tokio::pin!(waiting);
        let early = tokio::time::timeout(Duration::from_millis(100), &mut waiting).await;
        assert!(early.is_err(), "it was proposed where others are refused");
        // It holds nothing of the budget that other partitions need.
        let free = node.inner.admission.available_permits();
        assert_eq!(free, node.inner.options.append_inflight);
        drop(in_flight);
        waiting.await.unwrap().done().await.unwrap();
        assert_eq!(gate.free().0, all);
        node.stop(Duration::from_secs(30)).await;
    }
}
