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

use esker_raft::Membership;
use esker_raft::priority::{DiskPriority, lower_priority};
use parking_lot::{Condvar, Mutex};

use super::comparison::Compared;
use super::{DIGEST_FORMAT, PartitionDigest};
use crate::ids::PartitionId;
use crate::keys;
use crate::origin::Origin;
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
    /// The newest digests that the log has asked for, oldest first.
    own: VecDeque<Own>,
    /// The newest comparisons, oldest first: the own digest may come later.
    compared: VecDeque<Compared>,
    diverged: Option<Divergence>,
    /// Whose work the state is.
    origin: Origin,
    asked: Option<Asked>,
}

/// A digest that the log has asked for.
struct Own {
    lsn: u64,
    digest: OwnDigest,
    /// Whose work the state was of which it is.
    origin: Origin,
}

/// Comparisons that the log has asked for since the last one that it has recorded.
#[derive(Clone, Copy, Debug)]
pub struct Asked {
    /// LSN of the last entry that has asked for digests.
    pub lsn: u64,
    /// How many have, in a row.
    pub times: u32,
    /// When the first of them was applied here.
    pub since: Instant,
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
        let (origin, is_new) = Origin::of_replica(part, inner.me)?;
        if is_new {
            let mut batch = part.batch();
            batch.put(keys::ORIGIN, prost::Message::encode_to_vec(&origin));
            batch.write()?;
        }
        let mut replica = Replica {
            compared: compared.into_iter().collect(),
            origin,
            ..Replica::default()
        };
        replica.compare(inner.me);
        let mut state = inner.state.lock();
        state.partitions.insert(part.partition(), replica);
        Ok(())
    }

    /// The same, for a partition whose state a snapshot of another member is about to replace: what this member has
    /// answered was the digest of the state before, and whose work the state is, is in the snapshot. Durable when this
    /// returns.
    pub(crate) fn open_replaced(&self, part: &PartitionDb) -> Result<(), StoreError> {
        let Some(inner) = &self.inner else {
            return Ok(());
        };
        let mut batch = part.batch();
        let (origin, _) = Origin::of_replica(part, inner.me)?;
        batch.put(keys::ORIGIN, prost::Message::encode_to_vec(&origin));
        let compared = part.get::<Compared>(keys::COMPARED, "the last comparison")?;
        if let Some(mut compared) = compared
            && compared.has_wrong_answer_of(inner.me).is_some()
        {
            compared.answers.retain(|answer| answer.node != inner.me);
            batch.put(keys::COMPARED, prost::Message::encode_to_vec(&compared));
        }
        batch.write()?;
        part.flush()?;
        self.open(part)
    }

    /// Computes the digest of a partition, which is as of `lsn` now and until this returns.
    pub(crate) fn compute(&self, part: &PartitionDb, lsn: u64, format: u32) {
        let Some(inner) = &self.inner else {
            return;
        };
        let partition = part.partition();
        {
            let mut state = inner.state.lock();
            let is_full = state.is_closed || state.threads >= MAX_THREADS;
            let replica = state.partitions.entry(partition).or_default();
            replica.note_asked(lsn);
            if is_full || format != DIGEST_FORMAT {
                return;
            }
            replica.own.push_back(Own {
                lsn,
                digest: OwnDigest::Computing,
                origin: replica.origin,
            });
            if replica.own.len() > REMEMBERED {
                replica.own.pop_front();
            }
            state.threads += 1;
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

    /// That of the state here from now on, if a comparison has shown that it counts as this member's own.
    pub(crate) fn confirmed(
        &self,
        partition: PartitionId,
        compared: &Compared,
        members: &Membership,
    ) -> Option<Origin> {
        let me = self.inner.as_ref()?.me;
        let origin = self.origin(partition.0)?;
        let is_confirmed = origin.node != me && compared.confirms(me, origin, members);
        is_confirmed.then(|| Origin::own(me, compared.lsn))
    }

    /// Compares the digest here with those that the log has recorded. `origin` is that of the state here, if it has
    /// changed.
    pub(crate) fn note(&self, partition: PartitionId, compared: Compared, origin: Option<Origin>) {
        let Some(inner) = &self.inner else {
            return;
        };
        let mut state = inner.state.lock();
        let replica = state.partitions.entry(partition).or_default();
        replica.origin = origin.unwrap_or(replica.origin);
        replica.asked = replica.asked.filter(|asked| asked.lsn > compared.lsn);
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

    /// Whose work the state was of which [`ReplicaDigests::own`] is the digest.
    pub fn origin_of_own(&self, partition: u64, lsn: u64) -> Option<Origin> {
        self.with(partition, |replica| {
            let own = replica.own.iter().find(|own| own.lsn == lsn);
            own.map(|own| own.origin)
        })?
    }

    /// Whose work the state of this node's replica is.
    pub fn origin(&self, partition: u64) -> Option<Origin> {
        self.with(partition, |replica| replica.origin)
    }

    /// Whether the replica here may be the wrong one of those that differ: nobody is to get its state. It is not if an
    /// operator takes it for the right one.
    pub fn is_doubtful(&self, partition: u64) -> bool {
        let me = self.inner.as_ref().map(|inner| inner.me);
        let is_doubtful = |replica: &Replica| {
            let last = replica.compared.back().filter(|last| last.is_open());
            last.is_some_and(|last| {
                let trusted = last.trusted;
                !trusted.is_some_and(|it| Some(it.node) == me && it.origin == Some(replica.origin))
            })
        };
        self.with(partition, is_doubtful).unwrap_or(false)
    }

    /// The comparison that the log has asked for and not recorded.
    pub fn unfinished(&self, partition: u64) -> Option<Asked> {
        self.with(partition, |replica| replica.asked)?
    }

    /// The last comparison of a partition's digests.
    pub fn compared(&self, partition: u64) -> Option<Compared> {
        self.with(partition, |replica| replica.compared.back().cloned())?
    }

    /// Whether one of the last comparisons has found the replica of a member wrong.
    pub fn was_wrong(&self, partition: u64, node: u64) -> bool {
        let is_wrong = |compared: &Compared| compared.has_wrong_answer_of(node).is_some();
        self.with(partition, |replica| replica.compared.iter().any(is_wrong))
            .unwrap_or(false)
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
        if let Some(own) = replica.own.iter_mut().find(|own| own.lsn == lsn) {
            own.digest = digest.map_or(OwnDigest::Unknown, OwnDigest::Computed);
        }
        replica.compare(self.me);
    }
}

impl Replica {
    fn own(&self, lsn: u64) -> OwnDigest {
        let own = self.own.iter().find(|own| own.lsn == lsn);
        own.map_or(OwnDigest::Unknown, |own| own.digest)
    }

    fn note_asked(&mut self, lsn: u64) {
        let before = self.asked;
        self.asked = Some(Asked {
            lsn,
            times: before.map_or(1, |before| before.times.saturating_add(1)),
            since: before.map_or_else(Instant::now, |before| before.since),
        });
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
