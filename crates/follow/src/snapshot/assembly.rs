//! Whole and torn snapshots among the records of a stream.
//!
//! Records come in the order of the stream, and each is passed in once. Fragments of several snapshots
//! may be interleaved, with each other and with data; a batch may have been appended twice. A snapshot is
//! whole when its final marker comes after every one of its fragments in order, and they add up to the
//! totals of the marker. Otherwise it is torn, and is not reported again.
//!
//! Bodies are not kept. For a snapshot that is not whole yet, some [`KEPT`] bytes are remembered, for at
//! most [`MAX_OPEN`] snapshots. A new one replaces the one whose last fragment is the oldest.

use std::collections::VecDeque;

use uuid::Uuid;

use super::meta::{Meta, Totals};
use super::pipe::Sum;
use super::record::Seen;

/// Snapshots that are followed at a time. Two snapshotters at once are usual in a rolling update, and
/// each may have left a torn one.
pub const MAX_OPEN: usize = 8;
/// Approximate bytes: the state of the checksum, and the description.
pub const KEPT: usize = 2048;

/// A snapshot that is whole: its bytes have its checksum. Whether a fold can read them is not known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Whole {
    /// Its id.
    pub id: Uuid,
    /// Its description.
    pub meta: Meta,
    /// Sequence number of fragment 0.
    pub first: u64,
    /// Sequence number of the final marker.
    pub last: u64,
    /// How many fragments there are.
    pub fragments: u64,
    /// What they add up to.
    pub totals: Totals,
}

/// What a record means.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fed {
    /// Nothing: it came a second time, or is no fragment.
    Nothing,
    /// A snapshot begins with this fragment.
    Began(Uuid),
    /// This fragment is the next one of its snapshot.
    Next(Uuid),
    /// That was the end of it, and it is whole.
    Whole(Box<Whole>),
    /// It will never be whole.
    Torn(Uuid, String),
    /// It belongs to no known snapshot.
    Ignored(String),
}

#[derive(Debug)]
struct Open {
    id: Uuid,
    meta: Meta,
    first: u64,
    next: u64,
    sum: Sum,
}

/// Snapshots that are not whole yet.
#[derive(Debug, Default)]
pub struct Assembly {
    /// In the order of their last fragments, the oldest first.
    open: VecDeque<Open>,
}

impl Assembly {
    /// Processes the record at a position.
    pub fn feed(&mut self, position: u64, seen: &Seen, body: &[u8]) -> Fed {
        match seen {
            Seen::Fragment {
                id,
                index: 0,
                meta: Some(meta),
            } => self.begin(position, *id, meta, body),
            Seen::Fragment { id, index, .. } => self.next(*id, *index, body),
            Seen::Final {
                id,
                fragments,
                totals,
            } => self.end(position, *id, *fragments, totals),
            Seen::Malformed(why) => Fed::Ignored(why.clone()),
            Seen::Data | Seen::Command | Seen::Single { .. } => Fed::Nothing,
        }
    }

    /// Snapshots that are not whole yet: id, description, first position, fragments and bytes so far.
    pub fn open(&self) -> impl Iterator<Item = (Uuid, &Meta, u64, u64, u64)> {
        self.open
            .iter()
            .map(|open| (open.id, &open.meta, open.first, open.next, open.sum.bytes()))
    }

    fn take(&mut self, id: Uuid) -> Option<Open> {
        let at = self.open.iter().position(|open| open.id == id)?;
        self.open.remove(at)
    }

    fn begin(&mut self, position: u64, id: Uuid, meta: &Meta, body: &[u8]) -> Fed {
        if self.open.iter().any(|open| open.id == id) {
            return Fed::Nothing;
        }
        if meta.cursor > position {
            return Fed::Ignored(format!(
                "it says to cover what is before {}, which is behind it",
                meta.cursor
            ));
        }
        if self.open.len() == MAX_OPEN {
            self.open.pop_front();
        }
        let mut sum = Sum::of(meta);
        sum.update(body);
        self.open.push_back(Open {
            id,
            meta: meta.clone(),
            first: position,
            next: 1,
            sum,
        });
        Fed::Began(id)
    }

    fn next(&mut self, id: Uuid, index: u64, body: &[u8]) -> Fed {
        let Some(mut open) = self.take(id) else {
            return Fed::Ignored(format!(
                "fragment {index} of {id}, whose beginning is not there"
            ));
        };
        let fed = match index.cmp(&open.next) {
            std::cmp::Ordering::Less => Fed::Nothing,
            std::cmp::Ordering::Greater => {
                return Fed::Torn(id, format!("fragment {} is missing", open.next));
            }
            std::cmp::Ordering::Equal => {
                open.next += 1;
                open.sum.update(body);
                Fed::Next(id)
            }
        };
        self.open.push_back(open);
        fed
    }

    fn end(&mut self, position: u64, id: Uuid, fragments: u64, totals: &Totals) -> Fed {
        let Some(open) = self.take(id) else {
            return Fed::Ignored(format!("the end of {id}, whose beginning is not there"));
        };
        if open.next != fragments {
            return Fed::Torn(
                id,
                format!("{} of {fragments} fragments are there", open.next),
            );
        }
        if open.sum.totals() != *totals {
            return Fed::Torn(id, "its fragments do not add up to its checksum".to_owned());
        }
        Fed::Whole(Box::new(Whole {
            id,
            meta: open.meta,
            first: open.first,
            last: position,
            fragments,
            totals: totals.clone(),
        }))
    }
}
