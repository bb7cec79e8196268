//! Standard output, which may be closed at any moment: `head` has seen enough, a pager was left. That
//! is no failure, and no reason to say anything. And standard error, which cannot be written at all
//! times either; that never changes how a command ends.
//!
//! `println!` and `eprintln!` panic where the write fails, so nothing in the binary uses them; clippy
//! keeps it so.

use std::fmt::Display;
use std::io::{self, IsTerminal as _, Write as _};
use std::os::fd::AsFd as _;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures::FutureExt as _;
use tokio::io::Interest;
use tokio::net::unix::pipe::Sender;

use crate::failure::Failure;

/// How often a socket at standard output is looked at.
const UNREAD_INTERVAL: Duration = Duration::from_millis(500);

/// Whether remarks and progress are left out.
static QUIET: AtomicBool = AtomicBool::new(false);

/// Leaves out remarks and progress, if that is wanted.
pub fn be_quiet(quiet: bool) {
    QUIET.store(quiet, Ordering::Relaxed);
}

/// Whether remarks are printed.
pub fn remarks() -> bool {
    !QUIET.load(Ordering::Relaxed)
}

/// Whether progress is drawn: somebody looks at standard error, and wants it.
pub fn draws_progress() -> bool {
    remarks() && io::stderr().is_terminal()
}

/// What became of something that was written to standard output.
#[derive(Debug, PartialEq, Eq)]
pub enum Written {
    /// It is written.
    Yes,
    /// Nobody reads it any more.
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

/// Waits until nobody reads standard output any more, which a write would tell, too, but only when
/// there is something to write. Waits for ever where that cannot be known: a file has no reader.
pub async fn unread() {
    // Only watched: its mode stays as it is, because others may have the same pipe.
    let watched = io::stdout().as_fd().try_clone_to_owned();
    let Ok(out) = watched.and_then(Sender::from_owned_fd_unchecked) else {
        return std::future::pending().await;
    };
    loop {
        tokio::select! {
            _ = out.ready(Interest::ERROR) => return,
            // A socket that was closed at the other end has no error.
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

/// Prints a line to standard error, with the arguments of `format!`. If it cannot be written, the exit
/// code still tells how the command ended.
macro_rules! say {
    ($($argument:tt)*) => {
        $crate::output::ask(format_args!("{}\n", format_args!($($argument)*)))
    };
}

/// Prints a remark to standard error: what is good to know, and no result, error, warning or question. It
/// is left out with `--quiet`.
macro_rules! remark {
    ($($argument:tt)*) => {
        if $crate::output::remarks() {
            let text = format!($($argument)*);
            $crate::output::ask(format_args!("{}\n", $crate::term::Paint::stderr().dim(text)))
        }
    };
}

/// Prints a text to standard error, without a line feed. If it cannot be written, nothing happens.
pub fn ask(text: impl Display) {
    // One write, so that lines of several processes do not mix.
    let _ = io::stderr().write_all(text.to_string().as_bytes());
}
