//! A commit as a record of the reserved stream: versioned JSON.
//!
//! ```json
//! {"version":1,"commit_ts":42,"txn_id":"8f2c…","at_ms":1767225600000,"operations":[
//!   {"namespace":"default","agent_id":"agent-1","key":"memory","version":5,"value":{"fact":"…"}},
//!   {"namespace":"default","agent_id":"agent-1","key":"draft","version":2,"deleted":true}]}
//! ```
//!
//! The record at sequence number n has `commit_ts` n + 1. Versions are decided when the commit is
//! applied, in the order of the operations.

use bytes::Bytes;
use s2_common::caps::RECORD_BATCH_MAX;
use serde::Deserialize;
use serde_json::value::RawValue;

use super::command::StagedOperation;
use super::names::StateKey;

/// Version of the record's format.
pub const VERSION: u32 = 1;

/// Most bytes of a commit's record: what one record of a stream can hold.
pub const MAX_RECORD_BYTES: usize = RECORD_BATCH_MAX.bytes - 8;

/// A commit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CommitRecord {
    /// The transaction.
    pub txn_id: String,
    /// Its place in the order of commits.
    pub commit_ts: u64,
    /// When it arrived, in milliseconds since the epoch.
    pub at_ms: u64,
    /// Its operations, in order.
    pub operations: Vec<CommittedOperation>,
}

/// An operation of a commit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CommittedOperation {
    /// The key.
    pub key: StateKey,
    /// A JSON object; `None` for a deletion.
    pub value: Option<Bytes>,
    /// The version that the key got.
    pub version: u64,
}

/// Most bytes that the record of a commit can have.
pub fn record_bound(txn_id: &str, operations: &[StagedOperation]) -> usize {
    let numbers = std::iter::repeat(u64::MAX);
    compose(u64::MAX, txn_id, u64::MAX, operations, numbers).len()
}

/// Most bytes that an operation can take in the record of a commit.
pub fn operation_bound(operation: &StagedOperation) -> usize {
    let value = operation.value.as_ref().map_or(0, Bytes::len);
    let without = StagedOperation {
        value: operation.value.as_ref().map(|_| Bytes::new()),
        ..operation.clone()
    };
    let with_comma = 1 + value;
    record_bound("", &[without]) - record_bound("", &[]) + with_comma
}

/// Composes the record of a commit.
pub(crate) fn compose(
    commit_ts: u64,
    txn_id: &str,
    at_ms: u64,
    operations: &[StagedOperation],
    versions: impl IntoIterator<Item = u64>,
) -> Vec<u8> {
    let names = |o: &StagedOperation| o.namespace.len() + o.agent_id.len() + o.key.len();
    let size = |o: &StagedOperation| 80 + names(o) + o.value.as_ref().map_or(0, Bytes::len);
    let mut json = Vec::with_capacity(128 + operations.iter().map(size).sum::<usize>());
    json.extend_from_slice(
        format!("{{\"version\":{VERSION},\"commit_ts\":{commit_ts},").as_bytes(),
    );
    json.extend_from_slice(b"\"txn_id\":");
    push_string(&mut json, txn_id);
    json.extend_from_slice(format!(",\"at_ms\":{at_ms},\"operations\":[").as_bytes());
    for (i, (operation, version)) in operations.iter().zip(versions).enumerate() {
        if i > 0 {
            json.push(b',');
        }
        json.extend_from_slice(b"{\"namespace\":");
        push_string(&mut json, &operation.namespace);
        json.extend_from_slice(b",\"agent_id\":");
        push_string(&mut json, &operation.agent_id);
        json.extend_from_slice(b",\"key\":");
        push_string(&mut json, &operation.key);
        json.extend_from_slice(format!(",\"version\":{version},").as_bytes());
        match &operation.value {
            Some(value) => {
                json.extend_from_slice(b"\"value\":");
                json.extend_from_slice(value);
            }
            None => json.extend_from_slice(b"\"deleted\":true"),
        }
        json.push(b'}');
    }
    json.extend_from_slice(b"]}");
    json
}

