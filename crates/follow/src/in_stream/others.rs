//! Snapshots of other folds in the stream, and the trims that would destroy them.
//!
//! A reader of the stream with another fold needs that fold's newest snapshot and the records after its
//! cursor. A trim removes both for everybody, so a trim is refused if such a snapshot would be of no use
//! afterwards.
//!
//! [`Others`] is what is known: the follower passes in every record that it reads, once. [`Guard`] shares
//! it with the task that takes a snapshot, which checks before each trim.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt as _;
use s2_sdk::types::SequencedRecord;
use tokio::sync::watch;

use crate::endpoint::{Endpoint, Identity};
use crate::snapshot::assembly::{Assembly, Fed};
use crate::snapshot::pipe::Sum;
use crate::snapshot::record::{self, Seen};
use crate::snapshot::{Kind, Meta, OtherFold};

/// Most other folds whose snapshots are remembered: some 500 bytes each. One is enough for a trim to be
/// refused.
const MAX_OTHERS: usize = 64;
/// Most characters of a fold's name that are kept.
const MAX_NAME: usize = 256;
/// Longest wait for the next records, or for the follower to read up to the tail.
const READ_TIMEOUT: Duration = Duration::from_secs(20);

/// What is known of other folds' snapshots.
#[derive(Debug, Default)]
pub struct Others {
    /// Positions before this one were not read.
    from: u64,
    /// The next position that was not read.
    next: u64,
    assembly: Assembly,
    newest: BTreeMap<String, OtherFold>,
}

impl Others {
    /// Nothing is known of what is before a position.
    pub fn unread_before(position: u64) -> Others {
        Others {
            from: position,
            next: position,
            ..Others::default()
        }
    }

    /// Notes a record; one that was noted before is ignored.
    pub fn feed(&mut self, ours: &str, identity: &Identity, record: &SequencedRecord, seen: &Seen) {
        if record.seq_num < self.next {
            return;
        }
        self.next = record.seq_num + 1;
        match seen {
            Seen::Data | Seen::Command => {}
            Seen::Single { meta, totals, .. } => {
                if meta.fold == ours || meta.cursor > record.seq_num {
                    return;
                }
                let mut sum = Sum::of(meta);
                sum.update(&record.body);
                if sum.totals() == *totals {
                    self.note(Kind::Single, record.seq_num, meta, identity);
                }
            }
            Seen::Fragment {
                meta: Some(meta), ..
            } if meta.fold == ours => {}
            _ => {
                if let Fed::Whole(whole) = self.assembly.feed(record.seq_num, seen, &record.body) {
                    self.note(Kind::Framed, whole.first, &whole.meta, identity);
                }
            }
        }
    }

    fn note(&mut self, kind: Kind, position: u64, meta: &Meta, identity: &Identity) {
        // A snapshot of another stream or of a stale lineage is of no use.
        if meta.of_stream(identity).is_err() {
            return;
        }
        // A single record directly after its trim command is usable as the head.
        let is_next = kind == Kind::Single && meta.cursor + 1 == position;
        let fold: String = meta.fold.chars().take(MAX_NAME).collect();
        self.insert(OtherFold {
            fold,
            position,
            cursor: meta.cursor,
            trimmable: if is_next { position } else { meta.cursor },
        });
    }

    fn insert(&mut self, other: OtherFold) {
        let is_full = self.newest.len() >= MAX_OTHERS;
        match self.newest.get_mut(&other.fold) {
            Some(known) if known.trimmable <= other.trimmable => *known = other,
            Some(_) => {}
            None if is_full => {}
            None => {
                self.newest.insert(other.fold.clone(), other);
            }
        }
    }

    /// Positions up to this one were read, though no record is there.
    pub fn read_to(&mut self, position: u64) {
        self.next = self.next.max(position);
    }

    /// The snapshot that allows the least to be trimmed.
    fn first(&self) -> Option<&OtherFold> {
        self.newest.values().min_by_key(|other| other.trimmable)
    }
}

/// Why a trim is not allowed: it does harm, or it is not known whether it does.
#[derive(Debug)]
pub enum Denied {
    /// It would destroy this snapshot.
    OtherFold(Box<OtherFold>),
    /// The stream could not be read.
    Unknown(String),
}

/// What is known of other folds' snapshots, shared between the follower and the task that trims.
#[derive(Clone, Debug, Default)]
pub struct Guard {
    known: Arc<watch::Sender<Others>>,
}

