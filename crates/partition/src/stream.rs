//! One stream, as readers and the leader see it.
//!
//! The apply thread publishes here what it has applied, and wakes readers. Readers take the tail, the
//! trim point and the newest batches from here. Batches are kept in memory only while the stream has
//! followers, up to a limit in bytes; a reader that lags further behind reads the database.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use parking_lot::Mutex;
use s2_common::config::StreamConfig;
use s2_common::encryption::EncryptionAlgorithm;
use s2_common::record::{FencingToken, SeqNum, StreamPosition};
use tokio::sync::watch;

use crate::batch::StoredBatch;
use crate::encryption::{UnknownCipher, cipher_of};
use crate::ids::{BasinId, PartitionId, StreamId};
use crate::lineage::GAP;
use crate::recent::{Recent, RecentBatches, RecentBudget};
use crate::settings::StreamSettings;

/// The stored data of a stream that seldom changes.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct StreamMeta {
    /// Its basin.
    #[prost(uint64, tag = "1")]
    pub basin: u64,
    /// Its name.
    #[prost(string, tag = "2")]
    pub name: String,
    /// Settings; the basin's defaults were merged in at creation.
    #[prost(message, required, tag = "3")]
    pub settings: StreamSettings,
    /// Increases with every change of the settings.
    #[prost(uint64, tag = "4")]
    pub settings_version: u64,
    /// When it was created, in milliseconds since the epoch.
    #[prost(uint64, tag = "5")]
    pub created_ms: u64,
    /// See [`crate::command::ProvisionStream::request_hash`].
    #[prost(bytes = "vec", tag = "6")]
    pub request_hash: Vec<u8>,
    /// Its cipher, which never changes: see [`cipher_number`](crate::encryption::cipher_number).
    #[prost(uint32, tag = "7")]
    pub cipher: u32,
}

/// The stored data of a stream that changes with every append. It is written with each of them, so
/// nothing in it may grow with their number.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct StreamState {
    /// Next sequence number.
    #[prost(uint64, tag = "1")]
    pub tail_seq: u64,
    /// Timestamp of the last record ever appended.
    #[prost(uint64, tag = "2")]
    pub tail_timestamp: u64,
    /// First sequence number that readers may see.
    #[prost(uint64, tag = "3")]
    pub trim_point: u64,
    /// Fencing token in force; empty for none.
    #[prost(string, tag = "4")]
    pub fencing_token: String,
    /// When it was created or last changed, in milliseconds since the epoch.
    #[prost(uint64, tag = "5")]
    pub active_ms: u64,
    /// Number of the partition's forks that the sequence numbers take into account.
    #[prost(uint64, tag = "6")]
    pub forks: u64,
    /// Sequence numbers that were passed over, in order: the last [`MAX_GAPS`] gaps. Gaps below the trim
    /// point are included, because a consumer of trimmed records has to know whether they are part of
    /// this history; earlier builds removed them there.
    #[prost(message, repeated, tag = "7")]
    pub gaps: Vec<Gap>,
    /// Encrypted records that were ever appended, those that were trimmed since included. Not their sequence
    /// numbers, which pass over gaps.
    #[prost(uint64, tag = "8")]
    pub encrypted: u64,
}

/// Most gaps that a stream remembers. A read from a tail offset that goes back beyond these counts the
/// sequence numbers of older gaps as if they were records.
pub(crate) const MAX_GAPS: usize = 8;

/// Sequence numbers that no record has, and none will get.
#[derive(Clone, Copy, PartialEq, Eq, prost::Message)]
pub struct Gap {
    /// First sequence number.
    #[prost(uint64, tag = "1")]
    pub from: u64,
    /// Sequence number after the last one.
    #[prost(uint64, tag = "2")]
    pub end: u64,
    /// How many forks left the gap; 0 if an import did, which replaced the contents of the state store.
    /// Earlier builds did not write it: see [`StreamState::separate_gaps`].
    #[prost(uint64, optional, tag = "3")]
    pub forks: Option<u64>,
}

impl Gap {
    /// How many forks left it, computed from its length: right if no import contributed to it.
    pub(crate) fn forks_by_length(&self) -> u64 {
        self.end.saturating_sub(self.from) / GAP
    }

    /// How many of the forks that left it came after `seq`, which may be inside the gap: each fork passed
    /// over [`GAP`] numbers.
    pub(crate) fn forks_after(&self, seq: SeqNum) -> u64 {
        match self.forks {
            Some(0) => 0,
            _ => self.end.saturating_sub(self.from.max(seq)) / GAP,
        }
    }
}

