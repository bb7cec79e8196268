//! All snapshots of a stream, wherever they are: whether they are whole, how far they reach, and how long
//! a recovery from each would take.

use std::cmp::Reverse;
use std::time::Duration;

use tokio::time::Instant;

use crate::backoff::Backoff;
use crate::endpoint::{Endpoint, EndpointError, Identity};
use crate::error::Error;
use crate::external::{External, Listed};
use crate::follower::Snapshots;
use crate::in_stream::inspect::{Read, scan};
use crate::inspected::WAIT_TIMEOUT;
pub use crate::inspected::{Inspected, MAX_LISTED, Standing};
use crate::snapshot::{Kind, SnapshotInfo, Unusable};

/// What was found.
#[derive(Clone, Debug)]
pub struct Inspection {
    /// The first sequence number that is there; the tail if there is none.
    pub head: u64,
    /// The next sequence number.
    pub tail: u64,
    /// All of them, the one with the highest cursor first.
    pub snapshots: Vec<Inspected>,
    /// Older ones in the stream that are not listed, because there are more than [`MAX_LISTED`].
    pub left_out: u64,
    /// Records of snapshots whose beginning is gone, or that are malformed. They do no harm.
    pub strays: u64,
    /// Records that were read.
    pub records: u64,
    /// Bytes of their bodies.
    pub bytes: u64,
    /// How long that took.
    pub took: Duration,
    snapshots_read: Read,
    others_read: Read,
}

impl Inspection {
    /// About how long a recovery from a usable snapshot would take, at the speed of this inspection: the
    /// snapshot, then what follows its cursor. The time of the fold is not included.
    pub fn recovery(&self, one: &Inspected) -> Option<Duration> {
        if !one.is_usable() {
            return None;
        }
        let read = one.read_in.unwrap_or_else(|| {
            let all = match self.snapshots_read.bytes {
                0 => self.others_read,
                _ => self.snapshots_read,
            };
            share(all.took, one.info.bytes, all.bytes)
        });
        let all = match self.others_read.records {
            0 => self.snapshots_read,
            _ => self.others_read,
        };
        Some(read + share(all.took, one.replay, all.records))
    }
}

/// The time of a part, given the time of the whole.
fn share(took: Duration, part: u64, whole: u64) -> Duration {
    match whole {
        0 => Duration::ZERO,
        whole => took.mul_f64(part as f64 / whole as f64),
    }
}

/// Inspects all snapshots of a stream: reads it from the head to the tail, and the objects beside it, if
/// there is such a place. Bodies are not kept. `progress` is called with the position and the tail.
///
/// # Errors
///
/// [`Error::Endpoint`], [`Error::Store`].
///
/// ```no_run
/// use esker_follow::{S2Endpoint, Snapshots, inspect};
///
/// # async fn example() -> Result<(), esker_follow::Error> {
/// let orders = S2Endpoint::from_env("s2://my-basin/orders")?;
/// let found = inspect(&orders, &Snapshots::InStream, |_, _| {}).await?;
/// for one in &found.snapshots {
///     println!("{} at {}: {:?}", one.info.kind, one.info.cursor, one.standing);
/// }
/// # Ok(())
/// # }
/// ```
pub async fn inspect(
    endpoint: &dyn Endpoint,
    snapshots: &Snapshots,
    mut progress: impl FnMut(u64, u64),
) -> Result<Inspection, Error> {
    let identity = ask(endpoint, || endpoint.identity()).await?;
    let tail = ask(endpoint, || endpoint.tail()).await?;
    let mut objects = match snapshots {
        Snapshots::External(external) => external.list().await?,
        _ => Vec::new(),
    };
    objects.sort_by_key(|listed| listed.cursor);
    let marks: Vec<u64> = objects.iter().map(|listed| listed.cursor).collect();
    let scanned = scan(endpoint, &identity, tail, &marks, &mut progress).await?;
    let head = scanned.head.unwrap_or(tail);
    let mut found = Vec::from(scanned.found);
    if let Snapshots::External(external) = snapshots {
        for (listed, before) in objects.iter().zip(&scanned.before) {
            let one = object(external, listed, &identity, head, tail).await?;
            found.push(Inspected {
                before: *before,
                ..one
            });
        }
    }
    for one in &mut found {
        // What an anchored snapshot does not cover is before it; nearly all of that is for the fold.
        let between = match (one.info.anchored, one.info.place.parse::<u64>()) {
            (true, Ok(position)) => position.saturating_sub(one.info.cursor).min(one.before),
            _ => 0,
        };
        one.replay = scanned.data.saturating_sub(one.before) + between;
    }
    found.sort_by_key(|one| Reverse(one.info.cursor));
    let (snapshots_read, others_read) = (scanned.snapshots, scanned.others);
    Ok(Inspection {
        head,
        tail,
        snapshots: found,
        left_out: scanned.left_out,
        strays: scanned.strays,
        records: snapshots_read.records + others_read.records,
        bytes: snapshots_read.bytes + others_read.bytes,
        took: snapshots_read.took + others_read.took,
        snapshots_read,
        others_read,
    })
}

async fn ask<T, F>(endpoint: &dyn Endpoint, mut question: impl FnMut() -> F) -> Result<T, Error>
where
    F: Future<Output = Result<T, EndpointError>>,
{
    let mut backoff = Backoff::new(Some(WAIT_TIMEOUT));
    loop {
        match question().await {
            Ok(answer) => return Ok(answer),
            Err(why) => backoff.wait(endpoint, why).await?,
        }
    }
}

async fn object(
    external: &External,
    listed: &Listed,
    identity: &Identity,
    head: u64,
    tail: u64,
) -> Result<Inspected, Error> {
    let begun = Instant::now();
    let checked = external.check(listed).await?;
    let read_in = begun.elapsed();
    let (meta, standing) = match checked {
        Ok(meta) if listed.cursor > tail => {
            let cursor = listed.cursor;
            let why = Unusable::BeyondTail { cursor, tail };
            (Some(meta), Standing::Useless(why.to_string()))
        }
        Ok(meta) => {
            let standing = Standing::of(&meta, identity, head);
            (Some(meta), standing)
        }
        Err(why @ Unusable::Foreign(_)) => (None, Standing::Useless(why.to_string())),
        Err(Unusable::Damaged(why)) => (None, Standing::Damaged(why)),
        Err(why) => (None, Standing::Damaged(why.to_string())),
    };
    let info = SnapshotInfo {
        kind: Kind::External,
        place: listed.path.to_string(),
        cursor: listed.cursor,
        bytes: listed.bytes,
        taken_at: Some(
            meta.as_ref()
                .map_or(listed.written_at, |meta| meta.taken_at),
        ),
        anchored: false,
    };
    Ok(Inspected {
        read_in: Some(read_in),
        ..Inspected::new(info, meta.as_ref(), standing, 0)
    })
}
