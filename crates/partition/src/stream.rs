//! One stream as readers and the leader see it.
//!
//! The apply thread publishes what it has applied; readers take the tail, the trim point and the
//! newest batches from here, and are woken. Batches are kept in memory only while somebody
//! follows, up to a byte limit; who lags further behind reads the database.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use parking_lot::Mutex;
use s2_common::config::StreamConfig;
use s2_common::record::{FencingToken, SeqNum, StreamPosition};
use tokio::sync::watch;

use crate::batch::StoredBatch;
use crate::ids::{BasinId, PartitionId, StreamId};
use crate::lineage::GAP;
use crate::recent::{Recent, RecentBatches, RecentBudget};
use crate::settings::StreamSettings;

/// What is kept of a stream that seldom changes.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct StreamMeta {
    /// Its basin.
    #[prost(uint64, tag = "1")]
    pub basin: u64,
    /// Its name.
    #[prost(string, tag = "2")]
    pub name: String,
    /// Settings, basin defaults merged in at creation.
    #[prost(message, required, tag = "3")]
    pub settings: StreamSettings,
    /// Rises with every change of the settings.
    #[prost(uint64, tag = "4")]
    pub settings_version: u64,
    /// Milliseconds since the epoch.
    #[prost(uint64, tag = "5")]
    pub created_ms: u64,
    /// See [`crate::command::ProvisionStream::request_hash`].
    #[prost(bytes = "vec", tag = "6")]
    pub request_hash: Vec<u8>,
}

/// What is kept of a stream that changes with every append. It is written with each, so nothing in it
/// may grow with their number.
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
    /// When something last happened to it, in milliseconds since the epoch.
    #[prost(uint64, tag = "5")]
    pub active_ms: u64,
    /// How many forks of the partition the sequence numbers have seen.
    #[prost(uint64, tag = "6")]
    pub forks: u64,
    /// Sequence numbers that were passed over, in order: the last ones, as many as [`MAX_GAPS`]. Also
    /// below the trim point, for those who ask whether what they made of trimmed records is of this
    /// history; earlier builds forgot them there.
    #[prost(message, repeated, tag = "7")]
    pub gaps: Vec<Gap>,
}

/// More forks than this one stream need not remember: reads from a tail offset that go back further
/// count the numbers of the gap as well.
pub(crate) const MAX_GAPS: usize = 8;

/// Sequence numbers that no record has, and none will get.
#[derive(Clone, Copy, PartialEq, Eq, prost::Message)]
pub struct Gap {
    /// First.
    #[prost(uint64, tag = "1")]
    pub from: u64,
    /// After the last.
    #[prost(uint64, tag = "2")]
    pub end: u64,
    /// How many forks passed them over; 0 for an import, which replaced what the state store had.
    /// Earlier builds did not write it: see [`StreamState::separate_gaps`].
    #[prost(uint64, optional, tag = "3")]
    pub forks: Option<u64>,
}

impl Gap {
    /// How many forks it is of, if no import has a part in it.
    pub(crate) fn forks_by_length(&self) -> u64 {
        self.end.saturating_sub(self.from) / GAP
    }
}

/// Imports that replaced what the state store had, and left gaps in its stream.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Imports {
    /// How many there were.
    pub count: u64,
    /// Where the last one's gap ends; 0 if that is not known.
    pub last_end: SeqNum,
}

impl StreamState {
    /// Moves the tail on for the forks that this state has not seen: what was appended after them
    /// may have been given any number from the tail on.
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
            // Nothing was appended between two forks.
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

    /// Moves the tail on to `seq` for an import: no record gets a number between.
    pub(crate) fn skip_to(&mut self, seq: SeqNum) {
        if self.is_empty() {
            self.tail_seq = self.tail_seq.max(seq);
            self.trim_point = self.tail_seq;
            return;
        }
        if seq > self.tail_seq {
            self.gaps.push(Gap {
                from: self.tail_seq,
                end: seq,
                forks: Some(0),
            });
            self.tail_seq = seq;
            self.forget_old_gaps();
        }
    }

    fn forget_old_gaps(&mut self) {
        let too_many = self.gaps.len().saturating_sub(MAX_GAPS);
        self.gaps.drain(..too_many);
    }

    /// Whether a gap does not say what it is of: an earlier build wrote it.
    pub(crate) fn has_untold_gaps(&self) -> bool {
        self.gaps.iter().any(|gap| gap.forks.is_none())
    }

