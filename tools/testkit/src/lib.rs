//! What all tests share.
//!
//! | module | what it holds |
//! |---|---|
//! | [`process`] | the program `esker` and its processes: start, log, signals, end |
//! | [`wait`] | waits with a deadline |
//! | [`ports`] | ports that nothing listens on |
//! | [`seeds`] | the variables that choose the seeds of randomised tests |
//! | [`corruption`] | damage to files |
//!
//! The S3 server is in `testkit-s3`; servers with their clients are in `testkit-server`.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a panic fails the test"
)]

use std::io::Write as _;

pub mod corruption;
pub mod ports;
pub mod process;
pub mod seeds;
pub mod wait;

/// Reports that a test has tried nothing, and why. It is written past the harness, which captures what tests print
/// until they fail: whoever reads the output of a run sees what was not tried on this machine.
pub fn skipped(why: &str) {
    // One write, so that lines of tests that run at once do not mix.
    let line = format!("SKIPPED: {why}\n");
    let _ = std::io::stderr().write_all(line.as_bytes());
}
