//! The sending end of all transfers of a node. See the [module's head](super).
//!
//! The host *publishes* a checkpoint before it offers it. At a start it publishes those that it finds, so
//! that receivers can go on. It keeps the files until [`SenderAction::Release`], which follows when the
//! host has *retired* the checkpoint and no receiver fetches it any more.
//!
//! A transfer begins with its first fetch. It ends with the receiver's message, or after `idle_ticks`
//! without a fetch. Fetches beyond the bytes in flight wait, a bounded number for each receiver; receivers
//! take turns.
//!
//! A receiver that requests nothing, for instance because its disk is full, loses its place among the
//! transfers, but its checkpoint is kept as long as it reports *progress*. A sender that has just started
//! knows no receivers: checkpoints that it *found* stay for `idle_ticks`, so that receivers have time to go
//! on.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use bytes::Bytes;

use super::{Checksum, Chunk, EndReason, Ended, Fetch, MAX_CHUNK_BYTES, Manifest};
use crate::ids::{CheckpointId, NodeId};

/// Most fetches of one receiver that wait, as many as a transport queues for one peer. Further ones are
/// dropped, and the receiver repeats them.
const MAX_WAITING: usize = 1024;
/// Most receivers, of all groups, whose checkpoints are kept between fetches: some megabytes of memory.
/// Further ones can fetch, but their checkpoint is not kept when they pause.
const MAX_REMEMBERED_RECEIVERS: usize = 1 << 16;

/// Limits of a node's sending.
#[derive(Clone, Debug)]
pub struct SenderConfig {
    /// Most transfers at once. Further receivers get [`EndReason::Busy`]. Default: 4.
    pub max_transfers: usize,
    /// Most bytes being read or sent, of all transfers together. Default: 32 MiB.
    pub max_bytes_in_flight: u64,
    /// Ticks without a fetch after which a transfer ends, and ticks without a fetch or a report after which
    /// a checkpoint is not kept for a receiver. Default: 600.
    pub idle_ticks: u64,
}

impl Default for SenderConfig {
    fn default() -> Self {
        SenderConfig {
            max_transfers: 4,
            max_bytes_in_flight: 32 * 1024 * 1024,
            idle_ticks: 600,
        }
    }
}

/// Names a read between the sender and its host.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ReadId(pub u64);

/// Why part of a file could not be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReadError {
    /// The file does not exist (any more).
    Gone,
    /// Anything else.
    Failed,
}

/// Something that happened: input of [`Sender::step`].
#[derive(Clone, Debug)]
pub enum SenderEvent {
    /// One `tick_interval` has passed.
    Tick,
    /// A checkpoint may be fetched from now on.
    Publish(Box<Manifest>),
    /// The same for a checkpoint that the host found at its start. Receivers may be fetching it without
    /// this sender knowing. Even if it is retired, any receiver may fetch it for `idle_ticks` from now on.
    Found(Box<Manifest>),
    /// The host wants to remove a checkpoint. No new receiver may fetch it.
    Retire(CheckpointId),
    /// A receiver reports that its transfer goes on, whether or not it can take chunks at the moment.
    Progress {
        /// Who.
        from: NodeId,
        /// What it is fetching.
        checkpoint: CheckpointId,
    },
    /// A receiver requests part of a file.
    Fetch {
        /// Who.
        from: NodeId,
        /// What.
        fetch: Fetch,
    },
    /// A read is done.
    Read {
        /// Which.
        id: ReadId,
        /// The bytes, exactly as many as requested.
        result: Result<Bytes, ReadError>,
    },
    /// The chunk of that read has left this process, or was dropped.
    Sent {
        /// Which read.
        id: ReadId,
    },
    /// A receiver reports that its transfer has ended.
    Ended {
        /// Who.
        from: NodeId,
        /// Which transfer, and how.
        ended: Ended,
    },
}

/// Something to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SenderAction {
    /// Read part of a file, then step [`SenderEvent::Read`].
    ReadChunk {
        /// Its name.
        id: ReadId,
        /// Of which checkpoint.
        checkpoint: CheckpointId,
        /// Which file, by its index in the manifest.
        file: u32,
        /// From which byte on.
        offset: u64,
        /// How many bytes.
        length: u32,
    },
    /// Send the chunk, then step [`SenderEvent::Sent`].
    SendChunk {
        /// The read that it comes from.
        id: ReadId,
        /// To whom.
        to: NodeId,
        /// What.
        chunk: Chunk,
    },
    /// Send.
    SendEnded {
        /// To whom.
        to: NodeId,
        /// What.
        ended: Ended,
    },
    /// A retired checkpoint may be removed.
    Release(CheckpointId),
}

