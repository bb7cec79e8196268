//! What a source says of one key.

use super::key::Key;
use super::kind::Raw;
use super::source::Source;

/// One thing that a source said: a key is to have a value.
pub(super) struct Setting {
    pub(super) key: &'static Key,
    pub(super) raw: Raw,
    pub(super) from: Source,
}
