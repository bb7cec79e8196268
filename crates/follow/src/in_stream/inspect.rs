//! All snapshots in a stream, whole and torn.
//!
//! The stream is read once, from its head to the tail of that moment. Bodies are added up and dropped;
//! one entry is remembered for each snapshot, for at most [`MAX_LISTED`] snapshots.

use std::collections::VecDeque;
use std::time::Duration;

use futures::StreamExt as _;
use s2_sdk::types::SequencedRecord;
use tokio::time::Instant;
use uuid::Uuid;

use crate::backoff::Backoff;
use crate::endpoint::{Endpoint, EndpointError, Identity, Piece};
use crate::error::Error;
use crate::inspected::{Inspected, MAX_LISTED, Standing, WAIT_TIMEOUT};
use crate::snapshot::assembly::{Assembly, Fed};
use crate::snapshot::pipe::Sum;
use crate::snapshot::record::{self, Seen};
use crate::snapshot::{Kind, Meta, SnapshotInfo};

/// The cost of a record beside its bytes, for dividing time between two kinds of records.
const RECORD: f64 = 64.0;

/// What was read, and how long it took.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Read {
    pub records: u64,
    pub bytes: u64,
    pub took: Duration,
}

/// What a stream contains.
#[derive(Debug, Default)]
pub(crate) struct Scanned {
    /// The first record that is there.
    pub head: Option<u64>,
    /// In the order of the stream; the oldest are left out if they are too many.
    pub found: VecDeque<Inspected>,
    pub left_out: u64,
    /// Records of snapshots whose beginning is missing, or that are malformed.
    pub strays: u64,
    /// Records of snapshots.
    pub snapshots: Read,
    /// All others.
    pub others: Read,
    /// Records that are for the fold.
    pub data: u64,
    /// Those of them that are before each mark.
    pub before: Vec<u64>,
}

/// Reads a stream up to a tail. Marks are positions, in order; the result has for each how many records
/// for the fold are before it.
///
/// # Errors
///
/// [`Error::Endpoint`].
pub(crate) async fn scan(
    endpoint: &dyn Endpoint,
    identity: &Identity,
    tail: u64,
    marks: &[u64],
    progress: &mut impl FnMut(u64, u64),
) -> Result<Scanned, Error> {
    let mut backoff = Backoff::new(Some(WAIT_TIMEOUT));
    let mut scan = Scan {
        identity,
        marks,
        next: 0,
        assembly: Assembly::default(),
        openings: Vec::new(),
        scanned: Scanned::default(),
    };
    while scan.next < tail {
        let mut pieces = endpoint.read(scan.next);
        let mut since = Instant::now();
        let why = loop {
            match pieces.next().await {
                Some(Ok(piece)) => {
                    backoff.reset();
                    scan.piece(&piece, since.elapsed());
                    since = Instant::now();
                    progress(scan.next.min(tail), tail);
                    // Nothing more is there, or nothing more is needed.
                    if piece.tail.is_some() || scan.next >= tail {
                        return Ok(scan.end());
                    }
                }
                // A history was cut off meanwhile.
                Some(Err(EndpointError::BeyondTail { .. })) => return Ok(scan.end()),
                Some(Err(why)) => break why,
                None => break EndpointError::Unavailable("the read ended".to_owned()),
            }
        };
        backoff.wait(endpoint, why).await?;
    }
    Ok(scan.end())
}

/// A snapshot whose end was not read yet.
struct Opening {
    id: Uuid,
    meta: Meta,
    first: u64,
    /// Records for the fold before it.
    behind: u64,
    fragments: u64,
    bytes: u64,
}

struct Scan<'a> {
    identity: &'a Identity,
    marks: &'a [u64],
    next: u64,
    assembly: Assembly,
    /// The same ones that the assembly has.
    openings: Vec<Opening>,
    scanned: Scanned,
}

