//! Sizes and durations as people write them, and written back so that they read the same.
//!
//! A [`ByteCount`] is an exact number of bytes: `32MiB`, `32 MiB`, `1.5GiB`, `33554432`. A
//! [`HumanDuration`] is an exact duration: `10s`, `1m 30s`. Both are printed in the largest units
//! that lose nothing, so printing and reading again gives the same value.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use bytesize::ByteSize;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// `format` of a [`ByteCount`] in the JSON schema.
pub(super) const BYTE_COUNT_FORMAT: &str = "byte-count";
/// `format` of a [`HumanDuration`] in the JSON schema.
pub(super) const DURATION_FORMAT: &str = "duration";

/// Units in which a size is printed, the largest first.
const PRINTED_UNITS: [(u64, &str); 4] = [
    (1 << 40, "TiB"),
    (1 << 30, "GiB"),
    (1 << 20, "MiB"),
    (1 << 10, "KiB"),
];

/// A number of bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ByteCount(u64);

impl ByteCount {
    /// Exactly this many bytes.
    pub const fn new(bytes: u64) -> Self {
        Self(bytes)
    }

    /// This many KiB (1024 bytes); stops at `u64::MAX` bytes.
    pub const fn kib(count: u64) -> Self {
        Self(count.saturating_mul(1 << 10))
    }

    /// This many MiB (1024 KiB); stops at `u64::MAX` bytes.
    pub const fn mib(count: u64) -> Self {
        Self(count.saturating_mul(1 << 20))
    }

    /// This many GiB (1024 MiB); stops at `u64::MAX` bytes.
    pub const fn gib(count: u64) -> Self {
        Self(count.saturating_mul(1 << 30))
    }

    /// The number of bytes.
    pub const fn as_u64(self) -> u64 {
        self.0
    }

    /// The number of bytes, as a length in memory; stops at `usize::MAX`.
    pub fn as_usize(self) -> usize {
        usize::try_from(self.0).unwrap_or(usize::MAX)
    }
}

impl fmt::Display for ByteCount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (factor, unit) in PRINTED_UNITS {
            if self.0 >= factor && self.0.is_multiple_of(factor) {
                return write!(f, "{}{unit}", self.0 / factor);
            }
        }
        write!(f, "{}B", self.0)
    }
}

impl FromStr for ByteCount {
    type Err = String;

    /// Reads a size. The unit is `B`, `KiB`, `MiB`, `GiB`, `TiB` (powers of 1024) or `kB`, `MB`,
    /// `GB`, `TB` (powers of 1000), in any case; a number alone is bytes. A bare `K`, `M` or `G` is
    /// refused, because people disagree on what it means.
    fn from_str(text: &str) -> Result<Self, String> {
        let text = text.trim();
        let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
        let unit = &text[digits.len()..];
        let number = digits.trim_end();
        let sound_number = number.starts_with(|c: char| c.is_ascii_digit())
            && number.ends_with(|c: char| c.is_ascii_digit())
            && number.chars().all(|c| c.is_ascii_digit() || c == '.');
        if !sound_number {
            return Err("not a number of bytes".into());
        }
        match unit.to_ascii_lowercase().as_str() {
            "" | "b" if number.contains('.') => return Err("a byte cannot be divided".into()),
            "" | "b" | "kb" | "mb" | "gb" | "tb" | "kib" | "mib" | "gib" | "tib" => {}
            "k" | "m" | "g" | "t" => {
                return Err(format!(
                    "`{unit}` may mean 1000 or 1024: write `{unit}B` or `{unit}iB`"
                ));
            }
            _ => return Err(format!("`{unit}` is not a unit of size")),
        }
        // The shape was checked above; what is left to refuse is a number such as `1.2.3`.
        text.parse::<ByteSize>()
            .map(|size| Self(size.as_u64()))
            .map_err(|_| "not a number of bytes".into())
    }
}

impl Serialize for ByteCount {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for ByteCount {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;

        impl de::Visitor<'_> for Visitor {
            type Value = ByteCount;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a size such as \"32MiB\", or a number of bytes")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<ByteCount, E> {
                text.parse().map_err(E::custom)
            }

            fn visit_u64<E: de::Error>(self, bytes: u64) -> Result<ByteCount, E> {
                Ok(ByteCount(bytes))
            }

            fn visit_i64<E: de::Error>(self, bytes: i64) -> Result<ByteCount, E> {
                u64::try_from(bytes)
                    .map(ByteCount)
                    .map_err(|_| E::custom("a size is not negative"))
            }
        }

        deserializer.deserialize_any(Visitor)
    }
}

impl JsonSchema for ByteCount {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> std::borrow::Cow<'static, str> {
        "ByteCount".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": ["string", "integer"], "format": BYTE_COUNT_FORMAT })
    }
}

/// A duration, exact to the nanosecond.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct HumanDuration(Duration);

impl HumanDuration {
    /// Exactly this duration.
    pub const fn new(duration: Duration) -> Self {
        Self(duration)
    }

    /// This many seconds.
    pub const fn from_secs(seconds: u64) -> Self {
        Self(Duration::from_secs(seconds))
    }

    /// This many milliseconds.
    pub const fn from_millis(milliseconds: u64) -> Self {
        Self(Duration::from_millis(milliseconds))
    }

    /// The duration.
    pub const fn as_duration(self) -> Duration {
        self.0
    }
}

impl From<HumanDuration> for Duration {
    fn from(duration: HumanDuration) -> Duration {
        duration.0
    }
}

impl fmt::Display for HumanDuration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        humantime::format_duration(self.0).fmt(f)
    }
}

impl FromStr for HumanDuration {
    type Err = String;

    /// Reads a duration: numbers, each with a unit (`ms`, `s`, `m`, `h`, `d`, …), which are added.
    fn from_str(text: &str) -> Result<Self, String> {
        humantime::parse_duration(text.trim())
            .map(Self)
            .map_err(|error| error.to_string())
    }
}

impl Serialize for HumanDuration {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for HumanDuration {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?
            .parse()
            .map_err(de::Error::custom)
    }
}

impl JsonSchema for HumanDuration {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> std::borrow::Cow<'static, str> {
        "HumanDuration".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "string", "format": DURATION_FORMAT })
    }
}
