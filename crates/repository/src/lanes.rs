//! How many requests that send files are under way at a time: fewer after one failed, more after many
//! went well.
//!
//! Several that share a slow network slow each other down until all of them fail, and are all begun
//! again. After a failure half as many are let through; each time that as many as are let through went
//! well, one more is, up to what there is memory for.

use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::Notify;

/// See the module. Clones are the same.
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
    /// Requests that went well since `open` last changed.
    went_well: usize,
    /// How often one was closed. Those that share a failure are one failure.
    falls: u64,
    /// Of these, since one last went well.
    in_a_row: u32,
}

/// A place for one request, until it is dropped.
#[must_use]
pub(crate) struct Lane {
    lanes: Lanes,
    falls: u64,
}

impl Lanes {
    /// Most that are ever open: without a limit of its own, the limit is the memory of uploads.
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
        // Each change leaves it whole.
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for a place.
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
    /// Its request was answered.
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

    /// Its request failed, for a reason that others may share; how often that happened since one last
    /// went well. Those that failed together count once.
    pub(crate) fn failed(&self) -> u32 {
        let mut state = self.lanes.state();
        // Those that began before the last fall tell nothing new.
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
