//! The value that a source sets for one key.

use super::key::Key;
use super::kind::Raw;
use super::source::Source;

/// One key, and the value that a source sets for it.
pub(super) struct Setting {
    pub(super) key: &'static Key,
    pub(super) raw: Raw,
    pub(super) from: Source,
}
