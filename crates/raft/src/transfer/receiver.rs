//! The receiving end of one transfer. See the [module's head](super).
//!
//! The host creates one for [`FetchSnapshot`](crate::engine::Action::FetchSnapshot) with what it already
//! has of the checkpoint, carries its actions out, and drops it after [`ReceiverAction::Complete`] or
//! [`ReceiverAction::Failed`].
//!
//! The manifest and the written files have to survive a restart: a verified file is then [`Held::Whole`],
//! any other file [`Held::Prefix`] with its length.

mod event;

use std::collections::{BTreeMap, VecDeque};

use bytes::Bytes;

use super::{Checksum, Chunk, EndReason, Ended, Fetch, MAX_CHUNK_BYTES, Manifest};
use crate::ids::NodeId;
pub use event::{Held, ReceiverAction, ReceiverConfig, ReceiverCounts, ReceiverEvent};

/// Times that one chunk, or one file, may arrive corrupt before the transfer fails.
const MAX_CORRUPT: u32 = 8;
/// Most doublings of a chunk's deadline.
const MAX_DOUBLINGS: u32 = 5;

/// A requested chunk.
#[derive(Debug)]
struct Requested {
    length: u32,
    /// The tick at which it is requested again.
    deadline: u64,
    doublings: u32,
    corrupt: u32,
    /// The bytes, if it has arrived and waits for the chunks before it.
    bytes: Option<Bytes>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum FileState {
    /// So many bytes are written.
    Partial(u64),
    Verifying,
    Whole,
}

/// See the [module's head](super).
#[derive(Debug)]
pub struct Receiver {
    config: ReceiverConfig,
    source: NodeId,
    manifest: Manifest,
    files: Vec<FileState>,
    /// Times that a file was found corrupt.
    corrupt_files: BTreeMap<u32, u32>,
    /// The next chunk to request: file and offset.
    next: (u32, u64),
    /// By file and offset; contiguous in the order of fetching, apart from complete files.
    requested: BTreeMap<(u32, u64), Requested>,
    window: u64,
    /// The write under way, to be repeated if it fails: file, offset, bytes.
    writing: Option<(u32, u64, Vec<Bytes>)>,
    /// The tick at which a failed write is tried again.
    retry_at: Option<u64>,
    /// The sender is busy until this tick.
    busy_until: u64,
    now: u64,
    progressed_at: u64,
    /// Empty files to create: nothing of them is fetched.
    empty: VecDeque<u32>,
    /// Number of files that are not complete and verified.
    unfinished: usize,
    bytes_done: u64,
    counts: ReceiverCounts,
    ended: bool,
}

impl Receiver {
    /// A transfer of a checkpoint. `held` is what the host has, one element for each file in the order of
    /// the manifest; an empty slice if it has nothing.
    ///
    /// # Panics
    ///
    /// If `held` has another length, or the configuration breaks the limits of its fields.
    pub fn new(
        config: ReceiverConfig,
        source: NodeId,
        manifest: Manifest,
        held: &[Held],
    ) -> Receiver {
        let count = manifest.file_count();
        assert!(held.is_empty() || held.len() == count, "one for each file");
        assert!((1..=MAX_CHUNK_BYTES).contains(&config.chunk_bytes));
        assert!(config.window_bytes >= u64::from(config.chunk_bytes));
        let mut bytes_done = 0;
        let files: Vec<_> = (0..count)
            .map(|file| {
                let size = manifest.file_size(file).unwrap_or(0);
                match held.get(file) {
                    Some(Held::Whole) => {
                        bytes_done += size;
                        FileState::Whole
                    }
                    Some(Held::Prefix(prefix)) if *prefix <= size => {
                        bytes_done += prefix;
                        FileState::Partial(*prefix)
                    }
                    // Longer than the file: it is another file.
                    _ => FileState::Partial(0),
                }
            })
            .collect();
        let unfinished = files.iter().filter(|f| **f != FileState::Whole).count();
        Receiver {
            config,
            source,
            manifest,
            files,
            corrupt_files: BTreeMap::new(),
            next: (0, 0),
            requested: BTreeMap::new(),
            window: 0,
            writing: None,
            retry_at: None,
            busy_until: 0,
            now: 0,
            progressed_at: 0,
            empty: VecDeque::new(),
            unfinished,
            bytes_done,
            counts: ReceiverCounts {
                bytes_held: bytes_done,
                ..ReceiverCounts::default()
            },
            ended: false,
        }
    }

