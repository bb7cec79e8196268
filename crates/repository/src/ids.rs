//! The names and numbers of a repository, as types.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// The number of a partition, at most 65,535. The first segment of every key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct PartitionId(pub u16);

/// A position in a partition's log: the last one that a snapshot covers.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct Lsn(pub u64);

/// A number of a root that each swap raises by one. An intent has the generation that the swap set which
/// registered it, and no other intent has the same.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct Generation(pub u64);

macro_rules! plain_display {
    ($($type:ty),*) => {$(
        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    )*};
}
plain_display!(PartitionId, Lsn, Generation);

/// A text that does not follow the rules of a name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is no {what}: {rule}")]
pub struct NameError {
    text: String,
    what: &'static str,
    rule: &'static str,
}

/// Maximum number of characters of a name that an error quotes.
const QUOTED: usize = 80;

fn name_error(text: &str, what: &'static str, rule: &'static str) -> NameError {
    NameError {
        text: text.chars().take(QUOTED).collect(),
        what,
        rule,
    }
}

const BASE62: &[u8; 62] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";

/// The name of a snapshot: `snap_1` and digits of base 62, for 128 random bits.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SnapshotId(String);

impl SnapshotId {
    const PREFIX: &'static str = "snap_1";
    /// Maximum number of digits. Ids of Esker have 22; other programs may write more.
    const MAX_DIGITS: usize = 64;

    /// The id for these bits.
    pub fn from_bits(mut bits: u128) -> SnapshotId {
        let mut digits = [b'0'; 22];
        for digit in digits.iter_mut().rev() {
            *digit = BASE62[(bits % 62) as usize];
            bits /= 62;
        }
        let digits: String = digits.iter().copied().map(char::from).collect();
        SnapshotId(format!("{}{digits}", Self::PREFIX))
    }

    /// The id as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for SnapshotId {
    type Err = NameError;

    fn from_str(text: &str) -> Result<SnapshotId, NameError> {
        let digits = text.strip_prefix(Self::PREFIX).unwrap_or("");
        let fits = (1..=Self::MAX_DIGITS).contains(&digits.len())
            && digits.bytes().all(|b| b.is_ascii_alphanumeric());
        if fits {
            Ok(SnapshotId(text.to_owned()))
        } else {
            Err(name_error(
                text,
                "snapshot id",
                "it begins with snap_1, and letters and digits follow",
            ))
        }
    }
}

/// The identity of one unbroken history of a partition: 128 random bits, 32 hex digits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LineageId(pub u128);

/// The identity of a destination, in its marker: 128 random bits, 32 hex digits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DestinationId(pub u128);

/// The identity of one start of a process that puts snapshots: 128 random bits, 32 hex digits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct IncarnationId(pub u128);

impl IncarnationId {
    /// Its first eight digits, for messages.
    pub fn short(&self) -> String {
        format!("{:08x}", self.0 >> 96)
    }
}

/// The xxh3-128 of a file's bytes, 32 hex digits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Digest(pub u128);

impl Digest {
    /// The digest of these bytes.
    pub fn of(bytes: &[u8]) -> Digest {
        Digest(xxhash_rust::xxh3::xxh3_128(bytes))
    }
}

fn from_hex(text: &str) -> Option<u128> {
    let lower = text
        .bytes()
        .all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
    (text.len() == 32 && lower)
        .then(|| u128::from_str_radix(text, 16).ok())
        .flatten()
}

macro_rules! hex_name {
    ($type:ty, $what:literal) => {
        impl FromStr for $type {
            type Err = NameError;

            fn from_str(text: &str) -> Result<$type, NameError> {
                from_hex(text)
                    .map(Self)
                    .ok_or_else(|| name_error(text, $what, "it has 32 hexadecimal digits"))
            }
        }

        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:032x}", self.0)
            }
        }
    };
}
hex_name!(LineageId, "lineage");
hex_name!(DestinationId, "destination id");
hex_name!(IncarnationId, "incarnation");
hex_name!(Digest, "checksum");

impl fmt::Display for SnapshotId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

macro_rules! serde_as_text {
    ($($type:ty),*) => {$(
        impl Serialize for $type {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $type {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = String::deserialize(deserializer)?;
                text.parse().map_err(serde::de::Error::custom)
            }
        }
    )*};
}
serde_as_text!(SnapshotId, LineageId, DestinationId, IncarnationId, Digest);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_snapshot_id_has_22_digits_of_base_62_whatever_its_bits() {
        assert_eq!(
            SnapshotId::from_bits(0).as_str(),
            format!("snap_1{}", "0".repeat(22))
        );
        let largest = SnapshotId::from_bits(u128::MAX);
        assert_eq!(largest.as_str().len(), 28);
        assert_eq!(largest.as_str().parse(), Ok(largest));
        assert_ne!(SnapshotId::from_bits(1), SnapshotId::from_bits(1 << 64));
    }

    #[test]
    fn what_is_no_name_is_refused() {
        for text in [
            "",
            "snap_1",
            "snap_2abc",
            "snap_1a/b",
            "snap_1..",
            "snap_1é",
        ] {
            assert!(text.parse::<SnapshotId>().is_err(), "{text}");
        }
        for text in ["", "0", &"g".repeat(32), &"A".repeat(32), &"0".repeat(33)] {
            assert!(text.parse::<Digest>().is_err(), "{text}");
        }
    }

    #[test]
    fn an_error_quotes_no_more_than_the_beginning() {
        let error = "x".repeat(1 << 20).parse::<SnapshotId>().unwrap_err();
        assert!(error.to_string().len() < 300, "{error}");
    }
}
