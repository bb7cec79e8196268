//! Finds a snapshot within the stream, and restores it.
//!
//! A reader begins at the head and continues until it has read a whole snapshot that reaches back to the
//! head. Before that it reads data that the snapshot covers, torn snapshots and the trim command. What it
//! reads after the snapshot's cursor is kept for the fold, up to [`KEPT`] bytes; beyond that, it is read
//! again.
//!
//! Fragments are restored while they are read. If several snapshots are interleaved, one is restored that
//! way; if another one is whole first, that one is read again.

use futures::StreamExt as _;
use s2_sdk::types::SequencedRecord;
use uuid::Uuid;

use crate::backoff::Backoff;
use crate::endpoint::{Endpoint, EndpointError, Identity};
use crate::error::Error;
use crate::fold::Fold;
use crate::in_stream::others::Others;
use crate::options::Reading;
use crate::snapshot::assembly::{Assembly, Fed, Whole};
use crate::snapshot::pipe::{Restoring, Sum};
use crate::snapshot::record::{self, Seen};
use crate::snapshot::{Kind, Meta, SnapshotInfo, Totals};
use crate::unlisted_gap;

/// Most bytes of records between fragments that are kept for the fold.
pub const KEPT: usize = 8 << 20;
/// How often the head may move past a reader before it gives up: each time a snapshotter has trimmed
/// meanwhile, so there is a newer snapshot.
const MAX_MOVES: u32 = 20;

/// A state, and where to continue.
#[derive(Debug)]
pub struct Found<F> {
    /// As of the snapshot's cursor.
    pub fold: F,
    /// The snapshot.
    pub info: SnapshotInfo,
    /// Records from the cursor on that were read on the way.
    pub met: Vec<SequencedRecord>,
    /// The position after them.
    pub resume: u64,
    /// Snapshots of other folds that were read.
    pub others: Others,
}

/// What a stream begins with.
#[derive(Debug)]
pub enum Beginning<F> {
    /// Its first record, or nothing: a fold begins empty, at [`Identity::begins_at`].
    AtZero,
    /// A snapshot.
    With(Box<Found<F>>),
}

enum Scanned<F> {
    Beginning(Beginning<F>),
    /// Records were removed while they were being read.
    Moved,
}

/// Finds the first usable snapshot from the head on. If records are removed or a history is cut off while
/// they are read, the identity is requested again.
///
/// # Errors
///
/// [`Error::HistoryGone`] if there is none; [`Error::Unusable`].
pub async fn find<F: Fold>(
    endpoint: &dyn Endpoint,
    initial: &F,
    identity: &mut Identity,
    reading: &Reading,
) -> Result<Beginning<F>, Error> {
    let mut backoff = Backoff::new(reading.restore_timeout);
    let mut moves = 0;
    loop {
        let mut scan = Scan {
            endpoint,
            initial,
            identity,
            reading,
            tried: Vec::new(),
            short: None,
        };
        match scan.run().await {
            Ok(Scanned::Beginning(beginning)) => return Ok(beginning),
            Ok(Scanned::Moved) if moves < MAX_MOVES => {
                moves += 1;
                backoff.reset();
                *identity = ask(endpoint, &mut backoff).await?;
            }
            Ok(Scanned::Moved) => {
                return Err(Error::Endpoint {
                    stream: endpoint.shown(),
                    why: EndpointError::Unavailable(format!(
                        "its head moved away {MAX_MOVES} times while it was being read"
                    )),
                });
            }
            Err(Stopped::Error(error @ Error::HistoryGone { .. })) => {
                // A history may have been cut off since the identity was requested, and a snapshot of the
                // new one was not recognized.
                let now = ask(endpoint, &mut backoff).await?;
                if now == *identity || moves == MAX_MOVES {
                    return Err(error);
                }
                moves += 1;
                *identity = now;
            }
            Err(Stopped::Error(error)) => return Err(error),
            // The stream was created again, or a history was cut off, while a part was read again.
            Err(Stopped::Endpoint(EndpointError::BeyondTail { .. })) if moves < MAX_MOVES => {
                moves += 1;
                *identity = ask(endpoint, &mut backoff).await?;
            }
            Err(Stopped::Endpoint(why)) => backoff.wait(endpoint, why).await?,
        }
    }
}

