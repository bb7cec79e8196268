//! Readers that scan while commits of 300 keys run.
//!
//! `ESKER_STATE_SCANS` says how many scans; `make soak-state` runs a hundred thousand.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use crate::client::{Clients, Name, State};

/// Keys of each commit.
const WIDTH: usize = 300;
/// Readers at once.
const READERS: usize = 4;

fn scans() -> u64 {
    let scans = std::env::var("ESKER_STATE_SCANS").ok();
    scans.and_then(|n| n.parse().ok()).unwrap_or(3_000)
}

async fn commit(state: &Clients, n: u64) {
    let txn = state.begin().await;
    for key in 0..WIDTH {
        let name = format!("key-{key:03}");
        let value = format!("{{\"n\":{n}}}");
        let name = Name("default", "agent", &name);
        state.write(&txn, name, &value).await.unwrap();
    }
    assert_eq!(state.commit(&txn).await.unwrap(), n);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_scan_never_sees_a_part_of_a_commit() {
    let state = State::fresh().await;
    commit(&state, 1).await;
    let done = Arc::new(AtomicBool::new(false));
    let left = Arc::new(AtomicU64::new(scans()));
    let mut readers = tokio::task::JoinSet::new();
    for _ in 0..READERS {
        let (state, left) = (state.clients.clone(), left.clone());
        readers.spawn(async move {
            let mut newest = 0;
            let mut states = 0;
            let take = |left: u64| left.checked_sub(1);
            while left
                .fetch_update(Ordering::Relaxed, Ordering::Relaxed, take)
                .is_ok()
            {
                let entries = state.scan("agent", "").await;
                assert_eq!(entries.len(), WIDTH);
                let first = entries[0].commit_ts;
                for entry in &entries {
                    assert_eq!((entry.commit_ts, entry.version), (first, first), "torn");
                }
                assert!(first >= newest, "a reader never goes back");
                states += u64::from(first > newest);
                newest = first;
            }
            states
        });
    }
    let writer = tokio::spawn({
        let (state, done) = (state.clients.clone(), done.clone());
        async move {
            let mut n = 1;
            while !done.load(Ordering::Relaxed) {
                n += 1;
                commit(&state, n).await;
            }
            n
        }
    });
    let mut states = 0;
    while let Some(seen) = readers.join_next().await {
        states += seen.unwrap();
    }
    done.store(true, Ordering::Relaxed);
    let commits = writer.await.unwrap();
    assert!(commits > 5, "commits ran meanwhile");
    assert!(states > READERS as u64, "and readers saw different states");
}
