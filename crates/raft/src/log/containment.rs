//! Panics of raft-engine that are no reason to end the process: they become errors.
//!
//! A host may end its process at any panic, by a hook. Here two kinds of panics are known to leave the log as it
//! was, so the hook skips them:
//!
//! - **While it reads**: an entry differs from what its batch lists. Reported as damage.
//! - **While it writes, because no file can be opened**: raft-engine opens a new file, and then the directory,
//!   to sync it, without this module's [`fs`](super::fs), and takes no error. What it has done by then is
//!   repeated by the next attempt: it has closed the previous file and created the new one, which is empty but
//!   for its header, and has taken over neither the file nor an entry. The lock of the file is released
//!   while the stack unwinds.
//!
//! Every other panic reaches the hook. One of them has the same place in raft-engine and must: the sync of the
//! directory has failed, after which nothing can be promised.

use std::any::Any;
use std::cell::Cell;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::Once;

use rustix::io::Errno;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Contained {
    Nothing,
    /// Every panic.
    Read,
    /// A panic because no file can be opened.
    Open,
}

thread_local! {
    /// Which panics of this thread become errors.
    static CONTAINED: Cell<Contained> = const { Cell::new(Contained::Nothing) };
}

/// Runs a read of raft-engine. If it panics, what it read is damaged.
pub(super) fn contain_read<T>(
    read: impl FnOnce() -> raft_engine::Result<T>,
) -> raft_engine::Result<T> {
    contained(Contained::Read, read).unwrap_or_else(|_| {
        Err(raft_engine::Error::Corruption(
            "raft-engine panicked at what it read; the line before has the message".to_owned(),
        ))
    })
}

/// Runs what may begin a new file. If raft-engine panics because no file can be opened, that is the error.
pub(super) fn contain_open<T>(
    write: impl FnOnce() -> raft_engine::Result<T>,
) -> raft_engine::Result<T> {
    contained(Contained::Open, write).unwrap_or_else(|panic| match refused_open(&*panic) {
        Some(error) => {
            let message = format!("cannot open the directory to sync it: {error}");
            Err(io::Error::new(error.kind(), message).into())
        }
        None => resume_unwind(panic),
    })
}

fn contained<T>(which: Contained, run: impl FnOnce() -> T) -> std::thread::Result<T> {
    respect_containment();
    let before = CONTAINED.replace(which);
    let done = catch_unwind(AssertUnwindSafe(run));
    CONTAINED.set(before);
    done
}

/// The error with which the system refused to open a file, if the panic quotes one that a sync never has.
fn refused_open(panic: &(dyn Any + Send)) -> Option<io::Error> {
    // As `Result::unwrap` quotes it.
    let message = panic.downcast_ref::<String>()?;
    let (_, rest) = message.split_once("Os { code: ")?;
    let (code, _) = rest.split_once(',')?;
    let error = io::Error::from_raw_os_error(code.parse().ok()?);
    let refusals = [Errno::MFILE, Errno::NFILE].map(|errno| errno.raw_os_error());
    refusals.contains(&error.raw_os_error()?).then_some(error)
}

/// Replaces the process's panic hook, which may end the process, by one that skips contained panics.
fn respect_containment() {
    static INSTALLED: Once = Once::new();
    INSTALLED.call_once(|| {
        let hook = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| match CONTAINED.get() {
            Contained::Read => {
                tracing::error!(%info, "raft-engine panicked at what it read from the log");
            }
            Contained::Open if refused_open(info.payload()).is_some() => {
                tracing::warn!(%info, "raft-engine could open no file for the log; it is tried again");
            }
            Contained::Open | Contained::Nothing => hook(info),
        }));
    });
}
