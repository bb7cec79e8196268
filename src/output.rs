//! Standard output, which may be closed at any moment: `head` has seen enough, a pager was left. That
//! is no failure, and no reason to say anything. And standard error, which cannot be written at all
//! times either; that never changes how a command ends.
//!
//! `println!` and `eprintln!` panic where the write fails, so nothing in the binary uses them; clippy
//! keeps it so.

use std::fmt::Display;
use std::io::{self, Write as _};

use crate::exit::Failure;

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

/// Prints a text to standard error, without a line feed. If it cannot be written, nothing happens.
pub fn ask(text: impl Display) {
    // One write, so that lines of several processes do not mix.
    let _ = io::stderr().write_all(text.to_string().as_bytes());
}
