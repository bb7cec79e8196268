//! The digests of this node's replicas: the threads that compute them, and what they have shown.
//!
//! ```text
//!  apply thread: AskDigest ──▶ a thread chooses the moment (the apply thread waits for that alone)
//!                              └▶ reads the partition, one after the other, at a bounded rate ──▶ own digest
//!  apply thread: NoteDigests ──────────────────────────▶ the right digest ──▶ diverged, if they differ
//! ```
//!
//! - **Apply** waits until the thread has a snapshot of the database and its iterators, for [`BEGIN_TIMEOUT`] at
//!   most. A digest of a later state is thrown away.
//! - **Disk**: one partition is read at a time, at a rate for all of them together. What is deleted meanwhile stays
//!   on the disk for as long as a digest is under way, so it ends where the disk lacks space.
//! - **Memory**: [`MAX_THREADS`] digests are under way; a further one is not computed, which is no divergence.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use esker_raft::priority::{DiskPriority, lower_priority};
use parking_lot::{Condvar, Mutex};

use super::comparison::Compared;
use super::{DIGEST_FORMAT, PartitionDigest};
use crate::ids::PartitionId;
use crate::keys;
use crate::store::{PartitionDb, StoreError};

/// How long an apply waits until a digest has begun. Normally that takes a millisecond.
const BEGIN_TIMEOUT: Duration = Duration::from_secs(1);
/// Digests that are under way or wait for the one before: each leader asks for one at a time, so as many as the
/// largest clusters have nodes.
const MAX_THREADS: usize = 9;
/// Digests of a partition, and comparisons, that are remembered.
const REMEMBERED: usize = 4;

/// The digests of this node's replicas. Cheap to clone; clones share everything. The default one computes
/// nothing, for copies of a partition that are no replicas.
#[derive(Clone, Default)]
pub struct ReplicaDigests {
    inner: Option<Arc<Inner>>,
}

impl std::fmt::Debug for ReplicaDigests {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let me = self.inner.as_ref().map(|inner| inner.me);
        f.debug_struct("ReplicaDigests").field("me", &me).finish()
    }
}

struct Inner {
    me: u64,
    /// 0 for no limit.
    bytes_per_second: u64,
    state: Mutex<State>,
    /// A thread has ended, or all of them are to end.
    changed: Condvar,
    /// Held by the thread that reads.
    reading: Mutex<()>,
    bytes_read: AtomicU64,
}

#[derive(Default)]
struct State {
    partitions: BTreeMap<PartitionId, Replica>,
    threads: usize,
    is_closed: bool,
}

/// What is known of a partition's replica here.
#[derive(Default)]
struct Replica {
    /// The newest digests that the log has asked for, oldest first, by LSN.
    own: VecDeque<(u64, OwnDigest)>,
    /// The newest comparisons, oldest first: the own digest may come later.
    compared: VecDeque<Compared>,
    diverged: Option<Divergence>,
}

/// The digest of this node's replica, as of one entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OwnDigest {
    /// It is being computed.
    Computing,
    /// This one.
    Computed(u128),
    /// It was not asked for since this start, or could not be computed.
    Unknown,
}

/// A replica whose state is not that of the majority.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Divergence {
    /// As of this LSN.
    pub lsn: u64,
    /// Its digest.
    pub own: u128,
    /// That of the majority.
    pub right: u128,
    /// The members that have that one.
    pub others: Vec<u64>,
}

impl ReplicaDigests {
    /// Those of the node `me`, which together read so many bytes in a second; 0 is no limit.
    pub fn new(me: u64, bytes_per_second: u64) -> ReplicaDigests {
        ReplicaDigests {
            inner: Some(Arc::new(Inner {
                me,
                bytes_per_second,
                state: Mutex::default(),
                changed: Condvar::new(),
                reading: Mutex::default(),
                bytes_read: AtomicU64::new(0),
            })),
        }
    }

