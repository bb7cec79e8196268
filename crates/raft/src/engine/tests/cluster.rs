//! Members whose hosts carry out actions as documented, on disks without delay, with a network that
//! delivers everything in order unless a test changes that. Nothing is random: each test is one scenario.

mod transfers;

use std::collections::BTreeMap;

use super::*;
use crate::ids::CheckpointId;
use crate::ids::Incarnation;
use crate::message::{EndReason, Identity};
use crate::transfer::{
    Checksum, Content, FileEntry, Held, Manifest, OFFER_FORMAT, ReadError, Receiver,
    ReceiverAction, ReceiverConfig, ReceiverCounts, ReceiverEvent, Sender, SenderAction,
    SenderConfig, SenderEvent,
};

/// Bytes of a chunk: a snapshot of a few lines has many.
const CHUNK: u32 = 16;
/// Lines of the state in one file.
const LINES: usize = 8;

/// A snapshot on a host's disk.
#[derive(Clone)]
pub struct Stored {
    pub manifest: Manifest,
    pub files: Vec<Vec<u8>>,
}

/// What is being fetched; the files survive a restart.
pub struct Fetching {
    pub receiver: Receiver,
    pub files: Vec<Vec<u8>>,
}

pub struct Host {
    pub config: Config,
    pub engine: Engine,
    pub disk: Disk,
    /// The state: commands, in order.
    pub lines: Vec<String>,
    pub applied: LogFloor,
    pub membership: Membership,
    /// All memberships that it has applied, in order.
    pub memberships: Vec<Membership>,
    pub stored: Vec<Stored>,
    pub sender: Sender,
    pub fetching: Option<Fetching>,
    /// What the last transfer did.
    pub fetched: Option<ReceiverCounts>,
    /// Snapshots are taken when they are hinted at.
    pub heeds_hints: bool,
    /// It loses power after an install, before it steps `SnapshotInstalled`.
    pub dies_installing: bool,
    pub up: bool,
    /// All actions of the engine, except very frequent ones.
    pub said: Vec<Action>,
}

/// What becomes of a message.
#[derive(Clone, Copy, PartialEq)]
pub enum Fate {
    Arrives,
    Lost,
    Twice,
    /// Once everything else has arrived.
    Last,
}

pub struct Cluster {
    pub hosts: BTreeMap<u64, Host>,
    wire: VecDeque<Vec<u8>>,
    pub fate: Box<dyn FnMut(&mut Envelope) -> Fate>,
    /// These neither send nor receive.
    pub cut: Vec<u64>,
    next_ticket: u64,
    next_checkpoint: u8,
}

pub fn config(id: u64) -> Config {
    let mut config = Config::new(NodeId(id));
    config.snapshot_hint_threshold_entries = 0;
    config.offer_retry_ticks = 4;
    config
}

impl Host {
    fn open(config: Config, disk: Disk, applied: LogFloor, membership: Membership) -> Host {
        let engine = Engine::open(
            config.clone(),
            disk.state(),
            applied.lsn,
            &membership,
            disk.reader(),
        );
        Host {
            engine: engine.unwrap(),
            config,
            disk,
            lines: Vec::new(),
            applied,
            membership,
            memberships: Vec::new(),
            stored: Vec::new(),
            sender: Sender::new(SenderConfig::default()),
            fetching: None,
            fetched: None,
            heeds_hints: true,
            dies_installing: false,
            up: true,
            said: Vec::new(),
        }
    }

    fn apply(&mut self, entries: Vec<Committed>) {
        for entry in entries {
            assert_eq!(entry.lsn, self.applied.lsn.next(), "{}", self.config.id);
            self.applied = LogFloor {
                lsn: entry.lsn,
                term: entry.term,
            };
            if let Some(command) = entry.command {
                self.lines
                    .push(String::from_utf8(command.to_vec()).unwrap());
            }
            if let Some(membership) = entry.membership {
                self.membership = (*membership).clone();
                self.memberships.push(self.membership.clone());
            }
        }
    }

    pub fn newest(&self) -> &Stored {
        self.stored.last().unwrap()
    }
}

impl Cluster {
    /// A group of these voters, founded now, one of which leads.
    pub fn new(ids: &[u64]) -> Cluster {
        Cluster::with(ids, |_| {})
    }

