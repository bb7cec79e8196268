//! Taking a snapshot within the stream.
//!
//! A lost answer is not a failure. With a condition, the position where the snapshot would be is read,
//! and the snapshot is ours if it has our id. Without one, another attempt does no harm.

use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt as _;
use s2_sdk::types::AppendRecord;
use tokio::sync::mpsc;
use uuid::Uuid;

use crate::endpoint::{AppendFailed, Endpoint, Sharing};
use crate::fold::Fold;
use crate::in_stream::others::Guard;
use crate::snapshot::pipe::{self, Chunks};
use crate::snapshot::record::{self, Seen};
use crate::snapshot::{Kind, Meta, OtherFold, SnapshotInfo, Totals};
use crate::trim;

/// Attempts of one append whose answer is unknown.
const ATTEMPTS: u32 = 5;
/// Pause between them; it grows by as much.
const PAUSE: Duration = Duration::from_millis(100);
/// Longest read of what is at a position.
const LOOK: Duration = Duration::from_secs(20);
/// Fragments that wait for the append session.
const WAITING: usize = 2;
/// Bytes of a fragment while others append to the stream: their appends wait behind it, for about the time
/// that the disk takes for one of theirs. Otherwise a fragment is as large as a record may be.
const SHARED_FRAGMENT: usize = 64 << 10;

/// Why none was taken.
#[derive(Debug)]
pub enum NotTaken {
    /// Others have appended since the cursor.
    Lost {
        /// The next sequence number.
        tail: u64,
    },
    /// The trim would destroy the newest snapshot of another fold.
    OtherFold(Box<OtherFold>),
    /// Anything else.
    Failed(String),
}

impl NotTaken {
    fn failed(error: impl std::fmt::Display) -> NotTaken {
        NotTaken::Failed(error.to_string())
    }

    fn append_failed(error: AppendFailed) -> NotTaken {
        match error {
            AppendFailed::OtherFold(other) => NotTaken::OtherFold(other),
            error => NotTaken::failed(error),
        }
    }
}

/// Appends a snapshot of a state whose cursor is in the description. With `anchored`, it is appended at
/// any position.
///
/// # Errors
///
/// [`NotTaken`].
pub async fn take<F: Fold>(
    endpoint: &dyn Endpoint,
    guard: &Guard,
    fold: F,
    meta: &Meta,
    anchored: bool,
) -> Result<SnapshotInfo, NotTaken> {
    // What is before the cursor was read. Each trim below checks what comes after it.
    let allowed = guard.check(endpoint, meta, meta.cursor, meta.cursor).await;
    allowed.map_err(|why| NotTaken::append_failed(trim::denied(why)))?;
    let mut chunks = pipe::write(fold, meta);
    let first = chunks.next().await.unwrap_or_default();
    let second = chunks.next().await;
    let task = SnapshotTask {
        endpoint,
        guard,
        meta,
        id: Uuid::new_v4(),
        anchored,
    };
    match second {
        None => {
            let totals = chunks.totals().await.map_err(NotTaken::failed)?;
            task.single(first, &totals).await
        }
        Some(second) => task.framed(first, second, chunks).await,
    }
}

struct SnapshotTask<'a> {
    endpoint: &'a dyn Endpoint,
    guard: &'a Guard,
    meta: &'a Meta,
    id: Uuid,
    anchored: bool,
}

