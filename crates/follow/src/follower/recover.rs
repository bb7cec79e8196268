//! Where a follower begins: the newest usable snapshot, wherever it is kept.

use s2_sdk::types::SequencedRecord;

use super::{Parts, Snapshots};
use crate::endpoint::Identity;
use crate::error::Error;
use crate::fold::Fold;
use crate::in_stream::find::{self, Beginning};
use crate::patience::Patience;
use crate::snapshot::SnapshotInfo;

/// A state, and where to go on.
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
    /// Where to read on.
    pub next: u64,
    /// Snapshots that were not used, and why.
    pub tried: Vec<String>,
}

/// Restores the newest usable snapshot, or begins with an empty state.
pub(super) async fn recover<F: Fold>(parts: &Parts<F>) -> Result<Recovered<F>, Error> {
    let identity = identity(parts).await?;
    let mut tried = Vec::new();
    if let Snapshots::External(external) = &parts.snapshots {
        let mut patience = Patience::new(parts.reading.patience);
        let tail = loop {
            match parts.endpoint.tail().await {
                Ok(tail) => break tail,
                Err(why) => patience.wait(&*parts.endpoint, why).await?,
            }
        };
        let found = external
            .find(&parts.initial, &identity, tail, &parts.reading, &mut tried)
            .await?;
        if let Some((fold, info)) = found {
            return Ok(Recovered {
                fold,
                identity,
                cursor: info.cursor,
                next: info.cursor,
                snapshot: Some(info),
                met: Vec::new(),
                tried,
            });
        }
    }
    in_stream(parts, identity, tried).await
}

/// Begins with the stream itself: at its very beginning, or with a snapshot in it.
pub(super) async fn in_stream<F: Fold>(
    parts: &Parts<F>,
    identity: Identity,
    tried: Vec<String>,
) -> Result<Recovered<F>, Error> {
    let beginning = find::find(&*parts.endpoint, &parts.initial, &identity, &parts.reading).await;
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
        other => other,
    })?;
    Ok(match beginning {
        Beginning::AtZero => Recovered {
            fold: parts.initial.clone(),
            identity,
            snapshot: None,
            cursor: 0,
            met: Vec::new(),
            next: 0,
            tried,
        },
        Beginning::With(found) => Recovered {
            fold: found.fold,
            identity,
            cursor: found.info.cursor,
            snapshot: Some(found.info),
            met: found.met,
            next: found.resume,
            tried,
        },
    })
}

pub(super) async fn identity<F>(parts: &Parts<F>) -> Result<Identity, Error> {
    let mut patience = Patience::new(parts.reading.patience);
    loop {
        match parts.endpoint.identity().await {
            Ok(identity) => return Ok(identity),
            Err(why) => patience.wait(&*parts.endpoint, why).await?,
        }
    }
}
