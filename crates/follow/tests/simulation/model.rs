//! A stream in memory, as a server with the S2 API has it, and all that can go wrong with one.
//!
//! What it keeps to: sequence numbers; appends on a condition; trims that take effect late, and never
//! beyond the command's own place; reads that begin at the head if they were to begin below it, and
//! say nothing of it; a fork leaves a gap in the numbers, which trim points leap over, and trims to
//! numbers within it are refused; an import leaves a gap, too, and cuts nothing off. Forks without an append
//! between them leave one gap, in which each is listed. Eight gaps and sixteen lineages are remembered: of
//! older gaps nothing is listed, and no trim leaps over them.
//!
//! All records that were ever appended are kept, whatever was trimmed: what a fold has to be is told by
//! [`Stream::history`].

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use esker_follow::endpoint::{AppendFailed, EndpointError, Fork, Gap, Identity, Piece, Sharing};
use esker_follow::{Endpoint, SequencedRecord};
use futures::stream::BoxStream;
use parking_lot::Mutex;
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use s2_sdk::types::{AppendRecord, Header};
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;
use xxhash_rust::xxh3::xxh3_64;

/// Sequence numbers that a fork passes over.
pub const GAP: u64 = 1 << 40;

/// Most gaps that are remembered.
pub const MAX_GAPS: usize = 8;
/// Most lineages that are remembered.
pub const MAX_LINEAGES: usize = 16;

/// What goes wrong, in chances between 0 and 1.
#[derive(Clone, Debug)]
pub struct Faults {
    /// An append lands, and its answer is lost.
    pub lost_answer: f64,
    /// An append is lost.
    pub lost_request: f64,
    /// An append whose answer was lost lands only afterwards.
    pub late: f64,
    /// A batch of a session comes again.
    pub repeated: f64,
    /// A session breaks off, at each batch.
    pub broken_session: f64,
    /// A read breaks off, at each piece.
    pub broken_read: f64,
    /// The server goes away for a while, at each question.
    pub outage: f64,
    /// Longest answer time, in milliseconds.
    pub delay: u64,
    /// Longest time until a trim takes effect, in milliseconds.
    pub trim_delay: u64,
    /// Most records of a piece.
    pub piece: usize,
}

impl Faults {
    /// A server that does nothing wrong.
    pub fn none() -> Faults {
        Faults {
            lost_answer: 0.0,
            lost_request: 0.0,
            late: 0.0,
            repeated: 0.0,
            broken_session: 0.0,
            broken_read: 0.0,
            outage: 0.0,
            delay: 0,
            trim_delay: 0,
            piece: 1000,
        }
    }
}

/// Something that is done to a stream at a certain moment.
pub type Act = Box<dyn FnOnce(&Stream) + Send>;

/// What becomes of the next append, by a script.
pub struct Scripted {
    /// Before it.
    pub before: Act,
    /// Whether it is tried at all.
    pub lands: bool,
    /// Whether its answer comes.
    pub answers: bool,
    /// After it, and before its answer.
    pub after: Act,
}

impl Default for Scripted {
    fn default() -> Scripted {
        Scripted {
            before: Box::new(|_| {}),
            lands: true,
            answers: true,
            after: Box::new(|_| {}),
        }
    }
}

struct Trim {
    position: u64,
    to: u64,
    due: Instant,
}

/// Numbers that no record has.
struct PassedOver {
    from: u64,
    end: u64,
    /// The lineages that the forks cut off which left it, oldest first; none if an import left it.
    parents: Vec<Option<String>>,
}

struct Inner {
    rng: StdRng,
    faults: Faults,
    records: Vec<SequencedRecord>,
    /// Where batches begin, in order.
    batches: Vec<u64>,
    tail: u64,
    trims: Vec<Trim>,
    /// All gaps, oldest first.
    gaps: Vec<PassedOver>,
    /// How many forks there were.
    forks: usize,
    identity: Identity,
    /// Histories that were left, up to their tails.
    left: Vec<Vec<SequencedRecord>>,
    /// How often it was created again: readers of another one break off.
    incarnation: u64,
    /// Whether there is such a stream.
    is_there: bool,
    down_until: Instant,
    script: VecDeque<Scripted>,
    appends: u64,
    reads: u64,
    /// Done once, when the next read has been sent and has not arrived.
    before_read: Option<Act>,
}

