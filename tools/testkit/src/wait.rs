//! Waits with a deadline.

use std::time::{Duration, Instant};

/// Longest that anything in a test may take that should happen soon. Generous, because the machine
/// may be busy; only a failing test waits this long.
pub const SOON: Duration = Duration::from_secs(90);

/// Waits until something holds, looking every few milliseconds.
///
/// # Panics
///
/// After [`SOON`], with `what`.
pub fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let began = Instant::now();
    while !holds() {
        assert!(began.elapsed() < SOON, "not within {SOON:?}: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}
