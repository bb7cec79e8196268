//! Values that must not appear on a screen, in a log or in a printed file.

use std::fmt;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// `format` of a [`Secret`] in the JSON schema.
pub(super) const SECRET_FORMAT: &str = "secret";

/// What is shown in the place of a secret.
pub(super) const HIDDEN: &str = "(hidden)";

/// A secret: one line of text, not empty. It is printed and serialized as `(hidden)`, so nothing that is
/// made from a configuration reveals it; only [`expose`](Secret::expose) returns it.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// Takes a secret, without the space around it.
    ///
    /// # Errors
    ///
    /// What is wrong with it, without repeating it.
    pub fn new(text: &str) -> Result<Self, String> {
        match text.trim() {
            "" => Err("it is empty".into()),
            HIDDEN => Err("that is what is shown in the place of a secret".into()),
            text if text.chars().any(char::is_control) => {
                Err("it contains a control character".into())
            }
            text => Ok(Self(text.into())),
        }
    }

    /// A secret that was just made, of visible characters alone.
    pub(crate) fn of_random(text: String) -> Self {
        Self(text)
    }

    /// The secret itself.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(HIDDEN)
    }
}

impl Serialize for Secret {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(HIDDEN)
    }
}

impl<'de> Deserialize<'de> for Secret {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Self::new(&String::deserialize(deserializer)?).map_err(de::Error::custom)
    }
}

impl JsonSchema for Secret {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Secret".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "string", "format": SECRET_FORMAT })
    }
}
