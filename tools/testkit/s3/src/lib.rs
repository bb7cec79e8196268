//! S3 servers for tests and measurements, in the caller's own process, on loopback ports.
//!
//! | module | what it holds |
//! |---|---|
//! | [`server`] | [`S3Server`]: connections, the log of requests, and the faults around them |
//! | [`request`] | the operation and the key of a request |
//! | [`faults`] | faults of requests, and stores that break their promises |
//! | [`files`] | objects stored by `s3s`, an independent implementation that checks signatures |
//! | [`objects`] | objects of one bucket, in memory or synced to disk, without signatures: fast |
//! | [`store`] | the interface between a server and either store |
//! | [`slow_link`] | a network with a limited rate |
//!
//! [`S3Server::start`] runs the first kind of store, [`S3Server::in_memory`] and
//! [`S3Server::on_disk`] the second.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a panic fails the test"
)]

pub mod faults;
pub mod files;
pub mod objects;
pub mod request;
pub mod server;
pub mod slow_link;
pub mod store;

pub use faults::{Fault, Faults, Lie, Matching};
pub use objects::BUCKET;
pub use request::{Operation, Received};
pub use server::{Door, S3Server};
pub use slow_link::SlowLink;
