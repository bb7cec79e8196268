//! Readers that scan while commits of 300 keys run.
//!
//! `ESKER_STATE_SCANS` sets the number of scans; `make soak-state` runs a hundred thousand.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Instant;

use crate::client::{Clients, Name, State};
use crate::support::SOON;

/// Keys of each commit.
const WIDTH: usize = 300;
/// Readers at once.
const READERS: usize = 4;
/// Fewest commits while the readers scan.
const COMMITS: u64 = 5;

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
    let committed = Arc::new(AtomicU64::new(1));
    // Sum over all readers of the states that each saw.
    let states = Arc::new(AtomicU64::new(0));
    let mut readers = tokio::task::JoinSet::new();
    for _ in 0..READERS {
        let (state, left) = (state.clients.clone(), left.clone());
        let (committed, states) = (committed.clone(), states.clone());
        readers.spawn(async move {
            let mut newest = 0;
            let mut used_up = None;
            let take = |left: u64| left.checked_sub(1);
            loop {
                let taken = left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take);
                if taken.is_err() {
                    // On a busy machine, the readers continue until enough commits have happened.
                    let since = used_up.get_or_insert_with(Instant::now);
                    let enough = committed.load(Ordering::Relaxed) > COMMITS
                        && states.load(Ordering::Relaxed) > READERS as u64;
                    if enough || since.elapsed() > SOON {
                        return;
                    }
                }
                let entries = state.scan("agent", "").await;
                assert_eq!(entries.len(), WIDTH);
                let first = entries[0].commit_ts;
                for entry in &entries {
                    assert_eq!((entry.commit_ts, entry.version), (first, first), "torn");
                }
                assert!(first >= newest, "a reader never goes back");
                states.fetch_add(u64::from(first > newest), Ordering::Relaxed);
                newest = first;
            }
        });
    }
    let writer = tokio::spawn({
        let (state, done) = (state.clients.clone(), done.clone());
        let committed = committed.clone();
        async move {
            let mut n = 1;
            while !done.load(Ordering::Relaxed) {
                n += 1;
                commit(&state, n).await;
                committed.store(n, Ordering::Relaxed);
            }
        }
    });
    while let Some(read) = readers.join_next().await {
        read.unwrap();
    }
    done.store(true, Ordering::Relaxed);
    writer.await.unwrap();
    let commits = committed.load(Ordering::Relaxed);
    assert!(commits > COMMITS, "commits ran meanwhile");
    let states = states.load(Ordering::Relaxed);
    assert!(states > READERS as u64, "and readers saw different states");
}
