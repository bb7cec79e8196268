//! Actions drawn at random: proposals and reads, snapshots, crashes, cuts, full disks, lost logs, changes
//! of the membership.

use super::mutants::Mutant;
use super::scenario::KEPT_BYTES;
use super::state::State;
use super::world::{Happening, World};
use crate::engine::{Event, Membership, MembershipChange, VoterChange};
use crate::ids::{Lsn, NodeId};

/// Most hosts in a run.
const MAX_HOSTS: u64 = 9;
/// Most members at once.
const MAX_MEMBERS: usize = 6;

impl World {
    pub fn act(&mut self) {
        if self.faults_ended {
            return;
        }
        let pause = self.between(1, self.scenario.pause);
        self.later(pause, Happening::Act);
        self.revive();
        let id = self.somebody();
        let (crashes, cuts) = (self.scenario.crashes, self.scenario.cuts);
        let changes = self.scenario.changes;
        if self.chance(crashes) {
            let victim = self.busy_one().unwrap_or(id);
            return self.crash(victim);
        }
        let installs = self.hosts.iter().find(|(_, h)| h.installing.is_some());
        if let Some(installs) = installs.map(|(id, _)| *id)
            && self.chance(20)
        {
            return self.crash(installs);
        }
        if self.chance(cuts) {
            return self.cut_off(id);
        }
        if self.chance(changes) {
            return self.change();
        }
        match self.between(0, 999) {
            0..500 => self.propose(),
            500..600 => self.begin_read(id),
            600..630 => self.begin_by_itself(id),
            630..645 => self.transfer_leadership(),
            645..650 => self.step(id, Event::Campaign),
            650..700 => self.heal(),
            700..710 => self.full_disk(id),
            710..730 => self.host_mut(id).slow_apply ^= true,
            730..750 => self.host_mut(id).slow_disk ^= true,
            750..755 => self.vanish(id),
            755..758 => self.rot(id),
            758..763 => self.lose_log(id),
            763..773 => self.keep_from(id),
            773..780 => {
                let to = self.somebody();
                self.step(id, Event::Unreachable(NodeId(to)));
            }
            780..784 if self.gives_up_absent() => self.step(id, Event::GiveUpAbsent),
            _ => {}
        }
    }

    /// Whether logs become too long in this run. Where the rule about absences is checked, they do not.
    fn gives_up_absent(&self) -> bool {
        let kept = self.scenario.kept_for_absent(self.mutant);
        kept.entries > 0 && kept.bytes < KEPT_BYTES
    }

    fn somebody(&mut self) -> u64 {
        let count = self.hosts.len() as u64;
        self.between(1, count)
    }

    pub fn leader(&self) -> Option<u64> {
        let leaders = self.hosts.iter().filter(|(_, h)| h.leads());
        let term = |h: &super::host::Host| h.engine.as_ref().map(|e| e.term());
        leaders.max_by_key(|(_, h)| term(h)).map(|(id, _)| *id)
    }

    /// A host that installs or fetches, in two of three cases.
    fn busy_one(&mut self) -> Option<u64> {
        let installs = self.hosts.iter().filter(|(_, h)| h.installing.is_some());
        let fetches = self.hosts.iter().filter(|(_, h)| h.fetching.is_some());
        let busy = installs.chain(fetches).map(|(id, _)| *id).next();
        busy.filter(|_| !self.chance(3))
    }

    /// Restarts ended processes, after some time.
    fn revive(&mut self) {
        let down = |(_, h): &(&u64, &super::host::Host)| h.engine.is_none() && !h.gone;
        let down: Vec<_> = self.hosts.iter().filter(down).map(|(id, _)| *id).collect();
        for id in down {
            if self.chance(12) {
                self.open(id);
            }
        }
    }

    pub fn propose(&mut self) {
        let id = match self.leader() {
            Some(leader) if !self.chance(6) => leader,
            _ => self.somebody(),
        };
        let count = if self.chance(8) {
            self.between(2, 12)
        } else {
            1
        };
        let mut batch = Vec::new();
        for _ in 0..count {
            let ticket = self.ticket();
            let padding = self.between(0, self.scenario.padding as u64) as usize;
            let mut command = ticket.0.to_le_bytes().to_vec();
            command.resize(8 + padding, 7);
            batch.push((ticket, command));
        }
        self.step(id, Event::ProposeBatch(batch));
    }

