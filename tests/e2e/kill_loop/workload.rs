//! Writers and followers of some streams, and the judge of all that they see.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use futures::StreamExt as _;
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use s2_sdk::append_session::AppendSessionConfig;
use s2_sdk::error::{AppendConditionFailed, AppendError, AppendSessionError};
use s2_sdk::types::{
    AppendAck, AppendInput, AppendRecord, AppendRecordBatch, CommandRecord, FencingToken, ReadFrom,
    ReadInput, ReadSessionConfig, ReadStart,
};
use s2_sdk::{S2, S2Stream};
use testkit_server::history::checker::{Attempt, AttemptId, History, Outcome};
use testkit_server::history::record;
use testkit_server::history::record_id::RecordId;

use crate::support::sdk::{self, basin_name, stream_name};

/// One stream under test, and what its clients know of it.
#[derive(Clone)]
pub struct Subject {
    name: String,
    tag: u32,
    history: Arc<Mutex<History>>,
}

impl Subject {
    fn new(name: String, tag: u32) -> Subject {
        Subject {
            name,
            tag,
            history: Arc::default(),
        }
    }

    fn stream(&self, s2: &S2) -> S2Stream {
        s2.basin(basin_name("test-basin"))
            .stream(stream_name(&self.name))
    }

    fn settle(&self, attempt: AttemptId, result: &Result<AppendAck, AppendError>) {
        let outcome = match result {
            Ok(ack) => Outcome::Acked(ack.start.seq_num),
            Err(error) if error.has_no_side_effects() => Outcome::Refused,
            Err(_) => Outcome::Unknown,
        };
        self.history.lock().unwrap().settle(attempt, outcome);
    }

    /// Reads the stream whole and compares.
    pub async fn check(&self, s2: &S2, context: &str) {
        let stream = self.stream(s2);
        let tail = stream.check_tail().await.unwrap().seq_num;
        let contents: Vec<_> = sdk::read_all(&stream)
            .await
            .iter()
            .map(|record| record::seen(self.tag, record))
            .collect();
        let verdict = self.history.lock().unwrap().check(&contents, tail);
        let told: Vec<String> = verdict.violations.iter().map(ToString::to_string).collect();
        assert!(
            told.is_empty(),
            "{context}, stream {}, {} violations: {told:#?}",
            self.name,
            verdict.violation_count
        );
    }
}

/// A writer over all rounds of a stream.
pub struct Writer {
    subject: Subject,
    next: RecordId,
    rng: StdRng,
}

/// Ends the writers of a round.
#[derive(Clone, Default)]
pub struct Stop(Arc<AtomicBool>);