async fn ask(endpoint: &dyn Endpoint, backoff: &mut Backoff) -> Result<Identity, Error> {
    loop {
        match endpoint.identity().await {
            Ok(identity) => return Ok(identity),
            Err(why) => backoff.wait(endpoint, why).await?,
        }
    }
}

enum Stopped {
    Error(Error),
    Endpoint(EndpointError),
}

impl From<EndpointError> for Stopped {
    fn from(error: EndpointError) -> Stopped {
        Stopped::Endpoint(error)
    }
}

struct Scan<'a, F> {
    endpoint: &'a dyn Endpoint,
    initial: &'a F,
    identity: &'a Identity,
    reading: &'a Reading,
    /// Snapshots that are not usable, and why.
    tried: Vec<String>,
    /// The position and the cursor of the last snapshot of the fold that does not reach back to the head.
    short: Option<(u64, u64)>,
}

/// Records that were read, if they are not too many.
#[derive(Default)]
struct Met {
    records: Vec<SequencedRecord>,
    bytes: usize,
    overflowed: bool,
}

impl Met {
    fn push(&mut self, record: &SequencedRecord) {
        if self.overflowed {
            return;
        }
        let headers = record.headers.iter();
        let headers: usize = headers.map(|h| h.name.len() + h.value.len() + 64).sum();
        self.bytes += record.body.len() + headers + 64;
        if self.bytes > KEPT {
            *self = Met {
                overflowed: true,
                ..Met::default()
            };
            return;
        }
        self.records.push(record.clone());
    }

    /// Those from a cursor on, and the position after them.
    fn from(self, cursor: u64, position: u64) -> (Vec<SequencedRecord>, u64) {
        if self.overflowed {
            return (Vec::new(), cursor);
        }
        let mut records = self.records;
        records.retain(|record| record.seq_num >= cursor);
        (records, position + 1)
    }
}

