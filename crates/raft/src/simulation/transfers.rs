//! How hosts fetch and send the bytes of snapshots, on disks that lose unsynced data, are full at times,
//! and change bytes. Every byte is counted: only bytes that a break lost may be fetched twice.

use std::collections::VecDeque;

use bytes::Bytes;

use super::host::Source;
use super::mutants::Mutant;
use super::scenario::{self, WINDOW};
use super::world::{Happening, World};
use crate::engine::Event;
use crate::ids::{CheckpointId, NodeId};
use crate::message::{Chunk, Payload};
use crate::transfer::{
    Checksum, Content, Held, Manifest, ReadError, ReadId, Receiver, ReceiverAction, ReceiverEvent,
    SenderAction, SenderEvent,
};

/// A file that is being fetched.
#[derive(Clone, Default)]
pub struct OnDisk {
    bytes: Vec<u8>,
    /// Bytes that certainly survive a crash.
    synced: usize,
    /// It was verified.
    whole: bool,
}

/// The files of a checkpoint on the disk.
pub struct Partial {
    pub manifest: Manifest,
    files: Vec<OnDisk>,
    /// Bytes that were present at the beginning, by hash.
    found: u64,
    /// Bytes that were fetched in all, and those of them that breaks lost.
    fetched: u64,
    lost: u64,
}

impl Partial {
    pub fn contents(&self) -> Vec<Vec<u8>> {
        self.files.iter().map(|f| f.bytes.clone()).collect()
    }

    fn on_disk(&self) -> u64 {
        self.files.iter().map(|f| f.bytes.len() as u64).sum()
    }
}

pub struct Fetching {
    receiver: Receiver,
    number: u64,
    /// Bytes on the disk when this attempt began, and bytes of bad files that were discarded since.
    at_start: u64,
    thrown_away: u64,
    writing: Option<(u32, u64, Vec<Bytes>)>,
}

impl Fetching {
    pub fn checkpoint(&self) -> CheckpointId {
        self.receiver.manifest().checkpoint
    }
}

/// The receiver's side.
impl World {
    pub fn begin_fetch(
        &mut self,
        id: u64,
        from: NodeId,
        offer: Manifest,
        events: &mut VecDeque<Event>,
    ) {
        let early = self.is(Mutant::StepBeforeTheFiles);
        let host = self.host_mut(id);
        if host.fetching.is_some() {
            return self.judge(Err(format!("{id} is to fetch two snapshots at once")));
        }
        let checkpoint = offer.checkpoint;
        let known = host.partial.take();
        let partial = match known {
            Some(known) if known.manifest.checkpoint == checkpoint => known,
            other => {
                let whole = other
                    .iter()
                    .flat_map(|p| p.files.iter().filter(|f| f.whole));
                let whole = whole.map(|f| f.bytes.clone());
                let own = host.stored.iter().flat_map(|s| s.files.iter().cloned());
                let there: Vec<Vec<u8>> = match offer.content {
                    Content::Files(_) => whole.chain(own).collect(),
                    Content::Bytes { .. } => Vec::new(),
                };
                let find = |file: usize| {
                    let sum = offer.file_checksum(file);
                    let found = there.iter().find(|f| Some(Checksum::of(f)) == sum);
                    found.map_or_else(OnDisk::default, |bytes| OnDisk {
                        bytes: bytes.clone(),
                        synced: bytes.len(),
                        whole: true,
                    })
                };
                let files: Vec<_> = (0..offer.file_count()).map(find).collect();
                Partial {
                    found: files.iter().map(|f| f.bytes.len() as u64).sum(),
                    manifest: offer.clone(),
                    files,
                    fetched: 0,
                    lost: 0,
                }
            }
        };
        let held = |file: &OnDisk| match file.whole {
            true => Held::Whole,
            false => Held::Prefix(file.bytes.len() as u64),
        };
        let held: Vec<_> = partial.files.iter().map(held).collect();
        let at_start = partial.on_disk();
        host.fetches += 1;
        host.fetching = Some(Fetching {
            receiver: Receiver::new(scenario::receiver(), from, offer, &held),
            number: host.fetches,
            at_start,
            thrown_away: 0,
            writing: None,
        });
        host.partial = Some(partial);
        self.reached.bytes_held += at_start;
        if early {
            events.push_back(Event::SnapshotFetched { checkpoint });
        }
        self.receive_into(id, ReceiverEvent::Start, events);
    }

    pub fn receiver(&mut self, id: u64, event: ReceiverEvent) {
        let mut events = VecDeque::new();
        self.receive_into(id, event, &mut events);
        for event in events {
            self.step(id, event);
        }
    }

