//! Begins snapshots when they are due, and handles their outcome.

use super::*;

impl<F: Fold> Run<F> {
    pub(super) fn take_if_due(&mut self) {
        let asked = !self.askers.is_empty();
        let predicted = self.predicted();
        let (triggers, snapshots) = (&self.parts.triggers, &self.parts.snapshots);
        let is_due = self.snapshot_task.is_due(
            triggers,
            &self.identity,
            snapshots,
            asked,
            self.next,
            predicted,
        );
        if is_due && self.closing.is_none() {
            let fold = self.fold.clone();
            self.snapshot_task
                .begin(&self.parts, &self.guard, &self.identity, fold, self.next);
        }
    }

    pub(super) fn outcome(&mut self, outcome: Outcome) {
        self.snapshot_task.note_outcome(&outcome);
        match outcome {
            Outcome::Taken(info) => {
                tracing::debug!(
                    stream = self.parts.endpoint.shown(),
                    ?info,
                    "a snapshot was taken"
                );
                let since = self.snapshot_task.since().records;
                let covered = |wanted: u64| since == 0 || wanted <= info.cursor;
                for (_, asker) in self.askers.extract_if(.., |(wanted, _)| covered(*wanted)) {
                    let _ = asker.send(Ok(info.clone()));
                }
                self.status.send_modify(|status| {
                    status.taken += 1;
                    status.newest = Some(info.clone());
                    status.last_failure = None;
                    status.since_snapshot = since;
                });
                self.notify(Update::SnapshotTaken(info));
            }
            Outcome::Lost { .. } => self.status.send_modify(|status| status.lost += 1),
            Outcome::Failed(error) => {
                tracing::warn!(stream = self.parts.endpoint.shown(), %error, "no snapshot was taken");
                for (_, asker) in self.askers.drain(..) {
                    let _ = asker.send(Err(error.clone()));
                }
                let why = error.to_string();
                self.status.send_modify(|status| {
                    status.failed += 1;
                    status.last_failure = Some(why.clone());
                });
                self.notify(Update::SnapshotFailed(why));
            }
        }
    }
}
