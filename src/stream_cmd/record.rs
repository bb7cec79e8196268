//! A record as it is shown: its body as a line, or all of it as one JSON object on a line. Records of
//! commands and of snapshots are no lines, but remarks in brackets.
//!
//! As JSON: `seq_num`, `timestamp`, `headers` (pairs of name and value) and `body`. What is not
//! UTF-8 comes in base64, under `headers_base64` and `body_base64` instead. A command record has
//! `command` instead of all three: `{"trim": 17}` or `{"fence": "token"}`.

use std::borrow::Cow;
use std::io::{self, Write};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use esker_follow::snapshot::record::{Seen, see};
use s2_sdk::types::{Header, SequencedRecord};
use serde::Serialize;
use serde_json::{Value, json};

use crate::json;
use crate::term::{bytes, count, plain};

/// Most characters that are shown of a fold's name.
const MAX_NAME: usize = 256;

/// What a command record asks of the server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    /// Everything before this sequence number goes.
    Trim(u64),
    /// Appends with another token fail. The empty token lifts the fence.
    Fence(Vec<u8>),
    /// One that this program does not know.
    Other(Vec<u8>),
}

impl Command {
    /// The command in a record, if it is a command record.
    pub fn of(record: &SequencedRecord) -> Option<Command> {
        if !record.is_command_record() {
            return None;
        }
        Some(match &*record.headers.first()?.value {
            b"trim" => match <[u8; 8]>::try_from(&*record.body) {
                Ok(point) => Command::Trim(u64::from_be_bytes(point)),
                Err(_) => Command::Other(b"trim".to_vec()),
            },
            b"fence" => Command::Fence(record.body.to_vec()),
            name => Command::Other(name.to_vec()),
        })
    }

    /// `[trim to 17]`.
    pub fn text(&self) -> String {
        match self {
            Command::Trim(point) => format!("[trim to {point}]"),
            Command::Fence(token) if token.is_empty() => "[fence lifted]".into(),
            Command::Fence(token) => format!("[fence `{}`]", token.escape_ascii()),
            Command::Other(name) => format!("[command `{}`]", name.escape_ascii()),
        }
    }

    fn json(&self) -> Value {
        match self {
            Command::Trim(point) => json!({ "trim": point }),
            Command::Fence(token) => json!({ "fence": String::from_utf8_lossy(token) }),
            Command::Other(name) => json!({ String::from_utf8_lossy(name): null }),
        }
    }
}

/// What a record that is no line of text is, in brackets: `[trim to 17]`, or which snapshot of
/// `esker follow` it is, or is a part of.
pub fn remark(record: &SequencedRecord) -> Option<String> {
    if let Some(command) = Command::of(record) {
        return Some(command.text());
    }
    let size = bytes(record.body.len() as u64);
    let of = |fold: &str, cursor: u64| {
        // Nobody has checked what a snapshot says of itself.
        let fold: String = fold.chars().take(MAX_NAME).collect();
        format!("snapshot of `{}`, everything before {cursor}", plain(&fold))
    };
    Some(match see(record) {
        Seen::Data | Seen::Command => return None,
        Seen::Single { meta, .. } => format!("[{}, {size}]", of(&meta.fold, meta.cursor)),
        Seen::Fragment { index, meta, .. } => {
            let of = meta.map_or("snapshot".to_owned(), |meta| of(&meta.fold, meta.cursor));
            format!("[{of}, part {}, {size}]", count(index.saturating_add(1)))
        }
        Seen::Final {
            fragments, totals, ..
        } => format!(
            "[snapshot, end: {} parts, {}]",
            count(fragments),
            bytes(totals.bytes)
        ),
        Seen::Malformed(why) => format!("[snapshot, {size}: {}]", plain(&why)),
    })
}

/// A body as a person sees it: what is text keeps its lines and tabs, and cannot drive the terminal.
pub fn for_terminal(body: &[u8]) -> Result<Cow<'_, str>, String> {
    let Ok(text) = std::str::from_utf8(body) else {
        let size = bytes(body.len() as u64);
        return Err(format!("[{size} that are no text; --json shows them]"));
    };
    let drives = |c: char| c.is_control() && c != '\n' && c != '\t';
    if !text.contains(drives) {
        return Ok(Cow::Borrowed(text));
    }
    let mut shown = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        match drives(c) {
            true => shown.extend(c.escape_default()),
            false => shown.push(c),
        }
    }
    Ok(Cow::Owned(shown))
}

/// Writes a record as a JSON object on a line of its own.
pub fn write_json(out: &mut impl Write, record: &SequencedRecord) -> io::Result<()> {
    let mut shown = Shown {
        seq_num: record.seq_num,
        timestamp: record.timestamp,
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

/// The object, its keys in the order in which they are printed.
#[derive(Default, Serialize)]
struct Shown<'a> {
    seq_num: u64,
    timestamp: u64,
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
        write_json(&mut line, &record).unwrap();
        String::from_utf8(line).unwrap()
    }

    #[test]
    fn a_record_of_text_is_shown_as_text() {
        assert_eq!(
            json(&[(b"kind", b"order")], "caf\u{e9} \"x\"".as_bytes()),
            "{\"seq_num\":17,\"timestamp\":1000,\"headers\":[[\"kind\",\"order\"]],\
             \"body\":\"caf\u{e9} \\\"x\\\"\"}\n"
        );
    }

    #[test]
    fn what_is_not_utf8_comes_in_base64_under_another_name() {
        assert_eq!(
            json(&[(b"k", b"\xff")], b"\x00\xff"),
            "{\"seq_num\":17,\"timestamp\":1000,\"headers_base64\":[[\"aw==\",\"/w==\"]],\
             \"body_base64\":\"AP8=\"}\n"
        );
    }

    #[test]
    fn a_body_on_a_terminal_cannot_drive_it() {
        assert_eq!(
            for_terminal("caf\u{e9}\n\t1".as_bytes()).unwrap(),
            "caf\u{e9}\n\t1"
        );
        let shown = for_terminal("\u{1b}[31m\u{7f}\u{9b}\r".as_bytes()).unwrap();
        assert_eq!(shown, "\\u{1b}[31m\\u{7f}\\u{9b}\\r");
        assert_eq!(
            for_terminal(b"\x28\xb5\x2f\xfd").unwrap_err(),
            "[4 B that are no text; --json shows them]"
        );
    }

    #[test]
    fn a_command_is_shown_as_what_it_asks_for() {
        assert_eq!(
            json(&[(b"", b"trim")], &17u64.to_be_bytes()),
            "{\"seq_num\":17,\"timestamp\":1000,\"command\":{\"trim\":17}}\n"
        );
        assert_eq!(
            json(&[(b"", b"fence")], b"writer-1"),
            "{\"seq_num\":17,\"timestamp\":1000,\"command\":{\"fence\":\"writer-1\"}}\n"
        );
        assert_eq!(Command::Trim(17).text(), "[trim to 17]");
        assert_eq!(Command::Fence(Vec::new()).text(), "[fence lifted]");
    }
}