    /// Finds out what the gaps are of that do not say it. `imports` are those into the state store whose
    /// stream this is; none for any other stream; `None` if they are not known any more. What cannot be
    /// told apart stays as it is.
    pub(crate) fn separate_gaps(&mut self, imports: Option<Imports>) {
        let is_known = imports.is_some_and(|one| one.count == 0 || one.last_end > 0);
        let Imports { count, last_end } = imports.unwrap_or_default();
        let mut newest_first = Vec::new();
        // Those that the gaps looked at do not account for.
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
                // No other import can have left it.
                None if count == 1 => newest_first.push(of_forks(gap.from)),
                // No other fork can.
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

    /// Readers see nothing below this from now on, if that is more than before; whether it is.
    pub fn trim_to(&mut self, point: SeqNum) -> bool {
        let before = self.trim_point;
        self.trim_point = before.max(point);
        self.leave_gap();
        self.trim_point > before
    }

    /// A trim point in a gap is one at its end.
    fn leave_gap(&mut self) {
        self.trim_point = self.after_gap(self.trim_point);
    }

    /// Gaps that readers can meet: none below the trim point.
    pub(crate) fn retain_visible_gaps(&mut self) {
        let trim_point = self.trim_point;
        self.gaps.retain(|gap| gap.end > trim_point);
    }

    /// Gaps as readers meet them: whether one or several follow on one another, and of what, makes no
    /// difference.
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

    /// The sequence number, or the end of the gaps that it is in.
    pub fn after_gap(&self, seq: SeqNum) -> SeqNum {
        self.gaps.iter().fold(seq, |seq, gap| {
            let is_in = (gap.from..gap.end).contains(&seq);
            if is_in { gap.end } else { seq }
        })
    }

    /// Where the history goes on, if a sequence number was given out by one that a loss cut off, and has
    /// no record in the present one. Where a gap begins, the present history ends as well, so that this
    /// number may be meant.
    pub fn cut_off(&self, seq: SeqNum) -> Option<SeqNum> {
        let of_forks = self.gaps.iter().filter(|gap| gap.forks != Some(0));
        let mut cut_off = of_forks.filter(|gap| gap.from < seq && seq < gap.end);
        cut_off.next().map(|gap| gap.end)
    }

    /// The sequence number so many records before the tail.
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

/// A moment of a stream.
#[derive(Clone, Debug)]
pub struct View {
    /// Tail, trim point and so on.
    pub state: StreamState,
    /// Settings.
    pub config: Arc<StreamConfig>,
    /// Rises with every change of the settings.
    pub settings_version: u64,
    /// Whether the stream was deleted.
    pub gone: bool,
}

struct Published {
    view: View,
    /// Empty while nobody follows.
    recent: Recent,
}

/// One incarnation of a stream.
pub struct Stream {
    /// Its id.
    pub id: StreamId,
    /// Its basin.
    pub basin: BasinId,
    /// Its partition.
    pub partition: PartitionId,
    /// Its name.
    pub name: String,
    /// Milliseconds since the epoch.
    pub created_ms: u64,
    published: Mutex<Published>,
    /// The tail; also touched when the stream is deleted.
    changed: watch::Sender<SeqNum>,
    followers: AtomicUsize,
}

impl Stream {
    pub(crate) fn new(
        id: StreamId,
        partition: PartitionId,
        meta: &StreamMeta,
        state: StreamState,
        budget: RecentBudget,
    ) -> Stream {
        Stream {
            id,
            basin: BasinId(meta.basin),
            partition,
            name: meta.name.clone(),
            created_ms: meta.created_ms,
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
        }
    }

    /// The stream as of now.
    pub fn view(&self) -> View {
        self.published.lock().view.clone()
    }

    /// The tail as of now.
    pub fn tail(&self) -> StreamPosition {
        self.published.lock().view.state.tail()
    }

    /// Begins to follow; while the guard lives, new batches are kept in memory.
    pub fn follow(self: &Arc<Self>) -> Follower {
        self.followers.fetch_add(1, Ordering::Relaxed);
        Follower {
            stream: self.clone(),
            changed: self.changed.subscribe(),
        }
    }

    pub(crate) fn has_followers(&self) -> bool {
        self.followers.load(Ordering::Relaxed) > 0
    }

    /// Whether memory has the record at `seq`.
    pub fn has_recent(&self, seq: SeqNum) -> bool {
        let published = self.published.lock();
        let seq = published.view.state.after_gap(seq);
        published.recent.reaches(seq)
    }

    /// Batches in memory, the first of which has the record at `from`; `None` if memory does not go back
    /// that far.
    pub(crate) fn recent_from(&self, from: SeqNum) -> Option<(RecentBatches, View)> {
        let published = self.published.lock();
        let from = published.view.state.after_gap(from);
        let batches = published.recent.from(from)?;
        Some((batches, published.view.clone()))
    }

    /// Called by the apply thread, after the database has it.
    pub(crate) fn publish(&self, change: Change) {
        let tail = {
            let mut published = self.published.lock();
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
            tail
        };
        self.changed.send_replace(tail);
    }
}

/// What the apply thread did to a stream.
pub(crate) struct Change {
    pub state: StreamState,
    pub settings: Option<(StreamSettings, u64)>,
    pub gone: bool,
    pub batches: Vec<StoredBatch>,
}

/// Somebody who follows a stream.
pub struct Follower {
    stream: Arc<Stream>,
    changed: watch::Receiver<SeqNum>,
}

impl Follower {
    /// Waits until the tail is beyond `seq` or the stream is gone. Safe to cancel.
    pub async fn beyond(&mut self, seq: SeqNum) {
        loop {
            if *self.changed.borrow_and_update() > seq || self.stream.view().gone {
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
