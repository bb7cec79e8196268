//! The description of a snapshot, and whether the snapshot may be used.

use std::fmt;

use serde::{Deserialize, Serialize, Serializer};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::identity::Identity;

/// The version of the formats in this crate.
pub const FORMAT: u32 = 1;
/// Most bytes of a description: it is read before anything in it can be verified.
pub const MAX_META: usize = 16 * 1024;

/// How the state's bytes are encoded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Encoding {
    /// As the fold wrote them.
    None,
    /// zstd (RFC 8878), with a window of at most 8 MiB.
    #[default]
    Zstd,
}

/// Where a snapshot is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// An object beside the stream.
    External,
    /// One record of the stream.
    Single,
    /// Several records of the stream.
    Framed,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Kind::External => "external",
            Kind::Single => "single-record",
            Kind::Framed => "framed",
        })
    }
}

/// The description of a snapshot, before its bytes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Meta {
    /// [`FORMAT`].
    pub format: u32,
    /// The fold's name.
    pub fold: String,
    /// The fold's version.
    pub fold_version: u32,
    /// First sequence number that is *not* covered.
    pub cursor: u64,
    /// When the stream was created, as the server reports it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub created_at: Option<String>,
    /// The lineage of the stream's history, if the server reports one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lineage: Option<String>,
    /// Milliseconds since the epoch.
    pub taken_at: u64,
    /// How the bytes are encoded.
    pub encoding: Encoding,
}

/// The totals of a snapshot, after its bytes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Totals {
    /// Bytes, as they are kept.
    pub bytes: u64,
    /// xxh3-128 of the description and the bytes, 32 hexadecimal digits.
    pub xxh3: String,
}

/// A snapshot that was found or taken.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct SnapshotInfo {
    /// Where it is kept.
    pub kind: Kind,
    /// Its object's path, or the sequence number of its first record.
    pub place: String,
    /// First sequence number that is not covered.
    pub cursor: u64,
    /// Bytes, as they are kept.
    pub bytes: u64,
    /// Milliseconds since the epoch; `None` if it is not known. In JSON also as a time, in RFC 3339.
    #[serde(flatten, serialize_with = "times")]
    pub taken_at: Option<u64>,
    /// Whether it was appended without a condition, because others kept appending in between.
    pub anchored: bool,
}

/// `taken_at` in RFC 3339, and `taken_at_ms`.
fn times<S: Serializer>(taken_at: &Option<u64>, serializer: S) -> Result<S::Ok, S::Error> {
    #[derive(Serialize)]
    struct Times {
        taken_at: Option<String>,
        taken_at_ms: Option<u64>,
    }
    let time = taken_at.and_then(|ms| {
        let nanoseconds = i128::from(ms) * 1_000_000;
        let time = OffsetDateTime::from_unix_timestamp_nanos(nanoseconds).ok()?;
        time.format(&Rfc3339).ok()
    });
    let times = Times {
        taken_at: time,
        taken_at_ms: *taken_at,
    };
    times.serialize(serializer)
}

/// Why a snapshot must not be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Unusable {
    /// Of another fold.
    #[error("it is of fold `{theirs}`, not `{ours}`")]
    OtherFold {
        /// Its fold.
        theirs: String,
        /// The fold that was to restore it.
        ours: String,
    },
    /// Written by a newer version of the fold.
    #[error(
        "it is of version {theirs} of fold `{fold}`, and this is version {ours}: upgrade first"
    )]
    NewerFold {
        /// The fold.
        fold: String,
        /// Its version.
        theirs: u32,
        /// The version that was to restore it.
        ours: u32,
    },
    /// Of a newer format.
    #[error("it is of format {0}, and the newest known here is {FORMAT}: upgrade first")]
    NewerFormat(u32),
    /// Of a stream that had the same name.
    #[error(
        "it is of a stream of the same name that was created at {theirs}, and this one was at {ours}"
    )]
    OtherStream {
        /// When that one was created.
        theirs: String,
        /// When this one was.
        ours: String,
    },
    /// Of a history that was lost in part.
    #[error("it ends at {cursor} of lineage {theirs}, {}", left(.shared))]
    StaleLineage {
        /// Its cursor.
        cursor: u64,
        /// Its lineage.
        theirs: String,
        /// Up to where the two histories are the same, if that is known.
        shared: Option<u64>,
    },
    /// It covers more than there is.
    #[error("its cursor {cursor} is beyond the stream's tail {tail}")]
    BeyondTail {
        /// Its cursor.
        cursor: u64,
        /// The stream's tail.
        tail: u64,
    },
    /// Its bytes or its description are not the ones that were written.
    #[error("it is damaged: {0}")]
    Damaged(String),
    /// It is no snapshot of ours.
    #[error("it is not a snapshot of this library: {0}")]
    Foreign(String),
}

fn left(shared: &Option<u64>) -> String {
    match shared {
        Some(at) => format!("which a loss cut off at {at}: what is from there on is lost"),
        None => "which the server does not list: it is not known how much of it is left".to_owned(),
    }
}

impl Unusable {
    /// Whether something may be wrong with the settings, and not just with the snapshot: then the
    /// follower stops, unless passing over such snapshots was chosen.
    pub fn wants_a_decision(&self) -> bool {
        let passed = matches!(
            self,
            Unusable::Damaged(_) | Unusable::Foreign(_) | Unusable::StaleLineage { .. }
        );
        !passed
    }
}

impl Meta {
    /// The description as JSON.
    pub fn to_json(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("strings and numbers")
    }

    /// Checks whether a fold may restore it, given what the stream is now.
    ///
    /// # Errors
    ///
    /// Why not.
    pub fn usable(&self, fold: &str, version: u32, identity: &Identity) -> Result<(), Unusable> {
        if self.format > FORMAT {
            return Err(Unusable::NewerFormat(self.format));
        }
        if self.fold != fold {
            return Err(Unusable::OtherFold {
                theirs: self.fold.clone(),
                ours: fold.to_owned(),
            });
        }
        if self.fold_version > version {
            return Err(Unusable::NewerFold {
                fold: self.fold.clone(),
                theirs: self.fold_version,
                ours: version,
            });
        }
        self.of_stream(identity)
    }

    /// Checks whether it is of this stream, and of a history that still exists.
    ///
    /// # Errors
    ///
    /// Why not.
    pub fn of_stream(&self, identity: &Identity) -> Result<(), Unusable> {
        if let (Some(theirs), Some(ours)) = (&self.created_at, &identity.created_at)
            && theirs != ours
        {
            return Err(Unusable::OtherStream {
                theirs: theirs.clone(),
                ours: ours.clone(),
            });
        }
        if let (Some(theirs), Some(_)) = (&self.lineage, &identity.lineage)
            && !identity.includes(theirs, self.cursor)
        {
            return Err(Unusable::StaleLineage {
                cursor: self.cursor,
                theirs: theirs.clone(),
                shared: identity.shares(theirs),
            });
        }
        Ok(())
    }
}

/// Now, in milliseconds since the epoch.
pub fn now_ms() -> u64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    now.map_or(0, |now| now.as_millis() as u64)
}
