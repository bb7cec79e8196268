//! Whether a proposed command enters the log.

use super::{Action, Engine, MAX_COMMAND_BYTES, RejectReason, Role, Ticket};
use crate::ids::NodeId;

impl Engine {
    /// Why no engine accepts a command, if so.
    pub(crate) fn refuses(command: &[u8]) -> Option<String> {
        match command.len() {
            // raft-rs itself uses entries without data: see `Committed::command`.
            0 => Some("the command is empty".to_owned()),
            1..=MAX_COMMAND_BYTES => None,
            bytes => Some(format!(
                "a command has at most {MAX_COMMAND_BYTES} bytes, this one has {bytes}"
            )),
        }
    }

    pub(super) fn propose(&mut self, ticket: Ticket, command: Vec<u8>, actions: &mut Vec<Action>) {
        let reason = if self.role != Role::Leader {
            Some(RejectReason::NotLeader {
                leader: self.leader(),
            })
        } else if let Some(to) = self.raw.raft.lead_transferee {
            Some(RejectReason::Transferring { to: NodeId(to) })
        } else if self.snapshots.full(self.last()) {
            Some(RejectReason::LogFull)
        } else if self.last().0 - self.applied.0 >= self.config.max_pending_proposals {
            Some(RejectReason::Busy)
        } else if let Some(why) = Engine::refuses(&command) {
            Some(RejectReason::Refused(why))
        } else if let Err(error) = self.raw.propose(Vec::new(), command) {
            Some(match error {
                raft::Error::ProposalDropped => RejectReason::NotLeader {
                    leader: self.leader(),
                },
                other => RejectReason::Refused(other.to_string()),
            })
        } else {
            self.counters.proposals += 1;
            None
        };
        actions.push(match reason {
            Some(reason) => Action::Rejected { ticket, reason },
            None => Action::Accepted {
                ticket,
                lsn: self.last(),
                term: self.term(),
            },
        });
    }
}