    /// Takes the last comparison from the database. If what this member has answered was wrong, the replica has
    /// diverged: the process may have ended before that was noted anywhere else.
    pub(crate) fn open(&self, part: &PartitionDb) -> Result<(), StoreError> {
        let Some(inner) = &self.inner else {
            return Ok(());
        };
        let compared = part.get::<Compared>(keys::COMPARED, "the last comparison")?;
        let mut replica = Replica {
            compared: compared.into_iter().collect(),
            ..Replica::default()
        };
        replica.compare(inner.me);
        let mut state = inner.state.lock();
        state.partitions.insert(part.partition(), replica);
        Ok(())
    }

    /// The same, for a partition whose state a snapshot of another member is about to replace: what this member has
    /// answered was the digest of the state before. Durable when this returns.
    pub(crate) fn open_replaced(&self, part: &PartitionDb) -> Result<(), StoreError> {
        let Some(inner) = &self.inner else {
            return Ok(());
        };
        let compared = part.get::<Compared>(keys::COMPARED, "the last comparison")?;
        if let Some(mut compared) = compared
            && compared.has_wrong_answer_of(inner.me).is_some()
        {
            compared.answers.retain(|answer| answer.node != inner.me);
            let mut batch = part.batch();
            batch.put(keys::COMPARED, prost::Message::encode_to_vec(&compared));
            batch.write()?;
            part.flush()?;
        }
        self.open(part)
    }

    /// Computes the digest of a partition, which is as of `lsn` now and until this returns.
    pub(crate) fn compute(&self, part: &PartitionDb, lsn: u64, format: u32) {
        let Some(inner) = self.inner.as_ref().filter(|_| format == DIGEST_FORMAT) else {
            return;
        };
        let partition = part.partition();
        {
            let mut state = inner.state.lock();
            if state.is_closed || state.threads >= MAX_THREADS {
                return;
            }
            state.threads += 1;
            let own = &mut state.partitions.entry(partition).or_default().own;
            own.push_back((lsn, OwnDigest::Computing));
            if own.len() > REMEMBERED {
                own.pop_front();
            }
        }
        let (begun, begins) = mpsc::sync_channel(1);
        let spawned = std::thread::Builder::new()
            .name(format!("digest-{partition}"))
            .spawn({
                let (inner, part) = (inner.clone(), part.clone());
                move || {
                    let digest = inner.digest(&part, lsn, || {
                        // The apply thread may not wait any more.
                        let _ = begun.try_send(());
                    });
                    inner.computed(partition, lsn, digest);
                    // Before the database may be closed.
                    drop(part);
                    inner.state.lock().threads -= 1;
                    inner.changed.notify_all();
                }
            });
        match spawned {
            Ok(_) => {
                // A digest that has not begun in time is as of a later entry, and is not used.
                let _ = begins.recv_timeout(BEGIN_TIMEOUT);
            }
            Err(error) => {
                tracing::warn!(%partition, %error, "a digest is not computed");
                inner.computed(partition, lsn, None);
                inner.state.lock().threads -= 1;
            }
        }
    }

    /// Compares the digest here with those that the log has recorded.
    pub(crate) fn note(&self, partition: PartitionId, compared: Compared) {
        let Some(inner) = &self.inner else {
            return;
        };
        let mut state = inner.state.lock();
        let replica = state.partitions.entry(partition).or_default();
        replica.compared.push_back(compared);
        if replica.compared.len() > REMEMBERED {
            replica.compared.pop_front();
        }
        replica.compare(inner.me);
    }

    /// The digest of this node's replica as of an entry that has asked for it.
    pub fn own(&self, partition: u64, lsn: u64) -> OwnDigest {
        self.with(partition, |replica| replica.own(lsn))
            .unwrap_or(OwnDigest::Unknown)
    }

    /// The last comparison of a partition's digests.
    pub fn compared(&self, partition: u64) -> Option<Compared> {
        self.with(partition, |replica| replica.compared.back().cloned())?
    }

    /// Why the replica here is wrong, if a comparison has shown that.
    pub fn divergence(&self, partition: u64) -> Option<Divergence> {
        self.with(partition, |replica| replica.diverged.clone())?
    }

