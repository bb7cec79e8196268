//! The identity of the destination that this process has seen.

use std::sync::{Arc, Mutex, PoisonError};

use crate::ids::DestinationId;

/// The id of the destination that this process has seen, if any. Clones share it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Seen(Arc<Mutex<Option<DestinationId>>>);

impl Seen {
    pub(crate) fn get(&self) -> Option<DestinationId> {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn set(&self, id: DestinationId) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(id);
    }
}
