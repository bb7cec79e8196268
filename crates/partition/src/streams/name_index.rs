//! The index of streams by their names.
//!
//! An entry has the stream's id and the time of its creation, 8 bytes each, big-endian. That of a stream with
//! a cipher has one more byte, its number, so that earlier builds, which would append to it in plain text,
//! refuse to open it.

use crate::encryption::{cipher_number, cipher_of};
use crate::ids::{BasinId, StreamId};
use crate::keys;
use crate::store::{PartitionDb, StoreError, two_numbers};
use s2_common::encryption::EncryptionAlgorithm;

/// A stream in a list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listed {
    /// Its name.
    pub name: String,
    /// When it was created, in milliseconds since the epoch.
    pub created_ms: u64,
    /// Its cipher.
    pub cipher: Option<EncryptionAlgorithm>,
}

/// The entry of a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct NameEntry {
    pub id: StreamId,
    /// When the stream was created, in milliseconds since the epoch.
    pub created_ms: u64,
    pub cipher: Option<EncryptionAlgorithm>,
}

impl NameEntry {
    /// The stored form.
    pub fn encode(&self) -> Vec<u8> {
        let mut value = Vec::with_capacity(17);
        value.extend_from_slice(&self.id.0.to_be_bytes());
        value.extend_from_slice(&self.created_ms.to_be_bytes());
        if self.cipher.is_some() {
            value.push(cipher_number(self.cipher) as u8);
        }
        value
    }

    /// Parses the stored form.
    pub fn parse(part: &PartitionDb, value: &[u8]) -> Result<NameEntry, StoreError> {
        let malformed = |why: &dyn std::fmt::Display| part.malformed("the index of names", why);
        let (numbers, cipher) = match value {
            [numbers @ .., cipher] if value.len() == 17 => (numbers, u32::from(*cipher)),
            numbers => (numbers, 0),
        };
        let [id, created_ms] = two_numbers(numbers).ok_or_else(|| malformed(&"its length"))?;
        Ok(NameEntry {
            id: StreamId(id),
            created_ms,
            cipher: cipher_of(cipher).map_err(|e| malformed(&e))?,
        })
    }
}

/// The entry of a name, if there is a stream of it.
pub(crate) fn name_entry(
    part: &PartitionDb,
    basin: BasinId,
    name: &str,
) -> Result<Option<NameEntry>, StoreError> {
    let value = part.get_bytes(keys::stream_name(basin, name), "the index of names")?;
    value
        .map(|value| NameEntry::parse(part, &value))
        .transpose()
}
