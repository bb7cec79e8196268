//! When those who voted before a change of the voters are needed no more.
//!
//! The change is complete at the leader once it has applied the entry that ends the joint membership, the *last entry
//! of the change*. The other members may not know by then that this entry is committed. Until they do, they count by
//! the voters before the change as well. If the leader is lost in that moment, and a node that was removed has been
//! stopped for good, nobody can be elected any more.
//!
//! So a change counts as *confirmed* only once an entry is committed that a leader has appended after it had applied
//! the last entry of the change. The leader appends one at once, without a command, unless another entry is there
//! already. Until then [`Engine::has_unconfirmed_change`] is true. Why that suffices, for such an entry E:
//!
//! 1. *Whoever has E in its log on disk has stored there that the change is committed.* The leader that appends E has
//!    applied the last entry of the change, so its commit index covers that, and the write with E has its commit index
//!    too ([`Persist`](super::Persist)). Every other member gets E in a message of a leader that has E itself, and so a
//!    commit index that covers the change. The message carries that index. The receiver takes it over as far as the
//!    entries of the message go, which is up to E at least, and the write with E has the new index. A stored commit
//!    index never goes back. Who gets a snapshot instead of E has the change in its state.
//! 2. *E is on the disks of a majority of the voters after the change*, because the leader that has counted the
//!    acknowledgements has applied the change, and no later one is in force before E is committed.
//! 3. *Any majority of these voters can elect one of its members, and asks nobody else.* The majority shares a voter
//!    with that of E. Take the one of its members whose log goes furthest, by the term of the last entry and then by
//!    its index. Its log goes at least as far as one that has E. E is committed, so it has E, as every log that goes
//!    as far has. By 1 it knows that the change is committed, applies it before it campaigns, and counts by the voters
//!    after the change alone. All members of the majority vote for it.
//!
//! A leader that was elected since begins its term with an entry of its own. If it has applied the change before, that
//! entry is such an E. It does not know whether an earlier leader had the change confirmed, so the change counts as
//! unconfirmed until the entry is committed.
//!
//! Without E, the majority of 3 may consist of members that have the last entry of the change and do not know that it
//! is committed.

use raft::StateRole;

use super::{Engine, Role};
use crate::ids::Lsn;

impl Engine {
    /// Whether this leader does not know yet that the last change of the voters holds without those who voted before:
    /// they are needed until this is false and the membership is not joint. Of members that do not lead, it says
    /// nothing.
    pub fn has_unconfirmed_change(&self) -> bool {
        self.role == Role::Leader && self.committed() <= self.confirmed_above
    }

    /// This member was elected, and has appended the first entry of its term.
    pub(super) fn confirm_from_election(&mut self) {
        self.confirmed_above = Lsn(self.last().0.saturating_sub(1));
    }

    /// An entry that changes the voters was applied.
    pub(super) fn confirm_change(&mut self) {
        self.confirmed_above = self.last();
        self.append_confirmation();
    }

    /// Appends the entry that confirms a change, if this leader has to and no entry does it already. While the
    /// leadership is being transferred that is not possible, and is tried again with the next tick.
    pub(super) fn append_confirmation(&mut self) {
        let leads = self.raw.raft.state == StateRole::Leader;
        if leads && !self.membership.is_joint() && self.last() <= self.confirmed_above {
            // A dropped proposal is repeated with the next tick.
            let _ = self.raw.propose(Vec::new(), Vec::new());
        }
    }
}