/// A stream; clones are handles to the same one.
#[derive(Clone)]
pub struct Stream {
    inner: Arc<Mutex<Inner>>,
    changed: Arc<watch::Sender<u64>>,
}

/// A record's position, and what it is.
pub type Seen = (u64, u64);

/// What a fold has to have seen of a record; nothing of commands and snapshots.
pub fn seen(record: &SequencedRecord) -> Option<Seen> {
    let of_snapshot = |h: &Header| h.name.starts_with(b"esker-snapshot");
    let is_data = !record.is_command_record() && !record.headers.iter().any(of_snapshot);
    is_data.then(|| (record.seq_num, xxh3_64(&record.body)))
}

impl Stream {
    /// An empty one of a server that does nothing wrong.
    pub fn new(seed: u64) -> Stream {
        Stream::with_faults(seed, Faults::none())
    }

    pub fn with_faults(seed: u64, faults: Faults) -> Stream {
        let identity = Identity {
            created_at: Some("2026-01-01T00:00:00Z".to_owned()),
            lineage: Some("1".to_owned()),
            forks: Vec::new(),
            gaps: Vec::new(),
            retention: None,
        };
        Stream {
            inner: Arc::new(Mutex::new(Inner {
                rng: StdRng::seed_from_u64(seed),
                faults,
                records: Vec::new(),
                batches: Vec::new(),
                tail: 0,
                trims: Vec::new(),
                gaps: Vec::new(),
                forks: 0,
                identity,
                left: Vec::new(),
                incarnation: 0,
                is_there: true,
                down_until: Instant::now(),
                script: VecDeque::new(),
                appends: 0,
                reads: 0,
                before_read: None,
            })),
            changed: Arc::default(),
        }
    }

    pub fn set_faults(&self, faults: Faults) {
        let mut inner = self.inner.lock();
        inner.faults = faults;
        inner.down_until = Instant::now();
    }

    /// Changes what it says of itself.
    pub fn identify(&self, change: impl FnOnce(&mut Identity)) {
        change(&mut self.inner.lock().identity);
    }

    /// The next appends go like this.
    pub fn script(&self, scripted: impl IntoIterator<Item = Scripted>) {
        self.inner.lock().script.extend(scripted);
    }

    /// Appends without any faults.
    pub fn land(&self, batch: &[AppendRecord], at: Option<u64>) -> Result<u64, AppendFailed> {
        let landed = self.inner.lock().land(batch, at);
        self.wake();
        landed
    }

    /// Appends records of data.
    pub fn data<B: Into<Bytes>>(&self, bodies: impl IntoIterator<Item = B>) -> u64 {
        let records = bodies.into_iter().map(|b| AppendRecord::new(b).unwrap());
        self.land(&records.collect::<Vec<_>>(), None).unwrap()
    }

    pub fn now_tail(&self) -> u64 {
        self.inner.lock().tail
    }

    pub fn now_head(&self) -> u64 {
        self.inner.lock().head()
    }

    pub fn now_identity(&self) -> Identity {
        self.inner.lock().identity.clone()
    }

    /// How often something was appended or tried to be, other than by [`Stream::land`].
    pub fn appends(&self) -> u64 {
        self.inner.lock().appends
    }

    /// How often a read was begun.
    pub fn reads(&self) -> u64 {
        self.inner.lock().reads
    }

    /// All records that are not trimmed.
    pub fn records(&self) -> Vec<SequencedRecord> {
        let inner = self.inner.lock();
        let head = inner.head();
        let left = inner.records.iter().filter(|r| r.seq_num >= head);
        left.cloned().collect()
    }

