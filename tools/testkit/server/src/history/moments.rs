//! When things took effect whose order is known, and whether one order of events explains all answers.
//!
//! Appends to a stream, and commits of a store, have positions: their order is known. What is not known is the moment
//! at which each took effect. Every answer is a bound on such moments: what was answered had taken effect by then, and
//! what an answer lacks had not taken effect when it was asked for. Two passes over the positions show whether all
//! bounds can be met in the order of positions: the earliest possible moments from the front, the latest from the back.

use std::time::Duration;

/// The moments at which things took effect, by position.
pub struct Moments {
    bounds: Vec<Bounds>,
}

#[derive(Clone, Copy)]
struct Bounds {
    earliest: Duration,
    latest: Duration,
}

impl Moments {
    /// So many, about which nothing is known yet.
    pub fn new(count: usize) -> Moments {
        let bounds = Bounds {
            earliest: Duration::ZERO,
            latest: Duration::MAX,
        };
        Moments {
            bounds: vec![bounds; count],
        }
    }

    /// The one at this position took effect no earlier than this moment. One after the last never did.
    pub fn no_earlier(&mut self, at: u64, moment: Duration) {
        if let Some(bounds) = self.at(at) {
            bounds.earliest = bounds.earliest.max(moment);
        }
    }

    /// The one at this position took effect no later than this moment. Returns whether there is one.
    pub fn no_later(&mut self, at: u64, moment: Duration) -> bool {
        let found = self.at(at);
        let is_there = found.is_some();
        if let Some(bounds) = found {
            bounds.latest = bounds.latest.min(moment);
        }
        is_there
    }

    fn at(&mut self, at: u64) -> Option<&mut Bounds> {
        self.bounds.get_mut(usize::try_from(at).ok()?)
    }

    /// Searches for moments that meet all bounds.
    ///
    /// # Errors
    ///
    /// There are none: the position, and its bounds that contradict each other.
    pub fn solve(mut self) -> Result<Solved, String> {
        let mut earliest = Duration::ZERO;
        for bounds in &mut self.bounds {
            earliest = earliest.max(bounds.earliest);
            bounds.earliest = earliest;
        }
        let mut latest = Duration::MAX;
        for (at, bounds) in self.bounds.iter_mut().enumerate().rev() {
            latest = latest.min(bounds.latest);
            bounds.latest = latest;
            if bounds.earliest > latest {
                return Err(format!(
                    "what is at {at} can have taken effect no earlier than {:?} and no later than {latest:?}",
                    bounds.earliest
                ));
            }
        }
        Ok(Solved {
            bounds: self.bounds,
        })
    }
}

/// The moments that are possible.
pub struct Solved {
    bounds: Vec<Bounds>,
}

impl Solved {
    /// The earliest possible moment of the one at this position; that of one after the last has not come.
    pub fn earliest(&self, at: u64) -> Duration {
        let bounds = usize::try_from(at).ok().and_then(|at| self.bounds.get(at));
        bounds.map_or(Duration::MAX, |bounds| bounds.earliest)
    }

    /// The latest possible moment of the one at this position.
    pub fn latest(&self, at: u64) -> Duration {
        let bounds = usize::try_from(at).ok().and_then(|at| self.bounds.get(at));
        bounds.map_or(Duration::MAX, |bounds| bounds.latest)
    }
}