impl Guard {
    /// Begins with what is known.
    pub fn new(others: Others) -> Guard {
        Guard {
            known: Arc::new(watch::Sender::new(others)),
        }
    }

    /// Changes what is known.
    pub fn update(&self, change: impl FnOnce(&mut Others)) {
        self.known.send_modify(change);
    }

    /// Checks whether the stream may be trimmed to a position, given that it ends at a tail. Waits until
    /// the follower has read up to there.
    ///
    /// # Errors
    ///
    /// [`Denied`].
    pub async fn check(
        &self,
        endpoint: &dyn Endpoint,
        ours: &Meta,
        to: u64,
        tail: u64,
    ) -> Result<(), Denied> {
        match self.first(endpoint, ours, tail).await? {
            Some(other) if other.trimmable < to => Err(Denied::OtherFold(Box::new(other))),
            _ => Ok(()),
        }
    }

    /// Of the other folds' newest snapshots, the one that allows the least to be trimmed.
    ///
    /// # Errors
    ///
    /// [`Denied::Unknown`].
    pub async fn first(
        &self,
        endpoint: &dyn Endpoint,
        ours: &Meta,
        tail: u64,
    ) -> Result<Option<OtherFold>, Denied> {
        let mut known = self.known.subscribe();
        let read = known.wait_for(|known| known.next >= tail);
        match tokio::time::timeout(READ_TIMEOUT, read).await {
            Ok(_) => {}
            Err(_) => {
                return Err(Denied::Unknown(format!(
                    "the stream was not read up to its tail {tail} within {} s",
                    READ_TIMEOUT.as_secs()
                )));
            }
        }
        if self.known.borrow().from > 0 {
            self.read_all(endpoint, ours, tail).await?;
        }
        if self.known.borrow().first().is_none() {
            return Ok(None);
        }
        // Others may have trimmed them away.
        let head = head(endpoint).await?;
        let identity = endpoint.identity().await;
        let identity = identity.map_err(|e| Denied::Unknown(e.to_string()))?;
        self.update(|known| {
            known.newest.retain(|_, other| {
                // A trim to where numbers jump removes nothing that comes after it.
                other.trimmable = identity.behind_gap(other.trimmable);
                head <= other.trimmable
            });
        });
        Ok(self.known.borrow().first().cloned())
    }

    /// Reads what the follower did not read: what was before its snapshot's cursor.
    async fn read_all(
        &self,
        endpoint: &dyn Endpoint,
        ours: &Meta,
        tail: u64,
    ) -> Result<(), Denied> {
        let identity = endpoint.identity().await;
        let identity = identity.map_err(|e| Denied::Unknown(e.to_string()))?;
        let mut all = Others::default();
        let mut pieces = endpoint.read(0);
        while all.next < tail {
            let (records, is_end) = piece(&mut pieces).await?;
            for record in &records {
                all.feed(&ours.fold, &identity, record, &record::see(record));
            }
            if is_end {
                break;
            }
        }
        self.update(|known| {
            known.from = 0;
            for other in std::mem::take(&mut all.newest).into_values() {
                known.insert(other);
            }
        });
        Ok(())
    }
}

/// The first position that is there, or the tail.
async fn head(endpoint: &dyn Endpoint) -> Result<u64, Denied> {
    let mut pieces = endpoint.read(0);
    loop {
        let (records, is_end) = piece(&mut pieces).await?;
        if let Some(first) = records.first() {
            return Ok(first.seq_num);
        }
        if is_end {
            // Nothing is left.
            return Ok(u64::MAX);
        }
    }
}

type Pieces = futures::stream::BoxStream<
    'static,
    Result<crate::endpoint::Piece, crate::endpoint::EndpointError>,
>;

async fn piece(pieces: &mut Pieces) -> Result<(Vec<SequencedRecord>, bool), Denied> {
    let unknown =
        |why: String| Denied::Unknown(format!("looking for snapshots of other folds: {why}"));
    match tokio::time::timeout(READ_TIMEOUT, pieces.next()).await {
        Ok(Some(Ok(piece))) => Ok((piece.records, piece.tail.is_some())),
        Ok(Some(Err(why))) => Err(unknown(why.to_string())),
        Ok(None) => Err(unknown("the read ended".to_owned())),
        Err(_) => Err(unknown(format!(
            "nothing came within {} s",
            READ_TIMEOUT.as_secs()
        ))),
    }
}