/// Imports that replaced the contents of the state store and left gaps in its stream.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Imports {
    /// Their number.
    pub count: u64,
    /// End of the gap that the last one left; 0 if that is not known.
    pub last_end: SeqNum,
}

impl StreamState {
    /// Moves the tail past the forks that this state has not seen: records that a stale lineage appended
    /// after them may have got any sequence number from the tail on.
    pub fn see_forks(&mut self, forks: u64) {
        let missed = forks.saturating_sub(self.forks);
        self.forks = self.forks.max(forks);
        if missed == 0 {
            return;
        }
        let was_empty = self.is_empty();
        let from = self.tail_seq;
        self.tail_seq = from.saturating_add(missed.saturating_mul(GAP));
        match self.gaps.last_mut() {
            // Nothing was appended since the last fork, so its gap grows.
            Some(
                last @ Gap {
                    forks: Some(1..), ..
                },
            ) if last.end == from => {
                last.end = self.tail_seq;
                last.forks = last.forks.map(|forks| forks + missed);
            }
            _ => self.gaps.push(Gap {
                from,
                end: self.tail_seq,
                forks: Some(missed),
            }),
        }
        self.forget_old_gaps();
        if was_empty {
            self.trim_point = self.tail_seq;
        }
        self.leave_gap();
    }

    /// Moves the tail to `seq` for an import: no record gets a sequence number in between. An empty stream
    /// has the gap as well: readers that have read all of it by then have missed nothing.
    pub(crate) fn skip_to(&mut self, seq: SeqNum) {
        let was_empty = self.is_empty();
        if seq > self.tail_seq {
            self.gaps.push(Gap {
                from: self.tail_seq,
                end: seq,
                forks: Some(0),
            });
            self.tail_seq = seq;
            self.forget_old_gaps();
        }
        if was_empty {
            self.trim_point = self.tail_seq;
        }
    }

    fn forget_old_gaps(&mut self) {
        let too_many = self.gaps.len().saturating_sub(MAX_GAPS);
        self.gaps.drain(..too_many);
    }

    /// Whether what left a gap is not recorded, because an earlier build wrote it.
    pub(crate) fn has_unattributed_gaps(&self) -> bool {
        self.gaps.iter().any(|gap| gap.forks.is_none())
    }

    /// Determines whether forks or imports left the gaps for which that is not recorded. `imports` are
    /// those into the state store whose stream this is; none for any other stream; `None` if they are no
    /// longer known. Gaps for which it cannot be determined stay as they are.
    pub(crate) fn separate_gaps(&mut self, imports: Option<Imports>) {
        let is_known = imports.is_some_and(|one| one.count == 0 || one.last_end > 0);
        let Imports { count, last_end } = imports.unwrap_or_default();
        let mut newest_first = Vec::new();
        // Forks that the gaps examined so far do not account for.
        let mut forks = self.forks;
        for gap in self.gaps.iter().rev().copied() {
            let of_forks = |from| {
                let gap = Gap { from, ..gap };
                let forks = Some(gap.forks_by_length());
                Gap { forks, ..gap }
            };
            match gap.forks {
                Some(_) => newest_first.push(gap),
                None if !is_known => newest_first.push(gap),
                None if count == 0 || gap.from >= last_end => {
                    newest_first.push(of_forks(gap.from));
                }
                None if gap.end >= last_end => {
                    if gap.end > last_end {
                        newest_first.push(of_forks(last_end));
                    }
                    newest_first.push(Gap {
                        end: last_end,
                        forks: Some(0),
                        ..gap
                    });
                }
                // The only import left a later gap.
                None if count == 1 => newest_first.push(of_forks(gap.from)),
                // Forks left later gaps only.
                None if forks == 0 => newest_first.push(Gap {
                    forks: Some(0),
                    ..gap
                }),
                None => newest_first.push(gap),
            }
            let looked_at = newest_first.iter().filter_map(|gap| gap.forks);
            forks = self.forks.saturating_sub(looked_at.sum());
        }
        newest_first.reverse();
        self.gaps = newest_first;
        self.forget_old_gaps();
    }

    /// Raises the trim point to `point`, and beyond a gap that it would be in; returns whether it rose.
    pub fn trim_to(&mut self, point: SeqNum) -> bool {
        let before = self.trim_point;
        self.trim_point = before.max(point);
        self.leave_gap();
        self.trim_point > before
    }

    /// Moves a trim point that is in a gap to the end of the gap.
    fn leave_gap(&mut self) {
        self.trim_point = self.after_gap(self.trim_point);
    }

