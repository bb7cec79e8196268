//! Continues after a lost connection, a jump of the sequence numbers, or with another stream.

use super::*;
use crate::unlisted_gap;

/// How long a follower waits for a store whose list is behind: the list may lack the snapshot for which the
/// stream was trimmed. Shorter than the 30 s after which `esker follow --once` gives up, so that it reports
/// what is missing.
const LIST_TIMEOUT: Duration = Duration::from_secs(20);

/// The error of a server that identified the stream before.
fn unidentified() -> EndpointError {
    EndpointError::Unavailable(
        "the server does not identify the stream, which it did before".to_owned(),
    )
}

impl<F: Fold> Run<F> {
    /// Waits for the server, and checks whether it still has the same stream.
    pub(super) async fn reconnect(
        &mut self,
        why: EndpointError,
        backoff: &mut Backoff,
    ) -> Result<(), Stop> {
        self.status.send_modify(|status| {
            status.caught_up = false;
            status.reconnects += 1;
        });
        self.piece_at = None;
        self.wait(why, backoff).await?;
        let was = self.ask_identity(backoff).await?;
        match self.is_left(&was) {
            true => self.reopen().await,
            false => Ok(()),
        }
    }

    /// Whether the state, which was built from the stream that this identity named, is not of the present one.
    fn is_left(&self, was: &Identity) -> bool {
        let now = &self.identity;
        // What was applied last may be what was lost: no snapshot of it may count as one of this lineage.
        let is_stale = match (&was.lineage, &now.lineage) {
            (Some(then), Some(_)) => !now.includes(then, self.next),
            _ => false,
        };
        is_stale || now.is_another_stream(was)
    }

    /// Asks again which stream it is, now that a read of it has begun. A read stays with one stream. If it
    /// was created again after it was identified and before the read began, its numbers may continue those
    /// of the one before.
    pub(super) async fn identify(&mut self) -> Result<(), Stop> {
        let parts = self.parts.clone();
        let identity = self.meanwhile(parts.endpoint.identity()).await?;
        let identity = identity.map_err(Stop::Disconnected)?;
        if self.identity.knows_more_than(&identity) {
            return Err(Stop::Disconnected(unidentified()));
        }
        let was = std::mem::replace(&mut self.identity, identity);
        if self.is_left(&was) {
            return Err(Stop::Left);
        }
        self.is_identified = true;
        Ok(())
    }

    /// Asks which stream it is now; returns which it was before. If there is none at the moment, what is known
    /// is kept: the next one is compared with it.
    pub(super) async fn ask_identity(&mut self, backoff: &mut Backoff) -> Result<Identity, Stop> {
        let parts = self.parts.clone();
        loop {
            match self.meanwhile(parts.endpoint.identity()).await? {
                Ok(identity) if self.identity.knows_more_than(&identity) => {
                    return Ok(self.identity.clone());
                }
                Ok(identity) => return Ok(std::mem::replace(&mut self.identity, identity)),
                Err(why) => self.wait(why, backoff).await?,
            }
        }
    }

    /// Waits for the server.
    pub(super) async fn wait(
        &mut self,
        why: EndpointError,
        backoff: &mut Backoff,
    ) -> Result<(), Stop> {
        let parts = self.parts.clone();
        let waits_for = Some(why.to_string());
        self.status
            .send_modify(|status| status.waits_for = waits_for);
        let waited = self.meanwhile(backoff.wait(&*parts.endpoint, why)).await?;
        waited.map_err(Stop::Error)
    }

    /// Handles a jump of the sequence numbers, from the next one to a later one.
    pub(super) async fn moved(&mut self) -> Result<(), Stop> {
        self.status.send_modify(|status| status.caught_up = false);
        let mut backoff = Backoff::new(None);
        let was = self.ask_identity(&mut backoff).await?;
        if self.is_left(&was) {
            return self.reopen().await;
        }
        if self.pass_gap() || self.pass_unlisted_gap(&was).await? {
            return Ok(());
        }
        if self.moved_at.replace(self.next) == Some(self.next) {
            // Nothing that is known explains the jump. The server may explain it later.
            let why = format!("sequence numbers jump behind {}, again", self.next);
            let mut moving = std::mem::replace(&mut self.moving, Backoff::new(None));
            let waited = self
                .wait(EndpointError::Unavailable(why), &mut moving)
                .await;
            self.moving = moving;
            waited?;
        } else {
            self.moving.reset();
        }
        self.reopen().await
    }

