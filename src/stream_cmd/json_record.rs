//! A record as one JSON object on a line: the printed form, and its parser.
//!
//! The members are `seq_num`, `timestamp` in milliseconds, the same as `time`, `headers` (pairs of name and
//! value) and `body`. What is not UTF-8 is in base64, under `headers_base64` and `body_base64` instead. A
//! command record has `command` instead of headers and body: `{"trim": 17}` or `{"fence": "token"}`.
//!
//! On input, everything but the body or the command may be left out. A record gets a new sequence number
//! where it is appended, and `time` is ignored because `timestamp` has the same value. `seq_num` matters only
//! for a trim: in a stream that was empty, its trim point is moved to the same record of the copy
//! ([`Numbers`]). An unchanged trim point would drop records of a copy of a trimmed stream, because the copy
//! has smaller numbers. In a stream that has had records, the trim point becomes 0 and drops nothing: any
//! other would drop those records, too.

use std::io::{self, Write};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use s2_sdk::types::{AppendRecord, CommandRecord, FencingToken, Header, SequencedRecord};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::record::Command;
use crate::json;
use crate::term::rfc3339;

/// Writes a record as a JSON object on a line of its own.
pub fn write(out: &mut impl Write, record: &SequencedRecord) -> io::Result<()> {
    let mut shown = Shown {
        seq_num: record.seq_num,
        timestamp: record.timestamp,
        time: rfc3339(record.timestamp),
        ..Shown::default()
    };
    if let Some(command) = Command::of(record) {
        shown.command = Some(command.json());
    } else {
        match record.headers.iter().map(utf8_pair).collect() {
            Some(pairs) => shown.headers = Some(pairs),
            None => shown.headers_base64 = Some(record.headers.iter().map(base64_pair).collect()),
        }
        match std::str::from_utf8(&record.body) {
            Ok(text) => shown.body = Some(text),
            Err(_) => shown.body_base64 = Some(BASE64.encode(&record.body)),
        }
    }
    writeln!(out, "{}", json::line(&shown)?)
}

/// The object, with its keys in the order in which they are printed.
#[derive(Default, Serialize)]
struct Shown<'a> {
    seq_num: u64,
    timestamp: u64,
    /// The timestamp as a time; `None` if it is out of range, because a client may give any number.
    #[serde(skip_serializing_if = "Option::is_none")]
    time: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    command: Option<Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    headers: Option<Vec<[&'a str; 2]>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    headers_base64: Option<Vec<[String; 2]>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    body: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    body_base64: Option<String>,
}

fn utf8_pair(header: &Header) -> Option<[&str; 2]> {
    Some([
        std::str::from_utf8(&header.name).ok()?,
        std::str::from_utf8(&header.value).ok()?,
    ])
}

fn base64_pair(header: &Header) -> [String; 2] {
    [BASE64.encode(&header.name), BASE64.encode(&header.value)]
}

/// The members that a line of input may have.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Given {
    seq_num: Option<u64>,
    timestamp: Option<u64>,
    #[serde(rename = "time")]
    _time: Option<String>,
    command: Option<GivenCommand>,
    headers: Option<Vec<[String; 2]>>,
    headers_base64: Option<Vec<[String; 2]>>,
    body: Option<String>,
    body_base64: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "lowercase")]
enum GivenCommand {
    Trim(u64),
    Fence(String),
}

/// Sequence numbers of the target stream, if no other client appends.
#[derive(Clone, Copy, Debug, Default)]
pub struct Numbers {
    /// The tail of the stream before the first record.
    pub base: u64,
    /// The number of the next record.
    pub next: u64,
}

impl Numbers {
    /// The trim point in the target stream for a trim that is record `seq_num` of another stream and has the
    /// trim point `point` there. A trim drops everything before its point, so the point becomes 0, and drops
    /// nothing, where the target stream had records before the copy. If other clients append to an empty stream
    /// at the same time, it may drop some of their records.
    fn moved(self, point: u64, seq_num: u64) -> u64 {
        let moved = i128::from(point) + i128::from(self.next) - i128::from(seq_num);
        match u64::try_from(moved) {
            Ok(moved) if self.base == 0 => moved,
            _ => 0,
        }
    }
}