    /// Retains the gaps that readers can meet: those that end above the trim point.
    pub(crate) fn retain_visible_gaps(&mut self) {
        let trim_point = self.trim_point;
        self.gaps.retain(|gap| gap.end > trim_point);
    }

    /// Merges adjacent gaps and removes what left them, because neither makes a difference to readers.
    pub(crate) fn merge_gaps(&mut self) {
        let mut merged: Vec<Gap> = Vec::new();
        for gap in self.gaps.drain(..) {
            match merged.last_mut() {
                Some(last) if last.end == gap.from => last.end = gap.end,
                _ => merged.push(Gap { forks: None, ..gap }),
            }
        }
        self.gaps = merged;
    }

    /// The sequence number; if it is in a gap, the end of that gap and of those directly after it.
    pub fn after_gap(&self, seq: SeqNum) -> SeqNum {
        self.gaps.iter().fold(seq, |seq, gap| {
            let is_in = (gap.from..gap.end).contains(&seq);
            if is_in { gap.end } else { seq }
        })
    }

    /// Where the present history continues, if a history that a loss cut off gave out the sequence
    /// number, and the present one has no record there. The first number of a gap is not such a number:
    /// it is also where the present history ended before the gap, so a reader may refer to that.
    pub fn cut_off(&self, seq: SeqNum) -> Option<SeqNum> {
        let of_forks = self.gaps.iter().filter(|gap| gap.forks != Some(0));
        let mut cut_off = of_forks.filter(|gap| gap.from < seq && seq < gap.end);
        cut_off.next().map(|gap| gap.end)
    }

    /// The sequence number that has `records` records between it and the tail; gaps do not count.
    pub fn before_tail(&self, mut records: u64) -> SeqNum {
        let mut end = self.tail_seq;
        for gap in self.gaps.iter().rev() {
            let behind = end - gap.end;
            if records <= behind {
                break;
            }
            records -= behind;
            end = gap.from;
        }
        self.after_gap(end.saturating_sub(records))
    }

    /// The tail.
    pub fn tail(&self) -> StreamPosition {
        StreamPosition {
            seq_num: self.tail_seq,
            timestamp: self.tail_timestamp,
        }
    }

    /// First sequence number with a record; the tail if there is none.
    pub fn head(&self) -> SeqNum {
        self.trim_point.min(self.tail_seq)
    }

    /// Whether readers see no record.
    pub fn is_empty(&self) -> bool {
        self.head() == self.tail_seq
    }

    /// The fencing token in force.
    pub fn fencing_token(&self) -> FencingToken {
        // Only tokens that passed validation are applied.
        self.fencing_token.parse().unwrap_or_default()
    }
}

/// The state of a stream at one moment.
#[derive(Clone, Debug)]
pub struct View {
    /// Tail, trim point and so on.
    pub state: StreamState,
    /// Settings.
    pub config: Arc<StreamConfig>,
    /// Increases with every change of the settings.
    pub settings_version: u64,
    /// Whether the stream was deleted.
    pub gone: bool,
}

struct Published {
    view: View,
    /// Empty while the stream has no followers.
    recent: Recent,
}

/// A stream. Once deleted, it does not come back: a new stream of the same name has another id.
pub struct Stream {
    /// Its id.
    pub id: StreamId,
    /// Its basin.
    pub basin: BasinId,
    /// Its partition.
    pub partition: PartitionId,
    /// Its name.
    pub name: String,
    /// When it was created, in milliseconds since the epoch.
    pub created_ms: u64,
    /// The cipher of its records.
    pub cipher: Option<EncryptionAlgorithm>,
    published: Mutex<Published>,
    /// The tail; also sent when the stream is deleted.
    changed: watch::Sender<SeqNum>,
    followers: AtomicUsize,
    /// Followers that there ever were.
    followed: AtomicUsize,
}

impl Stream {
    pub(crate) fn new(
        id: StreamId,
        partition: PartitionId,
        meta: &StreamMeta,
        state: StreamState,
        budget: RecentBudget,
    ) -> Result<Stream, UnknownCipher> {
        Ok(Stream {
            id,
            basin: BasinId(meta.basin),
            partition,
            name: meta.name.clone(),
            created_ms: meta.created_ms,
            cipher: cipher_of(meta.cipher)?,
            changed: watch::Sender::new(state.tail_seq),
            published: Mutex::new(Published {
                view: View {
                    state,
                    config: Arc::new(StreamConfig::from(&meta.settings)),
                    settings_version: meta.settings_version,
                    gone: false,
                },
                recent: Recent::new(budget),
            }),
            followers: AtomicUsize::new(0),
            followed: AtomicUsize::new(0),
        })
    }

