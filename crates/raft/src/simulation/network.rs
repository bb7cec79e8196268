//! The network: it loses, repeats, reorders, delays and corrupts messages, cuts members off in one
//! direction or both, and delivers messages of foreign groups.
//!
//! A corrupted envelope is decoded, which must do no harm, and not delivered: the transport would detect
//! it. A corrupted *chunk* is delivered, because chunks have a checksum of their own.

use super::world::{Happening, World};
use crate::engine::Event;
use crate::ids::{ClusterId, GroupId, Lineage};
use crate::message::{Envelope, Payload};
use crate::transfer::{ReceiverEvent, SenderEvent};

impl World {
    pub fn send(&mut self, from: u64, envelope: &Envelope) {
        let to = envelope.to.0;
        if self.cut.contains(&(from, to)) || !self.hosts.contains_key(&to) {
            return;
        }
        let bytes = envelope.encode();
        if self.faults_ended {
            let delay = self.between(1, 3);
            return self.later(delay, Happening::Arrives { to, bytes });
        }
        let (lost, doubled, late) = (
            self.scenario.lost,
            self.scenario.doubled,
            self.scenario.late,
        );
        let corrupted = self.scenario.corrupted;
        let mut draw = self.between(0, 999) as u32;
        let mut falls_below = |share: u32| {
            let below = draw < share;
            draw = draw.wrapping_sub(share);
            below
        };
        if falls_below(lost) {
            return;
        }
        if falls_below(corrupted) {
            return self.corrupt(to, envelope, bytes);
        }
        let twice = falls_below(doubled);
        let later = falls_below(late);
        let delay = match later {
            true => self.between(30, 700),
            false => self.between(1, 8),
        };
        if twice {
            let again = self.between(1, 100);
            let bytes = bytes.clone();
            self.later(again, Happening::Arrives { to, bytes });
        }
        if self.chance(1500) {
            self.send_as_stranger(to, envelope.clone());
        }
        self.later(delay, Happening::Arrives { to, bytes });
    }

    fn corrupt(&mut self, to: u64, envelope: &Envelope, mut bytes: Vec<u8>) {
        self.reached.corrupted += 1;
        let at = self.between(0, bytes.len() as u64 - 1) as usize;
        if let Payload::Chunk(chunk) = &envelope.payload {
            let mut envelope = envelope.clone();
            envelope.payload = Payload::Chunk(World::corrupted(chunk, at));
            let bytes = envelope.encode();
            return self.later(2, Happening::Arrives { to, bytes });
        }
        match self.between(0, 2) {
            0 => bytes.truncate(at),
            _ => bytes[at] ^= 1 << self.between(0, 7),
        }
        let _ = Envelope::decode(bytes);
    }

    /// Sends the message as from another cluster, group or lineage, or to another node.
    fn send_as_stranger(&mut self, to: u64, mut envelope: Envelope) {
        match self.between(0, 3) {
            0 => envelope.sender.cluster = ClusterId([9; 16]),
            1 => envelope.sender.group = GroupId(77),
            2 => envelope.sender.lineage = Lineage([9; 16]),
            _ => envelope.to.0 += 100,
        }
        let bytes = envelope.encode();
        self.later(1, Happening::Arrives { to, bytes });
    }

    pub fn arrives(&mut self, to: u64, bytes: Vec<u8>) {
        if self.host(to).engine.is_none() {
            return;
        }
        let envelope = match Envelope::decode(bytes) {
            Ok(envelope) => envelope,
            Err(error) => return self.judge(Err(format!("{to} cannot decode: {error}"))),
        };
        if !self.passes(to, &envelope) {
            return self.step(to, Event::Receive(envelope));
        }
        let from = envelope.sender.node;
        match &envelope.payload {
            Payload::Fetch(fetch) => {
                let fetch = *fetch;
                self.sender(to, SenderEvent::Fetch { from, fetch });
            }
            Payload::Chunk(chunk) => {
                let chunk = chunk.clone();
                self.receiver(to, ReceiverEvent::Chunk(chunk));
            }
            Payload::Ended(ended) => {
                let ended = *ended;
                self.sender(to, SenderEvent::Ended { from, ended });
                let host = self.host_mut(to);
                let known = host.transfers.get(&from.0);
                if known.is_some_and(|(p, _)| p.checkpoint == ended.checkpoint) {
                    host.transfers.remove(&from.0);
                }
                if self.fetches_from(to, from.0) {
                    self.receiver(to, ReceiverEvent::Ended(ended));
                }
                self.step(to, Event::Receive(envelope));
            }
            Payload::Progress(progress) => {
                let progress = *progress;
                let host = self.host_mut(to);
                let engine = host.engine.as_ref();
                if engine.is_some_and(|e| e.membership().contains(from)) {
                    host.transfers.insert(from.0, (progress, host.ticks));
                }
                let checkpoint = progress.checkpoint;
                self.sender(to, SenderEvent::Progress { from, checkpoint });
                self.step(to, Event::Receive(envelope));
            }
            _ => self.step(to, Event::Receive(envelope)),
        }
    }

    /// Whether a message is for this member, and of the newest start of the sender's process; for messages
    /// that the engine does not get.
    fn passes(&mut self, to: u64, envelope: &Envelope) -> bool {
        let host = self.host_mut(to);
        let (me, sender) = (host.identity(), &envelope.sender);
        let here = (me.cluster, me.group, me.lineage);
        if (sender.cluster, sender.group, sender.lineage) != here || envelope.to.0 != to {
            self.reached.refused += 1;
            return false;
        }
        let newest = host.newest_boots.entry(sender.node.0).or_default();
        if sender.incarnation.0 < *newest {
            self.reached.refused += 1;
            return false;
        }
        *newest = sender.incarnation.0;
        true
    }
}
