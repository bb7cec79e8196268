//! A record as it is shown to a person: its body as a line. Records of commands and of snapshots are shown as
//! remarks in brackets.

use std::borrow::Cow;

use esker_follow::snapshot::record::{Seen, see};
use s2_sdk::types::SequencedRecord;
use serde_json::{Value, json};

use crate::term::{bytes, count, plain};

/// Most characters that are shown of a fold's name.
const MAX_NAME: usize = 256;

/// The command in a command record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    /// Drops everything before this sequence number.
    Trim(u64),
    /// Appends with another token fail. The empty token lifts the fence.
    Fence(Vec<u8>),
    /// A command that this version does not support.
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

    /// `{"trim": 17}`.
    pub fn json(&self) -> Value {
        match self {
            Command::Trim(point) => json!({ "trim": point }),
            Command::Fence(token) => json!({ "fence": String::from_utf8_lossy(token) }),
            Command::Other(name) => json!({ String::from_utf8_lossy(name): null }),
        }
    }
}

/// A description in brackets of a record that is not shown as a line: `[trim to 17]`, or which snapshot of
/// `esker follow` it is or is a part of.
pub fn remark(record: &SequencedRecord) -> Option<String> {
    if let Some(command) = Command::of(record) {
        return Some(command.text());
    }
    let size = bytes(record.body.len() as u64);
    let of = |fold: &str, cursor: u64| {
        // The description of a snapshot is not verified, so its name is cut.
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

/// A body as it is shown to a person: text keeps its lines and tabs, and control characters that would
/// control the terminal are escaped.
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

#[cfg(test)]
mod tests {
    use super::*;

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
        assert_eq!(Command::Trim(17).text(), "[trim to 17]");
        assert_eq!(Command::Fence(Vec::new()).text(), "[fence lifted]");
    }
}