    pub fn with(ids: &[u64], adjust: impl Fn(&mut Config)) -> Cluster {
        let mut cluster = Cluster {
            hosts: BTreeMap::new(),
            wire: VecDeque::new(),
            fate: Box::new(|_| Fate::Arrives),
            cut: Vec::new(),
            next_ticket: 0,
            next_checkpoint: 1,
        };
        for id in ids {
            let mut config = config(*id);
            adjust(&mut config);
            config.creates_cluster = true;
            let host = Host::open(config, Disk::default(), LogFloor::default(), members(ids));
            cluster.hosts.insert(*id, host);
        }
        cluster.step(ids[0], Event::Campaign);
        cluster.pump();
        cluster.ticks(3);
        assert_eq!(cluster.leader(), ids[0]);
        cluster
    }

    /// A node that has nothing, and is to join.
    pub fn joiner(&mut self, id: u64) {
        let host = Host::open(
            config(id),
            Disk::default(),
            LogFloor::default(),
            Membership::default(),
        );
        self.hosts.insert(id, host);
    }

    pub fn host(&self, id: u64) -> &Host {
        &self.hosts[&id]
    }

    pub fn host_mut(&mut self, id: u64) -> &mut Host {
        self.hosts.get_mut(&id).unwrap()
    }

    pub fn leader(&self) -> u64 {
        let leads = |h: &&Host| h.up && h.engine.role() == Role::Leader;
        // One that was cut off may think that it still leads.
        let leaders = self.hosts.values().filter(leads);
        let newest = leaders.max_by_key(|h| h.engine.term());
        newest.expect("somebody leads").config.id.0
    }

    pub fn ticks(&mut self, count: u64) {
        for _ in 0..count {
            for id in self.ids() {
                self.step(id, Event::Tick);
                let sending = self.host_mut(id).sender.step(SenderEvent::Tick);
                self.send_chunks(id, sending);
                self.receiver(id, ReceiverEvent::Tick);
            }
            self.pump();
        }
    }

    fn ids(&self) -> Vec<u64> {
        let up = self.hosts.iter().filter(|(_, h)| h.up);
        up.map(|(id, _)| *id).collect()
    }

    /// Everything that is under way arrives, and what comes of it.
    pub fn pump(&mut self) {
        let mut last = Vec::new();
        loop {
            let Some(message) = self.wire.pop_front() else {
                if last.is_empty() {
                    return;
                }
                for message in std::mem::take(&mut last) {
                    self.arrive(message);
                }
                continue;
            };
            let mut envelope = Envelope::decode(message).unwrap();
            let (from, to) = (envelope.sender.node.0, envelope.to.0);
            if self.cut.contains(&from) || self.cut.contains(&to) {
                continue;
            }
            match (self.fate)(&mut envelope) {
                Fate::Arrives => self.arrive(envelope),
                Fate::Twice => {
                    self.arrive(envelope.clone());
                    self.arrive(envelope);
                }
                Fate::Last => last.push(envelope),
                Fate::Lost => {}
            }
        }
    }

    /// The next message that is under way arrives, and nothing else.
    pub fn next_arrives(&mut self) {
        if let Some(message) = self.wire.pop_front() {
            self.arrive(Envelope::decode(message).unwrap());
        }
    }

    fn arrive(&mut self, envelope: Envelope) {
        let (from, to) = (envelope.sender.node, envelope.to.0);
        if !self.hosts.get(&to).is_some_and(|h| h.up) {
            return;
        }
        match &envelope.payload {
            Payload::Fetch(fetch) => {
                let fetch = SenderEvent::Fetch {
                    from,
                    fetch: *fetch,
                };
                let sending = self.host_mut(to).sender.step(fetch);
                self.send_chunks(to, sending);
            }
            Payload::Chunk(chunk) => self.receiver(to, ReceiverEvent::Chunk(chunk.clone())),
            Payload::Ended(ended) => {
                let ended = *ended;
                let event = SenderEvent::Ended { from, ended };
                let sending = self.host_mut(to).sender.step(event);
                self.send_chunks(to, sending);
                let fetching = self.host(to).fetching.as_ref();
                if fetching.is_some_and(|f| f.receiver.source() == from) {
                    self.receiver(to, ReceiverEvent::Ended(ended));
                }
                self.step(to, Event::Receive(envelope));
            }
            _ => self.step(to, Event::Receive(envelope)),
        }
    }

    pub fn send(&mut self, id: u64, to: NodeId, payload: Payload) {
        let sealed = self.host(id).engine.identity().seal(to, payload);
        self.wire.push_back(sealed.encode());
    }