    /// What a fold of all records before a cursor has seen.
    pub fn history(&self, cursor: u64) -> Vec<Seen> {
        history(&self.inner.lock().records, cursor)
    }

    /// The same of histories that were left.
    pub fn left(&self, cursor: u64) -> Vec<Vec<Seen>> {
        let inner = self.inner.lock();
        inner.left.iter().map(|of| history(of, cursor)).collect()
    }

    /// Where batches begin that are not trimmed.
    pub fn batches(&self) -> Vec<u64> {
        self.inner.lock().batches.clone()
    }

    /// Loses what is at or behind a position; numbers go on further up.
    pub fn fork(&self, at: u64) {
        let mut inner = self.inner.lock();
        let old = inner.records.clone();
        inner.left.push(old);
        inner.records.retain(|r| r.seq_num < at);
        inner.batches.retain(|first| *first < at);
        inner.trims.retain(|trim| trim.position < at);
        let is_empty = inner.is_empty();
        // A fork further back undoes the gaps behind it; what they gave out stays given out. One right
        // behind a gap of forks makes that larger.
        let undone = inner.gaps.iter().position(|gap| gap.from >= at);
        let kept = undone.unwrap_or(inner.gaps.len());
        let mut from = at;
        let mut parents = Vec::new();
        let is_right_behind = |gap: &PassedOver| gap.end == at && !gap.parents.is_empty();
        let kept = match kept.checked_sub(1) {
            Some(last) if is_right_behind(&inner.gaps[last]) => {
                from = inner.gaps[last].from;
                last
            }
            _ => kept,
        };
        for gap in inner.gaps.drain(kept..) {
            parents.extend(gap.parents);
        }
        parents.push(inner.identity.lineage.take());
        let end = from + GAP * parents.len() as u64;
        inner.tail = end;
        inner.gaps.push(PassedOver { from, end, parents });
        inner.forks += 1;
        inner.identity.lineage = Some((inner.forks + 1).to_string());
        inner.list_gaps();
        if is_empty {
            let due = Instant::now();
            let (position, to) = (0, end);
            inner.trims.push(Trim { position, to, due });
        }
        drop(inner);
        self.wake();
    }

    /// Passes numbers over, as an import does.
    pub fn pass_over(&self, numbers: u64) {
        let mut inner = self.inner.lock();
        let is_empty = inner.is_empty();
        let (from, end) = (inner.tail, inner.tail + numbers);
        inner.tail = end;
        inner.gaps.push(PassedOver {
            from,
            end,
            parents: Vec::new(),
        });
        inner.list_gaps();
        if is_empty {
            let due = Instant::now();
            let (position, to) = (0, end);
            inner.trims.push(Trim { position, to, due });
        }
        drop(inner);
        self.wake();
    }

    /// How many gaps are not remembered.
    pub fn unlisted(&self) -> usize {
        self.inner.lock().gaps.len().saturating_sub(MAX_GAPS)
    }

    /// Does this when the next read has been sent and has not arrived.
    pub fn before_read(&self, act: impl FnOnce(&Stream) + Send + 'static) {
        self.inner.lock().before_read = Some(Box::new(act));
    }

    /// Deletes it. Until it is created again, nothing is listed of it.
    pub fn delete(&self) {
        let mut inner = self.inner.lock();
        inner.is_there = false;
        inner.incarnation += 1;
        drop(inner);
        self.wake();
    }

    /// Deletes it, unless it is, and makes one of the same name.
    pub fn recreate(&self) {
        let mut inner = self.inner.lock();
        inner.is_there = true;
        let old = std::mem::take(&mut inner.records);
        inner.left.push(old);
        inner.batches.clear();
        inner.trims.clear();
        inner.gaps.clear();
        inner.tail = 0;
        inner.incarnation += 1;
        let incarnation = inner.incarnation;
        inner.identity = Identity {
            created_at: Some(format!("2026-01-01T00:00:{incarnation:02}Z")),
            forks: Vec::new(),
            gaps: Vec::new(),
            lineage: Some(format!("recreated-{incarnation}")),
            retention: None,
        };
        drop(inner);
        self.wake();
    }