    fn receive_into(&mut self, id: u64, event: ReceiverEvent, events: &mut VecDeque<Event>) {
        let Some(fetching) = &mut self.host_mut(id).fetching else {
            return;
        };
        let (checkpoint, source) = (fetching.checkpoint(), fetching.receiver.source());
        let fetch = fetching.number;
        let actions = fetching.receiver.step(event);
        let host = self.host(id);
        let boot = host.boot;
        let most = if host.slow_disk { 60 } else { 4 };
        for action in actions {
            self.note(|| format!("{id} ~> {action:?}"));
            match action {
                ReceiverAction::Fetch(fetch) => {
                    let sealed = self.host(id).identity().seal(source, Payload::Fetch(fetch));
                    self.send(id, &sealed);
                }
                ReceiverAction::Write {
                    file,
                    offset,
                    bytes,
                } => {
                    if let Some(fetching) = &mut self.host_mut(id).fetching {
                        fetching.writing = Some((file, offset, bytes));
                    }
                    let delay = self.between(1, most);
                    self.later(delay, Happening::Wrote { id, boot, fetch });
                }
                ReceiverAction::Verify { file, .. } => {
                    let delay = self.between(1, most);
                    let verified = Happening::Verified {
                        id,
                        boot,
                        fetch,
                        file,
                    };
                    self.later(delay, verified);
                }
                ReceiverAction::Complete => {
                    self.check_bytes(id);
                    events.push_back(Event::SnapshotFetched { checkpoint });
                    if self.is(Mutant::StepBeforeTheFiles) {
                        self.later(1, Happening::Installed { id, boot });
                    }
                }
                ReceiverAction::Failed(reason) => {
                    self.end_fetch(id);
                    events.push_back(Event::FetchFailed { checkpoint, reason });
                }
            }
        }
    }

    pub fn receiver_tick(&mut self, id: u64) {
        self.receiver(id, ReceiverEvent::Tick);
        if let Some(fetching) = &self.host(id).fetching {
            let checkpoint = fetching.checkpoint();
            let bytes_done = fetching.receiver.bytes_done();
            let waits_for_space = fetching.receiver.waits_for_space();
            self.step(
                id,
                Event::FetchProgress {
                    checkpoint,
                    bytes_done,
                    waits_for_space,
                },
            );
        }
    }

    pub fn wrote(&mut self, id: u64, fetch: u64) {
        let rots = !self.faults_ended && self.chance(200);
        let host = self.host_mut(id);
        let Some(fetching) = host.fetching.as_mut().filter(|f| f.number == fetch) else {
            return;
        };
        if host.full {
            return self.receiver(id, ReceiverEvent::WriteFailed);
        }
        if let (Some((file, offset, bytes)), Some(partial)) =
            (fetching.writing.take(), host.partial.as_mut())
        {
            let file = &mut partial.files[file as usize];
            file.bytes.truncate(offset as usize);
            file.synced = file.synced.min(offset as usize);
            assert_eq!(file.bytes.len() as u64, offset, "written in order");
            file.bytes.extend(bytes.concat());
            if rots && let Some(byte) = file.bytes.last_mut() {
                *byte ^= 1;
            }
        }
        self.receiver(id, ReceiverEvent::Written);
    }

    pub fn verified(&mut self, id: u64, fetch: u64, file: u32) {
        let ignores = self.is(Mutant::IgnoreChecksum);
        let host = self.host_mut(id);
        let Some(fetching) = host.fetching.as_mut().filter(|f| f.number == fetch) else {
            return;
        };
        let Some(partial) = host.partial.as_mut() else {
            return;
        };
        let sum = partial.manifest.file_checksum(file as usize);
        let there = &mut partial.files[file as usize];
        let good = ignores || Some(Checksum::of(&there.bytes)) == sum;
        if good {
            there.synced = there.bytes.len();
            there.whole = true;
        } else {
            fetching.thrown_away += there.bytes.len() as u64;
            partial.lost += there.bytes.len() as u64;
            *there = OnDisk::default();
        }
        self.receiver(id, ReceiverEvent::Verified { file, good });
    }

    pub fn abandon_fetch(&mut self, id: u64) {
        self.end_fetch(id);
        self.host_mut(id).partial = None;
    }

