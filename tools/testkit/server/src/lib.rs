//! Esker servers as processes, with clients and checks for tests.
//!
//! | module | what it holds |
//! |---|---|
//! | [`server`] | a real `esker server` process: start, kill, stop, its log |
//! | [`cluster`] | several of them that form a cluster |
//! | [`comparisons`] | its replicas, compared |
//! | [`leader_faults`] | clients of a cluster whose leaders are lost |
//! | [`clocks`] | clocks of nodes that jump |
//! | [`small_disk`] | a file system of a known size |
//! | [`peer_links`] | the ways between them, each of which can be cut |
//! | [`http`] | raw requests over HTTP/1.1 and HTTP/2 with prior knowledge |
//! | [`frames`] | frames of sessions |
//! | [`events`] | server-sent events |
//! | [`sdk`] | the official client, and helpers of the tests |
//! | [`tls`] | certificates, and clients that trust them |
//! | [`codec`] | gzip and zstd |
//! | [`history`] | what was sent and answered, and the check of a stream against it |

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a panic fails the test"
)]

pub mod clocks;
pub mod cluster;
pub mod codec;
pub mod comparisons;
pub mod events;
pub mod frames;
pub mod history;
pub mod http;
pub mod leader_faults;
pub mod peer_links;
pub mod sdk;
pub mod server;
pub mod small_disk;
pub mod tls;

use std::time::{Duration, Instant};

pub use cluster::Cluster;
pub use http::{Http, Transport};
pub use server::{Server, Setup};
pub use testkit::wait::SOON;

/// Most tries of an operation that has to be fast.
const TRIES: u32 = 5;

/// Calls `ask` every few milliseconds until the answer is `Some`.
///
/// # Panics
///
/// After [`SOON`], with `what`.
pub async fn eventually<T>(what: &str, mut ask: impl AsyncFnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + SOON;
    loop {
        if let Some(answer) = ask().await {
            return answer;
        }
        assert!(Instant::now() < deadline, "not within {SOON:?}: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// Waits for what should happen soon.
///
/// # Panics
///
/// After [`SOON`], with `what`.
pub async fn soon<T>(what: &str, wait: impl Future<Output = T>) -> T {
    match tokio::time::timeout(SOON, wait).await {
        Ok(done) => done,
        Err(_) => panic!("not within {SOON:?}: {what}"),
    }
}

/// Tries an operation that has to be fast, with other data each time, until a try is in time, and returns its
/// result. A stall of the machine spoils one try; an operation that is really slow spoils all. A try gets its
/// number, and its error is what was too late, or that the machine was too slow for an answer; it asserts
/// everything that holds at any speed.
///
/// # Panics
///
/// If no try was in time, with `what`.
pub async fn in_time<T>(what: &str, mut attempt: impl AsyncFnMut(u32) -> Result<T, String>) -> T {
    let mut late = Vec::new();
    for number in 0..TRIES {
        match attempt(number).await {
            Ok(done) => return done,
            Err(why) => late.push(why),
        }
    }
    panic!("never in time: {what}: {late:?}");
}

/// An error unless something took less than `most`; for [`in_time`].
pub fn within(took: Duration, most: Duration) -> Result<(), String> {
    match took < most {
        true => Ok(()),
        false => Err(format!("{took:?} instead of {most:?}")),
    }
}

/// Milliseconds since the epoch.
pub fn now_ms() -> u64 {
    std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .unwrap()
        .as_millis()
        .try_into()
        .unwrap()
}
