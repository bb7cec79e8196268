//! A JSON snapshot, as text.
//!
//! ```json
//! { "version": 1, "created_at": 1707300000, "commit_ts": 12345, "lineage": "…", "lsn": 98765, "forks": 0, "commit_forks": 0,
//!   "state": { "default:agent-1:memory": { "value": {"fact": "…"}, "version": 5, "commit_ts": 12340 },
//!              "default:agent-1:draft": { "deleted": true, "version": 2, "commit_ts": 77 } } }
//! ```
//!
//! A key is its namespace, its agent and its name, with `:` between them, and with `:` and `%` in them
//! written as `%3A` and `%25`. A deleted key is kept for its counter. An entry has `forks` if its version
//! has passed any (see [`esker_partition::lineage`]), and `"unchecked": true` if the store has the entry
//! although an import would refuse it: such an entry is imported as it is. A version or `commit_ts` beyond
//! 2^53 is written as a string, because many JSON readers round such numbers; both forms are read. `lsn` is
//! the last LSN of the partition's log that is covered. The `forks` at the top are those of the lineage;
//! `commit_forks` is how many of them the last commit has passed. `log_tail` has checksums of the log's
//! entries up to `lsn` (see [`esker_partition::log_tail`]).
//!
//! Keys are read in any order, so a document that `jq` has sorted can be read as well. Each entry is checked
//! strictly: an unknown or a missing member is an error that names the key.

use std::fmt;
use std::io::{self, Read, Write};

use bytes::Bytes;
use esker_partition::LogTail;
use esker_partition::state::{StateEntry, StateKey};
use serde::de::{DeserializeSeed, Error as _, IgnoredAny, MapAccess, Visitor};
use serde::{Deserialize, Deserializer};
use serde_json::value::RawValue;

use super::error::FileError;

/// Version of the document.
pub(crate) const VERSION: u32 = 1;

/// Integers up to here are exact for programs that read JSON numbers as floats.
const MAX_EXACT: u64 = 1 << 53;

/// A version or a `commit_ts`.
#[derive(Clone, Copy, Debug)]
struct Number(u64);

impl fmt::Display for Number {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 > MAX_EXACT {
            true => write!(f, "\"{}\"", self.0),
            false => write!(f, "{}", self.0),
        }
    }
}

impl<'de> Deserialize<'de> for Number {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Number, D::Error> {
        struct NumberVisitor;

        impl Visitor<'_> for NumberVisitor {
            type Value = Number;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a number, or its digits in a string")
            }

            fn visit_u64<E: serde::de::Error>(self, number: u64) -> Result<Number, E> {
                Ok(Number(number))
            }

            fn visit_str<E: serde::de::Error>(self, digits: &str) -> Result<Number, E> {
                match digits.parse() {
                    Ok(number) if digits.bytes().all(|b| b.is_ascii_digit()) => Ok(Number(number)),
                    _ => Err(E::custom(format!("{digits:?} is no number from 0 on"))),
                }
            }
        }

        deserializer.deserialize_any(NumberVisitor)
    }
}

/// An entry of a document, with its key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ReadEntry {
    pub key: StateKey,
    pub entry: StateEntry,
    /// Whether it is marked as unchecked: the store that wrote it had it although an import would refuse it.
    pub is_unchecked: bool,
}

/// The header of a snapshot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Header {
    /// Seconds since the epoch.
    pub created_at: u64,
    /// The last commit that it covers.
    pub commit_ts: u64,
    /// The lineage's id, in hexadecimal digits; empty if there is none.
    pub lineage: String,
    /// The last LSN of the partition's log that is covered; 0 if the document does not have it.
    pub lsn: u64,
    /// Forks of the partition up to that lineage.
    pub forks: u64,
    /// How many of them the last commit has passed; `None` if the document does not have it.
    pub commit_forks: Option<u64>,
    /// Checksums of the entries up to `lsn`; `None` if the document has none.
    pub log_tail: Option<LogTail>,
}

/// Writes the header, and the beginning of the entries.
pub(crate) fn write_header(to: &mut impl Write, header: &Header) -> io::Result<()> {
    write!(
        to,
        "{{\"version\": {VERSION}, \"created_at\": {}, \"commit_ts\": {}, \"lineage\": \"{}\", \"lsn\": {}, \"forks\": {},",
        header.created_at,
        Number(header.commit_ts),
        header.lineage,
        header.lsn,
        header.forks
    )?;
    if let Some(forks) = header.commit_forks {
        write!(to, " \"commit_forks\": {forks},")?;
    }
    if let Some(tail) = &header.log_tail {
        to.write_all(b" \"log_tail\": ")?;
        serde_json::to_writer(&mut *to, tail)?;
        to.write_all(b",")?;
    }
    to.write_all(b"\n\"state\": {")
}

