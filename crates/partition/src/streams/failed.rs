//! Append sessions in which an append was refused lately.
//!
//! Appends of a session are pipelined: when one is refused, later ones may be in the log already, and
//! must be refused too. So a refusal is remembered for a fixed number of entries of the log
//! ([`REMEMBER_FAILED`]).
//!
//! The partition remembers refusals, not the stream: the state of a stream is written with each of its
//! appends, and must not grow with the errors of its clients. A refusal is one small key of the database.
//! It is written once, in the batch of the step that refused; the batch of the step that moves it out of
//! the window deletes it. After a step, the database and memory have exactly the refusals within the
//! window that ends at the step's last entry: they depend on the log alone, however it is divided into
//! steps.

use std::collections::{HashMap, VecDeque};

use crate::ids::StreamId;
use crate::keys;
pub(crate) use crate::keys::REMEMBER_FAILED;
use crate::store::{PartitionBatch, PartitionDb, StoreError, two_numbers};

/// The first refusal of an append session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Refusal {
    /// LSN of the refused append.
    pub lsn: u64,
    /// The stream: sessions of different streams are different, even if they have the same id.
    pub stream: StreamId,
    /// The session.
    pub session: u64,
}

/// The sessions that had a refusal within the last entries of the log.
pub(crate) struct FailedSessions {
    /// The number of these entries.
    window: u64,
    /// LSN of the first refusal of each.
    lsns: HashMap<(StreamId, u64), u64>,
    /// The same in the order of the log.
    refusals: VecDeque<Refusal>,
}

impl FailedSessions {
    /// No sessions.
    pub fn new(window: u64) -> FailedSessions {
        FailedSessions {
            window,
            lsns: HashMap::new(),
            refusals: VecDeque::new(),
        }
    }

    /// Reads those of a database whose applied LSN is `applied`; at most one for each entry of the
    /// window.
    pub fn load(
        part: &PartitionDb,
        applied: u64,
        window: u64,
    ) -> Result<FailedSessions, StoreError> {
        let mut failed = FailedSessions::new(window);
        // The scan begins at the window, because all refusals that were deleted are before it.
        let first = (applied + 1).saturating_sub(window);
        let (from, to) = keys::refusals(first);
        let mut it = part.iterate(&from, &to, false);
        it.seek_to_first();
        while let (Some(key), Some(value)) = (it.key(), it.value()) {
            let malformed = || part.malformed("a refusal", &"its length");
            let lsn = keys::id_of(key).ok_or_else(malformed)?;
            let [stream, session] = two_numbers(value).ok_or_else(malformed)?;
            failed.insert(Refusal {
                lsn,
                stream: StreamId(stream),
                session,
            });
            it.next();
        }
        it.status().map_err(|e| part.error("reading refusals", e))?;
        Ok(failed)
    }

    /// Number of entries for which a refusal is remembered.
    pub fn window(&self) -> u64 {
        self.window
    }

    /// Whether the session had a refusal within the window that ends at `lsn`.
    pub fn has(&self, stream: StreamId, session: u64, lsn: u64) -> bool {
        self.lsns
            .get(&(stream, session))
            .is_some_and(|refused| is_within(self.window, *refused, lsn))
    }

    /// Adds a refusal, which must be later in the log than all others and of a session that had none
    /// within the window; removes those that are no longer within it.
    pub fn insert(&mut self, refusal: Refusal) {
        self.forget(refusal.lsn);
        self.lsns
            .insert((refusal.stream, refusal.session), refusal.lsn);
        self.refusals.push_back(refusal);
    }

    /// Removes the refusals that are not within the window that ends at `lsn`.
    pub fn forget(&mut self, lsn: u64) {
        let window = self.window;
        while let Some(old) = self
            .refusals
            .pop_front_if(|refusal| !is_within(window, refusal.lsn, lsn))
        {
            self.lsns.remove(&(old.stream, old.session));
        }
    }

