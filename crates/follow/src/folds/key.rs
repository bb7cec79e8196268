//! The key of a record: what a JSON pointer (RFC 6901) points to in its body.
//!
//! A body is read once and only its key is kept, because a fold spends most of its time with that. The
//! whole body is checked to be JSON nevertheless.

use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::Value;
use serde_json::value::RawValue;

use super::json::{self, Json};
use crate::error::Error;
use crate::fold::ApplyError;

/// A JSON pointer: `/order/id`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pointer {
    text: String,
    tokens: Vec<String>,
}

impl Pointer {
    /// Reads one. The empty one points to the whole document.
    ///
    /// # Errors
    ///
    /// [`Error::Invalid`] for one that does not begin with `/`.
    pub fn new(pointer: &str) -> Result<Pointer, Error> {
        let tokens = match pointer.strip_prefix('/') {
            None if pointer.is_empty() => Vec::new(),
            None => {
                return Err(Error::Invalid(format!(
                    "`{pointer}` is no JSON pointer: write /{pointer}"
                )));
            }
            Some(rest) => {
                let tokens = rest.split('/');
                tokens
                    .map(|t| t.replace("~1", "/").replace("~0", "~"))
                    .collect()
            }
        };
        Ok(Pointer {
            text: pointer.to_owned(),
            tokens,
        })
    }

    /// As it was written.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// The key in a record's body. A string is its own key, unless it is JSON itself: `c1`, but `"7"`,
    /// `"null"` and `"{}"` with their quotes, as JSON. Anything else is its key as JSON: `7`, `null`.
    /// So different values have different keys. Whole numbers of any size keep their digits.
    ///
    /// # Errors
    ///
    /// [`ApplyError::Malformed`] for a body that is not JSON, or has nothing there.
    pub fn key(&self, body: &[u8]) -> Result<String, ApplyError> {
        // The parser below does not check the parts that it skips to be UTF-8.
        let body = std::str::from_utf8(body).map_err(not_json)?;
        let mut json = serde_json::Deserializer::from_str(body);
        let at = At {
            tokens: &self.tokens,
        };
        let found = at.deserialize(&mut json);
        let found = found.and_then(|found| json.end().map(|()| found));
        match found {
            Ok(Some(key)) => Ok(key),
            Ok(None) => Err(ApplyError::Malformed(format!(
                "there is nothing at {}",
                self.text
            ))),
            Err(error) => Err(not_json(error)),
        }
    }
}

pub(super) fn not_json(why: impl fmt::Display) -> ApplyError {
    ApplyError::Malformed(format!("it is not JSON: {why}"))
}

/// The key of a value.
fn key_of(value: &RawValue) -> Result<String, String> {
    let text = value.get();
    match text.as_bytes().first() {
        Some(b'"') => {
            let text: String = serde_json::from_str(text).map_err(|e| e.to_string())?;
            Ok(match is_json(&text) {
                true => json::quoted(&text),
                false => text,
            })
        }
        Some(b'{' | b'[') => Json::of_raw(value).map(|value| value.canonical()),
        Some(b'-' | b'0'..=b'9') => Ok(json::number(text)),
        _ => Ok(text.to_owned()),
    }
}

/// Whether a text is JSON: as a key, it is not the string of this text.
pub(super) fn is_json(text: &str) -> bool {
    let begin = text.trim_start_matches([' ', '\n', '\r', '\t']);
    let may_be = matches!(
        begin.as_bytes().first(),
        Some(b'{' | b'[' | b'"' | b'-' | b'0'..=b'9' | b't' | b'f' | b'n')
    );
    may_be && serde_json::from_str::<&RawValue>(text).is_ok()
}

/// The key that version 1 of the folds had for the value whose key this is: without quotes, and with
/// numbers of more than 64 bits as floats. `None` if it had none.
pub(super) fn key_of_version_1(key: &str) -> Option<String> {
    if !is_json(key) {
        return Some(key.to_owned());
    }
    match serde_json::from_str(key).ok()? {
        Value::String(text) => Some(text),
        other => Some(other.to_string()),
    }
}

/// Reads what is at the end of a path, if anything is there.
struct At<'a> {
    tokens: &'a [String],
}

impl<'de> DeserializeSeed<'de> for At<'_> {
    type Value = Option<String>;

    fn deserialize<D: Deserializer<'de>>(self, from: D) -> Result<Self::Value, D::Error> {
        use serde::Deserialize as _;
        use serde::de::Error as _;
        if !self.tokens.is_empty() {
            return from.deserialize_any(self);
        }
        let value = <&RawValue>::deserialize(from)?;
        key_of(value).map(Some).map_err(D::Error::custom)
    }
}

impl<'de> Visitor<'de> for At<'_> {
    type Value = Option<String>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("any JSON")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut found = None;
        while let Some(is_wanted) = map.next_key_seed(Is(&self.tokens[0]))? {
            if is_wanted {
                // Of members with the same name the last one counts, as in other programs.
                found = map.next_value_seed(At {
                    tokens: &self.tokens[1..],
                })?;
            } else {
                map.next_value::<IgnoredAny>()?;
            }
        }
        Ok(found)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Self::Value, A::Error> {
        let token = &self.tokens[0];
        // RFC 6901 allows no leading zeros.
        let canonical = |index: &usize| index.to_string() == *token;
        let wanted = token.parse::<usize>().ok().filter(canonical);
        let mut found = None;
        for index in 0.. {
            let more = if Some(index) == wanted {
                let at = At {
                    tokens: &self.tokens[1..],
                };
                let item = list.next_element_seed(at)?;
                let more = item.is_some();
                found = item.flatten();
                more
            } else {
                list.next_element::<IgnoredAny>()?.is_some()
            };
            if !more {
                break;
            }
        }
        Ok(found)
    }

    fn visit_bool<E>(self, _: bool) -> Result<Self::Value, E> {
        Ok(None)
    }

    fn visit_i64<E>(self, _: i64) -> Result<Self::Value, E> {
        Ok(None)
    }

    fn visit_u64<E>(self, _: u64) -> Result<Self::Value, E> {
        Ok(None)
    }

    fn visit_f64<E>(self, _: f64) -> Result<Self::Value, E> {
        Ok(None)
    }

    fn visit_str<E>(self, _: &str) -> Result<Self::Value, E> {
        Ok(None)
    }

    fn visit_unit<E>(self) -> Result<Self::Value, E> {
        Ok(None)
    }
}

