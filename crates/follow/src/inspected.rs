//! A snapshot that was inspected: what it is, and whether it is of use.

use std::time::Duration;

use serde::Serialize;

use crate::identity::Identity;
use crate::snapshot::meta::FORMAT;
use crate::snapshot::{Meta, SnapshotInfo, Unusable};

/// Most snapshots that are listed; of more, the newest in the stream.
pub const MAX_LISTED: usize = 10_000;
/// Most characters of a fold's name: the description of a snapshot is not checked.
const MAX_NAME: usize = 256;
/// How long to wait for a server that does not answer.
pub(crate) const WAIT_TIMEOUT: Duration = Duration::from_secs(30);

/// The standing of a snapshot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "standing", content = "why", rename_all = "lowercase")]
pub enum Standing {
    /// Every byte is there, and the stream continues from it.
    Whole,
    /// It was never finished.
    Torn(String),
    /// Its bytes are not the ones that were written.
    Damaged(String),
    /// It is whole, and the stream does not continue from it.
    Useless(String),
}

impl Standing {
    /// The standing of a snapshot whose bytes are intact, in a stream that begins at a head.
    pub(crate) fn of(meta: &Meta, identity: &Identity, head: u64) -> Standing {
        if meta.format > FORMAT {
            return Standing::Useless(Unusable::NewerFormat(meta.format).to_string());
        }
        if let Err(why) = meta.of_stream(identity) {
            return Standing::Useless(why.to_string());
        }
        if identity.behind_gap(meta.cursor) < head {
            return Standing::Useless(format!(
                "the stream begins at {head}, and what is between is gone"
            ));
        }
        Standing::Whole
    }

    /// Why it is not whole, or of no use.
    pub fn why(&self) -> Option<&str> {
        match self {
            Standing::Whole => None,
            Standing::Torn(why) | Standing::Damaged(why) | Standing::Useless(why) => Some(why),
        }
    }
}

/// A snapshot that was inspected.
#[derive(Clone, Debug, Serialize)]
pub struct Inspected {
    /// What and where it is. If it is not whole, the bytes that are there.
    #[serde(flatten)]
    pub info: SnapshotInfo,
    /// Its fold, cut to the longest possible name; `None` if the snapshot does not name it.
    pub fold: Option<String>,
    /// Its fold's version.
    pub fold_version: Option<u32>,
    /// Its standing.
    #[serde(flatten)]
    pub standing: Standing,
    /// Records to be replayed after it: those behind its cursor that are for the fold.
    pub replay: u64,
    /// Records for the fold before it.
    #[serde(skip)]
    pub(crate) before: u64,
    /// How long reading it took, if it is an object.
    #[serde(skip)]
    pub(crate) read_in: Option<Duration>,
}

impl Inspected {
    pub(crate) fn new(
        info: SnapshotInfo,
        meta: Option<&Meta>,
        standing: Standing,
        before: u64,
    ) -> Inspected {
        Inspected {
            info,
            fold: meta.map(|meta| meta.fold.chars().take(MAX_NAME).collect()),
            fold_version: meta.map(|meta| meta.fold_version),
            standing,
            replay: 0,
            before,
            read_in: None,
        }
    }

    /// Whether a follower could restore it, given the right fold.
    pub fn is_usable(&self) -> bool {
        self.standing == Standing::Whole
    }
}
