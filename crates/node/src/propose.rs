//! Proposing commands that are not appends.

use std::sync::atomic::Ordering;

use esker_partition::command::{Kind, Outcome};
use esker_partition::state::command::ImportStep;
use esker_raft::Group;

use crate::core::Inner;
use crate::error::Error;

/// Whether a command is refused on a nearly full disk: it takes space and frees none.
fn takes_space(command: &Kind) -> bool {
    match command {
        Kind::ProvisionBasin(_) | Kind::ProvisionStream(_) => true,
        Kind::StateImport(import) => matches!(
            import.step,
            Some(ImportStep::Begin(_) | ImportStep::Entries(_))
        ),
        _ => false,
    }
}

impl Inner {
    /// Proposes a command that is not an append, and waits for its answer.
    pub async fn execute(&self, group: &Group<Outcome>, command: Kind) -> Result<Outcome, Error> {
        if self.draining.load(Ordering::Relaxed) {
            return Err(Error::Stopping);
        }
        match takes_space(&command) {
            true => {
                if let Some(why) = self.shortage() {
                    return Err(Error::TryLater(why));
                }
            }
            false => self.make_way(group).await,
        }
        let answer = group.propose(command.into_bytes())?;
        self.answered(group, answer).await
    }
}
