//! The priority of threads whose work can wait, and of those for which clients wait.
//!
//! The work that can wait is that of snapshots and their uploads, beside appends: it gets a lower priority for
//! the processor and for the disk ([`lower_priority`]). Clients wait for the threads on the path of a request: they
//! ask for short time slices ([`shorten_time_slice`]).
//!
//! Linux has all of these per thread, and a thread that is spawned inherits the first two. Where one cannot
//! be changed, the thread keeps it: the work is the same, and competes as before.

use std::cell::Cell;

/// Niceness of a thread of the background. With 10, such a thread gets a tenth of a processor for which
/// another thread competes all of the time: enough that a snapshot ends, and that a lock which it holds is
/// released soon.
const NICENESS: i32 = 10;

/// How a thread competes for the disk. Only schedulers that know priorities (`bfq`, `mq-deadline`) heed it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DiskPriority {
    /// Behind all others. For threads that read what can be read later: `mq-deadline` makes a request wait
    /// for 10 s at most, `bfq` for less.
    Idle,
    /// The lowest with a share of its own. For threads that sync files, for which others may wait.
    Lowest,
}

/// Gives the calling thread a low priority, for the processor and for the disk.
pub fn lower_priority(disk: DiskPriority) {
    // Without a process, both calls are for the calling thread. Everybody may raise a niceness.
    if rustix::process::getpriority_process(None).is_ok_and(|present| present < NICENESS) {
        let _ = rustix::process::setpriority_process(None, NICENESS);
    }
    set_disk_priority(disk);
}

/// The time slice of a thread for which clients wait, in nanoseconds: the least that Linux takes. Such a thread
/// works for some 10 to 100 µs and waits again.
const SHORT_TIME_SLICE: u64 = 100_000;

/// Makes the calling thread run soon after it is woken, although other threads use all processors.
///
/// Without it, a thread that is woken waits until the one that runs has used up its time slice, which is noticed
/// at a tick of the kernel: 4 ms each time, if it ticks 250 times a second. One with a shorter time slice
/// interrupts one with a longer one (Linux 6.12 and later). It gets no larger share of the processors, and needs
/// no privilege. Threads that it spawns have time slices as if it had not.
pub fn shorten_time_slice() {
    set_time_slice(SHORT_TIME_SLICE);
}

/// The same, for a hook that a runtime calls each time one of its threads has nothing to do. Only the threads that run
/// tasks are parked; those on which work may block are not, and keep their time slices.
pub fn shorten_time_slice_once() {
    thread_local! {
        static IS_SHORT: Cell<bool> = const { Cell::new(false) };
    }
    if !IS_SHORT.replace(true) {
        shorten_time_slice();
    }
}

/// Runs work on a thread of low priority, and waits for it; on this thread if no other can be started.
///
/// # Panics
///
/// If the work does.
pub fn at_low_priority<T: Send>(disk: DiskPriority, work: impl FnOnce() -> T + Send) -> T {
    let work = std::sync::Mutex::new(Some(work));
    let take = || work.lock().ok().and_then(|mut work| work.take());
    let done = std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().name("low-priority".to_owned());
        let thread = thread.spawn_scoped(scope, || {
            lower_priority(disk);
            take().map(|work| work())
        });
        match thread.map(|thread| thread.join()) {
            Ok(Ok(done)) => done,
            Ok(Err(panic)) => std::panic::resume_unwind(panic),
            Err(_) => take().map(|work| work()),
        }
    });
    match done {
        Some(done) => done,
        None => unreachable!("the work is taken by one of the two threads"),
    }
}

/// See `ioprio_set(2)`. The C library has no function for it.
#[cfg(target_os = "linux")]
fn set_disk_priority(disk: DiskPriority) {
    const WHO_PROCESS: libc::c_int = 1;
    const CLASS_SHIFT: u32 = 13;
    const CLASS_BEST_EFFORT: libc::c_int = 2;
    const CLASS_IDLE: libc::c_int = 3;
    let priority = match disk {
        DiskPriority::Idle => CLASS_IDLE << CLASS_SHIFT,
        DiskPriority::Lowest => CLASS_BEST_EFFORT << CLASS_SHIFT | 7,
    };
    // SAFETY: the call takes three integers and accesses no memory of the process.
    #[allow(unsafe_code)]
    unsafe {
        libc::syscall(libc::SYS_ioprio_set, WHO_PROCESS, 0, priority);
    }
}

