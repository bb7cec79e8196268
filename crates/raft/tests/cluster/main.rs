//! Groups of several members: the real runtime, real disks, both transports.
//!
//! - [`host`]: a state machine with knobs, and the nodes of a cluster;
//! - [`replication`]: elections, restarts, reads, membership;
//! - [`snapshots`]: catching up by bytes and by files, slow and failing captures;
//! - [`transfers`]: what may happen in the middle of one.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

mod host;
mod replication;
mod snapshots;
mod transfers;
