//! The rules that must always hold. Each check is called at the first place where it can fail.

use std::collections::{BTreeMap, BTreeSet};

use xxhash_rust::xxh3::xxh3_64;

use super::disk::Log;
use super::state::{State, digest, line_of};
use crate::engine::{Committed, Membership, Persist};
use crate::ids::{Lsn, NodeId};

/// The broken rule, if one is.
pub type Verdict = Result<(), String>;

/// An entry that a host was handed as committed: no host may ever see another one at its LSN.
struct Landed {
    term: u64,
    line: Option<u64>,
    /// Digest of the state after it.
    digest: u64,
    lines: usize,
    /// Approximate bytes in the log.
    bytes: u64,
    membership: Membership,
}

pub struct Oracle {
    leaders: BTreeMap<u64, u64>,
    /// By LSN; 0 is the beginning.
    history: Vec<Landed>,
    /// By LSN and term: the entry, and the term of the one before it.
    entries: BTreeMap<(u64, u64), (u64, u64)>,
    /// Acknowledged proposals, with their LSNs.
    acknowledged: BTreeMap<u64, u64>,
    /// Members that left, and the entry from which on they were none any more.
    left: BTreeMap<NodeId, u64>,
    /// The last entry that changes the membership.
    last_change: u64,
    /// All nodes that ever were members: a number is not used again.
    pub ever: BTreeSet<NodeId>,
    /// Proposals of which it was answered that they never happen.
    superseded: BTreeSet<u64>,
    /// A client has seen the state up to here.
    pub visible: u64,
}

impl Oracle {
    pub fn new(bootstrap: Membership) -> Oracle {
        Oracle {
            leaders: BTreeMap::new(),
            ever: bootstrap.members().collect(),
            left: BTreeMap::new(),
            last_change: 0,
            history: vec![Landed {
                term: 0,
                line: None,
                digest: 0,
                lines: 0,
                bytes: 0,
                membership: bootstrap,
            }],
            entries: BTreeMap::new(),
            acknowledged: BTreeMap::new(),
            superseded: BTreeSet::new(),
            visible: 0,
        }
    }

    /// Last entry known to be committed.
    pub fn last(&self) -> u64 {
        self.history.len() as u64 - 1
    }

    pub fn membership_at(&self, lsn: u64) -> &Membership {
        &self.history[lsn as usize].membership
    }

    /// The last entry that changes the membership.
    pub fn last_change(&self) -> u64 {
        self.last_change
    }

    /// The nodes that had left the group as of that entry.
    pub fn left_until(&self, lsn: u64) -> Vec<u64> {
        let left = self.left.iter().filter(|(_, at)| **at <= lsn);
        left.map(|(node, _)| node.0).collect()
    }

    pub fn bytes_of(&self, lsn: u64) -> u64 {
        self.history.get(lsn as usize).map_or(0, |l| l.bytes)
    }

    pub fn terms(&self) -> u64 {
        self.leaders.len() as u64
    }

    /// Members that were promoted in a later term than that of the change that added them, hence by another
    /// leader.
    pub fn promoted_later(&self) -> u64 {
        let (mut promised, mut later) = (BTreeMap::new(), 0);
        for landed in &self.history {
            for node in &landed.membership.to_promote {
                promised.entry(*node).or_insert(landed.term);
            }
            for node in &landed.membership.voters {
                let since = promised.remove(node);
                later += u64::from(since.is_some_and(|since| since < landed.term));
            }
        }
        later
    }

    pub fn acknowledged(&self) -> u64 {
        self.acknowledged.len() as u64
    }

    /// Election safety: one leader a term.
    pub fn leads(&mut self, id: u64, term: u64) -> Verdict {
        let known = *self.leaders.entry(term).or_insert(id);
        match known == id {
            true => Ok(()),
            false => Err(format!("{known} and {id} both lead in term {term}")),
        }
    }

    /// Log matching: an entry of one LSN and term is the same everywhere, and so is the one before it.
    /// And what is committed, once it is in a log, is not replaced.
    pub fn written(
        &mut self,
        id: u64,
        log: &Log,
        persist: &Persist,
        mut before: Option<u64>,
    ) -> Verdict {
        for entry in &persist.entries {
            let kind = entry.entry_type as u8;
            let hash = xxh3_64(&entry.data) ^ u64::from(kind);
            if let Some(prev) = before {
                let place = (entry.index, entry.term);
                let known = *self.entries.entry(place).or_insert((hash, prev));
                if known != (hash, prev) {
                    return Err(format!("{id} has another entry at {}@{}", place.0, place.1));
                }
            }
            if let Some(landed) = self.history.get(entry.index as usize)
                && landed.term != entry.term
                && log
                    .term_at(Lsn(entry.index))
                    .is_some_and(|t| t.0 == landed.term)
            {
                return Err(format!(
                    "{id} replaces what is committed at {}@{} by an entry of term {}",
                    entry.index, landed.term, entry.term
                ));
            }
            before = Some(entry.term);
        }
        Ok(())
    }