/// Writes an entry; `is_unchecked` is whether an import would refuse it.
pub(crate) fn write_entry(
    to: &mut impl Write,
    is_first: bool,
    key: &StateKey,
    entry: &StateEntry,
    is_unchecked: bool,
) -> io::Result<()> {
    to.write_all(if is_first { b"\n" } else { b",\n" })?;
    serde_json::to_writer(&mut *to, &escaped(key))?;
    match &entry.value {
        Some(value) => {
            to.write_all(b": {\"value\": ")?;
            to.write_all(value)?;
        }
        None => to.write_all(b": {\"deleted\": true")?,
    }
    write!(
        to,
        ", \"version\": {}, \"commit_ts\": {}",
        Number(entry.version),
        Number(entry.commit_ts)
    )?;
    if entry.forks > 0 {
        write!(to, ", \"forks\": {}", entry.forks)?;
    }
    if is_unchecked {
        to.write_all(b", \"unchecked\": true")?;
    }
    to.write_all(b"}")
}

/// Writes the end of the document.
pub(crate) fn write_end(to: &mut impl Write) -> io::Result<()> {
    to.write_all(b"\n}}\n")
}

/// A key as one string.
pub(crate) fn escaped(key: &StateKey) -> String {
    let mut text = String::new();
    for (i, name) in [&key.namespace, &key.agent_id, &key.key]
        .into_iter()
        .enumerate()
    {
        if i > 0 {
            text.push(':');
        }
        for character in name.chars() {
            match character {
                ':' => text.push_str("%3A"),
                '%' => text.push_str("%25"),
                other => text.push(other),
            }
        }
    }
    text
}

/// Parses the string of a key.
pub(crate) fn unescaped(text: &str) -> Result<StateKey, String> {
    let mut names = text.split(':').map(name_of);
    let (Some(namespace), Some(agent_id), Some(key), None) =
        (names.next(), names.next(), names.next(), names.next())
    else {
        return Err(format!(
            "the key {text:?} is not namespace, agent and key with `:` between"
        ));
    };
    let key = StateKey::new(namespace?, agent_id?, key?);
    key.check()?;
    Ok(key)
}

fn name_of(text: &str) -> Result<String, String> {
    let mut pieces = text.split('%');
    let mut name = pieces.next().unwrap_or_default().to_owned();
    for piece in pieces {
        let (character, rest) = match (piece.get(..2), piece.get(2..)) {
            (Some("3A" | "3a"), Some(rest)) => (':', rest),
            (Some("25"), Some(rest)) => ('%', rest),
            _ => return Err(format!("a `%` in {text:?} stands for neither `:` nor `%`")),
        };
        name.push(character);
        name.push_str(rest);
    }
    Ok(name)
}

/// Reads a document to its end, and passes each entry on. The header is known only at the end.
pub(crate) fn read(
    from: impl Read,
    mut take: impl FnMut(ReadEntry) -> Result<(), String>,
) -> Result<Header, FileError> {
    let mut parser = serde_json::Deserializer::from_reader(from);
    let header = Document { take: &mut take }
        .deserialize(&mut parser)
        .map_err(failed)?;
    parser.end().map_err(failed)?;
    Ok(header)
}

/// Reads the header at the beginning of a document: the members before the entries. A `version` after them
/// is ignored.
pub(crate) fn read_head(beginning: &[u8]) -> Result<Header, String> {
    #[derive(Deserialize)]
    struct Head {
        created_at: u64,
        commit_ts: Number,
        #[serde(default)]
        lineage: String,
        #[serde(default)]
        lsn: u64,
        #[serde(default)]
        forks: u64,
        commit_forks: Option<u64>,
        log_tail: Option<LogTail>,
    }
    let state = b"\"state\"";
    let at = beginning.windows(state.len()).position(|w| w == state);
    let at = at.ok_or("its entries begin too late, or not at all")?;
    let mut head = beginning[..at].trim_ascii_end().to_vec();
    if head.last() == Some(&b',') {
        head.pop();
    }
    head.push(b'}');
    let head: Head = serde_json::from_slice(&head).map_err(|e| e.to_string())?;
    Ok(Header {
        created_at: head.created_at,
        commit_ts: head.commit_ts.0,
        lineage: head.lineage,
        lsn: head.lsn,
        forks: head.forks,
        commit_forks: head.commit_forks,
        log_tail: head.log_tail,
    })
}

