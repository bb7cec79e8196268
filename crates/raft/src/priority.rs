//! The priority of threads whose work can wait: snapshots and their uploads, beside appends.
//!
//! Linux has both priorities per thread, and a thread that is spawned inherits them. Where a priority cannot
//! be changed, the thread keeps it: the work is the same, and competes with appends as before.

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
}
