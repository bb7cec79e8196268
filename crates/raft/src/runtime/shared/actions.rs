//! Carries out the actions of a group's engine.

use super::Shared;
use crate::engine::{Action, Engine, Event};
use crate::ids::{Lsn, NodeId};
use crate::message::{EndReason, Payload};
use crate::runtime::error::ProposeError;

impl<O: Send + 'static> Shared<O> {
    /// Carries out actions in order. The caller holds the engine's lock.
    pub(in crate::runtime) fn carry_out(&self, engine: &mut Engine, actions: Vec<Action>) {
        // Before anybody is woken, who then looks at it.
        self.view.publish(engine);
        // The checkpoint whose fetch cannot begin.
        let mut failed = None;
        for action in actions {
            match action {
                Action::Persist(persist) => {
                    if let Some(this) = self.this.upgrade() {
                        self.proposals.given(persist.number);
                        self.writer.persist(self.id, persist, this);
                    }
                }
                Action::Apply(committed) => {
                    self.apply.push(committed);
                }
                Action::Send(messages) => (self.send)(messages),
                Action::ReadLog(read) => self.read_log(read),
                Action::SnapshotHint {
                    last_included_index,
                } => {
                    tracing::debug!(group = %self.id, applied = %last_included_index, "snapshot hint");
                    self.snapshot_jobs.want();
                    self.apply.nudge();
                }
                Action::StoreSnapshot { .. } => {
                    // The engine answers with it to an event that this runtime never sends.
                    tracing::error!(group = %self.id, "the engine asks to store a snapshot that this runtime did not send");
                }
                Action::LogAlarm { entries } => {
                    tracing::error!(
                        group = %self.id,
                        entries,
                        "the log grows and nothing of it is applied: a snapshot cannot help"
                    );
                }
                Action::Compact { floor } => self.writer.compact(self.id, floor),
                Action::Became { role, leader, term } => {
                    tracing::debug!(group = %self.id, ?role, ?leader, %term, "role changed");
                    self.requests.leader_is(leader);
                    // Wakes those who wait for a leader.
                    self.applied.send_modify(|_| {});
                }
                Action::Halt { what } => {
                    let reopens = self.reopening.is_some() && engine.may_reopen();
                    tracing::error!(group = %self.id, what, reopens, "the group has halted");
                    self.halt(what, reopens);
                    if let Some(reopening) = &self.reopening {
                        reopening.halted();
                        // The apply thread, which opens the group again, may sleep for longer than that.
                        self.apply.nudge();
                    }
                    self.waiters.fail_all(&ProposeError::Unknown);
                    self.requests.close();
                    // Wakes those who wait for progress.
                    self.applied.send_modify(|_| {});
                }
                Action::OfferSnapshot {
                    to,
                    last_included_index,
                } => {
                    if !self.offer(to, last_included_index) {
                        let more = engine.step(Event::OfferFailed { to });
                        self.carry_out(engine, more);
                    }
                }
                Action::FetchSnapshot { from, offer } => {
                    if let (Some(member), Some(this)) = (&self.member, self.this.upgrade()) {
                        let checkpoint = offer.checkpoint;
                        if !member.begin_fetch(this, from, *offer) {
                            failed = Some(checkpoint);
                        }
                    }
                }
                Action::AbandonFetch { checkpoint } => {
                    if let Some(member) = &self.member {
                        member.fetches.abandon(&member.store, checkpoint);
                    }
                }
                Action::InstallSnapshot { offer } => self.apply.install(offer),
                Action::ReadReady { ticket, lsn } => self.requests.read_answered(ticket, Ok(lsn)),
                Action::ReadFailed { ticket, reason } => {
                    self.requests.read_answered(ticket, Err(reason));
                }
                Action::Accepted { .. } | Action::Rejected { .. } => {
                    unreachable!("what has a verdict is stepped by those who look at it")
                }
            }
        }
        if let Some(checkpoint) = failed {
            // The last step: peers get the message of the fetch's beginning before that of its end.
            let reason = EndReason::NotInstalled;
            let more = engine.step(Event::FetchFailed { checkpoint, reason });
            self.carry_out(engine, more);
        }
    }

    /// Sends the manifest of the stored snapshot that covers `lsn`. Returns false if that is not the newest
    /// one.
    fn offer(&self, to: NodeId, lsn: Lsn) -> bool {
        let Some(member) = &self.member else {
            return false;
        };
        let newest = member.store.newest();
        let Some(stored) = newest.filter(|s| s.manifest.last_included_index == lsn) else {
            return false;
        };
        tracing::info!(group = %self.id, %to, %lsn, "offering a snapshot");
        let offer = Payload::Offer(Box::new(stored.manifest.clone()));
        (self.send)(vec![member.identity.seal(to, offer)]);
        true
    }
}
