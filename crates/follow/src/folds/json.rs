//! A JSON document whose numbers keep the digits that they were written with.
//!
//! `serde_json::Value` reads a number that does not fit into 64 bits as a float, so that two ids above
//! 2^64 become one. Here numbers stay text.

use std::collections::BTreeMap;
use std::fmt::{self, Write as _};

use serde::ser::{Error as _, Serializer};
use serde::{Deserialize as _, Serialize};
use serde_json::Value;
use serde_json::value::RawValue;

/// Most levels of nested arrays and objects: as many as `serde_json` reads into a `Value`, so that other
/// programs that use it can read every document that is written.
const MAX_DEPTH: usize = 127;

/// A JSON document. Of members with the same name the last one counts; members are sorted by name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Json {
    /// `null`.
    #[default]
    Null,
    /// `true` or `false`.
    Bool(bool),
    /// A number, as it was written.
    Number(Box<str>),
    /// A string.
    String(String),
    /// An array.
    Array(Vec<Json>),
    /// An object.
    Object(BTreeMap<String, Json>),
}

impl Json {
    /// Reads a document.
    ///
    /// # Errors
    ///
    /// What is not valid JSON, or that more than 127 arrays and objects are nested.
    pub fn parse(text: &[u8]) -> Result<Json, String> {
        // The grammar and the encoding are checked once, here, and not where the text is parsed.
        let mut json = serde_json::Deserializer::from_slice(text);
        let raw = <&RawValue>::deserialize(&mut json).map_err(|e| e.to_string())?;
        json.end().map_err(|e| e.to_string())?;
        Json::of_raw(raw)
    }

    /// From a text whose grammar was checked.
    pub(super) fn of_raw(raw: &RawValue) -> Result<Json, String> {
        Parser {
            text: raw.get(),
            at: 0,
        }
        .value(0)
    }

    /// Applies a merge patch (RFC 7396).
    pub fn merge(&mut self, patch: Json) {
        let Json::Object(patch) = patch else {
            *self = patch;
            return;
        };
        if !matches!(self, Json::Object(_)) {
            *self = Json::Object(BTreeMap::new());
        }
        let Json::Object(members) = self else { return };
        for (name, patch) in patch {
            if patch == Json::Null {
                members.remove(&name);
            } else {
                members.entry(name).or_default().merge(patch);
            }
        }
    }

    /// A text that is equal for equal documents, and for no others: without spaces, and with numbers as
    /// [`number`] writes them.
    pub(super) fn canonical(&self) -> String {
        let mut text = String::new();
        self.write_canonical(&mut text);
        text
    }

    fn write_canonical(&self, out: &mut String) {
        match self {
            Json::Null => out.push_str("null"),
            Json::Bool(value) => out.push_str(if *value { "true" } else { "false" }),
            Json::Number(digits) => out.push_str(&number(digits)),
            Json::String(text) => out.push_str(&quoted(text)),
            Json::Array(items) => {
                out.push('[');
                for (index, item) in items.iter().enumerate() {
                    if index > 0 {
                        out.push(',');
                    }
                    item.write_canonical(out);
                }
                out.push(']');
            }
            Json::Object(members) => {
                out.push('{');
                for (index, (name, member)) in members.iter().enumerate() {
                    if index > 0 {
                        out.push(',');
                    }
                    out.push_str(&quoted(name));
                    out.push(':');
                    member.write_canonical(out);
                }
                out.push('}');
            }
        }
    }
}

/// As compact JSON.
impl fmt::Display for Json {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = serde_json::to_string(self).map_err(|_| fmt::Error)?;
        f.write_str(&text)
    }
}

/// For `serde_json`, which writes numbers as they are.
impl Serialize for Json {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Json::Null => serializer.serialize_unit(),
            Json::Bool(value) => serializer.serialize_bool(*value),
            Json::Number(digits) => {
                let raw = serde_json::from_str::<&RawValue>(digits).map_err(S::Error::custom)?;
                raw.serialize(serializer)
            }
            Json::String(text) => serializer.serialize_str(text),
            Json::Array(items) => serializer.collect_seq(items),
            Json::Object(members) => serializer.collect_map(members),
        }
    }
}

/// A JSON string.
pub(super) fn quoted(text: &str) -> String {
    Value::from(text).to_string()
}