impl Stop {
    /// Ends them after the appends that are under way.
    pub fn stop(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    fn is_set(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

impl Writer {
    fn new(subject: &Subject, writer: u32, seed: u64) -> Writer {
        Writer {
            subject: subject.clone(),
            next: RecordId { writer, index: 0 },
            rng: StdRng::seed_from_u64(seed ^ u64::from(writer)),
        }
    }

    fn take(&mut self, count: u64) -> RecordId {
        let first = self.next;
        self.next.index += count;
        first
    }

    /// The next append, which is recorded in the history before it is sent.
    fn batch(&mut self, session: Option<u32>) -> (AttemptId, AppendInput) {
        let count = self.rng.random_range(1..6);
        let first = self.take(count);
        let records = (first.index..first.index + count).map(|index| {
            let id = RecordId { index, ..first };
            AppendRecord::new(record::body(self.subject.tag, id)).unwrap()
        });
        let batch = AppendRecordBatch::try_from_iter(records).unwrap();
        let attempt = Attempt {
            first,
            count,
            session,
        };
        let attempt = self.subject.history.lock().unwrap().begin(attempt);
        (attempt, AppendInput::new(batch))
    }

    async fn append(
        &mut self,
        stream: &S2Stream,
        attempt: AttemptId,
        input: AppendInput,
    ) -> Result<AppendAck, AppendError> {
        let result = stream.append(input).await;
        self.subject.settle(attempt, &result);
        result
    }

    /// Works until the server is gone, or the stop.
    async fn work(self, kind: Kind, s2: S2, session: u32, stop: Stop) -> Writer {
        match kind {
            Kind::Plain => self.plain(s2, stop).await,
            Kind::Pipelined => self.pipelined(s2, session, stop).await,
            Kind::Conditional => self.conditional(s2, stop).await,
            Kind::Fenced => self.fenced(s2, stop).await,
        }
    }

    /// Appends, one after the other, until the server is gone.
    async fn plain(mut self, s2: S2, stop: Stop) -> Writer {
        let stream = self.subject.stream(&s2);
        while !stop.is_set() {
            let (attempt, input) = self.batch(None);
            if self.append(&stream, attempt, input).await.is_err() {
                break;
            }
        }
        self
    }

    /// Appends over one session, many ahead of the acks.
    async fn pipelined(mut self, s2: S2, session: u32, stop: Stop) -> Writer {
        let stream = self.subject.stream(&s2);
        let appends = stream.append_session(AppendSessionConfig::new());
        let mut tickets = VecDeque::new();
        while !stop.is_set() {
            let (attempt, input) = self.batch(Some(session));
            let Ok(ticket) = appends.submit(input).await else {
                // Never sent.
                let mut history = self.subject.history.lock().unwrap();
                history.settle(attempt, Outcome::Refused);
                break;
            };
            tickets.push_back((attempt, ticket));
            if tickets.len() >= 30 && !self.collect(&mut tickets, 10).await {
                break;
            }
        }
        while self.collect(&mut tickets, 1).await {}
        self
    }

    /// Waits for the first `count` acks. Returns whether all arrived.
    async fn collect<T>(&self, tickets: &mut VecDeque<(AttemptId, T)>, count: usize) -> bool
    where
        T: Future<Output = Result<AppendAck, AppendSessionError>>,
    {
        for _ in 0..count {
            let Some((attempt, ticket)) = tickets.pop_front() else {
                return false;
            };
            let outcome = match ticket.await {
                Ok(ack) => Outcome::Acked(ack.start.seq_num),
                Err(_) => Outcome::Unknown,
            };
            self.subject
                .history
                .lock()
                .unwrap()
                .settle(attempt, outcome);
        }
        true
    }

    /// Appends at the tail that it assumes; other writers append, too.
    async fn conditional(mut self, s2: S2, stop: Stop) -> Writer {
        let stream = self.subject.stream(&s2);
        let Ok(tail) = stream.check_tail().await else {
            return self;
        };
        let mut expected = tail.seq_num;
        while !stop.is_set() {
            let (attempt, input) = self.batch(None);
            let input = input.with_match_seq_num(expected);
            expected = match self.append(&stream, attempt, input).await {
                Ok(ack) => {
                    assert_eq!(ack.start.seq_num, expected, "elsewhere than demanded");
                    ack.end.seq_num
                }
                Err(AppendError::ConditionFailed(AppendConditionFailed::SeqNumMismatch(next))) => {
                    assert_ne!(next, expected, "refused although it matches");
                    next
                }
                Err(_) => return self,
            };
        }
        self
    }

    /// Fences the stream, appends for a while, and fences it again when another writer has done so.
    async fn fenced(mut self, s2: S2, stop: Stop) -> Writer {
        let stream = self.subject.stream(&s2);
        while !stop.is_set() {
            let first = self.take(1);
            let token = record::fencing_token(self.subject.tag, first);
            let token: FencingToken = token.parse().unwrap();
            let fence: AppendRecord = CommandRecord::fence(token.clone()).into();
            let batch = AppendRecordBatch::try_from_iter([fence]).unwrap();
            let attempt = self.subject.history.lock().unwrap().begin(Attempt {
                first,
                count: 1,
                session: None,
            });
            let input = AppendInput::new(batch);
            if self.append(&stream, attempt, input).await.is_err() {
                return self;
            }
            for _ in 0..self.rng.random_range(5..40) {
                let (attempt, input) = self.batch(None);
                let input = input.with_fencing_token(token.clone());
                match self.append(&stream, attempt, input).await {
                    Ok(_) => {}
                    Err(AppendError::ConditionFailed(
                        AppendConditionFailed::FencingTokenMismatch(actual),
                    )) => {
                        assert_ne!(actual, token, "refused although it matches");
                        break;
                    }
                    Err(_) => return self,
                }
            }
        }
        self
    }
}

/// Follows from `from` on until the server is gone.
pub async fn follow(subject: Subject, s2: S2, from: u64) {
    let stream = subject.stream(&s2);
    let start = ReadStart::new()
        .with_from(ReadFrom::SeqNum(from))
        .with_clamp_to_tail(true);
    let input = ReadInput::new().with_start(start);
    let opened = stream.read_session(input, ReadSessionConfig::new()).await;
    let Ok(mut session) = opened else {
        return;
    };
    let follower = subject.history.lock().unwrap().follower();
    while let Some(Ok(batch)) = session.next().await {
        let mut history = subject.history.lock().unwrap();
        for record in &batch.records {
            history.saw(follower, record::seen(subject.tag, record));
        }
    }
}

/// The streams of some rounds, and their writers.
pub struct Streams {
    mixed: Subject,
    conditional: Subject,
    fenced: Subject,
    writers: Vec<(Kind, Writer)>,
}

/// How a writer appends.
#[derive(Clone, Copy)]
pub enum Kind {
    Plain,
    Pipelined,
    Conditional,
    Fenced,
}

impl Streams {
    pub fn new(generation: u64, seed: u64) -> Streams {
        let tag = u32::try_from(generation).unwrap() * 3;
        let subject = |name: &str, at| Subject::new(format!("{name}-{generation}"), tag + at);
        let (mixed, conditional, fenced) = (
            subject("mixed", 0),
            subject("conditional", 1),
            subject("fenced", 2),
        );
        let writers = [
            (Kind::Plain, &mixed, 0),
            (Kind::Plain, &mixed, 1),
            (Kind::Pipelined, &mixed, 2),
            (Kind::Pipelined, &mixed, 3),
            (Kind::Conditional, &conditional, 0),
            (Kind::Conditional, &conditional, 1),
            (Kind::Fenced, &fenced, 0),
            (Kind::Fenced, &fenced, 1),
        ];
        let writers = writers
            .into_iter()
            .map(|(kind, subject, writer)| (kind, Writer::new(subject, writer, seed)))
            .collect();
        Streams {
            writers,
            mixed,
            conditional,
            fenced,
        }
    }

    pub fn subjects(&self) -> [&Subject; 3] {
        [&self.mixed, &self.conditional, &self.fenced]
    }

    /// Starts all writers, each with a client of its own.
    pub fn start(
        &mut self,
        round: u64,
        stop: &Stop,
        mut client: impl FnMut() -> S2,
    ) -> Vec<(Kind, tokio::task::JoinHandle<Writer>)> {
        let writers = self.writers.drain(..).enumerate();
        writers
            .map(|(i, (kind, writer))| {
                let session = u32::try_from(round * 100 + i as u64).unwrap();
                let work = writer.work(kind, client(), session, stop.clone());
                (kind, tokio::spawn(work))
            })
            .collect()
    }

    /// Takes the writers back when they have ended.
    pub async fn collect(&mut self, writers: Vec<(Kind, tokio::task::JoinHandle<Writer>)>) {
        for (kind, writer) in writers {
            self.writers.push((kind, writer.await.unwrap()));
        }
    }

    /// Records that were acknowledged.
    pub fn acked(&self) -> u64 {
        let acked = |subject: &Subject| subject.history.lock().unwrap().acked_records();
        self.subjects().into_iter().map(acked).sum()
    }
}
