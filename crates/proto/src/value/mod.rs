//! `google.protobuf.Struct` as JSON text, and back.
//!
//! Any JSON object is converted both ways without a change: lists of objects, lists of lists, null. Keys
//! are in order of their bytes. Numbers are what both formats have in common, 64-bit floats: integers are
//! exact up to 2^53 and written without a fraction, anything else is written in the shortest form that is
//! read as the same float. A value without a kind is null. NaN and the infinities have no JSON.
//!
//! **Depth.** A protocol message may nest at most 100 messages deep, in every implementation. An object
//! within an object takes three of them, a list two, and a value must also fit where it is read in a list
//! of entries. That leaves [`MAX_OBJECTS`] objects within one another, or [`MAX_LISTS`] lists in an
//! object. A deeper value is refused in both directions, before it could exhaust a stack.

mod reading;
#[cfg(test)]
mod tests;
mod writing;

pub use reading::{check_json, from_json};
pub use writing::to_json;

use std::fmt::Write as _;

/// Messages below the one that holds a `Struct`. Of the 100 that may nest, the outermost is not counted,
/// and in `ReplayEvent`, the deepest, one more is above the `Struct`'s own place.
const MAX_NESTING: usize = 97;
/// An entry of the map, its value, the `Struct` in that.
const OBJECT: usize = 3;
/// The list, and an element of it.
const LIST: usize = 2;
/// An entry of the map and its value, which may be a scalar.
const SCALAR: usize = 2;

/// Objects within one another, at most.
pub const MAX_OBJECTS: usize = (MAX_NESTING - SCALAR) / OBJECT + 1;
/// Lists within one another in an object, at most.
pub const MAX_LISTS: usize = (MAX_NESTING - SCALAR) / LIST;

/// Why a value cannot be converted.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}{problem}", place(.pointer))]
pub struct ValueError {
    /// Where in the value, as a JSON pointer: `/facts/3`. Empty for the value itself.
    pub pointer: String,
    /// What is wrong there.
    pub problem: String,
}

fn place(pointer: &str) -> String {
    match pointer {
        "" => String::new(),
        pointer => format!("{pointer}: "),
    }
}

/// Where a conversion is.
#[derive(Debug, Default)]
struct Path<'a> {
    steps: Vec<Step<'a>>,
    nesting: usize,
}

#[derive(Debug)]
enum Step<'a> {
    Key(std::borrow::Cow<'a, str>),
    Index(usize),
}

impl<'a> Path<'a> {
    fn error(&self, problem: impl Into<String>) -> ValueError {
        let mut pointer = String::new();
        for step in &self.steps {
            // Writing to a string cannot fail.
            let _ = match step {
                Step::Key(key) => {
                    write!(pointer, "/{}", key.replace('~', "~0").replace('/', "~1"))
                }
                Step::Index(index) => write!(pointer, "/{index}"),
            };
        }
        ValueError {
            pointer,
            problem: problem.into(),
        }
    }

    fn enter(&mut self, cost: usize) -> Result<(), ValueError> {
        self.nesting += cost;
        if self.nesting + SCALAR > MAX_NESTING {
            // A longer pointer would not help.
            self.steps.truncate(4);
            return Err(self.error(format!(
                "it nests too deep below here: at most {MAX_OBJECTS} objects within one another, \
                 or {MAX_LISTS} lists"
            )));
        }
        Ok(())
    }

    fn leave(&mut self, cost: usize) {
        self.nesting -= cost;
    }
}
