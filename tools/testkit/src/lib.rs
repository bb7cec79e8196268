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

pub mod corruption;
pub mod ports;
pub mod process;
pub mod seeds;
pub mod wait;
