//! Panics of raft-rs stop one group, not the process.
//!
//! raft-rs panics when a message or the log contradicts what it knows to be committed. Nothing of such a step
//! leaves the engine, so the group can be halted as if its log were damaged; other groups go on. A host that
//! ends its process on panics asks [`panic_is_caught`] in its hook.

use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind};

thread_local! {
    static GUARDED: Cell<bool> = const { Cell::new(false) };
}

/// Whether a panic of this thread, now, stops one group alone, so that the process may go on.
pub fn panic_is_caught() -> bool {
    GUARDED.get()
}

/// Runs `f`; the message of its panic if it panics. What `f` changes must not be used after that.
pub(super) fn guarded<T>(f: impl FnOnce() -> T) -> Result<T, String> {
    let before = GUARDED.replace(true);
    let done = catch_unwind(AssertUnwindSafe(f));
    GUARDED.set(before);
    done.map_err(|panic| {
        let text = panic.downcast_ref::<String>().map(String::as_str);
        let text = text.or_else(|| panic.downcast_ref::<&str>().copied());
        format!(
            "consensus contradicts itself: this member's log or a message is corrupt: {}",
            text.unwrap_or("it panicked without a message")
        )
    })
}
