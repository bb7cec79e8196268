//! Standard output, which may be closed at any moment: `head` has seen enough, a pager was left. That
//! is no failure, and no reason to say anything.

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