    fn wake(&self) {
        self.changed.send_modify(|changes| *changes += 1);
    }

    /// Takes its time, and may not answer.
    async fn answer(&self) -> Result<(), EndpointError> {
        let (pause, is_down) = {
            let mut inner = self.inner.lock();
            let outage = inner.faults.outage;
            if inner.chance(outage) {
                let lasts = Duration::from_millis(inner.rng.random_range(10..5000));
                inner.down_until = Instant::now() + lasts;
            }
            (inner.pause(), inner.down_until > Instant::now())
        };
        wait(pause).await;
        match is_down {
            true => Err(EndpointError::Unavailable("nobody answers".to_owned())),
            false => Ok(()),
        }
    }
}

/// The answer where there is no such stream.
fn not_there() -> EndpointError {
    EndpointError::Refused("there is no such stream".to_owned())
}

async fn wait(pause: Duration) {
    if !pause.is_zero() {
        tokio::time::sleep(pause).await;
    }
}

/// Where a trim command trims to.
fn trims_to(record: &AppendRecord) -> Option<u64> {
    match record.headers() {
        [header] if header.name.is_empty() && &header.value[..] == b"trim" => {
            Some(u64::from_be_bytes(record.body().try_into().unwrap()))
        }
        _ => None,
    }
}

fn history(records: &[SequencedRecord], cursor: u64) -> Vec<Seen> {
    let before = records.iter().filter(|r| r.seq_num < cursor);
    before.filter_map(seen).collect()
}

impl Inner {
    fn chance(&mut self, chance: f64) -> bool {
        chance > 0.0 && self.rng.random_bool(chance)
    }

    fn pause(&mut self) -> Duration {
        match self.faults.delay {
            0 => Duration::ZERO,
            most => Duration::from_millis(self.rng.random_range(0..=most)),
        }
    }

    /// Whether readers see no record.
    fn is_empty(&self) -> bool {
        let last = self.records.last();
        last.is_none_or(|last| last.seq_num < self.head())
    }

    fn generation(&self) -> (u64, usize) {
        (self.incarnation, self.forks)
    }

    /// The gaps that are remembered.
    fn remembered(&self) -> &[PassedOver] {
        &self.gaps[self.gaps.len().saturating_sub(MAX_GAPS)..]
    }

    /// Lists the gaps as a server does, which remembers the last ones only.
    fn list_gaps(&mut self) {
        // A fork further back has undone gaps, and not the forks that left them.
        let of_forks =
            |gaps: &[PassedOver]| gaps.iter().map(|gap| gap.parents.len()).sum::<usize>();
        let all = of_forks(&self.gaps);
        let mut before = all - of_forks(self.remembered());
        let (mut forks, mut gaps) = (Vec::new(), Vec::new());
        for gap in self.remembered() {
            if gap.parents.is_empty() {
                let (seq_num, resumes_at) = (gap.from, gap.end);
                gaps.push(Gap {
                    seq_num,
                    resumes_at,
                });
            }
            let fork = |parent, parent_resumed_at| Fork {
                parent,
                seq_num: gap.from,
                resumes_at: Some(gap.end),
                parent_resumed_at,
            };
            let forgotten = all.saturating_sub(MAX_LINEAGES).saturating_sub(before);
            if forgotten > 0 && !gap.parents.is_empty() {
                forks.push(fork(None, None));
            }
            for (index, parent) in gap.parents.iter().enumerate().skip(forgotten) {
                let began_at = (index > 0).then_some(gap.from + GAP * index as u64);
                forks.push(fork(parent.clone(), began_at));
            }
            before += gap.parents.len();
        }
        (self.identity.forks, self.identity.gaps) = (forks, gaps);
    }

