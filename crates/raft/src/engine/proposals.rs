//! Whether a proposed command enters the log.

use raft::eraftpb::{Entry, Message, MessageType};

use super::{Action, Engine, MAX_COMMAND_BYTES, MAX_MESSAGE_BYTES, RejectReason, Role, Ticket};
use crate::ids::{Lsn, NodeId};

/// At most so many bytes of an entry in a message are not its command: two numbers of 64 bits, its kind, and tags.
const ENTRY_OVERHEAD: usize = 48;

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

    /// Enters commands into the log, in order. Those that follow each other enter in steps of at most
    /// [`MAX_MESSAGE_BYTES`], because raft-rs sends a message to each peer for each step.
    pub(super) fn propose_batch(
        &mut self,
        proposals: Vec<(Ticket, Vec<u8>)>,
        actions: &mut Vec<Action>,
    ) {
        let mut step = Step::default();
        let mut since_drained = 0;
        for (ticket, command) in proposals {
            if let Some(reason) = self.refusal(&command, &step) {
                self.enter(std::mem::take(&mut step), actions);
                actions.push(Action::Rejected { ticket, reason });
                continue;
            }
            let bytes = command.len() + ENTRY_OVERHEAD;
            if !step.tickets.is_empty() && (step.bytes + bytes) as u64 > MAX_MESSAGE_BYTES {
                self.enter(std::mem::take(&mut step), actions);
            }
            since_drained += bytes;
            if since_drained > MAX_COMMAND_BYTES {
                // Not all in one piece.
                self.enter(std::mem::take(&mut step), actions);
                self.drain_ready(actions);
                since_drained = bytes;
            }
            step.push(ticket, command);
        }
        self.enter(step, actions);
    }

    /// Why a command that would enter the log after `step` may not, if so.
    fn refusal(&self, command: &[u8], step: &Step) -> Option<RejectReason> {
        let last = self.last().0 + step.tickets.len() as u64;
        if self.role != Role::Leader {
            Some(self.not_leader())
        } else if let Some(to) = self.raw.raft.lead_transferee {
            Some(RejectReason::Transferring { to: NodeId(to) })
        } else if self.snapshots.full(Lsn(last)) {
            Some(RejectReason::LogFull)
        } else if last - self.applied.0 >= self.config.max_pending_proposals {
            Some(RejectReason::Busy)
        } else {
            Engine::refuses(command).map(RejectReason::Refused)
        }
    }

    fn not_leader(&self) -> RejectReason {
        RejectReason::NotLeader {
            leader: self.leader(),
        }
    }

    /// Enters the commands of a step into the log: all of them, or none.
    fn enter(&mut self, step: Step, actions: &mut Vec<Action>) {
        if step.tickets.is_empty() {
            return;
        }
        let mut message = Message::default();
        message.set_msg_type(MessageType::MsgPropose);
        message.from = self.raw.raft.id;
        message.set_entries(step.entries.into());
        let before = self.last().0;
        let refused = match self.raw.raft.step(message) {
            Ok(()) => None,
            Err(raft::Error::ProposalDropped) => Some(self.not_leader()),
            Err(other) => Some(RejectReason::Refused(other.to_string())),
        };
        let term = self.term();
        self.counters.proposals += match refused {
            None => step.tickets.len() as u64,
            Some(_) => 0,
        };
        for (ticket, lsn) in step.tickets.into_iter().zip(before + 1..) {
            actions.push(match &refused {
                Some(reason) => Action::Rejected {
                    ticket,
                    reason: reason.clone(),
                },
                None => Action::Accepted {
                    ticket,
                    lsn: Lsn(lsn),
                    term,
                },
            });
        }
    }
}

/// Commands that enter the log at once.
#[derive(Default)]
struct Step {
    tickets: Vec<Ticket>,
    entries: Vec<Entry>,
    bytes: usize,
}

impl Step {
    fn push(&mut self, ticket: Ticket, command: Vec<u8>) {
        self.bytes += command.len() + ENTRY_OVERHEAD;
        self.tickets.push(ticket);
        self.entries.push(Entry {
            data: command.into(),
            ..Entry::default()
        });
    }
}
