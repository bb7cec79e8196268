//! How hosts apply what their engines hand out, and acknowledge proposals.

use super::mutants::Mutant;
use super::world::{Happening, World};
use crate::engine::{Committed, Event};
use crate::ids::GroupId;
use crate::runtime::ProposeError;

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

    /// Judges the answers to proposals of a host.
    pub fn look_at_answers(&mut self, id: u64) {
        for (ticket, outcome) in self.host_mut(id).take_answered() {
            let verdict = match outcome {
                Ok((line, _)) if line != ticket => Err(format!("{ticket} landed as {line}")),
                Ok((_, lsn)) => self.oracle.acknowledge(ticket, lsn),
                Err(ProposeError::Superseded) => self.oracle.superseded(ticket),
                Err(_) => Ok(()),
            };
            self.judge(verdict);
        }
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
        let host = self.host_mut(id);
        let (next, first) = (host.state.at.lsn.next(), host.to_apply[0].lsn);
        if first != next {
            // Entries are handed out without gaps.
            return self.judge(Err(format!("{id} is to apply {next}, and has {first}")));
        }
        let (mut entries, mut outputs) = (Vec::new(), Vec::new());
        for mut entry in host.to_apply.drain(..some as usize) {
            if copies {
                entry.membership = None;
            }
            host.state.apply(&entry);
            if let Some(command) = &entry.command {
                outputs.push((super::state::line_of(command).unwrap_or(0), entry.lsn.0));
            }
            entries.push(entry);
        }
        host.waiters.answer(GroupId(1), &entries, &mut outputs);
        let lsn = host.state.at.lsn;
        self.look_at_answers(id);
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
