//! Times as the APIs answer them.

use s2_common::ValidationError;
use time::OffsetDateTime;

/// Milliseconds since the epoch as a time.
pub(crate) fn timestamp(ms: u64) -> Result<OffsetDateTime, ValidationError> {
    OffsetDateTime::from_unix_timestamp_nanos(i128::from(ms) * 1_000_000)
        .map_err(|e| ValidationError(format!("a time out of range: {e}")))
}
