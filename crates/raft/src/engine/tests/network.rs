//! Three members in memory, and between them a network, their disks and their hosts, all of them
//! unreliable, all of them driven by one seed.
//!
//! What may happen, in any order: a clock ticks; a message is delivered, out of order, repeated or
//! lost; a command is proposed to anybody; a write becomes durable, alone or with those after it;
//! entries are applied; a host takes a snapshot, hinted at or not, or fails to; it lets go of the log
//! that it kept for others; a member crashes, and is opened again on what its disk and its host kept.
//!
//! What must hold, at every step, is asserted where it could break: see [`Network::check`].

use std::collections::{BTreeMap, BTreeSet};

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::*;

const MEMBERS: [u64; 3] = [1, 2, 3];
/// Messages under way, at most; more are lost.
const MAX_IN_FLIGHT: usize = 64;

/// One member with its disk and its host.
struct Member {
    id: u64,
    engine: Engine,
    disk: Disk,
    /// Not yet durable, oldest first.
    writes: VecDeque<Persist>,
    /// Committed and not yet applied.
    to_apply: VecDeque<Committed>,
    /// Last entry that the host has applied; what the state is follows from it.
    applied: u64,
    /// The same, as far as it survives a crash: what its newest snapshot covers.
    flushed: u64,
    /// An attempt at a snapshot is under way.
    attempt: bool,
    /// What the log is to keep.
    keep_from: u64,
}

/// Where an accepted proposal is to land.
type Place = (Lsn, Term);

pub struct Network {
    rng: StdRng,
    config: fn(u64) -> Config,
    members: Vec<Member>,
    in_flight: Vec<Vec<u8>>,
    /// What is committed at each LSN: the same on all members, for ever.
    history: BTreeMap<u64, Committed>,
    leaders: BTreeMap<Term, u64>,
    accepted: BTreeMap<u64, Place>,
    rejected: BTreeSet<u64>,
    next_ticket: u64,
    crashes: u64,
    busy: u64,
    compactions: u64,
    hints: u64,
    /// All actions of the engines.
    pub transcript: Vec<String>,
}

impl Network {
    pub fn new(seed: u64) -> Network {
        let config: fn(u64) -> Config = |id| {
            let mut config = Config::new(NodeId(id));
            // Small enough that the seeds reach both limits.
            config.max_pending_proposals = 8;
            config.max_apply_backlog_bytes = 200;
            config.snapshot_hint_threshold_entries = 20;
            config.max_log_entries = 30;
            config.snapshot_backoff_ticks = 2..=16;
            config
        };
        let member = |id| {
            let disk = Disk::default();
            Member {
                id,
                engine: open_with(config(id), &MEMBERS, &disk, 0).unwrap(),
                disk,
                writes: VecDeque::new(),
                to_apply: VecDeque::new(),
                applied: 0,
                flushed: 0,
                attempt: false,
                keep_from: 0,
            }
        };
        let mut network = Network {
            rng: StdRng::seed_from_u64(seed),
            config,
            members: MEMBERS.map(member).into(),
            in_flight: Vec::new(),
            history: BTreeMap::new(),
            leaders: BTreeMap::new(),
            accepted: BTreeMap::new(),
            rejected: BTreeSet::new(),
            next_ticket: 0,
            crashes: 0,
            busy: 0,
            compactions: 0,
            hints: 0,
            transcript: Vec::new(),
        };
        for at in 0..MEMBERS.len() {
            network.step(at, Event::KeepFrom { lsn: Lsn(0) });
        }
        network
    }

    /// One random event.
    pub fn fault(&mut self) {
        let at = self.rng.random_range(0..MEMBERS.len());
        match self.rng.random_range(0..1000) {
            0..300 => self.step(at, Event::Tick),
            300..650 => self.deliver(),
            650..690 => self.lose(),
            690..760 => self.propose(at),
            760..880 => self.write(at),
            880..960 => self.apply(at),
            960..965 => self.begin_snapshot(at),
            965..975 => self.end_snapshot(at),
            975..985 => self.let_go(at),
            985..992 => self.step(at, Event::Campaign),
            _ => self.crash(at),
        }
    }