    /// Processes one event, and returns what to do, in order. After the end it returns nothing.
    pub fn step(&mut self, event: ReceiverEvent) -> Vec<ReceiverAction> {
        let mut actions = Vec::new();
        if self.ended {
            return actions;
        }
        match event {
            ReceiverEvent::Start => self.start(&mut actions),
            ReceiverEvent::Tick => self.tick(&mut actions),
            ReceiverEvent::Chunk(chunk) => self.chunk(chunk, &mut actions),
            ReceiverEvent::Ended(ended) => self.sender_ended(ended, &mut actions),
            ReceiverEvent::Written => self.written(&mut actions),
            ReceiverEvent::WriteFailed => {
                self.counts.failed_writes += 1;
                self.retry_at = Some(self.now + self.config.retry_ticks);
            }
            ReceiverEvent::SpaceReturned => self.write_again(&mut actions),
            ReceiverEvent::Verified { file, good } => self.verified(file, good, &mut actions),
        }
        if !self.ended {
            self.write(&mut actions);
            self.request(&mut actions);
        }
        if !self.ended && self.unfinished == 0 {
            self.ended = true;
            actions.push(ReceiverAction::Complete);
        }
        actions
    }

    /// From whom.
    pub fn source(&self) -> NodeId {
        self.source
    }

    /// What.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// Bytes that are written or were present at the start.
    pub fn bytes_done(&self) -> u64 {
        self.bytes_done
    }

    /// Whether a write has failed and waits to be repeated.
    pub fn waits_for_space(&self) -> bool {
        self.retry_at.is_some()
    }

    /// The counters so far.
    pub fn counts(&self) -> ReceiverCounts {
        self.counts
    }

    /// What is present of each file: the `held` of [`Receiver::new`] after a break.
    pub fn held(&self) -> Vec<Held> {
        let held = |(file, state): (usize, &FileState)| match state {
            FileState::Partial(written) => Held::Prefix(*written),
            FileState::Verifying => Held::Prefix(self.manifest.file_size(file).unwrap_or(0)),
            FileState::Whole => Held::Whole,
        };
        self.files.iter().enumerate().map(held).collect()
    }

    fn start(&mut self, actions: &mut Vec<ReceiverAction>) {
        for file in 0..self.files.len() {
            let size = self.size(file as u32);
            match self.files[file] {
                FileState::Partial(_) if size == 0 => self.empty.push_back(file as u32),
                FileState::Partial(written) if written == size => {
                    self.verify(file as u32, actions);
                }
                _ => {}
            }
        }
    }

    fn size(&self, file: u32) -> u64 {
        self.manifest.file_size(file as usize).unwrap_or(0)
    }

