//! Waits with a deadline.

use std::time::{Duration, Instant};

/// Time limit for anything in a test that should happen soon. It is generous, because the machine may be
/// busy; only a failing test waits this long.
pub const SOON: Duration = Duration::from_secs(90);

/// Waits until a condition holds, with a check every few milliseconds.
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
