//! Three nodes: one order of commits explains all answers of the state store, while the nodes that lead it are killed
//! and paused.
//!
//! Clients commit transactions of one key and of two, with and without expected versions, and read keys, each by way
//! of a node at random; the checker is that of the test kit. `ESKER_CLUSTER_ROUNDS` is the number of faults, for a
//! soak.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use esker_proto::statehouse::v1::GetStateRequest;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom as _;
use rand::{Rng as _, SeedableRng as _};
use rustix::process::Signal;
use tonic::Status;
use tonic_types::StatusExt as _;

use crate::client::{Clients, Name, json};
use crate::support::history::commits::{Answer, Commit, Event, What, Write, check};
use crate::support::{Cluster, Setup, eventually};

const CLIENTS: u64 = 6;
const KEYS: [&str; 4] = ["a", "b", "c", "d"];
const AGENT: &str = "agent";
/// Faults, unless `ESKER_CLUSTER_ROUNDS` has another number.
const ROUNDS: u64 = 6;
/// Longest wait of a client for an answer. The calls of a client that lost its connection end by themselves.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(60);

struct Shared {
    began: Instant,
    stop: AtomicBool,
    /// Values, each committed once.
    next: AtomicU64,
}

/// The values of a key, as clients know them: its version.
type Versions = BTreeMap<&'static str, u64>;

async fn client(nodes: Vec<Clients>, shared: Arc<Shared>, seed: u64) -> Vec<Event> {
    let mut rng = StdRng::seed_from_u64(seed);
    let mut versions = Versions::new();
    let mut events = Vec::new();
    while !shared.stop.load(Ordering::Relaxed) {
        let state = nodes.choose(&mut rng).unwrap();
        let done = match rng.random_range(0..3) {
            0 => {
                let key = *KEYS.choose(&mut rng).unwrap();
                read(state, key, &mut versions, &shared).await
            }
            _ => {
                let count = rng.random_range(1..=2);
                let keys: Vec<_> = KEYS.choose_multiple(&mut rng, count).copied().collect();
                let conditional = rng.random_ratio(2, 3);
                commit(state, &keys, conditional, &versions, &shared).await
            }
        };
        match done {
            Some(event) => events.push(event),
            None => tokio::time::sleep(Duration::from_millis(20)).await,
        }
        tokio::time::sleep(Duration::from_micros(rng.random_range(0..3000))).await;
    }
    events
}

/// Reads a key. `None` if there is no answer.
async fn read(
    state: &Clients,
    key: &'static str,
    versions: &mut Versions,
    shared: &Shared,
) -> Option<Event> {
    let request = GetStateRequest {
        namespace: "default".to_owned(),
        agent_id: AGENT.to_owned(),
        key: key.to_owned(),
    };
    let asked = shared.began.elapsed();
    let mut client = state.statehouse.clone();
    let read = client.get_state(request);
    let read = tokio::time::timeout(ANSWER_TIMEOUT, read).await.ok()?;
    let read = read.ok()?.into_inner();
    let answered = shared.began.elapsed();
    versions.insert(key, read.version);
    let what = What::Read {
        key: key.to_owned(),
        version: read.version,
        commit: read.commit_ts,
        id: read.value.map(|value| id_of(&json(&value))),
    };
    Some(Event {
        asked,
        answered,
        what,
    })
}

fn id_of(value: &str) -> u64 {
    let value: serde_json::Value = serde_json::from_str(value).unwrap();
    value["id"].as_u64().unwrap()
}