/// Counters of a sender.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SenderCounts {
    /// Transfers that began.
    pub begun: u64,
    /// Transfers whose receiver reported the install.
    pub installed: u64,
    /// Transfers that ended otherwise.
    pub failed: u64,
    /// Bytes of chunks handed out.
    pub bytes_sent: u64,
    /// Fetches that were invalid, repeated or too many.
    pub dropped: u64,
}

/// A transfer that a receiver has begun.
#[derive(Debug, Default)]
struct Transfer {
    waiting: VecDeque<Fetch>,
    fetched_at: u64,
    bytes_sent: u64,
    /// Reads that are neither sent nor failed.
    reading: usize,
}

#[derive(Debug)]
struct Published {
    manifest: Manifest,
    retired: bool,
    /// Any receiver may fetch it until this tick, even if it is retired.
    open_until: u64,
}

#[derive(Debug)]
struct Reading {
    to: NodeId,
    fetch: Fetch,
}

/// Identifies a request: receiver, checkpoint, file, offset.
type RequestKey = (NodeId, CheckpointId, u32, u64);

fn request_key(from: NodeId, fetch: &Fetch) -> RequestKey {
    (from, fetch.checkpoint, fetch.file, fetch.offset)
}

/// See the [module's head](super).
#[derive(Debug)]
pub struct Sender {
    config: SenderConfig,
    published: BTreeMap<CheckpointId, Published>,
    transfers: BTreeMap<(NodeId, CheckpointId), Transfer>,
    /// The tick of the last fetch or report of each receiver whose checkpoint is kept.
    last_progress: BTreeMap<(NodeId, CheckpointId), u64>,
    /// The transfer that had the last turn; the one after it is next.
    turn: Option<(NodeId, CheckpointId)>,
    reading: BTreeMap<ReadId, Reading>,
    /// Those of `reading` that the host has not read yet. If it reads slowly, receivers repeat requests for
    /// chunks that they will get anyway.
    unread: BTreeSet<RequestKey>,
    next_read: u64,
    in_flight: u64,
    now: u64,
    counts: SenderCounts,
}

impl Sender {
    /// A sender with nothing published.
    pub fn new(config: SenderConfig) -> Sender {
        Sender {
            config,
            published: BTreeMap::new(),
            transfers: BTreeMap::new(),
            last_progress: BTreeMap::new(),
            turn: None,
            reading: BTreeMap::new(),
            unread: BTreeSet::new(),
            next_read: 0,
            in_flight: 0,
            now: 0,
            counts: SenderCounts::default(),
        }
    }

    /// Processes one event, and returns what to do, in order.
    pub fn step(&mut self, event: SenderEvent) -> Vec<SenderAction> {
        let mut actions = Vec::new();
        match event {
            SenderEvent::Tick => self.tick(),
            SenderEvent::Publish(manifest) => self.publish(*manifest, 0),
            SenderEvent::Found(manifest) => {
                self.publish(*manifest, self.now + self.config.idle_ticks);
            }
            SenderEvent::Retire(checkpoint) => {
                if let Some(published) = self.published.get_mut(&checkpoint) {
                    published.retired = true;
                }
            }
            SenderEvent::Progress { from, checkpoint } => {
                if self.is_open((from, checkpoint)) {
                    self.note_progress((from, checkpoint));
                }
            }
            SenderEvent::Fetch { from, fetch } => self.fetch(from, fetch, &mut actions),
            SenderEvent::Read { id, result } => self.read(id, result, &mut actions),
            SenderEvent::Sent { id } => self.done(id),
            SenderEvent::Ended { from, ended } => {
                self.last_progress.remove(&(from, ended.checkpoint));
                if self.transfers.remove(&(from, ended.checkpoint)).is_some() {
                    match ended.reason {
                        EndReason::Installed => self.counts.installed += 1,
                        _ => self.counts.failed += 1,
                    }
                }
            }
        }
        self.begin_reads(&mut actions);
        self.release(&mut actions);
        actions
    }

