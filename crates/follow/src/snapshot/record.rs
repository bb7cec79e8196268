//! A snapshot as records of its stream: its headers and their values.
//!
//! | header | in | value |
//! |---|---|---|
//! | `esker-snapshot` | all | `single`, `fragment` or `final` |
//! | `esker-snapshot-id` | all | a UUID: the same in all records of one snapshot |
//! | `esker-snapshot-index` | `fragment` | 0, 1, 2 … |
//! | `esker-snapshot-meta` | `single`, fragment 0 | the description, JSON ([`Meta`]) |
//! | `esker-snapshot-totals` | `single`, `final` | fragments, bytes, checksum, JSON |
//!
//! Bodies are the state's bytes, as they are encoded; that of the final marker is empty. A record with
//! the first header is never passed to the fold, whatever else is wrong with it: it only takes a
//! position.

use bytes::Bytes;
use s2_sdk::types::{AppendRecord, CommandRecord, Header, SequencedRecord};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::meta::{MAX_META, Meta, Totals};

const KIND: &str = "esker-snapshot";
const ID: &str = "esker-snapshot-id";
const INDEX: &str = "esker-snapshot-index";
const META: &str = "esker-snapshot-meta";
const TOTALS: &str = "esker-snapshot-totals";

/// What a record means to a reader of its stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Seen {
    /// A record for the fold.
    Data,
    /// A command: trim or fence.
    Command,
    /// A whole snapshot.
    Single {
        /// The id of the snapshot.
        id: Uuid,
        /// Its description.
        meta: Box<Meta>,
        /// What the body has to add up to.
        totals: Totals,
    },
    /// A fragment of a snapshot.
    Fragment {
        /// The id of the snapshot.
        id: Uuid,
        /// Its index among the fragments.
        index: u64,
        /// The description, with index 0.
        meta: Option<Box<Meta>>,
    },
    /// The final marker of a snapshot.
    Final {
        /// The id of the snapshot.
        id: Uuid,
        /// How many fragments come before it.
        fragments: u64,
        /// What their bodies have to add up to.
        totals: Totals,
    },
    /// It has headers of a snapshot, and is malformed.
    Malformed(String),
}

#[derive(Serialize, Deserialize)]
struct RecordTotals {
    fragments: u64,
    #[serde(flatten)]
    totals: Totals,
}

/// What a record is.
pub fn see(record: &SequencedRecord) -> Seen {
    if record.is_command_record() {
        return Seen::Command;
    }
    let Some(kind) = header(record, KIND) else {
        return Seen::Data;
    };
    let read = match &kind[..] {
        b"single" => single(record),
        b"fragment" => fragment(record),
        b"final" => last(record),
        _ => Err("it is neither single nor fragment nor final".to_owned()),
    };
    read.unwrap_or_else(Seen::Malformed)
}

fn single(record: &SequencedRecord) -> Result<Seen, String> {
    let RecordTotals { fragments, totals } = json(record, TOTALS)?;
    if fragments != 1 {
        return Err(format!("a single record of {fragments} fragments"));
    }
    Ok(Seen::Single {
        id: id(record)?,
        meta: Box::new(json(record, META)?),
        totals,
    })
}

fn fragment(record: &SequencedRecord) -> Result<Seen, String> {
    let index = required(record, INDEX)?;
    let index: u64 = std::str::from_utf8(index)
        .ok()
        .and_then(|text| text.parse().ok())
        .ok_or_else(|| format!("{INDEX} is no number"))?;
    let meta = match index {
        0 => Some(Box::new(json(record, META)?)),
        _ => None,
    };
    Ok(Seen::Fragment {
        id: id(record)?,
        index,
        meta,
    })
}

fn last(record: &SequencedRecord) -> Result<Seen, String> {
    let RecordTotals { fragments, totals } = json(record, TOTALS)?;
    Ok(Seen::Final {
        id: id(record)?,
        fragments,
        totals,
    })
}

fn header<'a>(record: &'a SequencedRecord, name: &str) -> Option<&'a Bytes> {
    let mut headers = record.headers.iter();
    let found = headers.find(|header| header.name == name.as_bytes())?;
    Some(&found.value)
}

fn required<'a>(record: &'a SequencedRecord, name: &str) -> Result<&'a Bytes, String> {
    match header(record, name) {
        None => Err(format!("it has no {name}")),
        Some(value) if value.len() > MAX_META => Err(format!("{name} has {} bytes", value.len())),
        Some(value) => Ok(value),
    }
}

fn id(record: &SequencedRecord) -> Result<Uuid, String> {
    let text = required(record, ID)?;
    Uuid::try_parse_ascii(text).map_err(|error| format!("{ID}: {error}"))
}

fn json<T: for<'a> Deserialize<'a>>(record: &SequencedRecord, name: &str) -> Result<T, String> {
    let text = required(record, name)?;
    serde_json::from_slice(text).map_err(|error| format!("{name}: {error}"))
}

/// A snapshot in one record.
pub fn single_record(id: Uuid, meta: &Meta, totals: &Totals, body: Bytes) -> Made {
    let headers = vec![
        Header::new(KIND, "single"),
        Header::new(ID, id.to_string()),
        Header::new(META, meta.to_json()),
        Header::new(TOTALS, totals_json(1, totals)),
    ];
    made(headers, body)
}

/// A fragment of a snapshot.
pub fn fragment_record(id: Uuid, index: u64, meta: Option<&Meta>, body: Bytes) -> Made {
    let mut headers = vec![
        Header::new(KIND, "fragment"),
        Header::new(ID, id.to_string()),
        Header::new(INDEX, index.to_string()),
    ];
    headers.extend(meta.map(|meta| Header::new(META, meta.to_json())));
    made(headers, body)
}

/// The final marker of a snapshot.
pub fn final_record(id: Uuid, fragments: u64, totals: &Totals) -> Made {
    let headers = vec![
        Header::new(KIND, "final"),
        Header::new(ID, id.to_string()),
        Header::new(TOTALS, totals_json(fragments, totals)),
    ];
    made(headers, Bytes::new())
}

/// A trim command.
pub fn trim_record(to: u64) -> AppendRecord {
    CommandRecord::trim(to).into()
}

/// A record, or why it cannot be built: a description that is too long.
pub type Made = Result<AppendRecord, String>;

fn made(headers: Vec<Header>, body: Bytes) -> Made {
    let record = AppendRecord::new(body).and_then(|record| record.with_headers(headers));
    record.map_err(|error| error.to_string())
}

fn totals_json(fragments: u64, totals: &Totals) -> Vec<u8> {
    let totals = RecordTotals {
        fragments,
        totals: totals.clone(),
    };
    serde_json::to_vec(&totals).expect("strings and numbers")
}