/// A number as text that is equal for equal numbers: whole ones as they are, others as `serde_json`
/// writes them if a float has their exact value, and as digits and an exponent if not. Whole numbers and
/// those with a point or an exponent are never equal.
pub(super) fn number(digits: &str) -> String {
    let is_whole = !digits.contains(['.', 'e', 'E']);
    if is_whole && digits != "-0" {
        return digits.to_owned();
    }
    let Some(exact) = Decimal::of(digits) else {
        return digits.to_owned();
    };
    // Not parsed by `serde_json`, which may return the float next to it.
    if let Ok(float) = digits.parse::<f64>() {
        let float = Value::from(float).to_string();
        if Decimal::of(&float).as_ref() == Some(&exact) {
            return float;
        }
    }
    let Decimal {
        sign,
        digits,
        exponent,
    } = exact;
    format!("{sign}{digits}e{exponent}")
}

/// A number: `sign digits × 10^exponent`, without zeros at either end of the digits.
#[derive(PartialEq, Eq)]
struct Decimal {
    sign: &'static str,
    digits: String,
    exponent: i64,
}

impl Decimal {
    /// From a JSON number; `None` if its exponent is too large to be useful.
    fn of(text: &str) -> Option<Decimal> {
        let (sign, text) = match text.strip_prefix('-') {
            Some(rest) => ("-", rest),
            None => ("", text),
        };
        let (mantissa, exponent) = match text.split_once(['e', 'E']) {
            Some((mantissa, exponent)) => (mantissa, exponent.parse::<i64>().ok()?),
            None => (text, 0),
        };
        let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
        let all = format!("{whole}{fraction}");
        let digits = all.trim_end_matches('0');
        let zeros = all.len() - digits.len();
        let digits = digits.trim_start_matches('0');
        if digits.is_empty() {
            let digits = "0".to_owned();
            return Some(Decimal {
                sign,
                digits,
                exponent: 0,
            });
        }
        let shift = i64::try_from(zeros).ok()? - i64::try_from(fraction.len()).ok()?;
        Some(Decimal {
            sign,
            digits: digits.to_owned(),
            exponent: exponent.checked_add(shift)?,
        })
    }
}

/// Parses a text whose grammar was checked.
struct Parser<'a> {
    text: &'a str,
    at: usize,
}

