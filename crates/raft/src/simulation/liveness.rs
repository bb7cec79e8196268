//! The phase without faults: within a bounded time a leader is elected, every member has everything,
//! transfers end, reads are answered.

use super::oracle::Verdict;
use super::world::World;
use crate::engine::Event;
use crate::ids::{Lsn, NodeId};

/// Time between two checks: some two ticks.
const CHECK_INTERVAL: u64 = 20;
/// Most checks until there must be progress. The longest waits add up: a delayed offer, a chunk that was
/// requested repeatedly, a hint that backs off, an election or two.
const MAX_CHECKS: u64 = 500;

impl World {
    /// Ends all faults and starts every host that can be started.
    pub fn settle(&mut self) {
        self.faults_ended = true;
        self.cut.clear();
        let all: Vec<_> = self.hosts.keys().copied().collect();
        for id in all {
            let host = self.host_mut(id);
            host.full = false;
            host.slow_disk = false;
            host.slow_apply = false;
            if host.engine.is_none() && !host.gone {
                self.open(id);
            }
            self.archived(id, Lsn(u64::MAX));
        }
        let before = self.oracle.acknowledged();
        for check in 1..=MAX_CHECKS {
            self.run_until(self.now + CHECK_INTERVAL);
            if self.broken.is_some() {
                return;
            }
            if let Some(lost) = self.lost
                && let Some(change) = self.remove_lost(lost)
                && let Some(leader) = self.leader()
            {
                let ticket = self.ticket();
                self.step(leader, Event::ChangeMembership { ticket, change });
            }
            let landed = self.oracle.acknowledged() - before;
            if landed < 3 {
                self.propose();
            } else if self.everybody_has_everything().is_ok() {
                self.reached.slowest_recovery = check;
                let verdict = self.oracle.survived();
                return self.judge(verdict);
            }
        }
        let landed = self.oracle.acknowledged() - before;
        let why = match landed {
            0..3 => Err(format!("only {landed} proposals landed")),
            _ => self.everybody_has_everything(),
        };
        let status = self.hosts.values().map(|h| match &h.engine {
            Some(engine) => format!("{:?}", engine.status()),
            None => format!("{} is down", h.config.id),
        });
        let status: Vec<_> = status.collect();
        self.judge(why.map_err(|why| {
            let passed = MAX_CHECKS * CHECK_INTERVAL;
            format!(
                "no progress in {passed} without faults: {why}\n{}",
                status.join("\n")
            )
        }));
    }

    fn everybody_has_everything(&self) -> Verdict {
        let Some(leader) = self.leader() else {
            return Err("nobody leads".to_owned());
        };
        let Some(engine) = &self.host(leader).engine else {
            return Err("the leader is down".to_owned());
        };
        let (membership, last) = (engine.membership(), engine.last());
        if membership.is_joint() || self.lost.is_some() {
            return Err("a change of the membership is under way".to_owned());
        }
        if let Some(waits) = membership.to_promote.first() {
            return Err(format!("{waits} waits for its vote"));
        }
        if let Some((ticket, (id, _))) = self.reads.first_key_value() {
            return Err(format!("{id} does not answer the read {ticket}"));
        }
        for NodeId(id) in membership.members() {
            let host = self.host(id);
            let Some(engine) = &host.engine else {
                return Err(format!("{id} is down"));
            };
            if engine.applied() != last || host.state.at.lsn != last {
                return Err(format!("{id} has {}, not {last}", host.state.at.lsn));
            }
            if engine.membership() != membership || engine.leader() != Some(NodeId(leader)) {
                return Err(format!("{id} does not know who belongs to the group"));
            }
            if host.fetching.is_some() || host.installing.is_some() || !host.writes.is_empty() {
                return Err(format!("{id} is busy"));
            }
        }
        Ok(())
    }
}