/// Appends a string in its JSON form, with quotes.
pub fn push_string(json: &mut Vec<u8>, text: &str) {
    serde_json::to_writer(json, text).expect("a string is JSON, and memory takes it");
}

#[derive(Deserialize)]
struct Parsed<'a> {
    version: u32,
    commit_ts: u64,
    txn_id: String,
    #[serde(default)]
    at_ms: u64,
    #[serde(borrow)]
    operations: Vec<ParsedOperation<'a>>,
}

#[derive(Deserialize)]
struct ParsedOperation<'a> {
    namespace: String,
    agent_id: String,
    key: String,
    version: u64,
    #[serde(borrow)]
    value: Option<&'a RawValue>,
    #[serde(default)]
    deleted: bool,
}

impl CommitRecord {
    /// Parses the body of a record.
    ///
    /// # Errors
    ///
    /// It is not a commit, or its version is another one; the message has the reason.
    pub fn parse(body: &Bytes) -> Result<CommitRecord, String> {
        let parsed: Parsed<'_> =
            serde_json::from_slice(body).map_err(|e| format!("not a commit: {e}"))?;
        if parsed.version != VERSION {
            return Err(format!(
                "a commit of version {}, this version knows up to {VERSION}: use a newer esker",
                parsed.version
            ));
        }
        let operation = |o: ParsedOperation<'_>| match (o.value, o.deleted) {
            (Some(_), true) | (None, false) => {
                Err("an operation has either a value or \"deleted\": true".to_owned())
            }
            (value, _) => Ok(CommittedOperation {
                key: StateKey::new(o.namespace, o.agent_id, o.key),
                value: value.map(|value| body.slice_ref(value.get().as_bytes())),
                version: o.version,
            }),
        };
        Ok(CommitRecord {
            txn_id: parsed.txn_id,
            commit_ts: parsed.commit_ts,
            at_ms: parsed.at_ms,
            operations: parsed
                .operations
                .into_iter()
                .map(operation)
                .collect::<Result<_, _>>()?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn staged(value: Option<&'static str>) -> StagedOperation {
        StagedOperation {
            namespace: "n:\u{0}".into(),
            agent_id: "a\"b".into(),
            key: "é".into(),
            value: value.map(Bytes::from_static_str),
        }
    }

    trait FromStaticStr {
        fn from_static_str(text: &'static str) -> Bytes;
    }

    impl FromStaticStr for Bytes {
        fn from_static_str(text: &'static str) -> Bytes {
            Bytes::from_static(text.as_bytes())
        }
    }

    #[test]
    fn a_commit_reads_back_as_it_was_composed() {
        let operations = [staged(Some(r#"{"a":[{"b":null}]}"#)), staged(None)];
        let bytes = compose(42, "txn", 7, &operations, [5, 6]);
        assert!(bytes.len() <= record_bound("txn", &operations));
        let read = CommitRecord::parse(&bytes.into()).unwrap();
        assert_eq!((read.commit_ts, read.at_ms, &*read.txn_id), (42, 7, "txn"));
        for ((read, staged), version) in read.operations.iter().zip(&operations).zip(5..) {
            assert_eq!(read.key, staged.key());
            assert_eq!(read.value, staged.value);
            assert_eq!(read.version, version);
        }
    }

    #[test]
    fn what_is_no_commit_is_refused_with_the_reason() {
        let refused = |text: &'static str| CommitRecord::parse(&Bytes::from_static_str(text));
        assert!(refused("{").unwrap_err().starts_with("not a commit: "));
        let newer = r#"{"version":2,"commit_ts":1,"txn_id":"","operations":[]}"#;
        assert!(refused(newer).unwrap_err().contains("use a newer esker"));
        let neither = r#"{"version":1,"commit_ts":1,"txn_id":"","operations":
            [{"namespace":"","agent_id":"","key":"","version":1}]}"#;
        assert!(refused(neither).unwrap_err().contains("either a value"));
    }
}
