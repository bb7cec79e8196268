//! What can go wrong, by what the caller can do about it.

use crate::endpoint::EndpointError;
use crate::snapshot::Unusable;

/// Why a stream is not followed, or no longer. Messages name the stream, the position and the object.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The stream begins at a later position, and no snapshot covers what was before it.
    #[error("history before {head} of {stream} is gone and no snapshot covers it{}", after(.tried))]
    HistoryGone {
        /// Its address.
        stream: String,
        /// The first sequence number that is left.
        head: u64,
        /// Snapshots that were found and not used, and why.
        tried: Vec<String>,
    },
    /// A snapshot must not be used, and passing over such snapshots was not chosen.
    #[error("snapshot {snapshot} is not usable: {why}. An older one is used if you choose so")]
    Unusable {
        /// Which one.
        snapshot: String,
        /// Why not.
        why: Unusable,
    },
    /// The stream has a snapshot of another fold, which a snapshot of this one would trim away.
    #[error("{stream} has {other}: a snapshot of fold `{ours}` in the stream would trim it away")]
    OtherFold {
        /// The stream.
        stream: String,
        /// The other fold's snapshot.
        other: String,
        /// The fold that is followed with.
        ours: String,
    },
    /// A record makes no sense to the fold.
    #[error("record {seq_num} of {stream}: {why}. Skip such records if they do not matter")]
    Malformed {
        /// The stream.
        stream: String,
        /// The record.
        seq_num: u64,
        /// What the fold reports.
        why: String,
    },
    /// The fold failed, or panicked. The newest snapshot and the records after it give the state as of
    /// before the record.
    #[error("the fold failed at record {seq_num} of {stream}: {why}")]
    FoldFailed {
        /// The stream.
        stream: String,
        /// The record.
        seq_num: u64,
        /// What it reports.
        why: String,
    },
    /// The stream refuses, and will continue to.
    #[error("{stream}: {why}")]
    Endpoint {
        /// Its address.
        stream: String,
        /// What it reports.
        why: EndpointError,
    },
    /// The object store does not answer, or refuses.
    #[error("{place}: {why}")]
    Store {
        /// The place of the snapshots.
        place: String,
        /// What it reports.
        why: String,
    },
    /// A snapshot was not taken.
    #[error("no snapshot was taken: {0}")]
    NotTaken(String),
    /// What was asked for makes no sense.
    #[error("{0}")]
    Invalid(String),
    /// The follower was closed, or had ended before.
    #[error("the follower has ended")]
    Ended,
}

fn after(tried: &[String]) -> String {
    match tried {
        [] => String::new(),
        tried => format!("; {}", tried.join("; ")),
    }
}