    /// Time passes without faults: all members tick, and all messages arrive.
    pub fn quiet_tick(&mut self) {
        for at in 0..MEMBERS.len() {
            self.step(at, Event::Tick);
        }
        while !self.at_rest() {
            for message in std::mem::take(&mut self.in_flight) {
                self.receive(&message);
            }
            for at in 0..MEMBERS.len() {
                self.write(at);
                self.apply(at);
            }
        }
    }

    fn at_rest(&self) -> bool {
        let rests = |m: &Member| m.writes.is_empty() && m.to_apply.is_empty();
        self.in_flight.is_empty() && self.members.iter().all(rests)
    }

    fn step(&mut self, at: usize, event: Event) {
        let actions = self.members[at].engine.step(event);
        for action in actions {
            self.transcript.push(format!("{} {action:?}", at + 1));
            self.carry_out(at, action);
        }
    }

    fn carry_out(&mut self, at: usize, action: Action) {
        let member = &mut self.members[at];
        match action {
            Action::Persist(persist) => member.writes.push_back(persist),
            Action::Send(messages) => {
                for message in messages {
                    assert_eq!(message.sender.node, NodeId(member.id));
                    self.in_flight.push(message.encode());
                }
                while self.in_flight.len() > MAX_IN_FLIGHT {
                    self.lose();
                }
            }
            Action::Apply(entries) => {
                for entry in entries {
                    self.check(at, &entry);
                    self.members[at].to_apply.push_back(entry);
                }
            }
            Action::Accepted { ticket, lsn, term } => {
                self.accepted.insert(ticket.0, (lsn, term));
            }
            Action::Rejected { ticket, reason } => {
                self.busy += u64::from(reason == RejectReason::Busy);
                self.rejected.insert(ticket.0);
            }
            Action::Compact { floor } => {
                let next = member
                    .to_apply
                    .front()
                    .map_or(member.applied + 1, |e| e.lsn.0);
                assert!(floor.lsn.0 < next, "compaction of what is not applied");
                assert!(
                    floor.lsn.0 <= member.flushed.min(member.keep_from),
                    "compaction of what no snapshot covers, or of what is to be kept"
                );
                member.disk.compact(floor);
                self.compactions += 1;
            }
            Action::SnapshotHint {
                last_included_index,
            } => {
                assert!(!member.attempt, "a hint while an attempt is under way");
                assert_eq!(last_included_index.0, member.applied);
                assert!(member.applied > member.flushed, "a hint at nothing new");
                self.hints += 1;
                // Most hosts begin at once; one that does not gets another hint.
                if self.rng.random_bool(0.8) {
                    member.attempt = true;
                    self.step(at, Event::SnapshotBegun);
                }
            }
            Action::LogAlarm { .. } => {
                assert_eq!(member.applied, member.flushed, "a snapshot can help");
            }
            Action::ReadLog(_)
            | Action::StoreSnapshot { .. }
            | Action::OfferSnapshot { .. }
            | Action::FetchSnapshot { .. }
            | Action::AbandonFetch { .. }
            | Action::InstallSnapshot { .. }
            | Action::ReadReady { .. }
            | Action::ReadFailed { .. } => panic!("nobody asked for that: {action:?}"),
            Action::Became { role, term, .. } => {
                if role == Role::Leader {
                    let known = *self.leaders.entry(term).or_insert(member.id);
                    assert_eq!(known, member.id, "two leaders in term {term}");
                }
            }
            Action::Halt { what } => panic!("member {} halts: {what}", member.id),
        }
    }

    /// All members apply the same entries in the same order, none twice and none missing.
    fn check(&mut self, at: usize, entry: &Committed) {
        let member = &self.members[at];
        let last = member.to_apply.back().map_or(member.applied, |e| e.lsn.0);
        assert_eq!(entry.lsn.0, last + 1, "member {}: a gap", member.id);
        let known = self
            .history
            .entry(entry.lsn.0)
            .or_insert_with(|| entry.clone());
        assert_eq!(known, entry, "member {} differs", member.id);
    }

