//! Trims, and the check that they apply to the history that they are meant for.
//!
//! A trim names the position up to which a snapshot covers everything. In another history of the stream
//! the same position may mean other records, which no snapshot covers: a history was cut off before the
//! cursor, or the stream was created again, while the snapshot was being taken. A trim to the old cursor
//! would remove what is left. So the stream is checked before each attempt, and the attempt is made on
//! the condition that nothing was appended since.
//!
//! If numbers jump at the cursor, a server removes all up to where they continue, and the snapshot looks as
//! if it did not reach what is left: a reader has to know of the jump. No snapshot of such a cursor is the
//! reason for a trim. The next one has the position behind the jump as its cursor.
//!
//! On a busy stream that condition keeps failing, so the last attempts are made without it: no more than
//! a round trip is between the check and such an attempt.
//!
//! A trim that would destroy the newest snapshot of another fold is refused
//! ([`others`](crate::in_stream::others)).

use std::time::Duration;

use s2_sdk::types::AppendRecord;

use crate::endpoint::{AppendFailed, Endpoint, EndpointError, Identity};
use crate::in_stream::others::{Denied, Guard};
use crate::snapshot::Meta;
use crate::unlisted_gap;

/// Attempts in all.
const ATTEMPTS: u32 = 8;
/// How many of them have the condition.
const CONDITIONAL: u32 = 4;
/// Pause after a lost answer; it grows by as much.
const PAUSE: Duration = Duration::from_millis(100);

/// Appends a batch that contains a trim to a position, if the stream is still the one that a snapshot of
/// this description was taken of, and no other fold needs what the trim removes. If an answer is lost,
/// the batch may be appended twice.
pub async fn append(
    endpoint: &dyn Endpoint,
    guard: &Guard,
    meta: &Meta,
    to: u64,
    batch: Vec<AppendRecord>,
) -> Result<u64, AppendFailed> {
    let mut attempt = 0;
    let mut is_checked = false;
    loop {
        attempt += 1;
        if !is_checked {
            match no_unlisted_gap(endpoint, to).await {
                Ok(()) => is_checked = true,
                Err(AppendFailed::Unknown(_)) if attempt < ATTEMPTS => {
                    tokio::time::sleep(PAUSE * attempt).await;
                    continue;
                }
                Err(failed) => return Err(failed),
            }
        }
        let failed = match once(endpoint, guard, meta, to, &batch, attempt <= CONDITIONAL).await {
            Ok(position) => return Ok(position),
            Err(failed) => failed,
        };
        match failed {
            AppendFailed::Elsewhere { .. } if attempt < ATTEMPTS => {}
            AppendFailed::Unknown(_) if attempt < ATTEMPTS => {
                tokio::time::sleep(PAUSE * attempt).await;
            }
            failed => return Err(failed),
        }
    }
}

/// Checks that no gap begins at a position that the server lists no more: nobody could learn later that the
/// trim reaches no further than a snapshot of this cursor. A newer gap is listed, and is looked for before
/// each attempt.
async fn no_unlisted_gap(endpoint: &dyn Endpoint, to: u64) -> Result<(), AppendFailed> {
    let resumes_at = unlisted_gap::find(endpoint, to).await.map_err(unsaid)?;
    let Some(resumes_at) = resumes_at else {
        return Ok(());
    };
    let identity = endpoint.identity().await.map_err(unsaid)?;
    match identity.goes_on_at(to) {
        Some(_) => Ok(()),
        None => Err(AppendFailed::Refused(format!(
            "sequence numbers go on at {resumes_at} right behind {to}, and the server no longer lists that"
        ))),
    }
}

async fn once(
    endpoint: &dyn Endpoint,
    guard: &Guard,
    meta: &Meta,
    to: u64,
    batch: &[AppendRecord],
    conditional: bool,
) -> Result<u64, AppendFailed> {
    // The tail comes first: an append after the checks makes the condition fail. The identity comes last:
    // the guard may wait for long, and without the condition nothing else notices another history.
    let tail = endpoint.tail().await.map_err(unsaid)?;
    guard
        .check(endpoint, meta, to, tail)
        .await
        .map_err(denied)?;
    let identity = check(endpoint, meta).await?;
    if let Some(resumes_at) = identity.goes_on_at(meta.cursor) {
        return Err(AppendFailed::Refused(format!(
            "sequence numbers go on at {resumes_at} right behind the snapshot's cursor {}",
            meta.cursor
        )));
    }
    let at = conditional.then_some(tail);
    endpoint.append(batch.to_vec(), at).await
}

/// Checks that the stream is still the one that a snapshot was taken of; returns its identity.
pub async fn check(endpoint: &dyn Endpoint, meta: &Meta) -> Result<Identity, AppendFailed> {
    let identity = endpoint.identity().await.map_err(unsaid)?;
    let differ = |then: &Option<String>, now: &Option<String>| {
        then.is_some() && now.is_some() && then != now
    };
    if differ(&meta.created_at, &identity.created_at) || differ(&meta.lineage, &identity.lineage) {
        return Err(AppendFailed::Refused(
            "the stream has another history than the snapshot".to_owned(),
        ));
    }
    // It may have been deleted. An append may create the next one.
    let lacks = |then: &Option<String>, now: &Option<String>| then.is_some() && now.is_none();
    if lacks(&meta.created_at, &identity.created_at) || lacks(&meta.lineage, &identity.lineage) {
        return Err(AppendFailed::Unknown(
            "the server does not identify the stream, which it did before".to_owned(),
        ));
    }
    Ok(identity)
}

/// The error of an append whose trim was not allowed.
pub fn denied(why: Denied) -> AppendFailed {
    match why {
        Denied::OtherFold(other) => AppendFailed::OtherFold(other),
        Denied::Unknown(why) => AppendFailed::Refused(why),
    }
}

fn unsaid(error: EndpointError) -> AppendFailed {
    match error {
        EndpointError::Unavailable(why) => AppendFailed::Unknown(why),
        other => AppendFailed::Refused(other.to_string()),
    }
}