    fn head(&self) -> u64 {
        let now = Instant::now();
        let due = self.trims.iter().filter(|trim| trim.due <= now);
        let head = due.map(|trim| trim.to).max().unwrap_or(0);
        // A trim point in a gap is one at its end.
        let gap = |head: u64| {
            let mut gaps = self.remembered().iter();
            let gap = gaps.find(|gap| (gap.from..gap.end).contains(&head))?;
            // Not where the numbers simply go on, if nothing was trimmed up to there.
            (head > 0).then_some(gap.end)
        };
        let mut head = head;
        while let Some(end) = gap(head) {
            head = end;
        }
        head
    }

    /// What a reader gets next, and how long that takes; or that it breaks off, and whether it says so.
    fn piece(&mut self, next: u64, incarnation: u64) -> Result<(Piece, Duration), bool> {
        let broken = self.faults.broken_read;
        if self.incarnation != incarnation || self.chance(broken) {
            return Err(self.rng.random_bool(0.7));
        }
        let from = next.max(self.head());
        let most = self.faults.piece;
        let most = self.rng.random_range(1..=most);
        let first = self.records.partition_point(|r| r.seq_num < from);
        let records: Vec<_> = self.records[first..].iter().take(most).cloned().collect();
        let is_end = first + records.len() == self.records.len();
        let tail = is_end.then_some(self.tail);
        Ok((Piece { records, tail }, self.pause()))
    }

    fn land(&mut self, batch: &[AppendRecord], at: Option<u64>) -> Result<u64, AppendFailed> {
        if !self.is_there {
            return Err(AppendFailed::Refused(not_there().to_string()));
        }
        let first = self.tail;
        if at.is_some_and(|at| at != first) {
            return Err(AppendFailed::Elsewhere { tail: first });
        }
        let cut_off = batch.iter().filter_map(trims_to).find(|to| {
            let mut forks = self
                .remembered()
                .iter()
                .filter(|gap| !gap.parents.is_empty());
            forks.any(|gap| gap.from < *to && *to < gap.end)
        });
        if let Some(to) = cut_off {
            return Err(AppendFailed::Refused(format!("{to} was cut off")));
        }
        self.batches.push(first);
        for record in batch {
            let position = self.tail;
            self.tail += 1;
            let headers = record.headers().to_vec();
            if let Some(to) = trims_to(record) {
                let late = match self.faults.trim_delay {
                    0 => 0,
                    most => self.rng.random_range(0..=most),
                };
                self.trims.push(Trim {
                    position,
                    to: to.min(position + 1),
                    due: Instant::now() + Duration::from_millis(late),
                });
            }
            let body = Bytes::copy_from_slice(record.body());
            let record = SequencedRecord::from_parts(position, position, headers, body);
            self.records.push(record);
        }
        Ok(first)
    }
}

#[async_trait]
impl Endpoint for Stream {
    fn shown(&self) -> String {
        "s2://model/stream".to_owned()
    }

    async fn identity(&self) -> Result<Identity, EndpointError> {
        self.answer().await?;
        let inner = self.inner.lock();
        Ok(match inner.is_there {
            true => inner.identity.clone(),
            false => Identity::default(),
        })
    }

    async fn tail(&self) -> Result<u64, EndpointError> {
        self.answer().await?;
        let inner = self.inner.lock();
        match inner.is_there {
            true => Ok(inner.tail),
            false => Err(not_there()),
        }
    }

