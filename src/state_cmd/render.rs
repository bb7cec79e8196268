//! The printed form of values, keys and commits.

use esker_proto::state::v1::{Operation, ReplayEvent};
use esker_proto::{Struct, value};
use serde::Serialize;
use serde_json::value::RawValue;

use crate::failure::Failure;
use crate::json::escaped;
use crate::term::rfc3339;

/// Columns that a level of a value is indented by.
const INDENT: usize = 2;

/// A value as JSON on one line, with its control characters escaped.
pub fn json(value: &Struct) -> Result<String, Failure> {
    let text = value::to_json(value).map_err(|e| Failure::wrong("server", e))?;
    let text = String::from_utf8(text).map_err(|e| Failure::wrong("server", e))?;
    Ok(escaped(&text).into_owned())
}

/// A value as a part of a larger JSON document. Its numbers are unchanged.
pub fn raw(value: Option<&Struct>) -> Result<Option<Box<RawValue>>, Failure> {
    let Some(value) = value else {
        return Ok(None);
    };
    let raw = RawValue::from_string(json(value)?).map_err(|e| Failure::wrong("server", e))?;
    Ok(Some(raw))
}

/// JSON without spaces, spread over lines. Its numbers are unchanged.
pub fn pretty(json: &str) -> String {
    let mut out = String::with_capacity(json.len() * 2);
    let (mut depth, mut in_string, mut escaped) = (0_usize, false, false);
    let mut characters = json.chars().peekable();
    while let Some(c) = characters.next() {
        if in_string {
            out.push(c);
            in_string = escaped || c != '"';
            escaped = !escaped && c == '\\';
            continue;
        }
        let line = |out: &mut String, depth: usize| {
            out.push('\n');
            out.extend(std::iter::repeat_n(' ', depth * INDENT));
        };
        match c {
            '"' => {
                in_string = true;
                out.push(c);
            }
            '{' | '[' => {
                out.push(c);
                if let Some(end) = characters.next_if(|next| matches!(next, '}' | ']')) {
                    out.push(end);
                } else {
                    depth += 1;
                    line(&mut out, depth);
                }
            }
            '}' | ']' => {
                depth = depth.saturating_sub(1);
                line(&mut out, depth);
                out.push(c);
            }
            ',' => {
                out.push(c);
                line(&mut out, depth);
            }
            ':' => out.push_str(": "),
            _ => out.push(c),
        }
    }
    out
}

/// A commit, as one JSON object.
#[derive(Serialize)]
pub struct ShownEvent {
    commit_ts: u64,
    txn_id: String,
    committed_at: Option<String>,
    committed_at_ms: u64,
    operations: Vec<ShownOperation>,
}

#[derive(Serialize)]
struct ShownOperation {
    namespace: String,
    agent_id: String,
    key: String,
    version: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    value: Option<Box<RawValue>>,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    deleted: bool,
}

impl ShownEvent {
    /// The printed form of a commit.
    pub fn of(event: ReplayEvent) -> Result<ShownEvent, Failure> {
        let operation = |it: Operation| {
            Ok(ShownOperation {
                value: raw(it.value.as_ref())?,
                deleted: it.value.is_none(),
                namespace: it.namespace,
                agent_id: it.agent_id,
                key: it.key,
                version: it.version,
            })
        };
        Ok(ShownEvent {
            commit_ts: event.commit_ts,
            txn_id: event.txn_id,
            committed_at: rfc3339(event.committed_at_ms),
            committed_at_ms: event.committed_at_ms,
            operations: event
                .operations
                .into_iter()
                .map(operation)
                .collect::<Result<_, Failure>>()?,
        })
    }
}

/// One JSON object on a line.
pub fn line(object: &impl Serialize) -> Result<String, Failure> {
    crate::json::line(object).map_err(|e| Failure::wrong("io", format!("writing the output: {e}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_is_spread_over_lines_and_keeps_its_texts_and_numbers() {
        let json = r#"{"a":[1,{"b":"x:,{}[]\"\\"},[],{}],"c":1e+300,"d":null}"#;
        assert_eq!(
            pretty(json),
            "{\n  \"a\": [\n    1,\n    {\n      \"b\": \"x:,{}[]\\\"\\\\\"\n    },\n    [],\n    {}\n  ],\n  \
             \"c\": 1e+300,\n  \"d\": null\n}"
        );
        assert_eq!(pretty("{}"), "{}");
        let same: serde_json::Value = serde_json::from_str(&pretty(json)).unwrap();
        assert_eq!(
            same,
            serde_json::from_str::<serde_json::Value>(json).unwrap()
        );
    }
}
