//! What the allocator keeps of freed memory.
//!
//! By itself, glibc returns large buffers and the end of a heap to the system as soon as they are freed, and
//! makes up to eight heaps a processor, each of which keeps what was freed between things that are still in
//! use. Read sessions use buffers of a MiB on any thread, so each of them began with 256 page faults, which took
//! more time than what was done with it, and each heap grew to what all sessions need.
//! [`set_up`] makes freed memory be used again instead: two heaps, from which nothing is returned.
//! [`release_freed`] returns it when sessions have released much or have used up what they may hold,
//! and now and then.

use std::convert::Infallible;
#[cfg(target_env = "gnu")]
use std::ffi::OsString;
use std::time::Duration;

use esker_server::ReadBudget;

/// Heaps of the process. Two threads that allocate at the same time rarely wait for each other.
#[cfg(target_env = "gnu")]
const MAX_HEAPS: libc::c_int = 2;
/// Larger buffers have memory of their own: the most that glibc allows.
#[cfg(target_env = "gnu")]
const MMAP_THRESHOLD: libc::c_int = 32 * 1024 * 1024;
/// Free bytes at the end of a heap from which on it is made smaller at once.
#[cfg(target_env = "gnu")]
const TRIM_THRESHOLD: libc::c_int = 256 * 1024 * 1024;
/// How often it is decided whether freed memory is returned.
const RELEASE_INTERVAL: Duration = Duration::from_secs(5);
/// Freed memory is returned at least once in so many intervals.
const MAX_INTERVALS: u32 = 12;
/// Bytes that sessions have released since freed memory was returned last, for it to be returned again.
/// Less is used again soon.
const MIN_RELEASED: usize = 32 * 1024 * 1024;

/// Sets the allocator up, unless the environment does. Must be called before threads are started.
pub fn set_up() {
    #[cfg(target_env = "gnu")]
    {
        let mut names = std::env::vars_os().map(|(name, _)| name);
        let is_set = |name: OsString| {
            let name = name.to_string_lossy();
            name.starts_with("MALLOC_") || name == "GLIBC_TUNABLES"
        };
        if names.any(is_set) {
            return;
        }
        for (parameter, value) in [
            (libc::M_ARENA_MAX, MAX_HEAPS),
            (libc::M_MMAP_THRESHOLD, MMAP_THRESHOLD),
            (libc::M_TRIM_THRESHOLD, TRIM_THRESHOLD),
        ] {
            // SAFETY: `mallopt` takes any numbers, and changes only how memory is allocated from now on.
            #[allow(unsafe_code)]
            unsafe {
                libc::mallopt(parameter, value);
            }
        }
    }
}

/// Returns freed memory to the system, whenever read sessions have released much of it or wait for some, and
/// once a minute.
pub async fn release_freed(reads: &ReadBudget) -> Infallible {
    let mut releases = Releases::default();
    loop {
        tokio::time::sleep(RELEASE_INTERVAL).await;
        if releases.is_due(reads.held(), reads.waiting()) {
            // It takes some milliseconds, and locks one heap after the other. A panic is not possible.
            let _ = tokio::task::spawn_blocking(trim).await;
        }
    }
}

/// Decides when freed memory is returned.
#[derive(Debug, Default)]
struct Releases {
    /// Most bytes that sessions held since the last time.
    highest: usize,
    /// Intervals since the last time.
    intervals: u32,
}

impl Releases {
    fn is_due(&mut self, held: usize, waiting: usize) -> bool {
        self.highest = self.highest.max(held);
        self.intervals += 1;
        let has_released = self.highest - held >= MIN_RELEASED;
        let is_due = waiting > 0 || has_released || self.intervals == MAX_INTERVALS;
        if is_due {
            *self = Releases {
                highest: held,
                intervals: 0,
            };
        }
        is_due
    }
}

fn trim() {
    #[cfg(target_env = "gnu")]
    // SAFETY: `malloc_trim` takes any number, and returns only pages in which nothing is allocated.
    #[allow(unsafe_code)]
    unsafe {
        libc::malloc_trim(0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: usize = 1024 * 1024;

    #[test]
    fn freed_memory_is_returned_when_much_was_released_or_none_is_left_or_a_minute_has_passed() {
        let mut releases = Releases::default();
        assert!(!releases.is_due(0, 0));
        assert!(!releases.is_due(100 * MIB, 0), "it grows");
        assert!(!releases.is_due(80 * MIB, 0), "a little was released");
        assert!(releases.is_due(68 * MIB, 0), "32 MiB were released");
        assert!(!releases.is_due(68 * MIB, 0), "that was returned");
        assert!(releases.is_due(0, 0));
        assert!(!releases.is_due(0, 0));
        assert!(releases.is_due(192 * MIB, 1), "sessions wait for memory");
        let due = (0..2 * MAX_INTERVALS).filter(|_| releases.is_due(192 * MIB, 0));
        assert_eq!(due.count(), 2);
    }
}
