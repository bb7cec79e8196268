//! How followers learn that entries are committed: from the next entries, or from a message of its own if no
//! entries are under way.
//!
//! raft-rs sends a message to each peer whenever the commit index changes, and each of them is answered. While
//! entries follow each other, these are half of all messages, and the entries that are sent next have the commit
//! index, too. So it is announced only once everything in the leader's log is committed: whatever is under way ends
//! with such a message, or with entries. Heartbeats have the commit index as well, so nothing waits for longer than
//! the interval between two of them, and a read by ReadIndex, which is confirmed by heartbeats, for none of this.

use raft::StateRole;

use super::Engine;
use crate::ids::Lsn;

impl Engine {
    /// Announces the commit index if no entries are under way that will make it change again.
    pub(super) fn announce_commit(&mut self) {
        let raft = &mut self.raw.raft;
        let committed = Lsn(raft.raft_log.committed);
        let is_whole = committed.0 == raft.raft_log.last_index();
        if raft.state == StateRole::Leader && is_whole && committed > self.announced {
            self.announced = committed;
            raft.bcast_append();
        }
    }
}
