//! What tests of destinations share: a real S3 server in the process, and what can go wrong with it.
//!
//! Other test targets include it with `#[path = "…/tests/support/mod.rs"] mod support;`.

// Each test target uses a part of it.
#![allow(dead_code, clippy::unwrap_used, clippy::expect_used)]

pub mod faults;
pub mod s3;
pub mod slow_link;
