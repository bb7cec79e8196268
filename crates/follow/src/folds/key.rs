//! The key of a record: what a JSON pointer (RFC 6901) points to in its body.

use serde_json::Value;

use crate::error::Error;
use crate::fold::ApplyError;

/// A JSON pointer: `/order/id`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pointer(String);

impl Pointer {
    /// Reads one. The empty one points to the whole document.
    ///
    /// # Errors
    ///
    /// [`Error::Invalid`] for one that does not begin with `/`.
    pub fn new(pointer: &str) -> Result<Pointer, Error> {
        if !pointer.is_empty() && !pointer.starts_with('/') {
            return Err(Error::Invalid(format!(
                "`{pointer}` is no JSON pointer: write /{pointer}"
            )));
        }
        Ok(Pointer(pointer.to_owned()))
    }

    /// As it was written.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The key in a record's body: a string as it is, anything else as JSON.
    ///
    /// # Errors
    ///
    /// [`ApplyError::Malformed`] for a body that is not JSON, or has nothing there.
    pub fn key(&self, body: &[u8]) -> Result<String, ApplyError> {
        let value = json(body)?;
        match value.pointer(&self.0) {
            Some(Value::String(text)) => Ok(text.clone()),
            Some(other) => Ok(other.to_string()),
            None => Err(ApplyError::Malformed(format!(
                "there is nothing at {}",
                self.0
            ))),
        }
    }
}

/// A record's body.
pub(super) fn json(body: &[u8]) -> Result<Value, ApplyError> {
    serde_json::from_slice(body)
        .map_err(|error| ApplyError::Malformed(format!("it is not JSON: {error}")))
}