    fn tick(&mut self, actions: &mut Vec<ReceiverAction>) {
        self.now += 1;
        if self.retry_at.is_some_and(|at| at <= self.now) {
            self.write_again(actions);
        }
        if self.waits_for_space() || self.requested.values().all(|a| a.bytes.is_some()) {
            // The transfer waits for the disk, not for the sender.
            self.progressed_at = self.now;
            return;
        }
        if self.now - self.progressed_at >= self.config.progress_deadline_ticks {
            return self.fail(EndReason::Silent, actions);
        }
        if self.now < self.busy_until {
            return;
        }
        let (now, deadline) = (self.now, self.config.chunk_deadline_ticks.max(1));
        if now - self.progressed_at < deadline {
            // Chunks arrive in the order of their requests. As long as any arrive, the others are late and
            // not lost. If one was lost, the window fills up behind it, and then none arrive.
            return;
        }
        let checkpoint = self.manifest.checkpoint;
        for (&(file, offset), requested) in &mut self.requested {
            if requested.bytes.is_none() && requested.deadline <= now {
                requested.doublings = (requested.doublings + 1).min(MAX_DOUBLINGS);
                requested.deadline = now + (deadline << requested.doublings);
                self.counts.requested_again += 1;
                actions.push(ReceiverAction::Fetch(Fetch {
                    checkpoint,
                    file,
                    offset,
                    length: requested.length,
                }));
            }
        }
    }

    fn chunk(&mut self, chunk: Chunk, actions: &mut Vec<ReceiverAction>) {
        let at = (chunk.file, chunk.offset);
        let requested = self.requested.get_mut(&at);
        let Some(requested) = requested.filter(|a| a.bytes.is_none()) else {
            self.counts.unwanted += 1;
            return;
        };
        if chunk.checkpoint != self.manifest.checkpoint {
            self.counts.unwanted += 1;
            return;
        }
        let good = chunk.bytes.len() == requested.length as usize
            && Checksum::of(&chunk.bytes) == chunk.checksum;
        if !good {
            self.counts.corrupt += 1;
            requested.corrupt += 1;
            if requested.corrupt >= MAX_CORRUPT {
                return self.fail(EndReason::Corrupt, actions);
            }
            requested.deadline = self.now + self.config.chunk_deadline_ticks.max(1);
            let length = requested.length;
            actions.push(ReceiverAction::Fetch(self.fetch(at, length)));
            return;
        }
        self.progressed_at = self.now;
        self.counts.bytes_fetched += u64::from(requested.length);
        requested.bytes = Some(chunk.bytes);
    }

    fn sender_ended(&mut self, ended: Ended, actions: &mut Vec<ReceiverAction>) {
        if ended.checkpoint != self.manifest.checkpoint {
            return;
        }
        match ended.reason {
            EndReason::Busy => {
                // The deadlines of requested chunks begin after that.
                self.busy_until = self.now + self.config.chunk_deadline_ticks;
                for requested in self.requested.values_mut().filter(|a| a.bytes.is_none()) {
                    requested.deadline = requested.deadline.max(self.busy_until);
                }
                // The sender has answered, which counts as progress.
                self.progressed_at = self.now;
            }
            reason => self.fail(reason, actions),
        }
    }

    /// Hands the next contiguous bytes of one file to the host.
    fn write(&mut self, actions: &mut Vec<ReceiverAction>) {
        if self.writing.is_some() {
            return;
        }
        if let Some(file) = self.empty.pop_front() {
            return self.begin_write(file, 0, Vec::new(), actions);
        }
        let Some((&(file, offset), _)) = self.requested.first_key_value() else {
            return;
        };
        let mut bytes = Vec::new();
        let mut end = offset;
        while let Some(entry) = self.requested.first_entry()
            && *entry.key() == (file, end)
            && entry.get().bytes.is_some()
        {
            let requested = entry.remove();
            end += u64::from(requested.length);
            bytes.extend(requested.bytes);
        }
        if !bytes.is_empty() {
            self.begin_write(file, offset, bytes, actions);
        }
    }

    fn begin_write(
        &mut self,
        file: u32,
        offset: u64,
        bytes: Vec<Bytes>,
        actions: &mut Vec<ReceiverAction>,
    ) {
        self.writing = Some((file, offset, bytes.clone()));
        actions.push(ReceiverAction::Write {
            file,
            offset,
            bytes,
        });
    }

    fn write_again(&mut self, actions: &mut Vec<ReceiverAction>) {
        if self.retry_at.take().is_some()
            && let Some((file, offset, bytes)) = self.writing.clone()
        {
            actions.push(ReceiverAction::Write {
                file,
                offset,
                bytes,
            });
        }
    }