    /// Committed entries never change or vanish, and come in order.
    pub fn handed_out(&mut self, id: u64, entry: &Committed) -> Verdict {
        let lsn = entry.lsn.0;
        let line = entry.command.as_ref().and_then(|c| line_of(c));
        if let Some(line) = line.filter(|line| self.superseded.contains(line)) {
            return Err(format!("{line} is committed at {lsn}, and was superseded"));
        }
        if lsn == self.history.len() as u64 {
            let last = &self.history[self.history.len() - 1];
            let landed = Landed {
                term: entry.term.0,
                line,
                digest: line.map_or(last.digest, |l| digest(last.digest, l)),
                lines: last.lines + usize::from(line.is_some()),
                bytes: entry.command.as_ref().map_or(0, |c| c.len()) as u64 + 32,
                membership: match &entry.membership {
                    Some(membership) => (**membership).clone(),
                    None => last.membership.clone(),
                },
            };
            let stays = |node: &NodeId| landed.membership.contains(*node);
            let leave = last.membership.members().filter(|node| !stays(node));
            self.left.extend(leave.map(|node| (node, lsn)));
            if entry.membership.is_some() {
                self.last_change = lsn;
            }
            self.ever.extend(landed.membership.members());
            self.history.push(landed);
            return Ok(());
        }
        let Some(known) = self.history.get(lsn as usize) else {
            return Err(format!("{id} is handed {lsn}, which nobody has before"));
        };
        if known.term != entry.term.0 || known.line != line {
            return Err(format!("{id} is handed something else at {lsn}"));
        }
        match &entry.membership {
            Some(membership) if **membership != known.membership => Err(format!(
                "{id} thinks that the membership at {lsn} is {membership:?}, and it is {:?}",
                known.membership
            )),
            _ => Ok(()),
        }
    }

    /// The state is the fold of the committed entries, and the membership that of the log.
    pub fn state(&self, id: u64, state: &State, whence: &str) -> Verdict {
        let lsn = state.at.lsn.0;
        let Some(known) = self.history.get(lsn as usize) else {
            return Err(format!(
                "{id} has a state of {lsn}, {whence}; nobody knows of that"
            ));
        };
        if (state.digest, state.lines.len()) != (known.digest, known.lines) {
            return Err(format!(
                "{id} has another state at {lsn} than all others, {whence}: {} commands instead of {}",
                state.lines.len(),
                known.lines
            ));
        }
        if lsn > 0 && state.at.term.0 != known.term {
            return Err(format!("{id} has another term at {lsn}, {whence}"));
        }
        // A node that waits to be added has no membership.
        if lsn > 0 && state.membership != known.membership {
            return Err(format!(
                "{id}, {whence}, thinks that the membership at {lsn} is {:?}, and it is {:?}",
                state.membership, known.membership
            ));
        }
        Ok(())
    }

    /// A proposal was acknowledged.
    pub fn acknowledge(&mut self, ticket: u64, lsn: u64) -> Verdict {
        self.visible = self.visible.max(lsn);
        match self.acknowledged.insert(ticket, lsn) {
            None => Ok(()),
            Some(at) => Err(format!("{ticket} landed at {at} and at {lsn}")),
        }
    }

    /// It was answered that a proposal never happens.
    pub fn superseded(&mut self, ticket: u64) -> Verdict {
        self.superseded.insert(ticket);
        match self.history.iter().any(|it| it.line == Some(ticket)) {
            true => Err(format!("{ticket} is committed, and was superseded")),
            false => Ok(()),
        }
    }

    /// How many proposals were superseded.
    pub fn count_superseded(&self) -> u64 {
        self.superseded.len() as u64
    }

    /// In the end, every acknowledged proposal is in the state once.
    pub fn survived(&self) -> Verdict {
        let mut lines = BTreeMap::new();
        for (lsn, landed) in self.history.iter().enumerate() {
            if let Some(line) = landed.line
                && let Some(other) = lines.insert(line, lsn as u64)
            {
                return Err(format!("{line} landed at {other} and at {lsn}"));
            }
        }
        for (ticket, lsn) in &self.acknowledged {
            if lines.get(ticket) != Some(lsn) {
                return Err(format!(
                    "{ticket} was acknowledged at {lsn} and is not there"
                ));
            }
        }
        Ok(())
    }
}

/// Whether these are a majority of both the old and the new voters.
pub fn is_quorum(membership: &Membership, has: impl Fn(u64) -> bool) -> bool {
    let majority = |voters: &[NodeId]| {
        let count = voters.iter().filter(|v| has(v.0)).count();
        voters.is_empty() || 2 * count > voters.len()
    };
    majority(&membership.voters) && majority(&membership.voters_outgoing)
}
