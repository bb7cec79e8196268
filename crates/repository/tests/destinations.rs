//! Destinations keep the same promises on S3 and in a local directory; and what is special of each.

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