    fn begin_read(&mut self, id: u64) {
        if self.host(id).engine.is_none() {
            return;
        }
        if self.is(Mutant::ReadAtOnce) {
            let (at, needed) = (self.host(id).state.at.lsn.0, self.oracle.visible);
            if at < needed {
                self.judge(Err(format!("a read of {id} sees {at}, and not {needed}")));
            }
            return;
        }
        let ticket = self.ticket();
        self.reads.insert(ticket.0, (id, self.oracle.visible));
        self.step(id, Event::ReadIndex { ticket });
    }

    fn transfer_leadership(&mut self) {
        let to = NodeId(self.somebody());
        let ticket = self.ticket();
        if let Some(leader) = self.leader() {
            self.step(leader, Event::TransferLeadership { ticket, to });
        }
    }

    fn cut_off(&mut self, id: u64) {
        // From all nodes or one; in both directions, or only one.
        let other = match self.chance(2) {
            true => None,
            false => Some(self.somebody()),
        };
        let way = self.between(0, 2);
        let others: Vec<_> = match other {
            Some(other) => vec![other],
            None => self.hosts.keys().copied().collect(),
        };
        for other in others {
            if way != 1 {
                self.cut.insert((id, other));
            }
            if way != 2 {
                self.cut.insert((other, id));
            }
        }
    }

    fn heal(&mut self) {
        self.cut.clear();
        let all: Vec<_> = self.hosts.keys().copied().collect();
        for id in all {
            self.host_mut(id).full = false;
        }
    }

    fn full_disk(&mut self, id: u64) {
        let host = self.host_mut(id);
        host.full ^= true;
        self.reached.full_disks += 1;
    }

    /// Removes the files of its snapshots.
    fn vanish(&mut self, id: u64) {
        self.host_mut(id).stored.clear();
    }

    /// Changes a byte of its newest snapshot.
    fn rot(&mut self, id: u64) {
        if let Some(stored) = self.host_mut(id).stored.last_mut()
            && let Some(byte) = stored.files.iter_mut().find_map(|f| f.first_mut())
        {
            *byte ^= 0x80;
        }
    }

    fn keep_from(&mut self, id: u64) {
        let applied = self.host(id).state.at.lsn.0;
        let lsn = match self.chance(2) {
            true => Lsn(u64::MAX),
            false => Lsn(self.between(0, applied)),
        };
        self.archived(id, lsn);
    }

    /// The log of a host is archived up to there.
    pub fn archived(&mut self, id: u64, lsn: Lsn) {
        self.host_mut(id).archived = lsn;
        self.step(id, Event::KeepFrom { lsn });
    }

    /// A voter loses its disk; never so many voters that a majority would be lost.
    pub fn lose_log(&mut self, id: u64) {
        let known = self.oracle.membership_at(self.oracle.last());
        let last = Lsn(self.oracle.last());
        // Until it is confirmed, those who voted before are needed as well.
        let is_confirmed = self.oracle.last_change() <= self.confirmed;
        let settled = known.voters.len() >= 3 && !known.is_joint() && is_confirmed;
        let unsettled = |h: &super::host::Host| h.may_change(last);
        let voter = known.voters.contains(&NodeId(id));
        let host = self.host(id);
        if self.lost.is_some()
            || !settled
            || !voter
            || host.log.state().is_blank()
            || self.hosts.values().any(unsettled)
        {
            return;
        }
        self.note(|| format!("{id} loses its disk"));
        self.crash(id);
        self.lost = Some(id);
        self.reached.lost_logs += 1;
        let founded = self.host(id).bootstrap.clone();
        let membership = match founded.voters.is_empty() {
            true => self.host(id).durable.membership.clone(),
            false => founded,
        };
        let is_founded_again = self.is(Mutant::RejoinUnderOldNumber);
        let host = self.host_mut(id);
        host.archived = Lsn(u64::MAX);
        if is_founded_again {
            host.log = super::disk::Log::default();
            host.stored.clear();
            host.partial = None;
            host.bootstrap = membership.clone();
            host.durable = State {
                membership,
                ..State::default()
            };
            return self.open(id);
        }
        host.ghost = Some(std::mem::take(&mut host.log));
        host.stored.clear();
        host.partial = None;
        host.bootstrap = Membership::default();
        // By its configuration it is still a voter, and it must not vote.
        host.durable = State {
            membership: membership.clone(),
            ..State::default()
        };
        if membership.voters.contains(&NodeId(id)) && membership.voters.len() > 1 {
            self.open(id);
            if self.host(id).engine.is_some() {
                self.judge(Err(format!("{id} has lost its log, and votes again")));
            }
        }
        self.host_mut(id).durable = State::default();
        // Some operators then start it as a node that waits to be added.
        self.host_mut(id).gone = self.chance(2);
    }

