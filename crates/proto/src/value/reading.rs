//! From JSON text to a `Struct`.
//!
//! It has a parser of its own, for two reasons: numbers are read to the nearest float, so that a float
//! that was written is read as the same one, and nothing is built that is not part of the result.

use std::borrow::Cow;
use std::collections::BTreeMap;

use prost_types::value::Kind;
use prost_types::{ListValue, Struct, Value};

use super::{LIST, OBJECT, Path, Step, ValueError};

/// The value of a JSON text, which must be an object. Of a key that occurs twice, the last counts. An
/// integer beyond 2^53 becomes the nearest float.
///
/// # Errors
///
/// [`ValueError`] for what is no JSON or no object, for numbers that are too large for a float, and for
/// what nests too deep.
pub fn from_json(text: &[u8]) -> Result<Struct, ValueError> {
    read(text, false)
}

/// Checks that [`from_json`] accepts a text, and that the value is exactly what is written: integers
/// beyond 2^53 that no float has, and that no float is written as, are refused. Nothing is built.
///
/// # Errors
///
/// Those of [`from_json`], and [`ValueError`] for such an integer.
pub fn check_json(text: &[u8]) -> Result<(), ValueError> {
    read(text, true).map(|_| ())
}

fn read(text: &[u8], exact: bool) -> Result<Struct, ValueError> {
    let mut reader = Reader {
        text,
        at: 0,
        path: Path::default(),
        exact,
    };
    reader.spaces();
    if reader.peek() != Some(b'{') {
        return Err(reader.wrong("it is not a JSON object"));
    }
    let fields = reader.object()?;
    reader.spaces();
    match reader.peek() {
        None => Ok(Struct { fields }),
        Some(_) => Err(reader.wrong("something follows the JSON object")),
    }
}

struct Reader<'a> {
    text: &'a [u8],
    at: usize,
    path: Path<'a>,
    /// Whether integers have to be exact. If so, nothing of what is read is kept.
    exact: bool,
}

impl<'a> Reader<'a> {
    fn wrong(&self, problem: &str) -> ValueError {
        self.path
            .error(format!("{problem} (at byte {} of the text)", self.at))
    }

    fn peek(&self) -> Option<u8> {
        self.text.get(self.at).copied()
    }

    fn spaces(&mut self) {
        while matches!(self.peek(), Some(b' ' | b'\n' | b'\r' | b'\t')) {
            self.at += 1;
        }
    }

    /// The next byte that is not whitespace must be this one.
    fn expect(&mut self, byte: u8) -> Result<(), ValueError> {
        self.spaces();
        if self.peek() != Some(byte) {
            return Err(self.wrong(&format!("`{}` is missing", char::from(byte))));
        }
        self.at += 1;
        Ok(())
    }

    /// After an element: whether another one follows, or the list ends with `end`.
    fn another(&mut self, end: u8) -> Result<bool, ValueError> {
        self.spaces();
        let more = match self.peek() {
            Some(b',') => true,
            Some(byte) if byte == end => false,
            _ => {
                let end = char::from(end);
                return Err(self.wrong(&format!("`,` or `{end}` is missing")));
            }
        };
        self.at += 1;
        Ok(more)
    }

    fn object(&mut self) -> Result<BTreeMap<String, Value>, ValueError> {
        let mut fields = BTreeMap::new();
        self.expect(b'{')?;
        self.spaces();
        if self.peek() == Some(b'}') {
            self.at += 1;
            return Ok(fields);
        }
        loop {
            self.spaces();
            let key = self.string()?;
            self.expect(b':')?;
            self.path.steps.push(Step::Key(key.clone()));
            let value = self.value()?;
            self.path.steps.pop();
            if !self.exact {
                fields.insert(key.into_owned(), value);
            }
            if !self.another(b'}')? {
                return Ok(fields);
            }
        }
    }

    fn list(&mut self) -> Result<Vec<Value>, ValueError> {
        let mut values = Vec::new();
        let mut count = 0;
        self.expect(b'[')?;
        self.spaces();
        if self.peek() == Some(b']') {
            self.at += 1;
            return Ok(values);
        }
        loop {
            self.path.steps.push(Step::Index(count));
            let value = self.value()?;
            self.path.steps.pop();
            count += 1;
            if !self.exact {
                values.push(value);
            }
            if !self.another(b']')? {
                return Ok(values);
            }
        }
    }

