//! What hosts do about the bytes of snapshots.

use super::*;

impl Cluster {
    pub(super) fn fetch(&mut self, id: u64, offer: Manifest, files: Vec<Vec<u8>>) {
        let config = ReceiverConfig {
            chunk_bytes: CHUNK,
            window_bytes: 4 * u64::from(CHUNK),
            ..ReceiverConfig::default()
        };
        let held: Vec<_> = files.iter().map(|f| Held::Prefix(f.len() as u64)).collect();
        let receiver = Receiver::new(config, offer.source, offer, &held);
        self.host_mut(id).fetching = Some(Fetching { receiver, files });
        self.receiver(id, ReceiverEvent::Start);
    }

    pub(super) fn receiver(&mut self, id: u64, event: ReceiverEvent) {
        let mut events = VecDeque::from([event]);
        while let Some(event) = events.pop_front() {
            let Some(fetching) = &mut self.host_mut(id).fetching else {
                return;
            };
            let checkpoint = fetching.receiver.manifest().checkpoint;
            let source = fetching.receiver.source();
            for action in fetching.receiver.step(event) {
                let Some(fetching) = &mut self.host_mut(id).fetching else {
                    return;
                };
                match action {
                    ReceiverAction::Fetch(fetch) => self.send(id, source, Payload::Fetch(fetch)),
                    ReceiverAction::Write {
                        file,
                        offset,
                        bytes,
                    } => {
                        let file = &mut fetching.files[file as usize];
                        file.truncate(offset as usize);
                        assert_eq!(file.len() as u64, offset, "written in order");
                        file.extend(bytes.concat());
                        events.push_back(ReceiverEvent::Written);
                    }
                    ReceiverAction::Verify { file, checksum } => {
                        let good = Checksum::of(&fetching.files[file as usize]) == checksum;
                        events.push_back(ReceiverEvent::Verified { file, good });
                    }
                    ReceiverAction::Complete => {
                        self.step(id, Event::SnapshotFetched { checkpoint });
                    }
                    ReceiverAction::Failed(reason) => {
                        self.host_mut(id).fetching = None;
                        self.step(id, Event::FetchFailed { checkpoint, reason });
                    }
                }
            }
        }
    }

    pub(super) fn send_chunks(&mut self, id: u64, actions: Vec<SenderAction>) {
        let mut actions = VecDeque::from(actions);
        while let Some(action) = actions.pop_front() {
            match action {
                SenderAction::ReadChunk {
                    id: read,
                    checkpoint,
                    file,
                    offset,
                    length,
                } => {
                    let host = self.host_mut(id);
                    let find = |s: &&Stored| s.manifest.checkpoint == checkpoint;
                    let result = match host.stored.iter().find(find) {
                        Some(stored) => {
                            let from = offset as usize;
                            let bytes = &stored.files[file as usize][from..];
                            Ok(bytes[..length as usize].to_vec().into())
                        }
                        None => Err(ReadError::Gone),
                    };
                    let event = SenderEvent::Read { id: read, result };
                    actions.extend(host.sender.step(event));
                }
                SenderAction::SendChunk {
                    id: read,
                    to,
                    chunk,
                } => {
                    self.send(id, to, Payload::Chunk(chunk));
                    let event = SenderEvent::Sent { id: read };
                    actions.extend(self.host_mut(id).sender.step(event));
                }
                SenderAction::SendEnded { to, ended } => self.send(id, to, Payload::Ended(ended)),
                SenderAction::Release(_) => {}
            }
        }
    }
}
