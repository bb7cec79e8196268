//! Reads of entries that are not in memory any more. The engine asks its host for them and goes on, because a step
//! must not wait for the disk: whoever waits for the engine would wait, too.
//!
//! ```text
//! raft-rs ──entries──▶ storage: not in memory ──▶ Wanted ──▶ Action::ReadLog ──▶ host reads
//!    ▲                                                                              │
//!    └── the entries are at hand ◀── Event::LogRead ◀────────────────────────────────┘
//! ```
//!
//! - Entries for a peer: raft-rs tries again when they are there. It sends what the peer may have under way, and what
//!   is left of a read is dropped with the end of the step, so that nothing of it stays in memory.
//! - Committed entries to apply: handed out when they are there. Until then raft-rs has nothing to hand out.

use raft::eraftpb::Entry;
use raft::{GetEntriesContext, ProgressState, StateRole};

use super::{
    Action, Engine, LogRead, LogReadError, MAX_MESSAGE_BYTES, MAX_READ_FOR_PEERS, RawEntries,
};
use crate::ids::Lsn;

/// Most reads for peers that may be under way. A peer needs one, and one more when its place was corrected meanwhile.
/// Beyond, raft-rs asks again with the next answer to a heartbeat.
const MAX_READS_FOR_PEERS: usize = 16;
/// Most peers, or attempts of one, that wait for one read.
const MAX_WAITING: usize = 16;

/// What the engine wants to have read, or has at hand.
#[derive(Default)]
pub(super) struct LogReads {
    next: u64,
    /// Since the last [`LogReads::take_wanted`].
    wanted: Vec<Wanted>,
    under_way: Vec<(LogRead, Wanted)>,
    /// Read for peers, in this step.
    for_peers: Vec<Entry>,
    /// Committed, until all of it is handed out.
    to_apply: Vec<Entry>,
}

pub(super) struct Wanted {
    low: u64,
    high: u64,
    why: Why,
}

enum Why {
    /// Entries to apply, so many bytes.
    Apply { max_bytes: u64 },
    /// For peers of a leader in this term whose next entry is the first; raft-rs gets them back. A leader does not
    /// replace entries of its log, so what is read is right until the term ends.
    Peers {
        term: u64,
        peers: Vec<GetEntriesContext>,
    },
}

impl LogReads {
    /// Entries from `low` on and before `high`, at least one, if they are at hand.
    pub fn at_hand(&self, low: u64, high: u64, max_bytes: u64) -> Option<Vec<Entry>> {
        [&self.for_peers, &self.to_apply]
            .into_iter()
            .find_map(|read| {
                let skip = low.checked_sub(read.first()?.index)?;
                let rest = read.get(usize::try_from(skip).ok()?..)?;
                let mut bytes = 0;
                let fits = |entry: &&Entry| {
                    let is_first = bytes == 0;
                    bytes += entry_bytes(entry);
                    entry.index < high && (is_first || bytes <= max_bytes)
                };
                let found: Vec<_> = rest.iter().take_while(fits).cloned().collect();
                (!found.is_empty()).then_some(found)
            })
    }

    /// A peer needs these entries.
    pub fn want_for_peer(&mut self, low: u64, high: u64, term: u64, peer: GetEntriesContext) {
        let under_way = self.under_way.iter_mut().map(|(_, wanted)| wanted);
        let mut all = self.wanted.iter_mut().chain(under_way);
        let same = all.find_map(|wanted| match &mut wanted.why {
            Why::Peers { term: of, peers } if (wanted.low, *of) == (low, term) => Some(peers),
            _ => None,
        });
        if let Some(peers) = same {
            if peers.len() < MAX_WAITING {
                peers.push(peer);
            }
            return;
        }
        if self.wanted.len() + self.under_way.len() < MAX_READS_FOR_PEERS {
            let peers = vec![peer];
            let why = Why::Peers { term, peers };
            self.wanted.push(Wanted { low, high, why });
        }
    }

    /// These entries are to be applied next.
    pub fn want_to_apply(&mut self, low: u64, high: u64, max_bytes: u64) {
        if !self.waits_to_apply() {
            let why = Why::Apply { max_bytes };
            self.wanted.push(Wanted { low, high, why });
        }
    }

    /// Whether entries to apply are being read.
    pub fn waits_to_apply(&self) -> bool {
        let under_way = self.under_way.iter().map(|(_, wanted)| wanted);
        let mut all = self.wanted.iter().chain(under_way);
        all.any(|wanted| matches!(wanted.why, Why::Apply { .. }))
    }