fn failed(error: serde_json::Error) -> FileError {
    match error.is_io() {
        true => io::Error::from(error).into(),
        false => FileError::Damaged(error.to_string()),
    }
}

struct Document<'a, F> {
    take: &'a mut F,
}

impl<'de, F: FnMut(ReadEntry) -> Result<(), String>> DeserializeSeed<'de> for Document<'_, F> {
    type Value = Header;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Header, D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de, F: FnMut(ReadEntry) -> Result<(), String>> Visitor<'de> for Document<'_, F> {
    type Value = Header;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a snapshot of a state")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Header, A::Error> {
        let (mut version, mut created_at, mut commit_ts) = (None::<u32>, None, None);
        let (mut lineage, mut lsn, mut forks, mut commit_forks) = (String::new(), 0, 0, None);
        let mut has_state = false;
        let mut log_tail = None;
        while let Some(member) = map.next_key::<String>()? {
            match member.as_str() {
                "version" => version = Some(map.next_value()?),
                "created_at" => created_at = Some(map.next_value()?),
                "commit_ts" => commit_ts = Some(map.next_value::<Number>()?.0),
                "lineage" => lineage = map.next_value()?,
                "lsn" => lsn = map.next_value()?,
                "forks" => forks = map.next_value()?,
                "commit_forks" => commit_forks = Some(map.next_value()?),
                "log_tail" => log_tail = Some(map.next_value()?),
                "state" if has_state => return Err(A::Error::duplicate_field("state")),
                "state" => {
                    has_state = true;
                    map.next_value_seed(Entries {
                        take: &mut *self.take,
                    })?;
                }
                // A later version may add members.
                _ => drop(map.next_value::<IgnoredAny>()?),
            }
        }
        let version = version.ok_or_else(|| A::Error::missing_field("version"))?;
        if version != VERSION {
            return Err(A::Error::custom(format!(
                "it has version {version}, this version knows {VERSION}: use a newer esker"
            )));
        }
        if !has_state {
            return Err(A::Error::missing_field("state"));
        }
        Ok(Header {
            created_at: created_at.ok_or_else(|| A::Error::missing_field("created_at"))?,
            commit_ts: commit_ts.ok_or_else(|| A::Error::missing_field("commit_ts"))?,
            lineage,
            lsn,
            forks,
            commit_forks,
            log_tail,
        })
    }
}

struct Entries<'a, F> {
    take: &'a mut F,
}

impl<'de, F: FnMut(ReadEntry) -> Result<(), String>> DeserializeSeed<'de> for Entries<'_, F> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de, F: FnMut(ReadEntry) -> Result<(), String>> Visitor<'de> for Entries<'_, F> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("keys with their entries")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        while let Some(key) = map.next_key::<String>()? {
            let entry = map
                .next_value::<Entry>()
                .map_err(|e| A::Error::custom(format!("{key:?}: {e}")))?;
            let names = unescaped(&key).map_err(A::Error::custom)?;
            let is_unchecked = entry.unchecked;
            let entry = entry
                .checked()
                .map_err(|why| A::Error::custom(format!("{key:?}: {why}")))?;
            let read = ReadEntry {
                key: names,
                entry,
                is_unchecked,
            };
            (self.take)(read).map_err(A::Error::custom)?;
        }
        Ok(())
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    value: Option<Box<RawValue>>,
    #[serde(default)]
    deleted: bool,
    version: Number,
    commit_ts: Number,
    #[serde(default)]
    forks: u64,
    #[serde(default)]
    unchecked: bool,
}

impl Entry {
    fn checked(self) -> Result<StateEntry, &'static str> {
        let value = match (self.value, self.deleted) {
            (Some(value), false) if value.get().starts_with('{') => {
                Some(Bytes::from(String::from(Box::<str>::from(value))))
            }
            (Some(_), false) => return Err("the value is not an object"),
            (None, true) => None,
            _ => return Err("it has either a value or \"deleted\": true"),
        };
        let (version, commit_ts) = (self.version.0, self.commit_ts.0);
        if version == 0 || commit_ts == 0 {
            return Err("version and commit_ts begin at 1");
        }
        Ok(StateEntry {
            version,
            commit_ts,
            forks: self.forks,
            value,
            first: version == 1,
        })
    }
}

#[cfg(test)]
mod tests {
    use esker_partition::log_tail::LogBlock;
    use proptest::prelude::*;

    use super::*;

    fn read_all(text: &[u8]) -> Result<(Header, Vec<(StateKey, StateEntry)>), FileError> {
        let mut entries = Vec::new();
        let header = read(text, |one| {
            entries.push((one.key, one.entry));
            Ok(())
        })?;
        Ok((header, entries))
    }