    /// An event happens to a member, and everything that its host does about it.
    pub fn step(&mut self, id: u64, event: Event) {
        let mut events = VecDeque::from([event]);
        while let Some(event) = events.pop_front() {
            if !self.host(id).up {
                return;
            }
            let actions = self.host_mut(id).engine.step(event);
            for action in actions {
                self.carry_out(id, action, &mut events);
            }
        }
    }

    fn carry_out(&mut self, id: u64, action: Action, events: &mut VecDeque<Event>) {
        let host = self.hosts.get_mut(&id).unwrap();
        match action {
            Action::Persist(persist) => {
                host.disk.write(&persist);
                events.push_back(Event::Persisted {
                    number: persist.number,
                });
            }
            Action::Send(envelopes) => {
                self.wire.extend(envelopes.iter().map(Envelope::encode));
            }
            Action::Apply(entries) => {
                host.apply(entries);
                events.push_back(Event::Applied {
                    lsn: host.applied.lsn,
                });
            }
            Action::Compact { floor } => host.disk.compact(floor),
            Action::SnapshotHint { .. } if host.heeds_hints => {
                host.said.push(action);
                events.push_back(Event::SnapshotBegun);
                let taken = self.store_snapshot(id);
                events.push_back(taken);
            }
            Action::OfferSnapshot {
                to,
                last_included_index,
            } => {
                let Some(stored) = host.stored.last() else {
                    events.push_back(Event::OfferFailed { to });
                    return;
                };
                assert_eq!(stored.manifest.last_included_index, last_included_index);
                let offer = Payload::Offer(Box::new(stored.manifest.clone()));
                host.said.push(action);
                self.send(id, to, offer);
            }
            Action::FetchSnapshot { from, offer } => {
                let files = vec![Vec::new(); offer.file_count()];
                host.said.push(Action::FetchSnapshot {
                    from,
                    offer: offer.clone(),
                });
                self.fetch(id, *offer, files);
            }
            Action::AbandonFetch { .. } => {
                host.fetching = None;
                host.said.push(action);
            }
            Action::InstallSnapshot { offer } => {
                let fetching = host.fetching.take().expect("what is installed was fetched");
                let text = String::from_utf8(fetching.files.concat()).unwrap();
                host.lines = text.lines().map(str::to_owned).collect();
                host.applied = LogFloor {
                    lsn: offer.last_included_index,
                    term: offer.term,
                };
                host.membership = offer.peers.clone();
                host.fetched = Some(fetching.receiver.counts());
                let checkpoint = offer.checkpoint;
                host.said.push(Action::InstallSnapshot { offer });
                if std::mem::take(&mut host.dies_installing) {
                    host.up = false;
                } else {
                    events.push_back(Event::SnapshotInstalled { checkpoint });
                }
            }
            Action::Halt { what } => panic!("member {id} halts: {what}"),
            other => host.said.push(other),
        }
    }

    /// The host takes a snapshot of what is applied.
    pub fn snapshot(&mut self, id: u64) {
        self.step(id, Event::SnapshotBegun);
        let taken = self.store_snapshot(id);
        self.step(id, taken);
        self.pump();
    }

    fn store_snapshot(&mut self, id: u64) -> Event {
        let checkpoint = CheckpointId([self.next_checkpoint; 16]);
        self.next_checkpoint += 1;
        let host = self.host_mut(id);
        let with_end = |lines: &[String]| (lines.join("\n") + "\n").into_bytes();
        let mut files: Vec<_> = host.lines.chunks(LINES).map(with_end).collect();
        files.push(Vec::new());
        let entry = |(n, file): (usize, &Vec<u8>)| FileEntry {
            name: format!("{n:06}.sst"),
            size: file.len() as u64,
            checksum: Checksum::of(file),
        };
        let manifest = Manifest {
            format: OFFER_FORMAT,
            checkpoint,
            source: host.config.id,
            last_included_index: host.applied.lsn,
            term: host.applied.term,
            peers: host.membership.clone(),
            content: Content::Files(files.iter().enumerate().map(entry).collect()),
        };
        manifest.validate().unwrap();
        host.stored.push(Stored { manifest, files });
        self.publish(id)
    }

    fn publish(&mut self, id: u64) -> Event {
        let host = self.host_mut(id);
        let manifest = host.newest().manifest.clone();
        let taken = Event::SnapshotTaken {
            last_included_index: manifest.last_included_index,
            term: manifest.term,
            peers: Some(manifest.peers.clone()),
        };
        host.sender.step(SenderEvent::Publish(Box::new(manifest)));
        taken
    }