impl<F: Fold> Scan<'_, F> {
    async fn run(&mut self) -> Result<Scanned<F>, Stopped> {
        let mut pieces = self.endpoint.read(0);
        let mut assembly = Assembly::default();
        let mut restoring: Option<(Uuid, Restoring<F>)> = None;
        let mut met = Met::default();
        let mut others = Others::default();
        let mut head = None;
        let mut next = 0;
        loop {
            let Some(piece) = pieces.next().await else {
                let why = EndpointError::Unavailable("the read ended".to_owned());
                return Err(why.into());
            };
            let piece = piece?;
            for record in piece.records {
                let position = record.seq_num;
                let head = *head.get_or_insert(position);
                if head == self.identity.begins_at() || head == 0 {
                    return Ok(Scanned::Beginning(Beginning::AtZero));
                }
                if position != next && next != 0 && !self.continues(next, position).await? {
                    return Ok(Scanned::Moved);
                }
                next = position + 1;
                let seen = record::see(&record);
                others.feed(self.initial.name(), self.identity, &record, &seen);
                match &seen {
                    Seen::Data => {
                        met.push(&record);
                        continue;
                    }
                    Seen::Single { meta, totals, .. } => {
                        let restored = self.single(&record, head, meta, totals).await?;
                        if let Some(fold) = restored {
                            let info = info(Kind::Single, position, meta, totals);
                            let found = found(fold, info, met, others, position);
                            return Ok(Scanned::Beginning(found));
                        }
                    }
                    _ => {}
                }
                match assembly.feed(position, &seen, &record.body) {
                    Fed::Began(id) => {
                        // It may begin again, after the assembly has dropped it for others.
                        restoring = restoring.filter(|(of, _)| *of != id);
                        let wanted = match &seen {
                            Seen::Fragment {
                                meta: Some(meta), ..
                            } if self.reaches(meta, head) => {
                                self.usable(position, meta).is_ok().then_some(meta)
                            }
                            _ => None,
                        };
                        if let (None, Some(meta)) = (&restoring, wanted) {
                            // The assembly reports a snapshot as whole if its checksum is right.
                            let fold = self.initial.clone();
                            let mut one = Restoring::summed_elsewhere(fold, meta);
                            one.push(record.body.clone()).await;
                            restoring = Some((id, one));
                        }
                    }
                    Fed::Next(id) => {
                        if let Some((of, one)) = &mut restoring
                            && *of == id
                        {
                            one.push(record.body.clone()).await;
                        }
                    }
                    Fed::Torn(id, why) => {
                        self.note(position, &why);
                        restoring = restoring.filter(|(of, _)| *of != id);
                    }
                    Fed::Whole(whole) => {
                        let mine = restoring.take_if(|(of, _)| *of == whole.id);
                        match self.framed(head, &whole, mine.map(|(_, one)| one)).await? {
                            Framed::Restored(fold) => {
                                let info =
                                    info(Kind::Framed, whole.first, &whole.meta, &whole.totals);
                                let found = found(*fold, info, met, others, position);
                                return Ok(Scanned::Beginning(found));
                            }
                            Framed::Not => {}
                            Framed::Moved => return Ok(Scanned::Moved),
                        }
                    }
                    Fed::Ignored(why) => self.note(position, &why),
                    Fed::Nothing => {}
                }
            }
            match (piece.tail, head) {
                (Some(tail), None) if tail == 0 || tail == self.identity.begins_at() => {
                    return Ok(Scanned::Beginning(Beginning::AtZero));
                }
                (Some(tail), None) => return Err(self.gone(tail)),
                (Some(tail), Some(head)) => {
                    return match self.continues(next, tail).await? {
                        true => Err(self.gone(head)),
                        // Everything was trimmed while it was being read, or a history was cut off.
                        false => Ok(Scanned::Moved),
                    };
                }
                (None, _) => {}
            }
        }
    }

    /// Whether what a snapshot covers reaches up to the head. If numbers jump at its cursor, the head may be
    /// where they continue: a trim to the cursor makes it so.
    fn reaches(&self, meta: &Meta, head: u64) -> bool {
        self.identity.behind_gap(meta.cursor) >= head
    }

    /// Notes a snapshot that does not reach up to the head. Where there is a newer one, that is nothing
    /// unusual.
    fn falls_short(&mut self, position: u64, meta: &Meta) {
        if meta.fold == self.initial.name() {
            self.short = Some((position, meta.cursor));
        }
    }

    /// Whether nothing is missing where `found` comes next.
    async fn continues(&self, next: u64, found: u64) -> Result<bool, EndpointError> {
        let (endpoint, identity) = (self.endpoint, self.identity);
        Ok(next == found || unlisted_gap::continues(endpoint, identity, next, found).await?)
    }

    fn gone(&mut self, head: u64) -> Stopped {
        if let Some((position, cursor)) = self.short {
            let why =
                format!("the one at {position}: it goes to {cursor}, which is before the head");
            self.tried.push(why);
        }
        Stopped::Error(Error::HistoryGone {
            stream: self.endpoint.shown(),
            head,
            tried: std::mem::take(&mut self.tried),
        })
    }

    fn note(&mut self, position: u64, why: &str) {
        /// More would not help the reader of the message.
        const MOST: usize = 10;
        tracing::warn!(
            stream = self.endpoint.shown(),
            position,
            why,
            "a snapshot is passed over"
        );
        let why = format!("the one at {position}: {why}");
        // A snapshot in many records is noted at its beginning and at its end.
        if self.tried.len() < MOST && !self.tried.contains(&why) {
            self.tried.push(why);
        }
    }

    /// Checks whether a snapshot may be restored. If not, it is noted or ends the search.
    fn usable(&mut self, position: u64, meta: &Meta) -> Result<(), Option<Stopped>> {
        let fold = self.initial;
        match meta.usable(fold.name(), fold.version(), self.identity) {
            Ok(()) => Ok(()),
            Err(why) if why.wants_a_decision() && !self.reading.pass_over => {
                Err(Some(Stopped::Error(Error::Unusable {
                    snapshot: format!("at {position} of {}", self.endpoint.shown()),
                    why,
                })))
            }
            Err(why) => {
                self.note(position, &why.to_string());
                Err(None)
            }
        }
    }

    async fn single(
        &mut self,
        record: &SequencedRecord,
        head: u64,
        meta: &Meta,
        totals: &Totals,
    ) -> Result<Option<F>, Stopped> {
        let position = record.seq_num;
        if meta.cursor > position {
            self.note(position, "it says to cover what is behind it");
            return Ok(None);
        }
        // Between the cursor and the snapshot is the trim command that was appended with it.
        let is_head = position == head && meta.cursor + 1 == position;
        if !self.reaches(meta, head) && !is_head {
            self.falls_short(position, meta);
            return Ok(None);
        }
        let mut sum = Sum::of(meta);
        sum.update(&record.body);
        if sum.totals() != *totals {
            self.note(position, "it is damaged: its checksum differs");
            return Ok(None);
        }
        match self.usable(position, meta) {
            Ok(()) => {}
            Err(None) => return Ok(None),
            Err(Some(stopped)) => return Err(stopped),
        }
        let mut restoring = Restoring::new(self.initial.clone(), meta);
        restoring.push(record.body.clone()).await;
        match restoring.finish(totals).await {
            Ok(fold) => Ok(Some(fold)),
            Err(why) => {
                self.note(position, &why);
                Ok(None)
            }
        }
    }

    async fn framed(
        &mut self,
        head: u64,
        whole: &Whole,
        restoring: Option<Restoring<F>>,
    ) -> Result<Framed<F>, Stopped> {
        if !self.reaches(&whole.meta, head) {
            self.falls_short(whole.first, &whole.meta);
            return Ok(Framed::Not);
        }
        match self.usable(whole.first, &whole.meta) {
            Ok(()) => {}
            Err(None) => return Ok(Framed::Not),
            Err(Some(stopped)) => return Err(stopped),
        }
        let restoring = match restoring {
            Some(one) => one,
            None => match self.read_again(whole).await? {
                Some(one) => one,
                None => return Ok(Framed::Moved),
            },
        };
        match restoring.finish(&whole.totals).await {
            Ok(fold) => Ok(Framed::Restored(Box::new(fold))),
            Err(why) => {
                self.note(whole.first, &why);
                Ok(Framed::Not)
            }
        }
    }

    /// Reads the fragments of a snapshot that is known to be whole; `None` if they are gone by now.
    async fn read_again(&self, whole: &Whole) -> Result<Option<Restoring<F>>, Stopped> {
        let mut restoring = Restoring::new(self.initial.clone(), &whole.meta);
        let mut pieces = self.endpoint.read(whole.first);
        let (mut next, mut index) = (whole.first, 0);
        while next <= whole.last {
            let Some(piece) = pieces.next().await else {
                let why = EndpointError::Unavailable("the read ended".to_owned());
                return Err(why.into());
            };
            let piece = piece?;
            for record in piece.records {
                if !self.continues(next, record.seq_num).await? {
                    return Ok(None);
                }
                next = record.seq_num + 1;
                if let Seen::Fragment { id, index: at, .. } = record::see(&record)
                    && id == whole.id
                    && at == index
                {
                    restoring.push(record.body).await;
                    index += 1;
                }
            }
            if piece.tail.is_some() && next <= whole.last {
                // It was there before: its end was cut off meanwhile.
                return Ok(None);
            }
        }
        Ok(Some(restoring))
    }
}

enum Framed<F> {
    Restored(Box<F>),
    Not,
    Moved,
}

fn info(kind: Kind, position: u64, meta: &Meta, totals: &Totals) -> SnapshotInfo {
    let own = meta.cursor + u64::from(kind == Kind::Single);
    SnapshotInfo {
        kind,
        place: position.to_string(),
        cursor: meta.cursor,
        bytes: totals.bytes,
        taken_at: Some(meta.taken_at),
        anchored: position != own,
    }
}

fn found<F>(fold: F, info: SnapshotInfo, met: Met, others: Others, position: u64) -> Beginning<F> {
    // A single record has nothing but its own trim command between its cursor and itself. The command is
    // gone and cannot be read again.
    let is_next = info.kind == Kind::Single && !info.anchored;
    let (met, resume) = match is_next && met.overflowed {
        true => (Vec::new(), position + 1),
        false => met.from(info.cursor, position),
    };
    Beginning::With(Box::new(Found {
        fold,
        info,
        met,
        resume,
        others,
    }))
}