    /// A fetch ends for any reason. Of the fetched bytes, only the window may be missing on the disk.
    pub fn end_fetch(&mut self, id: u64) {
        let host = self.host_mut(id);
        let Some(fetching) = host.fetching.take() else {
            return;
        };
        let Some(partial) = host.partial.as_mut() else {
            return;
        };
        let fetched = fetching.receiver.counts().bytes_fetched;
        partial.fetched += fetched;
        let there = partial.on_disk();
        let taken = (fetching.at_start + fetched).checked_sub(there + fetching.thrown_away);
        partial.lost += taken.unwrap_or(0);
        let (again, thrown_away) = (taken, fetching.thrown_away);
        self.reached.bytes_fetched += fetched;
        self.reached.fetched_again += again.unwrap_or(0) + thrown_away;
        if taken.is_none_or(|taken| taken > WINDOW) {
            self.judge(Err(format!(
                "a break took {taken:?} bytes of a transfer to {id}, more than the window"
            )));
        }
    }

    /// Whether the host fetches from that node.
    pub fn fetches_from(&self, id: u64, from: u64) -> bool {
        let fetching = self.host(id).fetching.as_ref();
        fetching.is_some_and(|f| f.receiver.source().0 == from)
    }

    /// The fetch is complete: only bytes that a break lost were fetched twice.
    fn check_bytes(&mut self, id: u64) {
        let host = self.host(id);
        let (Some(fetching), Some(partial)) = (&host.fetching, &host.partial) else {
            return;
        };
        let fetched = partial.fetched + fetching.receiver.counts().bytes_fetched;
        let needed = partial.manifest.total_bytes() - partial.found;
        if fetched != needed + partial.lost {
            let lost = partial.lost;
            self.judge(Err(format!(
                "{id} fetched {fetched} bytes where it lacked {needed}, and breaks took {lost}"
            )));
        }
    }

    /// The process ends: unsynced data may be lost or changed.
    pub fn crash_fetch(&mut self, id: u64) {
        self.end_fetch(id);
        let Some(mut partial) = self.host_mut(id).partial.take() else {
            return;
        };
        for file in &mut partial.files {
            let (least, most) = (file.synced as u64, file.bytes.len() as u64);
            let left = self.between(least, most) as usize;
            partial.lost += most - left as u64;
            self.reached.fetched_again += most - left as u64;
            file.bytes.truncate(left);
            if left > file.synced && self.chance(8) {
                file.bytes[left - 1] ^= 0x55;
            }
        }
        self.host_mut(id).partial = Some(partial);
    }
}

/// The sender's side.
impl World {
    pub fn sender(&mut self, id: u64, event: SenderEvent) {
        let host = self.host_mut(id);
        let boot = host.boot;
        for action in host.sender.step(event) {
            self.note(|| format!("{id} ~> {action:?}"));
            match action {
                SenderAction::ReadChunk {
                    id: read,
                    checkpoint,
                    file,
                    offset,
                    length,
                } => {
                    let source = Source {
                        checkpoint,
                        file,
                        offset,
                        length,
                    };
                    let happening = Happening::Read {
                        id,
                        boot,
                        read,
                        source,
                    };
                    let delay = self.between(1, 4);
                    self.later(delay, happening);
                }
                SenderAction::SendChunk {
                    id: read,
                    to,
                    chunk,
                } => {
                    let sealed = self.host(id).identity().seal(to, Payload::Chunk(chunk));
                    self.send(id, &sealed);
                    let delay = self.between(1, 3);
                    self.later(delay, Happening::Sent { id, boot, read });
                }
                SenderAction::SendEnded { to, ended } => {
                    let sealed = self.host(id).identity().seal(to, Payload::Ended(ended));
                    self.send(id, &sealed);
                }
                SenderAction::Release(checkpoint) => {
                    let host = self.host_mut(id);
                    host.stored.retain(|s| s.manifest.checkpoint != checkpoint);
                }
            }
        }
    }

    pub fn read(&mut self, id: u64, read: ReadId, source: Source) {
        let fails = !self.faults_ended && self.chance(500);
        let stored = self.host(id).stored.iter();
        let mut found = stored.filter(|s| s.manifest.checkpoint == source.checkpoint);
        let result = match found.next() {
            Some(_) if fails => Err(ReadError::Failed),
            Some(stored) => {
                let from = source.offset as usize;
                let bytes = &stored.files[source.file as usize][from..];
                Ok(bytes[..source.length as usize].to_vec().into())
            }
            None => Err(ReadError::Gone),
        };
        self.sender(id, SenderEvent::Read { id: read, result });
    }

    /// The bytes of a chunk that arrived differ from those that were sent.
    pub fn corrupted(chunk: &Chunk, at: usize) -> Chunk {
        let mut bytes = chunk.bytes.to_vec();
        let at = at % bytes.len();
        bytes[at] ^= 0x10;
        Chunk {
            bytes: bytes.into(),
            ..chunk.clone()
        }
    }
}
