//! The log that a leader keeps for members that are away: one that restarts goes on with entries, although a
//! snapshot covers them by now.
//!
//! A member is *away* if nothing was heard of it for two election timeouts, or if this leader does not know yet what
//! its log has. The rest of the followers is in [`Engine::kept_for_peers`].
//!
//! Nobody waits for a member that does not come back: what is kept for it is bounded in bytes and entries
//! ([`KeptForAbsent`]), which count from where the log would be compacted otherwise. A member whose next entry is
//! further back holds nothing. If a member has not reported to this leader, its position is not known; then as much
//! is kept as the bound allows, as long as the entries that were there when this leader was elected are among
//! that. Entries whose bytes are not known, because they were applied before this member was opened, are not kept for
//! such a member: it may never come back, and each leader would keep them again, whatever their size. When the log
//! becomes too long all the same, the host has them given up ([`Event::GiveUpAbsent`]). The log of a follower may be
//! too long and the leader's not, because their bounds differ, or what they hold of other groups. The follower's log
//! goes up to where the leader's host lets it, so it tells the leader, in its messages, and the leader gives them up.
//!
//! A host whose other members are to keep as much lets all go up to what this leader answers for the archived position.
//! The log of this leader then ends there otherwise, so it may keep the bound once more below it, if it does not know
//! the member's position.
//!
//! While no peer is to get this member's state, entries are the only way back. The bound is then that of followers
//! that can be heard.
//!
//! [`Event::GiveUpAbsent`]: super::super::Event::GiveUpAbsent

use super::super::{Engine, KeptForAbsent, Role};
use super::{Lead, Peers};
use crate::ids::{Lsn, NodeId};

/// What a leader keeps of its log for members that are away, and for nothing else.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeptLog {
    /// How many entries.
    pub entries: u64,
    /// Their bytes, as far as they are known: those of entries that were applied before the open are not.
    pub bytes: u64,
    /// For whom, in order.
    pub members: Vec<NodeId>,
}

impl Engine {
    /// The last entry up to which the log may be compacted for the sake of the members that are away, if it would be
    /// compacted up to `up_to` otherwise. `None` if nothing is kept for any of them.
    pub fn kept_for_absent(&self, up_to: Lsn) -> Option<Lsn> {
        let needs = self.needs_of_absent(up_to);
        needs.into_iter().map(|(_, lsn)| lsn).min()
    }

    /// What is kept for members that are away, if the log would be compacted up to `up_to` otherwise. `None` if nothing
    /// is kept for any of them.
    pub fn log_kept_for_absent(&self, up_to: Lsn) -> Option<KeptLog> {
        let mut needs = self.needs_of_absent(up_to);
        needs.sort_unstable();
        let above = needs.iter().map(|(_, lsn)| *lsn).min()?;
        let bytes_above = |lsn| self.snapshots.bytes_above(lsn);
        Some(KeptLog {
            entries: up_to.0 - above.0,
            bytes: bytes_above(above).saturating_sub(bytes_above(up_to)),
            members: needs.into_iter().map(|(id, _)| id).collect(),
        })
    }

    /// The members that are away and for which something is kept, each with the last entry that it does not need.
    fn needs_of_absent(&self, up_to: Lsn) -> Vec<(NodeId, Lsn)> {
        let start = self.log_start();
        if self.alone || self.role != Role::Leader || up_to <= start {
            return Vec::new();
        }
        let progress = self.raw.raft.prs().iter();
        let others = progress.map(|(id, progress)| (NodeId(*id), Lsn(progress.matched)));
        let absent = others.filter(|(id, matched)| self.is_absent(*id, *matched));
        let kept = absent.filter_map(|(id, matched)| {
            let reach = self.reach_for(id, matched, up_to).max(start);
            let lsn = match matched {
                Lsn(0) => (self.peers.lead.last >= reach).then_some(reach),
                known => (known >= reach).then_some(known),
            };
            lsn.map(|lsn| (id, lsn))
        });
        kept.filter(|(_, lsn)| *lsn < up_to).collect()
    }

