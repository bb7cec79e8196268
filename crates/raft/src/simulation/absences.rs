//! The rule that a leader keeps, within the bound, what a member that is away goes on with.

use super::disk::Write;
use super::scenario::KEPT_BYTES;
use super::world::World;
use crate::engine::{KeptForAbsent, LogFloor};
use crate::ids::Lsn;

impl World {
    /// A host is about to let its log go up to `floor`.
    pub fn check_absences(&mut self, id: u64, floor: LogFloor) {
        let kept = self.scenario.kept_for_absent(self.mutant);
        let host = self.host(id);
        let Some(engine) = &host.engine else {
            return;
        };
        // With less, the bytes would have to be counted as the engine counts them.
        if kept.bytes < KEPT_BYTES {
            return;
        }
        let mut start = host.log.start();
        for write in &host.writes {
            match write {
                Write::Compact(before) => start = start.max(before.lsn),
                // The log begins elsewhere after a snapshot that is being installed.
                Write::Persist(persist, _) if persist.restart.is_some() => return,
                Write::Persist(..) => {}
            }
        }
        // Where the log would end without anybody away, at most. How long a member is away does not matter then: the
        // smaller bound is taken.
        let upper = host.durable.at.lsn.min(host.archived);
        let entries = kept.entries / KeptForAbsent::LONG_ABSENCE_SHARE;
        let lately = 2 * host.config.election_ticks as u64;
        let lost = engine.status().peers.into_iter().find(|peer| {
            let is_away = peer.heard_ticks_ago.is_none_or(|ticks| ticks > lately);
            let is_known = peer.matched > Lsn(0) && peer.matched >= start;
            let is_near = upper.0.saturating_sub(peer.matched.0) <= entries;
            is_away && is_known && is_near && peer.matched < floor.lsn
        });
        if let Some(lost) = lost {
            self.judge(Err(format!(
                "{id} lets its log go up to {}, and {}, which is away, has what is up to {}",
                floor.lsn, lost.id, lost.matched
            )));
        }
    }
}
