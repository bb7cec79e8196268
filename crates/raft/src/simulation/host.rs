//! A host: a process with an engine, a state machine and a disk. It carries out actions as their
//! documentation demands, at a speed that is drawn at random; a mutant makes one mistake.

use std::collections::{BTreeMap, VecDeque};

use tokio::sync::oneshot;
use tokio::sync::oneshot::error::TryRecvError;

use super::disk::{Log, Write};
use super::mutants::Mutant;
use super::oracle::is_quorum;
use super::scenario;
use super::state::{State, Stored};
use super::transfers::{Fetching, Partial};
use super::world::{Happening, World};
use crate::engine::{
    Action, Committed, Config, Engine, Event, LogFloor, Membership, OpenError, Role,
};
use crate::ids::{CheckpointId, Incarnation, Lsn, NodeId, Term};
use crate::message::{Identity, Payload, Progress};
use crate::runtime::{Answer, ProposeError, Waiter, Waiters};
use crate::transfer::{Manifest, Sender, SenderEvent};

/// A read of the sender.
#[derive(Clone, Copy)]
pub struct Source {
    pub checkpoint: CheckpointId,
    pub file: u32,
    pub offset: u64,
    pub length: u32,
}

/// What became of a proposal, by its ticket: the number of the command and its LSN, or why it failed.
pub type Answered = (u64, Result<(u64, u64), ProposeError>);

/// A proposal that was accepted.
pub struct Asked {
    outcome: oneshot::Receiver<Result<(u64, u64), ProposeError>>,
}

pub struct Host {
    pub config: Config,
    pub period: u64,
    /// Numbers the starts of its process.
    pub boot: u64,
    /// Entries above it are not archived, and have to stay in the log.
    pub archived: Lsn,
    /// Only while the process runs.
    pub engine: Option<Engine>,
    /// The membership that it was founded with.
    pub bootstrap: Membership,

    pub log: Log,
    /// Writes that are not durable, oldest first, and how many of them are being synced.
    pub writes: VecDeque<Write>,
    pub syncing: usize,
    /// No space on the disk.
    pub full: bool,
    /// The disk is slow, the state machine is.
    pub slow_disk: bool,
    pub slow_apply: bool,

    pub state: State,
    /// The state that survives a crash.
    pub durable: State,
    pub to_apply: VecDeque<Committed>,
    pub applying: bool,
    /// Last entry that it was handed for applying.
    pub handed: u64,
    /// Who waits for the outcome of proposals of this process; an output is the number of the command, and its LSN.
    pub waiters: Waiters<(u64, u64)>,
    /// Proposals of this process that were not answered, by ticket.
    pub asked: BTreeMap<u64, Asked>,

    /// A snapshot is being written: the state as of its beginning.
    pub capture: Option<State>,
    /// The state of the bytes that the engine is to describe.
    pub described: Option<State>,
    pub stored: Vec<Stored>,
    pub next_checkpoint: u64,
    pub sender: Sender,

    pub fetching: Option<Fetching>,
    /// The files of a fetch on the disk.
    pub partial: Option<Partial>,
    pub fetches: u64,
    pub installing: Option<Box<Manifest>>,

    /// Reports of other members' fetches, with the tick of each.
    pub transfers: BTreeMap<u64, (Progress, u64)>,
    pub newest_boots: BTreeMap<u64, u64>,
    pub ticks: u64,
    /// The content of its log, if it was lost for good.
    pub ghost: Option<Log>,
    /// It is not started again.
    pub gone: bool,
}

impl Host {
    pub fn new(config: Config, membership: Membership, period: u64) -> Host {
        let state = State {
            membership: membership.clone(),
            ..State::default()
        };
        Host {
            config,
            period,
            boot: 0,
            archived: Lsn(u64::MAX),
            engine: None,
            bootstrap: membership,
            log: Log::default(),
            writes: VecDeque::new(),
            syncing: 0,
            full: false,
            slow_disk: false,
            slow_apply: false,
            durable: state.clone(),
            state,
            to_apply: VecDeque::new(),
            applying: false,
            handed: 0,
            waiters: Waiters::default(),
            asked: BTreeMap::new(),
            capture: None,
            described: None,
            stored: Vec::new(),
            next_checkpoint: 1,
            sender: Sender::new(scenario::sender()),
            fetching: None,
            partial: None,
            fetches: 0,
            installing: None,
            transfers: BTreeMap::new(),
            newest_boots: BTreeMap::new(),
            ticks: 0,
            ghost: None,
            gone: false,
        }
    }

    pub fn identity(&self) -> Identity {
        self.config.identity()
    }

