//! How hosts make writes of the log durable.

use super::disk::Write;
use super::mutants::Mutant;
use super::world::{Happening, World};
use crate::engine::{Event, LogRead, LogReader as _};

impl World {
    /// The log writer begins a sync, if none is under way.
    pub fn sync(&mut self, id: u64) {
        let host = self.host_mut(id);
        if host.syncing > 0 || host.writes.is_empty() {
            return;
        }
        host.syncing = host.writes.len();
        let boot = host.boot;
        let most = if host.slow_disk { 60 } else { 4 };
        let delay = self.between(1, most);
        self.later(delay, Happening::Synced { id, boot });
    }

    /// Makes a write durable.
    pub fn write(&mut self, id: u64, write: &Write) {
        if let Write::Persist(persist, before) = write {
            let log = self.host(id).log.clone();
            let verdict = self.oracle.written(id, &log, persist, *before);
            self.judge(verdict);
        }
        self.host(id).log.write(write);
    }

    /// The host has read old entries, as its log has them now.
    pub fn log_read(&mut self, id: u64, read: LogRead) {
        let log = &self.host(id).log;
        let entries = log.entries(read.low, read.high, read.max_bytes);
        self.reached.log_reads += 1;
        self.step(id, Event::LogRead { read, entries });
    }

    pub fn synced(&mut self, id: u64) {
        let host = self.host_mut(id);
        let boot = host.boot;
        if host.full {
            // The same writes are repeated, and none is skipped.
            return self.later(10, Happening::Synced { id, boot });
        }
        if !self.faults_ended && self.chance(3000) {
            // After a failed sync the process ends.
            return self.crash(id);
        }
        let host = self.host_mut(id);
        let count = std::mem::take(&mut host.syncing);
        let mut number = None;
        for write in host.writes.drain(..count).collect::<Vec<_>>() {
            self.write(id, &write);
            if let Write::Persist(persist, _) = &write {
                number = Some(persist.number);
            }
        }
        let host = self.host_mut(id);
        // Entries removed from the log are in the durable state.
        let (start, durable) = (host.log.start(), host.durable.at.lsn);
        if start > durable {
            return self.judge(Err(format!(
                "the log of {id} begins after {start}, its state is durable up to {durable}"
            )));
        }
        if let Some(number) = number
            && !self.is(Mutant::AcknowledgeBeforeSync)
        {
            self.step(id, Event::Persisted { number });
        }
        if self.broken.is_none() {
            self.sync(id);
        }
    }
}