    fn deliver(&mut self) {
        if self.in_flight.is_empty() {
            return;
        }
        let at = self.rng.random_range(0..self.in_flight.len());
        let message = match self.rng.random_bool(0.1) {
            true => self.in_flight[at].clone(),
            false => self.in_flight.swap_remove(at),
        };
        self.receive(&message);
    }

    fn receive(&mut self, message: &[u8]) {
        let message = Envelope::decode(message.to_vec()).unwrap();
        let to = message.to.0 as usize - 1;
        self.step(to, Event::Receive(message));
    }

    fn lose(&mut self) {
        if !self.in_flight.is_empty() {
            let at = self.rng.random_range(0..self.in_flight.len());
            self.in_flight.swap_remove(at);
        }
    }

    fn propose(&mut self, at: usize) {
        let ticket = self.next_ticket;
        self.next_ticket += 1;
        self.step(at, propose(ticket, &ticket.to_string()));
        assert!(
            self.accepted.contains_key(&ticket) != self.rejected.contains(&ticket),
            "a proposal gets one verdict, at once"
        );
    }

    /// Some of the writes of a member become durable, by one sync.
    fn write(&mut self, at: usize) {
        let member = &mut self.members[at];
        let count = member.writes.len();
        if count == 0 {
            return;
        }
        let synced = self.rng.random_range(1..=count);
        let mut number = 0;
        for persist in member.writes.drain(..synced) {
            member.disk.write(&persist);
            number = persist.number;
        }
        self.step(at, Event::Persisted { number });
    }

    /// A host applies some of what it was given.
    fn apply(&mut self, at: usize) {
        let member = &mut self.members[at];
        let count = member.to_apply.len();
        if count == 0 {
            return;
        }
        let applied = self.rng.random_range(1..=count);
        member.to_apply.drain(..applied);
        member.applied += applied as u64;
        let lsn = Lsn(member.applied);
        self.step(at, Event::Applied { lsn });
    }

    /// A host begins a snapshot by itself.
    fn begin_snapshot(&mut self, at: usize) {
        if !std::mem::replace(&mut self.members[at].attempt, true) {
            self.step(at, Event::SnapshotBegun);
        }
    }

    /// An attempt ends, one way or the other.
    fn end_snapshot(&mut self, at: usize) {
        let member = &mut self.members[at];
        if !std::mem::replace(&mut member.attempt, false) {
            return;
        }
        if self.rng.random_bool(0.5) {
            return self.step(at, Event::SnapshotFailed);
        }
        member.flushed = member.applied;
        self.notify_snapshot(at);
    }

    fn notify_snapshot(&mut self, at: usize) {
        let lsn = self.members[at].flushed;
        let event = taken(&self.members[at].engine, lsn);
        self.step(at, event);
    }

    /// No host here can send a snapshot, so the log keeps what any member lacks.
    fn let_go(&mut self, at: usize) {
        let everybody_has = |m: &Member| m.flushed.min(m.disk.state().last.0);
        let lsn = self.members.iter().map(everybody_has).min().unwrap_or(0);
        self.members[at].keep_from = lsn;
        self.step(at, Event::KeepFrom { lsn: Lsn(lsn) });
    }

    /// A member loses its memory. Of what it was writing, some may be on its disk all the same.
    fn crash(&mut self, at: usize) {
        self.crashes += 1;
        let member = &mut self.members[at];
        let written = self.rng.random_range(0..=member.writes.len());
        for persist in member.writes.drain(..).take(written) {
            member.disk.write(&persist);
        }
        member.to_apply.clear();
        member.applied = member.flushed;
        let config = (self.config)(member.id);
        member.engine = open_with(config, &MEMBERS, &member.disk, member.applied).unwrap();
        member.attempt = false;
        let lsn = Lsn(member.keep_from);
        self.step(at, Event::KeepFrom { lsn });
        self.notify_snapshot(at);
    }