    /// The first position of a member that is away from which it can go on with entries that are kept for it.
    fn reach_for(&self, id: NodeId, matched: Lsn, up_to: Lsn) -> Lsn {
        if self.peers.withheld {
            let bytes = self.config.max_bytes_kept_for_peers;
            return self.snapshots.reach(up_to, bytes);
        }
        let KeptForAbsent {
            mut bytes,
            mut entries,
            ticks,
        } = self.config.kept_for_absent;
        if self.ticks - self.absent_since(id) > ticks {
            bytes /= KeptForAbsent::LONG_ABSENCE_SHARE;
            entries /= KeptForAbsent::LONG_ABSENCE_SHARE;
        }
        let by_entries = Lsn(up_to.0.saturating_sub(entries));
        let reach = self.snapshots.reach(up_to, bytes).max(by_entries);
        match matched {
            Lsn(0) => reach.max(self.snapshots.counted_from()),
            _ => reach,
        }
    }

    /// Since when a member is away, as far as this leader has noticed it: its last message, or the first election of
    /// this member since which none has come. So leaderships that move often do not extend an absence. While this member
    /// follows, it does not hear of the others.
    fn absent_since(&self, id: NodeId) -> u64 {
        let Peers {
            lead,
            unheard_since,
            ..
        } = &self.peers;
        let elected = unheard_since.get(&id).copied().unwrap_or(lead.tick);
        let heard = self.peers.last_contact(id);
        heard.map_or(elected, |heard| heard.max(elected))
    }

    /// Whether a member is away, and not given up.
    fn is_absent(&self, id: NodeId, matched: Lsn) -> bool {
        let is_present = id == self.config.id || matched.0 > 0 && self.is_heard(id);
        !is_present && !self.peers.given_up.contains(&id)
    }

    /// Whether a message of a member has come within two election timeouts.
    pub(super) fn is_heard(&self, id: NodeId) -> bool {
        let lately = 2 * self.config.election_ticks as u64;
        let at = self.peers.last_contact(id);
        at.is_some_and(|at| at >= self.ticks.saturating_sub(lately))
    }

    /// This member was elected.
    pub(in crate::engine) fn leads_from_now(&mut self) {
        self.peers.lead = Lead {
            tick: self.ticks,
            last: self.last(),
        };
        self.peers.given_up.clear();
        for id in self.membership.members() {
            let since = self.peers.unheard_since.entry(id);
            since.or_insert(self.ticks);
        }
    }

    /// Keeps nothing any more for the members that are away now, or has the leader do so: a follower does not know who
    /// is away.
    pub(in crate::engine) fn give_up_absent(&mut self) {
        match self.role {
            Role::Leader => self.give_up_all_absent(),
            // In this time it answers some heartbeats.
            _ => self.peers.full_until = self.ticks + self.config.election_ticks as u64,
        }
    }

    /// Whether messages of this member have it that the log of its node is full.
    pub(in crate::engine) fn reports_full_log(&self) -> bool {
        self.role != Role::Leader && self.ticks < self.peers.full_until
    }

    /// The log of a node is full. If it is that of a member, and this one leads, nothing is kept any more for the
    /// members that are away.
    pub(in crate::engine) fn log_of_member_is_full(&mut self, node: NodeId) {
        if self.role == Role::Leader && self.membership.contains(node) {
            self.give_up_all_absent();
        }
    }

    fn give_up_all_absent(&mut self) {
        let progress = self.raw.raft.prs().iter();
        let others = progress.map(|(id, progress)| (NodeId(*id), Lsn(progress.matched)));
        let absent = others.filter(|(id, matched)| self.is_absent(*id, *matched));
        let absent: Vec<_> = absent.map(|(id, _)| id).collect();
        self.peers.given_up.extend(absent);
    }

    /// A message of a member has come. If it was given up, that ends once this leader knows what its log has.
    pub(super) fn note_return(&mut self, id: NodeId) {
        let progress = self.raw.raft.prs().get(id.0);
        if progress.is_some_and(|progress| progress.matched > 0) {
            self.peers.given_up.remove(&id);
        }
    }
}