    async fn append(&self, batch: Vec<AppendRecord>, at: Option<u64>) -> Result<u64, AppendFailed> {
        let unknown = |why: &str| Err(AppendFailed::Unknown(why.to_owned()));
        let scripted = {
            let mut inner = self.inner.lock();
            inner.appends += 1;
            inner.script.pop_front()
        };
        if let Some(scripted) = scripted {
            (scripted.before)(self);
            let landed = match scripted.lands {
                true => self.land(&batch, at),
                false => unknown("the request was lost"),
            };
            (scripted.after)(self);
            return match scripted.answers {
                true => landed,
                false => unknown("the answer was lost"),
            };
        }
        // A history is cut off by a restore: what was on its way to the server before never gets there.
        let generation = self.inner.lock().generation();
        if self.answer().await.is_err() {
            return unknown("nobody answers");
        }
        let (lost_answer, lost_request, late, pause) = {
            let mut inner = self.inner.lock();
            let faults = inner.faults.clone();
            (
                inner.chance(faults.lost_answer),
                inner.chance(faults.lost_request),
                inner.chance(faults.late),
                inner.pause(),
            )
        };
        if lost_request {
            return unknown("the request was lost");
        }
        if late {
            let stream = self.clone();
            tokio::spawn(async move {
                wait(pause * 4).await;
                if stream.inner.lock().generation() == generation {
                    let _ = stream.land(&batch, at);
                }
            });
            return unknown("the answer was lost");
        }
        let landed = {
            let mut inner = self.inner.lock();
            if inner.generation() != generation {
                return unknown("the server died");
            }
            inner.land(&batch, at)
        };
        self.wake();
        wait(pause).await;
        match lost_answer {
            true => unknown("the answer was lost"),
            false => landed,
        }
    }

    async fn append_all(
        &self,
        mut batches: mpsc::Receiver<Vec<AppendRecord>>,
        sharing: &Sharing,
    ) -> Result<(), AppendFailed> {
        let unknown = |why: &str| Err(AppendFailed::Unknown(why.to_owned()));
        let incarnation = self.inner.lock().incarnation;
        let mut unacknowledged = VecDeque::new();
        while let Some(batch) = batches.recv().await {
            if self.answer().await.is_err() {
                return unknown("nobody answers");
            }
            let (is_broken, again, is_gone) = {
                let mut inner = self.inner.lock();
                let faults = inner.faults.clone();
                let again = match inner.chance(faults.repeated) {
                    true => inner.rng.random_range(1..=3),
                    false => 0,
                };
                let is_gone = inner.incarnation != incarnation;
                (inner.chance(faults.broken_session), again, is_gone)
            };
            if is_broken || is_gone {
                return unknown("the session broke off");
            }
            // Fragments of any size are restored, in any order of sizes.
            sharing.set(self.inner.lock().chance(0.5));
            let _ = self.land(&batch, None);
            unacknowledged.push_back(batch);
            // The answers to the last few were lost: all of them come again.
            let keep: usize = again.max(3);
            while unacknowledged.len() > keep {
                unacknowledged.pop_front();
            }
            for batch in unacknowledged.iter().rev().take(again).rev() {
                let _ = self.land(batch, None);
            }
        }
        Ok(())
    }

    fn read(&self, from: u64) -> BoxStream<'static, Result<Piece, EndpointError>> {
        let stream = self.clone();
        stream.inner.lock().reads += 1;
        Box::pin(async_stream::stream! {
            let mut changed = stream.changed.subscribe();
            let act = stream.inner.lock().before_read.take();
            if let Some(act) = act {
                act(&stream);
            }
            if let Err(error) = stream.answer().await {
                yield Err(error);
                return;
            }
            let (incarnation, tail, is_there) = {
                let inner = stream.inner.lock();
                (inner.incarnation, inner.tail, inner.is_there)
            };
            if !is_there {
                yield Err(not_there());
                return;
            }
            if from > tail {
                yield Err(EndpointError::BeyondTail { tail });
                return;
            }
            let mut next = from;
            let mut told = None;
            loop {
                changed.mark_unchanged();
                let piece = stream.inner.lock().piece(next, incarnation);
                let (piece, pause) = match piece {
                    Ok(piece) => piece,
                    Err(true) => {
                        yield Err(EndpointError::Unavailable("the read broke off".to_owned()));
                        return;
                    }
                    Err(false) => return,
                };
                if !piece.records.is_empty() || (piece.tail.is_some() && piece.tail != told) {
                    if let Some(last) = piece.records.last() {
                        next = last.seq_num + 1;
                    }
                    told = piece.tail;
                    yield Ok(piece);
                    wait(pause).await;
                } else if changed.changed().await.is_err() {
                    return;
                }
            }
        })
    }
}