    /// Faults have stopped: a leader is elected, commands are applied, and all members have all of them.
    pub fn settle(&mut self) {
        for _ in 0..200 {
            self.quiet_tick();
        }
        let leader = self.leader();
        let before = self.next_ticket;
        for _ in 0..10 {
            self.propose(leader);
            self.quiet_tick();
        }
        // A follower gets the last commit index with the next heartbeat.
        for _ in 0..2 * (self.config)(1).heartbeat_ticks {
            self.quiet_tick();
        }
        let end = self.members[leader].engine.last().0;
        for member in &self.members {
            assert_eq!(member.applied, end, "member {} has everything", member.id);
        }
        let landed = self.landed();
        for ticket in before..self.next_ticket {
            assert!(landed.contains(&ticket), "{ticket} lands without faults");
        }
    }

    /// Nothing goes wrong, and commands come one at a time; returns how often the members read
    /// their logs meanwhile.
    pub fn reads_of_quiet_writes(&mut self) -> u64 {
        for _ in 0..200 {
            self.quiet_tick();
        }
        let leader = self.leader();
        let reads = |all: &[Member]| all.iter().map(|m| m.disk.reads()).sum::<u64>();
        let before = reads(&self.members);
        for _ in 0..100 {
            self.propose(leader);
            self.quiet_tick();
        }
        assert_eq!(self.landed().len(), 100);
        reads(&self.members) - before
    }

    fn leader(&self) -> usize {
        let leads = |m: &&Member| m.engine.role() == Role::Leader;
        let leaders: Vec<_> = self.members.iter().filter(leads).collect();
        let [leader] = leaders[..] else {
            panic!("{} leaders after 200 quiet ticks", leaders.len());
        };
        leader.id as usize - 1
    }

    pub fn reached(&self) -> Reached {
        let landed = self.landed().len();
        Reached {
            crashes: self.crashes,
            terms: self.leaders.len() as u64,
            landed: landed as u64,
            lost: (self.accepted.len() - landed) as u64,
            busy: self.busy,
            compactions: self.compactions,
            hints: self.hints,
        }
    }

    /// The proposals in the history, which are those whose place holds their term, and none twice.
    fn landed(&self) -> BTreeSet<u64> {
        let mut landed = BTreeSet::new();
        for entry in self.history.values() {
            if let Some(command) = &entry.command {
                let ticket = std::str::from_utf8(command).unwrap().parse().unwrap();
                assert!(landed.insert(ticket), "{ticket} landed twice");
                assert_eq!(
                    self.accepted.get(&ticket),
                    Some(&(entry.lsn, entry.term)),
                    "{ticket} landed where it was accepted"
                );
            }
        }
        for (ticket, (lsn, term)) in &self.accepted {
            let holds_it = self.history.get(&lsn.0).is_some_and(|e| e.term == *term);
            assert_eq!(
                holds_it,
                landed.contains(ticket),
                "{ticket}, accepted at {lsn}@{term}"
            );
        }
        landed
    }
}

/// What a run came across, so that a test can see whether its seeds are worth anything.
#[derive(Debug, Default)]
pub struct Reached {
    crashes: u64,
    /// Terms that had a leader.
    terms: u64,
    landed: u64,
    /// Accepted by a leader and then lost with it.
    lost: u64,
    busy: u64,
    compactions: u64,
    hints: u64,
}

impl Reached {
    pub fn enough(&self) -> bool {
        let Reached {
            crashes,
            terms,
            landed,
            lost,
            busy,
            compactions,
            hints,
        } = *self;
        crashes > 1000
            && terms > 1000
            && landed > 10_000
            && lost > 100
            && busy > 100
            && compactions > 100
            && hints > 1000
    }
}

impl std::ops::AddAssign for Reached {
    fn add_assign(&mut self, other: Reached) {
        self.crashes += other.crashes;
        self.terms += other.terms;
        self.landed += other.landed;
        self.lost += other.lost;
        self.busy += other.busy;
        self.compactions += other.compactions;
        self.hints += other.hints;
    }
}

/// A number of random events, then a phase without faults; the rules are checked all the time.
pub fn run(seed: u64, faults: usize) -> Network {
    let mut network = Network::new(seed);
    for _ in 0..faults {
        network.fault();
    }
    network.settle();
    network
}