/// Parses a record that is to be appended at `numbers`.
///
/// # Errors
///
/// Why the line is no record.
pub fn read(line: &[u8], numbers: Numbers) -> Result<AppendRecord, String> {
    let given: Given = serde_json::from_slice(line).map_err(|e| e.to_string())?;
    let has_content = given.headers.is_some()
        || given.headers_base64.is_some()
        || given.body.is_some()
        || given.body_base64.is_some();
    if let Some(command) = given.command {
        if has_content {
            return Err("a command has neither headers nor a body".to_owned());
        }
        let command = match command {
            GivenCommand::Trim(point) => CommandRecord::trim(match given.seq_num {
                Some(seq_num) => numbers.moved(point, seq_num),
                None => point,
            }),
            GivenCommand::Fence(token) => {
                CommandRecord::fence(token.parse::<FencingToken>().map_err(|e| e.0)?)
            }
        };
        let command = match given.timestamp {
            Some(timestamp) => command.with_timestamp(timestamp),
            None => command,
        };
        return Ok(command.into());
    }
    let body = match (given.body, given.body_base64) {
        (Some(text), None) => text.into_bytes(),
        (None, Some(encoded)) => decoded("body_base64", &encoded)?,
        (None, None) => return Err("it has neither body, body_base64 nor command".to_owned()),
        (Some(_), Some(_)) => return Err("it has both body and body_base64".to_owned()),
    };
    let headers = match (given.headers, given.headers_base64) {
        (None, None) => Vec::new(),
        (Some(pairs), None) => {
            let pairs = pairs.into_iter();
            pairs
                .map(|[name, value]| Header::new(name, value))
                .collect()
        }
        (None, Some(pairs)) => pairs
            .iter()
            .map(|[name, value]| {
                let name = decoded("headers_base64", name)?;
                Ok(Header::new(name, decoded("headers_base64", value)?))
            })
            .collect::<Result<_, String>>()?,
        (Some(_), Some(_)) => return Err("it has both headers and headers_base64".to_owned()),
    };
    let record = AppendRecord::new(body).and_then(|record| record.with_headers(headers));
    let record = record.map_err(|e| e.0)?;
    Ok(match given.timestamp {
        Some(timestamp) => record.with_timestamp(timestamp),
        None => record,
    })
}