impl SnapshotTask<'_> {
    async fn single(&self, body: Bytes, totals: &Totals) -> Result<SnapshotInfo, NotTaken> {
        let cursor = self.meta.cursor;
        let snapshot = record::single_record(self.id, self.meta, totals, body);
        let snapshot = snapshot.map_err(NotTaken::failed)?;
        let position = if self.anchored {
            // Trimmed to the cursor only: what is between it and the snapshot is not covered. The command
            // comes first, so that no anchored snapshot directly follows a record that it does not cover.
            let batch = vec![record::trim_record(cursor), snapshot];
            let appended = trim::append(self.endpoint, self.guard, self.meta, cursor, batch).await;
            appended.map_err(NotTaken::append_failed)? + 1
        } else {
            // Both or none are appended. The trim removes its own command at once.
            let batch = vec![record::trim_record(cursor + 1), snapshot];
            self.append(batch, Some((cursor, cursor + 1))).await? + 1
        };
        Ok(self.info(Kind::Single, position, totals))
    }

    async fn framed(
        &self,
        first: Bytes,
        second: Bytes,
        mut chunks: Chunks,
    ) -> Result<SnapshotInfo, NotTaken> {
        let cursor = self.meta.cursor;
        let first = record::fragment_record(self.id, 0, Some(self.meta), first);
        let first = vec![first.map_err(NotTaken::failed)?];
        let condition = (!self.anchored).then_some((cursor, cursor));
        let position = self.append(first, condition).await?;

        let (batches, received) = mpsc::channel(WAITING);
        let sharing = Sharing::default();
        let shared = sharing.clone();
        let send = async move {
            let mut next = Some(second);
            let mut index = 1;
            while let Some(mut chunk) = next {
                while !chunk.is_empty() {
                    let body = chunk.split_to(fragment_bytes(chunk.len(), &shared));
                    let fragment = record::fragment_record(self.id, index, None, body);
                    let fragment = fragment.map_err(NotTaken::failed)?;
                    if batches.send(vec![fragment]).await.is_err() {
                        // The session has ended, and reports why.
                        return Ok(None);
                    }
                    index += 1;
                }
                next = chunks.next().await;
            }
            let totals = chunks.totals().await.map_err(NotTaken::failed)?;
            let end = record::final_record(self.id, index, &totals);
            let end = end.map_err(NotTaken::failed)?;
            let _ = batches.send(vec![end]).await;
            Ok(Some(totals))
        };
        let appended = self.endpoint.append_all(received, &sharing);
        let (sent, appended) = tokio::join!(send, appended);
        let totals = sent?;
        appended.map_err(NotTaken::failed)?;
        let Some(totals) = totals else {
            return Err(NotTaken::failed("the append session ended early"));
        };
        // The records before the cursor may be removed only when the whole snapshot is durable.
        let trim = vec![record::trim_record(cursor)];
        let trimmed = trim::append(self.endpoint, self.guard, self.meta, cursor, trim).await;
        if let Err(AppendFailed::OtherFold(other)) = trimmed {
            return Err(NotTaken::OtherFold(other));
        }
        if let Err(error) = trimmed {
            tracing::warn!(
                stream = self.endpoint.shown(),
                cursor,
                ?error,
                "a snapshot is there, and the stream not trimmed: the next one does it"
            );
        }
        Ok(self.info(Kind::Framed, position, &totals))
    }

    fn info(&self, kind: Kind, position: u64, totals: &Totals) -> SnapshotInfo {
        SnapshotInfo {
            kind,
            place: position.to_string(),
            cursor: self.meta.cursor,
            bytes: totals.bytes,
            taken_at: Some(self.meta.taken_at),
            anchored: self.anchored,
        }
    }

    /// Appends a batch. With a condition, it is appended only at the first sequence number, and the
    /// snapshot's record is then at the second.
    async fn append(
        &self,
        batch: Vec<AppendRecord>,
        condition: Option<(u64, u64)>,
    ) -> Result<u64, NotTaken> {
        let mut attempt = 0;
        loop {
            attempt += 1;
            let failed = match self.append_once(batch.clone(), condition).await {
                Ok(start) => return Ok(start),
                Err(failed) => failed,
            };
            match (&failed, condition) {
                (
                    AppendFailed::Refused(_) | AppendFailed::Fenced(_) | AppendFailed::OtherFold(_),
                    _,
                ) => {
                    return Err(NotTaken::append_failed(failed));
                }
                (AppendFailed::Elsewhere { tail }, None) => {
                    return Err(NotTaken::Lost { tail: *tail });
                }
                (AppendFailed::Elsewhere { tail }, Some((at, place))) => {
                    // What is there may be an earlier attempt.
                    return match self.is_ours(place, *tail).await? {
                        true => Ok(at),
                        false => Err(NotTaken::Lost { tail: *tail }),
                    };
                }
                (AppendFailed::Unknown(_), _) if attempt >= ATTEMPTS => {
                    return Err(NotTaken::failed(failed));
                }
                (AppendFailed::Unknown(_), _) => tokio::time::sleep(PAUSE * attempt).await,
            }
        }
    }

    /// Makes one attempt. With a condition, the stream is checked first: one that was created again may have
    /// as many records as the one of the snapshot, and the trim in the batch would remove them.
    async fn append_once(
        &self,
        batch: Vec<AppendRecord>,
        condition: Option<(u64, u64)>,
    ) -> Result<u64, AppendFailed> {
        if condition.is_some() {
            trim::check(self.endpoint, self.meta).await?;
        }
        let at = condition.map(|(at, _)| at);
        self.endpoint.append(batch, at).await
    }

    /// Whether a record of this snapshot is at a position.
    async fn is_ours(&self, place: u64, tail: u64) -> Result<bool, NotTaken> {
        if tail <= place {
            return Ok(false);
        }
        let look = async {
            let mut pieces = self.endpoint.read(place);
            while let Some(piece) = pieces.next().await {
                let piece = piece.map_err(NotTaken::failed)?;
                if let Some(record) = piece.records.first() {
                    let seen = record::see(record);
                    let ours = matches!(
                        seen,
                        Seen::Single { id, .. } | Seen::Fragment { id, index: 0, .. } if id == self.id
                    );
                    return Ok(record.seq_num == place && ours);
                }
                if piece.tail.is_some() {
                    // A later snapshotter trimmed it.
                    return Ok(false);
                }
            }
            Err(NotTaken::failed("the read ended"))
        };
        match tokio::time::timeout(LOOK, look).await {
            Ok(is_ours) => is_ours,
            Err(_) => Err(NotTaken::failed("the server does not say what is there")),
        }
    }
}

/// Bytes of the next fragment of a chunk.
fn fragment_bytes(chunk: usize, sharing: &Sharing) -> usize {
    match sharing.is_shared() {
        true => chunk.min(SHARED_FRAGMENT),
        false => chunk,
    }
}
