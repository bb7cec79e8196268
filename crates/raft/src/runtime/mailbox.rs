//! Events for a group from threads that must not wait for its engine: those that receive messages, the log writer,
//! the ticker, the threads of the host. They serve all groups. While one group's engine is busy, for whatever reason,
//! its events wait here, and whoever releases the engine steps them.
//!
//! ```text
//! post ──▶ mailbox ──▶ is the engine free? ── yes ──▶ step what is in the mailbox
//!                                          └─ no ───▶ nothing: whoever has it looks here when it is done
//! ```
//!
//! No event stays behind: it is put here before the engine's lock is tried, and the mailbox is looked at after the
//! lock was released.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use parking_lot::Mutex;

use crate::drops::DropReason;
use crate::engine::{Event, MAX_COMMAND_BYTES};
use crate::message::Envelope;

/// Most events of a group that wait: more than there may be unanswered reads ([`Event::ReadIndex`]), which each have
/// one, and messages of the peers.
const MAX_EVENTS: usize = 8192;
/// Most bytes of messages that wait for a group: what a leader may have under way to a member, so that nothing of it is
/// dropped by a short wait. One message is always taken.
const MAX_BYTES: usize = 16 * 1024 * 1024 + MAX_COMMAND_BYTES;
/// The same for all groups of a node: a disk that hangs stops many groups at once.
const MAX_BYTES_OF_NODE: usize = 256 * 1024 * 1024;

/// Bytes of messages in the mailboxes of a node.
#[derive(Clone, Default)]
pub(super) struct NodeBytes(Arc<AtomicUsize>);

/// See the [module's head](self).
pub(super) struct Mailbox {
    posted: Mutex<Posted>,
    of_node: NodeBytes,
}

#[derive(Default)]
struct Posted {
    /// Everything up to this write is durable.
    persisted: Option<u64>,
    /// The events, and the bytes of each message.
    events: VecDeque<(Event, usize)>,
    bytes: usize,
    /// A tick. Several that come while the engine is busy are one: a group whose engine was busy has not had the time
    /// to hear from its peers.
    tick: bool,
    /// Proposals wait that may be made.
    proposals: bool,
}

impl Mailbox {
    pub fn new(of_node: NodeBytes) -> Mailbox {
        Mailbox {
            posted: Mutex::default(),
            of_node,
        }
    }

    /// Adds a message, or drops it if the mailbox is full: Raft repeats it.
    pub fn message(&self, message: Envelope) {
        let bytes = message.size_hint();
        let mut posted = self.posted.lock();
        let all = &self.of_node.0;
        let fits = posted.events.len() < MAX_EVENTS
            && posted.bytes + bytes <= MAX_BYTES
            && all.load(Ordering::Relaxed) + bytes <= MAX_BYTES_OF_NODE;
        if fits || posted.events.is_empty() {
            all.fetch_add(bytes, Ordering::Relaxed);
            posted.bytes += bytes;
            posted.events.push_back((Event::Receive(message), bytes));
        } else {
            DropReason::QueueFull.count(1);
        }
    }

    /// Adds another event. False if the mailbox is full.
    #[must_use]
    pub fn event(&self, event: Event) -> bool {
        let mut posted = self.posted.lock();
        let fits = posted.events.len() < MAX_EVENTS;
        if fits {
            posted.events.push_back((event, 0));
        }
        fits
    }

    /// Adds an event that must not get lost, and of which there is a bounded number.
    pub fn answer(&self, event: Event) {
        self.posted.lock().events.push_back((event, 0));
    }

    pub fn persisted(&self, number: u64) {
        self.posted.lock().persisted = Some(number);
    }

    pub fn tick(&self) {
        self.posted.lock().tick = true;
    }

    pub fn proposals(&self) {
        self.posted.lock().proposals = true;
    }

    /// The engine was replaced by one that numbers its writes from the beginning.
    pub fn forget_persisted(&self) {
        self.posted.lock().persisted = None;
    }