    fn header() -> Header {
        Header {
            created_at: 1_707_300_000,
            commit_ts: 12_345,
            lineage: "00ff".to_owned(),
            lsn: 7,
            forks: 1,
            commit_forks: Some(0),
            log_tail: Some(LogTail {
                entry: u64::MAX,
                blocks: vec![LogBlock {
                    after: 3,
                    bytes: 1 << 20,
                    checksum: 7,
                }],
            }),
        }
    }

    fn text(entries: &[(StateKey, StateEntry)]) -> Vec<u8> {
        let mut text = Vec::new();
        write_header(&mut text, &header()).unwrap();
        for (i, (key, entry)) in entries.iter().enumerate() {
            write_entry(&mut text, i == 0, key, entry, i % 2 == 1).unwrap();
        }
        write_end(&mut text).unwrap();
        text
    }

    fn entry() -> impl Strategy<Value = StateEntry> {
        let value = prop_oneof![
            Just(None),
            Just(Some(Bytes::from_static(b"{}"))),
            Just(Some(Bytes::from_static(
                br#"{"a":[{"b":"\u0000:\""},1.5,9007199254740992,null]}"#
            ))),
        ];
        let number = || {
            prop_oneof![
                1u64..9,
                MAX_EXACT - 1..MAX_EXACT + 3,
                any::<u64>().prop_map(|n| n.max(1))
            ]
        };
        (number(), number(), 0u64..2, value).prop_map(|(version, commit_ts, forks, value)| {
            StateEntry {
                version,
                commit_ts,
                forks,
                value,
                first: version == 1,
            }
        })
    }

    proptest! {
        #[test]
        fn a_snapshot_reads_back_as_it_was_written(
            entries in prop::collection::btree_map(
                ("[\0:%a\"é]{0,3}", "[:%a]{0,3}", "[:%a]{0,3}"), entry(), 0..6,
            ),
        ) {
            let entries: Vec<_> = entries
                .into_iter()
                .map(|((n, a, k), entry)| (StateKey::new(n, a, k), entry))
                .collect();
            let text = text(&entries);
            let read = read_all(&text).unwrap();
            prop_assert_eq!(read, (header(), entries));
            prop_assert_eq!(read_head(&text).unwrap(), header());
            // Another program reads and sorts it, and its content stays the same.
            let value: serde_json::Value = serde_json::from_slice(&text).unwrap();
            let sorted = serde_json::to_vec_pretty(&value).unwrap();
            prop_assert_eq!(read_all(&sorted).unwrap().0, header());
            prop_assert_eq!(read_head(&sorted).unwrap(), header());
        }

        #[test]
        fn a_snapshot_that_is_cut_short_is_none(cut in 0usize..300) {
            let entries = [(StateKey::new("n", "a", "k"), StateEntry {
                version: 1, commit_ts: 1, forks: 0, value: Some(Bytes::from_static(b"{}")), first: true,
            })];
            let text = text(&entries);
            // The last character ends the line.
            prop_assume!(cut + 1 < text.len());
            prop_assert!(read_all(&text[..cut]).is_err());
        }
    }

    #[test]
    fn names_that_could_be_taken_for_others_are_told_apart() {
        let one = escaped(&StateKey::new("n", "b:c", "k"));
        let other = escaped(&StateKey::new("n:b", "c", "k"));
        assert_eq!((one.as_str(), other.as_str()), ("n:b%3Ac:k", "n%3Ab:c:k"));
        assert!(unescaped("n:b:c:k").is_err());
        assert!(unescaped("n:b%2:k").is_err());
    }

    #[test]
    fn what_is_wrong_with_a_snapshot_is_said_with_the_key() {
        let refused = |text: &str| read_all(text.as_bytes()).unwrap_err().to_string();
        let newer = r#"{"version": 9, "created_at": 1, "commit_ts": 1, "state": {}}"#;
        assert!(
            refused(newer).contains("it has version 9"),
            "{}",
            refused(newer)
        );
        let both =
            r#"{"state": {"n:a:k": {"value": {}, "deleted": true, "version": 1, "commit_ts": 1}}}"#;
        assert!(refused(both).contains("n:a:k"), "{}", refused(both));
        let unknown = r#"{"state": {"n:a:k": {"values": {}, "version": 1, "commit_ts": 1}}}"#;
        assert!(refused(unknown).contains("values"), "{}", refused(unknown));
        assert!(refused("{}").contains("version"));
        assert!(
            refused(&format!("{} x", std::str::from_utf8(&text(&[])).unwrap()))
                .contains("trailing")
        );
    }
}