    /// The proposals that were answered since the last call.
    pub fn take_answered(&mut self) -> Vec<Answered> {
        let mut answered = Vec::new();
        self.asked
            .retain(|ticket, asked| match asked.outcome.try_recv() {
                Ok(outcome) => {
                    answered.push((*ticket, outcome));
                    false
                }
                Err(error) => error == TryRecvError::Empty,
            });
        answered
    }

    pub fn set_handed(&mut self, lsn: u64) {
        self.handed = lsn;
    }

    pub fn leads(&self) -> bool {
        let engine = self.engine.as_ref();
        engine.is_some_and(|e| e.role() == Role::Leader)
    }

    /// The term of an entry in its log, durable or not.
    fn term_at(&self, lsn: u64) -> Option<Term> {
        for write in self.writes.iter().rev() {
            let Write::Persist(persist, _) = write else {
                continue;
            };
            if let Some(entry) = persist.entries.iter().find(|e| e.index == lsn) {
                return Some(Term(entry.term));
            }
            if let Some(start) = persist.restart {
                return (start.lsn.0 == lsn).then_some(start.term);
            }
        }
        self.log.term_at(Lsn(lsn))
    }

    /// Whether that entry survives here.
    fn has_durably(&self, lsn: u64, term: Term) -> bool {
        let has = |log: &Log| log.start().0 >= lsn || log.term_at(Lsn(lsn)) == Some(term);
        has(&self.log) || self.ghost.as_ref().is_some_and(has)
    }
}

/// Start, crash and events of a process.
impl World {
    /// Starts the process from its disk.
    pub fn open(&mut self, id: u64) {
        let bootstrap = self.is(Mutant::CountFromBootstrap);
        let host = self.host_mut(id);
        host.boot += 1;
        host.config.incarnation = Incarnation(host.boot);
        // A founder knows that it was founded; a node that was added later was not.
        host.config.creates_cluster = !host.bootstrap.voters.is_empty() && host.ghost.is_none();
        host.state = host.durable.clone();
        if bootstrap && !host.bootstrap.voters.is_empty() {
            host.state.membership = host.bootstrap.clone();
        }
        let at = host.state.at;
        if at.lsn < host.log.start() {
            let start = host.log.start();
            return self.judge(Err(format!(
                "the log of {id} begins after {start}, its state ends at {}",
                at.lsn
            )));
        }
        let reader = host.log.reader();
        if at.lsn.0 > 0 && !host.log.state().continues(at, &*reader) {
            host.log.restart(at);
        }
        host.handed = at.lsn.0;
        host.sender = Sender::new(scenario::sender());
        let opened = Engine::open(
            host.config.clone(),
            host.log.state(),
            at.lsn,
            &host.state.membership,
            host.log.reader(),
        );
        match opened {
            Ok(engine) => host.engine = Some(engine),
            Err(OpenError::LogLost { .. }) if host.ghost.is_some() => {
                host.gone = true;
                return;
            }
            Err(error) => return self.judge(Err(format!("{id} does not open: {error}"))),
        }
        let state = host.state.clone();
        self.note(|| format!("{id} opens at {}", state.at.lsn));
        let verdict = self.oracle.state(id, &state, "restarted");
        self.judge(verdict);
        if !self.is(Mutant::ForgetArchived) {
            let lsn = self.host(id).archived;
            self.step(id, Event::KeepFrom { lsn });
        }
        for stored in self.host(id).stored.clone() {
            let found = SenderEvent::Found(Box::new(stored.manifest));
            self.sender(id, found);
        }
        if let Some(stored) = self.host(id).stored.last() {
            let manifest = stored.manifest.clone();
            let taken = self.taken(&manifest);
            self.step(id, taken);
        }
        let host = self.host(id);
        if let Some(partial) = &host.partial {
            let offer = Box::new(partial.manifest.clone());
            self.reached.resumed += 1;
            self.step(id, Event::ResumeFetch { offer });
        }
        if self.host(id).state.membership.is_only(NodeId(id)) {
            self.step(id, Event::Campaign);
        }
    }

    /// Ends the process. Some of its unsynced writes may survive.
    pub fn crash(&mut self, id: u64) {
        let host = self.host_mut(id);
        if host.engine.take().is_none() {
            return;
        }
        host.syncing = 0;
        let count = host.writes.len() as u64;
        let installing = u64::from(host.installing.is_some());
        self.reached.crashes += 1;
        self.reached.crashes_installing += installing;
        let kept = self.between(0, count) as usize;
        self.note(|| format!("{id} crashes, {kept} of {count} writes survive"));
        if self.host(id).fetching.is_some() {
            self.reached.crashes_fetching += 1;
        }
        self.crash_fetch(id);
        let host = self.host_mut(id);
        for write in host.writes.drain(..).take(kept).collect::<Vec<_>>() {
            self.write(id, &write);
        }
        let host = self.host_mut(id);
        host.to_apply.clear();
        host.applying = false;
        host.waiters = Waiters::default();
        host.asked.clear();
        host.capture = None;
        host.installing = None;
        host.transfers.clear();
        host.newest_boots.clear();
        self.reads.retain(|_, (asked, _)| *asked != id);
    }