    /// The stream as of now.
    pub fn view(&self) -> View {
        self.published.lock().view.clone()
    }

    /// The tail as of now.
    pub fn tail(&self) -> StreamPosition {
        self.published.lock().view.state.tail()
    }

    /// Begins to follow; while the returned value exists, new batches are kept in memory.
    pub fn follow(self: &Arc<Self>) -> Follower {
        self.followers.fetch_add(1, Ordering::Relaxed);
        Follower {
            stream: self.clone(),
            number: self.followed.fetch_add(1, Ordering::Relaxed),
            changed: self.changed.subscribe(),
        }
    }

    pub(crate) fn has_followers(&self) -> bool {
        self.followers() > 0
    }

    /// Whether memory has the record at `seq`.
    pub fn has_recent(&self, seq: SeqNum) -> bool {
        let published = self.published.lock();
        let seq = published.view.state.after_gap(seq);
        published.recent.reaches(seq)
    }

    /// The tail, if memory has all records from `from` on, and there is one; `None` too if the stream was
    /// deleted.
    pub fn recent_tail(&self, from: SeqNum) -> Option<StreamPosition> {
        let published = self.published.lock();
        let tail = published.view.state.tail();
        let has_more = !published.view.gone && from < tail.seq_num;
        (has_more && published.recent.reaches(from)).then_some(tail)
    }

    /// The tail of a stream that was not deleted, if it is this sequence number.
    pub fn tail_at(&self, seq: SeqNum) -> Option<StreamPosition> {
        let published = self.published.lock();
        let tail = published.view.state.tail();
        (!published.view.gone && tail.seq_num == seq).then_some(tail)
    }

    /// Whether the stream was deleted.
    pub fn is_gone(&self) -> bool {
        self.published.lock().view.gone
    }

    /// The tail, as it changes; also changed when the stream is deleted.
    pub fn changes(&self) -> watch::Receiver<SeqNum> {
        self.changed.subscribe()
    }

    /// How many follow the stream.
    pub fn followers(&self) -> usize {
        self.followers.load(Ordering::Relaxed)
    }

    /// Batches in memory, the first of which has the record at `from`; `None` if memory does not go back
    /// that far.
    pub(crate) fn recent_from(&self, from: SeqNum) -> Option<(RecentBatches, View)> {
        let published = self.published.lock();
        let from = published.view.state.after_gap(from);
        let batches = published.recent.from(from)?;
        Some((batches, published.view.clone()))
    }

    /// Publishes a state that was not reached by appends: followers read on from the database.
    pub(crate) fn replace(&self, change: Change) {
        self.published.lock().recent.clear();
        self.publish(Change {
            batches: Vec::new(),
            ..change
        });
    }

    /// Publishes a change and wakes followers. The apply thread calls it after it has written the change. Returns
    /// whether the stream was empty before and is not now, or the other way round.
    pub(crate) fn publish(&self, change: Change) -> bool {
        let (tail, is_turned) = {
            let mut published = self.published.lock();
            let is_turned = published.view.state.is_empty() != change.state.is_empty();
            let tail = change.state.tail_seq;
            published.view.state = change.state;
            if let Some((settings, version)) = change.settings {
                published.view.config = Arc::new(StreamConfig::from(&settings));
                published.view.settings_version = version;
            }
            published.view.gone = change.gone;
            if self.has_followers() && !change.gone {
                published.recent.extend(change.batches, tail);
            } else {
                published.recent.clear();
            }
            (tail, is_turned)
        };
        self.changed.send_replace(tail);
        is_turned
    }
}

/// A change that the apply thread made to a stream.
pub(crate) struct Change {
    pub state: StreamState,
    pub settings: Option<(StreamSettings, u64)>,
    pub gone: bool,
    pub batches: Vec<StoredBatch>,
}

/// A follower of a stream; while one exists, the stream keeps new batches in memory.
pub struct Follower {
    stream: Arc<Stream>,
    number: usize,
    changed: watch::Receiver<SeqNum>,
}

impl Follower {
    /// How many follow the stream, this one included.
    pub fn followers(&self) -> usize {
        self.stream.followers()
    }

    /// How many began to follow the stream before this one.
    pub fn number(&self) -> usize {
        self.number
    }

    /// Waits until the tail is beyond `seq` or the stream is gone. Safe to cancel.
    pub async fn beyond(&mut self, seq: SeqNum) {
        loop {
            if *self.changed.borrow_and_update() > seq || self.stream.is_gone() {
                return;
            }
            if self.changed.changed().await.is_err() {
                return;
            }
        }
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        self.stream.followers.fetch_sub(1, Ordering::Relaxed);
    }
}
