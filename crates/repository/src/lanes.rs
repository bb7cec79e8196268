//! Limits how many requests that send files are under way at a time: fewer after a failure, more after
//! successes.
//!
//! Requests that share a slow network slow each other down until all of them fail and are sent again. After
//! a failure, half of the requests that were under way are admitted. Each time that as many requests as are
//! admitted have succeeded, one more is, up to [`Lanes::MAX_OPEN`].

use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::Notify;

/// The limit. See the module. Clones share it.
#[derive(Clone, Debug)]
pub(crate) struct Lanes(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    left: Notify,
}

#[derive(Debug)]
struct State {
    open: usize,
    used: usize,
    /// Requests that succeeded since `open` last changed.
    went_well: usize,
    /// Number of failures. Requests that fail together count as one.
    falls: u64,
    /// Failures since a request last succeeded.
    in_a_row: u32,
}

/// A place for one request. Dropping it frees the place.
#[must_use]
pub(crate) struct Lane {
    lanes: Lanes,
    falls: u64,
}

impl Lanes {
    /// Maximum number of open lanes. Before a failure, the memory of uploads is the lower limit.
    pub(crate) const MAX_OPEN: usize = 64;

    pub(crate) fn new() -> Lanes {
        let state = State {
            open: Lanes::MAX_OPEN,
            used: 0,
            went_well: 0,
            falls: 0,
            in_a_row: 0,
        };
        Lanes(Arc::new(Shared {
            state: Mutex::new(state),
            left: Notify::new(),
        }))
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        // Each change leaves the state consistent, so a poisoned lock can be used.
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for a free place.
    pub(crate) async fn enter(&self) -> Lane {
        loop {
            let left = self.0.left.notified();
            let mut left = std::pin::pin!(left);
            left.as_mut().enable();
            {
                let mut state = self.state();
                if state.used < state.open {
                    state.used += 1;
                    return Lane {
                        lanes: self.clone(),
                        falls: state.falls,
                    };
                }
            }
            left.await;
        }
    }
}

impl Lane {
    /// Records that the request succeeded.
    pub(crate) fn went_well(&self) {
        let mut state = self.lanes.state();
        state.went_well += 1;
        state.in_a_row = 0;
        if state.went_well >= state.open && state.open < Lanes::MAX_OPEN {
            state.open += 1;
            state.went_well = 0;
            drop(state);
            self.lanes.0.left.notify_waiters();
        }
    }

    /// Records that the request failed, for a reason that other requests may share. Returns the number of
    /// failures since a request last succeeded; requests that fail together count once.
    pub(crate) fn failed(&self) -> u32 {
        let mut state = self.lanes.state();
        // A request that began before the last failure does not count again.
        if self.falls == state.falls {
            state.falls += 1;
            state.in_a_row += 1;
            state.went_well = 0;
            state.open = (state.used / 2).max(1);
            tracing::debug!(open = state.open, "Fewer files are sent at a time");
        }
        state.in_a_row
    }
}

impl Drop for Lane {
    fn drop(&mut self) {
        self.lanes.state().used -= 1;
        self.lanes.0.left.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt as _;

    use super::*;

    fn now(lanes: &Lanes) -> Option<Lane> {
        lanes.enter().now_or_never()
    }

    #[test]
    fn half_as_many_are_let_through_after_a_failure_and_more_again_when_they_go_well() {
        let lanes = Lanes::new();
        let mut sent: Vec<Lane> = (0..6).map(|_| now(&lanes).unwrap()).collect();
        for lane in &sent {
            lane.failed();
        }
        assert!(
            now(&lanes).is_none(),
            "they are one failure: three are open, and six are used"
        );
        sent.truncate(2);
        let third = now(&lanes).unwrap();
        assert!(now(&lanes).is_none());
        for _ in 0..3 {
            third.went_well();
        }
        let fourth = now(&lanes).unwrap();
        assert!(now(&lanes).is_none());
        drop((sent, third, fourth));
        let last = now(&lanes).unwrap();
        for _ in 0..10 {
            last.failed();
        }
        assert!(now(&lanes).is_none());
        drop(last);
        assert!(now(&lanes).is_some(), "one is always open");
    }
}
