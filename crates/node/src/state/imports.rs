//! The imports that this process makes: how many there are, and which.

use std::collections::BTreeSet;
use std::sync::Arc;

use parking_lot::Mutex;

use super::error::StateError;

/// Imports that are sent or take effect at a time: one is in the log, and another one is sent meanwhile. Each has an
/// open file, and up to as much on the disk as a snapshot has.
const MAX_IMPORTS: usize = 2;
const RUNNING: &str = "esker_state_imports_running";

/// See the [module's head](self).
#[derive(Debug)]
pub(super) struct Imports(Arc<Mutex<BTreeSet<u64>>>);

/// An import that this process makes, until it is dropped.
#[derive(Debug)]
pub struct Importing {
    all: Arc<Mutex<BTreeSet<u64>>>,
    id: u64,
}

impl Default for Imports {
    fn default() -> Imports {
        metrics::gauge!(RUNNING).set(0.0);
        Imports(Arc::default())
    }
}

impl Imports {
    /// Begins an import, of this number in the log.
    ///
    /// # Errors
    ///
    /// [`StateError::Unavailable`] if as many are under way as may be.
    pub fn begin(&self, id: u64) -> Result<Importing, StateError> {
        let mut all = self.0.lock();
        if all.len() >= MAX_IMPORTS {
            return Err(StateError::Unavailable(format!(
                "{MAX_IMPORTS} imports run at a time: try again when one has ended"
            )));
        }
        all.insert(id);
        metrics::gauge!(RUNNING).set(all.len() as f64);
        Ok(Importing {
            all: self.0.clone(),
            id,
        })
    }

    /// Whether this process makes the import.
    pub fn contains(&self, id: u64) -> bool {
        self.0.lock().contains(&id)
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
    use super::*;

    #[test]
    fn so_many_imports_run_at_a_time_and_the_next_one_when_one_has_ended() {
        let imports = Imports::default();
        let first = imports.begin(1).unwrap();
        let second = imports.begin(2).unwrap();
        let refused = imports.begin(3).unwrap_err();
        assert!(matches!(refused, StateError::Unavailable(_)), "{refused}");
        assert!(imports.contains(1) && imports.contains(2) && !imports.contains(3));
        drop(first);
        assert!(!imports.contains(1));
        let third = imports.begin(3).unwrap();
        assert_eq!((second.id(), third.id()), (2, 3));
    }
}
