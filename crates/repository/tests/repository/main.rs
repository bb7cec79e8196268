//! The library with real components: every promise on an S3 server and in a local directory.
//!
//! `fixture` has the place of a test and its checks; each of the other modules tests one subject.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "these are tests")]

/// Runs each promise, an `async fn(Place)`, on an S3 server and in a local directory.
macro_rules! on_both {
    ($($promise:ident),* $(,)?) => {
        mod on_s3 {
            $(
                #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
                async fn $promise() {
                    super::$promise(crate::fixture::Place::on_s3().await).await;
                }
            )*
        }

        mod in_a_directory {
            $(
                #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
                async fn $promise() {
                    super::$promise(crate::fixture::Place::in_a_directory()).await;
                }
            )*
        }
    };
}

mod asking;
mod bounds;
mod breaks;
mod crashes;
mod damage;
mod describing;
mod faults;
mod fixture;
mod interrupted;
mod names;
mod newer_formats;
mod order;
mod ownership;
mod pacing;
mod pruning;
mod putting;
mod races;
mod repairing;
mod restate;
mod restore_pins;
mod restoring;
mod resuming;
mod reusing;
mod slow_links;
mod strangers;
#[path = "../support/mod.rs"]
mod support;
mod sweeping;
mod verifying;