    /// The process ends, and starts again on what it has on its disk.
    pub fn restart(&mut self, id: u64) {
        self.wire.retain(|message| {
            let envelope = Envelope::decode(message.clone()).unwrap();
            envelope.to.0 != id
        });
        let host = self.host_mut(id);
        host.up = true;
        host.config.creates_cluster = false;
        host.config.incarnation = Incarnation(host.config.incarnation.0 + 1);
        let reader = host.disk.reader();
        let applied = host.applied;
        if applied.lsn.0 > 0 && !host.disk.state().continues(applied, &*reader) {
            host.disk.restart(applied);
        }
        let (config, disk) = (host.config.clone(), host.disk.clone());
        host.engine = Engine::open(
            config,
            disk.state(),
            applied.lsn,
            &host.membership,
            disk.reader(),
        )
        .unwrap();
        host.sender = Sender::new(SenderConfig::default());
        for stored in &host.stored {
            let manifest = Box::new(stored.manifest.clone());
            host.sender.step(SenderEvent::Publish(manifest));
        }
        let partial = host.fetching.take();
        if !host.stored.is_empty() {
            let known = self.publish(id);
            self.step(id, known);
        }
        if let Some(Fetching { receiver, files }) = partial {
            let offer = Box::new(receiver.manifest().clone());
            self.step(id, Event::ResumeFetch { offer });
            // The host makes a receiver on what is there, instead of an empty one.
            if let Some(fetching) = self.host_mut(id).fetching.take() {
                self.wire.clear();
                self.fetch(id, fetching.receiver.manifest().clone(), files);
            }
        }
    }

    /// Proposes a command to a member, whoever it is, and does not wait for it.
    pub fn try_write(&mut self, id: u64) {
        let ticket = self.next_ticket;
        self.next_ticket += 1;
        self.step(id, propose(ticket, &format!("command {ticket}")));
    }

    /// Proposes so many commands to the leader, and waits until they are applied.
    pub fn write(&mut self, count: u64) {
        let leader = self.leader();
        for _ in 0..count {
            let ticket = self.next_ticket;
            self.next_ticket += 1;
            self.step(leader, propose(ticket, &format!("command {ticket}")));
            self.pump();
        }
        self.ticks(3);
    }

    /// A change of the membership, seen through.
    pub fn change(&mut self, change: MembershipChange) -> Result<(), ChangeRefused> {
        let leader = self.leader();
        let ticket = Ticket(1 << 40 | self.next_ticket);
        self.next_ticket += 1;
        self.step(leader, Event::ChangeMembership { ticket, change });
        self.pump();
        self.ticks(6);
        let verdict = |action: &Action| match action {
            Action::Accepted { ticket: t, .. } if *t == ticket => Some(Ok(())),
            Action::Rejected {
                ticket: t,
                reason: RejectReason::Membership(why),
            } if *t == ticket => Some(Err(*why)),
            _ => None,
        };
        let said = &self.host(leader).said;
        said.iter().find_map(verdict).expect("a verdict")
    }

    /// The same state everywhere.
    pub fn assert_agreed(&self, ids: &[u64]) {
        let leader = self.host(self.leader());
        for id in ids {
            let host = self.host(*id);
            assert_eq!(host.applied, leader.applied, "member {id}");
            assert_eq!(host.lines, leader.lines, "member {id}");
            assert_eq!(host.membership, leader.membership, "member {id}");
            assert_eq!(host.engine.membership(), &leader.membership, "member {id}");
        }
    }

    /// How many actions of a member's engine contain that text.
    pub fn said(&self, id: u64, like: fn(&Action) -> bool) -> usize {
        self.host(id).said.iter().filter(|a| like(a)).count()
    }

    /// How transfers ended that were reported to a member, from now on.
    pub fn end_of_transfers(&mut self) -> std::sync::Arc<parking_lot::Mutex<Vec<EndReason>>> {
        let seen = std::sync::Arc::new(parking_lot::Mutex::new(Vec::new()));
        let noted = seen.clone();
        self.fate = Box::new(move |envelope| {
            if let Payload::Ended(ended) = &envelope.payload {
                noted.lock().push(ended.reason);
            }
            Fate::Arrives
        });
        seen
    }

    pub fn identity(&self, id: u64) -> Identity {
        self.host(id).engine.identity()
    }

    /// Lets a message arrive, as it is.
    pub fn inject(&mut self, envelope: Envelope) {
        self.arrive(envelope);
    }
}
