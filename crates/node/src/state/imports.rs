//! The imports that this process makes: how many there are, which, and whose turn it is.
//!
//! A client decides how long its import takes, so a principal has a share of the places, and those that are free are
//! given in turns by principal ([`FairBudget`]).

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;

use super::error::StateError;
use crate::admission::{Client, FairBudget, FairPermit, SharePolicy};

/// Imports that are sent or take effect at a time. One principal has two of them: one is in the log, and another one is
/// sent meanwhile; the third is left to others. Each has an open file, and up to as much on the disk as a snapshot has.
const MAX_IMPORTS: usize = 3;
/// How long an import waits for a place.
const TURN_TIMEOUT: Duration = Duration::from_secs(10);
const RUNNING: &str = "esker_state_imports_running";
const WAITING: &str = "esker_state_imports_waiting";

/// See the [module's head](self).
#[derive(Debug)]
pub(super) struct Imports {
    places: FairBudget,
    all: Arc<Mutex<BTreeSet<u64>>>,
}

/// An import that this process makes, until it is dropped.
#[derive(Debug)]
pub struct Importing {
    all: Arc<Mutex<BTreeSet<u64>>>,
    id: u64,
    _place: FairPermit,
}

impl Default for Imports {
    fn default() -> Imports {
        metrics::gauge!(RUNNING).set(0.0);
        metrics::gauge!(WAITING).set(0.0);
        Imports {
            places: FairBudget::new(MAX_IMPORTS, SharePolicy::OverFree),
            all: Arc::default(),
        }
    }
}

impl Imports {
    /// Begins an import, of this number in the log, in turn.
    ///
    /// # Errors
    ///
    /// [`StateError::Unavailable`] if its turn has not come in time.
    pub async fn begin(&self, client: Client, id: u64) -> Result<Importing, StateError> {
        let waiting = Waiting::begin();
        let place = self.places.take(client, 1, TURN_TIMEOUT).await;
        drop(waiting);
        let place = place.map_err(|_| {
            StateError::Unavailable(format!(
                "{MAX_IMPORTS} imports run at a time, at most {} of them of one principal, and no place has become free \
                 within {} s: try again when one has ended",
                MAX_IMPORTS - 1,
                TURN_TIMEOUT.as_secs()
            ))
        })?;
        let mut all = self.all.lock();
        all.insert(id);
        metrics::gauge!(RUNNING).set(all.len() as f64);
        Ok(Importing {
            all: self.all.clone(),
            id,
            _place: place,
        })
    }

    /// Whether this process makes the import.
    pub fn contains(&self, id: u64) -> bool {
        self.all.lock().contains(&id)
    }
}

/// Counts an import that waits, until it is dropped.
struct Waiting;

impl Waiting {
    fn begin() -> Waiting {
        metrics::gauge!(WAITING).increment(1.0);
        Waiting
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        metrics::gauge!(WAITING).decrement(1.0);
    }
}

impl Importing {
    pub(super) fn id(&self) -> u64 {
        self.id
    }
}

impl Drop for Importing {
    fn drop(&mut self) {
        let mut all = self.all.lock();
        all.remove(&self.id);
        metrics::gauge!(RUNNING).set(all.len() as f64);
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt as _;

    use super::*;

    fn of(principal: u64) -> Client {
        Client {
            principal,
            connection: 0,
        }
    }

    #[tokio::test(start_paused = true)]
    async fn so_many_imports_run_at_a_time_and_the_next_one_when_one_has_ended() {
        let imports = Imports::default();
        let begin = |principal, id| imports.begin(of(principal), id);
        let first = begin(1, 1).await.unwrap();
        let second = begin(1, 2).await.unwrap();
        let third = begin(2, 3).await.unwrap();
        let late = tokio::time::timeout(2 * TURN_TIMEOUT, begin(3, 4)).await;
        let refused = late.expect("it does not wait for ever").unwrap_err();
        assert!(matches!(refused, StateError::Unavailable(_)), "{refused}");
        assert!(imports.contains(1) && imports.contains(2) && imports.contains(3));
        assert!(!imports.contains(4));
        let mut next = Box::pin(begin(3, 4));
        assert!((&mut next).now_or_never().is_none());
        drop(first);
        assert!(!imports.contains(1));
        let fourth = next.now_or_never().expect("it has a place").unwrap();
        assert_eq!((second.id(), third.id(), fourth.id()), (2, 3, 4));
    }

    #[tokio::test]
    async fn imports_that_one_principal_sends_slowly_leave_a_place_to_others() {
        let imports = Imports::default();
        let begin = |principal, id| Box::pin(imports.begin(of(principal), id));
        let slow: Vec<_> = (1..=2)
            .map(|id| begin(1, id).now_or_never().expect("a place").unwrap())
            .collect();
        let mut flood: Vec<_> = (10..100).map(|id| begin(1, id)).collect();
        for waits in &mut flood {
            assert!(waits.now_or_never().is_none(), "it has its share");
        }
        // Another one has a place, again and again.
        for id in 3..6 {
            let other = begin(2, id).now_or_never();
            drop(other.expect("there is a place").unwrap());
        }
        drop((slow, flood));
        assert_eq!((imports.places.taken(), imports.places.waiting()), (0, 0));
    }
}
