//! Snapshot-and-follow against a real server: the library through the official client, and the command as a
//! process.
//!
//! | module | what it shows |
//! |---|---|
//! | [`promises`] | restarts, disconnects, busy streams: nothing missing, nothing twice |
//! | [`lineages`] | histories that were lost in part, which only Esker has |
//! | [`command`] | `esker follow`, as a process |
//! | [`place`] | a server, and a separate stream for each test |
//!
//! With `ESKER_TEST_ENDPOINT=http://HOST:PORT`, the tests that need only the S2 API run against that server,
//! and the others are skipped: `make follow-lite` does so with `s2 lite`.

#![allow(clippy::unwrap_used)]

/// Servers and clients, from the test kit.
use testkit_server as support;

mod command;
mod lineages;
mod place;
mod promises;
