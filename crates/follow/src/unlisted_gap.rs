//! Gaps in the sequence numbers that a server no longer lists.
//!
//! A server lists the newest gaps of a stream only; an Esker the last 8. A reader that meets an older one
//! sees numbers jump, as if records had been trimmed before it could read them. But a trim removes
//! everything before a position: while a record from before the jump is there, nothing behind it was
//! trimmed, so the numbers in between belong to no record of the stream.

use std::time::Duration;

use futures::StreamExt as _;

use crate::endpoint::{Endpoint, EndpointError, Identity};

/// Longest wait for the next records.
const READ_TIMEOUT: Duration = Duration::from_secs(20);

/// Where numbers continue if none from `next` up to there belongs to a record; `None` if that is not so, or
/// cannot be known, because everything before `next` is trimmed.
///
/// This is about the stream as it is now. The caller has to know that what it has read is of the same
/// history, and that it is still the same stream after this.
///
/// # Errors
///
/// [`EndpointError`].
pub async fn find(endpoint: &dyn Endpoint, next: u64) -> Result<Option<u64>, EndpointError> {
    // In this order: what is there later was there before.
    let resumes_at = match first(endpoint, next).await {
        Ok(resumes_at) => resumes_at,
        // Another stream by now, or another history.
        Err(EndpointError::BeyondTail { .. }) => return Ok(None),
        Err(why) => return Err(why),
    };
    if resumes_at <= next {
        return Ok(None);
    }
    let head = first(endpoint, 0).await?;
    Ok((head < next).then_some(resumes_at))
}

/// Whether nothing is missing where numbers jump from `next` to `found`, in a stream of this identity: a gap is
/// there, listed or not.
///
/// # Errors
///
/// [`EndpointError`].
pub async fn continues(
    endpoint: &dyn Endpoint,
    identity: &Identity,
    next: u64,
    found: u64,
) -> Result<bool, EndpointError> {
    if identity.goes_on_at(next) == Some(found) {
        return Ok(true);
    }
    // Without a lineage, nobody reports that a history was cut off.
    if identity.lineage.is_none() || find(endpoint, next).await? != Some(found) {
        return Ok(false);
    }
    Ok(endpoint.identity().await?.is_same_history(identity))
}

/// The first record from a position on; the tail if there is none.
async fn first(endpoint: &dyn Endpoint, from: u64) -> Result<u64, EndpointError> {
    let mut pieces = endpoint.read(from);
    loop {
        let piece = tokio::time::timeout(READ_TIMEOUT, pieces.next()).await;
        let piece = piece.map_err(|_| {
            let seconds = READ_TIMEOUT.as_secs();
            EndpointError::Unavailable(format!("nothing came within {seconds} s"))
        })?;
        let ended = || EndpointError::Unavailable("the read ended".to_owned());
        let piece = piece.ok_or_else(ended)??;
        if let Some(record) = piece.records.first() {
            return Ok(record.seq_num);
        }
        if let Some(tail) = piece.tail {
            return Ok(tail);
        }
    }
}
