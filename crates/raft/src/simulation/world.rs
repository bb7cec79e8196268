//! The world: time, the queue of events, and the first rule that was broken.

use std::collections::{BTreeMap, BTreeSet};

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use xxhash_rust::xxh3::Xxh3Default;

use super::host::{Host, Source};
use super::mutants::Mutant;
use super::oracle::{Oracle, Verdict};
use super::scenario::Scenario;
use crate::engine::{LogRead, Membership, Ticket};
use crate::ids::NodeId;
use crate::message::Envelope;
use crate::transfer::{ReadId, SenderEvent};

/// A future event. Events of a process have the number of its start, and are dropped if the process has
/// ended meanwhile.
pub enum Happening {
    Tick {
        id: u64,
    },
    Arrives {
        to: u64,
        bytes: Vec<u8>,
    },
    Synced {
        id: u64,
        boot: u64,
    },
    Applies {
        id: u64,
        boot: u64,
    },
    LogRead {
        id: u64,
        boot: u64,
        read: LogRead,
    },
    Captured {
        id: u64,
        boot: u64,
    },
    Installed {
        id: u64,
        boot: u64,
    },
    Wrote {
        id: u64,
        boot: u64,
        fetch: u64,
    },
    Verified {
        id: u64,
        boot: u64,
        fetch: u64,
        file: u32,
    },
    Read {
        id: u64,
        boot: u64,
        read: ReadId,
        source: Source,
    },
    Sent {
        id: u64,
        boot: u64,
        read: ReadId,
    },
    Act,
}

/// All events and actions, as one hash; optionally printed as text.
pub struct Trace {
    hash: Xxh3Default,
    print: bool,
}

/// Counters of what happened in a run, so that a test can check that its seeds cover enough.
#[derive(Clone, Debug, Default)]
pub struct Reached {
    pub schedules: u64,
    pub steps: u64,
    pub terms: u64,
    pub acknowledged: u64,
    pub superseded: u64,
    pub crashes: u64,
    pub crashes_installing: u64,
    pub crashes_fetching: u64,
    pub lost_logs: u64,
    /// Nodes that were stopped for good after they were removed.
    pub retired: u64,
    pub snapshots: u64,
    pub failed_snapshots: u64,
    pub installs: u64,
    pub resumed: u64,
    pub joint: u64,
    pub promoted_later: u64,
    pub reads: u64,
    pub refused: u64,
    pub corrupted: u64,
    pub full_disks: u64,
    pub bytes_fetched: u64,
    pub bytes_held: u64,
    pub fetched_again: u64,
    pub compactions: u64,
    pub held_back: u64,
    pub log_reads: u64,
    pub slowest_recovery: u64,
}

impl std::ops::AddAssign<&Reached> for Reached {
    fn add_assign(&mut self, o: &Reached) {
        self.schedules += o.schedules;
        self.steps += o.steps;
        self.terms += o.terms;
        self.acknowledged += o.acknowledged;
        self.superseded += o.superseded;
        self.crashes += o.crashes;
        self.crashes_installing += o.crashes_installing;
        self.crashes_fetching += o.crashes_fetching;
        self.lost_logs += o.lost_logs;
        self.retired += o.retired;
        self.snapshots += o.snapshots;
        self.failed_snapshots += o.failed_snapshots;
        self.installs += o.installs;
        self.resumed += o.resumed;
        self.joint += o.joint;
        self.promoted_later += o.promoted_later;
        self.reads += o.reads;
        self.refused += o.refused;
        self.corrupted += o.corrupted;
        self.full_disks += o.full_disks;
        self.bytes_fetched += o.bytes_fetched;
        self.bytes_held += o.bytes_held;
        self.fetched_again += o.fetched_again;
        self.compactions += o.compactions;
        self.held_back += o.held_back;
        self.log_reads += o.log_reads;
        self.slowest_recovery = self.slowest_recovery.max(o.slowest_recovery);
    }
}

pub struct World {
    pub rng: StdRng,
    pub scenario: Scenario,
    pub mutant: Option<Mutant>,
    pub now: u64,
    queue: BTreeMap<(u64, u64), Happening>,
    next: u64,
    pub hosts: BTreeMap<u64, Host>,
    /// Messages from the first to the second node are dropped.
    pub cut: BTreeSet<(u64, u64)>,
    /// No more faults.
    pub faults_ended: bool,
    pub oracle: Oracle,
    pub broken: Option<String>,
    pub next_ticket: u64,
    /// Unanswered reads by ticket: the host, and the LSN that the read must see.
    pub reads: BTreeMap<u64, (u64, u64)>,
    /// A voter that has lost its log and is not removed yet.
    pub lost: Option<u64>,
    /// Changes of the membership up to this LSN hold without those who voted before, as a leader has reported.
    pub confirmed: u64,
    pub reached: Reached,
    pub trace: Option<Trace>,
}

