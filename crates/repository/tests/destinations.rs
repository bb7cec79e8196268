//! S3 and a local directory satisfy the same promises; the other modules test what is specific to each.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "these are tests")]

mod support;

#[path = "destinations/local.rs"]
mod local;
#[path = "destinations/probes.rs"]
mod probes;
#[path = "destinations/s3.rs"]
mod s3;
#[path = "destinations/settings.rs"]
mod settings;
#[path = "destinations/suite.rs"]
mod suite;
