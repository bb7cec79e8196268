//! The live data in each segment of the batches' column family.

use std::collections::BTreeMap;

/// A segment: what was appended between two positions of the log.
#[derive(Clone, Debug, Default)]
pub struct Segment {
    /// Bytes that were put into it.
    pub bytes: u64,
    /// Bytes of those that are still live.
    pub live: u64,
    /// First LSN.
    pub first: u64,
    /// Last LSN.
    pub last: u64,
    /// Whether nothing in it is live, so that it may be dropped.
    pub dead: bool,
}

/// All segments; the last one is open.
#[derive(Default)]
pub struct Segments {
    all: BTreeMap<u64, Segment>,
    open: u64,
}

impl Segments {
    /// Bytes of the open segment.
    pub fn size(&self) -> u64 {
        self.all.get(&self.open).map_or(0, |segment| segment.bytes)
    }

    /// Begins a new segment, if the open one is not empty.
    pub fn seal(&mut self) {
        if self.size() > 0 {
            self.open += 1;
        }
    }

    /// Counts a batch, and returns the number of its segment.
    pub fn add(&mut self, lsn: u64, bytes: u64) -> u64 {
        let segment = self.all.entry(self.open).or_insert_with(|| Segment {
            first: lsn,
            ..Segment::default()
        });
        segment.bytes += bytes;
        segment.live += bytes;
        segment.last = lsn;
        self.open
    }

    /// Counts a batch as no longer live.
    pub fn remove(&mut self, number: u64, bytes: u64) {
        if let Some(segment) = self.all.get_mut(&number) {
            segment.live -= bytes;
        }
    }

    /// A segment to be dropped: one without live data, or, if files have more garbage than `percent` of the
    /// live data, the one with the smallest live fraction.
    pub fn victim(&self, percent: u64) -> Option<u64> {
        let there = || self.all.iter().filter(|(_, s)| !s.dead);
        let (bytes, live) = there().fold((0, 0), |sum, (_, s)| (sum.0 + s.bytes, sum.1 + s.live));
        let excess = (bytes - live) * 100 > live * percent;
        there()
            .filter(|(number, s)| **number < self.open && (s.live == 0 || excess))
            .min_by_key(|(_, s)| s.live * 1000 / s.bytes.max(1))
            .map(|(number, _)| *number)
    }

    /// Marks a segment without live data. Returns the longest run of such segments around it, as its first
    /// and last segment.
    pub fn kill(&mut self, number: u64) -> Option<[(u64, Segment); 2]> {
        self.all.get_mut(&number)?.dead = true;
        let dead = |(_, s): &(&u64, &Segment)| s.dead;
        let copy = |(number, s): (&u64, &Segment)| (*number, s.clone());
        let first = self.all.range(..=number).rev().take_while(dead).last();
        let last = self.all.range(number..).take_while(dead).last();
        Some([copy(first?), copy(last?)])
    }
}
