//! From a `Struct` to JSON text.

use std::borrow::Cow;

use prost_types::value::Kind;
use prost_types::{Struct, Value};

use super::{LIST, OBJECT, Path, Step, ValueError};

/// Integers up to here are exact in a 64-bit float, and so is their successor.
const EXACT: f64 = 9_007_199_254_740_992.0;

/// The JSON text of a value, without spaces.
///
/// # Errors
///
/// [`ValueError`] for NaN and infinities, and for what nests too deep.
pub fn to_json(value: &Struct) -> Result<Vec<u8>, ValueError> {
    let mut writer = Writer {
        out: Vec::with_capacity(64),
        path: Path::default(),
    };
    writer.object(value)?;
    Ok(writer.out)
}

struct Writer<'a> {
    out: Vec<u8>,
    path: Path<'a>,
}

impl<'a> Writer<'a> {
    fn object(&mut self, value: &'a Struct) -> Result<(), ValueError> {
        self.out.push(b'{');
        for (index, (key, value)) in value.fields.iter().enumerate() {
            if index > 0 {
                self.out.push(b',');
            }
            self.text(key);
            self.out.push(b':');
            self.path.steps.push(Step::Key(Cow::Borrowed(key)));
            self.value(value)?;
            self.path.steps.pop();
        }
        self.out.push(b'}');
        Ok(())
    }

    fn value(&mut self, value: &'a Value) -> Result<(), ValueError> {
        match &value.kind {
            None | Some(Kind::NullValue(_)) => self.out.extend_from_slice(b"null"),
            Some(Kind::BoolValue(true)) => self.out.extend_from_slice(b"true"),
            Some(Kind::BoolValue(false)) => self.out.extend_from_slice(b"false"),
            Some(Kind::NumberValue(number)) => self.number(*number)?,
            Some(Kind::StringValue(text)) => self.text(text),
            Some(Kind::StructValue(inner)) => {
                self.path.enter(OBJECT)?;
                self.object(inner)?;
                self.path.leave(OBJECT);
            }
            Some(Kind::ListValue(list)) => {
                self.path.enter(LIST)?;
                self.out.push(b'[');
                for (index, value) in list.values.iter().enumerate() {
                    if index > 0 {
                        self.out.push(b',');
                    }
                    self.path.steps.push(Step::Index(index));
                    self.value(value)?;
                    self.path.steps.pop();
                }
                self.out.push(b']');
                self.path.leave(LIST);
            }
        }
        Ok(())
    }

    fn number(&mut self, number: f64) -> Result<(), ValueError> {
        if !number.is_finite() {
            return Err(self
                .path
                .error(format!("{number} is a number that JSON does not have")));
        }
        let whole = number.fract() == 0.0 && number.abs() <= EXACT;
        let negative_zero = number == 0.0 && number.is_sign_negative();
        // Neither fails: the number is finite, the writer a vector.
        let _ = if whole && !negative_zero {
            serde_json::to_writer(&mut self.out, &(number as i64))
        } else {
            serde_json::to_writer(&mut self.out, &number)
        };
        Ok(())
    }

    fn text(&mut self, text: &str) {
        // A string is always JSON, and a vector takes what is written.
        let _ = serde_json::to_writer(&mut self.out, text);
    }
}
