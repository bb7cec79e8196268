//! Everything that a client can read, and comparisons of it.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use s2_sdk::error::ReadError;
use s2_sdk::types::{ListBasinsInput, ListStreamsInput};
use s2_sdk::{S2, S2Stream};

use crate::support::sdk::{self, basin_name, stream_name};

/// Sequence numbers advance by this much for each new lineage.
pub const GAP: u64 = 1 << 40;

/// A record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kept {
    pub seq: u64,
    pub timestamp: u64,
    pub body: Vec<u8>,
}

/// A stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StreamContents {
    pub created_at: String,
    pub tail: u64,
    pub records: Vec<Kept>,
}

/// All streams, by `basin/stream`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Contents(pub BTreeMap<String, StreamContents>);

/// Reads everything that a server has.
pub async fn contents(s2: &S2) -> Contents {
    let mut all = BTreeMap::new();
    let basins = s2.list_basins(ListBasinsInput::new()).await.unwrap();
    assert!(!basins.has_more);
    for info in basins.values {
        if info.deleted_at.is_some() {
            continue;
        }
        let name = info.name.to_string();
        let basin = s2.basin(info.name);
        let streams = basin.list_streams(ListStreamsInput::new()).await.unwrap();
        assert!(!streams.has_more);
        for info in streams.values {
            if info.deleted_at.is_some() {
                continue;
            }
            let created_at = format!("{:?}", info.created_at);
            let at = format!("{name}/{}", info.name);
            let stream = basin.stream(info.name);
            all.insert(at, stream_contents(&stream, created_at).await);
        }
    }
    Contents(all)
}

async fn stream_contents(stream: &S2Stream, created_at: String) -> StreamContents {
    let tail = stream.check_tail().await.unwrap().seq_num;
    StreamContents {
        created_at,
        tail,
        records: records(stream).await,
    }
}

/// All records of a stream, without gaps.
pub async fn records(stream: &S2Stream) -> Vec<Kept> {
    let mut records: Vec<Kept> = Vec::new();
    loop {
        let next = records.last().map_or(0, |last| last.seq + 1);
        match stream.read(sdk::from_seq(next, 1000)).await {
            Ok(batch) if batch.records.is_empty() => break,
            Ok(batch) => records.extend(batch.records.into_iter().map(|record| Kept {
                seq: record.seq_num,
                timestamp: record.timestamp,
                body: record.body.to_vec(),
            })),
            Err(ReadError::ReadUnwritten(_)) => break,
            Err(error) => panic!("reading from {next}: {error}"),
        }
    }
    records
}

/// The stream that is called `basin/stream`.
pub fn stream(s2: &S2, at: &str) -> S2Stream {
    let (basin, name) = at.split_once('/').unwrap();
    s2.basin(basin_name(basin)).stream(stream_name(name))
}

impl Contents {
    /// The same after `forks` new lineages: the tails are advanced.
    pub fn after_forks(&self, forks: u64) -> Contents {
        let mut moved = self.clone();
        for stream in moved.0.values_mut() {
            stream.tail += forks * GAP;
        }
        moved
    }

    /// # Panics
    ///
    /// If `self` differs from `wanted`; the message has the difference.
    pub fn are(&self, wanted: &Contents, context: &str) {
        let mut differences = String::new();
        for name in self.0.keys().chain(wanted.0.keys()) {
            let (found, wanted) = (self.0.get(name), wanted.0.get(name));
            if found != wanted && !differences.contains(&format!("{name}:")) {
                let show = |s: Option<&StreamContents>| match s {
                    None => "none".to_owned(),
                    Some(s) => format!(
                        "{} records {:?}..={:?}, tail {}, of {}",
                        s.records.len(),
                        s.records.first().map(|r| r.seq),
                        s.records.last().map(|r| r.seq),
                        s.tail,
                        s.created_at
                    ),
                };
                let (found, wanted) = (show(found), show(wanted));
                writeln!(differences, "{name}: {found}; wanted {wanted}").unwrap();
            }
        }
        assert!(differences.is_empty(), "{context}:\n{differences}");
    }

    /// # Panics
    ///
    /// If `self` has a record that is not in `full`, or lacks the beginning of a stream that both have,
    /// or a record that `least` has and `full` has not lost by then.
    pub fn are_between(&self, least: &Contents, full: &Contents, context: &str) {
        for (name, found) in &self.0 {
            let at_most = full.0.get(name).or_else(|| least.0.get(name));
            let at_most = at_most.unwrap_or_else(|| panic!("{context}: {name} comes from nowhere"));
            for record in &found.records {
                let known = |s: &StreamContents| s.records.contains(record);
                let trimmed = least.0.get(name).is_some_and(known);
                assert!(
                    known(at_most) || trimmed,
                    "{context}: {name} has {record:?}, which nobody appended"
                );
            }
            let first = found.records.first().map_or(0, |r| r.seq);
            let last = found.records.last().map_or(0, |r| r.seq);
            let whole = at_most.records.iter();
            let whole = whole.filter(|r| (first..=last).contains(&r.seq)).count();
            assert!(
                found.records.len() >= whole,
                "{context}: {name} has holes between {first} and {last}"
            );
        }
        for (name, least) in &least.0 {
            if !full.0.contains_key(name) {
                continue;
            }
            let found = self.0.get(name);
            let found = found.unwrap_or_else(|| panic!("{context}: {name} is gone"));
            for record in &least.records {
                let trimmed = !full.0[name].records.contains(record);
                assert!(
                    trimmed || found.records.contains(record),
                    "{context}: {name} lost {record:?}"
                );
            }
        }
    }
}