#[cfg(not(target_os = "linux"))]
fn set_disk_priority(_: DiskPriority) {}

/// `struct sched_attr` of `sched_setattr(2)`, in its first version.
#[cfg(target_os = "linux")]
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct SchedulingAttributes {
    size: u32,
    policy: u32,
    flags: u64,
    nice: i32,
    priority: u32,
    /// The time slice, for threads without a real-time policy.
    runtime: u64,
    deadline: u64,
    period: u64,
}

#[cfg(target_os = "linux")]
impl SchedulingAttributes {
    const SIZE: u32 = size_of::<SchedulingAttributes>() as u32;

    /// Those of the calling thread.
    fn of_this_thread() -> Option<SchedulingAttributes> {
        let mut found = SchedulingAttributes::default();
        // SAFETY: the kernel writes `SIZE` bytes at most, which is the size of `found`.
        #[allow(unsafe_code)]
        let failed =
            unsafe { libc::syscall(libc::SYS_sched_getattr, 0, &raw mut found, Self::SIZE, 0) };
        (failed == 0).then_some(found)
    }
}

/// See `sched_setattr(2)`. The C library of some systems has no function for it.
#[cfg(target_os = "linux")]
fn set_time_slice(nanoseconds: u64) {
    const POLICY_OTHER: u32 = 0;
    const RESET_ON_FORK: u64 = 1;
    let Some(present) = SchedulingAttributes::of_this_thread() else {
        return;
    };
    // An operator who has chosen another policy keeps it.
    if present.policy != POLICY_OTHER {
        return;
    }
    let wanted = SchedulingAttributes {
        size: SchedulingAttributes::SIZE,
        flags: present.flags | RESET_ON_FORK,
        runtime: nanoseconds,
        ..present
    };
    // SAFETY: the kernel reads `SIZE` bytes, which is the size of `wanted`.
    #[allow(unsafe_code)]
    unsafe {
        libc::syscall(libc::SYS_sched_setattr, 0, &raw const wanted, 0);
    }
}

/// Whether the calling thread has a short time slice; `None` if this kernel has none.
#[cfg(all(test, target_os = "linux"))]
pub(crate) fn has_short_time_slice() -> Option<bool> {
    let present = SchedulingAttributes::of_this_thread()?.runtime;
    (present > 0).then_some(present == SHORT_TIME_SLICE)
}

#[cfg(not(target_os = "linux"))]
fn set_time_slice(_: u64) {}

#[cfg(test)]
#[cfg(target_os = "linux")]
mod tests {
    use super::*;

    fn of_this_thread() -> (i32, libc::c_long) {
        let niceness = rustix::process::getpriority_process(None).unwrap();
        // SAFETY: the call takes two integers and accesses no memory of the process.
        #[allow(unsafe_code)]
        let disk = unsafe { libc::syscall(libc::SYS_ioprio_get, 1, 0) };
        (niceness, disk)
    }

    #[test]
    fn a_thread_lowers_its_own_priority_and_no_other_threads() {
        let before = of_this_thread();
        let lowered = |disk| {
            let thread = std::thread::spawn(move || {
                lower_priority(disk);
                of_this_thread()
            });
            thread.join().unwrap()
        };
        let niceness = before.0.max(NICENESS);
        assert_eq!(lowered(DiskPriority::Idle), (niceness, 3 << 13));
        assert_eq!(lowered(DiskPriority::Lowest), (niceness, (2 << 13) | 7));
        assert_eq!(of_this_thread(), before);
    }
    #[test]
    fn a_thread_shortens_its_own_time_slice_and_neither_its_priority_nor_the_slices_of_others() {
        let attributes = || SchedulingAttributes::of_this_thread().unwrap();
        let before = (attributes(), of_this_thread());
        let thread = std::thread::spawn(move || {
            shorten_time_slice();
            let spawned = std::thread::spawn(attributes).join().unwrap();
            (attributes(), of_this_thread(), spawned)
        });
        let (shortened, priority, spawned) = thread.join().unwrap();
        assert_eq!(priority, before.1);
        assert_eq!(shortened.policy, before.0.policy);
        // Earlier kernels have no time slices of threads.
        if before.0.runtime > 0 {
            assert_eq!(shortened.runtime, SHORT_TIME_SLICE);
        }
        assert_eq!(spawned.runtime, before.0.runtime);
        assert_eq!((attributes(), of_this_thread()), before);
    }
}