    fn written(&mut self, actions: &mut Vec<ReceiverAction>) {
        self.retry_at = None;
        let Some((file, offset, bytes)) = self.writing.take() else {
            return;
        };
        let length: u64 = bytes.iter().map(|b| b.len() as u64).sum();
        self.window -= length;
        self.bytes_done += length;
        let end = offset + length;
        self.files[file as usize] = FileState::Partial(end);
        if end == self.size(file) {
            self.verify(file, actions);
        }
    }

    fn verify(&mut self, file: u32, actions: &mut Vec<ReceiverAction>) {
        self.files[file as usize] = FileState::Verifying;
        if let Some(checksum) = self.manifest.file_checksum(file as usize) {
            actions.push(ReceiverAction::Verify { file, checksum });
        }
    }

    fn verified(&mut self, file: u32, good: bool, actions: &mut Vec<ReceiverAction>) {
        if self.files.get(file as usize) != Some(&FileState::Verifying) {
            return;
        }
        if good {
            self.files[file as usize] = FileState::Whole;
            self.unfinished -= 1;
            return;
        }
        self.counts.corrupt += 1;
        let times = self.corrupt_files.entry(file).or_default();
        *times += 1;
        if *times >= MAX_CORRUPT {
            return self.fail(EndReason::Corrupt, actions);
        }
        self.files[file as usize] = FileState::Partial(0);
        let size = self.size(file);
        self.bytes_done -= size;
        if size == 0 {
            self.empty.push_back(file);
        }
        // Requests continue from there; chunks that are requested or written are skipped.
        self.next = self.next.min((file, 0));
    }

    /// Requests the next chunks, up to the window.
    fn request(&mut self, actions: &mut Vec<ReceiverAction>) {
        if self.waits_for_space() || self.now < self.busy_until {
            return;
        }
        while let Some((at, length)) = self.next_piece() {
            if self.window + u64::from(length) > self.config.window_bytes {
                return;
            }
            let deadline = self.now + self.config.chunk_deadline_ticks.max(1);
            self.window += u64::from(length);
            self.requested.insert(
                at,
                Requested {
                    length,
                    deadline,
                    doublings: 0,
                    corrupt: 0,
                    bytes: None,
                },
            );
            self.next = (at.0, at.1 + u64::from(length));
            actions.push(ReceiverAction::Fetch(self.fetch(at, length)));
        }
    }

    /// The first piece at or after `next` that is neither written, requested nor being written.
    fn next_piece(&mut self) -> Option<((u32, u64), u32)> {
        loop {
            let (file, offset) = self.next;
            let state = *self.files.get(file as usize)?;
            let size = self.size(file);
            let FileState::Partial(written) = state else {
                self.next = (file + 1, 0);
                continue;
            };
            let mut from = offset.max(written);
            if let Some((_, at, bytes)) = self.writing.as_ref().filter(|w| w.0 == file) {
                let length: u64 = bytes.iter().map(|b| b.len() as u64).sum();
                from = from.max(at + length);
            }
            let last = self
                .requested
                .range((file, 0)..=(file, u64::MAX))
                .next_back();
            if let Some(((_, at), requested)) = last {
                from = from.max(at + u64::from(requested.length));
            }
            if from >= size {
                self.next = (file + 1, 0);
                continue;
            }
            let length = (size - from).min(u64::from(self.config.chunk_bytes));
            return Some(((file, from), length as u32));
        }
    }

    fn fetch(&self, (file, offset): (u32, u64), length: u32) -> Fetch {
        Fetch {
            checkpoint: self.manifest.checkpoint,
            file,
            offset,
            length,
        }
    }

    fn fail(&mut self, reason: EndReason, actions: &mut Vec<ReceiverAction>) {
        self.ended = true;
        actions.push(ReceiverAction::Failed(reason));
    }
}
