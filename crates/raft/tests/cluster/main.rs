//! Groups of several members: the real runtime, real disks, both transports.
//!
//! - [`host`]: a state machine that tests control, and the nodes of a cluster;
//! - [`replication`]: elections, restarts, reads, membership;
//! - [`snapshots`]: catching up by bytes and by files, slow and failing captures;
//! - [`slow_disks`]: snapshots on a disk that hangs;
//! - `tls`: members with certificates, and strangers without;
//! - [`transfers`]: what may happen in the middle of one;
//! - [`versions`]: members that write newer formats than others.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

mod host;
mod replication;
mod slow_disks;
mod snapshots;
#[cfg(feature = "grpc")]
mod tls;
mod transfers;
mod versions;