impl Parser<'_> {
    fn value(&mut self, depth: usize) -> Result<Json, String> {
        match self.peek()? {
            b'{' | b'[' if depth == MAX_DEPTH => Err(format!(
                "more than {MAX_DEPTH} arrays and objects within each other"
            )),
            b'{' => self.object(depth),
            b'[' => self.array(depth),
            b'"' => self.string().map(Json::String),
            _ => self.scalar(),
        }
    }

    fn object(&mut self, depth: usize) -> Result<Json, String> {
        self.at += 1;
        let mut members = BTreeMap::new();
        loop {
            match self.peek()? {
                b'}' => break,
                b',' => self.at += 1,
                b'"' => {
                    let name = self.string()?;
                    if self.peek()? == b':' {
                        self.at += 1;
                    }
                    members.insert(name, self.value(depth + 1)?);
                }
                _ => return Err(self.unexpected()),
            }
        }
        self.at += 1;
        Ok(Json::Object(members))
    }

    fn array(&mut self, depth: usize) -> Result<Json, String> {
        self.at += 1;
        let mut items = Vec::new();
        loop {
            match self.peek()? {
                b']' => break,
                b',' => self.at += 1,
                _ => items.push(self.value(depth + 1)?),
            }
        }
        self.at += 1;
        Ok(Json::Array(items))
    }

    fn string(&mut self) -> Result<String, String> {
        let begin = self.at;
        self.at += 1;
        loop {
            match self.text.as_bytes().get(self.at) {
                Some(b'"') => break,
                Some(b'\\') => self.at += 2,
                Some(_) => self.at += 1,
                None => return Err(self.unexpected()),
            }
        }
        self.at += 1;
        let text = self.text.get(begin..self.at);
        let text = text.ok_or_else(|| self.unexpected())?;
        serde_json::from_str(text).map_err(|e| e.to_string())
    }

    fn scalar(&mut self) -> Result<Json, String> {
        let rest = &self.text[self.at..];
        let end = rest.find([',', '}', ']', ' ', '\n', '\r', '\t']);
        let text = &rest[..end.unwrap_or(rest.len())];
        self.at += text.len();
        match text {
            "" => Err(self.unexpected()),
            "null" => Ok(Json::Null),
            "true" => Ok(Json::Bool(true)),
            "false" => Ok(Json::Bool(false)),
            number => Ok(Json::Number(number.into())),
        }
    }

    /// The next byte that is not whitespace.
    fn peek(&mut self) -> Result<u8, String> {
        loop {
            match self.text.as_bytes().get(self.at) {
                Some(b' ' | b'\n' | b'\r' | b'\t') => self.at += 1,
                Some(byte) => return Ok(*byte),
                None => return Err(self.unexpected()),
            }
        }
    }

    fn unexpected(&self) -> String {
        let mut text = String::new();
        let _ = write!(text, "unexpected text at byte {}", self.at);
        text
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use proptest::prelude::*;

    use super::*;

    fn value() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            any::<f64>().prop_map(Value::from),
            "[a-c\"\\\\\u{0}-\u{ff}]{0,3}".prop_map(Value::from),
        ];
        leaf.prop_recursive(4, 24, 4, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
                prop::collection::btree_map("[a-c]{0,1}", inner, 0..4)
                    .prop_map(|members| members.into_iter().collect()),
            ]
        })
    }

    proptest! {
        #[test]
        fn a_document_without_large_numbers_is_what_serde_json_makes_of_it(value in value()) {
            for text in [value.to_string(), serde_json::to_string_pretty(&value).unwrap()] {
                let json = Json::parse(text.as_bytes()).unwrap();
                prop_assert_eq!(json.to_string(), value.to_string());
                prop_assert_eq!(json.canonical(), value.to_string());
                let pretty = serde_json::to_string_pretty(&json).unwrap();
                prop_assert_eq!(pretty, serde_json::to_string_pretty(&value).unwrap());
            }
        }

        #[test]
        fn a_merge_is_what_json_patch_makes_of_it(values in prop::collection::vec(value(), 1..5)) {
            let mut json = Json::Null;
            let mut expected = Value::Null;
            for patch in values {
                json.merge(Json::parse(patch.to_string().as_bytes()).unwrap());
                json_patch::merge(&mut expected, &patch);
                prop_assert_eq!(json.to_string(), expected.to_string());
            }
        }

        #[test]
        fn whatever_the_bytes_are_reading_them_ends_without_a_panic(bytes in ".{0,40}") {
            let read = Json::parse(bytes.as_bytes()).is_ok();
            if serde_json::from_str::<Value>(&bytes).is_ok() {
                prop_assert!(read);
            }
        }
    }

    #[test]
    fn numbers_are_the_same_only_if_they_are_equal() {
        let same = [
            ("18446744073709551617", "18446744073709551617"),
            (
                "-170141183460469231731687303715884105729",
                "-170141183460469231731687303715884105729",
            ),
            ("1.50", "1.5"),
            ("1.0", "1.0"),
            ("1e0", "1.0"),
            ("-0", "-0.0"),
            ("0.0", "0.0"),
            ("0.12345678901234567891", "12345678901234567891e-20"),
            ("12345678901234567891e-20", "12345678901234567891e-20"),
            ("0.123456789012345678910", "12345678901234567891e-20"),
            ("1e999", "1e999"),
            ("10e998", "1e999"),
            ("1e99999999999999999999", "1e99999999999999999999"),
        ];
        for (text, expected) in same {
            assert_eq!(number(text), expected, "{text}");
        }
        for (one, other) in [
            ("18446744073709551617", "18446744073709551618"),
            ("0.12345678901234567891", "0.12345678901234567892"),
            ("18446744073709551617.0", "18446744073709551616.0"),
            ("1", "1.0"),
        ] {
            assert_ne!(number(one), number(other));
        }
    }

    #[test]
    fn what_no_value_of_serde_json_could_hold_is_no_document() {
        let nested = |depth: usize| "[".repeat(depth) + &"]".repeat(depth);
        assert!(Json::parse(nested(MAX_DEPTH).as_bytes()).is_ok());
        for text in [
            nested(MAX_DEPTH + 1),
            nested(400_000),
            "{\"a\":".repeat(200_000) + "1" + &"}".repeat(200_000),
            r#""\ud800""#.to_owned(),
            r#"{"\ud800":1}"#.to_owned(),
            String::new(),
            "{".to_owned(),
            "1 2".to_owned(),
        ] {
            assert!(Json::parse(text.as_bytes()).is_err());
        }
        assert!(Json::parse(b"\"\xff\"").is_err());
    }
}
