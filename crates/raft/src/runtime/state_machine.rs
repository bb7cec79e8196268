//! What a host brings: a state machine that applies committed commands in order.

use crate::engine::{Committed, Membership};
use crate::ids::Lsn;

/// A failure to apply. The same entries are applied again later; the state machine must be as it
/// was before the call.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct ApplyError(pub String);

/// A host's state machine. It runs on the apply thread of its group, alone.
pub trait StateMachine: Send + 'static {
    /// What one command answers.
    type Output: Send + 'static;

    /// Last entry that the recovered state contains; entries at or below are not applied again.
    fn applied(&self) -> Lsn;

    /// Who belongs to the group, as of [`StateMachine::applied`].
    fn membership(&self) -> Membership;

    /// Applies entries in order, as one atomic step, and appends one output for each entry that
    /// has a command. On an error nothing may have changed, and no output counts.
    fn apply(
        &mut self,
        entries: &[Committed],
        outputs: &mut Vec<Self::Output>,
    ) -> Result<(), ApplyError>;

    /// Called between applies, at least once a second: the place for small, bounded steps of
    /// housekeeping that need the state machine for themselves.
    fn maintain(&mut self) {}
}
