//! Three nodes: one order of commits explains all answers of the state store, while the nodes that lead it are killed
//! and paused, are cut off, have a full disk or a clock that jumps. At last all replicas are equal.
//!
//! Clients commit transactions of one key and of two, with and without expected versions, and read keys, each by way
//! of a node at random; the checker is that of the test kit. `ESKER_CLUSTER_ROUNDS` is the number of faults, for a
//! soak.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use esker_proto::state::v1::ReplayRequest;
use esker_proto::statehouse::v1::GetStateRequest;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom as _;
use rand::{Rng as _, SeedableRng as _};
use testkit::seeds;
use tonic::Status;
use tonic_types::StatusExt as _;

use crate::client::{Clients, Name, collect, json};
use crate::support::history::commits::{Answer, Commit, Event, What, Write, check};
use crate::support::leader_faults::{ClientRun, Faults, faults_of_runs};
use crate::support::{Setup, eventually};

const CLIENTS: u64 = 6;
const KEYS: [&str; 4] = ["a", "b", "c", "d"];
const AGENT: &str = "agent";
/// Longest wait of a client for an answer. The calls of a client that lost its connection end by themselves.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(60);

/// The values of a key, as clients know them: its version.
type Versions = BTreeMap<&'static str, u64>;

/// Fewest commits of a run that are acknowledged.
const COMMITTED: usize = 50;
/// Fewest commits of a run that are refused because of a version.
const CONFLICTS: usize = 5;

/// How many commits of a run had these answers so far.
#[derive(Default)]
struct Counts {
    committed: AtomicUsize,
    conflicts: AtomicUsize,
}

impl Counts {
    fn note(&self, event: &Event) {
        let count = match &event.what {
            What::Commit { answer, .. } => match answer {
                Answer::Committed(_) => &self.committed,
                Answer::Conflict => &self.conflicts,
                _ => return,
            },
            What::Read { .. } => return,
        };
        count.fetch_add(1, Ordering::Relaxed);
    }

    fn are_enough(&self) -> bool {
        self.committed.load(Ordering::Relaxed) > COMMITTED
            && self.conflicts.load(Ordering::Relaxed) > CONFLICTS
    }
}

async fn client(
    nodes: Vec<Clients>,
    run: Arc<ClientRun>,
    counts: Arc<Counts>,
    seed: u64,
) -> Vec<Event> {
    let mut rng = StdRng::seed_from_u64(seed);
    let mut versions = Versions::new();
    let mut events = Vec::new();
    while run.goes_on() {
        let state = nodes.choose(&mut rng).unwrap();
        let done = match rng.random_range(0..3) {
            0 => {
                let key = *KEYS.choose(&mut rng).unwrap();
                read(state, key, &mut versions, &run).await
            }
            _ => {
                let count = rng.random_range(1..=2);
                let keys: Vec<_> = KEYS.choose_multiple(&mut rng, count).copied().collect();
                let conditional = rng.random_ratio(2, 3);
                commit(state, &keys, conditional, &versions, &run).await
            }
        };
        match done {
            Some(event) => {
                counts.note(&event);
                events.push(event);
            }
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
    run: &ClientRun,
) -> Option<Event> {
    let request = GetStateRequest {
        namespace: "default".to_owned(),
        agent_id: AGENT.to_owned(),
        key: key.to_owned(),
    };
    let asked = run.elapsed();
    let mut client = state.statehouse.clone();
    let read = client.get_state(request);
    let read = tokio::time::timeout(ANSWER_TIMEOUT, read).await.ok()?;
    let read = read.ok()?.into_inner();
    let answered = run.elapsed();
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
    run: &ClientRun,
) -> Option<Event> {
    let id = run.id();
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
    let asked = run.elapsed();
    let committed = tokio::time::timeout(ANSWER_TIMEOUT, state.commit(&txn)).await;
    let answered = run.elapsed();
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

/// All commits of the agent; `None` if they could not be read to the end, as while another node becomes the leader.
async fn commits(state: &Clients) -> Option<Vec<Commit>> {
    let replay = state.esker.clone().replay(ReplayRequest::default()).await;
    let events = collect(replay.ok()?.into_inner()).await.ok()?;
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
    Some(commits.collect())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_order_of_commits_explains_every_answer_although_leaders_are_lost() {
    let first = seeds::one(1, "--test state failover::one_order");
    for (seed, faults) in (first..).zip(faults_of_runs()) {
        lose_leaders(seed, faults).await;
    }
}

async fn lose_leaders(seed: u64, faults: u64) {
    println!("seed {seed}, {faults} faults");
    let mut rng = StdRng::seed_from_u64(seed);
    let (lose, mut cluster) = Faults::cluster(&Setup::default().partitions(1)).await;
    let run = Arc::new(ClientRun::default());
    let counts = Arc::new(Counts::default());
    let clients: Vec<_> = (0..CLIENTS)
        .map(|number| {
            let nodes = cluster
                .all()
                .map(|at| Clients::of(cluster.server(at).url()));
            let (run, counts) = (run.clone(), counts.clone());
            tokio::spawn(client(nodes.collect(), run, counts, seed ^ number))
        })
        .collect();
    lose.happen(&mut cluster, 1, faults, &mut rng).await;
    // Clients of a slow machine go on for a while.
    eventually("enough was committed, and refused", async || {
        counts.are_enough().then_some(())
    })
    .await;
    run.stop();
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
    let commits = eventually("all commits", async || commits(&state).await).await;
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
    assert!(committed > COMMITTED && conflicts > CONFLICTS);
    if let Err(why) = check(&events, &commits) {
        panic!("seed {seed}: {why}");
    }
    cluster.replicas_are_equal(0).await;
}