    pub fn is_empty(&self) -> bool {
        let posted = self.posted.lock();
        let has_flags = posted.persisted.is_some() || posted.tick || posted.proposals;
        !has_flags && posted.events.is_empty()
    }

    /// Takes the next event: what is durable first, because most waits end with it; then the tick, which must not wait for
    /// messages that keep coming.
    pub fn take(&self) -> Option<Event> {
        let mut posted = self.posted.lock();
        if let Some(number) = posted.persisted.take() {
            return Some(Event::Persisted { number });
        }
        if std::mem::take(&mut posted.tick) {
            return Some(Event::Tick);
        }
        let (event, bytes) = posted.events.pop_front()?;
        posted.bytes -= bytes;
        self.of_node.0.fetch_sub(bytes, Ordering::Relaxed);
        Some(event)
    }

    /// Whether proposals were posted since the last call.
    pub fn take_proposals(&self) -> bool {
        std::mem::take(&mut self.posted.lock().proposals)
    }
}

impl Drop for Mailbox {
    fn drop(&mut self) {
        let bytes = self.posted.get_mut().bytes;
        self.of_node.0.fetch_sub(bytes, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::Config;
    use crate::ids::NodeId;
    use crate::message::{Payload, PeerMessage};

    fn message(bytes: usize) -> Envelope {
        let entry = raft::eraftpb::Entry {
            data: vec![0; bytes].into(),
            ..Default::default()
        };
        let mut message = raft::eraftpb::Message::default();
        message.set_entries(vec![entry].into());
        Config::new(NodeId(2))
            .identity()
            .seal(NodeId(1), Payload::Raft(PeerMessage(message)))
    }

    fn taken(mailbox: &Mailbox) -> usize {
        std::iter::from_fn(|| mailbox.take()).count()
    }

    #[test]
    fn messages_wait_within_bounds_and_one_always_may() {
        const MIB: usize = 1024 * 1024;
        let of_node = NodeBytes::default();
        let mailbox = Mailbox::new(of_node.clone());
        for _ in 0..100 {
            mailbox.message(message(MIB));
        }
        let held = of_node.0.load(Ordering::Relaxed);
        assert!((22 * MIB..25 * MIB).contains(&held), "{held}");
        assert_eq!(taken(&mailbox), held / MIB);
        assert_eq!(of_node.0.load(Ordering::Relaxed), 0);
        // Those of other groups take all.
        of_node.0.store(MAX_BYTES_OF_NODE, Ordering::Relaxed);
        mailbox.message(message(MIB));
        mailbox.message(message(MIB));
        assert_eq!(taken(&mailbox), 1);
        for _ in 0..2 * MAX_EVENTS {
            let _ = mailbox.event(Event::Unreachable(NodeId(2)));
        }
        assert!(!mailbox.event(Event::Campaign));
        assert_eq!(taken(&mailbox), MAX_EVENTS);
        mailbox.message(message(MIB));
        drop(mailbox);
        assert_eq!(of_node.0.load(Ordering::Relaxed), MAX_BYTES_OF_NODE);
    }

    #[test]
    fn of_writes_the_last_counts_and_of_ticks_one() {
        let mailbox = Mailbox::new(NodeBytes::default());
        assert!(mailbox.is_empty() && mailbox.take().is_none());
        mailbox.tick();
        mailbox.tick();
        mailbox.persisted(3);
        mailbox.persisted(5);
        mailbox.proposals();
        assert!(!mailbox.is_empty());
        let persisted = Some(Event::Persisted { number: 5 });
        assert_eq!(format!("{:?}", mailbox.take()), format!("{persisted:?}"));
        assert!(mailbox.take_proposals() && !mailbox.take_proposals());
        assert!(matches!(mailbox.take(), Some(Event::Tick)));
        assert!(mailbox.take().is_none() && mailbox.is_empty());
    }
}