    /// Transfers under way: to whom, of which checkpoint, bytes sent, bytes in all.
    pub fn transfers(&self) -> impl Iterator<Item = (NodeId, CheckpointId, u64, u64)> + '_ {
        self.transfers.iter().map(|((to, checkpoint), transfer)| {
            let published = self.published.get(checkpoint);
            let total = published.map_or(0, |p| p.manifest.total_bytes());
            (*to, *checkpoint, transfer.bytes_sent, total)
        })
    }

    /// Bytes being read or sent.
    pub fn bytes_in_flight(&self) -> u64 {
        self.in_flight
    }

    /// Whether a transfer still needs that read. A host that delays reads skips one that is not needed, and
    /// steps [`SenderEvent::Sent`] instead.
    pub fn wants(&self, id: ReadId) -> bool {
        let transfer = self.transfer_of(id);
        transfer.is_some_and(|t| self.transfers.contains_key(&t))
    }

    /// The transfer that a read is for.
    pub fn transfer_of(&self, id: ReadId) -> Option<(NodeId, CheckpointId)> {
        let reading = self.reading.get(&id)?;
        Some((reading.to, reading.fetch.checkpoint))
    }

    /// Whether the host may not remove the checkpoint.
    pub fn holds(&self, checkpoint: CheckpointId) -> bool {
        self.published.contains_key(&checkpoint)
    }

    /// The counters so far.
    pub fn counts(&self) -> SenderCounts {
        self.counts
    }

    fn publish(&mut self, manifest: Manifest, open_until: u64) {
        let published = Published {
            manifest,
            retired: false,
            open_until,
        };
        self.published
            .insert(published.manifest.checkpoint, published);
    }

    /// Whether that receiver may fetch that checkpoint.
    fn is_open(&self, key: (NodeId, CheckpointId)) -> bool {
        let known = self.transfers.contains_key(&key) || self.last_progress.contains_key(&key);
        let published = self.published.get(&key.1);
        published.is_some_and(|p| known || !p.retired || self.now < p.open_until)
    }

    fn note_progress(&mut self, key: (NodeId, CheckpointId)) {
        if self.last_progress.len() < MAX_REMEMBERED_RECEIVERS
            || self.last_progress.contains_key(&key)
        {
            self.last_progress.insert(key, self.now);
        }
    }

    fn tick(&mut self) {
        self.now += 1;
        let oldest = self.now.saturating_sub(self.config.idle_ticks);
        let before = self.transfers.len();
        self.transfers
            .retain(|_, t| t.fetched_at >= oldest || t.reading > 0);
        self.counts.failed += (before - self.transfers.len()) as u64;
        self.last_progress.retain(|_, at| *at >= oldest);
    }

    fn fetch(&mut self, from: NodeId, fetch: Fetch, actions: &mut Vec<SenderAction>) {
        let key = (from, fetch.checkpoint);
        let known = self.transfers.contains_key(&key);
        let open = self.is_open(key);
        let published = self.published.get(&fetch.checkpoint);
        let Some(published) = published.filter(|_| open) else {
            return actions.push(ended(from, fetch.checkpoint, EndReason::Vanished));
        };
        let size = published.manifest.file_size(fetch.file as usize);
        let end = fetch.offset.checked_add(u64::from(fetch.length));
        let inside = size.zip(end).is_some_and(|(size, end)| end <= size);
        if !inside || fetch.length == 0 || fetch.length > MAX_CHUNK_BYTES {
            self.counts.dropped += 1;
            return actions.push(ended(from, fetch.checkpoint, EndReason::Refused));
        }
        if !known {
            if self.transfers.len() >= self.config.max_transfers {
                return actions.push(ended(from, fetch.checkpoint, EndReason::Busy));
            }
            self.counts.begun += 1;
        }
        self.note_progress(key);
        let now = self.now;
        let unread = self.unread.contains(&request_key(from, &fetch));
        let transfer = self.transfers.entry(key).or_default();
        transfer.fetched_at = now;
        if unread || transfer.waiting.len() >= MAX_WAITING || transfer.waiting.contains(&fetch) {
            self.counts.dropped += 1;
            return;
        }
        transfer.waiting.push_back(fetch);
    }

    /// Begins reads, one receiver after the other, up to the bytes in flight.
    fn begin_reads(&mut self, actions: &mut Vec<SenderAction>) {
        while let Some(key) = self.next_turn() {
            let Some(transfer) = self.transfers.get_mut(&key) else {
                return;
            };
            let Some(fetch) = transfer.waiting.front() else {
                return;
            };
            let length = u64::from(fetch.length);
            // One read is always allowed, however large.
            if self.in_flight > 0 && self.in_flight + length > self.config.max_bytes_in_flight {
                return;
            }
            let Some(fetch) = transfer.waiting.pop_front() else {
                return;
            };
            transfer.reading += 1;
            self.turn = Some(key);
            self.in_flight += length;
            self.unread.insert(request_key(key.0, &fetch));
            let id = ReadId(self.next_read);
            self.next_read += 1;
            self.reading.insert(id, Reading { to: key.0, fetch });
            actions.push(SenderAction::ReadChunk {
                id,
                checkpoint: fetch.checkpoint,
                file: fetch.file,
                offset: fetch.offset,
                length: fetch.length,
            });
        }
    }

    fn next_turn(&self) -> Option<(NodeId, CheckpointId)> {
        let waits = |(key, transfer): (&(NodeId, CheckpointId), &Transfer)| {
            (!transfer.waiting.is_empty()).then_some(*key)
        };
        let mut after = self.transfers.iter().filter_map(waits);
        let first = self.transfers.iter().filter_map(waits).next();
        after
            .find(|key| self.turn.is_some_and(|turn| *key > turn))
            .or(first)
    }

    fn read(
        &mut self,
        id: ReadId,
        result: Result<Bytes, ReadError>,
        actions: &mut Vec<SenderAction>,
    ) {
        let Some(Reading { to, fetch }) = self.reading.get(&id) else {
            return;
        };
        let (to, fetch) = (*to, *fetch);
        self.unread.remove(&request_key(to, &fetch));
        let bytes = match result {
            Ok(bytes) if bytes.len() == fetch.length as usize => bytes,
            failed => {
                self.done(id);
                let reason = match failed {
                    Err(ReadError::Gone) => EndReason::Vanished,
                    _ => EndReason::Unreadable,
                };
                self.last_progress.remove(&(to, fetch.checkpoint));
                if self.transfers.remove(&(to, fetch.checkpoint)).is_some() {
                    self.counts.failed += 1;
                }
                return actions.push(ended(to, fetch.checkpoint, reason));
            }
        };
        let Some(transfer) = self.transfers.get_mut(&(to, fetch.checkpoint)) else {
            // The transfer has ended meanwhile.
            return self.done(id);
        };
        transfer.bytes_sent += u64::from(fetch.length);
        self.counts.bytes_sent += u64::from(fetch.length);
        actions.push(SenderAction::SendChunk {
            id,
            to,
            chunk: Chunk {
                checkpoint: fetch.checkpoint,
                file: fetch.file,
                offset: fetch.offset,
                checksum: Checksum::of(&bytes),
                bytes,
            },
        });
    }

    fn done(&mut self, id: ReadId) {
        if let Some(Reading { to, fetch }) = self.reading.remove(&id) {
            self.unread.remove(&request_key(to, &fetch));
            self.in_flight -= u64::from(fetch.length);
            if let Some(transfer) = self.transfers.get_mut(&(to, fetch.checkpoint)) {
                transfer.reading = transfer.reading.saturating_sub(1);
            }
        }
    }

    fn release(&mut self, actions: &mut Vec<SenderAction>) {
        let over = |p: &Published| p.retired && self.now >= p.open_until;
        let retired = self.published.iter().filter(|(_, p)| over(p));
        let retired: Vec<_> = retired.map(|(id, _)| *id).collect();
        if retired.is_empty() {
            return;
        }
        let receivers = self.transfers.keys().chain(self.last_progress.keys());
        let used: BTreeSet<_> = receivers
            .map(|(_, id)| *id)
            .chain(self.reading.values().map(|r| r.fetch.checkpoint))
            .collect();
        for id in retired.into_iter().filter(|id| !used.contains(id)) {
            self.published.remove(&id);
            actions.push(SenderAction::Release(id));
        }
    }
}

fn ended(to: NodeId, checkpoint: CheckpointId, reason: EndReason) -> SenderAction {
    SenderAction::SendEnded {
        to,
        ended: Ended { checkpoint, reason },
    }
}