    /// Passes over the numbers that no record has, if they begin at the next one: a history was cut off, or
    /// an import passed numbers over, exactly after what was applied, and nothing is missing. This is done
    /// as soon as the jump is known and not when it is read: no snapshot may have a cursor in front of it.
    pub(super) fn pass_gap(&mut self) -> bool {
        let Some(resumes_at) = self.identity.goes_on_at(self.next) else {
            return false;
        };
        self.pass_to(resumes_at);
        true
    }

    /// The same of numbers that the server does not list any more. `was` is the identity before the last
    /// one, which the state is known to be of: without a lineage, nobody reports that a history was cut off. True as
    /// well after a pause, if it cannot be known now.
    async fn pass_unlisted_gap(&mut self, was: &Identity) -> Result<bool, Stop> {
        if was.lineage.is_none() || self.identity.lineage.is_none() {
            return Ok(false);
        }
        let (parts, next) = (self.parts.clone(), self.next);
        let asked = async move {
            let found = unlisted_gap::find(&*parts.endpoint, next).await?;
            Ok::<_, EndpointError>((found, parts.endpoint.identity().await?))
        };
        let answer = self.meanwhile(asked).await?;
        let (found, now) = match answer {
            Ok(answer) => answer,
            Err(why) => {
                // The jump is read once more, and the question asked again.
                let mut moving = std::mem::replace(&mut self.moving, Backoff::new(None));
                let waited = self.wait(why, &mut moving).await;
                self.moving = moving;
                waited?;
                return Ok(true);
            }
        };
        match found {
            Some(resumes_at) if now.is_same_history(&self.identity) => {
                self.pass_to(resumes_at);
                Ok(true)
            }
            _ => Ok(false),
        }
    }

    fn pass_to(&mut self, resumes_at: u64) {
        tracing::info!(
            stream = self.parts.endpoint.shown(),
            from = self.next,
            resumes_at,
            "sequence numbers go on higher; nothing that was read is lost"
        );
        self.next = resumes_at;
        self.guard.update(|others| others.read_to(resumes_at));
    }

    /// Restores a snapshot in place of a state from which the stream does not continue.
    pub(super) async fn reopen(&mut self) -> Result<(), Stop> {
        let parts = self.parts.clone();
        // Its cursor, which is not the next position if numbers jump there.
        let newest = self.snapshot_task.newest();
        let stuck = newest
            .filter(|_| self.is_fresh)
            .map(|restored| restored.cursor);
        let mut backoff = Backoff::new(None);
        let began = Instant::now();
        let is_external = matches!(parts.snapshots, Snapshots::External(_));
        let recovered = loop {
            let why = match self
                .meanwhile(recover::recover_again(parts.clone(), stuck))
                .await?
            {
                Ok(recovered) if self.identity.knows_more_than(&recovered.identity) => {
                    unidentified()
                }
                Ok(recovered) => break recovered,
                // The store worked before, so the wait for it has no limit.
                Err(Error::Store { why, .. }) => EndpointError::Unavailable(why),
                Err(Error::Endpoint { why, .. }) => why,
                // The list may be behind.
                Err(error @ Error::HistoryGone { .. })
                    if is_external && began.elapsed() < LIST_TIMEOUT =>
                {
                    EndpointError::Unavailable(error.to_string())
                }
                Err(error) => return Err(error.into()),
            };
            self.wait(why, &mut backoff).await?;
        };
        let why = "records went before they were read, or a history was cut off";
        tracing::warn!(
            stream = parts.endpoint.shown(),
            from = self.next,
            to = recovered.cursor,
            why,
            "a snapshot was restored instead"
        );
        self.identity = recovered.identity;
        self.fold = recovered.fold;
        self.next = recovered.cursor;
        self.met = recovered.met;
        self.met_until = recovered.next;
        self.is_fresh = true;
        self.is_checked = false;
        self.guard = Guard::new(recovered.others);
        self.snapshot_task.restart(recovered.snapshot.clone());
        let (cursor, newest) = (self.next, recovered.snapshot);
        self.status.send_modify(|status| {
            status.cursor = cursor;
            status.caught_up = false;
            status.newest = newest.clone();
        });
        self.notify(Update::Restored(newest));
        Ok(())
    }
}
