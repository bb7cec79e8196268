//! Kills in the middle of commits and of snapshots, again and again.
//!
//! Every acknowledged commit is there completely; no other one is there in part; versions have no gap and no
//! repetition; and the newest snapshot and the commits after it give the live state.
//!
//! `ESKER_STATE_KILLS` sets the number of rounds; `make soak-state` runs a hundred.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rand::{Rng as _, SeedableRng as _};
use testkit::seeds;

use crate::client::{Clients, Name, State};
use crate::support::Setup;

/// Keys that one commit writes, all with the same value.
const WIDTH: usize = 40;
/// Clients at once, each with an agent of its own.
const CLIENTS: usize = 4;

fn rounds() -> u64 {
    let rounds = std::env::var("ESKER_STATE_KILLS").ok();
    rounds.and_then(|n| n.parse().ok()).unwrap_or(8)
}

fn setup() -> Setup {
    // Snapshots are under way all the time.
    Setup::default().set("state.snapshot-interval=20")
}

/// What a client knows: the acknowledged commits, by number, and the one under way.
#[derive(Default)]
struct Known {
    acknowledged: BTreeMap<u64, u64>,
    under_way: Option<u64>,
}

async fn commit(state: &Clients, agent: &str, n: u64) -> Result<u64, tonic::Status> {
    let txn = state.begin_for(None).await?;
    for key in 0..WIDTH {
        let name = format!("key-{key}");
        let value = format!("{{\"n\":{n}}}");
        state
            .write(&txn, Name("default", agent, &name), &value)
            .await?;
    }
    state.commit(&txn).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kill_at_any_moment_leaves_every_acknowledged_commit_whole_and_no_other_in_part() {
    let seed = seeds::one(1, "--test state kills");
    let mut rng = rand::rngs::StdRng::seed_from_u64(seed);
    let mut state = State::of(setup().start_fresh().await);
    let known: Vec<_> = (0..CLIENTS)
        .map(|_| Arc::new(Mutex::new(Known::default())))
        .collect();
    let next = Arc::new(AtomicU64::new(1));
    // This ensures that there is a snapshot to verify, however little is committed between the kills.
    commit(&state, "another", 0).await.unwrap();
    state.snapshot().await;
    for _ in 0..rounds() {
        let mut clients = tokio::task::JoinSet::new();
        for (number, known) in known.iter().enumerate() {
            let (known, next) = (known.clone(), next.clone());
            let state = state.clients.clone();
            clients.spawn(async move {
                let agent = format!("agent-{number}");
                loop {
                    let n = next.fetch_add(1, Ordering::Relaxed);
                    known.lock().unwrap().under_way = Some(n);
                    let Ok(commit_ts) = commit(&state, &agent, n).await else {
                        return;
                    };
                    let mut known = known.lock().unwrap();
                    known.acknowledged.insert(commit_ts, n);
                    known.under_way = None;
                }
            });
        }
        tokio::time::sleep(Duration::from_millis(rng.random_range(5..250))).await;
        state.server.kill();
        while clients.join_next().await.is_some() {}
        let mut server = state.server;
        server.restart(&setup()).await;
        state = State::of(server);
        check(&state, &known, seed).await;
    }
    let proof = state.verify().await;
    assert!(proof.differences.is_empty(), "seed {seed}: {proof:?}");
}

async fn check(state: &Clients, all_known: &[Arc<Mutex<Known>>], seed: u64) {
    let all = state.replay_all().await;
    let numbers: Vec<u64> = all.iter().map(|event| event.commit_ts).collect();
    let expected: Vec<u64> = (1..=numbers.len() as u64).collect();
    assert_eq!(
        numbers, expected,
        "seed {seed}: commits are numbered without a gap"
    );
    for (number, known) in all_known.iter().enumerate() {
        let agent = format!("agent-{number}");
        let mut known = std::mem::take(&mut *known.lock().unwrap());
        let of_agent: Vec<_> = all
            .iter()
            .filter(|event| event.operations.iter().any(|o| o.agent_id == agent))
            .collect();
        let mut version = 0;
        for event in &of_agent {
            version += 1;
            assert_eq!(
                event.operations.len(),
                WIDTH,
                "seed {seed}: a commit is whole"
            );
            for operation in &event.operations {
                assert_eq!(operation.version, version, "seed {seed}: versions go on");
            }
            let value = event.operations[0].value.as_ref().unwrap();
            let n: serde_json::Value = serde_json::from_str(&crate::client::json(value)).unwrap();
            let n = n["n"].as_u64().unwrap();
            match known.acknowledged.get(&event.commit_ts) {
                Some(acknowledged) => assert_eq!(n, *acknowledged, "seed {seed}"),
                // The answer was lost.
                None => {
                    assert_eq!(Some(n), known.under_way, "seed {seed}: a stranger");
                    known.acknowledged.insert(event.commit_ts, n);
                }
            }
        }
        assert_eq!(
            of_agent.len(),
            known.acknowledged.len(),
            "seed {seed}: nothing is lost"
        );
        known.under_way = None;
        let entries = state.scan(&agent, "key-").await;
        if let Some((commit_ts, n)) = known.acknowledged.last_key_value() {
            assert_eq!(entries.len(), WIDTH);
            for entry in entries {
                assert_eq!((entry.version, entry.commit_ts), (version, *commit_ts));
                let value = crate::client::json(entry.value.as_ref().unwrap());
                assert_eq!(value, format!("{{\"n\":{n}}}"));
            }
        }
        *all_known[number].lock().unwrap() = known;
    }
}
