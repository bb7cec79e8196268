//! Standard output and standard error. Standard output may be closed at any moment, as by `head` or a pager:
//! that is no failure, and no message is printed about it. Standard error may be unwritable, too; that never
//! changes how a command ends.
//!
//! `println!` and `eprintln!` panic where the write fails, so nothing in the binary uses them; a lint of
//! clippy enforces this.

use std::fmt::Display;
use std::io::{self, IsTerminal as _, Write as _};
use std::os::fd::AsFd as _;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures::FutureExt as _;
use tokio::io::Interest;
use tokio::net::unix::pipe::Sender;

use crate::failure::Failure;

/// Interval at which a socket at standard output is checked.
const UNREAD_INTERVAL: Duration = Duration::from_millis(500);

/// Whether remarks and progress are left out.
static QUIET: AtomicBool = AtomicBool::new(false);

/// With `quiet`, leaves out remarks and progress.
pub fn be_quiet(quiet: bool) {
    QUIET.store(quiet, Ordering::Relaxed);
}

/// Whether remarks are printed.
pub fn remarks() -> bool {
    !QUIET.load(Ordering::Relaxed)
}

/// Whether progress is drawn: standard error is a terminal, and `--quiet` is not set.
pub fn draws_progress() -> bool {
    remarks() && io::stderr().is_terminal()
}

/// The outcome of a write to standard output.
#[derive(Debug, PartialEq, Eq)]
pub enum Written {
    /// It is written.
    Yes,
    /// Standard output has no reader any more.
    NobodyReads,
}

/// Turns the result of writing to standard output into an answer or a failure.
pub fn written(result: io::Result<()>) -> Result<Written, Failure> {
    match result {
        Ok(()) => Ok(Written::Yes),
        Err(e) if e.kind() == io::ErrorKind::BrokenPipe => Ok(Written::NobodyReads),
        Err(e) => Err(Failure::wrong("io", format!("writing the output: {e}"))),
    }
}

/// Waits until standard output has no reader any more. A write would report this, too, but only when there is
/// something to write. Waits for ever where this cannot be known: a file has no reader.
pub async fn unread() {
    // The descriptor is only watched: its mode stays unchanged, because other processes may share the pipe.
    let watched = io::stdout().as_fd().try_clone_to_owned();
    let Ok(out) = watched.and_then(Sender::from_owned_fd_unchecked) else {
        return std::future::pending().await;
    };
    loop {
        tokio::select! {
            _ = out.ready(Interest::ERROR) => return,
            // A socket that the other end closed reports no error, so it is checked at intervals.
            () = tokio::time::sleep(UNREAD_INTERVAL) => {
                let ready = out.ready(Interest::WRITABLE).now_or_never();
                if ready.is_some_and(|ready| ready.is_ok_and(|ready| ready.is_write_closed())) {
                    return;
                }
            }
        }
    }
}

/// Prints a text and a line feed.
pub fn print(text: impl Display) -> Result<(), Failure> {
    let mut out = io::stdout().lock();
    written(writeln!(out, "{text}").and_then(|()| out.flush()))?;
    Ok(())
}

/// Prints a line to standard error, with the arguments of `format!`. If it cannot be written, the exit code
/// still reports how the command ended.
macro_rules! say {
    ($($argument:tt)*) => {
        $crate::output::ask(format_args!("{}\n", format_args!($($argument)*)))
    };
}

/// Prints a remark to standard error: information that is no result, error, warning or question. It is left
/// out with `--quiet`.
macro_rules! remark {
    ($($argument:tt)*) => {
        if $crate::output::remarks() {
            let text = format!($($argument)*);
            $crate::output::ask(format_args!("{}\n", $crate::term::Paint::stderr().dim(text)))
        }
    };
}

/// Prints a text to standard error, without a line feed. A failed write is ignored.
pub fn ask(text: impl Display) {
    // One write, so that lines of several processes do not mix.
    let _ = io::stderr().write_all(text.to_string().as_bytes());
}
