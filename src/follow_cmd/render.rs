//! The printed form of a state: lines for people and pipes, JSON for programs.
//!
//! Keys and bodies come from the clients that append. As text, control characters are escaped: in a key as
//! Rust writes them, in JSON as JSON does.

use std::cmp::Reverse;
use std::collections::BTreeSet;
use std::io::{self, Write};

use bytes::Bytes;
use esker_follow::folds::{Count, Latest};
use serde::ser::{Error as _, SerializeMap as _};
use serde::{Serialize, Serializer};
use serde_json::value::RawValue;

use super::fold::State;
use crate::failure::Failure;
use crate::json::{escaped, line};
use crate::output::{Written, written};
use crate::term::{count, plain};

/// Bytes of output that are gathered before they are written.
const OUTPUT_BUFFER: usize = 256 * 1024;

/// Standard output.
pub struct Output(io::BufWriter<io::Stdout>);

impl Output {
    pub fn new() -> Output {
        Output(io::BufWriter::with_capacity(OUTPUT_BUFFER, io::stdout()))
    }

    /// Prints what `print` writes, and flushes.
    pub fn print(
        &mut self,
        print: impl FnOnce(&mut dyn Write) -> io::Result<()>,
    ) -> Result<Written, Failure> {
        let printed = print(&mut self.0).and_then(|()| self.0.flush());
        written(printed)
    }

    /// Prints a JSON document on one line.
    pub fn json(&mut self, document: &impl Serialize) -> Result<Written, Failure> {
        self.print(|out| writeln!(out, "{}", line(document)?))
    }
}

impl State {
    /// A short description of what it holds.
    pub fn summary(&self) -> String {
        let keys = |number: usize| match number {
            1 => "1 key".to_owned(),
            n => format!("{} keys", count(n as u64)),
        };
        match self {
            State::Latest(latest) => keys(latest.len()),
            State::Count(counts) => keys(counts.len()),
            State::Merge(_) => "one document".to_owned(),
        }
    }

    /// All of it: a line for each key, or a document.
    pub fn lines(&self, out: &mut dyn Write) -> io::Result<()> {
        match self {
            State::Latest(latest) => {
                for (key, body) in by_key(latest) {
                    writeln!(out, "{}\t{}", plain(key), json_line(body))?;
                }
            }
            State::Count(counts) => {
                for (key, number) in by_count(counts) {
                    writeln!(out, "{number}\t{}", plain(key))?;
                }
            }
            State::Merge(merge) => {
                let text = serde_json::to_string_pretty(merge.document())?;
                writeln!(out, "{}", escaped(&text))?;
            }
        }
        Ok(())
    }

    /// The same for some keys; of a document, all of it, on one line.
    pub fn changed_lines(&self, keys: &BTreeSet<String>, out: &mut dyn Write) -> io::Result<()> {
        match self {
            State::Latest(latest) => {
                for key in keys {
                    if let Some(body) = latest.get(key) {
                        writeln!(out, "{}\t{}", plain(key), json_line(body))?;
                    }
                }
            }
            State::Count(counts) => {
                for key in keys {
                    writeln!(out, "{}\t{}", counts.get(key), plain(key))?;
                }
            }
            State::Merge(merge) => {
                let text = serde_json::to_string(merge.document())?;
                writeln!(out, "{}", escaped(&text))?;
            }
        }
        Ok(())
    }
}

/// Keys and bodies, sorted by key.
pub fn by_key(latest: &Latest) -> Vec<(&str, &Bytes)> {
    let mut entries: Vec<_> = latest.iter().collect();
    entries.sort_unstable_by_key(|(key, _)| *key);
    entries
}

/// Keys and counts, the highest first.
pub fn by_count(counts: &Count) -> Vec<(&str, u64)> {
    let mut entries: Vec<_> = counts.iter().collect();
    // The sort is stable: keys of the same count stay sorted.
    entries.sort_by_key(|(_, number)| Reverse(*number));
    entries
}

/// A body, which is JSON, in one line.
pub fn json_line(body: &[u8]) -> String {
    let text = String::from_utf8_lossy(body);
    // JSON has these characters only between its tokens.
    escaped(text.trim().replace(['\n', '\r', '\t'], " ").as_str()).into_owned()
}

/// A state as JSON: an object by key, or the document.
pub struct Json<'a>(pub &'a State);

impl Serialize for Json<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.0 {
            State::Latest(latest) => {
                let mut map = serializer.serialize_map(Some(latest.len()))?;
                for (key, body) in by_key(latest) {
                    map.serialize_entry(key, &*raw(body).map_err(S::Error::custom)?)?;
                }
                map.end()
            }
            State::Count(counts) => serializer.collect_map(counts.iter()),
            State::Merge(merge) => merge.document().serialize(serializer),
        }
    }
}

/// Some keys of a state, as JSON; of a document, all of it.
pub struct ChangedJson<'a>(pub &'a State, pub &'a BTreeSet<String>);

impl Serialize for ChangedJson<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let ChangedJson(state, keys) = self;
        match state {
            State::Latest(latest) => {
                let mut map = serializer.serialize_map(None)?;
                for key in keys.iter() {
                    if let Some(body) = latest.get(key) {
                        map.serialize_entry(key, &*raw(body).map_err(S::Error::custom)?)?;
                    }
                }
                map.end()
            }
            State::Count(counts) => {
                serializer.collect_map(keys.iter().map(|key| (key, counts.get(key))))
            }
            State::Merge(merge) => merge.document().serialize(serializer),
        }
    }
}

/// A body on one line, with its digits unchanged.
fn raw(body: &[u8]) -> serde_json::Result<Box<RawValue>> {
    match body.contains(&b'\n') {
        true => RawValue::from_string(json_line(body)),
        false => serde_json::from_slice(body),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_body_is_one_line_of_the_same_json_whatever_was_in_it() {
        let body = "{\n\t\"a\": \"x\u{9b}31m\u{7f}\"\r\n}\n".as_bytes();
        let line = json_line(body);
        assert_eq!(line, r#"{  "a": "x\u009b31m\u007f"  }"#);
        let value = |text: &[u8]| serde_json::from_slice::<serde_json::Value>(text).unwrap();
        assert_eq!(value(line.as_bytes()), value(body));
    }

    #[test]
    fn lines_are_sorted_by_key_or_by_count_and_cannot_drive_the_terminal() {
        let printed = |state: State| {
            let mut out = Vec::new();
            state.lines(&mut out).unwrap();
            String::from_utf8(out).unwrap()
        };
        let mut latest = Latest::by("/k").unwrap();
        let mut counts = Count::by("/k").unwrap();
        for key in ["b", "a", "b", "c\\n\\u001b"] {
            let body = format!("{{\"k\":\"{key}\"}}");
            latest.change(body.as_bytes()).unwrap();
            counts.change(body.as_bytes()).unwrap();
        }
        assert_eq!(
            printed(State::Latest(latest)),
            "a\t{\"k\":\"a\"}\nb\t{\"k\":\"b\"}\nc\\n\\u{1b}\t{\"k\":\"c\\n\\u001b\"}\n"
        );
        assert_eq!(
            printed(State::Count(counts)),
            "2\tb\n1\ta\n1\tc\\n\\u{1b}\n"
        );
    }
}