impl Scan<'_> {
    fn piece(&mut self, piece: &Piece, took: Duration) {
        let (mut snapshots, mut others) = (Read::default(), Read::default());
        for record in &piece.records {
            self.next = record.seq_num + 1;
            self.scanned.head.get_or_insert(record.seq_num);
            self.mark(record.seq_num);
            let seen = record::see(record);
            let read = match seen {
                Seen::Data | Seen::Command => &mut others,
                _ => &mut snapshots,
            };
            read.records += 1;
            read.bytes += record.body.len() as u64;
            self.scanned.data += u64::from(seen == Seen::Data);
            self.record(record, &seen);
        }
        let weight = |read: &Read| read.bytes as f64 + read.records as f64 * RECORD;
        let share = weight(&snapshots) / (weight(&snapshots) + weight(&others)).max(1.0);
        let scanned = &mut self.scanned;
        for (all, read, share) in [
            (&mut scanned.snapshots, snapshots, share),
            (&mut scanned.others, others, 1.0 - share),
        ] {
            all.records += read.records;
            all.bytes += read.bytes;
            all.took += took.mul_f64(share);
        }
    }

    /// Notes how many records were before the marks up to a position.
    fn mark(&mut self, position: u64) {
        let scanned = &mut self.scanned;
        let marks = &self.marks[scanned.before.len()..];
        let passed = marks.iter().take_while(|mark| **mark <= position).count();
        let before = std::iter::repeat_n(scanned.data, passed);
        scanned.before.extend(before);
    }

    fn record(&mut self, record: &SequencedRecord, seen: &Seen) {
        let position = record.seq_num;
        if let Seen::Single { meta, totals, .. } = seen {
            let mut sum = Sum::of(meta);
            sum.update(&record.body);
            let standing = match sum.totals() == *totals {
                true => self.standing(meta, position),
                false => Standing::Damaged("its checksum differs".to_owned()),
            };
            let bytes = record.body.len() as u64;
            let behind = self.scanned.data;
            self.found(Kind::Single, (position, behind), meta, bytes, standing);
            return;
        }
        match self.assembly.feed(position, seen, &record.body) {
            Fed::Began(id) => {
                if let Seen::Fragment {
                    meta: Some(meta), ..
                } = seen
                {
                    self.openings.push(Opening {
                        id,
                        meta: (**meta).clone(),
                        first: position,
                        behind: self.scanned.data,
                        fragments: 1,
                        bytes: record.body.len() as u64,
                    });
                }
                self.forgotten();
            }
            Fed::Next(id) => {
                if let Some(opening) = self.openings.iter_mut().find(|one| one.id == id) {
                    opening.fragments += 1;
                    opening.bytes += record.body.len() as u64;
                }
            }
            Fed::Whole(whole) => {
                let standing = self.standing(&whole.meta, whole.first);
                if let Some(opening) = self.take(whole.id) {
                    self.opened(&opening, standing);
                }
            }
            Fed::Torn(id, why) => {
                if let Some(opening) = self.take(id) {
                    // If all of its fragments are there, its bytes are wrong.
                    let standing = match seen {
                        Seen::Final { fragments, .. } if *fragments == opening.fragments => {
                            Standing::Damaged(why)
                        }
                        _ => Standing::Torn(why),
                    };
                    self.opened(&opening, standing);
                }
            }
            Fed::Ignored(_) => self.scanned.strays += 1,
            Fed::Nothing => {}
        }
    }

    /// Notes those that the assembly dropped for newer ones.
    fn forgotten(&mut self) {
        let known: Vec<Uuid> = self.assembly.open().map(|(id, ..)| id).collect();
        let gone = self.openings.extract_if(.., |one| !known.contains(&one.id));
        for opening in gone.collect::<Vec<_>>() {
            let why = "it had no end when many others had begun after it".to_owned();
            self.opened(&opening, Standing::Torn(why));
        }
    }

    fn end(mut self) -> Scanned {
        self.mark(u64::MAX);
        for opening in std::mem::take(&mut self.openings) {
            let why = match opening.fragments {
                1 => "it has no end: 1 fragment is there".to_owned(),
                n => format!("it has no end: {n} fragments are there"),
            };
            self.opened(&opening, Standing::Torn(why));
        }
        self.scanned
    }

    fn take(&mut self, id: Uuid) -> Option<Opening> {
        let at = self.openings.iter().position(|one| one.id == id)?;
        Some(self.openings.swap_remove(at))
    }

    /// The standing of a snapshot whose bytes are intact.
    fn standing(&self, meta: &Meta, position: u64) -> Standing {
        if meta.cursor > position {
            let why = "it says to cover what is behind it".to_owned();
            return Standing::Damaged(why);
        }
        let head = self.scanned.head.unwrap_or(position);
        // Between the cursor and a single record is the trim command that was appended with it.
        let is_head = position == head && meta.cursor + 1 == position;
        Standing::of(meta, self.identity, if is_head { 0 } else { head })
    }

    fn opened(&mut self, opening: &Opening, standing: Standing) {
        let Opening { meta, bytes, .. } = opening;
        let at = (opening.first, opening.behind);
        self.found(Kind::Framed, at, meta, *bytes, standing);
    }

    /// Notes a snapshot that begins at a position, after this many records for the fold.
    fn found(
        &mut self,
        kind: Kind,
        (position, behind): (u64, u64),
        meta: &Meta,
        bytes: u64,
        standing: Standing,
    ) {
        let own = meta.cursor + u64::from(kind == Kind::Single);
        let info = SnapshotInfo {
            kind,
            place: position.to_string(),
            cursor: meta.cursor,
            bytes,
            taken_at: Some(meta.taken_at),
            anchored: position != own,
        };
        let scanned = &mut self.scanned;
        if scanned.found.len() == MAX_LISTED {
            scanned.found.pop_front();
            scanned.left_out += 1;
        }
        scanned
            .found
            .push_back(Inspected::new(info, Some(meta), standing, behind));
    }
}
