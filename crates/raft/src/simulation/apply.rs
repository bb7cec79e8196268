//! How hosts apply what their engines hand out, and acknowledge proposals.

use super::mutants::Mutant;
use super::world::{Happening, World};
use crate::engine::{Committed, Event};

impl World {
    pub fn handed_out(&mut self, id: u64, entries: Vec<Committed>) {
        if self.host(id).installing.is_some() && !self.is(Mutant::StepBeforeTheFiles) {
            self.judge(Err(format!("{id} is handed entries while it installs")));
        }
        for entry in entries {
            let host = self.host_mut(id);
            if entry.lsn.0 != host.handed + 1 {
                let handed = host.handed;
                return self.judge(Err(format!("{id} is handed {} after {handed}", entry.lsn)));
            }
            host.handed = entry.lsn.0;
            if let Some(membership) = &entry.membership {
                self.reached.joint += u64::from(membership.is_joint());
            }
            let verdict = self.oracle.handed_out(id, &entry);
            self.judge(verdict);
            self.host_mut(id).to_apply.push_back(entry);
        }
        self.apply_later(id);
    }

    pub fn apply_later(&mut self, id: u64) {
        let host = self.host(id);
        let waits = host.installing.is_some() && self.is(Mutant::StepBeforeTheFiles);
        if host.applying || host.to_apply.is_empty() || waits {
            return;
        }
        let boot = host.boot;
        let most = if host.slow_apply { 120 } else { 4 };
        let delay = self.between(1, most);
        self.host_mut(id).applying = true;
        self.later(delay, Happening::Applies { id, boot });
    }

    /// Some of what it was handed is applied.
    pub fn applies(&mut self, id: u64) {
        let count = self.host(id).to_apply.len() as u64;
        self.host_mut(id).applying = false;
        if count == 0 {
            return;
        }
        let some = self.between(1, count.min(16));
        let copies = self.is(Mutant::CopyMembership);
        let mut landed = Vec::new();
        let host = self.host_mut(id);
        let (next, first) = (host.state.at.lsn.next(), host.to_apply[0].lsn);
        if first != next {
            // Entries are handed out without gaps.
            return self.judge(Err(format!("{id} is to apply {next}, and has {first}")));
        }
        for mut entry in host.to_apply.drain(..some as usize) {
            if copies {
                entry.membership = None;
            }
            host.state.apply(&entry);
            if let Some((ticket, term)) = host.proposed.remove(&entry.lsn.0)
                && term == entry.term.0
            {
                landed.push((ticket, entry));
            }
        }
        let lsn = host.state.at.lsn;
        for (ticket, entry) in landed {
            let line = entry
                .command
                .as_ref()
                .and_then(|c| super::state::line_of(c));
            if line.is_some_and(|line| line != ticket) {
                self.judge(Err(format!("{ticket} landed as {line:?}")));
            } else if line.is_some() {
                let verdict = self.oracle.acknowledge(ticket, entry.lsn.0);
                self.judge(verdict);
            }
        }
        let state = std::mem::take(&mut self.host_mut(id).state);
        let verdict = self.oracle.state(id, &state, "applied");
        self.host_mut(id).state = state;
        self.judge(verdict);
        self.step(id, Event::Applied { lsn });
        if self.broken.is_none() {
            self.apply_later(id);
        }
    }
}
