//! Proposes commands that are not appends.

use std::sync::atomic::Ordering;

use esker_partition::command::{Kind, Outcome};
use esker_partition::state::command::ImportStep;
use esker_raft::Group;

use crate::core::Inner;
use crate::error::Error;
use crate::space::SpaceUse;
use crate::stages::{self, Stage};

/// How a command that is not an append uses the space of a nearly full disk.
fn space_use(command: &Kind) -> SpaceUse {
    match command {
        Kind::ProvisionBasin(_)
        | Kind::ProvisionStream(_)
        | Kind::IssueToken(_)
        | Kind::RegisterNode(_) => SpaceUse::Takes,
        Kind::StateImport(import) => match import.step {
            Some(ImportStep::Begin(_) | ImportStep::Entries(_)) => SpaceUse::Takes,
            Some(ImportStep::Abort(_)) => SpaceUse::GivesBack,
            Some(ImportStep::Finish(_)) | None => SpaceUse::Keeps,
        },
        Kind::DeleteBasin(_)
        | Kind::DeleteStream(_)
        | Kind::Expire(_)
        | Kind::DeleteIfEmpty(_)
        | Kind::DropBasin(_)
        | Kind::ForgetBasin(_)
        | Kind::RevokeToken(_)
        | Kind::RemoveExpiredTokens(_)
        | Kind::SetNodeState(_)
        | Kind::StatePrune(_) => SpaceUse::GivesBack,
        Kind::SetBasinSettings(_)
        | Kind::NoteArchived(_)
        | Kind::BeginLineage(_)
        | Kind::AskDigest(_)
        | Kind::NoteDigests(_)
        | Kind::TrustReplica(_)
        | Kind::ConfirmTokens(_)
        | Kind::SetStreamSettings(_)
        | Kind::Append(_)
        | Kind::StateCommit(_) => SpaceUse::Keeps,
    }
}

impl Inner {
    /// Proposes a command that is not an append, and waits for its answer.
    pub async fn execute(&self, group: &Group<Outcome>, command: Kind) -> Result<Outcome, Error> {
        if self.draining.load(Ordering::Relaxed) {
            return Err(Error::Stopping);
        }
        match space_use(&command) {
            SpaceUse::Takes => {
                if let Some(why) = self.shortage_now().await {
                    return Err(Error::TryLater(why));
                }
            }
            SpaceUse::Keeps => {}
            SpaceUse::GivesBack => self.make_way(group).await,
        }
        stages::note(Stage::Admitted);
        let answer = stages::propose(group, command.into_bytes(), None, None)?;
        self.answered(group, answer).await
    }
}

#[cfg(test)]
mod tests {
    use esker_partition::command::{
        DeleteBasin, DeleteStream, DropBasin, Expire, ForgetBasin, ProvisionStream,
        SetStreamSettings,
    };

    use super::*;

    #[test]
    fn only_what_gives_space_back_has_the_reserve_released() {
        for (command, usage) in [
            (
                Kind::DeleteBasin(DeleteBasin::default()),
                SpaceUse::GivesBack,
            ),
            (
                Kind::DeleteStream(DeleteStream::default()),
                SpaceUse::GivesBack,
            ),
            (Kind::Expire(Expire::default()), SpaceUse::GivesBack),
            (Kind::DropBasin(DropBasin::default()), SpaceUse::GivesBack),
            (
                Kind::ForgetBasin(ForgetBasin::default()),
                SpaceUse::GivesBack,
            ),
            (
                Kind::ProvisionStream(ProvisionStream::default()),
                SpaceUse::Takes,
            ),
            (
                Kind::SetStreamSettings(SetStreamSettings::default()),
                SpaceUse::Keeps,
            ),
        ] {
            assert_eq!(space_use(&command), usage, "{command:?}");
        }
    }
}
