//! Times as the APIs answer them.

use esker_node::Expiry;
use s2_common::ValidationError;
use time::OffsetDateTime;

/// Milliseconds since the epoch as a time.
pub(crate) fn timestamp(ms: u64) -> Result<OffsetDateTime, ValidationError> {
    timestamp_of(Expiry::new(ms, 0))
}

/// An expiry as a time.
pub(crate) fn timestamp_of(expiry: Expiry) -> Result<OffsetDateTime, ValidationError> {
    let nanos = i128::from(expiry.ms()) * 1_000_000 + i128::from(expiry.nanos());
    OffsetDateTime::from_unix_timestamp_nanos(nanos)
        .map_err(|e| ValidationError(format!("a time out of range: {e}")))
}
