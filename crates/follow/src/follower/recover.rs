//! Where a follower begins: the newest usable snapshot, wherever it is kept.

use std::sync::Arc;
use std::time::Duration;

use s2_sdk::types::SequencedRecord;

use super::{Parts, Snapshots};
use crate::backoff::Backoff;
use crate::endpoint::{EndpointError, Identity};
use crate::error::Error;
use crate::external::Listed;
use crate::fold::Fold;
use crate::in_stream::others::Others;
use crate::in_stream::restore::{self, Beginning};
use crate::snapshot::{SnapshotInfo, Unusable};

/// Longest wait for a store that fails while a follower is opened. A wrong key or bucket fails in the
/// same way, and should be reported soon.
const STORE_TIMEOUT: Duration = Duration::from_secs(5);
/// How often the snapshots are listed, if new ones appear while the listed ones are tried.
const MAX_LISTS: u32 = 5;

/// A state, and where to continue.
#[derive(Debug)]
pub(super) struct Recovered<F> {
    pub fold: F,
    pub identity: Identity,
    /// What it was restored from.
    pub snapshot: Option<SnapshotInfo>,
    /// First position that is not in the state; also where `met` begins.
    pub cursor: u64,
    /// Records that were read already.
    pub met: Vec<SequencedRecord>,
    /// Where to continue reading.
    pub next: u64,
    /// Snapshots that were not used, and why.
    pub tried: Vec<String>,
    /// Snapshots of other folds in what was read.
    pub others: Others,
}

/// Restores the newest usable snapshot for the first time. A store that fails is retried for a while:
/// every store refuses a request now and then, and some list an object later than they have it.
pub(super) async fn first<F: Fold>(parts: &Parts<F>) -> Result<Recovered<F>, Error> {
    let limit = parts.reading.restore_timeout;
    let limit = limit.map_or(STORE_TIMEOUT, |limit| limit.min(STORE_TIMEOUT));
    let mut backoff = Backoff::new(Some(limit));
    let is_external = matches!(parts.snapshots, Snapshots::External(_));
    loop {
        let failed = match recover(parts).await {
            Err(error @ Error::Store { .. }) => error,
            // A list that is behind does not name the snapshot for which the stream was trimmed.
            Err(error @ Error::HistoryGone { .. }) if is_external => error,
            other => return other,
        };
        let why = EndpointError::Unavailable(failed.to_string());
        if backoff.wait(&*parts.endpoint, why).await.is_err() {
            return Err(failed);
        }
    }
}

/// Restores the newest usable snapshot, or begins with an empty state.
pub(super) async fn recover<F: Fold>(parts: &Parts<F>) -> Result<Recovered<F>, Error> {
    let Snapshots::External(external) = &parts.snapshots else {
        return in_stream(parts, identity(parts).await?, Vec::new()).await;
    };
    let mut lists = 1;
    loop {
        let asked = identity(parts).await?;
        let listed = external.list().await?;
        // Requested after the list: what a snapshot covers was appended before it was put.
        let tail = tail(parts).await?;
        let mut tried = Vec::new();
        let (initial, reading) = (&parts.initial, &parts.reading);
        let found = external.find(&listed, initial, &asked, tail, reading, &mut tried);
        if let Some((fold, info)) = found.await? {
            return Ok(Recovered {
                fold,
                identity: asked,
                cursor: info.cursor,
                next: info.cursor,
                others: Others::unread_before(info.cursor),
                snapshot: Some(info),
                met: Vec::new(),
                tried,
            });
        }
        let begun = in_stream(parts, asked.clone(), tried).await;
        let wants_a_newer = match &begun {
            Ok(begun) => begun.snapshot.is_none() && !listed.is_empty(),
            Err(error) => matches!(error, Error::HistoryGone { .. }),
        };
        if lists == MAX_LISTS || !wants_a_newer {
            return begun;
        }
        lists += 1;
        // A newer snapshot may have been put meanwhile, after which the listed ones, or the records, were
        // deleted. Or a history was cut off, and snapshots of the new one were not recognized.
        let is_known = |one: &Listed| listed.iter().any(|known| known.path == one.path);
        if external.list().await?.iter().all(is_known) && identity(parts).await? == asked {
            return begun;
        }
    }
}

/// Restores a snapshot in place of a state from which the stream does not continue. `stuck` is the cursor
/// of the one that was restored last, if the stream did not continue from there.
pub(super) async fn recover_again<F: Fold>(
    parts: Arc<Parts<F>>,
    stuck: Option<u64>,
) -> Result<Recovered<F>, Error> {
    let recovered = recover(&parts).await?;
    let is_external = matches!(parts.snapshots, Snapshots::External(_));
    if !is_external || stuck != Some(recovered.cursor) {
        return Ok(recovered);
    }
    // The newest one does not reach what is left of the stream. The stream itself may begin with one.
    let tried = vec![format!(
        "the newest one goes to {}, and the stream does not go back there",
        recovered.cursor
    )];
    in_stream(&parts, recovered.identity, tried).await
}

/// Begins with the stream itself: at its very beginning, or with a snapshot in it.
async fn in_stream<F: Fold>(
    parts: &Parts<F>,
    mut identity: Identity,
    tried: Vec<String>,
) -> Result<Recovered<F>, Error> {
    let (initial, reading) = (&parts.initial, &parts.reading);
    let beginning = restore::find(&*parts.endpoint, initial, &mut identity, reading).await;
    let beginning = beginning.map_err(|error| match error {
        Error::HistoryGone {
            stream,
            head,
            tried: mut more,
        } => {
            more.splice(0..0, tried.iter().cloned());
            Error::HistoryGone {
                stream,
                head,
                tried: more,
            }
        }
        // Passing it over would not help: a snapshot of this fold could not be taken here.
        Error::Unusable {
            snapshot,
            why: Unusable::OtherFold { theirs, ours },
        } if matches!(parts.snapshots, Snapshots::InStream) => Error::OtherFold {
            stream: parts.endpoint.shown(),
            other: format!("the snapshot {snapshot}, of fold `{theirs}`"),
            ours,
        },
        other => other,
    })?;
    Ok(match beginning {
        Beginning::AtZero => Recovered {
            fold: parts.initial.clone(),
            cursor: identity.begins_at(),
            next: identity.begins_at(),
            identity,
            snapshot: None,
            met: Vec::new(),
            others: Others::default(),
            tried,
        },
        Beginning::With(found) => Recovered {
            fold: found.fold,
            identity,
            cursor: found.info.cursor,
            snapshot: Some(found.info),
            met: found.met,
            next: found.resume,
            others: found.others,
            tried,
        },
    })
}

async fn identity<F>(parts: &Parts<F>) -> Result<Identity, Error> {
    let mut backoff = Backoff::new(parts.reading.restore_timeout);
    let mut is_there = false;
    loop {
        match parts.endpoint.identity().await {
            // There may be no such stream. Then nothing shows later of which one a snapshot is.
            Ok(identity) if identity.is_unknown() && !is_there => {
                tail(parts).await?;
                is_there = true;
            }
            Ok(identity) => return Ok(identity),
            Err(why) => backoff.wait(&*parts.endpoint, why).await?,
        }
    }
}

async fn tail<F>(parts: &Parts<F>) -> Result<u64, Error> {
    let mut backoff = Backoff::new(parts.reading.restore_timeout);
    loop {
        match parts.endpoint.tail().await {
            Ok(tail) => return Ok(tail),
            Err(why) => backoff.wait(&*parts.endpoint, why).await?,
        }
    }
}