    /// What was wanted since the last call, with numbers. Called at the end of a step: what was read for peers in it is
    /// dropped.
    fn take_wanted(&mut self) -> Vec<(u64, Wanted)> {
        self.for_peers = Vec::new();
        let wanted = std::mem::take(&mut self.wanted);
        let numbered = wanted.into_iter().map(|wanted| {
            self.next += 1;
            (self.next, wanted)
        });
        numbered.collect()
    }

    fn take_under_way(&mut self, read: LogRead) -> Option<Wanted> {
        let at = self.under_way.iter().position(|(it, _)| *it == read)?;
        Some(self.under_way.swap_remove(at).1)
    }

    /// The log is empty and begins elsewhere: nothing at hand belongs to it.
    pub fn restart(&mut self) {
        self.for_peers = Vec::new();
        self.to_apply = Vec::new();
    }

    /// Everything up to this entry was handed out.
    pub fn handed_out(&mut self, lsn: u64) {
        if self.to_apply.last().is_some_and(|last| last.index <= lsn) {
            self.to_apply = Vec::new();
        }
    }
}

#[cfg(test)]
impl Engine {
    /// Has the terms of old entries read from the log, as if they could not be looked up when it was opened.
    pub(crate) fn forget_terms(&mut self) {
        self.raw.mut_store().forget_terms();
    }
}

impl Engine {
    /// Asks the host for what was wanted in this step.
    pub(super) fn request_reads(&mut self, actions: &mut Vec<Action>) {
        let wanted = self.raw.store().reads().take_wanted();
        for (number, wanted) in wanted {
            let max_bytes = match &wanted.why {
                Why::Apply { max_bytes } => *max_bytes,
                Why::Peers { .. } => self.max_read_from(wanted.low),
            };
            let read = LogRead {
                number,
                low: Lsn(wanted.low),
                high: Lsn(wanted.high),
                max_bytes,
            };
            actions.push(Action::ReadLog(read));
            self.raw.store().reads().under_way.push((read, wanted));
        }
    }

    /// A peer that is probed gets one message; another one as much as may be under way to it.
    fn max_read_from(&self, low: u64) -> u64 {
        let mut peers = self.raw.raft.prs().iter();
        let replicates =
            peers.any(|(_, it)| it.next_idx == low && it.state == ProgressState::Replicate);
        match replicates {
            true => MAX_READ_FOR_PEERS,
            false => MAX_MESSAGE_BYTES,
        }
    }

    /// The host has read, or failed to.
    pub(super) fn log_read(&mut self, read: LogRead, entries: Result<RawEntries, LogReadError>) {
        let store = self.raw.store();
        let Some(wanted) = store.reads().take_under_way(read) else {
            return;
        };
        let is_gone = wanted.low <= store.start().lsn.0;
        let (low, high) = (read.low, read.high);
        let found = match entries {
            Ok(entries) => Ok(entries.0).and_then(|entries| {
                match entries.first().is_some_and(|first| first.index == low.0) {
                    true => Ok(entries),
                    false => Err((format!("the log has no entry at LSN {low}"), false)),
                }
            }),
            Err(e) => Err((
                format!("reading log entries {low}..{high}: {e}"),
                e.is_unreadable(),
            )),
        };
        match (wanted.why, found) {
            // A snapshot covers them, and has replaced the log or let it be compacted.
            (Why::Apply { .. }, _) if is_gone => {}
            (Why::Apply { .. }, Ok(entries)) => store.reads().to_apply = entries,
            (Why::Apply { .. }, Err((what, may_pass))) => store.fail_for(what, may_pass),
            (Why::Peers { term, peers }, found) => {
                let raft = &self.raw.raft;
                let is_current = !is_gone && raft.state == StateRole::Leader && raft.term == term;
                match found {
                    Ok(entries) if is_current => store.reads().for_peers = entries,
                    Err((what, may_pass)) if is_current => return store.fail_for(what, may_pass),
                    // Those that still need entries ask again.
                    _ => {}
                }
                for peer in peers {
                    self.raw.on_entries_fetched(peer);
                }
            }
        }
    }
}

/// Bytes that an entry takes in memory, roughly.
pub(super) fn entry_bytes(entry: &Entry) -> u64 {
    entry.data.len() as u64 + entry.context.len() as u64 + 24
}