impl World {
    pub fn new(seed: u64, mutant: Option<Mutant>) -> World {
        let mut rng = StdRng::seed_from_u64(seed);
        let scenario = Scenario::draw(&mut rng);
        let voters: Vec<_> = (1..=scenario.voters).map(NodeId).collect();
        let bootstrap = Membership {
            voters,
            ..Membership::default()
        };
        let mut world = World {
            rng,
            mutant,
            now: 0,
            queue: BTreeMap::new(),
            next: 0,
            hosts: BTreeMap::new(),
            cut: BTreeSet::new(),
            faults_ended: false,
            oracle: Oracle::new(bootstrap.clone()),
            broken: None,
            next_ticket: 1,
            reads: BTreeMap::new(),
            lost: None,
            confirmed: 0,
            reached: Reached {
                schedules: 1,
                ..Reached::default()
            },
            trace: None,
            scenario,
        };
        for id in 1..=world.scenario.voters {
            world.add_host(id, bootstrap.clone());
        }
        world.later(1, Happening::Act);
        world
    }

    /// Adds a host and starts its process. Without a membership it waits to be added.
    pub fn add_host(&mut self, id: u64, membership: Membership) {
        let config = self.scenario.config(id, self.mutant);
        let period = self.scenario.period(&mut self.rng);
        let host = Host::new(config, membership, period);
        self.hosts.insert(id, host);
        self.open(id);
        let first = self.rng.random_range(1..=period);
        self.later(first, Happening::Tick { id });
    }

    pub fn later(&mut self, delay: u64, what: Happening) {
        self.queue.insert((self.now + delay, self.next), what);
        self.next += 1;
    }

    /// What a node has sent and has not arrived is lost.
    pub fn lose_messages_of(&mut self, from: u64) {
        self.queue.retain(|_, what| match what {
            Happening::Arrives { bytes, .. } => {
                let sent = Envelope::decode(bytes.clone());
                sent.is_ok_and(|envelope| envelope.sender.node.0 != from)
            }
            _ => true,
        });
    }

    pub fn between(&mut self, least: u64, most: u64) -> u64 {
        self.rng.random_range(least..=most)
    }

    pub fn chance(&mut self, one_in: u32) -> bool {
        self.rng.random_ratio(1, one_in)
    }

    pub fn host(&self, id: u64) -> &Host {
        &self.hosts[&id]
    }

    pub fn host_mut(&mut self, id: u64) -> &mut Host {
        self.hosts.get_mut(&id).expect("a host of that number")
    }

    pub fn is(&self, mutant: Mutant) -> bool {
        self.mutant == Some(mutant)
    }

    pub fn ticket(&mut self) -> Ticket {
        self.next_ticket += 1;
        Ticket(self.next_ticket)
    }

    /// Keeps the first broken rule.
    pub fn judge(&mut self, verdict: Verdict) {
        if let Err(what) = verdict
            && self.broken.is_none()
        {
            self.broken = Some(what);
        }
    }

    pub fn note(&mut self, what: impl FnOnce() -> String) {
        if let Some(trace) = &mut self.trace {
            let what = format!("{:6} {}", self.now, what());
            trace.hash.update(what.as_bytes());
            if trace.print {
                eprintln!("{what}");
            }
        }
    }

    pub fn traced(mut self, print: bool) -> World {
        let hash = Xxh3Default::new();
        self.trace = Some(Trace { hash, print });
        self
    }

    /// A hash of all events and actions.
    pub fn trace_hash(&self) -> u128 {
        self.trace.as_ref().map_or(0, |t| t.hash.digest128())
    }

    /// Runs until that time, or until a rule is broken.
    pub fn run_until(&mut self, end: u64) {
        while self.broken.is_none()
            && let Some(entry) = self.queue.first_entry()
        {
            let (at, _) = *entry.key();
            if at > end {
                break;
            }
            let happening = entry.remove();
            self.now = at;
            self.reached.steps += 1;
            self.happen(happening);
        }
        self.now = end;
    }

    fn lives(&self, id: u64, boot: u64) -> bool {
        let host = self.hosts.get(&id);
        host.is_some_and(|h| h.engine.is_some() && h.boot == boot)
    }

    fn happen(&mut self, happening: Happening) {
        match happening {
            Happening::Tick { id } => self.tick(id),
            Happening::Arrives { to, bytes } => self.arrives(to, bytes),
            Happening::Act => self.act(),
            Happening::Synced { id, boot } if self.lives(id, boot) => self.synced(id),
            Happening::Applies { id, boot } if self.lives(id, boot) => self.applies(id),
            Happening::LogRead { id, boot, read } if self.lives(id, boot) => {
                self.log_read(id, read);
            }
            Happening::Captured { id, boot } if self.lives(id, boot) => self.captured(id),
            Happening::Installed { id, boot } if self.lives(id, boot) => self.installed(id),
            Happening::Wrote { id, boot, fetch } if self.lives(id, boot) => self.wrote(id, fetch),
            Happening::Verified {
                id,
                boot,
                fetch,
                file,
            } if self.lives(id, boot) => self.verified(id, fetch, file),
            Happening::Read {
                id,
                boot,
                read,
                source,
            } if self.lives(id, boot) => self.read(id, read, source),
            Happening::Sent { id, boot, read } if self.lives(id, boot) => {
                self.sender(id, SenderEvent::Sent { id: read });
            }
            _ => {}
        }
    }
}