/// Commits one transaction. `None` if it did not come as far as its commit, so that nothing of it can be there.
async fn commit(
    state: &Clients,
    keys: &[&'static str],
    conditional: bool,
    versions: &Versions,
    shared: &Shared,
) -> Option<Event> {
    let id = shared.next.fetch_add(1, Ordering::Relaxed);
    let expected = |key: &str| versions.get(key).copied().unwrap_or_default();
    let writes: Vec<Write> = keys
        .iter()
        .map(|key| Write {
            key: (*key).to_owned(),
            expected: conditional.then(|| expected(key)),
        })
        .collect();
    let staged = async {
        let txn = state.begin_for(Some(u64::MAX)).await?;
        for write in &writes {
            let name = Name("default", AGENT, &write.key);
            let value = crate::client::object(&format!("{{\"id\":{id}}}"));
            (state.stage(&txn, name, Some(value), write.expected)).await?;
        }
        Ok::<_, Status>(txn)
    };
    let staged = tokio::time::timeout(ANSWER_TIMEOUT, staged).await;
    let txn = staged.ok()?.ok()?;
    let asked = shared.began.elapsed();
    let committed = tokio::time::timeout(ANSWER_TIMEOUT, state.commit(&txn)).await;
    let answered = shared.began.elapsed();
    let answer = match committed {
        Ok(Ok(number)) => Answer::Committed(number),
        Ok(Err(status)) => refusal(&status),
        Err(_) => Answer::Unknown,
    };
    let what = What::Commit { id, writes, answer };
    Some(Event {
        asked,
        answered,
        what,
    })
}

/// What the status of a failed commit says about it.
fn refusal(status: &Status) -> Answer {
    let info = status.get_details_error_info();
    let reason = info.map(|info| info.reason).unwrap_or_default();
    match (status.code(), reason.as_str()) {
        (_, "version_mismatch") => Answer::Conflict,
        // The node that held the transaction is gone, or never had it.
        (tonic::Code::NotFound | tonic::Code::Aborted, _) => Answer::Refused,
        _ => Answer::Unknown,
    }
}

/// All commits of the agent.
async fn commits(state: &Clients) -> Vec<Commit> {
    let events = state.replay_all().await;
    let commits = events.iter().map(|event| {
        let operations = event.operations.iter().filter(|it| it.agent_id == AGENT);
        let mut ids: Vec<u64> = operations
            .clone()
            .map(|it| id_of(&json(it.value.as_ref().unwrap())))
            .collect();
        ids.dedup();
        assert_eq!(
            ids.len(),
            1,
            "one value in all writes of a commit: {event:?}"
        );
        Commit {
            number: event.commit_ts,
            id: ids[0],
            versions: operations.map(|it| (it.key.clone(), it.version)).collect(),
        }
    });
    commits.collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_order_of_commits_explains_every_answer_although_leaders_are_lost() {
    let rounds = std::env::var("ESKER_CLUSTER_ROUNDS");
    let rounds: u64 = rounds.map_or(ROUNDS, |rounds| rounds.parse().unwrap());
    // A history of many faults takes long to read and to check: a new store begins now and then.
    for (part, first) in (0..rounds).step_by(ROUNDS as usize).enumerate() {
        lose_leaders(part, ROUNDS.min(rounds - first)).await;
    }
}

async fn lose_leaders(part: usize, faults: u64) {
    let seed: u64 = rand::random();
    println!("part {part}, seed {seed}");
    let mut rng = StdRng::seed_from_u64(seed);
    let mut cluster = Cluster::start(&Setup::default().partitions(1)).await;
    let shared = Arc::new(Shared {
        began: Instant::now(),
        stop: AtomicBool::new(false),
        next: AtomicU64::new(1),
    });
    let clients: Vec<_> = (0..CLIENTS)
        .map(|number| {
            let nodes = cluster
                .all()
                .map(|at| Clients::of(cluster.server(at).url()));
            tokio::spawn(client(nodes.collect(), shared.clone(), seed ^ number))
        })
        .collect();
    for fault in 0..faults {
        tokio::time::sleep(Duration::from_millis(rng.random_range(200..1200))).await;
        let leader = cluster.leader_of(1, rng.random_range(0..3)).await;
        if fault % 2 == 0 {
            cluster.kill(leader);
            tokio::time::sleep(Duration::from_millis(rng.random_range(0..3000))).await;
            cluster.restart(leader).await;
        } else {
            cluster.signal(leader, Signal::STOP);
            let paused = rng.random_range(1500..3000);
            tokio::time::sleep(Duration::from_millis(paused)).await;
            cluster.signal(leader, Signal::CONT);
        }
    }
    cluster.leader_of(1, 0).await;
    tokio::time::sleep(Duration::from_millis(500)).await;
    shared.stop.store(true, Ordering::Relaxed);
    let mut events = Vec::new();
    for client in clients {
        events.extend(client.await.unwrap());
    }
    let state = Clients::of(cluster.server(0).url());
    eventually("the store answers", async || {
        let keys = esker_proto::statehouse::v1::ListKeysRequest {
            namespace: "default".to_owned(),
            agent_id: AGENT.to_owned(),
        };
        state
            .statehouse
            .clone()
            .list_keys(keys)
            .await
            .ok()
            .map(drop)
    })
    .await;
    let commits = commits(&state).await;
    let count = |wanted: fn(&Answer) -> bool| {
        let is_wanted = |event: &&Event| match &event.what {
            What::Commit { answer, .. } => wanted(answer),
            What::Read { .. } => false,
        };
        events.iter().filter(is_wanted).count()
    };
    let committed = count(|it| matches!(it, Answer::Committed(_)));
    let conflicts = count(|it| *it == Answer::Conflict);
    let unknown = count(|it| *it == Answer::Unknown);
    println!(
        "{committed} committed, {conflicts} conflicts, {unknown} unknown, of {} events",
        events.len()
    );
    assert!(committed > 50, "{committed} of {} committed", events.len());
    assert!(
        conflicts > 5,
        "{conflicts} conflicts of {} events",
        events.len()
    );
    if let Err(why) = check(&events, &commits) {
        panic!("part {part}, seed {seed}: {why}");
    }
}