    /// Bytes that were read for digests since the start.
    pub fn bytes_read(&self) -> u64 {
        let inner = self.inner.as_ref();
        inner.map_or(0, |inner| inner.bytes_read.load(Ordering::Relaxed))
    }

    fn with<T>(&self, partition: u64, look: impl FnOnce(&Replica) -> T) -> Option<T> {
        let state = self.inner.as_ref()?.state.lock();
        state.partitions.get(&PartitionId(partition)).map(look)
    }

    /// Ends all digests, and waits until their threads use no database any more. Later ones are not begun.
    pub fn close(&self) {
        let Some(inner) = &self.inner else {
            return;
        };
        let mut state = inner.state.lock();
        state.is_closed = true;
        inner.changed.notify_all();
        while state.threads > 0 {
            inner.changed.wait(&mut state);
        }
    }
}

impl Inner {
    /// The digest, if it could be computed, and is as of `lsn`.
    fn digest(&self, part: &PartitionDb, lsn: u64, begun: impl FnOnce()) -> Option<u128> {
        let partition = part.partition();
        // The moment is chosen first, and then the digests before this one are waited for.
        let (mut turn, mut paid_until) = (None, Instant::now());
        let begun = || {
            begun();
            lower_priority(DiskPriority::Idle);
        };
        let computed = part.digest_at_pace(begun, &mut |bytes| {
            if turn.is_none() {
                turn = Some(self.reading.lock());
                paid_until = Instant::now();
            }
            self.bytes_read.fetch_add(bytes, Ordering::Relaxed);
            let nanos = bytes.saturating_mul(1_000_000_000);
            let nanos = nanos.checked_div(self.bytes_per_second).unwrap_or(0);
            paid_until = paid_until.max(Instant::now()) + Duration::from_nanos(nanos);
            self.sleep_until(paid_until) && part.short_space().is_none()
        });
        match computed {
            Ok(PartitionDigest { lsn: at, .. }) if at != lsn => {
                tracing::debug!(%partition, lsn, at, "a digest began too late, and is not used");
                None
            }
            Ok(digest) => Some(digest.digest),
            Err(error) => {
                tracing::warn!(%partition, lsn, %error, "a digest could not be computed");
                None
            }
        }
    }

    /// Returns false if all threads are to end.
    fn sleep_until(&self, until: Instant) -> bool {
        let mut state = self.state.lock();
        while !state.is_closed && Instant::now() < until {
            self.changed.wait_until(&mut state, until);
        }
        !state.is_closed
    }

    fn computed(&self, partition: PartitionId, lsn: u64, digest: Option<u128>) {
        let mut state = self.state.lock();
        let replica = state.partitions.entry(partition).or_default();
        if let Some(own) = replica.own.iter_mut().find(|own| own.0 == lsn) {
            own.1 = digest.map_or(OwnDigest::Unknown, OwnDigest::Computed);
        }
        replica.compare(self.me);
    }
}

impl Replica {
    fn own(&self, lsn: u64) -> OwnDigest {
        let own = self.own.iter().find(|own| own.0 == lsn);
        own.map_or(OwnDigest::Unknown, |own| own.1)
    }

    /// Looks whether the replica is wrong by what is known now.
    fn compare(&mut self, me: u64) {
        for compared in &self.compared {
            let own = match self.own(compared.lsn) {
                OwnDigest::Computed(own) => Some(own),
                OwnDigest::Computing => None,
                // It has answered before this start.
                OwnDigest::Unknown => compared.has_wrong_answer_of(me),
            };
            let Some(own) = own else {
                continue;
            };
            let Some(right) = compared.right().filter(|right| *right != own) else {
                continue;
            };
            let others = compared.digests().filter(|(_, digest)| *digest == right);
            let others = others.map(|(node, _)| node).filter(|node| *node != me);
            self.diverged.get_or_insert(Divergence {
                lsn: compared.lsn,
                own,
                right,
                others: others.collect(),
            });
        }
    }
}