    fn change(&mut self) {
        let Some(leader) = self.leader() else {
            return;
        };
        let change = match self.lost {
            Some(lost) => self.remove_lost(lost),
            None => self.draw_change(leader),
        };
        if let Some(change) = change {
            let ticket = self.ticket();
            self.step(leader, Event::ChangeMembership { ticket, change });
        }
    }

    /// Removes the member that has lost its log; its host may return under another number.
    pub fn remove_lost(&mut self, lost: u64) -> Option<MembershipChange> {
        let known = self.oracle.membership_at(self.oracle.last());
        if known.contains(NodeId(lost)) {
            return Some(MembershipChange::RemovePeer(NodeId(lost)));
        }
        self.lost = None;
        None
    }

    fn draw_change(&mut self, leader: u64) -> Option<MembershipChange> {
        let engine = self.host(leader).engine.as_ref()?;
        let known = engine.membership().clone();
        let outside: Vec<_> = (1..=self.hosts.len() as u64)
            .filter(|id| !self.oracle.ever.contains(&NodeId(*id)))
            .collect();
        match self.between(0, 9) {
            0..=3 if known.members().count() < MAX_MEMBERS => {
                let next = self.hosts.len() as u64 + 1;
                let id = match outside.first() {
                    Some(id) => *id,
                    None if next <= MAX_HOSTS => {
                        self.add_host(next, Membership::default());
                        next
                    }
                    None => return None,
                };
                Some(match self.chance(2) {
                    true => MembershipChange::AddPeer(NodeId(id)),
                    false => MembershipChange::AddLearner(NodeId(id)),
                })
            }
            4..=6 => {
                let at = self.between(0, 5) as usize;
                known
                    .learners
                    .get(at)
                    .map(|l| MembershipChange::Promote(*l))
            }
            7 => {
                // All learners get votes, and one voter may go or become a learner: whoever cannot is a reason to
                // refuse it.
                let at = self.between(0, 5) as usize;
                let chosen = known.voters.get(at).copied().into_iter().collect();
                let (demote, remove) = match at % 2 {
                    0 => (Vec::new(), chosen),
                    _ => (chosen, Vec::new()),
                };
                Some(MembershipChange::ChangeVoters(VoterChange {
                    promote: known.learners,
                    demote,
                    remove,
                }))
            }
            8 => {
                let all: Vec<_> = known.members().collect();
                let at = self.between(0, all.len() as u64 - 1) as usize;
                Some(MembershipChange::RemovePeer(all[at]))
            }
            // Invalid: a node that does not exist, or number 0.
            _ => Some(MembershipChange::Promote(NodeId(self.between(0, 12)))),
        }
    }
}

impl super::host::Host {
    /// Whether its log has a change of the membership that is not known to be committed.
    fn may_change(&self, committed: Lsn) -> bool {
        let pending = |write: &super::disk::Write| match write {
            super::disk::Write::Persist(p, _) => p.last_change().is_some_and(|l| l > committed),
            super::disk::Write::Compact(_) => false,
        };
        self.log.changes_above(committed) || self.writes.iter().any(pending)
    }
}