/// Whether a name is this one.
struct Is<'a>(&'a str);

impl<'de> DeserializeSeed<'de> for Is<'_> {
    type Value = bool;

    fn deserialize<D: Deserializer<'de>>(self, from: D) -> Result<bool, D::Error> {
        from.deserialize_str(self)
    }
}

impl Visitor<'_> for Is<'_> {
    type Value = bool;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a name")
    }

    fn visit_str<E>(self, name: &str) -> Result<bool, E> {
        Ok(name == self.0)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn key(pointer: &str, body: &str) -> Option<String> {
        Pointer::new(pointer).unwrap().key(body.as_bytes()).ok()
    }

    #[test]
    fn a_key_is_what_serde_json_s_own_pointer_finds() {
        let body = r#"{"id":7,"a/b":{"~":["x",{"y":null},2.5]},"s":"text \"\u00e9\"","id2":true,"":1,"id":8}"#;
        let value: Value = serde_json::from_str(body).unwrap();
        for pointer in [
            "",
            "/id",
            "/a~1b",
            "/a~1b/~0",
            "/a~1b/~0/0",
            "/a~1b/~0/1/y",
            "/a~1b/~0/2",
            "/a~1b/~0/02",
            "/a~1b/~0/9",
            "/a~1b/~0/-",
            "/s",
            "/s/0",
            "/id2",
            "/",
            "/none",
            "/id/deeper",
        ] {
            let expected = value.pointer(pointer).map(|found| match found {
                Value::String(text) => text.clone(),
                other => other.to_string(),
            });
            assert_eq!(key(pointer, body), expected, "{pointer}");
        }
    }

    #[test]
    fn what_is_not_json_has_no_key() {
        for body in [
            "",
            "{",
            r#"{"id":1"#,
            r#"{"id":1} x"#,
            r#"{"id":1,"x":}"#,
            "\u{feff}{}",
            r#"{"id":"\ud800"}"#,
        ] {
            assert_eq!(key("/id", body), None, "{body}");
        }
        // Also outside of the key: such a body could never be written into a snapshot.
        let pointer = Pointer::new("/id").unwrap();
        assert!(pointer.key(b"{\"id\":1,\"x\":\"\xff\"}").is_err());
        assert!(Pointer::new("id").is_err());
    }

    #[test]
    fn different_values_have_different_keys_and_equal_ones_the_same() {
        let different = [
            "1",
            r#""1""#,
            r#""\"1\"""#,
            r#"" 1""#,
            "1.0",
            r#""1.0""#,
            "null",
            r#""null""#,
            "true",
            r#""true""#,
            "{}",
            r#""{}""#,
            "[]",
            r#""[]""#,
            r#""""#,
            r#""c1""#,
            "18446744073709551617",
            "18446744073709551618",
            r#""18446744073709551617""#,
            "18446744073709551617.0",
            "[18446744073709551617]",
            "[18446744073709551618]",
            r#"{"a":18446744073709551617}"#,
            "-18446744073709551617",
            "0.12345678901234567891",
            "0.12345678901234567892",
            "1e999",
            "1e998",
        ];
        let body = |value: &str| format!("{{\"id\": {value} }}");
        let keys: Vec<_> = different
            .iter()
            .map(|value| key("/id", &body(value)).unwrap())
            .collect();
        for (at, one) in keys.iter().enumerate() {
            assert!(!keys[..at].contains(one), "{one}");
        }
        for (one, other) in [
            (r#""c1""#, r#""\u0063\u0031""#),
            ("[1, 2]", "[1,2]"),
            (r#"{"a":1,"b":[2.50]}"#, r#"{ "b": [2.5], "a": 1 }"#),
            ("1.50", "1.5"),
        ] {
            assert_eq!(key("/id", &body(one)), key("/id", &body(other)), "{one}");
        }
        // The keys of most streams.
        assert_eq!(key("/id", r#"{"id":"c1"}"#).unwrap(), "c1");
        assert_eq!(key("/id", r#"{"id":7}"#).unwrap(), "7");
        assert_eq!(key("/id", r#"{"id":"7"}"#).unwrap(), "\"7\"");
    }

    #[test]
    fn the_key_of_version_1_is_found_again() {
        for value in [
            "1",
            r#""1""#,
            "18446744073709551617",
            "null",
            r#""c1""#,
            r#"{"a":[2.5]}"#,
        ] {
            let body = format!("{{\"id\":{value}}}");
            let then = match serde_json::from_str::<Value>(value).unwrap() {
                Value::String(text) => text,
                other => other.to_string(),
            };
            let now = key("/id", &body).unwrap();
            assert_eq!(key_of_version_1(&now), Some(then), "{value}");
        }
        assert_eq!(key_of_version_1("1e999"), None);
    }
}