    pub fn tick(&mut self, id: u64) {
        let period = self.host(id).period;
        self.later(period, Happening::Tick { id });
        let host = self.host_mut(id);
        if host.engine.is_none() {
            return;
        }
        host.ticks += 1;
        self.sender(id, SenderEvent::Tick);
        self.receiver_tick(id);
        self.step(id, Event::Tick);
    }

    /// Steps an engine, and begins all actions.
    pub fn step(&mut self, id: u64, event: Event) {
        let mut events = VecDeque::from([event]);
        while let Some(event) = events.pop_front() {
            if self.broken.is_some() || self.host(id).engine.is_none() {
                return;
            }
            self.note(|| format!("{id} <- {event:?}"));
            let host = self.host_mut(id);
            let boot = host.boot;
            let Some(engine) = &mut host.engine else {
                return;
            };
            let before = engine.membership().clone();
            let committed = engine.committed();
            let actions = engine.step(event);
            let now = engine.committed();
            for action in actions {
                self.note(|| format!("{id} -> {action:?}"));
                self.carry_out(id, action, &mut events);
            }
            if now > committed && self.host(id).leads() {
                self.check_commit(id, now, &before);
            }
            self.note_confirmed(id);
            if self.host(id).boot != boot {
                // It has lost its disk. What is left of the events is of the process before.
                return;
            }
        }
    }

    /// Commit is never ahead of what is durable on a majority.
    fn check_commit(&mut self, id: u64, lsn: Lsn, before: &Membership) {
        let host = self.host(id);
        let Some(engine) = &host.engine else {
            return;
        };
        let Some(term) = host.term_at(lsn.0) else {
            return self.judge(Err(format!("{id} commits {lsn}, which it does not have")));
        };
        let has = |node: u64| {
            let host = self.hosts.get(&node);
            host.is_some_and(|h| h.has_durably(lsn.0, term))
        };
        if !is_quorum(before, has) && !is_quorum(engine.membership(), has) {
            let who: Vec<_> = self.hosts.keys().filter(|n| has(**n)).collect();
            self.judge(Err(format!(
                "{id} commits {lsn}, which is durable on {who:?} of {before:?}"
            )));
        }
    }

