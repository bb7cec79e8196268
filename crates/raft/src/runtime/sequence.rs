//! Proposals of one sender whose order counts: after one that is refused, none is accepted.
//!
//! A proposal that waits for the log is refused later than it is made. Its sender may have made others by then,
//! and they must not be accepted, for their sender counts on the refused one before them.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::error::ProposeError;

/// Numbers the proposals of one sender, in the order in which they are made, and remembers the first refused one.
#[derive(Debug)]
pub struct Sequence {
    next: AtomicU64,
    /// `u64::MAX` if none was refused.
    first_refused: AtomicU64,
}

impl Default for Sequence {
    fn default() -> Self {
        Sequence {
            next: AtomicU64::new(0),
            first_refused: AtomicU64::new(u64::MAX),
        }
    }
}

impl Sequence {
    /// The place of the proposal that is made now.
    pub(super) fn next(self: &Arc<Self>) -> Place {
        Place {
            number: self.next.fetch_add(1, Ordering::Relaxed),
            sequence: self.clone(),
        }
    }
}

/// The place of a proposal in its sequence.
#[derive(Debug)]
pub(super) struct Place {
    sequence: Arc<Sequence>,
    number: u64,
}

impl Place {
    /// Refuses a proposal before which one was refused.
    pub fn check(&self) -> Result<(), ProposeError> {
        match self.number > self.sequence.first_refused.load(Ordering::Relaxed) {
            true => Err(ProposeError::Refused(
                "an earlier one of its sequence was refused".to_owned(),
            )),
            false => Ok(()),
        }
    }

    /// The proposal is refused. To be called under the engine's lock, or before the proposal is queued.
    pub fn refused(&self) {
        let first = &self.sequence.first_refused;
        first.fetch_min(self.number, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn those_after_a_refused_one_are_refused_and_those_before_it_are_not() {
        let sequence = Arc::new(Sequence::default());
        let places: Vec<_> = (0..4).map(|_| sequence.next()).collect();
        places[2].refused();
        places[3].refused();
        let refused: Vec<_> = places.iter().map(|place| place.check().is_err()).collect();
        assert_eq!(refused, [false, false, false, true]);
        assert!(sequence.next().check().is_err());
    }
}