    /// The refusals, in the order of the log.
    #[cfg(test)]
    pub fn refusals(&self) -> Vec<Refusal> {
        assert_eq!(self.lsns.len(), self.refusals.len());
        self.refusals.iter().copied().collect()
    }

    /// An empty one for the refusals that a step adds.
    pub fn added(&self) -> FailedSessions {
        FailedSessions::new(self.window)
    }

    /// Puts into `batch` what a step that ends at `lsn` changes: the refusals that it adds, and those
    /// that it moves out of the window. Each entry of the log moves at most one out.
    pub fn write(&self, added: &FailedSessions, lsn: u64, batch: &mut PartitionBatch) {
        let is_old = |refusal: &&Refusal| !is_within(self.window, refusal.lsn, lsn);
        for old in self.refusals.iter().take_while(is_old) {
            batch.delete(keys::refusal(old.lsn));
        }
        for new in added.refusals.iter().skip_while(is_old) {
            let mut value = [0; 16];
            value[..8].copy_from_slice(&new.stream.0.to_be_bytes());
            value[8..].copy_from_slice(&new.session.to_be_bytes());
            batch.put(keys::refusal(new.lsn), value);
        }
    }

    /// Makes the same changes in memory as [`FailedSessions::write`] makes in the database.
    pub fn written(&mut self, added: &FailedSessions, lsn: u64) {
        for refusal in &added.refusals {
            self.insert(*refusal);
        }
        self.forget(lsn);
    }
}

/// Whether what happened at `then` is among the last `window` entries at `now`.
fn is_within(window: u64, then: u64, now: u64) -> bool {
    now.saturating_sub(then) < window
}

#[cfg(test)]
mod tests {
    use super::*;

    const STREAM: StreamId = StreamId(1);

    fn refusal(lsn: u64, session: u64) -> Refusal {
        Refusal {
            lsn,
            stream: STREAM,
            session,
        }
    }

    fn sessions(failed: &FailedSessions) -> Vec<u64> {
        failed.refusals().iter().map(|r| r.session).collect()
    }

    #[test]
    fn refusals_are_not_remembered_for_ever() {
        let mut failed = FailedSessions::new(REMEMBER_FAILED);
        for lsn in 0..10 {
            failed.insert(refusal(lsn, 100 + lsn));
        }
        assert!((100..110).all(|session| failed.has(STREAM, session, 10)));

        // Far more entries of the log than a leader has proposals pending.
        let now = 5 + REMEMBER_FAILED;
        let known = |failed: &FailedSessions| -> Vec<u64> {
            let all = 100..110;
            all.filter(|session| failed.has(STREAM, *session, now))
                .collect()
        };
        assert_eq!(known(&failed), [106, 107, 108, 109], "though still there");
        failed.insert(refusal(now, 200));

        assert_eq!(known(&failed), [106, 107, 108, 109]);
        assert_eq!(sessions(&failed), [106, 107, 108, 109, 200]);
    }

    #[test]
    fn a_session_that_was_forgotten_can_fail_again() {
        let mut failed = FailedSessions::new(10);
        failed.insert(refusal(1, 7));
        assert!(!failed.has(STREAM, 7, 11));
        failed.insert(refusal(11, 7));
        failed.insert(refusal(12, 8));
        assert!(failed.has(STREAM, 7, 20));
        assert_eq!(failed.refusals(), [refusal(11, 7), refusal(12, 8)]);
        failed.forget(21);
        assert_eq!(failed.refusals(), [refusal(12, 8)]);
    }

    #[test]
    fn sessions_of_different_streams_are_different() {
        let mut failed = FailedSessions::new(10);
        failed.insert(refusal(1, 7));
        assert!(!failed.has(StreamId(2), 7, 2));
        failed.insert(Refusal {
            stream: StreamId(2),
            ..refusal(2, 7)
        });
        failed.forget(11);
        assert!(!failed.has(STREAM, 7, 11));
        assert!(failed.has(StreamId(2), 7, 11));
    }
}