    fn carry_out(&mut self, id: u64, action: Action, events: &mut VecDeque<Event>) {
        match action {
            Action::Persist(persist) => {
                let first = persist.entries.first().map(|e| e.index - 1);
                let host = self.host(id);
                let before = first.and_then(|lsn| match persist.restart {
                    Some(start) => (start.lsn.0 == lsn).then_some(start.term.0),
                    None => host.term_at(lsn).map(|t| t.0),
                });
                if self.is(Mutant::AcknowledgeBeforeSync) {
                    let number = persist.number;
                    events.push_back(Event::Persisted { number });
                }
                self.host_mut(id)
                    .writes
                    .push_back(Write::Persist(persist, before));
                self.sync(id);
            }
            Action::Compact { floor } => {
                self.check_compaction(id, floor);
                self.check_absences(id, floor);
                self.reached.compactions += 1;
                self.host_mut(id).writes.push_back(Write::Compact(floor));
                self.sync(id);
            }
            Action::Send(envelopes) => {
                for envelope in envelopes {
                    self.send(id, &envelope);
                }
            }
            Action::Apply(entries) => self.handed_out(id, entries),
            Action::ReadLog(read) => {
                let most = if self.host(id).slow_disk { 120 } else { 4 };
                let delay = self.between(1, most);
                let boot = self.host(id).boot;
                self.later(delay, Happening::LogRead { id, boot, read });
            }
            Action::Accepted { ticket, lsn, term } => {
                let (answer, outcome) = oneshot::channel();
                let host = self.host_mut(id);
                host.waiters.wait(Waiter {
                    lsn,
                    term,
                    answer: Answer::Command(answer),
                    observer: None,
                    _guard: None,
                });
                host.asked.insert(ticket.0, Asked { outcome });
            }
            Action::SnapshotHint {
                last_included_index,
            } => {
                if self.host(id).capture.is_some() {
                    self.judge(Err(format!("{id} is asked for a second snapshot at once")));
                }
                if self.host(id).state.at.lsn != last_included_index {
                    self.judge(Err(format!(
                        "{id} is asked for a snapshot of another state"
                    )));
                }
                // Some hosts ignore a hint; the engine repeats it.
                if self.faults_ended || !self.chance(4) {
                    self.begin_capture(id);
                    events.push_back(Event::SnapshotBegun);
                }
            }
            Action::StoreSnapshot {
                last_included_index,
                term,
                peers,
                ..
            } => {
                let taken = self.store_bytes(id, last_included_index, term, &peers);
                events.extend(taken);
            }
            Action::OfferSnapshot {
                to,
                last_included_index,
            } => {
                let stored = self.host(id).stored.iter();
                let mut found = stored
                    .rev()
                    .filter(|s| s.manifest.last_included_index == last_included_index);
                match found.next() {
                    Some(stored) => {
                        let offer = Payload::Offer(Box::new(stored.manifest.clone()));
                        let sealed = self.host(id).identity().seal(to, offer);
                        self.send(id, &sealed);
                    }
                    None => events.push_back(Event::OfferFailed { to }),
                }
            }
            Action::FetchSnapshot { from, offer } => self.begin_fetch(id, from, *offer, events),
            Action::AbandonFetch { .. } => self.abandon_fetch(id),
            Action::InstallSnapshot { offer } => {
                let delay = self.between(1, 40);
                let boot = self.host(id).boot;
                let early = self.is(Mutant::StepBeforeTheFiles);
                let forgets = self.is(Mutant::ForgetBeforeInstalled);
                let host = self.host_mut(id);
                if forgets {
                    host.to_apply.clear();
                }
                let checkpoint = offer.checkpoint;
                if host.installing.replace(offer).is_some() {
                    self.judge(Err(format!("{id} is to install two snapshots at once")));
                }
                if early {
                    events.push_back(Event::SnapshotInstalled { checkpoint });
                    return;
                }
                self.later(delay, Happening::Installed { id, boot });
            }
            Action::ReadReady { ticket, lsn } => {
                let at = self.host(id).state.at.lsn;
                if let Some((_, needed)) = self.reads.remove(&ticket.0) {
                    if at.0 < needed || at < lsn {
                        self.judge(Err(format!(
                            "a read of {id} sees {at}; {needed} was seen before it began"
                        )));
                    }
                    self.reached.reads += 1;
                    self.oracle.visible = self.oracle.visible.max(at.0);
                }
            }
            Action::ReadFailed { ticket, .. } => {
                self.reads.remove(&ticket.0);
            }
            Action::Became { role, term, .. } => {
                if role == Role::Leader {
                    let verdict = self.oracle.leads(id, term.0);
                    self.judge(verdict);
                }
            }
            Action::Rejected { .. } | Action::LogAlarm { .. } => {}
            Action::Halt { what } => self.judge(Err(format!("{id} halts: {what}"))),
        }
    }

    /// The log behind a transfer that was reported to this member stays, within the limit.
    fn check_compaction(&mut self, id: u64, floor: LogFloor) {
        let host = self.host(id);
        let idle = host.config.transfer_idle_ticks;
        if floor.lsn > host.durable.at.lsn {
            let durable = host.durable.at.lsn;
            return self.judge(Err(format!(
                "{id} lets its log go up to {}, and its state is durable up to {durable}",
                floor.lsn
            )));
        }
        // What was archived before does not come back to the log.
        if floor.lsn > host.archived {
            let archived = host.archived;
            return self.judge(Err(format!(
                "{id} lets its log go up to {}, and it is archived up to {archived}",
                floor.lsn
            )));
        }
        for (peer, (progress, at)) in &host.transfers {
            let from = progress.last_included_index;
            let fetches = self.hosts[peer].fetching.as_ref();
            let fetches = fetches.is_some_and(|f| f.checkpoint() == progress.checkpoint);
            let member = host.engine.as_ref().map(|e| e.membership());
            let member = member.is_some_and(|m| m.contains(NodeId(*peer)));
            if !fetches || !member || host.ticks >= at + idle || from >= floor.lsn {
                continue;
            }
            // Approximate: the engine counts bytes by pieces of the log.
            let bytes = from.0 + 1..=host.state.at.lsn.0;
            let bytes: u64 = bytes.map(|lsn| self.oracle.bytes_of(lsn)).sum();
            if bytes + 1000 <= self.scenario.kept_for_peers {
                let upto = floor.lsn;
                let known = host.engine.as_ref().map(|e| e.status().transfers);
                return self.judge(Err(format!(
                    "{id} lets its log go up to {upto} under a transfer to {peer} of what is up to \
                     {from}, with {bytes} bytes above it; it knows of {known:?}"
                )));
            }
            self.reached.held_back += 1;
            return;
        }
    }
}