fn decoded(field: &str, text: &str) -> Result<Vec<u8>, String> {
    let bytes = BASE64.decode(text);
    bytes.map_err(|e| format!("{field} is no base64: {e}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn json(headers: &[(&[u8], &[u8])], body: &[u8]) -> String {
        let headers = headers
            .iter()
            .map(|(name, value)| Header::new(name.to_vec(), value.to_vec()))
            .collect();
        let record = SequencedRecord::from_parts(17, 1000, headers, body.to_vec());
        let mut line = Vec::new();
        write(&mut line, &record).unwrap();
        String::from_utf8(line).unwrap()
    }

    #[test]
    fn a_record_of_text_is_shown_as_text() {
        assert_eq!(
            json(&[(b"kind", b"order")], "caf\u{e9} \"x\"".as_bytes()),
            "{\"seq_num\":17,\"timestamp\":1000,\"time\":\"1970-01-01T00:00:01Z\",\"headers\":[[\"kind\",\"order\"]],\
             \"body\":\"caf\u{e9} \\\"x\\\"\"}\n"
        );
    }

    #[test]
    fn what_is_not_utf8_comes_in_base64_under_another_name() {
        assert_eq!(
            json(&[(b"k", b"\xff")], b"\x00\xff"),
            "{\"seq_num\":17,\"timestamp\":1000,\"time\":\"1970-01-01T00:00:01Z\",\"headers_base64\":[[\"aw==\",\"/w==\"]],\
             \"body_base64\":\"AP8=\"}\n"
        );
    }

    #[test]
    fn a_command_is_shown_as_what_it_asks_for() {
        assert_eq!(
            json(&[(b"", b"trim")], &17u64.to_be_bytes()),
            "{\"seq_num\":17,\"timestamp\":1000,\"time\":\"1970-01-01T00:00:01Z\",\"command\":{\"trim\":17}}\n"
        );
        assert_eq!(
            json(&[(b"", b"fence")], b"writer-1"),
            "{\"seq_num\":17,\"timestamp\":1000,\"time\":\"1970-01-01T00:00:01Z\",\"command\":{\"fence\":\"writer-1\"}}\n"
        );
    }

    #[test]
    fn what_is_printed_is_read_as_the_same_record() {
        type Headers<'a> = &'a [(&'a [u8], &'a [u8])];
        let records: [(Headers<'_>, &[u8]); 5] = [
            (&[], b""),
            (
                &[(b"kind", b"order"), (b"kind", b"")],
                "caf\u{e9}\n\u{0}".as_bytes(),
            ),
            (&[(b"k", b"\xff")], b"\x00\xff"),
            (&[(b"", b"trim")], &17u64.to_be_bytes()),
            (&[(b"", b"fence")], b"writer-1"),
        ];
        for (headers, body) in records {
            let line = json(headers, body);
            let numbers = Numbers { base: 0, next: 17 };
            let record = read(line.as_bytes(), numbers).unwrap();
            assert_eq!(record.body(), body, "{line}");
            assert_eq!(record.timestamp(), Some(1000), "{line}");
            let same = record.headers().iter();
            let same: Vec<_> = same.map(|it| (&*it.name, &*it.value)).collect();
            assert_eq!(same, headers, "{line}");
        }
        let least = read(b"{\"body\":\"x\"}", Numbers::default()).unwrap();
        assert_eq!((least.body(), least.timestamp()), (&b"x"[..], None));
    }

    #[test]
    fn a_trim_goes_to_the_same_record_of_a_copy() {
        // A copy with the same numbers as its source; a copy of a stream that begins at 100; a copy behind 7
        // records that stay.
        for ((base, next), (point, seq_num), moved) in [
            ((0, 10), (4, 10), 4),
            ((0, 10), (100, 110), 0),
            ((0, 10), (104, 110), 4),
            ((7, 17), (4, 10), 0),
            ((7, 17), (0, 10), 0),
            ((0, 0), (u64::MAX, 0), u64::MAX),
            ((0, 0), (0, u64::MAX), 0),
        ] {
            let numbers = Numbers { base, next };
            assert_eq!(
                numbers.moved(point, seq_num),
                moved,
                "{numbers:?} {point} {seq_num}"
            );
        }
        let by_hand = read(br#"{"command":{"trim":4}}"#, Numbers { base: 9, next: 9 });
        assert_eq!(by_hand.unwrap().body(), 4u64.to_be_bytes());
    }

    #[test]
    fn a_line_that_is_no_record_is_refused_with_the_reason() {
        for (line, reason) in [
            ("x", "expected value"),
            ("{}", "neither body"),
            (r#"{"body":"x","bdoy":"y"}"#, "unknown field `bdoy`"),
            (r#"{"body":"x","body_base64":"eA=="}"#, "both body"),
            (r#"{"body_base64":"?"}"#, "no base64"),
            (
                r#"{"command":{"trim":1},"body":"x"}"#,
                "neither headers nor",
            ),
            (r#"{"command":{"drop":1}}"#, "unknown variant `drop`"),
            (r#"{"body":"x","timestamp":-1}"#, "invalid value"),
        ] {
            let problem = read(line.as_bytes(), Numbers::default()).unwrap_err();
            assert!(problem.contains(reason), "{line}: {problem}");
        }
    }
}