    fn value(&mut self) -> Result<Value, ValueError> {
        self.spaces();
        let kind = match self.peek() {
            Some(b'{') => {
                self.path.enter(OBJECT)?;
                let fields = self.object()?;
                self.path.leave(OBJECT);
                Kind::StructValue(Struct { fields })
            }
            Some(b'[') => {
                self.path.enter(LIST)?;
                let values = self.list()?;
                self.path.leave(LIST);
                Kind::ListValue(ListValue { values })
            }
            Some(b'"') => Kind::StringValue(self.string()?.into_owned()),
            Some(b'-' | b'0'..=b'9') => Kind::NumberValue(self.number()?),
            _ => self.word()?,
        };
        Ok(Value { kind: Some(kind) })
    }

    fn word(&mut self) -> Result<Kind, ValueError> {
        let words = [
            ("null", Kind::NullValue(0)),
            ("true", Kind::BoolValue(true)),
            ("false", Kind::BoolValue(false)),
        ];
        let rest = &self.text[self.at..];
        for (word, kind) in words {
            if rest.starts_with(word.as_bytes()) {
                self.at += word.len();
                return Ok(kind);
            }
        }
        Err(self.wrong("a JSON value is missing"))
    }

    fn digits(&mut self) -> Result<(), ValueError> {
        let begin = self.at;
        while matches!(self.peek(), Some(b'0'..=b'9')) {
            self.at += 1;
        }
        match self.at > begin {
            true => Ok(()),
            false => Err(self.wrong("a digit is missing")),
        }
    }

    fn number(&mut self) -> Result<f64, ValueError> {
        let begin = self.at;
        if self.peek() == Some(b'-') {
            self.at += 1;
        }
        match self.peek() {
            // The caller refuses what may not follow a leading zero.
            Some(b'0') => self.at += 1,
            _ => self.digits()?,
        }
        if self.peek() == Some(b'.') {
            self.at += 1;
            self.digits()?;
        }
        if matches!(self.peek(), Some(b'e' | b'E')) {
            self.at += 1;
            if matches!(self.peek(), Some(b'+' | b'-')) {
                self.at += 1;
            }
            self.digits()?;
        }
        let text = std::str::from_utf8(&self.text[begin..self.at]).unwrap_or_default();
        match text.parse::<f64>() {
            Ok(number) if self.exact && !is_exact(text, number) => Err(self.path.error(format!(
                "{text} is beyond 2^53 and would be read as {number:.0}"
            ))),
            Ok(number) if number.is_finite() => Ok(number),
            _ => Err(self
                .path
                .error(format!("{text} is too large for a 64-bit float"))),
        }
    }

    fn string(&mut self) -> Result<Cow<'a, str>, ValueError> {
        if self.peek() != Some(b'"') {
            return Err(self.wrong("`\"` is missing"));
        }
        let begin = self.at;
        let mut plain = true;
        let mut at = begin + 1;
        let end = loop {
            match self.text.get(at) {
                None => return Err(self.wrong("a string does not end")),
                Some(b'"') => break at,
                Some(b'\\') => {
                    plain = false;
                    at += 2;
                }
                Some(0..=0x1f) => {
                    return Err(self.wrong("a string contains a control character"));
                }
                Some(_) => at += 1,
            }
        };
        let text: Cow<'a, str> = if plain {
            std::str::from_utf8(&self.text[begin + 1..end])
                .map(Cow::Borrowed)
                .map_err(|_| self.wrong("a string is not UTF-8"))?
        } else {
            serde_json::from_slice::<String>(&self.text[begin..=end])
                .map(Cow::Owned)
                .map_err(|error| self.wrong(&format!("a string is not JSON: {error}")))?
        };
        self.at = end + 1;
        Ok(text)
    }
}

/// Whether a number that is written as an integer is read as what is written: it is the float's value, or
/// the shortest digits that are read as it, filled up with zeros, as `jq` and others write a large float.
fn is_exact(text: &str, number: f64) -> bool {
    let is_integer = text.bytes().all(|b| b == b'-' || b.is_ascii_digit());
    !is_integer
        || !number.is_finite()
        || number == 0.0
        // With a precision, all of its digits are printed; without one, the shortest.
        || format!("{number:.0}") == text
        || format!("{number}") == text
}
